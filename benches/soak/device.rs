//! A device on a bare socket: it puts its token, sends telemetry, takes commands, and attaches again what it loses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::hub_connection::note;
use super::ledger::{self, Way};
use super::outage::Phase;
use super::rig::wire::{self, Fields, Frame, Input, Role, SessionFlow, Termini, room};
use super::rig::{Failure, cbs};
use super::site::Site;

/// How long the daemon may take for anything: longer than a hub is away, and longer than a request to `$cbs` may take.
const PATIENCE: Duration = Duration::from_secs(40);
/// How soon a link is attached again whose attach was refused.
const RETRY: Duration = Duration::from_millis(500);
const CHANNEL: u16 = 0;
const COMMAND_CREDIT: u32 = 50;

/// The links of a device, by handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkKind {
    Telemetry,
    Commands,
    CbsSender,
    CbsReceiver,
}

impl LinkKind {
    const ALL: [Self; 4] = [
        Self::Telemetry,
        Self::Commands,
        Self::CbsSender,
        Self::CbsReceiver,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Telemetry => "telemetry",
            Self::Commands => "commands",
            Self::CbsSender => "cbs-sender",
            Self::CbsReceiver => "cbs-receiver",
        }
    }

    fn role(self) -> Role {
        match self {
            Self::Telemetry | Self::CbsSender => Role::Sender,
            Self::Commands | Self::CbsReceiver => Role::Receiver,
        }
    }

    fn address(self, device: usize) -> String {
        match self {
            Self::Telemetry => format!("devices/{}{device}/messages/events", super::NAME),
            Self::Commands => format!("devices/{}{device}/messages/deviceBound", super::NAME),
            Self::CbsSender | Self::CbsReceiver => cbs::NODE.to_owned(),
        }
    }
}

/// One link, as its device knows it.
#[derive(Debug, Default)]
struct Link {
    /// The daemon's handle, while it is attached.
    handle: Option<u32>,
    /// Up to here it may be sent.
    credit_end: u32,
    count: u32,
    since_credit: u32,
    /// The last message on it.
    last: Option<u32>,
    /// When it is to be attached again.
    retry: Option<Instant>,
}

/// How a device leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// It closes its connection.
    Closing,
    /// It closes its socket.
    Ending,
    /// As after a power cut, when somebody answers for it: a reset.
    Vanishing,
    /// The same in the middle of a message.
    Breaking,
}

/// A device that is connected.
pub(crate) struct Device {
    stream: TcpStream,
    input: Input,
    output: Vec<u8>,
    state: State,
}

struct State {
    site: Arc<Site>,
    number: usize,
    has_header: bool,
    max_frame: Option<usize>,
    window_end: u32,
    next_outgoing: u32,
    next_delivery: u32,
    next_incoming: u32,
    links: [Link; LinkKind::ALL.len()],
    /// Deliveries that are not settled: which message, and in which phase of the hub it was sent.
    unsettled: BTreeMap<u32, (u32, Phase)>,
    /// Messages in doubt.
    again: BTreeSet<u32>,
    token: Option<bool>,
    is_closed: bool,
    /// Links that were lost or refused.
    losses: u32,
}

