//! SASL frames (AMQP 1.0 part 5, §5.3.3).

use super::DecodeError;
use super::codes::descriptor;
use super::fields::Kind;
use super::frame::{FrameType, write_frame};
use super::reader::Reader;
use super::serial::Channel;
use super::writer::Writer;

/// A SASL frame's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SaslFrame<'a> {
    /// `sasl-mechanisms`: what the listener offers.
    Mechanisms(Vec<&'a str>),
    /// `sasl-init`: what the dialer chose.
    Init {
        /// The mechanism.
        mechanism: &'a str,
        /// Its first message. A secret.
        initial_response: Option<&'a [u8]>,
    },
    /// `sasl-challenge`. A secret.
    Challenge(&'a [u8]),
    /// `sasl-response`. A secret.
    Response(&'a [u8]),
    /// `sasl-outcome`
    Outcome(SaslCode),
}

/// `sasl-code` (AMQP 1.0 part 5, §5.3.3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaslCode {
    /// Authenticated.
    Ok,
    /// Wrong credentials or a mechanism that is not offered.
    Auth,
    /// The system failed.
    Sys,
    /// The system failed, and will again.
    SysPerm,
    /// The system failed, for now.
    SysTemp,
}

impl SaslCode {
    const fn code(self) -> u8 {
        match self {
            SaslCode::Ok => 0,
            SaslCode::Auth => 1,
            SaslCode::Sys => 2,
            SaslCode::SysPerm => 3,
            SaslCode::SysTemp => 4,
        }
    }
}

impl<'a> SaslFrame<'a> {
    /// Reads a frame's body.
    pub fn parse(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let (code, mut fields) = reader.composite()?;
        Ok(match code {
            descriptor::SASL_MECHANISMS => SaslFrame::Mechanisms(fields.symbols()?),
            descriptor::SASL_INIT => {
                let mechanism = fields.symbol()?.ok_or(DecodeError::Missing("mechanism"))?;
                let initial_response = fields.binary()?;
                fields.raw(Kind::String)?;
                SaslFrame::Init {
                    mechanism,
                    initial_response,
                }
            }
            descriptor::SASL_CHALLENGE => {
                SaslFrame::Challenge(fields.binary()?.ok_or(DecodeError::Missing("challenge"))?)
            }
            descriptor::SASL_RESPONSE => {
                SaslFrame::Response(fields.binary()?.ok_or(DecodeError::Missing("response"))?)
            }
            descriptor::SASL_OUTCOME => SaslFrame::Outcome(match fields.ubyte()? {
                Some(0) => SaslCode::Ok,
                Some(1) => SaslCode::Auth,
                Some(2) => SaslCode::Sys,
                Some(3) => SaslCode::SysPerm,
                Some(4) => SaslCode::SysTemp,
                Some(_) => return Err(DecodeError::Range),
                None => return Err(DecodeError::Missing("code")),
            }),
            _ => return Err(DecodeError::Descriptor),
        })
    }

    /// Appends the frame, with every field of its body.
    pub fn write(&self, out: &mut Vec<u8>) {
        write_frame(out, FrameType::Sasl, Channel(0), |out| {
            let mut out = Writer::new(out);
            match self {
                SaslFrame::Mechanisms(mechanisms) => out.composite(0x40, 1, |f| f.symbols(mechanisms)),
                SaslFrame::Init {
                    mechanism,
                    initial_response,
                } => out.composite(0x41, 3, |f| {
                    f.symbol(mechanism);
                    f.optional(*initial_response, Writer::binary);
                    f.null();
                }),
                SaslFrame::Challenge(bytes) => out.composite(0x42, 1, |f| f.binary(bytes)),
                SaslFrame::Response(bytes) => out.composite(0x43, 1, |f| f.binary(bytes)),
                SaslFrame::Outcome(code) => out.composite(0x44, 2, |f| {
                    f.ubyte(code.code());
                    f.null();
                }),
            }
        });
    }
}
