//! A device's side of the protocol: one session, one link with the handle 0. Sans-I/O.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Failure;
use super::wire::{self, Fields, Frame, Input, MessageTemplate, Role, SessionFlow, Termini, WINDOW, room};

/// Credit that a receiving device keeps given.
const CREDIT: u32 = 1000;

/// What one device, or several, did.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) sent: u64,
    pub(crate) settled: u64,
    pub(crate) received: u64,
    /// Of each message that was timed: from when it was sent, or should have been, until it was known to be accepted.
    pub(crate) latencies: Vec<Duration>,
    /// Each device's own 99th percentile.
    pub(crate) device_p99: Vec<Duration>,
    /// When the last message was settled or received.
    pub(crate) last: Option<Instant>,
}

impl Tally {
    pub(crate) fn add(&mut self, mut other: Self) {
        self.sent += other.sent;
        self.settled += other.settled;
        self.received += other.received;
        other.latencies.sort_unstable();
        self.device_p99.extend(percentile(&other.latencies, 99.0));
        self.latencies.append(&mut other.latencies);
        self.last = self.last.max(other.last);
    }
}

/// The value that so many percent of all do not exceed.
pub(crate) fn percentile(sorted: &[Duration], percent: f64) -> Option<Duration> {
    let rank = (sorted.len() as f64 * percent / 100.0).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// A device, and what it has to say.
#[derive(Debug, Default)]
pub(crate) struct DeviceState {
    pub(crate) tally: Tally,
    pub(crate) output: Vec<u8>,
    /// Messages that are timed and not settled.
    in_flight: VecDeque<Instant>,
    greeted: bool,
    attached: bool,
    pub(crate) detached: bool,
    pub(crate) closed: bool,
    /// The session window: transfers up to this id may be sent.
    window_end: u32,
    next_outgoing: u32,
    next_delivery: u32,
    credit_end: u32,
    next_incoming: u32,
    since_flow: u32,
    delivery_count: u32,
    since_credit: u32,
    to_accept: Option<(u32, u32)>,
    max_frame: usize,
}

impl DeviceState {
    /// Says all that leads to a link.
    pub(crate) fn new(number: usize, role: Role) -> Self {
        let mut device = Self::default();
        let out = &mut device.output;
        out.extend_from_slice(&wire::AMQP_HEADER);
        wire::open(out, &format!("device-{number}"));
        wire::begin(out, 0, None);
        let address = match role {
            Role::Receiver => format!("devices/d{number}/messages/deviceBound"),
            Role::Sender => format!("devices/d{number}/messages/events"),
        };
        let termini = match role {
            Role::Sender => Termini {
                source: None,
                target: Some(&address),
            },
            Role::Receiver => Termini {
                source: Some(&address),
                target: None,
            },
        };
        wire::attach(out, 0, "link", 0, role, termini);
        device
    }

    /// Whether the link is there, and has credit if it is for sending.
    pub(crate) fn is_ready(&self, role: Role) -> bool {
        self.attached && (role == Role::Receiver || self.credit_end > 0)
    }

    /// A message of this size, in frames that the other side takes.
    pub(crate) fn template(&self, size: usize) -> MessageTemplate {
        MessageTemplate::new(0, 0, size, self.max_frame)
    }

    /// Takes all whole frames of the input.
    pub(crate) fn take(&mut self, input: &mut Input) -> Result<(), Failure> {
        if !self.greeted {
            let Some(header) = input.rest().first_chunk::<8>() else {
                return Ok(());
            };
            if *header != wire::AMQP_HEADER {
                return Err(Failure::new(format!("greeted with {header:?}")));
            }
            self.greeted = true;
            input.consume(8);
        }
        while let Some((frame, size)) = wire::read_frame(input.rest())? {
            self.handle(frame)?;
            input.consume(size);
        }
        input.compact();
        self.accept_all();
        Ok(())
    }

    pub(crate) fn may_send(&self, frames: u32) -> bool {
        room(self.window_end, self.next_outgoing) >= frames && room(self.credit_end, self.next_delivery) > 0
    }

    /// Says goodbye.
    pub(crate) fn close(&mut self) {
        wire::FrameWriter::amqp(&mut self.output, 0, wire::CLOSE).finish();
    }

    /// Sends a message, timed from `since`.
    pub(crate) fn send(&mut self, template: &MessageTemplate, since: Option<Instant>) {
        template.append(self.next_delivery, &mut self.output);
        self.next_delivery = self.next_delivery.wrapping_add(1);
        self.next_outgoing = self.next_outgoing.wrapping_add(template.frames());
        self.tally.sent += 1;
        self.tally.settled += u64::from(template.is_settled());
        self.in_flight.extend(since);
    }

    fn handle(&mut self, frame: Frame<'_>) -> Result<(), Failure> {
        let mut fields = frame.fields;
        match frame.code {
            wire::OPEN => {
                fields.skip(2);
                self.max_frame = fields.uint().unwrap_or(u32::MAX).min(65536) as usize;
            }
            wire::BEGIN => {
                fields.skip(1);
                self.next_incoming = fields.uint().unwrap_or(0);
                self.window_end = fields.uint().unwrap_or(0);
            }
            wire::ATTACH => self.attached = true,
            wire::FLOW => self.on_flow(fields),
            wire::TRANSFER => self.on_transfer(fields),
            wire::DISPOSITION => self.on_disposition(fields),
            wire::DETACH => {
                fields.skip(2);
                if let Some(condition) = fields.first_of_described() {
                    return Err(Failure::new(format!("the link was closed with {condition}")));
                }
                self.accept_all();
                wire::detach(&mut self.output, 0, 0);
                self.detached = true;
            }
            wire::CLOSE => self.closed = true,
            wire::EMPTY => {}
            other => return Err(Failure::new(format!("a frame with the performative {other:#x}"))),
        }
        Ok(())
    }

    fn on_flow(&mut self, mut fields: Fields<'_>) {
        let next_incoming = fields.uint().unwrap_or(0);
        self.window_end = next_incoming.wrapping_add(fields.uint().unwrap_or(0));
        fields.skip(2);
        if fields.uint().is_some() {
            let count = fields.uint().unwrap_or(0);
            self.credit_end = count.wrapping_add(fields.uint().unwrap_or(0));
        }
    }

    fn on_transfer(&mut self, mut fields: Fields<'_>) {
        fields.skip(1);
        let id = fields.uint();
        fields.skip(2);
        let is_settled = fields.bool() == Some(true);
        let more = fields.bool() == Some(true);
        self.next_incoming = self.next_incoming.wrapping_add(1);
        self.since_flow += 1;
        let next = self.to_accept.map(|(_, last)| last.wrapping_add(1));
        if !more && let Some(id) = id.or(next) {
            if !is_settled {
                self.to_accept = Some((self.to_accept.map_or(id, |(first, _)| first), id));
            }
            self.delivery_count = self.delivery_count.wrapping_add(1);
            self.since_credit += 1;
            self.tally.received += 1;
            self.tally.last = Some(Instant::now());
        }
        if self.since_credit >= CREDIT / 2 || self.since_flow >= WINDOW / 2 {
            self.give_credit();
        }
    }

    /// Says how much may come.
    pub(crate) fn give_credit(&mut self) {
        self.since_credit = 0;
        self.since_flow = 0;
        let session = SessionFlow {
            next_incoming: self.next_incoming,
            next_outgoing: self.next_outgoing,
        };
        wire::flow(
            &mut self.output,
            0,
            session,
            Some((0, self.delivery_count, CREDIT)),
        );
    }

    fn accept_all(&mut self) {
        if let Some((first, last)) = self.to_accept.take() {
            wire::accept(&mut self.output, 0, first, last);
        }
    }

    fn on_disposition(&mut self, mut fields: Fields<'_>) {
        let is_receiver = fields.bool() == Some(true);
        let Some(first) = fields.uint() else { return };
        let last = fields.uint().unwrap_or(first);
        if !is_receiver || fields.bool() != Some(true) {
            return;
        }
        let count = last.wrapping_sub(first) as usize + 1;
        let now = Instant::now();
        self.tally.settled += count as u64;
        self.tally.last = Some(now);
        // The hub accepts in the order in which it was sent.
        let timed = self.in_flight.drain(..count.min(self.in_flight.len()));
        self.tally
            .latencies
            .extend(timed.map(|since| now.saturating_duration_since(since)));
    }
}
