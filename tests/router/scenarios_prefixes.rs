//! External prefixes of routes, and virtual hosts of devices.

use linkrouterd::amqp::value::Value;
use linkrouterd::router::settings::{Destination, Direction, RouterSettings};

use crate::peer::Announces;
use crate::scenarios_routes::{
    HUB, address_of, at, attempt, both, outcome, prefix, refused, second_connector, to,
};
use crate::wire::{self, Frame, described, string, symbol, terminus};
use crate::world::{DEVICE_AUTO, HUB_AUTO, PeerId, World, settings};

fn prefixed(add: &str, del: &str) -> RouterSettings {
    let mut settings = settings();
    settings.routes = both(|way| {
        let mut route = prefix("ext", way, to("HUB"));
        route.add_external_prefix = add.into();
        route.del_external_prefix = del.into();
        route
    })
    .into();
    settings
}

/// The address that the device was answered with.
fn answered(world: &mut World, device: PeerId, is_sender: bool) -> String {
    let routed = if is_sender { 6 } else { 5 };
    let mut answers = world
        .peer(device)
        .log
        .iter()
        .filter(|frame| frame.code == wire::ATTACH);
    let answer = answers.next_back().expect("an answer");
    address_of(answer.field(routed)).expect("an address").into()
}

#[test]
fn prefixes_change_the_routed_terminus_and_come_back_in_the_answer_5_7() {
    for (add, del, written, at_hub, seen) in [
        ("hub1/", "ext/", "ext/out", "hub1/out", "ext/out"),
        // Text, not tokens. 1.19 puts `ext.` in front of this answer although it was not taken off.
        ("hub1/", "ext.", "ext/q", "hub1/ext/q", "ext/q"),
        ("hub1/", "", "ext/q", "hub1/ext/q", "ext/q"),
        ("", "ext/", "ext/q", "q", "ext/q"),
        ("", "ext/", "ext/", "ext/", "ext/"),
        ("", "", "ext/q", "ext/q", "ext/q"),
        ("ext/", "ext/", "ext/q", "ext/q", "ext/q"),
    ] {
        for is_sender in [false, true] {
            let mut world = World::new(prefixed(add, del));
            let device = world.device("dev");
            let found = attempt(&mut world, device, 0, is_sender, written);
            assert_eq!(found, at(at_hub), "{add} {del} {written}");
            assert_eq!(
                answered(&mut world, device, is_sender),
                seen,
                "{add} {del} {written}"
            );
        }
    }
}

/// Only the terminus that decided the route is touched, and of that only the address.
#[test]
fn prefixes_leave_all_else_of_an_attach_alone_5_7() {
    let mut world = World::new(prefixed("hub1/", "ext/"));
    let device = world.device("dev");
    let filter = Value::Map(vec![(symbol("f"), described(0x468c, vec![string("x")]))]);
    let source = |address: &str| {
        let outcome = described(0x26, vec![]);
        let policy = symbol("link-detach");
        let move_ = symbol("move");
        let fields = vec![
            string(address),
            wire::uint(1),
            policy,
            wire::uint(5),
            Value::Boolean(false),
            Value::Null,
            move_,
            filter.clone(),
            outcome,
        ];
        described(0x28, fields)
    };
    let target = terminus(0x29, "ext/here");
    let mut fields = vec![
        string("l"),
        wire::uint(0),
        Value::Boolean(true),
        Value::Ubyte(1),
        Value::Ubyte(1),
    ];
    fields.extend([
        source("ext/out"),
        target.clone(),
        Value::Null,
        Value::Null,
        Value::Null,
        Value::Ulong(9999),
    ]);
    fields.extend([
        Value::Null,
        symbol("c"),
        Value::Map(vec![(symbol("p"), wire::uint(1))]),
    ]);
    world.peer(device).skip();
    world
        .peer(device)
        .say_attach(&Frame::new(0, wire::ATTACH, fields.clone()));
    world.run();
    let attach = world
        .hub()
        .log
        .iter()
        .find(|frame| frame.code == wire::ATTACH)
        .expect("an attach");
    let mut expected = fields;
    expected[5] = source("hub1/out");
    assert_eq!(attach.fields[3..], expected[3..]);
    let answer = world.peer(device).expect(wire::ATTACH);
    assert_eq!((answer.field(5), answer.field(6)), (&source("ext/out"), &target));
}

