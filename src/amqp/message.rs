//! A message and its sections (AMQP 1.0 part 3, §3.2), for links that end inside the router. What is routed through
//! is never read.
//!
//! Bodies carry tokens: nothing here shows them, `Debug` neither.

use std::fmt;

use super::DecodeError;
use super::fields::{Fields, Kind};
use super::reader::Reader;
use super::value::Value;
use super::writer::Writer;

/// Descriptors of the sections, in the order in which they appear.
mod section {
    pub(super) const HEADER: u8 = 0x70;
    pub(super) const DELIVERY_ANNOTATIONS: u8 = 0x71;
    pub(super) const MESSAGE_ANNOTATIONS: u8 = 0x72;
    pub(super) const PROPERTIES: u8 = 0x73;
    pub(super) const APPLICATION_PROPERTIES: u8 = 0x74;
    pub(super) const DATA: u8 = 0x75;
    pub(super) const AMQP_SEQUENCE: u8 = 0x76;
    pub(super) const AMQP_VALUE: u8 = 0x77;
    pub(super) const FOOTER: u8 = 0x78;
}

/// A whole message.
#[derive(Clone, Default, PartialEq)]
pub struct Message {
    /// `header`
    pub header: Option<Header>,
    /// `delivery-annotations`, in the order of the wire.
    pub delivery_annotations: Vec<(Value, Value)>,
    /// `message-annotations`
    pub message_annotations: Vec<(Value, Value)>,
    /// `properties`
    pub properties: Properties,
    /// `application-properties`
    pub application_properties: Vec<(Value, Value)>,
    /// The body.
    pub body: Body,
    /// `footer`
    pub footer: Vec<(Value, Value)>,
}

/// The `header` section (§3.2.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// `durable`
    pub durable: Option<bool>,
    /// `priority`
    pub priority: Option<u8>,
    /// `ttl` in milliseconds
    pub ttl: Option<u32>,
    /// `first-acquirer`
    pub first_acquirer: Option<bool>,
    /// `delivery-count`
    pub delivery_count: Option<u32>,
}

/// The `properties` section (§3.2.4).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Properties {
    /// `message-id`: a ulong, uuid, binary or string. Peers differ, and want their own type back.
    pub message_id: Option<Value>,
    /// `user-id`
    pub user_id: Option<Vec<u8>>,
    /// `to`
    pub to: Option<String>,
    /// `subject`
    pub subject: Option<String>,
    /// `reply-to`
    pub reply_to: Option<String>,
    /// `correlation-id`: of the types of `message_id`.
    pub correlation_id: Option<Value>,
    /// `content-type`
    pub content_type: Option<String>,
    /// `content-encoding`
    pub content_encoding: Option<String>,
    /// `absolute-expiry-time`
    pub absolute_expiry_time: Option<i64>,
    /// `creation-time`
    pub creation_time: Option<i64>,
    /// `group-id`
    pub group_id: Option<String>,
    /// `group-sequence`
    pub group_sequence: Option<u32>,
    /// `reply-to-group-id`
    pub reply_to_group_id: Option<String>,
}

/// The body (§3.2.6 to §3.2.8).
#[derive(Clone, Default, PartialEq)]
pub enum Body {
    /// No section at all, which the specification does not allow and peers send.
    #[default]
    Empty,
    /// One or more `data` sections.
    Data(Vec<Vec<u8>>),
    /// One or more `amqp-sequence` sections.
    Sequence(Vec<Vec<Value>>),
    /// An `amqp-value`.
    Value(Value),
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::new();
        self.encode(&mut bytes);
        write!(f, "Message({} bytes)", bytes.len())
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Body::Empty => f.write_str("Empty"),
            Body::Data(parts) => write!(f, "Data({} bytes)", parts.iter().map(Vec::len).sum::<usize>()),
            Body::Sequence(parts) => write!(
                f,
                "Sequence({} values)",
                parts.iter().map(Vec::len).sum::<usize>()
            ),
            Body::Value(_) => f.write_str("Value(..)"),
        }
    }
}

