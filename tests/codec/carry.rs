//! The relay: what it writes reads as what it was given, with nothing changed but the fields it rewrites.

use linkrouterd::amqp::display::{Direction, Trace};
use linkrouterd::amqp::frame::{Frame, FrameType};
use linkrouterd::amqp::performative::{Performative, Role, Transfer};
use linkrouterd::amqp::reader::Reader;
use linkrouterd::amqp::relay::{self, SessionFlow, Written};
use linkrouterd::amqp::sasl::SaslFrame;
use linkrouterd::amqp::serial::{Channel, DeliveryId, Handle, TransferId};
use linkrouterd::amqp::shrink::{self, Attaching};
use linkrouterd::amqp::value::{Array, Value};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::values::{choices, compound, encode_with, leaf, uint, value};

/// A performative as a device might write it: any widths, trailing fields null or left out.
pub(crate) fn body(descriptor: u8, fields: &[Value], wide: &[bool]) -> Vec<u8> {
    let mut wide = choices(wide);
    let mut content = Vec::new();
    for field in fields {
        encode_with(field, &mut wide, &mut content);
    }
    let mut out = match wide() {
        false => vec![0x00, 0x53, descriptor],
        true => vec![0x00, 0x80, 0, 0, 0, 0, 0, 0, 0, descriptor],
    };
    compound([0xc0, 0xd0], fields.len(), &content, wide(), &mut out);
    out
}

/// Frame channel, fields and payload of a written frame, fields up to the last that is not null.
fn read(bytes: &[u8], descriptor: u64) -> (Channel, Vec<Value>, Vec<u8>) {
    let frame = Frame::parse(bytes).unwrap();
    assert_eq!(
        u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize,
        bytes.len()
    );
    let mut reader = Reader::new(frame.body);
    let Value::Described(found, list) = Value::read(&mut reader).unwrap() else {
        panic!("no composite")
    };
    assert_eq!(*found, Value::Ulong(descriptor));
    let Value::List(fields) = *list else {
        panic!("no list")
    };
    (frame.channel, trimmed(fields), reader.rest().to_vec())
}

fn trimmed(mut fields: Vec<Value>) -> Vec<Value> {
    while fields.last() == Some(&Value::Null) {
        fields.pop();
    }
    fields
}

/// `fields` with the first ones replaced.
fn with_head(head: &[Value], fields: &[Value]) -> Vec<Value> {
    trimmed(
        head.iter()
            .chain(fields.get(head.len()..).unwrap_or_default())
            .cloned()
            .collect(),
    )
}

pub(crate) fn optional(strategy: impl Strategy<Value = Value> + 'static) -> BoxedStrategy<Value> {
    option::of(strategy)
        .prop_map(|value| value.unwrap_or(Value::Null))
        .boxed()
}

fn a_uint() -> BoxedStrategy<Value> {
    uint().prop_map(Value::Uint).boxed()
}

fn a_boolean() -> BoxedStrategy<Value> {
    any::<bool>().prop_map(Value::Boolean).boxed()
}

pub(crate) fn a_map() -> BoxedStrategy<Value> {
    vec((value(), value()), 0..3).prop_map(Value::Map).boxed()
}

fn described() -> BoxedStrategy<Value> {
    (0x23..0x35u64, vec(value(), 0..4))
        .prop_map(|(code, fields)| {
            Value::Described(Box::new(Value::Ulong(code)), Box::new(Value::List(fields)))
        })
        .boxed()
}

pub(crate) fn symbols() -> BoxedStrategy<Value> {
    vec("[a-z:-]{1,20}".prop_map(Value::Symbol), 1..4)
        .prop_map(|symbols| match symbols.len() {
            1 => symbols.into_iter().next().unwrap(),
            _ => Value::Array(Array::new(None, symbols).unwrap()),
        })
        .boxed()
}

/// The fields in order, and how many of them are written: never fewer than the mandatory ones.
fn fields(mandatory: usize, all: Vec<BoxedStrategy<Value>>) -> impl Strategy<Value = Vec<Value>> {
    let range = mandatory..=all.len();
    (all, range).prop_map(|(mut fields, count)| {
        fields.truncate(count);
        fields
    })
}

pub(crate) fn attach() -> impl Strategy<Value = Vec<Value>> {
    fields(
        3,
        vec![
            ".{0,30}".prop_map(Value::String).boxed(),
            a_uint(),
            a_boolean(),
            optional((0..3u8).prop_map(Value::Ubyte)),
            optional((0..2u8).prop_map(Value::Ubyte)),
            optional(described()),
            optional(described()),
            optional(a_map()),
            optional(a_boolean()),
            optional(a_uint()),
            optional(any::<u64>().prop_map(Value::Ulong)),
            optional(symbols()),
            optional(symbols()),
            optional(a_map()),
        ],
    )
}

