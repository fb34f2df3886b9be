//! Link recovery (AMQP 1.0 part 2, §2.6.13) and expiry: what outlives a detach, a session, a connection, and how it is
//! taken up again. The router keeps nothing of it: both ends do, and it must not stand between them.

use std::time::Duration;

use linkrouterd::amqp::value::Value;

use crate::peer::Announces;
use crate::tunnel::{DOWN, UP, tunnel};
use crate::wire::{self, Frame, condition, described, state_code, string, symbol, uint};
use crate::world::{HUB_AUTO, PeerId, World, settings};

/// A terminus with an address, an expiry-policy and a timeout.
fn expiring(code: u64, address: &str, policy: &str, timeout: u32) -> Value {
    described(
        code,
        vec![string(address), uint(2), symbol(policy), uint(timeout)],
    )
}

/// Attaches by which a link is to outlive its connection: `up` on handle 0, `down` on handle 1.
fn attach_recoverable(world: &mut World, device: PeerId, handle: u32, is_sender: bool) {
    let here = |code| wire::terminus(code, "here");
    let (name, source, target) = match is_sender {
        true => ("up", here(0x28), expiring(0x29, UP, "never", 0)),
        false => ("down", expiring(0x28, DOWN, "never", 0), here(0x29)),
    };
    world
        .peer(device)
        .attach_with(0, handle, name, is_sender, source, target);
}

/// A device with a recoverable link each way, credit on both, and where they are at the hub.
fn recoverable() -> (World, PeerId, (u16, u32), (u16, u32)) {
    let mut world = World::new(settings());
    let device = world.device("dev");
    attach_recoverable(&mut world, device, 0, true);
    attach_recoverable(&mut world, device, 1, false);
    world.peer(device).grant(0, 1, 10);
    world.run();
    let up = world.hub().find("up@dev", false).expect("attached");
    let down = world.hub().find("down@dev", true).expect("attached");
    world.hub().grant(up.0, up.1, 10);
    world.run();
    world.peer(device).skip();
    world.hub().skip();
    (world, device, up, down)
}

/// An attach with an unsettled map, as its sender wrote it.
#[expect(clippy::too_many_arguments, reason = "the fields of an attach")]
fn resuming(
    channel: u16,
    handle: u32,
    name: &str,
    is_sender: bool,
    source: Value,
    target: Value,
    unsettled: Value,
    incomplete: bool,
) -> Frame {
    let mut fields = vec![
        string(name),
        uint(handle),
        Value::Boolean(!is_sender),
        Value::Ubyte(0),
        Value::Ubyte(1),
        source,
        target,
        unsettled,
        Value::Boolean(incomplete),
    ];
    if is_sender {
        fields.push(uint(3));
    }
    Frame::new(channel, wire::ATTACH, fields)
}

/// A delivery resumed: transfer with `state` and `resume`.
fn resumption(handle: u32, id: u32, tag: &[u8], state: Value, settled: bool, payload: &[u8]) -> Frame {
    let fields = vec![
        uint(handle),
        uint(id),
        Value::Binary(tag.to_vec()),
        uint(0),
        Value::Boolean(settled),
        Value::Boolean(false),
        Value::Ubyte(1),
        state,
        Value::Boolean(true),
    ];
    Frame::new(0, wire::TRANSFER, fields).with_payload(payload)
}

fn tag(bytes: &[u8]) -> Value {
    Value::Binary(bytes.to_vec())
}

