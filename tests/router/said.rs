//! Arbitrary performatives: what two peers may say to each other on links, in any encoding.

use linkrouterd::amqp::value::{Array, Value};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::tap::{Descriptor, End, Form, Side, flag, null, string};
use crate::values::{encode_with, value};

/// A value of an AMQP type, in one of its encodings; or null.
pub(crate) fn field(strategy: impl Strategy<Value = Value> + 'static) -> BoxedStrategy<Vec<u8>> {
    (option::weighted(0.7, strategy), any::<u64>())
        .prop_map(|(value, seed)| value.map_or_else(null, |value| encoding(&value, seed)))
        .boxed()
}

/// One of the encodings of a value, chosen by the bits of `seed`.
fn encoding(value: &Value, mut seed: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let mut wide = || {
        seed = seed.rotate_right(1);
        seed & 1 == 1
    };
    encode_with(value, &mut wide, &mut out);
    out
}

fn a_uint() -> BoxedStrategy<Vec<u8>> {
    field(crate::values::uint().prop_map(Value::Uint))
}

pub(crate) fn a_flag() -> BoxedStrategy<Vec<u8>> {
    field(any::<bool>().prop_map(Value::Boolean))
}

fn a_ubyte() -> BoxedStrategy<Vec<u8>> {
    field(any::<u8>().prop_map(Value::Ubyte))
}

fn a_map() -> BoxedStrategy<Vec<u8>> {
    field(vec((value(), value()), 0..3).prop_map(Value::Map))
}

/// A described value of any kind: states, termini and errors that this router has never heard of.
pub(crate) fn described() -> impl Strategy<Value = Value> {
    let descriptor = prop_oneof![
        (0x23..0x35u64).prop_map(Value::Ulong),
        any::<u64>().prop_map(Value::Ulong),
        "[a-z:.-]{1,30}".prop_map(Value::Symbol),
    ];
    let inner = prop_oneof![3 => vec(value(), 0..4).prop_map(Value::List), 1 => value()];
    (descriptor, inner)
        .prop_map(|(descriptor, inner)| Value::Described(Box::new(descriptor), Box::new(inner)))
}

fn symbols() -> BoxedStrategy<Vec<u8>> {
    let several = vec("[a-z:-]{1,20}".prop_map(Value::Symbol), 1..4)
        .prop_map(|symbols| Value::Array(Array::new(None, symbols).expect("symbols")));
    field(prop_oneof!["[a-z:-]{1,20}".prop_map(Value::Symbol), several])
}

/// What a later version of the protocol might append.
fn unknown() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop_oneof![4 => Just(Vec::new()), 1 => vec(field(value()), 1..4)]
}

/// Fields in order, ended after any of them from `least` on: absent, not null; sometimes with unknown ones behind.
pub(crate) fn fields(least: usize, all: Vec<BoxedStrategy<Vec<u8>>>) -> BoxedStrategy<Vec<Vec<u8>>> {
    let count = all.len();
    (all, least..=count, unknown())
        .prop_map(move |(mut fields, length, unknown)| {
            fields.truncate(length);
            if length == count {
                fields.extend(unknown);
            }
            fields
        })
        .boxed()
}

pub(crate) fn form() -> impl Strategy<Value = Form> {
    let descriptor = prop_oneof![
        Just(Descriptor::SmallUlong),
        Just(Descriptor::Ulong),
        Just(Descriptor::Symbol)
    ];
    (any::<bool>(), descriptor).prop_map(|(is_wide, descriptor)| Form { is_wide, descriptor })
}

/// A source or target that is routed: by its address, or by the one in the properties of its dynamic node. Everything
/// else is as it happens to be.
fn terminus(code: u64, address: &'static str) -> BoxedStrategy<Vec<u8>> {
    prop_oneof![2 => a_terminus(code, address, false), 1 => a_terminus(code, address, true)].boxed()
}

