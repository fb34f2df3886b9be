//! Sections `policy` and `vhost`, in every place where they may stand.

use std::fs;

use linkrouterd::config::{self, Addresses, RemoteHost};

use crate::{expect, flawless, good, shown};

const ON: &str = "policy {\n enableVhostPolicy: yes\n}\n";

/// A vhost with one group of these lines.
fn with_group(lines: &str) -> String {
    format!("{ON}vhost {{\n hostname: v\n groups: {{\n  g: {{\n{lines}  }}\n }}\n}}\n")
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn everything_that_a_vhost_can_say() {
    let text = "policy {\n maxConnections: 9\n enableVhostPolicy: yes\n enableVhostNamePatterns: on\n defaultVhost: \"\"\n \
                maxMessageSize: 1000\n}\nvhost {\n hostname: *.example.#\n aliases: a, b\n maxConnections: 1\n \
                maxConnectionsPerUser: 2\n maxConnectionsPerHost: 3\n maxMessageSize: 4\n allowUnknownUser: yes\n groups: {\n  \
                \"$default\": {\n   \"users\": \"u1, u2\",\n   \"remoteHosts\": \"127.0.0.1, 10.0.0.1-10.0.0.9, fd00::1-fd00::2, gate-way.example\",\n   \
                \"maxConnectionsPerUser\": 5, \"maxConnectionsPerHost\": 6, \"maxFrameSize\": 2048, \"maxSessions\": 7,\n   \
                \"maxSessionWindow\": 8000, \"maxSenders\": 9, \"maxReceivers\": 10, \"maxMessageSize\": 0,\n   \
                \"allowDynamicSource\": true, \"allowAnonymousSender\": \"yes\", \"allowUserIdProxy\": true,\n   \
                \"allowWaypointLinks\": false, \"allowFallbackLinks\": false, \"allowDynamicLinkRoutes\": false,\n   \
                \"allowAdminStatusUpdate\": false, \"sources\": \"d/${user}/*, $cbs\", \"targetPattern\": \"d/${user}/#\"\n  }\n }\n}\n";
    let policy = flawless(text).policy;
    assert!(policy.enable_vhost_policy && policy.vhost_name_patterns);
    assert_eq!(
        (
            policy.max_connections,
            policy.max_message_size,
            policy.default_vhost.as_str()
        ),
        (9, 1000, "")
    );
    let vhost = &policy.vhosts[0];
    assert_eq!((vhost.hostname.as_str(), vhost.line), ("*.example.#", 8));
    assert_eq!(vhost.aliases, ["a", "b"]);
    assert_eq!(
        (
            vhost.max_connections,
            vhost.max_connections_per_user,
            vhost.max_connections_per_host,
            vhost.max_message_size,
            vhost.allow_unknown_user
        ),
        (1, 2, 3, Some(4), true)
    );
    let group = &vhost.groups[0];
    assert_eq!(
        (group.name.as_str(), group.users.as_slice()),
        ("$default", &strings(&["u1", "u2"])[..])
    );
    let address = |text: &str| text.parse().expect("an address");
    assert_eq!(
        group.remote_hosts,
        [
            RemoteHost::Range(address("127.0.0.1"), address("127.0.0.1")),
            RemoteHost::Range(address("10.0.0.1"), address("10.0.0.9")),
            RemoteHost::Range(address("fd00::1"), address("fd00::2")),
            RemoteHost::Name("gate-way.example".to_owned()),
        ]
    );
    assert_eq!(
        (group.max_connections_per_user, group.max_connections_per_host),
        (Some(5), Some(6))
    );
    assert_eq!(
        (group.max_frame_size, group.max_sessions, group.max_session_window),
        (Some(2048), Some(7), Some(8000))
    );
    assert_eq!(
        (group.max_senders, group.max_receivers, group.max_message_size),
        (Some(9), Some(10), Some(0))
    );
    assert!(group.allow_dynamic_source && group.allow_anonymous_sender);
    assert_eq!(
        group.sources,
        Addresses::Listed(strings(&["d/${user}/*", "$cbs"]))
    );
    assert_eq!(group.targets, Addresses::Patterns(strings(&["d/${user}/#"])));
}

#[test]
fn what_a_group_does_not_say_allows_nothing() {
    let policy = flawless(&with_group("   users: *\n   remoteHosts: *\n")).policy;
    let group = &policy.vhosts[0].groups[0];
    assert_eq!(group.sources, Addresses::Listed(Vec::new()));
    assert_eq!(group.targets, Addresses::Listed(Vec::new()));
    assert!(!group.allow_dynamic_source && !group.allow_anonymous_sender);
    assert!(!policy.vhosts[0].allow_unknown_user);
    assert_eq!(policy.default_vhost, "$default");
}

#[test]
fn patterns_keep_their_hash_in_nested_maps() {
    let text = with_group("   users: *\n   remoteHosts: *\n   sourcePattern: a/#, b.# # all of b\n");
    assert_eq!(
        flawless(&text).policy.vhosts[0].groups[0].sources,
        Addresses::Patterns(strings(&["a/#", "b.#"]))
    );
}

#[test]
fn faults_of_groups() {
    let base = "   users: *\n   remoteHosts: *\n";
    for (lines, line, severity, part) in [
        ("   users: *\n", 7, "warning", "from nowhere"),
        (
            "   users: *\n   remoteHosts: 10.0.0.9-10.0.0.1\n",
            9,
            "error",
            "ends before it begins",
        ),
        (
            "   users: *\n   remoteHosts: 10.0.0.1-::1\n",
            9,
            "error",
            "one family",
        ),
        (
            "   users: *\n   remoteHosts: 10.0.0.300\n",
            9,
            "error",
            "is no address",
        ),
        (
            "   users: *\n   remoteHosts: 10.0.0.0/8\n",
            9,
            "error",
            "is no address",
        ),
        (
            &format!("{base}   maxSenders: 0\n"),
            10,
            "warning",
            "no such link is allowed",
        ),
        (&format!("{base}   maxFrameSize: 100\n"), 10, "warning", "512"),
        (
            &format!("{base}   sources: a\n   sourcePattern: a\n"),
            10,
            "error",
            "exclude each other",
        ),
        (
            &format!("{base}   sources: a*b\n"),
            10,
            "warning",
            "only at the end",
        ),
        (
            &format!("{base}   targetPattern: a/b*\n"),
            10,
            "warning",
            "only as a whole token",
        ),
        (
            &format!("{base}   targets: ${{usr}}\n"),
            10,
            "warning",
            "only `${user}` is replaced",
        ),
    ] {
        expect(&with_group(lines), &[(line, severity, part)]);
    }
    expect(
        &format!(
            "{ON}vhost {{\n hostname: v\n groups: {{\n  a: {{\n   users: x\n   remoteHosts: *\n  }}\n  b: {{\n   users: y, x\n   remoteHosts: *\n  }}\n }}\n}}\n"
        ),
        &[(11, "error", "user `x` is in group `a`, too")],
    );
}

#[test]
fn faults_of_vhosts_and_policy() {
    expect(ON, &[(2, "warning", "every connection will be denied")]);
    let groups = " groups: {\n  g: {\n   users: *\n   remoteHosts: *\n  }\n }\n";
    expect(
        &format!(
            "policy {{\n enableVhostPolicy: yes\n defaultVhost: Main\n}}\nvhost {{\n hostname: main\n{groups}}}\n"
        ),
        &[(3, "warning", "did you mean `main`?")],
    );
    expect(
        &format!("{ON}vhost {{\n hostname: v\n{groups}}}\nvhost {{\n hostname: w\n aliases: v\n{groups}}}\n"),
        &[(15, "error", "the name `v` is already used in t.conf:5")],
    );
    expect(
        &format!("{ON}vhost {{\n{groups}}}\n"),
        &[
            (2, "warning", "every connection will be denied"),
            (4, "error", "`hostname` is missing"),
        ],
    );
    expect(
        &format!("{ON}vhost {{\n hostname: v\n allowUnknownUser: yes\n{groups}}}\n"),
        &[(6, "warning", "needs a group `$default`")],
    );
    expect(
        &format!("vhost {{\n hostname: v\n{groups}}}\n"),
        &[(1, "warning", "without `enableVhostPolicy: yes`")],
    );
    expect(
        &format!("{ON}vhost {{\n hostnam: v\n{groups}}}\n"),
        &[
            (2, "warning", "every connection will be denied"),
            (4, "error", "`hostname` is missing"),
            (5, "error", "did you mean `hostname`?"),
        ],
    );
}

#[test]
fn the_names_of_0_6() {
    let text = "policy {\n enableAccessRules: no\n maximumConnections: 7\n defaultApplication: app\n \
                defaultApplicationEnabled: yes\n}\n";
    let config = good(text);
    assert_eq!(config.policy.max_connections, 7);
    assert_eq!(config.policy.default_vhost, "app");
    assert!(!config.policy.enable_vhost_policy);
}

#[test]
fn vhosts_of_a_directory_are_read_by_name_and_their_faults_have_file_and_line() {
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).expect("written");
    let vhost = |name: &str| {
        format!(
            "[\n [\"vhost\", {{\n  \"hostname\": \"{name}\",\n  \"groups\": {{\"g\": {{\"users\": \"*\", \"remoteHosts\": \"*\"}}}}\n }}]\n]\n"
        )
    };
    write("b.json", &vhost("two"));
    write("a.json", &vhost("one"));
    write("ignored.txt", "no JSON");
    let text = format!(
        "policy {{\n enableVhostPolicy: yes\n policyDir: {}\n}}\n",
        directory.path().display()
    );
    let names = |config: &config::Config| -> Vec<String> {
        config
            .policy
            .vhosts
            .iter()
            .map(|vhost| vhost.hostname.clone())
            .collect()
    };
    assert_eq!(names(&flawless(&text)), ["one", "two"]);

    write("c.json", &vhost("one"));
    write(
        "d.json",
        "[\n [\"listener\", {}],\n [\"vhost\", {\"hostname\": \"x\",\n  \"group\": {}}]\n]\n",
    );
    write("e.json", "{");
    let found = shown(&crate::read(&text));
    let at = |name: &str| directory.path().join(name).display().to_string();
    for line in [
        format!(
            "{}:3: error: vhost: the name `one` is already used in {}:3",
            at("c.json"),
            at("a.json")
        ),
        format!(
            "{}:2: error: in a file of `policyDir` there can be vhosts only",
            at("d.json")
        ),
        format!(
            "{}:4: error: vhost: unknown attribute `group`; did you mean `groups`?",
            at("d.json")
        ),
        format!("{}:1: error: not JSON", at("e.json")),
    ] {
        assert!(found.contains(&line), "{line} in\n{found}");
    }

    expect(
        "policy {\n policyDir: /no/such/directory\n}\n",
        &[(2, "warning", "cannot be read")],
    );
    expect(
        "policy {\n enableVhostPolicy: yes\n policyDir: /no/such/directory\n}\n",
        &[(2, "warning", "denied"), (3, "error", "cannot be read")],
    );
}

/// The directory of 0.6 holds nothing else.
#[test]
fn rulesets_of_0_6_in_the_directory_are_passed_over_with_a_warning() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("old.json");
    let ruleset = "[\n [\"policyRuleset\", {\"applicationName\": \"app\", \"settings\": {\"g\": {\"sources\": \"*\"}}}]\n]\n";
    fs::write(&file, ruleset).expect("written");
    let text = format!("policy {{\n policyFolder: {}\n}}\n", directory.path().display());
    let report = crate::read(&text);
    let found = shown(&report);
    assert!(report.config.is_some(), "{found}");
    let line = format!("{}:2: warning: policyRuleset is not run: ", file.display());
    assert!(found.contains(&line), "{line} in\n{found}");
}
