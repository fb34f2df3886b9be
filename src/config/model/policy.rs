//! Who may connect, and attach what: sections `policy` and `vhost`.

use std::net::IpAddr;

/// Section `policy`, with the vhosts of the file and of `policyDir`.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Line of the section; 0 when there is none.
    pub line: u32,
    /// Device connections at one time.
    pub max_connections: u32,
    /// Whether the vhosts decide who may connect and attach what.
    pub enable_vhost_policy: bool,
    /// Whether names of vhosts may hold the tokens `*` and `#`.
    pub vhost_name_patterns: bool,
    /// The vhost of whoever names none that there is; empty: they are denied.
    pub default_vhost: String,
    /// Bytes of one message from a device, where no vhost says otherwise; 0: no limit.
    pub max_message_size: u32,
    /// Vhosts of the file, then those of `policyDir`.
    pub vhosts: Vec<Vhost>,
}

/// Section `vhost`.
#[derive(Clone, Debug)]
pub struct Vhost {
    /// The file that it is in.
    pub file: String,
    /// Line of the section.
    pub line: u32,
    /// What devices write in `open.hostname`.
    pub hostname: String,
    /// Further names.
    pub aliases: Vec<String>,
    /// Connections at one time.
    pub max_connections: u32,
    /// Connections of one user at one time.
    pub max_connections_per_user: u32,
    /// Connections from one host at one time.
    pub max_connections_per_host: u32,
    /// Bytes of one message; `None`: as `policy` has it; 0: no limit.
    pub max_message_size: Option<u32>,
    /// Whether a user of no group is of group `$default`.
    pub allow_unknown_user: bool,
    /// User groups in file order.
    pub groups: Vec<Group>,
}

/// A user group of a vhost. `None` is as the vhost or the listener has it, or no limit.
#[derive(Clone, Debug)]
pub struct Group {
    /// Line of the group.
    pub line: u32,
    /// Its name.
    pub name: String,
    /// Its users; `*` is everyone of no other group.
    pub users: Vec<String>,
    /// From where they may connect.
    pub remote_hosts: Vec<RemoteHost>,
    /// Connections of one user at one time.
    pub max_connections_per_user: Option<u32>,
    /// Connections from one host at one time.
    pub max_connections_per_host: Option<u32>,
    /// In bytes, at least 512.
    pub max_frame_size: Option<u32>,
    /// From 1 to 32768.
    pub max_sessions: Option<u16>,
    /// In bytes, not 0.
    pub max_session_window: Option<u32>,
    /// Links at one time on which the device sends.
    pub max_senders: Option<u32>,
    /// Links at one time on which the device receives.
    pub max_receivers: Option<u32>,
    /// Bytes of one message; 0: no limit.
    pub max_message_size: Option<u32>,
    /// Whether a device may ask for a dynamic source.
    pub allow_dynamic_source: bool,
    /// Whether a device may send on a link without target address.
    pub allow_anonymous_sender: bool,
    /// Whence the device may receive.
    pub sources: Addresses,
    /// Whither the device may send.
    pub targets: Addresses,
}

/// One entry of `remoteHosts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoteHost {
    /// `*`
    Any,
    /// A range of addresses of one family, or a single one.
    Range(IpAddr, IpAddr),
    /// A name to be looked up.
    Name(String),
}

/// Addresses that a device may attach to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// `sources`, `targets`: texts with `${user}`, and with `*` at the end.
    Listed(Vec<String>),
    /// `sourcePattern`, `targetPattern`: patterns of tokens with `${user}`.
    Patterns(Vec<String>),
}
