//! One resolved entity to its typed form, with the checks that need nothing but the entity itself.
//!
//! A builder goes on after an error, with a stand-in for what is wrong, so that other sections can still refer to this
//! one: the findings decide whether the result may be used.

mod failover;
pub(super) mod listener;
pub(super) mod policy;
pub(super) mod route;
mod sharing;
pub(super) mod tls;

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use super::levels;
use super::model::{
    AddressFamily, Connector, ConnectorRole, ErrorConditions, Log, LogOutput, Router, SslProfile,
};
use super::names::{quoted, suggestion};
use super::report::Findings;
use super::resolve::Fields;
use super::secret::Secret;

/// AMQP 1.0 part 2, §2.7.1: no peer may have a smaller limit.
const MIN_MAX_FRAME_SIZE: u32 = 512;
/// qdrouterd 1.19: more are not numbered.
const MAX_SESSIONS: u16 = 32768;
/// qdrouterd 1.19: longer ids are refused.
const MAX_ROUTER_ID: usize = 127;

/// Mechanisms that we know.
const MECHANISMS: [&str; 4] = ["ANONYMOUS", "EXTERNAL", "MSSBCBS", "PLAIN"];
/// Mechanisms that the SASL library of qdrouterd may have had besides.
const FOREIGN_MECHANISMS: [&str; 17] = [
    "CRAM-MD5",
    "DIGEST-MD5",
    "GS2-IAKERB",
    "GS2-KRB5",
    "GSS-SPNEGO",
    "GSSAPI",
    "KERBEROS_V4",
    "LOGIN",
    "NTLM",
    "OAUTHBEARER",
    "OTP",
    "SCRAM-SHA-1",
    "SCRAM-SHA-256",
    "SCRAM-SHA-512",
    "SRP",
    "XOAUTH",
    "XOAUTH2",
];

/// The router, with what a 0.6 file says in `container`.
pub(super) fn router(router: &Fields, container: &Fields, findings: &mut Findings) -> Router {
    if container.line > 0 {
        let message = "container: section of 0.6 to 0.8; its attributes are taken into the router section";
        findings.warning(container.line, message);
    }
    Router {
        line: router.line,
        id: router_id(router, container, findings),
        id_line: [(router, "id"), (container, "containerName")]
            .into_iter()
            .find_map(|(fields, name)| fields.is_given(name).then(|| fields.line_of(name))),
        timestamps_in_utc: router.boolean("timestampsInUTC"),
        timestamp_format: router.text("timestampFormat"),
        sasl_password_file: router.text("saslPasswordFile").filter(|path| !path.is_empty()),
        allow_resumable_link_route: router.boolean("allowResumableLinkRoute"),
        error_conditions: match router.tag("errorConditions") {
            "qd" => ErrorConditions::Qd,
            _ => ErrorConditions::Amqp,
        },
    }
}

/// qdrouterd 0.6 announced containerName, and routerId was a name among routers; from 0.7 on the id is announced.
fn router_id(router: &Fields, container: &Fields, findings: &mut Findings) -> String {
    let own = router.text("id").map(|id| (id, router.line_of("id")));
    let container_name = container
        .text("containerName")
        .map(|name| (name, container.line_of("containerName")));
    let chosen = match (own, container_name) {
        (Some((id, id_line)), Some((name, name_line))) if id != name => {
            let is_modern = router.is_spelled("id");
            let (used, unused) = if is_modern {
                ("id", "containerName")
            } else {
                ("containerName", "routerId")
            };
            let chosen = if is_modern {
                (id, id_line)
            } else {
                (name, name_line)
            };
            let message = format!(
                "the container-id in every open is {}, of `{used}`; `{unused}` is not used",
                quoted(&chosen.0)
            );
            findings.warning(if is_modern { name_line } else { id_line }, message);
            Some(chosen)
        }
        (Some(own), _) => Some(own),
        (None, container_name) => container_name,
    };
    let Some((id, line)) = chosen else {
        return generated_id();
    };
    if id.len() > MAX_ROUTER_ID {
        findings.error(
            line,
            format!("router: the id has more than {MAX_ROUTER_ID} characters"),
        );
    }
    if id.is_empty()
        || id
            .chars()
            .any(|character| character.is_whitespace() || character.is_control())
    {
        findings.error(
            line,
            format!(
                "router: the id {} is empty or holds a blank or control character",
                quoted(&id)
            ),
        );
    }
    id
}

/// `Standalone_` and 15 characters that two routers will not share.
fn generated_id() -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-";
    let mut id = "Standalone_".to_owned();
    // Hashers are keyed at random, for each process and each `RandomState`.
    let mut bits = [
        RandomState::new().hash_one("high"),
        RandomState::new().hash_one("low"),
    ];
    for count in 0..15 {
        if let Some(word) = bits.get_mut(count / 10) {
            id.extend(
                ALPHABET
                    .get((*word & 63) as usize)
                    .map(|letter| char::from(*letter)),
            );
            *word >>= 6;
        }
    }
    id
}

