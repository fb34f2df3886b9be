//! The 8-byte frame header (AMQP 1.0 part 2, §2.3.1).

use super::serial::Channel;

/// Length of a frame header without extension.
pub const HEADER_LENGTH: usize = 8;
/// The smallest max-frame-size that a peer may announce (AMQP 1.0 part 2, §2.7.1).
pub const MIN_MAX_FRAME_SIZE: u32 = 512;

/// An empty frame on channel 0: the heartbeat (AMQP 1.0 part 2, §2.4.5).
pub const HEARTBEAT: [u8; HEADER_LENGTH] = [0, 0, 0, 8, 2, 0, 0, 0];

/// The type byte of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameType {
    /// AMQP.
    Amqp,
    /// SASL.
    Sasl,
}

impl FrameType {
    pub(super) const fn code(self) -> u8 {
        match self {
            FrameType::Amqp => 0,
            FrameType::Sasl => 1,
        }
    }
}

/// One frame, cut out of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its type.
    pub frame_type: FrameType,
    /// Its channel; meaningless for SASL.
    pub channel: Channel,
    /// What follows the header and its extension; empty for a heartbeat.
    pub body: &'a [u8],
}

/// Why bytes are not a frame. All are `amqp:connection:framing-error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The size field is smaller than a header.
    #[error("frame size {0} is smaller than a frame header")]
    TooSmall(u32),
    /// The frame is larger than what we announced.
    #[error("frame of {size} bytes is larger than max-frame-size {max}")]
    TooLarge {
        /// The frame's size.
        size: u32,
        /// What we announced.
        max: u32,
    },
    /// The data offset lies before the header's end or behind the frame's.
    #[error("data offset {0} is outside the frame")]
    DataOffset(u8),
    /// Neither AMQP nor SASL.
    #[error("unknown frame type {0:#04x}")]
    Type(u8),
}

impl<'a> Frame<'a> {
    /// Reads one complete frame; `bytes` is exactly as long as its size field says.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let Some((&[_, _, _, _, doff, kind, high, low], _)) = bytes.split_first_chunk::<HEADER_LENGTH>()
        else {
            return Err(FrameError::TooSmall(
                u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            ));
        };
        let frame_type = match kind {
            0 => FrameType::Amqp,
            1 => FrameType::Sasl,
            other => return Err(FrameError::Type(other)),
        };
        let offset = usize::from(doff) * 4;
        match bytes.get(offset..) {
            Some(body) if offset >= HEADER_LENGTH => Ok(Frame {
                frame_type,
                channel: Channel(u16::from_be_bytes([high, low])),
                body,
            }),
            _ => Err(FrameError::DataOffset(doff)),
        }
    }
}

/// Appends a frame whose body `write` appends.
pub fn write_frame(
    out: &mut Vec<u8>,
    frame_type: FrameType,
    channel: Channel,
    write: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    let [high, low] = channel.0.to_be_bytes();
    out.extend_from_slice(&[0, 0, 0, 0, 2, frame_type.code(), high, low]);
    write(out);
    let size = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    if let Some(field) = out
        .get_mut(start..)
        .and_then(|frame| frame.first_chunk_mut::<4>())
    {
        *field = size.to_be_bytes();
    }
}
