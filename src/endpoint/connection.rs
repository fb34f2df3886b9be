//! One connection with one peer: headers, SASL, open and close, channels, idle time-outs (AMQP 1.0 part 2, §2.4).

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::event::{Event, Fault};
use super::handshake::{Demands, Identity, SaslCredentials};
use super::limits;
use super::link::Link;
use super::outbox::ByteQueue;
use super::session::{AttachKind, Session, SessionState};
use super::trace::Tracing;
use super::window::WindowSize;
use super::{ConnectionError, SessionError, trace};
use crate::amqp::deframer::Deframer;
use crate::amqp::display::Unit;
use crate::amqp::failover::FailoverServer;
use crate::amqp::frame::{Frame, FrameType, MIN_MAX_FRAME_SIZE};
use crate::amqp::header::ProtocolHeader;
use crate::amqp::originate;
use crate::amqp::performative::{Begin, Open, Performative, Role};
use crate::amqp::sasl::SaslFrame;
use crate::amqp::serial::{Channel, Handle};

/// What both sides of a handshake announce of us.
#[derive(Clone, Debug)]
pub struct Announce {
    /// `open.container-id`
    pub container_id: String,
    /// `open.hostname`, towards a hub.
    pub hostname: Option<String>,
    /// `open.max-frame-size`, enforced.
    pub max_frame_size: u32,
    /// `open.channel-max`, enforced.
    pub channel_max: u16,
    /// Window of every session.
    pub session_window: WindowSize,
    /// Silence after which the peer is gone; half of it is announced.
    pub idle_timeout: Option<Duration>,
    /// `failover-server-list` of the open's properties; left out for a peer whose frames it does not fit.
    pub failover: Vec<FailoverServer>,
}

/// Who speaks first.
#[derive(Clone, Debug)]
pub enum Side {
    /// The peer dialed us.
    Listener {
        /// What it must bring.
        demands: Demands,
    },
    /// We dialed the peer.
    Connector {
        /// What we authenticate with.
        credentials: SaslCredentials,
    },
}

/// ```text
///   Listener:  Header -+-> SaslInit -+-> [SaslResponse -->] Judging -+-> Header(AMQP) -+-> Open --> Opened --> CloseSent --> Over
///                      |             +-------------------------------+                 |
///                      +---------------------------------------------------------------+
///   Connector: SaslHeader --> Mechanisms --> Outcome --> AmqpHeader --> Open --> Opened --> CloseSent --> Over
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Header,
    SaslInit,
    /// The peer was asked for what it did not say with its choice.
    SaslResponse,
    /// The owner has user and password, and will answer.
    Judging,
    HeaderAfterSasl,
    SaslHeader,
    Mechanisms,
    Outcome,
    AmqpHeader,
    Open,
    Opened,
    CloseSent {
        deadline: Instant,
    },
    Over,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    /// Number in log lines: `C12`.
    pub number: u64,
    pub(super) tracing: Tracing,
    pub(super) announce: Arc<Announce>,
    pub(super) side: Arc<Side>,
    pub(super) phase: Phase,
    pub(super) deframer: Deframer,
    pub(super) outbox: ByteQueue,
    pub(super) open_sent: bool,
    pub(super) sasl: Option<&'static str>,
    pub(super) identity: Option<Box<Identity>>,
    pub(super) remote_max_frame_size: usize,
    pub(super) remote_channel_max: u16,
    pub(super) heartbeat: Option<Duration>,
    pub(super) handshake_deadline: Option<Instant>,
    pub(super) last_input: Instant,
    pub(super) last_output: Instant,
    /// By our channel.
    pub(super) sessions: Vec<Option<Box<Session>>>,
    /// How many there are.
    session_count: usize,
    /// Our channel by the peer's.
    pub(super) channels: Vec<Option<Channel>>,
}

impl Connection {
    /// A new transport. A connector's SASL header is in the outbox already.
    pub fn new(
        number: u64,
        side: Arc<Side>,
        announce: Arc<Announce>,
        handshake: Option<Duration>,
        tracing: Tracing,
        now: Instant,
    ) -> Self {
        let is_connector = matches!(*side, Side::Connector { .. });
        let mut connection = Connection {
            number,
            tracing,
            deframer: Deframer::new(announce.max_frame_size),
            announce,
            side,
            phase: if is_connector {
                Phase::SaslHeader
            } else {
                Phase::Header
            },
            outbox: ByteQueue::default(),
            open_sent: false,
            sasl: None,
            identity: None,
            // Until the peer's open is here it may not be sent more (AMQP 1.0 part 2, §2.4.1).
            remote_max_frame_size: frame_size(MIN_MAX_FRAME_SIZE),
            remote_channel_max: u16::MAX,
            heartbeat: None,
            handshake_deadline: handshake
                .filter(|limit| !limit.is_zero())
                .map(|limit| now + limit),
            last_input: now,
            last_output: now,
            sessions: Vec::new(),
            session_count: 0,
            channels: Vec::new(),
        };
        if is_connector {
            connection.emit(|out| out.extend_from_slice(&ProtocolHeader::Sasl.bytes()));
        }
        connection
    }

