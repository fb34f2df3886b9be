//! How a connector is shared by many devices, and what they see when its hub is lost. All of it ours.

use super::{Connector, SslProfile};

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

impl Connector {
    /// What it logs in with for all devices, if it does.
    pub(in crate::config) fn own_identity(&self, profiles: &[SslProfile]) -> Option<&'static str> {
        let allows = |mechanism: &str| {
            self.sasl_mechanisms.is_empty() || self.sasl_mechanisms.iter().any(|name| name == mechanism)
        };
        let name = self.ssl_profile.as_ref();
        let profile = name.and_then(|name| profiles.iter().find(|profile| profile.name == *name));
        let has_certificate = profile.is_some_and(|profile| profile.cert_file.is_some());
        if self.sasl_username.is_some() && allows("PLAIN") {
            Some("`saslUsername`")
        } else if has_certificate && allows("EXTERNAL") {
            Some("the certificate of its `sslProfile`")
        } else {
            None
        }
    }

    /// Whether it puts the tokens of devices.
    pub(in crate::config) fn puts_tokens(&self, profiles: &[SslProfile]) -> bool {
        self.sharing.cbs == CbsMode::Relay && self.own_identity(profiles).is_none()
    }
}

/// Attribute `onHubLost` of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HubLoss {
    /// Links are detached.
    Detach,
    /// The device's connection is closed.
    Close,
}
