//! Detaches: who is told what, crossing ones, and what they may not overtake.

use std::time::Duration;

use linkrouterd::amqp::value::Value;

use crate::peer::Announces;
use crate::said_in_log::Said;
use crate::tunnel::{UP, tunnel, tunnel_with};
use crate::wire::{self, condition, error, string, symbol};
use crate::world::{HUB_AUTO, PeerId, World, settings};

#[test]
fn closed_or_not_and_the_error_reach_the_other_side_from_both() {
    for closed in [true, false] {
        let info = Value::Map(vec![(symbol("k"), string("v"))]);
        let reason = error("amqp:link:stolen", "because", info);
        let mut p = tunnel();
        p.world.peer(p.device).detach(0, 0, closed, reason.clone());
        p.world.run();
        let seen = p.world.peer(p.hub).expect(wire::DETACH);
        assert_eq!((seen.flag(1), seen.field(2)), (closed, &reason));
        assert_eq!(p.world.peer(p.device).expect(wire::DETACH).flag(1), closed);

        let mut p = tunnel();
        p.world.peer(p.hub).detach(p.up.0, p.up.1, closed, reason.clone());
        p.world.run();
        let seen = p.world.peer(p.device).expect(wire::DETACH);
        assert_eq!((seen.flag(1), seen.field(2)), (closed, &reason));
        assert_eq!(p.world.peer(p.hub).expect(wire::DETACH).flag(1), closed);
        assert_eq!(p.world.router.snapshot().link_pairs, 1);
    }
}

#[test]
fn a_close_in_answer_to_a_detach_is_passed_on_as_a_close() {
    let mut p = tunnel();
    p.world.peer(p.hub).auto.detach = false;
    p.world.peer(p.device).detach(0, 0, false, Value::Null);
    p.world.run();
    assert!(!p.world.peer(p.hub).expect(wire::DETACH).flag(1));
    p.world.peer(p.device).expect_nothing();
    p.world.peer(p.hub).detach(p.up.0, p.up.1, true, Value::Null);
    p.world.run();
    assert!(p.world.peer(p.device).expect(wire::DETACH).flag(1));
    p.world.peer(p.hub).expect_nothing();
}

#[test]
fn crossing_detaches_are_answered_once_each() {
    let mut p = tunnel();
    for side in [p.device, p.hub] {
        p.world.peer(side).auto.detach = false;
    }
    p.world.peer(p.device).detach(0, 0, true, Value::Null);
    p.world.peer(p.hub).detach(p.up.0, p.up.1, true, Value::Null);
    p.world.run();
    for side in [p.device, p.hub] {
        p.world.peer(side).expect(wire::DETACH);
        p.world.peer(side).expect_nothing();
    }
    assert_eq!(p.world.router.snapshot().link_pairs, 1);
}

#[test]
fn a_receiver_that_detaches_while_the_senders_detach_is_parked_is_answered() {
    // Upwards: the hub's window takes one frame, so the second and the device's detach behind it are parked.
    let mut p = tunnel_with(2048, 1);
    for side in [p.device, p.hub] {
        p.world.peer(side).auto.detach = false;
    }
    p.world.peer(p.device).send(0, 0, b"one", false);
    p.world.peer(p.device).send(0, 0, b"two", false);
    p.world.peer(p.device).detach(0, 0, true, Value::Null);
    p.world.run();
    p.world.peer(p.hub).detach(p.up.0, p.up.1, true, Value::Null);
    p.world.run();
    p.world.peer(p.hub).expect(wire::TRANSFER);
    p.world.peer(p.hub).expect(wire::DETACH);
    p.world.peer(p.device).expect(wire::DETACH);
    assert_eq!(p.world.router.snapshot().link_pairs, 1);
    assert_eq!(p.world.router.snapshot().parked_bytes, 0);

    // Downwards: the device's window takes one frame.
    let mut p = tunnel_with(1, 2048);
    for side in [p.device, p.hub] {
        p.world.peer(side).auto.detach = false;
    }
    p.world.peer(p.hub).send(p.down.0, p.down.1, b"one", false);
    p.world.peer(p.hub).send(p.down.0, p.down.1, b"two", false);
    p.world.peer(p.hub).detach(p.down.0, p.down.1, true, Value::Null);
    p.world.run();
    p.world.peer(p.device).detach(0, 1, true, Value::Null);
    p.world.run();
    p.world.peer(p.device).expect(wire::TRANSFER);
    p.world.peer(p.device).expect(wire::DETACH);
    p.world.peer(p.hub).expect_past_flows(wire::DETACH);
    assert_eq!(p.world.router.snapshot().link_pairs, 1);
    assert_eq!(p.world.router.snapshot().held_bytes, 0);
}

#[test]
fn what_was_sent_before_a_detach_arrives_before_it() {
    let mut p = tunnel_with(2048, 1);
    for number in 0..4u8 {
        p.world.peer(p.device).send(0, 0, &[number], false);
    }
    p.world.peer(p.device).detach(0, 0, true, Value::Null);
    p.world.run();
    for _ in 0..3 {
        p.world.peer(p.hub).expect(wire::TRANSFER);
        p.world.peer(p.hub).expect_nothing();
        p.world.peer(p.hub).widen(p.up.0, 1);
        p.world.run();
    }
    p.world.peer(p.hub).expect(wire::TRANSFER);
    p.world.peer(p.hub).expect(wire::DETACH);
}

/// A device whose session has a hub's behind it already, on channel 7; a first link asked for, and not answered.
fn device_on_open_hub(world: &mut World) -> PeerId {
    let device = world.device("dev");
    world.peer(device).attach(0, 99, "first", true, UP);
    world.run();
    let hub = world.hub();
    for code in [wire::OPEN, wire::BEGIN, wire::ATTACH] {
        hub.expect(code);
    }
    device
}

