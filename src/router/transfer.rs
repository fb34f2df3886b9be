//! The data path: transfers from one session of a pair to the other.
//!
//! A frame whose way is free is written straight into the target's outbox: no allocation, no lock, no decoding of
//! what is only carried. One whose way is not free is parked, and the pump sends it later.

use std::time::Instant;

use super::connection::index;
use super::drain::begins;
use super::pair::{Leg, Parked, ParkedKind, Way};
use super::{ConnectionKey, Router};
use crate::amqp::performative::{Performative, Transfer};
use crate::amqp::relay::Written;
use crate::amqp::serial::{Channel, Handle};
use crate::endpoint::limits;
use crate::endpoint::link::End;

/// How far a transfer got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// It is gone, or there is nobody who wants it.
    Done,
    /// Its payload is gone up to here; the rest waits.
    Blocked { offset: usize, for_outbox: bool },
}

impl Router {
    /// A transfer came in on a link of ours.
    #[inline]
    pub(super) fn on_transfer(
        &mut self,
        key: ConnectionKey,
        channel: Channel,
        handle: Handle,
        transfer: &Transfer<'_>,
        body: &[u8],
        now: Instant,
    ) {
        let Some(entry) = self.entry_mut(key) else { return };
        let owner = entry
            .connection
            .link_mut(channel, handle)
            .and_then(|link| link.owner);
        let Some(number) = owner else {
            // A link that ends here; or one that is detached on our side, and the peer does not know yet.
            entry.connection.refresh_window(channel, 0);
            self.on_local_transfer(key, channel, handle, transfer, body, now);
            return;
        };
        let Some(link) = self.link_pairs.get_mut(index(number)) else {
            return;
        };
        let (pair, way) = (link.session_pair, link.way());
        if let Some(size) = &mut link.message_size
            && size.is_exceeded_by(transfer)
        {
            self.refuse_message(number, now);
            if let Some(entry) = self.entry_mut(key) {
                entry.connection.refresh_window(channel, 0);
            }
            return;
        }
        let is_free = self
            .session_pairs
            .get(index(pair))
            .is_some_and(|pair| pair.lane(way).is_empty());
        let progress = match is_free {
            true => self.send_transfer(number, transfer, 0),
            false => Progress::Blocked {
                offset: 0,
                for_outbox: false,
            },
        };
        if let Progress::Blocked { offset, for_outbox } = progress {
            let parked = Parked {
                kind: ParkedKind::Transfer,
                link: number,
                length: body.len(),
                offset,
            };
            self.park(pair, way, parked, body);
            if for_outbox {
                self.queue_on_outbox(pair, way);
            }
        }
        let held = self
            .session_pairs
            .get(index(pair))
            .map_or(0, |pair| pair.lane(way).entries.len());
        if let Some(entry) = self.entry_mut(key) {
            entry
                .connection
                .refresh_window(channel, u32::try_from(held).unwrap_or(u32::MAX));
        }
    }

    /// Sends a transfer from `offset` of its payload on, as far as the target's window and outbox allow.
    #[inline]
    fn send_transfer(&mut self, number: u32, transfer: &Transfer<'_>, mut offset: usize) -> Progress {
        let is_draining = self.is_draining();
        let Some(link) = self.link_pairs.get_mut(index(number)) else {
            return Progress::Done;
        };
        let way = link.way();
        let Some(pair) = self.session_pairs.get_mut(index(link.session_pair)) else {
            return Progress::Done;
        };
        if is_draining && pair.device.is_some() && begins(link, transfer) {
            return Progress::Blocked {
                offset,
                for_outbox: false,
            };
        }
        if way == Way::Down && pair.device.is_none() {
            // The device has gone, and what it had sent is still on its way.
            return Progress::Done;
        }
        let blocked = |offset, for_outbox| Progress::Blocked { offset, for_outbox };
        let (Some(target), Some(handle)) = (pair.session(way.target()), link.handle(way.target())) else {
            return blocked(offset, false);
        };
        if !link.is_answered || !link.is_granted {
            return blocked(offset, false);
        }
        let Some(entry) = self.connections.get_mut(target.connection.index()) else {
            return Progress::Done;
        };
        let connection = &mut entry.connection;
        let first = offset;
        let progress = loop {
            let outbox_is_full = connection.outbox().len() >= limits::OUTBOX_HIGH;
            let Some(session) = connection.session_mut(target.channel) else {
                return Progress::Done;
            };
            if session
                .link(handle)
                .is_none_or(|link| link.local != End::Attached || link.remote == End::Detached)
            {
                return Progress::Done;
            }
            if outbox_is_full || !session.outgoing.is_open() {
                break blocked(offset, outbox_is_full);
            }
            let (source_id, target_id) = match (link.delivering, transfer.delivery_id) {
                (Some(ids), _) => ids,
                (None, Some(source)) => (source, session.next_delivery_id()),
                // A continuation of a delivery that was given up on this side.
                (None, None) => return Progress::Done,
            };
            // A continuation repeats the id only if its sender did.
            let shown = transfer.delivery_id.map(|_| target_id);
            let written = connection.send_transfer(target.channel, handle, shown, transfer, offset);
            if written == Written::HeadTooLarge {
                self.detach_oversized(number);
                return Progress::Done;
            }
            let is_settled = transfer.settled == Some(true) || transfer.aborted;
            if link.delivering.is_none() {
                if let Some(session) = connection.session_mut(target.channel) {
                    session.use_delivery_id();
                }
                pair.lane_mut(way).map.push(source_id, target_id, is_settled);
            } else if is_settled {
                pair.lane_mut(way).map.settle(source_id);
            }
            link.delivering = Some((source_id, target_id));
            match written {
                Written::UpTo(next) => offset = next,
                Written::All | Written::HeadTooLarge => break Progress::Done,
            }
        };
        if progress == Progress::Done && (!transfer.more || transfer.aborted) {
            link.delivering = None;
            link.deliveries += 1;
        }
        if progress != Progress::Done && offset == first {
            return progress;
        }
        let device = pair.device.map(|session| session.connection);
        self.wake(target.connection);
        if let (Way::Up, Some(device)) = (way, device) {
            self.feeds(device, target.connection);
        }
        progress
    }

