//! Dispositions: every state with every field, by either side, settled or not, for any range of ids.

use linkrouterd::amqp::value::Value;

use crate::peer::Announces;
use crate::tunnel::{DOWN, Tunnel, UP, tunnel, tunnel_with};
use crate::wire::{self, Frame, described, state_code, string, symbol, uint};
use crate::world::{PeerId, World, settings};

/// `received`, `declared` and `transactional-state` (AMQP 1.0 part 3, §3.4.1; part 4, §4.5.5 and §4.5.8).
const RECEIVED: u64 = 0x23;
const DECLARED: u64 = 0x33;
const TRANSACTIONAL: u64 = 0x34;

fn accepted() -> Value {
    described(wire::ACCEPTED, Vec::new())
}

/// Every state of the specification, with and without its fields, and two that it does not know.
fn states() -> Vec<Value> {
    let info = Value::Map(vec![(symbol("tracking-id"), string("t-1"))]);
    let error = wire::error("amqp:not-allowed", "no", info);
    let annotations = Value::Map(vec![(symbol("x-opt-why"), string("because"))]);
    let transaction = Value::Binary(vec![0, 1, 2, 0xff]);
    let unknown = |list| {
        Value::Described(
            Box::new(symbol("example:state:list")),
            Box::new(Value::List(list)),
        )
    };
    vec![
        Value::Null,
        accepted(),
        described(wire::REJECTED, Vec::new()),
        described(wire::REJECTED, vec![error.clone()]),
        described(wire::RELEASED, Vec::new()),
        described(wire::MODIFIED, Vec::new()),
        described(wire::MODIFIED, vec![Value::Boolean(false)]),
        described(
            wire::MODIFIED,
            vec![Value::Boolean(true), Value::Boolean(true), annotations],
        ),
        described(RECEIVED, vec![uint(1), Value::Ulong(1 << 40)]),
        described(DECLARED, vec![transaction.clone()]),
        described(TRANSACTIONAL, vec![transaction.clone()]),
        described(
            TRANSACTIONAL,
            vec![transaction, described(wire::REJECTED, vec![error])],
        ),
        unknown(Vec::new()),
        unknown(vec![Value::Null, uint(7), Value::Boolean(true)]),
    ]
}

/// A disposition whose trailing fields are left out when they are null, as most stacks do.
fn disposition(
    channel: u16,
    is_receiver: bool,
    ids: (u32, u32),
    settled: Value,
    state: Value,
    batchable: Value,
) -> Frame {
    let mut fields = vec![
        Value::Boolean(is_receiver),
        uint(ids.0),
        uint(ids.1),
        settled,
        state,
        batchable,
    ];
    while fields.last() == Some(&Value::Null) {
        fields.pop();
    }
    Frame::new(channel, wire::DISPOSITION, fields)
}

/// Role, first, last (first, if it is absent).
#[track_caller]
fn ids(frame: &Frame) -> (bool, u32, u32) {
    let first = frame.uint(1).expect("first");
    (frame.flag(0), first, frame.uint(2).unwrap_or(first))
}

/// Sends one message up and one down; returns their ids at the device's and at the hub's session.
fn one_each_way(p: &mut Tunnel) {
    p.world.peer(p.device).send(0, 0, b"up", false);
    p.world.peer(p.hub).send(p.down.0, p.down.1, b"down", false);
    p.world.run();
    p.world.peer(p.device).skip();
    p.world.peer(p.hub).skip();
}

#[test]
fn every_state_with_every_field_is_carried_from_either_side_in_either_role() {
    let mut p = tunnel();
    let (device, hub, channel) = (p.device, p.hub, p.up.0);
    one_each_way(&mut p);
    for settled in [Value::Null, Value::Boolean(false), Value::Boolean(true)] {
        for batchable in [Value::Null, Value::Boolean(true), Value::Boolean(false)] {
            for state in states() {
                for is_receiver in [true, false] {
                    for (from, to, channel) in [(device, hub, 0), (hub, device, channel)] {
                        let said = disposition(
                            channel,
                            is_receiver,
                            (0, 0),
                            settled.clone(),
                            state.clone(),
                            batchable.clone(),
                        );
                        p.world.peer(from).say(&said);
                        p.world.run();
                        let seen = p.world.peer(to).expect(wire::DISPOSITION);
                        assert_eq!(ids(&seen), (is_receiver, 0, 0), "{said:?}");
                        // Not a field more, not a field less.
                        assert_eq!(said.fields.get(3..), seen.fields.get(3..), "{said:?}");
                        p.world.peer(to).expect_nothing();
                        p.world.peer(from).expect_nothing();
                    }
                }
            }
        }
    }
}

