//! One device: a bare socket, one session and one link on it.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;

use super::alarm::Alarm;
use super::rig::Failure;
use super::rig::wire::{
    self, Fields, Frame, Input, MessageTemplate, Role, SessionFlow, Termini, WINDOW, room,
};

/// Credit that a receiving device keeps given.
const CREDIT: u32 = 1000;
const OUTPUT_LIMIT: usize = 64 * 1024;
/// How long anything but the load itself may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What each device does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceWork {
    /// Send messages of this size for a while, as fast as credit and windows let it.
    Send {
        size: usize,
        duration: Duration,
        /// Whether to note how long each takes.
        timed: bool,
    },
    /// One message in each interval, the devices spread over it, whether the earlier ones are settled or not.
    Paced {
        size: usize,
        every: Duration,
        duration: Duration,
        /// Of all devices that share the pace.
        count: usize,
    },
    /// Receive and accept until the hub detaches the link.
    Receive,
    /// Send one message of this size and wait until it is accepted, again and again for a while.
    PingPong { size: usize, duration: Duration },
    /// Attach a link and do nothing.
    Idle,
    /// Connect, attach, send one message, close, as one device after the other for a while.
    Churn { size: usize, duration: Duration },
}

/// What one device, or all devices of a row, did.
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

/// A device that is attached and has credit.
pub(crate) struct Device {
    number: u32,
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    input: Input,
    output: Vec<u8>,
    state: State,
}

/// The protocol state of a device: one session, one link with the handle 0.
#[derive(Debug, Default)]
struct State {
    tally: Tally,
    /// Messages that are timed and not settled.
    in_flight: VecDeque<Instant>,
    greeted: bool,
    attached: bool,
    detached: bool,
    closed: bool,
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

impl Device {
    /// Connects from an address of the loopback, so that ports do not run out, and attaches a link.
    pub(crate) async fn connect(
        port: u16,
        source: Ipv4Addr,
        number: usize,
        work: DeviceWork,
    ) -> Result<Self, Failure> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((source, 0).into())?;
        let stream = socket.connect((Ipv4Addr::LOCALHOST, port).into()).await?;
        stream.set_nodelay(true)?;
        let (reader, writer) = stream.into_split();
        let mut device = Self {
            number: number as u32,
            reader,
            writer,
            input: Input::default(),
            output: Vec::new(),
            state: State::default(),
        };
        let out = &mut device.output;
        out.extend_from_slice(&wire::AMQP_HEADER);
        wire::open(out, &format!("device-{number}"));
        wire::begin(out, 0, None);
        let (role, address) = match work {
            DeviceWork::Receive => (Role::Receiver, format!("devices/d{number}/messages/deviceBound")),
            _ => (Role::Sender, format!("devices/d{number}/messages/events")),
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
        device.write_all().await?;
        while !device.state.attached || (role == Role::Sender && device.state.credit_end == 0) {
            device.read_some().await?;
        }
        device.write_all().await?;
        Ok(device)
    }

    /// Does its work once all are to start, and closes the connection.
    pub(crate) async fn work(
        &mut self,
        work: DeviceWork,
        mut started: watch::Receiver<bool>,
    ) -> Result<Tally, Failure> {
        if work == DeviceWork::Idle {
            started.wait_for(|started| *started).await?;
        } else {
            // The hub's flows may come while the others still connect.
            loop {
                tokio::select! {
                    start = started.wait_for(|started| *started) => { start?; break; }
                    read = self.reader.read_buf(self.input.buffer()) => self.took(read?)?,
                }
            }
        }
        match work {
            DeviceWork::Send {
                size,
                duration,
                timed,
            } => self.send_for(size, duration, timed).await?,
            DeviceWork::Paced {
                size,
                every,
                duration,
                count,
            } => {
                let offset = every * self.number / count as u32;
                self.send_at_pace(size, every, offset, duration).await?;
            }
            DeviceWork::PingPong { size, duration } => self.ping_pong_for(size, duration).await?,
            DeviceWork::Receive => self.receive_until_detached().await?,
            DeviceWork::Idle | DeviceWork::Churn { .. } => {}
        }
        self.close().await?;
        Ok(std::mem::take(&mut self.state.tally))
    }

