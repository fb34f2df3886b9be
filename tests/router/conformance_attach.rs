//! Attach both ways, field by field, against ends that record raw bytes.

use linkrouterd::amqp::value::{Array, Value};

use crate::tap::{
    CONTAINER, DOWN, End, Form, Frame, NULL, Side, Tap, UP, attach, encoded, flag, null, string, symbol, uint,
};
use crate::wire::{self, composite, described, error};
use crate::world::settings;

pub(crate) fn symbols(texts: &[&str]) -> Value {
    let symbols = texts.iter().map(|text| wire::symbol(text)).collect();
    Value::Array(Array::new(None, symbols).expect("symbols"))
}

pub(crate) fn map(entries: &[(&str, Value)]) -> Value {
    Value::Map(
        entries
            .iter()
            .map(|(key, value)| (wire::symbol(key), value.clone()))
            .collect(),
    )
}

/// A source with every field, among them descriptors that this router does not know.
fn source(address: &str) -> Value {
    let selector = Value::Described(
        Box::new(wire::symbol("apache.org:selector-filter:string")),
        Box::new(wire::string("colour = 'red'")),
    );
    let own = Value::Described(
        Box::new(Value::Ulong(0x0000_4711_0000_0001)),
        Box::new(Value::Uuid([7; 16])),
    );
    described(
        0x28,
        vec![
            wire::string(address),
            wire::uint(2),
            wire::symbol("never"),
            wire::uint(77),
            Value::Boolean(false),
            map(&[("p", Value::Int(1))]),
            wire::symbol("move"),
            map(&[("selector", selector), ("own", own)]),
            described(wire::MODIFIED, vec![Value::Boolean(true), Value::Boolean(true)]),
            symbols(&["amqp:accepted:list", "amqp:rejected:list"]),
            symbols(&["queue", "shared"]),
        ],
    )
}

fn target(address: &str) -> Value {
    described(
        0x29,
        vec![
            wire::string(address),
            wire::uint(1),
            wire::symbol("link-detach"),
            wire::uint(5),
            Value::Boolean(false),
            map(&[("lifetime-policy", described(0x2b, vec![]))]),
            symbols(&["topic"]),
        ],
    )
}

/// Every field from snd-settle-mode on, none at its default.
fn everything(source: Value, target: Value) -> Vec<Vec<u8>> {
    let unsettled = Value::Map(vec![
        (
            Value::Binary(b"tag-1".to_vec()),
            described(0x23, vec![wire::uint(1), Value::Ulong(9)]),
        ),
        (Value::Binary(vec![0; 36]), Value::Null),
    ]);
    [
        Value::Ubyte(0),
        Value::Ubyte(1),
        source,
        target,
        unsettled,
        Value::Boolean(true),
        wire::uint(42),
        Value::Ulong(9999),
        symbols(&["offered", "also-offered"]),
        wire::symbol("desired"),
        map(&[
            ("com.microsoft:client-version", wire::string("x/1.0")),
            ("com.microsoft:epoch", Value::Long(3)),
            (
                "nested",
                Value::List(vec![Value::Null, map(&[("deep", Value::Double(0.5))])]),
            ),
        ]),
    ]
    .iter()
    .map(encoded)
    .collect()
}

/// A link of the device with these fields, and the hub's answer with those: what each end heard.
fn exchange(device_sends: bool, request: &[Vec<u8>], answer: &[Vec<u8>]) -> (Frame, Frame) {
    let mut tap = Tap::new(settings(), Side::default(), Side::default());
    let mut fields = vec![string("L1"), uint(7), flag(!device_sends)];
    fields.extend(request.iter().cloned());
    let at_hub = tap.attach(&Frame::new(0, wire::ATTACH, fields), Form::default());
    let mut fields = vec![at_hub.raw(0).to_vec(), uint(3), flag(device_sends)];
    fields.extend(answer.iter().cloned());
    tap.say(End::Hub, &Frame::new(0, wire::ATTACH, fields));
    (at_hub, tap.hear_one(End::Device))
}

pub(crate) const ADDRESS: &str = "devices/d1";

#[test]
fn every_field_of_an_attach_and_of_its_answer_arrives_byte_for_byte() {
    for device_sends in [true, false] {
        let request = everything(source(ADDRESS), target(ADDRESS));
        let mut answer = everything(source("renamed"), target("renamed"));
        // Other values than those asked for.
        for (place, value) in [
            (0, Value::Ubyte(1)),
            (1, Value::Ubyte(0)),
            (6, wire::uint(u32::MAX)),
        ] {
            *answer.get_mut(place).expect("a field") = encoded(&value);
        }
        let (at_hub, at_device) = exchange(device_sends, &request, &answer);
        assert_eq!(at_hub.text(0).as_deref(), Some("L1@dev"));
        assert_eq!((at_hub.uint(1), at_hub.flag(2)), (Some(0), !device_sends));
        assert_eq!(at_hub.tail(3), request);
        assert_eq!(at_device.text(0).as_deref(), Some("L1"));
        assert_eq!((at_device.uint(1), at_device.flag(2)), (Some(0), device_sends));
        assert_eq!(at_device.tail(3), answer);
    }
}