impl Message {
    /// An application property by its name.
    pub fn application_property(&self, name: &str) -> Option<&Value> {
        let found = self
            .application_properties
            .iter()
            .find(|(key, _)| key.as_text() == Some(name));
        found.map(|(_, value)| value)
    }

    /// Reads the payload of a delivery.
    ///
    /// # Errors
    /// It is not a sequence of well-formed sections in the order of the specification.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let mut message = Message::default();
        let mut reader = Reader::new(payload);
        let mut last = 0;
        while !reader.is_empty() {
            let mut lookahead = reader;
            let descriptor = section_descriptor(&mut lookahead)?;
            let is_repeated = descriptor == last;
            if descriptor < last
                || (is_repeated && !matches!(descriptor, section::DATA | section::AMQP_SEQUENCE))
            {
                return Err(DecodeError::Descriptor);
            }
            match descriptor {
                section::HEADER => message.header = Some(header(reader.composite()?.1)?),
                section::PROPERTIES => message.properties = properties(reader.composite()?.1)?,
                _ => {
                    message.add_section(descriptor, Value::read(&mut lookahead)?)?;
                    reader = lookahead;
                }
            }
            last = descriptor;
        }
        Ok(message)
    }

    fn add_section(&mut self, descriptor: u8, content: Value) -> Result<(), DecodeError> {
        match (descriptor, content) {
            (section::DELIVERY_ANNOTATIONS, Value::Map(entries)) => self.delivery_annotations = entries,
            (section::MESSAGE_ANNOTATIONS, Value::Map(entries)) => self.message_annotations = entries,
            (section::APPLICATION_PROPERTIES, Value::Map(entries)) => self.application_properties = entries,
            (section::FOOTER, Value::Map(entries)) => self.footer = entries,
            (section::DATA, Value::Binary(bytes)) => match &mut self.body {
                Body::Data(parts) => parts.push(bytes),
                body @ Body::Empty => *body = Body::Data(vec![bytes]),
                Body::Sequence(_) | Body::Value(_) => return Err(DecodeError::Descriptor),
            },
            (section::AMQP_SEQUENCE, Value::List(values)) => match &mut self.body {
                Body::Sequence(parts) => parts.push(values),
                body @ Body::Empty => *body = Body::Sequence(vec![values]),
                Body::Data(_) | Body::Value(_) => return Err(DecodeError::Descriptor),
            },
            (section::AMQP_VALUE, value) => match &mut self.body {
                body @ Body::Empty => *body = Body::Value(value),
                Body::Data(_) | Body::Sequence(_) | Body::Value(_) => return Err(DecodeError::Descriptor),
            },
            _ => return Err(DecodeError::Descriptor),
        }
        Ok(())
    }

    /// Appends the message; sections that hold nothing are left out.
    pub fn encode(&self, out: &mut Vec<u8>) {
        if let Some(header) = self.header {
            header.encode(out);
        }
        encode_map(section::DELIVERY_ANNOTATIONS, &self.delivery_annotations, out);
        encode_map(section::MESSAGE_ANNOTATIONS, &self.message_annotations, out);
        if self.properties != Properties::default() {
            self.properties.encode(out);
        }
        encode_map(section::APPLICATION_PROPERTIES, &self.application_properties, out);
        match &self.body {
            Body::Empty => {}
            Body::Data(parts) => {
                for part in parts {
                    Writer::new(out).descriptor(section::DATA);
                    Writer::new(out).binary(part);
                }
            }
            Body::Sequence(parts) => {
                for part in parts {
                    Writer::new(out).descriptor(section::AMQP_SEQUENCE);
                    Value::List(part.clone()).encode(out);
                }
            }
            Body::Value(value) => {
                Writer::new(out).descriptor(section::AMQP_VALUE);
                value.encode(out);
            }
        }
        encode_map(section::FOOTER, &self.footer, out);
    }
}

fn section_descriptor(reader: &mut Reader<'_>) -> Result<u8, DecodeError> {
    match reader.byte()? {
        super::codes::format::DESCRIBED => {}
        found => {
            return Err(DecodeError::WrongType {
                expected: "a section",
                found,
            });
        }
    }
    match u8::try_from(reader.descriptor()?) {
        Ok(descriptor @ section::HEADER..=section::FOOTER) => Ok(descriptor),
        _ => Err(DecodeError::Descriptor),
    }
}

