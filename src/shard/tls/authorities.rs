//! Whom we trust: the authorities of a CA file, or the built-in public ones.

use std::path::Path;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;

use super::TlsError;
use super::certificate::{CertificateFacts, clock_is_unset, day};
use super::files::{self, FileRole};

/// The roots of the two chains that Azure's AMQP endpoints present (Azure: TLS certificate changes, 2022-2024).
pub(super) const AZURE_ROOTS: [&str; 2] = [
    "DigiCert Global Root G2",
    "Microsoft RSA Root Certificate Authority 2017",
];

/// Most expired certificates of one file that are named one by one.
const EXPIRED_NAMED: usize = 5;

/// Whether a host is an IoT Hub, an event hub or a service bus in Azure's public cloud.
pub(super) fn is_azure_host(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host.ends_with(".azure-devices.net") || host.ends_with(".servicebus.windows.net")
}

/// The trusted roots of one dial.
pub(super) struct Authorities {
    /// For rustls.
    pub(super) store: RootCertStore,
    /// As configured; empty for the built-in ones.
    pub(super) configured: Vec<CertificateDer<'static>>,
    /// For explanations; empty for the built-in ones.
    pub(super) facts: Vec<CertificateFacts>,
}

impl Authorities {
    /// Reads the CA file, which replaces the built-in authorities.
    ///
    /// # Errors
    ///
    /// [`TlsError::Unreadable`], [`TlsError::BadPem`], [`TlsError::NoCertificate`].
    pub(super) fn load(ca_file: Option<&Path>) -> Result<Self, TlsError> {
        let Some(path) = ca_file else {
            let store = RootCertStore {
                roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
            };
            return Ok(Authorities {
                store,
                configured: Vec::new(),
                facts: Vec::new(),
            });
        };
        let configured = files::certificates(FileRole::Authorities, path)?;
        let facts = configured
            .iter()
            .filter_map(|der| CertificateFacts::read(der))
            .collect();
        let mut store = RootCertStore::empty();
        let (usable, _) = store.add_parsable_certificates(configured.iter().cloned());
        if usable == 0 {
            return Err(TlsError::NoCertificate {
                role: FileRole::Authorities,
                path: path.to_owned(),
            });
        }
        Ok(Authorities {
            store,
            configured,
            facts,
        })
    }
}

/// Looks at a CA file with an operator's eyes, for the configuration check.
///
/// Answers with one line for each thing that will not work: nothing but expired certificates, and for an Azure host a
/// file that holds neither of the roots that Azure uses.
///
/// # Errors
///
/// [`TlsError::Unreadable`], [`TlsError::BadPem`], [`TlsError::NoCertificate`]: with such a file no connection can be
/// made at all.
pub fn inspect_ca_file(
    path: &Path,
    now: SystemTime,
    upstream_host: Option<&str>,
) -> Result<Vec<String>, TlsError> {
    let facts = Authorities::load(Some(path))?.facts;
    let shown = path.display();
    let mut warnings = Vec::new();

    if clock_is_unset(now) {
        warnings.push(format!("this machine's clock says {}: clock not set?", day(now)));
    }
    // Among others that are in date, as in any system's bundle, they do no harm.
    if facts.iter().all(|held| held.is_expired(now)) {
        for held in facts.iter().take(EXPIRED_NAMED) {
            warnings.push(format!(
                "certificate '{}' in CA file {shown} expired on {}: replace it",
                held.subject,
                day(held.not_after)
            ));
        }
        if let Some(more) = facts.len().checked_sub(EXPIRED_NAMED).filter(|more| *more > 0) {
            warnings.push(format!(
                "{more} more certificates in CA file {shown} have expired"
            ));
        }
    }

    let usable = |root: &&str| {
        facts
            .iter()
            .any(|held| held.subject == **root && !held.is_expired(now))
    };
    if let Some(host) = upstream_host
        && is_azure_host(host)
        && !AZURE_ROOTS.iter().any(usable)
    {
        let [first, second] = AZURE_ROOTS;
        warnings.push(format!(
            "CA file {shown} holds neither '{first}' nor '{second}', the roots that Azure uses today, so {host} \
             cannot be verified: put both, in PEM form, into that file, or leave out the CA file to use the \
             built-in public authorities"
        ));
    }
    Ok(warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn azure_hosts() {
        for host in [
            "hub.azure-devices.net",
            "HUB.Azure-Devices.NET.",
            "ns.servicebus.windows.net",
        ] {
            assert!(is_azure_host(host), "{host}");
        }
        for host in [
            "azure-devices.net",
            "hub.azure-devices.net.example.com",
            "10.0.0.1",
            "",
        ] {
            assert!(!is_azure_host(host), "{host}");
        }
    }

    /// The names that we tell operators to look for are those of real, current roots.
    #[test]
    fn the_azure_roots_are_among_the_built_in_ones() {
        for root in AZURE_ROOTS {
            let found = webpki_roots::TLS_SERVER_ROOTS.iter().any(|anchor| {
                anchor
                    .subject
                    .windows(root.len())
                    .any(|part| part == root.as_bytes())
            });
            assert!(found, "{root}");
        }
    }
}
