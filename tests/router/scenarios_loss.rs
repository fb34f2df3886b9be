//! Ends of sessions and connections, polite or not, of either side, at any step.

use std::time::Duration;

use linkrouterd::amqp::value::Value;

use crate::peer::{Announces, Kind};
use crate::tunnel::{DOWN, Tunnel, UP, tunnel, tunnel_with};
use crate::wire::{self, composite, condition, error, state_code, symbol};
use crate::world::{HUB_AUTO, World, settings};

fn settled(frame: &wire::Frame) -> (Option<u32>, Option<u32>, bool, Option<u64>) {
    (
        frame.uint(1),
        frame.uint(2),
        frame.flag(3),
        state_code(frame.field(4)),
    )
}

/// The device is in the middle of a delivery, has received two, settled the first, and has more on the way to it.
fn busy() -> Tunnel {
    let mut p = tunnel();
    p.world
        .peer(p.device)
        .link(0, 0)
        .queue
        .push_back((vec![1; 1000], false));
    p.world.peer(p.device).send_piece(0, 0, 100);
    for payload in [b"a", b"b"] {
        p.world.peer(p.hub).send(p.down.0, p.down.1, payload, false);
    }
    p.world.run();
    p.world.peer(p.device).settle(0, 1, 0, wire::ACCEPTED);
    p.world.run();
    p.world.peer(p.hub).skip();
    p.world.peer(p.device).skip();
    p
}

#[test]
fn a_lost_device_is_told_to_the_hub_whole() {
    for is_reset in [true, false] {
        let mut p = busy();
        if is_reset {
            p.world.lose(p.device);
        } else {
            p.world.end_of_stream(p.device);
        }
        p.world.run();
        let hub = p.world.peer(p.hub);
        let failed = hub.expect(wire::DISPOSITION);
        assert_eq!(settled(&failed), (Some(1), Some(1), true, Some(wire::MODIFIED)));
        let (_, fields) = composite(failed.field(4)).expect("modified");
        assert_eq!(fields.first(), Some(&Value::Boolean(true)), "delivery-failed");
        assert!(hub.expect(wire::TRANSFER).flag(9), "aborted");
        for _ in 0..2 {
            let detach = hub.expect(wire::DETACH);
            assert!(detach.flag(1));
            assert_eq!(condition(detach.field(2)), Some("amqp:link:detach-forced"));
        }
        hub.expect(wire::END);
        let snapshot = p.world.router.snapshot();
        assert_eq!(
            (snapshot.connections, snapshot.session_pairs, snapshot.link_pairs),
            (1, 0, 0)
        );
    }
}

#[test]
fn a_lost_device_keeps_what_is_to_survive() {
    let mut world = World::new(settings());
    let device = world.device("dev");
    let durable = wire::described(
        0x28,
        vec![wire::string(DOWN), wire::uint(1), symbol("never"), wire::uint(0)],
    );
    world
        .peer(device)
        .attach_with(0, 0, "sub", false, durable, wire::terminus(0x29, "here"));
    world.run();
    world.hub().skip();
    world.lose(device);
    world.run();
    assert!(!world.hub().expect(wire::DETACH).flag(1), "detached, not closed");
}

#[test]
fn a_lost_device_at_every_step_leaves_nothing() {
    for step in 0..7 {
        let mut world = World::new(settings());
        world.hub = (step > 2).then_some((HUB_AUTO, Announces::default()));
        if step == 4 {
            let mut silent = HUB_AUTO;
            silent.begin = false;
            world.hub = Some((silent, Announces::default()));
        }
        let device = world
            .connect("dev", crate::world::DEVICE_AUTO, Announces::default())
            .expect("room");
        if step > 0 {
            world.peer(device).open();
        }
        if step > 1 {
            world.peer(device).begin(0);
            world.peer(device).attach(0, 0, "up", true, UP);
            world.peer(device).attach(0, 1, "down", false, DOWN);
            world.peer(device).grant(0, 1, 5);
            world
                .peer(device)
                .say_transfer(0, 0, Some((0, 0)), false, true, b"part");
        }
        if step == 5 {
            world.peer(device).detach(0, 0, true, Value::Null);
        }
        if step == 6 {
            world.peer(device).end(0, Value::Null);
        }
        world.run();
        world.lose(device);
        world.run();
        while !world.dials.is_empty() {
            world.answer_dial(HUB_AUTO, Announces::default());
            world.run();
        }
        let snapshot = world.router.snapshot();
        assert_eq!(
            (snapshot.session_pairs, snapshot.link_pairs),
            (0, 0),
            "step {step}"
        );
        assert_eq!(
            (snapshot.waiting_attaches, snapshot.parked_bytes),
            (0, 0),
            "step {step}"
        );
    }
}

