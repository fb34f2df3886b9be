//! Link routes, of `linkRoute` and of 0.6's `linkRoutePattern`.

use crate::config::model::{Connector, Destination, Direction, LinkRoute, Listener, ListenerRole, Matcher};
use crate::config::names::{quoted, suggestion};
use crate::config::report::Findings;
use crate::config::resolve::Fields;

/// Separators of tokens, one as good as the other.
const SEPARATORS: [char; 2] = ['.', '/'];

/// All routes in file order; those without a name are numbered.
pub(in crate::config) fn link_routes<'a>(
    sections: impl Iterator<Item = &'a Fields>,
    connectors: &[Connector],
    listeners: &[Listener],
    findings: &mut Findings,
) -> Vec<LinkRoute> {
    let brokers = listeners
        .iter()
        .filter(|listener| listener.role == ListenerRole::RouteContainer);
    let served: Vec<&str> = connectors
        .iter()
        .map(|connector| connector.name.as_str())
        .chain(brokers.map(|listener| listener.name.as_str()))
        .collect();
    let mut routes: Vec<LinkRoute> = Vec::new();
    for fields in sections {
        let matcher = matcher(fields, findings);
        let destination = destination(fields, &served, findings);
        let directions = directions(fields, findings);
        let (Some(matcher), Some(destination)) = (matcher, destination) else {
            continue;
        };
        for direction in directions.iter().copied() {
            let name = match (fields.text("name"), direction) {
                (None, _) => format!("linkRoute/{}", routes.len()),
                (Some(name), _) if directions.len() == 1 => name,
                (Some(name), Direction::In) => format!("{name}/in"),
                (Some(name), Direction::Out) => format!("{name}/out"),
            };
            routes.push(LinkRoute {
                line: fields.line,
                name,
                matcher: matcher.clone(),
                direction,
                destination: destination.clone(),
                add_external_prefix: fields
                    .text("addExternalPrefix")
                    .filter(|prefix| !prefix.is_empty()),
                del_external_prefix: fields
                    .text("delExternalPrefix")
                    .filter(|prefix| !prefix.is_empty()),
            });
        }
    }
    routes
}

fn directions(fields: &Fields, findings: &mut Findings) -> &'static [Direction] {
    match fields.tag("direction") {
        "in" => &[Direction::In],
        "out" => &[Direction::Out],
        "both" => &[Direction::In, Direction::Out],
        _ => {
            if !fields.is_given("direction") {
                let message = "linkRoute: required attribute `direction` is missing: `in` (devices send) or `out` (devices receive)";
                findings.error(fields.line, message);
            }
            &[]
        }
    }
}

fn matcher(fields: &Fields, findings: &mut Findings) -> Option<Matcher> {
    let who = fields.entity.name;
    if fields.is_given("prefix") && fields.is_given("pattern") {
        let message = format!(
            "{who}: `prefix` and `pattern` (line {}) exclude each other",
            fields.line_of("pattern")
        );
        findings.error(fields.line_of("prefix"), message);
        return None;
    }
    let (attribute, text) = match (fields.text("prefix"), fields.text("pattern")) {
        (Some(text), _) => ("prefix", text),
        (None, Some(text)) => ("pattern", text),
        (None, None) => {
            if !fields.is_given("prefix") && !fields.is_given("pattern") {
                let either = if who == "linkRoute" {
                    "`prefix` or `pattern`"
                } else {
                    "`prefix`"
                };
                findings.error(fields.line, format!("{who}: {either} is required"));
            }
            return None;
        }
    };
    let line = fields.line_of(attribute);
    if text.split(SEPARATORS).all(str::is_empty) {
        findings.error(
            line,
            format!("{who}: `{attribute}` is {}, which holds no token", quoted(&text)),
        );
        return None;
    }
    if text.contains("://") {
        let message = format!(
            "{who}: `{attribute}` is {}; the scheme and host of an address are taken off before matching, so it never matches",
            quoted(&text)
        );
        findings.warning(line, message);
    }
    let is_partly_wild = |token: &str| token.len() > 1 && token.contains(['*', '#']);
    if let Some(token) = text.split(SEPARATORS).find(|token| is_partly_wild(token)) {
        let message = format!(
            "{who}: in `{attribute}` the token {} is taken literally: `*` and `#` are wildcards only as whole tokens",
            quoted(token)
        );
        findings.warning(line, message);
    }
    Some(if attribute == "prefix" {
        Matcher::Prefix(text)
    } else {
        Matcher::Pattern(text)
    })
}

fn destination(fields: &Fields, served: &[&str], findings: &mut Findings) -> Option<Destination> {
    let who = fields.entity.name;
    let attribute = if who == "linkRoute" {
        "connection"
    } else {
        "connector"
    };
    let connection = fields.text(attribute).filter(|name| !name.is_empty());
    let container = fields.text("containerId").filter(|id| !id.is_empty());
    match (connection, container) {
        (Some(_), Some(_)) => {
            let other = fields.line_of("containerId");
            let message = format!("{who}: `connection` and `containerId` (line {other}) exclude each other");
            findings.error(fields.line_of("connection"), message);
            None
        }
        (Some(wanted), None) => Some(Destination::Connection(server(
            fields, attribute, wanted, served, findings,
        ))),
        (None, Some(container)) => {
            if served.is_empty() {
                let message = format!(
                    "{who}: there is no connector and no route-container listener, so no container can ever be connected"
                );
                findings.warning(fields.line_of("containerId"), message);
            }
            Some(Destination::Container(container))
        }
        (None, None) => {
            let or_container = if who == "linkRoute" {
                " or `containerId`"
            } else {
                ""
            };
            let message = format!("{who}: `{attribute}` (a connector's name){or_container} is required");
            findings.error(fields.line, message);
            None
        }
    }
}

/// The exact name of the connector, or of the listener for brokers, that is meant.
fn server(
    fields: &Fields,
    attribute: &str,
    wanted: String,
    served: &[&str],
    findings: &mut Findings,
) -> String {
    // qdrouterd 1.19: a trailing separator does not count.
    let trimmed = wanted.trim_end_matches(SEPARATORS);
    for name in [wanted.as_str(), trimmed] {
        if served.contains(&name) {
            return name.to_owned();
        }
    }
    let hint = suggestion(&wanted, served.iter().copied());
    let message = format!(
        "{}: there is no connector or route-container listener {}{hint}",
        fields.entity.name,
        quoted(&wanted)
    );
    findings.error(fields.line_of(attribute), message);
    wanted
}
