//! What the router and its driver tell each other.

use std::time::Duration;

use super::ConnectionKey;
#[cfg(doc)]
use super::Router;
use super::settings::{ConnectorId, HostPort, Secret};

/// What the driver must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Look at this connection again: bytes to write, reading allowed again, or its state changed.
    Wake(ConnectionKey),
    /// For a connector or a further connection of its pool: resolve, connect, and for a TLS connector shake hands ([`Router::dial_target`] says with whom); then call `dialed`
    /// or `dial_failed`, once.
    Dial(ConnectorId),
    /// Find out whether this is the user's password, without letting anybody wait for it; then call `authenticated`,
    /// once.
    Authenticate(ConnectionKey, Box<Login>),
}

/// What a device logs in with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// Whom it claims to be.
    pub user: String,
    /// The proof.
    pub password: Secret<Vec<u8>>,
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

/// Whom to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DialTarget {
    /// The connector that the configuration knows: a further connection of its pool is dialed as it is.
    pub configured: ConnectorId,
    /// Where.
    pub host: HostPort,
    /// Whom we expect there: for SNI and the name in the certificate.
    pub server_name: String,
    /// TCP and TLS together may take this long.
    pub limit: Duration,
}