#[test]
fn a_lost_hub_is_told_to_the_device_and_its_connection_stays() {
    let mut p = busy();
    // Unsettled at the hub, and one that never went out because the hub's window is used up.
    p.world.peer(p.device).link(0, 0).queue.clear();
    p.world
        .peer(p.hub)
        .link(p.down.0, p.down.1)
        .queue
        .push_back((vec![2; 1000], false));
    p.world.peer(p.hub).send_piece(p.down.0, p.down.1, 100);
    p.world.run();
    p.world.peer(p.device).expect(wire::TRANSFER);
    p.world.lose(p.hub);
    p.world.run();
    let device = p.world.peer(p.device);
    let failed = device.expect(wire::DISPOSITION);
    assert_eq!(settled(&failed), (Some(0), Some(0), true, Some(wire::MODIFIED)));
    let first = device.expect(wire::DETACH);
    assert!(
        device.expect(wire::TRANSFER).flag(9),
        "what was half received is aborted"
    );
    for detach in [first, device.expect(wire::DETACH)] {
        assert!(detach.flag(1));
        assert_eq!(condition(detach.field(2)), Some("amqp:link:detach-forced"));
        let (_, fields) = composite(detach.field(2)).expect("an error");
        let info = fields.get(2).expect("info");
        assert_eq!(info.entry("qd-condition"), Some(&symbol("qd:routed-link-lost")));
    }
    device.expect_nothing();
    assert!(p.world.is_alive(p.device));
    // The next attach waits for the redial, and works.
    p.world.peer(p.device).attach(0, 10, "up", true, UP);
    p.world.run();
    p.world.peer(p.device).expect_nothing();
    p.world.advance(Duration::from_secs(3));
    p.world.peer(p.device).expect(wire::ATTACH);
    assert_eq!(p.world.hubs_made, 2);
    let (channel, handle) = p.world.hub().find("up@dev", false).expect("attached");
    p.world.hub().grant(channel, handle, 1);
    p.world.run();
    p.world.peer(p.device).send(0, 10, b"again", true);
    p.world.run();
    assert_eq!(p.world.hub().link(channel, handle).received.len(), 1);
}

#[test]
fn what_a_lost_hub_never_saw_is_released_and_what_it_saw_half_is_in_doubt_once() {
    let mut p = tunnel_with(2048, 2);
    p.world.peer(p.device).send(0, 0, b"gone", false);
    let first = p.world.peer(p.device).session(0).next_delivery;
    // Its first frame goes, the rest waits for the window and repeats the delivery-id, as some stacks do.
    let peer = p.world.peer(p.device);
    peer.say_transfer(0, 0, Some((first, 1)), false, true, b"half");
    peer.say_transfer(0, 0, Some((first, 1)), false, false, b"rest");
    peer.say_transfer(0, 0, Some((first + 1, 2)), false, false, b"unsent");
    p.world.run();
    p.world.lose(p.hub);
    p.world.run();
    let device = p.world.peer(p.device);
    let modified = device.expect(wire::DISPOSITION);
    assert_eq!(settled(&modified), (Some(0), Some(1), true, Some(wire::MODIFIED)));
    let released = device.expect(wire::DISPOSITION);
    assert_eq!(settled(&released), (Some(2), Some(2), true, Some(wire::RELEASED)));
    device.expect(wire::DETACH);
}