    /// Sends one message, waits until it is accepted, and closes.
    pub(crate) async fn send_and_close(&mut self, size: usize) -> Result<Tally, Failure> {
        let template = MessageTemplate::new(0, 0, size, self.state.max_frame);
        self.send_one(&template).await?;
        self.close().await?;
        // A port of a connection that was closed is taken for a minute; one that was reset is not.
        socket2::SockRef::from(self.writer.as_ref()).set_linger(Some(Duration::ZERO))?;
        Ok(std::mem::take(&mut self.state.tally))
    }

    async fn send_for(&mut self, size: usize, duration: Duration, timed: bool) -> Result<(), Failure> {
        let template = MessageTemplate::new(0, 0, size, self.state.max_frame);
        let deadline = Instant::now() + duration;
        let mut written = 0;
        loop {
            let sending = Instant::now() < deadline;
            while sending && self.output.len() < OUTPUT_LIMIT && self.state.may_send(template.frames()) {
                self.state
                    .send(&template, timed.then(Instant::now), &mut self.output);
            }
            if self.is_done(sending) {
                return Ok(());
            }
            let wake = if sending { deadline } else { deadline + PATIENCE };
            tokio::select! {
                read = self.reader.read_buf(self.input.buffer()) => self.took(read?)?,
                wrote = self.writer.write(&self.output[written..]), if !self.output.is_empty() => {
                    written += wrote?;
                    if written == self.output.len() {
                        self.output.clear();
                        written = 0;
                    }
                }
                () = tokio::time::sleep_until(wake.into()) => self.check_patience(sending)?,
            }
        }
    }

    /// A message at each of its times. One that is late, for want of credit or for whatever reason, counts from when it was due.
    async fn send_at_pace(
        &mut self,
        size: usize,
        every: Duration,
        offset: Duration,
        duration: Duration,
    ) -> Result<(), Failure> {
        let template = MessageTemplate::new(0, 0, size, self.state.max_frame);
        let alarm = Alarm::new()?;
        let begin = Instant::now();
        let deadline = begin + duration;
        let mut due = begin + offset;
        alarm.set(due)?;
        loop {
            let sending = due < deadline;
            if sending && due <= Instant::now() && self.state.may_send(template.frames()) {
                self.state.send(&template, Some(due), &mut self.output);
                due += every;
                alarm.set(due)?;
            }
            // One small message: the socket has room for it.
            self.write_all().await?;
            if self.is_done(sending) {
                return Ok(());
            }
            let patience = tokio::time::sleep_until((deadline + PATIENCE).into());
            tokio::select! {
                biased;
                read = self.reader.read_buf(self.input.buffer()) => self.took(read?)?,
                rings = alarm.rings(), if sending && due > Instant::now() => rings?,
                () = std::future::ready(()), if sending && due <= Instant::now() && self.state.may_send(template.frames()) => {}
                () = patience => self.check_patience(sending)?,
            }
        }
    }

    fn is_done(&self, sending: bool) -> bool {
        !sending && self.state.tally.settled == self.state.tally.sent
    }

    fn check_patience(&self, sending: bool) -> Result<(), Failure> {
        let Tally { sent, settled, .. } = self.state.tally;
        if sending {
            return Ok(());
        }
        Err(Failure::new(format!(
            "{settled} of {sent} messages settled, then nothing more"
        )))
    }

    async fn ping_pong_for(&mut self, size: usize, duration: Duration) -> Result<(), Failure> {
        let template = MessageTemplate::new(0, 0, size, self.state.max_frame);
        let deadline = Instant::now() + duration;
        while Instant::now() < deadline {
            self.send_one(&template).await?;
        }
        Ok(())
    }

    async fn send_one(&mut self, template: &MessageTemplate) -> Result<(), Failure> {
        while !self.state.may_send(template.frames()) {
            self.read_some().await?;
        }
        self.state.send(template, Some(Instant::now()), &mut self.output);
        self.write_all().await?;
        while self.state.tally.settled < self.state.tally.sent {
            self.read_some().await?;
        }
        Ok(())
    }

