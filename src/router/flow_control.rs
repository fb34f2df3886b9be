//! Back-pressure: who may be read, and when what is parked moves on. Every queue here has an owner, a cap in bytes
//! and a consequence, which `endpoint::limits` names.
//!
//! A device that outruns its hub is not read; a hub is never not read, because its flows and settlements are what
//! empties the queues. What a hub may send for one device is bounded by that session's window, and when devices that
//! do not read hold too much together, the one that holds most is closed.

use std::collections::VecDeque;
use std::ops::Range;

use super::connection::{Kind, index};
use super::pair::{Leg, Parked, ParkedKind, Way};
use super::{ConnectionKey, Router};
use crate::endpoint::ConnectionError;
use crate::endpoint::limits;

/// What back-pressure knows of one connection.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// A device's bytes that wait for hubs.
    parked: usize,
    /// Hubs' bytes that wait for this device.
    held: usize,
    /// The upstream connection that this device sent to last.
    feeds: Option<ConnectionKey>,
    /// Session pairs whose lane to this connection waits for room in its outbox.
    blocked: VecDeque<(u32, Way)>,
    /// Devices that are not read until this connection's outbox has drained.
    readers: Vec<ConnectionKey>,
    /// The driver has been told not to read, and waits for a wake-up.
    is_paused: bool,
    /// On some connection's list of readers.
    is_listed: bool,
}

impl Gate {
    pub(super) const fn parked(&self) -> usize {
        self.parked
    }

    pub(super) const fn held(&self) -> usize {
        self.held
    }
}

impl Router {
    /// Whether a connection may be read. If not, whoever makes room will wake it.
    pub(super) fn admit_reading(&mut self, key: ConnectionKey) -> bool {
        let Some(entry) = self.entry(key) else {
            return false;
        };
        let Kind::Device(_) = entry.kind else { return true };
        let is_admitted = self.has_room_for(key);
        if let Some(entry) = self.entry_mut(key) {
            entry.gate.is_paused = !is_admitted;
        }
        is_admitted
    }

    fn has_room_for(&mut self, key: ConnectionKey) -> bool {
        let Some(entry) = self.entry_mut(key) else {
            return false;
        };
        // Its own answers: the driver asks again when it has written some.
        if entry.connection.outbox().len() >= limits::OUTBOX_HIGH || entry.gate.parked >= limits::PARKED_BYTES
        {
            return false;
        }
        let (is_listed, feeds) = (entry.gate.is_listed, entry.gate.feeds);
        if entry.gate.parked > 0 && self.parked_total >= limits::PARKED_BYTES_TOTAL {
            if !is_listed {
                self.parked_readers.push(key);
                self.list(key);
            }
            return false;
        }
        match feeds.and_then(|upstream| self.entry_mut(upstream)) {
            Some(hub) if hub.connection.outbox().len() >= limits::OUTBOX_HIGH => {
                if !is_listed {
                    hub.gate.readers.push(key);
                    self.list(key);
                }
                false
            }
            _ => true,
        }
    }

    fn list(&mut self, key: ConnectionKey) {
        if let Some(entry) = self.entry_mut(key) {
            entry.gate.is_listed = true;
        }
    }

    /// Wakes a device that is not read; it will ask again.
    fn wake_reader(&mut self, key: ConnectionKey) {
        if let Some(entry) = self.entry_mut(key) {
            entry.gate.is_listed = false;
        }
        self.wake(key);
    }

    /// A device sent something to this upstream connection.
    #[inline]
    pub(super) fn feeds(&mut self, device: ConnectionKey, upstream: ConnectionKey) {
        if let Some(entry) = self.entry_mut(device) {
            entry.gate.feeds = Some(upstream);
        }
    }

    /// The transport took some bytes: lanes that waited for room move on, in turn, and devices are read again.
    pub(super) fn outbox_drained(&mut self, key: ConnectionKey) {
        let Some(entry) = self.entry(key) else { return };
        if entry.connection.outbox().len() >= limits::OUTBOX_LOW {
            return;
        }
        for _ in 0..entry.gate.blocked.len() {
            let Some(entry) = self.entry_mut(key) else { return };
            if entry.connection.outbox().len() >= limits::OUTBOX_LOW {
                return;
            }
            let Some((pair, way)) = entry.gate.blocked.pop_front() else {
                break;
            };
            if let Some(pair) = self.session_pairs.get_mut(index(pair)) {
                pair.lane_mut(way).is_queued = false;
            }
            self.pump(pair, way);
        }
        let Some(entry) = self.entry_mut(key) else { return };
        if entry.connection.outbox().len() < limits::OUTBOX_LOW && !entry.gate.readers.is_empty() {
            for reader in std::mem::take(&mut entry.gate.readers) {
                self.wake_reader(reader);
            }
        }
    }

    /// Whether the silence of a connection is our own doing.
    pub(super) fn is_paused(&self, key: ConnectionKey) -> bool {
        self.entry(key).is_some_and(|entry| entry.gate.is_paused)
    }

    /// A lane waits for room in its target's outbox.
    pub(super) fn queue_on_outbox(&mut self, pair: u32, way: Way) {
        let Some(session_pair) = self.session_pairs.get_mut(index(pair)) else {
            return;
        };
        let Some(target) = session_pair.session(way.target()) else {
            return;
        };
        if std::mem::replace(&mut session_pair.lane_mut(way).is_queued, true) {
            return;
        }
        if let Some(entry) = self.entry_mut(target.connection) {
            entry.gate.blocked.push_back((pair, way));
        }
    }

