//! Attaches and detaches through the tunnel.

use std::time::Duration;

use linkrouterd::amqp::value::Value;

use crate::peer::Announces;
use crate::wire::{self, composite, condition, error, string, symbol};
use crate::world::{HUB_AUTO, World, settings};

const UP: &str = "/devices/d1/messages/events";
const DOWN: &str = "/devices/d1/messages/deviceBound";

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[test]
fn an_attach_waits_for_the_dial() {
    let mut world = World::new(settings());
    world.hub = None;
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "up", true, UP);
    world.run();
    assert_eq!(world.dials.len(), 1);
    world.peer(device).skip();
    world.advance(seconds(5));
    world.peer(device).expect_nothing();
    let hub = world.answer_dial(HUB_AUTO, Announces::default());
    world.run();
    let answer = world.peer(device).expect(wire::ATTACH);
    assert_eq!((answer.text(0), answer.flag(2)), (Some("up"), true));
    assert!(world.peer(hub).find("up@dev", false).is_some());
}

#[test]
fn an_attach_is_refused_at_its_deadline_and_can_be_tried_again() {
    let mut world = World::new(settings());
    world.hub = None;
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "up", true, UP);
    world.peer(device).flow(0, None, false, false);
    world.run();
    world.peer(device).skip();
    world.advance(seconds(16));
    let answer = world.peer(device).expect(wire::ATTACH);
    assert_eq!(
        answer.field(6),
        &Value::Null,
        "a null target says that it is refused"
    );
    let detach = world.peer(device).expect(wire::DETACH);
    assert_eq!(condition(detach.field(2)), Some("amqp:link:detach-forced"));
    let (_, fields) = composite(detach.field(2)).expect("an error");
    assert_eq!(
        fields.get(2).and_then(|info| info.entry("qd-condition")),
        Some(&symbol("qd:no-route-to-dest"))
    );
    world.run();
    world.peer(device).attach(0, 1, "up", true, UP);
    world.run();
    world.answer_dial(HUB_AUTO, Announces::default());
    world.run();
    assert!(world.peer(device).link(0, 1).remote.is_some());
}

#[test]
fn everything_pipelined_before_any_answer_goes_once_and_in_order() {
    for chunks in [crate::world::Chunks::Whole, crate::world::Chunks::One] {
        let mut world = World::new(settings());
        world.chunks = chunks;
        world.hub = Some((HUB_AUTO, Announces::default()));
        let device = world
            .connect("dev", crate::world::DEVICE_AUTO, Announces::default())
            .expect("room");
        let peer = world.peer(device);
        peer.open();
        peer.begin(0);
        peer.attach(0, 0, "up", true, UP);
        peer.attach(0, 1, "down", false, DOWN);
        peer.grant(0, 1, 5);
        for number in 0..3u32 {
            peer.say_transfer(0, 0, Some((number, number)), false, false, &number.to_be_bytes());
        }
        world.run();
        let (channel, handle) = world.hub().find("up@dev", false).expect("the device's sender");
        assert!(
            world.hub().link(channel, handle).received.is_empty(),
            "kept until there is credit"
        );
        let (down_channel, down) = world.hub().find("down@dev", true).expect("the device's receiver");
        assert_eq!(world.hub().link(down_channel, down).credit, 5);
        world.hub().grant(channel, handle, 10);
        world.run();
        let received = &world.hub().link(channel, handle).received;
        let payloads: Vec<Vec<u8>> = received.iter().map(|d| d.payload.clone()).collect();
        assert_eq!(
            payloads,
            (0..3u32).map(|n| n.to_be_bytes().to_vec()).collect::<Vec<_>>()
        );
    }
}

#[test]
fn an_unknown_address_is_refused_at_once() {
    let mut world = World::new(settings());
    let device = world.device("dev");
    world.peer(device).skip();
    world.peer(device).attach(0, 0, "x", true, "queue");
    world.run();
    assert_eq!(world.peer(device).expect(wire::ATTACH).field(6), &Value::Null);
    let detach = world.peer(device).expect(wire::DETACH);
    assert_eq!(condition(detach.field(2)), Some("amqp:not-found"));
    assert!(
        world.dials.is_empty() && world.hubs_made == 0,
        "nobody was dialed for it"
    );
}

#[test]
fn a_refusal_of_the_hub_reaches_the_device_whole() {
    let mut world = World::new(settings());
    let mut auto = HUB_AUTO;
    auto.attach = false;
    world.hub = Some((auto, Announces::default()));
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "up", true, UP);
    world.run();
    world.peer(device).skip();
    let attach = loop {
        let frame = world.hub().next().expect("an attach");
        if frame.code == wire::ATTACH {
            break frame;
        }
    };
    let info = Value::Map(vec![(symbol("trackingId"), string("abc"))]);
    let hub = world.hub();
    let mut refused = attach.clone();
    *refused.fields.get_mut(6).expect("a target") = Value::Null;
    hub.answer_attach(&refused, 7, 5);
    hub.detach(
        7,
        5,
        true,
        error("amqp:unauthorized-access", "no token", info.clone()),
    );
    world.run();
    assert_eq!(world.peer(device).expect(wire::ATTACH).field(6), &Value::Null);
    let detach = world.peer(device).expect(wire::DETACH);
    let expected = error("amqp:unauthorized-access", "no token", info);
    assert_eq!((detach.flag(1), detach.field(2)), (true, &expected));
}