fn flow() -> impl Strategy<Value = Vec<Value>> {
    fields(
        4,
        vec![
            optional(a_uint()),
            a_uint(),
            a_uint(),
            a_uint(),
            optional(a_uint()),
            optional(a_uint()),
            optional(a_uint()),
            optional(a_uint()),
            optional(a_boolean()),
            optional(a_boolean()),
            optional(a_map()),
        ],
    )
}

fn transfer() -> impl Strategy<Value = Vec<Value>> {
    fields(
        1,
        vec![
            a_uint(),
            optional(a_uint()),
            optional(vec(any::<u8>(), 0..33).prop_map(Value::Binary)),
            optional(a_uint()),
            optional(a_boolean()),
            optional(a_boolean()),
            optional((0..2u8).prop_map(Value::Ubyte)),
            optional(described()),
            optional(a_boolean()),
            optional(a_boolean()),
            optional(a_boolean()),
        ],
    )
}

fn disposition() -> impl Strategy<Value = Vec<Value>> {
    fields(
        2,
        vec![
            a_boolean(),
            a_uint(),
            optional(a_uint()),
            optional(a_boolean()),
            optional(described()),
            optional(a_boolean()),
        ],
    )
}

fn detach() -> impl Strategy<Value = Vec<Value>> {
    fields(1, vec![a_uint(), optional(a_boolean()), optional(described())])
}

pub(crate) fn widths() -> impl Strategy<Value = Vec<bool>> {
    vec(any::<bool>(), 1..12)
}

fn parsed_transfer(body: &[u8]) -> Transfer<'_> {
    match Performative::parse(body).unwrap() {
        Performative::Transfer(transfer) => transfer,
        other => panic!("{other:?}"),
    }
}

