//! No finding and no debug print may show a password, whatever is wrong with the line that holds it.

use linkrouterd::config::entity::entities;

use crate::{expect, good, read, read_as, shown};

const SECRET: &str = "hunter2/SharedAccessKey";

#[test]
fn a_wrong_line_with_a_password_does_not_repeat_it() {
    for line in [
        "saslPassword: @",
        "saslPassword: pass:@",
        "saslPassword: @#x",
        "saslPassword: @\\x",
        "saslPassword: \"@",
        "saslPassword: \"@\" x",
        "saslPassword: {@",
        "saslPassword: {\"@\": \"@\"}",
        "saslPassword: {\"@\": @}",
        "saslPassword: {\n @: @\n @\n }",
        "saslPassword = @",
        "saslPassword @",
        "saslPassword:\n @",
        "saslPassword:\n @==",
        "saslPasword: @",
        "sasl password: @",
        "password: @\n password: @2",
        "password: <@>",
        "saslPassword: env:@",
        "password: literal:@",
        "saslPassword: @\n sasl-password: @",
        "keyFile: k\n password: @",
        "authenticatePeer: yes\n password: @",
        "@",
        "{@}",
        "}@",
        "= @",
        "SharedAccessKeyName=root;SharedAccessKey=@",
    ] {
        let line = line.replace('@', SECRET);
        for section in [
            "connector",
            "sslProfile",
            "ssl-profile",
            "listener",
            "router",
            "conector",
            "vhost",
        ] {
            let report = read(&format!("{section} {{\n name: a\n host: h\n {line}\n}}\n"));
            assert!(
                !shown(&report).contains("hunter2"),
                "{}\nof {line}",
                shown(&report)
            );
            assert!(!format!("{report:?}").contains("hunter2"), "{line}");
        }
    }
}

#[test]
fn a_wrong_json_file_with_a_password_does_not_repeat_it() {
    for body in [
        "[[\"connector\", {\"host\": \"h\", \"saslPassword\": \"@\"}]]",
        "[[\"connector\", {\"host\": \"h\", \"saslPassword\": \"@}]]",
        "[[\"connector\", {\"host\": \"h\", \"saslPassword\": @}]]",
        "[[\"connector\", {\"host\": \"h\", \"saslPassword\": [\"@\"]}]]",
        "[[\"connector\", {\"host\": \"h\", \"saslPassword\": \"env:@\"}]]",
        "[[\"conector\", {\"saslPasword\": \"@\"}]]",
        "[[\"connector\", \"@\"]]",
        "[\"@\"]",
        "\"@\"",
        "@",
    ] {
        let report = read_as("t.json", &body.replace('@', SECRET));
        assert!(!report.findings.is_empty(), "{body}");
        assert!(
            !shown(&report).contains("hunter2"),
            "{}\nof {body}",
            shown(&report)
        );
        assert!(!format!("{report:?}").contains("hunter2"), "{body}");
    }
}

#[test]
fn a_password_in_plain_text_is_warned_of_and_read() {
    let text = |password: &str| {
        format!(
            "sslProfile {{\n name: p\n}}\nconnector {{\n name: HUB\n host: h\n sslProfile: p\n saslUsername: u\n \
             saslPassword: {password}\n}}\nlinkRoute {{\n prefix: a\n direction: in\n connection: HUB\n}}\n"
        )
    };
    let read_password = |password: &str| {
        let secret = good(&text(password)).connectors[0].sasl_password.clone();
        secret.map(|secret| secret.expose().to_owned())
    };
    for (password, secret) in [
        ("abc", "abc"),
        ("pass:abc", "abc"),
        ("literal:abc", "literal:abc"),
        ("\"a#c\"", "a#c"),
    ] {
        expect(
            &text(password),
            &[(9, "warning", "`saslPassword` is a password in plain text")],
        );
        assert_eq!(read_password(password).as_deref(), Some(secret));
    }
    expect(&text("env:HUB_KEY"), &[]);
    assert_eq!(read_password("env:HUB_KEY").as_deref(), Some("key-of-the-hub"));
    expect(
        &text("env:NO_SUCH"),
        &[(9, "error", "the environment variable `NO_SUCH` is not set")],
    );
}

