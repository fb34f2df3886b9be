use super::*;
use crate::router::settings::policy::VhostPolicy;

fn listed(texts: &[&str]) -> Addresses {
    Addresses::Listed(texts.iter().map(|text| (*text).to_owned()).collect())
}

fn patterns(texts: &[&str]) -> Addresses {
    Addresses::Patterns(texts.iter().map(|text| (*text).to_owned()).collect())
}

fn range(first: &str, last: &str) -> RemoteHost {
    RemoteHost::Range(first.parse().unwrap(), last.parse().unwrap())
}

fn group(name: &str, users: &[&str]) -> GroupSettings {
    GroupSettings {
        users: users.iter().map(|user| (*user).to_owned()).collect(),
        remote_hosts: vec![RemoteHost::Any],
        ..GroupSettings::new(name)
    }
}

fn vhost(name: &str, groups: Vec<GroupSettings>) -> VhostSettings {
    VhostSettings {
        name: name.into(),
        max_connections: usize::MAX,
        groups,
        ..VhostSettings::default()
    }
}

fn policy(default: &str, name_patterns: bool, vhosts: Vec<VhostSettings>) -> Policy {
    Policy::new(PolicySettings {
        max_message_size: 0,
        vhosts: Some(VhostPolicy {
            default_vhost: default.into(),
            name_patterns,
            vhosts,
        }),
    })
}

/// The vhost and group that a device is admitted to.
fn admitted(policy: &Policy, vhost: &str, user: &str, host: &str) -> Option<(String, String)> {
    let admission = policy.admit(&mut Book::default(), vhost, user, host).ok()??;
    let group = &admission.group;
    Some((group.vhost.to_string(), group.settings.name.clone()))
}

fn pair(vhost: &str, group: &str) -> Option<(String, String)> {
    Some((vhost.into(), group.into()))
}

#[test]
fn without_vhost_policy_everyone_is_admitted_and_counted_nowhere() {
    let policy = Policy::new(PolicySettings {
        max_message_size: 7,
        vhosts: None,
    });
    let mut book = Book::default();
    assert!(
        policy
            .admit(&mut book, "v", "u", "h")
            .is_ok_and(|it| it.is_none())
    );
    assert_eq!(book.connections(), 0);
    assert_eq!(policy.max_message_size(None), 7);
}

#[test]
fn the_vhost_is_the_one_named_its_alias_or_the_default() {
    let mut aliased = vhost("a.example", vec![group("g", &["*"])]);
    aliased.aliases = vec!["b.example".into()];
    let vhosts = || {
        vec![
            aliased.clone(),
            vhost("$default", vec![group("d", &["*"])]),
            vhost("", vec![]),
        ]
    };
    let with_default = policy("$default", false, vhosts());
    for (name, expected) in [
        ("a.example", pair("a.example", "g")),
        ("b.example", pair("a.example", "g")),
        ("A.example", pair("$default", "d")),
        ("", pair("$default", "d")),
        ("c.example", pair("$default", "d")),
    ] {
        assert_eq!(admitted(&with_default, name, "u", "h"), expected, "{name}");
    }
    let without = policy("", false, vec![aliased.clone()]);
    assert_eq!(admitted(&without, "c.example", "u", "h"), None);
    assert_eq!(admitted(&without, "", "u", "h"), None);
}

#[test]
fn names_of_vhosts_are_patterns_only_if_the_file_says_so() {
    let vhosts = || {
        vec![
            vhost("*.example", vec![group("star", &["*"])]),
            vhost("a.example", vec![group("exact", &["*"])]),
        ]
    };
    let on = policy("", true, vhosts());
    assert_eq!(admitted(&on, "a.example", "u", "h"), pair("a.example", "exact"));
    assert_eq!(admitted(&on, "b.example", "u", "h"), pair("*.example", "star"));
    assert_eq!(admitted(&on, "b.c.example", "u", "h"), None);
    let off = policy("", false, vhosts());
    assert_eq!(admitted(&off, "b.example", "u", "h"), None);
}

