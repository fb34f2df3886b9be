//! Error conditions, and the `error` type (AMQP 1.0 part 2, §2.8.14 to §2.8.18).

use super::DecodeError;
use super::codes::descriptor;
use super::fields::{Fields, Kind};
use super::reader::Reader;
use super::writer::Writer;

/// `amqp:connection:forced`
pub const CONNECTION_FORCED: &str = "amqp:connection:forced";
/// `amqp:connection:framing-error`
pub const FRAMING_ERROR: &str = "amqp:connection:framing-error";
/// `amqp:connection:policy-error`
pub const POLICY_ERROR: &str = "amqp:connection:policy-error";
/// `amqp:decode-error`
pub const DECODE_ERROR: &str = "amqp:decode-error";
/// `amqp:frame-size-too-small`: the smallest form of what is to be said is larger than the peer's frames.
pub const FRAME_SIZE_TOO_SMALL: &str = "amqp:frame-size-too-small";
/// `amqp:internal-error`
pub const INTERNAL_ERROR: &str = "amqp:internal-error";
/// `amqp:invalid-field`
pub const INVALID_FIELD: &str = "amqp:invalid-field";
/// `amqp:link:detach-forced`
pub const DETACH_FORCED: &str = "amqp:link:detach-forced";
/// `amqp:link:message-size-exceeded`
pub const MESSAGE_SIZE_EXCEEDED: &str = "amqp:link:message-size-exceeded";
/// `amqp:link:stolen`
pub const LINK_STOLEN: &str = "amqp:link:stolen";
/// More deliveries than there was credit for.
pub const TRANSFER_LIMIT_EXCEEDED: &str = "amqp:link:transfer-limit-exceeded";
/// `amqp:not-allowed`
pub const NOT_ALLOWED: &str = "amqp:not-allowed";
/// `amqp:not-found`
pub const NOT_FOUND: &str = "amqp:not-found";
/// `amqp:not-implemented`
pub const NOT_IMPLEMENTED: &str = "amqp:not-implemented";
/// `amqp:precondition-failed`
pub const PRECONDITION_FAILED: &str = "amqp:precondition-failed";
/// `amqp:resource-limit-exceeded`
pub const RESOURCE_LIMIT_EXCEEDED: &str = "amqp:resource-limit-exceeded";
/// `amqp:session:errant-link`
pub const ERRANT_LINK: &str = "amqp:session:errant-link";
/// `amqp:session:handle-in-use`
pub const HANDLE_IN_USE: &str = "amqp:session:handle-in-use";
/// `amqp:session:unattached-handle`
pub const UNATTACHED_HANDLE: &str = "amqp:session:unattached-handle";
/// `amqp:session:window-violation`
pub const WINDOW_VIOLATION: &str = "amqp:session:window-violation";
/// `amqp:unauthorized-access`
pub const UNAUTHORIZED_ACCESS: &str = "amqp:unauthorized-access";
/// qdrouterd 1.19: a route has no live connection.
pub const QD_NO_ROUTE: &str = "qd:no-route-to-dest";
/// qdrouterd 1.19: `allowResumableLinkRoute: no`, and a terminus that is to outlive its connection.
pub const QD_LINK_EXPIRATION: &str = "qd:link-expiration";
/// qdrouterd 1.19: the connection behind a routed link is gone.
pub const QD_LINK_LOST: &str = "qd:routed-link-lost";

/// An `error` as received, for log lines; what is carried stays encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorView<'a> {
    /// `condition`
    pub condition: &'a str,
    /// `description`
    pub description: Option<&'a str>,
}

impl<'a> ErrorView<'a> {
    /// Reads an encoded `error`.
    pub fn parse(encoded: &'a [u8]) -> Result<Self, DecodeError> {
        let (code, mut fields) = Reader::new(encoded).composite()?;
        if code != descriptor::ERROR {
            return Err(DecodeError::Descriptor);
        }
        Self::parse_fields(&mut fields)
    }

    fn parse_fields(fields: &mut Fields<'a>) -> Result<Self, DecodeError> {
        let condition = fields.symbol()?.ok_or(DecodeError::Missing("condition"))?;
        let description = fields.string()?;
        fields.raw(Kind::Map)?;
        Ok(ErrorView {
            condition,
            description,
        })
    }
}

/// An `error` that we originate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AmqpError {
    /// `condition`
    pub condition: &'static str,
    /// `description`: what happened and what to do, in the operator's words.
    pub description: String,
    /// qdrouterd's name for the same event, put into `info` as `qd-condition`.
    pub qd_condition: Option<&'static str>,
}

impl AmqpError {
    /// An error with a condition and a description.
    pub fn new(condition: &'static str, description: impl Into<String>) -> Self {
        AmqpError {
            condition,
            description: description.into(),
            qd_condition: None,
        }
    }

    /// Appends the encoded `error`, with every field.
    pub fn write(&self, out: &mut Writer<'_>) {
        out.composite(0x1d, 3, |fields| {
            fields.symbol(self.condition);
            fields.string(&self.description);
            match self.qd_condition {
                Some(name) => fields.map(1, |info| {
                    info.symbol("qd-condition");
                    info.symbol(name);
                }),
                None => fields.null(),
            }
        });
    }

    /// The encoded `error`.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.write(&mut Writer::new(&mut bytes));
        bytes
    }
}
