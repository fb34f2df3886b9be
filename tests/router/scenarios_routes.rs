//! Which route an attach takes, and which of the connections that serve it. Numbers at the end of a name are those of
//! the section on `qdrouterd`'s behaviour that the test shows; a difference from 1.19 is told where there is one.

use linkrouterd::amqp::value::Value;
use linkrouterd::router::settings::{
    ConnectorId, ConnectorSettings, Destination, Direction, ErrorConditions, Matcher, RouteSettings,
    RouterSettings,
};

use crate::peer::Announces;
use crate::wire::{self, composite, condition, described, string, symbol, terminus};
use crate::world::{DEVICE_AUTO, HUB_AUTO, PeerId, World, settings};

pub(crate) const HUB: ConnectorId = ConnectorId(0);
pub(crate) const SECOND: ConnectorId = ConnectorId(1);

pub(crate) fn to(name: &str) -> Destination {
    Destination::Connection(name.into())
}

pub(crate) fn route(matcher: Matcher, direction: Direction, destination: Destination) -> RouteSettings {
    RouteSettings {
        name: format!("{matcher:?} {direction:?} {destination:?}"),
        matcher,
        direction,
        destination,
        add_external_prefix: String::new(),
        del_external_prefix: String::new(),
    }
}

pub(crate) fn prefix(text: &str, direction: Direction, destination: Destination) -> RouteSettings {
    route(Matcher::Prefix(text.into()), direction, destination)
}

fn pattern(text: &str, direction: Direction, destination: Destination) -> RouteSettings {
    route(Matcher::Pattern(text.into()), direction, destination)
}

pub(crate) fn both(make: impl Fn(Direction) -> RouteSettings) -> [RouteSettings; 2] {
    [Direction::In, Direction::Out].map(make)
}

pub(crate) fn second_connector(settings: &mut RouterSettings) -> &mut ConnectorSettings {
    let mut second = settings.connectors.first().expect("a connector").clone();
    second.name = "HUB2".into();
    settings.connectors.push(second);
    settings.connectors.last_mut().expect("just pushed")
}

/// What became of an attach.
#[derive(Debug, PartialEq)]
pub(crate) enum Outcome {
    /// Tunnelled: the address as the hub saw it.
    At(String),
    /// Refused with a null terminus and this condition.
    Refused(String),
}

/// Attaches one link of its own name, and reads what the hub or the device was told.
pub(crate) fn attempt(
    world: &mut World,
    device: PeerId,
    handle: u32,
    is_sender: bool,
    address: &str,
) -> Outcome {
    let name = format!("link{handle}");
    world.peer(device).skip();
    world.peer(device).attach(0, handle, &name, is_sender, address);
    world.run();
    outcome(world, device, &name, is_sender)
}

pub(crate) fn outcome(world: &mut World, device: PeerId, name: &str, is_sender: bool) -> Outcome {
    let answer = world.peer(device).expect(wire::ATTACH);
    let routed = if is_sender { 6 } else { 5 };
    if answer.field(routed) == &Value::Null {
        let detach = world.peer(device).expect(wire::DETACH);
        assert!(detach.flag(1), "closed: {detach:?}");
        return Outcome::Refused(condition(detach.field(2)).expect("a condition").into());
    }
    let at_hub = format!("{name}@{}", world.peer(device).container);
    let mut attaches = world.peers.iter().flat_map(|transport| &transport.peer.log);
    let attach = attaches
        .rfind(|frame| frame.code == wire::ATTACH && frame.text(0) == Some(&at_hub))
        .expect("the hub's end");
    Outcome::At(address_of(attach.field(routed)).expect("an address").into())
}

pub(crate) fn address_of(terminus: &Value) -> Option<&str> {
    composite(terminus)?.1.first()?.as_text()
}

pub(crate) fn refused(condition: &str) -> Outcome {
    Outcome::Refused(condition.into())
}

pub(crate) fn at(address: &str) -> Outcome {
    Outcome::At(address.into())
}