impl Device {
    /// Connects, opens, and puts the token that its links need.
    pub(crate) async fn connect(port: u16, number: usize, site: &Arc<Site>) -> Result<Self, Failure> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.set_nodelay(true)?;
        let mut device = Self {
            stream,
            input: Input::default(),
            output: Vec::new(),
            state: State {
                site: Arc::clone(site),
                number,
                has_header: false,
                max_frame: None,
                window_end: 0,
                next_outgoing: 0,
                next_delivery: 0,
                next_incoming: 0,
                links: Default::default(),
                unsettled: BTreeMap::new(),
                again: BTreeSet::new(),
                token: None,
                is_closed: false,
                losses: 0,
            },
        };
        device.output.extend_from_slice(&wire::AMQP_HEADER);
        wire::open(&mut device.output, &format!("{}{number}", super::NAME));
        wire::begin(&mut device.output, CHANNEL, None);
        device.until("open", |state| state.max_frame.is_some()).await?;
        device.attach(LinkKind::CbsSender);
        device.attach(LinkKind::CbsReceiver);
        device
            .until("credit of $cbs", |state| {
                state.link(LinkKind::CbsSender).credit_end > 0
            })
            .await?;
        // The first delivery of the session.
        device.state.take_delivery();
        cbs::put_token(
            &mut device.output,
            CHANNEL,
            LinkKind::CbsSender as u32,
            &format!("localhost/devices/{}{number}", super::NAME),
        );
        device
            .until("the hub's word on the token", |state| state.token.is_some())
            .await?;
        match device.state.token {
            Some(true) => Ok(device),
            Some(false) | None => Err(Failure::new("the token was refused")),
        }
    }

    pub(crate) fn attach(&mut self, kind: LinkKind) {
        self.state.attach(kind, &mut self.output);
    }

    /// Waits until telemetry may be sent, or the link is lost.
    pub(crate) async fn until_it_may_send(&mut self) -> Result<(), Failure> {
        self.until("credit", |state| state.may_send() || state.losses > 0)
            .await
    }

    /// Sends what is in doubt, or else a message that is new.
    pub(crate) fn send(&mut self) {
        let state = &mut self.state;
        let number = state.again.pop_first();
        let number = number.unwrap_or_else(|| state.site.ledger.next(state.number, Way::Up));
        state.site.ledger.sent(state.number, Way::Up, number);
        let payload = ledger::payload(state.number, number, size_of(number));
        let delivery = state.take_delivery();
        state
            .unsettled
            .insert(delivery, (number, state.site.outages.now()));
        state.links[LinkKind::Telemetry as usize].count += 1;
        let max_frame = state.max_frame.unwrap_or(512);
        let frames = wire::message(
            &mut self.output,
            CHANNEL,
            LinkKind::Telemetry as u32,
            delivery,
            &payload,
            max_frame,
        );
        // One is counted already.
        state.next_outgoing = state.next_outgoing.wrapping_add(frames - 1);
    }

    pub(crate) fn may_send(&self) -> bool {
        self.state.may_send()
    }

    /// Messages that are not settled, or have to be sent again.
    pub(crate) fn open_messages(&self) -> usize {
        self.state.unsettled.len() + self.state.again.len()
    }

    pub(crate) fn has_doubts(&self) -> bool {
        !self.state.again.is_empty()
    }

    pub(crate) fn losses(&self) -> u32 {
        self.state.losses
    }

    /// Waits for whatever comes first, until `wake` at most, and attaches again what is due.
    pub(crate) async fn turn(&mut self, wake: Instant) -> Result<(), Failure> {
        let now = Instant::now();
        let mut wake = wake;
        for kind in LinkKind::ALL {
            match self.state.link(kind).retry {
                Some(retry) if retry <= now => self.attach(kind),
                Some(retry) => wake = wake.min(retry),
                None => {}
            }
        }
        let (mut reader, mut writer) = self.stream.split();
        tokio::select! {
            wrote = writer.write(&self.output), if !self.output.is_empty() => {
                self.output.drain(..wrote?);
                return Ok(());
            }
            read = reader.read_buf(self.input.buffer()) => {
                if read? == 0 {
                    return Err(Failure::new("the connection was closed"));
                }
            }
            () = tokio::time::sleep_until(wake.into()) => return Ok(()),
        }
        self.state.take(&mut self.input, &mut self.output)
    }

    async fn until(&mut self, what: &str, is_there: impl Fn(&State) -> bool) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        while !is_there(&self.state) || !self.output.is_empty() {
            if Instant::now() > deadline {
                return Err(Failure::new(format!("no {what} within {PATIENCE:?}")));
            }
            self.turn(deadline).await?;
        }
        Ok(())
    }

    /// Goes, and is gone when this returns.
    pub(crate) async fn leave(mut self, how: Leave) -> Result<(), Failure> {
        match how {
            Leave::Closing => {
                wire::FrameWriter::amqp(&mut self.output, 0, wire::CLOSE).finish();
                self.until("close", |state| state.is_closed).await
            }
            Leave::Ending => Ok(()),
            Leave::Breaking | Leave::Vanishing => {
                if how == Leave::Breaking && self.may_send() {
                    self.send();
                    let half = self.output.len() / 2;
                    self.stream.write_all(&self.output[..half]).await?;
                }
                Ok(socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))?)
            }
        }
    }
}

