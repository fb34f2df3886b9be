//! How devices share a connection to a hub: what a file may say, and what is said of it.

use linkrouterd::config::{CbsMode, Connector, HubLoss};

use crate::{expect, expect_as, flawless, good};

/// A hub with a route of this direction for this prefix; the attributes of the connector begin in line 8.
fn hub(direction: &str, prefix: &str, attributes: &str) -> String {
    format!(
        "linkRoute {{\n prefix: {prefix}\n direction: {direction}\n connection: HUB\n}}\nconnector {{\n name: HUB\n{attributes}}}\n"
    )
}

/// A hub to which devices can put tokens.
fn with_tokens(attributes: &str) -> String {
    hub("in", "$cbs", attributes)
}

fn numbers(connector: &Connector) -> [u32; 4] {
    let sharing = &connector.sharing;
    [
        sharing.max_tokens,
        sharing.max_links,
        sharing.pool_size,
        sharing.devices_per_second,
    ]
}

#[test]
fn by_default_tokens_are_relayed_and_identities_checked() {
    let config = flawless(&with_tokens(""));
    let hub = &config.connectors[0];
    assert_eq!(hub.sharing.cbs, CbsMode::Relay);
    assert!(hub.sharing.check_identity && hub.sharing.about_tokens.is_empty());
    assert_eq!(numbers(hub), [995, 4999, 16, 100]);
    let config = flawless("listener {\n host: ::1\n}\n");
    assert_eq!(config.listeners[0].on_hub_lost, HubLoss::Detach);
}

#[test]
fn every_attribute_about_sharing_in_any_dialect() {
    let config = flawless(&with_tokens(
        " cbs: relay\n checkIdentity: yes\n maxTokens: 1_000_000\n maxLinks: 1\n poolSize: 1024\n devicesPerSecond: 0\n",
    ));
    let hub = &config.connectors[0];
    assert_eq!(numbers(hub), [1_000_000, 1, 1024, 0]);
    assert_eq!(
        hub.sharing.about_tokens,
        [("cbs", 8), ("checkIdentity", 9), ("maxTokens", 10)]
    );
    // The names and values of 0.6: hyphens, addresses and roles in sections of their own, an index for a word.
    let old = "connection-role {\n name: r\n role: on-demand\n}\naddr-port {\n name: a\n addr: 10.0.0.1\n}\n\
               connector {\n name: HUB\n addr-port: a\n connection-role: r\n cbs: 0\n check-identity: no\n max-tokens: 7\n \
               max-links: 8\n pool-size: 9\n devices-per-second: 10\n}\nlink-route-pattern {\n prefix: $cbs\n connector: HUB\n}\n\
               listener {\n addr: ::1\n on-hub-lost: close\n}\n";
    let config = good(old);
    let hub = &config.connectors[0];
    assert_eq!((hub.host.as_str(), hub.sharing.cbs), ("10.0.0.1", CbsMode::Relay));
    assert!(!hub.sharing.check_identity);
    assert_eq!(numbers(hub), [7, 8, 9, 10]);
    assert_eq!(config.listeners[0].on_hub_lost, HubLoss::Close);
    let json = "[[\"listener\", {\"host\": \"::1\", \"onHubLost\": \"close\"}],\n[\"connector\", {\"name\": \"HUB\", \"cbs\": \
                \"tunel\"}],\n[\"linkRoute\", {\"prefix\": \"$cbs\", \"direction\": \"in\", \"connection\": \"HUB\"}]]\n";
    expect_as(
        "t.json",
        json,
        &[(
            2,
            "error",
            "`cbs` is `tunel`, but must be one of `relay`, `tunnel`",
        )],
    );
}

#[test]
fn numbers_out_of_range_are_refused() {
    for line in [
        "maxTokens: 0",
        "maxTokens: 1000001",
        "maxLinks: 0",
        "poolSize: 0",
        "poolSize: 1025",
        "devicesPerSecond: -1",
        "checkIdentity: maybe",
    ] {
        let name = line.split(':').next().unwrap_or_default();
        expect(&with_tokens(&format!(" {line}\n")), &[(8, "error", name)]);
    }
    expect(
        "listener {\n host: ::1\n onHubLost: drop\n}\n",
        &[(3, "error", "must be one of `detach`, `close`")],
    );
    expect(
        "listener {\n host: ::1\n cbs: relay\n}\n",
        &[(3, "error", "unknown attribute `cbs`; it belongs to connector")],
    );
}