    /// Moves what is parked in a lane, in order, until something has to wait again.
    pub(super) fn pump(&mut self, number: u32, way: Way) {
        let Some(pair) = self.session_pairs.get_mut(index(number)) else {
            return;
        };
        if pair.lane(way).is_empty() {
            return;
        }
        let device = pair.session(Leg::Device).map(|session| session.connection);
        let source = pair.session(way.target().other());
        let lane = pair.lane_mut(way);
        // Taken out, so that frames can be borrowed from it while the router changes; nothing parks meanwhile.
        let mut entries = std::mem::take(&mut lane.entries);
        let mut bodies = std::mem::take(&mut lane.bodies);
        let mut for_outbox = false;
        let mut moved = 0;
        let mut steps = 0u64;
        let mut gone = 0u64;
        let freed = self.freed_links;
        while let Some(entry) = entries.front_mut() {
            let body = bodies.as_slice().get(..entry.length).unwrap_or_default();
            let link = entry.link;
            match (entry.kind, Performative::parse(body)) {
                (ParkedKind::Transfer, Ok(Performative::Transfer(transfer))) => {
                    match self.send_transfer(link, &transfer, entry.offset) {
                        Progress::Done => {}
                        Progress::Blocked {
                            offset,
                            for_outbox: full,
                        } => {
                            steps += u64::from(offset != entry.offset);
                            entry.offset = offset;
                            for_outbox = full;
                            break;
                        }
                    }
                }
                (ParkedKind::Flow, Ok(Performative::Flow(flow))) => {
                    if let Some(flow) = flow.link {
                        self.forward_flow(link, way.target(), flow.tail);
                    }
                }
                (ParkedKind::Disposition, Ok(Performative::Disposition(disposition))) => {
                    self.forward_disposition(number, way.target().other(), &disposition);
                }
                (ParkedKind::Detach, Ok(Performative::Detach(detach))) => {
                    self.forward_detach(link, way.target().other(), &detach);
                }
                // Dropped; or a frame that was well formed when it was parked and still is.
                _ => {}
            }
            moved += entry.cost();
            steps += 1;
            gone += 1;
            bodies.consume(entry.length);
            entries.pop_front();
        }
        if self.freed_links != freed {
            // A number may name another link soon. Dispositions name none.
            for entry in entries
                .iter_mut()
                .filter(|entry| entry.kind != ParkedKind::Disposition)
            {
                if self
                    .link_pairs
                    .get(index(entry.link))
                    .is_none_or(|link| link.session_pair != number)
                {
                    entry.kind = ParkedKind::Dropped;
                }
            }
        }
        let is_empty = entries.is_empty();
        if is_empty {
            bodies.release_memory();
        }
        let held = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        if let Some(pair) = self.session_pairs.get_mut(index(number)) {
            let lane = pair.lane_mut(way);
            lane.entries = entries;
            lane.gone += gone;
            lane.bodies = bodies;
            lane.moved = lane.moved.wrapping_add(steps);
        } else {
            moved += entries.iter().map(Parked::cost).sum::<usize>();
        }
        self.account(device, way, 0, moved);
        if for_outbox {
            self.queue_on_outbox(number, way);
        }
        if let Some(source) = source
            && let Some(entry) = self.entry_mut(source.connection)
        {
            entry.connection.refresh_window(source.channel, held);
            self.wake(source.connection);
        }
        if is_empty && way == Way::Up {
            self.finish_if_device_gone(number);
        }
    }
}
