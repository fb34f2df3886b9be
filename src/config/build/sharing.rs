//! The attributes about devices that share a connection to a hub.

use crate::config::model::{CbsMode, HubLoss, Sharing};
use crate::config::resolve::Fields;

/// Those that make a difference only where the router puts the tokens of devices.
const ABOUT_TOKENS: [&str; 3] = ["cbs", "checkIdentity", "maxTokens"];

/// How devices share a connector.
pub(super) fn sharing(fields: &Fields) -> Sharing {
    // The table has the defaults; a stand-in is needed for what was already complained of.
    let number = |name| fields.integer(name).unwrap_or(1);
    Sharing {
        cbs: match fields.tag("cbs") {
            "tunnel" => CbsMode::Tunnel,
            _ => CbsMode::Relay,
        },
        check_identity: fields.boolean("checkIdentity"),
        max_tokens: number("maxTokens"),
        max_links: number("maxLinks"),
        pool_size: number("poolSize"),
        devices_per_second: number("devicesPerSecond"),
        about_tokens: ABOUT_TOKENS
            .into_iter()
            .filter(|name| fields.is_given(name))
            .map(|name| (name, fields.line_of(name)))
            .collect(),
    }
}

/// What devices of a listener see when a hub is lost.
pub(super) fn hub_loss(fields: &Fields) -> HubLoss {
    match fields.tag("onHubLost") {
        "close" => HubLoss::Close,
        _ => HubLoss::Detach,
    }
}
