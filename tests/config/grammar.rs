//! How lines are read: the section notation, JSON blocks, whole files in JSON.

use linkrouterd::config::{Addresses, Direction, Matcher};

use crate::{expect, expect_as, flawless, good, read, read_as, shown};

const CONNECTOR: &str = "connector {\n name: HUB\n host: hub.example\n}\n";

/// The prefix or pattern of a route with these lines.
fn matcher(lines: &str) -> String {
    let text = format!("{CONNECTOR}linkRoute {{\n{lines}\n direction: in\n connection: HUB\n}}\n");
    match &good(&text).link_routes[0].matcher {
        Matcher::Prefix(text) | Matcher::Pattern(text) => text.clone(),
    }
}

#[test]
fn a_comment_alone_is_a_configuration_and_nothing_at_all_is_not() {
    let config = flawless("# nothing\n");
    assert!(config.router.id.starts_with("Standalone_"));
    assert_eq!(
        (config.listeners.len(), config.policy.max_connections),
        (0, 65535)
    );
    expect("", &[(1, "error", "empty")]);
}

#[test]
fn blanks_line_ends_and_comments_do_not_matter() {
    for text in [
        "router {\n id: A\n}\n",
        "router{\nid:A\n}",
        "\u{feff}router\t{  # why\r\n\tid :\tA   # who\r\n  }  # end\r\n",
        "# first\n\n  router {\n# inside\n    id: A\n\n}\n",
        "router\n{\n id: A\n}\n",
        "router # next line\n\n# still\n { # now\n id: A\n}\n",
    ] {
        assert_eq!(flawless(text).router.id, "A", "{text}");
    }
}

#[test]
fn names_may_be_hyphenated_underscored_or_in_camel_case() {
    let config = flawless(
        "ssl-profile {\n name: p\n}\nconnector {\n name: C\n host: h\n port: 5671\n ssl_profile: p\n \
         idle-timeout-seconds: 5\n max_frame_size: 1_024\n}\nlink-route {\n prefix: a\n direction: in\n \
         connection: C\n}\norg.apache.qpid.dispatch.log {\n module: DEFAULT\n}\n",
    );
    assert_eq!(config.connectors[0].ssl_profile.as_deref(), Some("p"));
    assert_eq!(config.connectors[0].max_frame_size, 1024);
    assert_eq!(
        config.connectors[0].idle_timeout.map(|time| time.as_secs()),
        Some(5)
    );
    assert_eq!((config.link_routes.len(), config.logs.len()), (1, 1));
}

#[test]
fn values_run_to_the_end_of_the_line_or_to_a_comment() {
    for (line, value) in [
        ("prefix: $cbs/", "$cbs/"),
        ("prefix: $cbs/ # the token", "$cbs/"),
        ("prefix: a b", "a b"),
        ("prefix: a{b}'[c", "a{b}'[c"),
        ("prefix: a,]b", "a,]b"),
        ("prefix: d:e", "d:e"),
        ("prefix: \"a#b\" # note", "a#b"),
        ("pattern: a/*/# # note", "a/*/#"),
        ("pattern: #", "#"),
        ("pattern: \"x y/#\"", "x y/#"),
        ("prefix: a\\nb", "a\\nb"),
    ] {
        assert_eq!(matcher(line), value, "{line}");
    }
}

#[test]
fn what_a_value_loses_is_said() {
    let route =
        |line: &str| format!("{CONNECTOR}linkRoute {{\n{line}\n direction: in\n connection: HUB\n}}\n");
    expect(&route("prefix: a#b"), &[(6, "warning", "ends before `#`")]);
    expect(
        &route("prefix: a\\b"),
        &[(6, "warning", "backslash in the value of `prefix`")],
    );
    expect(
        &route("pattern: a b c"),
        &[(6, "warning", "ends at the first blank")],
    );
}

