//! Flow, disposition and detach across a pair.

use super::attach::excerpt;
use super::connection::{Kind, index};
use super::delivery_map::Ids;
use super::pair::{Leg, Parked, ParkedKind};
use super::{ConnectionKey, Router};
use crate::amqp::condition::ErrorView;
use crate::amqp::fields::Tail;
use crate::amqp::performative::{Detach, Disposition, Flow, Role};
use crate::amqp::serial::{Channel, Handle};
use crate::endpoint::limits;
use crate::endpoint::link::End;

impl Router {
    /// Which side of its pairs a connection is.
    pub(super) fn leg(&self, key: ConnectionKey) -> Leg {
        match self.entry(key).map(|entry| entry.kind) {
            Some(Kind::Upstream(_) | Kind::Broker(..)) => Leg::Upstream,
            Some(Kind::Device(_)) | None => Leg::Device,
        }
    }

    /// The peer answered our begin, or began a session of its own.
    pub(super) fn on_begun(&mut self, key: ConnectionKey, channel: Channel) {
        self.window_opened(key, channel);
        self.wake(key);
    }

    /// More may be sent on a session: what is parked for it moves on.
    fn window_opened(&mut self, key: ConnectionKey, channel: Channel) {
        let way = self.leg(key).other().sends();
        let mut position = 0;
        while let Some(pair) = self
            .entry(key)
            .and_then(|entry| entry.connection.session(channel))
            .and_then(|session| session.owners.get(position).copied())
        {
            self.pump(pair, way);
            position += 1;
        }
        self.on_local_window(key, channel);
    }

    pub(super) fn on_flow(
        &mut self,
        key: ConnectionKey,
        channel: Channel,
        handle: Option<Handle>,
        flow: &Flow<'_>,
        body: &[u8],
    ) {
        self.window_opened(key, channel);
        let from = self.leg(key);
        let Some(entry) = self.entry_mut(key) else { return };
        let owner = handle.and_then(|handle| entry.connection.link_mut(channel, handle)?.owner);
        let (Some(number), Some(link_flow)) = (owner, flow.link) else {
            let is_local = match handle.filter(|_| owner.is_none()) {
                Some(handle) => self.on_local_flow(key, channel, handle, flow),
                None => false,
            };
            if flow.echo
                && !is_local
                && let Some(entry) = self.entry_mut(key)
            {
                entry.connection.send_flow(channel, None);
                self.wake(key);
            }
            return;
        };
        let Some(link) = self.link_pairs.get_mut(index(number)) else {
            return;
        };
        let (pair, way) = (link.session_pair, link.way());
        let is_of_receiver = from == way.target();
        let grants =
            is_of_receiver && (link_flow.drain || link_flow.link_credit.is_some_and(|credit| credit > 0));
        link.is_granted |= grants;
        // The sender's flow speaks of the transfers before it.
        let goes_now = is_of_receiver
            || self
                .session_pairs
                .get(index(pair))
                .is_some_and(|pair| pair.lane(way).is_empty());
        if !goes_now {
            let parked = Parked {
                kind: ParkedKind::Flow,
                link: number,
                length: body.len(),
                offset: 0,
            };
            return self.park(pair, way, parked, body);
        }
        if let (Leg::Device, Some(waiting)) = (from, &mut link.waiting) {
            if body.len() <= limits::WAITING_ATTACH_BYTES {
                waiting.flow = Some(body.to_vec());
            } else {
                self.refuse_too_much(number);
            }
            return;
        }
        self.forward_flow(number, from.other(), link_flow.tail);
        if grants {
            self.pump(pair, way);
        }
    }

    /// Sends a link's flow to one side of its pair, unless that has detached and wants nothing more of it.
    pub(super) fn forward_flow(&mut self, number: u32, to: Leg, tail: Tail<'_>) {
        let Some((connection, channel, handle)) = self.link_end(number, to) else {
            return;
        };
        let Some(entry) = self.entry_mut(connection) else {
            return;
        };
        if entry
            .connection
            .link_mut(channel, handle)
            .is_some_and(|link| link.local == End::Attached && link.remote != End::Detached)
        {
            entry.connection.send_flow(channel, Some((handle, tail)));
            self.wake(connection);
            self.check_outbox(connection);
        }
    }

    /// One side of a link pair: connection, channel and handle.
    pub(super) fn link_end(&self, number: u32, leg: Leg) -> Option<(ConnectionKey, Channel, Handle)> {
        let link = self.link_pairs.get(index(number))?;
        let session = self.session_pairs.get(index(link.session_pair))?.session(leg)?;
        Some((session.connection, session.channel, link.handle(leg)?))
    }