    async fn receive_until_detached(&mut self) -> Result<(), Failure> {
        self.state.give_credit(&mut self.output);
        self.write_all().await?;
        while !self.state.detached {
            self.read_some().await?;
            self.write_all().await?;
        }
        Ok(())
    }

    async fn close(&mut self) -> Result<(), Failure> {
        wire::FrameWriter::amqp(&mut self.output, 0, wire::CLOSE).finish();
        self.write_all().await?;
        while !self.state.closed {
            self.read_some().await?;
        }
        Ok(())
    }

    async fn write_all(&mut self) -> Result<(), Failure> {
        self.writer.write_all(&self.output).await?;
        self.output.clear();
        Ok(())
    }

    async fn read_some(&mut self) -> Result<(), Failure> {
        let read = tokio::time::timeout(PATIENCE, self.reader.read_buf(self.input.buffer()))
            .await
            .map_err(|_| Failure::new(format!("nothing came for {PATIENCE:?}")))??;
        self.took(read)
    }

    fn took(&mut self, read: usize) -> Result<(), Failure> {
        if read == 0 {
            return Err(Failure::new("the connection was closed"));
        }
        if !self.state.greeted {
            let Some(header) = self.input.rest().first_chunk::<8>() else {
                return Ok(());
            };
            if *header != wire::AMQP_HEADER {
                return Err(Failure::new(format!("greeted with {header:?}")));
            }
            self.state.greeted = true;
            self.input.consume(8);
        }
        while let Some((frame, size)) = wire::read_frame(self.input.rest())? {
            self.state.handle(frame, &mut self.output)?;
            self.input.consume(size);
        }
        self.input.compact();
        self.state.accept_all(&mut self.output);
        Ok(())
    }
}

impl State {
    fn may_send(&self, frames: u32) -> bool {
        room(self.window_end, self.next_outgoing) >= frames && room(self.credit_end, self.next_delivery) > 0
    }

    /// Sends a message, timed from `since`.
    fn send(&mut self, template: &MessageTemplate, since: Option<Instant>, out: &mut Vec<u8>) {
        template.append(self.next_delivery, out);
        self.next_delivery = self.next_delivery.wrapping_add(1);
        self.next_outgoing = self.next_outgoing.wrapping_add(template.frames());
        self.tally.sent += 1;
        self.in_flight.extend(since);
    }

    fn handle(&mut self, frame: Frame<'_>, out: &mut Vec<u8>) -> Result<(), Failure> {
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
            wire::TRANSFER => self.on_transfer(fields, out),
            wire::DISPOSITION => self.on_disposition(fields),
            wire::DETACH => {
                fields.skip(2);
                if let Some(condition) = fields.first_of_described() {
                    return Err(Failure::new(format!("the link was closed with {condition}")));
                }
                self.accept_all(out);
                wire::detach(out, 0, 0);
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

    fn on_transfer(&mut self, mut fields: Fields<'_>, out: &mut Vec<u8>) {
        fields.skip(1);
        let id = fields.uint();
        fields.skip(3);
        let more = fields.bool() == Some(true);
        self.next_incoming = self.next_incoming.wrapping_add(1);
        self.since_flow += 1;
        let next = self.to_accept.map(|(_, last)| last.wrapping_add(1));
        if !more && let Some(id) = id.or(next) {
            self.to_accept = Some((self.to_accept.map_or(id, |(first, _)| first), id));
            self.delivery_count = self.delivery_count.wrapping_add(1);
            self.since_credit += 1;
            self.tally.received += 1;
            self.tally.last = Some(Instant::now());
        }
        if self.since_credit >= CREDIT / 2 || self.since_flow >= WINDOW / 2 {
            self.give_credit(out);
        }
    }

    fn give_credit(&mut self, out: &mut Vec<u8>) {
        self.since_credit = 0;
        self.since_flow = 0;
        let session = SessionFlow {
            next_incoming: self.next_incoming,
            next_outgoing: self.next_outgoing,
        };
        wire::flow(out, 0, session, Some((0, self.delivery_count, CREDIT)));
    }

    fn accept_all(&mut self, out: &mut Vec<u8>) {
        if let Some((first, last)) = self.to_accept.take() {
            wire::accept(out, 0, first, last);
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