proptest! {
    #[test]
    fn attach_is_carried(
        fields in attach(), wide in widths(), channel in any::<u16>(), handle in uint(), name in ".{0,300}",
        from_receiver in any::<bool>(),
    ) {
        let body = body(0x12, &fields, &wide);
        let Performative::Attach(attach) = Performative::parse(&body).unwrap() else { panic!("no attach") };
        prop_assert_eq!(Value::String(attach.name.to_owned()), fields[0].clone());
        let role = if from_receiver { Role::Receiver } else { Role::Sender };
        let mut out = Vec::new();
        relay::write_attach(&mut out, Channel(channel), &name, Handle(handle), role, attach.tail);
        let head = [Value::String(name), Value::Uint(handle), Value::Boolean(from_receiver)];
        prop_assert_eq!(read(&out, 0x12), (Channel(channel), with_head(&head, &fields), vec![]));
    }

    /// The order of [`shrink::attach_tail`], told again: each loss only if those before it were not enough.
    #[test]
    fn an_attach_is_trimmed_in_the_documented_order(
        fields in attach(), unknown in leaf(), wide in widths(), short_by in 1..1500usize, answers in option::of(any::<bool>()),
    ) {
        let mut fields = fields;
        if fields.len() == 14 {
            fields.push(unknown);
        }
        let body = body(0x12, &fields, &wide);
        let Performative::Attach(attach) = Performative::parse(&body).unwrap() else { panic!("no attach") };
        let room = attach.tail.bytes.len().saturating_sub(short_by);
        let attaching = match answers {
            None => Attaching::Request,
            Some(true) => Attaching::Answer(Role::Receiver),
            Some(false) => Attaching::Answer(Role::Sender),
        };
        let trimmed = shrink::attach_tail(attach.tail, attaching, room);

        let mut before = Vec::new();
        let mut reader = Reader::new(attach.tail.bytes);
        for _ in 0..attach.tail.count {
            before.push(reader.skip().unwrap().to_vec());
        }
        let null = |fields: &mut Vec<Vec<u8>>, index: usize| {
            if let Some(field) = fields.get_mut(index) {
                *field = vec![0x40];
            }
        };
        let mut expected = before.clone();
        let fits = |fields: &Vec<Vec<u8>>| fields.concat().len() <= room;
        let has_unsettled = before.get(4).is_some_and(|map| !matches!(Value::decode(map).unwrap(), Value::Map(entries) if entries.is_empty()) && *map != [0x40]);
        let mut loses_unsettled = false;
        for loss in 0..5 {
            match loss {
                0 => expected.truncate(10),
                1 if has_unsettled => {
                    loses_unsettled = true;
                    null(&mut expected, 4);
                    expected.resize(expected.len().max(6), vec![0x40]);
                    expected[5] = vec![0x41];
                }
                2 => null(&mut expected, 9),
                3 => null(&mut expected, 8),
                4 => {
                    let echo = match attaching {
                        Attaching::Request => None,
                        Attaching::Answer(Role::Receiver) => expected.get_mut(2),
                        Attaching::Answer(Role::Sender) => expected.get_mut(3),
                    };
                    if let Some(echo) = echo
                        && let Ok((code @ (0x28 | 0x29), terminus)) = Reader::new(echo).composite()
                    {
                        let address = match terminus.tail().count {
                            0 => &[0x40],
                            _ => Reader::new(terminus.tail().bytes).skip().unwrap(),
                        };
                        let mut short = vec![0x00, 0x53, u8::try_from(code).unwrap()];
                        match u8::try_from(address.len() + 1) {
                            Ok(size) => short.extend([0xc0, size, 1]),
                            Err(_) => {
                                short.push(0xd0);
                                short.extend(u32::try_from(address.len() + 4).unwrap().to_be_bytes());
                                short.extend([0, 0, 0, 1]);
                            }
                        }
                        short.extend(address);
                        if short.len() < echo.len() {
                            *echo = short;
                        }
                    }
                }
                _ => {}
            }
            if fits(&expected) {
                break;
            }
        }
        prop_assert_eq!(trimmed.is_some(), fits(&expected));
        let Some((count, bytes)) = trimmed else { return Ok(()) };
        prop_assert!(bytes.len() <= room);
        let mut after = Vec::new();
        let mut reader = Reader::new(&bytes);
        for _ in 0..count {
            after.push(reader.skip_checked().unwrap().to_vec());
        }
        prop_assert!(reader.is_empty());
        if loses_unsettled && after[4] != [0x40] {
            // The first ones were saved: all of them, where what was lost later has made the room.
            let (Ok(Value::Map(some)), Ok(Value::Map(all))) = (Value::decode(&after[4]), Value::decode(&before[4])) else {
                panic!("no maps")
            };
            prop_assert!(!some.is_empty() && all.starts_with(&some));
            after[4] = vec![0x40];
        }
        prop_assert_eq!(after, expected);
    }

    #[test]
    fn flow_is_carried(
        fields in flow(), wide in widths(), channel in any::<u16>(), numbers in [uint(), uint(), uint(), uint(), uint()],
        knows_peer in any::<bool>(),
    ) {
        let body = body(0x13, &fields, &wide);
        let Performative::Flow(flow) = Performative::parse(&body).unwrap() else { panic!("no flow") };
        let [a, b, c, d, handle] = numbers;
        let session = SessionFlow {
            next_incoming_id: knows_peer.then_some(TransferId(a)),
            incoming_window: b,
            next_outgoing_id: TransferId(c),
            outgoing_window: d,
        };
        let link = flow.link.map(|link| (Handle(handle), link.tail));
        let mut out = Vec::new();
        relay::write_flow(&mut out, Channel(channel), session, link);
        let first = if knows_peer { Value::Uint(a) } else { Value::Null };
        let mut head = vec![first, Value::Uint(b), Value::Uint(c), Value::Uint(d)];
        let expected = if link.is_some() {
            head.push(Value::Uint(handle));
            with_head(&head, &fields)
        } else {
            head
        };
        prop_assert_eq!(read(&out, 0x13), (Channel(channel), expected, vec![]));
    }

    #[test]
    fn transfer_is_carried(
        fields in transfer(), wide in widths(), payload in vec(any::<u8>(), 0..600), channel in any::<u16>(),
        handle in uint(), delivery_id in option::of(uint()),
    ) {
        let mut body = body(0x14, &fields, &wide);
        body.extend(&payload);
        let transfer = parsed_transfer(&body);
        let mut out = Vec::new();
        let id = delivery_id.map(DeliveryId);
        let written = relay::write_transfer(&mut out, Channel(channel), Handle(handle), id, &transfer, 0, 1 << 20);
        prop_assert_eq!(written, Written::All);
        let head = [Value::Uint(handle), delivery_id.map_or(Value::Null, Value::Uint)];
        prop_assert_eq!(read(&out, 0x14), (Channel(channel), with_head(&head, &fields), payload));
    }

    #[test]
    fn a_split_transfer_is_the_same_delivery(
        fields in transfer(), wide in widths(), payload in prop_oneof![1 => Just(vec![]), 9 => vec(any::<u8>(), 0..2000)], handle in uint(),
        delivery_id in uint(), max in 512..1200usize,
    ) {
        let mut body = body(0x14, &fields, &wide);
        body.extend(&payload);
        let transfer = parsed_transfer(&body);
        let whole_head = with_head(&[Value::Uint(handle), Value::Uint(delivery_id)], &fields);
        let head_size = body.len() - payload.len();
        let mut carried = Vec::new();
        let mut offset = 0;
        for number in 0.. {
            let mut out = Vec::new();
            let (id, handle_given) = (Some(DeliveryId(delivery_id)), Handle(handle));
            let written = relay::write_transfer(&mut out, Channel(1), handle_given, id, &transfer, offset, max);
            if written == Written::HeadTooLarge {
                prop_assert_eq!(number, 0, "only the first frame has the head");
                prop_assert!(out.is_empty());
                // A frame header, a wider list head and ids, and a piece that is worth a frame.
                prop_assert!(head_size + 8 + 12 + 10 + 64 > max, "{head_size} would fit {max}");
                return Ok(());
            }
            prop_assert!(out.len() <= max, "{} bytes in a frame of {max}", out.len());
            let (_, found, piece) = read(&out, 0x14);
            carried.extend(piece);
            let more = found.get(5) == Some(&Value::Boolean(true));
            let is_last = written == Written::All;
            prop_assert_eq!(more, transfer.more || !is_last);
            prop_assert!(number == 0 || !transfer.aborted, "an abort is one frame");
            let settled = found.get(4).cloned().unwrap_or(Value::Null);
            prop_assert_eq!(settled, transfer.settled.map_or(Value::Null, Value::Boolean));
            prop_assert_eq!(found.get(9) == Some(&Value::Boolean(true)), transfer.aborted && number == 0);
            if number == 0 {
                let mut found = found;
                let mut expected = whole_head.clone();
                for fields in [&mut found, &mut expected] {
                    fields.resize(11, Value::Null);
                    fields[5] = Value::Null;
                }
                prop_assert_eq!(found, expected);
            } else {
                prop_assert_eq!(&found[..4], &[Value::Uint(handle), Value::Null, Value::Null, Value::Null]);
            }
            match written {
                Written::UpTo(next) => { prop_assert!(next > offset); offset = next }
                _ => break,
            }
        }
        // What an abort carries means nothing (AMQP 1.0 part 2, §2.7.5).
        prop_assert!(carried == payload || transfer.aborted && carried.is_empty());
    }

    #[test]
    fn disposition_is_carried(
        fields in disposition(), wide in widths(), channel in any::<u16>(), first in uint(), more in 0..3u32,
        from_receiver in any::<bool>(),
    ) {
        let body = body(0x15, &fields, &wide);
        let Performative::Disposition(state) = Performative::parse(&body).unwrap() else { panic!("no disposition") };
        let role = if from_receiver { Role::Receiver } else { Role::Sender };
        let (first, last) = (DeliveryId(first), DeliveryId(first).plus(more));
        let mut out = Vec::new();
        relay::write_disposition(&mut out, Channel(channel), role, first, last, state.tail);
        let last = if more == 0 { Value::Null } else { Value::Uint(last.0) };
        let head = [Value::Boolean(from_receiver), Value::Uint(first.0), last];
        prop_assert_eq!(read(&out, 0x15), (Channel(channel), with_head(&head, &fields), vec![]));
    }

    #[test]
    fn detach_is_carried(fields in detach(), wide in widths(), channel in any::<u16>(), handle in uint()) {
        let body = body(0x16, &fields, &wide);
        let Performative::Detach(detach) = Performative::parse(&body).unwrap() else { panic!("no detach") };
        let mut out = Vec::new();
        relay::write_detach(&mut out, Channel(channel), Handle(handle), detach.tail);
        let expected = with_head(&[Value::Uint(handle)], &fields);
        prop_assert_eq!(read(&out, 0x16), (Channel(channel), expected, vec![]));
    }

    #[test]
    fn fields_behind_the_last_one_known_are_carried(extra in vec(leaf(), 1..=64), wide in widths()) {
        let mut fields = vec![Value::Uint(0), Value::Boolean(true), Value::Null];
        fields.extend(extra);
        let body = body(0x16, &fields, &wide);
        let Performative::Detach(detach) = Performative::parse(&body).unwrap() else { panic!("no detach") };
        prop_assert_eq!(usize::from(detach.tail.count), fields.len() - 1);
        let mut out = Vec::new();
        relay::write_detach(&mut out, Channel(0), Handle(0), detach.tail);
        prop_assert_eq!(read(&out, 0x16).1, trimmed(fields));
    }
}