#[test]
fn a_device_detaches_attaches_again_with_its_unsettled_map_and_resumes_a_delivery() {
    let (mut world, device, up, _) = recoverable();
    let hub = world.hub_id();
    world.peer(hub).auto.attach = false;
    // One delivery is whole and unsettled, a second is cut off in the middle by the detach.
    world.peer(device).send(0, 0, b"whole", false);
    world
        .peer(device)
        .say_transfer(0, 0, Some((1, 1)), false, true, b"ha");
    world.peer(device).detach(0, 0, false, Value::Null);
    world.run();
    assert!(world.peer(hub).link(up.0, up.1).detached.is_some());
    assert_eq!(world.peer(hub).link(up.0, up.1).received.len(), 1);
    let half = world
        .peer(hub)
        .link(up.0, up.1)
        .partial
        .clone()
        .expect("not aborted");
    assert_eq!(half.payload, b"ha");
    for end in [hub, device] {
        let detach = loop {
            let frame = world.peer(end).next().expect("a detach");
            if frame.code == wire::DETACH {
                break frame;
            }
        };
        assert!(!detach.flag(1), "detached, not closed");
        world.peer(end).expect_nothing();
    }

    // The device's map says what it knows, the hub's what it has.
    let received = described(0x23, vec![uint(0), Value::Ulong(2)]);
    let map = Value::Map(vec![
        (tag(&[0, 0, 0, 0]), Value::Null),
        (tag(&[0, 0, 0, 1]), received.clone()),
    ]);
    let target = expiring(0x29, UP, "never", 0);
    let said = resuming(
        0,
        7,
        "up",
        true,
        wire::terminus(0x28, "here"),
        target.clone(),
        map.clone(),
        false,
    );
    world.peer(device).say_attach(&said);
    world.run();
    let seen = world.peer(hub).expect(wire::ATTACH);
    assert_eq!(seen.text(0), Some("up@dev"), "by the same name");
    assert_eq!(
        seen.fields.get(2..),
        said.fields.get(2..),
        "every field as it was said"
    );
    let accepted = described(wire::ACCEPTED, Vec::new());
    let hubs_map = Value::Map(vec![(tag(&[0, 0, 0, 0]), accepted.clone())]);
    let (channel, handle) = (up.0, 40);
    let mut answer = resuming(
        channel,
        handle,
        "up@dev",
        false,
        wire::terminus(0x28, "here"),
        target,
        hubs_map,
        true,
    );
    answer.fields.push(Value::Null);
    world.peer(hub).say_attach(&answer);
    world.peer(hub).is_answer(&seen, channel, handle);
    world.run();
    let seen = world.peer(device).expect(wire::ATTACH);
    assert_eq!(seen.text(0), Some("up"));
    assert_eq!(
        seen.fields.get(2..9),
        answer.fields.get(2..9),
        "every field as the hub said it"
    );

    // The delivery that the hub has settled is resumed only to be settled; the other is sent from where it broke.
    world.peer(hub).grant(channel, handle, 10);
    world.run();
    let first = resumption(7, 2, &[0, 0, 0, 0], accepted.clone(), true, b"");
    let second = resumption(7, 3, &[0, 0, 0, 1], received, false, b"lf");
    world.peer(hub).skip();
    for (said, id) in [(first, 2), (second, 3)] {
        world.peer(device).say(&said);
        world.run();
        let seen = world.peer(hub).expect(wire::TRANSFER);
        assert_eq!(seen.uint(1), Some(id));
        assert_eq!(
            seen.fields.get(2..),
            said.fields.get(2..),
            "tag, state and resume"
        );
        assert_eq!(seen.payload, said.payload);
    }
    world.peer(hub).dispose(channel, true, 3, 3, true, accepted);
    world.run();
    let seen = world.peer(device).expect_past_flows(wire::DISPOSITION);
    assert_eq!(
        (seen.uint(1), state_code(seen.field(4))),
        (Some(3), Some(wire::ACCEPTED))
    );
}

#[test]
fn a_hub_resumes_a_delivery_to_a_device_that_attaches_again() {
    let (mut world, device, _, down) = recoverable();
    let hub = world.hub_id();
    world.peer(hub).auto.attach = false;
    world.peer(hub).send(down.0, down.1, b"command", false);
    world.run();
    world.peer(device).detach(0, 1, false, Value::Null);
    world.run();
    let map = Value::Map(vec![(tag(&[0, 0, 0, 0]), described(wire::ACCEPTED, Vec::new()))]);
    let source = expiring(0x28, DOWN, "never", 0);
    let said = resuming(
        0,
        8,
        "down",
        false,
        source.clone(),
        wire::terminus(0x29, "here"),
        map,
        false,
    );
    world.peer(device).say_attach(&said);
    world.run();
    let hubs_map = Value::Map(vec![(tag(&[0, 0, 0, 0]), Value::Null)]);
    let answer = resuming(
        down.0,
        41,
        "down@dev",
        true,
        source,
        wire::terminus(0x29, "here"),
        hubs_map,
        false,
    );
    let asked = world.peer(hub).log.last().expect("an attach").clone();
    assert_eq!(asked.fields.get(2..), said.fields.get(2..));
    world.peer(hub).say_attach(&answer);
    world.peer(hub).is_answer(&asked, down.0, 41);
    world.peer(device).skip();
    world.run();
    let seen = world.peer(device).expect(wire::ATTACH);
    assert_eq!(seen.fields.get(2..), answer.fields.get(2..));
    world.peer(device).grant(0, 8, 5);
    world.run();
    let mut said = resumption(
        41,
        1,
        &[0, 0, 0, 0],
        described(wire::ACCEPTED, Vec::new()),
        true,
        b"",
    );
    said.channel = down.0;
    world.peer(hub).say(&said);
    world.run();
    let seen = world.peer(device).expect(wire::TRANSFER);
    assert_eq!(seen.fields.get(2..), said.fields.get(2..));
    assert!(
        world
            .peer(device)
            .link(0, 8)
            .received
            .iter()
            .all(|delivery| delivery.settled)
    );
}

