//! One connection with one peer: headers, SASL, open and close, channels, idle time-outs (AMQP 1.0 part 2, §2.4).

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::handshake::{self, SaslCredentials};
use super::limits;
use super::link::{End, Link};
use super::outbox::ByteQueue;
use super::session::{AttachKind, Session, SessionState};
use super::{ConnectionError, SessionError, trace};
use crate::amqp::condition::AmqpError;
use crate::amqp::deframer::Deframer;
use crate::amqp::display::Unit;
use crate::amqp::fields::Tail;
use crate::amqp::frame::{Frame, FrameType, HEARTBEAT, MIN_MAX_FRAME_SIZE};
use crate::amqp::header::{self, ProtocolHeader};
use crate::amqp::originate::{self, OpenFields};
use crate::amqp::performative::{
    Attach, Begin, Detach, Disposition, Flow, Open, Performative, Role, Transfer,
};
use crate::amqp::relay::{self, Written};
use crate::amqp::sasl::{SaslCode, SaslFrame};
use crate::amqp::serial::{Channel, DeliveryId, Handle};
use crate::amqp::writer::Writer;

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
    /// Window of every session, in frames.
    pub session_window: u32,
    /// Silence after which the peer is gone; half of it is announced.
    pub idle_timeout: Option<Duration>,
}

/// Who speaks first.
#[derive(Clone, Debug)]
pub enum Side {
    /// The peer dialed us.
    Listener {
        /// SASL mechanisms offered.
        mechanisms: Vec<String>,
    },
    /// We dialed the peer.
    Connector {
        /// What we authenticate with.
        credentials: SaslCredentials,
    },
}

/// ```text
///   Listener:  Header -+-> SaslInit --> Header(AMQP) -+-> Open --> Opened --> CloseSent --> Over
///                      +------------------------------+
///   Connector: SaslHeader --> Mechanisms --> Outcome --> AmqpHeader --> Open --> Opened --> CloseSent --> Over
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Header,
    SaslInit,
    HeaderAfterSasl,
    SaslHeader,
    Mechanisms,
    Outcome,
    AmqpHeader,
    Open,
    Opened,
    CloseSent { deadline: Instant },
    Over,
}

/// What a frame means for the connection's owner.
#[derive(Debug)]
pub enum Event<'f> {
    /// Nothing: it was dealt with here.
    Consumed,
    /// The peer's open. A listener's owner answers with [`Connection::send_open`].
    Opened(Open<'f>),
    /// The peer began a session, which has been answered; or it answered ours.
    Begun {
        /// Our channel.
        channel: Channel,
    },
    /// An attach.
    Attach {
        /// Our channel.
        channel: Channel,
        /// Our handle.
        handle: Handle,
        /// The peer's link, or ours.
        kind: AttachKind,
        /// The attach.
        attach: Attach<'f>,
        /// The frame's body.
        body: &'f [u8],
    },
    /// A flow; the session's part is done.
    Flow {
        /// Our channel.
        channel: Channel,
        /// Our handle, if the flow is a link's.
        handle: Option<Handle>,
        /// The flow.
        flow: Flow<'f>,
        /// The frame's body.
        body: &'f [u8],
    },
    /// A transfer; it has been counted.
    Transfer {
        /// Our channel.
        channel: Channel,
        /// Our handle.
        handle: Handle,
        /// The transfer.
        transfer: Transfer<'f>,
        /// The frame's body.
        body: &'f [u8],
    },
    /// A disposition.
    Disposition {
        /// Our channel.
        channel: Channel,
        /// The disposition.
        disposition: Disposition<'f>,
        /// The frame's body.
        body: &'f [u8],
    },
    /// A detach.
    Detach {
        /// Our channel.
        channel: Channel,
        /// Our handle.
        handle: Handle,
        /// The detach.
        detach: Detach<'f>,
        /// The frame's body.
        body: &'f [u8],
    },
    /// The peer ended a session; it has been answered.
    Ended {
        /// Our channel, free again.
        channel: Channel,
        /// What the owner had kept with it.
        owners: Vec<u32>,
        /// The peer's error, encoded.
        error: Option<&'f [u8]>,
    },
    /// The peer closed the connection; it has been answered.
    Closed {
        /// The peer's error, encoded.
        error: Option<&'f [u8]>,
    },
}

