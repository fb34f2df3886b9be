//! The little of AMQP 1.0 that load needs: frames built once and patched, and frames read just far enough.

use super::Failure;

pub(crate) const AMQP_HEADER: [u8; 8] = *b"AMQP\x00\x01\x00\x00";
pub(crate) const SASL_HEADER: [u8; 8] = *b"AMQP\x03\x01\x00\x00";

pub(crate) const OPEN: u8 = 0x10;
pub(crate) const BEGIN: u8 = 0x11;
pub(crate) const ATTACH: u8 = 0x12;
pub(crate) const FLOW: u8 = 0x13;
pub(crate) const TRANSFER: u8 = 0x14;
pub(crate) const DISPOSITION: u8 = 0x15;
pub(crate) const DETACH: u8 = 0x16;
pub(crate) const END: u8 = 0x17;
pub(crate) const CLOSE: u8 = 0x18;
pub(crate) const SASL_MECHANISMS: u8 = 0x40;
pub(crate) const SASL_INIT: u8 = 0x41;
pub(crate) const SASL_OUTCOME: u8 = 0x44;
/// The booleans that are a byte.
const TRUE: u8 = 0x41;
const FALSE: u8 = 0x42;
/// Stands for a frame without a performative: a heartbeat.
pub(crate) const EMPTY: u8 = 0;

const SOURCE: u8 = 0x28;
const TARGET: u8 = 0x29;
const ACCEPTED: u8 = 0x24;
const ERROR: u8 = 0x1d;
const DATA: u8 = 0x75;

/// The session window that both harness ends announce, in frames.
pub(crate) const WINDOW: u32 = 5000;

/// Appends one frame to a buffer, field by field.
pub(crate) struct FrameWriter<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    list: usize,
    count: u32,
}

impl<'a> FrameWriter<'a> {
    pub(crate) fn amqp(out: &'a mut Vec<u8>, channel: u16, code: u8) -> Self {
        Self::new(out, 0, channel, code)
    }

    pub(crate) fn sasl(out: &'a mut Vec<u8>, code: u8) -> Self {
        Self::new(out, 1, 0, code)
    }

    fn new(out: &'a mut Vec<u8>, kind: u8, channel: u16, code: u8) -> Self {
        let start = out.len();
        out.extend_from_slice(&[0, 0, 0, 0, 2, kind]);
        out.extend_from_slice(&channel.to_be_bytes());
        out.extend_from_slice(&[0x00, 0x53, code, 0xd0]);
        let list = out.len();
        out.extend_from_slice(&[0; 8]);
        Self {
            out,
            start,
            list,
            count: 0,
        }
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.out.extend_from_slice(bytes);
        self.count += 1;
        self
    }

    pub(crate) fn null(self) -> Self {
        self.raw(&[0x40])
    }

    pub(crate) fn bool(self, value: bool) -> Self {
        self.raw(&[if value { TRUE } else { FALSE }])
    }

    pub(crate) fn ubyte(self, value: u8) -> Self {
        self.raw(&[0x50, value])
    }

    pub(crate) fn ushort(self, value: u16) -> Self {
        let [a, b] = value.to_be_bytes();
        self.raw(&[0x60, a, b])
    }

    pub(crate) fn uint(self, value: u32) -> Self {
        let [a, b, c, d] = value.to_be_bytes();
        self.raw(&[0x70, a, b, c, d])
    }

    /// A string of up to 255 bytes.
    pub(crate) fn string(self, text: &str) -> Self {
        let bytes = text.as_bytes();
        self.out.extend_from_slice(&[0xa1, bytes.len() as u8]);
        self.raw(bytes)
    }

    pub(crate) fn symbol(self, text: &str) -> Self {
        let bytes = text.as_bytes();
        self.out.extend_from_slice(&[0xa3, bytes.len() as u8]);
        self.raw(bytes)
    }

    fn tag(self, tag: u32) -> Self {
        self.out.extend_from_slice(&[0xa0, 4]);
        self.raw(&tag.to_be_bytes())
    }

    fn terminus(self, code: u8, address: Option<&str>) -> Self {
        let Some(address) = address else {
            return self.raw(&[0x00, 0x53, code, 0x45]);
        };
        let size = address.len() as u8;
        self.out
            .extend_from_slice(&[0x00, 0x53, code, 0xc0, size + 3, 1, 0xa1, size]);
        self.raw(address.as_bytes())
    }

    /// An error with nothing but its condition.
    pub(crate) fn error(self, condition: &str) -> Self {
        let size = condition.len() as u8;
        self.out
            .extend_from_slice(&[0x00, 0x53, ERROR, 0xc0, size + 3, 1, 0xa3, size]);
        self.raw(condition.as_bytes())
    }

