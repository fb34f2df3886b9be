//! Opening, time-outs, back-off, linger, limits.

use std::time::Duration;

use linkrouterd::amqp::value::Value;
use linkrouterd::router::settings::{ConnectorRole, Destination};

use crate::peer::Announces;
use crate::tunnel::UP;
use crate::wire::{self, Frame, condition, symbol};
use crate::world::{DEVICE_AUTO, HUB_AUTO, World, settings};

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[test]
fn a_device_may_come_with_sasl_or_without() {
    for mechanism in ["ANONYMOUS", "PLAIN"] {
        let mut world = World::new(settings());
        let device = world
            .connect("dev", DEVICE_AUTO, Announces::default())
            .expect("room");
        let peer = world.peer(device);
        peer.expects_sasl();
        peer.out.tail().extend(wire::SASL_HEADER);
        peer.say(&Frame::new(
            0,
            wire::SASL_INIT,
            vec![symbol(mechanism), Value::Binary(Vec::new())],
        ));
        world.run();
        let code = world
            .peer(device)
            .log
            .iter()
            .find(|frame| frame.code == wire::SASL_OUTCOME)
            .map(|frame| frame.field(0).clone());
        if mechanism == "PLAIN" {
            assert_eq!(code, Some(Value::Ubyte(1)));
            assert!(!world.is_alive(device), "refused");
            continue;
        }
        assert_eq!(code, Some(Value::Ubyte(0)));
        world.peer(device).open();
        world.run();
        assert!(world.peer(device).is_open);
    }
}

#[test]
fn another_protocol_hears_our_header_and_the_end() {
    let mut world = World::new(settings());
    let device = world
        .connect("web", DEVICE_AUTO, Announces::default())
        .expect("room");
    world.peer(device).out.tail().extend(*b"GET / HTTP/1.1\r\n\r\n");
    world.run();
    assert!(!world.is_alive(device));
    assert!(world.peer(device).log.is_empty() && world.router.is_empty());
}

#[test]
fn a_handshake_has_a_deadline() {
    for said in 0..3 {
        let mut world = World::new(settings());
        let device = world
            .connect("slow", DEVICE_AUTO, Announces::default())
            .expect("room");
        let bytes: &[u8] = [&b""[..], b"AMQP", b"AMQP\x00\x01\x00\x00\x00\x00"]
            .get(said)
            .expect("one");
        world.peer(device).out.tail().extend_from_slice(bytes);
        world.run();
        world.advance(seconds(9));
        assert!(world.is_alive(device));
        world.advance(seconds(2));
        assert!(!world.is_alive(device));
        assert!(world.router.is_empty());
    }
}

#[test]
fn heartbeats_go_at_half_of_what_the_peer_asks_and_silence_ends_a_connection() {
    let mut settings = settings();
    for limits in settings.listeners.iter_mut().map(|l| &mut l.limits) {
        limits.idle_timeout = Some(seconds(60));
    }
    let mut world = World::new(settings);
    let announces = Announces {
        idle_time_out: Some(20_000),
        ..Announces::default()
    };
    let device = world.device_with("dev", DEVICE_AUTO, announces);
    let open = world.peer(device).log.first().cloned().expect("an open");
    assert_eq!(
        open.uint(4),
        Some(30_000),
        "half of what is enforced is announced"
    );
    world.peer(device).skip();
    for _ in 0..4 {
        world.advance(seconds(10));
        // It answers, so it stays.
        world.peer(device).say(&Frame::new(0, wire::EMPTY, Vec::new()));
        world.run();
    }
    let beats = |world: &mut World| {
        world
            .peer(device)
            .log
            .iter()
            .filter(|f| f.code == wire::EMPTY)
            .count()
    };
    assert_eq!(beats(&mut world), 4);
    world.advance(seconds(59));
    assert!(world.is_alive(device));
    world.advance(seconds(2));
    assert!(!world.is_alive(device));
    let closed = world.peer(device).closed.clone().expect("told why");
    assert_eq!(condition(&closed), Some("amqp:resource-limit-exceeded"));
}

