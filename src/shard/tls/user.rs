//! Whom a client certificate names (qdrouterd: `uidFormat`, `uidNameMappingFile`).

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use ring::digest;
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::der::Decode;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::ext::pkix::name::DirectoryString;
use x509_cert::name::Name;

use super::{FileRole, TlsError};
use crate::shard::passwords::to_hex;

/// Between the parts of a user's name (qdrouterd 1.19).
const SEPARATOR: &str = ";";

/// How a user's name is made from a certificate.
#[derive(Clone, Debug, Default)]
pub(super) struct UserNames {
    /// Letters of `uidFormat`; none: the subject as RFC 4514 writes it.
    parts: Vec<Part>,
    /// Names to use instead.
    mapping: HashMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Attribute(ObjectIdentifier),
    Fingerprint(&'static digest::Algorithm),
}

impl Part {
    fn of_letter(letter: char) -> Option<Self> {
        // Attribute types of X.520.
        let attribute = |oid| Some(Part::Attribute(ObjectIdentifier::new_unwrap(oid)));
        match letter {
            'c' => attribute("2.5.4.6"),
            's' => attribute("2.5.4.8"),
            'l' => attribute("2.5.4.7"),
            'o' => attribute("2.5.4.10"),
            'u' => attribute("2.5.4.11"),
            'n' => attribute("2.5.4.3"),
            '1' => Some(Part::Fingerprint(&digest::SHA1_FOR_LEGACY_USE_ONLY)),
            '2' => Some(Part::Fingerprint(&digest::SHA256)),
            '5' => Some(Part::Fingerprint(&digest::SHA512)),
            _ => None,
        }
    }

    fn of(self, der: &[u8], subject: &Name) -> Option<String> {
        match self {
            Part::Fingerprint(algorithm) => Some(to_hex(digest::digest(algorithm, der).as_ref())),
            Part::Attribute(oid) => subject
                .by_oid::<DirectoryString>(oid)
                .ok()
                .flatten()
                .map(|text| text.value().into_owned())
                .filter(|text| !text.is_empty()),
        }
    }
}

impl UserNames {
    /// `format` is a `uidFormat`; one with an unknown letter counts as none (qdrouterd 1.19).
    ///
    /// # Errors
    /// [`TlsError::Unreadable`], [`TlsError::BadMapping`] for the file of names.
    pub(super) fn load(format: &str, mapping_file: Option<&PathBuf>) -> Result<Self, TlsError> {
        Ok(UserNames {
            parts: format
                .chars()
                .map(Part::of_letter)
                .collect::<Option<_>>()
                .unwrap_or_default(),
            mapping: mapping_file
                .map(|path| mapping(path))
                .transpose()?
                .unwrap_or_default(),
        })
    }

    /// The user that a DER certificate names; `None` if it names nobody.
    pub(super) fn user(&self, der: &[u8]) -> Option<String> {
        let certificate = CertificateInner::<Raw>::from_der(der).ok()?;
        let subject = certificate.tbs_certificate().subject();
        let found: Vec<String> = self
            .parts
            .iter()
            .filter_map(|part| part.of(der, subject))
            .collect();
        let user = match found.is_empty() {
            true => subject.to_string(),
            false => found.join(SEPARATOR),
        };
        let user = self.mapping.get(&user).cloned().unwrap_or(user);
        (!user.is_empty()).then_some(user)
    }
}

/// A JSON object of `"uid": "name"`.
fn mapping(path: &Path) -> Result<HashMap<String, String>, TlsError> {
    let text = fs::read_to_string(path).map_err(|source| TlsError::Unreadable {
        role: FileRole::UserNames,
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_str(&text).map_err(|source| TlsError::BadMapping {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{DistinguishedName, DnType};

    use super::*;

    fn certificate(entries: &[(DnType, &str)]) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in entries {
            params.distinguished_name.push(kind.clone(), *value);
        }
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    fn full() -> Vec<u8> {
        certificate(&[
            (DnType::CountryName, "US"),
            (DnType::StateOrProvinceName, "NC"),
            (DnType::LocalityName, "Raleigh"),
            (DnType::OrganizationName, "Plant"),
            (DnType::OrganizationalUnitName, "Boiler"),
            (DnType::CommonName, "dev1"),
        ])
    }

    fn user(format: &str, der: &[u8]) -> Option<String> {
        UserNames::load(format, None).unwrap().user(der)
    }

    #[test]
    fn letters_choose_and_order_the_parts() {
        let der = full();
        let sha256 = to_hex(digest::digest(&digest::SHA256, &der).as_ref());
        for (format, expected) in [
            ("n", "dev1"),
            ("csloun", "US;NC;Raleigh;Plant;Boiler;dev1"),
            ("no", "dev1;Plant"),
            ("2", sha256.as_str()),
        ] {
            assert_eq!(user(format, &der).as_deref(), Some(expected), "{format}");
        }
        assert_eq!(user("1", &der).unwrap().len(), 40);
        assert_eq!(user("n5", &der).unwrap().len(), "dev1;".len() + 128);
    }

    #[test]
    fn without_a_format_or_with_an_unknown_letter_it_is_the_subject() {
        let der = full();
        let subject = "CN=dev1,OU=Boiler,O=Plant,L=Raleigh,ST=NC,C=US";
        for format in ["", "x", "nx", "n,o"] {
            assert_eq!(user(format, &der).as_deref(), Some(subject), "{format}");
        }
        let bare = certificate(&[(DnType::CommonName, "dev1")]);
        assert_eq!(
            user("o", &bare).as_deref(),
            Some("CN=dev1"),
            "nothing to choose from"
        );
        assert_eq!(user("on", &bare).as_deref(), Some("dev1"));
        assert_eq!(user("n", &certificate(&[])), None);
        assert_eq!(user("n", b"rubbish"), None);
    }

    #[test]
    fn a_file_may_give_other_names() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("names.json");
        fs::write(&path, r#"{"dev1": "Boiler in the cellar"}"#).unwrap();
        let names = UserNames::load("n", Some(&path)).unwrap();
        assert_eq!(names.user(&full()).as_deref(), Some("Boiler in the cellar"));
        fs::write(&path, r#"["dev1"]"#).unwrap();
        let error = UserNames::load("n", Some(&path)).unwrap_err().to_string();
        assert!(error.contains("names.json"), "{error}");
    }
}
