//! The router's book on each connection: opening, failing, closing, and the log lines of its life.

use std::sync::Arc;
use std::time::Instant;

use super::admission::Place;
use super::attach::excerpt;
use super::cbs::Desk;
use super::connector::Connector;
use super::flow_control::Gate;
use super::loss::Farewell;
use super::settings::{
    ConnectorId, ConnectorRole, ConnectorSettings, HostPort, ListenerId, ListenerRole, ListenerSettings,
    PeerLimits, RouterSettings, SharingSettings,
};
use super::timer::Owner;
use super::{Action, ConnectionKey, Router, TransportInfo};
use crate::amqp::condition::ErrorView;
use crate::amqp::failover::without_brackets;
use crate::amqp::frame::MIN_MAX_FRAME_SIZE;
use crate::amqp::performative::Open;
use crate::endpoint::ConnectionError;
use crate::endpoint::connection::{Announce, Connection, Side};
use crate::endpoint::handshake::{Demands, Mechanism, SaslCredentials};
use crate::endpoint::limits;
use crate::endpoint::window::WindowSize;

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Device(ListenerId),
    Upstream(ConnectorId),
    /// A hub that came to us; from its open on it is in the list of connectors.
    Broker(ListenerId, ConnectorId),
}

impl Kind {
    /// The listener that accepted it.
    pub(super) const fn listener(self) -> Option<ListenerId> {
        match self {
            Kind::Device(id) | Kind::Broker(id, _) => Some(id),
            Kind::Upstream(_) => None,
        }
    }

    /// The connector of a hub.
    pub(super) const fn connector(self) -> Option<ConnectorId> {
        match self {
            Kind::Upstream(id) | Kind::Broker(_, id) => Some(id),
            Kind::Device(_) => None,
        }
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) generation: u32,
    pub(super) connection: Connection,
    pub(super) kind: Kind,
    pub(super) transport: TransportInfo,
    /// The host that was dialed, `HOST:PORT`, for log lines; empty for a device.
    pub(super) host: Box<str>,
    /// The peer's container-id, once it is open.
    pub(super) container_id: Box<str>,
    /// The virtual host that a device is on: its open.hostname.
    pub(super) vhost: Box<str>,
    /// Its place in the book of the policy.
    pub(super) admission: Place,
    /// The deadline that is in the timers.
    pub(super) scheduled: Option<Instant>,
    /// A wake-up is under way already.
    pub(super) is_awake: bool,
    /// Opens were exchanged at some time.
    pub(super) was_open: bool,
    /// It has lost links to another connection of the same device.
    pub(super) is_evicted: bool,
    pub(super) gate: Gate,
    /// What a device has to do with `$cbs`.
    pub(super) cbs: Option<Box<Desk>>,
}

impl Entry {
    pub(super) fn new(connection: Connection, kind: Kind, transport: TransportInfo) -> Self {
        Entry {
            generation: 0,
            connection,
            kind,
            transport,
            host: Box::default(),
            container_id: Box::default(),
            vhost: Box::default(),
            admission: None,
            scheduled: None,
            is_awake: false,
            was_open: false,
            is_evicted: false,
            gate: Gate::default(),
            cbs: None,
        }
    }

    /// Who a device has shown itself to be.
    pub(super) fn user(&self) -> &str {
        self.connection.user()
    }

    pub(super) fn key(&self, index: usize) -> ConnectionKey {
        ConnectionKey {
            index: u32::try_from(index).unwrap_or(u32::MAX),
            generation: self.generation,
        }
    }
}

/// What all connections of a listener share.
pub(super) fn listener(router: &RouterSettings, listener: &ListenerSettings) -> (Arc<Side>, Arc<Announce>) {
    let mechanisms = listener.sasl_mechanisms.iter();
    let side = Side::Listener {
        demands: Demands {
            mechanisms: mechanisms.filter_map(|name| Mechanism::from_name(name)).collect(),
            authentication: listener.authenticate_peer,
            encryption: listener.require_encryption,
        },
    };
    let announce = Announce {
        container_id: router.container_id.clone(),
        hostname: None,
        max_frame_size: frame_size(&listener.limits),
        channel_max: listener.limits.channel_max,
        session_window: match listener.role {
            ListenerRole::Normal => {
                WindowSize::Frames(listener.limits.incoming_window.unwrap_or(limits::DEVICE_WINDOW))
            }
            ListenerRole::RouteContainer => upstream_window(&listener.limits),
        },
        idle_timeout: listener.limits.idle_timeout,
        failover: listener.failover.clone(),
    };
    (Arc::new(side), Arc::new(announce))
}

