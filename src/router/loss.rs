//! Ends of things: sessions, devices and hubs that go, politely or not. Whatever goes, the other side is told, what
//! was half-sent is aborted unless it may be resumed, and everything is freed.

use std::collections::HashSet;

use super::attach::excerpt;
use super::connection::{Kind, index};
use super::delivery_map::Ids;
use super::drain::STOPPING;
use super::pair::{Leg, ParkedKind, Way};
use super::settings::HubLoss;
use super::{ConnectionKey, Router};
use crate::amqp::condition::{self, AmqpError, ErrorView};
use crate::amqp::delivery::{write_modified_failed, write_released};
use crate::amqp::performative::{Performative, Role};
use crate::endpoint::limits;
use crate::endpoint::link::End;

/// How a session or connection went.
#[derive(Clone, Debug)]
pub(super) enum Farewell {
    /// With an end or a close: what it had sent before still goes on.
    Graceful,
    /// Torn off, or in error; why.
    Lost(Option<String>),
}

/// How much of a hub is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    Session,
    /// All of it: devices whose listener wants that are closed.
    Connection,
}

impl Router {
    /// All sessions of a connection are over, and its place is free.
    pub(super) fn release_sessions(&mut self, key: ConnectionKey, farewell: Farewell) {
        let Some(entry) = self.entry_mut(key) else { return };
        let owners = entry.connection.take_owners();
        entry.cbs = None;
        if let Some(id) = entry.kind.connector() {
            self.requeue_requests(id, key);
        }
        self.give_up_place(key);
        match self.leg(key) {
            Leg::Device => self.sessions_gone(key, &owners, &farewell),
            Leg::Upstream => self.hub_gone(key, &owners, &farewell),
        }
    }

    /// The peer ended a session.
    pub(super) fn on_ended(&mut self, key: ConnectionKey, owners: &[u32], error: Option<&[u8]>) {
        match self.leg(key) {
            Leg::Device => self.sessions_gone(key, owners, &Farewell::Graceful),
            Leg::Upstream => {
                for &pair in owners {
                    self.upstream_ended(pair, error);
                }
            }
        }
        self.wake(key);
    }

    /// Sessions of a connection are over, by their pairs.
    pub(super) fn sessions_gone(&mut self, key: ConnectionKey, owners: &[u32], farewell: &Farewell) {
        match self.leg(key) {
            Leg::Device => {
                for &pair in owners {
                    self.device_gone(pair, farewell);
                }
            }
            Leg::Upstream => {
                let error = self.lost_error(&self.what_is_lost(key, farewell));
                for &pair in owners {
                    self.upstream_gone(pair, &error, Extent::Session);
                }
            }
        }
    }

    /// The connection to a hub is over, and so are these pairs.
    fn hub_gone(&mut self, key: ConnectionKey, owners: &[u32], farewell: &Farewell) {
        let what = self.what_is_lost(key, farewell);
        let error = self.lost_error(&what);
        for &pair in owners {
            self.upstream_gone(pair, &error, Extent::Connection);
        }
        let id = self.entry(key).and_then(|entry| entry.kind.connector());
        let Some(connector) = id
            .and_then(|id| self.connectors.get(&id))
            .filter(|it| it.uses(key))
        else {
            return;
        };
        let mut devices: Vec<ConnectionKey> = connector.started.iter().copied().collect();
        devices.sort_unstable_by_key(|device| device.index());
        for device in devices {
            self.hub_lost_for(device, &what);
        }
    }

    /// The connector of a hub, and why it went: in short, for every link is told.
    fn what_is_lost(&self, key: ConnectionKey, farewell: &Farewell) -> String {
        let name = self
            .entry(key)
            .and_then(|entry| self.connectors.get(&entry.kind.connector()?))
            .map(|connector| connector.settings.name.as_str())
            .unwrap_or_default();
        let reason = match farewell {
            Farewell::Lost(Some(reason)) => reason.as_str(),
            Farewell::Lost(None) | Farewell::Graceful => "closed",
        };
        format!("Connection {name}: {}", excerpt(reason))
    }

    /// A hub that this device has used is lost, `what` says which and why: closes the device's connection, if its
    /// listener is to do what Azure does (IoT Hub: `amqp:connection:forced`, after which SDKs connect again).
    pub(super) fn hub_lost_for(&mut self, device: ConnectionKey, what: &str) {
        if !self.closes_with_hub(device) {
            return;
        }
        let error = AmqpError::new(
            condition::CONNECTION_FORCED,
            format!("Connectivity to the hub was lost. {what}"),
        );
        let now = self.now;
        let Some(entry) = self.entry_mut(device).filter(|entry| entry.connection.is_open()) else {
            return;
        };
        tracing::info!(
            target: "SERVER",
            "[C{}] Closing the connection from {}: {}",
            entry.connection.number,
            entry.transport.peer,
            error.description
        );
        entry.connection.close(Some(&error), now);
        self.release_sessions(device, Farewell::Lost(None));
        self.wake(device);
        self.arm(device);
    }

