//! The common case, read at a glance: a frame that is a whole delivery, in an encoding that stacks use for it.
//!
//! What is not recognised here is no error: [`Performative::parse`](super::performative::Performative::parse) reads it
//! and judges it. What is recognised, it reads alike; so says a property in this file, and the fuzz target `relay`.

use super::codes::format;
use super::fields::Tail;
use super::frame::HEADER_LENGTH;
use super::serial::{Channel, DeliveryId, Handle};

/// Frame header, descriptor and the code of the list.
const HEAD: usize = HEADER_LENGTH + 4;

/// A transfer that is neither a piece of a delivery nor aborted, and has no state (AMQP 1.0 part 2, §2.7.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainTransfer<'a> {
    /// Length of the frame.
    pub length: usize,
    /// The frame's channel.
    pub channel: Channel,
    /// `handle`
    pub handle: Handle,
    /// `delivery-id`
    pub delivery_id: DeliveryId,
    /// `settled`; absent is not settled.
    pub is_settled: bool,
    /// How many fields there are from `delivery-tag` on.
    pub tail_count: u8,
    /// Length of their encoding.
    pub tail_length: usize,
    /// Their encoding, and the payload behind it.
    pub rest: &'a [u8],
}

impl<'a> PlainTransfer<'a> {
    /// The frame at the start of `input`, if it is whole, no larger than `max_frame_size` and plain.
    #[inline]
    pub fn peek(input: &'a [u8], max_frame_size: u32) -> Option<Self> {
        let (&[a, b, c, d, 2, 0, high, low, 0x00, format::SMALLULONG, 0x14, list], _) =
            input.split_first_chunk::<HEAD>()?
        else {
            return None;
        };
        let size = u32::from_be_bytes([a, b, c, d]);
        if size > max_frame_size {
            return None;
        }
        let length = usize::try_from(size).ok()?;
        let body = input.get(HEAD..length)?;
        // The size counts the count.
        let (count, size, fields) = match list {
            format::LIST8 => {
                let (&[size, count], fields) = body.split_first_chunk()?;
                (count, usize::from(size).checked_sub(1)?, fields)
            }
            format::LIST32 => {
                let (&[a, b, c, d, 0, 0, 0, count], fields) = body.split_first_chunk()? else {
                    return None;
                };
                let size = usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?;
                (count, size.checked_sub(4)?, fields)
            }
            _ => return None,
        };
        let mut cursor = Cursor(fields.get(..size)?);
        let handle = Handle(cursor.uint()?);
        let delivery_id = DeliveryId(cursor.uint()?);
        let tail_count = count.checked_sub(2)?;
        let tail_length = cursor.0.len();
        let rest = fields.get(size.checked_sub(tail_length)?..)?;
        let is_settled = cursor.tail(tail_count)?;
        Some(PlainTransfer {
            length,
            channel: Channel(u16::from_be_bytes([high, low])),
            handle,
            delivery_id,
            is_settled,
            tail_count,
            tail_length,
            rest,
        })
    }

    /// The fields from `delivery-tag` on.
    pub fn tail(&self) -> Tail<'a> {
        Tail {
            count: self.tail_count,
            bytes: self.rest.get(..self.tail_length).unwrap_or_default(),
        }
    }
}

