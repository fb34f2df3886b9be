//! The typed configuration: what the file says, defaults applied, references checked.

mod policy;
mod sharing;

use std::time::Duration;

use super::secret::Secret;
pub use policy::{Addresses, Group, Policy, RemoteHost, Vhost};
pub use sharing::{CbsMode, HubLoss, Sharing};

/// A whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The router; made up when the file has none.
    pub router: Router,
    /// Sockets that devices and brokers connect to, in file order.
    pub listeners: Vec<Listener>,
    /// Connections to hubs, in file order.
    pub connectors: Vec<Connector>,
    /// TLS settings that connectors and listeners refer to by name.
    pub ssl_profiles: Vec<SslProfile>,
    /// Routes in file order.
    pub link_routes: Vec<LinkRoute>,
    /// Log settings, one per module named.
    pub logs: Vec<Log>,
    /// Limits for all listeners together, and who may do what.
    pub policy: Policy,
}

impl Config {
    /// The profile that a connector or listener refers to.
    pub fn ssl_profile(&self, name: &str) -> Option<&SslProfile> {
        self.ssl_profiles.iter().find(|profile| profile.name == name)
    }
}

/// Section `router`, with what a 0.6 file says in `container`.
#[derive(Clone, Debug)]
pub struct Router {
    /// Line of the section; 0 when there is none.
    pub line: u32,
    /// container-id of every open that we send.
    pub id: String,
    /// Line of the attribute that gives it; `None`: it is made up, and another at each reading.
    pub id_line: Option<u32>,
    /// Log time stamps in UTC instead of local time.
    pub timestamps_in_utc: bool,
    /// strftime format of log time stamps, in which `%%06lu` stands for the microseconds.
    pub timestamp_format: Option<String>,
    /// File of the users that may log in with a password, ours.
    pub sasl_password_file: Option<String>,
    /// Whether a link's terminus may outlive the link; a warning already says that `no` has no effect.
    pub allow_resumable_link_route: bool,
    /// Which error conditions devices see.
    pub error_conditions: ErrorConditions,
}

/// Attribute `errorConditions` of the router, ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorConditions {
    /// Conditions of AMQP that client libraries retry.
    Amqp,
    /// qdrouterd's own conditions.
    Qd,
}

/// Attribute `socketAddressFamily`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressFamily {
    /// IPv4 only.
    Ipv4,
    /// IPv6 only.
    Ipv6,
}

/// Attribute `role` of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerRole {
    /// Devices connect.
    Normal,
    /// Brokers connect, and serve routes.
    RouteContainer,
}

/// Section `listener`.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Line of the section.
    pub line: u32,
    /// As given, or `listener/HOST:PORT`.
    pub name: String,
    /// Host name or address without brackets; `0.0.0.0` or `::` for all interfaces.
    pub host: String,
    /// 0 takes a free port.
    pub port: u16,
    /// `None`: whatever the host resolves to.
    pub family: Option<AddressFamily>,
    /// Who connects.
    pub role: ListenerRole,
    /// Whether a device's virtual host is put in front of the addresses that it writes.
    pub multi_tenant: bool,
    /// Replaces the hostname in a device's open as its virtual host.
    pub policy_vhost: Option<String>,
    /// At least 512.
    pub max_frame_size: u32,
    /// From 1 to 32768.
    pub max_sessions: u16,
    /// Session window in frames; `None` when not set.
    pub max_session_frames: Option<u32>,
    /// `None`: never.
    pub idle_timeout: Option<Duration>,
    /// From accept to the peer's open; `None`: for ever.
    pub initial_handshake_timeout: Option<Duration>,
    /// Name of an entry of [`Config::ssl_profiles`], which has a `certFile`; `None`: no TLS.
    pub ssl_profile: Option<String>,
    /// Clear text is turned away; only with a profile.
    pub require_encryption: bool,
    /// Who does not authenticate is turned away.
    pub authenticate_peer: bool,
    /// What TLS wants of the other side.
    pub client_certificates: ClientCertificates,
    /// Mechanisms to offer, in order, only such as can work; never empty.
    pub sasl_mechanisms: Vec<String>,
    /// Hosts to announce to devices.
    pub failover: Vec<FailoverUrl>,
    /// What devices see when a hub is lost.
    pub on_hub_lost: HubLoss,
}

