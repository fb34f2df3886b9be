//! Log-ins with user and password (SASL PLAIN, RFC 4616): what a peer says, and what comes of it.

use std::time::Duration;

use super::ConnectionError;
use super::connection::{Connection, Phase};
use super::event::Event;
use super::limits;
use crate::amqp::sasl::{SaslCode, SaslFrame};

/// What became of user and password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They are right.
    Accepted,
    /// The user is unknown or the password wrong; nobody is told which.
    Refused,
    /// They could not be checked now.
    Unknown,
}

/// User and password of a PLAIN response (RFC 4616, section 2); `None` for one that is malformed, beyond
/// [`limits::USER_BYTES`] or [`limits::PASSWORD_BYTES`], or that asks to act for somebody else.
fn plain(response: &[u8]) -> Option<(&str, &[u8])> {
    let mut parts = response.split(|byte| *byte == 0);
    let (authorization, user, password) = (parts.next()?, parts.next()?, parts.next()?);
    let fits = parts.next().is_none()
        && (authorization.is_empty() || authorization == user)
        && (1..=limits::USER_BYTES).contains(&user.len())
        && (1..=limits::PASSWORD_BYTES).contains(&password.len());
    let user = std::str::from_utf8(user).ok()?;
    (fits && !user.contains(char::is_control)).then_some((user, password))
}

impl Connection {
    /// A device's response to PLAIN. One that waits to be asked for it (RFC 4422, section 3.3) is asked, by an empty
    /// challenge.
    pub(super) fn on_plain<'f>(&mut self, response: Option<&'f [u8]>) -> Result<Event<'f>, ConnectionError> {
        let Some(response) = response else {
            self.emit(|out| SaslFrame::Challenge(b"").write(out));
            self.phase = Phase::SaslResponse;
            return Ok(Event::Consumed);
        };
        let Some((user, password)) = plain(response) else {
            let text = "Authentication failed [mech=PLAIN]: malformed user and password";
            return Err(self.refuse(text.to_owned()));
        };
        self.call_user(user);
        self.phase = Phase::Judging;
        Ok(Event::Login { user, password })
    }

    /// Keeps what a peer says before it knows the outcome.
    pub(super) fn keep_early(&mut self, input: &mut &[u8]) -> Result<(), ConnectionError> {
        let early = &mut self.identity.get_or_insert_default().early;
        if early.len() + input.len() > limits::EARLY_BYTES {
            return Err(ConnectionError::Unexpected("so much before the sasl-outcome"));
        }
        early.extend_from_slice(std::mem::take(input));
        Ok(())
    }

    /// The name by which the peer is known if its log-in comes to a good end, in place of the one that it gave.
    pub fn call_user(&mut self, user: &str) {
        self.identity.get_or_insert_default().user = Some(user.into());
    }

    /// Who judges the log-in may take this long: the peer has as much more time for its open.
    pub fn allow_for_judging(&mut self, time: Duration) {
        if let Some(deadline) = &mut self.handshake_deadline {
            *deadline += time;
        }
    }

    /// The answer to [`Event::Login`], and for a bad one the reason; without effect if nothing waits for it any more.
    /// Gives back what the peer has said meanwhile: new input, if there is any.
    ///
    /// # Errors
    /// The verdict is not [`Verdict::Accepted`]; [`fail`](Self::fail) the connection.
    pub fn authenticated(&mut self, verdict: Verdict, reason: &str) -> Result<Vec<u8>, ConnectionError> {
        if self.phase != Phase::Judging {
            return Ok(Vec::new());
        }
        let text = || {
            let user = self.user();
            format!("Authentication failed [mech=PLAIN] for user {user:?}: {reason}")
        };
        match verdict {
            Verdict::Accepted => {
                self.admit();
                let identity = self.identity.as_mut();
                Ok(identity
                    .map(|it| std::mem::take(&mut it.early))
                    .unwrap_or_default())
            }
            Verdict::Refused => {
                let text = text();
                Err(self.refuse(text))
            }
            Verdict::Unknown => {
                let text = text();
                self.emit(|out| SaslFrame::Outcome(SaslCode::SysTemp).write(out));
                Err(ConnectionError::Sasl(text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_response_is_user_and_password_and_nothing_else() {
        assert_eq!(plain(b"\0dev1\0s3cret"), Some(("dev1", &b"s3cret"[..])));
        assert_eq!(plain(b"dev1\0dev1\0p\xff"), Some(("dev1", &b"p\xff"[..])));
        let user = "u".repeat(limits::USER_BYTES);
        let password = "p".repeat(limits::PASSWORD_BYTES);
        let longest = format!("\0{user}\0{password}");
        assert_eq!(plain(longest.as_bytes()), Some((&*user, password.as_bytes())));
        let long_user = [b"\0", vec![b'u'; limits::USER_BYTES + 1].as_slice(), b"\0p"].concat();
        let long_password = [b"\0u\0", vec![b'p'; limits::PASSWORD_BYTES + 1].as_slice()].concat();
        for wrong in [
            &b""[..],
            b"\0",
            b"\0\0",
            b"dev1",
            b"\0dev1",
            b"\0dev1\0",
            b"\0\0s3cret",
            b"root\0dev1\0s3cret",
            b"\0dev1\0s3\0cret",
            b"\0dev\n1\0s3cret",
            b"\0dev\xff\0s3cret",
            &long_user,
            &long_password,
        ] {
            assert_eq!(plain(wrong), None, "{}", wrong.escape_ascii());
        }
    }
}
