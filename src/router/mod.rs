//! Layer 3: the link router. Sans-I/O; owns every connection, session, link and route of one shard.
//!
//! # Contract for the driver
//!
//! Inputs ([`accepted`](Router::accepted), [`dialed`](Router::dialed), [`dial_failed`](Router::dial_failed),
//! [`handle_input`](Router::handle_input), [`handle_eof`](Router::handle_eof),
//! [`transport_lost`](Router::transport_lost), [`transmitted`](Router::transmitted),
//! [`handle_timeout`](Router::handle_timeout)) take `now` and never fail: a protocol error becomes bytes to send and
//! a changed [`TransportState`]. After any input the driver calls [`poll_action`](Router::poll_action) until it
//! yields nothing, and re-arms its one timer from [`poll_timeout`](Router::poll_timeout).
//!
//! For one connection the driver loops: while [`may_read`](Router::may_read), read and call `handle_input`; while
//! [`transmit`](Router::transmit) is not empty, write and call `transmitted`; then act on
//! [`transport_state`](Router::transport_state). [`Action::Wake`] says that any of the three answers may have changed.

pub mod settings;

use std::time::{Duration, Instant};

use settings::{ConnectorId, ListenerId, RouterSettings};

/// Names one connection of one router; never reused, so a stale key is harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionKey {
    index: u32,
    generation: u32,
}

impl ConnectionKey {
    /// Slot number: small, reused after the connection is gone.
    pub const fn index(self) -> usize {
        self.index as usize
    }
}

/// What the driver must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Look at this connection again: bytes to write, reading allowed again, or its state changed.
    Wake(ConnectionKey),
    /// Resolve, connect, and for a TLS connector shake hands; then call `dialed` or `dial_failed`, once.
    Dial(ConnectorId),
}

/// What the driver does with a connection's transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportState {
    /// Keep reading and writing.
    Open,
    /// Write what [`Router::transmit`] still yields, then shut down and call [`Router::transport_lost`].
    CloseWhenFlushed,
    /// Drop the socket now. Also the answer for a key that the router has forgotten.
    Abort,
}

/// What is known of a transport when it is handed to the router.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransportInfo {
    /// The peer's address, `HOST:PORT`.
    pub peer: String,
    /// The TLS version, such as `TLSv1.3`, when the transport is encrypted.
    pub tls: Option<String>,
}

/// The router of one shard.
#[derive(Debug)]
pub struct Router {}

#[allow(unused_variables)]
impl Router {
    /// A router with no connections. Persistent connectors ask to be dialed at once ([`Action::Dial`]).
    pub fn new(settings: RouterSettings, now: Instant) -> Self {
        unimplemented!()
    }
    /// A device's transport was accepted. `None`: over `maxConnections`, drop it.
    pub fn accepted(
        &mut self,
        listener: ListenerId,
        transport: TransportInfo,
        now: Instant,
    ) -> Option<ConnectionKey> {
        unimplemented!()
    }
    /// The transport asked for by [`Action::Dial`] is ready. `None`: no longer wanted, drop it.
    pub fn dialed(
        &mut self,
        connector: ConnectorId,
        transport: TransportInfo,
        now: Instant,
    ) -> Option<ConnectionKey> {
        unimplemented!()
    }
    /// The dial failed; `reason` is one line for the operator (no secrets), logged here.
    pub fn dial_failed(&mut self, connector: ConnectorId, reason: &str, now: Instant) {
        unimplemented!()
    }
    /// Whether the driver may read from this connection now.
    pub fn may_read(&self, connection: ConnectionKey) -> bool {
        unimplemented!()
    }
    /// Bytes arrived.
    pub fn handle_input(&mut self, connection: ConnectionKey, bytes: &[u8], now: Instant) {
        unimplemented!()
    }
    /// The peer shut down its sending side.
    pub fn handle_eof(&mut self, connection: ConnectionKey, now: Instant) {
        unimplemented!()
    }
    /// The transport is gone, by an error (`reason`) or because it was shut down as told. Frees the connection.
    pub fn transport_lost(&mut self, connection: ConnectionKey, reason: &str, now: Instant) {
        unimplemented!()
    }
    /// Bytes to write now; empty when there is nothing.
    pub fn transmit(&mut self, connection: ConnectionKey) -> &[u8] {
        unimplemented!()
    }
    /// The first `count` of them were written.
    pub fn transmitted(&mut self, connection: ConnectionKey, count: usize, now: Instant) {
        unimplemented!()
    }
    /// What to do with the transport.
    pub fn transport_state(&self, connection: ConnectionKey) -> TransportState {
        unimplemented!()
    }
    /// The next thing to do, oldest first.
    pub fn poll_action(&mut self) -> Option<Action> {
        unimplemented!()
    }
    /// When [`handle_timeout`](Router::handle_timeout) wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        unimplemented!()
    }
    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        unimplemented!()
    }
    /// Stop: close every connection properly, dial no more. Done when [`is_empty`](Router::is_empty).
    pub fn shutdown(&mut self, now: Instant) {
        unimplemented!()
    }
    /// No connection is left.
    pub fn is_empty(&self) -> bool {
        unimplemented!()
    }
    /// How long a dial of this connector may take in all.
    pub fn dial_timeout(&self, connector: ConnectorId) -> Duration {
        unimplemented!()
    }
}