/// A connector, and the TLS profile that a 0.6 file may hold in the connector itself.
pub(super) fn connector(
    fields: &Fields,
    profiles: &[SslProfile],
    findings: &mut Findings,
) -> (Connector, Option<SslProfile>) {
    let host = host(fields, findings);
    let server_name = fields.text("serverName").filter(|name| !name.is_empty());
    if let Some(name) = &server_name
        && let Some(wrong) = host_fault(name)
    {
        let message = format!("connector: `serverName` is {}, but {wrong}", quoted(name));
        findings.error(fields.line_of("serverName"), message);
    }
    if host.is_empty() {
        findings.error(fields.line_of("host"), "connector: `host` is empty");
    }
    let port = fields.port("port");
    if port == 0 && fields.is_set("port") {
        findings.error(
            fields.line_of("port"),
            "connector: `port` is 0, but must be the port of the hub",
        );
    }
    let name = fields
        .text("name")
        .unwrap_or_else(|| format!("connector/{host}:{port}"));
    tls::check_reference(fields, profiles, findings);
    let inline_profile = tls::inline_profile(fields, &name, profiles, findings);
    let referenced = fields.text("sslProfile").filter(|name| !name.is_empty());
    if port == 5671 && inline_profile.is_none() && referenced.is_none() {
        let message = "connector: port 5671 is for TLS, but TLS is used only with `sslProfile`";
        findings.warning(fields.line_of("port"), message);
    }
    let ssl_profile = inline_profile
        .as_ref()
        .map(|profile| profile.name.clone())
        .or(referenced);
    let failover = failover::urls(fields, findings);
    failover::check_tls(fields, &failover, ssl_profile.is_some(), findings);
    let connector = Connector {
        line: fields.line,
        host,
        port,
        server_name,
        failover,
        family: family(fields),
        role: match fields.tag("role") {
            "on-demand" => ConnectorRole::OnDemand,
            "route-container" => ConnectorRole::RouteContainer,
            _ => ConnectorRole::Normal,
        },
        ssl_profile,
        verify_hostname: fields.boolean("verifyHostname"),
        sasl_mechanisms: connector_mechanisms(fields, findings),
        sasl_username: fields.text("saslUsername"),
        sasl_password: sasl_password(fields),
        max_frame_size: max_frame_size(fields, findings),
        max_sessions: max_sessions(fields, findings),
        max_session_frames: fields.integer("maxSessionFrames").filter(|frames| *frames > 0),
        idle_timeout: seconds(fields, "idleTimeoutSeconds"),
        sharing: sharing::sharing(fields),
        name,
    };
    (connector, inline_profile)
}

/// The password, or a stand-in for one that could not be read, so that nothing is said of a missing one.
fn sasl_password(fields: &Fields) -> Option<Secret> {
    let stand_in = || {
        fields
            .is_given("saslPassword")
            .then(|| Secret::new(String::new()))
    };
    fields.secret("saslPassword").or_else(stand_in)
}

/// The mechanisms of the list that we can use.
fn connector_mechanisms(fields: &Fields, findings: &mut Findings) -> Vec<String> {
    let line = fields.line_of("saslMechanisms");
    let listed = fields.words("saslMechanisms");
    let mut usable = Vec::new();
    for mechanism in &listed {
        if MECHANISMS.contains(&mechanism.as_str()) {
            usable.push(mechanism.clone());
        } else if FOREIGN_MECHANISMS.contains(&mechanism.as_str()) {
            findings.warning(
                line,
                format!("connector: SASL mechanism `{mechanism}` is not available and never chosen"),
            );
        } else {
            let hint = suggestion(mechanism, MECHANISMS);
            findings.error(
                line,
                format!("connector: unknown SASL mechanism {}{hint}", quoted(mechanism)),
            );
        }
    }
    if usable.is_empty()
        && listed
            .iter()
            .any(|mechanism| FOREIGN_MECHANISMS.contains(&mechanism.as_str()))
    {
        let message = format!(
            "connector: none of its `saslMechanisms` is available; there are {}",
            MECHANISMS.join(", ")
        );
        findings.error(line, message);
    }
    usable
}