/// Most messages are small; some take more than one frame.
fn size_of(number: u32) -> usize {
    if number % 50 == 49 { 20_000 } else { 256 }
}

impl State {
    fn link(&self, kind: LinkKind) -> &Link {
        &self.links[kind as usize]
    }

    /// Of the session's deliveries and transfers, the next.
    fn take_delivery(&mut self) -> u32 {
        let delivery = self.next_delivery;
        self.next_delivery = delivery.wrapping_add(1);
        self.next_outgoing = self.next_outgoing.wrapping_add(1);
        delivery
    }

    fn may_send(&self) -> bool {
        const FRAMES: u32 = 64;
        let link = self.link(LinkKind::Telemetry);
        link.handle.is_some()
            && room(link.credit_end, link.count) > 0
            && room(self.window_end, self.next_outgoing) >= FRAMES
    }

    fn attach(&mut self, kind: LinkKind, output: &mut Vec<u8>) {
        self.links[kind as usize] = Link::default();
        let address = kind.address(self.number);
        let termini = match kind.role() {
            Role::Sender => Termini {
                source: None,
                target: Some(&address),
            },
            Role::Receiver => Termini {
                source: Some(&address),
                target: None,
            },
        };
        wire::attach(output, CHANNEL, kind.name(), kind as u32, kind.role(), termini);
        if kind.role() == Role::Receiver {
            self.give_credit(kind, output);
        }
    }

    fn give_credit(&mut self, kind: LinkKind, output: &mut Vec<u8>) {
        let session = SessionFlow {
            next_incoming: self.next_incoming,
            next_outgoing: self.next_outgoing,
        };
        let link = &mut self.links[kind as usize];
        link.since_credit = 0;
        wire::flow(
            output,
            CHANNEL,
            session,
            Some((kind as u32, link.count, COMMAND_CREDIT)),
        );
    }

    fn take(&mut self, input: &mut Input, output: &mut Vec<u8>) -> Result<(), Failure> {
        if !self.has_header {
            let Some(header) = input.rest().first_chunk::<8>() else {
                return Ok(());
            };
            if *header != wire::AMQP_HEADER {
                return Err(Failure::new(format!("greeted with {header:?}")));
            }
            self.has_header = true;
            input.consume(8);
        }
        while let Some((frame, size)) = wire::read_frame(input.rest())? {
            self.handle(frame, output)?;
            input.consume(size);
        }
        input.compact();
        Ok(())
    }

    fn handle(&mut self, frame: Frame<'_>, output: &mut Vec<u8>) -> Result<(), Failure> {
        let mut fields = frame.fields;
        match frame.code {
            wire::OPEN => {
                fields.skip(2);
                self.max_frame = Some(fields.uint().unwrap_or(u32::MAX).min(65536) as usize);
            }
            wire::BEGIN => {
                fields.skip(1);
                self.next_incoming = fields.uint().unwrap_or(0);
                self.window_end = fields.uint().unwrap_or(0);
            }
            wire::ATTACH => self.on_attach(fields)?,
            wire::FLOW => self.on_flow(fields),
            wire::TRANSFER => self.on_transfer(fields, frame.payload, output),
            wire::DISPOSITION => self.on_disposition(fields),
            wire::DETACH => self.on_detach(fields, output)?,
            wire::CLOSE => match fields.first_of_described() {
                Some(condition) => return Err(Failure::new(format!("closed with {condition}"))),
                None => self.is_closed = true,
            },
            wire::EMPTY => {}
            other => return Err(Failure::new(format!("a frame with the performative {other:#x}"))),
        }
        Ok(())
    }

