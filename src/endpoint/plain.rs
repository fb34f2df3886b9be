//! The two ends of a run of plain transfers: what is looked up once for all of them, and what is counted for each.
//!
//! Everything here is also done, one frame at a time, by [`Session`]'s and [`Connection`]'s own methods; whoever gets no
//! end from here goes that way.

use super::connection::{Connection, Phase};
use super::limits;
use super::link::{End, Link};
use super::outbox::ByteQueue;
use super::session::{Session, SessionState};
use super::trace;
use super::window::IncomingWindow;
use crate::amqp::performative::Role;
use crate::amqp::plain::PlainTransfer;
use crate::amqp::relay;
use crate::amqp::serial::{Channel, DeliveryId, Handle};

/// A link on which a peer sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainSource {
    /// Our channel.
    pub channel: Channel,
    /// What the link's owner keeps with it.
    pub owner: u32,
}

/// A link on which we send.
#[derive(Debug)]
pub struct PlainTarget<'c> {
    session: &'c mut Session,
    outbox: &'c mut ByteQueue,
    channel: Channel,
    handle: Handle,
    max_frame_size: usize,
}

impl Connection {
    /// The frame at the start of `input`, if it is plain and nobody wants to see it.
    #[inline]
    pub fn peek_plain<'i>(&self, input: &'i [u8]) -> Option<PlainTransfer<'i>> {
        if self.phase != Phase::Opened || trace::is_enabled() {
            return None;
        }
        PlainTransfer::peek(input, self.announce.max_frame_size)
    }

    /// Where a plain transfer comes from, if it may come now, between two deliveries, on a link that has an owner.
    #[inline]
    pub fn plain_source(&self, transfer: &PlainTransfer<'_>) -> Option<PlainSource> {
        let channel = self.local_channel(transfer.channel).ok()?;
        let session = self
            .session(channel)
            .filter(|session| session.state != SessionState::EndSent)?;
        let link = session.link(session.local_handle(transfer.handle).ok()?)?;
        if link.role == Role::Sender || link.is_receiving || session.incoming.is_due() {
            return None;
        }
        Some(PlainSource {
            channel,
            owner: link.owner?,
        })
    }

    /// What counts the frames of a [`PlainSource`].
    #[inline]
    pub fn incoming_window(&mut self, channel: Channel) -> Option<&mut IncomingWindow> {
        self.session_mut(channel).map(|session| &mut session.incoming)
    }

    /// Where plain transfers can go, if the link is attached at both ends.
    #[inline]
    pub fn plain_target(&mut self, channel: Channel, handle: Handle) -> Option<PlainTarget<'_>> {
        let session = self
            .sessions
            .get_mut(usize::from(channel.0))
            .and_then(Option::as_deref_mut)?;
        let is_attached = |link: &Link| link.local == End::Attached && link.remote != End::Detached;
        session.link(handle).filter(|link| is_attached(link))?;
        Some(PlainTarget {
            session,
            outbox: &mut self.outbox,
            channel,
            handle,
            max_frame_size: self.remote_max_frame_size,
        })
    }
}

impl PlainTarget<'_> {
    /// Appends a transfer to the outbox and yields its id here. `None`: window, outbox or the peer's max-frame-size do not
    /// have room for it, and nothing has changed.
    #[inline]
    pub fn send(&mut self, transfer: &PlainTransfer<'_>) -> Option<DeliveryId> {
        if self.outbox.len() >= limits::OUTBOX_HIGH || !self.session.outgoing.is_open() {
            return None;
        }
        let id = self.session.next_delivery_id();
        let out = self.outbox.tail();
        if !relay::write_plain(out, self.channel, self.handle, id, transfer, self.max_frame_size) {
            return None;
        }
        self.session.outgoing.send();
        self.session.use_delivery_id();
        Some(id)
    }
}