/// What a connector's connection announces to the peer that it knows by this name, and authenticates with.
pub fn introduction(
    container_id: &str,
    connector: &ConnectorSettings,
    server_name: &str,
) -> (Arc<Side>, Arc<Announce>) {
    let plain = match (&connector.sasl_username, &connector.sasl_password) {
        (Some(user), Some(password)) => Some((user.clone(), password.expose().clone())),
        _ => None,
    };
    let side = Side::Connector {
        credentials: SaslCredentials {
            mechanisms: connector.sasl_mechanisms.clone(),
            plain,
            external: connector.has_client_certificate,
            trace: container_id.to_owned(),
        },
    };
    let announce = Announce {
        container_id: container_id.to_owned(),
        hostname: Some(server_name.to_owned()),
        max_frame_size: frame_size(&connector.limits),
        channel_max: connector.limits.channel_max.min(limits::UPSTREAM_CHANNEL_MAX),
        session_window: upstream_window(&connector.limits),
        idle_timeout: connector.limits.idle_timeout,
        failover: Vec::new(),
    };
    (Arc::new(side), Arc::new(announce))
}

/// What is wrong with a connector's connection, and what to do about it.
pub fn explain(error: &ConnectionError, connector: &ConnectorSettings) -> String {
    let name = &connector.name;
    match error {
        ConnectionError::Sasl(_) => {
            format!("{error}; check saslUsername, saslPassword and saslMechanisms of connector {name}")
        }
        ConnectionError::UnknownProtocol(_) => format!(
            "{error}; check host and port of connector {name} (AMQP over TLS is usually 5671, plain AMQP 5672)"
        ),
        ConnectionError::ProtocolMismatch(_)
        | ConnectionError::Framing(_)
        | ConnectionError::Decode(_)
        | ConnectionError::Unexpected(_)
        | ConnectionError::Channel(_)
        | ConnectionError::Unauthenticated
        | ConnectionError::Unencrypted
        | ConnectionError::IdleTimeout
        | ConnectionError::HandshakeTimeout
        | ConnectionError::NotReading(_) => error.to_string(),
    }
}

/// The reason that a peer gives in its close: `CONDITION DESCRIPTION`.
pub fn reason_of_close(error: &[u8]) -> Option<String> {
    let error = ErrorView::parse(error).ok()?;
    let text = format!("{} {}", error.condition, error.description.unwrap_or_default());
    Some(text.trim_end().to_owned())
}

/// A broker that came in at a listener, as if it had been dialed.
fn broker(listener: &ListenerSettings, peer: &str) -> ConnectorSettings {
    ConnectorSettings {
        name: listener.name.clone(),
        host: peer_address(peer),
        failover: Vec::new(),
        server_name: None,
        believes_failover_list: false,
        uses_tls: false,
        role: ConnectorRole::Accepted,
        role_name: "route-container".to_owned(),
        limits: listener.limits,
        sasl_mechanisms: Vec::new(),
        sasl_username: None,
        sasl_password: None,
        has_client_certificate: false,
        dial_timeout: listener.handshake_timeout,
        sharing: SharingSettings::default(),
    }
}

/// `HOST:PORT`, taken apart.
fn peer_address(peer: &str) -> HostPort {
    let (host, port) = peer.rsplit_once(':').unwrap_or((peer, ""));
    HostPort {
        host: without_brackets(host).to_owned(),
        port: port.parse().unwrap_or_default(),
    }
}

fn frame_size(limits: &PeerLimits) -> u32 {
    limits.max_frame_size.max(MIN_MAX_FRAME_SIZE)
}

/// What a hub may have under way on one session.
fn upstream_window(limits: &PeerLimits) -> WindowSize {
    let default_window = WindowSize::Bytes {
        budget: limits::UPSTREAM_WINDOW_BYTES,
        least: (limits::UPSTREAM_WINDOW_BYTES / frame_size(limits)).max(limits::UPSTREAM_WINDOW_FRAMES),
    };
    limits.incoming_window.map_or(default_window, WindowSize::Frames)
}

