//! Layer 2: AMQP state machines for one peer. Sans-I/O: bytes in, events out, bytes out. Knows no routes.
//!
//! A [`Connection`](connection::Connection) takes the peer's bytes and yields [`Event`](event::Event)s; its
//! owner calls the `send_*` methods, which keep the connection's state and append frames to its outbox. Errors carry
//! their AMQP condition and the scope that they end: the smallest that the specification allows.
#![deny(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::todo,
    clippy::unimplemented,
    clippy::unreachable,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm
)]
#![cfg_attr(
    test,
    allow(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

pub mod connection;
mod deadlines;
pub mod event;
pub mod handshake;
pub mod limits;
pub mod link;
pub mod login;
pub mod outbox;
pub mod plain;
mod sending;
pub mod session;
pub mod trace;
pub mod window;

use crate::amqp::DecodeError;
use crate::amqp::condition;
use crate::amqp::frame::FrameError;
use crate::amqp::serial::{Channel, Handle};

/// Ends the connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionError {
    /// A peer that speaks another protocol.
    #[error("Unknown protocol detected: '{}'", .0.escape_ascii())]
    UnknownProtocol([u8; 8]),
    /// A known header that is not acceptable here.
    #[error("{0}")]
    ProtocolMismatch(&'static str),
    /// The stream is no sequence of frames.
    #[error("malformed frame: {0}")]
    Framing(#[from] FrameError),
    /// A frame's body is no performative.
    #[error("malformed frame body: {0}")]
    Decode(#[from] DecodeError),
    /// A frame that is legal elsewhere.
    #[error("{0} is not allowed now")]
    Unexpected(&'static str),
    /// A channel above what was announced, or not begun.
    #[error("channel {0} is not in use or above channel-max")]
    Channel(Channel),
    /// The SASL exchange failed.
    #[error("{0}")]
    Sasl(String),
    /// A bare AMQP header where authentication is demanded.
    #[error("Client skipped authentication - forbidden")]
    Unauthenticated,
    /// Clear text where encryption is demanded.
    #[error("Client connection unencrypted - forbidden")]
    Unencrypted,
    /// Nothing came for too long.
    #[error("local-idle-timeout expired")]
    IdleTimeout,
    /// The peer's open did not come in time.
    #[error("no open within the initial handshake time-out")]
    HandshakeTimeout,
    /// The peer does not read what is sent to it.
    #[error("the peer does not read: {0} bytes wait for it")]
    NotReading(usize),
}

impl ConnectionError {
    /// The condition of the Close.
    pub const fn condition(&self) -> &'static str {
        match self {
            ConnectionError::UnknownProtocol(_)
            | ConnectionError::Framing(_)
            | ConnectionError::Channel(_) => condition::FRAMING_ERROR,
            ConnectionError::ProtocolMismatch(_) | ConnectionError::Unexpected(_) => condition::NOT_ALLOWED,
            ConnectionError::Decode(_) => condition::DECODE_ERROR,
            ConnectionError::Sasl(_) => condition::UNAUTHORIZED_ACCESS,
            ConnectionError::Unauthenticated | ConnectionError::Unencrypted => condition::POLICY_ERROR,
            ConnectionError::IdleTimeout
            | ConnectionError::HandshakeTimeout
            | ConnectionError::NotReading(_) => condition::RESOURCE_LIMIT_EXCEEDED,
        }
    }
}

/// Ends one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// A handle that no link has.
    #[error("no such handle: {0}")]
    UnattachedHandle(Handle),
    /// A second attach with a handle.
    #[error("handle {0} is in use")]
    HandleInUse(Handle),
    /// A handle above what was announced.
    #[error("handle {0} is above handle-max")]
    HandleMax(Handle),
    /// A second attach with a name.
    #[error("a link of this name and direction is attached already")]
    LinkNameInUse,
    /// More transfers than the window allows.
    #[error("more transfers than the session window allows")]
    WindowViolation,
    /// A transfer from the end that receives.
    #[error("transfer on handle {0}, whose sender is this end")]
    TransferFromReceiver(Handle),
    /// An attach that is larger than the peer's frames, even without what it can do without.
    #[error("the peer's max-frame-size cannot hold the attach")]
    FrameSizeTooSmall,
    /// An attach that no frame of its sender can answer, not even to refuse it.
    #[error("the link's name alone fills a frame of the size that its peer takes")]
    LinkNameTooLong,
    /// More links than one device connection may have.
    #[error("more links than one connection may have")]
    TooManyLinks,
    /// The name of a link is longer than [`limits::LINK_NAME`].
    #[error("a link's name of {0} bytes; it may have {max}", max = limits::LINK_NAME)]
    LinkNameLimit(usize),
    /// A delivery that begins without an id.
    #[error("the first transfer of a delivery has no delivery-id")]
    MissingDeliveryId,
}

impl SessionError {
    /// The condition of the End.
    pub const fn condition(self) -> &'static str {
        match self {
            SessionError::UnattachedHandle(_) | SessionError::HandleMax(_) => condition::UNATTACHED_HANDLE,
            SessionError::HandleInUse(_) => condition::HANDLE_IN_USE,
            SessionError::LinkNameInUse => condition::NOT_ALLOWED,
            SessionError::WindowViolation => condition::WINDOW_VIOLATION,
            SessionError::TransferFromReceiver(_) => condition::ERRANT_LINK,
            SessionError::MissingDeliveryId => condition::INVALID_FIELD,
            SessionError::FrameSizeTooSmall | SessionError::LinkNameTooLong => {
                condition::FRAME_SIZE_TOO_SMALL
            }
            SessionError::TooManyLinks | SessionError::LinkNameLimit(_) => condition::RESOURCE_LIMIT_EXCEEDED,
        }
    }
}