#[test]
fn what_cannot_be_read_is_named_with_its_true_line() {
    expect("router {\n id: A\n},\n", &[(3, "error", "`}` must stand alone")]);
    expect("router {\n id: A\n} x\n", &[(3, "error", "`}` must stand alone")]);
    expect(
        "router { id: A }\n",
        &[(1, "error", "after `{` of section `router` the line must end")],
    );
    expect(
        "{\n id: A\n}\n",
        &[
            (1, "error", "`{` must follow"),
            (2, "error", "attribute `id` stands outside any section"),
            (3, "error", "closes nothing"),
        ],
    );
    expect(
        "# one\nrouter {\n id: A\n",
        &[(2, "error", "section `router` is never closed")],
    );
    expect(
        "router {\n id: A\nlistener {\n host: ::1\n}\n",
        &[(
            3,
            "error",
            "section `listener` starts inside section `router` of line 1",
        )],
    );
    expect(
        "listener {\n host: ::1\n port = 5672\n}\n",
        &[(3, "error", "cannot read `port …`")],
    );
    expect(
        "router {\n id:\n}\n",
        &[(2, "error", "attribute `id` has no value")],
    );
    expect(
        "router {\n id: # A\n}\n",
        &[(2, "error", "everything from `#` on is a comment")],
    );
    expect(
        "router {\n id: \"A\n}\n",
        &[(2, "error", "no closing double quote")],
    );
    expect(
        "router {\n id: \"A\" B\n}\n",
        &[(2, "error", "text follows the closing double quote")],
    );
    expect(
        "router {\n id: A\n}\nrouter\n",
        &[(4, "error", "cannot read `router`")],
    );
}

#[test]
fn all_findings_of_a_file_are_reported_at_once() {
    expect(
        "lisener {\n port: 1\n}\nlistener {\n host: ::1\n prot: 5672\n role: norml\n}\nrouter {\n mode\n}\n",
        &[
            (1, "error", "unknown section `lisener`; did you mean `listener`?"),
            (6, "error", "unknown attribute `prot`; did you mean `port`?"),
            (7, "error", "did you mean `normal`?"),
            (10, "error", "cannot read `mode`"),
        ],
    );
}

#[test]
fn another_kind_of_file_is_given_up() {
    let report = read(&"; ini style\n".repeat(500));
    assert_eq!(report.findings.len(), 51);
    assert!(
        shown(&report)
            .ends_with("t.conf:51: error: too many unreadable lines: the rest of the file was not read\n")
    );
}

#[test]
fn nested_maps_in_every_notation_are_read_alike() {
    for body in [
        "groups: {\n  \"$default\": {\n   \"users\": \"*\", # all\n   # comment\n   \"remoteHosts\": \"*\",\n   \"targets\": [\"d/*\", \"$cbs\"]\n  }\n }",
        "groups: {\n  \"$default\": {\n   \"users\": \"*\",\n   \"remoteHosts\": \"*\",\n   \"targets\": [\"d/*\", \"$cbs\",], # last\n  },\n }",
        "groups: {\n  $default: {\n   users: * # all\n   # comment\n   remote-hosts: \"*\"\n   targets: d/*, $cbs\n  }\n }",
        "groups: {\"$default\": {\"users\": \"*\", \"remoteHosts\": \"*\", \"targets\": \"d/*,$cbs\"}} # one line",
    ] {
        let text = format!("vhost {{\n hostname: $default\n {body}\n}}\nrouter {{\n id: A\n}}\n");
        expect(&text, &[(1, "warning", "everyone may connect")]);
        let config = good(&text);
        assert_eq!(config.router.id, "A");
        let group = &config.policy.vhosts[0].groups[0];
        assert_eq!(
            (group.name.as_str(), group.users.as_slice()),
            ("$default", &["*".to_owned()][..])
        );
        assert_eq!(
            group.targets,
            Addresses::Listed(vec!["d/*".to_owned(), "$cbs".to_owned()])
        );
    }
}

#[test]
fn faults_in_nested_maps_have_their_own_lines() {
    for (text, errors) in [
        (
            "vhost {\n groups: {\n  \"a\": {\n   \"users\": \"*\"\n   \"x\": 1\n  }\n }\n}\nrouter {\n ID: A\n}\n",
            &[
                "t.conf:5: error: the JSON of `groups` is wrong",
                "t.conf:10: error: ",
            ][..],
        ),
        (
            "vhost {\n groups: {\n  a: {\n   users\n  }\n }\n}\n",
            &["t.conf:4: error: cannot read"],
        ),
        (
            "vhost {\n groups: {\n  a: {\n  }\n}\nrouter {\n id: A\n}\n",
            &["t.conf:6: error: section `router` starts inside section `vhost` of line 1"],
        ),
        (
            "vhost {\n id: v\n groups: {\n  a: {\n   user: x\n  }\n }\n}\n",
            &["t.conf:5: error: group: unknown attribute `user`; did you mean `users`?"],
        ),
        (
            "vhost {\n id: v\n groups: {\"a\": {\n  \"maxSenders\": \"many\",\n  \"maxReceivers\": {}\n }}\n}\n",
            &[
                "t.conf:4: error: group: `maxSenders` is `many`",
                "t.conf:5: error: group: `maxReceivers` cannot be a map",
            ],
        ),
        (
            "vhost {\n id: v\n groups: {\n  a: x\n }\n}\n",
            &["t.conf:4: error: vhost: group `a` must be a map"],
        ),
        (
            "vhost {\n id: v\n groups: x\n}\n",
            &["t.conf:3: error: vhost: `groups` must be a map"],
        ),
    ] {
        let found = shown(&read(text));
        for error in errors {
            assert!(found.contains(error), "{error} in\n{found}");
        }
    }
    expect(
        "router {\n id: {\n  a: b\n }\n}\n",
        &[(2, "error", "`id` cannot be a map")],
    );
}