/// Log settings of one module.
pub(super) fn log(fields: &Fields, findings: &mut Findings) -> Option<Log> {
    let module = fields.tag("module");
    if module.is_empty() {
        if !fields.is_given("module") {
            findings.error(fields.line, "log: required attribute `module` is missing");
        }
        return None;
    }
    let levels = levels::read(&fields.text("enable").unwrap_or_default()).unwrap_or_else(|wrong| {
        findings.error(fields.line_of("enable"), format!("log: `enable` {wrong}"));
        None
    });
    let output = fields.text("outputFile").map(|output| match output.as_str() {
        "stderr" => LogOutput::Stderr,
        "stdout" => LogOutput::Stdout,
        "syslog" => LogOutput::Syslog,
        _ => LogOutput::File(output),
    });
    let trace_device = fields.words("traceDevice");
    if !trace_device.is_empty() && module != "PROTOCOL" {
        findings.error(
            fields.line_of("traceDevice"),
            "log: `traceDevice` belongs in the section of module PROTOCOL, which has the frames",
        );
    }
    Some(Log {
        line: fields.line,
        module: module.to_owned(),
        levels,
        include_timestamp: fields.optional_boolean("includeTimestamp"),
        include_source: fields.optional_boolean("includeSource"),
        output,
        trace_device,
    })
}

/// A host name or address, without the brackets of an IPv6 address.
fn host(fields: &Fields, findings: &mut Findings) -> String {
    let text = fields.text("host").unwrap_or_default();
    let host = text
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
        .unwrap_or(&text);
    if let Some(wrong) = host_fault(host) {
        let message = format!("{}: `host` is {}, but {wrong}", fields.entity.name, quoted(host));
        findings.error(fields.line_of("host"), message);
    }
    host.to_owned()
}

fn host_fault(host: &str) -> Option<&'static str> {
    // `fe80::1%eth0` names the interface, too.
    let address = host.split_once('%').map_or(host, |(address, _)| address);
    if host.parse::<IpAddr>().is_ok() || address.parse::<Ipv6Addr>().is_ok() || host.contains('<') {
        None
    } else if host.contains("://") {
        Some("must be a host name or address, not a URL")
    } else if host.contains(['=', ';', '@']) {
        Some("must be a host name or address, not a connection string")
    } else if host.contains('/') {
        Some("must be a host name or address, not a URL")
    } else if host.contains(':') {
        Some("must be a host name or address; the port has an attribute of its own, `port`")
    } else if host
        .chars()
        .any(|character| character.is_whitespace() || character.is_control() || character == ',')
    {
        Some("a host name has no blanks or commas")
    } else {
        None
    }
}

fn family(fields: &Fields) -> Option<AddressFamily> {
    match fields.tag("socketAddressFamily") {
        "IPv4" => Some(AddressFamily::Ipv4),
        "IPv6" => Some(AddressFamily::Ipv6),
        _ => None,
    }
}

fn max_frame_size(fields: &Fields, findings: &mut Findings) -> u32 {
    let size = fields.integer("maxFrameSize").unwrap_or(MIN_MAX_FRAME_SIZE);
    if size < MIN_MAX_FRAME_SIZE {
        let message = format!(
            "{}: `maxFrameSize` is {size}; the least that AMQP allows, {MIN_MAX_FRAME_SIZE}, is used",
            fields.entity.name
        );
        findings.warning(fields.line_of("maxFrameSize"), message);
    }
    size.max(MIN_MAX_FRAME_SIZE)
}

fn max_sessions(fields: &Fields, findings: &mut Findings) -> u16 {
    let sessions = fields.integer("maxSessions").unwrap_or_default();
    if sessions > u32::from(MAX_SESSIONS) {
        let message = format!(
            "{}: `maxSessions` is {sessions}; the most there can be, {MAX_SESSIONS}, is used",
            fields.entity.name
        );
        findings.warning(fields.line_of("maxSessions"), message);
    }
    u16::try_from(sessions)
        .ok()
        .filter(|sessions| (1..=MAX_SESSIONS).contains(sessions))
        .unwrap_or(MAX_SESSIONS)
}

/// A time that 0 turns off.
fn seconds(fields: &Fields, name: &str) -> Option<Duration> {
    let seconds = fields.integer(name).filter(|seconds| *seconds > 0)?;
    Some(Duration::from_secs(u64::from(seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_ids_look_like_those_of_qdrouterd_and_differ() {
        let (first, second) = (generated_id(), generated_id());
        assert_eq!(first.len(), "Standalone_".len() + 15);
        assert!(first.starts_with("Standalone_"));
        assert_ne!(first, second);
    }

    #[test]
    fn hosts() {
        for host in [
            "hub.azure-devices.net",
            "10.0.0.1",
            "::1",
            "fe80::1%eth0",
            "<iotHub>.azure-devices.net",
            "",
        ] {
            assert_eq!(host_fault(host), None, "{host}");
        }
        for host in [
            "amqps://hub",
            "hub:5671",
            "a b",
            "hub/",
            "1:2",
            "HostName=hub",
            "me@hub",
            "0.0.0.0,",
        ] {
            assert!(host_fault(host).is_some(), "{host}");
        }
    }
}