#[test]
fn states_that_follow_each_other_at_once_are_all_seen() {
    let mut p = tunnel();
    let (channel, _) = p.up;
    one_each_way(&mut p);
    let steps = [
        (Value::Null, described(RECEIVED, vec![uint(0), Value::Ulong(5)])),
        (Value::Null, described(RECEIVED, vec![uint(0), Value::Ulong(9)])),
        (Value::Null, accepted()),
        (Value::Boolean(true), Value::Null),
    ];
    for (from, to, channel) in [(p.hub, p.device, channel), (p.device, p.hub, 0)] {
        // In one packet.
        for (settled, state) in steps.clone() {
            let said = disposition(channel, true, (0, 0), settled, state, Value::Null);
            p.world.peer(from).say(&said);
        }
        p.world.run();
        for (settled, state) in &steps {
            let seen = p.world.peer(to).expect(wire::DISPOSITION);
            assert_eq!((seen.field(3), seen.field(4)), (settled, state));
        }
        p.world.peer(to).expect_nothing();
    }
}

#[test]
fn the_three_steps_of_rcv_settle_mode_second_both_ways() {
    let mut p = tunnel();
    let (device, hub, channel) = (p.device, p.hub, p.up.0);
    one_each_way(&mut p);
    for (receiver, receiver_channel, sender, sender_channel) in
        [(hub, channel, device, 0), (device, 0, hub, channel)]
    {
        let outcome = disposition(
            receiver_channel,
            true,
            (0, 0),
            Value::Null,
            accepted(),
            Value::Null,
        );
        p.world.peer(receiver).say(&outcome);
        p.world.run();
        let seen = p.world.peer(sender).expect(wire::DISPOSITION);
        assert_eq!(
            (ids(&seen).0, seen.flag(3), state_code(seen.field(4))),
            (true, false, Some(wire::ACCEPTED))
        );
        p.world.peer(receiver).expect_nothing();
        let settles = disposition(
            sender_channel,
            false,
            (0, 0),
            Value::Boolean(true),
            accepted(),
            Value::Null,
        );
        p.world.peer(sender).say(&settles);
        p.world.run();
        let seen = p.world.peer(receiver).expect(wire::DISPOSITION);
        assert_eq!(
            (ids(&seen).0, seen.flag(3), state_code(seen.field(4))),
            (false, true, Some(wire::ACCEPTED))
        );
        p.world.peer(sender).expect_nothing();
    }
    // Neither end has anything left to be told when the other goes.
    p.world.lose(p.hub);
    p.world.run();
    for _ in 0..2 {
        p.world.peer(p.device).expect(wire::DETACH);
    }
}

/// A session with three links each way, ten messages on them in turn, and both ends' channel of it.
fn six_links() -> (World, PeerId, PeerId, u16) {
    let mut world = World::new(settings());
    let device = world.device("dev");
    for handle in 0..3 {
        world
            .peer(device)
            .attach(0, handle, &format!("up{handle}"), true, UP);
        world
            .peer(device)
            .attach(0, handle + 3, &format!("down{handle}"), false, DOWN);
        world.peer(device).grant(0, handle + 3, 100);
    }
    world.run();
    let hub = world.hub_id();
    let ends = |world: &mut World, name: &str, is_sender| {
        (0..3)
            .map(|number| {
                let name = format!("{name}{number}@dev");
                world.peer(hub).find(&name, is_sender).expect("attached")
            })
            .collect::<Vec<_>>()
    };
    let ups = ends(&mut world, "up", false);
    let downs = ends(&mut world, "down", true);
    for &(channel, handle) in &ups {
        world.peer(hub).grant(channel, handle, 100);
    }
    world.run();
    for turn in 0..10usize {
        world
            .peer(device)
            .send(0, u32::try_from(turn % 3).expect("small"), b"m", false);
        let (channel, handle) = *downs.get(turn % 3).expect("three");
        world.peer(hub).send(channel, handle, b"m", false);
    }
    world.run();
    world.peer(device).skip();
    world.peer(hub).skip();
    (world, device, hub, downs.first().expect("three").0)
}

