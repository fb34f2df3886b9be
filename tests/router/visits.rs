//! Devices that come and go: nothing is kept of one that has gone. The router's own text shows every entry of every table
//! that it has, so what is kept is longer than what is not.

use std::time::Duration;

use crate::cbs_hub::{CbsDevice, CbsHub, cbs_settings, cbs_world};
use crate::world::{PeerId, World};

/// As many devices come again and again; a hub keeps the token of each.
const FLEET: usize = 10;
const ROUNDS: usize = 30;
/// As often as the usual settings let devices come; and all together sooner than any deadline.
const VISIT: Duration = Duration::from_millis(10);
/// Numbers that count visits have more digits after a while.
const DIGITS: usize = 200;

/// A device that puts its token, sends a message, and leaves, by the number of its visit in one of four ways.
fn visit(world: &mut World, hub: &mut CbsHub, number: usize) {
    let id = format!("d{}", number % FLEET);
    let device = CbsDevice::new(world, &id);
    device.puts(world, hub, &id);
    // IoT Hub keeps the credit of this link up.
    let (channel, handle) = hub.hears_on(world).expect("a link for requests");
    world.peer(hub.peer).grant(channel, handle, 100);
    world.run();
    let peer = device.peer;
    world
        .peer(peer)
        .attach(0, 10, "telemetry", true, &format!("devices/{id}/messages/events"));
    world.run();
    world.peer(peer).send(0, 10, b"21.5", false);
    world.run();
    match number % 4 {
        0 => world.peer(peer).close(linkrouterd::amqp::value::Value::Null),
        1 => world.end_of_stream(peer),
        2 => world.lose(peer),
        _ => {
            world
                .peer(peer)
                .detach(0, 10, true, linkrouterd::amqp::value::Value::Null);
            world.run();
            world.end_of_stream(peer);
        }
    }
    world.run();
    world.advance(VISIT);
    assert!(!world.is_alive(peer));
}

fn kept(world: &World) -> usize {
    format!("{:?}", world.router).len()
}

#[test]
fn nothing_is_kept_of_devices_that_come_again_and_again() {
    let mut world = cbs_world(cbs_settings());
    // One who stays until the connection to the hub is there.
    let first: PeerId = CbsDevice::new(&mut world, "first").peer;
    let mut hub = CbsHub::new(&world);
    world.lose(first);
    world.run();
    let mut number = 0;
    let mut after_rounds = Vec::new();
    for _ in 0..ROUNDS {
        for _ in 0..FLEET {
            visit(&mut world, &mut hub, number);
            number += 1;
        }
        after_rounds.push(kept(&world));
    }
    let (early, late) = (after_rounds[1], after_rounds[ROUNDS - 1]);
    assert!(late <= early + DIGITS, "{after_rounds:?}\n{:#?}", world.router);
}
