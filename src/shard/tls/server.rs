//! TLS towards devices: the certificate that a listener shows, and what it makes of theirs.
//!
//! Contract: [`ServerTlsSettings`] are plain configuration. [`ServerTls::load`] reads the files they name, once, away
//! from the shard: a configuration whose listeners have no usable certificate is none, and what was read lasts for as
//! long as the listener is open. To read a renewed one, load again. A client certificate that is sent is verified, or
//! the handshake fails.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::server::{NoClientAuth, WebPkiClientVerifier, danger::ClientCertVerifier};
use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible, ProtocolVersion, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::authorities::Authorities;
use super::explain::rustls_error;
use super::files::{self, FileRole};
use super::user::UserNames;
use super::{TlsError, TlsVersion, provider, rustls_versions, version_name};

/// An encrypted connection of a device.
pub(in crate::shard) type ServerTlsStream = tokio_rustls::server::TlsStream<TcpStream>;

/// First byte of every TLS connection (RFC 8446, section 5.1), and of no AMQP connection.
pub(in crate::shard) const HANDSHAKE_RECORD: u8 = 0x16;

/// What a listener wants of the certificates of devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificates {
    /// It does not ask for them.
    #[default]
    Ignored,
    /// It asks; a device may do without.
    Asked {
        /// PEM file, or directory, of the authorities that may sign them.
        ca_file: PathBuf,
    },
    /// Without one there is no connection.
    Demanded {
        /// PEM file, or directory, of the authorities that may sign them.
        ca_file: PathBuf,
    },
}

/// How a listener encrypts: its `sslProfile`.
#[derive(Clone, Debug)]
pub struct ServerTlsSettings {
    /// The profile's name, for messages.
    pub profile: String,
    /// Our certificate chain.
    pub cert_file: PathBuf,
    /// Its key; `None`: it is in `cert_file`, too.
    pub key_file: Option<PathBuf>,
    /// The versions allowed; empty: all.
    pub versions: Vec<TlsVersion>,
    /// Certificates of devices.
    pub clients: ClientCertificates,
    /// `uidFormat`: letters that choose what of a certificate is the user; empty: its subject.
    pub uid_format: String,
    /// `uidNameMappingFile`: a JSON object of other names for users.
    pub uid_names_file: Option<PathBuf>,
}

/// The files of a listener, read.
pub struct ServerTls {
    profile: String,
    acceptor: TlsAcceptor,
    names: UserNames,
}

/// What a handshake has come to.
pub(in crate::shard) struct Accepted {
    pub(in crate::shard) stream: ServerTlsStream,
    /// Such as `TLSv1.3`.
    pub(in crate::shard) version: String,
    /// Whom the verified certificate names, if one was sent.
    pub(in crate::shard) user: Option<String>,
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// Any [`TlsError`] of files and settings.
    pub fn load(settings: &ServerTlsSettings) -> Result<Self, TlsError> {
        let chain = files::certificates(FileRole::ClientCertificate, &settings.cert_file)?;
        let key = files::private_key(settings.key_file.as_ref().unwrap_or(&settings.cert_file))?;
        let provider = Arc::new(provider::provider());
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&rustls_versions(&settings.versions))
            .map_err(TlsError::Setup)?
            .with_client_cert_verifier(client_verifier(&settings.clients, provider)?)
            .with_single_cert(chain, key)
            .map_err(|source| TlsError::ClientCertificate {
                path: settings.cert_file.clone(),
                source,
            })?;
        config.ignore_client_order = provider::ignores_client_order();
        Ok(ServerTls {
            profile: settings.profile.clone(),
            acceptor: TlsAcceptor::from(Arc::new(config)),
            names: UserNames::load(&settings.uid_format, settings.uid_names_file.as_ref())?,
        })
    }

    /// The name of the `sslProfile`.
    pub fn profile(&self) -> &str {
        &self.profile
    }

    /// Shakes hands. Takes as long as the device pleases.
    ///
    /// # Errors
    /// Why it failed, in one line, and the transport, on which an alert may be under way.
    pub(in crate::shard) async fn accept(&self, tcp: TcpStream) -> Result<Accepted, (String, TcpStream)> {
        // The future of a handshake holds the TLS state by value.
        let handshake = Box::pin(self.acceptor.accept(tcp).into_fallible());
        let stream = handshake
            .await
            .map_err(|(error, tcp)| (format!("TLS handshake failed: {}", explain(error)), tcp))?;
        let (_, session) = stream.get_ref();
        let version = session.protocol_version().unwrap_or(ProtocolVersion::TLSv1_2);
        let certificate = session.peer_certificates().and_then(<[_]>::first);
        Ok(Accepted {
            version: version_name(version),
            user: certificate.and_then(|certificate| self.names.user(certificate)),
            stream,
        })
    }
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerTls")
    }
}

fn client_verifier(
    clients: &ClientCertificates,
    provider: Arc<rustls::crypto::CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let (ca_file, is_demanded) = match clients {
        ClientCertificates::Ignored => return Ok(Arc::new(NoClientAuth)),
        ClientCertificates::Asked { ca_file } => (ca_file, false),
        ClientCertificates::Demanded { ca_file } => (ca_file, true),
    };
    let roots = Arc::new(Authorities::load(Some(ca_file))?.store);
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider);
    let builder = match is_demanded {
        true => builder,
        false => builder.allow_unauthenticated(),
    };
    let verifier = builder.build();
    verifier.map_err(|error| TlsError::Setup(Error::General(format!("{}: {error}", ca_file.display()))))
}

/// Why a device did not get through, in words for whoever looks after it.
fn explain(error: io::Error) -> String {
    match rustls_error(error) {
        Ok(Error::InvalidMessage(_)) => "what came is not TLS".to_owned(),
        Ok(Error::NoCertificatesPresented) => {
            "the device sent no certificate, and one is demanded".to_owned()
        }
        Ok(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "the device's certificate is signed by none of the authorities in caCertFile or trustedCertsFile"
                .to_owned()
        }
        Ok(Error::InvalidCertificate(error)) => format!("the device's certificate is not accepted: {error}"),
        Ok(Error::AlertReceived(alert @ AlertDescription::CertificateExpired)) => {
            format!(
                "the device gave up (TLS alert {alert:?}): has our certificate expired, or is its clock wrong?"
            )
        }
        Ok(Error::AlertReceived(alert)) => {
            format!(
                "the device gave up (TLS alert {alert:?}): does it trust the authority of our certificate?"
            )
        }
        Ok(Error::PeerIncompatible(
            PeerIncompatible::Tls12NotOfferedOrEnabled | PeerIncompatible::SupportedVersionsExtensionRequired,
        )) => "the device offers no version of TLS that the sslProfile allows".to_owned(),
        // They came with TLS 1.2 (RFC 5246, §7.4.1.4.1), and are looked for before the version is.
        Ok(Error::PeerIncompatible(PeerIncompatible::SignatureAlgorithmsExtensionRequired)) => {
            "the device's TLS is too old: 1.1 or older, or 1.2 without signature algorithms".to_owned()
        }
        Ok(error) => error.to_string(),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the device hung up in the middle of it: does it trust the authority of our certificate?"
                .to_owned()
        }
        Err(error) => error.to_string(),
    }
}
