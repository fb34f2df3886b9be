//! Addresses as Azure's clients write them: the host of a gateway in place of the hub's, ids with characters that mean
//! something elsewhere, and devices that tell themselves apart by nothing but their address.

use std::collections::BTreeSet;

use linkrouterd::amqp::value::Value;
use linkrouterd::router::settings::{CbsMode, Direction, ListenerId, ListenerRole, Matcher, RouterSettings};
use proptest::prelude::*;
use proptest::sample::select;

use crate::peer::Announces;
use crate::scenarios_routes::{
    HUB, Outcome, SECOND, address_of, at, attempt, both, outcome, prefix, route, to,
};
use crate::wire::{self, Frame, condition, described, error, string, terminus};
use crate::world::{DEVICE_AUTO, HUB_AUTO, PeerId, World, host, settings};

/// A connector that answers `$cbs` itself, and whose hub, `hub.example`, is to see no other host. What a device has
/// authorised is not the matter here.
fn relaying() -> RouterSettings {
    let mut settings = settings();
    for connector in &mut settings.connectors {
        connector.sharing.cbs = CbsMode::Relay;
        connector.sharing.checks_identity = false;
    }
    settings
}

const fn routed(is_sender: bool) -> usize {
    if is_sender { 6 } else { 5 }
}

/// The address in the last answer to a device.
fn answered(world: &mut World, device: PeerId, is_sender: bool) -> String {
    let log = &world.peer(device).log;
    let answer = log.iter().rfind(|frame| frame.code == wire::ATTACH);
    let terminus = answer.expect("an answer").field(routed(is_sender));
    address_of(terminus).expect("an address").into()
}

/// Attaches a link, and has it answered.
fn exchange(
    world: &mut World,
    device: PeerId,
    is_sender: bool,
    address: &str,
    reply: impl FnOnce(&str) -> Value,
) -> (String, Frame) {
    world.peer(device).attach(0, 0, "l", is_sender, address);
    world.run();
    answer(world, device, is_sender, reply)
}

/// The hub answers the last attach with this in place of the routed terminus: what it was asked for, and what the device
/// is answered with.
fn answer(
    world: &mut World,
    device: PeerId,
    is_sender: bool,
    reply: impl FnOnce(&str) -> Value,
) -> (String, Frame) {
    world.peer(device).skip();
    let hub = world.hub();
    let attach = hub.log.iter().rfind(|frame| frame.code == wire::ATTACH);
    let mut attach = attach.expect("an attach").clone();
    let channel = *hub.sessions.keys().next().expect("a session");
    let asked = address_of(attach.field(routed(is_sender)))
        .expect("an address")
        .to_owned();
    *attach.fields.get_mut(routed(is_sender)).expect("a terminus") = reply(&asked);
    hub.answer_attach(&attach, channel, 5);
    world.run();
    (asked, world.peer(device).expect(wire::ATTACH))
}

/// A hub that leaves its answers to the test.
fn scripted(settings: RouterSettings) -> World {
    let mut world = World::new(settings);
    let mut auto = HUB_AUTO;
    auto.attach = false;
    world.hub = Some((auto, Announces::default()));
    world
}

#[test]
fn a_host_that_is_not_the_hubs_becomes_the_hubs_and_the_device_sees_its_own() {
    let hubs = "amqps://hub.example/devices/d1/messages/events";
    for (written, at_hub) in [
        ("amqps://gateway/devices/d1/messages/events", hubs),
        ("amqps://gateway:5671/devices/d1/messages/events", hubs),
        ("amqps://192.168.1.7:5672/devices/d1/messages/events", hubs),
        (
            "amqp://gateway/devices/d1/messages/events",
            "amqp://hub.example/devices/d1/messages/events",
        ),
    ] {
        for is_sender in [true, false] {
            let mut world = World::new(relaying());
            let device = world.device("dev");
            assert_eq!(attempt(&mut world, device, 0, is_sender, written), at(at_hub));
            assert_eq!(answered(&mut world, device, is_sender), written);
        }
    }
}