#[test]
fn more_unknown_fields_than_a_performative_may_have_are_refused() {
    for (count, is_fine) in [(3 + 64, true), (3 + 65, false), (300, false)] {
        let body = body(
            0x16,
            &[vec![Value::Uint(0)], vec![Value::Null; count - 1]].concat(),
            &[false],
        );
        assert_eq!(Performative::parse(&body).is_ok(), is_fine, "{count} fields");
    }
    // What cannot be read cannot be carried.
    let broken = [0x00, 0x53, 0x16, 0xc0, 0x06, 0x04, 0x43, 0x40, 0x40, 0xa0, 0x09];
    assert!(Performative::parse(&broken).is_err());
}

/// A hub may give up the connection of all devices over it.
#[test]
fn a_boolean_that_is_neither_false_nor_true_is_refused() {
    for (code, fields, at) in [(0x12, 14, 8), (0x14, 11, 8), (0x14, 11, 10), (0x15, 6, 5)] {
        let required: &[u8] = match code {
            0x12 => &[0xa1, 1, b'l', 0x43, 0x41],
            0x14 => &[0x43],
            _ => &[0x41, 0x43],
        };
        for (octet, is_fine) in [(0, true), (1, true), (2, false), (0x15, false), (0xff, false)] {
            let mut list = required.to_vec();
            let given = if code == 0x12 { 3 } else { required.len() };
            list.extend(vec![0x40; at - given]);
            list.extend([0x56, octet]);
            list.extend(vec![0x40; fields - at - 1]);
            let size = u8::try_from(list.len() + 1).unwrap();
            let mut body = vec![0x00, 0x53, code, 0xc0, size, u8::try_from(fields).unwrap()];
            body.extend(list);
            let read = Performative::parse(&body);
            assert_eq!(read.is_ok(), is_fine, "field {at} of {code:#x}: {octet} {read:?}");
        }
    }
}

