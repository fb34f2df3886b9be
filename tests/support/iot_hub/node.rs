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

/// A partition of an event hub, as a consumer group reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    pub(crate) hub: String,
    /// In lower case, as groups match in any.
    pub(crate) group: String,
    pub(crate) number: String,
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
    /// `/messages/events/ConsumerGroups/{group}/Partitions/{n}`, which is to be had elsewhere, from `ConsumerGroups` on.
    BuiltInEvents(String),
    /// `{hub}`, `{hub}/Partitions/{n}` or `{hub}/Publishers/{publisher}` of Event Hubs, by segment.
    EventHub(Vec<String>),
    /// `{hub}/ConsumerGroups/{group}/Partitions/{n}` of Event Hubs.
    Partition(Partition),
    /// `{queue}` of Service Bus.
    Queue(String),
    /// `{queue}/$management`, both ways.
    Management(String),
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
            ["messages", "events", "consumergroups", _, "partitions", _] if !sending => {
                Some(Self::BuiltInEvents(segments.get(2..)?.join("/")))
            }
            _ => None,
        }
    }

    /// As [`find`](Self::find), in a namespace of these event hubs.
    pub(crate) fn find_in_event_hubs(address: &str, peer_role: &Role, hubs: &[String]) -> Option<Self> {
        let path = path_of(address);
        if path == "$cbs" {
            return Some(Self::Cbs);
        }
        let segments: Vec<&str> = path.split('/').collect();
        let (hub, below) = segments.split_first()?;
        let hub = hubs.iter().find(|known| known.eq_ignore_ascii_case(hub))?;
        let lower = below.join("/").to_ascii_lowercase();
        let keywords: Vec<&str> = lower.split('/').filter(|keyword| !keyword.is_empty()).collect();
        match (peer_role, keywords.as_slice()) {
            (Role::Sender, [] | ["partitions" | "publishers", _]) => {
                let below = below.iter().map(|&segment| segment.to_owned());
                Some(Self::EventHub([hub.clone()].into_iter().chain(below).collect()))
            }
            (Role::Receiver, ["consumergroups", group, "partitions", number]) => {
                Some(Self::Partition(Partition {
                    hub: hub.clone(),
                    group: (*group).to_owned(),
                    number: (*number).to_owned(),
                }))
            }
            _ => None,
        }
    }

    /// As [`find`](Self::find), in a namespace of these queues.
    pub(crate) fn find_in_service_bus(address: &str, peer_role: &Role, queues: &[String]) -> Option<Self> {
        let path = path_of(address);
        if path == "$cbs" {
            return Some(Self::Cbs);
        }
        let (queue, below) = path.split_once('/').unwrap_or((path, ""));
        let queue = queues.iter().find(|known| known.eq_ignore_ascii_case(queue))?;
        match (peer_role, below.to_ascii_lowercase().as_str()) {
            (Role::Sender, "") => Some(Self::Queue(queue.clone())),
            (_, "$management") => Some(Self::Management(queue.clone())),
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
            Self::Cbs
            | Self::ServiceCommands
            | Self::Feedback
            | Self::BuiltInEvents(_)
            | Self::EventHub(_)
            | Self::Partition(_)
            | Self::Queue(_)
            | Self::Management(_) => None,
        }
    }

    /// The resource that a token must cover, below the hub's name; `None` if none is needed.
    pub(crate) fn resource(&self) -> Option<Vec<&str>> {
        match self {
            Self::Cbs => None,
            Self::ServiceCommands | Self::Feedback | Self::BuiltInEvents(_) => Some(vec!["messages"]),
            Self::Queue(queue) => Some(vec![queue]),
            Self::Management(queue) => Some(vec![queue, "$management"]),
            Self::EventHub(path) => Some(path.iter().map(String::as_str).collect()),
            Self::Partition(Partition { hub, group, number }) => {
                Some(vec![hub, "ConsumerGroups", group, "Partitions", number])
            }
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
        | Node::Feedback
        | Node::BuiltInEvents(_)
        | Node::EventHub(_)
        | Node::Partition(_)
        | Node::Queue(_)
        | Node::Management(_) => None,
    }
}

fn path_of(address: &str) -> &str {
    let path = match address.split_once("://") {
        Some((_, rest)) => rest.split_once('/').map_or("", |(_, path)| path),
        None => address.strip_prefix("amqps:").unwrap_or(address),
    };
    path.strip_prefix('/').unwrap_or(path)
}
