//! What the router is told at start and at a reload: the settings of listeners, connectors and routes, already checked.
//!
//! `daemon::build` makes them from the configuration; nothing here knows the file's dialects.

pub mod policy;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::amqp::failover::FailoverServer;
use crate::endpoint::trace::TraceFilter;

/// Index of a listener in [`RouterSettings::listeners`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerId(pub usize);

/// Names a connector, or a broker that connected to us; those of [`RouterSettings::connectors`] are numbered from 0 in
/// file order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectorId(pub usize);

/// Where a peer is reached. Shown as `HOST:PORT`, an IPv6 address in brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Host name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// A value that never shows itself in a log or a debug print.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    /// Wraps a value.
    pub const fn new(value: T) -> Self {
        Secret(value)
    }

    /// The value itself: only where it is used, never where it is shown.
    pub const fn expose(&self) -> &T {
        &self.0
    }

    /// The value itself, to be added to.
    pub const fn expose_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<hidden>")
    }
}

/// Which way messages flow on a routed link, seen from the device (qdrouterd: `direction`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The device sends: the target address decides.
    In,
    /// The device receives: the source address decides.
    Out,
}

/// The bounds announced to one peer and enforced on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerLimits {
    /// Largest frame we accept, in bytes; at least 512 (AMQP 1.0 part 2, §2.7.1).
    pub max_frame_size: u32,
    /// Highest channel number the peer may use.
    pub channel_max: u16,
    /// Session incoming-window in frames; `None` chooses the side's default (`endpoint::limits`).
    pub incoming_window: Option<u32>,
    /// A peer that is silent for this long is gone; half of it is announced. `None` never expires.
    pub idle_timeout: Option<Duration>,
}

/// Who connects to a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerRole {
    /// Devices, whose links are routed (`normal`).
    Normal,
    /// Brokers, which serve routes as if we had dialed them (`route-container`; 0.6 `on-demand`).
    RouteContainer,
}

/// One `listener` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerSettings {
    /// Its name, `listener/HOST:PORT` when the file gives none.
    pub name: String,
    /// `HOST:PORT` as configured, for log lines.
    pub address: String,
    /// Who connects.
    pub role: ListenerRole,
    /// Whether `VHOST/` is put in front of the addresses that devices write.
    pub multi_tenant: bool,
    /// The virtual host of every device, whatever its open.hostname says.
    pub policy_vhost: Option<String>,
    /// Bounds towards those who connect.
    pub limits: PeerLimits,
    /// The peer's open must be here this long after the accept; zero means never (qdrouterd's old default).
    pub handshake_timeout: Duration,
    /// SASL mechanisms offered, in order. Known: `ANONYMOUS`, `MSSBCBS`, `PLAIN`, `EXTERNAL`.
    pub sasl_mechanisms: Vec<String>,
    /// Who does not show who it is is not served (qdrouterd: `authenticatePeer`).
    pub authenticate_peer: bool,
    /// Clear text is not served (qdrouterd: `requireSsl`, `requireEncryption`).
    pub require_encryption: bool,
    /// Hosts that devices are told of, to go to when we are gone.
    pub failover: Vec<FailoverServer>,
    /// What a device sees of a hub that is lost.
    pub on_hub_lost: HubLoss,
}

/// What a device sees when the hub that its links lead to is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum HubLoss {
    /// Its links are detached; its connection and sessions stay.
    #[default]
    Detach,
    /// Its connection is closed with `amqp:connection:forced`, as Azure itself does.
    Close,
}

/// When a connector dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectorRole {
    /// At the first attach that needs it (0.6 `on-demand`); closed again after a while without devices.
    OnDemand,
    /// At start, and again after each loss (`route-container`, `normal`).
    Persistent,
    /// Never: the peer connected to a listener of role `route-container`, and goes when its connection does.
    Accepted,
}

/// One `connector` section. Equal settings are one connection that need not be made again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectorSettings {
    /// Its name, `connector/HOST:PORT` when the file gives none.
    pub name: String,
    /// The hub.
    pub host: HostPort,
    /// Hosts that stand in for it, in order.
    pub failover: Vec<HostPort>,
    /// The name that every one of these hosts is known by, for TLS and `open.hostname`; `None`: its own.
    pub server_name: Option<String>,
    /// Whether the hosts that a hub announces in its open are dialed, too.
    pub believes_failover_list: bool,
    /// Whether the transport is encrypted; an announced host that wants it otherwise is passed over.
    pub uses_tls: bool,
    /// When to dial.
    pub role: ConnectorRole,
    /// The role's name as the file spells it, for log lines.
    pub role_name: String,
    /// Bounds towards the hub.
    pub limits: PeerLimits,
    /// SASL mechanisms allowed, in order of the file; empty allows every one that we know.
    pub sasl_mechanisms: Vec<String>,
    /// `saslUsername`.
    pub sasl_username: Option<String>,
    /// `saslPassword`, resolved.
    pub sasl_password: Option<Secret<String>>,
    /// Whether a client certificate is configured (EXTERNAL may be chosen).
    pub has_client_certificate: bool,
    /// TCP, TLS, SASL and open together may take this long.
    pub dial_timeout: Duration,
    /// How its connections are shared by devices with identities of their own.
    pub sharing: SharingSettings,
}

