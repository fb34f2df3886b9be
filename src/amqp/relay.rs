//! Writes frames that carry another peer's performative with a new head: channel, handle, delivery-id, link name.
//!
//! The hot file. A transfer's tail, from delivery-tag to the end of the payload, is one contiguous slice of the frame
//! that came in and is copied once, into the outbox of the peer it goes to. The new head may be wider or narrower
//! than the old one, so the list is written with a head of its own size.

use super::codes::format;
use super::fields::Tail;
use super::frame::{FrameType, HEADER_LENGTH, write_frame};
use super::performative::{Role, Transfer};
use super::plain::PlainTransfer;
use super::serial::{Channel, DeliveryId, Handle, TransferId};
use super::writer::{Writer, uint_size};

/// Descriptor (3 bytes) and the head of a list32 (9 bytes): the most that precedes a performative's fields.
const LIST_HEAD: usize = 12;
/// Frame header, head of the list, handle and delivery-id: the most that precedes the tail of a transfer.
const TRANSFER_HEAD: usize = HEADER_LENGTH + LIST_HEAD + 2 * 5;
/// A piece of payload smaller than this is not worth a frame: the peer's max-frame-size cannot carry the head.
const MIN_PIECE: usize = 64;

/// The session part of a `flow`, as the sending session counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionFlow {
    /// `next-incoming-id`; absent until the peer's begin is known.
    pub next_incoming_id: Option<TransferId>,
    /// `incoming-window`
    pub incoming_window: u32,
    /// `next-outgoing-id`
    pub next_outgoing_id: TransferId,
    /// `outgoing-window`
    pub outgoing_window: u32,
}

/// Appends an `attach` with another name and handle.
pub fn write_attach(
    out: &mut Vec<u8>,
    channel: Channel,
    name: &str,
    handle: Handle,
    role: Role,
    tail: Tail<'_>,
) {
    let name_size = name.len() + if name.len() <= 255 { 2 } else { 5 };
    write_frame(out, FrameType::Amqp, channel, |out| {
        let mut out = Writer::new(out);
        let size = name_size + uint_size(handle.0) + 1 + tail.bytes.len();
        out.list_head(0x12, tail.count.saturating_add(3), size);
        out.string(name);
        out.uint(handle.0);
        out.boolean(role.is_receiver());
        out.tail(tail);
    });
}

/// Appends a `flow`: the session's own numbers, and the link part carried from another peer.
pub fn write_flow(
    out: &mut Vec<u8>,
    channel: Channel,
    session: SessionFlow,
    link: Option<(Handle, Tail<'_>)>,
) {
    // A flow of the session alone has every field, so that a peer that reads by position finds them.
    const NO_LINK: Tail<'_> = Tail {
        count: 6,
        bytes: &[format::NULL; 6],
    };
    let (handle, tail) = link.map_or((None, NO_LINK), |(handle, tail)| (Some(handle), tail));
    let size = optional_uint_size(session.next_incoming_id.map(|id| id.0))
        + uint_size(session.incoming_window)
        + uint_size(session.next_outgoing_id.0)
        + uint_size(session.outgoing_window)
        + optional_uint_size(handle.map(|handle| handle.0))
        + tail.bytes.len();
    write_frame(out, FrameType::Amqp, channel, |out| {
        let mut out = Writer::new(out);
        out.list_head(0x13, tail.count.saturating_add(5), size);
        out.optional(session.next_incoming_id, |out, id| out.uint(id.0));
        out.uint(session.incoming_window);
        out.uint(session.next_outgoing_id.0);
        out.uint(session.outgoing_window);
        out.optional(handle, |out, handle| out.uint(handle.0));
        out.tail(tail);
    });
}

/// How far a transfer has been written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// All of it.
    All,
    /// Payload up to this offset; the rest needs another frame.
    UpTo(usize),
    /// The peer's max-frame-size cannot hold even the transfer's head.
    HeadTooLarge,
}