    /// Closes the list, appends the payload and writes the sizes.
    pub(crate) fn finish_with(self, payload: &[u8]) {
        let size = (self.out.len() - self.list - 4) as u32;
        self.out[self.list..self.list + 4].copy_from_slice(&size.to_be_bytes());
        self.out[self.list + 4..self.list + 8].copy_from_slice(&self.count.to_be_bytes());
        self.out.extend_from_slice(payload);
        let frame = (self.out.len() - self.start) as u32;
        self.out[self.start..self.start + 4].copy_from_slice(&frame.to_be_bytes());
    }

    pub(crate) fn finish(self) {
        self.finish_with(&[]);
    }
}

pub(crate) fn open(out: &mut Vec<u8>, container: &str) {
    FrameWriter::amqp(out, 0, OPEN)
        .string(container)
        .string("load")
        .uint(65536)
        .ushort(8191)
        .null()
        .finish();
}

pub(crate) fn begin(out: &mut Vec<u8>, channel: u16, remote_channel: Option<u16>) {
    let frame = FrameWriter::amqp(out, channel, BEGIN);
    let frame = match remote_channel {
        Some(remote) => frame.ushort(remote),
        None => frame.null(),
    };
    frame.uint(0).uint(WINDOW).uint(WINDOW).uint(255).finish();
}

/// Which end of a link writes its attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Sender,
    Receiver,
}

/// An attach; `address` stands in the terminus that the peer owns or, in an answer, that it asked for.
pub(crate) fn attach(
    out: &mut Vec<u8>,
    channel: u16,
    name: &str,
    handle: u32,
    role: Role,
    termini: Termini<'_>,
) {
    let frame = FrameWriter::amqp(out, channel, ATTACH)
        .string(name)
        .uint(handle)
        .bool(role == Role::Receiver)
        .ubyte(0)
        .ubyte(0)
        .terminus(SOURCE, termini.source)
        .terminus(TARGET, termini.target)
        .null()
        .null();
    match role {
        Role::Sender => frame.uint(0).finish(),
        Role::Receiver => frame.null().finish(),
    }
}

/// The addresses in an attach.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Termini<'a> {
    pub(crate) source: Option<&'a str>,
    pub(crate) target: Option<&'a str>,
}

/// The session part of a flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionFlow {
    pub(crate) next_incoming: u32,
    pub(crate) next_outgoing: u32,
}

/// A flow; with `link`, the handle, the delivery-count and the credit.
pub(crate) fn flow(out: &mut Vec<u8>, channel: u16, session: SessionFlow, link: Option<(u32, u32, u32)>) {
    let frame = FrameWriter::amqp(out, channel, FLOW)
        .uint(session.next_incoming)
        .uint(WINDOW)
        .uint(session.next_outgoing)
        .uint(WINDOW);
    match link {
        Some((handle, count, credit)) => frame.uint(handle).uint(count).uint(credit).finish(),
        None => frame.finish(),
    }
}

/// A small message as one delivery, unsettled, in one frame.
pub(crate) fn transfer(out: &mut Vec<u8>, channel: u16, handle: u32, id: u32, payload: &[u8]) {
    FrameWriter::amqp(out, channel, TRANSFER)
        .uint(handle)
        .uint(id)
        .tag(id)
        .uint(0)
        .bool(false)
        .finish_with(payload);
}

/// A message as one delivery, unsettled, in frames of at most `max_frame` bytes; gives their number.
pub(crate) fn message(
    out: &mut Vec<u8>,
    channel: u16,
    handle: u32,
    id: u32,
    payload: &[u8],
    max_frame: usize,
) -> u32 {
    // Header, descriptor, list head, and the six fields below: what a frame needs beside its payload.
    const OVERHEAD: usize = 8 + 12 + 5 + 5 + 6 + 5 + 1 + 1;
    let mut frames = 0;
    let mut parts = payload.chunks(max_frame - OVERHEAD).peekable();
    while let Some(part) = parts.next() {
        FrameWriter::amqp(out, channel, TRANSFER)
            .uint(handle)
            .uint(id)
            .tag(id)
            .uint(0)
            .bool(false)
            .bool(parts.peek().is_some())
            .finish_with(part);
        frames += 1;
    }
    frames
}

/// How far `next` is below `end`, in the serial numbers of AMQP 1.0 part 2, §2.8.10; nothing when it is beyond.
pub(crate) fn room(end: u32, next: u32) -> u32 {
    u32::try_from(end.wrapping_sub(next).cast_signed()).unwrap_or(0)
}

/// A receiver's `accepted`, settled, for a range of deliveries.
pub(crate) fn accept(out: &mut Vec<u8>, channel: u16, first: u32, last: u32) {
    FrameWriter::amqp(out, channel, DISPOSITION)
        .bool(true)
        .uint(first)
        .uint(last)
        .bool(true)
        .raw(&[0x00, 0x53, ACCEPTED, 0x45])
        .finish();
}

