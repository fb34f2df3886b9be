//! Protocol headers and the SASL layer of both sides (AMQP 1.0 part 2, §2.2; part 5, §5.3): what comes before open.

use std::sync::Arc;

use super::ConnectionError;
use super::connection::{Announce, Connection, Phase, Side};
use super::event::Event;
use crate::amqp::header::{self, ProtocolHeader};
use crate::amqp::sasl::{SaslCode, SaslFrame};

/// First byte of a TLS handshake record (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// What a dialer may authenticate with.
#[derive(Clone, Debug, Default)]
pub struct SaslCredentials {
    /// Mechanisms allowed, in our order of preference; empty allows all that we know.
    pub mechanisms: Vec<String>,
    /// User and password for PLAIN.
    pub plain: Option<(String, String)>,
    /// A client certificate is configured, so EXTERNAL can work.
    pub external: bool,
    /// What ANONYMOUS tells of us (RFC 4505).
    pub trace: String,
}

/// A mechanism chosen, and its first message.
pub(super) struct Choice {
    pub(super) mechanism: &'static str,
    pub(super) initial_response: Vec<u8>,
}

impl SaslCredentials {
    /// The best of what the peer offers: EXTERNAL with a certificate, PLAIN with credentials, else ANONYMOUS, each
    /// only if the file allows it (qdrouterd 1.19).
    pub(super) fn choose(&self, offered: &[&str]) -> Option<Choice> {
        let allowed = |name: &str| {
            offered.iter().any(|offer| offer.eq_ignore_ascii_case(name))
                && (self.mechanisms.is_empty()
                    || self
                        .mechanisms
                        .iter()
                        .any(|allowed| allowed.eq_ignore_ascii_case(name)))
        };
        if self.external && allowed("EXTERNAL") {
            return Some(Choice {
                mechanism: "EXTERNAL",
                initial_response: Vec::new(),
            });
        }
        if let Some((user, password)) = self.plain.as_ref().filter(|_| allowed("PLAIN")) {
            let initial_response = [b"\0", user.as_bytes(), b"\0", password.as_bytes()].concat();
            return Some(Choice {
                mechanism: "PLAIN",
                initial_response,
            });
        }
        let trace = || self.trace.clone().into_bytes();
        if allowed("ANONYMOUS") {
            return Some(Choice {
                mechanism: "ANONYMOUS",
                initial_response: trace(),
            });
        }
        if self
            .mechanisms
            .iter()
            .any(|name| name.eq_ignore_ascii_case("MSSBCBS"))
            && allowed("MSSBCBS")
        {
            return Some(Choice {
                mechanism: "MSSBCBS",
                initial_response: trace(),
            });
        }
        None
    }
}

/// A SASL mechanism by which a device may show who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// Nobody in particular.
    Anonymous,
    /// Azure's name for ANONYMOUS with tokens to follow.
    Mssbcbs,
    /// User and password (RFC 4616).
    Plain,
    /// Whoever the certificate of the transport names (RFC 4422, appendix A).
    External,
}

impl Mechanism {
    const ALL: [Mechanism; 4] = [
        Mechanism::Anonymous,
        Mechanism::Mssbcbs,
        Mechanism::Plain,
        Mechanism::External,
    ];

    /// Its registered name.
    pub const fn name(self) -> &'static str {
        match self {
            Mechanism::Anonymous => "ANONYMOUS",
            Mechanism::Mssbcbs => "MSSBCBS",
            Mechanism::Plain => "PLAIN",
            Mechanism::External => "EXTERNAL",
        }
    }

    /// The mechanism of this name, in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        Mechanism::ALL
            .into_iter()
            .find(|known| known.name().eq_ignore_ascii_case(name))
    }
}

/// What a listener asks of those who connect.
#[derive(Clone, Debug, Default)]
pub struct Demands {
    /// SASL mechanisms offered, in order, as far as they can work: EXTERNAL only to a verified certificate.
    pub mechanisms: Vec<Mechanism>,
    /// A peer must show who it is (qdrouterd: `authenticatePeer`).
    pub authentication: bool,
    /// The transport must be encrypted (qdrouterd: `requireSsl`, `requireEncryption`).
    pub encryption: bool,
}

