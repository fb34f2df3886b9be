//! Where a device's attach goes: which route, which of the connections that serve it, and under which address.

use std::borrow::Cow;

use super::attach::excerpt;
use super::cbs::{CBS, is_cbs};
use super::connection::Kind;
use super::connector::{Connector, State};
use super::pool::Slot;
use super::prefix::{self, Readdressing};
use super::settings::{ConnectorId, Destination, Direction, RouteSettings};
use super::{ConnectionKey, Router};
use crate::amqp::condition::{self, AmqpError};
use crate::amqp::performative::{Attach, Role};
use crate::amqp::terminus::{DYNAMIC_ADDRESS_KEY, Terminus, TerminusKind};
use crate::endpoint::limits;

/// The address under which a coordinator is routed (qdrouterd 1.19).
pub(super) const COORDINATOR: &str = "$coordinator";

/// Where a device's attach goes.
pub(super) struct Decision {
    /// The connection, or the configured connector if it is yet to be made.
    pub(super) connector: ConnectorId,
    pub(super) slot: Slot,
    /// As the hub gets it.
    pub(super) address: Box<str>,
    pub(super) readdressing: Option<Box<Readdressing>>,
    pub(super) survives_disconnect: bool,
}

/// How a connector's connection gets an attach.
pub(super) struct Service {
    /// As the hub gets it.
    pub(super) address: Box<str>,
    pub(super) readdressing: Option<Box<Readdressing>>,
}

/// Which of the connections that could serve a link get it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placing {
    /// In turn among those that are open or can be dialed at once.
    InTurn,
    /// An open one rather than one that must be dialed: the attach has waited for this one in vain.
    OpenFirst(ConnectorId),
    /// The one that the attach has waited for is open, and has no room for it.
    Overflow(ConnectorId),
}

impl Placing {
    /// The connection that the attach is not to have.
    const fn leaving(self) -> Option<ConnectorId> {
        match self {
            Placing::InTurn => None,
            Placing::OpenFirst(id) | Placing::Overflow(id) => Some(id),
        }
    }
}

/// A connection that could take a link.
struct Candidate {
    readiness: Readiness,
    connector: ConnectorId,
    slot: Slot,
    /// Index of the route that leads there.
    route: usize,
    /// The device puts its tokens there.
    is_bound: bool,
}

/// How soon a connection can take a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Readiness {
    Open,
    /// Nobody needed it so far, or its last back-off is over: it can be dialed.
    Idle,
    Connecting,
    /// In back-off, or perhaps not the container that the route names.
    Doubtful,
    /// It takes no other device.
    Full,
}

/// What an attach asks for.
enum Asked<'a> {
    Address(&'a str),
    /// By a dynamic terminus, whose own address is for the hub to choose.
    Dynamic(&'a str),
    Coordinator,
}

impl Asked<'_> {
    /// The address that the hub gets.
    fn towards_hub(&self, readdressing: Option<&Readdressing>) -> Box<str> {
        match (self, readdressing) {
            (_, Some(readdressing)) => readdressing.address().into(),
            (Asked::Address(address) | Asked::Dynamic(address), None) => (*address).into(),
            (Asked::Coordinator, None) => COORDINATOR.into(),
        }
    }

    fn readdressing(
        &self,
        address: &str,
        route: &RouteSettings,
        connector: &Connector,
    ) -> Option<Box<Readdressing>> {
        match self {
            Asked::Address(written) => Readdressing::new(written, address, route, connector.only_name()),
            Asked::Dynamic(_) | Asked::Coordinator => None,
        }
    }
}

impl Router {
    /// The route of an attach: by the target's address if the device sends, by the source's if it receives.
    pub(super) fn decide(
        &mut self,
        device: ConnectionKey,
        attach: &Attach<'_>,
        placing: Placing,
    ) -> Result<Decision, AmqpError> {
        let (direction, terminus) = routed_terminus(attach)?;
        let asked = asked(direction, terminus.as_ref())?;
        let address = self.address_for(device, &asked)?;
        let (id, slot, route) = self.choose(device, direction, &address, placing)?;
        let survives_disconnect = terminus.is_some_and(|terminus| terminus.survives_disconnect());
        let route = self.routes.get(route);
        let readdressing = route
            .zip(self.connectors.get(&id))
            .and_then(|(route, connector)| asked.readdressing(&address, route, connector));
        if survives_disconnect && !self.settings.allow_resumable_link_route {
            return Err(self.route_error(
                condition::NOT_ALLOWED,
                condition::QD_LINK_EXPIRATION,
                "Requested link expiration not allowed",
                "The terminus has a timeout, or expires never, and allowResumableLinkRoute is no",
            ));
        }
        Ok(Decision {
            connector: id,
            slot,
            address: asked.towards_hub(readdressing.as_deref()),
            readdressing,
            survives_disconnect,
        })
    }

