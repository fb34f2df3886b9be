//! What a connection tells its owner: one event per frame, or why the frame could not be taken.

use super::session::AttachKind;
use super::{ConnectionError, SessionError};
use crate::amqp::performative::{Attach, Detach, Disposition, Flow, Open, Transfer};
use crate::amqp::serial::{Channel, Handle};

/// What a frame means for the connection's owner. It has no `Debug`: a password may be in it.
pub enum Event<'f> {
    /// Nothing: it was dealt with here.
    Consumed,
    /// The peer claims to be `user`. Nothing more is read of it before
    /// [`authenticated`](super::connection::Connection::authenticated) has told what that is worth.
    Login {
        /// The user.
        user: &'f str,
        /// The password. A secret.
        password: &'f [u8],
    },
    /// The mechanisms that a listener offers, of which one has been chosen
    /// ([`sasl_mechanism`](super::connection::Connection::sasl_mechanism)).
    Offered(Vec<&'f str>),
    /// A listener has taken what we authenticate with.
    Admitted,
    /// The peer's open. A listener's owner answers with [`send_open`](super::connection::Connection::send_open).
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
    /// The connection: see [`fail`](super::connection::Connection::fail).
    Connection(ConnectionError),
    /// One session: see [`end_session`](super::connection::Connection::end_session).
    Session(Channel, SessionError),
}

impl<E: Into<ConnectionError>> From<E> for Fault {
    fn from(error: E) -> Self {
        Fault::Connection(error.into())
    }
}