#[test]
fn the_danger_of_an_identity_that_nobody_checks_is_named() {
    expect(
        &with_tokens(" checkIdentity: no\n"),
        &[(
            8,
            "warning",
            "connector `HUB`: with `checkIdentity: no` every device can send and receive as any other",
        )],
    );
    expect(
        &with_tokens(" cbs: tunnel\n"),
        &[(8, "warning", "the tokens of devices go to the hub unseen")],
    );
    expect(
        &with_tokens(" maxTokens: 5\n cbs: tunnel\n checkIdentity: yes\n maxLinks: 5\n"),
        &[
            (8, "warning", "`maxTokens` has no effect with `cbs: tunnel`"),
            (9, "warning", "unseen"),
            (10, "warning", "`checkIdentity` has no effect with `cbs: tunnel`"),
        ],
    );
}

#[test]
fn attributes_about_tokens_have_no_effect_on_a_connector_with_an_identity_of_its_own() {
    let about_tokens = " cbs: relay\n checkIdentity: yes\n maxTokens: 5\n poolSize: 2\n";
    let login = " saslUsername: me\n saslPassword: env:HUB_KEY\n sslProfile: p\n";
    let profile = "sslProfile {\n name: p\n}\n";
    let without_effect = [
        (
            11,
            "warning",
            "connector `HUB`: `cbs` has no effect: with `saslUsername` the connector logs in for all devices",
        ),
        (12, "warning", "`checkIdentity` has no effect"),
        (13, "warning", "`maxTokens` has no effect"),
    ];
    let text = format!("{profile}{}", with_tokens(&format!("{about_tokens}{login}")));
    expect(&text, &without_effect);
    // A password that may not be used is no identity.
    let text = format!(
        "{profile}{}",
        with_tokens(&format!("{about_tokens}{login} saslMechanisms: ANONYMOUS\n"))
    );
    flawless(&text);

    let profile = "sslProfile {\n name: p\n certFile: c.pem\n privateKeyFile: k.pem\n}\n";
    let text = format!("{profile}{}", with_tokens(" checkIdentity: no\n sslProfile: p\n"));
    let of_certificate =
        "`checkIdentity` has no effect: with the certificate of its `sslProfile` the connector logs in";
    expect(&text, &[(13, "warning", of_certificate)]);
    let text = format!(
        "{profile}{}",
        with_tokens(" checkIdentity: no\n sslProfile: p\n saslMechanisms: ANONYMOUS\n")
    );
    expect(&text, &[(13, "warning", "every device can send and receive")]);
}

#[test]
fn attributes_about_tokens_have_no_effect_where_no_route_leads_tokens() {
    let nowhere = "`checkIdentity` has no effect: no linkRoute of `$cbs` with `direction: in` leads to it";
    for (direction, prefix) in [("in", "devices"), ("out", "$cbs"), ("in", "$cbs/x")] {
        expect(
            &hub(direction, prefix, " checkIdentity: no\n"),
            &[(8, "warning", nowhere)],
        );
    }
    let danger = "every device can send and receive as any other";
    for prefix in ["$cbs/", "hub.example/$cbs"] {
        expect(
            &hub("in", prefix, " checkIdentity: no\n"),
            &[(8, "warning", danger)],
        );
    }
    for (pattern, part) in [
        ("#", danger),
        ("*", danger),
        ("*/$cbs/#", danger),
        ("devices/#", nowhere),
        ("*/devices", nowhere),
    ] {
        let text =
            with_tokens(" checkIdentity: no\n").replace("prefix: $cbs", &format!("pattern: {pattern}"));
        expect(&text, &[(8, "warning", part)]);
    }
    let text = with_tokens(" checkIdentity: no\n").replace("connection: HUB", "containerId: hub-1");
    expect(&text, &[(8, "warning", danger)]);
}