    // ---- input ---------------------------------------------------------------------------------------------------

    /// Takes the deframer out, so that frames can be borrowed from it while the connection changes.
    /// [`put_back`](Self::put_back) ends the turn.
    pub fn take_deframer(&mut self, now: Instant) -> Deframer {
        self.last_input = now;
        std::mem::replace(&mut self.deframer, Deframer::new(self.announce.max_frame_size))
    }

    /// Ends a turn begun with [`take_deframer`](Self::take_deframer).
    pub fn put_back(&mut self, mut deframer: Deframer) {
        deframer.set_max_frame_size(self.announce.max_frame_size);
        self.deframer = deframer;
    }

    /// The next thing in `input`; `None` when more bytes are needed, or none are wanted any more.
    #[inline]
    pub fn next_event<'s, 'i: 's>(
        &mut self,
        deframer: &'s mut Deframer,
        input: &mut &'i [u8],
    ) -> Result<Option<Event<'s>>, Fault> {
        match self.phase {
            Phase::Header | Phase::HeaderAfterSasl | Phase::SaslHeader | Phase::AmqpHeader => {
                let Some(bytes) = deframer.next_header(input) else {
                    return Ok(None);
                };
                if trace::is_enabled() {
                    self.show_received(Unit::Header(bytes));
                }
                self.on_header(bytes)?;
                Ok(Some(Event::Consumed))
            }
            Phase::Over => Ok(None),
            Phase::Judging => {
                self.keep_early(input)?;
                Ok(None)
            }
            Phase::SaslInit
            | Phase::SaslResponse
            | Phase::Mechanisms
            | Phase::Outcome
            | Phase::Open
            | Phase::Opened
            | Phase::CloseSent { .. } => {
                let Some(frame) = deframer.next_frame(input)? else {
                    return Ok(None);
                };
                if trace::is_enabled() {
                    self.show_received(Unit::Frame(frame));
                }
                self.on_frame(frame).map(Some)
            }
        }
    }

    #[inline]
    fn on_frame<'f>(&mut self, frame: Frame<'f>) -> Result<Event<'f>, Fault> {
        match (self.phase, frame.frame_type) {
            (Phase::Opened, FrameType::Amqp) => {
                if frame.body.is_empty() {
                    return Ok(Event::Consumed);
                }
                self.on_performative(frame.channel, Performative::parse(frame.body)?, frame.body)
            }
            (Phase::Open, FrameType::Amqp) => {
                if frame.body.is_empty() {
                    return Ok(Event::Consumed);
                }
                match Performative::parse(frame.body)? {
                    Performative::Open(open) => Ok(self.on_open(open)),
                    // qdrouterd 1.19 and others close without an open of their own when they refuse.
                    Performative::Close(error) => Ok(self.on_close(error)),
                    Performative::Begin(_)
                    | Performative::Attach(_)
                    | Performative::Flow(_)
                    | Performative::Transfer(_)
                    | Performative::Disposition(_)
                    | Performative::Detach(_)
                    | Performative::End(_) => Err(ConnectionError::Unexpected("a frame before open").into()),
                }
            }
            (Phase::CloseSent { .. }, FrameType::Amqp) => {
                if let Ok(Performative::Close(_)) = Performative::parse(frame.body) {
                    self.finish();
                }
                Ok(Event::Consumed)
            }
            (Phase::SaslInit | Phase::SaslResponse | Phase::Mechanisms | Phase::Outcome, FrameType::Sasl) => {
                Ok(self.on_sasl(&SaslFrame::parse(frame.body)?)?)
            }
            _ => Err(ConnectionError::Unexpected("this type of frame").into()),
        }
    }

    fn on_open<'f>(&mut self, open: Open<'f>) -> Event<'f> {
        self.phase = Phase::Opened;
        self.handshake_deadline = None;
        self.remote_max_frame_size = frame_size(open.max_frame_size.max(MIN_MAX_FRAME_SIZE));
        self.remote_channel_max = open.channel_max;
        self.heartbeat = open
            .idle_time_out
            .filter(|&millis| millis > 0)
            .map(|millis| (Duration::from_millis(u64::from(millis)) / 2).max(limits::MIN_HEARTBEAT));
        Event::Opened(open)
    }

    #[inline]
    fn on_performative<'f>(
        &mut self,
        remote: Channel,
        performative: Performative<'f>,
        body: &'f [u8],
    ) -> Result<Event<'f>, Fault> {
        match performative {
            Performative::Open(_) => return Err(ConnectionError::Unexpected("a second open").into()),
            Performative::Close(error) => return Ok(self.on_close(error)),
            Performative::Begin(begin) => return self.on_begin(remote, &begin),
            Performative::Attach(_)
            | Performative::Flow(_)
            | Performative::Transfer(_)
            | Performative::Disposition(_)
            | Performative::Detach(_)
            | Performative::End(_) => {}
        }
        let channel = self.local_channel(remote)?;
        let is_full = matches!(performative, Performative::Attach(_)) && self.is_full_of_links();
        let Some(session) = self
            .sessions
            .get_mut(usize::from(channel.0))
            .and_then(Option::as_deref_mut)
        else {
            return Err(ConnectionError::Channel(remote).into());
        };
        if session.state == SessionState::EndSent {
            if let Performative::End(_) = performative {
                self.free_session(channel, remote);
            }
            return Ok(Event::Consumed);
        }
        let fault = |error| Fault::Session(channel, error);
        Ok(match performative {
            Performative::Transfer(transfer) => {
                let handle = session.on_transfer(&transfer).map_err(fault)?;
                Event::Transfer {
                    channel,
                    handle,
                    transfer,
                    body,
                }
            }
            Performative::Flow(flow) => {
                session.on_flow(&flow);
                let handle = match flow.link {
                    Some(link) => Some(session.local_handle(link.handle).map_err(fault)?),
                    None => None,
                };
                Event::Flow {
                    channel,
                    handle,
                    flow,
                    body,
                }
            }
            Performative::Disposition(disposition) => Event::Disposition {
                channel,
                disposition,
                body,
            },
            Performative::Attach(attach) => {
                let (handle, kind) = session.on_attach(&attach, is_full).map_err(fault)?;
                if kind == AttachKind::Request
                    && attach.name.len() + originate::REFUSING_ATTACH > self.remote_max_frame_size
                {
                    return Err(fault(SessionError::LinkNameTooLong));
                }
                Event::Attach {
                    channel,
                    handle,
                    kind,
                    attach,
                    body,
                }
            }
            Performative::Detach(detach) => {
                let handle = session.on_detach(detach.handle).map_err(fault)?;
                Event::Detach {
                    channel,
                    handle,
                    detach,
                    body,
                }
            }
            Performative::End(error) => {
                let owners = std::mem::take(&mut session.owners);
                self.emit(|out| originate::write_end(out, channel, None));
                self.free_session(channel, remote);
                Event::Ended {
                    channel,
                    owners,
                    error,
                }
            }
            Performative::Open(_) | Performative::Close(_) | Performative::Begin(_) => Event::Consumed,
        })
    }

    fn is_full_of_links(&self) -> bool {
        matches!(*self.side, Side::Listener { .. })
            && self
                .sessions
                .iter()
                .flatten()
                .map(|session| session.link_count())
                .sum::<usize>()
                >= limits::DEVICE_LINKS
    }

    fn on_begin<'f>(&mut self, remote: Channel, begin: &Begin) -> Result<Event<'f>, Fault> {
        if remote.0 > self.announce.channel_max || self.local_channel(remote).is_ok() {
            return Err(ConnectionError::Channel(remote).into());
        }
        let channel = match begin.remote_channel {
            Some(channel) => {
                let session = self
                    .session_mut(channel)
                    .ok_or(ConnectionError::Channel(channel))?;
                if session.remote_channel.is_some() {
                    return Err(ConnectionError::Channel(channel).into());
                }
                // A session that we have ended already still learns the peer's channel, to hear its end.
                let ended = session.state == SessionState::EndSent;
                session.on_begin(remote, begin);
                if ended {
                    session.state = SessionState::EndSent;
                }
                channel
            }
            None => {
                let window = self.announce.session_window;
                let channel = self.add_session(Session::new(SessionState::Mapped, window))?;
                let Some(session) = self.session_mut(channel) else {
                    return Ok(Event::Consumed);
                };
                session.on_begin(remote, begin);
                let numbers = session.flow();
                self.emit(|out| {
                    originate::write_begin(out, channel, Some(remote), numbers, limits::HANDLE_MAX);
                });
                channel
            }
        };
        let index = usize::from(remote.0);
        if self.channels.len() <= index {
            self.channels.resize(index + 1, None);
        }
        if let Some(slot) = self.channels.get_mut(index) {
            *slot = Some(channel);
        }
        Ok(Event::Begun { channel })
    }

    fn on_close<'f>(&mut self, error: Option<&'f [u8]>) -> Event<'f> {
        self.write_open_and_close(None);
        self.finish();
        Event::Closed { error }
    }

    /// Nothing more is read; what is in the outbox still goes, if the peer takes it in time from now on.
    pub(super) fn finish(&mut self) {
        self.phase = Phase::Over;
        self.last_output = self.last_output.max(self.last_input);
    }

    /// The peer shut down its side of the transport.
    pub fn on_eof(&mut self) {
        if trace::is_enabled() {
            self.show_received(Unit::EndOfStream);
        }
    }

    // ---- channels ------------------------------------------------------------------------------------------------

    #[inline]
    pub(super) fn local_channel(&self, remote: Channel) -> Result<Channel, ConnectionError> {
        self.channels
            .get(usize::from(remote.0))
            .copied()
            .flatten()
            .ok_or(ConnectionError::Channel(remote))
    }

    pub(super) fn add_session(&mut self, session: Session) -> Result<Channel, ConnectionError> {
        let mut free = self.sessions.len();
        if self.session_count < free
            && let Some(gap) = self.sessions.iter().position(Option::is_none)
        {
            free = gap;
        }
        let channel = Channel(u16::try_from(free).unwrap_or(u16::MAX));
        if channel.0 > self.remote_channel_max.min(limits::UPSTREAM_CHANNEL_MAX) {
            return Err(ConnectionError::Channel(channel));
        }
        if free == self.sessions.len() {
            self.sessions.push(None);
        }
        if let Some(slot) = self.sessions.get_mut(free) {
            *slot = Some(Box::new(session));
            self.session_count += 1;
        }
        Ok(channel)
    }

    fn free_session(&mut self, channel: Channel, remote: Channel) {
        if let Some(slot) = self.sessions.get_mut(usize::from(channel.0))
            && slot.take().is_some()
        {
            self.session_count = self.session_count.saturating_sub(1);
        }
        if let Some(slot) = self.channels.get_mut(usize::from(remote.0)) {
            *slot = None;
        }
        while matches!(self.sessions.last(), Some(None)) {
            self.sessions.pop();
        }
    }

    /// The session on this channel of ours.
    #[inline]
    pub fn session(&self, channel: Channel) -> Option<&Session> {
        self.sessions
            .get(usize::from(channel.0))
            .and_then(Option::as_deref)
    }

    /// The session on this channel of ours.
    #[inline]
    pub fn session_mut(&mut self, channel: Channel) -> Option<&mut Session> {
        self.sessions
            .get_mut(usize::from(channel.0))
            .and_then(Option::as_deref_mut)
    }

    /// The link with this handle of ours.
    #[inline]
    pub fn link_mut(&mut self, channel: Channel, handle: Handle) -> Option<&mut Link> {
        self.session_mut(channel)?.link_mut(handle)
    }

    /// How many sessions there are, those included whose end the peer has not answered.
    pub const fn session_count(&self) -> usize {
        self.session_count
    }

    /// What the owner has kept with all sessions.
    pub fn owners(&self) -> impl Iterator<Item = u32> {
        self.sessions
            .iter()
            .flatten()
            .flat_map(|session| session.owners.iter().copied())
    }

    /// Links that the peer has in this role and that their owner still knows.
    pub fn owned_links(&self, role: Role) -> usize {
        let sessions = self.sessions.iter().flatten();
        sessions.map(|session| session.owned_links(role.other())).sum()
    }

    /// What the owner has kept with all sessions; they are forgotten here.
    pub fn take_owners(&mut self) -> Vec<u32> {
        self.sessions
            .iter_mut()
            .flatten()
            .flat_map(|session| std::mem::take(&mut session.owners))
            .collect()
    }

    // ---- state ---------------------------------------------------------------------------------------------------

    /// Opens have been exchanged and no close.
    pub const fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Opened)
    }

    /// Nothing more will be read; when the outbox is empty the transport is done with.
    pub const fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }
}

fn frame_size(size: u32) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}