impl Router {
    pub(super) fn insert(&mut self, mut entry: Entry) -> ConnectionKey {
        self.generation = self.generation.wrapping_add(1);
        entry.generation = self.generation;
        let vacant = self.connections.vacant_entry();
        let key = entry.key(vacant.key());
        vacant.insert(entry);
        self.arm(key);
        key
    }

    #[inline]
    pub(super) fn entry(&self, key: ConnectionKey) -> Option<&Entry> {
        self.connections
            .get(key.index())
            .filter(|entry| entry.generation == key.generation)
    }

    #[inline]
    pub(super) fn entry_mut(&mut self, key: ConnectionKey) -> Option<&mut Entry> {
        self.connections
            .get_mut(key.index())
            .filter(|entry| entry.generation == key.generation)
    }

    /// Asks the driver to look at a connection, once until it does.
    #[inline]
    pub(super) fn wake(&mut self, key: ConnectionKey) {
        let Some(entry) = self.entry_mut(key).filter(|entry| !entry.is_awake) else {
            return;
        };
        entry.is_awake = true;
        self.actions.push_back(Action::Wake(key));
    }

    /// Brings a connection's deadline into the timers.
    pub(super) fn arm(&mut self, key: ConnectionKey) {
        let Some(entry) = self
            .connections
            .get_mut(key.index())
            .filter(|e| e.generation == key.generation)
        else {
            return;
        };
        let deadline = entry.connection.next_deadline();
        self.timers
            .arm(Owner::Connection(key), &mut entry.scheduled, deadline);
    }

    pub(super) fn on_connection_timeout(&mut self, key: ConnectionKey, now: Instant) {
        let is_paused = self.is_paused(key);
        let Some(entry) = self.entry_mut(key) else { return };
        if is_paused {
            entry.connection.excuse_silence(now);
        }
        let outcome = entry.connection.on_timeout(now);
        if !entry.connection.outbox().is_empty() || entry.connection.is_over() {
            self.wake(key);
        }
        if let Err(error) = outcome {
            self.fail_connection(key, &error);
        }
        self.arm(key);
    }

    /// Both opens are exchanged, or, on a listener, the peer's is here.
    pub(super) fn on_opened(&mut self, key: ConnectionKey, open: &Open<'_>, now: Instant) {
        let Some(entry) = self.entry_mut(key) else { return };
        entry.container_id = open.container_id.into();
        entry.was_open = true;
        let kind = entry.kind;
        match kind {
            Kind::Device(listener) => {
                if self.admit(key, listener, open.hostname, now)
                    && let Some(entry) = self.entry_mut(key)
                {
                    entry.connection.send_open();
                    self.log_opened(key, open);
                }
            }
            Kind::Broker(listener, id) => {
                if !self.admit(key, listener, open.hostname, now) {
                    return;
                }
                let Some(entry) = self.entry_mut(key) else { return };
                entry.connection.send_open();
                let peer = entry.transport.peer.clone();
                if let Some(listener) = self.settings.listeners.get(listener.0) {
                    let connector = Connector::new(broker(listener, &peer), 0);
                    self.connectors.insert(id, connector);
                }
                self.log_opened(key, open);
                self.on_connector_open(id, key, open, now);
            }
            Kind::Upstream(id) => {
                self.log_opened(key, open);
                self.on_connector_open(id, key, open, now);
            }
        }
    }

    fn log_opened(&self, key: ConnectionKey, open: &Open<'_>) {
        let Some(entry) = self.entry(key) else { return };
        let (direction, host) = match entry.kind {
            Kind::Device(_) | Kind::Broker(..) => ("in", entry.transport.peer.as_str()),
            Kind::Upstream(_) => ("out", &*entry.host),
        };
        tracing::info!(
            target: "ROUTER_CORE",
            "[C{}] Connection Opened: dir={direction} host={host} vhost={} encrypted={} auth={} user={} container_id={}",
            entry.connection.number,
            excerpt(&entry.vhost),
            entry.transport.tls.as_deref().unwrap_or("no"),
            entry.connection.sasl_mechanism().unwrap_or("no"),
            if direction == "in" { entry.user() } else { "(null)" },
            excerpt(open.container_id),
        );
    }