/// Whether an encoded delivery state is `accepted`.
pub(crate) fn is_accepted(state: &[u8]) -> bool {
    matches!(
        state,
        [0x00, 0x53, ACCEPTED, ..] | [0x00, 0x80, 0, 0, 0, 0, 0, 0, 0, ACCEPTED, ..]
    )
}

pub(crate) fn detach(out: &mut Vec<u8>, channel: u16, handle: u32) {
    FrameWriter::amqp(out, channel, DETACH)
        .uint(handle)
        .bool(true)
        .finish();
}

/// One message as the frames that carry it, encoded once; sending it is a copy and a few patched numbers.
#[derive(Debug)]
pub(crate) struct MessageTemplate {
    bytes: Vec<u8>,
    ids: Vec<usize>,
    frames: u32,
    is_settled: bool,
}

impl MessageTemplate {
    /// A message whose data section holds `size` bytes, in frames of at most `max_frame` bytes.
    pub(crate) fn new(channel: u16, handle: u32, size: usize, max_frame: usize) -> Self {
        // Header, descriptor, list head, and the six fields below: what a frame needs beside its payload.
        const OVERHEAD: usize = 8 + 12 + 5 + 5 + 6 + 1 + 1 + 1;
        let mut section = vec![0x00, 0x53, DATA, 0xb0];
        section.extend_from_slice(&(size as u32).to_be_bytes());
        section.extend((0..size).map(|i| (i * 7) as u8));
        let chunk = max_frame - OVERHEAD;
        let (mut bytes, mut ids, mut frames) = (Vec::new(), Vec::new(), 0);
        let mut rest = section.as_slice();
        while !rest.is_empty() {
            let (part, more) = rest.split_at(chunk.min(rest.len()));
            let list = bytes.len() + 8 + 12;
            FrameWriter::amqp(&mut bytes, channel, TRANSFER)
                .uint(handle)
                .uint(0)
                .tag(0)
                .null()
                .bool(false)
                .bool(!more.is_empty())
                .finish_with(part);
            // Behind the handle (5 bytes) and the constructors of the delivery-id and of the tag.
            ids.push(list + 5 + 1);
            ids.push(list + 5 + 5 + 2);
            frames += 1;
            rest = more;
        }
        Self {
            bytes,
            ids,
            frames,
            is_settled: false,
        }
    }

    /// The same, sent settled.
    pub(crate) fn settled(mut self) -> Self {
        // In each frame the field is behind the tag and an absent message format.
        for tag in self.ids.iter().skip(1).step_by(2) {
            self.bytes[tag + 4 + 1] = TRUE;
        }
        self.is_settled = true;
        self
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.is_settled
    }

    /// Session window that one message takes.
    pub(crate) fn frames(&self) -> u32 {
        self.frames
    }

    /// Appends the message as the delivery `id`.
    pub(crate) fn append(&self, id: u32, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        for at in &self.ids {
            out[start + at..start + at + 4].copy_from_slice(&id.to_be_bytes());
        }
    }
}

/// A frame that has been read, and its performative's fields.
#[derive(Debug)]
pub(crate) struct Frame<'a> {
    pub(crate) channel: u16,
    pub(crate) code: u8,
    pub(crate) fields: Fields<'a>,
    pub(crate) payload: &'a [u8],
}

/// The first frame in `bytes` and its size, when all of it is there.
pub(crate) fn read_frame(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, Failure> {
    let Some((&[a, b, c, d, offset, _, high, low], _)) = bytes.split_first_chunk::<8>() else {
        return Ok(None);
    };
    let size = u32::from_be_bytes([a, b, c, d]) as usize;
    let head = usize::from(offset) * 4;
    if head < 8 || size < head {
        return Err(Failure::new(format!(
            "a frame of {size} bytes with an offset of {offset}"
        )));
    }
    let Some(body) = bytes.get(head..size) else {
        return Ok(None);
    };
    let channel = u16::from_be_bytes([high, low]);
    if body.is_empty() {
        return Ok(Some((
            Frame {
                channel,
                code: EMPTY,
                fields: Fields::NONE,
                payload: &[],
            },
            size,
        )));
    }
    let (code, list) = match body {
        [0x00, 0x53, code, list @ ..] | [0x00, 0x80, 0, 0, 0, 0, 0, 0, 0, code, list @ ..] => (*code, list),
        _ => return Err(Failure::new("a frame body that is no performative")),
    };
    let (fields, payload) =
        Fields::of_list(list).ok_or_else(|| Failure::new("a performative that is no list"))?;
    Ok(Some((
        Frame {
            channel,
            code,
            fields,
            payload,
        },
        size,
    )))
}

/// Reads the fields of a list one after the other. Absent and null are the same.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
    left: u32,
}

