//! What the sections mean: defaults, old names, references, refusals.

use std::time::Duration;

use linkrouterd::config::{
    AddressFamily, ConnectorRole, Destination, Direction, ErrorConditions, LevelSet, LogLevel, LogOutput,
    Matcher, TlsVersion,
};

use crate::{expect, flawless, good};

/// A connector that needs nothing, for routes to lead to.
const HUB: &str = "connector {\n name: HUB\n host: hub.example\n}\n";
const ROUTE: &str = "linkRoute {\n prefix: a\n direction: in\n connection: HUB\n}\n";

#[test]
fn defaults_of_a_listener() {
    let config = flawless("listener {\n host: 0.0.0.0\n}\n");
    let listener = &config.listeners[0];
    assert_eq!(
        (listener.name.as_str(), listener.host.as_str()),
        ("listener/0.0.0.0:5672", "0.0.0.0")
    );
    assert_eq!((listener.port, listener.family, listener.line), (5672, None, 1));
    assert_eq!(
        (
            listener.max_frame_size,
            listener.max_sessions,
            listener.max_session_frames
        ),
        (16384, 1024, None)
    );
    assert_eq!(listener.idle_timeout, Some(Duration::from_secs(16)));
    assert_eq!(listener.initial_handshake_timeout, Some(Duration::from_secs(10)));
    assert_eq!(listener.sasl_mechanisms, ["ANONYMOUS", "MSSBCBS"]);
}

#[test]
fn a_listener_without_host_is_for_this_machine_only() {
    expect(
        "listener {\n port: 0\n}\n",
        &[(1, "warning", "write `host: 0.0.0.0`")],
    );
    assert_eq!(good("listener {\n port: 0\n}\n").listeners[0].host, "127.0.0.1");
    assert_eq!(
        flawless("listener {\n host: \"\"\n}\n").listeners[0].host,
        "0.0.0.0"
    );
    assert_eq!(
        flawless(
            "listener {\n host: \"\"\n protocolFamily: IPv6\n}\n"
                .replace("protocolFamily", "socketAddressFamily")
                .as_str()
        )
        .listeners[0]
            .host,
        "::"
    );
}

#[test]
fn every_attribute_of_a_listener() {
    let config = flawless(
        "listener {\n name: devices\n host: [::1]\n port: amqps\n socketAddressFamily: IPv6\n role: 0\n cost: 3\n \
         saslMechanisms: ANONYMOUS\n authenticatePeer: no\n requireSsl: FALSE\n requireEncryption: off\n \
         maxFrameSize: 4096\n maxSessions: 7\n maxSessionFrames: 100\n idleTimeoutSeconds: 0\n \
         initialHandshakeTimeoutSeconds: 3\n stripAnnotations: no\n linkCapacity: 10\n multiTenant: no\n http: no\n \
         messageLoggingComponents: none\n}\n",
    );
    let listener = &config.listeners[0];
    assert_eq!(
        (listener.name.as_str(), listener.host.as_str(), listener.port),
        ("devices", "::1", 5671)
    );
    assert_eq!(listener.family, Some(AddressFamily::Ipv6));
    assert_eq!(
        (
            listener.max_frame_size,
            listener.max_sessions,
            listener.max_session_frames
        ),
        (4096, 7, Some(100))
    );
    assert_eq!(
        (listener.idle_timeout, listener.initial_handshake_timeout),
        (None, Some(Duration::from_secs(3)))
    );
    assert_eq!(listener.sasl_mechanisms, ["ANONYMOUS"]);
}

#[test]
fn limits_are_kept_within_what_amqp_allows() {
    expect(
        "listener {\n host: ::1\n maxFrameSize: 100\n maxSessions: 40000\n}\n",
        &[(3, "warning", "512"), (4, "warning", "32768")],
    );
    let config =
        flawless("listener {\n host: ::1\n maxFrameSize: 512\n maxSessions: 0\n maxSessionFrames: 0\n}\n");
    let listener = &config.listeners[0];
    assert_eq!(
        (
            listener.max_frame_size,
            listener.max_sessions,
            listener.max_session_frames
        ),
        (512, 32768, None)
    );
}

