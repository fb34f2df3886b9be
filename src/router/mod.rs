//! Layer 3: the link router. Sans-I/O; owns every connection, session, link and route of one shard.
//!
//! # Contract for the driver
//!
//! Inputs ([`accepted`](Router::accepted), [`secured`](Router::secured),
//! [`authenticated`](Router::authenticated), [`dialed`](Router::dialed), [`dial_failed`](Router::dial_failed),
//! [`handle_input`](Router::handle_input), [`handle_eof`](Router::handle_eof),
//! [`transport_lost`](Router::transport_lost), [`transmitted`](Router::transmitted),
//! [`handle_timeout`](Router::handle_timeout), [`reconfigure`](Router::reconfigure)) take `now` and never fail: a protocol error becomes bytes to send and
//! a changed [`TransportState`]. After any input the driver calls [`poll_action`](Router::poll_action) until it
//! yields nothing, and re-arms its one timer from [`poll_timeout`](Router::poll_timeout).
//!
//! For one connection the driver loops: while [`may_read`](Router::may_read), read and call `handle_input`; while
//! [`transmit`](Router::transmit) is not empty, write and call `transmitted`; then act on
//! [`transport_state`](Router::transport_state). [`Action::Wake`] says that any of the three answers may have changed.
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

mod admission;
mod attach;
mod cbs;
mod clock;
mod connection;
mod connector;
mod control;
mod delivery_map;
mod drain;
mod driver;
mod eviction;
mod failover;
mod flow_control;
pub mod identity;
mod link_names;
mod local;
mod login;
mod loss;
mod pace;
mod pair;
mod pattern;
mod plain;
mod policy;
mod pool;
mod prefix;
mod reload;
mod route;
pub mod settings;
mod snapshot;
mod table;
mod timer;
mod tokens;
mod trace;
mod transfer;
mod unanswered;
mod upstream;
mod waiting;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use slab::Slab;

use crate::amqp::condition::AmqpError;
use crate::endpoint::connection::{Announce, Connection, Side};
use crate::endpoint::event::{Event, Fault};
pub use crate::endpoint::login::Verdict;
use admission::{Denials, GroupAnnounce};
use cbs::Relay;
use clock::Clock;
use connection::{Entry, Kind};
pub use connection::{explain, introduction, reason_of_close};
use connector::{Connector, State};
use drain::Life;
pub use driver::{Action, DialTarget, Login, TransportInfo, TransportState};
use eviction::OwnNodes;
use pair::{LinkPair, SessionPair};
use policy::{Book, Policy};
pub use reload::Reloaded;
use settings::{ConnectorId, ListenerId, ListenerRole, RouterSettings};
pub use snapshot::{Buffered, ConnectorReport, ConnectorStatus, Overview, Snapshot};
use table::LinkRouteTable;
use timer::{Owner, Timers};
use unanswered::Detaches;

/// Names one connection of one router; never reused, so a stale key is harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

/// The router of one shard.
#[derive(Debug)]
pub struct Router {
    settings: RouterSettings,
    /// What every connection of a listener shares.
    listeners: Vec<(Arc<Side>, Arc<Announce>)>,
    /// By a number that is never used again, so that a dial of one that has gone is told from its successor's.
    connectors: BTreeMap<ConnectorId, Connector>,
    /// The number of the next connector, or broker that connects to us.
    next_connector: usize,
    /// Of the connectors' jitter, so that two gateways do not return at once.
    seed: u64,
    routes: LinkRouteTable,
    policy: Policy,
    /// The devices that the policy has admitted.
    book: Book,
    denials: Denials,
    /// What the devices of a listener and a group share, where it is not what all of the listener do.
    group_announces: HashMap<(ListenerId, usize), GroupAnnounce>,
    connections: Slab<Entry>,
    session_pairs: Slab<SessionPair>,
    link_pairs: Slab<LinkPair>,
    own_nodes: OwnNodes,
    actions: VecDeque<Action>,
    timers: Timers,
    detaches: Detaches,
    relay: Relay,
    /// Distinguishes a connection from earlier ones in the same slot.
    generation: u32,
    /// Last numbers used in log lines.
    connection_number: u64,
    link_number: u64,
    /// Accepted connections, against `maxConnections`.
    devices: usize,
    /// Bytes parked on their way to hubs, and devices that wait for them to become fewer.
    parked_total: usize,
    parked_readers: Vec<ConnectionKey>,
    /// Bytes held for devices that do not read.
    held_total: usize,
    /// Link pairs freed so far: tells the pump when one of those that it serves may be gone.
    freed_links: u64,
    life: Life,
    /// The time of the last input.
    now: Instant,
    clock: Clock,
    /// Reused by dispositions, which yield several ranges.
    ranges: Vec<delivery_map::Range>,
}

