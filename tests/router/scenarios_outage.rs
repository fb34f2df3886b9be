//! A hub that goes and comes back under many devices: what they see, and how fast they return.

use std::time::Duration;

use linkrouterd::amqp::value::Value;
use linkrouterd::router::settings::{CbsMode, HubLoss, ListenerId, RouterSettings};

use crate::peer::Announces;
use crate::tunnel::{DOWN, UP};
use crate::wire::{self, composite, condition, error, state_code};
use crate::world::{DEVICE_AUTO, HUB_AUTO, PeerId, World, settings};

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Listener 0 detaches links when their hub is lost, listener 1 closes connections.
fn two_ways() -> RouterSettings {
    let mut settings = settings();
    let mut closing = settings.listeners.first().expect("a listener").clone();
    closing.on_hub_lost = HubLoss::Close;
    settings.listeners.push(closing);
    settings
}

/// A device on the listener that closes, with a session on channel 0.
fn closing_device(world: &mut World, container: &str) -> PeerId {
    let id = world
        .connect_to(ListenerId(1), container, DEVICE_AUTO, Announces::default())
        .expect("room for a device");
    world.peer(id).open();
    world.peer(id).begin(0);
    world.run();
    id
}

/// The description of a close with `amqp:connection:forced`.
fn forced(close: &wire::Frame) -> String {
    assert_eq!(condition(close.field(0)), Some("amqp:connection:forced"));
    let (_, fields) = composite(close.field(0)).expect("an error");
    let text = fields.get(1).and_then(Value::as_text);
    text.expect("a description").to_owned()
}

#[test]
fn hub_loss_close_settles_what_is_in_doubt_and_closes_the_devices_that_used_the_hub() {
    let mut world = World::new(two_ways());
    let mut narrow = HUB_AUTO;
    narrow.window = false;
    let one_frame = Announces {
        window: 1,
        ..Announces::default()
    };
    world.hub = Some((narrow, one_frame));
    let user = closing_device(&mut world, "user");
    let bystander = closing_device(&mut world, "bystander");
    let tolerant = world.device("tolerant");
    for device in [user, tolerant] {
        world.peer(device).attach(0, 0, "up", true, UP);
        world.peer(device).attach(0, 1, "down", false, DOWN);
    }
    world.run();
    let (channel, handle) = world.hub().find("up@user", false).expect("attached");
    world.hub().grant(channel, handle, 10);
    world.run();
    // One is with the hub, one is still here.
    for payload in [b"sent", b"kept"] {
        let first = world.peer(user).session(0).next_delivery;
        world
            .peer(user)
            .say_transfer(0, 0, Some((first, 1)), false, false, payload);
        world.run();
    }
    for device in [user, bystander, tolerant] {
        world.peer(device).skip();
    }
    let hub = world.hub_id();
    world.lose(hub);
    world.run();
    let peer = world.peer(user);
    let states: Vec<_> = (0..2)
        .map(|_| state_code(peer.expect(wire::DISPOSITION).field(4)))
        .collect();
    assert_eq!(states, [Some(wire::MODIFIED), Some(wire::RELEASED)]);
    let text = forced(&peer.expect(wire::CLOSE));
    assert!(
        text.contains("Connection HUB: Connection reset by peer"),
        "{text}"
    );
    peer.expect_nothing();
    assert!(!world.is_alive(user), "the close was answered");
    world.peer(bystander).expect_nothing();
    for _ in 0..2 {
        let detach = world.peer(tolerant).expect(wire::DETACH);
        assert_eq!(condition(detach.field(2)), Some("amqp:link:detach-forced"));
    }
    world.peer(tolerant).expect_nothing();
    assert!(world.is_alive(bystander) && world.is_alive(tolerant));
    let snapshot = world.router.snapshot();
    assert_eq!((snapshot.connections, snapshot.link_pairs), (2, 0));
    assert_eq!((snapshot.session_pairs, snapshot.parked_bytes), (0, 0));
}

