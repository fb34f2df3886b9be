//! What a listener demands of those who connect: which files can be run, and what is said of the others.

use linkrouterd::config::{ClientCertificates, Listener};

use crate::{expect, flawless, good};

const PASSWORDS: &str = "router {\n saslPasswordFile: /etc/linkrouterd/users\n}\n";
const TLS: &str =
    "sslProfile {\n name: p\n certFile: c.pem\n privateKeyFile: k.pem\n caCertFile: ca.pem\n}\n";
const BARE_TLS: &str = "sslProfile {\n name: p\n certFile: c.pem\n privateKeyFile: k.pem\n}\n";

fn listener(lines: &str) -> String {
    format!("listener {{\n host: ::1\n {lines}\n}}\n")
}

fn only(text: &str) -> Listener {
    flawless(text).listeners.remove(0)
}

fn asked() -> ClientCertificates {
    ClientCertificates::Asked {
        ca_file: "ca.pem".to_owned(),
    }
}

fn demanded() -> ClientCertificates {
    ClientCertificates::Demanded {
        ca_file: "ca.pem".to_owned(),
    }
}

#[test]
fn a_listener_is_open_by_default_as_in_qdrouterd() {
    let found = only(&listener("maxSessions: 1"));
    assert_eq!(found.sasl_mechanisms, ["ANONYMOUS", "MSSBCBS"]);
    assert!(!found.authenticate_peer && !found.require_encryption && found.ssl_profile.is_none());
    assert_eq!(found.client_certificates, ClientCertificates::Ignored);
    let found = only(&format!("{TLS}{}", listener("sslProfile: p")));
    assert_eq!(found.ssl_profile.as_deref(), Some("p"));
    assert!(!found.require_encryption, "both on one port");
    assert_eq!(found.sasl_mechanisms, ["ANONYMOUS", "MSSBCBS"]);
    assert_eq!(
        found.client_certificates,
        ClientCertificates::Ignored,
        "asked for only where EXTERNAL is offered"
    );
}

#[test]
fn authentication_offers_what_authenticates() {
    let secure = "sslProfile: p\n requireSsl: yes\n authenticatePeer: yes";
    let found = only(&format!("{PASSWORDS}{TLS}{}", listener(secure)));
    assert_eq!(found.sasl_mechanisms, ["PLAIN", "EXTERNAL"]);
    assert!(found.authenticate_peer && found.require_encryption);
    assert_eq!(found.client_certificates, asked());

    let found = only(&format!("{TLS}{}", listener(secure)));
    assert_eq!(found.sasl_mechanisms, ["EXTERNAL"]);
    assert_eq!(found.client_certificates, demanded());

    let found = only(&format!("{PASSWORDS}{BARE_TLS}{}", listener(secure)));
    assert_eq!(found.sasl_mechanisms, ["PLAIN"]);
    assert_eq!(found.client_certificates, ClientCertificates::Ignored);

    let trusted = format!("{secure}\n trustedCertsFile: devices.pem");
    let found = only(&format!("{BARE_TLS}{}", listener(&trusted)));
    let ca_file = "devices.pem".to_owned();
    assert_eq!(
        found.client_certificates,
        ClientCertificates::Demanded { ca_file }
    );
}

#[test]
fn external_without_authentication_demands_a_certificate_as_in_qdrouterd() {
    let found = only(&format!(
        "{TLS}{}",
        listener("sslProfile: p\n requireSsl: yes\n saslMechanisms: EXTERNAL ANONYMOUS")
    ));
    assert_eq!(found.sasl_mechanisms, ["EXTERNAL", "ANONYMOUS"]);
    assert_eq!(found.client_certificates, demanded());
}

#[test]
fn passwords_in_clear_text_are_warned_of() {
    let text = format!("{PASSWORDS}{}", listener("saslMechanisms: PLAIN ANONYMOUS"));
    expect(&text, &[(4, "warning", "in clear text")]);
    assert_eq!(good(&text).listeners[0].sasl_mechanisms, ["PLAIN", "ANONYMOUS"]);
    expect(
        &format!("{PASSWORDS}{TLS}{}", listener("sslProfile: p")),
        &[(10, "warning", "in clear text")],
    );
}

#[test]
fn what_nobody_could_connect_to_is_an_error() {
    for (lines, part) in [
        ("authenticatePeer: yes", "nobody could connect"),
        ("requireSsl: yes", "without `sslProfile` nobody could connect"),
        (
            "requireEncryption: on",
            "without `sslProfile` nobody could connect",
        ),
        ("sslProfile: q", "there is no sslProfile `q`"),
        ("saslMechanisms: PLAN", "did you mean `PLAIN`?"),
    ] {
        let text = listener(lines);
        let line = if lines.starts_with("require") { 1 } else { 3 };
        expect(&text, &[(line, "error", part)]);
    }
    expect(
        &format!("sslProfile {{\n name: p\n}}\n{}", listener("sslProfile: p")),
        &[(6, "error", "needs `certFile` and `privateKeyFile`")],
    );
    expect(
        &listener("authenticatePeer: yes\n saslMechanisms: ANONYMOUS"),
        &[
            (3, "error", "PLAIN: it needs `saslPasswordFile`"),
            (
                4,
                "warning",
                "`ANONYMOUS` is never offered: it authenticates nobody",
            ),
        ],
    );
}

