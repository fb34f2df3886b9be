//! What routing needs to know of a source or target (AMQP 1.0 part 3, §3.5.3 and §3.5.4); all else stays encoded.

use super::DecodeError;
use super::codes::{descriptor, format};
use super::fields::{Fields, Kind};
use super::reader::Reader;

/// The key in dynamic-node-properties under which a dynamic terminus names its route (qdrouterd 1.19: must be first).
pub const DYNAMIC_ADDRESS_KEY: &str = "x-opt-qd.address";

/// Which terminus it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TerminusKind {
    /// `source`
    Source,
    /// `target`
    Target,
    /// `coordinator` (AMQP 1.0 part 4, §4.5.1)
    Coordinator,
}

/// The routing view of a terminus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminus<'a> {
    /// Which one.
    pub kind: TerminusKind,
    /// `address` if it is a string, which is the only form in use.
    pub address: Option<&'a str>,
    /// `durable`: 0 none, 1 configuration, 2 unsettled-state.
    pub durable: u32,
    /// `expiry-policy`; absent means session-end.
    pub expiry_policy: Option<&'a str>,
    /// `timeout` in seconds.
    pub timeout: u32,
    /// `dynamic`
    pub dynamic: bool,
    /// The route's address, which counts in a dynamic terminus only.
    pub dynamic_address: Option<&'a str>,
}

impl<'a> Terminus<'a> {
    /// Reads an encoded terminus.
    pub fn parse(encoded: &'a [u8]) -> Result<Self, DecodeError> {
        let (code, mut fields) = Reader::new(encoded).composite()?;
        let kind = match code {
            descriptor::SOURCE => TerminusKind::Source,
            descriptor::TARGET => TerminusKind::Target,
            descriptor::COORDINATOR => {
                return Ok(Terminus {
                    kind: TerminusKind::Coordinator,
                    address: None,
                    durable: 0,
                    expiry_policy: None,
                    timeout: 0,
                    dynamic: false,
                    dynamic_address: None,
                });
            }
            _ => return Err(DecodeError::Descriptor),
        };
        let terminus = Terminus {
            kind,
            address: address(&mut fields)?,
            durable: fields.uint()?.unwrap_or(0),
            expiry_policy: fields.symbol()?,
            timeout: fields.uint()?.unwrap_or(0),
            dynamic: fields.boolean()?.unwrap_or(false),
            dynamic_address: dynamic_address(&mut fields)?,
        };
        if kind == TerminusKind::Source {
            fields.raw(Kind::Symbols)?; // distribution-mode
            fields.raw(Kind::Map)?; // filter
            fields.raw(Kind::Described)?; // default-outcome
            fields.raw(Kind::Symbols)?; // outcomes
        }
        fields.raw(Kind::Symbols)?; // capabilities
        fields.unknown()?;
        fields.end()?;
        Ok(terminus)
    }

    /// The address that a link is routed by: the terminus's own, or the route's where a node is to be made.
    pub const fn routed_by(&self) -> Option<&'a str> {
        match self.dynamic {
            true => self.dynamic_address,
            false => self.address,
        }
    }

    /// Whether the terminus is to outlive the connection (qdrouterd 1.19: timeout above zero, or expiry-policy never).
    pub fn survives_disconnect(&self) -> bool {
        self.timeout > 0 || self.expiry_policy == Some("never")
    }
}

fn address<'a>(fields: &mut Fields<'a>) -> Result<Option<&'a str>, DecodeError> {
    let Some(encoded) = fields.raw(Kind::Any)? else {
        return Ok(None);
    };
    let mut reader = Reader::new(encoded);
    match reader.peek_code()? {
        format::STR8 | format::STR32 => reader.string().map(Some),
        _ => Ok(None),
    }
}

fn dynamic_address<'a>(fields: &mut Fields<'a>) -> Result<Option<&'a str>, DecodeError> {
    let Some(encoded) = fields.raw(Kind::Map)? else {
        return Ok(None);
    };
    let mut reader = Reader::new(encoded);
    let code = reader.byte()?;
    let (count, mut entries) = reader.compound(code)?;
    for _ in 0..count / 2 {
        let is_address = match entries.peek_code()? {
            format::SYM8 | format::SYM32 => entries.symbol()? == DYNAMIC_ADDRESS_KEY,
            _ => {
                entries.skip()?;
                false
            }
        };
        match entries.peek_code()? {
            format::STR8 | format::STR32 if is_address => return entries.string().map(Some),
            _ => {
                entries.skip()?;
            }
        }
    }
    Ok(None)
}
