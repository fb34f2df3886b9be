//! One connection of the hub: its sessions and links, and what is written on it.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::Failure;
use super::cbs;
use super::greeting::Greeting;
use super::hub::{FOREVER, HubWork, Phase, Serving};
use super::wire::{self, Fields, Frame, Input, MessageTemplate, Role, SessionFlow, Termini, WINDOW, room};

/// Credit of a device's link; given anew when half of it is used.
const CREDIT: u32 = 1000;
/// Stop encoding messages when so much waits for the socket.
const OUTPUT_LIMIT: usize = 128 * 1024;
/// What is read before it is looked at, if so much is there.
const INPUT_LIMIT: usize = 128 * 1024;
/// Messages that a link sends before it is another's turn: as a queue that has filled would be emptied.
const BURST: u32 = 32;
const MAX_FRAME: usize = 65536;
/// A link to a node with this in its name never has credit.
pub(crate) const STARVED: &str = "starved";

#[derive(Debug, Default)]
struct Session {
    next_incoming: u32,
    since_flow: u32,
    next_delivery: Option<u32>,
    /// Deliveries of this turn that are complete and not accepted yet.
    to_accept: Option<(u32, u32)>,
    next_outgoing: u32,
    window_end: u32,
    next_outgoing_delivery: u32,
    /// By handle.
    links: Vec<Option<Link>>,
}

#[derive(Debug)]
struct Link {
    role: Role,
    delivery_count: u32,
    since_flow: u32,
    credit: u32,
    template: Option<MessageTemplate>,
    detached: bool,
    /// The node is `$cbs`.
    is_cbs: bool,
}

impl Session {
    fn link(&mut self, handle: u32) -> Option<&mut Link> {
        self.links.get_mut(handle as usize)?.as_mut()
    }

    fn flow(&self) -> SessionFlow {
        SessionFlow {
            next_incoming: self.next_incoming,
            next_outgoing: self.next_outgoing,
        }
    }
}

/// What one read brought, counted in one go: the counters are shared by all connections.
#[derive(Debug, Default)]
struct Taken {
    deliveries: u64,
    frames: u64,
    payload_bytes: u64,
    settled: u64,
}

pub(super) struct HubConnection {
    serving: Serving,
    greeting: Greeting,
    /// What it has to say.
    pub(super) output: Vec<u8>,
    /// By channel.
    sessions: Vec<Option<Session>>,
    /// Channels with deliveries to accept.
    to_accept: Vec<u16>,
    /// Links that the hub sends on, in the order that they are served.
    senders: Vec<(u16, u32)>,
    next_sender: usize,
    taken: Taken,
    closing: bool,
}

