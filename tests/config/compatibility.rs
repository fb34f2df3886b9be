//! What old releases wrote, what qdrouterd does and we do not, and what we refuse.

use linkrouterd::config::{Destination, Direction, ListenerRole};

use crate::{expect, flawless, good};

/// A connector that needs nothing, for routes to lead to.
const HUB: &str = "connector {\n name: HUB\n host: hub.example\n}\n";
const ROUTE: &str = "linkRoute {\n prefix: a\n direction: in\n connection: HUB\n}\n";

#[test]
fn a_route_pattern_of_0_6_is_two_routes() {
    let config = flawless(&format!(
        "{HUB}linkRoutePattern {{\n prefix: a\n connector: HUB\n}}\nlinkRoutePattern {{\n name: n\n prefix: b\n connector: HUB\n}}\n"
    ));
    let routes: Vec<_> = config
        .link_routes
        .iter()
        .map(|route| (route.name.as_str(), route.direction))
        .collect();
    assert_eq!(
        routes,
        [
            ("linkRoute/0", Direction::In),
            ("linkRoute/1", Direction::Out),
            ("n/in", Direction::In),
            ("n/out", Direction::Out),
        ]
    );
    expect(
        &format!("{HUB}{ROUTE}linkRoutePattern {{\n prefix: b\n}}\n"),
        &[(10, "error", "`connector` (a connector's name) is required")],
    );
}

#[test]
fn old_names_are_read_and_mentioned_once_each() {
    let config_text = format!(
        "{HUB}linkRoute {{\n prefix: a\n dir: in\n connection: HUB\n}}\nlinkRoute {{\n prefix: a\n dir: out\n connection: HUB\n}}\n\
         policy {{\n maximumConnections: 0\n}}\nlog {{\n module: DEFAULT\n output: stdout\n timestamp: no\n}}\n"
    );
    expect(
        &config_text,
        &[
            (7, "warning", "linkRoute: `dir` is an old name of `direction`"),
            (
                16,
                "warning",
                "policy: `maximumConnections` is an old name of `maxConnections`",
            ),
            (20, "warning", "log: `output` is an old name of `outputFile`"),
            (
                21,
                "warning",
                "log: `timestamp` is an old name of `includeTimestamp`",
            ),
        ],
    );
    assert_eq!(good(&config_text).policy.max_connections, 65535);
}

#[test]
fn an_attribute_may_be_given_once() {
    expect(
        "router {\n id: A\n id: B\n}\n",
        &[(3, "warning", "replaces that of line 2")],
    );
    assert_eq!(good("router {\n id: A\n id: B\n}\n").router.id, "B");
    expect(
        &format!("{HUB}linkRoute {{\n prefix: a\n dir: in\n direction: out\n connection: HUB\n}}\n"),
        &[
            (7, "warning", "old name"),
            (
                8,
                "error",
                "`direction` and `dir` (line 7) are the same attribute",
            ),
        ],
    );
    // 0.6 to 0.8 took whichever of the two is not the default.
    for lines in [
        "addr: 127.0.0.1\n host: 10.0.0.1",
        "host: 10.0.0.1\n addr: 127.0.0.1",
    ] {
        assert_eq!(
            good(&format!("listener {{\n {lines}\n}}\n")).listeners[0].host,
            "10.0.0.1"
        );
    }
}

#[test]
fn a_container_of_0_6_is_taken_into_the_router() {
    let id = |text: &str| good(text).router.id;
    assert_eq!(id("container {\n containerName: C\n workerThreads: 4\n}\n"), "C");
    assert_eq!(
        id("container {\n containerName: C\n}\nrouter {\n routerId: R\n}\n"),
        "C"
    );
    assert_eq!(
        id("container {\n containerName: C\n}\nrouter {\n id: R\n}\n"),
        "R"
    );
    assert_eq!(
        id("container {\n workerThreads: 4\n}\nrouter {\n routerId: R\n}\n"),
        "R"
    );
}

#[test]
fn annotations_of_0_6_are_copied_and_tls_attributes_may_stand_in_the_connector() {
    let config = good(&format!(
        "addrPort {{\n name: here\n addr: 10.0.0.1\n port: 25672\n}}\nlistener {{\n addrPort: here\n}}\nconnector {{\n name: HUB\n \
         addr: h\n certDb: /etc/hostname\n password: pass:secret\n}}\n{ROUTE}"
    ));
    assert_eq!(
        (config.listeners[0].host.as_str(), config.listeners[0].port),
        ("10.0.0.1", 25672)
    );
    assert_eq!(config.connectors[0].ssl_profile.as_deref(), Some("connector/HUB"));
    let profile = config
        .ssl_profile("connector/HUB")
        .expect("the connector's own profile");
    assert_eq!(profile.ca_cert_file.as_deref(), Some("/etc/hostname"));
    assert_eq!(
        profile.password.as_ref().map(|secret| secret.expose()),
        Some("secret")
    );
    expect(
        "listener {\n host: ::1\n addrPort: there\n}\n",
        &[(3, "error", "there is no addrPort `there`")],
    );
    expect(
        "connectionRole {\n name: r\n role: edge\n}\nlistener {\n host: ::1\n connectionRole: r\n}\n",
        &[(3, "error", "`role: edge` is refused")],
    );
}

