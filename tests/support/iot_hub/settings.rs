//! What the stand-in is told to be: its names, its registry, and the switches for behaviours that are not published
//! or that a test wants to provoke. The defaults are the real hub's values, as recorded from its frames.

use std::collections::BTreeMap;
use std::time::Duration;

use fe2o3_amqp::types::definitions::Role;

use super::super::sas::Key;
use super::node::{Identity, Node};

/// What the hub does with a second `$cbs` link pair on one connection. The cloud hub's answer is not published, so
/// the router must do with all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CbsMode {
    /// Service Bus: the second attach in a role is answered, then detached with `amqp:not-allowed`.
    Refuse,
    /// IoT Edge hub: every reply goes to the receiver attached last.
    LastWins,
    /// A reply goes to the receiver of the session that asked.
    PerSession,
    /// A reply goes to the receiver whose name or target is the request's reply-to.
    ReplyTo,
}

impl CbsMode {
    pub(crate) const ALL: [Self; 4] = [Self::Refuse, Self::LastWins, Self::PerSession, Self::ReplyTo];
}

/// When a put-token is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CbsAnswers {
    AtOnce,
    /// So much later by the hub's clock.
    After(Duration),
    Never,
}

/// What happens to the links of an identity whose token has ended, grace included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expiry {
    /// They are detached, the connection stays.
    Detach,
    /// Older logs show the whole connection going away.
    Close,
}

/// What happens to the older links of an identity that comes on another connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Eviction {
    pub(crate) condition: EvictionCondition,
    pub(crate) scope: EvictionScope,
}

/// The condition that tells of it; all three were seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EvictionCondition {
    InternalError,
    NotAllowed,
    LinkCreationConflict,
}

/// What goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EvictionScope {
    Links,
    /// The sessions that have one of these links.
    Sessions,
    Connection,
}

/// What an attach does whose name a link of the session in the same role has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NameClash {
    /// It is refused with `amqp:resource-locked`.
    Refuse,
    /// The older link is detached with `amqp:link:stolen`.
    Steal,
}

/// How the hub answers telemetry when it has too much to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Throttle {
    Off,
    /// Each message is rejected with `com.microsoft:device-container-throttled`.
    Reject,
    /// The link is detached with `amqp:link:detach-forced`, `Server Busy. Please retry operation`.
    Busy,
}

/// How long a connection may be without a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoLink {
    /// From its open, when there has been none.
    pub(crate) at_first: Duration,
    /// From the detach of the last one.
    pub(crate) later: Duration,
}

/// Which of the services of the cloud it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    IotHub,
    /// A namespace of these event hubs.
    EventHubs(Vec<String>),
    /// A namespace of these queues.
    ServiceBus(Vec<String>),
}

/// Where an IoT hub keeps its events for services to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BuiltInEvents {
    /// Of a namespace of Event Hubs.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) hub: String,
}

/// A device in the registry.
#[derive(Clone)]
pub(crate) struct Device {
    pub(crate) primary: Key,
    pub(crate) secondary: Key,
    /// Its modules, by name, each with a primary key.
    pub(crate) modules: BTreeMap<String, Key>,
}

/// Everything that can be set.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) kind: Kind,
    /// Where receivers of an IoT hub's events are sent to.
    pub(crate) built_in_events: BuiltInEvents,
    /// Host names that `open.hostname` and a token's resource may carry.
    pub(crate) names: Vec<String>,
    pub(crate) devices: BTreeMap<String, Device>,
    /// Shared access policies of the hub as a whole, by name.
    pub(crate) policies: BTreeMap<String, Key>,
    pub(crate) max_frame_size: u32,
    pub(crate) channel_max: u16,
    /// Milliseconds; advertised, and enforced.
    pub(crate) idle_time_out: u32,
    /// An idle time-out below this is refused.
    pub(crate) min_idle_time_out: u32,
    pub(crate) incoming_window: u32,
    pub(crate) handle_max: u32,
    pub(crate) max_message_size: u64,
    /// Telemetry above this is rejected, one by one.
    pub(crate) max_telemetry_size: usize,
    pub(crate) cbs_credit: u32,
    pub(crate) event_credit: u32,
    pub(crate) cbs_mode: CbsMode,
    /// Its peer is a router, which has one pair of `$cbs` links per connection: another is a fault.
    pub(crate) is_behind_router: bool,
    pub(crate) cbs_answers: CbsAnswers,
    /// Take any token of type `jwt` that has not ended for one of a service. Its signature is not looked at.
    pub(crate) accepts_jwt: bool,
    pub(crate) on_expiry: Expiry,
    pub(crate) max_tokens: usize,
    /// How long after its end a token that is already in place still serves.
    pub(crate) token_grace: Duration,
    /// How long a command waits for its outcome before others may have it.
    pub(crate) command_lock: Duration,
    pub(crate) max_delivery_count: u8,
    pub(crate) max_pending_commands: usize,
    /// `None`: an identity may be on several connections at once.
    pub(crate) eviction: Option<Eviction>,
    pub(crate) name_clash: NameClash,
    /// How long a connection waits before TLS begins.
    pub(crate) accept_delay: Duration,
    /// A connection without a token is closed so long after its open.
    pub(crate) first_token_deadline: Option<Duration>,
    pub(crate) no_link_deadline: Option<NoLink>,
    /// A link that the peer sends on and has not sent on for so long is detached.
    pub(crate) idle_sender: Option<Duration>,
    /// How late an outcome of telemetry comes.
    pub(crate) outcome_delay: Duration,
    pub(crate) throttle: Throttle,
    /// Reject batches that cannot be taken apart; else they are taken as they are.
    pub(crate) checks_batches: bool,
    /// Telemetry messages of all devices per day, UTC.
    pub(crate) daily_quota: Option<u32>,
    pub(crate) connections_per_second: Option<u32>,
    /// Links of devices and modules.
    pub(crate) link_opens_per_second: Option<u32>,
    /// How many of its seconds the hub's clock makes of one.
    pub(crate) clock_rate: u32,
    /// Refuse a TLS client that does not say which hub it wants.
    pub(crate) require_sni: bool,
}

