//! What a hub says before the performatives begin: headers, and SASL for everybody.

use super::wire::{self, Input};

/// Where a connection stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Greeting {
    #[default]
    Header,
    Sasl,
    AmqpHeader,
    Done,
}

impl Greeting {
    /// Takes all headers and SASL frames that are there, and answers them. Whether performatives may follow.
    pub(crate) fn take(&mut self, input: &mut Input, output: &mut Vec<u8>) -> bool {
        while self.step(input, output) {}
        *self == Self::Done
    }

    fn step(&mut self, input: &mut Input, output: &mut Vec<u8>) -> bool {
        match self {
            Self::Header | Self::AmqpHeader => {
                let Some(header) = input.rest().first_chunk::<8>() else {
                    return false;
                };
                output.extend_from_slice(header);
                *self = Self::Done;
                if *header == wire::SASL_HEADER {
                    wire::FrameWriter::sasl(output, wire::SASL_MECHANISMS)
                        .symbol("ANONYMOUS")
                        .finish();
                    *self = Self::Sasl;
                }
                input.consume(8);
                true
            }
            Self::Sasl => {
                let Ok(Some((frame, size))) = wire::read_frame(input.rest()) else {
                    return false;
                };
                if frame.code == wire::SASL_INIT {
                    wire::FrameWriter::sasl(output, wire::SASL_OUTCOME)
                        .ubyte(0)
                        .finish();
                    *self = Self::AmqpHeader;
                }
                input.consume(size);
                true
            }
            Self::Done => false,
        }
    }
}