/// Frames of two deliveries in turn, each with its delivery-id.
#[test]
fn what_a_lost_hub_never_saw_is_released_once_however_its_frames_come() {
    let mut p = tunnel_with(2048, 1);
    p.world.peer(p.device).attach(0, 2, "other", true, UP);
    p.world.run();
    p.world.peer(p.device).skip();
    p.world.peer(p.device).send(0, 0, b"gone", false);
    let peer = p.world.peer(p.device);
    for more in [true, true, false] {
        peer.say_transfer(0, 0, Some((1, 1)), false, more, b"piece");
        peer.say_transfer(0, 2, Some((2, 2)), false, more, b"piece");
    }
    p.world.run();
    p.world.lose(p.hub);
    p.world.run();
    let device = p.world.peer(p.device);
    let outcomes = [(0, wire::MODIFIED), (1, wire::RELEASED), (2, wire::RELEASED)];
    for (id, state) in outcomes {
        let outcome = device.expect(wire::DISPOSITION);
        assert_eq!(settled(&outcome), (Some(id), Some(id), true, Some(state)));
    }
    device.expect(wire::DETACH);
}

#[test]
fn a_hub_lost_before_it_answers_leaves_the_attach_waiting_or_refused() {
    // While it opens: the attach waits on.
    let mut world = World::new(settings());
    world.hub = None;
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "up", true, UP);
    world.run();
    let hub = world.answer_dial(HUB_AUTO, Announces::default());
    world.set_speaks(hub, false);
    world.run();
    world.lose(hub);
    world.run();
    world.peer(device).skip();
    world.hub = Some((HUB_AUTO, Announces::default()));
    world.advance(Duration::from_secs(5));
    world.peer(device).expect(wire::ATTACH);
    assert!(world.peer(device).link(0, 0).detached.is_none());

    // After the attach has gone out, before its answer: refused with the condition that clients try again.
    let mut world = World::new(settings());
    let mut silent = HUB_AUTO;
    silent.attach = false;
    world.hub = Some((silent, Announces::default()));
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "up", true, UP);
    world.run();
    world.peer(device).skip();
    let hub = world.hub_id();
    world.lose(hub);
    world.run();
    assert_eq!(world.peer(device).expect(wire::ATTACH).field(6), &Value::Null);
    assert_eq!(
        condition(world.peer(device).expect(wire::DETACH).field(2)),
        Some("amqp:link:detach-forced")
    );
    assert_eq!(world.router.snapshot().link_pairs, 0);
}

#[test]
fn an_end_of_the_hub_ends_that_session_only() {
    let mut p = tunnel();
    let other = p.world.device("other");
    p.world.peer(other).attach(0, 0, "up", true, UP);
    p.world.run();
    p.world.peer(other).skip();
    let reason = error("amqp:session:window-violation", "too many", Value::Null);
    let channel = p.up.0;
    p.world.peer(p.hub).end(channel, reason.clone());
    p.world.run();
    assert_eq!(p.world.peer(p.device).expect(wire::END).field(0), &reason);
    p.world.peer(other).expect_nothing();
    assert!(p.world.is_alive(p.device) && p.world.is_alive(p.hub));
    let snapshot = p.world.router.snapshot();
    assert_eq!((snapshot.session_pairs, snapshot.link_pairs), (1, 1));
    // The device begins anew.
    p.world.peer(p.device).begin(3);
    p.world.peer(p.device).attach(3, 0, "up", true, UP);
    p.world.run();
    assert!(p.world.peer(p.hub).find("up@dev", false).is_some());
}

#[test]
fn what_a_device_has_not_taken_goes_before_a_detach_of_the_hub_and_with_its_end_or_close() {
    for (goodbye, taken) in [(wire::DETACH, 4), (wire::END, 2), (wire::CLOSE, 2)] {
        let mut p = tunnel_with(2, 2048);
        for number in 0..4u8 {
            p.world.peer(p.hub).send(p.down.0, p.down.1, &[number], true);
        }
        let hub = p.world.peer(p.hub);
        match goodbye {
            wire::DETACH => hub.detach(p.down.0, p.down.1, true, Value::Null),
            wire::END => hub.end(p.down.0, Value::Null),
            _ => hub.close(Value::Null),
        }
        p.world.run();
        let device = p.world.peer(p.device);
        if device.past.is_empty() {
            device.widen(0, 100);
            p.world.run();
        }
        let device = p.world.peer(p.device);
        let session = device.past.first().or(device.sessions.get(&0));
        let received = &session.and_then(|it| it.links.get(&1)).expect("a link").received;
        assert_eq!(received.len(), taken, "{goodbye:#x}");
        assert_eq!(p.world.router.snapshot().held_bytes, 0);
    }
}

