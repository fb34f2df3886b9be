//! Where a device's attach goes: which route, which of the connections that serve it, and under which address.

use std::borrow::Cow;

use super::attach::excerpt;
use super::connection::Kind;
use super::connector::{Connector, State};
use super::prefix::{self, Readdressing};
use super::settings::{ConnectorId, ConnectorRole, Destination, Direction, RouteSettings};
use super::{ConnectionKey, Router};
use crate::amqp::condition::{self, AmqpError};
use crate::amqp::performative::{Attach, Role};
use crate::amqp::terminus::{DYNAMIC_ADDRESS_KEY, Terminus, TerminusKind};
use crate::endpoint::limits;

/// The address under which a coordinator is routed (qdrouterd 1.19).
pub(super) const COORDINATOR: &str = "$coordinator";

/// Where a device's attach goes.
pub(super) struct Decision {
    pub(super) connector: ConnectorId,
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
    /// An open one rather than one that must be dialed: the attach has waited for another in vain.
    OpenFirst,
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

    fn readdressing(&self, address: &str, route: &RouteSettings) -> Option<Box<Readdressing>> {
        match self {
            Asked::Address(written) => Readdressing::new(written, address, route),
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
        let (connector, route) = self.choose(direction, &address, placing)?;
        let survives_disconnect = terminus.is_some_and(|terminus| terminus.survives_disconnect());
        let readdressing = asked.readdressing(&address, route);
        if survives_disconnect && !self.settings.allow_resumable_link_route {
            return Err(self.route_error(
                condition::NOT_ALLOWED,
                condition::QD_LINK_EXPIRATION,
                "Requested link expiration not allowed",
                "The terminus has a timeout, or expires never, and allowResumableLinkRoute is no",
            ));
        }
        Ok(Decision {
            connector,
            address: asked.towards_hub(readdressing.as_deref()),
            readdressing,
            survives_disconnect,
        })
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
        let readdressing = asked.readdressing(&address, route);
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

    /// One of the connections that the best route leads to, with the route that led there: several routes may have one
    /// pattern, and several containers one id.
    fn choose(
        &mut self,
        direction: Direction,
        address: &str,
        placing: Placing,
    ) -> Result<(ConnectorId, &RouteSettings), AmqpError> {
        let mut candidates: Vec<(Readiness, ConnectorId, usize)> = Vec::new();
        let mut first = None;
        for (index, route) in self.routes.find(direction, address) {
            first.get_or_insert(index);
            for (&id, connector) in &self.connectors {
                if connector.serves(&route.destination)
                    && let Some(readiness) = self.readiness(id, connector, &route.destination)
                {
                    let readiness = match (placing, readiness) {
                        (Placing::InTurn, Readiness::Idle) => Readiness::Open,
                        (Placing::InTurn | Placing::OpenFirst, readiness) => readiness,
                    };
                    candidates.push((readiness, id, index));
                }
            }
        }
        let Some(first) = first else {
            return Err(no_route(direction, address));
        };
        let best = candidates.iter().map(|&(readiness, ..)| readiness).min();
        candidates.retain(|&(readiness, ..)| Some(readiness) == best);
        let turn = self.routes.next_turn(first).checked_rem(candidates.len());
        let chosen = turn.and_then(|turn| candidates.get(turn));
        match chosen.and_then(|&(_, id, index)| Some((id, self.routes.get(index)?))) {
            Some(chosen) => Ok(chosen),
            None => {
                let missing = self.routes.get(first).map(|route| nobody_at(&route.destination));
                Err(self.unreachable_error(&missing.unwrap_or_default()))
            }
        }
    }

    /// `None`: never, because its only connection is about to go.
    fn readiness(&self, id: ConnectorId, connector: &Connector, to: &Destination) -> Option<Readiness> {
        if self.usable_connection(id).is_some() {
            return Some(Readiness::Open);
        }
        if connector.settings.role == ConnectorRole::Accepted {
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
    fn serves(&self, destination: &Destination) -> bool {
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
        TerminusKind::Source | TerminusKind::Target if terminus.dynamic => {
            named(terminus.dynamic_address).map(Asked::Dynamic)
        }
        TerminusKind::Source | TerminusKind::Target => named(terminus.address).map(Asked::Address),
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
