//! What the hub's addresses name, and who may attach to them.

use percent_encoding::percent_decode_str;

use fe2o3_amqp::types::definitions::Role;

/// A node of the hub, as a link's address names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    /// `$cbs`
    Cbs,
    /// `/devices/{id}/messages/events`
    Events(String),
    /// `/devices/{id}/messages/devicebound`
    DeviceBound(String),
    /// `/messages/devicebound`
    ServiceCommands,
    /// `/messages/servicebound/feedback`
    Feedback,
}

impl Node {
    /// The node that an address names for a peer in this role, if there is one.
    ///
    /// Keywords match in any case and device ids exactly; a scheme, an authority and a leading slash may be there or
    /// not.
    pub(crate) fn find(address: &str, peer_role: &Role) -> Option<Self> {
        let path = path_of(address);
        let segments: Vec<&str> = path.split('/').collect();
        let is = |index: usize, word: &str| {
            segments
                .get(index)
                .is_some_and(|segment: &&str| segment.eq_ignore_ascii_case(word))
        };
        let id = || {
            percent_decode_str(segments.get(1).unwrap_or(&""))
                .decode_utf8_lossy()
                .into_owned()
        };
        let sending = *peer_role == Role::Sender;
        match segments.len() {
            1 if is(0, "$cbs") => Some(Self::Cbs),
            2 if is(0, "messages") && is(1, "devicebound") && sending => Some(Self::ServiceCommands),
            3 if is(0, "messages") && is(1, "servicebound") && is(2, "feedback") && !sending => {
                Some(Self::Feedback)
            }
            4 if is(0, "devices") && is(2, "messages") && is(3, "events") && sending => {
                Some(Self::Events(id()))
            }
            4 if is(0, "devices") && is(2, "messages") && is(3, "devicebound") && !sending => {
                Some(Self::DeviceBound(id()))
            }
            _ => None,
        }
    }

    /// The resource that a token must cover, below the hub's name; `None` if none is needed.
    pub(crate) fn resource(&self) -> Option<Vec<&str>> {
        match self {
            Self::Cbs => None,
            Self::Events(id) | Self::DeviceBound(id) => Some(vec!["devices", id]),
            Self::ServiceCommands | Self::Feedback => Some(vec!["messages"]),
        }
    }
}

/// The device that the `to` of a command names.
pub(crate) fn device_of(to: &str) -> Option<String> {
    match Node::find(to, &Role::Receiver)? {
        Node::DeviceBound(id) => Some(id),
        Node::Cbs | Node::Events(_) | Node::ServiceCommands | Node::Feedback => None,
    }
}

fn path_of(address: &str) -> &str {
    let path = match address.split_once("://") {
        Some((_, rest)) => rest.split_once('/').map_or("", |(_, path)| path),
        None => address.strip_prefix("amqps:").unwrap_or(address),
    };
    path.strip_prefix('/').unwrap_or(path)
}