#[test]
fn what_names_no_host_or_the_hubs_is_carried_as_it_is_written() {
    let mut world = World::new(relaying());
    let device = world.device("dev");
    let written = [
        "devices/d1/messages/events",
        "/devices/d1/messages/events",
        "amqps:devices/d1/messages/events",
        "amqps:/devices/d1/messages/events",
        "amqps:///devices/d1/messages/events",
        "amqps://hub.example/devices/d1/messages/events",
        "amqps://hub.example:5671/devices/d1/messages/events",
        "amqps://HUB.example/devices/d1/messages/events",
        "//gateway/devices/d1",
    ];
    let mut settings = relaying();
    settings
        .routes
        .extend(both(|way| prefix("gateway", way, to("HUB"))));
    world.reload(settings);
    for (handle, &(address, is_sender)) in written
        .iter()
        .flat_map(|&address| [(address, true), (address, false)])
        .collect::<Vec<_>>()
        .iter()
        .enumerate()
    {
        let handle = u32::try_from(handle).expect("few");
        assert_eq!(
            attempt(&mut world, device, handle, is_sender, address),
            at(address)
        );
        assert_eq!(answered(&mut world, device, is_sender), address);
    }
}

/// qdrouterd: addresses go on as they are written.
#[test]
fn a_tunnel_and_a_broker_on_a_listener_see_what_the_device_writes() {
    let written = "amqps://gateway:5671/devices/d1";
    let mut world = World::new(settings());
    let device = world.device("dev");
    assert_eq!(attempt(&mut world, device, 0, true, written), at(written));
    assert_eq!(answered(&mut world, device, true), written);

    let mut settings = relaying();
    let mut listener = settings.listeners[0].clone();
    listener.name = "brokers".into();
    listener.role = ListenerRole::RouteContainer;
    settings.listeners.push(listener);
    settings.routes = both(|way| prefix("devices", way, to("brokers"))).into();
    let mut world = World::new(settings);
    world.broker(ListenerId(1), "broker");
    let device = world.device("dev");
    assert_eq!(attempt(&mut world, device, 0, true, written), at(written));
}

/// Only the terminus that the hub takes for its own changes, and of that only the address.
#[test]
fn the_other_terminus_keeps_the_gateways_host() {
    for is_sender in [true, false] {
        let mut world = World::new(relaying());
        let device = world.device("dev");
        let written = "amqps://gateway/devices/d1";
        let (source, target) = (terminus(0x28, written), terminus(0x29, written));
        world.peer(device).skip();
        world
            .peer(device)
            .attach_with(0, 0, "l", is_sender, source.clone(), target.clone());
        world.run();
        let hub = world.hub();
        let attach = hub.log.iter().find(|frame| frame.code == wire::ATTACH);
        let attach = attach.expect("an attach");
        let seen = [5, 6].map(|field| address_of(attach.field(field)).expect("an address"));
        let own = "amqps://hub.example/devices/d1";
        assert_eq!(seen, if is_sender { [written, own] } else { [own, written] });
        let answer = world.peer(device).expect(wire::ATTACH);
        assert_eq!((answer.field(5), answer.field(6)), (&source, &target));
    }
}

/// However the hub writes the address: as it was asked, as a path, in other case, in full.
#[test]
fn a_hub_that_normalises_is_answered_for_with_the_devices_own_text() {
    let written = "amqps://Gateway:5671/devices/D-1/messages/deviceBound";
    for answer in [
        "amqps://hub.example/devices/D-1/messages/deviceBound",
        "/devices/D-1/messages/devicebound",
        "devices/D-1/messages/devicebound",
        "amqps://HUB.EXAMPLE:5671/devices/D-1/messages/deviceBound",
        written,
    ] {
        for is_sender in [true, false] {
            let mut world = scripted(relaying());
            let device = world.device("dev");
            let code = if is_sender { 0x29 } else { 0x28 };
            let (_, seen) = exchange(&mut world, device, is_sender, written, |_| terminus(code, answer));
            assert_eq!(
                seen.field(routed(is_sender)),
                &terminus(code, written),
                "{answer}"
            );
        }
    }
}

