//! TLS profiles.

use std::path::Path;

use crate::config::model::{SslProfile, TlsVersion};
use crate::config::names::{quoted, suggestion};
use crate::config::report::Findings;
use crate::config::resolve::Fields;
use crate::config::secret::{Secret, first_line};

/// Words of `protocols`. The TLS library has none of the first two, which are broken.
const RETIRED_PROTOCOLS: [&str; 2] = ["TLSv1", "TLSv1.1"];
const PROTOCOLS: [(&str, TlsVersion); 2] = [("TLSv1.2", TlsVersion::Tls12), ("TLSv1.3", TlsVersion::Tls13)];

/// Letters of `uidFormat`: six parts of a name, and fingerprints by SHA-1, SHA-256 and SHA-512.
const UID_LETTERS: &str = "csloun125";

/// Roots that Azure used once, known by what people call the file.
const RETIRED_ROOTS: [(&str, &str); 2] = [
    ("equifax", "expired on 22 August 2018"),
    ("baltimore", "is no longer used by Azure"),
];

/// Attributes of a profile that 0.6 allowed in the connector or listener itself.
const INLINE: [&str; 5] = [
    "caCertFile",
    "certFile",
    "privateKeyFile",
    "password",
    "passwordFile",
];

/// Section `sslProfile`.
pub(in crate::config) fn ssl_profile(fields: &Fields, findings: &mut Findings) -> SslProfile {
    let name = fields.text("name").unwrap_or_default();
    if name.is_empty() {
        findings.error(fields.line, "sslProfile: required attribute `name` is missing");
    }
    profile(fields, name, findings)
}

/// Checks what a connector or listener says of its profile. TLS is used if it names one, and only then.
pub(super) fn check_reference(fields: &Fields, profiles: &[SslProfile], findings: &mut Findings) {
    let Some(name) = fields.text("sslProfile").filter(|name| !name.is_empty()) else {
        return;
    };
    if !profiles.iter().any(|profile| profile.name == name) {
        let hint = suggestion(&name, profiles.iter().map(|profile| profile.name.as_str()));
        let message = format!(
            "{}: there is no sslProfile {}{hint}",
            fields.entity.name,
            quoted(&name)
        );
        findings.error(fields.line_of("sslProfile"), message);
    } else if fields.entity.name == "connector" && !fields.boolean("verifyHostname") {
        let message = "connector: with `verifyHostname: no` any server with a certificate of a trusted root passes for the hub";
        findings.warning(fields.line_of("verifyHostname"), message);
    }
}

/// What a connector or listener of 0.6 says of TLS in its own section, on top of the profile that it names.
pub(super) fn inline_profile(
    fields: &Fields,
    owner: &str,
    profiles: &[SslProfile],
    findings: &mut Findings,
) -> Option<SslProfile> {
    if !INLINE.iter().any(|name| fields.is_set(name)) {
        return None;
    }
    let named = fields.text("sslProfile");
    let base = named
        .as_ref()
        .and_then(|name| profiles.iter().find(|profile| profile.name == *name));
    if let (Some(name), None) = (&named, base) {
        findings.error(
            fields.line_of("sslProfile"),
            format!("{}: there is no sslProfile {}", fields.entity.name, quoted(name)),
        );
    }
    let own = profile(fields, format!("{}/{owner}", fields.entity.name), findings);
    let Some(base) = base.cloned() else {
        return Some(own);
    };
    Some(SslProfile {
        ca_cert_file: own.ca_cert_file.or(base.ca_cert_file),
        cert_file: own.cert_file.or(base.cert_file),
        private_key_file: own.private_key_file.or(base.private_key_file),
        password: own.password.or(base.password),
        protocols: base.protocols,
        uid_format: own.uid_format.or(base.uid_format),
        uid_name_mapping_file: own.uid_name_mapping_file.or(base.uid_name_mapping_file),
        ..own
    })
}

