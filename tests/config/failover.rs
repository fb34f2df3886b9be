//! Where a hub is dialed, who stands in for it, and the name that it is known by.

use linkrouterd::config::FailoverUrl;

use crate::{expect, flawless, good};

fn connector(attributes: &str) -> String {
    format!(
        "sslProfile {{\n name: tls\n}}\nlinkRoute {{\n prefix: a\n direction: in\n connection: HUB\n}}\n\
         connector {{\n name: HUB\n host: 10.0.0.1\n port: amqps\n{attributes}}}\n"
    )
}

fn url(host: &str, port: Option<u16>, tls: Option<bool>) -> FailoverUrl {
    FailoverUrl {
        host: host.to_owned(),
        port,
        tls,
    }
}

#[test]
fn hosts_that_stand_in_and_the_name_of_all() {
    let text = connector(
        " sslProfile: tls\n serverName: hub.example\n \
         failoverUrls: amqps://b.example:5671, amqps://[::1], c.example:1\n",
    );
    let hub = &flawless(&text).connectors[0];
    assert_eq!(hub.server_name.as_deref(), Some("hub.example"));
    let expected = [
        url("b.example", Some(5671), Some(true)),
        url("::1", None, Some(true)),
        url("c.example", Some(1), None),
    ];
    assert_eq!(hub.failover, expected);
    let hub = &good(&connector(
        " sslProfile: tls\n server-name: \"\"\n failoverList: \"\"\n",
    ))
    .connectors[0];
    assert!(hub.server_name.is_none() && hub.failover.is_empty());
}

#[test]
fn wrong_ones_are_named_one_by_one() {
    let text = connector(
        " sslProfile: tls\n failoverUrls: http://b, amqps://, h:0, ok:1\n serverName: amqps://hub\n",
    );
    expect(
        &text,
        &[
            (14, "error", "`http://b`, but the scheme must be amqp or amqps"),
            (14, "error", "`amqps://`, but there is no host"),
            (14, "error", "`h:0`, but the port must be"),
            (
                15,
                "error",
                "`serverName` is `amqps://hub`, but must be a host name",
            ),
        ],
    );
    let many = ["h"; 9].join(",");
    let text = connector(&format!(" sslProfile: tls\n failoverUrls: {many}\n"));
    expect(&text, &[(14, "error", "more than 8")]);
}

#[test]
fn tls_is_a_matter_of_the_profile() {
    let text = connector(" failoverUrls: amqps://b\n");
    expect(
        &text,
        &[(12, "warning", "5671"), (13, "error", "no `sslProfile`")],
    );
    let text = connector(" sslProfile: tls\n failoverUrls: amqp://b\n");
    expect(&text, &[(14, "warning", "all the same")]);
}

#[test]
fn a_listener_announces_hosts_in_their_order() {
    let config = flawless("listener {\n host: ::1\n failoverUrls: amqp://a:1, b\n}\n");
    let expected = [url("a", Some(1), Some(false)), url("b", None, None)];
    assert_eq!(config.listeners[0].failover, expected);
    expect(
        "listener {\n host: ::1\n failoverUrls: a b\n}\n",
        &[(3, "error", "a host name has no blanks")],
    );
}