#[test]
fn every_attribute_of_a_connector() {
    let config = flawless(
        "sslProfile {\n name: azure\n protocols: TLSv1.3\n}\nconnector {\n name: HUB\n \
         host: hub.azure-devices.net\n port: 5671\n role: on-demand\n sslProfile: azure\n saslMechanisms: PLAIN ANONYMOUS\n \
         saslUsername: me\n saslPassword: env:HUB_KEY\n idleTimeoutSeconds: 120\n verifyHostname: yes\n \
         allowRedirect: no\n}\nlinkRoute {\n prefix: a\n direction: in\n connection: HUB/\n}\n",
    );
    let connector = &config.connectors[0];
    assert_eq!(connector.role, ConnectorRole::OnDemand);
    assert_eq!(
        (connector.host.as_str(), connector.port),
        ("hub.azure-devices.net", 5671)
    );
    assert_eq!(connector.sasl_mechanisms, ["PLAIN", "ANONYMOUS"]);
    assert_eq!(
        connector.sasl_password.as_ref().map(|secret| secret.expose()),
        Some("key-of-the-hub")
    );
    assert_eq!(
        (connector.idle_timeout, connector.verify_hostname),
        (Some(Duration::from_secs(120)), true)
    );
    let profile = config.ssl_profile("azure").expect("the profile");
    assert_eq!(
        (profile.protocols.as_slice(), profile.ca_cert_file.as_ref()),
        (&[TlsVersion::Tls13][..], None)
    );
    assert_eq!(
        config.link_routes[0].destination,
        Destination::Connection("HUB".to_owned())
    );
}

#[test]
fn connectors_that_cannot_work_are_refused_and_doubtful_ones_named() {
    let connector =
        |lines: &str| format!("sslProfile {{\n name: p\n}}\nconnector {{\n name: HUB\n{lines}\n}}\n{ROUTE}");
    let cases = [
        ("host: amqps://h", "error", "not a URL"),
        ("host: h:5671", "error", "`port`"),
        ("host: \"\"", "error", "`host` is empty"),
        ("port: 0", "error", "`port` is 0"),
        ("port: 5671", "warning", "TLS is used only with `sslProfile`"),
        (
            "sslProfile: q",
            "error",
            "there is no sslProfile `q`; did you mean `p`?",
        ),
        ("saslMechanisms: ANONYMUS", "error", "did you mean `ANONYMOUS`?"),
        (
            "saslMechanisms: ANONYMOUS DIGEST-MD5",
            "warning",
            "`DIGEST-MD5` is not available",
        ),
        ("role: edge", "error", "joins no network of routers"),
        ("saslUsername: me", "warning", "only together"),
    ];
    for (line, severity, part) in cases {
        expect(
            &connector(line),
            &[(if line.contains("Username") { 4 } else { 6 }, severity, part)],
        );
    }
    expect(
        &connector(" saslMechanisms: PLAIN"),
        &[(4, "error", "no mechanism in `saslMechanisms` can be used")],
    );
    expect(
        &connector(" saslMechanisms: EXTERNAL"),
        &[(4, "error", "no mechanism in `saslMechanisms` can be used")],
    );
    expect(
        &connector(" sslProfile: p\n verifyHostname: no"),
        &[(7, "warning", "any server with a certificate")],
    );
    expect(
        &connector(" saslUsername: me\n saslPassword: env:HUB_KEY"),
        &[(4, "warning", "clear text")],
    );
    expect(HUB, &[(1, "warning", "no linkRoute leads to it")]);
}

#[test]
fn tls_profiles_are_checked() {
    expect(
        "sslProfile {\n caCertFile: /nonexistent/ca.pem\n}\n",
        &[(1, "error", "required attribute `name` is missing")],
    );
    expect(
        "sslProfile {\n name: p\n protocols: TLSv1 TLSv1.2\n ciphers: HIGH\n uidFormat: cn\n}\n",
        &[
            (3, "warning", "`TLSv1` is not safe"),
            (4, "warning", "`ciphers` has no effect"),
        ],
    );
    expect(
        "sslProfile {\n name: p\n protocols: TLSv1.1\n}\n",
        &[
            (3, "warning", "`TLSv1.1` is not safe"),
            (3, "error", "none of its `protocols` is available"),
        ],
    );
    expect(
        "sslProfile {\n name: p\n protocols: TLS1.3\n}\n",
        &[(3, "error", "did you mean `TLSv1.3`?")],
    );
    expect(
        "sslProfile {\n name: p\n cert-db: /nonexistent/Baltimore.pem\n}\n",
        &[
            (3, "warning", "`certDb` is an old name of `caCertFile`"),
            (
                3,
                "warning",
                "DigiCert Global Root G2 and Microsoft RSA Root Certificate Authority 2017",
            ),
        ],
    );
    let certificate = tempfile::NamedTempFile::new().expect("a file");
    let text = format!(
        "sslProfile {{\n name: p\n certFile: {}\n}}\n",
        certificate.path().display()
    );
    expect(&text, &[(3, "error", "`certFile` needs `privateKeyFile`")]);
}