#[test]
fn hub_loss_close_names_the_reason_of_a_hub_that_closes_falls_silent_or_is_configured_anew() {
    for (way, expected) in [
        ("close", "amqp:connection:forced node is upgraded"),
        ("silence", "amqp:resource-limit-exceeded"),
        ("reload", "its configuration changed"),
    ] {
        let mut with_heartbeat = two_ways();
        let connector = with_heartbeat.connectors.first_mut().expect("a connector");
        connector.limits.idle_timeout = Some(seconds(20));
        let mut world = World::new(with_heartbeat.clone());
        let device = closing_device(&mut world, "dev");
        world.peer(device).attach(0, 0, "up", true, UP);
        world.run();
        world.peer(device).skip();
        let hub = world.hub_id();
        match way {
            "close" => {
                let reason = error("amqp:connection:forced", "node is upgraded", Value::Null);
                world.peer(hub).close(reason);
                world.run();
            }
            "silence" => {
                world.set_speaks(hub, false);
                world.advance(seconds(21));
            }
            _ => {
                let connector = with_heartbeat.connectors.first_mut().expect("a connector");
                connector.limits.idle_timeout = Some(seconds(30));
                world.reload(with_heartbeat);
            }
        }
        let text = forced(&world.peer(device).expect(wire::CLOSE));
        assert!(text.contains("Connection HUB: "), "{way}: {text}");
        assert!(text.contains(expected), "{way}: {text}");
    }
}

#[test]
fn hub_loss_close_is_not_for_a_session_that_ends_nor_for_a_hub_that_never_came() {
    let mut world = World::new(two_ways());
    let device = closing_device(&mut world, "dev");
    world.peer(device).attach(0, 0, "up", true, UP);
    world.run();
    let (channel, _) = world.hub().find("up@dev", false).expect("attached");
    world.hub().end(channel, Value::Null);
    world.run();
    assert!(
        world.is_alive(device),
        "its session is gone, its connection is not"
    );

    let mut world = World::new(two_ways());
    world.hub = None;
    let device = closing_device(&mut world, "dev");
    world.peer(device).attach(0, 0, "up", true, UP);
    world.run();
    world.fail_dial();
    world.advance(seconds(20));
    world.peer(device).skip();
    let link = world.peer(device).link(0, 0);
    assert_eq!(
        link.detached.as_ref().and_then(condition),
        Some("amqp:link:detach-forced")
    );
    assert!(world.is_alive(device));
}

// ---- how fast devices come back --------------------------------------------------------------------------------------

/// A connector that many devices with identities of their own share.
fn shared(devices_per_second: u32) -> RouterSettings {
    let mut settings = settings();
    for connector in &mut settings.connectors {
        connector.sharing.cbs = CbsMode::Relay;
        connector.sharing.devices_per_second = devices_per_second;
    }
    settings
}

/// A world whose dials the test answers.
fn unanswered(settings: RouterSettings) -> World {
    let mut world = World::new(settings);
    world.hub = None;
    world
}

fn address(device: usize) -> String {
    format!("/devices/d{device}/messages/events")
}

/// Devices with one attach each, in this order.
fn devices(world: &mut World, count: usize) -> Vec<PeerId> {
    (0..count)
        .map(|number| {
            let device = world.device(&format!("d{number}"));
            world.peer(device).attach(0, 0, "up", true, &address(number));
            world.run();
            device
        })
        .collect()
}

/// The names of the links that the hub has been asked for since the last look.
fn asked(world: &mut World) -> Vec<String> {
    let hub = world.hub();
    let mut names = Vec::new();
    while let Some(frame) = hub.next() {
        if frame.code == wire::ATTACH {
            names.push(frame.text(0).expect("a name").to_owned());
        }
    }
    names
}

fn ups(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| format!("up@d{number}")).collect()
}

#[test]
fn pacing_spreads_nine_hundred_devices_over_eight_seconds_in_the_order_of_arrival() {
    let mut world = unanswered(shared(100));
    world.keeps_logs = false;
    let devices = devices(&mut world, 900);
    // Most of what an attach may wait for a connection to open is over already.
    world.advance(seconds(14));
    world.keeps_logs = true;
    world.answer_dial(HUB_AUTO, Announces::default());
    world.run();
    let mut counts = vec![asked(&mut world).len()];
    let mut order = ups(0..100);
    for _ in 0..9 {
        world.advance(seconds(1));
        let names = asked(&mut world);
        counts.push(names.len());
        order.extend(names);
    }
    assert_eq!(counts, [100, 100, 100, 100, 100, 100, 100, 100, 100, 0]);
    assert_eq!(order, ups(0..900));
    for &device in &devices {
        assert!(world.peer(device).link(0, 0).remote.is_some(), "answered");
        assert!(world.peer(device).link(0, 0).detached.is_none());
    }
    assert_eq!(world.router.snapshot().waiting_attaches, 0);
}