/// Writes some of it; with nothing left to write, flushes what TLS has still to write.
async fn write_or_flush(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<usize> {
    if bytes.is_empty() {
        writer.flush().await?;
        return Ok(0);
    }
    writer.write(bytes).await
}

/// Reads what else is there already: TLS gives one record at a time. The end, and errors, come again with the next read.
async fn read_on(reader: &mut (impl AsyncRead + Unpin), input: &mut Vec<u8>) {
    while input.len() < INPUT_LIMIT {
        tokio::select! {
            biased;
            read = reader.read_buf(input) => if !matches!(read, Ok(1..)) { return },
            () = std::future::ready(()) => return,
        }
    }
}

impl HubConnection {
    pub(super) fn new(serving: Serving) -> Self {
        Self {
            serving,
            greeting: Greeting::default(),
            output: Vec::new(),
            sessions: Vec::new(),
            to_accept: Vec::new(),
            senders: Vec::new(),
            next_sender: 0,
            taken: Taken::default(),
            closing: false,
        }
    }

    pub(super) async fn run<S: AsyncRead + AsyncWrite>(mut self, stream: S) -> Result<(), Failure> {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut phases = self.serving.phases.clone();
        let mut input = Input::default();
        let mut written = 0;
        let mut unflushed = false;
        loop {
            let until = self.pump();
            if self.closing && self.output.is_empty() && !unflushed {
                // Who has said all may have gone without waiting for our end.
                let _ = writer.shutdown().await;
                return Ok(());
            }
            tokio::select! {
                read = reader.read_buf(input.buffer()) => {
                    // The daemon is ended by the row when all is measured; a reset is as good as an end then.
                    match read {
                        Ok(0) | Err(_) => return Ok(()),
                        Ok(_) => {
                            read_on(&mut reader, input.buffer()).await;
                            self.take(&mut input)?;
                        }
                    }
                }
                wrote = write_or_flush(&mut writer, &self.output[written..]), if unflushed || !self.output.is_empty() => {
                    unflushed = !self.output.is_empty();
                    written += wrote?;
                    if written == self.output.len() {
                        self.output.clear();
                        written = 0;
                    }
                }
                changed = phases.changed(), if !self.senders.is_empty() => {
                    changed?;
                }
                () = tokio::time::sleep_until(until.into()), if !self.senders.is_empty() => {}
            }
        }
    }

    /// Takes all whole frames of the input.
    pub(super) fn take(&mut self, input: &mut Input) -> Result<(), Failure> {
        if self.greeting.take(input, &mut self.output) {
            while let Some((frame, size)) = wire::read_frame(input.rest())? {
                self.handle(frame)?;
                input.consume(size);
            }
        }
        input.compact();
        self.accept_all();
        self.count();
        Ok(())
    }

    /// Deliveries that have come whole, on all connections.
    pub(super) fn delivered(&self) -> u64 {
        self.serving.counters.deliveries.load(Ordering::Relaxed)
    }

    fn count(&mut self) {
        let taken = std::mem::take(&mut self.taken);
        let counters = &self.serving.counters;
        for (counter, count) in [
            (&counters.deliveries, taken.deliveries),
            (&counters.frames, taken.frames),
            (&counters.payload_bytes, taken.payload_bytes),
            (&counters.settled, taken.settled),
        ] {
            if count > 0 {
                counter.fetch_add(count, Ordering::Relaxed);
            }
        }
    }

    fn handle(&mut self, frame: Frame<'_>) -> Result<(), Failure> {
        let channel = frame.channel;
        match frame.code {
            wire::TRANSFER => self.on_transfer(channel, frame.fields, frame.payload)?,
            wire::DISPOSITION => self.on_disposition(frame.fields),
            wire::FLOW => self.on_flow(channel, frame.fields)?,
            wire::OPEN => wire::open(&mut self.output, "hub"),
            wire::BEGIN => self.on_begin(channel, frame.fields),
            wire::ATTACH => self.on_attach(channel, frame.fields)?,
            wire::DETACH => self.on_detach(channel, frame.fields),
            wire::END => {
                if let Some(session) = self.sessions.get_mut(usize::from(channel)) {
                    *session = None;
                }
                self.senders.retain(|(of, _)| *of != channel);
                wire::FrameWriter::amqp(&mut self.output, channel, wire::END).finish();
            }
            wire::CLOSE => {
                wire::FrameWriter::amqp(&mut self.output, 0, wire::CLOSE).finish();
                self.closing = true;
            }
            wire::EMPTY => {}
            other => return Err(Failure::new(format!("a frame with the performative {other:#x}"))),
        }
        Ok(())
    }

    fn on_begin(&mut self, channel: u16, mut fields: Fields<'_>) {
        fields.skip(1);
        let session = Session {
            next_incoming: fields.uint().unwrap_or(0),
            window_end: fields.uint().unwrap_or(0),
            ..Session::default()
        };
        put(&mut self.sessions, usize::from(channel), session);
        wire::begin(&mut self.output, channel, Some(channel));
    }

    fn on_attach(&mut self, channel: u16, mut fields: Fields<'_>) -> Result<(), Failure> {
        let name = fields
            .text()
            .ok_or_else(|| Failure::new("an attach without a name"))?;
        let handle = fields
            .uint()
            .ok_or_else(|| Failure::new("an attach without a handle"))?;
        let role = if fields.bool() == Some(true) {
            Role::Sender
        } else {
            Role::Receiver
        };
        fields.skip(2);
        let (source, target) = (fields.first_of_described(), fields.first_of_described());
        let termini = Termini {
            source: source.as_deref(),
            target: target.as_deref(),
        };
        wire::attach(&mut self.output, channel, &name, handle, role, termini);
        let mut link = Link {
            role,
            delivery_count: 0,
            since_flow: 0,
            credit: 0,
            template: None,
            detached: false,
            is_cbs: [&source, &target]
                .into_iter()
                .flatten()
                .any(|node| node == cbs::NODE),
        };
        let next = session(&mut self.sessions, channel)?.flow();
        match (role, self.serving.work) {
            (Role::Receiver, _) if target.is_some_and(|target| target.contains(STARVED)) => {}
            (Role::Receiver, _) => {
                wire::flow(&mut self.output, channel, next, Some((handle, 0, CREDIT)));
            }
            (Role::Sender, HubWork::Send(size) | HubWork::SendSettled(size)) => {
                // Small enough for any daemon: what a peer must take at least is far below its default.
                let template = MessageTemplate::new(channel, handle, size, MAX_FRAME / 4);
                link.template = Some(match self.serving.work {
                    HubWork::SendSettled(_) => template.settled(),
                    HubWork::Send(_) | HubWork::Receive => template,
                });
                self.senders.push((channel, handle));
            }
            (Role::Sender, HubWork::Receive) => {}
        }
        put(
            &mut session(&mut self.sessions, channel)?.links,
            handle as usize,
            link,
        );
        Ok(())
    }

    fn on_detach(&mut self, channel: u16, mut fields: Fields<'_>) {
        let Some(handle) = fields.uint() else { return };
        self.senders.retain(|key| *key != (channel, handle));
        let link = self
            .sessions
            .get_mut(usize::from(channel))
            .and_then(|session| session.as_mut()?.links.get_mut(handle as usize)?.take());
        if link.is_some_and(|link| !link.detached) {
            wire::detach(&mut self.output, channel, handle);
        }
    }

    fn on_transfer(&mut self, channel: u16, mut fields: Fields<'_>, payload: &[u8]) -> Result<(), Failure> {
        let handle = fields
            .uint()
            .ok_or_else(|| Failure::new("a transfer without a handle"))?;
        let id = fields.uint();
        fields.skip(2);
        let is_settled = fields.bool() == Some(true);
        let more = fields.bool() == Some(true);
        self.taken.frames += 1;
        self.taken.payload_bytes += payload.len() as u64;

        let session = session(&mut self.sessions, channel)?;
        session.next_incoming = session.next_incoming.wrapping_add(1);
        session.since_flow += 1;
        let mut flow_due = session.since_flow >= WINDOW / 2;
        let mut credit = None;
        let mut is_request = false;
        if !more {
            let expected = session.next_delivery;
            let id = id
                .or(expected)
                .ok_or_else(|| Failure::new("a first transfer without a delivery-id"))?;
            if expected.is_some_and(|expected| expected != id) {
                let fault = format!("delivery-id {id} after {expected:?}: a gap");
                self.serving.counters.fault(fault);
            }
            session.next_delivery = Some(id.wrapping_add(1));
            if !is_settled {
                if session.to_accept.is_none() {
                    self.to_accept.push(channel);
                }
                session.to_accept = Some((session.to_accept.map_or(id, |(first, _)| first), id));
            }
            let link = session.link(handle).ok_or_else(|| Failure::new("no such link"))?;
            link.delivery_count = link.delivery_count.wrapping_add(1);
            link.since_flow += 1;
            is_request = link.is_cbs;
            if !is_request {
                self.taken.deliveries += 1;
            }
            if link.since_flow >= CREDIT / 2 {
                link.since_flow = 0;
                flow_due = true;
                credit = Some((handle, link.delivery_count, CREDIT));
            }
        }
        if flow_due {
            session.since_flow = 0;
            wire::flow(&mut self.output, channel, session.flow(), credit);
        }
        if is_request {
            self.answer_request(channel, payload)?;
        }
        Ok(())
    }

    /// Takes any token. The answer goes over the session's link from `$cbs`, whose credit the daemon keeps up.
    fn answer_request(&mut self, channel: u16, request: &[u8]) -> Result<(), Failure> {
        let session = session(&mut self.sessions, channel)?;
        let is_reply =
            |link: &Option<Link>| matches!(link, Some(link) if link.is_cbs && link.role == Role::Sender);
        let handle = session.links.iter().position(is_reply);
        let handle = handle.ok_or_else(|| Failure::new("a request without a link for its answer"))?;
        let delivery = session.next_outgoing_delivery;
        cbs::answer(&mut self.output, channel, handle as u32, delivery, request)
            .ok_or_else(|| Failure::new("a request without a message-id"))?;
        session.next_outgoing_delivery = delivery.wrapping_add(1);
        session.next_outgoing = session.next_outgoing.wrapping_add(1);
        self.serving.counters.tokens.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn accept_all(&mut self) {
        for channel in self.to_accept.drain(..) {
            let session = self
                .sessions
                .get_mut(usize::from(channel))
                .and_then(Option::as_mut);
            if let Some((first, last)) = session.and_then(|session| session.to_accept.take()) {
                wire::accept(&mut self.output, channel, first, last);
            }
        }
    }

    fn on_disposition(&mut self, mut fields: Fields<'_>) {
        let is_receiver = fields.bool() == Some(true);
        let Some(first) = fields.uint() else { return };
        let last = fields.uint().unwrap_or(first);
        if is_receiver && fields.bool() == Some(true) {
            self.taken.settled += u64::from(last.wrapping_sub(first)) + 1;
        }
    }

    fn on_flow(&mut self, channel: u16, mut fields: Fields<'_>) -> Result<(), Failure> {
        let next_incoming = fields.uint().unwrap_or(0);
        let window = fields.uint().unwrap_or(0);
        let session = session(&mut self.sessions, channel)?;
        session.window_end = next_incoming.wrapping_add(window);
        fields.skip(2);
        if let Some(link) = fields.uint().and_then(|handle| session.link(handle))
            && link.role == Role::Sender
        {
            let count = fields.uint().unwrap_or(0);
            let credit = fields.uint().unwrap_or(0);
            link.credit = count.wrapping_add(credit).wrapping_sub(link.delivery_count);
        }
        Ok(())
    }

    /// Sends on the hub's own links, a few messages each in turn, and detaches them at the end. Gives the time of that.
    pub(super) fn pump(&mut self) -> Instant {
        let until = match *self.serving.phases.borrow() {
            // The signal comes first.
            Phase::Waiting => return Instant::now() + FOREVER,
            Phase::SendingUntil(until) => until,
        };
        if self.senders.is_empty() {
            return until;
        }
        if Instant::now() >= until {
            for (channel, handle) in std::mem::take(&mut self.senders) {
                let session = self
                    .sessions
                    .get_mut(usize::from(channel))
                    .and_then(Option::as_mut);
                if let Some(link) = session.and_then(|session| session.link(handle)) {
                    link.detached = true;
                    wire::detach(&mut self.output, channel, handle);
                }
            }
            return until;
        }
        let mut idle = 0;
        let mut sent = 0;
        while self.output.len() < OUTPUT_LIMIT && idle < self.senders.len() {
            self.next_sender = (self.next_sender + 1) % self.senders.len();
            let burst = self.send_burst(self.senders[self.next_sender]);
            sent += u64::from(burst);
            idle = if burst > 0 { 0 } else { idle + 1 };
        }
        if sent > 0 {
            self.serving.counters.sent.fetch_add(sent, Ordering::Relaxed);
        }
        until
    }

    /// Sends on one link, and tells how many messages.
    fn send_burst(&mut self, (channel, handle): (u16, u32)) -> u32 {
        let Some(session) = self
            .sessions
            .get_mut(usize::from(channel))
            .and_then(Option::as_mut)
        else {
            return 0;
        };
        let mut sent = 0;
        while sent < BURST && self.output.len() < OUTPUT_LIMIT {
            let window = room(session.window_end, session.next_outgoing);
            let id = session.next_outgoing_delivery;
            let Some(link) = session.link(handle) else { break };
            let Some(template) = &link.template else { break };
            let frames = template.frames();
            if link.credit == 0 || window < frames {
                break;
            }
            template.append(id, &mut self.output);
            link.credit -= 1;
            link.delivery_count = link.delivery_count.wrapping_add(1);
            session.next_outgoing_delivery = id.wrapping_add(1);
            session.next_outgoing = session.next_outgoing.wrapping_add(frames);
            sent += 1;
        }
        sent
    }
}

/// Puts `value` at a place that may be beyond the end.
fn put<T>(places: &mut Vec<Option<T>>, at: usize, value: T) {
    if places.len() <= at {
        places.resize_with(at + 1, || None);
    }
    places[at] = Some(value);
}

fn session(sessions: &mut [Option<Session>], channel: u16) -> Result<&mut Session, Failure> {
    sessions
        .get_mut(usize::from(channel))
        .and_then(Option::as_mut)
        .ok_or_else(|| Failure::new(format!("no session on channel {channel}")))
}