#[test]
fn what_would_weaken_security_or_change_the_meaning_is_refused() {
    for (line, part) in [
        ("saslPlugin: a", "no remote authentication service"),
        ("role: inter-router", "joins no network of routers"),
        ("role: edge", "joins no network of routers"),
    ] {
        expect(
            &format!("listener {{\n host: ::1\n {line}\n}}\n"),
            &[(3, "error", part)],
        );
    }
}

#[test]
fn what_is_known_but_not_run_is_said_once() {
    for (section, part) in [
        (
            "address {\n prefix: closest\n distribution: closest\n}\n",
            "routes links, not messages",
        ),
        (
            "autoLink {\n addr: q\n dir: in\n connection: X\n}\n",
            "no link is opened",
        ),
        (
            "fixed-address {\n prefix: a\n fanout: single\n}\n",
            "routes links, not messages",
        ),
        ("waypoint {\n address: q\n connector: X\n}\n", "no link is opened"),
        ("console {\n listener: l\n args: --x\n}\n", "no web console"),
        (
            "policyRuleset {\n applicationName: a\n}\n",
            "write them as vhost sections",
        ),
        (
            "authServicePlugin {\n name: a\n host: h\n}\n",
            "no remote authentication service",
        ),
        ("exchange {\n anything: goes\n}\n", "routes links, not messages"),
        ("tcpListener {\n address: a\n siteId: s\n}\n", "no TCP traffic"),
        (
            "listener {\n port: 8080\n http: yes\n httpRootDir: /srv\n sslProfile: p\n}\n",
            "not opened",
        ),
        (
            "listener {\n host: ::1\n openProperties: {\n  \"a\": 1\n }\n}\n",
            "not sent in the open",
        ),
        (
            "router {\n defaultDistribution: multicast\n allowUnsettledMulticast: yes\n}\n",
            "routes links, not messages",
        ),
    ] {
        let report = crate::read(section);
        assert_eq!(report.warnings().count(), 1, "{}", crate::shown(&report));
        assert!(crate::shown(&report).contains(part), "{}", crate::shown(&report));
        assert!(report.config.is_some_and(|config| config.connectors.is_empty()));
    }
    assert!(
        good("listener {\n port: 8080\n http: yes\n}\n")
            .listeners
            .is_empty()
    );
    expect(
        "address {\n prefx: a\n}\n",
        &[(1, "warning", "not run"), (2, "error", "did you mean `prefix`?")],
    );
    expect("router {\n identity: x\n}\n", &[(2, "warning", "cannot be set")]);
}

#[test]
fn a_listener_may_be_for_brokers_and_routes_lead_to_it() {
    for role in ["route-container", "on-demand"] {
        let config = flawless(&format!(
            "listener {{\n name: BROKERS\n host: ::1\n role: {role}\n}}\n\
             linkRoute {{\n prefix: a\n direction: in\n connection: BROKERS/\n}}\n"
        ));
        assert_eq!(config.listeners[0].role, ListenerRole::RouteContainer);
        let expected = Destination::Connection("BROKERS".to_owned());
        assert_eq!(config.link_routes[0].destination, expected);
    }
    let listener = |role: &str| format!("listener {{\n name: BROKERS\n host: ::1\n role: {role}\n}}\n");
    let route = |to: &str| format!("linkRoute {{\n prefix: a\n direction: in\n {to}\n}}\n");
    expect(
        &format!("{}{}", listener("route-container"), route("connection: BROKER")),
        &[
            (1, "warning", "listener `BROKERS`: no linkRoute leads to it"),
            (9, "error", "did you mean `BROKERS`?"),
        ],
    );
    expect(
        &format!("{}{}", listener("normal"), route("connection: BROKERS")),
        &[(9, "error", "no connector or route-container listener `BROKERS`")],
    );
    flawless(&format!(
        "{}{}",
        listener("route-container"),
        route("containerId: broker")
    ));
}

#[test]
fn a_listener_may_have_tenants() {
    let config = flawless("listener {\n host: ::1\n multiTenant: yes\n policyVhost: vh1\n}\n");
    let listener = &config.listeners[0];
    assert_eq!(
        (listener.multi_tenant, listener.policy_vhost.as_deref()),
        (true, Some("vh1"))
    );
    assert!(!good("listener {\n host: ::1\n policyVhost: \"\"\n}\n").listeners[0].multi_tenant);
}