/// The fields of an attach that has only some of them; the place is counted from snd-settle-mode.
pub(crate) fn only(fields: &[(usize, Value)]) -> Vec<Vec<u8>> {
    let mut tail = vec![null(); 11];
    let termini = [(2, source(ADDRESS)), (3, target(ADDRESS))];
    for (place, value) in termini.iter().chain(fields) {
        *tail.get_mut(*place).expect("a field") = encoded(value);
    }
    tail
}

fn goes_both_ways(fields: &[(usize, Value)]) {
    let said = only(fields);
    for device_sends in [true, false] {
        let (at_hub, at_device) = exchange(device_sends, &said, &said);
        for (place, value) in fields {
            assert_eq!(at_hub.value(place + 3), *value);
            assert_eq!(at_device.value(place + 3), *value);
        }
        assert_eq!(
            (at_hub.tail(3), at_device.tail(3)),
            (said.as_slice(), said.as_slice())
        );
    }
}

#[test]
fn d2_settle_modes_reach_the_other_side() {
    for (snd, rcv) in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)] {
        goes_both_ways(&[(0, Value::Ubyte(snd)), (1, Value::Ubyte(rcv))]);
    }
}

#[test]
fn d3_properties_capabilities_and_max_message_size_reach_the_other_side() {
    goes_both_ways(&[(10, map(&[("com.microsoft:timeout", wire::uint(30_000))]))]);
    goes_both_ways(&[(8, symbols(&["a", "b"])), (9, wire::symbol("c"))]);
    goes_both_ways(&[(7, Value::Ulong(256 * 1024))]);
}

#[test]
fn d4_unsettled_map_default_outcome_and_initial_delivery_count_reach_the_other_side() {
    let states = [
        Value::Null,
        described(0x23, vec![wire::uint(0), Value::Ulong(u64::MAX)]),
        described(
            0x34,
            vec![Value::Binary(b"txn".to_vec()), described(wire::ACCEPTED, vec![])],
        ),
        Value::Described(Box::new(wire::symbol("private:state")), Box::new(Value::Uint(1))),
    ];
    let entries = states.iter().enumerate().map(|(number, state)| {
        let tag = vec![u8::try_from(number).expect("few"); 8 * number];
        (Value::Binary(tag), state.clone())
    });
    goes_both_ways(&[(4, Value::Map(entries.collect())), (5, Value::Boolean(true))]);
    goes_both_ways(&[(4, Value::Map(vec![])), (5, Value::Boolean(false))]);
    for count in [0, 1, u32::MAX] {
        goes_both_ways(&[(6, wire::uint(count))]);
    }
    // The default-outcome is in the source that all of these have.
    let (at_hub, at_device) = exchange(false, &only(&[]), &only(&[]));
    for attach in [at_hub, at_device] {
        let source = attach.value(5);
        let (_, fields) = composite(&source).expect("a source");
        let outcome = described(wire::MODIFIED, vec![Value::Boolean(true), Value::Boolean(true)]);
        assert_eq!(fields.get(8), Some(&outcome));
    }
}

#[test]
fn absent_fields_stay_absent_and_nulls_stay_null() {
    let target = encoded(&target(ADDRESS));
    for request in [
        vec![null(), null(), NULL.to_vec(), target.clone()],
        vec![
            null(),
            null(),
            encoded(&described(0x28, vec![])),
            target.clone(),
            null(),
        ],
        vec![
            null(),
            null(),
            null(),
            target.clone(),
            null(),
            null(),
            null(),
            null(),
            null(),
            null(),
            null(),
        ],
    ] {
        for answer in [vec![], vec![null()], request.clone()] {
            let (at_hub, at_device) = exchange(true, &request, &answer);
            assert_eq!(
                (at_hub.tail(3), at_device.tail(3)),
                (request.as_slice(), answer.as_slice())
            );
        }
    }
}

#[test]
fn a_terminus_of_an_unknown_type_and_unknown_fields_are_carried() {
    let unknown = Value::Described(Box::new(wire::symbol("private:terminus")), Box::new(map(&[])));
    let mut request = only(&[(2, unknown)]);
    request.extend([string("a field of the future"), null()]);
    let (at_hub, at_device) = exchange(true, &request, &request);
    assert_eq!(
        (at_hub.tail(3), at_device.tail(3)),
        (request.as_slice(), request.as_slice())
    );
}