    /// A protocol error or a time-out: says why, to the peer and in the log, and gives up what the connection had.
    pub(super) fn fail_connection(&mut self, key: ConnectionKey, error: &ConnectionError) {
        let now = self.now;
        let Some(entry) = self.entry_mut(key) else { return };
        entry.connection.fail(error, now);
        let (number, kind, peer) = (entry.connection.number, entry.kind, entry.transport.peer.clone());
        let condition = error.condition();
        match kind {
            Kind::Device(id) | Kind::Broker(id, _) => {
                let listener = self
                    .settings
                    .listeners
                    .get(id.0)
                    .map_or("", |l| l.address.as_str());
                tracing::info!(
                    target: "SERVER",
                    "[C{number}] Connection from {peer} (to {listener}) failed: {condition} {error}"
                );
            }
            Kind::Upstream(id) => {
                if let Some(connector) = self.connectors.get_mut(&id).filter(|it| it.uses(key)) {
                    let what = format!("failed: {condition} {}", explain(error, &connector.settings));
                    if let Some(line) = connector.complain(&what, self.now) {
                        tracing::warn!(target: "SERVER", "[C{number}] {line}");
                    }
                }
            }
        }
        self.release_sessions(key, Farewell::Lost(Some(format!("{condition} {error}"))));
        self.wake(key);
    }

    /// The peer closed the connection, and has been answered.
    pub(super) fn on_closed(&mut self, key: ConnectionKey, error: Option<&[u8]>) {
        let Some(entry) = self.entry(key) else { return };
        let reason = error.and_then(reason_of_close);
        let farewell = match entry.kind {
            Kind::Device(_) | Kind::Broker(..) => {
                if let Some(reason) = &reason {
                    tracing::info!(
                        target: "SERVER",
                        "[C{}] Connection from {} closed by the peer: {}",
                        entry.connection.number,
                        entry.transport.peer,
                        excerpt(reason)
                    );
                }
                match entry.kind.connector() {
                    Some(_) => Farewell::Lost(reason),
                    None => Farewell::Graceful,
                }
            }
            Kind::Upstream(id) => {
                let what = format!("closed by the peer: {}", reason.as_deref().unwrap_or("no error"));
                let number = entry.connection.number;
                if let Some(connector) = self.connectors.get_mut(&id).filter(|it| it.uses(key))
                    && let Some(line) = connector.complain(&excerpt(&what), self.now)
                {
                    tracing::warn!(target: "SERVER", "[C{number}] {line}");
                }
                Farewell::Lost(reason)
            }
        };
        self.release_sessions(key, farewell);
    }

    /// The transport is gone: frees everything.
    pub(super) fn remove(&mut self, key: ConnectionKey, reason: &str, now: Instant) {
        let Some(entry) = self.entry(key) else { return };
        let (number, kind) = (entry.connection.number, entry.kind);
        if !entry.connection.is_over() {
            match kind {
                Kind::Device(_) | Kind::Broker(..) => {
                    tracing::info!(
                        target: "SERVER",
                        "[C{number}] Connection from {} lost: {reason}",
                        entry.transport.peer
                    );
                }
                Kind::Upstream(id) => {
                    if let Some(connector) = self.connectors.get_mut(&id).filter(|it| it.uses(key))
                        && let Some(line) = connector.complain(&format!("failed: {reason}"), now)
                    {
                        tracing::warn!(target: "SERVER", "[C{number}] {line}");
                    }
                }
            }
        }
        self.release_sessions(key, Farewell::Lost(Some(reason.to_owned())));
        self.release_gate(key);
        if let Some(mut gone) = self.connections.try_remove(key.index()) {
            self.timers.disarm(Owner::Connection(key), &mut gone.scheduled);
        }
        match kind {
            Kind::Device(_) => self.device_left(key, now),
            Kind::Upstream(id) => self.on_connector_lost(id, key, now),
            Kind::Broker(_, id) => {
                if let Some(broker) = self.forget_connector(id) {
                    let container_id = broker.container_id.as_deref().unwrap_or_default();
                    self.log_routes("Deactivated", &broker.settings.name, container_id);
                }
            }
        }
        if kind.listener().is_some() {
            self.devices = self.devices.saturating_sub(1);
        }
        tracing::info!(target: "ROUTER_CORE", "[C{number}] Connection Closed");
    }
}

/// A pair's number as a slab index.
pub(super) const fn index(number: u32) -> usize {
    number as usize
}