#[test]
fn the_password_of_a_key_is_read_but_not_run() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("p");
    std::fs::write(&path, "from-file\n").expect("written");
    let text = |lines: &str| {
        format!("sslProfile {{\n name: p\n {lines}\n}}\n").replace("FILE", &path.display().to_string())
    };
    let not_run = (3, "warning", "a private key with a password cannot be read");
    let plain = (3, "warning", "is a password in plain text");
    let old = (3, "warning", "`passwordFile` is old");
    let cases = [
        ("password: env:HUB_KEY", vec![not_run], "key-of-the-hub"),
        ("password: literal:abc", vec![plain, not_run], "abc"),
        ("password: file:FILE", vec![not_run], "from-file"),
        ("passwordFile: FILE", vec![not_run, old], "from-file"),
    ];
    for (lines, findings, secret) in cases {
        expect(&text(lines), &findings);
        let password = good(&text(lines)).ssl_profiles[0].password.clone();
        assert_eq!(
            password.as_ref().map(|secret| secret.expose()),
            Some(secret),
            "{lines}"
        );
    }
    expect(
        &text("password: file:FILE\n passwordFile: FILE"),
        &[not_run, (4, "error", "exclude each other")],
    );
    expect(
        &text("password: file:/nonexistent/p"),
        &[(3, "error", "the password file `/nonexistent/p` cannot be opened")],
    );
}

#[test]
fn placeholders_of_a_template_are_warned_of() {
    expect(
        "listener {\n host: ::1\n}\nconnector {\n name: HUB\n host: <iotHub>.azure-devices.net\n saslUsername: <keyRule>\n saslPassword: <key>\n sslProfile: p\n}\nsslProfile {\n name: p\n}\nlinkRoute {\n prefix: <ehName>/Partitions/\n direction: in\n connection: HUB\n}\n",
        &[
            (6, "warning", "placeholder `<iotHub>`: fill in"),
            (7, "warning", "placeholder `<keyRule>`: fill in"),
            (8, "warning", "`saslPassword` still holds a placeholder: fill in"),
            (15, "warning", "placeholder `<ehName>`: fill in"),
        ],
    );
}

/// What people have at hand for a hub is a URL or a connection string, and they put it wherever it seems to belong.
#[test]
fn a_url_or_connection_string_in_the_wrong_place_does_not_show_its_password() {
    for value in [
        "amqps://rule:hunter2@ns.example:5671",
        "amqps://rule:hun@/ter2@ns.example/q",
        "rule:hunter2@ns.example",
        "HostName=h.example;DeviceId=d;SharedAccessKey=hunter2",
        "HostName=h.example;SharedAccessKeyName=owner;SharedAccessKey=hunter2/=",
        "Endpoint=sb://ns.example/;SharedAccessKeyName=r;SharedAccessKey=hunter2",
        "SharedAccessSignature sr=h&sig=hunter2",
    ] {
        for entity in entities() {
            for name in entity.attribute_names() {
                let text = format!("{} {{\n {name}: {value}\n}}\n", entity.name);
                let found = shown(&read(&text));
                assert!(
                    !found.contains("hunter2") && !found.contains("ter2@"),
                    "{found}\nof {text}"
                );
            }
        }
    }
    for value in [
        "HostName=h.example;DeviceId=d;SharedAccessKey=abc=",
        "rule@ns.example",
    ] {
        expect(
            &format!("connector {{\n name: HUB\n host: {value}\n}}\n"),
            &[
                (1, "warning", "no linkRoute"),
                (3, "error", "not a connection string"),
            ],
        );
    }
}
