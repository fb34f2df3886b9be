//! The SASL layer of both sides (AMQP 1.0 part 5, §5.3): which mechanisms we offer, which one we choose.

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
