//! A peer on bytes written by hand, fast enough to flood the daemon, with manners of its own: how large its frames and
//! its session window are and when it opens the window again. It sends on one link and receives on another, checks that
//! what comes is whole, in order and within what it allowed, and never waits for anything but its peer.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::Interest;
use tokio::net::TcpStream;

use super::{Failure, bounded, ensure, ensure_eq};

/// When a peer that receives announces a wider session window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refresh {
    /// When half of it is used up, by a flow of the session (AMQP.Net Lite, rhea).
    AtHalf,
    /// With the flows that give credit, and when nothing of it is left.
    WithCredit,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Manners {
    pub(crate) max_frame_size: u32,
    pub(crate) channel_max: u16,
    pub(crate) handle_max: u32,
    pub(crate) window: u32,
    pub(crate) refresh: Refresh,
    pub(crate) credit: u32,
    /// Messages to send, and to be received.
    pub(crate) messages: u64,
    /// Bytes of each; at least eight.
    pub(crate) size: usize,
}

/// Who speaks, and with whose words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Device,
    Hub,
}

/// Names the two links: `up` is sent by the device.
const ADDRESSES: [(&str, &str); 2] = [("up", "sink/x"), ("down", "source/x")];
const SENDER: u32 = 0;
const RECEIVER: u32 = 1;
/// Settles so many deliveries at once.
const BATCH: u32 = 64;
/// More than that is not written ahead of the transport.
const AHEAD: usize = 64 * 1024;

pub(crate) struct Bare<'p> {
    stream: TcpStream,
    part: Part,
    manners: Manners,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Handles of the peer: of its receiver, and of its sender.
    theirs: [Option<u32>; 2],
    attached: usize,
    max_frame_size: usize,
    // What it sends.
    next_outgoing: u32,
    window: u32,
    credit: u32,
    delivery_count: u32,
    next_delivery: u32,
    sent: u64,
    offset: usize,
    settled: u64,
    // What it receives.
    next_incoming: u32,
    left: u32,
    link_credit: u32,
    received: u64,
    partial: usize,
    unsettled: u32,
    progress: &'p AtomicU64,
}

