//! Frames in and frames out, as they were recorded with `qdrouterd` 1.19: the device's container is `dev1`. Where 1.19
//! lost a field or changed it, what is expected is the device's or the hub's own, and the test says so.

use std::time::Duration;

use linkrouterd::amqp::value::Value;
use linkrouterd::router::settings::{Destination, Direction, ErrorConditions, RouterSettings};

use crate::peer::Announces;
use crate::scenarios_routes::{prefix, to};
use crate::wire::{self, Frame, composite, condition, described, error, string, symbol, terminus, uint};
use crate::world::{DEVICE_AUTO, HUB_AUTO, PeerId, World, settings};

fn site() -> RouterSettings {
    let mut settings = settings();
    settings.error_conditions = ErrorConditions::Qd;
    settings.routes = vec![
        prefix("d", Direction::In, to("HUB")),
        prefix("d", Direction::Out, to("HUB")),
        prefix("F", Direction::In, Destination::Container("nobody".into())),
    ];
    settings
}

fn map(key: &str, value: Value) -> Value {
    Value::Map(vec![(symbol(key), value)])
}

/// The attach of the first vector, with every field set.
fn full_attach() -> Vec<Value> {
    let filter = map("f", described(0x468c, vec![string("x > 1")]));
    let outcomes = Value::Array(
        linkrouterd::amqp::value::Array::new(
            None,
            vec![symbol("amqp:accepted:list"), symbol("amqp:rejected:list")],
        )
        .expect("symbols"),
    );
    let source = described(
        0x28,
        vec![
            string("mysrc"),
            uint(2),
            symbol("never"),
            uint(77),
            Value::Boolean(false),
            map("p", uint(1)),
            symbol("move"),
            filter,
            described(0x26, vec![]),
            outcomes,
            symbol("queue"),
        ],
    );
    let target = described(
        0x29,
        vec![
            string("d/1"),
            uint(1),
            symbol("link-detach"),
            uint(5),
            Value::Boolean(false),
            Value::Null,
            symbol("topic"),
        ],
    );
    vec![
        string("L1"),
        uint(7),
        Value::Boolean(false),
        Value::Ubyte(0),
        Value::Ubyte(1),
        source,
        target,
        Value::Map(vec![(Value::Binary(vec![1]), described(0x24, vec![]))]),
        Value::Boolean(true),
        uint(42),
        Value::Ulong(9999),
        symbol("oc"),
        symbol("dc"),
        map("com.microsoft:api-version", string("2016-11-14")),
    ]
}

struct Vector {
    world: World,
    device: PeerId,
    hub: PeerId,
}

/// A device whose sender `s` (handle 0) and receiver `r` (handle 1) are attached, both with credit.
fn attached() -> (Vector, [(u16, u32); 2]) {
    let mut world = World::new(site());
    let device = world.device("dev1");
    world.peer(device).attach(0, 0, "s", true, "d/1");
    world.peer(device).attach(0, 1, "r", false, "d/1");
    world.run();
    let hub = world.hub_id();
    let ends = [("s@dev1", false), ("r@dev1", true)]
        .map(|(name, is_sender)| world.peer(hub).find(name, is_sender).expect("attached"));
    world.peer(hub).grant(ends[0].0, ends[0].1, 10);
    world.peer(device).grant(0, 1, 10);
    world.run();
    world.peer(device).skip();
    world.peer(hub).skip();
    (Vector { world, device, hub }, ends)
}

fn next_attach(world: &mut World) -> Frame {
    std::iter::from_fn(|| world.hub().next())
        .find(|frame| frame.code == wire::ATTACH)
        .expect("an attach")
}