/// A null terminus stays null, and then the detach; a hub that echoes what it refuses shows the device its own text.
#[test]
fn a_refusal_by_the_hub_names_the_devices_own_address_or_none() {
    let written = "amqps://gateway/devices/d1";
    for is_sender in [true, false] {
        for (echoes, expected) in [(true, Some(written)), (false, None)] {
            let mut world = scripted(relaying());
            let device = world.device("dev");
            let code = if is_sender { 0x29 } else { 0x28 };
            let (asked, seen) = exchange(&mut world, device, is_sender, written, |asked| {
                if echoes {
                    terminus(code, asked)
                } else {
                    Value::Null
                }
            });
            assert_eq!(asked, "amqps://hub.example/devices/d1");
            assert_eq!(address_of(seen.field(routed(is_sender))), expected);
            let hub = world.hub();
            let channel = *hub.sessions.keys().next().expect("a session");
            let why = error("amqp:unauthorized-access", "no token", Value::Null);
            hub.detach(channel, 5, true, why.clone());
            world.run();
            let detach = world.peer(device).expect(wire::DETACH);
            assert_eq!((detach.flag(1), detach.field(2)), (true, &why));
            world.peer(device).expect_nothing();
        }
    }
}

/// What the router refuses itself repeats what the device wrote, and says so.
#[test]
fn a_refusal_by_the_router_repeats_the_device() {
    let mut world = World::new(relaying());
    let device = world.device("dev");
    let written = "amqps://gateway/other";
    world.peer(device).skip();
    let other = terminus(0x28, written);
    world
        .peer(device)
        .attach_with(0, 0, "l", true, other.clone(), terminus(0x29, written));
    world.run();
    let answer = world.peer(device).expect(wire::ATTACH);
    assert_eq!((answer.field(5), answer.field(6)), (&other, &Value::Null));
    let detach = world.peer(device).expect(wire::DETACH);
    assert_eq!(condition(detach.field(2)), Some("amqp:not-found"));
    assert_eq!(world.hubs_made, 0);
}

/// The name is that of the connection that the attach goes out on, not of the one that it has waited for.
#[test]
fn an_attach_that_has_waited_names_the_hub_that_came() {
    for (server_name, expected) in [
        (None, "amqps://standby.example/devices/d1"),
        (Some("known.example"), "amqps://known.example/devices/d1"),
    ] {
        let mut settings = relaying();
        let connector = settings.connectors.first_mut().expect("a connector");
        connector.failover = vec![host("standby.example")];
        connector.server_name = server_name.map(str::to_owned);
        let mut world = World::new(settings);
        world.hub = None;
        let device = world.device("dev");
        world.peer(device).skip();
        let written = "amqps://gateway/devices/d1";
        world.peer(device).attach(0, 0, "l", true, written);
        world.run();
        world.fail_dial();
        world.advance(std::time::Duration::from_secs(2));
        world.answer_dial_of(HUB, "hub", HUB_AUTO, Announces::default());
        world.run();
        assert_eq!(outcome(&mut world, device, "l", true), at(expected));
        assert_eq!(answered(&mut world, device, true), written);
    }
}

