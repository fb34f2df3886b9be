//! Log-ins with user and password: who judges them, and what comes of it.

use std::time::Instant;

use super::settings::Secret;
use super::{Action, ConnectionKey, Login, Router, Verdict};

impl Router {
    /// A device says who it is, and proves it.
    pub(super) fn on_login(&mut self, key: ConnectionKey, user: &str, password: &[u8]) {
        let login = Login {
            user: user.to_owned(),
            password: Secret::new(password.to_vec()),
        };
        self.actions.push_back(Action::Authenticate(key, Box::new(login)));
    }

    /// The answer to [`Action::Authenticate`].
    pub fn authenticated(&mut self, key: ConnectionKey, verdict: Verdict, now: Instant) {
        let reason = match verdict {
            Verdict::Accepted => "",
            Verdict::Refused => "unknown user or wrong password",
            Verdict::Unknown => "too many log-ins wait to be checked",
        };
        self.login_answered(key, verdict, reason, now);
    }

    /// Somebody has judged a log-in, for this reason.
    fn login_answered(&mut self, key: ConnectionKey, verdict: Verdict, reason: &str, now: Instant) {
        self.now = now;
        let Some(entry) = self.entry_mut(key) else { return };
        match entry.connection.authenticated(verdict, reason) {
            Ok(early) if early.is_empty() => {}
            Ok(early) => self.handle_input(key, &early, now),
            Err(error) => self.fail_connection(key, &error),
        }
        self.wake(key);
        self.arm(key);
    }
}