    /// The connector that puts the tokens of a device which would ask for it through `$cbs`, if one does.
    pub(super) fn connector_of_cbs(&mut self, device: ConnectionKey) -> Option<ConnectorId> {
        let asked = Asked::Address(CBS);
        let address = self.address_for(device, &asked).ok()?;
        let (id, _, route) = self
            .choose(device, Direction::In, &address, Placing::InTurn)
            .ok()?;
        let (route, connector) = self.routes.get(route).zip(self.connectors.get(&id))?;
        let readdressing = asked.readdressing(&address, route, connector);
        let ends_here = is_cbs(&asked.towards_hub(readdressing.as_deref())) && self.relays_cbs(id);
        ends_here.then_some(id)
    }

    /// How a connector's connection gets this attach, now that the container at its other end is known. `None`: not at
    /// all, for no route leads the attach there.
    pub(super) fn served_as(
        &self,
        device: ConnectionKey,
        attach: &Attach<'_>,
        id: ConnectorId,
    ) -> Option<Service> {
        let (direction, terminus) = routed_terminus(attach).ok()?;
        let asked = asked(direction, terminus.as_ref()).ok()?;
        let address = self.address_for(device, &asked).ok()?;
        let connector = self.connectors.get(&id)?;
        let (_, route) = self
            .routes
            .find(direction, &address)
            .find(|(_, route)| connector.serves(&route.destination))?;
        let readdressing = asked.readdressing(&address, route, connector);
        Some(Service {
            address: asked.towards_hub(readdressing.as_deref()),
            readdressing,
        })
    }

    /// What is matched: on a multi-tenant listener, the address with the device's virtual host in front.
    fn address_for<'a>(&self, device: ConnectionKey, asked: &Asked<'a>) -> Result<Cow<'a, str>, AmqpError> {
        let (Asked::Address(address) | Asked::Dynamic(address)) = *asked else {
            return Ok(COORDINATOR.into());
        };
        match self.tenant(device) {
            Some(vhost) if vhost.len() > limits::TENANT_HOST => Err(AmqpError::new(
                condition::RESOURCE_LIMIT_EXCEEDED,
                "The hostname in the open is too long for a virtual host",
            )),
            Some(vhost) => Ok(prefix::of_tenant(vhost, address).into()),
            None => Ok(address.into()),
        }
    }

    fn tenant(&self, device: ConnectionKey) -> Option<&str> {
        let entry = self.entry(device)?;
        let Kind::Device(listener) = entry.kind else {
            return None;
        };
        let is_multi_tenant = self.settings.listeners.get(listener.0)?.multi_tenant;
        (is_multi_tenant && !entry.vhost.is_empty()).then_some(&*entry.vhost)
    }

    /// One of the connections that the best route leads to, with the index of the route that led there: several routes
    /// may have one pattern, and several containers one id. The connections of a pool are one choice.
    fn choose(
        &mut self,
        device: ConnectionKey,
        direction: Direction,
        address: &str,
        placing: Placing,
    ) -> Result<(ConnectorId, Slot, usize), AmqpError> {
        self.expire_tokens();
        let mut candidates: Vec<Candidate> = Vec::new();
        let mut first = None;
        for (index, route) in self.routes.find(direction, address) {
            first.get_or_insert(index);
            for (&head, _) in self.connectors.iter().filter(|(_, it)| it.head.is_none()) {
                candidates.extend(self.candidate(device, head, (index, &route.destination), placing));
            }
        }
        let Some(first) = first else {
            return Err(no_route(direction, address));
        };
        let chosen = match candidates.iter().position(|candidate| candidate.is_bound) {
            Some(bound) => Some(bound),
            None => {
                let best = candidates.iter().map(|candidate| candidate.readiness).min();
                candidates.retain(|candidate| Some(candidate.readiness) == best);
                self.routes.next_turn(first).checked_rem(candidates.len())
            }
        };
        match chosen.and_then(|index| candidates.get(index)) {
            Some(chosen) => Ok((chosen.connector, chosen.slot, chosen.route)),
            None => {
                let missing = self.routes.get(first).map(|route| nobody_at(&route.destination));
                Err(self.unreachable_error(&missing.unwrap_or_default()))
            }
        }
    }

    /// What a connector has for this device, if a route leads there.
    fn candidate(
        &self,
        device: ConnectionKey,
        head: ConnectorId,
        (route, to): (usize, &Destination),
        placing: Placing,
    ) -> Option<Candidate> {
        let serves = |connector: &Connector| connector.serves(to);
        if !self.pool(head).any(|(_, connector)| serves(connector)) {
            return None;
        }
        let slot = self
            .pinned(device, head, placing.leaving())
            .filter(|id| self.connectors.get(id).is_some_and(serves))
            .map_or_else(|| self.place(head, Some(to)), Slot::At);
        let (connector, readiness) = match slot {
            Slot::At(id) => (id, self.readiness(id, self.connectors.get(&id)?, to)?),
            Slot::Next => (head, self.readiness_of_next(head, to)),
            Slot::Full => (head, Readiness::Full),
        };
        Some(Candidate {
            readiness: match (placing, readiness) {
                (Placing::InTurn, Readiness::Idle) => Readiness::Open,
                (Placing::InTurn | Placing::OpenFirst(_) | Placing::Overflow(_), readiness) => readiness,
            },
            connector,
            slot,
            route,
            is_bound: self.is_bound(device, head),
        })
    }

    /// How soon a pool has another connection: it can be dialed at once, unless the others do not come either.
    fn readiness_of_next(&self, head: ConnectorId, to: &Destination) -> Readiness {
        self.pool(head)
            .filter_map(|(id, connector)| self.readiness(id, connector, to))
            .min()
            .map_or(Readiness::Idle, |best| best.max(Readiness::Idle))
    }

    /// `None`: never, because its only connection is about to go.
    fn readiness(&self, id: ConnectorId, connector: &Connector, to: &Destination) -> Option<Readiness> {
        if self.usable_connection(id).is_some() {
            return Some(Readiness::Open);
        }
        if connector.is_accepted() {
            return None;
        }
        if matches!(to, Destination::Container(_)) && connector.container_id.is_none() {
            return Some(Readiness::Doubtful);
        }
        Some(match connector.state {
            State::Idle => Readiness::Idle,
            State::Dialing | State::Opening(_) | State::Open(_) | State::Closing(_) => Readiness::Connecting,
            State::Backoff { .. } => Readiness::Doubtful,
        })
    }

    /// A connector's connection, if links can be attached on it now.
    pub(super) fn usable_connection(&self, id: ConnectorId) -> Option<ConnectionKey> {
        let key = self.connectors.get(&id)?.open_connection()?;
        self.entry(key)
            .filter(|entry| entry.connection.is_open())
            .map(|_| key)
    }
}

