//! What can be said only of the configuration as a whole: doubles, and connectors that cannot work or have no use.

mod sharing;

use std::collections::HashMap;

use super::model::{Config, Connector, Destination, Direction, LinkRoute, ListenerRole, Matcher};
use super::names::quoted;
use super::report::Findings;

/// Checks a configuration whose references were resolved when it was built.
pub(super) fn check(config: &Config, findings: &mut Findings) {
    unique(
        "listener",
        config.listeners.iter().map(|it| (it.name.as_str(), it.line)),
        findings,
    );
    unique(
        "connector",
        config.connectors.iter().map(|it| (it.name.as_str(), it.line)),
        findings,
    );
    unique(
        "sslProfile",
        config.ssl_profiles.iter().map(|it| (it.name.as_str(), it.line)),
        findings,
    );
    unique(
        "linkRoute",
        config.link_routes.iter().map(|it| (it.name.as_str(), it.line)),
        findings,
    );
    unique(
        "log module",
        config.logs.iter().map(|it| (it.module.as_str(), it.line)),
        findings,
    );
    listener_addresses(config, findings);
    for connector in &config.connectors {
        credentials(connector, config, findings);
        sharing::check(connector, config, findings);
    }
    for listener in &config.listeners {
        sharing::check_logins(listener, config, findings);
    }
    equal_routes(&config.link_routes, findings);
    unused_connections(config, findings);
}

fn unique<'a>(what: &str, named: impl Iterator<Item = (&'a str, u32)>, findings: &mut Findings) {
    let mut first_lines: HashMap<&str, u32> = HashMap::new();
    for (name, line) in named.filter(|(name, _)| !name.is_empty()) {
        if let Some(first) = first_lines.get(name) {
            findings.error(
                line,
                format!("there is already a {what} {}, in line {first}", quoted(name)),
            );
        } else {
            first_lines.insert(name, line);
        }
    }
}

fn listener_addresses(config: &Config, findings: &mut Findings) {
    let mut seen: HashMap<(&str, u16), (&str, u32)> = HashMap::new();
    for listener in config.listeners.iter().filter(|listener| listener.port != 0) {
        let first = seen
            .entry((&listener.host, listener.port))
            .or_insert((&listener.name, listener.line));
        // Equal names were already complained of.
        if first.1 != listener.line && first.0 != listener.name {
            let message = format!(
                "listener: {}:{} is already listened on by the listener of line {}",
                listener.host, listener.port, first.1
            );
            findings.error(listener.line, message);
        }
    }
}

/// Whether the mechanisms that are allowed have what they need.
fn credentials(connector: &Connector, config: &Config, findings: &mut Findings) {
    let who = quoted(&connector.name);
    let has_login = connector.sasl_username.is_some() && connector.sasl_password.is_some();
    let profile = connector
        .ssl_profile
        .as_deref()
        .and_then(|name| config.ssl_profile(name));
    let has_certificate = profile.is_some_and(|profile| profile.cert_file.is_some());
    let works = |mechanism: &str| match mechanism {
        "PLAIN" => has_login,
        "EXTERNAL" => has_certificate,
        _ => true,
    };
    let mechanisms = &connector.sasl_mechanisms;
    // A missing profile was already complained of, and EXTERNAL cannot be judged without it.
    let profile_is_known = connector.ssl_profile.is_none() || profile.is_some();
    if profile_is_known && !mechanisms.is_empty() && !mechanisms.iter().any(|mechanism| works(mechanism)) {
        let needs = "PLAIN needs `saslUsername` and `saslPassword`, EXTERNAL a profile with `certFile`";
        let message = format!("connector {who}: no mechanism in `saslMechanisms` can be used: {needs}");
        findings.error(connector.line, message);
    } else if connector.sasl_username.is_some() != connector.sasl_password.is_some() {
        let message = format!("connector {who}: `saslUsername` and `saslPassword` are of use only together");
        findings.warning(connector.line, message);
    }
    let plain_is_possible = mechanisms.is_empty() || mechanisms.iter().any(|mechanism| mechanism == "PLAIN");
    if has_login && plain_is_possible && connector.ssl_profile.is_none() {
        let message =
            format!("connector {who}: without `sslProfile` the password crosses the network in clear text");
        findings.warning(connector.line, message);
    }
}

fn equal_routes(routes: &[LinkRoute], findings: &mut Findings) {
    let mut seen: HashMap<(&str, bool, bool, &str), u32> = HashMap::new();
    for route in routes {
        let (text, is_prefix) = match &route.matcher {
            Matcher::Prefix(text) => (text, true),
            Matcher::Pattern(text) => (text, false),
        };
        let (Destination::Connection(to) | Destination::Container(to)) = &route.destination;
        let is_in = route.direction == Direction::In;
        let first = *seen
            .entry((text.trim_matches(['.', '/']), is_prefix, is_in, to))
            .or_insert(route.line);
        if first != route.line {
            findings.warning(
                route.line,
                format!("linkRoute: says the same as the route of line {first}"),
            );
        }
    }
}

/// Connections that could serve routes, and have none to serve.
fn unused_connections(config: &Config, findings: &mut Findings) {
    let by_container = config
        .link_routes
        .iter()
        .any(|route| matches!(route.destination, Destination::Container(_)));
    let connectors = config
        .connectors
        .iter()
        .map(|connector| ("connector", &connector.name, connector.line));
    let listeners = config
        .listeners
        .iter()
        .filter(|listener| listener.role == ListenerRole::RouteContainer)
        .map(|listener| ("listener", &listener.name, listener.line));
    for (what, name, line) in connectors.chain(listeners).filter(|_| !by_container) {
        let destination = Destination::Connection(name.clone());
        if !config
            .link_routes
            .iter()
            .any(|route| route.destination == destination)
        {
            findings.warning(line, format!("{what} {}: no linkRoute leads to it", quoted(name)));
        }
    }
}