#[test]
fn a_head_that_does_not_fit_is_refused_even_without_payload() {
    let state = Value::Described(
        Box::new(Value::Ulong(0x34)),
        Box::new(Value::List(vec![Value::Binary(vec![7; 600])])),
    );
    let mut fields = vec![
        Value::Uint(0),
        Value::Uint(0),
        Value::Binary(vec![1]),
        Value::Uint(0),
    ];
    fields.extend([Value::Boolean(false), Value::Boolean(false), Value::Null, state]);
    let body = body(0x14, &fields, &[false]);
    let mut out = Vec::new();
    let transfer = parsed_transfer(&body);
    let written = relay::write_transfer(
        &mut out,
        Channel(0),
        Handle(0),
        Some(DeliveryId(0)),
        &transfer,
        0,
        512,
    );
    assert_eq!((written, out), (Written::HeadTooLarge, vec![]));
}

#[test]
fn symbolic_descriptors_are_read() {
    let symbolic = |name: &str, fields: &[Value]| {
        let mut body = vec![0x00, 0xa3, name.len() as u8];
        body.extend(name.as_bytes());
        Value::List(fields.to_vec()).encode(&mut body);
        body
    };
    let zero = || Value::Uint(0);
    let text = || Value::String("x".to_owned());
    for (name, fields) in [
        ("open", vec![text()]),
        ("begin", vec![Value::Null, zero(), zero(), zero()]),
        ("attach", vec![text(), zero(), Value::Boolean(true)]),
        ("flow", vec![zero(), zero(), zero(), zero()]),
        ("transfer", vec![zero()]),
        ("disposition", vec![Value::Boolean(true), zero()]),
        ("detach", vec![zero()]),
        ("end", vec![]),
        ("close", vec![]),
    ] {
        let body = symbolic(&format!("amqp:{name}:list"), &fields);
        assert!(Performative::parse(&body).is_ok(), "{name}");
        let frame = Frame {
            frame_type: FrameType::Amqp,
            channel: Channel(0),
            body: &body,
        };
        assert!(
            Trace::frame(Direction::Sent, frame)
                .to_string()
                .contains(&format!("@{name}(")),
            "{name}"
        );
    }
    for (name, field) in [
        ("mechanisms", Value::Symbol("PLAIN".to_owned())),
        ("init", Value::Symbol("PLAIN".to_owned())),
        ("challenge", Value::Binary(vec![])),
        ("response", Value::Binary(vec![])),
        ("outcome", Value::Ubyte(0)),
    ] {
        assert!(
            SaslFrame::parse(&symbolic(&format!("amqp:sasl-{name}:list"), &[field])).is_ok(),
            "{name}"
        );
    }
}