/// What is known of who the peer is; connections in clear text without a name do without.
#[derive(Debug, Default)]
pub(super) struct Identity {
    is_encrypted: bool,
    /// Whom a verified certificate names.
    certificate_user: Option<Box<str>>,
    /// Whom the peer claims to be; what it claims in vain ends the connection.
    pub(super) user: Option<Box<str>>,
    /// What the peer said while its password was judged.
    pub(super) early: Vec<u8>,
}

/// Characters of an unknown mechanism's name that an error shows; none that is registered has more than 20 (RFC 4422).
const SHOWN_OF_MECHANISM: usize = 20;

/// What a SASL frame is called in an error.
pub(super) const fn name(frame: &SaslFrame<'_>) -> &'static str {
    match frame {
        SaslFrame::Mechanisms(_) => "sasl-mechanisms",
        SaslFrame::Init { .. } => "sasl-init",
        SaslFrame::Challenge(_) => "sasl-challenge",
        SaslFrame::Response(_) => "sasl-response",
        SaslFrame::Outcome(_) => "sasl-outcome",
    }
}

impl Connection {
    /// Announces other limits than those of the listener. Before [`send_open`](Self::send_open); held to from the end of
    /// this turn on.
    pub fn announce(&mut self, announce: Arc<Announce>) {
        self.announce = announce;
    }

    /// The transport is encrypted, and `user` is whom the peer's verified certificate names, if it has shown one. To be
    /// told before any input.
    pub fn secured(&mut self, user: Option<Box<str>>) {
        let identity = self.identity.get_or_insert_default();
        identity.is_encrypted = true;
        identity.certificate_user = user;
    }

    /// Who the peer has shown itself to be: `anonymous`, if it has not.
    pub fn user(&self) -> &str {
        let claimed = self
            .identity
            .as_ref()
            .and_then(|identity| identity.user.as_deref());
        claimed.unwrap_or("anonymous")
    }

    /// The SASL mechanism in use.
    pub const fn sasl_mechanism(&self) -> Option<&'static str> {
        self.sasl
    }

    pub(super) fn on_header(&mut self, bytes: [u8; header::LENGTH]) -> Result<(), ConnectionError> {
        let side = Arc::clone(&self.side);
        if let (Side::Listener { demands }, Phase::Header) = (&*side, self.phase) {
            if demands.encryption && !self.identity.as_ref().is_some_and(|it| it.is_encrypted) {
                return Err(ConnectionError::Unencrypted);
            }
            if bytes.first() == Some(&TLS_HANDSHAKE) {
                return Err(ConnectionError::ProtocolMismatch(
                    "the peer speaks TLS, which this listener has no sslProfile for",
                ));
            }
        }
        let header = ProtocolHeader::parse(bytes).ok_or(ConnectionError::UnknownProtocol(bytes))?;
        match (self.phase, header) {
            (Phase::Header, ProtocolHeader::Sasl) => {
                let Side::Listener { demands } = &*side else {
                    return Ok(());
                };
                let names = self.offered(demands).map(Mechanism::name).collect();
                self.emit(|out| {
                    out.extend_from_slice(&ProtocolHeader::Sasl.bytes());
                    SaslFrame::Mechanisms(names).write(out);
                });
                self.phase = Phase::SaslInit;
            }
            (Phase::Header, ProtocolHeader::Amqp) if matches!(&*side, Side::Listener { demands } if demands.authentication) =>
            {
                return Err(ConnectionError::Unauthenticated);
            }
            (Phase::Header | Phase::HeaderAfterSasl, ProtocolHeader::Amqp) => {
                self.emit(|out| out.extend_from_slice(&ProtocolHeader::Amqp.bytes()));
                self.phase = Phase::Open;
            }
            (Phase::SaslHeader, ProtocolHeader::Sasl) => self.phase = Phase::Mechanisms,
            (Phase::AmqpHeader, ProtocolHeader::Amqp) => self.phase = Phase::Open,
            (Phase::SaslHeader, ProtocolHeader::Amqp) => {
                return Err(ConnectionError::ProtocolMismatch("the peer does not speak SASL"));
            }
            (_, ProtocolHeader::Tls) => {
                return Err(ConnectionError::ProtocolMismatch(
                    "the peer wants TLS behind an AMQP header, which this port does not speak",
                ));
            }
            _ => {
                return Err(ConnectionError::ProtocolMismatch(
                    "a protocol header out of order",
                ));
            }
        }
        Ok(())
    }

    /// The mechanisms that can work on this transport.
    fn offered(&self, demands: &Demands) -> impl Iterator<Item = Mechanism> {
        demands
            .mechanisms
            .iter()
            .copied()
            .filter(|mechanism| match mechanism {
                Mechanism::Anonymous | Mechanism::Mssbcbs => !demands.authentication,
                Mechanism::Plain => true,
                Mechanism::External => self
                    .identity
                    .as_ref()
                    .is_some_and(|identity| identity.certificate_user.is_some()),
            })
    }

    /// A device's choice.
    fn on_init<'f>(
        &mut self,
        demands: &Demands,
        name: &str,
        response: Option<&'f [u8]>,
    ) -> Result<Event<'f>, ConnectionError> {
        let chosen = Mechanism::from_name(name)
            .filter(|chosen| self.offered(demands).any(|offered| offered == *chosen));
        let Some(mechanism) = chosen else {
            return Err(self.refuse(format!(
                "Client mechanism {:?} is not among those of this listener",
                name.chars().take(SHOWN_OF_MECHANISM).collect::<String>()
            )));
        };
        self.sasl = Some(mechanism.name());
        match mechanism {
            Mechanism::Anonymous | Mechanism::Mssbcbs => {}
            Mechanism::External => {
                let identity = self.identity.get_or_insert_default();
                identity.user = identity.certificate_user.take();
            }
            Mechanism::Plain => return self.on_plain(response),
        }
        self.admit();
        Ok(Event::Consumed)
    }

    pub(super) fn admit(&mut self) {
        self.emit(|out| SaslFrame::Outcome(SaslCode::Ok).write(out));
        self.phase = Phase::HeaderAfterSasl;
    }

    pub(super) fn refuse(&mut self, text: String) -> ConnectionError {
        self.emit(|out| SaslFrame::Outcome(SaslCode::Auth).write(out));
        ConnectionError::Sasl(text)
    }

    pub(super) fn on_sasl<'f>(&mut self, frame: &SaslFrame<'f>) -> Result<Event<'f>, ConnectionError> {
        let side = Arc::clone(&self.side);
        match (&*side, self.phase, frame) {
            (
                Side::Listener { demands },
                Phase::SaslInit,
                SaslFrame::Init {
                    mechanism,
                    initial_response,
                },
            ) => self.on_init(demands, mechanism, *initial_response),
            (Side::Listener { .. }, Phase::SaslResponse, SaslFrame::Response(response)) => {
                self.on_plain(Some(response))
            }
            (Side::Connector { credentials }, Phase::Mechanisms, SaslFrame::Mechanisms(offered)) => {
                let Some(choice) = credentials.choose(offered) else {
                    return Err(ConnectionError::Sasl(format!(
                        "no common SASL mechanism: the peer offers {}, allowed here: {}",
                        offered.join(" "),
                        if credentials.mechanisms.is_empty() {
                            "any that saslUsername, saslPassword and certificate make possible".to_owned()
                        } else {
                            credentials.mechanisms.join(" ")
                        }
                    )));
                };
                self.sasl = Some(choice.mechanism);
                self.emit(|out| {
                    SaslFrame::Init {
                        mechanism: choice.mechanism,
                        initial_response: Some(&choice.initial_response),
                    }
                    .write(out);
                });
                self.phase = Phase::Outcome;
                Ok(Event::Offered(offered.clone()))
            }
            (Side::Connector { .. }, Phase::Outcome, SaslFrame::Outcome(code)) => match code {
                SaslCode::Ok => {
                    self.emit(|out| out.extend_from_slice(&ProtocolHeader::Amqp.bytes()));
                    self.send_open();
                    self.phase = Phase::AmqpHeader;
                    Ok(Event::Admitted)
                }
                SaslCode::Auth => Err(ConnectionError::Sasl(format!(
                    "Authentication failed [mech={}]: the peer refuses the credentials",
                    self.sasl.unwrap_or("none")
                ))),
                SaslCode::Sys | SaslCode::SysPerm | SaslCode::SysTemp => Err(ConnectionError::Sasl(
                    "Authentication failed: the peer has an error of its own".into(),
                )),
            },
            _ => Err(ConnectionError::Unexpected(name(frame))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::endpoint::trace::Tracing;
    use crate::endpoint::window::WindowSize;

    fn chosen(credentials: &SaslCredentials, offered: &[&str]) -> Option<(&'static str, Vec<u8>)> {
        credentials
            .choose(offered)
            .map(|choice| (choice.mechanism, choice.initial_response))
    }

    /// What IoT Hub offers.
    const HUB: [&str; 4] = ["EXTERNAL", "MSSBCBS", "ANONYMOUS", "PLAIN"];

    #[test]
    fn without_credentials_it_is_anonymous() {
        let credentials = SaslCredentials {
            trace: "Router.A".into(),
            ..SaslCredentials::default()
        };
        assert_eq!(
            chosen(&credentials, &HUB),
            Some(("ANONYMOUS", b"Router.A".to_vec()))
        );
        assert_eq!(chosen(&credentials, &["PLAIN", "EXTERNAL"]), None);
        assert_eq!(chosen(&credentials, &[]), None);
    }

    #[test]
    fn the_strongest_that_can_work_is_chosen() {
        let mut credentials = SaslCredentials {
            plain: Some(("rule".into(), "key".into())),
            ..SaslCredentials::default()
        };
        assert_eq!(
            chosen(&credentials, &HUB),
            Some(("PLAIN", b"\0rule\0key".to_vec()))
        );
        credentials.external = true;
        assert_eq!(chosen(&credentials, &HUB), Some(("EXTERNAL", Vec::new())));
        assert_eq!(
            chosen(&credentials, &["ANONYMOUS", "PLAIN"]).map(|c| c.0),
            Some("PLAIN")
        );
    }

    #[test]
    fn what_the_file_does_not_list_is_never_chosen() {
        let mut credentials = SaslCredentials {
            mechanisms: vec!["anonymous".into()],
            plain: Some(("rule".into(), "key".into())),
            external: true,
            trace: String::new(),
        };
        assert_eq!(chosen(&credentials, &HUB).map(|c| c.0), Some("ANONYMOUS"));
        credentials.mechanisms = vec!["MSSBCBS".into()];
        assert_eq!(chosen(&credentials, &HUB).map(|c| c.0), Some("MSSBCBS"));
        credentials.mechanisms = vec!["PLAIN".into()];
        credentials.plain = None;
        assert_eq!(chosen(&credentials, &HUB), None);
    }

    #[test]
    fn mechanisms_have_one_name_in_any_case() {
        for mechanism in Mechanism::ALL {
            let lower = mechanism.name().to_ascii_lowercase();
            assert_eq!(Mechanism::from_name(&lower), Some(mechanism));
        }
        assert_eq!(Mechanism::from_name("SCRAM-SHA-256"), None);
    }

    /// A frame may hold far more, and whoever connects would have it in the log.
    #[test]
    fn an_unknown_mechanism_is_shown_in_short() {
        let side = Side::Listener {
            demands: Demands {
                mechanisms: vec![Mechanism::Anonymous],
                ..Demands::default()
            },
        };
        let announce = Announce {
            container_id: "Router.A".into(),
            hostname: None,
            max_frame_size: 16384,
            channel_max: 7,
            session_window: WindowSize::Frames(1),
            idle_timeout: None,
            failover: Vec::new(),
        };
        let mut connection = Connection::new(
            1,
            Arc::new(side),
            Arc::new(announce),
            None,
            Tracing::All,
            Instant::now(),
        );
        connection.phase = Phase::SaslInit;
        let init = SaslFrame::Init {
            mechanism: &"X".repeat(10_000),
            initial_response: None,
        };
        let error = connection.on_sasl(&init).err().expect("refused").to_string();
        assert!(error.contains("\"XXXX") && error.len() < 200, "{error}");
    }
}