#[test]
fn a_detach_before_the_attach_is_answered() {
    let mut world = World::new(settings());
    let mut auto = HUB_AUTO;
    auto.attach = false;
    world.hub = Some((auto, Announces::default()));
    let device = device_on_open_hub(&mut world);
    world.peer(device).attach(0, 0, "up", true, UP);
    world.peer(device).detach(0, 0, true, Value::Null);
    world.run();
    world.peer(device).skip();
    let hub = world.hub();
    let attach = hub.expect(wire::ATTACH);
    hub.expect(wire::DETACH);
    hub.answer_attach(&attach, 7, 5);
    hub.detach(7, 5, true, Value::Null);
    world.run();
    world.peer(device).expect(wire::ATTACH);
    world.peer(device).expect(wire::DETACH);
    assert_eq!(world.router.snapshot().link_pairs, 1);
}

#[test]
fn a_link_given_up_before_the_answer_is_not_taken_for_its_successor_of_the_same_name() {
    let mut world = World::new(settings());
    let mut auto = HUB_AUTO;
    auto.attach = false;
    auto.detach = false;
    world.hub = Some((auto, Announces::default()));
    let device = device_on_open_hub(&mut world);
    for handle in 0..3 {
        world.peer(device).attach(0, handle, "up", true, UP);
        if handle < 2 {
            world.peer(device).detach(0, handle, true, Value::Null);
        }
    }
    world.run();
    let hub = world.hub();
    // The hub answers in the order in which it was asked.
    for handle in 5..8 {
        let attach = hub.expect(wire::ATTACH);
        assert_eq!(attach.text(0), Some("up@dev"));
        hub.answer_attach(&attach, 7, handle);
        if handle < 7 {
            hub.expect(wire::DETACH);
            hub.detach(7, handle, true, Value::Null);
        }
    }
    world.hub().grant(7, 7, 10);
    world.run();
    assert!(world.peer(device).link(0, 0).detached.is_some());
    assert!(world.peer(device).link(0, 1).detached.is_some());
    assert!(world.peer(device).link(0, 2).detached.is_none());
    world.peer(device).send(0, 2, b"hello", true);
    world.run();
    assert_eq!(world.hub().link(7, 7).received.len(), 1);
    assert_eq!(world.router.snapshot().link_pairs, 2);
}

#[test]
fn a_device_attaches_again_by_the_same_name_at_once() {
    let mut p = tunnel();
    p.world.peer(p.device).detach(0, 0, true, Value::Null);
    p.world.peer(p.device).attach(0, 2, "up", true, UP);
    p.world.run();
    let (channel, handle) = p
        .world
        .peer(p.hub)
        .find("up@dev", false)
        .expect("under the same name");
    assert_ne!(handle, p.up.1);
    p.world.peer(p.hub).grant(channel, handle, 1);
    p.world.run();
    p.world.peer(p.device).send(0, 2, b"again", true);
    p.world.run();
    assert_eq!(p.world.peer(p.hub).link(channel, handle).received.len(), 1);
    assert_eq!(p.world.router.snapshot().link_pairs, 2);
}

#[test]
fn equal_names_of_two_devices_are_told_apart_at_the_hub() {
    let mut world = World::new(settings());
    let (one, two) = (world.device("dev"), world.device("dev"));
    for device in [one, two] {
        world.peer(device).attach(0, 0, "up", true, UP);
        world.run();
        assert_eq!(world.peer(device).log.last().and_then(|f| f.text(0)), Some("up"));
    }
    let first = world.hub().find("up@dev", false).expect("the first");
    let second = world.hub().find("up@dev#2", false).expect("the second");
    for (place, device) in [(first, one), (second, two)] {
        world.hub().grant(place.0, place.1, 5);
        world.run();
        world
            .peer(device)
            .send(0, 0, &[u8::try_from(device).expect("small")], true);
    }
    world.run();
    for (place, device) in [(first, one), (second, two)] {
        let received = &world.hub().link(place.0, place.1).received;
        assert_eq!(received.len(), 1);
        assert_eq!(
            received.first().map(|d| d.payload.clone()),
            Some(vec![u8::try_from(device).expect("small")])
        );
    }
}

#[test]
fn a_refused_attach_takes_what_was_parked_behind_it_along() {
    let mut world = World::new(settings());
    world.hub = None;
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "up", true, UP);
    // More than a device may park, sent without any credit.
    for number in 0..40u32 {
        world
            .peer(device)
            .say_transfer(0, 0, Some((number, number)), true, false, &[7; 16_000]);
    }
    world.run();
    assert!(world.is_paused(device));
    world.advance(Duration::from_secs(16));
    assert_eq!(world.router.snapshot().parked_bytes, 0);
    assert!(
        !world.is_paused(device),
        "it must be heard, or nobody learns that it goes"
    );
    let detach = world.peer(device).link(0, 0).detached.clone().expect("a detach");
    assert_eq!(condition(&detach), Some("amqp:link:detach-forced"));
}

#[test]
fn what_a_device_says_at_length_is_logged_in_short() {
    let long = error("amqp:internal-error", &"so ".repeat(5000), Value::Null);
    let said = Said::of(|| {
        let mut p = tunnel();
        p.world.peer(p.device).detach(0, 0, true, long.clone());
        p.world.peer(p.device).close(long);
        p.world.run();
    });
    for what in ["Link detached by the device", "closed by the peer"] {
        assert!(said.line(what).len() < 500, "{what}");
    }
}
