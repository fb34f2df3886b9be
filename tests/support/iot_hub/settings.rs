//! What the stand-in is told to be: its names, its registry, and the switches for behaviours that are not published
//! or that a test wants to provoke. The defaults are the real hub's values, as recorded from its frames.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::sas::Key;
use super::node::Identity;

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
    pub(crate) max_tokens: usize,
    /// How long after its end a token that is already in place still serves.
    pub(crate) token_grace: Duration,
    /// How long a command waits for its outcome before others may have it.
    pub(crate) command_lock: Duration,
    pub(crate) max_delivery_count: u8,
    pub(crate) max_pending_commands: usize,
    /// Refuse a TLS client that does not say which hub it wants.
    pub(crate) require_sni: bool,
}

impl Settings {
    /// A hub called `name` (and `localhost`, where tests find it), without devices.
    pub(crate) fn new(name: &str) -> Self {
        Self {
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
            max_tokens: 1_000,
            token_grace: Duration::from_secs(300),
            command_lock: Duration::from_secs(60),
            max_delivery_count: 10,
            max_pending_commands: 50,
            require_sni: true,
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
