//! Frames as trees of values: what a scripted peer says, and what it heard.

use linkrouterd::amqp::frame::{Frame as RawFrame, FrameType, write_frame};
use linkrouterd::amqp::reader::Reader;
use linkrouterd::amqp::serial::Channel;
use linkrouterd::amqp::value::Value;

pub(crate) const OPEN: u64 = 0x10;
pub(crate) const BEGIN: u64 = 0x11;
pub(crate) const ATTACH: u64 = 0x12;
pub(crate) const FLOW: u64 = 0x13;
pub(crate) const TRANSFER: u64 = 0x14;
pub(crate) const DISPOSITION: u64 = 0x15;
pub(crate) const DETACH: u64 = 0x16;
pub(crate) const END: u64 = 0x17;
pub(crate) const CLOSE: u64 = 0x18;
pub(crate) const SASL_MECHANISMS: u64 = 0x40;
pub(crate) const SASL_INIT: u64 = 0x41;
pub(crate) const SASL_OUTCOME: u64 = 0x44;
/// A heartbeat, in [`Frame::code`].
pub(crate) const EMPTY: u64 = 0;

pub(crate) const AMQP_HEADER: [u8; 8] = *b"AMQP\x00\x01\x00\x00";
pub(crate) const SASL_HEADER: [u8; 8] = *b"AMQP\x03\x01\x00\x00";

pub(crate) const ACCEPTED: u64 = 0x24;
pub(crate) const REJECTED: u64 = 0x25;
pub(crate) const RELEASED: u64 = 0x26;
pub(crate) const MODIFIED: u64 = 0x27;

/// One frame: its performative's descriptor and fields, and the payload behind it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frame {
    pub(crate) channel: u16,
    pub(crate) code: u64,
    pub(crate) fields: Vec<Value>,
    pub(crate) payload: Vec<u8>,
    /// Bytes on the wire.
    pub(crate) size: usize,
}

impl Frame {
    pub(crate) fn new(channel: u16, code: u64, fields: Vec<Value>) -> Self {
        Frame {
            channel,
            code,
            fields,
            payload: Vec::new(),
            size: 0,
        }
    }

    pub(crate) fn with_payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let kind = if self.code >= SASL_MECHANISMS {
            FrameType::Sasl
        } else {
            FrameType::Amqp
        };
        write_frame(out, kind, Channel(self.channel), |out| {
            if self.code != EMPTY {
                described(self.code, self.fields.clone()).encode(out);
                out.extend_from_slice(&self.payload);
            }
        });
    }

    /// Reads one whole frame.
    pub(crate) fn decode(bytes: &[u8]) -> Self {
        let raw = RawFrame::parse(bytes).expect("the router wrote a frame");
        let (mut code, mut fields, mut payload) = (EMPTY, Vec::new(), Vec::new());
        if !raw.body.is_empty() {
            let mut reader = Reader::new(raw.body);
            let Ok(Value::Described(descriptor, list)) = Value::read(&mut reader) else {
                panic!("not a performative: {:02x?}", raw.body);
            };
            let (Value::Ulong(descriptor), Value::List(list)) = (*descriptor, *list) else {
                panic!("not a performative: {:02x?}", raw.body);
            };
            (code, fields, payload) = (descriptor, list, reader.rest().to_vec());
        }
        Frame {
            channel: raw.channel.0,
            code,
            fields,
            payload,
            size: bytes.len(),
        }
    }

    pub(crate) fn field(&self, index: usize) -> &Value {
        self.fields.get(index).unwrap_or(&Value::Null)
    }

    /// An unsigned integer field; `None` when it is null.
    pub(crate) fn uint(&self, index: usize) -> Option<u32> {
        match self.field(index) {
            Value::Uint(value) => Some(*value),
            Value::Ushort(value) => Some(u32::from(*value)),
            _ => None,
        }
    }

    /// A boolean field; null is false.
    pub(crate) fn flag(&self, index: usize) -> bool {
        matches!(self.field(index), Value::Boolean(true))
    }

    pub(crate) fn text(&self, index: usize) -> Option<&str> {
        self.field(index).as_text()
    }
}

pub(crate) fn uint(value: u32) -> Value {
    Value::Uint(value)
}

pub(crate) fn string(text: &str) -> Value {
    Value::String(text.into())
}

pub(crate) fn symbol(text: &str) -> Value {
    Value::Symbol(text.into())
}

pub(crate) fn described(code: u64, fields: Vec<Value>) -> Value {
    Value::Described(Box::new(Value::Ulong(code)), Box::new(Value::List(fields)))
}

/// Descriptor and fields of a described list: an error, a delivery state, a terminus.
pub(crate) fn composite(value: &Value) -> Option<(u64, &[Value])> {
    match value {
        Value::Described(descriptor, list) => match (&**descriptor, &**list) {
            (Value::Ulong(code), Value::List(fields)) => Some((*code, fields)),
            _ => None,
        },
        _ => None,
    }
}

/// The descriptor of a delivery state.
pub(crate) fn state_code(value: &Value) -> Option<u64> {
    composite(value).map(|(code, _)| code)
}

/// The condition of an error.
pub(crate) fn condition(error: &Value) -> Option<&str> {
    composite(error)?.1.first()?.as_text()
}

pub(crate) fn error(condition: &str, description: &str, info: Value) -> Value {
    described(0x1d, vec![symbol(condition), string(description), info])
}

/// A terminus with an address alone.
pub(crate) fn terminus(code: u64, address: &str) -> Value {
    described(code, vec![string(address)])
}
