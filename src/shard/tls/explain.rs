//! Why TLS failed, in one line that an operator can act on.
//!
//! [`Fault::classify`] turns an error of rustls or of the socket into a [`Fault`]; its `Display` is the explanation.
//! The peer is called "the server" throughout: the line that quotes a fault names the host and port.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

use super::TlsSettings;
use super::authorities::{AZURE_ROOTS, is_azure_host};
use super::certificate::{CertificateFacts, clock_is_unset, day, printable};
use super::verify::Presented;

/// Most certificates of a CA file that one line names.
const AUTHORITIES_NAMED: usize = 3;

/// What was going on when an error came up.
pub(super) struct Context<'a> {
    /// The settings of the connection.
    pub(super) settings: &'a TlsSettings,
    /// What is in the configured CA file.
    pub(super) authorities: &'a [CertificateFacts],
    /// The certificate chain that was refused, if that was the trouble.
    pub(super) presented: Option<&'a Presented>,
    /// Now.
    pub(super) now: SystemTime,
}

/// One way in which a TLS connection fails.
#[derive(Debug)]
pub enum Fault {
    /// No authority that we trust stands behind the server's certificate.
    UnknownIssuer(Box<UnknownIssuer>),
    /// The server's certificate, or one of its chain, has expired.
    Expired {
        /// Last moment of validity, if known.
        not_after: Option<SystemTime>,
        /// This machine's clock.
        now: SystemTime,
    },
    /// The server's certificate, or one of its chain, is not valid yet.
    NotValidYet {
        /// First moment of validity, if known.
        not_before: Option<SystemTime>,
        /// This machine's clock.
        now: SystemTime,
    },
    /// The certificate is for other hosts.
    WrongName {
        /// The host that we wanted.
        expected: String,
        /// The hosts that the certificate names.
        presented: Vec<String>,
    },
    /// Anything else that is wrong with the server's certificate.
    BadCertificate(CertificateError),
    /// What came back is not TLS.
    NotTls,
    /// No TLS version in common.
    NoCommonVersion {
        /// The versions that we offered.
        offered: String,
    },
    /// No cipher suite or key exchange in common.
    NoCommonCipher,
    /// The server wants a client certificate, and none was sent.
    ClientCertificateRequired,
    /// The server does not accept our certificate.
    ClientCertificateRefused {
        /// The file it came from, if known.
        file: Option<PathBuf>,
        /// The server's alert.
        alert: AlertDescription,
    },
    /// The server gave up on the handshake without saying more.
    HandshakeRefused,
    /// The server does not know the host name that we sent.
    UnrecognisedName(String),
    /// Another alert.
    Alert(AlertDescription),
    /// The connection ended in the middle of the handshake.
    Closed,
    /// The connection was reset in the middle of the handshake.
    Reset,
    /// Another error of rustls.
    Protocol(Error),
    /// Another error of the socket.
    Io(io::Error),
}

/// What is known about a server whose issuer is not trusted.
#[derive(Debug)]
pub struct UnknownIssuer {
    issuer: Option<String>,
    self_signed: bool,
    azure: bool,
    profile: String,
    trust: Trust,
}

/// Which authorities were trusted.
#[derive(Debug)]
enum Trust {
    BuiltIn,
    File {
        path: PathBuf,
        held: Vec<String>,
        more: usize,
    },
}

impl Fault {
    /// Finds out what an error means.
    pub(super) fn classify(error: io::Error, context: &Context<'_>) -> Fault {
        let kind = error.kind();
        match rustls_error(error) {
            Ok(error) => Fault::of_rustls(error, context),
            Err(error) => match kind {
                io::ErrorKind::UnexpectedEof => Fault::Closed,
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Fault::Reset,
                _ => Fault::Io(error),
            },
        }
    }

