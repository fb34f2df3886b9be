//! What a router holds at one moment, counted: for inspection, and for tests that nothing leaks.

use super::Router;

/// Counts of what exists, and bytes of what waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Connections of devices and hubs whose transport is there.
    pub connections: usize,
    /// Device sessions joined to an upstream session, or waiting for one.
    pub session_pairs: usize,
    /// Device links joined to an upstream link, or waiting for one.
    pub link_pairs: usize,
    /// Devices that the vhost policy has admitted and counts.
    pub admitted: usize,
    /// Attaches that wait for a connector.
    pub waiting_attaches: usize,
    /// Bytes of devices that wait for hubs.
    pub parked_bytes: usize,
    /// Bytes of hubs that wait for devices.
    pub held_bytes: usize,
    /// Bytes that wait for transports.
    pub outbox_bytes: usize,
}

impl Snapshot {
    /// All bytes that wait for somebody.
    pub const fn buffered_bytes(&self) -> usize {
        self.parked_bytes + self.held_bytes + self.outbox_bytes
    }
}

impl Router {
    /// Counts what there is; takes a walk over all connections.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            connections: self.connections.len(),
            session_pairs: self.session_pairs.len(),
            link_pairs: self.link_pairs.len(),
            admitted: self.book.connections(),
            waiting_attaches: self.connectors.values().map(|c| c.waiting.len()).sum(),
            parked_bytes: self.parked_total,
            held_bytes: self.held_total,
            outbox_bytes: self
                .connections
                .iter()
                .map(|(_, entry)| entry.connection.outbox().len())
                .sum(),
        }
    }
}
