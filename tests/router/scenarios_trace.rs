//! Frames of one device: on its own connection, and on the hub's that it shares with others.

use std::sync::Arc;
use std::time::Duration;

use linkrouterd::amqp::value::Value;
use linkrouterd::endpoint::trace::TraceFilter;
use linkrouterd::router::settings::{ListenerId, RouterSettings};

use crate::cbs_hub::{CbsDevice, CbsHub, cbs_settings, cbs_world, put_token};
use crate::peer::Announces;
use crate::said_in_log::Said;
use crate::tunnel::UP;
use crate::wire;
use crate::world::{DEVICE_AUTO, PeerId, World, settings};

fn traced(mut settings: RouterSettings, names: &[&str]) -> RouterSettings {
    settings.trace = Arc::new(TraceFilter::new(names.iter().copied()));
    settings
}

/// Sends something to the hub that is settled there.
fn talk(world: &mut World, device: PeerId, container: &str) {
    world.peer(device).attach(0, 0, "up", true, UP);
    world.run();
    let (channel, handle) = world
        .hub()
        .find(&format!("up@{container}"), false)
        .expect("attached");
    world.hub().grant(channel, handle, 10);
    world.run();
    world.peer(device).send(0, 0, container.as_bytes(), false);
    world.run();
    let id = world.hub().link(channel, handle).received[0].id;
    world.hub().settle(channel, handle, id, wire::ACCEPTED);
    world.run();
}

fn leave(world: &mut World, device: PeerId) {
    world.peer(device).close(Value::Null);
    world.run();
}

/// Each kind of frame of this session with the hub was shown, and none of any other.
fn assert_shows_one_session(said: &Said, hub: &str, name: &str) {
    for what in [
        "-> @begin",
        "<- @begin",
        "-> @attach",
        "<- @attach",
        "<- @flow",
        "-> @transfer",
        "<- @disposition",
    ] {
        assert!(said.contains_both(hub, what), "{what}: {said:#?}");
    }
    assert!(said.contains_both(hub, name), "{said:#?}");
    for what in ["@open", "@close", "EMPTY", "AMQP", "SASL", "sasl"] {
        assert!(!said.contains_both(hub, what), "{what}: {said:#?}");
    }
}

#[test]
fn one_device_is_traced_by_its_container_id_and_no_other() {
    let said = Said::frames_of(|| {
        let mut world = World::new(traced(settings(), &["one"]));
        for container in ["other", "one", "one-more"] {
            let device = world.device(container);
            talk(&mut world, device, container);
            leave(&mut world, device);
        }
    });
    // C1 is the first device, C2 the hub.
    assert_shows_one_session(&said, "[C2]", "up@one");
    assert!(
        said.contains_both("[C3]", "<- @open(16) [container-id=\"one\""),
        "{said:#?}"
    );
    for what in [
        "-> @open",
        "<- @begin",
        "<- @attach",
        "<- @transfer",
        "-> @disposition",
        "<- @close",
        "-> @close",
    ] {
        assert!(said.contains_both("[C3]", what), "{what}: {said:#?}");
    }
    assert!(!said.contains_both("[C3]", "AMQP"), "from the open on");
    assert!(said.contains_both("[C2]", "-> @end"), "{said:#?}");
    assert_eq!(said.count("[C1]") + said.count("[C4]"), 0, "{said:#?}");
    assert_eq!(said.count("other") + said.count("one-more"), 0, "{said:#?}");
}

#[test]
fn one_device_is_traced_by_its_address_from_the_first_byte_on() {
    let said = Said::frames_of(|| {
        let mut world = World::new(traced(settings(), &["10.0.0.0/30"]));
        for (address, container) in [("10.0.0.4:1", "other"), ("10.0.0.3:1", "one")] {
            let device = world
                .connect_from(
                    address,
                    ListenerId(0),
                    container,
                    DEVICE_AUTO,
                    Announces::default(),
                )
                .expect("room");
            world.peer(device).open();
            world.peer(device).begin(0);
            world.run();
            talk(&mut world, device, container);
        }
    });
    assert!(
        said.contains_both("[C3]", "<- AMQP") && said.contains_both("[C3]", "-> AMQP"),
        "{said:#?}"
    );
    assert_shows_one_session(&said, "[C2]", "up@one");
    assert_eq!(said.count("[C1]") + said.count("other"), 0, "{said:#?}");
}

