//! The hub: takes, counts and accepts what comes, sends what is asked for. One thread, as many connections as come.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio_rustls::TlsAcceptor;

use super::Failure;
use super::cbs;
use super::tls::{self, RecordCounter};
use super::wire::{self, Fields, Frame, Input, MessageTemplate, Role, SessionFlow, Termini, WINDOW, room};

/// Credit of a device's link; given anew when half of it is used.
const CREDIT: u32 = 1000;
/// Stop encoding messages when so much waits for the socket.
const OUTPUT_LIMIT: usize = 128 * 1024;
const MAX_FRAME: usize = 65536;

/// What the hub does on links it sends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HubWork {
    Receive,
    /// Send messages of this size while [`Phase::SendingUntil`] lasts, then detach.
    Send(usize),
}

/// Counted by the hub, read by the rows.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) deliveries: AtomicU64,
    pub(crate) frames: AtomicU64,
    pub(crate) payload_bytes: AtomicU64,
    pub(crate) records: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) settled: AtomicU64,
    /// Requests to `$cbs` that were answered.
    pub(crate) tokens: AtomicU64,
    faults: Mutex<Vec<String>>,
}

impl Counters {
    fn fault(&self, text: String) {
        self.faults
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(text);
    }

    pub(crate) fn faults(&self) -> Vec<String> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What links that the hub sends on are to do now; after `SendingUntil` they detach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Waiting,
    SendingUntil(Instant),
}

/// The running hub.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) port: u16,
    pub(crate) counters: Arc<Counters>,
    phase: watch::Sender<Phase>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Hub {
    /// Listens on a free port of the loopback; with TLS unless devices come directly. Gives the CA file's text, too.
    pub(crate) fn start(work: HubWork, tls: bool) -> Result<(Self, String), Failure> {
        let (acceptor, ca) = if tls {
            let (acceptor, ca) = tls::self_signed()?;
            (Some(acceptor), ca)
        } else {
            (None, String::new())
        };
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let counters = Arc::new(Counters::default());
        let (phase, phases) = watch::channel(Phase::Waiting);
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let serving = Serving {
            acceptor,
            work,
            counters: Arc::clone(&counters),
            phases,
        };
        let thread = std::thread::Builder::new().name("hub".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serving.accept(listener) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok((
            Self {
                port,
                counters,
                phase,
                stop: Some(stop),
                thread: Some(thread),
            },
            ca,
        ))
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The thread may have ended by itself.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the hub's thread panicked");
        }
    }
}

/// What every connection of the hub shares.
#[derive(Clone)]
struct Serving {
    acceptor: Option<TlsAcceptor>,
    work: HubWork,
    counters: Arc<Counters>,
    phases: watch::Receiver<Phase>,
}

impl Serving {
    async fn accept(self, listener: std::net::TcpListener) {
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return self.counters.fault(format!("hub: {error}")),
        };
        while let Ok((stream, _)) = listener.accept().await {
            let serving = self.clone();
            tokio::spawn(async move {
                let counters = Arc::clone(&serving.counters);
                if let Err(failure) = serving.serve(stream).await {
                    counters.fault(format!("hub: {failure}"));
                }
            });
        }
    }

    async fn serve(self, stream: TcpStream) -> Result<(), Failure> {
        stream.set_nodelay(true)?;
        let stream = RecordCounter::new(stream, Arc::clone(&self.counters));
        match self.acceptor.clone() {
            Some(acceptor) => HubConnection::new(self).run(acceptor.accept(stream).await?).await,
            None => HubConnection::new(self).run(stream).await,
        }
    }
}

/// Writes some of it; with nothing left to write, flushes what TLS has still to write.
async fn write_or_flush(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<usize> {
    if bytes.is_empty() {
        writer.flush().await?;
        return Ok(0);
    }
    writer.write(bytes).await
}

#[derive(Debug, Default)]
struct HubSession {
    next_incoming: u32,
    since_flow: u32,
    next_delivery: Option<u32>,
    /// Deliveries of this turn that are complete and not accepted yet.
    to_accept: Option<(u32, u32)>,
    next_outgoing: u32,
    window_end: u32,
    next_outgoing_delivery: u32,
}

#[derive(Debug)]
struct HubLink {
    role: Role,
    delivery_count: u32,
    since_flow: u32,
    credit: u32,
    template: Option<MessageTemplate>,
    detached: bool,
    /// The node is `$cbs`.
    is_cbs: bool,
}

/// Where a connection stands before the performatives begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Greeting {
    Header,
    Sasl,
    AmqpHeader,
    Done,
}

struct HubConnection {
    serving: Serving,
    greeting: Greeting,
    output: Vec<u8>,
    sessions: HashMap<u16, HubSession>,
    links: HashMap<(u16, u32), HubLink>,
    /// Links that the hub sends on, in the order that they are served.
    senders: Vec<(u16, u32)>,
    next_sender: usize,
    closing: bool,
}

