//! The sending half of a [`Connection`]: each method keeps the state of its session and link, and appends a frame to
//! the outbox.

use std::sync::Arc;
use std::time::Instant;

use super::connection::{Connection, Phase};
use super::limits;
use super::link::End;
use super::outbox::ByteQueue;
use super::session::{Session, SessionState};
use super::{ConnectionError, SessionError, trace};
use crate::amqp::codes::format;
use crate::amqp::condition::AmqpError;
use crate::amqp::fields::Tail;
use crate::amqp::header::ProtocolHeader;
use crate::amqp::originate::{self, OpenFields};
use crate::amqp::performative::{Role, Transfer};
use crate::amqp::relay::{self, Written};
use crate::amqp::serial::{Channel, DeliveryId, Handle};
use crate::amqp::shrink::{self, Attaching};
use crate::amqp::writer::Writer;

impl Connection {
    /// Sends our open.
    pub fn send_open(&mut self) {
        let announce = Arc::clone(&self.announce);
        let number = i32::try_from(self.number).unwrap_or(i32::MAX);
        self.open_sent = true;
        let limit = self.remote_max_frame_size;
        let mut fields = OpenFields {
            container_id: &announce.container_id,
            hostname: announce.hostname.as_deref(),
            max_frame_size: announce.max_frame_size,
            channel_max: announce.channel_max,
            idle_time_out: announce
                .idle_timeout
                .map(|timeout| u32::try_from(timeout.as_millis() / 2).unwrap_or(u32::MAX)),
            connection_number: number,
            failover: &announce.failover,
        };
        self.emit(|out| {
            let start = out.len();
            originate::write_open(out, &fields);
            if out.len() - start > limit && !fields.failover.is_empty() {
                // The peer takes only small frames: the one thing that it can do without.
                out.truncate(start);
                fields.failover = &[];
                originate::write_open(out, &fields);
            }
        });
    }

    /// Begins a session, whose frames are shown if it is traced.
    ///
    /// # Errors
    /// The peer allows no more channels.
    pub fn begin_session(&mut self, is_traced: bool) -> Result<Channel, ConnectionError> {
        let mut session = Session::new(SessionState::BeginSent, self.announce.session_window);
        session.is_traced = is_traced;
        let numbers = session.flow();
        let channel = self.add_session(session)?;
        self.emit(|out| originate::write_begin(out, channel, None, numbers, limits::HANDLE_MAX));
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
        let owners = session.end();
        self.emit_with_error(error, |out, error| originate::write_end(out, channel, error));
        owners
    }

    /// Attaches a link of ours, with another peer's attach behind the role.
    ///
    /// # Errors
    /// The peer allows no more links on the session, or none whose attach is so large.
    pub fn attach_link(
        &mut self,
        channel: Channel,
        name: &str,
        role: Role,
        owner: Option<u32>,
        tail: Tail<'_>,
    ) -> Result<Handle, SessionError> {
        let session = self
            .session_mut(channel)
            .ok_or(SessionError::HandleMax(Handle(0)))?;
        let handle = session.add_link(name, role)?;
        if let Some(link) = session.link_mut(handle) {
            link.local = End::Attached;
            link.owner = owner;
        }
        if !self.emit_attach(channel, name, handle, role, tail, Attaching::Request) {
            if let Some(session) = self.session_mut(channel) {
                session.take_back(handle);
            }
            return Err(SessionError::FrameSizeTooSmall);
        }
        Ok(handle)
    }

    /// Answers the peer's attach, with another peer's answer behind the role.
    ///
    /// # Errors
    /// No frame of the peer holds the answer, which has not been sent.
    pub fn answer_attach(
        &mut self,
        channel: Channel,
        handle: Handle,
        tail: Tail<'_>,
    ) -> Result<(), SessionError> {
        let Some(link) = self.link_mut(channel, handle) else {
            return Ok(());
        };
        let (name, role) = (link.name.clone(), link.role);
        if !self.emit_attach(channel, &name, handle, role, tail, Attaching::Answer(role)) {
            return Err(SessionError::FrameSizeTooSmall);
        }
        if let Some(link) = self.link_mut(channel, handle) {
            link.local = End::Attached;
        }
        Ok(())
    }

    /// `false`: even without all that it can lose, the attach fits no frame of the peer.
    fn emit_attach(
        &mut self,
        channel: Channel,
        name: &str,
        handle: Handle,
        role: Role,
        tail: Tail<'_>,
        attaching: Attaching,
    ) -> bool {
        self.emit_fitting(
            tail,
            |tail, room| shrink::attach_tail(tail, attaching, room),
            |out, tail| relay::write_attach(out, channel, name, handle, role, tail),
        )
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
        // Ours is null. The peer's own is repeated to it as far as that fits: at least the name does.
        let echo = match role {
            Role::Receiver => source,
            Role::Sender => target,
        };
        self.emit_fitting(
            Tail {
                count: 1,
                bytes: echo.unwrap_or(&[format::NULL]),
            },
            |echo, room| {
                let short = shrink::address_alone(echo.bytes).filter(|short| short.len() <= room);
                Some((1, short.unwrap_or_else(|| vec![format::NULL])))
            },
            |out, echo| {
                let (source, target) = match role {
                    Role::Receiver => (Some(echo.bytes), None),
                    Role::Sender => (None, Some(echo.bytes)),
                };
                originate::write_refusing_attach(out, channel, &name, handle, role, source, target);
            },
        );
        self.detach_link(channel, handle, true, error);
    }

    /// Detaches our end with an error of ours.
    pub fn detach_link(&mut self, channel: Channel, handle: Handle, closed: bool, error: Option<&AmqpError>) {
        let error = error.map(AmqpError::encode);
        self.emit_with_error(error.as_deref(), |out, error| {
            originate::write_detach(out, channel, handle, closed, error);
        });
        self.after_detach(channel, handle);
    }