    pub(super) fn on_disposition(
        &mut self,
        key: ConnectionKey,
        channel: Channel,
        disposition: &Disposition<'_>,
        body: &[u8],
    ) {
        let from = self.leg(key);
        self.on_local_disposition(key, channel, disposition);
        let mut position = 0;
        while let Some(pair) = self
            .entry(key)
            .and_then(|entry| entry.connection.session(channel))
            .and_then(|session| session.owners.get(position).copied())
        {
            position += 1;
            let is_free = self
                .session_pairs
                .get(index(pair))
                .is_none_or(|pair| pair.lane(from.sends()).is_empty());
            if disposition.role == Role::Receiver || is_free {
                self.forward_disposition(pair, from, disposition);
            } else {
                // A sender's disposition may speak of a delivery that has not gone yet.
                let parked = Parked {
                    kind: ParkedKind::Disposition,
                    link: 0,
                    length: body.len(),
                    offset: 0,
                };
                self.park(pair, from.sends(), parked, body);
            }
        }
    }

    /// Sends a disposition on, one frame for each run of ids. Ids that the pair does not know are dropped.
    pub(super) fn forward_disposition(&mut self, pair: u32, from: Leg, disposition: &Disposition<'_>) {
        let Some(session_pair) = self.session_pairs.get_mut(index(pair)) else {
            return;
        };
        // A receiver speaks of deliveries that this router sent to it, a sender of those that it sent to the router.
        let (way, ids) = match disposition.role {
            Role::Receiver => (from.other().sends(), Ids::Target),
            Role::Sender => (from.sends(), Ids::Source),
        };
        let Some(target) = session_pair.session(from.other()) else {
            return;
        };
        let mut ranges = std::mem::take(&mut self.ranges);
        ranges.clear();
        let map = &mut session_pair.lane_mut(way).map;
        map.translate(
            ids,
            disposition.first,
            disposition.last,
            disposition.settled,
            &mut ranges,
        );
        if let Some(entry) = self.entry_mut(target.connection) {
            for &(first, last) in &ranges {
                let tail = disposition.tail;
                entry
                    .connection
                    .relay_disposition(target.channel, disposition.role, first, last, tail);
            }
        }
        if !ranges.is_empty() {
            self.wake(target.connection);
            self.check_outbox(target.connection);
        }
        self.ranges = ranges;
    }

    pub(super) fn on_detach(
        &mut self,
        key: ConnectionKey,
        channel: Channel,
        handle: Handle,
        detach: &Detach<'_>,
        body: &[u8],
    ) {
        let from = self.leg(key);
        let Some(entry) = self.entry_mut(key) else { return };
        let number = entry.connection.number;
        let Some(link) = entry.connection.link_mut(channel, handle) else {
            return;
        };
        let Some(owner) = link.owner else {
            if self.on_local_detach(key, channel, handle, detach) {
                return;
            }
            let Some(entry) = self.entry_mut(key) else { return };
            // We refused or detached it first: this is the answer.
            entry.connection.reap_link(channel, handle);
            if from == Leg::Upstream {
                self.drop_remnant(key, channel, handle);
            }
            return;
        };
        let Some(link) = self.link_pairs.get(index(owner)) else {
            return;
        };
        let (pair, way, is_granted) = (link.session_pair, link.way(), link.is_granted);
        let (link_number, deliveries) = (link.number, link.deliveries);
        let advice = match from {
            Leg::Device => None,
            Leg::Upstream => self.advice_on_detach(owner, detach.error),
        };
        log_detach(number, link_number, from, detach, deliveries, advice);
        if from == way.target() || (from == Leg::Device && !is_granted) {
            // The receiver wants no more; or the sender gives up before anybody has asked for anything.
            self.drop_transfers(pair, way, owner);
        }
        let must_wait = from != way.target()
            && self
                .session_pairs
                .get(index(pair))
                .is_some_and(|pair| !pair.lane(way).is_empty());
        if must_wait {
            let parked = Parked {
                kind: ParkedKind::Detach,
                link: owner,
                length: body.len(),
                offset: 0,
            };
            self.park(pair, way, parked, body);
            self.expect_answer(owner, from, detach);
            // What was dropped may have been what the rest waited for.
            self.pump(pair, way);
        } else {
            self.expect_answer(owner, from, detach);
            self.forward_detach(owner, from, detach);
            self.pump(pair, way);
        }
    }

