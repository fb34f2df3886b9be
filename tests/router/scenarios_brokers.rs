//! Listeners for brokers: who connects there serves routes as a hub that was dialed does.

use std::time::Duration;

use linkrouterd::amqp::value::Value;
use linkrouterd::router::settings::{
    Destination, Direction, ErrorConditions, ListenerId, ListenerRole, RouterSettings,
};

use crate::peer::Announces;
use crate::scenarios_routes::{at, attempt, both, prefix, refused, shares, to};
use crate::wire::{self, condition};
use crate::world::{DEVICE_AUTO, HUB_AUTO, World, settings};

const BROKERS: ListenerId = ListenerId(1);

/// Listener 0 for devices, listener 1 for brokers; no connector.
fn site() -> RouterSettings {
    let mut settings = settings();
    let mut brokers = settings.listeners.first().expect("a listener").clone();
    brokers.name = "BROKERS".into();
    brokers.role = ListenerRole::RouteContainer;
    settings.listeners.push(brokers);
    settings.connectors.clear();
    settings.error_conditions = ErrorConditions::Qd;
    settings.routes = both(|way| prefix("by-name", way, to("BROKERS")))
        .into_iter()
        .chain(both(|way| {
            prefix("by-id", way, Destination::Container("two".into()))
        }))
        .collect();
    settings
}

#[test]
fn a_broker_that_connects_serves_the_routes_that_name_its_listener_or_its_container_5_6() {
    let mut world = World::new(site());
    let device = world.device("dev");
    // Nobody is there, and nobody can be dialed: refused at once.
    assert_eq!(
        attempt(&mut world, device, 0, true, "by-name/1"),
        refused("qd:no-route-to-dest")
    );
    assert_eq!(
        attempt(&mut world, device, 1, false, "by-id/1"),
        refused("qd:no-route-to-dest")
    );
    let one = world.broker(BROKERS, "one");
    let open = world.peer(one).expect(wire::OPEN);
    assert_eq!(
        (open.text(0), open.field(1)),
        (Some("router"), &Value::Null),
        "no hostname: it came to us"
    );
    assert_eq!(attempt(&mut world, device, 2, true, "by-name/1"), at("by-name/1"));
    assert_eq!(
        attempt(&mut world, device, 3, false, "by-name/1"),
        at("by-name/1")
    );
    assert_eq!(
        attempt(&mut world, device, 4, false, "by-id/1"),
        refused("qd:no-route-to-dest")
    );
    let two = world.broker(BROKERS, "two");
    assert_eq!(attempt(&mut world, device, 5, false, "by-id/1"), at("by-id/1"));
    assert_eq!(shares(&mut world, &[one, two]), [2, 1]);
    for handle in 6..10 {
        attempt(&mut world, device, handle, true, "by-name/1");
    }
    assert_eq!(shares(&mut world, &[one, two]), [4, 3], "in turn");
}

#[test]
fn messages_go_both_ways_through_a_broker_that_connected() {
    let mut world = World::new(site());
    let broker = world.broker(BROKERS, "one");
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "up", true, "by-name/1");
    world.peer(device).attach(0, 1, "down", false, "by-name/1");
    world.peer(device).grant(0, 1, 10);
    world.run();
    let (channel, up) = world.peer(broker).find("up@dev", false).expect("a receiver");
    let (_, down) = world.peer(broker).find("down@dev", true).expect("a sender");
    world.peer(broker).grant(channel, up, 10);
    world.run();
    world.peer(device).send(0, 0, b"to the broker", false);
    world.peer(broker).send(channel, down, b"to the device", false);
    world.run();
    let (got, back) = (
        world.peer(broker).link(channel, up).received[0].clone(),
        world.peer(device).link(0, 1).received[0].clone(),
    );
    assert_eq!(
        (got.payload.as_slice(), back.payload.as_slice()),
        (&b"to the broker"[..], &b"to the device"[..])
    );
    world.peer(broker).settle(channel, up, got.id, wire::ACCEPTED);
    world.peer(device).settle(0, 1, back.id, wire::ACCEPTED);
    world.run();
    assert_eq!(world.peer(device).link(0, 0).settled, [(0, Some(wire::ACCEPTED))]);
    assert_eq!(
        world.peer(broker).link(channel, down).settled,
        [(0, Some(wire::ACCEPTED))]
    );
}

