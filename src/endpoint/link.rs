//! One link as one peer sees it: which ends are attached (AMQP 1.0 part 2, §2.6).

use crate::amqp::performative::Role;
use crate::amqp::serial::Handle;

/// One end of a link.
///
/// ```text
///   Idle --attach--> Attached --detach--> Detached
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// No attach yet.
    Idle,
    /// Attach sent (or received), no detach.
    Attached,
    /// Detach sent (or received).
    Detached,
}

/// A link. It lives until both ends that were ever attached are detached.
#[derive(Debug)]
pub struct Link {
    /// Its name on this connection.
    pub name: Box<str>,
    /// Our role.
    pub role: Role,
    /// Our end.
    pub local: End,
    /// The peer's end.
    pub remote: End,
    /// The peer's handle, while its end is attached.
    pub remote_handle: Option<Handle>,
    /// A delivery from the peer has begun and not ended.
    pub is_receiving: bool,
    /// The router's own index for what is behind this link; this layer never reads it.
    pub owner: Option<u32>,
    /// Which of the session's links it is, counted from the first: answers come in the order of the attaches.
    pub(super) order: u64,
}

impl Link {
    pub(super) fn new(name: &str, role: Role, order: u64) -> Self {
        Link {
            name: name.into(),
            role,
            local: End::Idle,
            remote: End::Idle,
            remote_handle: None,
            is_receiving: false,
            owner: None,
            order,
        }
    }

    /// Nothing more can happen on it.
    pub(super) fn is_over(&self) -> bool {
        match (self.local, self.remote) {
            (End::Detached, End::Detached) => true,
            (End::Attached | End::Idle, _) | (_, End::Attached | End::Idle) => false,
        }
    }
}
