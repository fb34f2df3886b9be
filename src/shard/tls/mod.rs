//! TLS towards the upstream peer and, in `server`, towards devices. Every type of rustls lives in this module; outside of it there is only a stream.
//!
//! Contract: [`TlsSettings`] are plain configuration. [`TlsClient::load`] reads the files they name (for every dial: a
//! renewed certificate needs no restart); [`TlsClient::handshake`] shakes hands over a TCP connection, and answers with
//! a [`TlsStream`] or with a [`TlsError`] whose text is one line for the operator. The chain of the server's certificate is always
//! verified; `verify_hostname` decides about its name alone.

mod authorities;
mod certificate;
mod explain;
mod files;
mod inspect;
mod provider;
mod server;
mod user;
mod verify;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ProtocolVersion, SupportedProtocolVersion, version};
use thiserror::Error;
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub use authorities::inspect_ca_file;
pub use certificate::{CertificateFacts, clock_is_unset, day};
pub use explain::{Fault, UnknownIssuer};
pub use files::FileRole;
pub use inspect::negotiated_cipher;
pub use server::{ClientCertificates, ServerTls, ServerTlsSettings};

pub use explain::explain_loss;
pub(super) use server::{Accepted, HANDSHAKE_RECORD};

use authorities::Authorities;
use certificate::printable;
use explain::Context;
use verify::{NameCheck, ServerVerifier};

/// An encrypted connection.
pub type TlsStream = tokio_rustls::client::TlsStream<BufReader<TcpStream>>;

/// What is read of the socket at once: rustls by itself asks for 4 KiB, a quarter of a record.
const READ_AHEAD: usize = 64 * 1024;
/// Bytes of one hub that may be encrypted and wait for the socket: a full outbox becomes records, and leaves, in one piece.
const UNSENT: usize = 192 * 1024;

/// A version of TLS that we speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2
    Tls12,
    /// TLS 1.3
    Tls13,
}

impl fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TlsVersion::Tls12 => "TLSv1.2",
            TlsVersion::Tls13 => "TLSv1.3",
        })
    }
}

/// How to encrypt one connector's connection: its `sslProfile`, and the name of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    /// The profile's name, for messages.
    pub profile: String,
    /// The host whose certificate we expect: a DNS name or an IP address. A DNS name is sent as SNI.
    pub server_name: String,
    /// Whether the certificate must be for that host. The chain is verified in any case.
    pub verify_hostname: bool,
    /// Trusted authorities: a PEM file, or a directory of them. `None`: the built-in public ones.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate chain.
    pub cert_file: Option<PathBuf>,
    /// The key of our own certificate; `None`: it is in `cert_file`, too.
    pub key_file: Option<PathBuf>,
    /// The versions allowed; empty: all.
    pub versions: Vec<TlsVersion>,
}

impl TlsSettings {
    fn offered_versions(&self) -> String {
        let offered = match self.versions.as_slice() {
            [] => &[TlsVersion::Tls12, TlsVersion::Tls13],
            some => some,
        };
        offered
            .iter()
            .map(TlsVersion::to_string)
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// A `protocols` value, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtocolList {
    /// The versions that we speak; never empty.
    pub versions: Vec<TlsVersion>,
    /// The versions that were listed, too, and that are refused for being broken: warn about them.
    pub refused: Vec<String>,
}

/// Reads a `protocols` value: words as OpenSSL's and qdrouterd's, separated by blanks.
///
/// # Errors
///
/// [`TlsError::UnknownProtocol`] for a word that is no TLS version, [`TlsError::NoProtocol`] if nothing is left that
/// we speak.
pub fn parse_protocols(text: &str) -> Result<ProtocolList, TlsError> {
    let mut list = ProtocolList {
        versions: Vec::new(),
        refused: Vec::new(),
    };
    for word in text.split_whitespace() {
        let version = match word {
            "TLSv1.2" => TlsVersion::Tls12,
            "TLSv1.3" => TlsVersion::Tls13,
            "SSLv2" | "SSLv3" | "TLSv1" | "TLSv1.0" | "TLSv1.1" => {
                list.refused.push(word.to_owned());
                continue;
            }
            unknown => return Err(TlsError::UnknownProtocol(printable(unknown))),
        };
        if !list.versions.contains(&version) {
            list.versions.push(version);
        }
    }
    match list.versions.is_empty() {
        true => Err(TlsError::NoProtocol(printable(text))),
        false => Ok(list),
    }
}

/// Why there is no encrypted connection.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {role} {}: {source}", path.display())]
    Unreadable {
        /// What the file is for.
        role: FileRole,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file is damaged.
    #[error("{role} {} is not in PEM form: {source}", path.display())]
    BadPem {
        /// What the file is for.
        role: FileRole,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// A file holds no certificate.
    #[error("{role} {} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)", path.display())]
    NoCertificate {
        /// What the file is for.
        role: FileRole,
        /// The file.
        path: PathBuf,
    },
    /// A file holds no private key.
    #[error("private key file {} holds no private key in PEM form", path.display())]
    NoPrivateKey {
        /// The file.
        path: PathBuf,
    },
    /// The private key is encrypted.
    #[error(
        "private key file {0} is encrypted: decrypt it with openssl pkey -in {0} -out NEWFILE, and protect the new \
         file by its permissions",
        path.display()
    )]
    EncryptedKey {
        /// The file.
        path: PathBuf,
    },
    /// Certificate and key do not belong together, or are of a kind that we cannot use.
    #[error("cannot use certificate file {} with its private key: {source}", path.display())]
    ClientCertificate {
        /// The certificate file.
        path: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// A file of names for users is no JSON object of texts.
    #[error("user name file {} must be a JSON object of texts: {source}", path.display())]
    BadMapping {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The host is neither a DNS name nor an IP address.
    #[error("'{0}' is neither a host name nor an IP address")]
    ServerName(String),
    /// A word of `protocols` is no TLS version.
    #[error("unknown TLS version '{0}': protocols may be TLSv1.2 and TLSv1.3")]
    UnknownProtocol(String),
    /// `protocols` leaves nothing that is safe.
    #[error(
        "protocols '{0}' allows neither TLSv1.2 nor TLSv1.3: older versions are broken and not supported"
    )]
    NoProtocol(String),
    /// rustls refuses the settings.
    #[error("cannot set up TLS: {0}")]
    Setup(rustls::Error),
    /// The handshake failed.
    #[error("{0}")]
    Handshake(Fault),
}