/// However a broker goes, links through it are detached with the condition of a lost route, and those of others stay.
#[test]
fn a_broker_that_goes_takes_its_links_only() {
    for how in ["close", "reset", "end of stream", "garbage"] {
        let mut world = World::new(site());
        let first = world.broker(BROKERS, "one");
        let device = world.device("dev");
        attempt(&mut world, device, 0, true, "by-name/1");
        let second = world.broker(BROKERS, "two");
        attempt(&mut world, device, 1, true, "by-id/1");
        world.peer(device).skip();
        match how {
            "close" => world.peer(first).close(Value::Null),
            "reset" => world.lose(first),
            "end of stream" => world.end_of_stream(first),
            _ => world.peer(first).out.tail().extend([0, 0, 0, 3, 2, 0, 0, 0]),
        }
        world.run();
        let detach = world.peer(device).expect(wire::DETACH);
        assert_eq!((detach.uint(0).is_some(), detach.flag(1)), (true, true), "{how}");
        assert_eq!(condition(detach.field(2)), Some("qd:routed-link-lost"), "{how}");
        world.peer(device).expect_nothing();
        assert_eq!(shares(&mut world, &[second]), [1], "{how}");
        assert_eq!(
            attempt(&mut world, device, 2, true, "by-name/1"),
            at("by-name/1"),
            "{how}: the other broker"
        );
        world.lose(second);
        world.run();
        assert_eq!(
            attempt(&mut world, device, 3, true, "by-name/1"),
            refused("qd:no-route-to-dest"),
            "{how}"
        );
        // It comes back, as a new connection.
        world.broker(BROKERS, "one");
        assert_eq!(
            attempt(&mut world, device, 4, true, "by-name/1"),
            at("by-name/1"),
            "{how}"
        );
        assert!(world.dials.is_empty(), "nobody is dialed");
    }
}

#[test]
fn an_idle_broker_stays_and_a_silent_one_is_dropped_by_the_handshake_deadline() {
    let mut world = World::new(site());
    let broker = world.broker(BROKERS, "one");
    let silent = world
        .connect_to(BROKERS, "silent", HUB_AUTO, Announces::default())
        .expect("room");
    world.run();
    world.advance(Duration::from_secs(600));
    assert!(world.is_alive(broker), "it lingers as long as it likes");
    assert!(!world.is_alive(silent));
    let device = world.device("dev");
    assert_eq!(attempt(&mut world, device, 0, true, "by-name/1"), at("by-name/1"));
}

#[test]
fn a_broker_counts_among_the_connections_that_are_allowed() {
    let mut settings = site();
    settings.max_connections = 2;
    let mut world = World::new(settings);
    let broker = world.broker(BROKERS, "one");
    world.device("dev");
    assert!(
        world
            .connect("other", DEVICE_AUTO, Announces::default())
            .is_none()
    );
    world.lose(broker);
    assert!(
        world
            .connect("other", DEVICE_AUTO, Announces::default())
            .is_some()
    );
}

#[test]
fn a_link_that_a_broker_attaches_itself_is_refused() {
    let mut world = World::new(site());
    let broker = world.broker(BROKERS, "one");
    world.peer(broker).begin(0);
    world.run();
    world.peer(broker).skip();
    world.peer(broker).attach(0, 0, "own", true, "by-name/1");
    world.run();
    assert_eq!(world.peer(broker).expect(wire::ATTACH).field(6), &Value::Null);
    let detach = world.peer(broker).expect(wire::DETACH);
    assert_eq!(condition(detach.field(2)), Some("amqp:not-allowed"));
}

/// The names at the broker, and their suffixes, are those of a dialed hub.
#[test]
fn equal_names_are_told_apart_at_a_broker_that_connected() {
    let mut world = World::new(site());
    let broker = world.broker(BROKERS, "one");
    for _ in 0..2 {
        let device = world.device("dev");
        world.peer(device).attach(0, 0, "l", true, "by-name/1");
        world.run();
    }
    assert!(world.peer(broker).find("l@dev", false).is_some());
    assert!(world.peer(broker).find("l@dev#2", false).is_some());
}

/// What a broker does not read holds its devices back, and nothing is lost.
#[test]
fn a_broker_that_does_not_read_holds_its_devices_back() {
    let mut world = World::new(site());
    let broker = world.broker(BROKERS, "one");
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "up", true, "by-name/1");
    world.run();
    let (channel, up) = world.peer(broker).find("up@dev", false).expect("a receiver");
    world.peer(broker).grant(channel, up, 1000);
    world.run();
    world.set_reads(broker, false);
    for _ in 0..500 {
        world.peer(device).send(0, 0, &[7; 8000], true);
    }
    world.run();
    assert!(world.is_paused(device));
    assert!(world.router.snapshot().buffered_bytes() < 2_000_000);
    world.set_reads(broker, true);
    world.run();
    assert_eq!(world.peer(broker).link(channel, up).received.len(), 500);
}