#[test]
fn an_attach_that_moves_names_the_hub_that_it_moves_to() {
    let mut settings = relaying();
    let mut second = settings.connectors[0].clone();
    second.name = "HUB2".into();
    second.host = host("other.example");
    settings.connectors.push(second);
    settings
        .routes
        .extend(both(|way| prefix("devices/", way, to("HUB2"))));
    let mut world = World::new(settings);
    world.hub = None;
    let device = world.device("dev");
    world.peer(device).skip();
    let written = "amqps://gateway/devices/d1";
    world.peer(device).attach(0, 0, "l", true, written);
    world.run();
    let first = world.dials[0];
    world.fail_dial();
    world.run();
    let moved_to = if first == HUB { SECOND } else { HUB };
    world.answer_dial_of(moved_to, "hub", HUB_AUTO, Announces::default());
    world.run();
    let host = if moved_to == HUB {
        "hub.example"
    } else {
        "other.example"
    };
    let expected = at(&format!("amqps://{host}/devices/d1"));
    assert_eq!(outcome(&mut world, device, "l", true), expected);
    assert_eq!(answered(&mut world, device, true), written);
}

/// A prefix of a route belongs to the path; a tenant's address has a virtual host in place of the gateway's.
#[test]
fn hosts_prefixes_and_tenants_together() {
    let mut settings = relaying();
    settings.routes = both(|way| {
        let mut route = prefix("ext", way, to("HUB"));
        route.add_external_prefix = "devices/".into();
        route.del_external_prefix = "ext/".into();
        route
    })
    .into();
    for (written, at_hub) in [
        ("amqps://gateway/ext/d1", "amqps://hub.example/devices/d1"),
        (
            "amqps://hub.example:5671/ext/d1",
            "amqps://hub.example:5671/devices/d1",
        ),
        ("ext/d1", "devices/d1"),
    ] {
        for is_sender in [true, false] {
            let mut world = World::new(settings.clone());
            let device = world.device("dev");
            assert_eq!(attempt(&mut world, device, 0, is_sender, written), at(at_hub));
            assert_eq!(answered(&mut world, device, is_sender), written);
        }
    }
    let mut settings = relaying();
    settings.listeners[0].multi_tenant = true;
    settings.routes = both(|way| prefix("vh1/d", way, to("HUB"))).into();
    let mut world = World::new(settings);
    let device = world
        .connect("dev", DEVICE_AUTO, Announces::default())
        .expect("room");
    world.peer(device).hostname = Some("vh1".into());
    world.peer(device).open();
    world.peer(device).begin(0);
    world.run();
    let found = attempt(&mut world, device, 0, true, "amqps://gateway:5671/d/1");
    assert_eq!(found, at("vh1/d/1"));
}

/// Of a thousand links that say nothing, none costs the text of its address.
#[test]
fn an_idle_link_keeps_nothing_of_its_address() {
    let mut world = scripted(relaying());
    let device = world.device("dev");
    let written = "amqps://gateway:5671/devices/d1/messages/deviceBound";
    let held = |world: &World| {
        let state = format!("{:#?}", world.router);
        ["gateway", "hub.example/devices"].map(|text| state.contains(text))
    };
    world.peer(device).attach(0, 0, "l", false, written);
    world.run();
    assert_eq!(held(&world), [true, true], "for the answer");
    let (asked, seen) = answer(&mut world, device, false, |asked| terminus(0x28, asked));
    assert_eq!(asked, "amqps://hub.example/devices/d1/messages/deviceBound");
    assert_eq!(seen.field(5), &terminus(0x28, written));
    assert_eq!(held(&world), [false, false]);
}

/// What a device says in its messages is not the router's.
#[test]
fn the_to_of_a_message_keeps_the_gateways_host() {
    let mut world = World::new(relaying());
    let device = world.device("dev");
    let written = "amqps://gateway/devices/d1/messages/events";
    assert!(matches!(
        attempt(&mut world, device, 0, true, written),
        Outcome::At(_)
    ));
    let (channel, handle) = world.hub().find("link0@dev", false).expect("attached");
    world.hub().grant(channel, handle, 1);
    world.run();
    let mut message = Vec::new();
    described(0x73, vec![Value::Null, Value::Null, string(written)]).encode(&mut message);
    described(0x77, vec![]).encode(&mut message);
    world.peer(device).send(0, 0, &message, true);
    world.run();
    let received = &world.hub().link(channel, handle).received;
    assert_eq!(
        received.iter().map(|d| &d.payload).collect::<Vec<_>>(),
        [&message]
    );
}