/// A hub that renames is answered for as in 1.19: its prefix is taken off if it is there, and what was taken off the
/// device's address comes in front. A refusal keeps its null terminus.
#[test]
fn answers_of_another_address_keep_the_rule_5_7() {
    for (chosen, seen) in [
        (terminus(0x28, "hub1/other"), terminus(0x28, "ext/other")),
        (terminus(0x28, "queue-7"), terminus(0x28, "ext/queue-7")),
        (terminus(0x28, "hub1/"), terminus(0x28, "ext/hub1/")),
        (Value::Null, Value::Null),
        (described(0x28, vec![]), described(0x28, vec![])),
    ] {
        let mut world = World::new(prefixed("hub1/", "ext/"));
        let mut auto = HUB_AUTO;
        auto.attach = false;
        world.hub = Some((auto, Announces::default()));
        let device = world.device_with("dev", DEVICE_AUTO, Announces::default());
        world.peer(device).attach(0, 0, "l", false, "ext/out");
        world.run();
        world.peer(device).skip();
        let hub = world.hub();
        let mut attach = hub
            .log
            .iter()
            .find(|frame| frame.code == wire::ATTACH)
            .expect("an attach")
            .clone();
        *attach.fields.get_mut(5).expect("a source") = chosen;
        let channel = *hub.sessions.keys().next().expect("a session");
        hub.answer_attach(&attach, channel, 5);
        world.run();
        assert_eq!(world.peer(device).expect(wire::ATTACH).field(5), &seen);
    }
}

#[test]
fn dynamic_addresses_and_coordinators_have_no_prefix_5_7() {
    let mut settings = prefixed("hub1/", "ext/");
    let mut coordinator = prefix("$coordinator", Direction::In, to("HUB"));
    coordinator.add_external_prefix = "hub1/".into();
    settings.routes.push(coordinator);
    let mut world = World::new(settings);
    let device = world.device("dev");
    let properties = Value::Map(vec![(symbol("x-opt-qd.address"), string("ext/q"))]);
    let (none, yes) = (Value::Null, Value::Boolean(true));
    let dynamic = described(
        0x28,
        vec![none, wire::uint(0), Value::Null, wire::uint(0), yes, properties],
    );
    let coordinator = described(0x30, vec![symbol("amqp:local-transactions")]);
    world
        .peer(device)
        .attach_with(0, 0, "d", false, dynamic.clone(), terminus(0x29, "here"));
    world
        .peer(device)
        .attach_with(0, 1, "c", true, terminus(0x28, "here"), coordinator.clone());
    world.run();
    let attaches: Vec<_> = world
        .hub()
        .log
        .iter()
        .filter(|frame| frame.code == wire::ATTACH)
        .cloned()
        .collect();
    assert_eq!(
        (attaches[0].field(5), attaches[1].field(6)),
        (&dynamic, &coordinator)
    );
}

/// 1.19 takes the first route's prefixes for both.
#[test]
fn of_two_routes_with_one_pattern_each_has_its_own_prefixes_5_7() {
    let mut settings = prefixed("hub1/", "ext/");
    second_connector(&mut settings);
    settings.routes.extend(both(|way| {
        let mut route = prefix("ext", way, to("HUB2"));
        route.add_external_prefix = "hub2/".into();
        route.del_external_prefix = "ext/".into();
        route
    }));
    let mut world = World::new(settings);
    let device = world.device("dev");
    let mut seen = Vec::new();
    for handle in 0..4 {
        seen.push(format!(
            "{:?}",
            attempt(&mut world, device, handle, true, "ext/q")
        ));
        assert_eq!(answered(&mut world, device, true), "ext/q");
    }
    seen.sort();
    let expected = ["hub1/q", "hub1/q", "hub2/q", "hub2/q"].map(|address| format!("{:?}", at(address)));
    assert_eq!(seen, expected);
}

/// An attach that moves to another connector takes that route's prefixes.
#[test]
fn an_attach_that_moves_has_the_prefixes_of_its_new_route() {
    let mut settings = prefixed("hub1/", "ext/");
    second_connector(&mut settings);
    for way in [Direction::In, Direction::Out] {
        let mut route = prefix("ext", way, to("HUB2"));
        route.add_external_prefix = "hub2/".into();
        settings.routes.push(route);
    }
    let mut world = World::new(settings);
    world.hub = None;
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "l", true, "ext/q");
    world.run();
    let first = world.dials[0].0;
    world.fail_dial();
    world.run();
    let hub = world.answer_dial(HUB_AUTO, Announces::default());
    world.run();
    let attach = world
        .peer(hub)
        .log
        .iter()
        .find(|frame| frame.code == wire::ATTACH)
        .expect("an attach")
        .clone();
    let expected = if first == 0 { "hub2/ext/q" } else { "hub1/q" };
    assert_eq!(address_of(attach.field(6)), Some(expected));
    assert_eq!(answered(&mut world, device, true), "ext/q");
}

// ---- virtual hosts -----------------------------------------------------------------------------------------------------

fn tenants(policy_vhost: Option<&str>) -> RouterSettings {
    let mut settings = settings();
    let listener = settings.listeners.first_mut().expect("a listener");
    listener.multi_tenant = true;
    listener.policy_vhost = policy_vhost.map(str::to_owned);
    settings.routes = both(|way| prefix("vh1/d", way, to("HUB"))).into();
    settings
}