#[test]
fn maps_as_deep_as_a_file_is_long_do_no_harm() {
    let depth = 100_000;
    let nested = format!(
        "vhost {{\n id: v\n groups: {{\n{}{}}}\n}}\n",
        "a: {\n".repeat(depth),
        "}\n".repeat(depth)
    );
    assert!(!shown(&read(&nested)).contains("error: cannot read"));
    let json = format!(
        "vhost {{\n id: v\n groups: {}1{}\n}}\n",
        "{\"a\":".repeat(depth),
        "}".repeat(depth)
    );
    read(&json);
}

#[test]
fn a_file_in_json_says_the_same() {
    let text = "[\n# comment\n [\"router\", {\"id\": \"A#1\"}], # old style comment\n [\"listener\", {\n  \"addr\": \"::1\",\n  \
                \"port\": 5672, \"authenticatePeer\": false, \"max-sessions\": 10\n }],\n \
                [\"connector\", {\"name\": \"HUB\", \"host\": \"h\", \"role\": 2, \"verifyHostname\": 1}],\n \
                [\"router.config.linkRoute\", {\"pattern\": \"a/#\", \"dir\": \"out\", \"connection\": \"HUB\"}]\n]\n";
    expect_as(
        "t.json",
        text,
        &[
            (5, "warning", "`addr` is an old name of `host`"),
            (9, "warning", "`dir` is an old name of `direction`"),
        ],
    );
    let config = read_as("t.json", text).config.expect("no error");
    assert_eq!(
        (config.router.id.as_str(), config.listeners[0].max_sessions),
        ("A#1", 10)
    );
    assert_eq!(config.connectors[0].role.as_str(), "route-container");
    assert_eq!(config.link_routes[0].direction, Direction::Out);
}

#[test]
fn faults_in_json_files_have_true_lines() {
    expect_as(
        "t.json",
        "[\n [\"router\", {\"id\": \"A\"}]\n [\"listener\", {}]\n]\n",
        &[(3, "error", "not JSON")],
    );
    expect_as(
        "t.json",
        "{\"router\": {}}",
        &[(1, "error", "is a list of sections")],
    );
    expect_as(
        "t.json",
        "[\n [\"router\"],\n [\"router\", {\n  \"id\": [1],\n  \"mode\": \"x\",\n  \"bogus\": 1}]\n]\n",
        &[
            (2, "error", "a section is a list of its name and its attributes"),
            (4, "error", "`id` cannot be a list"),
            (5, "error", "must be one of `standalone`"),
            (6, "error", "unknown attribute `bogus`"),
        ],
    );
    expect_as(
        "t.json",
        "[[\"router\", {\"id\": \"\\ud800\"}]]",
        &[(1, "error", "not valid Unicode")],
    );
}

#[test]
fn a_file_that_cannot_be_read_is_a_finding() {
    let load = |path: &std::path::Path| linkrouterd::config::load(path, &|_| None);
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("x.conf");
    let name = path.display();
    assert!(shown(&load(&path)).starts_with(&format!("{name}: error: the configuration cannot be read: ")));

    std::fs::write(&path, b"# fine\nrouter {\n id: \xff\n}\n").expect("written");
    assert_eq!(
        shown(&load(&path)),
        format!("{name}:3: error: not UTF-8 text from here on\n")
    );

    std::fs::write(&path, "#\n".repeat(600_000)).expect("written");
    assert_eq!(
        shown(&load(&path)),
        format!("{name}: error: the configuration has more than 1048576 bytes\n")
    );

    let path = directory.path().join("x.json");
    std::fs::write(&path, "[[\"router\", {\"id\": \"A\"}]]").expect("written");
    assert_eq!(
        load(&path).config.map(|config| config.router.id),
        Some("A".to_owned())
    );
}