/// 1.19 forwards settle modes 2 and 0, no default-outcome, unsettled map, initial-delivery-count, max-message-size,
/// capabilities or properties.
#[test]
fn b_1_an_attach_reaches_the_hub_with_every_field() {
    let mut world = World::new(site());
    let device = world.device("dev1");
    world
        .peer(device)
        .say_attach(&Frame::new(0, wire::ATTACH, full_attach()));
    world.run();
    let attach = next_attach(&mut world);
    assert_eq!((attach.text(0), attach.uint(1)), (Some("L1@dev1"), Some(0)));
    assert_eq!(attach.fields[2..], full_attach()[2..]);
}

/// 1.19 answers with settle modes 2 and 0 and without properties, capabilities and max-message-size.
#[test]
fn b_2_the_answer_reaches_the_device_with_every_field() {
    let mut world = World::new(site());
    let mut auto = HUB_AUTO;
    auto.attach = false;
    world.hub = Some((auto, Announces::default()));
    let device = world.device("dev1");
    world
        .peer(device)
        .say_attach(&Frame::new(0, wire::ATTACH, full_attach()));
    world.run();
    world.peer(device).skip();
    let asked = next_attach(&mut world);
    let mut fields = full_attach();
    fields[0] = string("L1@dev1");
    fields[1] = uint(5);
    fields[2] = Value::Boolean(true);
    fields[4] = Value::Ubyte(0);
    fields[6] = terminus(0x29, "d/1-renamed");
    fields[9] = Value::Null;
    fields[10] = Value::Ulong(262_144);
    fields[13] = map("com.microsoft:tracking-id", string("t"));
    let channel = *world.hub().sessions.keys().next().expect("a session");
    assert_eq!(asked.text(0), Some("L1@dev1"));
    world
        .hub()
        .say_attach(&Frame::new(channel, wire::ATTACH, fields.clone()));
    world.run();
    let answer = world.peer(device).expect(wire::ATTACH);
    assert_eq!(answer.text(0), Some("L1"));
    assert_eq!(answer.fields[2..], fields[2..]);
}

#[test]
fn b_3_a_refusal_by_the_router_is_a_null_terminus_and_a_detach() {
    let mut world = World::new(site());
    let device = world.device("dev1");
    world.peer(device).skip();
    let (source, target) = (terminus(0x28, "s"), terminus(0x29, "F"));
    world
        .peer(device)
        .attach_with(0, 0, "F", true, source.clone(), target);
    world.run();
    let answer = world.peer(device).expect(wire::ATTACH);
    assert_eq!((answer.text(0), answer.flag(2)), (Some("F"), true));
    assert_eq!((answer.field(5), answer.field(6)), (&source, &Value::Null));
    let detach = world.peer(device).expect(wire::DETACH);
    assert_eq!((detach.uint(0), detach.flag(1)), (answer.uint(1), true));
    let (_, fields) = composite(detach.field(2)).expect("an error");
    assert_eq!(
        fields[..2],
        [
            symbol("qd:no-route-to-dest"),
            string("No route to the destination node")
        ]
    );
}

/// 1.19 sets message-format to 0, and rejects tags of more than 32 bytes.
#[test]
fn b_4_a_message_arrives_byte_for_byte() {
    let (mut v, [(channel, up), _]) = attached();
    let mut payload = Vec::new();
    for section in [
        described(0x70, vec![Value::Boolean(true)]),
        Value::Described(Box::new(Value::Ulong(0x71)), Box::new(map("x-opt-da", uint(1)))),
        Value::Described(Box::new(Value::Ulong(0x72)), Box::new(map("x-opt-ma", uint(2)))),
        Value::Described(
            Box::new(Value::Ulong(0x75)),
            Box::new(Value::Binary(vec![0, 255, 7])),
        ),
    ] {
        section.encode(&mut payload);
    }
    let tag = Value::Binary(b"0f8fad5b-d9cb-469f-a165-70867728950e".to_vec());
    let fields = vec![
        uint(0),
        uint(0),
        tag.clone(),
        uint(0x8001_3700),
        Value::Boolean(false),
    ];
    v.world.peer(v.device).transfer_frame(0, fields, &payload);
    v.world.run();
    let seen = v.world.peer(v.hub).expect(wire::TRANSFER);
    assert_eq!(
        (seen.uint(1), seen.field(2), seen.uint(3)),
        (Some(0), &tag, Some(0x8001_3700))
    );
    assert!(!seen.flag(4));
    assert_eq!(seen.payload, payload);
    assert_eq!(v.world.peer(v.hub).link(channel, up).received.len(), 1);
}

