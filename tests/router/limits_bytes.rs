//! Each bound in bytes on what is held for a peer, reached exactly and passed. `docs/reliability.md` lists them.

use linkrouterd::amqp::value::Value;
use linkrouterd::endpoint::limits;
use linkrouterd::router::settings::{ListenerRole, RouterSettings};

use crate::peer::{Announces, Auto};
use crate::tunnel::{DOWN, UP};
use crate::wire::{self, Frame, condition, string, symbol, uint};
use crate::world::{DEVICE_AUTO, HUB_AUTO, PeerId, World, settings};

/// What the driver reads at once, at most.
const READ: usize = 64 * 1024;
/// A payload whose transfer fits into any frame here.
const LARGE: usize = 16_000;

/// A transfer is its payload and this: handle, delivery-id, tag and flags, as the scripted peers write them.
fn overhead() -> usize {
    let (mut world, device, _) = parked_world(1);
    park(&mut world, device[0], 1000);
    world.router.snapshot().parked_bytes - 1000
}

/// Delivery-ids that all take the same number of bytes.
fn wide_ids() -> Announces {
    Announces {
        first_delivery_id: 100_000,
        ..Announces::default()
    }
}

fn quiet(settings: RouterSettings) -> World {
    let mut world = World::new(settings);
    world.keeps_logs = false;
    world
}

/// Devices with a sender each, and a hub that gives them credit and no session window, so that all they send is parked.
fn parked_world(devices: usize) -> (World, Vec<PeerId>, PeerId) {
    let mut world = quiet(settings());
    let closed = Announces {
        window: 0,
        ..Announces::default()
    };
    let auto = Auto {
        window: false,
        ..HUB_AUTO
    };
    world.hub = Some((auto, closed));
    let devices: Vec<PeerId> = (0..devices)
        .map(|number| {
            let device = world.device_with(&format!("d{number}"), DEVICE_AUTO, wide_ids());
            world.peer(device).attach(0, 0, "up", true, UP);
            world.run();
            device
        })
        .collect();
    let hub = world.hub_id();
    let places: Vec<(u16, u32)> = (0..devices.len())
        .map(|number| {
            world
                .peer(hub)
                .find(&format!("up@d{number}"), false)
                .expect("attached")
        })
        .collect();
    for (channel, handle) in places {
        world.peer(hub).grant(channel, handle, 1000);
    }
    world.run();
    (world, devices, hub)
}

fn park(world: &mut World, device: PeerId, payload: usize) {
    world.peer(device).send(0, 0, &vec![7; payload], true);
    world.run();
}

/// Parks exactly so many bytes of a device.
fn park_exactly(world: &mut World, device: PeerId, bytes: usize, overhead: usize) {
    let before = world.router.snapshot().parked_bytes;
    let mut left = bytes;
    while left > 2 * LARGE {
        park(world, device, LARGE);
        left -= LARGE + overhead;
    }
    // Two more, so that neither is shorter than a payload can be, nor so short that its size has another form.
    let half = left / 2 - overhead;
    park(world, device, half);
    park(world, device, left - half - 2 * overhead);
    assert_eq!(world.router.snapshot().parked_bytes - before, bytes);
}

// ---- devices that outrun their hub -----------------------------------------------------------------------------------

#[test]
fn a_device_is_read_until_it_has_parked_what_it_may() {
    let overhead = overhead();
    for (bytes, is_paused) in [(limits::PARKED_BYTES - 1, false), (limits::PARKED_BYTES, true)] {
        let (mut world, devices, _) = parked_world(1);
        park_exactly(&mut world, devices[0], bytes, overhead);
        assert_eq!(world.is_paused(devices[0]), is_paused, "{bytes}");
    }
}

#[test]
fn all_devices_that_have_something_parked_are_read_until_they_have_together_what_they_may() {
    let overhead = overhead();
    // Each below its own bound.
    let each = limits::PARKED_BYTES - READ;
    let count = limits::PARKED_BYTES_TOTAL / each - 1;
    for missing in [1, 0] {
        let (mut world, devices, _) = parked_world(count + 2);
        let (last, rest) = devices.split_last().expect("some");
        let (nothing, rest) = rest.split_last().expect("some");
        for &device in rest {
            park_exactly(&mut world, device, each, overhead);
        }
        let left = limits::PARKED_BYTES_TOTAL - count * each - missing;
        park_exactly(&mut world, *last, left, overhead);
        // Something to read, so that it is asked whether they may be.
        for &device in &devices {
            world.peer(device).flow(0, None, false, false);
        }
        world.run();
        let parked = world.router.snapshot().parked_bytes;
        assert_eq!(parked, limits::PARKED_BYTES_TOTAL - missing);
        assert_eq!(world.is_paused(*last), missing == 0, "{parked}");
        assert!(
            !world.is_paused(*nothing),
            "who has nothing waiting is read all the same"
        );
    }
}