fn a_terminus(code: u64, address: &'static str, is_dynamic: bool) -> BoxedStrategy<Vec<u8>> {
    let by_properties = (vec((value(), value()), 0..3), any::<u64>()).prop_map(move |(mut entries, seed)| {
        let key = Value::Symbol("x-opt-qd.address".into());
        entries.insert(0, (key, Value::String(address.into())));
        encoding(&Value::Map(entries), seed)
    });
    let (address, dynamic, properties) = match is_dynamic {
        true => (null(), Just(flag(true)).boxed(), by_properties.boxed()),
        false => (string(address), field(Just(Value::Boolean(false))), a_map()),
    };
    let mut all = vec![
        Just(address).boxed(),
        a_uint(),
        field("[a-z-]{1,20}".prop_map(Value::Symbol)),
        a_uint(),
        dynamic,
        properties,
    ];
    let least = if is_dynamic { all.len() } else { 1 };
    if code == 0x28 {
        all.push(field("[a-z]{1,8}".prop_map(Value::Symbol)));
        all.push(a_map());
        all.push(field(described()));
        all.push(symbols());
    }
    all.push(symbols());
    (fields(least, all), form())
        .prop_map(move |(fields, form)| {
            let mut out = vec![0x00];
            match form.descriptor {
                Descriptor::SmallUlong => out.extend([0x53, u8::try_from(code).expect("small")]),
                Descriptor::Ulong => {
                    out.push(0x80);
                    out.extend(code.to_be_bytes());
                }
                Descriptor::Symbol => {
                    let name = if code == 0x28 {
                        "amqp:source:list"
                    } else {
                        "amqp:target:list"
                    };
                    out.extend([0xa3, 16]);
                    out.extend(name.as_bytes());
                }
            }
            let body = fields.concat();
            out.push(0xd0);
            out.extend(u32::try_from(body.len() + 4).expect("small").to_be_bytes());
            out.extend(u32::try_from(fields.len()).expect("few").to_be_bytes());
            out.extend(body);
            out
        })
        .boxed()
}

pub(crate) const ADDRESS: &str = "/devices/d1/messages";

/// An attach's fields from snd-settle-mode on. The terminus that a device is routed by must have the address.
fn attach_tail(routed: Option<usize>) -> BoxedStrategy<Vec<Vec<u8>>> {
    let other = || field(described());
    let least = routed.map_or(0, |index| index + 1);
    let all = vec![
        a_ubyte(),
        a_ubyte(),
        if routed == Some(2) {
            terminus(0x28, ADDRESS)
        } else {
            other()
        },
        if routed == Some(3) {
            terminus(0x29, ADDRESS)
        } else {
            other()
        },
        a_map(),
        a_flag(),
        a_uint(),
        field(any::<u64>().prop_map(Value::Ulong)),
        symbols(),
        symbols(),
        a_map(),
    ];
    fields(least, all)
}

#[derive(Clone, Debug)]
pub(crate) struct Attaches {
    pub(crate) name: String,
    pub(crate) handle: u32,
    pub(crate) answer_handle: u32,
    pub(crate) request: Vec<Vec<u8>>,
    pub(crate) answer: Vec<Vec<u8>>,
    pub(crate) forms: (Form, Form),
}

/// An attach of a device and a hub's answer.
pub(crate) fn attaches(device_sends: bool) -> impl Strategy<Value = Attaches> {
    let routed = if device_sends { 3 } else { 2 };
    let handles = (0..2000u32, 0..2000u32);
    (
        ".{0,300}",
        handles,
        attach_tail(Some(routed)),
        attach_tail(None),
        (form(), form()),
    )
        .prop_map(
            move |(name, (handle, answer_handle), request, answer, forms)| Attaches {
                // Two links of a session have handles of their own.
                name,
                handle: handle * 2 + u32::from(device_sends),
                answer_handle: answer_handle * 2 + u32::from(device_sends),
                request,
                answer,
                forms,
            },
        )
}

