//! Detaches that are not answered. A link is detached end to end: whoever detaches is answered when the other side has
//! answered. A side that never does so must not hold the other up for ever.
//!
//! ```text
//!   detach --(parked behind what was sent before it)--> passed on --> answered: nothing is left of it
//!                 | nothing moves for DETACH_TIMEOUT        | DETACH_TIMEOUT
//!                 v                                         v
//!           what it waits for is dropped            answered by us, with an error
//! ```
//!
//! A device that has ended its session or connection is in the same place: what it had sent still goes to the hub, and its
//! detaches behind that, unless nothing moves for as long.
//!
//! What the silent side still holds of the link stays known to its session, so that an answer or a transfer that comes
//! late is recognised and swallowed, and so that the handle, and at a hub the name, are not used again before.

use std::collections::VecDeque;
use std::time::Instant;

use super::connection::index;
use super::pair::{Leg, Parked, ParkedKind};
use super::timer::Owner;
use super::{ConnectionKey, Router};
use crate::amqp::condition::{self, AmqpError};
use crate::amqp::performative::{Detach, Performative, Role};
use crate::amqp::serial::{Channel, Handle};
use crate::endpoint::limits;
use crate::endpoint::link::End;

/// A link pair of which one side has detached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Closing {
    from: Leg,
    /// That side's `closed`, which its answer repeats.
    closed: bool,
    stage: Stage,
}

/// How far the detach was when it was last looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// In its lane, from which so many frames had gone.
    Parked { moved: u64 },
    /// With the other side.
    PassedOn,
}

/// What waits, the one that is due first in front: they all wait equally long.
#[derive(Debug, Default)]
pub(super) struct Detaches {
    queue: VecDeque<(Instant, Waits)>,
    /// How many farewells there have been.
    farewells: u64,
    /// The deadline that is in the timers.
    pub(super) scheduled: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
enum Waits {
    /// A link pair, and its number in log lines, which no other pair ever has.
    Link { pair: u32, number: u64 },
    /// A session pair whose device has gone, and which farewell it was.
    Session { pair: u32, farewell: u64 },
}

/// What a device that has gone left behind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leftover {
    farewell: u64,
    /// How many frames of its lane had gone when it was last looked at.
    moved: u64,
}

/// A link that a hub has not let go.
#[derive(Debug)]
pub(super) struct Remnant {
    handle: Handle,
    role: Role,
    /// Its name at the hub, unless a successor has it already.
    name: Option<Box<str>>,
}

impl Router {
    /// One side of a link has detached: its answer has a deadline from now on.
    pub(super) fn expect_answer(&mut self, number: u32, from: Leg, detach: &Detach<'_>) {
        let stage = self.stage_of(number);
        let Some(link) = self.link_pairs.get_mut(index(number)) else {
            return;
        };
        if link.closing.is_some() {
            return;
        }
        link.closing = Some(Closing {
            from,
            closed: detach.closed,
            stage,
        });
        let waits = Waits::Link {
            pair: number,
            number: link.number,
        };
        self.look_again(waits, self.now);
        self.arm_detaches();
    }

    /// A device has gone and has left something to be sent.
    pub(super) fn expect_end_of_leftover(&mut self, number: u32) {
        let Some(pair) = self.session_pairs.get_mut(index(number)) else {
            return;
        };
        self.detaches.farewells += 1;
        let farewell = self.detaches.farewells;
        pair.leftover = Some(Leftover {
            farewell,
            moved: pair.up.moved,
        });
        let waits = Waits::Session {
            pair: number,
            farewell,
        };
        self.look_again(waits, self.now);
        self.arm_detaches();
    }

    fn look_again(&mut self, waits: Waits, now: Instant) {
        // Most are answered long before: what is left of those may not pile up.
        if self.detaches.queue.len() > 2 * (self.link_pairs.len() + self.session_pairs.len()) + 64 {
            let mut queue = std::mem::take(&mut self.detaches.queue);
            queue.retain(|&(_, waits)| self.is_there(waits));
            self.detaches.queue = queue;
        }
        let due = now + limits::DETACH_TIMEOUT;
        self.detaches.queue.push_back((due, waits));
    }