#[test]
fn a_range_over_several_links_stays_one_frame_both_ways_and_in_both_roles() {
    let (mut world, device, hub, channel) = six_links();
    for (from, to, said_on, is_receiver) in [
        (hub, device, channel, true),
        (device, hub, 0, true),
        (hub, device, channel, false),
        (device, hub, 0, false),
    ] {
        let said = disposition(
            said_on,
            is_receiver,
            (0, 9),
            Value::Boolean(true),
            accepted(),
            Value::Null,
        );
        world.peer(from).say(&said);
        world.run();
        let seen = world.peer(to).expect(wire::DISPOSITION);
        assert_eq!(ids(&seen), (is_receiver, 0, 9));
        world.peer(to).expect_nothing();
    }
}

#[test]
fn of_a_range_that_is_partly_unknown_or_settled_the_known_part_goes_in_one_frame() {
    let (mut world, device, hub, channel) = six_links();
    let settle = |ids| disposition(channel, true, ids, Value::Boolean(true), accepted(), Value::Null);
    for id in [2, 5] {
        world.peer(hub).say(&settle((id, id)));
    }
    // From before the first delivery to behind the last one, over two that are settled already.
    world.peer(hub).say(&settle((u32::MAX - 3, 40)));
    world.run();
    for expected in [(true, 2, 2), (true, 5, 5), (true, 0, 9)] {
        assert_eq!(ids(&world.peer(device).expect(wire::DISPOSITION)), expected);
    }
    // Neither side of what was sent, and a range that runs backwards.
    for nobody in [(10, 20), (u32::MAX - 9, u32::MAX), (7, 3)] {
        world.peer(hub).say(&settle(nobody));
    }
    world.run();
    world.peer(device).expect_nothing();
    assert!(world.is_alive(device) && world.is_alive(hub));
}

#[test]
fn a_delivery_still_being_sent_can_be_disposed_of() {
    let mut p = tunnel();
    let (channel, handle) = p.up;
    p.world
        .peer(p.device)
        .say_transfer(0, 0, Some((0, 0)), false, true, b"first");
    p.world.run();
    p.world.peer(p.hub).skip();
    let received = described(RECEIVED, vec![uint(0), Value::Ulong(5)]);
    let rejected = described(wire::REJECTED, Vec::new());
    for (settled, state) in [
        (Value::Null, received.clone()),
        (Value::Boolean(true), rejected.clone()),
    ] {
        let said = disposition(channel, true, (0, 0), settled, state, Value::Null);
        p.world.peer(p.hub).say(&said);
    }
    p.world.run();
    assert_eq!(
        p.world.peer(p.device).expect(wire::DISPOSITION).field(4),
        &received
    );
    assert_eq!(
        p.world.peer(p.device).expect(wire::DISPOSITION).field(4),
        &rejected
    );
    // The rest and the next message still arrive.
    p.world
        .peer(p.device)
        .say_transfer(0, 0, None, false, false, b" last");
    p.world
        .peer(p.device)
        .say_transfer(0, 0, Some((1, 1)), false, false, b"next");
    p.world.run();
    let received = &p.world.peer(p.hub).link(channel, handle).received;
    let payloads: Vec<&[u8]> = received
        .iter()
        .map(|delivery| delivery.payload.as_slice())
        .collect();
    assert_eq!(payloads, [b"first last".as_slice(), b"next"]);
    // What was settled is not told again.
    p.world.lose(p.hub);
    p.world.run();
    let failed = p.world.peer(p.device).expect(wire::DISPOSITION);
    assert_eq!(
        (ids(&failed), state_code(failed.field(4))),
        ((true, 1, 1), Some(wire::MODIFIED))
    );
    p.world.peer(p.device).expect(wire::DETACH);
}