    fn of_rustls(error: Error, context: &Context<'_>) -> Fault {
        let settings = context.settings;
        match error {
            Error::InvalidCertificate(error) => Fault::of_certificate(error, context),
            Error::AlertReceived(alert) => Fault::of_alert(alert, settings),
            Error::InvalidMessage(_) => Fault::NotTls,
            Error::PeerIncompatible(
                PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled,
            ) => Fault::NoCommonVersion {
                offered: settings.offered_versions(),
            },
            Error::PeerIncompatible(
                PeerIncompatible::NoCipherSuitesInCommon
                | PeerIncompatible::NoKxGroupsInCommon
                | PeerIncompatible::NoSignatureSchemesInCommon,
            ) => Fault::NoCommonCipher,
            other => Fault::Protocol(other),
        }
    }

    fn of_certificate(error: CertificateError, context: &Context<'_>) -> Fault {
        let now = context.now;
        let leaf = context.presented.and_then(|presented| presented.leaf.as_ref());
        match error {
            CertificateError::UnknownIssuer => Fault::UnknownIssuer(Box::new(UnknownIssuer::new(context))),
            CertificateError::Expired => Fault::Expired {
                not_after: leaf
                    .filter(|leaf| leaf.is_expired(now))
                    .map(|leaf| leaf.not_after),
                now,
            },
            CertificateError::ExpiredContext { not_after, .. } => Fault::Expired {
                not_after: Some(system_time(not_after)),
                now,
            },
            CertificateError::NotValidYet => Fault::NotValidYet {
                not_before: leaf
                    .filter(|leaf| leaf.is_premature(now))
                    .map(|leaf| leaf.not_before),
                now,
            },
            CertificateError::NotValidYetContext { not_before, .. } => Fault::NotValidYet {
                not_before: Some(system_time(not_before)),
                now,
            },
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Fault::WrongName {
                    expected: printable(&context.settings.server_name),
                    presented: leaf.map(|leaf| leaf.hosts.clone()).unwrap_or_default(),
                }
            }
            // "An authority's certificate used as a server's": what `openssl req -x509` makes. It would have been taken
            // if it were in the CA file.
            CertificateError::Other(_) if context.presented.is_some_and(Presented::is_self_signed) => {
                Fault::UnknownIssuer(Box::new(UnknownIssuer::new(context)))
            }
            other => Fault::BadCertificate(other),
        }
    }

    fn of_alert(alert: AlertDescription, settings: &TlsSettings) -> Fault {
        match alert {
            AlertDescription::ProtocolVersion => Fault::NoCommonVersion {
                offered: settings.offered_versions(),
            },
            AlertDescription::InsufficientSecurity => Fault::NoCommonCipher,
            AlertDescription::HandshakeFailure => Fault::HandshakeRefused,
            AlertDescription::UnrecognisedName => Fault::UnrecognisedName(printable(&settings.server_name)),
            other => match ClientCertificateAlert::of(other) {
                Some(_) if settings.cert_file.is_some() => Fault::ClientCertificateRefused {
                    file: settings.cert_file.clone(),
                    alert: other,
                },
                Some(_) => Fault::ClientCertificateRequired,
                None => Fault::Alert(other),
            },
        }
    }
}

/// The alerts by which a server speaks of our certificate, whether one was sent or not.
enum ClientCertificateAlert {
    Missing,
    Refused,
}

impl ClientCertificateAlert {
    fn of(alert: AlertDescription) -> Option<Self> {
        match alert {
            AlertDescription::CertificateRequired | AlertDescription::NoCertificate => Some(Self::Missing),
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied => Some(Self::Refused),
            _ => None,
        }
    }
}

/// Explains the loss of a connection that had been up. In TLS 1.3 a server judges our certificate only after our
/// side of the handshake is complete, so its verdict arrives here.
pub fn explain_loss(error: io::Error) -> String {
    let fault = match rustls_error(error) {
        Ok(Error::AlertReceived(alert)) => match ClientCertificateAlert::of(alert) {
            Some(ClientCertificateAlert::Missing) => Fault::ClientCertificateRequired,
            Some(ClientCertificateAlert::Refused) => Fault::ClientCertificateRefused { file: None, alert },
            None => Fault::Alert(alert),
        },
        Ok(error) => Fault::Protocol(error),
        Err(error) => Fault::Io(error),
    };
    fault.to_string()
}