/// How many links of the device each of these hubs has.
pub(crate) fn shares(world: &mut World, hubs: &[PeerId]) -> Vec<usize> {
    hubs.iter()
        .map(|&hub| {
            world
                .peer(hub)
                .sessions
                .values()
                .map(|session| session.links.len())
                .sum()
        })
        .collect()
}

// ---- 5.1 to 5.4: direction, address, patterns --------------------------------------------------------------------------

#[test]
fn the_target_decides_for_a_sender_and_the_source_for_a_receiver_5_1() {
    let mut settings = settings();
    settings.routes = vec![
        prefix("in", Direction::In, to("HUB")),
        prefix("out", Direction::Out, to("HUB")),
    ];
    let mut world = World::new(settings);
    let device = world.device("dev");
    for (handle, is_sender, source, target, is_routed) in [
        (0, true, "out", "in/1", true),
        (1, true, "in/1", "out/1", false),
        (2, false, "out/1", "in", true),
        (3, false, "in/1", "out/1", false),
    ] {
        world.peer(device).skip();
        let (source, target) = (terminus(0x28, source), terminus(0x29, target));
        world
            .peer(device)
            .attach_with(0, handle, "l", is_sender, source, target);
        world.run();
        let found = outcome(&mut world, device, "l", is_sender);
        assert_eq!(
            found != refused("amqp:not-found"),
            is_routed,
            "{handle}: {found:?}"
        );
        if is_routed {
            world.peer(device).detach(0, handle, true, Value::Null);
            world.run();
        }
    }
}

/// 1.19 reads `//devices/d1` and `devices/d:/x` as URLs, and so does not route them, and routes `d:/devices/q`: those
/// three rows are other here. Whatever is matched, the hub sees the device's own text.
#[test]
fn the_proof_table_for_senders_and_receivers_5_2_to_5_4() {
    let mut settings = settings();
    settings.routes = ["$cbs/", "devices/", "messages/devicebound"]
        .iter()
        .flat_map(|text| both(|way| prefix(text, way, to("HUB"))))
        .chain(
            ["p/*/x/#", "q.*", "exact"]
                .iter()
                .flat_map(|text| both(|way| pattern(text, way, to("HUB")))),
        )
        .collect();
    let mut world = World::new(settings);
    let device = world.device("dev");
    let routed = [
        "$cbs",
        "$cbs/",
        "$cbs/x",
        "$cbs.x",
        "/$cbs",
        "devices",
        "devices/",
        "devices/d1/messages/events",
        "/devices/d1/messages/events",
        "//devices/d1",
        "///devices/d1",
        "amqp://h/devices/d1",
        "amqps://hub.azure-devices.net/devices/d1/messages/events",
        "amqps://hub.azure-devices.net:5671/devices/d1/messages/events",
        "http://x/devices/y",
        "amqp:/devices/d1",
        "devices.d1.x",
        ".devices/d1",
        "messages/devicebound",
        "/messages/devicebound",
        "/messages/devicebound/",
        "messages/devicebound/x",
        "messages/devicebound.x",
        "p/1/x",
        "p/1/x/y/z",
        "p.1.x",
        "p//x",
        "q.1",
        "q/1",
        "exact",
        "exact/",
        "/exact",
        "devices//x",
        "devices/d:/x",
    ];
    let unrouted = [
        "$cbsx",
        "$CBS",
        "Devices/d1",
        "messages/deviceBound",
        "messages",
        "p/1/y",
        "q",
        "q/",
        "q/1/2",
        "exact/1",
        "d:/devices/q",
        "x:y/devices/q",
        "/x/devices",
        "hub.azure-devices.net/devices/d1",
        "devicesX/d1",
    ];
    let mut handle = 0;
    for is_sender in [true, false] {
        for address in routed {
            let found = attempt(&mut world, device, handle, is_sender, address);
            assert_eq!(found, at(address), "byte for byte");
            handle += 1;
        }
        for address in unrouted {
            let found = attempt(&mut world, device, handle, is_sender, address);
            assert_eq!(found, refused("amqp:not-found"), "{address}");
            handle += 1;
        }
    }
}