    fn closes_with_hub(&self, device: ConnectionKey) -> bool {
        self.entry(device).is_some_and(|entry| match entry.kind {
            Kind::Device(listener) => self
                .settings
                .listeners
                .get(listener.0)
                .is_some_and(|listener| listener.on_hub_lost == HubLoss::Close),
            Kind::Upstream(_) | Kind::Broker(..) => false,
        })
    }

    // ---- the device goes -----------------------------------------------------------------------------------------

    fn device_gone(&mut self, number: u32, farewell: &Farewell) {
        let Some(pair) = self.session_pairs.get_mut(index(number)) else {
            return;
        };
        for link in pair.links.clone() {
            if self
                .link_pairs
                .get(index(link))
                .is_some_and(|link| link.waiting.is_some())
            {
                self.free_link_pair(link);
            }
        }
        self.drop_parked(number, Way::Down);
        self.fail_unsettled(number, Way::Down);
        let Some(pair) = self.session_pairs.get(index(number)) else {
            return;
        };
        let parked = pair.up.cost();
        let device = pair.device.map(|session| session.connection);
        match farewell {
            // What it sent before it said goodbye still goes to the hub; the pump finishes the pair behind it. There is
            // nobody left who could be held back for it, so this ends when too much waits in all.
            Farewell::Graceful
                if !pair.up.is_empty()
                    && pair.upstream.is_some()
                    && self.parked_total < limits::PARKED_BYTES_TOTAL =>
            {
                self.account(device, Way::Up, 0, parked);
                if let Some(pair) = self.session_pairs.get_mut(index(number)) {
                    pair.device = None;
                }
                self.account(None, Way::Up, parked, 0);
                self.expect_end_of_leftover(number);
                self.pump(number, Way::Up);
            }
            Farewell::Graceful | Farewell::Lost(_) => {
                self.drop_parked(number, Way::Up);
                if let Some(pair) = self.session_pairs.get_mut(index(number)) {
                    pair.device = None;
                }
                let reason = match farewell {
                    Farewell::Graceful => None,
                    Farewell::Lost(_) => Some(AmqpError::new(
                        condition::DETACH_FORCED,
                        "the device's connection or session was lost",
                    )),
                };
                self.finish(number, reason.as_ref());
            }
        }
    }

    /// Nothing moves of what a device that has said goodbye left behind.
    pub(super) fn give_up_leftover(&mut self, number: u32) {
        self.drop_parked(number, Way::Up);
        let error = AmqpError::new(
            condition::DETACH_FORCED,
            "the device has gone, and the rest of what it had sent was not taken",
        );
        self.finish(number, Some(&error));
    }

    /// The last parked frame of a device that has said goodbye is gone.
    pub(super) fn finish_if_device_gone(&mut self, number: u32) {
        if self
            .session_pairs
            .get(index(number))
            .is_some_and(|pair| pair.device.is_none())
        {
            self.finish(number, None);
        }
    }

    /// Detaches a device's links at the hub, ends the session there, and frees the pair.
    fn finish(&mut self, number: u32, error: Option<&AmqpError>) {
        let Some(pair) = self.session_pairs.get(index(number)) else {
            return;
        };
        let upstream = pair.upstream;
        for link in pair.links.clone() {
            self.detach_from_hub(link, error);
            self.free_link_pair(link);
        }
        if let Some(session) = upstream {
            if let Some(entry) = self.entry_mut(session.connection) {
                entry.connection.end_session(session.channel, None);
            }
            self.wake(session.connection);
        }
        self.drop_lanes(number);
        self.free_session_pair(number);
    }

    /// Detaches a link at the hub.
    pub(super) fn detach_from_hub(&mut self, number: u32, error: Option<&AmqpError>) {
        let (Some(pair), Some((connection, channel, handle))) = (
            self.link_pairs.get(index(number)),
            self.link_end(number, Leg::Upstream),
        ) else {
            return;
        };
        let closed = !pair.survives_disconnect;
        let is_sending = pair.way() == Way::Up && pair.delivering.is_some();
        if let Some(entry) = self.entry_mut(connection)
            && entry
                .connection
                .link_mut(channel, handle)
                .is_some_and(|link| link.local == End::Attached)
        {
            if is_sending && closed {
                entry.connection.abort_delivery(channel, handle);
            }
            entry.connection.detach_link(channel, handle, closed, error);
            self.wake(connection);
        }
    }

