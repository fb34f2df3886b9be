//! Log-ins with user and password: who judges them, and what comes of it.
//!
//! A device that would log in to IoT Hub by PLAIN has a user of the form `{id}@sas.{hub}`, and a SAS token for a password.
//! On a connection of its own that would be a log-in there; on a shared one it is a token that the router puts for the
//! device's connection, as if the device had asked for it through `$cbs`. Everybody else is judged by the driver, which
//! has the passwords.

use std::borrow::Cow;
use std::time::Instant;

use super::connection::Kind;
use super::identity::{SasToken, identity_of};
use super::settings::{ConnectorId, Secret};
use super::{Action, ConnectionKey, Login, Router, Verdict};
use crate::endpoint::limits;

impl Router {
    /// A device says who it is, and proves it.
    pub(super) fn on_login(&mut self, key: ConnectionKey, user: &str, password: &[u8], now: Instant) {
        if let Some((user, token)) = hub_user(user, password)
            && let Some(connector) = self.judge_of_tokens(key)
        {
            return self.log_in_at_hub(key, &user, token, connector, now);
        }
        let login = Login {
            user: user.to_owned(),
            password: Secret::new(password.to_vec()),
        };
        self.actions.push_back(Action::Authenticate(key, Box::new(login)));
    }

    /// The connector to whose hub the tokens of a device go, if it is one that puts them.
    fn judge_of_tokens(&mut self, key: ConnectionKey) -> Option<ConnectorId> {
        let Kind::Device(listener) = self.entry(key)?.kind else {
            return None;
        };
        // Which hub a tenant belongs to, its open says.
        if self.settings.listeners.get(listener.0)?.multi_tenant {
            return None;
        }
        self.connector_of_cbs(key)
    }