/// Takes the TLS error out of an I/O error, if there is one in it.
pub(super) fn rustls_error(error: io::Error) -> Result<Error, io::Error> {
    if !error.get_ref().is_some_and(|inner| inner.is::<Error>()) {
        return Err(error);
    }
    let kind = error.kind();
    match error.into_inner().map(|inner| inner.downcast::<Error>()) {
        Some(Ok(inner)) => Ok(*inner),
        Some(Err(inner)) => Err(io::Error::new(kind, inner)),
        None => Err(kind.into()),
    }
}

fn system_time(time: UnixTime) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs())
}

impl UnknownIssuer {
    fn new(context: &Context<'_>) -> Self {
        let settings = context.settings;
        let trust = match &settings.ca_file {
            None => Trust::BuiltIn,
            Some(path) => Trust::File {
                path: path.clone(),
                held: context
                    .authorities
                    .iter()
                    .take(AUTHORITIES_NAMED)
                    .map(|held| match held.is_expired(context.now) {
                        true => format!("'{}', expired on {}", held.subject, day(held.not_after)),
                        false => format!("'{}'", held.subject),
                    })
                    .collect(),
                more: context.authorities.len().saturating_sub(AUTHORITIES_NAMED),
            },
        };
        UnknownIssuer {
            issuer: context
                .presented
                .and_then(|presented| presented.top_issuer.clone()),
            self_signed: context.presented.is_some_and(Presented::is_self_signed),
            azure: is_azure_host(&settings.server_name),
            profile: printable(&settings.profile),
            trust,
        }
    }
}