impl Router {
    /// A router with no connections. Persistent connectors ask to be dialed at once ([`Action::Dial`]).
    pub fn new(settings: RouterSettings, now: Instant) -> Self {
        Self::seeded(settings, RandomState::new().hash_one(now), now)
    }

    /// The same, with nothing left to chance: the same inputs yield the same outputs.
    pub fn seeded(settings: RouterSettings, seed: u64, now: Instant) -> Self {
        let listeners = settings
            .listeners
            .iter()
            .map(|l| connection::listener(&settings, l))
            .collect();
        let routes = LinkRouteTable::new(settings.routes.clone());
        let mut router = Router {
            listeners,
            connectors: BTreeMap::new(),
            next_connector: 0,
            seed,
            routes,
            policy: Policy::new(settings.policy.clone()),
            book: Book::default(),
            denials: Denials::default(),
            group_announces: HashMap::new(),
            settings,
            connections: Slab::new(),
            session_pairs: Slab::new(),
            link_pairs: Slab::new(),
            own_nodes: OwnNodes::default(),
            actions: VecDeque::new(),
            timers: Timers::default(),
            detaches: Detaches::default(),
            relay: Relay::default(),
            generation: 0,
            connection_number: 0,
            link_number: 0,
            devices: 0,
            parked_total: 0,
            parked_readers: Vec::new(),
            held_total: 0,
            freed_links: 0,
            life: Life::default(),
            now,
            clock: Clock::default(),
            ranges: Vec::new(),
        };
        for connector in router.settings.connectors.clone() {
            let id = router.add_connector(connector);
            router.want_if_needed(id, now);
        }
        router
    }

    const fn next_connector(&mut self) -> ConnectorId {
        self.next_connector += 1;
        ConnectorId(self.next_connector - 1)
    }

    fn add_connector(&mut self, settings: settings::ConnectorSettings) -> ConnectorId {
        let id = self.next_connector();
        let mut jitter = DefaultHasher::new();
        (self.seed, id).hash(&mut jitter);
        let connector = Connector::new(settings, jitter.finish());
        self.connectors.insert(id, connector);
        id
    }

    /// Takes a connector out, and its deadline with it.
    fn forget_connector(&mut self, id: ConnectorId) -> Option<Connector> {
        let mut connector = self.connectors.remove(&id)?;
        self.timers.disarm(Owner::Connector(id), &mut connector.scheduled);
        Some(connector)
    }

    // ---- inputs --------------------------------------------------------------------------------------------------

    /// What the time is for people and tokens: since 1970, UTC. To be told at start, and now and then; steps of the
    /// system's clock in either direction are no harm.
    pub fn tell_time(&mut self, since_1970: Duration, now: Instant) {
        self.clock.tell(since_1970, now);
    }

    /// The transport of a device, or of a broker, was accepted. `None`: over `maxConnections`, or shutting down; drop it.
    pub fn accepted(
        &mut self,
        listener: ListenerId,
        transport: TransportInfo,
        now: Instant,
    ) -> Option<ConnectionKey> {
        let (side, announce) = self.listeners.get(listener.0)?.clone();
        let settings = self.settings.listeners.get(listener.0)?;
        if self.is_stopping() {
            return None;
        }
        if self.devices >= self.settings.max_connections {
            tracing::info!(
                target: "POLICY",
                "DENY Connection '{}' based on global connection count. nConnections= {}",
                transport.peer,
                self.devices
            );
            return None;
        }
        let (address, handshake) = (settings.address.clone(), settings.handshake_timeout);
        let kind = match settings.role {
            ListenerRole::Normal => Kind::Device(listener),
            ListenerRole::RouteContainer => Kind::Broker(listener, self.next_connector()),
        };
        self.connection_number += 1;
        self.devices += 1;
        let number = self.connection_number;
        let tracing = self.tracing_of(kind, &transport.peer, None);
        tracing::info!(target: "SERVER", "[C{number}] Accepted connection to {address} from {}", transport.peer);
        let connection = Connection::new(number, side, announce, Some(handshake), tracing, now);
        Some(self.insert(Entry::new(connection, kind, transport)))
    }