/// Exact text before `*` before `#`, at each token, whatever the order of the routes in the file.
#[test]
fn the_most_specific_route_wins_5_3() {
    let mut settings = settings();
    second_connector(&mut settings);
    settings.routes = vec![
        pattern("#", Direction::In, to("HUB")),
        pattern("*/x", Direction::In, to("HUB2")),
        prefix("bal", Direction::In, to("HUB")),
        prefix("bal/deep", Direction::In, to("HUB2")),
        pattern("a/*/z", Direction::In, to("HUB")),
        pattern("a/b/z", Direction::In, to("HUB2")),
    ];
    let mut world = World::new(settings);
    world.hub = None;
    let device = world.device("dev");
    world.peer(device).attach(0, 100, "a", true, "q");
    world.peer(device).attach(0, 101, "b", true, "q/x");
    world.run();
    assert_eq!(world.dials, [HUB, SECOND]);
    let hubs = [HUB, SECOND].map(|id| world.answer_dial_of(id, "hub", HUB_AUTO, Announces::default()));
    world.run();
    let before = shares(&mut world, &hubs);
    assert_eq!(before, [1, 1]);
    for (handle, address, expected) in [
        (0, "bal/1", 0),
        (1, "bal/deep/1", 1),
        (2, "bal", 0),
        (3, "a/c/z", 0),
        (4, "a.b.z", 1),
        (5, "y/x", 1),
        (6, "no/route/but/hash", 0),
    ] {
        let before = shares(&mut world, &hubs);
        attempt(&mut world, device, handle, true, address);
        let after = shares(&mut world, &hubs);
        let grown: Vec<usize> = (0..2).filter(|&hub| after[hub] > before[hub]).collect();
        assert_eq!(grown, [expected], "{address}");
    }
}

// ---- 5.5: what becomes of an attach ------------------------------------------------------------------------------------

/// 1.19 takes the sender without an address for an anonymous relay, and makes dynamic addresses up itself: here links are
/// routed, or refused at once.
#[test]
fn an_attach_that_names_no_route_is_refused_at_once_5_5() {
    let mut world = World::new(settings());
    let device = world.device("dev");
    let dynamic = |code: u64, properties: Value| {
        let (no, end) = (Value::Boolean(true), symbol("session-end"));
        described(
            code,
            vec![Value::Null, wire::uint(0), end, wire::uint(0), no, properties],
        )
    };
    let other_key = Value::Map(vec![(symbol("other"), string("devices/d1"))]);
    let cases: Vec<(bool, Value, &str, &str)> = vec![
        (
            true,
            terminus(0x29, "queue"),
            "amqp:not-found",
            "direction in matches the address 'queue'",
        ),
        (
            false,
            terminus(0x28, "queue"),
            "amqp:not-found",
            "direction out matches the address 'queue'",
        ),
        (true, Value::Null, "amqp:not-found", "target names no address"),
        (
            true,
            terminus(0x29, ""),
            "amqp:not-found",
            "target names no address",
        ),
        (
            true,
            described(0x29, vec![]),
            "amqp:not-found",
            "target names no address",
        ),
        (false, Value::Null, "amqp:not-found", "source names no address"),
        (
            false,
            dynamic(0x28, Value::Null),
            "amqp:not-found",
            "dynamic source is routed by x-opt-qd.address",
        ),
        (
            false,
            dynamic(0x28, other_key.clone()),
            "amqp:not-found",
            "x-opt-qd.address",
        ),
        (
            true,
            dynamic(0x29, other_key),
            "amqp:not-found",
            "dynamic target is routed by x-opt-qd.address",
        ),
        (
            true,
            described(0x30, vec![]),
            "amqp:precondition-failed",
            "can't coordinate transactions by itself",
        ),
    ];
    for (handle, (is_sender, routed, expected, text)) in (0..).zip(cases) {
        let (source, target) = match is_sender {
            true => (terminus(0x28, "here"), routed),
            false => (routed, terminus(0x29, "here")),
        };
        world.peer(device).skip();
        world
            .peer(device)
            .attach_with(0, handle, "l", is_sender, source.clone(), target.clone());
        world.run();
        let answer = world.peer(device).expect(wire::ATTACH);
        let (kept, gone) = if is_sender { (5, 6) } else { (6, 5) };
        assert_eq!(answer.field(gone), &Value::Null, "{text}");
        assert_eq!(
            answer.field(kept),
            if is_sender { &source } else { &target },
            "the other is echoed"
        );
        let detach = world.peer(device).expect(wire::DETACH);
        assert!(detach.flag(1));
        let (_, error) = composite(detach.field(2)).expect("an error");
        assert_eq!(error.first().and_then(Value::as_text), Some(expected), "{text}");
        let description = error.get(1).and_then(Value::as_text).unwrap_or_default();
        assert!(description.contains(text), "{description}");
    }
    assert!(
        world.hubs_made == 0 && world.dials.is_empty(),
        "nobody was dialed for them"
    );
}