#[test]
fn a_user_has_the_group_that_lists_it_else_the_one_for_everyone_else_the_default_if_unknown_users_may() {
    let groups = || vec![group("admin", &["root", "op"]), group("$default", &[])];
    let mut open = vhost("v", groups());
    let closed = policy("", false, vec![open.clone()]);
    assert_eq!(admitted(&closed, "v", "op", "h"), pair("v", "admin"));
    assert_eq!(admitted(&closed, "v", "who", "h"), None);
    open.unknown_users = Some("$default".into());
    let open = policy("", false, vec![open]);
    assert_eq!(admitted(&open, "v", "who", "h"), pair("v", "$default"));
    let mut everyone = vhost("v", groups());
    everyone.groups.push(group("all", &["*"]));
    let everyone = policy("", false, vec![everyone]);
    assert_eq!(admitted(&everyone, "v", "who", "h"), pair("v", "all"));
    assert_eq!(admitted(&everyone, "v", "*", "h"), pair("v", "all"));
}

#[test]
fn remote_hosts_are_everyone_an_address_or_a_range_of_one_family() {
    for (hosts, host, expected) in [
        (vec![], "10.0.0.1", false),
        (vec![RemoteHost::Any], "not an address", true),
        (vec![range("10.0.0.1", "10.0.0.1")], "10.0.0.1", true),
        (vec![range("10.0.0.1", "10.0.0.1")], "10.0.0.2", false),
        (vec![range("10.0.0.1", "10.0.0.9")], "10.0.0.5", true),
        (vec![range("10.0.0.1", "10.0.0.9")], "10.0.0.10", false),
        (vec![range("10.0.0.1", "10.0.0.9")], "10.0.0.", false),
        (vec![range("::", "ffff::")], "10.0.0.5", false),
        (vec![range("fd00::1", "fd00::ff")], "fd00::10", true),
        (
            vec![range("10.0.0.1", "10.0.0.1"), range("::1", "::1")],
            "::1",
            true,
        ),
    ] {
        let mut restricted = group("g", &["*"]);
        restricted.remote_hosts = hosts.clone();
        let policy = policy("", false, vec![vhost("v", vec![restricted])]);
        assert_eq!(
            admitted(&policy, "v", "u", host).is_some(),
            expected,
            "{hosts:?} {host}"
        );
    }
}

#[test]
fn the_host_of_a_peer() {
    for (peer, host) in [
        ("10.0.0.1:5672", "10.0.0.1"),
        ("[::1]:5672", "::1"),
        ("[::ffff:10.0.0.1]:5672", "10.0.0.1"),
        ("gateway", "gateway"),
        ("gateway:1", "gateway"),
    ] {
        assert_eq!(host_of(peer), host, "{peer}");
    }
}

#[test]
fn connections_are_counted_by_vhost_user_and_host_and_all_are_given_back() {
    let mut limited = group("g", &["*"]);
    limited.max_connections_per_user = 2;
    limited.max_connections_per_host = 3;
    let mut vhost = vhost("v", vec![limited]);
    vhost.max_connections = 5;
    let policy = policy("", false, vec![vhost]);
    let mut book = Book::default();
    let mut places = Vec::new();
    for (user, host, expected) in [
        ("a", "1", None),
        ("a", "1", None),
        (
            "a",
            "2",
            Some("the user's maxConnectionsPerUser are connected already"),
        ),
        ("b", "1", None),
        (
            "c",
            "1",
            Some("the host's maxConnectionsPerHost are connected already"),
        ),
        ("b", "2", None),
        ("c", "2", None),
        ("d", "3", Some("the vhost's maxConnections are connected already")),
    ] {
        match policy.admit(&mut book, "v", user, host) {
            Ok(place) => {
                assert_eq!(expected, None, "{user} {host}");
                places.extend(place);
            }
            Err(reason) => assert_eq!(Some(reason), expected, "{user} {host}"),
        }
    }
    assert_eq!(book.connections(), 5);
    book.leave(&places.remove(0));
    assert!(policy.admit(&mut book, "v", "d", "3").is_ok_and(|place| {
        places.extend(place);
        true
    }));
    for place in places {
        book.leave(&place);
    }
    assert!(book.vhosts.is_empty(), "{book:?}");
}

