//! Value trees: what is written is read back, in whichever of its encodings it comes.

use linkrouterd::amqp::reader::{MAX_DEPTH, Reader};
use linkrouterd::amqp::value::{Array, MAX_VALUES, Value};
use proptest::collection::vec;
use proptest::prelude::*;

/// Any value of AMQP 1.0 part 1, §1.6; floats that compare equal to themselves.
pub(crate) fn value() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(4, 48, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::List),
            vec((inner.clone(), inner.clone()), 0..4).prop_map(Value::Map),
            vec(vec(inner.clone(), 0..3).prop_map(Value::List), 1..4).prop_map(array),
            (descriptor(), inner)
                .prop_map(|(descriptor, value)| { Value::Described(Box::new(descriptor), Box::new(value)) }),
        ]
    })
}

pub(crate) fn leaf() -> BoxedStrategy<Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Boolean),
        any::<u8>().prop_map(Value::Ubyte),
        any::<u16>().prop_map(Value::Ushort),
        uint().prop_map(Value::Uint),
        prop_oneof![Just(0), 0..300u64, any::<u64>()].prop_map(Value::Ulong),
        any::<i8>().prop_map(Value::Byte),
        any::<i16>().prop_map(Value::Short),
        prop_oneof![-200..200i32, any::<i32>()].prop_map(Value::Int),
        prop_oneof![-200..200i64, any::<i64>()].prop_map(Value::Long),
        proptest::num::f32::ANY
            .prop_filter("not NaN", |float| !float.is_nan())
            .prop_map(Value::Float),
        proptest::num::f64::ANY
            .prop_filter("not NaN", |float| !float.is_nan())
            .prop_map(Value::Double),
        any::<[u8; 4]>().prop_map(Value::Decimal32),
        any::<[u8; 8]>().prop_map(Value::Decimal64),
        any::<[u8; 16]>().prop_map(Value::Decimal128),
        any::<char>().prop_map(Value::Char),
        any::<i64>().prop_map(Value::Timestamp),
        any::<[u8; 16]>().prop_map(Value::Uuid),
        vec(any::<u8>(), 0..300).prop_map(Value::Binary),
        string().prop_map(Value::String),
        symbol().prop_map(Value::Symbol),
        vec(uint().prop_map(Value::Uint), 1..5).prop_map(array),
        vec(symbol().prop_map(Value::Symbol), 1..5).prop_map(array),
        vec(any::<bool>().prop_map(Value::Boolean), 1..5).prop_map(array),
        (descriptor(), vec(any::<i64>().prop_map(Value::Timestamp), 1..5))
            .prop_map(|(descriptor, elements)| Value::Array(Array::new(Some(descriptor), elements).unwrap())),
        symbol().prop_map(|text| Value::Array(Array::empty_like(&Value::Symbol(text)).unwrap())),
    ]
    .boxed()
}

/// Every width of a uint, and the places where the width changes.
pub(crate) fn uint() -> impl Strategy<Value = u32> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(255),
        Just(256),
        Just(u32::MAX),
        0..300u32,
        any::<u32>()
    ]
}

fn string() -> impl Strategy<Value = String> {
    prop_oneof![".{0,40}", "[a-z]{250,260}"]
}

fn symbol() -> impl Strategy<Value = String> {
    prop_oneof!["[ -~]{0,30}", "[a-z:.-]{250,260}"]
}

fn descriptor() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u64>().prop_map(Value::Ulong),
        symbol().prop_map(Value::Symbol)
    ]
}

fn array(elements: Vec<Value>) -> Value {
    Value::Array(Array::new(None, elements).unwrap())
}

pub(crate) fn encoded(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    value.encode(&mut bytes);
    bytes
}

/// Encodes with forms that `wide` picks in turn: an encoder of its own, so that the one under test is not its judge.
pub(crate) fn encode_with(value: &Value, wide: &mut dyn FnMut() -> bool, out: &mut Vec<u8>) {
    match value {
        Value::Boolean(value) if wide() => out.extend([0x56, u8::from(*value)]),
        Value::Uint(value) if wide() => {
            out.push(0x70);
            out.extend(value.to_be_bytes());
        }
        Value::Uint(0) if wide() => out.extend([0x52, 0]),
        Value::Ulong(value) if wide() => {
            out.push(0x80);
            out.extend(value.to_be_bytes());
        }
        Value::Ulong(0) if wide() => out.extend([0x53, 0]),
        Value::Int(value) if wide() => {
            out.push(0x71);
            out.extend(value.to_be_bytes());
        }
        Value::Long(value) if wide() => {
            out.push(0x81);
            out.extend(value.to_be_bytes());
        }
        Value::Binary(bytes) if wide() => wide_variable(0xb0, bytes, out),
        Value::String(text) if wide() => wide_variable(0xb1, text.as_bytes(), out),
        Value::Symbol(text) if wide() => wide_variable(0xb3, text.as_bytes(), out),
        Value::List(values) => {
            let mut body = Vec::new();
            for value in values {
                encode_with(value, wide, &mut body);
            }
            compound([0xc0, 0xd0], values.len(), &body, wide(), out);
        }
        Value::Map(entries) => {
            let mut body = Vec::new();
            for (key, value) in entries {
                encode_with(key, wide, &mut body);
                encode_with(value, wide, &mut body);
            }
            compound([0xc1, 0xd1], entries.len() * 2, &body, wide(), out);
        }
        Value::Described(descriptor, value) => {
            out.push(0);
            encode_with(descriptor, wide, out);
            encode_with(value, wide, out);
        }
        other => other.encode(out),
    }
}