/// Our side of one handshake: what the settings say, and what is in the files that they name.
pub struct TlsClient {
    settings: Arc<TlsSettings>,
    connector: TlsConnector,
    server_name: ServerName<'static>,
    verifier: Arc<ServerVerifier>,
    authorities: Vec<CertificateFacts>,
    own_chain: Vec<CertificateDer<'static>>,
}

impl TlsClient {
    /// Reads the files, away from the shard's thread: a CA directory on a memory card takes its time, and frames do not
    /// wait for it.
    ///
    /// # Errors
    ///
    /// Any [`TlsError`] but [`TlsError::Handshake`] and those of [`parse_protocols`].
    pub async fn load(settings: &Arc<TlsSettings>) -> Result<Self, TlsError> {
        let settings = Arc::clone(settings);
        match tokio::task::spawn_blocking(move || prepare(settings)).await {
            Ok(prepared) => prepared,
            // Only when the runtime is being shut down, or the thread cannot be made.
            Err(error) => Err(TlsError::Setup(rustls::Error::General(error.to_string()))),
        }
    }

    /// Encrypts a TCP connection.
    ///
    /// # Errors
    ///
    /// [`TlsError::Handshake`].
    pub async fn handshake(&self, tcp: TcpStream) -> Result<TlsStream, TlsError> {
        // The future of a handshake holds the TLS state by value: too big for the stack of whoever awaits it.
        let tcp = BufReader::with_capacity(READ_AHEAD, tcp);
        let handshake = self
            .connector
            .connect_with(self.server_name.clone(), tcp, |session| {
                session.set_buffer_limit(Some(UNSENT));
            });
        Box::pin(handshake).await.map_err(|error| {
            TlsError::Handshake(Fault::classify(
                error,
                &Context {
                    settings: &self.settings,
                    authorities: &self.authorities,
                    presented: self.verifier.refused(),
                    now: SystemTime::now(),
                },
            ))
        })
    }
}

/// The name of the version that was agreed on.
pub fn negotiated_version(stream: &TlsStream) -> Option<String> {
    stream.get_ref().1.protocol_version().map(version_name)
}

fn version_name(version: ProtocolVersion) -> String {
    match version {
        ProtocolVersion::TLSv1_2 => TlsVersion::Tls12.to_string(),
        ProtocolVersion::TLSv1_3 => TlsVersion::Tls13.to_string(),
        other => format!("{other:?}"),
    }
}

fn prepare(settings: Arc<TlsSettings>) -> Result<TlsClient, TlsError> {
    let server_name = server_name(&settings.server_name)?;
    let provider = Arc::new(provider::provider());
    let authorities = Authorities::load(settings.ca_file.as_deref())?;
    let verifier = server_verifier(&settings, authorities.store, authorities.configured, &provider)?;

    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&rustls_versions(&settings.versions))
        .map_err(TlsError::Setup)?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone());
    let mut own_chain = Vec::new();
    let config = match &settings.cert_file {
        None => builder.with_no_client_auth(),
        Some(path) => {
            own_chain = files::certificates(FileRole::ClientCertificate, path)?;
            let key = files::private_key(settings.key_file.as_ref().unwrap_or(path))?;
            builder
                .with_client_auth_cert(own_chain.clone(), key)
                .map_err(|source| TlsError::ClientCertificate {
                    path: path.clone(),
                    source,
                })?
        }
    };
    Ok(TlsClient {
        settings,
        connector: TlsConnector::from(Arc::new(config)),
        server_name,
        verifier,
        authorities: authorities.facts,
        own_chain,
    })
}

fn server_verifier(
    settings: &TlsSettings,
    roots: rustls::RootCertStore,
    configured: Vec<CertificateDer<'static>>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<ServerVerifier>, TlsError> {
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| TlsError::Setup(rustls::Error::General(error.to_string())))?;
    let name_check = match settings.verify_hostname {
        true => NameCheck::Required,
        false => NameCheck::Skipped,
    };
    Ok(Arc::new(ServerVerifier::new(inner, name_check, configured)))
}

