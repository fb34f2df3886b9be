//! A device that comes back: what it had at the hub goes before what it attaches again, whether its former connection is
//! known to be lost or still seems to be there.

use std::time::Duration;

use linkrouterd::amqp::value::Value;
use linkrouterd::router::settings::{CbsMode, ListenerId, RouterSettings};

use crate::peer::Announces;
use crate::wire::{self, condition};
use crate::world::{DEVICE_AUTO, HUB_AUTO, PeerId, World, settings};

const EVENTS: &str = "/devices/d1/messages/events";
const BOUND: &str = "/devices/d1/messages/deviceBound";

fn shared() -> RouterSettings {
    let mut settings = settings();
    for connector in &mut settings.connectors {
        connector.sharing.cbs = CbsMode::Relay;
    }
    for route in settings.routes.clone() {
        let mut service = route;
        service.name.push_str(" service");
        service.matcher = linkrouterd::router::settings::Matcher::Prefix("messages/".into());
        settings.routes.push(service);
    }
    settings
}

/// A device with a sender and a receiver, handles 0 and 1.
fn device(world: &mut World, from: &str) -> PeerId {
    let device = connect(world, from);
    world.peer(device).attach(0, 0, "up", true, EVENTS);
    world.peer(device).attach(0, 1, "down", false, BOUND);
    world.run();
    device
}

/// One that has connected from this address, with a session on channel 0; all have the same container-id.
fn connect(world: &mut World, from: &str) -> PeerId {
    let device = world
        .connect_from(from, ListenerId(0), "dev", DEVICE_AUTO, Announces::default())
        .expect("room for a device");
    world.peer(device).open();
    world.peer(device).begin(0);
    world.run();
    device
}

/// What the hub has heard since the last look, in short: attaches with their names, detaches with `closed`, ends.
fn heard(world: &mut World) -> Vec<String> {
    let hub = world.hub();
    let mut names = std::collections::BTreeMap::new();
    for frame in &hub.log {
        if frame.code == wire::ATTACH {
            names.insert(
                (frame.channel, frame.uint(1)),
                frame.text(0).expect("a name").to_owned(),
            );
        }
    }
    let mut heard = Vec::new();
    while let Some(frame) = hub.next() {
        let name = |handle| names.get(&(frame.channel, handle)).cloned().unwrap_or_default();
        match frame.code {
            wire::ATTACH => heard.push(format!("attach {}", frame.text(0).expect("a name"))),
            wire::DETACH => {
                assert!(frame.flag(1), "closed");
                heard.push(format!("detach {}", name(frame.uint(0))));
            }
            wire::END => heard.push("end".to_owned()),
            wire::TRANSFER => heard.push(format!("transfer {}", String::from_utf8_lossy(&frame.payload))),
            _ => {}
        }
    }
    heard
}

fn stolen(world: &mut World, device: PeerId, handle: u32) -> bool {
    let detached = world.peer(device).link(0, handle).detached.clone();
    detached.is_some_and(|error| condition(&error) == Some("amqp:link:stolen"))
}

#[test]
fn a_device_that_was_lost_with_frames_parked_is_gone_at_the_hub_before_it_attaches_again() {
    let mut world = World::new(shared());
    let mut narrow = HUB_AUTO;
    narrow.window = false;
    let one_frame = Announces {
        window: 1,
        ..Announces::default()
    };
    world.hub = Some((narrow, one_frame));
    let old = device(&mut world, "10.0.0.7:40000");
    let (channel, handle) = world.hub().find("up@dev", false).expect("attached");
    world.hub().grant(channel, handle, 10);
    world.run();
    for payload in [b"one", b"two"] {
        world.peer(old).send(0, 0, payload, false);
        world.run();
    }
    assert!(world.router.snapshot().parked_bytes > 0);
    heard(&mut world);
    world.lose(old);
    let new = device(&mut world, "10.0.0.7:40001");
    assert_eq!(
        heard(&mut world),
        [
            "detach up@dev",
            "detach down@dev",
            "end",
            "attach up@dev",
            "attach down@dev"
        ]
    );
    assert!(world.peer(new).link(0, 0).remote.is_some());
    assert_eq!(world.router.snapshot().parked_bytes, 0);
}