#[test]
fn a_lost_hub_detaches_what_is_to_outlive_it_and_closes_the_rest() {
    let cases = [
        ("link-detach", 0, true),
        ("session-end", 0, true),
        ("connection-close", 0, true),
        ("never", 0, false),
        ("session-end", 30, false),
        ("link-detach", 1, false),
    ];
    let losses: [fn(&mut World, PeerId); 3] = [World::lose, World::end_of_stream, |world, hub| {
        world
            .peer(hub)
            .close(wire::error("amqp:connection:forced", "away", Value::Null))
    }];
    for lose in losses {
        let mut world = World::new(settings());
        let device = world.device("dev");
        for (handle, (policy, timeout, _)) in (0u32..).zip(cases) {
            for is_sender in [true, false] {
                let handle = 2 * handle + u32::from(is_sender);
                let here = |code| wire::terminus(code, "here");
                let (source, target) = match is_sender {
                    true => (here(0x28), expiring(0x29, UP, policy, timeout)),
                    false => (expiring(0x28, DOWN, policy, timeout), here(0x29)),
                };
                let name = format!("link{handle}");
                world
                    .peer(device)
                    .attach_with(0, handle, &name, is_sender, source, target);
            }
        }
        world.run();
        world.peer(device).skip();
        let hub = world.hub_id();
        lose(&mut world, hub);
        world.run();
        for (_, _, closed) in cases {
            for _ in 0..2 {
                let detach = world.peer(device).expect(wire::DETACH);
                assert_eq!(detach.flag(1), closed, "{detach:?}");
                assert_eq!(condition(detach.field(2)), Some("amqp:link:detach-forced"));
            }
        }
        assert_eq!(world.router.snapshot().link_pairs, 0);
    }
}

#[test]
fn a_lost_device_leaves_at_the_hub_what_is_to_outlive_it() {
    let cases = [
        ("link-detach", 0, true),
        ("session-end", 0, true),
        ("connection-close", 0, true),
        ("never", 0, false),
        ("connection-close", 5, false),
    ];
    let losses: [fn(&mut World, PeerId); 4] = [
        World::lose,
        World::end_of_stream,
        |world, device| world.peer(device).close(Value::Null),
        |world, device| world.peer(device).end(0, Value::Null),
    ];
    for lose in losses {
        for (policy, timeout, closed) in cases {
            let mut world = World::new(settings());
            let device = world.device("dev");
            let here = wire::terminus(0x29, "here");
            let source = expiring(0x28, DOWN, policy, timeout);
            world.peer(device).attach_with(0, 0, "down", false, source, here);
            world.run();
            world.hub().skip();
            lose(&mut world, device);
            world.run();
            assert_eq!(
                world.hub().expect(wire::DETACH).flag(1),
                closed,
                "{policy} {timeout}"
            );
            world.hub().expect(wire::END);
        }
    }
}

