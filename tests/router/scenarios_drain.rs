//! The stop: what is under way is settled first, within its time; what has not begun does not begin.

use std::time::Duration;

use linkrouterd::amqp::value::Value;

use crate::cbs_hub::{CbsDevice, CbsHub, cbs_settings, cbs_world, put_token};
use crate::peer::Announces;
use crate::tunnel::{Tunnel, UP, tunnel, tunnel_with};
use crate::wire::{self, condition, state_code};
use crate::world::{PeerId, World, settings};

fn stop(world: &mut World) {
    world.router.shutdown(world.now);
    world.run();
}

fn is_closed(world: &mut World, peer: PeerId) -> bool {
    world.peer(peer).closed.is_some()
}

/// How many have come that were not looked at.
fn transfers(world: &mut World, peer: PeerId) -> usize {
    std::iter::from_fn(|| world.peer(peer).next())
        .filter(|frame| frame.code == wire::TRANSFER)
        .count()
}

/// The device has sent a delivery that the hub has, and has not settled.
fn unsettled() -> Tunnel {
    let mut p = tunnel();
    p.world.peer(p.device).send(0, 0, b"telemetry", false);
    p.world.run();
    assert_eq!(p.world.peer(p.hub).link(p.up.0, p.up.1).received.len(), 1);
    p.world.peer(p.hub).skip();
    p
}

#[test]
fn a_stop_waits_for_a_delivery_that_the_hub_has_not_settled() {
    let mut p = unsettled();
    stop(&mut p.world);
    p.world.advance(Duration::from_secs(3));
    p.world.peer(p.device).expect_nothing();
    p.world.peer(p.hub).expect_nothing();
    p.world.peer(p.hub).settle(p.up.0, p.up.1, 0, wire::ACCEPTED);
    p.world.run();
    let device = p.world.peer(p.device);
    let settled = device.expect(wire::DISPOSITION);
    assert_eq!(state_code(settled.field(4)), Some(wire::ACCEPTED));
    device.expect(wire::DETACH);
    device.expect(wire::DETACH);
    let error = device.expect(wire::CLOSE);
    assert_eq!(condition(error.field(0)), Some("amqp:connection:forced"));
    let hub = p.world.peer(p.hub);
    for code in [wire::DETACH, wire::DETACH, wire::END] {
        hub.expect(code);
    }
    assert_eq!(hub.expect(wire::CLOSE).field(0), &Value::Null, "a plain close");
    assert!(p.world.router.is_empty());
}

#[test]
fn a_stop_waits_five_seconds_for_a_hub_that_settles_nothing() {
    let mut p = unsettled();
    stop(&mut p.world);
    p.world.advance(Duration::from_millis(4_900));
    assert!(!is_closed(&mut p.world, p.device));
    p.world.advance(Duration::from_millis(200));
    let in_doubt = p.world.peer(p.device).expect(wire::DISPOSITION);
    assert_eq!(state_code(in_doubt.field(4)), Some(wire::MODIFIED));
    assert!(is_closed(&mut p.world, p.device) && is_closed(&mut p.world, p.hub));
    assert!(p.world.router.is_empty());
}

#[test]
fn a_stop_closes_devices_with_nothing_under_way_at_once() {
    let mut p = unsettled();
    let idle = p.world.device("idle");
    p.world.peer(idle).attach(0, 0, "up", true, UP);
    p.world.run();
    stop(&mut p.world);
    assert!(is_closed(&mut p.world, idle));
    assert!(!is_closed(&mut p.world, p.device) && !is_closed(&mut p.world, p.hub));
    p.world.lose(p.device);
    p.world.run();
    assert!(is_closed(&mut p.world, p.hub), "nobody is left to wait for");
    assert!(p.world.router.is_empty());
}