#[test]
fn a_half_open_device_is_detached_at_the_hub_before_its_successor_attaches() {
    let mut world = World::new(shared());
    let old = device(&mut world, "10.0.0.7:40000");
    heard(&mut world);
    world.peer(old).skip();
    // Without power it neither reads nor speaks, and says nothing of it.
    world.set_reads(old, false);
    world.set_speaks(old, false);
    let new = device(&mut world, "10.0.0.7:40001");
    assert_eq!(
        heard(&mut world),
        [
            "detach up@dev",
            "attach up@dev",
            "detach down@dev",
            "attach down@dev"
        ]
    );
    for handle in [0, 1] {
        assert!(world.peer(new).link(0, handle).remote.is_some());
        assert!(world.peer(new).link(0, handle).detached.is_none());
    }
    // Was it there after all, then it hears why.
    world.set_reads(old, true);
    world.set_speaks(old, true);
    world.run();
    assert!(stolen(&mut world, old, 0) && stolen(&mut world, old, 1));
    assert!(world.is_alive(old));
    let snapshot = world.router.snapshot();
    assert_eq!(snapshot.link_pairs, 2);
    // The new links work.
    let (channel, handle) = world.hub().find("up@dev", false).expect("attached");
    world.hub().grant(channel, handle, 1);
    world.run();
    world.peer(new).send(0, 0, b"hello", true);
    world.run();
    assert_eq!(heard(&mut world), ["transfer hello"]);
    // And when the old connection goes, nothing of the new one does.
    world.lose(old);
    world.run();
    assert_eq!(heard(&mut world), ["end"]);
    assert_eq!(world.router.snapshot().link_pairs, 2);
}

#[test]
fn a_delivery_that_a_half_open_device_had_begun_is_aborted_and_the_rest_dropped() {
    let mut world = World::new(shared());
    let old = device(&mut world, "10.0.0.7:40000");
    let (channel, handle) = world.hub().find("up@dev", false).expect("attached");
    world.hub().grant(channel, handle, 10);
    world.run();
    world.peer(old).link(0, 0).queue.push_back((vec![1; 1000], false));
    world.peer(old).send_piece(0, 0, 100);
    world.run();
    world.hub().skip();
    let new = connect(&mut world, "10.0.0.7:40001");
    world.peer(new).attach(0, 0, "up", true, EVENTS);
    world.run();
    let hub = world.hub();
    assert!(hub.expect_past_flows(wire::BEGIN).uint(0).is_none());
    assert!(hub.expect_past_flows(wire::TRANSFER).flag(9), "aborted");
    hub.expect(wire::DETACH);
    assert_eq!(hub.expect(wire::ATTACH).text(0), Some("up@dev"));
    assert_eq!(world.router.snapshot().parked_bytes, 0);
}

#[test]
fn eviction_goes_by_role_and_address_in_any_spelling() {
    let mut world = World::new(shared());
    let old = device(&mut world, "10.0.0.7:40000");
    for (handle, is_sender, address) in [
        (2, true, "/devices/d1/twin"),
        (3, false, "/devices/d1/twin"),
        (4, true, "devices/d1/modules/M/messages/events"),
    ] {
        world
            .peer(old)
            .attach(0, handle, &format!("l{handle}"), is_sender, address);
    }
    world.run();
    let new = connect(&mut world, "10.0.0.7:40001");
    let attaches = [
        // Of others, or of none.
        (true, "devices/D1/messages/events", None),
        (true, "devices/d11/messages/events", None),
        (true, "devices/d1/messages/events/more", None),
        (false, "devices/d1/messages/events", None),
        (true, "devices/d1/messages/devicebound", None),
        (true, "devices/d1/modules/m/messages/events", None),
        (true, "messages/devicebound", None),
        // The same.
        (true, "amqps://gateway:5671/devices/d1/Messages/Events", Some(0)),
        (false, "devices/d1/messages/devicebound", Some(1)),
        (false, "devices/d1/twin", Some(3)),
        (true, "devices/d1/TWIN", Some(2)),
        (true, "devices/d1/Modules/M/messages/events", Some(4)),
    ];
    for (next, (is_sender, address, expected)) in (10..).zip(attaches) {
        let before: Vec<bool> = (0..5).map(|handle| stolen(&mut world, old, handle)).collect();
        world
            .peer(new)
            .attach(0, next, &format!("n{next}"), is_sender, address);
        world.run();
        assert!(world.peer(new).link(0, next).detached.is_none(), "{address}");
        for handle in 0..5 {
            let is_stolen = stolen(&mut world, old, handle);
            let was_stolen = before[usize::try_from(handle).expect("small")];
            assert_eq!(
                is_stolen,
                was_stolen || expected == Some(handle),
                "{address}: {handle}"
            );
        }
    }
}