#[test]
fn pacing_is_even_within_a_second_and_comes_to_rest() {
    let mut world = unanswered(shared(10));
    devices(&mut world, 30);
    world.answer_dial(HUB_AUTO, Announces::default());
    world.run();
    assert_eq!(asked(&mut world), ups(0..10));
    for number in 10..30 {
        world.advance(Duration::from_millis(99));
        assert_eq!(asked(&mut world), ups(0..0));
        world.advance(Duration::from_millis(1));
        assert_eq!(asked(&mut world), ups(number..number + 1));
    }
    assert!(looks(&mut world, seconds(5)) <= 1, "nothing is left to look at");
}

/// How often the router wants to look at something in a time in which nobody says anything.
fn looks(world: &mut World, time: Duration) -> usize {
    let end = world.now + time;
    let mut count = 0;
    while let Some(next) = world.router.poll_timeout().filter(|&next| next <= end) {
        world.router.handle_timeout(next);
        count += 1;
        assert!(count < 1000, "again and again");
    }
    count
}

#[test]
fn pacing_lets_what_a_device_has_waiting_go_together() {
    let mut world = unanswered(shared(1));
    let pair = [world.device("a"), world.device("b")];
    for handle in 0..3 {
        for device in pair {
            world
                .peer(device)
                .attach(0, handle, &format!("l{handle}"), true, UP);
            world.run();
        }
    }
    world.answer_dial(HUB_AUTO, Announces::default());
    world.run();
    assert_eq!(asked(&mut world), ["l0@a", "l1@a", "l2@a"]);
    world.advance(seconds(1));
    assert_eq!(asked(&mut world), ["l0@b", "l1@b", "l2@b"]);
}

#[test]
fn what_waits_of_several_devices_is_found_wherever_it_is_in_the_line() {
    let mut world = unanswered(shared(100));
    let ids = devices(&mut world, 3);
    for handle in 1..50 {
        for (number, &id) in ids.iter().enumerate() {
            let name = format!("l{handle}");
            world.peer(id).attach(0, handle, &name, true, &address(number));
            world.run();
        }
    }
    assert_eq!(world.router.snapshot().waiting_attaches, 150);
    world.lose(ids[1]);
    world.peer(ids[2]).detach(0, 7, true, Value::Null);
    world.run();
    assert_eq!(world.router.snapshot().waiting_attaches, 99);
    world.answer_dial(HUB_AUTO, Announces::default());
    world.run();
    let links = |device: usize| {
        let rest = (1..50).map(move |handle| format!("l{handle}@d{device}"));
        std::iter::once(format!("up@d{device}")).chain(rest)
    };
    let expected: Vec<String> = links(0).chain(links(2).filter(|name| name != "l7@d2")).collect();
    assert_eq!(
        asked(&mut world),
        expected,
        "device by device, each in its own order"
    );
    assert_eq!(world.router.snapshot().waiting_attaches, 0);
}

#[test]
fn pacing_holds_up_new_devices_only_and_none_overtakes() {
    let mut world = World::new(shared(1));
    let [first, second] = [0, 1].map(|number| world.device(&format!("d{number}")));
    world.peer(first).attach(0, 0, "up", true, UP);
    world.run();
    assert_eq!(asked(&mut world), ups(0..1));
    world.peer(second).attach(0, 0, "up", true, UP);
    world.run();
    assert_eq!(asked(&mut world), ups(0..0));
    world.peer(first).attach(0, 1, "more", true, UP);
    world.run();
    assert_eq!(asked(&mut world), ["more@d0"], "who is there already goes on");
    world.advance(Duration::from_millis(500));
    let third = world.device("d2");
    world.peer(third).attach(0, 0, "up", true, UP);
    world.run();
    world.advance(Duration::from_millis(500));
    assert_eq!(asked(&mut world), ups(1..2));
    // One that comes when there would be room waits behind those that came before.
    world.advance(Duration::from_millis(999));
    assert_eq!(asked(&mut world), ups(0..0));
    let fourth = world.device("d3");
    world.peer(fourth).attach(0, 0, "up", true, UP);
    world.advance(Duration::from_millis(1));
    assert_eq!(asked(&mut world), ups(2..3));
    world.advance(seconds(1));
    assert_eq!(asked(&mut world), ups(3..4));
}