impl ConnectorSettings {
    /// The name that one of its hosts is known by: for TLS, and for `open.hostname`.
    pub fn name_of<'a>(&'a self, host: &'a HostPort) -> &'a str {
        self.server_name.as_ref().unwrap_or(&host.host)
    }

    /// Whether devices authorise themselves on this connection, by tokens that the router puts for them. One that logs in
    /// for all of them (PLAIN, EXTERNAL) has an identity already, and carries `$cbs` links like any other.
    pub fn relays_cbs(&self) -> bool {
        let allows = |mechanism: &str| {
            self.sasl_mechanisms.is_empty() || self.sasl_mechanisms.iter().any(|name| name == mechanism)
        };
        let has_identity = (self.sasl_username.is_some() && allows("PLAIN"))
            || (self.has_client_certificate && allows("EXTERNAL"));
        self.sharing.cbs == CbsMode::Relay && self.role != ConnectorRole::Accepted && !has_identity
    }
}

/// What becomes of the `$cbs` links of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CbsMode {
    /// They end in the router, which has one pair of its own per connection to the hub.
    #[default]
    Relay,
    /// They are carried like any other link: right for one device at a time.
    Tunnel,
}

/// How many devices share a connector, and what each may do there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharingSettings {
    /// Who answers `$cbs`.
    pub cbs: CbsMode,
    /// Whether a device may attach only what it has authorised itself. Without this any device can use the identity of
    /// any other on the same connection.
    pub checks_identity: bool,
    /// Tokens of one connection, at least 1; the next device goes to the next connection of the pool.
    pub max_tokens: usize,
    /// Links of one connection, at least 1; the next device goes to the next connection of the pool.
    pub max_links: usize,
    /// Connections of the pool at most, at least 1.
    pub pool_size: usize,
    /// New devices on one connection in a second; more than that wait. 0: as many as come.
    pub devices_per_second: u32,
}

impl Default for SharingSettings {
    fn default() -> Self {
        SharingSettings {
            cbs: CbsMode::Relay,
            checks_identity: true,
            max_tokens: 995,
            max_links: 4999,
            pool_size: 16,
            devices_per_second: 100,
        }
    }
}

/// How a route matches an address (qdrouterd: `prefix` or `pattern`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Matcher {
    /// The address itself and everything below it, by whole tokens.
    Prefix(String),
    /// Tokens with `*` (one) and `#` (zero or more).
    Pattern(String),
}

/// Who serves a route (qdrouterd: `connection` or `containerId`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The connector of this name, and every broker on the route-container listener of this name.
    Connection(String),
    /// Any upstream peer whose open carries this container-id.
    Container(String),
}

/// One `linkRoute` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteSettings {
    /// Its name, `linkRoute/N` when the file gives none.
    pub name: String,
    /// Which addresses.
    pub matcher: Matcher,
    /// Which way.
    pub direction: Direction,
    /// To whom.
    pub destination: Destination,
    /// Put in front of the address towards the hub (qdrouterd: `addExternalPrefix`); may be empty.
    pub add_external_prefix: String,
    /// Taken off the address before that (qdrouterd: `delExternalPrefix`); may be empty.
    pub del_external_prefix: String,
}

/// Which error conditions a device sees when a route is lost or cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ErrorConditions {
    /// `amqp:link:detach-forced`, which Azure uses and client SDKs retry; qdrouterd's name is in the info map.
    #[default]
    Amqp,
    /// `qd:routed-link-lost` and `qd:no-route-to-dest`, as qdrouterd.
    Qd,
}

/// Everything a [`Router`](super::Router) needs to start.
#[derive(Clone, Debug)]
pub struct RouterSettings {
    /// container-id of every open we send (qdrouterd: `router.id`).
    pub container_id: String,
    /// Listeners, addressed by [`ListenerId`].
    pub listeners: Vec<ListenerSettings>,
    /// Connectors, addressed by [`ConnectorId`].
    pub connectors: Vec<ConnectorSettings>,
    /// Link routes in file order.
    pub routes: Vec<RouteSettings>,
    /// `policy.maxConnections`: accepted connections above this are dropped at once.
    pub max_connections: usize,
    /// Who may connect, and attach what.
    pub policy: policy::PolicySettings,
    /// Condition names towards devices.
    pub error_conditions: ErrorConditions,
    /// `allowResumableLinkRoute`: whether a routed terminus may outlive the device's connection.
    pub allow_resumable_link_route: bool,
    /// How long an attach waits for its connector before it is refused.
    pub attach_timeout: Duration,
    /// How long an on-demand connection without any device stays open.
    pub linger: Duration,
    /// Whose frames the trace shows.
    pub trace: Arc<TraceFilter>,
}