/// A host of attribute `failoverUrls`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailoverUrl {
    /// Host name or address without brackets.
    pub host: String,
    /// `None`: not given.
    pub port: Option<u16>,
    /// Whether the scheme is `amqps`; `None`: there is none.
    pub tls: Option<bool>,
}

/// Which certificates a listener wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// None.
    Ignored,
    /// One that is signed by these authorities, or none.
    Asked {
        /// PEM file.
        ca_file: String,
    },
    /// One that is signed by these authorities.
    Demanded {
        /// PEM file.
        ca_file: String,
    },
}

/// Attribute `role` of a connector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectorRole {
    /// Connects at start.
    Normal,
    /// Connects when a link first needs it.
    OnDemand,
    /// Connects at start.
    RouteContainer,
}

impl ConnectorRole {
    /// As the file spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            ConnectorRole::Normal => "normal",
            ConnectorRole::OnDemand => "on-demand",
            ConnectorRole::RouteContainer => "route-container",
        }
    }
}

/// Section `connector`.
#[derive(Clone, Debug)]
pub struct Connector {
    /// Line of the section.
    pub line: u32,
    /// As given, or `connector/HOST:PORT`.
    pub name: String,
    /// Host name or address without brackets.
    pub host: String,
    /// Never 0.
    pub port: u16,
    /// The name for SNI, the certificate and `open.hostname`; `None`: that of the host dialed.
    pub server_name: Option<String>,
    /// Hosts that stand in for it.
    pub failover: Vec<FailoverUrl>,
    /// `None`: whatever the host resolves to.
    pub family: Option<AddressFamily>,
    /// When to connect.
    pub role: ConnectorRole,
    /// Name of an entry of [`Config::ssl_profiles`]; `None`: no TLS.
    pub ssl_profile: Option<String>,
    /// Whether the certificate must be for the name of the server. The chain is verified in any case.
    pub verify_hostname: bool,
    /// Mechanisms allowed, in order, only such as we know; empty allows all of them.
    pub sasl_mechanisms: Vec<String>,
    /// For PLAIN.
    pub sasl_username: Option<String>,
    /// For PLAIN.
    pub sasl_password: Option<Secret>,
    /// At least 512.
    pub max_frame_size: u32,
    /// From 1 to 32768.
    pub max_sessions: u16,
    /// Session window in frames; `None` when not set.
    pub max_session_frames: Option<u32>,
    /// `None`: never.
    pub idle_timeout: Option<Duration>,
    /// How devices share it.
    pub sharing: Sharing,
}

/// A word of attribute `protocols`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    /// `TLSv1.2`
    Tls12,
    /// `TLSv1.3`
    Tls13,
}

/// Section `sslProfile`, or what a 0.6 connector or listener says of TLS in its own section.
#[derive(Clone, Debug)]
pub struct SslProfile {
    /// Line of the section.
    pub line: u32,
    /// As given.
    pub name: String,
    /// PEM file of trusted roots; `None`: the built-in ones.
    pub ca_cert_file: Option<String>,
    /// PEM file of our own certificate and its chain.
    pub cert_file: Option<String>,
    /// PEM file of its key.
    pub private_key_file: Option<String>,
    /// Password of the key; a warning already says that such keys are not read.
    pub password: Option<Secret>,
    /// Versions allowed; never empty.
    pub protocols: Vec<TlsVersion>,
    /// What of a device's certificate is its user's name.
    pub uid_format: Option<String>,
    /// JSON file of other names for users.
    pub uid_name_mapping_file: Option<String>,
}