/// Why a frame could not be taken, with what it ends.
#[derive(Debug)]
pub enum Fault {
    /// The connection: see [`Connection::fail`].
    Connection(ConnectionError),
    /// One session: see [`Connection::end_session`].
    Session(Channel, SessionError),
}

impl<E: Into<ConnectionError>> From<E> for Fault {
    fn from(error: E) -> Self {
        Fault::Connection(error.into())
    }
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    /// Number in log lines: `C12`.
    pub number: u64,
    announce: Arc<Announce>,
    side: Arc<Side>,
    phase: Phase,
    deframer: Deframer,
    outbox: ByteQueue,
    open_sent: bool,
    sasl: Option<&'static str>,
    remote_max_frame_size: usize,
    remote_channel_max: u16,
    heartbeat: Option<Duration>,
    handshake_deadline: Option<Instant>,
    last_input: Instant,
    last_output: Instant,
    /// By our channel.
    sessions: Vec<Option<Box<Session>>>,
    /// Our channel by the peer's.
    channels: Vec<Option<Channel>>,
}

impl Connection {
    /// A new transport. A connector's SASL header is in the outbox already.
    pub fn new(
        number: u64,
        side: Arc<Side>,
        announce: Arc<Announce>,
        handshake: Option<Duration>,
        now: Instant,
    ) -> Self {
        let is_connector = matches!(*side, Side::Connector { .. });
        let mut connection = Connection {
            number,
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
    pub fn put_back(&mut self, deframer: Deframer) {
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
                    trace::received(self.number, Unit::Header(bytes));
                }
                self.on_header(bytes)?;
                Ok(Some(Event::Consumed))
            }
            Phase::Over => Ok(None),
            Phase::SaslInit
            | Phase::Mechanisms
            | Phase::Outcome
            | Phase::Open
            | Phase::Opened
            | Phase::CloseSent { .. } => {
                let Some(frame) = deframer.next_frame(input)? else {
                    return Ok(None);
                };
                if trace::is_enabled() {
                    trace::received(self.number, Unit::Frame(frame));
                }
                self.on_frame(frame).map(Some)
            }
        }
    }

    fn on_header(&mut self, bytes: [u8; header::LENGTH]) -> Result<(), ConnectionError> {
        let header = ProtocolHeader::parse(bytes).ok_or(ConnectionError::UnknownProtocol(bytes))?;
        match (self.phase, header) {
            (Phase::Header, ProtocolHeader::Sasl) => {
                let side = Arc::clone(&self.side);
                let Side::Listener { mechanisms } = &*side else {
                    return Ok(());
                };
                let names: Vec<&str> = mechanisms.iter().map(String::as_str).collect();
                self.emit(|out| {
                    out.extend_from_slice(&ProtocolHeader::Sasl.bytes());
                    SaslFrame::Mechanisms(names).write(out);
                });
                self.phase = Phase::SaslInit;
            }
            (Phase::Header | Phase::HeaderAfterSasl, ProtocolHeader::Amqp) => {
                self.emit(|out| out.extend_from_slice(&ProtocolHeader::Amqp.bytes()));
                self.phase = Phase::Open;
            }
            (Phase::SaslHeader, ProtocolHeader::Sasl) => self.phase = Phase::Mechanisms,
            (Phase::AmqpHeader, ProtocolHeader::Amqp) => self.phase = Phase::Open,
            (Phase::SaslHeader, ProtocolHeader::Amqp) => {
                return Err(ConnectionError::ProtocolMismatch("the peer does not speak SASL"));
            }
            (_, ProtocolHeader::Tls) => {
                return Err(ConnectionError::ProtocolMismatch(
                    "the peer wants TLS, which this port does not speak",
                ));
            }
            _ => {
                return Err(ConnectionError::ProtocolMismatch(
                    "a protocol header out of order",
                ));
            }
        }
        Ok(())
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
                    _ => Err(ConnectionError::Unexpected("a frame before open").into()),
                }
            }
            (Phase::CloseSent { .. }, FrameType::Amqp) => {
                if let Ok(Performative::Close(_)) = Performative::parse(frame.body) {
                    self.phase = Phase::Over;
                }
                Ok(Event::Consumed)
            }
            (Phase::SaslInit | Phase::Mechanisms | Phase::Outcome, FrameType::Sasl) => {
                self.on_sasl(&SaslFrame::parse(frame.body)?)?;
                Ok(Event::Consumed)
            }
            _ => Err(ConnectionError::Unexpected("this type of frame").into()),
        }
    }

    fn on_sasl(&mut self, frame: &SaslFrame<'_>) -> Result<(), ConnectionError> {
        let side = Arc::clone(&self.side);
        match (&*side, self.phase, frame) {
            (Side::Listener { mechanisms }, Phase::SaslInit, SaslFrame::Init { mechanism, .. }) => {
                let code = handshake::judge(mechanisms, mechanism);
                let known = mechanisms
                    .iter()
                    .find(|name| name.eq_ignore_ascii_case(mechanism));
                let refusal = match (code, known) {
                    (SaslCode::Ok, Some(_)) => None,
                    _ => Some(format!(
                        "Client mechanism {mechanism:?} is not among those of this listener"
                    )),
                };
                self.sasl = Some(if mechanism.eq_ignore_ascii_case("MSSBCBS") {
                    "MSSBCBS"
                } else {
                    "ANONYMOUS"
                });
                self.emit(|out| SaslFrame::Outcome(code).write(out));
                match refusal {
                    None => self.phase = Phase::HeaderAfterSasl,
                    Some(text) => return Err(ConnectionError::Sasl(text)),
                }
            }
            (Side::Connector { credentials }, Phase::Mechanisms, SaslFrame::Mechanisms(offered)) => {
                let Some(choice) = credentials.choose(offered) else {
                    return Err(ConnectionError::Sasl(format!(
                        "no common SASL mechanism: the peer offers {}, allowed here: {}",
                        offered.join(" "),
                        if credentials.mechanisms.is_empty() {
                            "any that saslUsername, saslPassword and certificate make possible".to_owned()
                        } else {
                            credentials.mechanisms.join(" ")
                        }
                    )));
                };
                self.sasl = Some(choice.mechanism);
                self.emit(|out| {
                    SaslFrame::Init {
                        mechanism: choice.mechanism,
                        initial_response: Some(&choice.initial_response),
                    }
                    .write(out);
                });
                self.phase = Phase::Outcome;
            }
            (Side::Connector { .. }, Phase::Outcome, SaslFrame::Outcome(code)) => match code {
                SaslCode::Ok => {
                    self.emit(|out| out.extend_from_slice(&ProtocolHeader::Amqp.bytes()));
                    self.send_open();
                    self.phase = Phase::AmqpHeader;
                }
                SaslCode::Auth => {
                    return Err(ConnectionError::Sasl(format!(
                        "Authentication failed [mech={}]: the peer refuses the credentials",
                        self.sasl.unwrap_or("none")
                    )));
                }
                SaslCode::Sys | SaslCode::SysPerm | SaslCode::SysTemp => {
                    return Err(ConnectionError::Sasl(
                        "Authentication failed: the peer has an error of its own".into(),
                    ));
                }
            },
            _ => return Err(ConnectionError::Unexpected(handshake::name(frame))),
        }
        Ok(())
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
            _ => {}
        }
        let channel = self.local_channel(remote)?;
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
                let (handle, kind) = session.on_attach(&attach).map_err(fault)?;
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
                let next_outgoing_id = session.outgoing.next_id();
                self.emit(|out| {
                    originate::write_begin(
                        out,
                        channel,
                        Some(remote),
                        next_outgoing_id,
                        window,
                        limits::HANDLE_MAX,
                    );
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
        self.phase = Phase::Over;
        Event::Closed { error }
    }

    /// The peer shut down its side of the transport.
    pub fn on_eof(&mut self) {
        if trace::is_enabled() {
            trace::received(self.number, Unit::EndOfStream);
        }
    }

    // ---- channels ------------------------------------------------------------------------------------------------

    #[inline]
    fn local_channel(&self, remote: Channel) -> Result<Channel, ConnectionError> {
        self.channels
            .get(usize::from(remote.0))
            .copied()
            .flatten()
            .ok_or(ConnectionError::Channel(remote))
    }

    fn add_session(&mut self, session: Session) -> Result<Channel, ConnectionError> {
        let free = self
            .sessions
            .iter()
            .position(Option::is_none)
            .unwrap_or(self.sessions.len());
        let channel = Channel(u16::try_from(free).unwrap_or(u16::MAX));
        if channel.0 > self.remote_channel_max.min(limits::UPSTREAM_CHANNEL_MAX) {
            return Err(ConnectionError::Channel(channel));
        }
        if free == self.sessions.len() {
            self.sessions.push(None);
        }
        if let Some(slot) = self.sessions.get_mut(free) {
            *slot = Some(Box::new(session));
        }
        Ok(channel)
    }

    fn free_session(&mut self, channel: Channel, remote: Channel) {
        if let Some(slot) = self.sessions.get_mut(usize::from(channel.0)) {
            *slot = None;
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

    /// What the owner has kept with all sessions; they are forgotten here.
    pub fn take_owners(&mut self) -> Vec<u32> {
        self.sessions
            .iter_mut()
            .flatten()
            .flat_map(|session| std::mem::take(&mut session.owners))
            .collect()
    }

    // ---- output --------------------------------------------------------------------------------------------------

    /// Sends our open.
    pub fn send_open(&mut self) {
        let announce = Arc::clone(&self.announce);
        let number = i32::try_from(self.number).unwrap_or(i32::MAX);
        self.open_sent = true;
        self.emit(|out| {
            originate::write_open(
                out,
                &OpenFields {
                    container_id: &announce.container_id,
                    hostname: announce.hostname.as_deref(),
                    max_frame_size: announce.max_frame_size,
                    channel_max: announce.channel_max,
                    idle_time_out: announce
                        .idle_timeout
                        .map(|timeout| u32::try_from(timeout.as_millis() / 2).unwrap_or(u32::MAX)),
                    connection_number: number,
                },
            );
        });
    }

    /// Begins a session.
    ///
    /// # Errors
    /// The peer allows no more channels.
    pub fn begin_session(&mut self) -> Result<Channel, ConnectionError> {
        let window = self.announce.session_window;
        let channel = self.add_session(Session::new(SessionState::BeginSent, window))?;
        let next_outgoing_id = self
            .session(channel)
            .map(|s| s.outgoing.next_id())
            .unwrap_or_default();
        self.emit(|out| {
            originate::write_begin(out, channel, None, next_outgoing_id, window, limits::HANDLE_MAX);
        });
        Ok(channel)
    }

    /// Ends a session; what the peer still sends on it is ignored. Returns what the owner had kept with it.
    pub fn end_session(&mut self, channel: Channel, error: Option<&[u8]>) -> Vec<u32> {
        let Some(session) = self
            .session_mut(channel)
            .filter(|s| s.state != SessionState::EndSent)
        else {
            return Vec::new();
        };
        let owners = std::mem::take(&mut session.owners);
        session.state = SessionState::EndSent;
        self.emit(|out| originate::write_end(out, channel, error));
        owners
    }

    /// Attaches a link of ours, with another peer's attach behind the role.
    pub fn attach_link(
        &mut self,
        channel: Channel,
        name: &str,
        role: Role,
        owner: u32,
        tail: Tail<'_>,
    ) -> Result<Handle, SessionError> {
        let session = self
            .session_mut(channel)
            .ok_or(SessionError::HandleMax(Handle(0)))?;
        let handle = session.add_link(name, role)?;
        if let Some(link) = session.link_mut(handle) {
            link.local = End::Attached;
            link.owner = Some(owner);
        }
        self.emit_attach(channel, name, handle, role, tail);
        Ok(handle)
    }

    /// Answers the peer's attach, with another peer's answer behind the role.
    pub fn answer_attach(&mut self, channel: Channel, handle: Handle, tail: Tail<'_>) {
        let Some(link) = self.link_mut(channel, handle) else {
            return;
        };
        link.local = End::Attached;
        let (name, role) = (link.name.clone(), link.role);
        self.emit_attach(channel, &name, handle, role, tail);
    }

    /// An attach cannot be split into frames: for a peer with small frames it loses what it can do without.
    fn emit_attach(&mut self, channel: Channel, name: &str, handle: Handle, role: Role, tail: Tail<'_>) {
        let room = self.remote_max_frame_size;
        let fixed = name.len() + 32;
        let mut trimmed: Option<Vec<u8>> = None;
        let mut dropped = 0;
        while trimmed.as_deref().unwrap_or(tail.bytes).len() + fixed > room {
            dropped += 1;
            match relay::trimmed_attach_tail(tail, dropped) {
                Some(shorter) => trimmed = Some(shorter),
                None => break,
            }
        }
        let tail = Tail {
            count: tail.count,
            bytes: trimmed.as_deref().unwrap_or(tail.bytes),
        };
        self.emit(|out| relay::write_attach(out, channel, name, handle, role, tail));
    }

    /// Refuses the peer's attach: answers it with a null terminus on our side, and detaches (AMQP 1.0 part 2, §2.6.3).
    pub fn refuse_attach(
        &mut self,
        channel: Channel,
        handle: Handle,
        source: Option<&[u8]>,
        target: Option<&[u8]>,
        error: Option<&AmqpError>,
    ) {
        let Some(link) = self.link_mut(channel, handle) else {
            return;
        };
        let (name, role) = (link.name.clone(), link.role);
        self.emit(|out| {
            originate::write_refusing_attach(out, channel, &name, handle, role, source, target);
        });
        self.detach_link(channel, handle, true, error);
    }

    /// Detaches our end with an error of ours.
    pub fn detach_link(&mut self, channel: Channel, handle: Handle, closed: bool, error: Option<&AmqpError>) {
        self.emit(|out| originate::write_detach(out, channel, handle, closed, error));
        self.after_detach(channel, handle);
    }

    /// Detaches our end with the other peer's detach.
    pub fn relay_detach(&mut self, channel: Channel, handle: Handle, tail: Tail<'_>) {
        self.emit(|out| relay::write_detach(out, channel, handle, tail));
        self.after_detach(channel, handle);
    }

    fn after_detach(&mut self, channel: Channel, handle: Handle) {
        if let Some(session) = self.session_mut(channel) {
            session.detach_local(handle);
            session.reap(handle);
        }
    }

    /// Frees a link if both its ends are detached.
    pub fn reap_link(&mut self, channel: Channel, handle: Handle) {
        if let Some(session) = self.session_mut(channel) {
            session.reap(handle);
        }
    }

    /// Sends a link's flow with the other peer's link fields, or a flow of the session alone.
    pub fn send_flow(&mut self, channel: Channel, link: Option<(Handle, Tail<'_>)>) {
        let Some(flow) = self.session(channel).map(Session::flow) else {
            return;
        };
        self.emit(|out| relay::write_flow(out, channel, flow, link));
    }

    /// Tells the peer of a wider window, when half of it is used up and `held` frames are still on their way onwards.
    #[inline]
    pub fn refresh_window(&mut self, channel: Channel, held: u32) {
        if self
            .session_mut(channel)
            .is_some_and(|session| session.incoming.refresh(held))
        {
            self.send_flow(channel, None);
        }
    }

    /// Sends a transfer, or one frame's worth of it. The window must be open.
    #[inline]
    pub fn send_transfer(
        &mut self,
        channel: Channel,
        handle: Handle,
        delivery_id: Option<DeliveryId>,
        transfer: &Transfer<'_>,
        offset: usize,
    ) -> Written {
        let max = self.remote_max_frame_size;
        let written = self
            .emit_with(|out| relay::write_transfer(out, channel, handle, delivery_id, transfer, offset, max));
        if written != Written::HeadTooLarge
            && let Some(session) = self.session_mut(channel)
        {
            session.outgoing.send();
        }
        written
    }

    /// Aborts the delivery under way on a link, if the window lets us say so; the detach that follows says it too.
    pub fn abort_delivery(&mut self, channel: Channel, handle: Handle) {
        let Some(session) = self
            .session_mut(channel)
            .filter(|session| session.outgoing.is_open())
        else {
            return;
        };
        session.outgoing.send();
        self.emit(|out| originate::write_abort(out, channel, handle));
    }

    /// Sends the other peer's disposition with ids of this session.
    pub fn relay_disposition(
        &mut self,
        channel: Channel,
        role: Role,
        first: DeliveryId,
        last: DeliveryId,
        tail: Tail<'_>,
    ) {
        self.emit(|out| relay::write_disposition(out, channel, role, first, last, tail));
    }

    /// Settles deliveries with a state of ours.
    pub fn settle(
        &mut self,
        channel: Channel,
        role: Role,
        first: DeliveryId,
        last: DeliveryId,
        state: fn(&mut Writer<'_>),
    ) {
        self.emit(|out| originate::write_disposition(out, channel, role, first, last, state));
    }

    /// Closes the connection and waits for the peer's Close until [`limits::CLOSE_TIMEOUT`].
    pub fn close(&mut self, error: Option<&AmqpError>, now: Instant) {
        if matches!(self.phase, Phase::CloseSent { .. } | Phase::Over) {
            return;
        }
        if !self.speaks_amqp() {
            self.phase = Phase::Over;
            return;
        }
        self.write_open_and_close(error);
        self.phase = Phase::CloseSent {
            deadline: now + limits::CLOSE_TIMEOUT,
        };
    }

    /// Ends the connection over an error: says so if the peer can understand it, and does not wait.
    pub fn fail(&mut self, error: &ConnectionError) {
        let close = AmqpError::new(error.condition(), error.to_string());
        match error {
            ConnectionError::UnknownProtocol(_) if self.phase == Phase::Header => {
                // qdrouterd 1.19: our header, an open and a close that says why.
                self.emit(|out| out.extend_from_slice(&ProtocolHeader::Amqp.bytes()));
                self.write_open_and_close(Some(&close));
            }
            ConnectionError::HandshakeTimeout | ConnectionError::ProtocolMismatch(_) => {}
            _ if self.speaks_amqp() && !matches!(self.phase, Phase::CloseSent { .. } | Phase::Over) => {
                self.write_open_and_close(Some(&close));
            }
            _ => {}
        }
        self.phase = Phase::Over;
    }

    fn write_open_and_close(&mut self, error: Option<&AmqpError>) {
        if !self.open_sent {
            self.send_open();
        }
        let error = error.map(AmqpError::encode);
        self.emit(|out| originate::write_close(out, error.as_deref()));
    }

    /// Our AMQP header is out.
    const fn speaks_amqp(&self) -> bool {
        matches!(
            self.phase,
            Phase::AmqpHeader | Phase::Open | Phase::Opened | Phase::CloseSent { .. }
        )
    }

    /// Appends to the outbox, and shows what was appended if anybody wants to see it.
    #[inline]
    fn emit(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.emit_with(write);
    }

    #[inline]
    fn emit_with<T>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let out = self.outbox.tail();
        let start = out.len();
        let result = write(out);
        if trace::is_enabled() {
            trace::sent(self.number, out.get(start..).unwrap_or_default());
        }
        result
    }

    /// What waits for the transport.
    pub const fn outbox(&self) -> &ByteQueue {
        &self.outbox
    }

    /// The transport took `count` bytes.
    pub fn transmitted(&mut self, count: usize, now: Instant) {
        self.outbox.consume(count);
        self.last_output = now;
    }

    // ---- state and time ------------------------------------------------------------------------------------------

    /// Opens have been exchanged and no close.
    pub const fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Opened)
    }

    /// Nothing more will be read; when the outbox is empty the transport is done with.
    pub const fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    /// The SASL mechanism in use.
    pub const fn sasl_mechanism(&self) -> Option<&'static str> {
        self.sasl
    }

    /// When [`on_timeout`](Self::on_timeout) wants to be called.
    pub fn next_deadline(&self) -> Option<Instant> {
        let idle = match self.phase {
            Phase::CloseSent { deadline } => Some(deadline),
            Phase::Over => None,
            _ => self
                .announce
                .idle_timeout
                .filter(|_| self.open_sent)
                .map(|limit| self.last_input + limit),
        };
        let heartbeat = match self.phase {
            Phase::Opened => self.heartbeat.map(|interval| self.last_output + interval),
            _ => None,
        };
        [idle, heartbeat, self.handshake_deadline]
            .into_iter()
            .flatten()
            .min()
    }

    /// Time has passed: sends a heartbeat if one is due.
    ///
    /// # Errors
    /// The peer was silent for too long; [`fail`](Self::fail) the connection.
    pub fn on_timeout(&mut self, now: Instant) -> Result<(), ConnectionError> {
        if let Phase::CloseSent { deadline } = self.phase {
            if deadline <= now {
                self.phase = Phase::Over;
            }
            return Ok(());
        }
        if self.handshake_deadline.is_some_and(|deadline| deadline <= now) {
            return Err(ConnectionError::HandshakeTimeout);
        }
        let limit = self.announce.idle_timeout.filter(|_| self.open_sent);
        if limit.is_some_and(|limit| self.last_input + limit <= now) {
            return Err(ConnectionError::IdleTimeout);
        }
        if self.phase == Phase::Opened
            && self
                .heartbeat
                .is_some_and(|interval| self.last_output + interval <= now)
        {
            self.last_output = now;
            if self.outbox.is_empty() {
                self.emit(|out| out.extend_from_slice(&HEARTBEAT));
            }
            self.deframer.release_memory();
        }
        if self.outbox.is_empty() {
            self.outbox.release_memory();
        }
        Ok(())
    }
}

fn frame_size(size: u32) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}
