//! Cuts a byte stream into protocol headers and frames (AMQP 1.0 part 2, §2.2 and §2.3).
//!
//! A frame that lies whole in the input is handed out in place, without a copy. Only the part of a frame at the end
//! of one input is kept, until the next input completes it.

use super::frame::{Frame, FrameError, HEADER_LENGTH};
use super::header;

/// Above this capacity the buffer is given back when a connection falls idle.
const KEEP_CAPACITY: usize = 1024;

/// The state between two inputs: the bytes of an incomplete header or frame.
#[derive(Debug)]
pub struct Deframer {
    partial: Vec<u8>,
    /// The last unit handed out lies in `partial` and is cleared at the next call.
    consumed: bool,
    max_frame_size: u32,
}

impl Deframer {
    /// Frames larger than `max_frame_size` are an error before they are buffered.
    pub const fn new(max_frame_size: u32) -> Self {
        Deframer {
            partial: Vec::new(),
            consumed: false,
            max_frame_size,
        }
    }

    /// Another limit, from the next frame on.
    pub const fn set_max_frame_size(&mut self, max_frame_size: u32) {
        self.max_frame_size = max_frame_size;
    }

    /// The next protocol header; `None` when `input` ends before it is complete.
    pub fn next_header(&mut self, input: &mut &[u8]) -> Option<[u8; header::LENGTH]> {
        self.discard_consumed();
        self.fill(input, header::LENGTH);
        let header = self.partial.first_chunk::<{ header::LENGTH }>().copied()?;
        self.partial.clear();
        Some(header)
    }

    /// The next frame; `None` when `input` ends before it is complete.
    ///
    /// # Errors
    /// The frame's header is wrong. The stream has no meaning any more: close it.
    pub fn next_frame<'s, 'i: 's>(
        &'s mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<Frame<'s>>, FrameError> {
        self.discard_consumed();
        if self.partial.is_empty() {
            let Some(size) = self.frame_size(input)? else {
                self.fill(input, HEADER_LENGTH);
                return Ok(None);
            };
            if let Some((frame, rest)) = input.split_at_checked(size) {
                *input = rest;
                return Frame::parse(frame).map(Some);
            }
            self.partial.reserve_exact(size);
            self.fill(input, size);
            return Ok(None);
        }
        self.fill(input, HEADER_LENGTH);
        let Some(size) = self.frame_size(&self.partial)? else {
            return Ok(None);
        };
        self.partial
            .reserve_exact(size.saturating_sub(self.partial.len()));
        self.fill(input, size);
        if self.partial.len() < size {
            return Ok(None);
        }
        self.consumed = true;
        Frame::parse(&self.partial).map(Some)
    }

    /// Whether the stream stands in the middle of a header or frame.
    pub fn is_partial(&self) -> bool {
        !self.consumed && !self.partial.is_empty()
    }

    /// Gives a large empty buffer back to the allocator; for connections that have fallen idle.
    pub fn release_memory(&mut self) {
        self.discard_consumed();
        if self.partial.is_empty() && self.partial.capacity() > KEEP_CAPACITY {
            self.partial = Vec::new();
        }
    }

    /// The size in a frame header at the start of `bytes`, checked; `None` when the header is not complete.
    fn frame_size(&self, bytes: &[u8]) -> Result<Option<usize>, FrameError> {
        if bytes.len() < HEADER_LENGTH {
            return Ok(None);
        }
        let Some(&size) = bytes.first_chunk::<4>() else {
            return Ok(None);
        };
        let size = u32::from_be_bytes(size);
        if size > self.max_frame_size {
            return Err(FrameError::TooLarge {
                size,
                max: self.max_frame_size,
            });
        }
        match usize::try_from(size) {
            Ok(length) if length >= HEADER_LENGTH => Ok(Some(length)),
            _ => Err(FrameError::TooSmall(size)),
        }
    }

    fn discard_consumed(&mut self) {
        if self.consumed {
            self.partial.clear();
            self.consumed = false;
        }
    }

    /// Moves bytes from `input` until `partial` is `length` long or the input is empty.
    fn fill(&mut self, input: &mut &[u8], length: usize) {
        let missing = length.saturating_sub(self.partial.len()).min(input.len());
        if let Some((taken, rest)) = input.split_at_checked(missing) {
            self.partial.extend_from_slice(taken);
            *input = rest;
        }
    }
}