/// 1.19 also refuses at once while a connector is down: here the attach waits for it. What nobody can be dialed for is
/// refused at once with its condition.
#[test]
fn a_route_to_a_container_that_nobody_is_has_no_route_to_dest_5_5() {
    let mut settings = settings();
    settings.error_conditions = ErrorConditions::Qd;
    settings.routes = vec![
        prefix("c", Direction::In, Destination::Container("elsewhere".into())),
        prefix(
            "$coordinator",
            Direction::In,
            Destination::Container("elsewhere".into()),
        ),
        prefix("h", Direction::In, to("HUB")),
    ];
    let mut world = World::new(settings);
    let device = world.device("dev");
    assert_eq!(
        attempt(&mut world, device, 0, true, "h/1"),
        at("h/1"),
        "the hub is open, as container `hub`"
    );
    assert_eq!(
        attempt(&mut world, device, 1, true, "c/1"),
        refused("qd:no-route-to-dest")
    );
    world.peer(device).skip();
    let (source, target) = (terminus(0x28, "here"), described(0x30, vec![]));
    world.peer(device).attach_with(0, 2, "l", true, source, target);
    world.run();
    assert_eq!(
        outcome(&mut world, device, "l", true),
        refused("qd:no-route-to-dest"),
        "a coordinator, too"
    );
}

#[test]
fn addresses_that_begin_like_the_routers_own_are_routed_5_4() {
    let mut settings = settings();
    settings.routes = vec![prefix("_topo", Direction::Out, to("HUB"))];
    let mut world = World::new(settings);
    let device = world.device("dev");
    let address = "_topo/0/Router.A/$management";
    assert_eq!(attempt(&mut world, device, 0, false, address), at(address));
}

// ---- coordinators and dynamic termini ----------------------------------------------------------------------------------