fn ask(group: &GroupSettings, direction: Direction, address: Option<&str>) -> Result<(), LinkDenial> {
    ask_for(group, direction, address, false, 0)
}

fn ask_for(
    settings: &GroupSettings,
    direction: Direction,
    address: Option<&str>,
    is_dynamic: bool,
    present: usize,
) -> Result<(), LinkDenial> {
    let group = Group {
        id: 1,
        vhost: "v".into(),
        settings: settings.clone(),
    };
    let request = LinkRequest {
        direction,
        address,
        is_dynamic,
        present,
    };
    group.admit_link("dev1", &request)
}

#[test]
fn a_link_needs_its_address_in_the_list_of_its_direction() {
    let mut settings = group("g", &["*"]);
    settings.targets = listed(&["devices/${user}/messages/events", "$cbs", "logs/*"]);
    settings.sources = listed(&["devices/${user}*"]);
    for (direction, address, allowed) in [
        (Direction::In, "devices/dev1/messages/events", true),
        (Direction::In, "devices/dev2/messages/events", false),
        (Direction::In, "devices/dev1/messages/eventsx", false),
        // As the device wrote it: another spelling needs an entry of its own.
        (Direction::In, "/devices/dev1/messages/events", false),
        (Direction::In, "amqps://hub/devices/dev1/messages/events", false),
        (Direction::In, "devices/${user}/messages/events", false),
        (Direction::In, "$cbs", true),
        (Direction::In, "$cbs/", false),
        (Direction::In, "logs/", true),
        (Direction::In, "logs/a/b", true),
        (Direction::In, "log", false),
        (Direction::In, "$coordinator", false),
        (Direction::Out, "devices/dev1", true),
        (Direction::Out, "devices/dev12", true),
        (Direction::Out, "devices/dev", false),
        (Direction::Out, "$cbs", false),
    ] {
        let expected = if allowed { Ok(()) } else { Err(LinkDenial::Address) };
        assert_eq!(
            ask(&settings, direction, Some(address)),
            expected,
            "{direction:?} {address}"
        );
    }
    let nothing = group("g", &["*"]);
    assert_eq!(ask(&nothing, Direction::In, Some("a")), Err(LinkDenial::Address));
    assert_eq!(ask(&nothing, Direction::Out, Some("a")), Err(LinkDenial::Address));
}

#[test]
fn a_pattern_matches_whole_tokens() {
    let mut settings = group("g", &["*"]);
    settings.targets = patterns(&["devices/${user}/#", "a.*.c", "#/end", "x/#/y/#/z"]);
    for (address, allowed) in [
        ("devices/dev1", true),
        ("/devices/dev1/messages/events/", true),
        ("devices.dev1.messages", true),
        ("devices/dev2/messages", false),
        ("a/b/c", true),
        ("a/c", false),
        ("a/b/b/c", false),
        ("end", true),
        ("some/way/to/the/end", true),
        ("the/end/is/near", false),
        ("x/y/z", true),
        ("x/1/y/2/3/y/z", true),
        ("x/z/y", false),
    ] {
        let expected = if allowed { Ok(()) } else { Err(LinkDenial::Address) };
        assert_eq!(
            ask(&settings, Direction::In, Some(address)),
            expected,
            "{address}"
        );
    }
    settings.targets = patterns(&["#"]);
    assert_eq!(ask(&settings, Direction::In, Some("anything/at.all")), Ok(()));
}