#[test]
fn mechanisms_that_cannot_work_are_named() {
    expect(
        &listener("saslMechanisms: ANONYMOUS PLAIN EXTERNAL SCRAM-SHA-256"),
        &[
            (
                3,
                "warning",
                "`PLAIN` is never offered: it needs `saslPasswordFile`",
            ),
            (
                3,
                "warning",
                "`EXTERNAL` is never offered: it needs an `sslProfile`",
            ),
            (3, "warning", "`SCRAM-SHA-256` is not available"),
        ],
    );
    expect(
        &listener("saslMechanisms: PLAIN"),
        &[
            (3, "warning", "linkrouterd --hash-password USER"),
            (3, "error", "none of its `saslMechanisms` can be offered"),
        ],
    );
    // qdrouterd would turn away whoever has no certificate.
    expect(
        &format!(
            "{BARE_TLS}{}",
            listener("sslProfile: p\n saslMechanisms: EXTERNAL ANONYMOUS")
        ),
        &[(9, "error", "`EXTERNAL` cannot be offered")],
    );
    expect(
        &listener("trustedCertsFile: x"),
        &[(3, "warning", "`trustedCertsFile` has no effect")],
    );
}

#[test]
fn the_names_of_0_6_to_0_8_mean_the_same() {
    let text = format!(
        "{PASSWORDS}{TLS}{}",
        listener("sslProfile: p\n allowNoSasl: no\n allowUnsecured: no")
    );
    expect(
        &text,
        &[
            (
                13,
                "warning",
                "`allowNoSasl` is the old inverse of `authenticatePeer`",
            ),
            (
                14,
                "warning",
                "`allowUnsecured` is the old inverse of `requireEncryption`",
            ),
        ],
    );
    let found = good(&text).listeners.remove(0);
    assert!(found.authenticate_peer && found.require_encryption);
    let text = format!("{PASSWORDS}{}", listener("requirePeerAuth: yes"));
    assert!(good(&text).listeners[0].authenticate_peer);
    // TLS attributes may stand in the listener.
    let config = good("listener {\n host: ::1\n certFile: c.pem\n keyFile: k.pem\n}\n");
    let profile = config.listeners[0].ssl_profile.as_deref().expect("TLS");
    let profile = config.ssl_profile(profile).expect("its own profile");
    assert_eq!(profile.private_key_file.as_deref(), Some("k.pem"));
}

#[test]
fn cyrus_files_get_a_pointer_and_a_remote_service_is_refused() {
    for (section, line) in [
        ("router {\n saslConfigDir: /etc/sasl2\n}\n", 2),
        ("router {\n saslConfigPath: /etc/sasl2\n}\n", 2),
        (
            "container {\n containerName: c\n saslConfigPath: /etc/sasl2\n}\n",
            3,
        ),
    ] {
        let report = crate::read(section);
        let pointer = report
            .findings
            .iter()
            .find(|finding| finding.line == line && finding.message.contains("--hash-password"));
        assert!(pointer.is_some(), "{}", crate::shown(&report));
        assert!(report.config.is_some());
    }
    expect(
        &listener("saslPlugin: a"),
        &[(3, "error", "no remote authentication service is asked")],
    );
}

#[test]
fn letters_of_uid_format_are_checked() {
    let profile = |format: &str| TLS.replace("}\n", &format!(" uidFormat: {format}\n}}\n"));
    let config = flawless(&format!("{}{}", profile("csloun125"), listener("sslProfile: p")));
    assert_eq!(config.ssl_profiles[0].uid_format.as_deref(), Some("csloun125"));
    expect(
        &format!("{}{}", profile("nx"), listener("sslProfile: p")),
        &[(6, "warning", "unknown letter `x`")],
    );
}

/// IoT Hub judges the tokens that its devices log in with, so nobody's password need be kept here.
#[test]
fn plain_needs_no_passwords_where_a_hub_judges_tokens() {
    const HUB: &str = "linkRoute {\n prefix: $cbs\n direction: in\n connection: HUB\n}\nconnector {\n name: HUB\n MORE\n}\n";
    let mechanisms = |connector: &str, lines: &str| {
        let config = good(&format!("{}{}", HUB.replace("MORE", connector), listener(lines)));
        config.listeners[0].sasl_mechanisms.clone()
    };
    assert_eq!(mechanisms("", "saslMechanisms: PLAIN"), ["PLAIN"]);
    assert_eq!(mechanisms("", "authenticatePeer: yes"), ["PLAIN"]);
    // Devices that need not log in would rather be anonymous.
    assert_eq!(mechanisms("", ""), ["ANONYMOUS", "MSSBCBS"]);
    const NOBODY: &str = "or a connector that puts the tokens of devices";
    let strict = listener("authenticatePeer: yes");
    expect(
        &format!("{}{strict}", HUB.replace("MORE", "cbs: tunnel")),
        &[
            (8, "warning", "of several devices at one time"),
            (12, "error", NOBODY),
        ],
    );
    let with_identity = HUB.replace(
        "MORE",
        "sslProfile: p\n saslUsername: u\n saslPassword: env:HUB_KEY",
    );
    let text = format!("sslProfile {{\n name: p\n}}\n{with_identity}{strict}");
    expect(&text, &[(17, "error", NOBODY)]);
    let unused = (9, "warning", "no linkRoute leads to it");
    for (lines, also) in [
        ("multiTenant: yes", None),
        ("role: route-container", Some(unused)),
    ] {
        let text = format!(
            "{}{}",
            HUB.replace(" MORE\n", ""),
            listener(&format!("authenticatePeer: yes\n {lines}"))
        );
        let error = (11, "error", NOBODY);
        expect(&text, &also.into_iter().chain([error]).collect::<Vec<_>>());
    }
    let text = format!(
        "{}{}",
        HUB.replace(" MORE\n", "").replace("in\n", "out\n"),
        listener("saslMechanisms: PLAIN")
    );
    expect(
        &text,
        &[
            (9, "warning", "passwords may cross the network in clear text"),
            (9, "warning", "nobody can log in with PLAIN"),
        ],
    );
}