fn header(mut fields: Fields<'_>) -> Result<Header, DecodeError> {
    let header = Header {
        durable: fields.boolean()?,
        priority: fields.ubyte()?,
        ttl: fields.uint()?,
        first_acquirer: fields.boolean()?,
        delivery_count: fields.uint()?,
    };
    fields.end()?;
    Ok(header)
}

fn properties(mut fields: Fields<'_>) -> Result<Properties, DecodeError> {
    let properties = Properties {
        message_id: any(&mut fields)?,
        user_id: fields.binary()?.map(<[u8]>::to_vec),
        to: owned(fields.string())?,
        subject: owned(fields.string())?,
        reply_to: owned(fields.string())?,
        correlation_id: any(&mut fields)?,
        content_type: owned(fields.symbol())?,
        content_encoding: owned(fields.symbol())?,
        absolute_expiry_time: timestamp(&mut fields)?,
        creation_time: timestamp(&mut fields)?,
        group_id: owned(fields.string())?,
        group_sequence: fields.uint()?,
        reply_to_group_id: owned(fields.string())?,
    };
    fields.end()?;
    Ok(properties)
}

fn owned(text: Result<Option<&str>, DecodeError>) -> Result<Option<String>, DecodeError> {
    Ok(text?.map(str::to_owned))
}

fn any(fields: &mut Fields<'_>) -> Result<Option<Value>, DecodeError> {
    fields.raw(Kind::Any)?.map(Value::decode).transpose()
}

fn timestamp(fields: &mut Fields<'_>) -> Result<Option<i64>, DecodeError> {
    let Some(encoded) = fields.raw(Kind::Any)? else {
        return Ok(None);
    };
    match Value::decode(encoded)? {
        Value::Timestamp(milliseconds) => Ok(Some(milliseconds)),
        _ => {
            let found = Reader::new(encoded).peek_code()?;
            Err(DecodeError::WrongType {
                expected: "a timestamp",
                found,
            })
        }
    }
}

impl Header {
    fn encode(self, out: &mut Vec<u8>) {
        Writer::new(out).composite(section::HEADER, 5, |f| {
            f.optional(self.durable, Writer::boolean);
            f.optional(self.priority, Writer::ubyte);
            f.optional(self.ttl, Writer::uint);
            f.optional(self.first_acquirer, Writer::boolean);
            f.optional(self.delivery_count, Writer::uint);
        });
    }
}

impl Properties {
    fn encode(&self, out: &mut Vec<u8>) {
        Writer::new(out).composite(section::PROPERTIES, 13, |f| {
            f.optional(self.message_id.as_ref(), value);
            f.optional(self.user_id.as_deref(), Writer::binary);
            f.optional(self.to.as_deref(), Writer::string);
            f.optional(self.subject.as_deref(), Writer::string);
            f.optional(self.reply_to.as_deref(), Writer::string);
            f.optional(self.correlation_id.as_ref(), value);
            f.optional(self.content_type.as_deref(), Writer::symbol);
            f.optional(self.content_encoding.as_deref(), Writer::symbol);
            f.optional(self.absolute_expiry_time.map(Value::Timestamp).as_ref(), value);
            f.optional(self.creation_time.map(Value::Timestamp).as_ref(), value);
            f.optional(self.group_id.as_deref(), Writer::string);
            f.optional(self.group_sequence, Writer::uint);
            f.optional(self.reply_to_group_id.as_deref(), Writer::string);
        });
    }
}

fn value(out: &mut Writer<'_>, value: &Value) {
    let mut bytes = Vec::new();
    value.encode(&mut bytes);
    out.raw(&bytes);
}

fn encode_map(descriptor: u8, entries: &[(Value, Value)], out: &mut Vec<u8>) {
    if !entries.is_empty() {
        Writer::new(out).descriptor(descriptor);
        Value::Map(entries.to_vec()).encode(out);
    }
}
