//! The router's book on each connection: opening, failing, closing, and the log lines of its life.

use std::sync::Arc;
use std::time::Instant;

use super::admission::Place;
use super::connector::{Connector, State};
use super::flow_control::Gate;
use super::loss::Farewell;
use super::settings::{
    ConnectorId, ConnectorRole, ConnectorSettings, Destination, ListenerId, ListenerRole, ListenerSettings,
    PeerLimits, RouterSettings,
};
use super::timer::Owner;
use super::{Action, ConnectionKey, Router, TransportInfo};
use crate::amqp::condition::ErrorView;
use crate::amqp::performative::Open;
use crate::endpoint::ConnectionError;
use crate::endpoint::connection::{Announce, Connection, Side};
use crate::endpoint::handshake::SaslCredentials;
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
    pub(super) gate: Gate,
}

impl Entry {
    pub(super) fn new(connection: Connection, kind: Kind, transport: TransportInfo) -> Self {
        Entry {
            generation: 0,
            connection,
            kind,
            transport,
            container_id: Box::default(),
            vhost: Box::default(),
            admission: None,
            scheduled: None,
            is_awake: false,
            was_open: false,
            gate: Gate::default(),
        }
    }

    /// Who a device has shown itself to be.
    #[expect(clippy::unused_self, reason = "no listener authenticates its peers yet")]
    pub(super) const fn user(&self) -> &str {
        "anonymous"
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
    let side = Side::Listener {
        mechanisms: listener.sasl_mechanisms.clone(),
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
    };
    (Arc::new(side), Arc::new(announce))
}

/// What a connector's connection announces, and authenticates with.
pub(super) fn connector(
    router: &RouterSettings,
    connector: &ConnectorSettings,
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
            trace: router.container_id.clone(),
        },
    };
    let announce = Announce {
        container_id: router.container_id.clone(),
        hostname: Some(connector.hostname.clone()),
        max_frame_size: frame_size(&connector.limits),
        channel_max: connector.limits.channel_max.min(limits::UPSTREAM_CHANNEL_MAX),
        session_window: upstream_window(&connector.limits),
        idle_timeout: connector.limits.idle_timeout,
    };
    (Arc::new(side), Arc::new(announce))
}

/// A broker that came in at a listener, as if it had been dialed.
fn broker(listener: &ListenerSettings, peer: &str) -> ConnectorSettings {
    ConnectorSettings {
        name: listener.name.clone(),
        address: peer.to_owned(),
        hostname: String::new(),
        role: ConnectorRole::Accepted,
        role_name: "route-container".to_owned(),
        limits: listener.limits,
        sasl_mechanisms: Vec::new(),
        sasl_username: None,
        sasl_password: None,
        has_client_certificate: false,
        dial_timeout: listener.handshake_timeout,
    }
}

