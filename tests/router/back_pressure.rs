//! What is held when somebody does not read: bounded, and whole again when it does.

use linkrouterd::endpoint::limits;

use crate::peer::{Announces, Auto};
use crate::tunnel::{DOWN, UP};
use crate::world::{DEVICE_AUTO, HUB_AUTO, PeerId, World, settings};

/// What the driver reads at once, at most.
const READ: usize = 64 * 1024;
const MESSAGE: usize = 16_000;

fn message(device: usize, number: usize) -> Vec<u8> {
    let mut message = vec![(number % 251) as u8; MESSAGE];
    let mark = (device as u64) << 32 | number as u64;
    message.splice(..8, mark.to_be_bytes());
    message
}

fn quiet_world() -> World {
    let mut world = World::new(settings());
    world.keeps_logs = false;
    world
}

/// Devices with one link each, attached, and the hub's ends.
fn attached(world: &mut World, count: usize, auto: Auto, is_sender: bool) -> Vec<(PeerId, (u16, u32))> {
    let mut devices = Vec::new();
    for number in 0..count {
        let name = format!("d{number}");
        let device = world.device_with(&name, auto, Announces::default());
        let address = if is_sender { UP } else { DOWN };
        world.peer(device).attach(0, 0, "l", is_sender, address);
        world.run();
        let place = world
            .hub()
            .find(&format!("l@{name}"), !is_sender)
            .expect("attached");
        devices.push((device, place));
    }
    devices
}

#[test]
fn a_hub_that_grants_credit_and_stops_reading_costs_no_more_than_the_budget() {
    const DEVICES: usize = 100;
    const MESSAGES: usize = 40;
    let mut world = quiet_world();
    world.hub = Some((
        HUB_AUTO,
        Announces {
            window: 5000,
            ..Announces::default()
        },
    ));
    let devices = attached(&mut world, DEVICES, DEVICE_AUTO, true);
    for &(_, place) in &devices {
        world.hub().grant(place.0, place.1, 1000);
    }
    world.run();
    let hub = world.hub_id();
    world.set_reads(hub, false);
    for &(device, _) in &devices {
        for number in 0..MESSAGES {
            world.peer(device).send(0, 0, &message(device, number), true);
        }
    }
    world.run();
    let snapshot = world.router.snapshot();
    // The outbox up to its mark; then what each device was read of once before it was found that the hub is behind.
    assert!(
        snapshot.outbox_bytes <= limits::OUTBOX_HIGH + READ,
        "{snapshot:?}"
    );
    assert!(snapshot.parked_bytes <= DEVICES * READ, "{snapshot:?}");
    assert!(
        snapshot.buffered_bytes() <= limits::PARKED_BYTES_TOTAL,
        "{snapshot:?}"
    );
    for &(device, _) in &devices {
        assert!(world.is_paused(device), "device {device} is still read");
        assert!(!world.peer(device).out.is_empty());
    }
    world.set_reads(hub, true);
    world.run();
    for &(device, place) in &devices {
        let received = &world.hub().link(place.0, place.1).received;
        assert!(
            received.iter().map(|d| &d.payload).eq((0..MESSAGES)
                .map(|n| message(device, n))
                .collect::<Vec<_>>()
                .iter())
        );
        assert!(!world.is_paused(device));
    }
    assert_eq!(world.router.snapshot().buffered_bytes(), 0);
}

#[test]
fn a_hub_whose_windows_stay_closed_costs_no_more_than_the_budget() {
    const DEVICES: usize = 150;
    let mut world = quiet_world();
    let mut auto = HUB_AUTO;
    auto.window = false;
    world.hub = Some((
        auto,
        Announces {
            window: 1,
            ..Announces::default()
        },
    ));
    let devices = attached(&mut world, DEVICES, DEVICE_AUTO, true);
    for &(_, place) in &devices {
        world.hub().grant(place.0, place.1, 1000);
    }
    world.run();
    for &(device, _) in &devices {
        for number in 0..40 {
            world.peer(device).send(0, 0, &message(device, number), true);
        }
    }
    world.run();
    let snapshot = world.router.snapshot();
    assert!(
        snapshot.parked_bytes <= limits::PARKED_BYTES_TOTAL + DEVICES * READ,
        "{snapshot:?}"
    );
    assert!(devices.iter().all(|&(device, _)| world.is_paused(device)));
    // A device that wants nothing of the hub's windows is served all the same.
    let newcomer = world.device("newcomer");
    world.peer(newcomer).attach(0, 0, "down", false, DOWN);
    world.run();
    assert!(world.peer(newcomer).link(0, 0).remote.is_some());
    for &(device, _) in &devices {
        world.lose(device);
    }
    world.run();
    assert_eq!(world.router.snapshot().parked_bytes, 0);
}