/// It is always read, as its flows empty the queues: so there is an end to what it may leave unread.
#[test]
fn a_broker_that_asks_without_end_and_does_not_read_is_closed() {
    let mut world = World::new(site());
    let broker = world.broker(BROKERS, "one");
    let device = world.device("dev");
    attempt(&mut world, device, 0, true, "by-name/1");
    world.set_reads(broker, false);
    world.peer(device).skip();
    let mut most = 0;
    for _ in 0..20_000 {
        if world
            .peer(device)
            .log
            .iter()
            .any(|frame| frame.code == wire::DETACH)
        {
            break;
        }
        let channel = *world.peer(broker).sessions.keys().next().expect("a session");
        for _ in 0..100 {
            world.peer(broker).flow(channel, None, false, true);
        }
        world.run();
        most = most.max(world.router.snapshot().buffered_bytes());
    }
    assert!((10_000_000..20_000_000).contains(&most), "{most}");
    let detach = world.peer(device).expect(wire::DETACH);
    assert_eq!(condition(detach.field(2)), Some("qd:routed-link-lost"));
}

/// The bound on the links of one device is not one on what many devices have at a broker.
#[test]
fn a_broker_serves_more_links_than_one_device_may_have() {
    const DEVICES: usize = 12;
    const LINKS: u32 = 700;
    let mut world = World::new(site());
    world.keeps_logs = false;
    let broker = world.broker(BROKERS, "one");
    for number in 0..DEVICES {
        let device = world.device(&format!("dev{number}"));
        for handle in 0..LINKS {
            world
                .peer(device)
                .attach(0, handle, &format!("l{handle}"), true, "by-name/1");
        }
        world.run();
    }
    assert_eq!(shares(&mut world, &[broker]), [DEVICES * LINKS as usize]);
    assert_eq!(world.router.snapshot().link_pairs, DEVICES * LINKS as usize);
}

#[test]
fn brokers_are_closed_behind_devices_when_the_router_stops() {
    let mut world = World::new(site());
    let broker = world.broker(BROKERS, "one");
    let device = world.device("dev");
    attempt(&mut world, device, 0, true, "by-name/1");
    world.peer(broker).skip();
    let now = world.now;
    world.router.shutdown(now);
    world.run();
    assert!(world.router.is_empty());
    let seen: Vec<u64> = std::iter::from_fn(|| world.peer(broker).next())
        .map(|frame| frame.code)
        .collect();
    assert_eq!(seen, [wire::DETACH, wire::END, wire::CLOSE]);
}

/// An attach that waits for a connector whose dials fail goes to a broker of the same route that connects.
#[test]
fn a_broker_takes_what_waits_for_a_connector_that_fails() {
    let mut with_connector = site();
    with_connector.connectors = settings().connectors;
    with_connector.routes = vec![
        prefix("a", Direction::In, to("HUB")),
        prefix("a", Direction::In, to("BROKERS")),
    ];
    let mut world = World::new(with_connector);
    world.hub = None;
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "l", true, "a/1");
    world.run();
    world.fail_dial();
    world.run();
    let broker = world.broker(BROKERS, "one");
    assert_eq!(shares(&mut world, &[broker]), [1]);
    assert!(world.peer(device).link(0, 0).remote.is_some());
}

/// Two listeners for devices: each with its own bounds.
#[test]
fn several_listeners_serve_devices_side_by_side() {
    let mut two = settings();
    let mut other = two.listeners.first().expect("a listener").clone();
    other.name = "small".into();
    other.limits.max_frame_size = 1024;
    two.listeners.push(other);
    let mut world = World::new(two);
    let first = world.device("one");
    let second = world
        .connect_to(ListenerId(1), "two", DEVICE_AUTO, Announces::default())
        .expect("room");
    world.peer(second).open();
    world.peer(second).begin(0);
    world.run();
    assert_eq!(world.peer(first).log[0].uint(2), Some(16384));
    assert_eq!(world.peer(second).log[0].uint(2), Some(1024));
    for device in [first, second] {
        assert_eq!(
            attempt(&mut world, device, 0, true, "devices/d1"),
            at("devices/d1")
        );
    }
    assert_eq!(world.hubs_made, 1, "both through one connection to the hub");
}

/// One session is all that these brokers allow. The device that is refused another keeps nothing of any of them.
#[test]
fn a_refused_session_leaves_nothing_behind() {
    let mut world = World::new(site());
    let devices = ["first", "second"].map(|name| world.device(name));
    for round in 0..3 {
        let announces = Announces {
            channel_max: 0,
            ..Announces::default()
        };
        let broker = world.broker_with(BROKERS, "one", HUB_AUTO, announces);
        world.run();
        for (device, expected) in [
            (devices[0], at("by-name/1")),
            (devices[1], refused("amqp:resource-limit-exceeded")),
        ] {
            assert_eq!(attempt(&mut world, device, round, true, "by-name/1"), expected);
        }
        assert_eq!(world.router.snapshot().session_pairs, 1);
        world.lose(broker);
        world.run();
        assert_eq!(world.router.snapshot().session_pairs, 0);
    }
}