/// 1.19 also says settled in the last frame, which the device did not.
#[test]
fn b_5_an_aborted_delivery_is_aborted_at_the_hub() {
    let (mut v, [(channel, up), _]) = attached();
    let part = |first: bool, more: bool, aborted: bool| {
        let mut fields = vec![
            uint(0),
            Value::Null,
            Value::Null,
            Value::Null,
            Value::Null,
            Value::Boolean(more),
        ];
        if first {
            fields[1] = uint(0);
            fields[2] = Value::Binary(vec![1]);
        }
        fields.extend([Value::Null, Value::Null, Value::Null, Value::Boolean(aborted)]);
        fields
    };
    for (fields, payload) in [
        (part(true, true, false), b"one".as_slice()),
        (part(false, true, false), b"two"),
        (part(false, false, true), b""),
    ] {
        v.world.peer(v.device).transfer_frame(0, fields, payload);
        v.world.run();
    }
    let mut seen = Vec::new();
    while let Some(frame) = v.world.peer(v.hub).next() {
        assert_eq!(frame.code, wire::TRANSFER);
        seen.push((frame.uint(1), frame.payload.clone(), frame.flag(5), frame.flag(9)));
    }
    assert_eq!(
        seen,
        [
            (Some(0), b"one".to_vec(), true, false),
            (None, b"two".to_vec(), true, false),
            (None, vec![], false, true),
        ]
    );
    assert_eq!(v.world.peer(v.hub).link(channel, up).aborted, 1);
}

/// 1.19 sends one disposition for each delivery.
#[test]
fn b_6_a_range_stays_a_range() {
    let (mut v, [(channel, _), _]) = attached();
    for number in 0..5u8 {
        v.world.peer(v.device).send(0, 0, &[number], false);
    }
    v.world.run();
    v.world.peer(v.device).skip();
    let rejected = described(0x25, vec![error("my:bad", "no good", map("k", string("v")))]);
    v.world
        .peer(v.hub)
        .dispose(channel, true, 3, 4, true, rejected.clone());
    v.world.run();
    let seen = v.world.peer(v.device).expect(wire::DISPOSITION);
    assert_eq!(
        (seen.flag(0), seen.uint(1), seen.uint(2)),
        (true, Some(3), Some(4))
    );
    assert_eq!((seen.flag(3), seen.field(4)), (true, &rejected));
    v.world.peer(v.device).expect_nothing();
}

/// 1.19 detaches with qd:routed-link-lost, a name that means nothing to a hub.
#[test]
fn b_7_a_lost_device_leaves_its_delivery_modified_and_its_links_detached() {
    let (mut v, [_, (channel, down)]) = attached();
    v.world.peer(v.hub).send(channel, down, b"m", false);
    v.world.run();
    v.world.peer(v.hub).skip();
    v.world.lose(v.device);
    v.world.run();
    let seen = v.world.peer(v.hub).expect_past_flows(wire::DISPOSITION);
    assert_eq!((seen.flag(0), seen.uint(1), seen.flag(3)), (true, Some(0), true));
    let (code, fields) = composite(seen.field(4)).expect("a state");
    assert_eq!(
        (code, fields.first()),
        (wire::MODIFIED, Some(&Value::Boolean(true)))
    );
    for _ in 0..2 {
        let detach = v.world.peer(v.hub).expect(wire::DETACH);
        assert_eq!(
            (detach.flag(1), condition(detach.field(2))),
            (true, Some("amqp:link:detach-forced"))
        );
    }
    v.world.peer(v.hub).expect(wire::END);
}