    /// Detaches our end with the other peer's detach.
    pub fn relay_detach(&mut self, channel: Channel, handle: Handle, tail: Tail<'_>) {
        self.emit_shrunk(tail, |out, tail| relay::write_detach(out, channel, handle, tail));
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
        let Some(flow) = self
            .session(channel)
            .filter(|session| session.state != SessionState::EndSent)
            .map(Session::flow)
        else {
            return;
        };
        match link {
            Some((handle, tail)) => self.emit_shrunk(tail, |out, tail| {
                relay::write_flow(out, channel, flow, Some((handle, tail)));
            }),
            None => self.emit(|out| relay::write_flow(out, channel, flow, None)),
        }
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

    /// Aborts the delivery under way on a link, if the window lets us say so and the peer has not detached; the detach
    /// that follows says it too.
    pub fn abort_delivery(&mut self, channel: Channel, handle: Handle) {
        let is_wanted = |session: &Session| {
            let link = session.link(handle);
            session.outgoing.is_open() && link.is_some_and(|link| link.remote != End::Detached)
        };
        let Some(session) = self.session_mut(channel).filter(|session| is_wanted(session)) else {
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
        self.emit_shrunk(tail, |out, tail| {
            relay::write_disposition(out, channel, role, first, last, tail);
        });
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
            self.finish();
            return;
        }
        self.write_open_and_close(error);
        // From here on only the deadline of the close counts.
        self.handshake_deadline = None;
        self.phase = Phase::CloseSent {
            deadline: now + limits::CLOSE_TIMEOUT,
        };
    }

    /// Ends the connection over an error: says so if the peer can understand it, and does not wait. What is said has its
    /// time from `now` on, however long ago the peer was heard.
    pub fn fail(&mut self, error: &ConnectionError, now: Instant) {
        let close = AmqpError::new(error.condition(), error.to_string());
        match error {
            ConnectionError::UnknownProtocol(_) if self.phase == Phase::Header => {
                // AMQP 1.0 part 2, §2.2: a header that we speak, and the end. qdrouterd 1.19 adds an open and a close,
                // which a peer of another protocol cannot read either.
                self.emit(|out| out.extend_from_slice(&ProtocolHeader::Amqp.bytes()));
            }
            ConnectionError::HandshakeTimeout
            | ConnectionError::ProtocolMismatch(_)
            | ConnectionError::Unauthenticated
            | ConnectionError::Unencrypted => {}
            // What it has not read so far it will not read now.
            ConnectionError::NotReading(_) => self.outbox.clear(),
            ConnectionError::UnknownProtocol(_)
            | ConnectionError::Framing(_)
            | ConnectionError::Decode(_)
            | ConnectionError::Unexpected(_)
            | ConnectionError::Channel(_)
            | ConnectionError::Sasl(_)
            | ConnectionError::IdleTimeout => {
                if self.speaks_amqp() && !matches!(self.phase, Phase::CloseSent { .. } | Phase::Over) {
                    self.write_open_and_close(Some(&close));
                }
            }
        }
        self.last_output = now;
        self.finish();
    }

    pub(super) fn write_open_and_close(&mut self, error: Option<&AmqpError>) {
        if !self.open_sent {
            self.send_open();
        }
        let error = error.map(AmqpError::encode);
        self.emit_with_error(error.as_deref(), originate::write_close);
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
    pub(super) fn emit(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.emit_with(write);
    }

    #[inline]
    fn emit_with<T>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let out = self.outbox.tail();
        let start = out.len();
        let result = write(out);
        let length = out.len() - start;
        if trace::is_enabled() {
            self.show_sent(length);
        }
        result
    }

    /// Appends a frame that carries `carried`; if the peer's frames are too small for that, then what `shorten` leaves of
    /// it, given how many bytes fit. `false`: it leaves nothing, and nothing was appended.
    fn emit_fitting(
        &mut self,
        carried: Tail<'_>,
        shorten: impl FnOnce(Tail<'_>, usize) -> Option<(u8, Vec<u8>)>,
        write: impl Fn(&mut Vec<u8>, Tail<'_>),
    ) -> bool {
        let max = self.remote_max_frame_size;
        self.emit_with(|out| {
            let start = out.len();
            write(out, carried);
            let size = out.len() - start;
            if size <= max {
                return true;
            }
            out.truncate(start);
            // The rest of the frame is not larger when it carries less.
            let room = max.saturating_sub(size - carried.bytes.len());
            match shorten(carried, room) {
                Some((count, bytes)) if bytes.len() <= room => {
                    write(out, Tail { count, bytes: &bytes });
                    true
                }
                _ => false,
            }
        })
    }

    /// Appends a frame with another peer's fields, shortened if they do not fit.
    fn emit_shrunk(&mut self, fields: Tail<'_>, write: impl Fn(&mut Vec<u8>, Tail<'_>)) {
        self.emit_fitting(
            fields,
            |fields, room| Some((fields.count, shrink::tail(fields, room))),
            write,
        );
    }

    /// Appends a frame with an encoded error, shortened if it does not fit.
    fn emit_with_error(&mut self, error: Option<&[u8]>, write: impl Fn(&mut Vec<u8>, Option<&[u8]>)) {
        match error {
            Some(bytes) => {
                self.emit_fitting(
                    Tail { count: 1, bytes },
                    |error, room| Some((1, shrink::value(error.bytes, room))),
                    |out, error| write(out, Some(error.bytes)),
                );
            }
            None => self.emit(|out| write(out, None)),
        }
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
}