#[test]
fn failed_dials_are_tried_again_ever_less_often_while_nobody_waits() {
    let mut settings = settings();
    for connector in &mut settings.connectors {
        connector.role = ConnectorRole::Persistent;
    }
    let mut world = World::new(settings);
    world.hub = None;
    world.run();
    assert_eq!(world.dials.len(), 1, "at start");
    let mut waits = Vec::new();
    for _ in 0..7 {
        world.fail_dial();
        let before = world.now;
        while world.dials.is_empty() {
            world.advance(Duration::from_millis(100));
        }
        waits.push(world.now - before);
    }
    assert!(
        waits
            .first()
            .is_some_and(|wait| *wait >= seconds(1) && *wait <= seconds(3)),
        "{waits:?}"
    );
    assert!(
        waits
            .last()
            .is_some_and(|wait| *wait >= seconds(30) && *wait <= seconds(61)),
        "{waits:?}"
    );
    // A device that waits cuts it short, and is served when the hub is there.
    world.fail_dial();
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "up", true, UP);
    world.run();
    world.advance(seconds(3));
    assert_eq!(world.dials.len(), 1);
    world.answer_dial(HUB_AUTO, Announces::default());
    world.run();
    assert!(world.peer(device).link(0, 0).remote.is_some());
    // And again after the loss of one that has held, with nobody waiting.
    let hub = world.hub_id();
    world.advance(seconds(10));
    world.lose(hub);
    world.advance(seconds(3));
    assert_eq!(world.dials.len(), 1);
}

#[test]
fn an_on_demand_connection_without_devices_is_closed_and_dialed_again_when_needed() {
    let mut world = World::new(settings());
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "up", true, UP);
    world.run();
    let hub = world.hub_id();
    world.advance(seconds(300));
    assert!(world.is_alive(hub), "a device uses it");
    world.lose(device);
    world.advance(seconds(59));
    assert!(world.is_alive(hub));
    world.advance(seconds(2));
    assert!(!world.is_alive(hub));
    assert!(world.peer(hub).closed.is_some() && world.router.is_empty());
    let again = world.device("dev");
    world.peer(again).attach(0, 0, "up", true, UP);
    world.run();
    assert_eq!(world.hubs_made, 2, "at once, without back-off");
    assert!(world.peer(again).link(0, 0).remote.is_some());
}

#[test]
fn an_attach_while_the_unused_connection_closes_waits_for_the_next() {
    let mut world = World::new(settings());
    let mut auto = HUB_AUTO;
    auto.close = false;
    world.hub = Some((auto, Announces::default()));
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "up", true, UP);
    world.run();
    let hub = world.hub_id();
    world.lose(device);
    world.advance(seconds(61));
    assert!(
        world.peer(hub).closed.is_some() && world.is_alive(hub),
        "our close is not answered yet"
    );
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "up", true, UP);
    world.run();
    assert_eq!(world.hubs_made, 1, "a connector never has two connections");
    world.advance(seconds(6));
    assert!(!world.is_alive(hub), "it is not waited for any longer");
    assert_eq!(world.hubs_made, 2);
    assert!(world.peer(device).link(0, 0).remote.is_some());
    assert!(world.peer(device).link(0, 0).detached.is_none());
}

#[test]
fn connections_beyond_the_limit_are_dropped() {
    let mut settings = settings();
    settings.max_connections = 2;
    let mut world = World::new(settings);
    let first = world.device("one");
    world.device("two");
    assert!(
        world
            .connect("three", DEVICE_AUTO, Announces::default())
            .is_none()
    );
    world.lose(first);
    assert!(world.connect("four", DEVICE_AUTO, Announces::default()).is_some());
}

#[test]
fn a_route_to_a_container_waits_for_its_container() {
    let mut settings = settings();
    for route in &mut settings.routes {
        route.destination = Destination::Container("hub".into());
    }
    for connector in &mut settings.connectors {
        connector.role = ConnectorRole::Persistent;
    }
    let mut world = World::new(settings);
    world.hub = None;
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "up", true, UP);
    world.run();
    world.answer_dial(HUB_AUTO, Announces::default());
    world.run();
    assert!(world.peer(device).link(0, 0).remote.is_some());
}

