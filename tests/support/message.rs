//! Messages (AMQP 1.0 part 3, §3.2) in the third-party codec's types.

use bytes::Bytes;
use fe2o3_amqp::types::messaging::message::__private::Serializable;
use fe2o3_amqp::types::messaging::message::DecodeIntoMessage;
use fe2o3_amqp::types::messaging::{AmqpValue, ApplicationProperties, Body, Data, Message, Properties};
use fe2o3_amqp::types::primitives::{SimpleValue, Value};
use serde_amqp::read::SliceReader;

use super::Failure;

/// Decodes a whole message.
pub(crate) fn decode(payload: &[u8]) -> Result<Message<Body<Value>>, Failure> {
    Ok(Body::<Value>::decode_message_from_reader(SliceReader::new(
        payload,
    ))?)
}

/// Encodes a message. One that cannot be encoded comes out empty, which no peer takes for a message.
pub(crate) fn encode(message: &Message<Body<Value>>) -> Bytes {
    serde_amqp::to_vec(&Serializable(message))
        .unwrap_or_default()
        .into()
}

/// A message of these properties and this body.
pub(crate) fn with_properties(body: Body<Value>, properties: Properties) -> Message<Body<Value>> {
    Message {
        header: None,
        delivery_annotations: None,
        message_annotations: None,
        properties: Some(properties),
        application_properties: None,
        body,
        footer: None,
    }
}

/// A message of one data section.
pub(crate) fn data(bytes: impl Into<Vec<u8>>) -> Message<Body<Value>> {
    with_properties(
        Body::Data(vec![Data(bytes.into().into())].into()),
        Properties::default(),
    )
}

/// The bytes of a message's data sections, together.
pub(crate) fn body_of(message: &Message<Body<Value>>) -> Vec<u8> {
    match &message.body {
        Body::Data(sections) => sections
            .iter()
            .flat_map(|Data(bytes)| bytes.iter().copied())
            .collect(),
        Body::Value(_) | Body::Sequence(_) | Body::Empty => Vec::new(),
    }
}

/// The text of an amqp-value string body.
pub(crate) fn text_of(message: &Message<Body<Value>>) -> Option<&str> {
    match &message.body {
        Body::Value(AmqpValue(Value::String(text))) => Some(text),
        Body::Value(_) | Body::Data(_) | Body::Sequence(_) | Body::Empty => None,
    }
}

/// An application property.
pub(crate) fn application_property<'a>(
    message: &'a Message<Body<Value>>,
    name: &str,
) -> Option<&'a SimpleValue> {
    let ApplicationProperties(map) = message.application_properties.as_ref()?;
    map.get(name)
}