/// 1.19 refuses the next attach at once, and says nothing of unsettled deliveries; here it waits for the next dial.
#[test]
fn b_8_a_lost_hub_detaches_every_link_and_is_dialed_again() {
    let (mut v, [_, (channel, down)]) = attached();
    v.world.peer(v.device).send(0, 0, b"unsettled", false);
    v.world.run();
    v.world
        .peer(v.hub)
        .say_transfer(channel, down, Some((0, 0)), false, true, b"half");
    v.world.run();
    v.world.peer(v.device).skip();
    v.world.hub = None;
    v.world.lose(v.hub);
    v.world.run();
    let failed = v.world.peer(v.device).expect(wire::DISPOSITION);
    assert_eq!(
        (failed.uint(1), wire::state_code(failed.field(4))),
        (Some(0), Some(wire::MODIFIED))
    );
    let first = v.world.peer(v.device).expect(wire::DETACH);
    let aborted = v.world.peer(v.device).expect(wire::TRANSFER);
    let second = v.world.peer(v.device).expect(wire::DETACH);
    assert!(aborted.flag(9), "what was half sent");
    for detach in [first, second] {
        assert_eq!(
            (detach.flag(1), condition(detach.field(2))),
            (true, Some("qd:routed-link-lost"))
        );
    }
    v.world.peer(v.device).attach(0, 2, "again", true, "d/1");
    v.world.run();
    v.world.peer(v.device).expect_nothing();
    v.world.advance(Duration::from_secs(2));
    v.world.answer_dial(HUB_AUTO, Announces::default());
    v.world.run();
    assert!(v.world.peer(v.device).link(0, 2).remote.is_some());
}

/// 1.19 keeps the reduction to 4 to itself.
#[test]
fn b_9_credit_and_drain_are_exact() {
    let (mut v, [_, (channel, down)]) = attached();
    v.world.peer(v.hub).send(channel, down, b"first", true);
    v.world.run();
    v.world.peer(v.hub).skip();
    for credit in [10, 4, 12] {
        v.world.peer(v.device).grant(0, 1, credit);
        v.world.run();
        let flow = v.world.peer(v.hub).expect(wire::FLOW);
        assert_eq!((flow.uint(5), flow.uint(6)), (Some(1), Some(credit)));
        assert_eq!(v.world.peer(v.hub).link(channel, down).credit, credit);
    }
    v.world.peer(v.device).skip();
    v.world.peer(v.device).flow(0, Some(1), true, false);
    v.world.run();
    let asked = v.world.peer(v.hub).expect(wire::FLOW);
    assert_eq!((asked.uint(6), asked.flag(8)), (Some(12), true));
    let drained = v.world.peer(v.device).expect(wire::FLOW);
    assert_eq!(
        (drained.uint(5), drained.uint(6), drained.flag(8)),
        (Some(13), Some(0), true)
    );
}

/// 1.19 offers ANONYMOUS-RELAY and qd.streaming-links, of which it would be untrue here to speak.
#[test]
fn b_10_the_open_of_a_listener() {
    let mut settings = site();
    settings.listeners[0].limits.idle_timeout = Some(Duration::from_secs(16));
    let mut world = World::new(settings);
    let device = world.device_with("dev1", DEVICE_AUTO, Announces::default());
    let open = world.peer(device).log[0].clone();
    assert_eq!(open.code, wire::OPEN);
    assert_eq!((open.text(0), open.field(1)), (Some("router"), &Value::Null));
    assert_eq!(
        (open.uint(2), open.uint(3), open.uint(4)),
        (Some(16384), Some(1023), Some(8000))
    );
    for index in 5..9 {
        assert_eq!(open.field(index), &Value::Null);
    }
    let Value::Map(properties) = open.field(9) else {
        panic!("no properties: {open:?}")
    };
    let keys: Vec<_> = properties.iter().filter_map(|(key, _)| key.as_text()).collect();
    assert_eq!(keys, ["product", "version", "qd.conn-id"]);
}