/// The fixed segments in the case of each SDK, and every character that IoT Hub allows in a device's id: none of them is a
/// pattern, a query or an escape here, and `%23` is not `#`.
#[test]
fn ids_and_segments_are_carried_letter_for_letter() {
    let ids = [
        "a-b", "a.b", "a+b", "a%b", "a_b", "a#b", "#", "a*b", "*", "a?b", "a!b", "a(b)", "a,b", "a:b", ":",
        "a=b", "a@b", "a$b", "$cbs", "a'b", "%23", "a%2Fb", "a%252Fb", "%C3%A4", "a b", "amqps:", "D1", "d1",
    ];
    let ends = [
        "messages/events",
        "messages/deviceBound",
        "messages/devicebound",
        "methods/deviceBound",
        "twin",
        "modules/m#1/messages/events",
    ];
    let (mut world, mut handle) = (World::new(relaying()), 0);
    let device = world.device("dev");
    for id in ids {
        for end in ends {
            let path = format!("devices/{id}/{end}");
            for (written, at_hub) in [
                (path.clone(), path.clone()),
                (format!("/{path}"), format!("/{path}")),
                (
                    format!("amqps://gateway:5671/{path}"),
                    format!("amqps://hub.example/{path}"),
                ),
            ] {
                let is_sender = handle % 2 == 0;
                assert_eq!(
                    attempt(&mut world, device, handle, is_sender, &written),
                    at(&at_hub)
                );
                assert_eq!(answered(&mut world, device, is_sender), written);
                handle += 1;
            }
        }
    }
}

/// The program of the article on fifty boards: one container-id, the same two link names in a session of the same
/// number, and a device id each.
#[test]
fn fifty_identical_devices_at_once_are_told_apart_on_one_connection() {
    let mut world = World::new(relaying());
    world.hub = None;
    let devices: Vec<PeerId> = (0..50).map(|_| world.device("AMQPNetLite-1")).collect();
    for (number, &device) in devices.iter().enumerate() {
        let peer = world.peer(device);
        peer.skip();
        peer.attach(
            0,
            0,
            "send-link",
            true,
            &format!("/devices/d{number}/messages/events"),
        );
        let bound = format!("/devices/d{number}/messages/deviceBound");
        peer.attach(0, 1, "receive-link", false, &bound);
        peer.grant(0, 1, 10);
    }
    world.run();
    let mut auto = HUB_AUTO;
    (auto.credit, auto.accept) = (10, true);
    world.answer_dial_of(HUB, "hub", auto, Announces::default());
    world.run();
    assert_eq!(world.hubs_made, 1);
    let names: BTreeSet<_> = world
        .hub()
        .log
        .iter()
        .filter(|f| f.code == wire::ATTACH)
        .map(|f| f.text(0).map(str::to_owned))
        .collect();
    assert_eq!(names.len(), 100, "every name once");

    // Telemetry: each device's comes in at its own address.
    for (number, &device) in devices.iter().enumerate() {
        let number = u8::try_from(number).expect("few");
        world.peer(device).send(0, 0, &[number], false);
    }
    world.run();
    for (number, &device) in devices.iter().enumerate() {
        let number = u8::try_from(number).expect("few");
        let (channel, handle) = place_of(&mut world, &format!("/devices/d{number}/messages/events"), true);
        let received = &world.hub().link(channel, handle).received;
        assert_eq!(
            received.iter().map(|d| &*d.payload).collect::<Vec<_>>(),
            [[number]]
        );
        let peer = world.peer(device);
        assert_eq!(peer.link(0, 0).name, "send-link");
        assert_eq!(peer.link(0, 0).settled.len(), 1, "d{number} is told of its own");
    }
    // Commands: each comes out where it was meant to.
    for number in 0..50u8 {
        let (channel, handle) = place_of(
            &mut world,
            &format!("/devices/d{number}/messages/deviceBound"),
            false,
        );
        world.hub().send(channel, handle, &[number], true);
    }
    world.run();
    for (number, &device) in devices.iter().enumerate() {
        let number = u8::try_from(number).expect("few");
        let received = &world.peer(device).link(0, 1).received;
        assert_eq!(
            received.iter().map(|d| &*d.payload).collect::<Vec<_>>(),
            [[number]]
        );
    }
    // One that leaves takes nobody else's links with it, and its names can be had again.
    let gone = devices[7];
    world.lose(gone);
    world.run();
    let again = world.device("AMQPNetLite-1");
    world
        .peer(again)
        .attach(0, 0, "send-link", true, "/devices/d7/messages/events");
    world.run();
    for &device in devices.iter().filter(|&&device| device != gone).chain([&again]) {
        world.peer(device).send(0, 0, b"still", false);
    }
    world.run();
    for &device in devices.iter().filter(|&&device| device != gone).chain([&again]) {
        let link = world.peer(device).link(0, 0);
        assert!(link.detached.is_none() && link.unsettled.is_empty(), "{link:?}");
    }
}

