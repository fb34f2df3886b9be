//! What joins two sessions and two links: the state of the tunnel.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::ConnectionKey;
use super::admission::MessageSize;
use super::delivery_map::DeliveryMap;
use super::eviction::OwnNode;
use super::prefix::Readdressing;
use super::settings::ConnectorId;
use super::unanswered::{Closing, Leftover, Remnant};
use crate::amqp::performative::Role;
use crate::amqp::serial::{Channel, DeliveryId, Handle};
use crate::endpoint::outbox::ByteQueue;

/// Which way transfers go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// From the device to the hub.
    Up,
    /// From the hub to the device.
    Down,
}

/// One side of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leg {
    Device,
    Upstream,
}

impl Leg {
    pub(super) const fn other(self) -> Leg {
        match self {
            Leg::Device => Leg::Upstream,
            Leg::Upstream => Leg::Device,
        }
    }

    /// The way of the transfers that this side sends.
    pub(super) const fn sends(self) -> Way {
        match self {
            Leg::Device => Way::Up,
            Leg::Upstream => Way::Down,
        }
    }
}

impl Way {
    /// The side that receives.
    pub(super) const fn target(self) -> Leg {
        match self {
            Way::Up => Leg::Upstream,
            Way::Down => Leg::Device,
        }
    }
}

/// A session of a connection, by our channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SessionRef {
    pub(super) connection: ConnectionKey,
    pub(super) channel: Channel,
}

/// One device session joined to one upstream session.
#[derive(Debug)]
pub(super) struct SessionPair {
    /// `None` once the device has gone and only what is parked is still on its way.
    pub(super) device: Option<SessionRef>,
    /// `None` until the connector is open.
    pub(super) upstream: Option<SessionRef>,
    pub(super) connector: ConnectorId,
    pub(super) up: Lane,
    pub(super) down: Lane,
    /// Indices of its link pairs.
    pub(super) links: Vec<u32>,
    /// The device has gone, and this waits.
    pub(super) leftover: Option<Leftover>,
    /// What the hub has not let go of links that are no more.
    pub(super) remnants: Vec<Remnant>,
}

impl SessionPair {
    pub(super) fn new(device: SessionRef, connector: ConnectorId) -> Self {
        SessionPair {
            device: Some(device),
            upstream: None,
            connector,
            up: Lane::default(),
            down: Lane::default(),
            links: Vec::new(),
            leftover: None,
            remnants: Vec::new(),
        }
    }

    pub(super) const fn lane(&self, way: Way) -> &Lane {
        match way {
            Way::Up => &self.up,
            Way::Down => &self.down,
        }
    }

    pub(super) const fn lane_mut(&mut self, way: Way) -> &mut Lane {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }

    pub(super) const fn session(&self, end: Leg) -> Option<SessionRef> {
        match end {
            Leg::Device => self.device,
            Leg::Upstream => self.upstream,
        }
    }
}

/// One direction of a session pair: the ids of its deliveries, and the frames that cannot go on yet.
///
/// Everything that must not overtake a transfer queues behind it: the sender's flows, dispositions and detaches.
#[derive(Debug, Default)]
pub(super) struct Lane {
    pub(super) map: DeliveryMap,
    pub(super) entries: VecDeque<Parked>,
    /// The bodies of the parked frames, one behind the other.
    pub(super) bodies: ByteQueue,
    /// How many parked frames, or parts of them, have gone on.
    pub(super) moved: u64,
    /// How many parked frames are here no more: the place of the first of `entries`.
    pub(super) gone: u64,
    /// The target's outbox was full; it will call back.
    pub(super) is_queued: bool,
}

impl Lane {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What its parked frames cost.
    pub(super) fn cost(&self) -> usize {
        self.bodies.len() + self.entries.len() * size_of::<Parked>()
    }

    /// Puts a frame behind what waits, and notes its place with those of its link, if it is one's.
    pub(super) fn park(&mut self, parked: Parked, body: &[u8], places: Option<&mut Range<u64>>) {
        let place = self.gone + self.entries.len() as u64;
        if let Some(places) = places {
            if places.end <= self.gone {
                places.start = place;
            }
            places.end = place + 1;
        }
        self.bodies.tail().extend_from_slice(body);
        self.entries.push_back(parked);
    }

    /// Which of the entries may be a link's, by its [places](LinkPair::parked).
    pub(super) fn range_of(&self, places: &Range<u64>) -> Range<usize> {
        let index = |place: u64| usize::try_from(place.saturating_sub(self.gone)).unwrap_or(usize::MAX);
        let end = index(places.end).min(self.entries.len());
        index(places.start).min(end)..end
    }
}