/// Appends one frame of a transfer: the whole of it, or as much of the payload from `offset` as `max_frame_size`
/// allows. At offset 0 the frame carries the head of the original; later frames are continuations of our own.
#[inline]
pub fn write_transfer(
    out: &mut Vec<u8>,
    channel: Channel,
    handle: Handle,
    delivery_id: Option<DeliveryId>,
    transfer: &Transfer<'_>,
    offset: usize,
    max_frame_size: usize,
) -> Written {
    if offset > 0 {
        return write_continuation(out, channel, handle, transfer, offset, max_frame_size);
    }
    let head = TransferHead::new(
        channel,
        handle,
        delivery_id,
        transfer.tail,
        transfer.payload.len(),
    );
    if head.frame_size <= max_frame_size {
        out.reserve(head.frame_size);
        out.extend_from_slice(head.bytes());
        out.extend_from_slice(transfer.tail.bytes);
        out.extend_from_slice(transfer.payload);
        return Written::All;
    }
    write_first_piece(out, channel, handle, delivery_id, transfer, max_frame_size)
}

/// Appends a transfer that came in one frame, if it fits into one here. `false`: nothing was written.
#[inline]
pub fn write_plain(
    out: &mut Vec<u8>,
    channel: Channel,
    handle: Handle,
    delivery_id: DeliveryId,
    transfer: &PlainTransfer<'_>,
    max_frame_size: usize,
) -> bool {
    let tail = transfer.tail();
    let payload = transfer.rest.len().saturating_sub(tail.bytes.len());
    let head = TransferHead::new(channel, handle, Some(delivery_id), tail, payload);
    if head.frame_size > max_frame_size {
        return false;
    }
    out.reserve(head.frame_size);
    out.extend_from_slice(head.bytes());
    out.extend_from_slice(transfer.rest);
    true
}

/// What precedes the carried fields of a transfer: put together here, so that the outbox grows by one piece.
struct TransferHead {
    bytes: [u8; TRANSFER_HEAD],
    length: usize,
    /// Of the whole frame.
    frame_size: usize,
}

impl TransferHead {
    #[inline]
    fn new(
        channel: Channel,
        handle: Handle,
        delivery_id: Option<DeliveryId>,
        tail: Tail<'_>,
        payload: usize,
    ) -> Self {
        let list = uint_size(handle.0) + optional_uint_size(delivery_id.map(|id| id.0)) + tail.bytes.len();
        let list_head = if list < 255 { 6 } else { LIST_HEAD };
        let frame_size = HEADER_LENGTH + list_head + list + payload;
        let mut head = TransferHead {
            bytes: [0; TRANSFER_HEAD],
            length: 0,
            frame_size,
        };
        let [high, low] = channel.0.to_be_bytes();
        head.push(u32::try_from(frame_size).unwrap_or(u32::MAX).to_be_bytes());
        head.push([2, FrameType::Amqp.code(), high, low]);
        head.push([format::DESCRIBED, format::SMALLULONG, 0x14]);
        let count = tail.count.saturating_add(2);
        match u8::try_from(list + 1) {
            Ok(size) => head.push([format::LIST8, size, count]),
            Err(_) => {
                head.push([format::LIST32]);
                head.push(u32::try_from(list + 4).unwrap_or(u32::MAX).to_be_bytes());
                head.push(u32::from(count).to_be_bytes());
            }
        }
        head.uint(handle.0);
        match delivery_id {
            Some(id) => head.uint(id.0),
            None => head.push([format::NULL]),
        }
        head
    }

    #[inline]
    fn push<const N: usize>(&mut self, bytes: [u8; N]) {
        if let Some(room) = self
            .bytes
            .get_mut(self.length..)
            .and_then(|room| room.first_chunk_mut())
        {
            *room = bytes;
            self.length += N;
        }
    }

    #[inline]
    fn uint(&mut self, value: u32) {
        match u8::try_from(value) {
            Ok(0) => self.push([format::UINT0]),
            Ok(small) => self.push([format::SMALLUINT, small]),
            Err(_) => {
                self.push([format::UINT]);
                self.push(value.to_be_bytes());
            }
        }
    }