impl Settings {
    /// A hub called `name` (and `localhost`, where tests find it), without devices.
    pub(crate) fn new(name: &str) -> Self {
        Self {
            kind: Kind::IotHub,
            built_in_events: BuiltInEvents {
                host: "ihsuprod.servicebus.windows.net".to_owned(),
                port: 5671,
                hub: "iothub-ehub-events".to_owned(),
            },
            names: vec![name.to_owned(), "localhost".to_owned()],
            devices: BTreeMap::new(),
            policies: BTreeMap::new(),
            max_frame_size: 65_536,
            channel_max: 8_191,
            idle_time_out: 240_000,
            min_idle_time_out: 5_000,
            incoming_window: 5_000,
            handle_max: 262_143,
            max_message_size: 1_048_576,
            max_telemetry_size: 256 * 1024,
            cbs_credit: 100,
            event_credit: 1_000,
            cbs_mode: CbsMode::PerSession,
            is_behind_router: false,
            cbs_answers: CbsAnswers::AtOnce,
            accepts_jwt: false,
            on_expiry: Expiry::Detach,
            max_tokens: 1_000,
            token_grace: Duration::from_secs(300),
            command_lock: Duration::from_secs(60),
            max_delivery_count: 10,
            max_pending_commands: 50,
            eviction: Some(Eviction {
                condition: EvictionCondition::InternalError,
                scope: EvictionScope::Links,
            }),
            name_clash: NameClash::Refuse,
            accept_delay: Duration::ZERO,
            first_token_deadline: None,
            no_link_deadline: None,
            idle_sender: None,
            outcome_delay: Duration::ZERO,
            throttle: Throttle::Off,
            checks_batches: false,
            daily_quota: None,
            connections_per_second: None,
            link_opens_per_second: None,
            clock_rate: 1,
            require_sni: true,
        }
    }

    /// A namespace of Event Hubs called `name`.
    pub(crate) fn event_hubs(name: &str, hubs: &[&str]) -> Self {
        let hubs = hubs.iter().map(|&hub| hub.to_owned()).collect();
        Self {
            kind: Kind::EventHubs(hubs),
            max_frame_size: 262_144,
            handle_max: 255,
            cbs_mode: CbsMode::Refuse,
            ..Self::new(name)
        }
    }

    /// A namespace of Service Bus called `name`.
    pub(crate) fn service_bus(name: &str, queues: &[&str]) -> Self {
        let queues = queues.iter().map(|&queue| queue.to_owned()).collect();
        Self {
            kind: Kind::ServiceBus(queues),
            idle_sender: Some(Duration::from_secs(600)),
            ..Self::event_hubs(name, &[])
        }
    }

    /// Registers a device with this primary key.
    pub(crate) fn with_device(mut self, id: &str, primary: Key) -> Self {
        let secondary = Key::from_text(&format!("secondary key of {id}"));
        let modules = BTreeMap::new();
        self.devices.insert(
            id.to_owned(),
            Device {
                primary,
                secondary,
                modules,
            },
        );
        self
    }

    /// Registers a module of a device that is registered.
    pub(crate) fn with_module(mut self, device: &str, module: &str, key: Key) -> Self {
        if let Some(device) = self.devices.get_mut(device) {
            device.modules.insert(module.to_owned(), key);
        }
        self
    }

    /// Registers a hub policy.
    pub(crate) fn with_policy(mut self, name: &str, key: Key) -> Self {
        self.policies.insert(name.to_owned(), key);
        self
    }

    /// The hub's own name.
    pub(super) fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    /// The node that an address names for a peer in this role, if there is one.
    pub(super) fn node_at(&self, address: &str, peer_role: &Role) -> Option<Node> {
        match &self.kind {
            Kind::IotHub => Node::find(address, peer_role),
            Kind::EventHubs(hubs) => Node::find_in_event_hubs(address, peer_role, hubs),
            Kind::ServiceBus(queues) => Node::find_in_service_bus(address, peer_role, queues),
        }
    }

    pub(super) fn knows(&self, Identity { device, module }: &Identity) -> bool {
        self.devices.get(device).is_some_and(|device| {
            module
                .as_ref()
                .is_none_or(|module| device.modules.contains_key(module))
        })
    }

    pub(super) fn is_ours(&self, host: &str) -> bool {
        self.names.iter().any(|name| name.eq_ignore_ascii_case(host))
    }
}