#[test]
fn no_wildcard_stands_for_a_way_up() {
    let mut settings = group("g", &["*"]);
    for list in [
        listed(&["devices/${user}/*", "plant/../line"]),
        patterns(&["devices/${user}/#", "plant/../line"]),
    ] {
        settings.targets = list;
        for (address, allowed) in [
            ("devices/dev1/messages/a..b", true),
            ("devices/dev1/../dev2", false),
            ("devices/dev1/%2e%2E/dev2", false),
            ("devices/dev1/x%2F..%5C..%2Fdev2", false),
            ("devices/dev1/..\\dev2", false),
            ("devices/dev1/..%2Fdev2%FF", false),
            ("plant/../line", true),
        ] {
            let expected = if allowed { Ok(()) } else { Err(LinkDenial::Address) };
            let asked = ask(&settings, Direction::In, Some(address));
            assert_eq!(asked, expected, "{address}");
        }
    }
    for everything in [listed(&["*"]), patterns(&["#"])] {
        settings.targets = everything;
        assert_eq!(ask(&settings, Direction::In, Some("a/../b")), Ok(()));
    }
}

#[test]
fn a_user_whose_name_is_a_wildcard_stands_for_itself() {
    for user in ["*", "#", "a*", "x/#"] {
        assert!(!is_listed("d/${user}", user, "d/other"), "{user}");
        assert!(is_listed("d/${user}", user, &format!("d/{user}")), "{user}");
        assert!(!matches_pattern("d/${user}", user, "d/other"), "{user}");
        assert!(matches_pattern("d/${user}", user, &format!("d/{user}")), "{user}");
    }
}

#[test]
fn many_wildcards_cost_no_more_than_the_product_of_the_lengths() {
    let pattern = "#/a/".repeat(200) + "b";
    let address = "a/".repeat(10_000);
    assert!(!matches_pattern(&pattern, "u", &address));
}

#[test]
fn counts_come_before_addresses() {
    let mut settings = group("g", &["*"]);
    settings.max_senders = Some(2);
    settings.max_receivers = Some(0);
    settings.targets = listed(&["a"]);
    settings.sources = listed(&["a"]);
    let count = Err(LinkDenial::Count);
    assert_eq!(ask_for(&settings, Direction::In, Some("a"), false, 1), Ok(()));
    assert_eq!(ask_for(&settings, Direction::In, Some("a"), false, 2), count);
    assert_eq!(ask_for(&settings, Direction::In, Some("b"), false, 2), count);
    assert_eq!(ask_for(&settings, Direction::Out, Some("a"), false, 0), count);
}

#[test]
fn dynamic_sources_and_anonymous_senders_need_their_permission_and_a_listed_address_if_they_name_one() {
    let mut settings = group("g", &["*"]);
    settings.sources = listed(&["a"]);
    settings.targets = listed(&["a"]);
    let (up, down) = (Direction::In, Direction::Out);
    assert_eq!(
        ask_for(&settings, down, Some("a"), true, 0),
        Err(LinkDenial::DynamicSource)
    );
    assert_eq!(
        ask_for(&settings, down, None, true, 0),
        Err(LinkDenial::DynamicSource)
    );
    assert_eq!(ask(&settings, up, None), Err(LinkDenial::AnonymousSender));
    assert_eq!(ask(&settings, up, Some("")), Err(LinkDenial::AnonymousSender));
    assert_eq!(ask(&settings, down, None), Err(LinkDenial::Address));
    settings.allow_dynamic_source = true;
    settings.allow_anonymous_sender = true;
    assert_eq!(ask_for(&settings, down, Some("a"), true, 0), Ok(()));
    assert_eq!(
        ask_for(&settings, down, Some("b"), true, 0),
        Err(LinkDenial::Address)
    );
    assert_eq!(ask_for(&settings, down, None, true, 0), Ok(()));
    assert_eq!(ask(&settings, up, None), Ok(()));
}
