//! Who may connect, and attach what (qdrouterd: `policy` and `vhost`), with the defaults of the file filled in.

// An address as a value; nothing here opens a socket.
use core::net::IpAddr;

/// Limits and permissions of devices.
#[derive(Clone, Debug, Default)]
pub struct PolicySettings {
    /// Bytes of one message from a device where no vhost says otherwise; 0: no limit.
    pub max_message_size: u64,
    /// The vhosts that decide; `None`: everything is allowed.
    pub vhosts: Option<VhostPolicy>,
}

/// `enableVhostPolicy: yes`
#[derive(Clone, Debug, Default)]
pub struct VhostPolicy {
    /// The vhost of whoever names none that there is, if it exists.
    pub default_vhost: String,
    /// Names of vhosts are patterns of tokens.
    pub name_patterns: bool,
    /// Every vhost; names are unique.
    pub vhosts: Vec<VhostSettings>,
}

/// One `vhost` section.
#[derive(Clone, Debug, Default)]
pub struct VhostSettings {
    /// What devices write in `open.hostname`.
    pub name: String,
    /// Further names.
    pub aliases: Vec<String>,
    /// Connections at one time.
    pub max_connections: usize,
    /// The group of users that are in no group.
    pub unknown_users: Option<String>,
    /// Its groups; names are unique, and so are users.
    pub groups: Vec<GroupSettings>,
}

/// One user group of a vhost. `None` is no limit of its own.
#[derive(Clone, Debug)]
pub struct GroupSettings {
    /// Its name.
    pub name: String,
    /// Its users; `*` is everyone of no other group.
    pub users: Vec<String>,
    /// From where they may connect.
    pub remote_hosts: Vec<RemoteHost>,
    /// Connections of one user of the vhost at one time.
    pub max_connections_per_user: usize,
    /// Connections to the vhost from one host at one time.
    pub max_connections_per_host: usize,
    /// In bytes, at least 512.
    pub max_frame_size: Option<u32>,
    /// Highest channel number.
    pub channel_max: Option<u16>,
    /// In bytes.
    pub session_window: Option<u32>,
    /// Links at one time on which a device sends.
    pub max_senders: Option<usize>,
    /// Links at one time on which a device receives.
    pub max_receivers: Option<usize>,
    /// Bytes of one message from a device; 0: no limit.
    pub max_message_size: u64,
    /// Whether a device may ask for a dynamic source.
    pub allow_dynamic_source: bool,
    /// Whether a device may send on a link without target address.
    pub allow_anonymous_sender: bool,
    /// Whence a device may receive.
    pub sources: Addresses,
    /// Whither a device may send.
    pub targets: Addresses,
}

/// One entry of `remoteHosts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteHost {
    /// `*`
    Any,
    /// From the first to the last address of one family.
    Range(IpAddr, IpAddr),
}

/// Addresses that a device may attach to, with `${user}` for its user's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// The text itself, or with `*` at its end whatever begins like it.
    Listed(Vec<String>),
    /// Patterns of tokens with `*` (one) and `#` (zero or more).
    Patterns(Vec<String>),
}

impl GroupSettings {
    /// A group that admits nobody to nothing.
    pub fn new(name: &str) -> Self {
        GroupSettings {
            name: name.to_owned(),
            users: Vec::new(),
            remote_hosts: Vec::new(),
            max_connections_per_user: usize::MAX,
            max_connections_per_host: usize::MAX,
            max_frame_size: None,
            channel_max: None,
            session_window: None,
            max_senders: None,
            max_receivers: None,
            max_message_size: 0,
            allow_dynamic_source: false,
            allow_anonymous_sender: false,
            sources: Addresses::Listed(Vec::new()),
            targets: Addresses::Listed(Vec::new()),
        }
    }
}