    /// Sends a detach on, ends a delivery under way before it, and frees the pair when both sides are through.
    pub(super) fn forward_detach(&mut self, number: u32, from: Leg, detach: &Detach<'_>) {
        let Some(link) = self.link_pairs.get_mut(index(number)) else {
            return;
        };
        if link.waiting.is_some() {
            self.abandon_waiting(number);
            return;
        }
        let (pair, way) = (link.session_pair, link.way());
        let is_delivering = match link.delivering {
            Some((source, _)) if way.target() != from => {
                link.delivering = None;
                // Aborted, or to be resumed under another id: nobody will settle this one.
                if let Some(pair) = self.session_pairs.get_mut(index(pair)) {
                    pair.lane_mut(way).map.settle(source);
                }
                true
            }
            Some(_) | None => false,
        };
        if let Some((connection, channel, handle)) = self.link_end(number, from.other())
            && let Some(entry) = self.entry_mut(connection)
            && entry
                .connection
                .link_mut(channel, handle)
                .is_some_and(|link| link.local == End::Attached)
        {
            // A link that is not closed may be taken up again, and with it the delivery (AMQP 1.0 part 2, §2.6.13).
            if is_delivering && detach.closed {
                entry.connection.abort_delivery(channel, handle);
            }
            entry.connection.relay_detach(channel, handle, detach.tail);
            self.wake(connection);
            if from == Leg::Device {
                self.release_name(number);
            }
        }
        if let Some((connection, channel, handle)) = self.link_end(number, from)
            && let Some(entry) = self.entry_mut(connection)
        {
            entry.connection.reap_link(channel, handle);
        }
        self.free_if_over(number);
    }

    /// Frees a link pair when neither side has its link any more.
    pub(super) fn free_if_over(&mut self, number: u32) {
        let is_alive = |router: &Self, leg| {
            router
                .link_end(number, leg)
                .is_some_and(|(connection, channel, handle)| {
                    let session = router
                        .entry(connection)
                        .and_then(|entry| entry.connection.session(channel));
                    session
                        .and_then(|session| session.link(handle))
                        .is_some_and(|link| link.owner == Some(number))
                })
        };
        if !is_alive(self, Leg::Device) && !is_alive(self, Leg::Upstream) {
            self.free_link_pair(number);
        }
    }

    /// Forgets a link pair; its links, if they are still there, belong to nobody.
    pub(super) fn free_link_pair(&mut self, number: u32) {
        if self
            .link_pairs
            .get(index(number))
            .is_some_and(|link| link.waiting.is_some())
        {
            // Its number will be another link's.
            self.forget_waiting(number);
        }
        for leg in [Leg::Device, Leg::Upstream] {
            if let Some((connection, channel, handle)) = self.link_end(number, leg)
                && let Some(entry) = self.entry_mut(connection)
                && let Some(link) = entry.connection.link_mut(channel, handle)
                && link.owner == Some(number)
            {
                link.owner = None;
            }
        }
        self.release_name(number);
        let Some(link) = self.link_pairs.try_remove(index(number)) else {
            return;
        };
        self.own_nodes.forget(number, &link);
        self.freed_links = self.freed_links.wrapping_add(1);
        self.drop_parked_of(link.session_pair, link.way(), number, &link.parked);
        if let Some(pair) = self.session_pairs.get_mut(index(link.session_pair)) {
            pair.links.retain(|&other| other != number);
            let way = link.way();
            let has_others = |&other: &u32| self.link_pairs.get(index(other)).is_some_and(|l| l.way() == way);
            if !pair.links.iter().any(has_others) && pair.lane(way).is_empty() {
                // All deliveries were on links that are no more: nobody has anything to say about them.
                pair.lane_mut(way).map.forget();
            }
        }
    }

    /// The link's name may be used again on the upstream connection.
    pub(super) fn release_name(&mut self, number: u32) {
        let Some(link) = self.link_pairs.get_mut(index(number)) else {
            return;
        };
        let Some(name) = link.upstream_name.take() else {
            return;
        };
        let role = link.role;
        let Some(pair) = self.session_pairs.get(index(link.session_pair)) else {
            return;
        };
        if let Some(connector) = self.connectors.get_mut(&pair.connector) {
            connector.names.release(role, &name);
        }
    }
}

/// With advice it is worth a warning.
fn log_detach(
    connection: u64,
    link: u64,
    from: Leg,
    detach: &Detach<'_>,
    deliveries: u64,
    advice: Option<String>,
) {
    let error = detach.error.and_then(|error| ErrorView::parse(error).ok());
    let error = error.map(|error| format!("{} {}", error.condition, error.description.unwrap_or_default()));
    let (side, error) = match from {
        Leg::Device => ("by the device", error.as_deref().map(excerpt)),
        Leg::Upstream => ("by the hub", error),
    };
    match (error, advice) {
        (Some(error), Some(advice)) => tracing::warn!(
            target: "ROUTER_CORE",
            "[C{connection}][L{link}] Link detached {side}: del={deliveries} {error}. {advice}"
        ),
        (Some(error), None) => tracing::info!(
            target: "ROUTER_CORE",
            "[C{connection}][L{link}] Link detached {side}: del={deliveries} {error}"
        ),
        (None, _) => {
            tracing::info!(target: "ROUTER_CORE", "[C{connection}][L{link}] Link detached {side}: del={deliveries}");
        }
    }
}