fn device_on(world: &mut World, hostname: Option<&str>) -> PeerId {
    let device = world
        .connect("dev", DEVICE_AUTO, Announces::default())
        .expect("room");
    world.peer(device).hostname = hostname.map(str::to_owned);
    world.peer(device).open();
    world.peer(device).begin(0);
    world.run();
    device
}

/// The hub's answer is not changed back, as in 1.19: the device sees the address with its host.
#[test]
fn a_tenants_addresses_have_its_virtual_host_in_front_5_6() {
    for (hostname, policy_vhost, written, expected) in [
        (Some("vh1"), None, "d/1", at("vh1/d/1")),
        (Some("vh1"), None, "/d/1", at("vh1/d/1")),
        (Some("vh1"), None, "amqp://h/d/1", at("vh1/d/1")),
        (Some("vh2"), None, "d/1", refused("amqp:not-found")),
        (Some("vh2"), Some("vh1"), "d/1", at("vh1/d/1")),
        (None, Some("vh1"), "d/1", at("vh1/d/1")),
        // Without a host nothing is put in front: the address is matched as it is written.
        (None, None, "d/1", refused("amqp:not-found")),
        (None, None, "vh1/d/1", at("vh1/d/1")),
        // The host comes in front of everything: no tenant reaches another's address.
        (Some("vh2"), None, "vh1/d/1", refused("amqp:not-found")),
    ] {
        for is_sender in [true, false] {
            let mut world = World::new(tenants(policy_vhost));
            let device = device_on(&mut world, hostname);
            let found = attempt(&mut world, device, 0, is_sender, written);
            assert_eq!(found, expected, "{hostname:?} {policy_vhost:?} {written}");
            if found == at("vh1/d/1") {
                assert_eq!(answered(&mut world, device, is_sender), "vh1/d/1");
            }
        }
    }
}

/// Each attach of a few bytes would become one of as many as its open had.
#[test]
fn a_virtual_host_that_is_no_name_of_a_host_is_put_in_front_of_nothing() {
    let mut world = World::new(tenants(None));
    let device = device_on(&mut world, Some(&"v".repeat(256)));
    let refusal = refused("amqp:resource-limit-exceeded");
    assert_eq!(attempt(&mut world, device, 0, true, "d/1"), refusal);
}

#[test]
fn policy_vhost_alone_changes_no_address() {
    let mut settings = tenants(Some("vh1"));
    settings.listeners[0].multi_tenant = false;
    settings.routes.push(prefix("d", Direction::In, to("HUB")));
    let mut world = World::new(settings);
    let device = device_on(&mut world, Some("vh1"));
    assert_eq!(attempt(&mut world, device, 0, true, "d/1"), at("d/1"));
}

#[test]
fn external_prefixes_come_after_the_virtual_host() {
    let mut settings = tenants(None);
    for route in &mut settings.routes {
        route.add_external_prefix = "hub1/".into();
        route.del_external_prefix = "vh1/".into();
    }
    let mut world = World::new(settings);
    let device = device_on(&mut world, Some("vh1"));
    assert_eq!(attempt(&mut world, device, 0, true, "/d/1"), at("hub1/d/1"));
    assert_eq!(answered(&mut world, device, true), "vh1/d/1");
}

/// Of two routes with one pattern, which one it was is known only when the container is.
#[test]
fn an_attach_that_has_waited_gets_the_prefix_of_the_container_that_came() {
    for (container, expected) in [("x", "px/ext/q"), ("y", "py/ext/q")] {
        let mut settings = settings();
        settings.routes = ["x", "y"]
            .map(|container| {
                let destination = Destination::Container(container.into());
                let mut route = prefix("ext", Direction::In, destination);
                route.add_external_prefix = format!("p{container}/");
                route
            })
            .into();
        let mut world = World::new(settings);
        world.hub = None;
        let device = world.device("dev");
        world.peer(device).skip();
        world.peer(device).attach(0, 0, "l", true, "ext/q");
        world.run();
        world.answer_dial_of(HUB, container, HUB_AUTO, Announces::default());
        world.run();
        assert_eq!(outcome(&mut world, device, "l", true), at(expected));
        assert_eq!(answered(&mut world, device, true), "ext/q");
    }
}

#[test]
fn an_attach_that_waits_through_a_reload_gets_the_prefix_of_the_new_routes() {
    let mut world = World::new(prefixed("old/", "ext/"));
    world.hub = None;
    let device = world.device("dev");
    world.peer(device).skip();
    world.peer(device).attach(0, 0, "l", true, "ext/q");
    world.run();
    let reloaded = world.reload(prefixed("new/", "ext/"));
    assert_eq!(reloaded.unchanged, 1);
    world.answer_dial(HUB_AUTO, Announces::default());
    world.run();
    assert_eq!(outcome(&mut world, device, "l", true), at("new/q"));
    assert_eq!(answered(&mut world, device, true), "ext/q");
}