    /// A device's transport has turned out to be encrypted; to be told before any input. `version` is that of TLS, `user`
    /// whom a certificate names that was sent and verified.
    pub fn secured(&mut self, key: ConnectionKey, version: String, user: Option<String>) {
        let Some(entry) = self.entry_mut(key) else { return };
        entry.transport.tls = Some(version);
        entry.connection.secured(user.map(String::into_boxed_str));
    }

    /// The transport asked for by [`Action::Dial`] is ready. `None`: no longer wanted, drop it.
    pub fn dialed(
        &mut self,
        connector: ConnectorId,
        transport: TransportInfo,
        now: Instant,
    ) -> Option<ConnectionKey> {
        let entry = self.connectors.get(&connector)?;
        if self.is_stopping() || entry.state != State::Dialing {
            return None;
        }
        let (side, announce) =
            introduction(&self.settings.container_id, &entry.settings, entry.server_name());
        let handshake = entry.settings.dial_timeout;
        let host = entry.hosts.current().to_string();
        let tracing = self.settings.trace.of_hub();
        let connection = Connection::new(entry.number, side, announce, Some(handshake), tracing, now);
        let mut entry = Entry::new(connection, Kind::Upstream(connector), transport);
        entry.host = host.into();
        let key = self.insert(entry);
        if let Some(connector) = self.connectors.get_mut(&connector) {
            connector.state = State::Opening(key);
        }
        self.wake(key);
        Some(key)
    }

    /// The dial failed; `reason` is one line for the operator (no secrets), logged here: at once, and while it stays the
    /// same not more often than once a minute.
    pub fn dial_failed(&mut self, connector: ConnectorId, reason: &str, now: Instant) {
        self.now = now;
        let Some(entry) = self.connectors.get_mut(&connector) else {
            return;
        };
        if entry.state != State::Dialing {
            return;
        }
        if let Some(line) = entry.complain(&format!("failed: {reason}"), now) {
            tracing::warn!(target: "SERVER", "[C{}] {line}", entry.number);
        }
        self.move_waiting_from(connector, now);
        if let Some(entry) = self.connectors.get_mut(&connector) {
            entry.lost(now);
        }
        self.arm_connector(connector);
    }

    /// Bytes arrived.
    pub fn handle_input(&mut self, key: ConnectionKey, bytes: &[u8], now: Instant) {
        self.now = now;
        let Some(entry) = self.entry_mut(key) else { return };
        // The driver looks at this connection anyway when we return.
        entry.is_awake = true;
        let mut deframer = entry.connection.take_deframer(now);
        let mut input = bytes;
        loop {
            if !deframer.is_partial() {
                self.relay_plain(key, &mut input);
            }
            let Some(entry) = self.entry_mut(key) else { break };
            match entry.connection.next_event(&mut deframer, &mut input) {
                Ok(None) => break,
                Ok(Some(event)) => self.on_event(key, event, now),
                Err(fault) => self.on_fault(key, fault),
            }
        }
        if let Some(entry) = self.entry_mut(key) {
            entry.is_awake = false;
            entry.connection.put_back(deframer);
        }
        self.check_outboxes(key);
        self.arm(key);
        self.go_on_stopping(now);
    }

    /// The peer shut down its sending side: a device that does so without a close is gone.
    pub fn handle_eof(&mut self, key: ConnectionKey, now: Instant) {
        let Some(entry) = self.entry_mut(key) else { return };
        entry.connection.on_eof();
        self.transport_lost(key, "connection closed by the peer", now);
    }

    /// The transport is gone, by an error (`reason`) or because it was shut down as told. Frees the connection.
    pub fn transport_lost(&mut self, key: ConnectionKey, reason: &str, now: Instant) {
        self.now = now;
        self.remove(key, reason, now);
        self.go_on_stopping(now);
    }

    /// The first `count` bytes of what [`transmit`](Self::transmit) yields were written.
    pub fn transmitted(&mut self, key: ConnectionKey, count: usize, now: Instant) {
        self.now = now;
        let Some(entry) = self.entry_mut(key) else { return };
        entry.connection.transmitted(count, now);
        self.outbox_drained(key);
        self.go_on_stopping(now);
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        while let Some(owner) = self.timers.pop(now) {
            match owner {
                Owner::Connection(key) => {
                    if let Some(entry) = self.entry_mut(key) {
                        entry.scheduled = None;
                    }
                    self.on_connection_timeout(key, now);
                }
                Owner::Connector(id) => {
                    if let Some(connector) = self.connectors.get_mut(&id) {
                        connector.scheduled = None;
                    }
                    self.on_connector_timeout(id, now);
                    self.arm_connector(id);
                }
                Owner::Detaches => {
                    self.detaches.scheduled = None;
                    self.on_detaches_due(now);
                    self.arm_detaches();
                }
                Owner::Relay => {
                    self.relay.scheduled = None;
                    self.on_requests_due(now);
                    self.arm_relay();
                }
                // What is due is done below.
                Owner::Drain => {}
            }
        }
        self.go_on_stopping(now);
    }