    fn log_in_at_hub(
        &mut self,
        key: ConnectionKey,
        user: &HubUser<'_>,
        token: &str,
        connector: ConnectorId,
        now: Instant,
    ) {
        if let Some(entry) = self.entry_mut(key) {
            entry.connection.call_user(&user.name());
            entry.connection.allow_for_judging(limits::CBS_TIMEOUT);
        }
        if SasToken::parse(token).is_ok_and(|token| !user.owns(&token)) {
            let reason =
                "the token is somebody else's: its `sr`, or its `skn`, is not what the user's name says";
            return self.login_answered(key, Verdict::Refused, reason, now);
        }
        self.put_token_for_login(key, connector, token, now);
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

    /// A log-in has been judged, and if it was not good, for this reason.
    pub(super) fn login_answered(
        &mut self,
        key: ConnectionKey,
        verdict: Verdict,
        reason: &str,
        now: Instant,
    ) {
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

/// Whom IoT Hub would take a user for, and the token that is the password.
fn hub_user<'a>(user: &'a str, password: &'a [u8]) -> Option<(HubUser<'a>, &'a str)> {
    let token = std::str::from_utf8(password).ok()?;
    let is_token = token.get(..SCHEME.len())?.eq_ignore_ascii_case(SCHEME);
    Some((HubUser::parse(user)?, token)).filter(|_| is_token)
}

/// How a SAS token begins.
const SCHEME: &str = "SharedAccessSignature ";

/// Whom a user's name stands for at IoT Hub.
#[derive(Debug, PartialEq, Eq)]
enum HubUser<'a> {
    /// `{id}@sas.{hub}` or `{id}/modules/{module}@sas.{hub}`, ids escaped as in URLs: the path that its token must cover.
    Device(String),
    /// `{policy}@sas.root.{hub}`
    Policy(&'a str),
}

impl<'a> HubUser<'a> {
    fn parse(user: &'a str) -> Option<Self> {
        // An `@` in an id is escaped.
        let (name, hub) = user.split_once("@sas.")?;
        if name.is_empty() || hub.is_empty() || name.contains('@') || hub.contains('@') {
            return None;
        }
        if hub.starts_with("root.") {
            return (!name.contains('/')).then_some(HubUser::Policy(name));
        }
        let mut segments = name.split('/');
        let is_identity = match (segments.next(), segments.next(), segments.next(), segments.next()) {
            (Some(device), None, None, None) => !device.is_empty(),
            (Some(device), Some(word), Some(module), None) => {
                !device.is_empty() && word.eq_ignore_ascii_case("modules") && !module.is_empty()
            }
            _ => false,
        };
        is_identity.then(|| HubUser::Device(format!("devices/{name}")))
    }

    /// Whether a token is this one's.
    fn owns(&self, token: &SasToken) -> bool {
        match self {
            HubUser::Device(path) => token.resource().covers(path),
            HubUser::Policy(policy) => token.policy() == Some(policy),
        }
    }

    /// The name by which the policy knows it: `{id}`, `{id}/modules/{module}`, or `{policy}@sas.root`.
    fn name(&self) -> Cow<'_, str> {
        match self {
            HubUser::Device(path) => match identity_of(path) {
                Some((device, Some(module))) => format!("{device}/modules/{module}").into(),
                Some((device, None)) => device.into_owned().into(),
                None => Cow::Borrowed(path),
            },
            HubUser::Policy(policy) => format!("{policy}@sas.root").into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(fields: &str) -> SasToken {
        SasToken::parse(&format!("SharedAccessSignature {fields}&sig=c2ln&se=1900000000")).expect("a token")
    }

    #[test]
    fn users_of_iot_hub_are_told_from_others() {
        for (user, name) in [
            ("d1@sas.hub", "d1"),
            ("d1@sas.hub.azure-devices.net", "d1"),
            ("plant%2F7%40north@sas.hub", "plant/7@north"),
            ("d1/modules/m%2B1@sas.hub", "d1/modules/m+1"),
            ("service@sas.root.hub", "service@sas.root"),
        ] {
            let parsed = HubUser::parse(user).expect(user);
            assert_eq!(parsed.name(), name, "{user}");
        }
        for user in [
            "d1",
            "d1@hub",
            "d1@sas.",
            "@sas.hub",
            "@sas.root.hub",
            "d1/@sas.hub",
            "d1/modules/@sas.hub",
            "d1/modules/m/x@sas.hub",
            "d1/parts/m@sas.hub",
            "a/b@sas.root.hub",
            "d1@sas.hub@sas.other",
            "d@1@sas.hub",
        ] {
            assert_eq!(HubUser::parse(user), None, "{user}");
        }
        assert!(hub_user("d1@sas.hub", b"SharedAccessSignature sr=x").is_some());
        assert!(hub_user("d1@sas.hub", b"sharedaccesssignature sr=x").is_some());
        for password in [
            &b"s3cret"[..],
            b"SharedAccessSignature",
            b"SharedAccessSignature\xff ",
            "SharedAccessSignatur\u{e9} ".as_bytes(),
        ] {
            assert!(hub_user("d1@sas.hub", password).is_none(), "{password:?}");
        }
    }

    #[test]
    fn a_token_is_its_owners_or_a_policys() {
        let owns = |user: &str, fields: &str| HubUser::parse(user).expect(user).owns(&token(fields));
        assert!(owns("d1@sas.hub", "sr=hub%2Fdevices%2Fd1"));
        assert!(owns("d%2B1@sas.hub", "sr=hub%2Fdevices%2Fd%2B1"));
        assert!(owns(
            "d1/modules/m@sas.hub",
            "sr=hub%2Fdevices%2Fd1%2Fmodules%2Fm"
        ));
        assert!(owns("d1@sas.hub", "sr=hub&skn=device"));
        assert!(owns("service@sas.root.hub", "sr=hub&skn=service"));
        for (user, fields) in [
            ("d1@sas.hub", "sr=hub%2Fdevices%2Fd2"),
            ("d1@sas.hub", "sr=hub%2Fdevices%2FD1"),
            ("d1@sas.hub", "sr=hub%2Fdevices%2Fd1%2Fmodules%2Fm"),
            ("d1@sas.hub", "sr=hub%2Fmessages&skn=service"),
            ("d1/modules/m@sas.hub", "sr=hub%2Fdevices%2Fd1%2Fmodules%2Fn"),
            ("service@sas.root.hub", "sr=hub&skn=device"),
            ("d1@sas.root.hub", "sr=hub%2Fdevices%2Fd1"),
        ] {
            assert!(!owns(user, fields), "{user} with {fields}");
        }
    }
}