#[test]
fn d16_a_refusal_of_the_hub_keeps_its_null_terminus() {
    for device_sends in [true, false] {
        let mut tap = Tap::new(settings(), Side::default(), Side::default());
        let heard = tap.attach(&attach("L", 0, device_sends), Form::default());
        let mut fields = heard.fields.clone();
        fields.resize(14, null());
        let refused = if device_sends { 6 } else { 5 };
        *fields.get_mut(refused).expect("a terminus") = null();
        *fields.get_mut(1).expect("a handle") = uint(4);
        *fields.get_mut(2).expect("a role") = flag(device_sends);
        tap.say(End::Hub, &Frame::new(0, wire::ATTACH, fields.clone()));
        let answer = tap.hear_one(End::Device);
        assert_eq!(
            (answer.raw(refused), answer.tail(3)),
            (NULL, fields.get(3..).expect("a tail"))
        );
        let why = encoded(&error(
            "amqp:not-found",
            "no such device",
            map(&[("id", Value::Ulong(1))]),
        ));
        tap.say(
            End::Hub,
            &Frame::new(0, wire::DETACH, vec![uint(4), flag(true), why.clone()]),
        );
        let detach = tap.hear_one(End::Device);
        assert_eq!(
            (detach.code, detach.tail(1)),
            (wire::DETACH, [flag(true), why].as_slice())
        );
    }
}

#[test]
fn d26_addresses_that_only_look_like_urls_are_matched_as_they_are_written() {
    for address in [
        "//devices/d1",
        "devices/d:/x",
        "devices:/x",
        "devices//d1",
        "devices/a://b/c",
    ] {
        let mut tap = Tap::new(settings(), Side::default(), Side::default());
        let mut attach = attach("L", 0, true);
        *attach.fields.get_mut(6).expect("a target") = encoded(&wire::terminus(0x29, address));
        // One of them has the token `devices:`, which is another.
        if address == "devices:/x" {
            tap.say(End::Device, &attach);
            let heard = tap.hear(End::Device);
            assert_eq!(
                heard.iter().map(|f| f.code).collect::<Vec<_>>(),
                [wire::ATTACH, wire::DETACH]
            );
            continue;
        }
        let heard = tap.attach(&attach, Form::default());
        assert_eq!(heard.raw(6), encoded(&wire::terminus(0x29, address)), "{address}");
    }
}

// ---- link names --------------------------------------------------------------------------------------------------

#[test]
fn link_names_are_name_at_container_and_the_device_sees_its_own() {
    let mut tap = Tap::new(settings(), Side::default(), Side::default());
    // The same name in the other role is another link (AMQP 1.0 part 2, §2.6.1): no number is needed.
    for (link, device_sends) in [(UP, true), (DOWN, false)] {
        for (number, name) in (0..).zip(["", "x@y#2", "n\u{e4}me"]) {
            let handle = link + 2 * number;
            let heard = tap.attach(&attach(name, handle, device_sends), Form::default());
            assert_eq!(heard.text(0), Some(format!("{name}@{CONTAINER}")));
            tap.answer(&heard, handle + 100);
            assert_eq!(tap.hear_one(End::Device).text(0).as_deref(), Some(name));
        }
    }
}

#[test]
fn a_name_still_in_use_at_the_hub_gets_a_number_and_the_device_its_own_back() {
    let mut tap = Tap::new(settings(), Side::default(), Side::default());
    let heard = tap.attach(&attach("L", 0, true), Form::default());
    tap.answer(&heard, 0);
    tap.hear_one(End::Device);
    // A second session of the device: there the name is free, at the hub it is not.
    let begin = vec![null(), uint(0), uint(1000), uint(1000)];
    tap.say(End::Device, &Frame::new(1, wire::BEGIN, begin));
    tap.hear_one(End::Device);
    let mut second = attach("L", 0, true);
    second.channel = 1;
    tap.say(End::Device, &second);
    let heard = tap.hear(End::Hub);
    let names: Vec<_> = heard
        .iter()
        .filter(|f| f.code == wire::ATTACH)
        .map(|f| f.text(0))
        .collect();
    assert_eq!(names, [Some("L@dev#2".to_owned())]);
}

#[test]
fn symbolic_descriptors_and_long_lists_are_understood() {
    use crate::tap::Descriptor;
    for descriptor in [Descriptor::SmallUlong, Descriptor::Ulong, Descriptor::Symbol] {
        for is_wide in [true, false] {
            let mut tap = Tap::new(settings(), Side::default(), Side::default());
            let said = attach("L", 0, true);
            let heard = tap.attach(&said, Form { is_wide, descriptor });
            assert_eq!(heard.tail(3), said.tail(3));
        }
    }
    assert_eq!(symbol("x"), [0xa3, 1, b'x']);
}