#[test]
fn routes_by_prefix_and_pattern_to_connections_and_containers() {
    let config = flawless(&format!(
        "{HUB}linkRoute {{\n prefix: $cbs/\n direction: in\n connection: HUB\n addExternalPrefix: x/\n}}\nlinkRoute {{\n \
         name: mine\n pattern: a/*/#\n direction: out\n containerId: hub-1\n delExternalPrefix: y/\n distribution: linkBalanced\n}}\n"
    ));
    let [first, second] = config.link_routes.as_slice() else {
        panic!("two routes")
    };
    assert_eq!((first.name.as_str(), first.line), ("linkRoute/0", 5));
    assert_eq!(
        (&first.matcher, first.direction),
        (&Matcher::Prefix("$cbs/".to_owned()), Direction::In)
    );
    assert_eq!(
        (
            first.add_external_prefix.as_deref(),
            first.del_external_prefix.as_deref()
        ),
        (Some("x/"), None)
    );
    assert_eq!((second.name.as_str(), second.direction), ("mine", Direction::Out));
    assert_eq!(second.matcher, Matcher::Pattern("a/*/#".to_owned()));
    assert_eq!(second.destination, Destination::Container("hub-1".to_owned()));
    assert_eq!(second.del_external_prefix.as_deref(), Some("y/"));
}

#[test]
fn routes_that_lead_nowhere_are_refused() {
    let route = |lines: &str| format!("{HUB}{ROUTE}linkRoute {{\n{lines}\n}}\n");
    let to = "direction: in\nconnection: HUB";
    let cases: [(String, u32, &str); 12] = [
        (
            format!("prefix: b\npattern: b\n{to}"),
            11,
            "`prefix` and `pattern` (line 12) exclude each other",
        ),
        (to.to_owned(), 10, "`prefix` or `pattern` is required"),
        (format!("prefix: ./\n{to}"), 11, "holds no token"),
        (format!("pattern: /\n{to}"), 11, "holds no token"),
        (
            "prefix: b\ndirection: in".to_owned(),
            10,
            "`connection` (a connector's name) or `containerId` is required",
        ),
        (
            format!("prefix: b\n{to}\ncontainerId: x"),
            13,
            "`connection` and `containerId` (line 14) exclude",
        ),
        (
            "prefix: b\nconnection: HUB".to_owned(),
            10,
            "required attribute `direction` is missing",
        ),
        (
            "prefix: b\ndirection: both\nconnection: HUB".to_owned(),
            12,
            "must be one of `in`, `out`",
        ),
        (
            "prefix: b\ndirection: In\nconnection: HUB".to_owned(),
            12,
            "did you mean `in`?",
        ),
        (
            "prefix: b\ndirection: in\nconnection: hub".to_owned(),
            13,
            "there is no connector or route-container listener `hub`; did you mean `HUB`?",
        ),
        (
            format!("prefix: b\ndistribution: closest\n{to}"),
            12,
            "must be one of `linkBalanced`",
        ),
        (
            format!("prefix: b\nport: 1\n{to}"),
            12,
            "unknown attribute `port`; it belongs to listener",
        ),
    ];
    for (lines, line, part) in &cases {
        expect(&route(lines), &[(*line, "error", part)]);
    }
}