#[test]
fn devices_that_come_and_go_cannot_leave_more_than_the_budget_behind() {
    let mut world = quiet_world();
    let mut auto = HUB_AUTO;
    auto.window = false;
    world.hub = Some((
        auto,
        Announces {
            window: 1,
            ..Announces::default()
        },
    ));
    for number in 0..700 {
        let device = world.device(&format!("d{number}"));
        world.peer(device).attach(0, 0, "l", true, UP);
        world.run();
        let place = world
            .hub()
            .find(&format!("l@d{number}"), false)
            .expect("attached");
        world.hub().grant(place.0, place.1, 10);
        world.run();
        for number in 0..4 {
            world.peer(device).send(0, 0, &message(device, number), true);
        }
        world.peer(device).close(linkrouterd::amqp::value::Value::Null);
        world.run();
        assert!(!world.is_alive(device));
    }
    let snapshot = world.router.snapshot();
    assert!(
        snapshot.parked_bytes <= limits::PARKED_BYTES_TOTAL + READ,
        "{snapshot:?}"
    );
    assert!(
        snapshot.parked_bytes > limits::PARKED_BYTES_TOTAL / 2,
        "what was sent before a close is kept"
    );
}

#[test]
fn a_device_that_does_not_read_is_bounded_by_its_session_and_disturbs_nobody() {
    const MESSAGES: usize = 6_600;
    let mut world = quiet_world();
    world.hub = Some((HUB_AUTO, Announces::default()));
    let devices = attached(&mut world, 2, DEVICE_AUTO, false);
    let &[(stuck, stuck_place), (other, other_place)] = devices.as_slice() else {
        panic!("two devices");
    };
    for device in [stuck, other] {
        world.peer(device).grant(0, 0, 10_000);
    }
    world.run();
    world.set_reads(stuck, false);
    // 100 MiB for the one that does not read.
    for number in 0..MESSAGES {
        world
            .hub()
            .link(stuck_place.0, stuck_place.1)
            .queue
            .push_back((message(0, number), true));
    }
    world.hub().push_out(stuck_place.0);
    world.run();
    let snapshot = world.router.snapshot();
    let bound = limits::UPSTREAM_WINDOW_BYTES as usize + limits::OUTBOX_HIGH + READ;
    assert!(snapshot.buffered_bytes() <= bound, "{snapshot:?}");
    for number in 0..200 {
        world
            .hub()
            .send(other_place.0, other_place.1, &message(1, number), true);
    }
    world.run();
    assert_eq!(world.peer(other).link(0, 0).received.len(), 200);
    world.set_reads(stuck, true);
    world.run();
    let received = &world.peer(stuck).link(0, 0).received;
    assert_eq!(received.len(), MESSAGES);
    assert!(
        (0..)
            .zip(received)
            .all(|(number, delivery)| delivery.payload == message(0, number))
    );
    assert_eq!(world.router.snapshot().buffered_bytes(), 0);
}

#[test]
fn devices_that_hold_too_much_together_are_closed_and_the_hub_is_not() {
    const DEVICES: usize = 200;
    let mut settings = settings();
    for connector in &mut settings.connectors {
        connector.limits.max_frame_size = 16 * 1024;
    }
    let mut world = World::new(settings);
    world.keeps_logs = false;
    let devices = attached(&mut world, DEVICES, DEVICE_AUTO, false);
    for &(device, place) in &devices {
        world.peer(device).grant(0, 0, 1000);
        world.run();
        world.set_reads(device, false);
        for number in 0..40 {
            world
                .hub()
                .link(place.0, place.1)
                .queue
                .push_back((message(device, number), true));
        }
    }
    for &(_, place) in &devices {
        world.hub().push_out(place.0);
        world.run();
    }
    let snapshot = world.router.snapshot();
    assert!(snapshot.held_bytes <= limits::HELD_BYTES_TOTAL, "{snapshot:?}");
    let closed = devices
        .iter()
        .filter(|&&(device, _)| !world.is_alive(device))
        .count();
    assert!((1..DEVICES / 2).contains(&closed), "{closed} of {DEVICES} closed");
    let hub = world.hub_id();
    assert!(world.is_alive(hub));
    // The others lose nothing.
    for &(device, _) in &devices {
        world.set_reads(device, true);
    }
    world.run();
    for &(device, _) in devices
        .iter()
        .filter(|&&(device, _)| world.is_alive(device))
        .collect::<Vec<_>>()
    {
        assert_eq!(world.peer(device).link(0, 0).received.len(), 40);
    }
    assert_eq!(world.router.snapshot().buffered_bytes(), 0);
}

#[test]
fn a_device_that_does_not_read_its_own_answers_is_not_read_and_in_the_end_closed() {
    let mut world = quiet_world();
    let devices = attached(&mut world, 1, DEVICE_AUTO, true);
    let &[(device, place)] = devices.as_slice() else {
        panic!("one device");
    };
    world.set_reads(device, false);
    // Every echo is answered.
    for _ in 0..20_000 {
        world.peer(device).flow(0, None, false, true);
    }
    world.run();
    assert!(world.is_paused(device));
    assert!(world.router.snapshot().outbox_bytes < limits::OUTBOX_HIGH + 2 * READ);
    // The hub is read on, and may say what it likes to a device that does not listen.
    for _ in 0..200_000 {
        if !world.is_alive(device) {
            break;
        }
        world.hub().flow(place.0, Some(place.1), false, false);
        if world.hub().out.len() > READ {
            world.run();
        }
    }
    world.run();
    assert!(!world.is_alive(device), "{:?}", world.router.snapshot());
    assert_eq!(world.router.snapshot().link_pairs, 0);
}