#[test]
fn pacing_refuses_after_as_long_as_a_device_waits() {
    let mut world = World::new(shared(1));
    let devices = devices(&mut world, 63);
    world.advance(seconds(59));
    assert_eq!(asked(&mut world).len(), 60);
    for &device in &devices {
        assert!(
            world.peer(device).link(0, 0).detached.is_none(),
            "15 s were not the end"
        );
    }
    world.advance(seconds(1));
    assert_eq!(
        asked(&mut world),
        ups(60..61),
        "who is due at the last moment still goes"
    );
    for (number, &device) in devices.iter().enumerate() {
        let detached = world.peer(device).link(0, 0).detached.clone();
        if number <= 60 {
            assert_eq!(detached, None);
            continue;
        }
        let error = detached.expect("refused");
        assert_eq!(condition(&error), Some("amqp:link:detach-forced"));
        assert!(format!("{error:?}").contains("devicesPerSecond"), "{error:?}");
        assert!(world.is_alive(device));
    }
    assert_eq!(world.router.snapshot().waiting_attaches, 0);
}

#[test]
fn pacing_goes_on_where_it_was_when_the_hub_is_lost_meanwhile() {
    let mut world = unanswered(shared(2));
    let devices = devices(&mut world, 6);
    let hub = world.answer_dial(HUB_AUTO, Announces::default());
    world.run();
    assert_eq!(asked(&mut world), ups(0..2));
    world.advance(Duration::from_millis(100));
    world.lose(hub);
    world.run();
    world.advance(seconds(2));
    world.answer_dial(HUB_AUTO, Announces::default());
    world.run();
    assert_eq!(asked(&mut world), ups(2..4));
    // Without a connection, a turn is worth no more than a connection.
    let hub = world.hub_id();
    world.lose(hub);
    world.run();
    world.advance(seconds(14));
    let number_of_refused = |world: &mut World| {
        let is_refused = |&&device: &&PeerId| {
            let link = world.peer(device).link(0, 0).detached.clone();
            link.is_some_and(|error| format!("{error:?}").contains("No connection to HUB"))
        };
        devices.iter().filter(is_refused).count()
    };
    assert_eq!(number_of_refused(&mut world), 0);
    world.advance(seconds(1));
    assert_eq!(number_of_refused(&mut world), 2);
    assert_eq!(world.router.snapshot().waiting_attaches, 0);
}

#[test]
fn pacing_forgets_devices_that_leave_and_keeps_the_connection_for_those_that_wait() {
    let mut settings = shared(1);
    settings.linger = Duration::from_millis(1);
    let mut world = World::new(settings);
    let devices = devices(&mut world, 3);
    assert_eq!(asked(&mut world), ups(0..1));
    for &device in &devices[..2] {
        world.lose(device);
    }
    world.run();
    world.advance(seconds(1));
    assert_eq!(asked(&mut world), ups(2..3));
    assert_eq!(
        world.hubs_made, 1,
        "nobody used it for a while, but somebody waited"
    );
    world.lose(devices[2]);
    world.run();
    let snapshot = world.router.snapshot();
    assert_eq!((snapshot.waiting_attaches, snapshot.link_pairs), (0, 0));
    world.advance(seconds(1));
    assert_eq!(world.router.snapshot().connections, 0, "it lingered and went");
}

#[test]
fn pacing_does_not_spin_while_a_hub_that_has_failed_is_still_to_be_closed() {
    let mut world = World::new(shared(1));
    devices(&mut world, 3);
    let hub = world.hub_id();
    world.set_reads(hub, false);
    world.hub().out.tail().extend([0; 8]);
    world.run();
    let count = looks(&mut world, seconds(5));
    assert!(count < 10, "{count} looks at what cannot move");
    world.lose(hub);
    world.run();
    world.advance(seconds(3));
    assert_eq!(asked(&mut world), ups(1..3));
}

