//! How a connector is shared by many devices, and what they see when its hub is lost. All of it ours.

/// Attribute `cbs` of a connector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CbsMode {
    /// The router puts the tokens of devices.
    Relay,
    /// `$cbs` links are carried like any other.
    Tunnel,
}

/// The attributes of a connector that say how devices share it.
#[derive(Clone, Debug)]
pub struct Sharing {
    /// Who puts the tokens of devices.
    pub cbs: CbsMode,
    /// Whether a device may use only what it has authorised itself.
    pub check_identity: bool,
    /// Tokens of one connection, from 1 to 1000000.
    pub max_tokens: u32,
    /// Links of one connection, at least 1.
    pub max_links: u32,
    /// Connections, from 1 to 1024.
    pub pool_size: u32,
    /// New devices on one connection in a second; 0: as many as come.
    pub devices_per_second: u32,
    /// The attributes about tokens that the file gives, each with its line.
    pub about_tokens: Vec<(&'static str, u32)>,
}

/// Attribute `onHubLost` of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HubLoss {
    /// Links are detached.
    Detach,
    /// The device's connection is closed.
    Close,
}
