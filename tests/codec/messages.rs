//! Messages: of other stacks, of any content, and broken ones.

use linkrouterd::amqp::DecodeError;
use linkrouterd::amqp::frame::Frame;
use linkrouterd::amqp::message::{Body, Header, Message, Properties};
use linkrouterd::amqp::performative::Performative;
use linkrouterd::amqp::value::Value;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::golden::recorded_bytes;
use crate::values::value;

fn encoded(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    bytes
}

/// The messages that came in a single frame.
fn recorded_messages() -> Vec<Message> {
    let mut messages = Vec::new();
    for bytes in recorded_bytes() {
        let frame = Frame::parse(&bytes).unwrap();
        if let Ok(Performative::Transfer(transfer)) = Performative::parse(frame.body)
            && !transfer.more
            && transfer.payload.starts_with(&[0x00, 0x53])
        {
            messages.push(Message::decode(transfer.payload).unwrap());
        }
    }
    messages
}

#[test]
fn messages_of_other_stacks_are_read() {
    let messages = recorded_messages();
    let has = |wanted: &dyn Fn(&Message) -> bool| messages.iter().any(wanted);
    assert!(has(
        &|message| message.body == Body::Value(Value::String("fire and forget".into()))
    ));
    assert!(has(&|message| message.body
        == Body::Data(vec![b"command".to_vec()])
        && message.properties.message_id == Some(Value::Ulong(7))
        && message.properties.to.as_deref()
            == Some("/devices/dev1/messages/devicebound")));
    assert!(has(&|message| message
        .application_property("secret")
        .is_some_and(|value| {
            value.as_text() == Some("SharedAccessSignature sig=zzz")
        })));
    assert!(has(
        &|message| message.properties.message_id == Some(Value::String("m1".into()))
    ));
    for message in messages {
        assert_eq!(Message::decode(&encoded(&message)), Ok(message));
    }
}

#[test]
fn a_message_does_not_show_itself() {
    let message = Message {
        body: Body::Value(Value::String("SharedAccessSignature".into())),
        ..Message::default()
    };
    assert_eq!(
        format!("{message:?} {:?}", message.body),
        "Message(26 bytes) Value(..)"
    );
    assert_eq!(
        format!("{:?}", Body::Data(vec![vec![1, 2], vec![3]])),
        "Data(3 bytes)"
    );
}

#[test]
fn what_is_no_message_is_refused() {
    let value = [0x00, 0x53, 0x77, 0x40];
    let data = [0x00, 0x53, 0x75, 0xa0, 0x00];
    let annotations = [0x00, 0x53, 0x72, 0xc1, 0x01, 0x00];
    for (payload, expected) in [
        ([&value[..], &value].concat(), DecodeError::Descriptor),
        ([&value[..], &data].concat(), DecodeError::Descriptor),
        ([&data[..], &value].concat(), DecodeError::Descriptor),
        ([&data[..], &annotations].concat(), DecodeError::Descriptor),
        ([&annotations[..], &annotations].concat(), DecodeError::Descriptor),
        (vec![0x00, 0x53, 0x72, 0x45], DecodeError::Descriptor),
        (vec![0x00, 0x53, 0x14, 0x45], DecodeError::Descriptor),
        (vec![0x00, 0x53, 0x75, 0xa0, 0x02, 0x00], DecodeError::Truncated),
        (
            vec![0x00, 0x53, 0x73, 0xc0, 0x0f, 0x0e]
                .into_iter()
                .chain([0x40; 14])
                .collect(),
            DecodeError::TooManyFields,
        ),
    ] {
        assert_eq!(Message::decode(&payload), Err(expected), "{payload:02x?}");
    }
    assert_eq!(Message::decode(&[]), Ok(Message::default()));
    let parts = Message::decode(&[data, data].concat()).unwrap();
    assert_eq!(parts.body, Body::Data(vec![vec![], vec![]]));
}

fn entries() -> impl Strategy<Value = Vec<(Value, Value)>> {
    vec(("[a-z:-]{1,20}".prop_map(Value::Symbol), value()), 0..3)
}

fn header() -> impl Strategy<Value = Header> {
    (
        any::<Option<bool>>(),
        any::<Option<u8>>(),
        any::<Option<u32>>(),
        any::<Option<bool>>(),
        any::<Option<u32>>(),
    )
        .prop_map(
            |(durable, priority, ttl, first_acquirer, delivery_count)| Header {
                durable,
                priority,
                ttl,
                first_acquirer,
                delivery_count,
            },
        )
}

fn id() -> impl Strategy<Value = Option<Value>> {
    option::of(prop_oneof![
        any::<u64>().prop_map(Value::Ulong),
        any::<[u8; 16]>().prop_map(Value::Uuid),
        vec(any::<u8>(), 0..20).prop_map(Value::Binary),
        ".{0,20}".prop_map(Value::String),
    ])
}

fn properties() -> impl Strategy<Value = Properties> {
    let text = || option::of(".{0,20}");
    let symbol = || option::of("[ -~]{0,20}");
    let ids = (id(), id(), option::of(vec(any::<u8>(), 0..20)));
    let texts = (text(), text(), text(), text(), text(), symbol(), symbol());
    let numbers = (any::<Option<i64>>(), any::<Option<i64>>(), any::<Option<u32>>());
    (ids, texts, numbers).prop_map(|(ids, texts, numbers)| Properties {
        message_id: ids.0,
        user_id: ids.2,
        to: texts.0,
        subject: texts.1,
        reply_to: texts.2,
        correlation_id: ids.1,
        content_type: texts.5,
        content_encoding: texts.6,
        absolute_expiry_time: numbers.0,
        creation_time: numbers.1,
        group_id: texts.3,
        group_sequence: numbers.2,
        reply_to_group_id: texts.4,
    })
}

fn body() -> impl Strategy<Value = Body> {
    prop_oneof![
        Just(Body::Empty),
        vec(vec(any::<u8>(), 0..300), 1..3).prop_map(Body::Data),
        vec(vec(value(), 0..3), 1..3).prop_map(Body::Sequence),
        value().prop_map(Body::Value),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_is_written_is_read(
        header in option::of(header()), annotations in [entries(), entries(), entries(), entries()],
        properties in properties(), body in body(),
    ) {
        let [delivery_annotations, message_annotations, application_properties, footer] = annotations;
        let message = Message {
            header, delivery_annotations, message_annotations, properties, application_properties, body, footer,
        };
        prop_assert_eq!(Message::decode(&encoded(&message)).unwrap(), message);
    }

    #[test]
    fn the_reader_is_total(bytes in vec(prop_oneof![Just(0x00), Just(0x53), 0x70..0x79u8, any::<u8>()], 0..60)) {
        if let Ok(message) = Message::decode(&bytes) {
            prop_assert!(Message::decode(&encoded(&message)).is_ok());
        }
    }
}