#[test]
fn eviction_is_for_shared_connections_and_devices_own_addresses_only() {
    let mut tunnel = shared();
    for connector in &mut tunnel.connectors {
        connector.sharing.cbs = CbsMode::Tunnel;
    }
    let mut own_identity = shared();
    for connector in &mut own_identity.connectors {
        connector.sasl_username = Some("policy".into());
    }
    for (settings, address) in [
        (tunnel, EVENTS),
        (own_identity, EVENTS),
        (shared(), "/messages/devicebound"),
    ] {
        let mut world = World::new(settings);
        let [old, new] = ["10.0.0.7:40000", "10.0.0.8:40000"].map(|from| connect(&mut world, from));
        for device in [old, new] {
            world.peer(device).attach(0, 0, "up", true, address);
            world.run();
        }
        for device in [old, new] {
            assert!(world.peer(device).link(0, 0).remote.is_some());
            assert!(world.peer(device).link(0, 0).detached.is_none(), "{address}");
        }
    }
}

#[test]
fn a_device_may_attach_twice_and_both_go_when_it_comes_back() {
    let mut world = World::new(shared());
    let old = device(&mut world, "10.0.0.7:40000");
    world.peer(old).attach(0, 2, "second", true, EVENTS);
    world.run();
    assert!(!stolen(&mut world, old, 0), "its own is no rival");
    heard(&mut world);
    let new = connect(&mut world, "10.0.0.7:40001");
    world.peer(new).attach(0, 0, "up", true, EVENTS);
    world.run();
    assert_eq!(
        heard(&mut world),
        ["detach up@dev", "detach second@dev", "attach up@dev"]
    );
    assert!(stolen(&mut world, old, 0) && stolen(&mut world, old, 2));
    assert!(!stolen(&mut world, old, 1));
}

#[test]
fn what_was_sent_before_a_goodbye_still_goes_and_only_the_receiver_makes_room() {
    let mut world = World::new(shared());
    let mut narrow = HUB_AUTO;
    narrow.window = false;
    let one_frame = Announces {
        window: 1,
        ..Announces::default()
    };
    world.hub = Some((narrow, one_frame));
    let old = device(&mut world, "10.0.0.7:40000");
    let (channel, handle) = world.hub().find("up@dev", false).expect("attached");
    world.hub().grant(channel, handle, 10);
    world.run();
    for payload in [b"one", b"two"] {
        world.peer(old).send(0, 0, payload, true);
    }
    world.peer(old).close(Value::Null);
    world.run();
    assert_eq!(heard(&mut world).last().map(String::as_str), Some("transfer one"));
    device(&mut world, "10.0.0.7:40001");
    assert_eq!(
        heard(&mut world),
        ["attach up@dev#2", "detach down@dev", "attach down@dev"]
    );
    world.hub().widen(channel, 5);
    world.run();
    assert_eq!(heard(&mut world), ["transfer two", "detach up@dev", "end"]);
}

#[test]
fn links_that_are_gone_have_no_successor() {
    let mut world = World::new(shared());
    let old = device(&mut world, "10.0.0.7:40000");
    world.peer(old).detach(0, 0, true, Value::Null);
    world.run();
    // One that waits for its hub's answer has detached as well.
    world.hub().auto.detach = false;
    world.peer(old).detach(0, 1, true, Value::Null);
    world.run();
    heard(&mut world);
    let new = device(&mut world, "10.0.0.7:40001");
    assert_eq!(heard(&mut world), ["attach up@dev", "attach down@dev"]);
    assert!(!stolen(&mut world, old, 0) && !stolen(&mut world, old, 1));
    // The successor's links are the ones that count now.
    world.hub().auto.detach = true;
    let hub = world.hub_id();
    world.lose(hub);
    world.run();
    world.advance(Duration::from_secs(3));
    let third = device(&mut world, "10.0.0.7:40002");
    world.advance(Duration::from_secs(3));
    assert!(!stolen(&mut world, new, 0), "that went with the hub");
    let fourth = device(&mut world, "10.0.0.7:40003");
    assert!(stolen(&mut world, third, 0) && stolen(&mut world, third, 1));
    assert!(!stolen(&mut world, fourth, 0));
}