/// The fields that are not read yet.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    #[inline]
    fn code(&mut self) -> Option<u8> {
        let (&code, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(code)
    }

    #[inline]
    fn skip(&mut self, length: usize) -> Option<()> {
        self.0 = self.0.get(length..)?;
        Some(())
    }

    #[inline]
    fn uint(&mut self) -> Option<u32> {
        match self.code()? {
            format::UINT0 => Some(0),
            format::SMALLUINT => self.code().map(u32::from),
            format::UINT => {
                let (&bytes, rest) = self.0.split_first_chunk()?;
                self.0 = rest;
                Some(u32::from_be_bytes(bytes))
            }
            _ => None,
        }
    }

    /// `count` fields from `delivery-tag` on, and nothing behind them. Yields `settled`.
    #[inline]
    fn tail(mut self, count: u8) -> Option<bool> {
        let mut is_settled = false;
        for field in 0..count {
            match (field, self.code()?) {
                // delivery-tag
                (0, format::VBIN8) => {
                    let length = self.code()?;
                    self.skip(usize::from(length))?;
                }
                // message-format
                (1, format::UINT0) => {}
                (1, format::SMALLUINT) => self.skip(1)?,
                (1, format::UINT) => self.skip(4)?,
                // settled
                (2, code @ (format::TRUE | format::FALSE)) => is_settled = code == format::TRUE,
                // more, resume, aborted; batchable
                (3 | 6 | 7, format::FALSE) | (8, format::FALSE | format::TRUE) => {}
                // rcv-settle-mode
                (4, format::UBYTE) => self.skip(1)?,
                (0..=8, format::NULL) => {}
                _ => return None,
            }
        }
        self.0.is_empty().then_some(is_settled)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::amqp::frame::{Frame, FrameType};
    use crate::amqp::performative::{Performative, Transfer};

    fn judged(input: &[u8], length: usize) -> (Channel, Transfer<'_>) {
        let frame = Frame::parse(&input[..length]).expect("a frame");
        assert_eq!(frame.frame_type, FrameType::Amqp);
        match Performative::parse(frame.body) {
            Ok(Performative::Transfer(transfer)) => (frame.channel, transfer),
            other => panic!("{other:?}"),
        }
    }

    fn agrees(input: &[u8]) -> bool {
        let Some(plain) = PlainTransfer::peek(input, u32::MAX) else {
            return false;
        };
        let (channel, transfer) = judged(input, plain.length);
        assert_eq!((plain.channel, plain.handle), (channel, transfer.handle));
        assert_eq!(Some(plain.delivery_id), transfer.delivery_id);
        assert_eq!(plain.is_settled, transfer.settled == Some(true));
        assert_eq!(plain.tail(), transfer.tail);
        assert_eq!(&plain.rest[plain.tail_length..], transfer.payload);
        assert!(!transfer.more && !transfer.aborted);
        true
    }

    fn frame(body: &[u8]) -> Vec<u8> {
        let size = u32::try_from(HEADER_LENGTH + body.len()).expect("small");
        [&size.to_be_bytes(), &[2, 0, 0x12, 0x34], body].concat()
    }

    /// One field as stacks write it, and sometimes as they should not.
    fn field() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            4 => Just(vec![format::NULL]),
            2 => Just(vec![format::FALSE]),
            2 => Just(vec![format::TRUE]),
            2 => Just(vec![format::UINT0]),
            2 => any::<u8>().prop_map(|value| vec![format::SMALLUINT, value]),
            2 => any::<[u8; 4]>().prop_map(|bytes| [&[format::UINT][..], &bytes].concat()),
            1 => any::<u8>().prop_map(|value| vec![format::UBYTE, value]),
            1 => any::<u8>().prop_map(|value| vec![format::BOOLEAN, value]),
            2 => prop::collection::vec(any::<u8>(), 0..40)
                .prop_map(|tag| [&[format::VBIN8, tag.len() as u8][..], &tag].concat()),
            1 => Just(vec![0x00, format::SMALLULONG, 0x24, format::LIST0]),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn what_is_recognised_is_read_alike(
            fields in prop::collection::vec(field(), 0..13),
            is_long in any::<bool>(),
            slack in -1i8..2,
            payload in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let list = fields.concat();
            let size = list.len() as u32;
            let head = if is_long {
                let size = (size + 4).wrapping_add_signed(i32::from(slack)).to_be_bytes();
                [&[format::LIST32][..], &size, &(fields.len() as u32).to_be_bytes()].concat()
            } else {
                vec![format::LIST8, (size as u8 + 1).wrapping_add_signed(slack), fields.len() as u8]
            };
            let body = [&[0x00, format::SMALLULONG, 0x14][..], &head, &list, &payload].concat();
            agrees(&frame(&body));
        }

        #[test]
        fn a_flipped_byte_is_read_alike_or_not_recognised(place in 0usize..64, value in any::<u8>(), cut in 0usize..64) {
            let mut bytes = typical();
            let place = place % bytes.len();
            bytes[place] = value;
            bytes.truncate(bytes.len().max(cut));
            agrees(&bytes);
        }
    }

    /// As Proton writes it.
    fn typical() -> Vec<u8> {
        let fields = [
            &[format::SMALLUINT, 7, format::UINT, 0, 1, 2, 3][..],
            &[format::VBIN8, 2, 9, 9],
            &[format::UINT0, format::FALSE, format::FALSE],
        ]
        .concat();
        let head = [
            0x00,
            format::SMALLULONG,
            0x14,
            format::LIST8,
            fields.len() as u8 + 1,
            6,
        ];
        frame(&[&head[..], &fields, b"payload"].concat())
    }

    #[test]
    fn the_usual_frames_are_recognised() {
        let plain = typical();
        assert!(agrees(&plain));
        for (what, place, value) in [
            ("more", plain.len() - 8, format::TRUE),
            ("extended header", 4, 3),
            ("SASL", 5, 1),
            ("disposition", 10, 0x15),
        ] {
            let mut other = plain.clone();
            other[place] = value;
            assert!(!agrees(&other), "{what}");
        }
        assert!(PlainTransfer::peek(&plain, u32::try_from(plain.len()).expect("small")).is_some());
        assert!(PlainTransfer::peek(&plain, u32::try_from(plain.len() - 1).expect("small")).is_none());
        assert!(PlainTransfer::peek(&plain[..plain.len() - 1], u32::MAX).is_none());
    }
}