    fn is_there(&self, waits: Waits) -> bool {
        match waits {
            Waits::Link { pair, number } => {
                let link = self.link_pairs.get(index(pair));
                link.is_some_and(|link| link.number == number)
            }
            Waits::Session { pair, farewell } => {
                let leftover = self.session_pairs.get(index(pair)).and_then(|pair| pair.leftover);
                leftover.is_some_and(|leftover| leftover.farewell == farewell)
            }
        }
    }

    pub(super) fn arm_detaches(&mut self) {
        let next = self.detaches.queue.front().map(|&(due, _)| due);
        self.timers
            .arm(Owner::Detaches, &mut self.detaches.scheduled, next);
    }

    /// Looks at what has waited long enough.
    pub(super) fn on_detaches_due(&mut self, now: Instant) {
        while let Some(&(due, waits)) = self.detaches.queue.front()
            && due <= now
        {
            self.detaches.queue.pop_front();
            if !self.is_there(waits) {
                continue;
            }
            let waits_on = match waits {
                Waits::Link { pair, .. } => self.check_detach(pair),
                Waits::Session { pair, .. } => self.check_leftover(pair),
            };
            if waits_on {
                self.look_again(waits, now);
            }
        }
    }

    /// Whether to go on waiting for the answer to a detach.
    fn check_detach(&mut self, number: u32) -> bool {
        let stage = self.stage_of(number);
        let link = self.link_pairs.get_mut(index(number));
        let Some(closing) = link.and_then(|link| link.closing.as_mut()) else {
            return false;
        };
        let has_moved = std::mem::replace(&mut closing.stage, stage) != stage;
        match stage {
            Stage::Parked { .. } | Stage::PassedOn if has_moved => true,
            Stage::Parked { .. } => {
                self.pass_on_parked_detach(number);
                true
            }
            Stage::PassedOn => {
                self.give_up_waiting(number);
                false
            }
        }
    }

    /// Whether to go on waiting until a hub has taken what a device left behind.
    fn check_leftover(&mut self, number: u32) -> bool {
        let Some(pair) = self.session_pairs.get_mut(index(number)) else {
            return false;
        };
        let moved = pair.up.moved;
        match &mut pair.leftover {
            Some(leftover) if leftover.moved != moved => {
                leftover.moved = moved;
                true
            }
            Some(_) => {
                self.give_up_leftover(number);
                false
            }
            None => false,
        }
    }

    fn stage_of(&self, number: u32) -> Stage {
        let lane = self.link_pairs.get(index(number)).and_then(|link| {
            let pair = self.session_pairs.get(index(link.session_pair))?;
            let lane = pair.lane(link.way());
            // Nothing of a link comes behind its detach.
            let last = lane.entries.range(lane.range_of(&link.parked)).next_back()?;
            (last.link == number && last.kind == ParkedKind::Detach).then_some(lane)
        });
        lane.map_or(Stage::PassedOn, |lane| Stage::Parked { moved: lane.moved })
    }

    /// Nothing of what a parked detach waits behind has moved: it goes on without.
    fn pass_on_parked_detach(&mut self, number: u32) {
        let Some(link) = self.link_pairs.get(index(number)) else {
            return;
        };
        let (pair, way, places) = (link.session_pair, link.way(), link.parked.clone());
        self.drop_transfers(pair, way, number);
        let Some(lane) = self
            .session_pairs
            .get_mut(index(pair))
            .map(|pair| pair.lane_mut(way))
        else {
            return;
        };
        let place = lane.range_of(&places).end.saturating_sub(1);
        let start = lane
            .entries
            .range(..place)
            .map(|entry| entry.length)
            .sum::<usize>();
        let is_detach = |entry: &&mut Parked| entry.link == number && entry.kind == ParkedKind::Detach;
        let body = lane.entries.get_mut(place).filter(is_detach).and_then(|entry| {
            entry.kind = ParkedKind::Dropped;
            lane.bodies
                .as_slice()
                .get(start..start + entry.length)
                .map(<[u8]>::to_vec)
        });
        if let Some(body) = body
            && let Ok(Performative::Detach(detach)) = Performative::parse(&body)
        {
            self.forward_detach(number, way.target().other(), &detach);
        }
        if let Some(link) = self.link_pairs.get_mut(index(number))
            && let Some(closing) = &mut link.closing
        {
            closing.stage = Stage::PassedOn;
        }
        self.pump(pair, way);
    }