#[test]
fn a_coordinator_is_routed_with_its_capabilities_and_its_transactions_go_through_5_1() {
    let mut settings = settings();
    settings.routes = vec![
        prefix("$coordinator", Direction::In, to("HUB")),
        prefix("q", Direction::In, to("HUB")),
    ];
    let mut world = World::new(settings);
    let mut auto = HUB_AUTO;
    auto.credit = 10;
    world.hub = Some((auto, Announces::default()));
    let device = world.device_with("dev", DEVICE_AUTO, Announces::default());
    let coordinator = described(0x30, vec![symbol("amqp:local-transactions")]);
    let source = terminus(0x28, "here");
    world
        .peer(device)
        .attach_with(0, 0, "tx", true, source, coordinator.clone());
    world.peer(device).attach(0, 1, "work", true, "q");
    world.run();
    let attach = world
        .hub()
        .log
        .iter()
        .find(|f| f.text(0) == Some("tx@dev"))
        .expect("tx")
        .clone();
    assert_eq!(attach.field(6), &coordinator);
    // declare, and its answer with the transaction's id
    world
        .peer(device)
        .send(0, 0, b"\x00\x53\x77\x00\x53\x31\x45", false);
    world.run();
    let (channel, tx) = world.hub().find("tx@dev", false).expect("the coordinator");
    let declared = described(0x33, vec![Value::Binary(b"tx1".to_vec())]);
    let id = world.hub().link(channel, tx).received[0].id;
    assert_eq!(
        world.hub().link(channel, tx).received[0].payload,
        b"\x00\x53\x77\x00\x53\x31\x45"
    );
    world.hub().dispose(channel, true, id, id, true, declared.clone());
    world.peer(device).skip();
    world.run();
    let answer = world.peer(device).expect_past_flows(wire::DISPOSITION);
    assert_eq!((answer.flag(3), answer.field(4)), (true, &declared));
    // a message within the transaction, and its provisional outcome
    let within = described(0x34, vec![Value::Binary(b"tx1".to_vec())]);
    let fields = vec![
        wire::uint(1),
        wire::uint(1),
        Value::Binary(vec![9]),
        wire::uint(0),
        Value::Boolean(false),
        Value::Boolean(false),
        Value::Null,
        within.clone(),
    ];
    world.hub().skip();
    world.peer(device).session(0).next_delivery = 2;
    world.peer(device).transfer_frame(0, fields, b"m");
    world.run();
    let transfer = world.hub().expect_past_flows(wire::TRANSFER);
    assert_eq!(transfer.field(7), &within);
    let (channel, work) = world.hub().find("work@dev", false).expect("the queue");
    let id = world.hub().link(channel, work).received[0].id;
    let accepted = described(
        0x34,
        vec![Value::Binary(b"tx1".to_vec()), described(0x24, vec![])],
    );
    world
        .hub()
        .dispose(channel, true, id, id, false, accepted.clone());
    world.run();
    let answer = world.peer(device).expect_past_flows(wire::DISPOSITION);
    assert_eq!((answer.flag(3), answer.field(4)), (false, &accepted));
    // discharge
    let discharge = b"\x00\x53\x77\x00\x53\x32\xc0\x07\x02\xa0\x03tx1\x42";
    world.peer(device).send(0, 0, discharge, false);
    world.run();
    let received = &world.hub().link(channel, tx).received;
    assert_eq!(received.last().expect("a discharge").payload, discharge);
}

/// In 1.19 the key must be the first of the properties.
#[test]
fn a_dynamic_terminus_is_routed_by_its_property_and_learns_its_address_from_the_hub_5_1() {
    let mut world = World::new(settings());
    let mut auto = HUB_AUTO;
    auto.attach = false;
    world.hub = Some((auto, Announces::default()));
    let device = world.device("dev");
    for (handle, is_sender, code) in [(0, false, 0x28), (1, true, 0x29)] {
        let properties = Value::Map(vec![
            (symbol("lifetime-policy"), described(0x2b, vec![])),
            (symbol("x-opt-qd.address"), string("devices/d1")),
        ]);
        let dynamic = |address: Value| {
            described(
                code,
                vec![
                    address,
                    wire::uint(0),
                    Value::Null,
                    wire::uint(0),
                    Value::Boolean(true),
                    properties.clone(),
                ],
            )
        };
        let place = |routed: Value| match is_sender {
            true => (terminus(0x28, "here"), routed),
            false => (routed, terminus(0x29, "here")),
        };
        let routed = if is_sender { 6 } else { 5 };
        let (source, target) = place(dynamic(Value::Null));
        world
            .peer(device)
            .attach_with(0, handle, "dyn", is_sender, source, target);
        world.run();
        let attach = loop {
            let frame = world.hub().next().expect("an attach");
            if frame.code == wire::ATTACH {
                break frame;
            }
        };
        assert_eq!(
            attach.field(routed),
            &dynamic(Value::Null),
            "the flag and every property go on"
        );
        let mut chosen = attach.clone();
        *chosen.fields.get_mut(routed).expect("a terminus") = dynamic(string("temp-queue://17"));
        world.peer(device).skip();
        let channel = *world.hub().sessions.keys().next().expect("a session");
        world.hub().answer_attach(&chosen, channel, 5 + handle);
        world.run();
        let answer = world.peer(device).expect(wire::ATTACH);
        assert_eq!(address_of(answer.field(routed)), Some("temp-queue://17"));
    }
}