    /// Detaches all links of a device, and tells it what became of its deliveries, because we go.
    pub(super) fn detach_links(&mut self, key: ConnectionKey) {
        if self.leg(key) == Leg::Upstream {
            return;
        }
        let Some(entry) = self.entry(key) else { return };
        let error = AmqpError::new(condition::DETACH_FORCED, STOPPING);
        let owners: Vec<u32> = entry.connection.owners().collect();
        self.close_all_desks(key, &error);
        for number in owners {
            self.settle_in_doubt(number);
            let Some(pair) = self.session_pairs.get(index(number)) else {
                continue;
            };
            let Some(device) = pair.device else { continue };
            for link in pair.links.clone() {
                self.detach_from_device(device.connection, device.channel, link, &error);
            }
        }
    }

    // ---- the hub goes --------------------------------------------------------------------------------------------

    /// The hub ended one session: so does the device's, if it has no other; else only this pair's links go.
    fn upstream_ended(&mut self, number: u32, error: Option<&[u8]>) {
        let Some(pair) = self.session_pairs.get(index(number)) else {
            return;
        };
        let device = pair.device;
        let is_only = device
            .and_then(|device| self.entry(device.connection)?.connection.session(device.channel))
            .is_some_and(|session| session.owners == [number]);
        let text = error.and_then(|error| ErrorView::parse(error).ok()).map_or_else(
            || "The hub ended the session".to_owned(),
            |error| {
                let description = error.description.unwrap_or_default();
                excerpt(&format!(
                    "The hub ended the session: {} {description}",
                    error.condition
                ))
            },
        );
        let has_links = !pair.links.is_empty();
        let lost = self.lost_error(&text);
        match device.filter(|_| is_only && has_links) {
            Some(device) => {
                self.settle_in_doubt(number);
                let links = self
                    .session_pairs
                    .get(index(number))
                    .map(|pair| pair.links.clone())
                    .unwrap_or_default();
                for link in links {
                    self.free_link_pair(link);
                }
                self.drop_lanes(number);
                self.free_session_pair(number);
                if let Some(entry) = self.entry_mut(device.connection) {
                    entry.connection.end_session(device.channel, error);
                }
                // `$cbs` links that it had on the same session.
                self.on_local_session_ended(device.connection, device.channel, None, self.now);
                self.wake(device.connection);
            }
            None => self.upstream_gone(number, &lost, Extent::Session),
        }
    }

    /// The hub's side of a pair is gone: the device's links are detached, its session and connection stay, unless the
    /// connection is to be closed with that of the hub.
    fn upstream_gone(&mut self, number: u32, error: &AmqpError, extent: Extent) {
        self.settle_in_doubt(number);
        let Some(pair) = self.session_pairs.get(index(number)) else {
            return;
        };
        let device = pair.device;
        let detached = device.filter(|device| match extent {
            Extent::Session => true,
            Extent::Connection => !self.closes_with_hub(device.connection),
        });
        for link in pair.links.clone() {
            if let Some(device) = detached {
                self.detach_from_device(device.connection, device.channel, link, error);
            }
            self.free_link_pair(link);
        }
        self.drop_lanes(number);
        if let Some(device) = device
            && let Some(entry) = self.entry_mut(device.connection)
            && let Some(session) = entry.connection.session_mut(device.channel)
        {
            session.owners.retain(|&other| other != number);
            entry.connection.refresh_window(device.channel, 0);
            self.wake(device.connection);
        }
        self.free_session_pair(number);
    }

    pub(super) fn detach_from_device(
        &mut self,
        connection: ConnectionKey,
        channel: crate::amqp::serial::Channel,
        number: u32,
        error: &AmqpError,
    ) {
        let Some(pair) = self.link_pairs.get(index(number)) else {
            return;
        };
        let (Some(handle), link_number, closed) = (pair.device, pair.number, !pair.survives_disconnect)
        else {
            return;
        };
        let is_sending = pair.way() == Way::Down && pair.delivering.is_some();
        let Some(entry) = self.entry_mut(connection) else {
            return;
        };
        let connection_number = entry.connection.number;
        let Some(link) = entry.connection.link_mut(channel, handle) else {
            return;
        };
        match link.local {
            End::Idle => entry
                .connection
                .refuse_attach(channel, handle, None, None, Some(error)),
            End::Attached => {
                if is_sending && closed {
                    entry.connection.abort_delivery(channel, handle);
                }
                entry.connection.detach_link(channel, handle, closed, Some(error));
            }
            End::Detached => return,
        }
        tracing::info!(
            target: "ROUTER_CORE",
            "[C{connection_number}][L{link_number}] Link lost: {} {}",
            error.condition,
            error.description
        );
    }

