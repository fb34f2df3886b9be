//! What a router holds at one moment, counted: for inspection, and for tests that nothing leaks.

use super::connector::State;
use super::{ConnectionKey, Router};

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
    /// Requests to `$cbs` that hubs have not answered.
    pub cbs_requests: usize,
    /// Answers of `$cbs` that devices have not taken.
    pub cbs_answers: usize,
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

/// Bytes that wait for, or of, one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buffered {
    /// Of a device, for hubs.
    pub parked: usize,
    /// Of hubs, for a device.
    pub held: usize,
    /// For the transport.
    pub outbox: usize,
}

/// What a connector is doing (qdrouterd: `connectionStatus`). It says `Success` only when opens are exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectorStatus {
    /// Not dialed, because nobody needs it.
    Initializing,
    /// Being dialed, or exchanging SASL and open.
    Connecting,
    /// Open.
    Success,
    /// Failed or lost, and waiting to be dialed again.
    Failed,
    /// Being closed by us.
    Closing,
}

impl ConnectorStatus {
    /// qdrouterd's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            ConnectorStatus::Initializing => "INITIALIZING",
            ConnectorStatus::Connecting => "CONNECTING",
            ConnectorStatus::Success => "SUCCESS",
            ConnectorStatus::Failed => "FAILED",
            ConnectorStatus::Closing => "CLOSING",
        }
    }
}

/// One connector at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectorReport {
    /// Its name.
    pub name: String,
    /// Whether this is a further connection of the connector of this name, made when the first was full.
    pub is_further: bool,
    /// What it is doing.
    pub status: ConnectorStatus,
    /// The last thing that happened to it, without secrets; empty when nothing has (qdrouterd: `connectionMsg`).
    pub message: String,
    /// `HOST:PORT` of the hosts, that which is connected or dialed next first (qdrouterd: `failoverUrls`).
    pub hosts: Vec<String>,
}

/// A router at a glance, as it is told to people: what takes no walk over all connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overview {
    /// Accepted connections: those of devices, and of brokers that connect to us.
    pub devices: usize,
    /// Links of devices that lead to a hub, or wait for one.
    pub links: usize,
    /// As [`Router::connectors`] has them.
    pub connectors: Vec<ConnectorReport>,
}

impl Router {
    /// The router at a glance.
    pub fn overview(&self) -> Overview {
        Overview {
            devices: self.devices,
            links: self.link_pairs.len(),
            connectors: self.connectors().collect(),
        }
    }

    /// What each connector is doing, and each further connection of its pool, oldest first; brokers that connected to us are not among them.
    pub fn connectors(&self) -> impl Iterator<Item = ConnectorReport> {
        let ours = self
            .connectors
            .values()
            .filter(|connector| !connector.is_accepted());
        ours.map(|connector| ConnectorReport {
            name: connector.settings.name.clone(),
            is_further: connector.head.is_some(),
            status: match connector.state {
                State::Idle => ConnectorStatus::Initializing,
                State::Dialing | State::Opening(_) => ConnectorStatus::Connecting,
                State::Open(_) => ConnectorStatus::Success,
                State::Backoff { .. } => ConnectorStatus::Failed,
                State::Closing(_) => ConnectorStatus::Closing,
            },
            message: connector.message.clone(),
            hosts: connector.hosts.iter().map(ToString::to_string).collect(),
        })
    }

    /// What waits for a connection, or of it.
    pub fn buffered(&self, key: ConnectionKey) -> Buffered {
        let Some(entry) = self.entry(key) else {
            return Buffered::default();
        };
        Buffered {
            parked: entry.gate.parked(),
            held: entry.gate.held(),
            outbox: entry.connection.outbox().len(),
        }
    }

    /// Counts what there is; takes a walk over all connections.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            connections: self.connections.len(),
            session_pairs: self.session_pairs.len(),
            link_pairs: self.link_pairs.len(),
            admitted: self.book.connections(),
            waiting_attaches: self.connectors.values().map(|c| c.waiting.len()).sum(),
            cbs_requests: self.relay.len(),
            cbs_answers: self
                .connections
                .iter()
                .filter_map(|(_, entry)| entry.cbs.as_ref())
                .map(|desk| desk.untaken())
                .sum(),
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