fn profile(fields: &Fields, name: String, findings: &mut Findings) -> SslProfile {
    let path = |name: &str| fields.text(name).filter(|path| !path.is_empty());
    let profile = SslProfile {
        line: fields.line,
        name,
        ca_cert_file: path("caCertFile"),
        cert_file: path("certFile"),
        private_key_file: path("privateKeyFile"),
        password: password(fields, findings),
        protocols: protocols(fields, findings),
        uid_format: uid_format(fields, findings),
        uid_name_mapping_file: path("uidNameMappingFile"),
    };
    let who = fields.entity.name;
    if fields.entity.name == "sslProfile" && profile.cert_file.is_some() && profile.private_key_file.is_none()
    {
        let message =
            format!("{who}: `certFile` needs `privateKeyFile`: a certificate cannot be used without its key");
        findings.error(fields.line_of("certFile"), message);
    }
    // A file that is there is judged by its content, later.
    if let Some(file) = &profile.ca_cert_file
        && let Some((_, fate)) = retired_root(file)
        && !Path::new(file).exists()
    {
        let message = format!(
            "{who}: the root certificate in {} {fate}: Azure needs DigiCert Global Root G2 and Microsoft RSA Root \
             Certificate Authority 2017; leave `caCertFile` out to use the built-in roots, which have both",
            quoted(file)
        );
        findings.warning(fields.line_of("caCertFile"), message);
    }
    profile
}

fn uid_format(fields: &Fields, findings: &mut Findings) -> Option<String> {
    let format = fields.text("uidFormat").filter(|format| !format.is_empty())?;
    if let Some(unknown) = format.chars().find(|letter| !UID_LETTERS.contains(*letter)) {
        let message = format!(
            "{}: `uidFormat` has the unknown letter {}, so users are named by the subject of their certificate; \
             letters are {UID_LETTERS}",
            fields.entity.name,
            quoted(&unknown.to_string())
        );
        findings.warning(fields.line_of("uidFormat"), message);
    }
    Some(format)
}

fn password(fields: &Fields, findings: &mut Findings) -> Option<Secret> {
    let who = fields.entity.name;
    let password = fields.secret("password");
    let Some(file) = fields.text("passwordFile") else {
        return password;
    };
    let line = fields.line_of("passwordFile");
    if password.is_some() {
        findings.error(
            line,
            format!("{who}: `passwordFile` and `password` exclude each other"),
        );
        return password;
    }
    findings.warning(
        line,
        format!("{who}: `passwordFile` is old; `password: file:PATH` says the same"),
    );
    match first_line(&file) {
        Ok(text) => Some(Secret::new(text)),
        Err(wrong) => {
            findings.error(line, format!("{who}: {wrong}"));
            None
        }
    }
}

fn protocols(fields: &Fields, findings: &mut Findings) -> Vec<TlsVersion> {
    let all = PROTOCOLS.map(|(_, version)| version).to_vec();
    let words = fields.words("protocols");
    if words.is_empty() {
        return all;
    }
    let line = fields.line_of("protocols");
    let mut allowed = Vec::new();
    for word in &words {
        if let Some((_, version)) = PROTOCOLS.iter().find(|(name, _)| name == word) {
            allowed.push(*version);
        } else if RETIRED_PROTOCOLS.contains(&word.as_str()) {
            findings.warning(
                line,
                format!("sslProfile: protocol `{word}` is not safe and not available"),
            );
        } else {
            let hint = suggestion(word, PROTOCOLS.map(|(name, _)| name));
            findings.error(
                line,
                format!("sslProfile: unknown protocol {}{hint}", quoted(word)),
            );
        }
    }
    if allowed.is_empty()
        && words
            .iter()
            .all(|word| RETIRED_PROTOCOLS.contains(&word.as_str()))
    {
        findings.error(
            line,
            "sslProfile: none of its `protocols` is available; there are TLSv1.2 and TLSv1.3",
        );
    }
    if allowed.is_empty() { all } else { allowed }
}

fn retired_root(file: &str) -> Option<(&'static str, &'static str)> {
    let name = Path::new(file).file_name()?.to_string_lossy().to_lowercase();
    RETIRED_ROOTS.into_iter().find(|(root, _)| name.contains(root))
}