fn rustls_versions(versions: &[TlsVersion]) -> Vec<&'static SupportedProtocolVersion> {
    match versions {
        [] => rustls::ALL_VERSIONS.to_vec(),
        some => some
            .iter()
            .map(|version| match version {
                TlsVersion::Tls12 => &version::TLS12,
                TlsVersion::Tls13 => &version::TLS13,
            })
            .collect(),
    }
}

fn server_name(host: &str) -> Result<ServerName<'static>, TlsError> {
    // A bracketed IPv6 address is one in a URL; a final dot is for the resolver and has no place in SNI (RFC 6066, 3).
    let bare = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host);
    let bare = bare.strip_suffix('.').unwrap_or(bare);
    ServerName::try_from(bare.to_owned()).map_err(|_| TlsError::ServerName(printable(host)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::UnixTime;

    use super::*;

    /// A board without a battery starts in 1970, and its clock is set while it runs.
    #[test]
    fn a_good_certificate_before_and_after_the_clock_is_set() {
        let directory = tempfile::tempdir().expect("a directory");
        let ca_file = directory.path().join("ca.pem");
        let mut root = CertificateParams::new(Vec::new()).expect("parameters");
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = || KeyPair::generate().expect("a key");
        let root = CertifiedIssuer::self_signed(root, key()).expect("a root");
        std::fs::write(&ca_file, root.pem()).expect("a file");
        let mut params = CertificateParams::new(vec!["hub.example".to_owned()]).expect("parameters");
        params.not_before = date_time_ymd(2026, 5, 17);
        params.not_after = date_time_ymd(2099, 1, 1);
        let certificate = params.signed_by(&key(), &root).expect("a certificate");
        let settings = TlsSettings {
            profile: "hub-tls".to_owned(),
            server_name: "hub.example".to_owned(),
            verify_hostname: true,
            ca_file: Some(ca_file),
            cert_file: None,
            key_file: None,
            versions: Vec::new(),
        };
        let prepared = prepare(Arc::new(settings)).expect("all there is");
        let judge = |seconds| {
            let now = Duration::from_secs(seconds);
            let name = &prepared.server_name;
            prepared
                .verifier
                .verify_server_cert(certificate.der(), &[], name, &[], UnixTime::since_unix_epoch(now))
                .map_err(|error| {
                    let context = Context {
                        settings: &prepared.settings,
                        authorities: &prepared.authorities,
                        presented: prepared.verifier.refused(),
                        now: SystemTime::UNIX_EPOCH + now,
                    };
                    let error = io::Error::new(io::ErrorKind::InvalidData, error);
                    Fault::classify(error, &context).to_string()
                })
        };
        let early = |clock: &str, what: &str| {
            format!(
                "a certificate of the server is not valid yet, only from 2026-05-17; this machine's clock says \
                 {clock}: {what}"
            )
        };
        assert_eq!(judge(86_400).unwrap_err(), early("1970-01-02", "clock not set?"));
        // The date that an image was made at, or that was kept over the last shutdown.
        assert_eq!(
            judge(1_767_225_600).unwrap_err(),
            early("2026-01-01", "check the clock")
        );
        judge(1_795_651_200).expect("a good certificate");
    }

    #[test]
    fn protocols_are_read_as_qdrouterd_spells_them() {
        let list = parse_protocols(" TLSv1.3 TLSv1.2  TLSv1.2").unwrap();
        assert_eq!(list.versions, [TlsVersion::Tls13, TlsVersion::Tls12]);
        assert!(list.refused.is_empty());

        let list = parse_protocols("TLSv1 TLSv1.1 TLSv1.2").unwrap();
        assert_eq!(list.versions, [TlsVersion::Tls12]);
        assert_eq!(list.refused, ["TLSv1", "TLSv1.1"]);
    }

    #[test]
    fn protocols_that_leave_nothing_are_refused() {
        let error = parse_protocols("TLSv1 TLSv1.1").unwrap_err();
        assert_eq!(
            error.to_string(),
            "protocols 'TLSv1 TLSv1.1' allows neither TLSv1.2 nor TLSv1.3: older versions are broken and not supported"
        );
        let error = parse_protocols("TLSv1.2 tls13").unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown TLS version 'tls13': protocols may be TLSv1.2 and TLSv1.3"
        );
    }

    #[test]
    fn server_names() {
        assert!(
            matches!(server_name("hub.azure-devices.net."), Ok(ServerName::DnsName(name))
            if name.as_ref() == "hub.azure-devices.net")
        );
        assert!(matches!(server_name("10.0.0.7"), Ok(ServerName::IpAddress(_))));
        assert!(matches!(server_name("[fe80::1]"), Ok(ServerName::IpAddress(_))));
        for host in ["", "<iotHub>.azure-devices.net", "a b"] {
            assert!(
                matches!(server_name(host), Err(TlsError::ServerName(_))),
                "{host}"
            );
        }
    }
}