#[test]
fn an_end_of_the_device_detaches_and_ends_at_the_hub_behind_what_it_sent() {
    let mut p = tunnel_with(2048, 1);
    p.world.peer(p.device).send(0, 0, b"one", true);
    p.world.peer(p.device).send(0, 0, b"two", true);
    p.world.peer(p.device).end(0, Value::Null);
    p.world.run();
    p.world.peer(p.device).expect(wire::END);
    p.world.peer(p.hub).expect(wire::TRANSFER);
    p.world.peer(p.hub).expect_nothing();
    p.world.peer(p.hub).widen(p.up.0, 5);
    p.world.run();
    let hub = p.world.peer(p.hub);
    assert_eq!(hub.expect(wire::TRANSFER).payload, b"two");
    for _ in 0..2 {
        assert!(hub.expect(wire::DETACH).flag(1));
    }
    hub.expect(wire::END);
    let snapshot = p.world.router.snapshot();
    assert_eq!((snapshot.session_pairs, snapshot.parked_bytes), (0, 0));
}

#[test]
fn what_a_hub_sends_to_a_device_that_has_said_goodbye_leaves_nothing() {
    let mut p = tunnel_with(2048, 1);
    p.world.peer(p.device).send(0, 0, b"one", true);
    p.world.peer(p.device).send(0, 0, b"two", true);
    p.world.peer(p.device).end(0, Value::Null);
    p.world.run();
    for _ in 0..3 {
        p.world.peer(p.hub).send(p.down.0, p.down.1, b"too late", false);
    }
    p.world.run();
    p.world.peer(p.hub).widen(p.up.0, 5);
    p.world.run();
    let snapshot = p.world.router.snapshot();
    assert_eq!((snapshot.session_pairs, snapshot.buffered_bytes()), (0, 0));
}

#[test]
fn sessions_of_one_device_fall_and_stand_alone() {
    let mut p = tunnel();
    p.world.peer(p.device).begin(9);
    p.world.peer(p.device).attach(9, 0, "second", true, UP);
    p.world.run();
    let place = p.world.peer(p.hub).find("second@dev", false).expect("attached");
    assert_ne!(place.0, p.up.0, "on a session of its own");
    p.world.peer(p.device).end(0, Value::Null);
    p.world.run();
    p.world.peer(p.hub).grant(place.0, place.1, 5);
    p.world.run();
    p.world.peer(p.device).send(9, 0, b"alive", true);
    p.world.run();
    assert_eq!(p.world.peer(p.hub).link(place.0, place.1).received.len(), 1);
}

#[test]
fn a_close_of_either_side_is_answered_and_passed_on() {
    let mut p = busy();
    p.world.peer(p.device).close(Value::Null);
    p.world.run();
    assert!(p.world.peer(p.device).closed.is_some() && !p.world.is_alive(p.device));
    p.world.peer(p.hub).expect(wire::DISPOSITION);
    assert!(p.world.peer(p.hub).expect(wire::TRANSFER).flag(9));
    p.world.peer(p.hub).expect(wire::DETACH);
    p.world.peer(p.hub).expect(wire::DETACH);
    p.world.peer(p.hub).expect(wire::END);

    let mut p = busy();
    let reason = error("amqp:connection:forced", "maintenance", Value::Null);
    p.world.peer(p.hub).close(reason);
    p.world.run();
    assert!(p.world.peer(p.hub).closed.is_some() && !p.world.is_alive(p.hub));
    p.world.peer(p.device).expect(wire::DISPOSITION);
    let detach = p.world.peer(p.device).expect(wire::DETACH);
    let (_, fields) = composite(detach.field(2)).expect("an error");
    let text = fields.get(1).and_then(Value::as_text).expect("a description");
    assert!(text.contains("maintenance"), "{text}");
    assert!(p.world.is_alive(p.device));
}