impl Connector {
    /// Whether a route leads here. A container that has not been seen yet may be the one: it is worth a dial.
    pub(super) fn serves(&self, destination: &Destination) -> bool {
        match destination {
            Destination::Connection(name) => self.settings.name == *name,
            Destination::Container(id) => self.container_id.as_ref().is_none_or(|own| own == id),
        }
    }
}

/// The terminus that decides, by the role of the device.
fn routed_terminus<'a>(attach: &Attach<'a>) -> Result<(Direction, Option<Terminus<'a>>), AmqpError> {
    // The other terminus is not this router's business, whatever it is.
    let (direction, encoded, which) = match attach.role {
        Role::Sender => (Direction::In, attach.target, "target"),
        Role::Receiver => (Direction::Out, attach.source, "source"),
    };
    let terminus = encoded
        .map(Terminus::parse)
        .transpose()
        .map_err(|_| AmqpError::new(condition::DECODE_ERROR, format!("malformed {which}")))?;
    Ok((direction, terminus))
}

fn asked<'a>(direction: Direction, terminus: Option<&Terminus<'a>>) -> Result<Asked<'a>, AmqpError> {
    let which = match direction {
        Direction::In => "target",
        Direction::Out => "source",
    };
    let named = |address: Option<&'a str>| address.filter(|address| !address.is_empty());
    // What is checked is the route's address, and a hub may go by the other (AMQP 1.0 part 3, §3.5.3: it must not be set).
    if terminus.is_some_and(|terminus| terminus.dynamic && named(terminus.address).is_some()) {
        let text = format!("A dynamic {which} has no address: the node is to be made");
        return Err(AmqpError::new(condition::INVALID_FIELD, text));
    }
    let asked = terminus.and_then(|terminus| match terminus.kind {
        TerminusKind::Coordinator => Some(Asked::Coordinator),
        TerminusKind::Source | TerminusKind::Target => named(terminus.routed_by()).map(if terminus.dynamic {
            Asked::Dynamic
        } else {
            Asked::Address
        }),
    });
    asked.ok_or_else(|| {
        let text = if terminus.is_some_and(|terminus| terminus.dynamic) {
            format!(
                "A dynamic {which} is routed by {DYNAMIC_ADDRESS_KEY} in its dynamic-node-properties, and has none"
            )
        } else {
            format!("The {which} names no address; this router routes links by address only")
        };
        AmqpError::new(condition::NOT_FOUND, text)
    })
}

fn no_route(direction: Direction, address: &str) -> AmqpError {
    if address == COORDINATOR {
        return AmqpError::new(
            condition::PRECONDITION_FAILED,
            "The router can't coordinate transactions by itself: they need a linkRoute with prefix $coordinator and \
             direction in, to a broker that can",
        );
    }
    let way = match direction {
        Direction::In => "in",
        Direction::Out => "out",
    };
    AmqpError::new(
        condition::NOT_FOUND,
        format!(
            "No link route with direction {way} matches the address '{}'",
            excerpt(address)
        ),
    )
}

fn nobody_at(destination: &Destination) -> String {
    match destination {
        Destination::Connection(name) => format!("No broker is connected to {name}"),
        Destination::Container(id) => format!("No container {id} is connected"),
    }
}