/// To look at each of them whenever one has moved would cost the square of their number.
#[test]
fn a_stop_with_many_devices_looks_at_them_together() {
    let mut p = tunnel();
    let names: Vec<String> = (0..250).map(|number| format!("d{number}")).collect();
    let mut devices = Vec::new();
    for name in &names {
        let device = p.world.device(name);
        p.world.peer(device).attach(0, 0, "up", true, UP);
        p.world.run();
        let hub = p.world.peer(p.hub);
        let link = hub.find(&format!("up@{name}"), false).expect("a receiver");
        hub.grant(link.0, link.1, 1);
        devices.push((device, link));
    }
    p.world.run();
    for &(device, _) in &devices {
        p.world.peer(device).send(0, 0, b"telemetry", false);
    }
    p.world.run();
    stop(&mut p.world);
    let (last, others) = devices.split_last().expect("many");
    for &(_, link) in others {
        p.world.peer(p.hub).settle(link.0, link.1, 0, wire::ACCEPTED);
    }
    p.world.run();
    assert!(others.iter().all(|&(device, _)| !is_closed(&mut p.world, device)));
    p.world.advance(Duration::from_millis(3));
    assert!(others.iter().all(|&(device, _)| is_closed(&mut p.world, device)));
    assert!(!is_closed(&mut p.world, last.0) && !is_closed(&mut p.world, p.hub));
    p.world.peer(p.hub).settle(last.1.0, last.1.1, 0, wire::ACCEPTED);
    p.world.run();
    assert!(is_closed(&mut p.world, last.0), "a single one at once");
    assert!(p.world.router.is_empty());
}

#[test]
fn a_stop_lets_a_device_settle_what_it_was_sent_and_sends_it_nothing_new() {
    let mut p = tunnel();
    p.world.peer(p.hub).send(p.down.0, p.down.1, b"command", false);
    p.world.run();
    stop(&mut p.world);
    p.world.peer(p.hub).send(p.down.0, p.down.1, b"late", false);
    p.world.run();
    assert_eq!(p.world.peer(p.device).link(0, 1).received.len(), 1);
    p.world.peer(p.hub).skip();
    p.world.peer(p.device).settle(0, 1, 0, wire::ACCEPTED);
    p.world.run();
    let settled = p.world.peer(p.hub).expect(wire::DISPOSITION);
    assert_eq!(
        (settled.uint(1), state_code(settled.field(4))),
        (Some(0), Some(wire::ACCEPTED))
    );
    p.world.peer(p.hub).expect(wire::DETACH);
    assert!(is_closed(&mut p.world, p.device));
    assert!(p.world.router.is_empty());
}

#[test]
fn a_stop_lets_a_delivery_that_is_half_sent_be_finished() {
    let mut p = tunnel();
    let large = (vec![1; 3000], false);
    p.world.peer(p.device).link(0, 0).queue.push_back(large);
    p.world.peer(p.device).send_piece(0, 0, 1000);
    p.world.run();
    stop(&mut p.world);
    p.world.peer(p.device).push_out(0);
    p.world.run();
    let received = &p.world.peer(p.hub).link(p.up.0, p.up.1).received;
    assert_eq!(received.len(), 1);
    assert_eq!(received.first().expect("one").payload, vec![1; 3000]);
    p.world.peer(p.hub).settle(p.up.0, p.up.1, 0, wire::ACCEPTED);
    p.world.run();
    let settled = p.world.peer(p.device).expect(wire::DISPOSITION);
    assert_eq!(state_code(settled.field(4)), Some(wire::ACCEPTED));
    assert!(p.world.router.is_empty());
}

