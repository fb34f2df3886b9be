//! What listeners encrypt with, and what is to be said of its files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::shard::tls_versions;
use crate::config::{self, Config, Finding, Severity};
use crate::shard::tls::{ClientCertificates, ServerTls, ServerTlsSettings};

/// Reads the files of all listeners of the configuration that was read from `file`; with an error among the findings
/// nobody uses what is returned.
pub(super) fn load(file: &Path, config: &Config, findings: &mut Vec<Finding>) -> Vec<Option<Arc<ServerTls>>> {
    let mut load = |listener: &config::Listener| {
        let settings = server_tls_settings(config, listener)?;
        match ServerTls::load(&settings) {
            Ok(tls) => Some(Arc::new(tls)),
            Err(error) => {
                findings.push(Finding {
                    severity: Severity::Error,
                    file: file.display().to_string(),
                    line: listener.line,
                    message: format!(
                        "listener: sslProfile {} cannot be used: {error}",
                        settings.profile
                    ),
                });
                None
            }
        }
    };
    config.listeners.iter().map(&mut load).collect()
}

/// How a listener encrypts, if it does.
fn server_tls_settings(config: &Config, listener: &config::Listener) -> Option<ServerTlsSettings> {
    let profile = config.ssl_profile(listener.ssl_profile.as_deref()?)?;
    Some(ServerTlsSettings {
        profile: profile.name.clone(),
        cert_file: profile.cert_file.as_ref().map(PathBuf::from)?,
        key_file: profile.private_key_file.as_ref().map(PathBuf::from),
        versions: tls_versions(profile),
        clients: match &listener.client_certificates {
            config::ClientCertificates::Ignored => ClientCertificates::Ignored,
            config::ClientCertificates::Asked { ca_file } => ClientCertificates::Asked {
                ca_file: PathBuf::from(ca_file),
            },
            config::ClientCertificates::Demanded { ca_file } => ClientCertificates::Demanded {
                ca_file: PathBuf::from(ca_file),
            },
        },
        uid_format: profile.uid_format.clone().unwrap_or_default(),
        uid_names_file: profile.uid_name_mapping_file.as_ref().map(PathBuf::from),
    })
}
