//! Edits of an attach: only what is edited reads differently, and all else is the same byte for byte.

use linkrouterd::amqp::edit::{Edits, attach_tail};
use linkrouterd::amqp::fields::Tail;
use linkrouterd::amqp::performative::{Attach, Performative};
use linkrouterd::amqp::reader::Reader;
use linkrouterd::amqp::terminus::Terminus;
use linkrouterd::amqp::value::Value;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::carry::{a_map, attach, body, optional, symbols, widths};
use crate::values::{choices, encode_with};

const SOURCE: usize = 2;
const TARGET: usize = 3;
const MAX_MESSAGE_SIZE: usize = 7;

/// A source or target with fields that the specification does not know, and its descriptor in any form.
fn terminus(code: u64, symbol: &'static str) -> BoxedStrategy<Value> {
    let fields = vec![
        optional(address().prop_map(Value::String)),
        optional((0..3u32).prop_map(Value::Uint)),
        optional(Just(Value::Symbol("never".to_owned()))),
        optional(any::<u32>().prop_map(Value::Uint)),
        optional(any::<bool>().prop_map(Value::Boolean)),
        optional(a_map()),
        optional(symbols()),
        optional(a_map()),
    ];
    let descriptor = prop_oneof![Just(Value::Ulong(code)), Just(Value::Symbol(symbol.to_owned()))];
    (descriptor, fields, 0..=8usize)
        .prop_map(|(descriptor, mut fields, count)| {
            fields.truncate(count);
            Value::Described(Box::new(descriptor), Box::new(Value::List(fields)))
        })
        .boxed()
}

fn address() -> impl Strategy<Value = String> {
    prop_oneof![".{0,20}", "[a-z/]{230,260}"]
}

/// An attach with both termini.
fn attach_with_termini() -> impl Strategy<Value = Vec<Value>> {
    let source = terminus(0x28, "amqp:source:list");
    let target = terminus(0x29, "amqp:target:list");
    (attach(), source, target).prop_map(|(mut fields, source, target)| {
        fields.resize(fields.len().max(7), Value::Null);
        fields[3 + SOURCE] = source;
        fields[3 + TARGET] = target;
        fields
    })
}

fn parsed(body: &[u8]) -> Attach<'_> {
    match Performative::parse(body).unwrap() {
        Performative::Attach(attach) => attach,
        other => panic!("{other:?}"),
    }
}

fn fields_of(tail: Tail<'_>) -> Vec<&[u8]> {
    let mut reader = Reader::new(tail.bytes);
    let fields = (0..tail.count).map(|_| reader.skip().unwrap()).collect();
    assert!(reader.is_empty());
    fields
}

/// A terminus without its address: descriptor, and the encoding of every other field.
fn but_address(encoded: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut reader = Reader::new(&encoded[1..]);
    let descriptor = reader.skip().unwrap().to_vec();
    let list = reader.skip().unwrap();
    let mut fields = Reader::new(
        &list[match list[0] {
            0x45 => 1,
            0xc0 => 3,
            _ => 9,
        }..],
    );
    if !fields.is_empty() {
        fields.skip().unwrap();
    }
    (descriptor, fields.rest().to_vec())
}

/// The address of a terminus, as whoever reads the value tree finds it.
fn address_of(encoded: &[u8]) -> Option<Value> {
    match Value::decode(encoded).unwrap() {
        Value::Described(_, list) => match *list {
            Value::List(fields) => fields.into_iter().next(),
            _ => None,
        },
        _ => None,
    }
}

