//! Policy: who may connect, and attach what.

use std::collections::HashMap;
use std::net::IpAddr;

use super::{MAX_SESSIONS, MIN_MAX_FRAME_SIZE};
use crate::config::model::{Addresses, Group, Policy, RemoteHost, Vhost};
use crate::config::names::{quoted, suggestion};
use crate::config::report::Findings;
use crate::config::resolve::Fields;

/// The group of users that are in no other, if `allowUnknownUser` lets them in.
const DEFAULT_GROUP: &str = "$default";
const USER: &str = "${user}";

/// The policy with its vhosts.
pub(in crate::config) fn policy(fields: &Fields, vhosts: Vec<Vhost>, findings: &mut Findings) -> Policy {
    // 0.6 had 0 for "no limit"; the default is as good as none.
    let max_connections = fields.integer("maxConnections").filter(|limit| *limit > 0);
    let policy = Policy {
        line: fields.line,
        max_connections: max_connections.unwrap_or(65535),
        enable_vhost_policy: fields.boolean("enableVhostPolicy"),
        vhost_name_patterns: fields.boolean("enableVhostNamePatterns"),
        default_vhost: fields.text("defaultVhost").unwrap_or_default(),
        max_message_size: fields.integer("maxMessageSize").unwrap_or_default(),
        vhosts,
    };
    match (policy.enable_vhost_policy, policy.vhosts.first()) {
        (true, None) => {
            let message =
                "policy: `enableVhostPolicy` is on and there is no vhost: every connection will be denied";
            findings.warning(fields.line_of("enableVhostPolicy"), message);
        }
        (true, Some(_)) => default_vhost(fields, &policy, findings),
        (false, Some(vhost)) => {
            let message = "vhost is not applied: without `enableVhostPolicy: yes` in section policy everyone may connect";
            findings.warning_in(&vhost.file, vhost.line, message);
        }
        (false, None) => {}
    }
    policy
}

/// A default that was written and leads nowhere is a slip of the pen.
fn default_vhost(fields: &Fields, policy: &Policy, findings: &mut Findings) {
    let wanted = policy.default_vhost.as_str();
    let names = || policy.vhosts.iter().map(|vhost| vhost.hostname.as_str());
    if fields.is_given("defaultVhost") && !wanted.is_empty() && !names().any(|name| name == wanted) {
        let message = format!(
            "policy: there is no vhost {}: who names no other is denied{}",
            quoted(wanted),
            suggestion(wanted, names())
        );
        findings.warning(fields.line_of("defaultVhost"), message);
    }
}

/// A vhost, if it has a name that no other has.
pub(in crate::config) fn vhost(
    fields: &Fields,
    names: &mut HashMap<String, String>,
    findings: &mut Findings,
) -> Option<Vhost> {
    let Some(hostname) = fields.text("hostname").filter(|name| !name.is_empty()) else {
        findings.error(fields.line, "vhost: required attribute `hostname` is missing");
        return None;
    };
    let aliases = fields.words("aliases");
    for (name, attribute) in
        std::iter::once((&hostname, "hostname")).chain(aliases.iter().map(|alias| (alias, "aliases")))
    {
        let line = fields.line_of(attribute);
        if let Some(place) = names.get(name) {
            let message = format!("vhost: the name {} is already used in {place}", quoted(name));
            findings.error(line, message);
        }
        names
            .entry(name.clone())
            .or_insert_with(|| format!("{}:{line}", findings.file()));
    }
    let allow_unknown_user = fields.boolean("allowUnknownUser");
    let groups: Vec<Group> = fields
        .groups
        .iter()
        .map(|(name, settings)| group(name, settings, findings))
        .collect();
    unique_users(&groups, findings);
    if allow_unknown_user && !groups.iter().any(|group| group.name == DEFAULT_GROUP) {
        let message = format!(
            "vhost: `allowUnknownUser` needs a group `{DEFAULT_GROUP}`; unknown users will be denied"
        );
        findings.warning(fields.line_of("allowUnknownUser"), message);
    } else if groups.is_empty() {
        let message = format!(
            "vhost: {} has no groups: nobody may connect to it",
            quoted(&hostname)
        );
        findings.warning(fields.line, message);
    }
    let count = |name| fields.integer(name).unwrap_or(u32::MAX);
    Some(Vhost {
        file: findings.file().to_owned(),
        line: fields.line,
        hostname,
        aliases,
        max_connections: count("maxConnections"),
        max_connections_per_user: count("maxConnectionsPerUser"),
        max_connections_per_host: count("maxConnectionsPerHost"),
        max_message_size: fields.integer("maxMessageSize"),
        allow_unknown_user,
        groups,
    })
}

fn unique_users(groups: &[Group], findings: &mut Findings) {
    let mut seen: HashMap<&str, &str> = HashMap::new();
    for group in groups {
        for user in &group.users {
            match seen.get(user.as_str()) {
                Some(other) if *other != group.name => {
                    let message = format!(
                        "group: user {} is in group {}, too; a user has one group",
                        quoted(user),
                        quoted(other)
                    );
                    findings.error(group.line, message);
                }
                Some(_) => {}
                None => {
                    seen.insert(user, &group.name);
                }
            }
        }
    }
}