#[test]
fn a_hub_that_breaks_the_rules_of_one_session_loses_that_one() {
    let mut p = tunnel();
    let other = p.world.device("other");
    p.world.peer(other).attach(0, 0, "up", true, UP);
    p.world.run();
    p.world.peer(other).skip();
    p.world.peer(p.hub).skip();
    // A transfer on a handle that nobody has.
    p.world
        .peer(p.hub)
        .say_transfer(p.down.0, 77, Some((0, 0)), true, false, b"x");
    p.world.run();
    assert_eq!(
        condition(p.world.peer(p.hub).expect(wire::END).field(0)),
        Some("amqp:session:unattached-handle")
    );
    for _ in 0..2 {
        let detach = p.world.peer(p.device).expect(wire::DETACH);
        assert_eq!(condition(detach.field(2)), Some("amqp:link:detach-forced"));
    }
    p.world.peer(other).expect_nothing();
}

#[test]
fn garbage_of_a_device_costs_its_own_connection_alone() {
    let mut p = busy();
    let other = p.world.device("other");
    p.world.peer(other).attach(0, 0, "up", true, UP);
    p.world.run();
    p.world.peer(other).skip();
    p.world.peer(p.device).out.tail().extend([0, 0, 0, 3, 2, 0, 0, 0]);
    p.world.run();
    let closed = p.world.peer(p.device).closed.clone().expect("closed");
    assert_eq!(condition(&closed), Some("amqp:connection:framing-error"));
    assert!(!p.world.is_alive(p.device) && p.world.is_alive(p.hub) && p.world.is_alive(other));
    p.world.peer(other).expect_nothing();
    assert_eq!(p.world.router.snapshot().session_pairs, 1);
}

#[test]
fn a_shutdown_closes_everything_properly() {
    let mut p = busy();
    p.world.router.shutdown(p.world.now);
    p.world.run();
    // Nobody finishes what is under way.
    p.world.advance(Duration::from_secs(5));
    let device = p.world.peer(p.device);
    let failed = device.expect(wire::DISPOSITION);
    assert_eq!(settled(&failed), (Some(0), Some(0), true, Some(wire::MODIFIED)));
    for _ in 0..2 {
        assert_eq!(
            condition(device.expect(wire::DETACH).field(2)),
            Some("amqp:link:detach-forced")
        );
    }
    device.expect(wire::CLOSE);
    assert_eq!(
        condition(&device.closed.clone().expect("closed")),
        Some("amqp:connection:forced")
    );
    let hub = p.world.peer(p.hub);
    hub.expect(wire::DISPOSITION);
    assert!(hub.expect(wire::TRANSFER).flag(9));
    hub.expect(wire::DETACH);
    hub.expect(wire::DETACH);
    hub.expect(wire::END);
    assert!(hub.closed.is_some());
    assert!(p.world.router.is_empty());
    assert!(
        p.world
            .connect("late", crate::world::DEVICE_AUTO, Announces::default())
            .is_none()
    );
}

#[test]
fn a_shutdown_does_not_wait_for_a_peer_that_says_nothing() {
    let mut p = busy();
    for id in [p.device, p.hub] {
        p.world.set_reads(id, false);
        p.world.set_speaks(id, false);
    }
    p.world.router.shutdown(p.world.now);
    p.world.run();
    assert!(!p.world.router.is_empty());
    p.world.advance(Duration::from_secs(11));
    assert!(p.world.router.is_empty(), "{:?}", p.world.router.snapshot());
    assert_eq!(p.world.peer(p.hub).kind, Kind::Hub);
}

/// Its time for the handshake runs out while its answer to our close is waited for: the one deadline must not hide the
/// other.
#[test]
fn a_shutdown_in_the_middle_of_a_handshake_comes_to_its_end() {
    let mut world = World::new(settings());
    let device = world
        .connect("dev", crate::world::DEVICE_AUTO, Announces::default())
        .expect("room for a device");
    world.peer(device).out.tail().extend(wire::AMQP_HEADER);
    world.run();
    world.advance(Duration::from_secs(8));
    world.set_speaks(device, false);
    world.router.shutdown(world.now);
    world.run();
    world.advance(Duration::from_secs(4));
    assert!(!world.router.is_empty(), "the close still has time");
    world.advance(Duration::from_secs(2));
    assert!(world.router.is_empty(), "{:?}", world.router.snapshot());
}