#[test]
fn pacing_is_for_shared_connections_only_and_can_be_off() {
    let mut tunnel = shared(1);
    for connector in &mut tunnel.connectors {
        connector.sharing.cbs = CbsMode::Tunnel;
    }
    let mut own_identity = shared(1);
    for connector in &mut own_identity.connectors {
        connector.sasl_username = Some("policy".into());
    }
    for settings in [tunnel, own_identity, shared(0)] {
        let mut world = World::new(settings);
        devices(&mut world, 20);
        assert_eq!(asked(&mut world), ups(0..20));
    }
}

// ---- dialing again ---------------------------------------------------------------------------------------------------

/// IoT Hub, code 400030: during an upgrade it accepts connections and closes them at once, for a while.
#[test]
fn a_hub_that_closes_what_it_accepts_for_a_while_is_waited_for() {
    let mut world = unanswered(shared(100));
    let device = world.device("d0");
    world.peer(device).attach(0, 0, "up", true, UP);
    world.run();
    let start = world.now;
    let mut dials = 0;
    while world.now < start + seconds(12) {
        world.advance(Duration::from_millis(50));
        while !world.dials.is_empty() {
            dials += 1;
            world.answer_dial(HUB_AUTO, Announces::default());
            let reason = error("amqp:connection:forced", "{\"errorCode\":400030}", Value::Null);
            // Before it has heard of any link.
            let hub = world.hub_id();
            world.set_reads(hub, false);
            world.run();
            world.hub().close(reason);
            world.run();
            world.lose(hub);
            world.run();
        }
    }
    assert!((6..=14).contains(&dials), "{dials} in 12 s");
    let link = world.peer(device).link(0, 0);
    assert!(link.detached.is_none(), "{:?}", link.detached);
    world.hub = Some((HUB_AUTO, Announces::default()));
    world.advance(seconds(3));
    assert!(world.peer(device).link(0, 0).remote.is_some());
}

#[test]
fn a_silent_hub_is_found_out_within_the_time_although_nothing_is_sent() {
    let mut settings = shared(100);
    let connector = settings.connectors.first_mut().expect("a connector");
    connector.limits.idle_timeout = Some(seconds(120));
    let mut world = World::new(settings);
    let device = world.device("d0");
    world.peer(device).attach(0, 0, "up", true, UP);
    world.run();
    world.peer(device).skip();
    let hub = world.hub_id();
    let announced = world.hub().log.iter().find(|frame| frame.code == wire::OPEN);
    assert_eq!(announced.and_then(|open| open.uint(4)), Some(60_000));
    // The transport stays, and nothing crosses it in either direction.
    world.set_reads(hub, false);
    world.set_speaks(hub, false);
    world.advance(seconds(119));
    assert!(world.peer(device).link(0, 0).detached.is_none());
    world.advance(seconds(1));
    let detached = world.peer(device).link(0, 0).detached.clone();
    assert_eq!(
        detached.as_ref().and_then(condition),
        Some("amqp:link:detach-forced")
    );
}

#[test]
fn gateways_that_lose_one_hub_do_not_return_at_once() {
    let mut delays = std::collections::BTreeSet::new();
    for _ in 0..50 {
        let mut world = unanswered(shared(100));
        let device = world.device("d0");
        world.peer(device).attach(0, 0, "up", true, UP);
        world.run();
        let hub = world.answer_dial(HUB_AUTO, Announces::default());
        world.run();
        world.advance(seconds(20));
        world.lose(hub);
        world.peer(device).attach(0, 1, "again", true, UP);
        world.run();
        let before = world.now;
        while world.dials.is_empty() {
            world.advance(Duration::from_millis(5));
            assert!(world.now < before + seconds(3), "no dial");
        }
        delays.insert(world.now - before);
    }
    assert!(delays.len() >= 15, "{delays:?}");
    let spread = delays
        .last()
        .expect("some")
        .saturating_sub(*delays.first().expect("some"));
    assert!(spread >= Duration::from_millis(100), "{delays:?}");
}