impl fmt::Display for UnknownIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.issuer {
            Some(issuer) if self.self_signed => {
                write!(f, "the server's certificate '{issuer}' is self-signed, and ")?
            }
            Some(issuer) => write!(
                f,
                "the server's certificate leads to the authority '{issuer}', and "
            )?,
            None => f.write_str("the server's certificate leads to an unknown authority, and ")?,
        }
        match &self.trust {
            Trust::BuiltIn => {
                f.write_str("that is none of the built-in public authorities")?;
                if self.azure {
                    f.write_str(
                        "; Azure uses public ones, so does a proxy that inspects TLS answer in its place?",
                    )?;
                }
                write!(
                    f,
                    "; if you trust it, name its PEM file as caCertFile in sslProfile '{}'",
                    self.profile
                )
            }
            Trust::File { path, held, more } => {
                write!(
                    f,
                    "CA file {} does not hold it (it holds {}",
                    path.display(),
                    held.join("; ")
                )?;
                if *more > 0 {
                    write!(f, "; and {more} more")?;
                }
                f.write_str("): ")?;
                if self.azure {
                    let [first, second] = AZURE_ROOTS;
                    write!(
                        f,
                        "put '{first}' and '{second}', the roots that Azure uses today, in PEM form into that file, \
                         or leave out caCertFile to use the built-in public authorities"
                    )
                } else if self.self_signed {
                    f.write_str("put that certificate, in PEM form, into the file if you trust it")
                } else {
                    f.write_str("put the certificate of the root authority, in PEM form, into that file")
                }
            }
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::UnknownIssuer(unknown) => unknown.fmt(f),
            Fault::Expired { not_after, now } => {
                f.write_str("a certificate of the server has expired")?;
                if let Some(not_after) = not_after {
                    write!(f, " on {}", day(*not_after))?;
                }
                write!(f, " (this machine's clock says {}): the server needs a new one", day(*now))
            }
            Fault::NotValidYet { not_before, now } => {
                f.write_str("a certificate of the server is not valid yet")?;
                if let Some(not_before) = not_before {
                    write!(f, ", only from {}", day(*not_before))?;
                }
                write!(f, "; this machine's clock says {}", day(*now))?;
                f.write_str(if clock_is_unset(*now) { ": clock not set?" } else { ": check the clock" })
            }
            Fault::WrongName { expected, presented } => {
                match presented.is_empty() {
                    true => f.write_str("the server's certificate names no host (subjectAltName)")?,
                    false => write!(f, "the server's certificate is for '{}'", presented.join("', '"))?,
                }
                write!(
                    f,
                    ", not for '{expected}': correct the connector's host or serverName, or set its verifyHostname: no"
                )
            }
            Fault::BadCertificate(error) => write!(f, "the server's certificate is not acceptable: {error}"),
            Fault::NotTls => f.write_str(
                "the server does not speak TLS on this port (AMQP over TLS is usually 5671, plain AMQP 5672)",
            ),
            Fault::NoCommonVersion { offered } => {
                write!(f, "the server accepts none of the TLS versions offered ({offered}): check protocols")
            }
            Fault::NoCommonCipher => f.write_str("the server has no cipher suite in common with us"),
            Fault::ClientCertificateRequired => f.write_str(
                "the server demands a client certificate: set certFile and privateKeyFile in the sslProfile",
            ),
            Fault::ClientCertificateRefused { file, alert } => {
                f.write_str("the server refused our client certificate")?;
                if let Some(file) = file {
                    write!(f, " {}", file.display())?;
                }
                write!(f, " (TLS alert {alert:?}): is it registered there, and in date?")
            }
            Fault::HandshakeRefused => f.write_str(
                "the server refused the TLS handshake (TLS alert HandshakeFailure): it accepts no common cipher \
                 suite, or it demands a client certificate",
            ),
            Fault::UnrecognisedName(name) => {
                write!(f, "the server does not know the host name '{name}' (TLS alert UnrecognisedName)")
            }
            Fault::Alert(alert) => write!(f, "the other side ended the TLS connection (TLS alert {alert:?})"),
            Fault::Closed => f.write_str(
                "the server closed the connection during the TLS handshake: does this port speak TLS?",
            ),
            Fault::Reset => f.write_str(
                "the connection was reset during the TLS handshake: does this port speak TLS, and does no firewall \
                 interfere?",
            ),
            Fault::Protocol(error) => write!(f, "TLS error: {error}"),
            Fault::Io(error) => error.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(error: Error) -> String {
        explain_loss(io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// In TLS 1.3 the server's verdict on our certificate arrives on an open connection.
    #[test]
    fn a_late_verdict_on_the_client_certificate() {
        assert_eq!(
            loss(Error::AlertReceived(AlertDescription::CertificateRequired)),
            "the server demands a client certificate: set certFile and privateKeyFile in the sslProfile"
        );
        assert_eq!(
            loss(Error::AlertReceived(AlertDescription::UnknownCA)),
            "the server refused our client certificate (TLS alert UnknownCA): is it registered there, and in date?"
        );
        assert_eq!(
            loss(Error::AlertReceived(AlertDescription::InternalError)),
            "the other side ended the TLS connection (TLS alert InternalError)"
        );
    }

    #[test]
    fn other_losses_keep_their_own_words() {
        assert_eq!(
            loss(Error::DecryptError),
            format!("TLS error: {}", Error::DecryptError)
        );
        assert_eq!(
            explain_loss(io::ErrorKind::ConnectionReset.into()),
            "connection reset"
        );
        assert_eq!(explain_loss(io::Error::other("custom")), "custom");
    }

    /// A board without a battery starts in 1970.
    #[test]
    fn a_clock_that_was_never_set() {
        let in_1970 = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400);
        let in_2026 = SystemTime::UNIX_EPOCH + Duration::from_secs(1_792_000_000);
        assert_eq!(
            Fault::NotValidYet {
                not_before: Some(in_2026),
                now: in_1970
            }
            .to_string(),
            "a certificate of the server is not valid yet, only from 2026-10-14; this machine's clock says \
             1970-01-02: clock not set?"
        );
    }
}