/// What the device sends behind the stop is not for the hub any more, and the device is told so; but what is settled
/// already is nobody's to send again, and goes.
#[test]
fn a_stop_releases_what_has_not_begun() {
    let mut p = unsettled();
    stop(&mut p.world);
    p.world.peer(p.device).send(0, 0, b"settled", true);
    p.world.run();
    for payload in [b"new 1", b"new 2"] {
        p.world.peer(p.device).send(0, 0, payload, false);
    }
    p.world.run();
    assert_eq!(p.world.peer(p.hub).link(p.up.0, p.up.1).received.len(), 2);
    p.world.peer(p.hub).settle(p.up.0, p.up.1, 0, wire::ACCEPTED);
    p.world.run();
    let device = p.world.peer(p.device);
    let outcomes: Vec<_> = std::iter::from_fn(|| device.next())
        .filter(|frame| frame.code == wire::DISPOSITION)
        .map(|frame| (frame.uint(1), state_code(frame.field(4))))
        .collect();
    assert_eq!(
        outcomes,
        [
            (Some(0), Some(wire::ACCEPTED)),
            (Some(2), Some(wire::RELEASED)),
            (Some(3), Some(wire::RELEASED))
        ]
    );
    assert!(p.world.router.is_empty());
}

/// The hub's window is closed: what is settled already waits for it, and what is not is released.
#[test]
fn a_stop_sends_what_is_parked_and_settled() {
    for window in [true, false] {
        let mut p = tunnel_with(2048, 1);
        for settled in [true, true, false] {
            p.world.peer(p.device).send(0, 0, b"m", settled);
        }
        p.world.run();
        stop(&mut p.world);
        assert!(!is_closed(&mut p.world, p.device));
        if window {
            p.world.peer(p.hub).widen(p.up.0, 5);
            p.world.run();
            assert_eq!(transfers(&mut p.world, p.hub), 2);
        } else {
            p.world.advance(Duration::from_secs(5));
        }
        let released = p.world.peer(p.device).expect_past_flows(wire::DISPOSITION);
        assert_eq!(
            (released.uint(1), state_code(released.field(4))),
            (Some(2), Some(wire::RELEASED))
        );
        assert!(p.world.router.is_empty());
    }
}

#[test]
fn a_stop_waits_for_the_answer_to_a_request_to_cbs() {
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "d1");
    let mut hub = CbsHub::new(&world);
    device.ask(&mut world, &put_token("d1", Value::Ulong(0)));
    stop(&mut world);
    assert!(!is_closed(&mut world, device.peer));
    let request = hub.request(&mut world);
    hub.answer(&mut world, &request, 200, "OK");
    let codes: Vec<i32> = device
        .answers(&mut world)
        .iter()
        .map(|answer| answer.code())
        .collect();
    assert_eq!(codes, [200]);
    assert!(is_closed(&mut world, device.peer));
    assert!(world.router.is_empty());
}

/// Its frames wait for an attach that nobody will answer.
#[test]
fn a_stop_does_not_wait_for_a_hub_that_is_not_there() {
    let mut world = World::new(settings());
    world.hub = None;
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "up", true, UP);
    world.peer(device).link(0, 0).credit = 1;
    world.peer(device).send(0, 0, b"m", false);
    world.run();
    stop(&mut world);
    assert!(is_closed(&mut world, device));
    assert!(world.router.is_empty());
}

/// It had said goodbye, and would not know what became of it.
#[test]
fn a_stop_waits_for_what_a_device_left_behind() {
    let mut p = tunnel_with(2048, 1);
    for _ in 0..2 {
        p.world.peer(p.device).send(0, 0, b"m", false);
    }
    p.world.run();
    p.world.peer(p.device).close(Value::Null);
    p.world.run();
    stop(&mut p.world);
    assert!(!is_closed(&mut p.world, p.hub));
    p.world.peer(p.hub).widen(p.up.0, 5);
    p.world.run();
    assert_eq!(transfers(&mut p.world, p.hub), 2);
    assert!(p.world.router.is_empty());
}

#[test]
fn a_stop_takes_nobody_in() {
    let mut p = unsettled();
    stop(&mut p.world);
    let late = p
        .world
        .connect("late", crate::world::DEVICE_AUTO, Announces::default());
    assert!(late.is_none());
    p.world.lose(p.hub);
    p.world.run();
    assert!(p.world.dials.is_empty(), "nor does it dial");
    assert!(is_closed(&mut p.world, p.device));
    p.world.advance(Duration::from_secs(60));
    assert!(p.world.router.is_empty() && p.world.dials.is_empty());
}