    /// A link whose transfers cannot be expressed in the other side's frames.
    pub(super) fn detach_oversized(&mut self, number: u32) {
        let error = AmqpError::new(
            condition::FRAME_SIZE_TOO_SMALL,
            "the other peer's max-frame-size cannot hold the head of a transfer on this link",
        );
        for leg in [Leg::Device, Leg::Upstream] {
            if let Some((connection, channel, handle)) = self.link_end(number, leg)
                && let Some(entry) = self.entry_mut(connection)
                && entry
                    .connection
                    .link_mut(channel, handle)
                    .is_some_and(|link| link.local == End::Attached)
            {
                entry.connection.detach_link(channel, handle, true, Some(&error));
                self.wake(connection);
            }
        }
        self.free_link_pair(number);
    }

    // ---- deliveries in doubt -------------------------------------------------------------------------------------

    /// Whether the two ends will find out between them what became of one direction's deliveries: a link that is to
    /// outlive its connection is resumed with the unsettled map of either end (AMQP 1.0 part 2, §2.6.13). Deliveries are
    /// known by their session, not by their link, so this holds only if it holds for every link of that direction.
    fn is_recoverable(&self, number: u32, way: Way) -> bool {
        let Some(pair) = self.session_pairs.get(index(number)) else {
            return false;
        };
        let mut links = pair
            .links
            .iter()
            .filter_map(|&link| self.link_pairs.get(index(link)))
            .filter(|link| link.way() == way)
            .peekable();
        links.peek().is_some() && links.all(|link| link.survives_disconnect)
    }

    /// Tells the device what became of the deliveries that the hub has not settled: those that went out are modified
    /// with delivery-failed, for they may have been processed; those still parked are released, for they were not. A
    /// device that will resume its links asks the hub itself.
    fn settle_in_doubt(&mut self, number: u32) {
        if self.is_recoverable(number, Way::Up) {
            return;
        }
        self.fail_unsettled(number, Way::Up);
        let Some(pair) = self.session_pairs.get(index(number)) else {
            return;
        };
        let Some(device) = pair.device else { return };
        let mut parked = Vec::new();
        let is_delivering = |&link: &u32| {
            let link = self.link_pairs.get(index(link));
            link.is_some_and(|link| link.delivering.is_some())
        };
        // Links in the middle of a delivery: their next frame begins no other. One that has begun to go out is in doubt,
        // not unsent.
        let mut unfinished: HashSet<u32> = pair.links.iter().copied().filter(is_delivering).collect();
        let mut bodies = pair.up.bodies.as_slice();
        for entry in &pair.up.entries {
            let (body, rest) = bodies.split_at_checked(entry.length).unwrap_or((bodies, &[]));
            bodies = rest;
            if entry.kind == ParkedKind::Transfer
                && let Ok(Performative::Transfer(transfer)) = Performative::parse(body)
            {
                let is_first = match transfer.more && !transfer.aborted {
                    true => unfinished.insert(entry.link),
                    false => !unfinished.remove(&entry.link),
                };
                if is_first
                    && let Some(id) = transfer.delivery_id
                    && transfer.settled != Some(true)
                {
                    parked.push(id);
                }
            }
        }
        if let Some(entry) = self.entry_mut(device.connection) {
            for id in parked {
                entry
                    .connection
                    .settle(device.channel, Role::Receiver, id, id, write_released);
            }
        }
    }

    /// Settles the unsettled deliveries of one direction towards their sender as modified with delivery-failed.
    fn fail_unsettled(&mut self, number: u32, way: Way) {
        if self.is_recoverable(number, way) {
            return;
        }
        let Some(pair) = self.session_pairs.get(index(number)) else {
            return;
        };
        let Some(source) = pair.session(way.target().other()) else {
            return;
        };
        let mut ranges = Vec::new();
        pair.lane(way).map.unsettled(Ids::Source, &mut ranges);
        if let Some(entry) = self.entry_mut(source.connection) {
            for (first, last) in ranges {
                entry
                    .connection
                    .settle(source.channel, Role::Receiver, first, last, write_modified_failed);
            }
        }
        self.wake(source.connection);
    }

    fn drop_lanes(&mut self, number: u32) {
        self.drop_parked(number, Way::Up);
        self.drop_parked(number, Way::Down);
    }
}