fn frame_size(limits: &PeerLimits) -> u32 {
    limits.max_frame_size.max(limits::MIN_FRAME_SIZE)
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
                self.on_connector_open(id, key, open.container_id, now);
            }
            Kind::Upstream(id) => {
                self.log_opened(key, open);
                self.on_connector_open(id, key, open.container_id, now);
            }
        }
    }

    fn log_opened(&self, key: ConnectionKey, open: &Open<'_>) {
        let Some(entry) = self.entry(key) else { return };
        let (direction, host) = match entry.kind {
            Kind::Device(_) | Kind::Broker(..) => ("in", entry.transport.peer.as_str()),
            Kind::Upstream(id) => (
                "out",
                self.connectors
                    .get(&id)
                    .map_or("", |c| c.settings.address.as_str()),
            ),
        };
        tracing::info!(
            target: "ROUTER_CORE",
            "[C{}] Connection Opened: dir={direction} host={host} vhost={} encrypted={} auth={} user={} container_id={}",
            entry.connection.number,
            entry.vhost,
            entry.transport.tls.as_deref().unwrap_or("no"),
            entry.connection.sasl_mechanism().unwrap_or("no"),
            if direction == "in" { entry.user() } else { "(null)" },
            open.container_id,
        );
    }

    /// A protocol error or a time-out: says why, to the peer and in the log, and gives up what the connection had.
    pub(super) fn fail_connection(&mut self, key: ConnectionKey, error: &ConnectionError) {
        let Some(entry) = self.entry_mut(key) else { return };
        entry.connection.fail(error);
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
                if let Some(connector) = self.connectors.get_mut(&id)
                    && let Some(again) = connector.is_news(&error.to_string(), self.now)
                {
                    let settings = &connector.settings;
                    let advice = if let ConnectionError::Sasl(_) = error {
                        let name = &settings.name;
                        format!("; check saslUsername, saslPassword and saslMechanisms of connector {name}")
                    } else {
                        String::new()
                    };
                    tracing::warn!(
                        target: "SERVER",
                        "[C{number}] Connection to {} failed: {condition} {error}{advice}{again}",
                        settings.address
                    );
                }
            }
        }
        self.release_sessions(key, Farewell::Lost(Some(format!("{condition} {error}"))));
        self.wake(key);
    }

    /// The peer closed the connection, and has been answered.
    pub(super) fn on_closed(&mut self, key: ConnectionKey, error: Option<&[u8]>) {
        let Some(entry) = self.entry(key) else { return };
        let reason = error.and_then(|error| ErrorView::parse(error).ok()).map(|error| {
            format!("{} {}", error.condition, error.description.unwrap_or_default())
                .trim_end()
                .to_owned()
        });
        let farewell = match entry.kind {
            Kind::Device(_) | Kind::Broker(..) => {
                if let Some(reason) = &reason {
                    tracing::info!(
                        target: "SERVER",
                        "[C{}] Connection from {} closed by the peer: {reason}",
                        entry.connection.number,
                        entry.transport.peer
                    );
                }
                match entry.kind.connector() {
                    Some(_) => Farewell::Lost(reason),
                    None => Farewell::Graceful,
                }
            }
            Kind::Upstream(id) => {
                let settings = self.connectors.get(&id).map(|c| &c.settings);
                tracing::info!(
                    target: "SERVER",
                    "[C{}] Connection to {} closed by the peer: {}",
                    entry.connection.number,
                    settings.map_or("", |settings| settings.address.as_str()),
                    reason.as_deref().unwrap_or("no error")
                );
                Farewell::Lost(reason)
            }
        };
        self.release_sessions(key, farewell);
    }

    /// The transport is gone: frees everything.
    pub(super) fn remove(&mut self, key: ConnectionKey, reason: &str, now: Instant) {
        let Some(entry) = self.entry(key) else { return };
        let (number, kind, was_open) = (entry.connection.number, entry.kind, entry.was_open);
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
                    let address = self
                        .connectors
                        .get(&id)
                        .map_or("", |c| c.settings.address.as_str());
                    tracing::warn!(target: "SERVER", "[C{number}] Connection to {address} failed: {reason}");
                }
            }
        }
        self.release_sessions(key, Farewell::Lost(Some(reason.to_owned())));
        self.release_gate(key);
        self.connections.try_remove(key.index());
        match kind {
            Kind::Device(_) => self.device_left(key, now),
            Kind::Upstream(id) => self.on_connector_lost(id, key, was_open, now),
            Kind::Broker(_, id) => {
                if let Some(broker) = self.connectors.remove(&id) {
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

    // ---- connectors ----------------------------------------------------------------------------------------------

    /// Dials a connector, if it is not on its way already.
    pub(super) fn want(&mut self, id: ConnectorId, now: Instant) {
        if self.is_shutting_down {
            return;
        }
        let Some(connector) = self.connectors.get_mut(&id) else {
            return;
        };
        if connector.want(now) {
            self.connection_number += 1;
            connector.number = self.connection_number;
            self.actions.push_back(Action::Dial(id));
        }
        self.arm_connector(id);
    }

    /// Brings a connector's deadline into the timers.
    pub(super) fn arm_connector(&mut self, id: ConnectorId) {
        let Some(connector) = self.connectors.get_mut(&id) else {
            return;
        };
        let oldest = connector
            .waiting
            .front()
            .and_then(|&link| Some(self.link_pairs.get(index(link))?.waiting.as_ref()?.deadline));
        let deadline = connector.next_deadline(oldest, self.settings.linger);
        self.timers
            .arm(Owner::Connector(id), &mut connector.scheduled, deadline);
    }

    pub(super) fn on_connector_timeout(&mut self, id: ConnectorId, now: Instant) {
        self.refuse_overdue(id, now);
        let linger = self.settings.linger;
        let Some(connector) = self.connectors.get_mut(&id) else {
            return;
        };
        match connector.state {
            State::Backoff { until } if until <= now => {
                connector.state = State::Idle;
                if connector.is_persistent() || !connector.waiting.is_empty() {
                    self.want(id, now);
                }
            }
            State::Open(key)
                if connector.is_on_demand()
                    && connector.unused_since.is_some_and(|since| since + linger <= now) =>
            {
                connector.unused_since = None;
                // What devices that have gone left behind, and the hub did not take in all this time.
                self.release_sessions(key, Farewell::Lost(Some("unused".to_owned())));
                let Some(connector) = self.connectors.get_mut(&id) else {
                    return;
                };
                // From here on the connection is nobody's: whoever attaches now gets a new one.
                connector.lost(true, now);
                connector.state = State::Idle;
                let name = connector.settings.name.clone();
                if let Some(entry) = self.entry_mut(key) {
                    tracing::info!(
                        target: "SERVER",
                        "[C{}] Closing the connection of connector {name}: no device has used it for {} s",
                        entry.connection.number,
                        linger.as_secs()
                    );
                    entry.connection.close(None, now);
                }
                self.wake(key);
                self.arm(key);
            }
            State::Idle | State::Dialing | State::Opening(_) | State::Open(_) | State::Backoff { .. } => {}
        }
    }

    fn on_connector_open(&mut self, id: ConnectorId, key: ConnectionKey, container_id: &str, now: Instant) {
        let Some(connector) = self.connectors.get_mut(&id) else {
            return;
        };
        connector.opened(key, container_id, now);
        let name = connector.settings.name.clone();
        self.log_routes("Activated", &name, container_id);
        self.start_waiting(id, now);
        self.move_waiting_to(id, now);
        self.arm_connector(id);
    }

    fn on_connector_lost(&mut self, id: ConnectorId, key: ConnectionKey, was_open: bool, now: Instant) {
        let Some(connector) = self.connectors.get_mut(&id) else {
            return;
        };
        if connector.state != State::Opening(key) && connector.state != State::Open(key) {
            return;
        }
        if was_open {
            let (name, container_id) = (connector.settings.name.clone(), connector.container_id.clone());
            self.log_routes("Deactivated", &name, container_id.as_deref().unwrap_or_default());
        }
        self.move_waiting_from(id, now);
        if let Some(connector) = self.connectors.get_mut(&id) {
            connector.lost(was_open, now);
        }
        self.arm_connector(id);
    }

    fn log_routes(&self, what: &str, connection: &str, container_id: &str) {
        for route in self.routes.served_by(connection, container_id) {
            let (how, name) = match &route.destination {
                Destination::Connection(name) => ("connection", name),
                Destination::Container(id) => ("container", id),
            };
            tracing::info!(target: "ROUTER_CORE", "Link Route {what} '{}' on {how} {name}", route.name);
        }
    }

    /// A device has gone: connectors that nobody uses any more may be closed after a while.
    fn device_left(&mut self, key: ConnectionKey, now: Instant) {
        let mut unused = Vec::new();
        for (&id, connector) in &mut self.connectors {
            if connector.users.remove(&key) && connector.users.is_empty() {
                connector.unused_since = Some(now);
                unused.push(id);
            }
        }
        for id in unused {
            self.arm_connector(id);
        }
    }
}

/// A pair's number as a slab index.
pub(super) const fn index(number: u32) -> usize {
    number as usize
}