#[test]
fn routes_of_doubtful_use_are_named() {
    let route =
        |lines: &str| format!("{HUB}{ROUTE}linkRoute {{\n direction: in\n connection: HUB\n{lines}\n}}\n");
    expect(
        &route(" prefix: a/"),
        &[(10, "warning", "says the same as the route of line 5")],
    );
    expect(
        &route(" prefix: amqps://h/a"),
        &[(13, "warning", "it never matches")],
    );
    expect(
        &route(" pattern: a/b*"),
        &[(13, "warning", "the token `b*` is taken literally")],
    );
    expect(
        "linkRoute {\n prefix: a\n direction: in\n containerId: x\n}\n",
        &[(4, "warning", "no connector")],
    );
}

#[test]
fn sections_that_exclude_each_other() {
    expect(
        "router {\n id: A\n}\nrouter {\n id: B\n}\n",
        &[(4, "error", "the first is in line 1")],
    );
    expect(
        &format!("{HUB}{HUB}{ROUTE}"),
        &[(5, "error", "there is already a connector `HUB`, in line 1")],
    );
    expect(
        "listener {\n host: ::1\n}\nlistener {\n host: ::1\n port: 5672\n}\n",
        &[(4, "error", "there is already a listener `listener/::1:5672`")],
    );
    expect(
        "listener {\n host: ::1\n}\nlistener {\n name: n\n host: ::1\n}\n",
        &[(
            4,
            "error",
            "::1:5672 is already listened on by the listener of line 1",
        )],
    );
    expect(
        "log {\n module: AGENT\n}\nlog {\n module: AGENT\n}\n",
        &[(4, "error", "already a log module `AGENT`")],
    );
}

#[test]
fn the_router_and_its_id() {
    let config = flawless(
        "router {\n id: Router.A\n mode: standalone\n errorConditions: qd\n timestampsInUTC: yes\n timestampFormat: %H:%M\n}\n",
    );
    assert_eq!(
        (config.router.id.as_str(), config.router.error_conditions),
        ("Router.A", ErrorConditions::Qd)
    );
    assert!(config.router.timestamps_in_utc && config.router.allow_resumable_link_route);
    assert_eq!(config.router.timestamp_format.as_deref(), Some("%H:%M"));
    expect(
        "router {\n id: a b\n}\n",
        &[(2, "error", "blank or control character")],
    );
    expect(
        &format!("router {{\n id: {}\n}}\n", "x".repeat(128)),
        &[(2, "error", "more than 127")],
    );
    expect(
        "router {\n mode: interior\n}\n",
        &[(2, "warning", "it runs standalone")],
    );
}

#[test]
fn log_sections() {
    let config = flawless(
        "log {\n module: DEFAULT\n enable: trace+\n includeTimestamp: no\n includeSource: yes\n outputFile: stdout\n}\n\
         log {\n module: PROTOCOL\n enable: none\n outputFile: /var/log/frames\n}\nlog {\n module: SERVER\n}\n",
    );
    let [default, protocol, server] = config.logs.as_slice() else {
        panic!("three")
    };
    assert_eq!(
        (default.module.as_str(), default.levels),
        ("DEFAULT", Some(LevelSet::at_least(LogLevel::Trace)))
    );
    assert_eq!(
        (default.include_timestamp, default.include_source),
        (Some(false), Some(true))
    );
    assert_eq!(default.output, Some(LogOutput::Stdout));
    assert_eq!(protocol.levels, Some(LevelSet::NONE));
    assert_eq!(
        protocol.output,
        Some(LogOutput::File("/var/log/frames".to_owned()))
    );
    assert_eq!(
        (server.levels, &server.output, server.include_timestamp),
        (None, &None, None)
    );

    expect(
        "log {\n enable: info+\n}\n",
        &[(1, "error", "required attribute `module` is missing")],
    );
    expect(
        "log {\n module: SERVR\n enable: infos\n}\n",
        &[(2, "error", "did you mean `SERVER`?")],
    );
    expect(
        "log {\n module: SERVER\n enable: wraning+\n}\n",
        &[(3, "error", "did you mean `warning`?")],
    );
}

#[test]
fn devices_are_traced_where_the_frames_are() {
    let log = |module: &str| format!("log {{\n module: {module}\n traceDevice: 10.0.0.7, Netduino-*\n}}\n");
    expect(&log("PROTOCOL"), &[]);
    expect(
        &log("SERVER"),
        &[(3, "error", "belongs in the section of module PROTOCOL")],
    );
}
