//! What the hub's addresses name, and who may attach to them.

use std::fmt;

use percent_encoding::percent_decode_str;

use fe2o3_amqp::types::definitions::Role;

/// Who a link belongs to: a device, or a module of one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Identity {
    pub(crate) device: String,
    pub(crate) module: Option<String>,
}

impl Identity {
    pub(crate) fn device(id: &str) -> Self {
        Self {
            device: id.to_owned(),
            module: None,
        }
    }

    pub(crate) fn module(device: &str, module: &str) -> Self {
        Self {
            device: device.to_owned(),
            module: Some(module.to_owned()),
        }
    }

    /// The identity that a path begins with, and how many segments name it.
    fn at_start(segments: &[&str]) -> Option<(Self, usize)> {
        let decoded = |segment: &str| percent_decode_str(segment).decode_utf8_lossy().into_owned();
        match segments {
            [devices, id, modules, module, ..]
                if devices.eq_ignore_ascii_case("devices") && modules.eq_ignore_ascii_case("modules") =>
            {
                Some((Self::module(&decoded(id), &decoded(module)), 4))
            }
            [devices, id, ..] if devices.eq_ignore_ascii_case("devices") => {
                Some((Self::device(&decoded(id)), 2))
            }
            _ => None,
        }
    }

    /// The resource below the hub's name that a token for it carries.
    pub(crate) fn resource(&self) -> Vec<&str> {
        let mut path = vec!["devices", self.device.as_str()];
        if let Some(module) = &self.module {
            path.extend(["modules", module.as_str()]);
        }
        path
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.device)?;
        match &self.module {
            Some(module) => write!(f, "/modules/{module}"),
            None => Ok(()),
        }
    }
}

/// A node of the hub, as a link's address names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    /// `$cbs`
    Cbs,
    /// `/devices/{id}/messages/events`
    Events(Identity),
    /// `/devices/{id}/messages/devicebound`
    DeviceBound(Identity),
    /// `/devices/{id}/twin`
    Twin(Identity),
    /// `/devices/{id}/methods/devicebound`
    Methods(Identity),
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
        let lower = path.to_ascii_lowercase();
        let keywords: Vec<&str> = lower.split('/').collect();
        let sending = *peer_role == Role::Sender;
        if let Some((identity, taken)) = Identity::at_start(&segments) {
            return match keywords.get(taken..).unwrap_or_default() {
                ["messages", "events"] if sending => Some(Self::Events(identity)),
                ["messages", "devicebound"] if !sending => Some(Self::DeviceBound(identity)),
                ["twin"] => Some(Self::Twin(identity)),
                ["methods", "devicebound"] => Some(Self::Methods(identity)),
                _ => None,
            };
        }
        match keywords.as_slice() {
            ["$cbs"] => Some(Self::Cbs),
            ["messages", "devicebound"] if sending => Some(Self::ServiceCommands),
            ["messages", "servicebound", "feedback"] if !sending => Some(Self::Feedback),
            _ => None,
        }
    }

    /// Whose node it is, if it is one identity's.
    pub(crate) fn identity(&self) -> Option<&Identity> {
        match self {
            Self::Events(identity)
            | Self::DeviceBound(identity)
            | Self::Twin(identity)
            | Self::Methods(identity) => Some(identity),
            Self::Cbs | Self::ServiceCommands | Self::Feedback => None,
        }
    }

    /// The resource that a token must cover, below the hub's name; `None` if none is needed.
    pub(crate) fn resource(&self) -> Option<Vec<&str>> {
        match self {
            Self::Cbs => None,
            Self::ServiceCommands | Self::Feedback => Some(vec!["messages"]),
            Self::Events(identity)
            | Self::DeviceBound(identity)
            | Self::Twin(identity)
            | Self::Methods(identity) => Some(identity.resource()),
        }
    }

    /// Whether its links come in pairs that a correlation id holds together, pre-settled both ways.
    pub(crate) fn is_paired(&self) -> bool {
        matches!(self, Self::Twin(_) | Self::Methods(_))
    }
}

/// The device or module that the `to` of a command names.
pub(crate) fn recipient_of(to: &str) -> Option<Identity> {
    match Node::find(to, &Role::Receiver)? {
        Node::DeviceBound(identity) => Some(identity),
        Node::Cbs
        | Node::Events(_)
        | Node::Twin(_)
        | Node::Methods(_)
        | Node::ServiceCommands
        | Node::Feedback => None,
    }
}

fn path_of(address: &str) -> &str {
    let path = match address.split_once("://") {
        Some((_, rest)) => rest.split_once('/').map_or("", |(_, path)| path),
        None => address.strip_prefix("amqps:").unwrap_or(address),
    };
    path.strip_prefix('/').unwrap_or(path)
}