/// Where the hub has the link with this address.
fn place_of(world: &mut World, address: &str, device_sends: bool) -> (u16, u32) {
    let hub = world.hub();
    let attach = hub
        .log
        .iter()
        .rfind(|f| f.code == wire::ATTACH && address_of(f.field(routed(device_sends))) == Some(address));
    let name = attach.and_then(|f| f.text(0)).expect("an attach").to_owned();
    hub.find(&name, !device_sends).expect("a link")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever a device writes, and however the hub writes that: the device is answered with its own text, and the hub
    /// sees its own name or what was written, with the path untouched.
    #[test]
    fn the_device_always_gets_its_own_text_back(
        scheme in select(vec!["", "/", "//", "amqps://", "amqp://", "AMQPS://", "amqps:", "amqps:/", "http://", "topic://"]),
        authority in prop_oneof![
            Just(String::new()), "[a-z.]{1,12}(:[0-9]{1,5})?", "[a-zA-Z0-9:@.%\\[\\]-]{0,16}",
            Just("hub.example".to_owned()), Just("HUB.example:5671".to_owned()),
        ],
        path in "[a-zA-Z0-9/#?*%+$(),:=@'._-]{0,40}",
        answers_with in 0..5usize, is_sender in any::<bool>(),
    ) {
        let written = match scheme.ends_with("//") {
            true => format!("{scheme}{authority}/devices/{path}"),
            false => format!("{scheme}devices/{path}"),
        };
        let mut settings = relaying();
        let way = if is_sender { Direction::In } else { Direction::Out };
        settings.routes = vec![route(
            Matcher::Pattern("#".into()), way, to("HUB"),
        )];
        let mut world = scripted(settings);
        let device = world.device("dev");
        let code = if is_sender { 0x29 } else { 0x28 };
        let (asked, seen) = exchange(&mut world, device, is_sender, &written, |asked| {
            let answer = match answers_with {
                0 | 1 => asked.to_owned(),
                // Only a hub that was asked for a URL has a host to say or to leave out.
                _ if asked == written => asked.to_owned(),
                2 => asked.to_ascii_lowercase(),
                3 => format!("/devices/{path}"),
                _ => written.clone(),
            };
            terminus(code, &answer)
        });
        prop_assert_eq!(seen.field(routed(is_sender)), &terminus(code, &written));
        if asked != written {
            let kept = scheme.trim_end_matches('/');
            prop_assert_eq!(&asked, &format!("{kept}//hub.example/devices/{path}"));
            prop_assert!(kept.eq_ignore_ascii_case("amqp:") || kept.eq_ignore_ascii_case("amqps:"));
        }
    }
}