#[test]
fn a_traced_device_is_traced_again_when_it_or_the_hub_comes_back() {
    let mut world = World::new(traced(settings(), &["one"]));
    let other = world.device("other");
    talk(&mut world, other, "other");
    let device = world.device("one");
    talk(&mut world, device, "one");
    world.lose(device);
    world.run();
    let again = Said::frames_of(|| {
        let device = world.device("one");
        talk(&mut world, device, "one");
    });
    assert_shows_one_session(&again, "[C2]", "up@one");
    let hub = world.hub_id();
    world.lose(hub);
    world.run();
    // It may be dialed again at once.
    world.advance(Duration::from_secs(10));
    let after_hub = Said::frames_of(|| {
        leave(&mut world, other);
        for container in ["other", "one"] {
            let device = world.device(container);
            talk(&mut world, device, container);
        }
    });
    // C1 to C4 so far; C5 is the other device.
    assert_shows_one_session(&after_hub, "[C6]", "up@one");
    assert_eq!(after_hub.count("other"), 0, "{after_hub:#?}");
}

#[test]
fn a_reload_changes_who_is_traced_at_once() {
    let mut world = World::new(settings());
    let devices = ["one", "other"].map(|container| {
        let device = world.device(container);
        talk(&mut world, device, container);
        (device, container)
    });
    let send = |world: &mut World| {
        for (device, container) in devices {
            world.peer(device).send(0, 0, container.as_bytes(), false);
        }
        world.run();
    };
    let count = |said: &Said| (said.count("@transfer"), said.count("[C1]"), said.count("[C3]"));
    let all = Said::frames_of(|| send(&mut world));
    assert_eq!(all.count("@transfer"), 4);
    world.reload(traced(settings(), &["other"]));
    let (transfers, one, other) = count(&Said::frames_of(|| send(&mut world)));
    assert_eq!((transfers, one), (2, 0));
    assert!(other > 0);
    world.reload(traced(settings(), &["one"]));
    let (transfers, one, other) = count(&Said::frames_of(|| send(&mut world)));
    assert_eq!((transfers, other), (2, 0));
    assert!(one > 0);
    world.reload(settings());
    assert_eq!(Said::frames_of(|| send(&mut world)).count("@transfer"), 4);
}

/// Its requests leave on the pair that all devices share.
#[test]
fn requests_to_cbs_of_one_device_are_traced_without_their_tokens() {
    let said = Said::frames_of(|| {
        let mut world = cbs_world(traced(cbs_settings(), &["d1"]));
        let [other, one] = ["d2", "d1"].map(|name| CbsDevice::new(&mut world, name));
        let mut hub = CbsHub::new(&world);
        for (device, name) in [(other, "d2"), (one, "d1"), (other, "d2")] {
            device.ask(&mut world, &put_token(name, Value::Ulong(0)));
            hub.accept_all(&mut world);
        }
    });
    let hubs: Vec<&str> = said.lines().filter(|line| line.contains("@transfer")).collect();
    let of = |device: &str| hubs.iter().filter(|line| line.contains(device)).count();
    assert_eq!(hubs.len(), 4, "asked and answered, on both sides: {said:#?}");
    let ours = said
        .lines()
        .find(|line| line.contains("<- @open"))
        .and_then(|line| line.split_once("[C"))
        .and_then(|(_, rest)| rest.split_once(']'))
        .map(|(number, _)| format!("[C{number}]"))
        .expect("the device's open");
    assert_eq!(of(&ours), 2, "{said:#?}");
    assert_eq!(of("-> @transfer"), 2, "{said:#?}");
    assert_eq!(of("<- @transfer"), 2, "{said:#?}");
    assert_eq!(
        said.count("c2ln") + said.count("SharedAccessSignature"),
        0,
        "{said:#?}"
    );
}
