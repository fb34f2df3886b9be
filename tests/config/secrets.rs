//! No finding and no debug print may show a password, whatever is wrong with the line that holds it.

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
    let text = |password: &str| format!("sslProfile {{\n name: p\n password: {password}\n}}\n");
    for (password, secret) in [
        ("abc", "abc"),
        ("pass:abc", "abc"),
        ("literal:abc", "abc"),
        ("\"a#c\"", "a#c"),
    ] {
        expect(
            &text(password),
            &[(3, "warning", "`password` is a password in plain text")],
        );
        let profile = &good(&text(password)).ssl_profiles[0];
        assert_eq!(
            profile.password.as_ref().map(|secret| secret.expose()),
            Some(secret)
        );
    }
    expect(
        &text("env:NO_SUCH"),
        &[(3, "error", "the environment variable `NO_SUCH` is not set")],
    );
    expect(
        &text("file:/nonexistent/p"),
        &[(3, "error", "the password file `/nonexistent/p` cannot be opened")],
    );
    expect(&text("env:HUB_KEY"), &[]);
}

#[test]
fn a_password_file_is_the_same_as_password_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("p");
    std::fs::write(&path, "from-file\n").expect("written");
    let file = path.display();
    let text = format!("sslProfile {{\n name: p\n passwordFile: {file}\n}}\n");
    expect(&text, &[(3, "warning", "`passwordFile` is old")]);
    let password = good(&text).ssl_profiles[0].password.clone();
    assert_eq!(password.as_ref().map(|secret| secret.expose()), Some("from-file"));
    let both = format!("sslProfile {{\n name: p\n password: file:{file}\n passwordFile: {file}\n}}\n");
    expect(&both, &[(4, "error", "exclude each other")]);
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