    /// Puts a frame behind what already waits in its lane.
    pub(super) fn park(&mut self, pair: u32, way: Way, parked: Parked, body: &[u8]) {
        let Some(session_pair) = self.session_pairs.get_mut(index(pair)) else {
            return;
        };
        let device = session_pair.device.map(|session| session.connection);
        let cost = parked.cost();
        let link = match parked.kind {
            ParkedKind::Disposition => None,
            ParkedKind::Transfer | ParkedKind::Flow | ParkedKind::Detach | ParkedKind::Dropped => {
                self.link_pairs.get_mut(index(parked.link))
            }
        };
        let places = link.map(|link| &mut link.parked);
        session_pair.lane_mut(way).park(parked, body, places);
        self.account(device, way, cost, 0);
        if way == Way::Down && self.held_total > limits::HELD_BYTES_TOTAL {
            self.evict_largest_holder();
        }
    }

    /// Bytes were added to a lane, or left it.
    pub(super) fn account(&mut self, device: Option<ConnectionKey>, way: Way, added: usize, removed: usize) {
        let gate = device
            .and_then(|key| self.connections.get_mut(key.index()))
            .map(|entry| &mut entry.gate);
        match way {
            Way::Up => {
                self.parked_total = (self.parked_total + added).saturating_sub(removed);
                let Some(gate) = gate else { return };
                gate.parked = (gate.parked + added).saturating_sub(removed);
                let may_resume = removed > 0 && gate.is_paused && gate.parked < limits::PARKED_BYTES / 2;
                if let Some(key) = device.filter(|_| may_resume) {
                    self.wake(key);
                }
                if removed > 0 && self.parked_total < limits::PARKED_BYTES_TOTAL / 2 {
                    for reader in std::mem::take(&mut self.parked_readers) {
                        self.wake_reader(reader);
                    }
                }
            }
            Way::Down => {
                self.held_total = (self.held_total + added).saturating_sub(removed);
                if let Some(gate) = gate {
                    gate.held = (gate.held + added).saturating_sub(removed);
                }
            }
        }
    }

    /// Devices hold too much together: the one that holds most does not read what it gave credit for.
    fn evict_largest_holder(&mut self) {
        let largest = self
            .connections
            .iter()
            .filter(|(_, entry)| entry.gate.held > 0)
            .max_by_key(|(_, entry)| entry.gate.held);
        let Some((index, entry)) = largest else { return };
        let (key, held) = (entry.key(index), entry.gate.held);
        self.fail_connection(key, &ConnectionError::NotReading(held));
    }

    /// What was read of this connection has been dealt with: neither it nor the one that it feeds may have too much to read.
    pub(super) fn check_outboxes(&mut self, key: ConnectionKey) {
        let fed = self.entry(key).and_then(|entry| entry.gate.feeds);
        self.check_outbox(key);
        if let Some(fed) = fed {
            self.check_outbox(fed);
        }
    }

    /// A peer that came to us, and whose own answers pile up beyond all reason, does not read them.
    pub(super) fn check_outbox(&mut self, key: ConnectionKey) {
        let Some(entry) = self.entry(key) else { return };
        let most = match entry.kind {
            Kind::Device(_) => limits::DEVICE_OUTBOX_MAX,
            Kind::Broker(..) => limits::BROKER_OUTBOX_MAX,
            Kind::Upstream(_) => return,
        };
        let waiting = entry.connection.outbox().len();
        if waiting > most && !entry.connection.is_over() {
            self.fail_connection(key, &ConnectionError::NotReading(waiting));
        }
    }

    /// The connection goes: whoever waits for it must not wait for ever.
    pub(super) fn release_gate(&mut self, key: ConnectionKey) {
        let Some(entry) = self.entry_mut(key) else { return };
        for reader in std::mem::take(&mut entry.gate.readers) {
            self.wake_reader(reader);
        }
    }

    /// Forgets a lane's parked transfers of one link, and what its sender said of them, but not its detach: the receiver
    /// wants no more, and the link is still to be detached properly.
    pub(super) fn drop_transfers(&mut self, pair: u32, way: Way, link: u32) {
        let Some(session_pair) = self.session_pairs.get_mut(index(pair)) else {
            return;
        };
        let Some(places) = self.link_pairs.get(index(link)).map(|link| &link.parked) else {
            return;
        };
        let lane = session_pair.lane_mut(way);
        let range = lane.range_of(places);
        for entry in lane.entries.range_mut(range) {
            if entry.link == link && matches!(entry.kind, ParkedKind::Transfer | ParkedKind::Flow) {
                entry.kind = ParkedKind::Dropped;
            }
        }
    }

    /// Forgets a lane's parked frames of one link, which is at these places, and free.
    pub(super) fn drop_parked_of(&mut self, pair: u32, way: Way, link: u32, places: &Range<u64>) {
        let Some(session_pair) = self.session_pairs.get_mut(index(pair)) else {
            return;
        };
        let lane = session_pair.lane_mut(way);
        let range = lane.range_of(places);
        // Entries and bodies keep their order; the pump skips what is marked.
        for entry in lane.entries.range_mut(range).filter(|entry| entry.link == link) {
            if entry.kind != ParkedKind::Disposition {
                entry.kind = ParkedKind::Dropped;
            }
        }
    }

    /// Forgets all parked frames of a lane.
    pub(super) fn drop_parked(&mut self, pair: u32, way: Way) {
        let Some(session_pair) = self.session_pairs.get_mut(index(pair)) else {
            return;
        };
        let device = session_pair
            .session(Leg::Device)
            .map(|session| session.connection);
        let lane = session_pair.lane_mut(way);
        let bytes = lane.cost();
        lane.gone += lane.entries.len() as u64;
        lane.entries.clear();
        lane.bodies.clear();
        lane.bodies.release_memory();
        self.account(device, way, 0, bytes);
    }
}