    #[inline]
    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// The first of several frames: the original's head with `more` set. An abort is one frame, without its payload, which
/// means nothing (AMQP 1.0 part 2, §2.7.5).
fn write_first_piece(
    out: &mut Vec<u8>,
    channel: Channel,
    handle: Handle,
    delivery_id: Option<DeliveryId>,
    transfer: &Transfer<'_>,
    max_frame_size: usize,
) -> Written {
    let (before, after) = (transfer.before_more, transfer.after_more);
    let missing = 3u8.saturating_sub(before.count);
    let size = uint_size(handle.0)
        + optional_uint_size(delivery_id.map(|id| id.0))
        + before.bytes.len()
        + usize::from(missing)
        + 1
        + after.bytes.len();
    let payload = if transfer.aborted { &[] } else { transfer.payload };
    // It may be the only one after all: `more` is in its shortest encoding here.
    let is_whole = piece_room(size, max_frame_size).is_some_and(|room| payload.len() <= room);
    let fields = Fields {
        count: after.count.saturating_add(6),
        size,
    };
    write_piece(out, channel, fields, payload, 0, max_frame_size, |out| {
        out.uint(handle.0);
        out.optional(delivery_id, |out, id| out.uint(id.0));
        out.tail(before);
        for _ in 0..missing {
            out.null();
        }
        out.boolean(transfer.more || !is_whole);
        out.tail(after);
    })
}

/// A later frame, with every field: whoever reads by position finds them.
fn write_continuation(
    out: &mut Vec<u8>,
    channel: Channel,
    handle: Handle,
    transfer: &Transfer<'_>,
    offset: usize,
    max_frame_size: usize,
) -> Written {
    let rest = transfer.payload.len().saturating_sub(offset);
    // A handle and ten fields of one byte each.
    let size = uint_size(handle.0) + 10;
    let is_last = piece_room(size, max_frame_size).is_some_and(|room| rest <= room);
    let fields = Fields { count: 11, size };
    write_piece(
        out,
        channel,
        fields,
        transfer.payload,
        offset,
        max_frame_size,
        |out| {
            out.uint(handle.0);
            for _ in 0..3 {
                out.null(); // delivery-id, delivery-tag, message-format
            }
            out.optional(transfer.settled, Writer::boolean);
            out.boolean(transfer.more || !is_last);
            for _ in 0..5 {
                out.null(); // rcv-settle-mode, state, resume, aborted, batchable
            }
        },
    )
}

/// Count and encoded size of the fields of a frame that is about to be written.
struct Fields {
    count: u8,
    size: usize,
}

/// How much payload a frame holds behind fields of so many bytes; `None` when it does not even hold those.
fn piece_room(fields: usize, max_frame_size: usize) -> Option<usize> {
    let list_head = if fields < 255 { 6 } else { LIST_HEAD };
    max_frame_size.checked_sub(HEADER_LENGTH + list_head + fields)
}

fn write_piece(
    out: &mut Vec<u8>,
    channel: Channel,
    fields: Fields,
    payload: &[u8],
    offset: usize,
    max_frame_size: usize,
    write_fields: impl FnOnce(&mut Writer<'_>),
) -> Written {
    let Some(room) = piece_room(fields.size, max_frame_size) else {
        return Written::HeadTooLarge;
    };
    let rest = payload.get(offset..).unwrap_or_default();
    if room < MIN_PIECE && room < rest.len() {
        return Written::HeadTooLarge;
    }
    let (piece, left) = rest.split_at_checked(room).unwrap_or((rest, &[]));
    write_frame(out, FrameType::Amqp, channel, |out| {
        let mut out = Writer::new(out);
        out.list_head(0x14, fields.count, fields.size);
        write_fields(&mut out);
        out.raw(piece);
    });
    if left.is_empty() {
        Written::All
    } else {
        Written::UpTo(offset + piece.len())
    }
}

/// Appends a `disposition` for other delivery-ids.
pub fn write_disposition(
    out: &mut Vec<u8>,
    channel: Channel,
    role: Role,
    first: DeliveryId,
    last: DeliveryId,
    tail: Tail<'_>,
) {
    let last = (last != first).then_some(last);
    let size = 1 + uint_size(first.0) + optional_uint_size(last.map(|id| id.0)) + tail.bytes.len();
    write_frame(out, FrameType::Amqp, channel, |out| {
        let mut out = Writer::new(out);
        out.list_head(0x15, tail.count.saturating_add(3), size);
        out.boolean(role.is_receiver());
        out.uint(first.0);
        out.optional(last, |out, id| out.uint(id.0));
        out.tail(tail);
    });
}

/// Appends a `detach` for another handle.
pub fn write_detach(out: &mut Vec<u8>, channel: Channel, handle: Handle, tail: Tail<'_>) {
    write_frame(out, FrameType::Amqp, channel, |out| {
        let mut out = Writer::new(out);
        out.list_head(
            0x16,
            tail.count.saturating_add(1),
            uint_size(handle.0) + tail.bytes.len(),
        );
        out.uint(handle.0);
        out.tail(tail);
    });
}

const fn optional_uint_size(value: Option<u32>) -> usize {
    match value {
        Some(value) => uint_size(value),
        None => 1,
    }
}
