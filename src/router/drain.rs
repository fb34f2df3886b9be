//! The stop. What has begun may end: it is waited for, [`limits::DRAIN_LIMIT`] at most.
//!
//! ```text
//!   shutdown --> device with nothing under way -------------------------------> closed, amqp:connection:forced
//!            \-> any other: draining --nothing under way, or DRAIN_LIMIT--/
//!   no device is draining --> hubs are closed
//! ```
//!
//! While it lasts, frames move both ways as ever; only a delivery that somebody would have to settle does not begin any
//! more. Where one is parked, its sender hears with the close that it was released. So what a sender saw accepted is at
//! its receiver, and what it did not it has still.

use std::time::{Duration, Instant};

use super::connection::{Kind, index};
use super::connector::State;
use super::loss::Farewell;
use super::pair::{LinkPair, ParkedKind, SessionPair};
use super::timer::Owner;
use super::{ConnectionKey, Router};
use crate::amqp::condition::{self, AmqpError};
use crate::amqp::performative::{Performative, Transfer};
use crate::endpoint::limits;

/// What devices are told, which then connect again.
pub(super) const STOPPING: &str = "the gateway stops or restarts; connect again";

/// So many devices are looked at whenever something happens.
const LOOKED_AT: usize = 100;
/// For each so many more of them that pass is made so much less often, for events come as fast as there are devices.
const PAUSE: Duration = Duration::from_millis(1);

/// How long a router lives.
#[derive(Debug, Default)]
pub(super) enum Life {
    #[default]
    Running,
    /// Told to stop, and something is under way.
    Draining(Drain),
    /// Every connection is told to close.
    Closing,
}

/// A stop that waits.
#[derive(Debug)]
pub(super) struct Drain {
    /// Those that had something under way when they were looked at last.
    devices: Vec<ConnectionKey>,
    next_look: Instant,
    /// When it has taken long enough.
    deadline: Instant,
}

impl Router {
    /// Stop: accept and dial no more, let deliveries that are under way be settled, and close every connection properly.
    /// Done when [`is_empty`](Router::is_empty); which takes [`limits::DRAIN_LIMIT`] for the deliveries and
    /// [`limits::CLOSE_TIMEOUT`] for peers that do not answer, at most.
    pub fn shutdown(&mut self, now: Instant) {
        if self.is_stopping() {
            return;
        }
        self.now = now;
        for connector in self.connectors.values_mut() {
            if connector.connection().is_none() {
                connector.state = State::Idle;
            }
        }
        let connections = self.connections.iter();
        let deadline = now + limits::DRAIN_LIMIT;
        self.life = Life::Draining(Drain {
            devices: connections
                .filter(|(_, entry)| matches!(entry.kind, Kind::Device(_)))
                .map(|(index, entry)| entry.key(index))
                .collect(),
            next_look: now,
            deadline,
        });
        self.go_on_stopping(now);
        if let Life::Draining(drain) = &self.life {
            tracing::info!(
                target: "SERVER",
                "Waiting up to {} s for deliveries under way: connections of devices: {}",
                limits::DRAIN_LIMIT.as_secs(),
                drain.devices.len()
            );
            self.timers.arm(Owner::Drain, &mut None, Some(deadline));
        }
    }

    pub(super) const fn is_stopping(&self) -> bool {
        !matches!(self.life, Life::Running)
    }

    #[inline]
    pub(super) const fn is_draining(&self) -> bool {
        matches!(self.life, Life::Draining(_))
    }

    /// Something has happened, or time has passed: closes the devices that have nothing under way any more, all of them
    /// when it has taken long enough, and behind the last of them the hubs.
    #[inline]
    pub(super) fn go_on_stopping(&mut self, now: Instant) {
        if let Life::Draining(drain) = &self.life {
            let is_late = now >= drain.deadline;
            if is_late || now >= drain.next_look {
                self.close_drained(now);
            }
            if is_late {
                self.give_up_draining(now);
            }
        }
    }

    fn close_drained(&mut self, now: Instant) {
        let Life::Draining(drain) = &mut self.life else {
            return;
        };
        let devices = std::mem::take(&mut drain.devices);
        let asking = self.devices_with_requests_at_hubs();
        let (draining, done): (Vec<_>, Vec<_>) = devices
            .into_iter()
            .partition(|&key| asking.contains(&key) || self.is_under_way(key));
        let is_over = draining.is_empty() && !self.has_leftover();
        let hundreds = u32::try_from(draining.len() / LOOKED_AT).unwrap_or(u32::MAX);
        let next_look = now + PAUSE.saturating_mul(hundreds);
        if next_look > now {
            self.timers.arm(Owner::Drain, &mut None, Some(next_look));
        }
        if let Life::Draining(drain) = &mut self.life {
            drain.devices = draining;
            drain.next_look = next_look;
        }
        for key in done {
            self.close_for_stop(key, now);
        }
        if is_over {
            self.close_hubs(now);
        }
    }