proptest! {
    #[test]
    fn only_what_is_edited_changes(
        fields in attach_with_termini(), wide in widths(), source in option::of(address()),
        target in option::of(address()), size in option::of(any::<u64>()),
    ) {
        let body = body(0x12, &fields, &wide);
        let before = parsed(&body);
        let edits = Edits {
            source_address: source.as_deref(),
            target_address: target.as_deref(),
            max_message_size: size,
        };
        let edited = attach_tail(before.tail, &edits).unwrap();
        let (old, new) = (fields_of(before.tail), fields_of(edited.tail()));
        prop_assert_eq!(new.len(), if size.is_some() { old.len().max(MAX_MESSAGE_SIZE + 1) } else { old.len() });
        for (index, field) in new.iter().enumerate() {
            let was = old.get(index).copied().unwrap_or(&[0x40]);
            let address = match index {
                SOURCE => source.as_ref(),
                TARGET => target.as_ref(),
                _ => None,
            };
            match (address, size) {
                (Some(address), _) => {
                    prop_assert_eq!(address_of(field), Some(Value::String(address.clone())));
                    prop_assert_eq!(but_address(field), but_address(was));
                }
                (None, Some(size)) if index == MAX_MESSAGE_SIZE => {
                    prop_assert_eq!(Value::decode(field).unwrap(), Value::Ulong(size));
                }
                (None, _) => prop_assert_eq!(*field, was),
            }
        }
    }

    /// The list keeps its width while it holds the address.
    #[test]
    fn a_terminus_keeps_the_width_of_its_list(
        source in terminus(0x28, "amqp:source:list"), is_wide in any::<bool>(), address in "[a-z]{0,10}",
    ) {
        let mut encoded = Vec::new();
        encode_with(&source, &mut choices(&[is_wide]), &mut encoded);
        let width = |terminus: &[u8]| {
            let mut reader = Reader::new(&terminus[1..]);
            reader.skip().unwrap();
            reader.peek_code().unwrap()
        };
        let bytes = [&[0x40, 0x40], encoded.as_slice()].concat();
        let edits = Edits { source_address: Some(&address), ..Edits::default() };
        let edited = attach_tail(Tail { count: 3, bytes: &bytes }, &edits).unwrap();
        match width(&encoded) {
            0xd0 => prop_assert_eq!(width(&edited.tail().bytes[2..]), 0xd0),
            _ if encoded.len() < 240 => prop_assert_eq!(width(&edited.tail().bytes[2..]), 0xc0),
            _ => {}
        }
    }

    /// Whatever the bytes and the count: an answer, of a size that is bounded by what was given.
    #[test]
    fn hostile_fields_are_survived(
        bytes in vec(prop_oneof![any::<u8>(), Just(0x00), Just(0x53), Just(0x28), Just(0xc0), Just(0xd0), Just(0x40)], 0..80),
        count in any::<u8>(), address in ".{0,20}", size in any::<u64>(),
    ) {
        let edits = Edits {
            source_address: Some(&address),
            target_address: Some(&address),
            max_message_size: Some(size),
        };
        for edits in [edits, Edits { target_address: None, ..edits }, Edits { source_address: None, ..edits }] {
            if let Some(edited) = attach_tail(Tail { count, bytes: &bytes }, &edits) {
                prop_assert!(edited.tail().bytes.len() <= bytes.len() + 2 * (address.len() + 14) + 9 + 8);
                fields_of(edited.tail());
            }
        }
    }
}

#[test]
fn the_routing_view_reads_the_new_address() {
    let source = [0x00, 0x53, 0x28, 0x45];
    let bytes = [&[0x40, 0x40], source.as_slice()].concat();
    let edits = Edits {
        source_address: Some("hub1/out"),
        ..Edits::default()
    };
    let edited = attach_tail(
        Tail {
            count: 3,
            bytes: &bytes,
        },
        &edits,
    )
    .unwrap();
    let terminus = Terminus::parse(&edited.tail().bytes[2..]).unwrap();
    assert_eq!(terminus.address, Some("hub1/out"));
}

#[test]
fn what_has_no_address_is_not_given_one() {
    let coordinator = [0x00, 0x53, 0x30, 0xc0, 0x01, 0x00].as_slice();
    let accepted = [0x00, 0x53, 0x24, 0x45].as_slice();
    for target in [coordinator, accepted, &[0x40], &[0x43]] {
        let bytes = [&[0x40, 0x40, 0x40], target].concat();
        let edits = Edits {
            target_address: Some("a"),
            ..Edits::default()
        };
        assert_eq!(
            attach_tail(
                Tail {
                    count: 4,
                    bytes: &bytes
                },
                &edits
            ),
            None,
            "{target:x?}"
        );
        assert_eq!(
            attach_tail(
                Tail {
                    count: 3,
                    bytes: &bytes[..3]
                },
                &edits
            ),
            None,
            "absent"
        );
    }
}