/// A frame that waits for window, credit, an attach or room in an outbox.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parked {
    pub(super) kind: ParkedKind,
    /// Its link pair; meaningless for dispositions.
    pub(super) link: u32,
    /// Length of its body.
    pub(super) length: usize,
    /// Payload bytes of a transfer that have gone already.
    pub(super) offset: usize,
}

impl Parked {
    /// What it costs to keep: the smallest frames are a third of that.
    pub(super) const fn cost(&self) -> usize {
        self.length + size_of::<Self>()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ParkedKind {
    Transfer,
    Flow,
    Disposition,
    Detach,
    /// A transfer of a link that is gone.
    Dropped,
}

/// A device's link joined to the hub's.
#[derive(Debug)]
pub(super) struct LinkPair {
    pub(super) session_pair: u32,
    /// The device's link, by our handle on the device's session; `None` once it is detached for good and only what it
    /// sent before is still on its way.
    pub(super) device: Option<Handle>,
    /// The hub's link, by our handle on the upstream session; `None` while the connector is not open.
    pub(super) upstream: Option<Handle>,
    /// The device's role.
    pub(super) role: Role,
    /// Number in log lines: `L12`.
    pub(super) number: u64,
    /// The device's name for the link.
    pub(super) name: Box<str>,
    /// Its name at the hub.
    pub(super) upstream_name: Option<Box<str>>,
    /// The body of the device's attach, and of the last flow behind it, while the connector is not open.
    pub(super) waiting: Option<Box<Waiting>>,
    /// How the address of the routed terminus changes on the way, until the hub has answered.
    pub(super) readdressing: Option<Box<Readdressing>>,
    /// What it has attached at the hub, if that is a device's own.
    pub(super) own_node: Option<Arc<OwnNode>>,
    /// The terminus is to outlive the device's connection.
    pub(super) survives_disconnect: bool,
    /// The receiving end has given credit at least once, so transfers may go on.
    pub(super) is_granted: bool,
    /// The hub has answered the attach.
    pub(super) is_answered: bool,
    /// One side has detached.
    pub(super) closing: Option<Closing>,
    /// Places in its lane, counted from the first frame that was ever parked there, from the first of its frames to behind
    /// the last: thousands of links may have one each, and none is looked for among those of all others.
    pub(super) parked: Range<u64>,
    /// The delivery under way to the target: its id at its source, and at the target.
    pub(super) delivering: Option<(DeliveryId, DeliveryId)>,
    /// How large the device's messages may be, and how large this one is.
    pub(super) message_size: Option<MessageSize>,
    /// Deliveries completed.
    pub(super) deliveries: u64,
}

/// A device's attach that waits for its connector.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) attach: Vec<u8>,
    pub(super) flow: Option<Vec<u8>>,
    pub(super) deadline: std::time::Instant,
}

impl LinkPair {
    pub(super) const fn way(&self) -> Way {
        match self.role {
            Role::Sender => Way::Up,
            Role::Receiver => Way::Down,
        }
    }

    pub(super) const fn handle(&self, end: Leg) -> Option<Handle> {
        match end {
            Leg::Device => self.device,
            Leg::Upstream => self.upstream,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn park(lane: &mut Lane, link: u32, places: &mut Range<u64>) {
        let parked = Parked {
            kind: ParkedKind::Transfer,
            link,
            length: 1,
            offset: 0,
        };
        lane.park(parked, &[0], Some(places));
    }

    #[test]
    fn a_links_frames_are_looked_for_where_they_are_and_nowhere_else() {
        let mut lane = Lane::default();
        let mut links = vec![0..0; 1000];
        for (number, places) in (0..).zip(&mut links) {
            park(&mut lane, number, places);
        }
        for (number, places) in links.iter().enumerate() {
            assert_eq!(lane.range_of(places), number..number + 1);
        }
        // The first half of the frames goes on.
        lane.entries.drain(..500);
        lane.gone += 500;
        assert!(links[..500].iter().all(|places| lane.range_of(places).is_empty()));
        assert_eq!(lane.range_of(&links[500]), 0..1);
        park(&mut lane, 0, &mut links[0]);
        park(&mut lane, 999, &mut links[999]);
        assert_eq!(lane.range_of(&links[0]), 500..501, "nothing of before");
        assert_eq!(lane.range_of(&links[999]), 499..502, "and all that is there");
        // While the entries are out, there is nothing to look at.
        lane.entries.clear();
        assert!(links.iter().all(|places| lane.range_of(places).is_empty()));
    }
}