impl HubConnection {
    fn new(serving: Serving) -> Self {
        Self {
            serving,
            greeting: Greeting::Header,
            output: Vec::new(),
            sessions: HashMap::new(),
            links: HashMap::new(),
            senders: Vec::new(),
            next_sender: 0,
            closing: false,
        }
    }

    async fn run<S: AsyncRead + AsyncWrite>(mut self, stream: S) -> Result<(), Failure> {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut phases = self.serving.phases.clone();
        let mut input = Input::default();
        input.buffer().reserve(256 * 1024);
        let mut written = 0;
        let mut unflushed = false;
        loop {
            let until = self.pump();
            if self.closing && self.output.is_empty() && !unflushed {
                return Ok(writer.shutdown().await?);
            }
            tokio::select! {
                read = reader.read_buf(input.buffer()) => {
                    // The daemon is ended by the row when all is measured; a reset is as good as an end then.
                    match read {
                        Ok(0) | Err(_) => return Ok(()),
                        Ok(_) => self.take(&mut input)?,
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

    fn take(&mut self, input: &mut Input) -> Result<(), Failure> {
        while self.greet(input) {}
        while self.greeting == Greeting::Done {
            let Some((frame, size)) = wire::read_frame(input.rest())? else {
                break;
            };
            self.handle(frame)?;
            input.consume(size);
        }
        input.compact();
        self.accept_all();
        Ok(())
    }

    /// Takes one protocol header or SASL frame, if all of it is there.
    fn greet(&mut self, input: &mut Input) -> bool {
        match self.greeting {
            Greeting::Header | Greeting::AmqpHeader => {
                let Some(header) = input.rest().first_chunk::<8>() else {
                    return false;
                };
                self.output.extend_from_slice(header);
                if *header == wire::SASL_HEADER {
                    wire::FrameWriter::sasl(&mut self.output, wire::SASL_MECHANISMS)
                        .symbol("ANONYMOUS")
                        .finish();
                    self.greeting = Greeting::Sasl;
                } else {
                    self.greeting = Greeting::Done;
                }
                input.consume(8);
                true
            }
            Greeting::Sasl => {
                let Ok(Some((frame, size))) = wire::read_frame(input.rest()) else {
                    return false;
                };
                if frame.code == wire::SASL_INIT {
                    wire::FrameWriter::sasl(&mut self.output, wire::SASL_OUTCOME)
                        .ubyte(0)
                        .finish();
                    self.greeting = Greeting::AmqpHeader;
                }
                input.consume(size);
                true
            }
            Greeting::Done => false,
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
                self.sessions.remove(&channel);
                self.links.retain(|(of, _), _| *of != channel);
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
        let session = HubSession {
            next_incoming: fields.uint().unwrap_or(0),
            window_end: fields.uint().unwrap_or(0),
            ..HubSession::default()
        };
        self.sessions.insert(channel, session);
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
        let mut link = HubLink {
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
        match (role, self.serving.work) {
            (Role::Receiver, _) => {
                let session = self.session(channel)?;
                let next = SessionFlow {
                    next_incoming: session.next_incoming,
                    next_outgoing: session.next_outgoing,
                };
                wire::flow(&mut self.output, channel, next, Some((handle, 0, CREDIT)));
            }
            (Role::Sender, HubWork::Send(size)) => {
                // Small enough for any daemon: what a peer must take at least is far below its default.
                link.template = Some(MessageTemplate::new(channel, handle, size, MAX_FRAME / 4));
                self.senders.push((channel, handle));
            }
            (Role::Sender, HubWork::Receive) => {}
        }
        self.links.insert((channel, handle), link);
        Ok(())
    }

    fn on_detach(&mut self, channel: u16, mut fields: Fields<'_>) {
        let Some(handle) = fields.uint() else { return };
        self.senders.retain(|key| *key != (channel, handle));
        if let Some(link) = self.links.remove(&(channel, handle))
            && !link.detached
        {
            wire::detach(&mut self.output, channel, handle);
        }
    }

    fn on_transfer(&mut self, channel: u16, mut fields: Fields<'_>, payload: &[u8]) -> Result<(), Failure> {
        let handle = fields
            .uint()
            .ok_or_else(|| Failure::new("a transfer without a handle"))?;
        let id = fields.uint();
        fields.skip(3);
        let more = fields.bool() == Some(true);
        let counters = Arc::clone(&self.serving.counters);
        counters.frames.fetch_add(1, Ordering::Relaxed);
        counters
            .payload_bytes
            .fetch_add(payload.len() as u64, Ordering::Relaxed);

        let session = self
            .sessions
            .get_mut(&channel)
            .ok_or_else(|| no_session(channel))?;
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
                counters.fault(format!("delivery-id {id} after {expected:?}: a gap"));
            }
            session.next_delivery = Some(id.wrapping_add(1));
            session.to_accept = Some((session.to_accept.map_or(id, |(first, _)| first), id));
            let link = self
                .links
                .get_mut(&(channel, handle))
                .ok_or_else(|| Failure::new("no such link"))?;
            link.delivery_count = link.delivery_count.wrapping_add(1);
            link.since_flow += 1;
            is_request = link.is_cbs;
            if !is_request {
                counters.deliveries.fetch_add(1, Ordering::Relaxed);
            }
            if link.since_flow >= CREDIT / 2 {
                link.since_flow = 0;
                flow_due = true;
                credit = Some((handle, link.delivery_count, CREDIT));
            }
        }
        if flow_due {
            session.since_flow = 0;
            let next = SessionFlow {
                next_incoming: session.next_incoming,
                next_outgoing: session.next_outgoing,
            };
            wire::flow(&mut self.output, channel, next, credit);
        }
        if is_request {
            self.answer_request(channel, payload)?;
        }
        Ok(())
    }

    /// Takes any token. The answer goes over the session's link from `$cbs`, whose credit the daemon keeps up.
    fn answer_request(&mut self, channel: u16, request: &[u8]) -> Result<(), Failure> {
        let reply = self
            .links
            .iter()
            .find(|((of, _), link)| *of == channel && link.is_cbs && link.role == Role::Sender)
            .map(|((_, handle), _)| *handle);
        let handle = reply.ok_or_else(|| Failure::new("a request without a link for its answer"))?;
        let session = self
            .sessions
            .get_mut(&channel)
            .ok_or_else(|| no_session(channel))?;
        let delivery = session.next_outgoing_delivery;
        cbs::answer(&mut self.output, channel, handle, delivery, request)
            .ok_or_else(|| Failure::new("a request without a message-id"))?;
        session.next_outgoing_delivery = delivery.wrapping_add(1);
        session.next_outgoing = session.next_outgoing.wrapping_add(1);
        self.serving.counters.tokens.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn accept_all(&mut self) {
        for (channel, session) in &mut self.sessions {
            if let Some((first, last)) = session.to_accept.take() {
                wire::accept(&mut self.output, *channel, first, last);
            }
        }
    }

    fn on_disposition(&mut self, mut fields: Fields<'_>) {
        let is_receiver = fields.bool() == Some(true);
        let Some(first) = fields.uint() else { return };
        let last = fields.uint().unwrap_or(first);
        if is_receiver && fields.bool() == Some(true) {
            let count = u64::from(last.wrapping_sub(first)) + 1;
            self.serving.counters.settled.fetch_add(count, Ordering::Relaxed);
        }
    }

    fn on_flow(&mut self, channel: u16, mut fields: Fields<'_>) -> Result<(), Failure> {
        let next_incoming = fields.uint().unwrap_or(0);
        let window = fields.uint().unwrap_or(0);
        self.session(channel)?.window_end = next_incoming.wrapping_add(window);
        fields.skip(2);
        if let Some(handle) = fields.uint()
            && let Some(link) = self.links.get_mut(&(channel, handle))
            && link.role == Role::Sender
        {
            let count = fields.uint().unwrap_or(0);
            let credit = fields.uint().unwrap_or(0);
            link.credit = count.wrapping_add(credit).wrapping_sub(link.delivery_count);
        }
        Ok(())
    }

    /// Sends on the hub's own links, one message each in turn, and detaches them at the end. Gives the time of that.
    fn pump(&mut self) -> Instant {
        let until = match *self.serving.phases.borrow() {
            // Long after the row has ended; the signal comes first.
            Phase::Waiting => return Instant::now() + Duration::from_secs(3600),
            Phase::SendingUntil(until) => until,
        };
        if Instant::now() >= until {
            for key in std::mem::take(&mut self.senders) {
                if let Some(link) = self.links.get_mut(&key) {
                    link.detached = true;
                    wire::detach(&mut self.output, key.0, key.1);
                }
            }
            return until;
        }
        let mut idle = 0;
        while self.output.len() < OUTPUT_LIMIT && idle < self.senders.len() {
            self.next_sender = (self.next_sender + 1) % self.senders.len();
            let key = self.senders[self.next_sender];
            if self.send_one(key) { idle = 0 } else { idle += 1 }
        }
        until
    }

    fn send_one(&mut self, (channel, handle): (u16, u32)) -> bool {
        let (Some(session), Some(link)) = (
            self.sessions.get_mut(&channel),
            self.links.get_mut(&(channel, handle)),
        ) else {
            return false;
        };
        let Some(template) = &link.template else {
            return false;
        };
        if link.credit == 0 || room(session.window_end, session.next_outgoing) < template.frames() {
            return false;
        }
        template.append(session.next_outgoing_delivery, &mut self.output);
        session.next_outgoing_delivery = session.next_outgoing_delivery.wrapping_add(1);
        session.next_outgoing = session.next_outgoing.wrapping_add(template.frames());
        link.credit -= 1;
        link.delivery_count = link.delivery_count.wrapping_add(1);
        self.serving.counters.sent.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn session(&mut self, channel: u16) -> Result<&mut HubSession, Failure> {
        self.sessions.get_mut(&channel).ok_or_else(|| no_session(channel))
    }
}

fn no_session(channel: u16) -> Failure {
    Failure::new(format!("no session on channel {channel}"))
}