fn group(name: &str, fields: &Fields, findings: &mut Findings) -> Group {
    if !fields.is_given("remoteHosts") {
        let message = format!(
            "group: {} has no `remoteHosts`, so its users may connect from nowhere; `*` is everywhere",
            quoted(name)
        );
        findings.warning(fields.line, message);
    }
    for limit in ["maxSenders", "maxReceivers"] {
        if fields.integer(limit) == Some(0) {
            let message =
                format!("group: `{limit}` is 0: no such link is allowed; leave it out for no limit");
            findings.warning(fields.line_of(limit), message);
        }
    }
    let max_frame_size = fields.integer("maxFrameSize");
    if max_frame_size.is_some_and(|size| size < MIN_MAX_FRAME_SIZE) {
        let message =
            format!("group: `maxFrameSize`: the least that AMQP allows, {MIN_MAX_FRAME_SIZE}, is used");
        findings.warning(fields.line_of("maxFrameSize"), message);
    }
    let max_sessions = fields.integer("maxSessions").filter(|sessions| *sessions > 0);
    Group {
        line: fields.line,
        name: name.to_owned(),
        users: fields.words("users"),
        remote_hosts: remote_hosts(fields, findings),
        max_connections_per_user: fields.integer("maxConnectionsPerUser"),
        max_connections_per_host: fields.integer("maxConnectionsPerHost"),
        max_frame_size: max_frame_size.map(|size| size.max(MIN_MAX_FRAME_SIZE)),
        max_sessions: max_sessions
            .map(|sessions| u16::try_from(sessions).map_or(MAX_SESSIONS, |it| it.min(MAX_SESSIONS))),
        max_session_window: fields.integer("maxSessionWindow").filter(|window| *window > 0),
        max_senders: fields.integer("maxSenders"),
        max_receivers: fields.integer("maxReceivers"),
        max_message_size: fields.integer("maxMessageSize"),
        allow_dynamic_source: fields.boolean("allowDynamicSource"),
        allow_anonymous_sender: fields.boolean("allowAnonymousSender"),
        sources: addresses(fields, "sources", "sourcePattern", findings),
        targets: addresses(fields, "targets", "targetPattern", findings),
    }
}

fn addresses(fields: &Fields, list: &str, pattern: &str, findings: &mut Findings) -> Addresses {
    if fields.is_given(list) && fields.is_given(pattern) {
        let message = format!(
            "group: `{list}` and `{pattern}` (line {}) exclude each other",
            fields.line_of(pattern)
        );
        findings.error(fields.line_of(list), message);
    }
    if fields.is_given(pattern) {
        let patterns = fields.words(pattern);
        for text in &patterns {
            literally(fields, pattern, text, is_partly_wild(text), findings);
        }
        return Addresses::Patterns(patterns);
    }
    let listed = fields.words(list);
    for text in &listed {
        let body = text.strip_suffix('*').unwrap_or(text);
        literally(fields, list, text, body.contains('*'), findings);
    }
    Addresses::Listed(listed)
}

fn is_partly_wild(pattern: &str) -> bool {
    let mut tokens = pattern.split(['.', '/']);
    tokens.any(|token| token.len() > 1 && token.contains(['*', '#']))
}

fn literally(fields: &Fields, attribute: &str, text: &str, is_wrong: bool, findings: &mut Findings) {
    let place = match attribute {
        "sources" | "targets" => "at the end",
        _ => "as a whole token",
    };
    if is_wrong {
        let message = format!(
            "group: in {} of `{attribute}` a wildcard is taken literally: it is one only {place}",
            quoted(text)
        );
        findings.warning(fields.line_of(attribute), message);
    }
    if text.replace(USER, "").contains("${") {
        let message = format!(
            "group: in {} of `{attribute}` only `{USER}` is replaced",
            quoted(text)
        );
        findings.warning(fields.line_of(attribute), message);
    }
}

fn remote_hosts(fields: &Fields, findings: &mut Findings) -> Vec<RemoteHost> {
    let mut hosts = Vec::new();
    for text in fields.words("remoteHosts") {
        match remote_host(&text) {
            Ok(host) => hosts.push(host),
            Err(wrong) => {
                let message = format!("group: in `remoteHosts`, {} {wrong}", quoted(&text));
                findings.error(fields.line_of("remoteHosts"), message);
            }
        }
    }
    hosts
}

/// `*`, an address, two addresses with `-` between them, or a name, which may hold a `-` itself.
fn remote_host(text: &str) -> Result<RemoteHost, &'static str> {
    if text == "*" {
        return Ok(RemoteHost::Any);
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(RemoteHost::Range(address, address));
    }
    if let Some((first, last)) = text.split_once('-')
        && let (Ok(first), Ok(last)) = (first.trim().parse::<IpAddr>(), last.trim().parse::<IpAddr>())
    {
        return match (first, last) {
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                Err("begins with an address of one family and ends with one of the other")
            }
            _ if first > last => Err("ends before it begins"),
            _ => Ok(RemoteHost::Range(first, last)),
        };
    }
    // What begins like an address and is none would be looked up in vain.
    let is_name = text
        .chars()
        .all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '.' | '_'))
        && text.contains(|letter: char| letter.is_ascii_alphabetic());
    match is_name {
        true => Ok(RemoteHost::Name(text.to_owned())),
        false => Err("is no address, range of addresses (`FIRST-LAST`), host name, or `*`"),
    }
}