/// A piece of a delivery: the fields behind delivery-id, with `more` as its place asks.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) repeats_id: bool,
    pub(crate) before_more: Vec<Vec<u8>>,
    pub(crate) behind_more: Vec<Vec<u8>>,
    pub(crate) payload: Vec<u8>,
    pub(crate) form: Form,
}

pub(crate) fn piece() -> impl Strategy<Value = Piece> {
    let tag = field(vec(any::<u8>(), 0..300).prop_map(Value::Binary));
    let behind = fields(
        0,
        vec![
            a_ubyte(),
            field(described()),
            a_flag(),
            Just(flag(false)).boxed(),
            a_flag(),
        ],
    );
    (
        any::<bool>(),
        (tag, a_uint(), a_flag()),
        behind,
        vec(any::<u8>(), 0..300),
        form(),
    )
        .prop_map(
            |(repeats_id, (tag, message_format, settled), behind_more, payload, form)| Piece {
                repeats_id,
                before_more: vec![tag, message_format, settled],
                behind_more,
                payload,
                form,
            },
        )
}

#[derive(Clone, Debug)]
pub(crate) enum Said {
    /// A link's flow, of its receiver or of its sender: delivery-count and what follows it.
    Flow {
        by_receiver: bool,
        tail: Vec<Vec<u8>>,
        form: Form,
    },
    /// A flow of the session alone.
    SessionFlow { by: End, echo: bool },
    /// A delivery in one or more frames; the last may abort it.
    Delivery { pieces: Vec<Piece>, is_aborted: bool },
    /// A disposition of one end for some of the deliveries so far.
    Disposition {
        by_receiver: bool,
        from: prop::sample::Index,
        count: usize,
        tail: Vec<Vec<u8>>,
        form: Form,
    },
}

pub(crate) fn said() -> impl Strategy<Value = Said> {
    let flow = fields(0, vec![a_uint(), a_uint(), a_uint(), a_flag(), a_flag(), a_map()]);
    let disposition = fields(0, vec![a_flag(), field(described()), a_flag()]);
    prop_oneof![
        3 => (any::<bool>(), flow, form())
            .prop_map(|(by_receiver, tail, form)| Said::Flow { by_receiver, tail, form }),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(by_hub, echo)| Said::SessionFlow {
            by: if by_hub { End::Hub } else { End::Device },
            echo,
        }),
        4 => (vec(piece(), 1..4), any::<bool>())
            .prop_map(|(pieces, is_aborted)| Said::Delivery { pieces, is_aborted }),
        3 => (any::<bool>(), any::<prop::sample::Index>(), 1..4usize, disposition, form())
            .prop_map(|(by_receiver, from, count, tail, form)| Said::Disposition {
                by_receiver, from, count, tail, form,
            }),
    ]
}

pub(crate) fn a_side() -> impl Strategy<Value = Side> {
    let first = prop_oneof![Just(0), Just(0xffff_fffe), any::<u32>()];
    (0..100u16, first).prop_map(|(channel, first_transfer)| Side {
        channel,
        first_transfer,
        ..Side::default()
    })
}

/// A piece whose head fits a small frame, with more payload than does.
pub(crate) fn large_piece() -> impl Strategy<Value = Piece> {
    let state = "[a-z]{0,60}".prop_map(|text| {
        let fields = vec![Value::Binary(text.into_bytes()), Value::Null];
        Value::Described(Box::new(Value::Ulong(0x34)), Box::new(Value::List(fields)))
    });
    let tag = field(vec(any::<u8>(), 0..40).prop_map(Value::Binary));
    let behind = fields(
        0,
        vec![
            a_ubyte(),
            field(state),
            a_flag(),
            Just(flag(false)).boxed(),
            a_flag(),
        ],
    );
    (piece(), tag, behind, vec(any::<u8>(), 0..2500)).prop_map(|(mut piece, tag, behind_more, payload)| {
        if let Some(slot) = piece.before_more.first_mut() {
            *slot = tag;
        }
        // Unknown fields are of any size.
        piece.behind_more = behind_more.into_iter().take(5).collect();
        piece.payload = payload;
        piece
    })
}