#[test]
fn outcomes_between_the_two_detaches_go_before_the_second_and_later_ones_are_dropped() {
    let mut p = tunnel();
    let (channel, handle) = p.up;
    p.world.peer(p.hub).auto.detach = false;
    for _ in 0..3 {
        p.world.peer(p.device).send(0, 0, b"m", false);
    }
    p.world.peer(p.device).detach(0, 0, false, Value::Null);
    p.world.run();
    p.world.peer(p.hub).dispose(channel, true, 0, 1, true, accepted());
    p.world.peer(p.hub).detach(channel, handle, false, Value::Null);
    p.world.peer(p.hub).dispose(channel, true, 2, 2, true, accepted());
    p.world.run();
    assert_eq!(
        ids(&p.world.peer(p.device).expect(wire::DISPOSITION)),
        (true, 0, 1)
    );
    p.world.peer(p.device).expect(wire::DETACH);
    p.world.peer(p.device).expect_nothing();
    // The device may keep the third unsettled, to resume it: the loss of the hub says nothing about it.
    p.world.lose(p.hub);
    p.world.run();
    p.world.peer(p.device).expect(wire::DETACH);
    p.world.peer(p.device).expect_nothing();
}

#[test]
fn the_router_itself_settles_nothing_for_a_receiver() {
    // A device that asks for settled deliveries, and a hub that sends unsettled ones all the same.
    let mut world = World::new(settings());
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "down", false, DOWN);
    // In place of what it has just said: the same attach, with snd-settle-mode settled.
    let out = &mut world.peer(device).out;
    out.consume(out.len());
    let attach = vec![
        string("down"),
        uint(0),
        Value::Boolean(true),
        Value::Ubyte(1),
        Value::Ubyte(0),
        wire::terminus(0x28, DOWN),
        wire::terminus(0x29, "here"),
    ];
    world.peer(device).say(&Frame::new(0, wire::ATTACH, attach));
    world.peer(device).grant(0, 0, 10);
    world.run();
    let (channel, handle) = world.hub().find("down@dev", true).expect("attached");
    for settled in [false, true] {
        world.hub().send(channel, handle, b"m", settled);
    }
    world.run();
    let received: Vec<bool> = world
        .peer(device)
        .link(0, 0)
        .received
        .iter()
        .map(|d| d.settled)
        .collect();
    assert_eq!(received, [false, true], "as the hub sent them");
    world.hub().skip();
    world.hub().expect_nothing();
    assert_eq!(world.hub().link(channel, handle).settled, []);
}

#[test]
fn ids_that_wrap_within_a_range_of_several_links_stay_a_range() {
    let mut world = World::new(settings());
    let announces = Announces {
        first_delivery_id: u32::MAX - 1,
        ..Announces::default()
    };
    let device = world.device_with("dev", crate::world::DEVICE_AUTO, announces);
    for handle in 0..2 {
        world
            .peer(device)
            .attach(0, handle, &format!("up{handle}"), true, UP);
    }
    world.run();
    let mut place = (0, 0);
    for handle in 0..2 {
        place = world
            .hub()
            .find(&format!("up{handle}@dev"), false)
            .expect("attached");
        world.hub().grant(place.0, place.1, 10);
    }
    world.run();
    for handle in [0, 1, 1, 0] {
        world.peer(device).send(0, handle, b"m", false);
    }
    world.run();
    world.peer(device).skip();
    world.hub().dispose(place.0, true, 0, 3, true, accepted());
    world.run();
    assert_eq!(
        ids(&world.peer(device).expect(wire::DISPOSITION)),
        (true, u32::MAX - 1, 1)
    );
    world.peer(device).expect_nothing();
}

#[test]
fn a_senders_disposition_waits_for_its_delivery_and_keeps_its_fields() {
    let mut p = tunnel_with(2048, 1);
    for _ in 0..2 {
        p.world.peer(p.device).send(0, 0, b"m", false);
    }
    let state = described(TRANSACTIONAL, vec![Value::Binary(vec![9]), accepted()]);
    let said = disposition(0, false, (1, 1), Value::Null, state.clone(), Value::Boolean(true));
    p.world.peer(p.device).say(&said);
    p.world.run();
    p.world.peer(p.hub).expect(wire::TRANSFER);
    p.world.peer(p.hub).expect_nothing();
    p.world.peer(p.hub).widen(p.up.0, 5);
    p.world.run();
    p.world.peer(p.hub).expect(wire::TRANSFER);
    let seen = p.world.peer(p.hub).expect(wire::DISPOSITION);
    assert_eq!(
        (ids(&seen), seen.field(4), seen.field(5)),
        ((false, 1, 1), &state, &Value::Boolean(true))
    );
}