/// Which addresses a route is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Matcher {
    /// Attribute `prefix`: has at least one token.
    Prefix(String),
    /// Attribute `pattern`: has at least one token.
    Pattern(String),
}

/// Attribute `direction` of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The device sends.
    In,
    /// The device receives.
    Out,
}

/// Who serves a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The connector, or the listener of role `route-container`, of this name; one of them exists.
    Connection(String),
    /// Any hub whose open carries this container-id.
    Container(String),
}

/// Section `linkRoute`, or one direction of a `linkRoutePattern`.
#[derive(Clone, Debug)]
pub struct LinkRoute {
    /// Line of the section.
    pub line: u32,
    /// As given, or `linkRoute/N` with the route's index.
    pub name: String,
    /// Which addresses.
    pub matcher: Matcher,
    /// Which way.
    pub direction: Direction,
    /// To whom.
    pub destination: Destination,
    /// Put in front of the address towards the hub.
    pub add_external_prefix: Option<String>,
    /// Taken off the address before that.
    pub del_external_prefix: Option<String>,
}

/// A log level of qdrouterd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Frames and details.
    Trace,
    /// Decisions.
    Debug,
    /// Lifecycle.
    Info,
    /// Important lifecycle.
    Notice,
    /// Degraded.
    Warning,
    /// Something failed.
    Error,
    /// The daemon cannot go on.
    Critical,
}

impl LogLevel {
    /// All of them, from the most talkative to the gravest.
    pub const ALL: [LogLevel; 7] = [
        LogLevel::Trace,
        LogLevel::Debug,
        LogLevel::Info,
        LogLevel::Notice,
        LogLevel::Warning,
        LogLevel::Error,
        LogLevel::Critical,
    ];

    /// Its name in a file and in a log line.
    pub const fn as_str(self) -> &'static str {
        match self {
            LogLevel::Trace => "trace",
            LogLevel::Debug => "debug",
            LogLevel::Info => "info",
            LogLevel::Notice => "notice",
            LogLevel::Warning => "warning",
            LogLevel::Error => "error",
            LogLevel::Critical => "critical",
        }
    }
}

/// A set of log levels: `warning`, `info+`, `trace error+`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LevelSet(u8);

impl LevelSet {
    /// No level at all.
    pub const NONE: LevelSet = LevelSet(0);

    /// This level and all graver ones.
    pub const fn at_least(level: LogLevel) -> Self {
        LevelSet((0x7f << level as u8) & 0x7f)
    }

    /// This level only.
    pub const fn only(level: LogLevel) -> Self {
        LevelSet(1 << level as u8)
    }

    /// The levels of both sets.
    #[must_use]
    pub const fn union(self, other: LevelSet) -> Self {
        LevelSet(self.0 | other.0)
    }

    /// Whether this level is in the set.
    pub const fn contains(self, level: LogLevel) -> bool {
        self.0 & (1 << level as u8) != 0
    }

    /// The most talkative level of the set.
    pub fn lowest(self) -> Option<LogLevel> {
        LogLevel::ALL.into_iter().find(|level| self.contains(*level))
    }
}

/// Where log lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogOutput {
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// The system log.
    Syslog,
    /// Appended to a file.
    File(String),
}

/// Section `log`. What is `None` is as module `DEFAULT` has it.
#[derive(Clone, Debug)]
pub struct Log {
    /// Line of the section.
    pub line: u32,
    /// Module name in upper case; each at most once.
    pub module: String,
    /// Levels that are logged; `None` for module `DEFAULT` means `info+`.
    pub levels: Option<LevelSet>,
    /// Whether lines carry a time stamp.
    pub include_timestamp: Option<bool>,
    /// Whether lines carry file and line of the program.
    pub include_source: Option<bool>,
    /// Where lines go.
    pub output: Option<LogOutput>,
    /// Devices whose frames are traced, ours; in the section of module `PROTOCOL` only.
    pub trace_device: Vec<String>,
}