#[test]
fn a_hub_without_room_for_another_session_refuses_one_link_only() {
    let mut settings = settings();
    for connector in &mut settings.connectors {
        connector.sharing.pool_size = 1;
    }
    let mut world = World::new(settings);
    world.hub = Some((
        HUB_AUTO,
        Announces {
            channel_max: 0,
            ..Announces::default()
        },
    ));
    let (one, two) = (world.device("one"), world.device("two"));
    for device in [one, two] {
        world.peer(device).attach(0, 0, "up", true, UP);
        world.run();
    }
    assert!(world.peer(one).link(0, 0).detached.is_none());
    let refused = world.peer(two).link(0, 0).detached.clone().expect("refused");
    assert_eq!(condition(&refused), Some("amqp:resource-limit-exceeded"));
    assert_eq!(world.router.snapshot().link_pairs, 1);
}

#[test]
fn what_a_hub_says_at_length_fits_a_device_with_small_frames() {
    let mut world = World::new(settings());
    let small = Announces {
        max_frame_size: 512,
        ..Announces::default()
    };
    let device = world.device_with("dev", DEVICE_AUTO, small);
    let other = world.device_with("other", DEVICE_AUTO, small);
    for id in [device, other] {
        world.peer(id).attach(0, 0, "up", true, UP);
        world.run();
    }
    let long = "tracking ".repeat(200);
    let info = Value::Map(vec![(symbol("k"), wire::string(&long))]);
    let error = wire::error("amqp:link:message-size-exceeded", &long, info);
    let (channel, handle) = world.hub().find("up@dev", false).expect("attached");
    world.hub().grant(channel, handle, 5);
    world.run();
    world.peer(device).send(0, 0, b"m", false);
    world.run();
    world.peer(device).skip();
    let rejected = wire::described(wire::REJECTED, vec![error.clone()]);
    world.hub().dispose(channel, true, 0, 0, true, rejected);
    world.hub().detach(channel, handle, true, error.clone());
    world.run();
    // The peer itself sees to it that no frame is too large.
    let outcome = world.peer(device).expect(wire::DISPOSITION);
    let (code, fields) = wire::composite(outcome.field(4)).expect("an outcome");
    assert_eq!((outcome.flag(3), code), (true, wire::REJECTED));
    let inner = fields.first().expect("an error");
    assert_eq!(condition(inner), Some("amqp:link:message-size-exceeded"));
    let detach = world.peer(device).expect(wire::DETACH);
    assert!(detach.flag(1));
    let (_, fields) = wire::composite(detach.field(2)).expect("an error");
    assert!(
        fields
            .get(1)
            .and_then(Value::as_text)
            .is_some_and(|text| text.starts_with("tracking "))
    );
    // An end, a refusal and a close.
    world
        .peer(device)
        .attach(0, 1, "long", true, &"nowhere/".repeat(300));
    world.run();
    assert!(world.peer(device).link(0, 1).detached.is_some());
    world.hub().end(channel, error.clone());
    world.hub().close(error);
    world.run();
    assert!(world.is_alive(device) && world.is_alive(other));
    assert!(world.peer(other).link(0, 0).detached.is_some());
}

#[test]
fn an_attach_that_no_frame_of_the_hub_holds_is_refused_and_the_hub_is_spared() {
    let mut world = World::new(settings());
    let small = Announces {
        max_frame_size: 512,
        ..Announces::default()
    };
    world.hub = Some((HUB_AUTO, small));
    let device = world.device("dev");
    world.peer(device).attach(0, 0, &"n".repeat(600), true, UP);
    world
        .peer(device)
        .attach(0, 1, "far", true, &format!("{UP}/{}", "x".repeat(5000)));
    world.peer(device).attach(0, 2, "up", true, UP);
    world.run();
    for (handle, expected) in [
        (0, "amqp:frame-size-too-small"),
        (1, "amqp:resource-limit-exceeded"),
    ] {
        let refused = world
            .peer(device)
            .link(0, handle)
            .detached
            .clone()
            .expect("refused");
        assert_eq!(condition(&refused), Some(expected));
    }
    assert!(world.peer(device).link(0, 2).detached.is_none());
    assert!(world.hub().find("up@dev", false).is_some());
    assert_eq!((world.hubs_made, world.router.snapshot().link_pairs), (1, 1));
}