impl<'p> Bare<'p> {
    /// Speaks its part over a connected transport, until both ends have all that they are to have.
    pub(crate) async fn run(
        stream: TcpStream,
        part: Part,
        manners: Manners,
        progress: &'p AtomicU64,
    ) -> Result<(), Failure> {
        stream.set_nodelay(true)?;
        let mut bare = Bare {
            stream,
            part,
            manners,
            input: Vec::new(),
            output: Vec::new(),
            theirs: [None, None],
            attached: 0,
            max_frame_size: 512,
            next_outgoing: 0,
            window: 0,
            credit: 0,
            delivery_count: 0,
            next_delivery: 0,
            sent: 0,
            offset: 0,
            settled: 0,
            next_incoming: 0,
            left: manners.window,
            link_credit: 0,
            received: 0,
            partial: 0,
            unsettled: 0,
            progress,
        };
        if part == Part::Device {
            // All at once, as the smallest clients do.
            bare.output.extend(b"AMQP\x00\x01\x00\x00");
            bare.open();
            bare.begin(None);
            for (handle, (name, address)) in [(SENDER, ADDRESSES[0]), (RECEIVER, ADDRESSES[1])] {
                bare.attach(handle, name, address, handle == RECEIVER);
            }
        }
        while !bare.is_done() {
            bare.push();
            bare.turn().await?;
        }
        if part == Part::Device {
            bare.frame(&performative(0x18, &[]), &[]);
        }
        while !bare.output.is_empty() || part == Part::Hub {
            if bare.turn().await.is_err() {
                break; // closed by the peer, who has all
            }
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        let all = self.manners.messages;
        self.received == all && self.sent == all && self.settled == all && self.unsettled == 0
    }

    /// Moves what the transport takes and gives.
    async fn turn(&mut self) -> Result<(), Failure> {
        let interest = match self.output.is_empty() {
            true => Interest::READABLE,
            false => Interest::READABLE | Interest::WRITABLE,
        };
        let ready = bounded("any progress", self.stream.ready(interest)).await;
        let ready = ready.map_err(|failure| Failure::new(format!("{failure}: {}", self.state())))??;
        if ready.is_writable() && !self.output.is_empty() {
            match self.stream.try_write(&self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        if ready.is_readable() {
            let mut buffer = [0; 64 * 1024];
            match self.stream.try_read(&mut buffer) {
                Ok(0) => return Err(Failure::new(format!("the end of the stream: {}", self.state()))),
                Ok(count) => self.input.extend(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            self.hear()?;
        }
        Ok(())
    }

    fn state(&self) -> String {
        format!(
            "{:?}: sent {}, settled {}, received {} of {}; window {}, credit {}; left {}, link credit {}",
            self.part,
            self.sent,
            self.settled,
            self.received,
            self.manners.messages,
            self.window,
            self.credit,
            self.left,
            self.link_credit
        )
    }

    // ---- what comes ----------------------------------------------------------------------------------------------

    fn hear(&mut self) -> Result<(), Failure> {
        let input = std::mem::take(&mut self.input);
        let mut rest = input.as_slice();
        while rest.len() >= 8 {
            let size = match rest {
                [b'A', b'M', b'Q', b'P', ..] => 8,
                [a, b, c, d, ..] => u32::from_be_bytes([*a, *b, *c, *d]) as usize,
                _ => break,
            };
            if rest.len() < size {
                break;
            }
            let (unit, behind) = rest.split_at(size);
            rest = behind;
            match unit {
                [b'A', b'M', b'Q', b'P', kind, ..] => self.hear_header(*kind),
                [_, _, _, _, _, _, _, _, body @ ..] if !body.is_empty() => {
                    ensure(size <= self.manners.max_frame_size as usize, || {
                        format!("{:?}: a frame of {size} bytes", self.part)
                    })?;
                    self.hear_frame(body)?;
                }
                _ => {}
            }
        }
        self.input = rest.to_vec();
        Ok(())
    }

    fn hear_header(&mut self, kind: u8) {
        match (self.part, kind) {
            (Part::Hub, 3) => {
                self.output.extend(b"AMQP\x03\x01\x00\x00");
                let anonymous = [&[0xa3, 9][..], b"ANONYMOUS"].concat();
                self.say(1, &performative(0x40, &[anonymous]), &[]);
                self.say(1, &performative(0x44, &[vec![0x50, 0]]), &[]);
            }
            (Part::Hub, _) => self.output.extend(b"AMQP\x00\x01\x00\x00"),
            (Part::Device, _) => {}
        }
    }

    fn hear_frame(&mut self, body: &[u8]) -> Result<(), Failure> {
        let mut fields = Fields::of(body)?;
        match fields.code {
            0x10 => {
                fields.pass(2)?;
                self.max_frame_size = fields.uint()?.unwrap_or(u32::MAX) as usize;
                if self.part == Part::Hub {
                    self.open();
                }
            }
            0x11 => {
                fields.pass(1)?;
                self.next_incoming = fields.uint()?.unwrap_or(0);
                self.window = fields.uint()?.unwrap_or(0);
                if self.part == Part::Hub {
                    self.begin(Some(0));
                }
            }
            0x12 => self.hear_attach(&mut fields)?,
            0x13 => self.hear_flow(&mut fields)?,
            0x14 => self.hear_transfer(&mut fields)?,
            0x15 => {
                let is_receiver = fields.flag()?;
                let first = fields.uint()?.unwrap_or(0);
                let last = fields.uint()?.unwrap_or(first);
                if is_receiver && fields.flag()? {
                    self.settled += u64::from(last.wrapping_sub(first)) + 1;
                }
            }
            0x16..=0x18 => {
                ensure(self.is_done(), || {
                    format!("{:#x} from the peer: {}", fields.code, self.state())
                })?;
                if fields.code == 0x18 {
                    self.frame(&performative(0x18, &[]), &[]);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn hear_attach(&mut self, fields: &mut Fields<'_>) -> Result<(), Failure> {
        let name = fields.text()?.to_owned();
        let handle = fields.uint()?;
        let is_receiver = fields.flag()?;
        self.theirs[usize::from(!is_receiver)] = handle;
        self.attached += 1;
        if self.part == Part::Hub {
            let ours = if is_receiver { SENDER } else { RECEIVER };
            let address = ADDRESSES.iter().find(|(link, _)| name.starts_with(link));
            let (_, address) = address.ok_or_else(|| Failure::new(format!("a link called {name}")))?;
            self.attach(ours, &name, address, !is_receiver);
        }
        if !is_receiver {
            self.grant();
        }
        Ok(())
    }

    fn hear_flow(&mut self, fields: &mut Fields<'_>) -> Result<(), Failure> {
        let next_incoming = fields.uint()?.unwrap_or(0);
        let window = fields.uint()?.unwrap_or(0);
        self.window = next_incoming
            .wrapping_add(window)
            .wrapping_sub(self.next_outgoing);
        ensure(self.window <= window, || {
            format!("{:?}: ids that were never sent", self.part)
        })?;
        fields.pass(2)?;
        let handle = fields.uint()?;
        if handle.is_some() && handle == self.theirs[0] {
            let count = fields.uint()?.unwrap_or(0);
            let credit = fields.uint()?.unwrap_or(0);
            self.credit = count.wrapping_add(credit).wrapping_sub(self.delivery_count);
        }
        Ok(())
    }

    fn hear_transfer(&mut self, fields: &mut Fields<'_>) -> Result<(), Failure> {
        ensure(self.left > 0, || format!("beyond the window: {}", self.state()))?;
        self.left -= 1;
        self.next_incoming = self.next_incoming.wrapping_add(1);
        let handle = fields.uint()?;
        ensure_eq("the handle", handle, self.theirs[1])?;
        fields.pass(4)?;
        let more = fields.flag()?;
        if self.partial == 0 {
            ensure(self.link_credit > 0, || {
                format!("without credit: {}", self.state())
            })?;
            self.link_credit -= 1;
            let number = fields
                .payload
                .first_chunk::<8>()
                .map(|bytes| u64::from_be_bytes(*bytes));
            ensure_eq("the message", number, Some(self.received))?;
        }
        self.partial += fields.payload.len();
        if !more {
            ensure_eq("the size", self.partial, self.manners.size)?;
            self.partial = 0;
            self.received += 1;
            self.unsettled += 1;
            self.progress.fetch_add(1, Ordering::Relaxed);
            if self.unsettled == BATCH || self.received == self.manners.messages {
                let last = u32::try_from(self.received - 1)?;
                let first = last + 1 - std::mem::take(&mut self.unsettled);
                let accepted = vec![0x00, 0x53, 0x24, 0x45];
                let fields = [vec![0x41], uint(first), uint(last), vec![0x41], accepted];
                self.frame(&performative(0x15, &fields), &[]);
            }
            if self.link_credit <= self.manners.credit / 2 {
                self.grant();
            }
        }
        let is_due = match self.manners.refresh {
            Refresh::AtHalf => self.left <= self.manners.window / 2,
            Refresh::WithCredit => self.left == 0,
        };
        if is_due {
            self.left = self.manners.window;
            self.flow(None);
        }
        Ok(())
    }

    // ---- what goes -----------------------------------------------------------------------------------------------

    /// As much as credit, window and the transport take.
    fn push(&mut self) {
        if self.attached < 2 {
            return;
        }
        while self.sent < self.manners.messages
            && self.window > 0
            && (self.credit > 0 || self.offset > 0)
            && self.output.len() < AHEAD
        {
            let room = self.max_frame_size.min(16 * 1024) - 64;
            let rest = self.manners.size - self.offset;
            let piece = rest.min(room);
            let mut payload = vec![0xa5; piece];
            let mut fields = vec![uint(SENDER)];
            if self.offset == 0 {
                payload[..8].copy_from_slice(&self.sent.to_be_bytes());
                let tag = [&[0xa0, 8][..], &self.sent.to_be_bytes()].concat();
                fields.extend([uint(self.next_delivery), tag, vec![0x43]]);
                self.next_delivery = self.next_delivery.wrapping_add(1);
                self.credit -= 1;
                self.delivery_count = self.delivery_count.wrapping_add(1);
            } else {
                fields.extend([vec![0x40], vec![0x40], vec![0x40]]);
            }
            let is_last = piece == rest;
            fields.extend([vec![0x42], vec![if is_last { 0x42 } else { 0x41 }]]);
            self.frame(&performative(0x14, &fields), &payload);
            self.window -= 1;
            self.next_outgoing = self.next_outgoing.wrapping_add(1);
            self.offset += piece;
            if is_last {
                self.offset = 0;
                self.sent += 1;
            }
        }
    }

    fn grant(&mut self) {
        self.link_credit = self.manners.credit;
        if self.manners.refresh == Refresh::WithCredit {
            self.left = self.manners.window;
        }
        self.flow(Some((
            u32::try_from(self.received).unwrap_or(u32::MAX),
            self.link_credit,
        )));
    }

    /// A flow of the session, or of the receiving link: how many have come, and how many more may.
    fn flow(&mut self, link: Option<(u32, u32)>) {
        let mut fields = vec![
            uint(self.next_incoming),
            uint(self.left),
            uint(self.next_outgoing),
            uint(u32::MAX),
        ];
        if let Some((count, credit)) = link {
            fields.extend([uint(RECEIVER), uint(count), uint(credit)]);
        }
        self.frame(&performative(0x13, &fields), &[]);
    }

    fn open(&mut self) {
        let channel_max = [&[0x60][..], &self.manners.channel_max.to_be_bytes()].concat();
        let container = if self.part == Part::Device { "dev" } else { "hub" };
        let fields = [
            text(container),
            vec![0x40],
            uint(self.manners.max_frame_size),
            channel_max,
        ];
        self.frame(&performative(0x10, &fields), &[]);
    }

    fn begin(&mut self, answers: Option<u16>) {
        let answers = answers.map_or(vec![0x40], |channel| {
            [&[0x60][..], &channel.to_be_bytes()].concat()
        });
        let fields = [
            answers,
            uint(0),
            uint(self.manners.window),
            uint(u32::MAX),
            uint(self.manners.handle_max),
        ];
        self.frame(&performative(0x11, &fields), &[]);
    }

    fn attach(&mut self, handle: u32, name: &str, address: &str, is_receiver: bool) {
        let terminus = |code| performative(code, &[text(address)]);
        let role = vec![if is_receiver { 0x41 } else { 0x42 }];
        let mut fields = vec![
            text(name),
            uint(handle),
            role,
            vec![0x40],
            vec![0x40],
            terminus(0x28),
            terminus(0x29),
        ];
        if !is_receiver {
            fields.extend([vec![0x40], vec![0x40], uint(0)]);
        }
        self.frame(&performative(0x12, &fields), &[]);
    }

    fn frame(&mut self, body: &[u8], payload: &[u8]) {
        self.say(0, body, payload);
    }

    fn say(&mut self, kind: u8, body: &[u8], payload: &[u8]) {
        let size = u32::try_from(8 + body.len() + payload.len()).unwrap_or(u32::MAX);
        self.output.extend(size.to_be_bytes());
        self.output.extend([2, kind, 0, 0]);
        self.output.extend(body);
        self.output.extend(payload);
    }
}

fn uint(value: u32) -> Vec<u8> {
    match u8::try_from(value) {
        Ok(small) => vec![0x52, small],
        Err(_) => [&[0x70][..], &value.to_be_bytes()].concat(),
    }
}

fn text(text: &str) -> Vec<u8> {
    let mut out = vec![0xa1, u8::try_from(text.len()).unwrap_or(u8::MAX)];
    out.extend(text.as_bytes());
    out
}

fn performative(code: u8, fields: &[Vec<u8>]) -> Vec<u8> {
    let body = fields.concat();
    let mut out = vec![0x00, 0x53, code, 0xd0];
    out.extend(u32::try_from(body.len() + 4).unwrap_or(u32::MAX).to_be_bytes());
    out.extend(u32::try_from(fields.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend(body);
    out
}

/// The fields of a performative, as far as these peers read them.
struct Fields<'b> {
    code: u8,
    left: usize,
    rest: &'b [u8],
    payload: &'b [u8],
}

impl<'b> Fields<'b> {
    fn of(body: &'b [u8]) -> Result<Self, Failure> {
        let broken = || {
            Failure::new(format!(
                "no performative: {:02x?}",
                body.get(..32.min(body.len()))
            ))
        };
        let (code, left, rest, size) = match body {
            [0x00, 0x53, code, 0x45, rest @ ..] => (*code, 0, rest, 0),
            [0x00, 0x53, code, 0xc0, size, count, rest @ ..] => {
                (*code, usize::from(*count), rest, usize::from(*size) - 1)
            }
            [0x00, 0x53, code, 0xd0, a, b, c, d, e, f, g, h, rest @ ..] => {
                let size = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
                let count = u32::from_be_bytes([*e, *f, *g, *h]) as usize;
                (*code, count, rest, size - 4)
            }
            _ => return Err(broken()),
        };
        let (rest, payload) = rest.split_at_checked(size).ok_or_else(broken)?;
        Ok(Fields {
            code,
            left,
            rest,
            payload,
        })
    }

    /// The format code and content of the next field; `None` when it is absent or null.
    fn next(&mut self) -> Result<Option<(u8, &'b [u8])>, Failure> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let (code, content) = self.value()?;
        Ok((code != 0x40).then_some((code, content)))
    }

    fn value(&mut self) -> Result<(u8, &'b [u8]), Failure> {
        let broken = || Failure::new("a broken value");
        let (&code, rest) = self.rest.split_first().ok_or_else(broken)?;
        self.rest = rest;
        if code == 0x00 {
            self.value()?;
            return self.value();
        }
        let length = match code >> 4 {
            0x4 => 0,
            0x5 => 1,
            0x6 => 2,
            0x7 => 4,
            0x8 => 8,
            0x9 => 16,
            0xa | 0xc | 0xe => 1 + usize::from(*rest.first().ok_or_else(broken)?),
            _ => 4 + u32::from_be_bytes(*rest.first_chunk().ok_or_else(broken)?) as usize,
        };
        let (content, rest) = rest.split_at_checked(length).ok_or_else(broken)?;
        self.rest = rest;
        Ok((code, content))
    }

    fn pass(&mut self, count: usize) -> Result<(), Failure> {
        for _ in 0..count {
            self.next()?;
        }
        Ok(())
    }

    fn uint(&mut self) -> Result<Option<u32>, Failure> {
        Ok(match self.next()? {
            Some((0x70, content)) => content.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)),
            Some((0x52, content)) => content.first().map(|&byte| u32::from(byte)),
            Some((0x43, _)) => Some(0),
            _ => None,
        })
    }

    fn flag(&mut self) -> Result<bool, Failure> {
        Ok(matches!(self.next()?, Some((0x41, _) | (0x56, [1]))))
    }

    fn text(&mut self) -> Result<&'b str, Failure> {
        match self.next()? {
            Some((0xa1, content)) => Ok(std::str::from_utf8(&content[1..])?),
            other => Err(Failure::new(format!("no text: {other:?}"))),
        }
    }
}
