//! Protocol headers and the SASL layer of both sides (AMQP 1.0 part 2, §2.2; part 5, §5.3): what comes before open.

use std::sync::Arc;

use super::ConnectionError;
use super::connection::{Connection, Phase, Side};
use crate::amqp::header::{self, ProtocolHeader};
use crate::amqp::sasl::{SaslCode, SaslFrame};

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

/// The outcome for a device that chose `mechanism` from what we offered. Only mechanisms without credentials exist on
/// plaintext listeners: ANONYMOUS, and MSSBCBS, Azure's name for it.
pub(super) fn judge(offered: &[String], mechanism: &str) -> SaslCode {
    match offered.iter().any(|name| name.eq_ignore_ascii_case(mechanism)) {
        true => SaslCode::Ok,
        false => SaslCode::Auth,
    }
}

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
    pub(super) fn on_header(&mut self, bytes: [u8; header::LENGTH]) -> Result<(), ConnectionError> {
        let header = ProtocolHeader::parse(bytes).ok_or(ConnectionError::UnknownProtocol(bytes))?;
        match (self.phase, header) {
            (Phase::Header, ProtocolHeader::Sasl) => {
                let side = Arc::clone(&self.side);
                let Side::Listener { mechanisms } = &*side else {
                    return Ok(());
                };
                let names: Vec<&str> = mechanisms.iter().map(String::as_str).collect();
                self.emit(|out| {
                    out.extend_from_slice(&ProtocolHeader::Sasl.bytes());
                    SaslFrame::Mechanisms(names).write(out);
                });
                self.phase = Phase::SaslInit;
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
                    "the peer wants TLS, which this port does not speak",
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

    pub(super) fn on_sasl(&mut self, frame: &SaslFrame<'_>) -> Result<(), ConnectionError> {
        let side = Arc::clone(&self.side);
        match (&*side, self.phase, frame) {
            (Side::Listener { mechanisms }, Phase::SaslInit, SaslFrame::Init { mechanism, .. }) => {
                let code = judge(mechanisms, mechanism);
                let known = mechanisms
                    .iter()
                    .find(|name| name.eq_ignore_ascii_case(mechanism));
                let refusal = match (code, known) {
                    (SaslCode::Ok, Some(_)) => None,
                    _ => Some(format!(
                        "Client mechanism {mechanism:?} is not among those of this listener"
                    )),
                };
                self.sasl = Some(if mechanism.eq_ignore_ascii_case("MSSBCBS") {
                    "MSSBCBS"
                } else {
                    "ANONYMOUS"
                });
                self.emit(|out| SaslFrame::Outcome(code).write(out));
                match refusal {
                    None => self.phase = Phase::HeaderAfterSasl,
                    Some(text) => return Err(ConnectionError::Sasl(text)),
                }
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
            }
            (Side::Connector { .. }, Phase::Outcome, SaslFrame::Outcome(code)) => match code {
                SaslCode::Ok => {
                    self.emit(|out| out.extend_from_slice(&ProtocolHeader::Amqp.bytes()));
                    self.send_open();
                    self.phase = Phase::AmqpHeader;
                }
                SaslCode::Auth => {
                    return Err(ConnectionError::Sasl(format!(
                        "Authentication failed [mech={}]: the peer refuses the credentials",
                        self.sasl.unwrap_or("none")
                    )));
                }
                SaslCode::Sys | SaslCode::SysPerm | SaslCode::SysTemp => {
                    return Err(ConnectionError::Sasl(
                        "Authentication failed: the peer has an error of its own".into(),
                    ));
                }
            },
            _ => return Err(ConnectionError::Unexpected(name(frame))),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn devices_get_what_the_listener_offers_and_nothing_else() {
        let offered = ["ANONYMOUS".to_owned(), "MSSBCBS".to_owned()];
        assert_eq!(judge(&offered, "MSSBCBS"), SaslCode::Ok);
        assert_eq!(judge(&offered, "anonymous"), SaslCode::Ok);
        assert_eq!(judge(&offered, "PLAIN"), SaslCode::Auth);
        assert_eq!(judge(&offered[..1], "MSSBCBS"), SaslCode::Auth);
    }
}