    fn give_up_draining(&mut self, now: Instant) {
        let Life::Draining(drain) = &mut self.life else {
            return;
        };
        let devices = std::mem::take(&mut drain.devices);
        tracing::warn!(
            target: "SERVER",
            "Deliveries were not settled within {} s and are in doubt: connections of devices: {}",
            limits::DRAIN_LIMIT.as_secs(),
            devices.len()
        );
        for key in devices {
            self.close_for_stop(key, now);
        }
        self.close_hubs(now);
    }

    /// The last step, behind the devices: their detaches and ends go out before the close.
    fn close_hubs(&mut self, now: Instant) {
        self.life = Life::Closing;
        for connector in self.connectors.values_mut() {
            match connector.connection() {
                Some(key) => connector.closing(key),
                None => connector.state = State::Idle,
            }
        }
        let connections = self.connections.iter();
        let hubs: Vec<ConnectionKey> = connections
            .filter(|(_, entry)| !matches!(entry.kind, Kind::Device(_)))
            .map(|(index, entry)| entry.key(index))
            .collect();
        for key in hubs {
            self.close_for_stop(key, now);
        }
    }

    fn close_for_stop(&mut self, key: ConnectionKey, now: Instant) {
        let Some(entry) = self.entry(key) else { return };
        // Whoever came to us is to come back; a hub need not know more than that we go.
        let error = match entry.kind {
            Kind::Device(_) | Kind::Broker(..) => {
                Some(AmqpError::new(condition::CONNECTION_FORCED, STOPPING))
            }
            Kind::Upstream(_) => None,
        };
        tracing::info!(target: "SERVER", "[C{}] Closing connection on shutdown", entry.connection.number);
        self.detach_links(key);
        self.release_sessions(key, Farewell::Lost(None));
        if let Some(entry) = self.entry_mut(key) {
            entry.connection.close(error.as_ref(), now);
        }
        self.wake(key);
        self.arm(key);
    }

    // ---- what is under way ---------------------------------------------------------------------------------------

    /// Whether a device or a hub waits for a settlement, or the rest of a delivery, that can still come.
    fn is_under_way(&self, device: ConnectionKey) -> bool {
        self.entry(device).is_some_and(|entry| {
            let pairs = entry
                .connection
                .owners()
                .filter_map(|pair| self.session_pairs.get(index(pair)));
            pairs.into_iter().any(|pair| self.is_pair_under_way(pair))
        })
    }

    fn is_pair_under_way(&self, pair: &SessionPair) -> bool {
        let links = pair
            .links
            .iter()
            .filter_map(|&link| self.link_pairs.get(index(link)));
        pair.up.map.has_unsettled()
            || pair.down.map.has_unsettled()
            || links.into_iter().any(|link| link.delivering.is_some())
            || pair.upstream.is_some() && self.is_moving(pair)
    }

    /// Whether what is parked on its way to the hub still goes.
    fn is_moving(&self, pair: &SessionPair) -> bool {
        let Some(front) = pair.up.entries.front() else {
            return false;
        };
        match front.kind {
            ParkedKind::Flow | ParkedKind::Disposition | ParkedKind::Detach | ParkedKind::Dropped => true,
            ParkedKind::Transfer => {
                let body = pair.up.bodies.as_slice().get(..front.length);
                match (
                    self.link_pairs.get(index(front.link)),
                    Performative::parse(body.unwrap_or_default()),
                ) {
                    (Some(link), Ok(Performative::Transfer(transfer))) => !begins(link, &transfer),
                    _ => true,
                }
            }
        }
    }

    /// Whether devices that have said goodbye left something that still goes to a hub.
    fn has_leftover(&self) -> bool {
        self.session_pairs.iter().any(|(_, pair)| pair.device.is_none())
    }
}

/// Whether a transfer begins a delivery that its receiver is to settle.
#[inline]
pub(super) fn begins(link: &LinkPair, transfer: &Transfer<'_>) -> bool {
    link.delivering.is_none() && transfer.settled != Some(true)
}