impl<'a> Fields<'a> {
    const NONE: Self = Fields { rest: &[], left: 0 };

    /// The fields of the encoded list at the front, and what is behind it.
    fn of_list(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (list, behind) = bytes.split_at_checked(encoded_size(bytes)?)?;
        let fields = match list {
            [0x45] => Fields::NONE,
            [0xc0, _, count, rest @ ..] => Fields {
                rest,
                left: u32::from(*count),
            },
            [0xd0, _, _, _, _, a, b, c, d, rest @ ..] => Fields {
                rest,
                left: u32::from_be_bytes([*a, *b, *c, *d]),
            },
            _ => return None,
        };
        Some((fields, behind))
    }

    /// The next field, encoded, with its constructor.
    pub(crate) fn encoded(&mut self) -> Option<&'a [u8]> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let size = encoded_size(self.rest)?;
        let (field, rest) = self.rest.split_at_checked(size)?;
        self.rest = rest;
        Some(field)
    }

    pub(crate) fn skip(&mut self, count: usize) {
        for _ in 0..count {
            self.encoded();
        }
    }

    pub(crate) fn uint(&mut self) -> Option<u32> {
        match self.encoded()? {
            [0x43] => Some(0),
            [0x52, value] => Some(u32::from(*value)),
            [0x60, a, b] => Some(u32::from(u16::from_be_bytes([*a, *b]))),
            [0x70, a, b, c, d] => Some(u32::from_be_bytes([*a, *b, *c, *d])),
            _ => None,
        }
    }

    pub(crate) fn bool(&mut self) -> Option<bool> {
        match self.encoded()? {
            [TRUE] | [0x56, 1] => Some(true),
            [FALSE] | [0x56, 0] => Some(false),
            _ => None,
        }
    }

    pub(crate) fn text(&mut self) -> Option<String> {
        match self.encoded()? {
            [0xa1 | 0xa3, _, text @ ..] | [0xb1 | 0xb3, _, _, _, _, text @ ..] => {
                Some(String::from_utf8_lossy(text).into_owned())
            }
            _ => None,
        }
    }

    /// The first field of a described list: a terminus' address, an error's condition.
    pub(crate) fn first_of_described(&mut self) -> Option<String> {
        let field = self.encoded()?;
        Fields::of_list(field.get(3..)?)?.0.text()
    }
}

/// The fields of a message's section, if the message has it and it is a list.
pub(crate) fn section(mut message: &[u8], wanted: u8) -> Option<Fields<'_>> {
    loop {
        let (section, rest) = message.split_at_checked(encoded_size(message)?)?;
        match section {
            [0x00, 0x53, code, list @ ..] if *code == wanted => {
                return Fields::of_list(list).map(|(fields, _)| fields);
            }
            _ => message = rest,
        }
    }
}

/// The size of the value at the front, constructor included (AMQP 1.0 part 1, §1.2: the high nibble tells).
fn encoded_size(bytes: &[u8]) -> Option<usize> {
    let code = *bytes.first()?;
    if code == 0x00 {
        let descriptor = 1 + encoded_size(bytes.get(1..)?)?;
        return Some(descriptor + encoded_size(bytes.get(descriptor..)?)?);
    }
    match code >> 4 {
        0x4 => Some(1),
        0x5 => Some(2),
        0x6 => Some(3),
        0x7 => Some(5),
        0x8 => Some(9),
        0x9 => Some(17),
        0xa | 0xc | 0xe => Some(2 + usize::from(*bytes.get(1)?)),
        0xb | 0xd | 0xf => {
            let size = bytes.get(1..5)?.first_chunk::<4>()?;
            Some(5 + u32::from_be_bytes(*size) as usize)
        }
        _ => None,
    }
}

/// Input that ends in the middle of a frame, kept for the next read.
#[derive(Debug, Default)]
pub(crate) struct Input {
    bytes: Vec<u8>,
    used: usize,
}

impl Input {
    /// Where the next read goes; call [`Input::compact`] before.
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        const LEAST: usize = 4096;
        if self.bytes.capacity() == 0 {
            self.bytes.reserve(LEAST);
        }
        &mut self.bytes
    }

    /// Drops what has been used. A buffer that a read has filled is too small: it grows, to some extent.
    pub(crate) fn compact(&mut self) {
        const MOST: usize = 256 * 1024;
        let is_full = self.bytes.len() == self.bytes.capacity();
        self.bytes.drain(..self.used);
        self.used = 0;
        if is_full {
            self.bytes.reserve((2 * self.bytes.capacity()).min(MOST));
        }
    }

    /// Bytes not used yet.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.bytes[self.used..]
    }

    pub(crate) fn consume(&mut self, count: usize) {
        self.used += count;
    }
}