    /// Answers a detach in place of the side that does not, and forgets the pair.
    fn give_up_waiting(&mut self, number: u32) {
        let Some(link) = self.link_pairs.get(index(number)) else {
            return;
        };
        let Some(closing) = link.closing else { return };
        let (id, role) = (link.number, link.role);
        let seconds = limits::DETACH_TIMEOUT.as_secs();
        let error = match closing.from {
            Leg::Device => self.lost_error(&format!("The hub did not answer the detach within {seconds} s")),
            Leg::Upstream => AmqpError::new(
                condition::DETACH_FORCED,
                format!("the device did not answer the detach within {seconds} s"),
            ),
        };
        if let Some((connection, channel, handle)) = self.link_end(number, closing.from)
            && let Some(entry) = self.entry_mut(connection)
        {
            tracing::info!(
                target: "ROUTER_CORE",
                "[C{}][L{id}] Link detached without an answer: {}",
                entry.connection.number,
                error.description
            );
            match entry.connection.link_mut(channel, handle).map(|link| link.local) {
                Some(End::Idle) => {
                    entry
                        .connection
                        .refuse_attach(channel, handle, None, None, Some(&error));
                }
                Some(End::Attached) => {
                    entry
                        .connection
                        .detach_link(channel, handle, closing.closed, Some(&error));
                }
                Some(End::Detached) | None => {}
            }
            self.wake(connection);
            self.check_outbox(connection);
        }
        if closing.from == Leg::Device {
            self.keep_remnant(number, role);
        }
        self.free_link_pair(number);
    }

    /// The hub still has the link: its name is not for another one.
    fn keep_remnant(&mut self, number: u32, role: Role) {
        let Some((connection, channel, handle)) = self.link_end(number, Leg::Upstream) else {
            return;
        };
        let Some(name) = self
            .entry(connection)
            .and_then(|entry| entry.connection.session(channel)?.link(handle))
            .map(|link| link.name.clone())
        else {
            return;
        };
        let Some(pair) = self
            .link_pairs
            .get(index(number))
            .and_then(|link| self.session_pairs.get_mut(index(link.session_pair)))
        else {
            return;
        };
        let is_ours = self
            .connectors
            .get_mut(&pair.connector)
            .is_some_and(|connector| connector.names.insert(role, &name));
        pair.remnants.push(Remnant {
            handle,
            role,
            name: is_ours.then_some(name),
        });
    }

    /// A hub has answered a detach after all.
    pub(super) fn drop_remnant(&mut self, hub: ConnectionKey, channel: Channel, handle: Handle) {
        let Some(pair) = self
            .entry(hub)
            .and_then(|entry| entry.connection.session(channel)?.owners.first().copied())
            .and_then(|pair| self.session_pairs.get_mut(index(pair)))
        else {
            return;
        };
        let Some(position) = pair.remnants.iter().position(|remnant| remnant.handle == handle) else {
            return;
        };
        let remnant = pair.remnants.swap_remove(position);
        let connector = pair.connector;
        if let Some(name) = remnant.name
            && let Some(connector) = self.connectors.get_mut(&connector)
        {
            connector.names.release(remnant.role, &name);
        }
    }

    /// Forgets a session pair, and the names of what its hub had not let go.
    pub(super) fn free_session_pair(&mut self, number: u32) {
        let Some(pair) = self.session_pairs.try_remove(index(number)) else {
            return;
        };
        let Some(connector) = self.connectors.get_mut(&pair.connector) else {
            return;
        };
        if pair.upstream.is_none() {
            connector.unbegun = connector.unbegun.saturating_sub(1);
        }
        for Remnant { role, name, .. } in pair.remnants {
            if let Some(name) = name {
                connector.names.release(role, &name);
            }
        }
    }

    /// How many links hubs hold for a device, those that they have not let go included.
    pub(super) fn upstream_links(&self, device: ConnectionKey) -> usize {
        let Some(entry) = self.entry(device) else { return 0 };
        entry
            .connection
            .owners()
            .filter_map(|pair| {
                let upstream = self.session_pairs.get(index(pair))?.upstream?;
                let session = self
                    .entry(upstream.connection)?
                    .connection
                    .session(upstream.channel)?;
                Some(session.link_count())
            })
            .sum()
    }
}