#[test]
fn transfers_are_parked_when_so_much_waits_for_a_transport_and_move_on_when_half_of_it_has_gone() {
    let mut world = quiet(settings());
    let devices = ["d0", "d1"].map(|name| {
        let device = world.device(name);
        world.peer(device).attach(0, 0, "up", true, UP);
        world.run();
        let place = world.hub().find(&format!("up@{name}"), false).expect("attached");
        world.hub().grant(place.0, place.1, 1000);
        world.run();
        device
    });
    let hub = world.hub_id();
    world.set_reads(hub, false);
    let waiting = |world: &World| {
        let snapshot = world.router.snapshot();
        (snapshot.outbox_bytes, snapshot.parked_bytes)
    };
    while waiting(&world).0 < limits::OUTBOX_HIGH - LARGE {
        park(&mut world, devices[0], LARGE);
    }
    assert!(!world.is_paused(devices[0]));
    // Three that are read at once: the first fills the outbox, the others find it full.
    for _ in 0..3 {
        world.peer(devices[1]).send(0, 0, &[7; LARGE], true);
    }
    world.run();
    let (full, parked) = waiting(&world);
    let transfer = parked / 2;
    assert!((LARGE..LARGE + 100).contains(&transfer), "{parked}");
    assert!(
        (limits::OUTBOX_HIGH..limits::OUTBOX_HIGH + transfer).contains(&full),
        "{full}"
    );
    world.peer(devices[0]).flow(0, None, false, false);
    world.run();
    assert!(
        devices.iter().all(|&device| world.is_paused(device)),
        "what feeds it is not read"
    );
    let key = world.peer(hub).key.expect("alive");
    // The hub takes some: nothing moves before it has taken enough.
    while waiting(&world).0 > limits::OUTBOX_LOW {
        let count = 1000.min(waiting(&world).0 - limits::OUTBOX_LOW);
        world.router.transmitted(key, count, world.now);
        world.run();
        assert_eq!(waiting(&world).1, parked, "{:?}", waiting(&world));
        assert!(devices.iter().all(|&device| world.is_paused(device)));
    }
    world.router.transmitted(key, 1, world.now);
    world.run();
    assert_eq!(waiting(&world).1, 0, "what was parked goes first");
    world.set_reads(hub, true);
    world.run();
    assert!(devices.iter().all(|&device| !world.is_paused(device)));
}

// ---- devices and brokers that do not read ----------------------------------------------------------------------------

/// A flow with so much in it, which is carried.
fn large_flow(channel: u16, handle: u32, padding: usize) -> Frame {
    let mut fields = vec![
        uint(0),
        uint(1000),
        uint(0),
        uint(1000),
        uint(handle),
        uint(0),
        uint(1),
    ];
    fields.resize(10, Value::Null);
    fields.push(Value::Map(vec![(symbol("p"), string(&"p".repeat(padding)))]));
    Frame::new(channel, wire::FLOW, fields)
}

#[test]
fn a_device_that_reads_nothing_is_closed_when_more_waits_for_it_than_may() {
    let mut world = quiet(settings());
    let device = world.device("d0");
    world.peer(device).attach(0, 0, "up", true, UP);
    world.run();
    let hub = world.hub_id();
    let place = world.peer(hub).find("up@d0", false).expect("attached");
    world.set_reads(device, false);
    let mut most = 0;
    for _ in 0..limits::DEVICE_OUTBOX_MAX / 10_000 + 10 {
        if !world.is_alive(device) || world.router.snapshot().outbox_bytes < most {
            break;
        }
        most = world.router.snapshot().outbox_bytes;
        world.peer(hub).say(&large_flow(place.0, place.1, 10_000));
        world.run();
    }
    assert!(most <= limits::DEVICE_OUTBOX_MAX, "{most}");
    assert!(most > limits::DEVICE_OUTBOX_MAX - 10_100, "not before: {most}");
    world.advance(limits::CLOSE_TIMEOUT);
    assert!(!world.is_alive(device));
    assert!(world.is_alive(hub));
}

/// The smallest cost more to keep in order than they have bytes.
#[test]
fn what_it_costs_to_keep_parked_frames_counts_with_them() {
    const ENTRY: usize = 24;
    let mut world = quiet(settings());
    let device = world.device("d0");
    world.peer(device).attach(0, 0, "up", true, UP);
    world.run();
    let peer = world.peer(device);
    for id in 0..40_000 {
        peer.transfer_frame(0, vec![uint(0), uint(id)], b"");
    }
    let said = peer.out.len();
    world.run();
    assert!(world.is_paused(device));
    let frames = (said - world.peer(device).out.len()) * 40_000 / said;
    assert!(frames * ENTRY < limits::PARKED_BYTES + READ, "{frames}");
}