    // ---- outputs -------------------------------------------------------------------------------------------------

    /// Whether the driver may read from this connection now. If not, [`Action::Wake`] follows when it may.
    pub fn may_read(&mut self, key: ConnectionKey) -> bool {
        self.admit_reading(key)
    }

    /// Bytes to write now; empty when there is nothing.
    pub fn transmit(&self, key: ConnectionKey) -> &[u8] {
        self.entry(key)
            .map_or(&[], |entry| entry.connection.outbox().as_slice())
    }

    /// What to do with the transport.
    pub fn transport_state(&self, key: ConnectionKey) -> TransportState {
        match self.entry(key) {
            None => TransportState::Abort,
            Some(entry) if entry.connection.is_over() => TransportState::CloseWhenFlushed,
            Some(_) => TransportState::Open,
        }
    }

    /// The next thing to do, oldest first.
    pub fn poll_action(&mut self) -> Option<Action> {
        let action = self.actions.pop_front()?;
        if let Action::Wake(key) = action
            && let Some(entry) = self.entry_mut(key)
        {
            entry.is_awake = false;
        }
        Some(action)
    }

    /// When [`handle_timeout`](Router::handle_timeout) wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    // ---- commands and getters ------------------------------------------------------------------------------------

    /// No connection is left.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// Whom [`Action::Dial`] means. `None`: nobody any more.
    pub fn dial_target(&self, connector: ConnectorId) -> Option<DialTarget> {
        let configured = self.configured(connector);
        let connector = self
            .connectors
            .get(&connector)
            .filter(|connector| connector.state == State::Dialing)?;
        Some(DialTarget {
            configured,
            host: connector.hosts.current().clone(),
            server_name: connector.server_name().to_owned(),
            limit: connector.dial_limit(),
        })
    }

    // ---- dispatch ------------------------------------------------------------------------------------------------

    #[inline]
    fn on_event(&mut self, key: ConnectionKey, event: Event<'_>, now: Instant) {
        match event {
            Event::Consumed | Event::Offered(_) | Event::Admitted => {}
            Event::Transfer {
                channel,
                handle,
                transfer,
                body,
            } => {
                self.on_transfer(key, channel, handle, &transfer, body, now);
            }
            Event::Disposition {
                channel,
                disposition,
                body,
            } => {
                self.on_disposition(key, channel, &disposition, body);
            }
            Event::Flow {
                channel,
                handle,
                flow,
                body,
            } => self.on_flow(key, channel, handle, &flow, body),
            Event::Attach {
                channel,
                handle,
                kind,
                attach,
                body,
            } => {
                self.on_attach(key, channel, handle, kind, &attach, body, now);
            }
            Event::Detach {
                channel,
                handle,
                detach,
                body,
            } => {
                self.on_detach(key, channel, handle, &detach, body);
            }
            Event::Login { user, password } => self.on_login(key, user, password, now),
            Event::Opened(open) => self.on_opened(key, &open, now),
            Event::Begun { channel } => self.on_begun(key, channel),
            Event::Ended {
                channel,
                owners,
                error,
            } => {
                self.on_local_session_ended(key, channel, error, now);
                self.on_ended(key, &owners, error);
            }
            Event::Closed { error } => self.on_closed(key, error),
        }
    }

    fn on_fault(&mut self, key: ConnectionKey, fault: Fault) {
        match fault {
            Fault::Connection(error) => self.fail_connection(key, &error),
            Fault::Session(channel, error) => {
                let Some(entry) = self.entry_mut(key) else { return };
                tracing::info!(
                    target: "SERVER",
                    "[C{}] Session on channel {channel} ended: {} {error}",
                    entry.connection.number,
                    error.condition()
                );
                let encoded = AmqpError::new(error.condition(), error.to_string()).encode();
                let owners = entry.connection.end_session(channel, Some(&encoded));
                let now = self.now;
                self.on_local_session_ended(key, channel, None, now);
                self.sessions_gone(key, &owners, &loss::Farewell::Lost(None));
            }
        }
    }
}

#[cfg(test)]
impl ConnectionKey {
    /// One for a test that has no router.
    pub(crate) const fn of_test(index: u32) -> Self {
        ConnectionKey { index, generation: 0 }
    }
}