    fn on_attach(&mut self, mut fields: Fields<'_>) -> Result<(), Failure> {
        let (name, handle) = (fields.text(), fields.uint());
        let kind = LinkKind::ALL
            .into_iter()
            .find(|kind| name.as_deref() == Some(kind.name()))
            .ok_or_else(|| Failure::new(format!("an answer for the link {name:?}")))?;
        self.links[kind as usize].handle = handle;
        Ok(())
    }

    /// Whose handle of the daemon's this is.
    fn kind_of(&self, handle: Option<u32>) -> Option<LinkKind> {
        LinkKind::ALL
            .into_iter()
            .find(|kind| handle.is_some() && self.link(*kind).handle == handle)
    }

    fn on_flow(&mut self, mut fields: Fields<'_>) {
        let next_incoming = fields.uint().unwrap_or(0);
        self.window_end = next_incoming.wrapping_add(fields.uint().unwrap_or(0));
        fields.skip(2);
        let handle = fields.uint();
        let end = fields
            .uint()
            .unwrap_or(0)
            .wrapping_add(fields.uint().unwrap_or(0));
        if let Some(kind) = self.kind_of(handle)
            && kind.role() == Role::Sender
        {
            self.links[kind as usize].credit_end = end;
        }
    }

    fn on_transfer(&mut self, mut fields: Fields<'_>, payload: &[u8], output: &mut Vec<u8>) {
        let (handle, id) = (fields.uint(), fields.uint().unwrap_or(0));
        self.next_incoming = self.next_incoming.wrapping_add(1);
        let Some(kind) = self.kind_of(handle) else {
            return self.site.fault(format!("{}: a transfer on no link", self.number));
        };
        if kind == LinkKind::Commands {
            let link = &mut self.links[kind as usize];
            note(&self.site, self.number, Way::Down, payload, &mut link.last);
        } else {
            self.token = Some(cbs::is_accepted(payload));
        }
        wire::accept(output, CHANNEL, id, id);
        let link = &mut self.links[kind as usize];
        link.count = link.count.wrapping_add(1);
        link.since_credit += 1;
        if link.since_credit >= COMMAND_CREDIT / 2 {
            self.give_credit(kind, output);
        }
    }

    fn on_disposition(&mut self, mut fields: Fields<'_>) {
        let (is_receiver, first) = (fields.bool() == Some(true), fields.uint().unwrap_or(0));
        let last = fields.uint().unwrap_or(first);
        let is_settled = fields.bool() == Some(true);
        let is_accepted = fields.encoded().is_some_and(wire::is_accepted);
        if !(is_receiver && is_settled) {
            return;
        }
        let outages = &self.site.outages;
        for id in first..=last {
            let Some((number, phase)) = self.unsettled.remove(&id) else {
                // The request to `$cbs`, or a delivery of a link that is gone.
                continue;
            };
            if !is_accepted {
                self.again.insert(number);
                continue;
            }
            self.site.ledger.accepted(self.number, Way::Up, number);
            if phase.is_up() && outages.now() == phase {
                self.site.served.mark(self.number, phase, outages.lasted());
            }
        }
    }

    /// A link is lost: what was not settled is in doubt, and the link is attached again.
    fn on_detach(&mut self, mut fields: Fields<'_>, output: &mut Vec<u8>) -> Result<(), Failure> {
        let handle = fields.uint();
        fields.skip(1);
        let condition = fields.first_of_described();
        let kind = self
            .kind_of(handle)
            .ok_or_else(|| Failure::new("a detach of no link"))?;
        if condition.as_deref() != Some("amqp:link:detach-forced") {
            return Err(Failure::new(format!("{kind:?} was detached: {condition:?}")));
        }
        self.losses += 1;
        wire::detach(output, CHANNEL, kind as u32);
        let was_in_use = self.link(kind).credit_end > 0 || kind.role() == Role::Receiver;
        let pause = if was_in_use { Duration::ZERO } else { RETRY };
        self.links[kind as usize] = Link {
            retry: Some(Instant::now() + pause),
            ..Link::default()
        };
        if kind == LinkKind::Telemetry {
            let lost = std::mem::take(&mut self.unsettled);
            self.again.extend(lost.into_values().map(|(number, _)| number));
        }
        Ok(())
    }
}
