//! Whether what a connector says of the tokens of devices has an effect, and is safe.

use crate::config::model::{
    CbsMode, Config, Connector, Destination, Direction, LinkRoute, Listener, Matcher,
};
use crate::config::names::quoted;
use crate::config::report::Findings;

/// The address at which devices put their tokens.
const CBS: &str = "$cbs";

const UNSEEN: &str = "with `cbs: tunnel` the tokens of devices go to the hub unseen: of several devices at one time only \
                      one may get answers, and every device can send and receive as any other whose token is on the connection";
const UNCHECKED: &str = "with `checkIdentity: no` every device can send and receive as any other whose token is on the same \
                         connection to the hub";

const NOBODY: &str = "nobody can log in with PLAIN: there is no `saslPasswordFile` in the router section, and devices that log in \
                      with a token of IoT Hub need a linkRoute of `$cbs` with `direction: in` to a connector that puts it";

/// What there is to say of log-ins by token to a listener that has no passwords.
pub(super) fn check_logins(listener: &Listener, config: &Config, findings: &mut Findings) {
    let offers_plain = listener.sasl_mechanisms.iter().any(|name| name == "PLAIN");
    let puts_tokens = |connector: &Connector| {
        connector.sharing.cbs == CbsMode::Relay && obstacle(connector, config).is_none()
    };
    if offers_plain
        && config.router.sasl_password_file.is_none()
        && !config.connectors.iter().any(puts_tokens)
    {
        findings.warning(listener.line, format!("listener: {NOBODY}"));
    }
}

/// What there is to say of one connector.
pub(super) fn check(connector: &Connector, config: &Config, findings: &mut Findings) {
    let who = quoted(&connector.name);
    let sharing = &connector.sharing;
    if let Some(reason) = obstacle(connector, config) {
        for (name, line) in &sharing.about_tokens {
            findings.warning(
                *line,
                format!("connector {who}: `{name}` has no effect: {reason}"),
            );
        }
        return;
    }
    for (name, line) in &sharing.about_tokens {
        let message = match (*name, sharing.cbs) {
            ("cbs", CbsMode::Tunnel) => UNSEEN.to_owned(),
            (name, CbsMode::Tunnel) => format!("`{name}` has no effect with `cbs: tunnel`"),
            ("checkIdentity", CbsMode::Relay) if !sharing.check_identity => UNCHECKED.to_owned(),
            (_, CbsMode::Relay) => continue,
        };
        findings.warning(*line, format!("connector {who}: {message}"));
    }
}

/// Why the router never puts a token of a device over this connector.
fn obstacle(connector: &Connector, config: &Config) -> Option<String> {
    let identity = connector.own_identity(&config.ssl_profiles);
    if let Some(identity) = identity {
        return Some(format!(
            "with {identity} the connector logs in for all devices, which the hub cannot tell apart"
        ));
    }
    let is_led_to = config
        .link_routes
        .iter()
        .any(|route| leads_to(route, connector) && may_match_cbs(route));
    (!is_led_to).then(|| format!("no linkRoute of `{CBS}` with `direction: in` leads to it"))
}

fn leads_to(route: &LinkRoute, connector: &Connector) -> bool {
    match &route.destination {
        Destination::Connection(name) => *name == connector.name,
        // Known only when the hub has said its container-id.
        Destination::Container(_) => true,
    }
}

/// Whether a device's `$cbs`, perhaps behind its virtual host, can be what the route is for.
fn may_match_cbs(route: &LinkRoute) -> bool {
    let (Matcher::Prefix(text) | Matcher::Pattern(text)) = &route.matcher;
    let mut tokens = text
        .split(['.', '/'])
        .filter(|token| !token.is_empty())
        .collect::<Vec<_>>();
    if matches!(route.matcher, Matcher::Pattern(_)) {
        while tokens.pop_if(|token| *token == "#").is_some() {}
        return route.direction == Direction::In
            && tokens.last().is_none_or(|last| matches!(*last, CBS | "*"));
    }
    route.direction == Direction::In && tokens.last() == Some(&CBS)
}
