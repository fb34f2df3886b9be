//! The devices: bare sockets, one task each, all on the row's own thread.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::rig::Failure;
use super::rig::wire::{
    self, Fields, Frame, Input, MessageTemplate, Role, SessionFlow, Termini, WINDOW, room,
};

/// Credit that a receiving device keeps given.
const CREDIT: u32 = 200;
const OUTPUT_LIMIT: usize = 64 * 1024;
/// Devices that connect at the same time; a listener's backlog need not hold more.
const CONNECTING: usize = 20;
/// How long anything but the load itself may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What each device does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceWork {
    /// Send messages of this size for a while, as fast as credit and windows let it.
    Send { size: usize, duration: Duration },
    /// The same, but one message in each interval, the devices spread over it.
    Paced {
        size: usize,
        every: Duration,
        duration: Duration,
    },
    /// Receive and accept until the hub detaches the link.
    Receive,
    /// Send one message of this size and wait until it is accepted, again and again for a while.
    PingPong { size: usize, duration: Duration },
    /// Attach a link and do nothing.
    Idle,
}

/// What one device, or all devices of a row, did.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) sent: u64,
    pub(crate) settled: u64,
    pub(crate) received: u64,
    pub(crate) round_trips: Vec<Duration>,
    /// When the last message was settled or received.
    pub(crate) last: Option<Instant>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.settled += other.settled;
        self.received += other.received;
        self.round_trips.extend(other.round_trips);
        self.last = self.last.max(other.last);
    }
}

/// A row's moments: all devices are attached and start; all are done.
pub(crate) trait Moments {
    fn attached(&mut self) -> Result<(), Failure>;
    fn done(&mut self) -> Result<(), Failure>;
}

/// Connects `count` devices, lets them work, and sums up what they did.
pub(crate) async fn run_all(
    port: u16,
    count: usize,
    work: DeviceWork,
    moments: &mut dyn Moments,
) -> Result<Tally, Failure> {
    let (start, started) = watch::channel(false);
    let (ready, mut readied) = mpsc::unbounded_channel();
    let mut devices = JoinSet::new();
    for number in 0..count {
        let (ready, started) = (ready.clone(), started.clone());
        devices.spawn(async move {
            let mut device = tokio::time::timeout(PATIENCE, Device::connect(port, number, work))
                .await
                .map_err(|_| Failure::new(format!("device {number}: not attached in {PATIENCE:?}")))??;
            // The row has given up when nobody listens.
            let _ = ready.send(());
            device.work(work, started).await
        });
        if number >= CONNECTING {
            wait_for_one(&mut readied, &mut devices).await?;
        }
    }
    for _ in 0..count.min(CONNECTING) {
        wait_for_one(&mut readied, &mut devices).await?;
    }
    moments.attached()?;
    start.send_replace(true);
    if work == DeviceWork::Idle {
        moments.done()?;
    }
    let mut all = Tally::default();
    while let Some(device) = devices.join_next().await {
        all.add(device??);
    }
    if work != DeviceWork::Idle {
        moments.done()?;
    }
    Ok(all)
}

async fn wait_for_one(
    readied: &mut mpsc::UnboundedReceiver<()>,
    devices: &mut JoinSet<Result<Tally, Failure>>,
) -> Result<(), Failure> {
    tokio::select! {
        biased;
        _ = readied.recv() => Ok(()),
        // No device ends before the start, but by failing.
        Some(ended) = devices.join_next() => match ended? {
            Ok(_) => Err(Failure::new("a device ended before it was started")),
            Err(failure) => Err(failure),
        },
    }
}

struct Device {
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
    async fn connect(port: u16, number: usize, work: DeviceWork) -> Result<Self, Failure> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
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

    async fn work(&mut self, work: DeviceWork, mut started: watch::Receiver<bool>) -> Result<Tally, Failure> {
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
            DeviceWork::Send { size, duration } => self.send_for(size, None, duration).await?,
            DeviceWork::Paced {
                size,
                every,
                duration,
            } => self.send_for(size, Some(every), duration).await?,
            DeviceWork::PingPong { size, duration } => self.ping_pong_for(size, duration).await?,
            DeviceWork::Receive => self.receive_until_detached().await?,
            DeviceWork::Idle => {}
        }
        self.close().await?;
        Ok(std::mem::take(&mut self.state.tally))
    }

    async fn send_for(
        &mut self,
        size: usize,
        every: Option<Duration>,
        duration: Duration,
    ) -> Result<(), Failure> {
        let template = MessageTemplate::new(0, 0, size, self.state.max_frame);
        let begin = Instant::now();
        let deadline = begin + duration;
        // Some spread will do; the devices only must not all be due at once.
        let mut due = every.map(|every| begin + every * (self.number * 37 % 101) / 101);
        let mut written = 0;
        loop {
            let now = Instant::now();
            let sending = now < deadline;
            while sending
                && due.is_none_or(|due| due <= now)
                && self.output.len() < OUTPUT_LIMIT
                && self.state.may_send(template.frames())
            {
                self.state.send(&template, &mut self.output);
                due = due.zip(every).map(|(due, every)| due + every);
            }
            let wake = due
                .filter(|due| *due > now)
                .map_or(deadline, |due| due.min(deadline));
            if !sending && self.state.tally.settled == self.state.tally.sent {
                return Ok(());
            }
            let patience = tokio::time::sleep_until((deadline + PATIENCE).into());
            tokio::select! {
                read = self.reader.read_buf(self.input.buffer()) => self.took(read?)?,
                wrote = self.writer.write(&self.output[written..]), if !self.output.is_empty() => {
                    written += wrote?;
                    if written == self.output.len() {
                        self.output.clear();
                        written = 0;
                    }
                }
                () = tokio::time::sleep_until(wake.into()), if sending => {}
                () = patience => {
                    let Tally { sent, settled, .. } = self.state.tally;
                    return Err(Failure::new(format!("{settled} of {sent} messages settled, then nothing more")));
                }
            }
        }
    }

    async fn ping_pong_for(&mut self, size: usize, duration: Duration) -> Result<(), Failure> {
        let template = MessageTemplate::new(0, 0, size, self.state.max_frame);
        let deadline = Instant::now() + duration;
        while Instant::now() < deadline {
            while !self.state.may_send(template.frames()) {
                self.read_some().await?;
            }
            let sent = Instant::now();
            self.state.send(&template, &mut self.output);
            self.write_all().await?;
            while self.state.tally.settled < self.state.tally.sent {
                self.read_some().await?;
            }
            self.state.tally.round_trips.push(sent.elapsed());
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

    fn send(&mut self, template: &MessageTemplate, out: &mut Vec<u8>) {
        template.append(self.next_delivery, out);
        self.next_delivery = self.next_delivery.wrapping_add(1);
        self.next_outgoing = self.next_outgoing.wrapping_add(template.frames());
        self.tally.sent += 1;
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
        if is_receiver && fields.bool() == Some(true) {
            self.tally.settled += u64::from(last.wrapping_sub(first)) + 1;
            self.tally.last = Some(Instant::now());
        }
    }
}
