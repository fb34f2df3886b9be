//! One device session with links to two hubs: two pairs, whose ids and failures must not mix.

use linkrouterd::amqp::value::Value;
use linkrouterd::router::settings::{Destination, Direction, Matcher, RouteSettings};

use crate::peer::Peer;
use crate::wire::{self, condition, described, error};
use crate::world::{PeerId, World, settings};

struct Fork {
    world: World,
    device: PeerId,
    /// Each hub with its end of the device's sender.
    hubs: [(PeerId, (u16, u32)); 2],
}

/// The device's senders have handles 0 and 1 on channel 0.
fn fork() -> Fork {
    let mut settings = settings();
    let mut second = settings.connectors.first().expect("a connector").clone();
    second.name = "HUB2".into();
    settings.connectors.push(second);
    settings.routes.push(RouteSettings {
        name: "second".into(),
        matcher: Matcher::Prefix("second/".into()),
        direction: Direction::In,
        destination: Destination::Connection("HUB2".into()),
        add_external_prefix: String::new(),
        del_external_prefix: String::new(),
    });
    let mut world = World::new(settings);
    let device = world.device("dev");
    let mut attach = |handle, name: &str, address| {
        world.peer(device).attach(0, handle, name, true, address);
        world.run();
        let hub = world.hub_id();
        let place = world.hub().find(&format!("{name}@dev"), false).expect("attached");
        world.hub().grant(place.0, place.1, 100);
        world.run();
        (hub, place)
    };
    let hubs = [attach(0, "one", "devices/d1"), attach(1, "two", "second/d1")];
    assert_eq!(world.hubs_made, 2);
    world.peer(device).skip();
    Fork { world, device, hubs }
}

#[test]
fn deliveries_that_alternate_are_numbered_without_gaps_and_settled_each_by_its_hub() {
    let mut f = fork();
    for number in 0..6u8 {
        let handle = u32::from(number % 2);
        f.world.peer(f.device).send(0, handle, &[number], false);
    }
    f.world.run();
    for (which, &(hub, place)) in f.hubs.iter().enumerate() {
        let received = &f.world.peer(hub).link(place.0, place.1).received;
        let seen: Vec<(u32, u8)> = received
            .iter()
            .map(|d| (d.id, *d.payload.first().expect("a byte")))
            .collect();
        let which = u8::try_from(which).expect("small");
        assert_eq!(seen, vec![(0, which), (1, which + 2), (2, which + 4)]);
    }
    // A range of the second hub is three deliveries of the device's that do not follow each other.
    let (hub, place) = f.hubs[1];
    let accepted = described(wire::ACCEPTED, Vec::new());
    f.world.peer(hub).dispose(place.0, true, 0, 2, true, accepted);
    f.world.run();
    for id in [1, 3, 5] {
        let seen = f.world.peer(f.device).expect(wire::DISPOSITION);
        assert_eq!((seen.uint(1), seen.uint(2)), (Some(id), None));
    }
    f.world.peer(f.device).expect_nothing();
    assert_eq!(f.world.peer(f.device).link(0, 1).settled.len(), 3);
    assert_eq!(f.world.peer(f.device).link(0, 0).settled.len(), 0);
    // The sender settles the rest itself: each hub hears of its own.
    f.world.peer(f.device).dispose(0, false, 0, 5, true, Value::Null);
    f.world.run();
    let (hub, place) = f.hubs[0];
    assert!(
        f.world
            .peer(hub)
            .link(place.0, place.1)
            .received
            .iter()
            .all(|d| d.settled)
    );
}

#[test]
fn the_end_of_one_hub_detaches_its_links_and_leaves_the_session() {
    let mut f = fork();
    f.world.peer(f.device).send(0, 0, b"a", false);
    f.world.peer(f.device).send(0, 1, b"b", false);
    f.world.run();
    let (hub, place) = f.hubs[0];
    let reason = error("amqp:internal-error", "broken", Value::Null);
    f.world.peer(hub).end(place.0, reason);
    f.world.run();
    let failed = f.world.peer(f.device).expect(wire::DISPOSITION);
    assert_eq!((failed.uint(1), failed.uint(2)), (Some(0), Some(0)));
    let detach = f.world.peer(f.device).expect(wire::DETACH);
    assert_eq!(condition(detach.field(2)), Some("amqp:link:detach-forced"));
    f.world.peer(f.device).expect_nothing();
    f.world.peer(f.device).send(0, 1, b"c", false);
    f.world.run();
    let (other, place) = f.hubs[1];
    assert_eq!(f.world.peer(other).link(place.0, place.1).received.len(), 2);
}

/// As much as fits into a frame: every link is told.
#[test]
fn what_a_hub_says_at_length_when_it_goes_is_repeated_to_each_link_in_short() {
    let goes = [
        |hub: &mut Peer, channel, reason| hub.end(channel, reason),
        |hub: &mut Peer, _, reason| hub.close(reason),
    ];
    for go in goes {
        let mut f = fork();
        for handle in 2..50 {
            let name = format!("l{handle}");
            f.world.peer(f.device).attach(0, handle, &name, true, "second/d1");
        }
        f.world.run();
        f.world.set_reads(f.device, false);
        let (hub, (channel, _)) = f.hubs[1];
        let reason = error("amqp:internal-error", &"so ".repeat(10_000), Value::Null);
        go(f.world.peer(hub), channel, reason);
        f.world.run();
        let said = f.world.router.snapshot().outbox_bytes;
        assert!((1..50_000).contains(&said), "{said}");
        f.world.set_reads(f.device, true);
        f.world.run();
        assert!(f.world.peer(f.device).link(0, 49).detached.is_some());
    }
}

#[test]
fn a_stalled_hub_does_not_hold_the_other_up() {
    let mut f = fork();
    let ((stuck, stuck_place), (other, place)) = (f.hubs[0], f.hubs[1]);
    f.world.set_reads(stuck, false);
    for number in 0..20u8 {
        f.world.peer(f.device).send(0, 0, &[number; 10_000], true);
        f.world.peer(f.device).send(0, 1, &[number], true);
    }
    f.world.run();
    f.world.set_reads(stuck, true);
    f.world.run();
    assert_eq!(
        f.world
            .peer(stuck)
            .link(stuck_place.0, stuck_place.1)
            .received
            .len(),
        20
    );
    assert_eq!(f.world.peer(other).link(place.0, place.1).received.len(), 20);
    f.world.lose(f.device);
    f.world.run();
    assert_eq!(f.world.router.snapshot().session_pairs, 0);
    assert_eq!(f.world.router.snapshot().buffered_bytes(), 0);
}