#[test]
fn what_can_be_resumed_is_not_settled_by_the_router() {
    // The hub goes: the device keeps its unsettled deliveries, to ask about them.
    let (mut world, device, _, down) = recoverable();
    let hub = world.hub_id();
    world.peer(device).send(0, 0, b"up", false);
    world.peer(hub).send(down.0, down.1, b"down", false);
    world.run();
    world.peer(device).skip();
    world.lose(hub);
    world.run();
    for _ in 0..2 {
        assert!(!world.peer(device).expect(wire::DETACH).flag(1));
    }
    world.peer(device).expect_nothing();
    // After its return the links have the same names there.
    world.peer(device).attach(0, 5, "up", true, UP);
    world.run();
    world.advance(Duration::from_secs(3));
    assert_eq!(world.hubs_made, 2);
    assert!(world.hub().find("up@dev", false).is_some());

    // The device goes: so does the hub.
    let (mut world, device, _, down) = recoverable();
    let hub = world.hub_id();
    world.peer(hub).send(down.0, down.1, b"down", false);
    world.run();
    world.peer(hub).skip();
    world.lose(device);
    world.run();
    for _ in 0..2 {
        assert!(!world.peer(hub).expect_past_flows(wire::DETACH).flag(1));
    }
    world.peer(hub).expect(wire::END);
    // It comes back under its own names.
    let again = world.device("dev");
    attach_recoverable(&mut world, again, 0, false);
    world.run();
    assert!(world.peer(hub).find("down@dev", true).is_some());
}

#[test]
fn deliveries_on_a_session_with_other_links_are_settled_as_ever() {
    // A delivery is known by its session: with one link that cannot be resumed, all are told what became of them.
    let (mut world, device, _, _) = recoverable();
    world.peer(device).attach(0, 2, "plain", true, UP);
    world.run();
    world.peer(device).send(0, 0, b"up", false);
    world.run();
    world.peer(device).skip();
    let hub = world.hub_id();
    world.lose(hub);
    world.run();
    let failed = world.peer(device).expect(wire::DISPOSITION);
    assert_eq!(state_code(failed.field(4)), Some(wire::MODIFIED));
}

#[test]
fn a_link_that_cannot_be_resumed_is_closed_at_shutdown_and_another_is_not() {
    let mut p = tunnel();
    attach_recoverable_second(&mut p.world, p.device);
    p.world.peer(p.device).skip();
    p.world.router.shutdown(p.world.now);
    p.world.run();
    let closed: Vec<bool> = (0..3)
        .map(|_| p.world.peer(p.device).expect(wire::DETACH).flag(1))
        .collect();
    assert_eq!(closed, [true, true, false]);
}

fn attach_recoverable_second(world: &mut World, device: PeerId) {
    let target = expiring(0x29, UP, "never", 0);
    world
        .peer(device)
        .attach_with(0, 2, "kept", true, wire::terminus(0x28, "here"), target);
    world.run();
}

#[test]
fn a_hub_that_is_gone_before_it_answers_has_nothing_to_resume() {
    let mut world = World::new(settings());
    let mut silent = HUB_AUTO;
    silent.attach = false;
    world.hub = Some((silent, Announces::default()));
    let device = world.device("dev");
    attach_recoverable(&mut world, device, 0, true);
    world.run();
    world.peer(device).skip();
    let hub = world.hub_id();
    world.lose(hub);
    world.run();
    assert_eq!(world.peer(device).expect(wire::ATTACH).field(6), &Value::Null);
    assert!(world.peer(device).expect(wire::DETACH).flag(1));
}

#[test]
fn a_delivery_cut_off_by_a_loss_is_aborted_only_where_it_cannot_be_resumed() {
    // Towards the hub and, with its own loss, towards the device.
    let (mut world, device, up, down) = recoverable();
    let hub = world.hub_id();
    world.peer(hub).auto.end = false;
    world
        .peer(device)
        .say_transfer(0, 0, Some((0, 0)), false, true, b"half");
    world.run();
    world.lose(device);
    world.run();
    let link = world.peer(hub).link(up.0, up.1);
    assert_eq!(
        (link.aborted, link.partial.is_some(), link.detached.is_some()),
        (0, true, true)
    );
    let again = world.device("dev");
    attach_recoverable(&mut world, again, 1, false);
    world.peer(again).grant(0, 1, 5);
    world.run();
    let (channel, handle) = world.peer(hub).find("down@dev", true).expect("attached");
    assert_ne!(channel, down.0);
    world
        .peer(hub)
        .say_transfer(channel, handle, Some((0, 0)), false, true, b"half");
    world.run();
    world.lose(hub);
    world.run();
    let link = world.peer(again).link(0, 1);
    assert_eq!(
        (link.aborted, link.partial.is_some(), link.detached.is_some()),
        (0, true, true)
    );
}