/// Attaches are not parked, and nothing else need be said to a broker to fill its outbox.
#[test]
fn a_broker_that_reads_nothing_is_closed_when_attaches_are_more_than_may_wait_for_it() {
    let mut settings = settings();
    let mut brokers = settings.listeners[0].clone();
    brokers.name = "brokers".into();
    brokers.role = ListenerRole::RouteContainer;
    settings.listeners.push(brokers);
    for route in &mut settings.routes {
        route.destination = linkrouterd::router::settings::Destination::Container("broker".into());
    }
    let mut world = quiet(settings);
    let broker = world.broker(linkrouterd::router::settings::ListenerId(1), "broker");
    world.set_reads(broker, false);
    let address = format!("{UP}/{}", "n".repeat(3900));
    let mut most = 0;
    for number in 0..limits::BROKER_OUTBOX_MAX / READ + 20 {
        let device = world.device(&format!("d{number}"));
        for handle in 0..16 {
            world
                .peer(device)
                .attach(0, handle, &handle.to_string(), true, &address);
        }
        world.run();
        if !world.is_alive(broker) || world.router.snapshot().outbox_bytes < most {
            break;
        }
        most = world.router.snapshot().outbox_bytes;
    }
    assert!(most <= limits::BROKER_OUTBOX_MAX, "{most}");
    assert!(most > limits::BROKER_OUTBOX_MAX - 2 * READ, "not before: {most}");
    world.advance(limits::CLOSE_TIMEOUT);
    assert!(!world.is_alive(broker));
}

#[test]
fn a_hub_may_send_its_window_and_not_a_frame_more() {
    let frame = settings().connectors[0].limits.max_frame_size;
    assert_eq!(
        limits::UPSTREAM_WINDOW_BYTES / frame,
        limits::UPSTREAM_WINDOW_FRAMES
    );
    // Of the largest frames: of small ones more may come.
    let payload = vec![7; frame as usize - 100];
    for (frames, is_within) in [
        (limits::UPSTREAM_WINDOW_FRAMES, true),
        (limits::UPSTREAM_WINDOW_FRAMES + 1, false),
    ] {
        let mut world = World::new(settings());
        let blocked = Announces {
            window: 0,
            ..Announces::default()
        };
        let device = world.device_with("d0", DEVICE_AUTO, blocked);
        world.peer(device).attach(0, 0, "down", false, DOWN);
        world.run();
        world.peer(device).grant(0, 0, 100);
        world.run();
        let hub = world.hub_id();
        let place = world.peer(hub).find("down@d0", true).expect("attached");
        for id in 0..frames {
            world
                .peer(hub)
                .say_transfer(place.0, place.1, Some((id, id)), true, false, &payload);
        }
        world.run();
        let log = &world.peer(hub).log;
        let end = log.iter().find(|frame| frame.code == wire::END);
        assert_eq!(
            end.and_then(|end| condition(end.field(0))),
            (!is_within).then_some("amqp:session:window-violation"),
            "{frames}"
        );
    }
}

#[test]
fn devices_hold_together_what_they_may_and_beyond_it_the_one_that_holds_most_is_closed() {
    let mut world = quiet(settings());
    world.hub = Some((HUB_AUTO, wide_ids()));
    let blocked = Announces {
        window: 0,
        ..Announces::default()
    };
    let auto = Auto {
        window: false,
        ..DEVICE_AUTO
    };
    // A little less than its window towards the hub lets each have.
    const FRAMES: usize = 4;
    let count = limits::HELD_BYTES_TOTAL / (FRAMES * LARGE) + 2;
    let mut devices = Vec::new();
    for number in 0..count {
        let device = world.device_with(&format!("d{number}"), auto, blocked);
        world.peer(device).attach(0, 0, "down", false, DOWN);
        world.run();
        world.peer(device).grant(0, 0, 100);
        world.run();
        let place = world
            .hub()
            .find(&format!("down@d{number}"), true)
            .expect("attached");
        devices.push((device, place));
    }
    let hub = world.hub_id();
    let hold = |world: &mut World, place: (u16, u32), payload: usize| {
        let before = world.router.snapshot().held_bytes;
        world.peer(hub).send(place.0, place.1, &vec![7; payload], true);
        world.run();
        world.router.snapshot().held_bytes.wrapping_sub(before)
    };
    let overhead = hold(&mut world, devices[0].1, LARGE) - LARGE;
    // The last but one holds most.
    let mut places = devices.iter().map(|&(_, place)| place).skip(1);
    loop {
        let left = limits::HELD_BYTES_TOTAL - world.router.snapshot().held_bytes;
        let place = places.next().expect("enough devices");
        if left < FRAMES * (LARGE + overhead) + 2 * LARGE {
            for _ in 0..left / (LARGE + overhead) - 1 {
                hold(&mut world, place, LARGE);
            }
            break;
        }
        for _ in 0..FRAMES {
            assert_eq!(hold(&mut world, place, LARGE), LARGE + overhead);
        }
    }
    let last = devices[0].1;
    let left = limits::HELD_BYTES_TOTAL - world.router.snapshot().held_bytes;
    let half = left / 2 - overhead;
    hold(&mut world, last, half);
    hold(&mut world, last, left - half - 2 * overhead);
    assert_eq!(world.router.snapshot().held_bytes, limits::HELD_BYTES_TOTAL);
    let alive = |world: &World| {
        devices
            .iter()
            .filter(|(device, _)| world.is_alive(*device))
            .count()
    };
    assert_eq!(alive(&world), count);
    hold(&mut world, last, 100);
    world.advance(limits::CLOSE_TIMEOUT);
    assert_eq!(alive(&world), count - 1);
    assert!(world.is_alive(devices[0].0), "another one held more");
    assert!(world.is_alive(hub));
}