fn wide_variable(code: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(code);
    out.extend((bytes.len() as u32).to_be_bytes());
    out.extend(bytes);
}

pub(crate) fn compound(codes: [u8; 2], count: usize, body: &[u8], wide: bool, out: &mut Vec<u8>) {
    if wide || count > 255 || body.len() > 254 {
        out.push(codes[1]);
        out.extend((body.len() as u32 + 4).to_be_bytes());
        out.extend((count as u32).to_be_bytes());
    } else {
        out.extend([codes[0], body.len() as u8 + 1, count as u8]);
    }
    out.extend(body);
}

/// Answers from a list of choices, again and again.
pub(crate) fn choices(choices: &[bool]) -> impl FnMut() -> bool + '_ {
    let mut next = choices.iter().cycle();
    move || next.next().copied().unwrap_or(false)
}

proptest! {
    #[test]
    fn what_is_written_is_read(value in value()) {
        prop_assert_eq!(Value::decode(&encoded(&value)).unwrap(), value);
    }

    #[test]
    fn every_encoding_is_read(value in value(), wide in vec(any::<bool>(), 1..20)) {
        let mut bytes = Vec::new();
        encode_with(&value, &mut choices(&wide), &mut bytes);
        prop_assert_eq!(Value::decode(&bytes).unwrap(), value);
    }

    #[test]
    fn a_value_is_skipped_whole(value in value(), wide in vec(any::<bool>(), 1..20), behind in vec(any::<u8>(), 0..9)) {
        let mut bytes = Vec::new();
        encode_with(&value, &mut choices(&wide), &mut bytes);
        let length = bytes.len();
        bytes.extend(&behind);
        for skip in [Reader::skip, Reader::skip_checked] {
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(skip(&mut reader).unwrap(), &bytes[..length]);
            prop_assert_eq!(reader.rest(), &behind[..]);
        }
    }

    #[test]
    fn a_value_cut_short_is_refused(value in value(), cut in any::<prop::sample::Index>()) {
        let bytes = encoded(&value);
        let cut = &bytes[..cut.index(bytes.len())];
        prop_assert!(Value::decode(cut).is_err());
        prop_assert!(Reader::new(cut).skip().is_err());
        prop_assert!(Reader::new(cut).skip_checked().is_err());
    }
}

#[test]
fn limits_hold() {
    // An array of four thousand million nulls in ten bytes, and of sixty thousand.
    assert!(Value::decode(&[0xf0, 0, 0, 0, 5, 0xff, 0xff, 0xff, 0xff, 0x40]).is_err());
    // Together with the array itself.
    let nulls = |count: usize| {
        let count = u32::try_from(count).expect("a count").to_be_bytes();
        [&[0xf0, 0, 0, 0, 5], count.as_slice(), &[0x40]].concat()
    };
    assert!(Value::decode(&nulls(MAX_VALUES - 1)).is_ok());
    assert!(Value::decode(&nulls(MAX_VALUES)).is_err());
    let nested = |levels: usize| {
        let mut bytes = vec![0x45];
        for _ in 0..levels {
            let mut outer = Vec::new();
            compound([0xc0, 0xd0], 1, &bytes, true, &mut outer);
            bytes = outer;
        }
        bytes
    };
    let deepest = usize::from(MAX_DEPTH);
    assert!(Value::decode(&nested(deepest - 1)).is_ok());
    assert!(Value::decode(&nested(deepest)).is_err());
    assert!(Reader::new(&nested(deepest - 1)).skip_checked().is_ok());
    assert!(Reader::new(&nested(deepest)).skip_checked().is_err());
}

#[test]
fn an_empty_array_has_a_known_type() {
    for code in 0..=0xff {
        let bytes = [0xe0, 2, 0, code];
        let is_known = Value::decode(&bytes).is_ok();
        assert_eq!(
            Reader::new(&bytes).skip_checked().is_ok(),
            is_known,
            "{code:#04x}"
        );
    }
    assert!(Reader::new(&[0xe0, 2, 0, 0x70]).skip_checked().is_ok());
    assert!(Reader::new(&[0xe0, 2, 0, 0x47]).skip_checked().is_err());
}
