//! Attaches that wait until their connector is open, and go to another one if it does not come; and those that wait for
//! their turn on an open one, when more devices come than may start there at once.

use std::time::Instant;

use super::cbs::Standing;
use super::connection::index;
use super::connector::{Connector, State};
use super::pace::Admit;
use super::pair::{Leg, SessionRef, Waiting};
use super::pool::Slot;
use super::route::Placing;
use super::settings::ConnectorId;
use super::{ConnectionKey, Router};
use crate::amqp::condition::{self, AmqpError};
use crate::amqp::performative::{Attach, Performative, Role};
use crate::endpoint::limits;

/// Where an attach that waits may go instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    /// An open connection: its time is over, or the one that it waits for has failed before.
    Open,
    /// An open one, or one that can be dialed at once: the one that it waits for has failed.
    Up,
    /// Any that may serve it: the one that it waits for does not.
    Any,
    /// Any that has room for it: the one that it waits for has none.
    Roomy,
}

impl Router {
    /// Whether a device's attach may go out now. If not, it waits: until the connector is open, or for its turn there.
    pub(super) fn may_start(&mut self, device: ConnectionKey, id: ConnectorId, now: Instant) -> bool {
        let is_usable = self.usable_connection(id).is_some();
        self.connectors.get_mut(&id).is_some_and(|connector| {
            let is_next = connector.waiting.is_empty() || connector.started.contains(&device);
            is_usable && is_next && connector.admit_device(device, now) == Admit::Now
        })
    }

    /// Keeps an attach until it may start.
    pub(super) fn wait(&mut self, number: u32, id: ConnectorId, attach: &[u8], now: Instant) {
        let Some(connector) = self.connectors.get_mut(&id) else {
            return;
        };
        let deadline = now + connector.patience(self.settings.attach_timeout);
        let is_full = connector.waiting.len() >= limits::WAITING_ATTACHES
            || attach.len() > limits::WAITING_ATTACH_BYTES;
        if let Some(link) = self.link_pairs.get_mut(index(number)) {
            link.waiting = Some(Box::new(Waiting {
                attach: attach.to_vec(),
                flow: None,
                deadline,
            }));
        }
        if is_full {
            self.refuse_too_much(number);
            return;
        }
        self.queue_waiting(number, id, deadline, now);
    }

    /// Keeps an attach whose turn it is until its device's tokens are known to the connection.
    pub(super) fn wait_for_tokens(&mut self, number: u32, id: ConnectorId, attach: &[u8], now: Instant) {
        let is_full = attach.len() > limits::WAITING_ATTACH_BYTES
            || self
                .connectors
                .get(&id)
                .is_none_or(|connector| connector.behind_tokens.len() >= limits::WAITING_ATTACHES);
        if let Some(link) = self.link_pairs.get_mut(index(number)) {
            link.waiting = Some(Box::new(Waiting {
                attach: attach.to_vec(),
                flow: None,
                deadline: now + limits::PACED_ATTACH_TIMEOUT,
            }));
        }
        if is_full {
            return self.refuse_too_much(number);
        }
        self.queue_behind_tokens(number, id);
    }

    fn queue_behind_tokens(&mut self, number: u32, id: ConnectorId) {
        let Some((device, ..)) = self.link_end(number, Leg::Device) else {
            return;
        };
        let Some((deadline, order)) = self.place_in_line(number) else {
            return;
        };
        if let Some(connector) = self.connectors.get_mut(&id) {
            connector
                .behind_tokens
                .insert((device, order), (number, deadline));
        }
    }

    /// Takes what waits for the tokens of a device, and for which connection: any of the pool, for a token may have been
    /// asked for on another one than that which the device is on by now.
    pub(super) fn take_behind_tokens(
        &mut self,
        id: ConnectorId,
        device: ConnectionKey,
    ) -> Vec<(u32, ConnectorId)> {
        let pool = self.pool(self.configured(id));
        let with_some = pool.filter(|(_, connector)| !connector.behind_tokens.is_empty());
        let ids: Vec<ConnectorId> = with_some.map(|(id, _)| id).collect();
        let mut taken = Vec::new();
        for id in ids {
            taken.extend(
                self.take_behind(id, device)
                    .into_iter()
                    .map(|number| (number, id)),
            );
        }
        taken
    }

    fn take_behind(&mut self, id: ConnectorId, device: ConnectionKey) -> Vec<u32> {
        let Some(connector) = self.connectors.get_mut(&id) else {
            return Vec::new();
        };
        let mut taken = Vec::new();
        while let Some((&place, &(number, _))) = connector
            .behind_tokens
            .range((device, 0)..=(device, u64::MAX))
            .next()
        {
            connector.behind_tokens.remove(&place);
            taken.push(number);
        }
        taken
    }

    /// Where an attach that waits has its place on its connector's list: by the time until which it waits, and of equal
    /// ones the older first.
    fn place_in_line(&self, number: u32) -> Option<(Instant, u64)> {
        let link = self.link_pairs.get(index(number))?;
        Some((link.waiting.as_ref()?.deadline, link.number))
    }

    /// The tokens of a device are known to the connection: what it attaches goes out.
    pub(super) fn start_behind_tokens(&mut self, id: ConnectorId, device: ConnectionKey, now: Instant) {
        for (number, id) in self.take_behind_tokens(id, device) {
            if self.usable_connection(id).is_some() {
                self.start_waiting_link(number, id, now);
            } else {
                self.queue_waiting(number, id, now + self.settings.attach_timeout, now);
            }
        }
    }

    /// Puts an attach on its connector's list, which is in the order of deadlines.
    fn queue_waiting(&mut self, number: u32, id: ConnectorId, deadline: Instant, now: Instant) {
        if let Some(link) = self.link_pairs.get_mut(index(number))
            && let Some(waiting) = &mut link.waiting
        {
            waiting.deadline = deadline;
            if let Some(connector) = self.connectors.get_mut(&id) {
                connector.waiting.insert((deadline, link.number), number);
            }
        }
        self.want(id, now);
    }

    /// Refuses an attach that would make too much wait for a connector.
    pub(super) fn refuse_too_much(&mut self, number: u32) {
        let error = AmqpError::new(
            condition::RESOURCE_LIMIT_EXCEEDED,
            "too many attaches, or too large ones, wait for the connection to the hub",
        );
        self.refuse_waiting(number, Some(&error));
    }

    /// The connector is open: what waited for it starts, as fast as it may.
    pub(super) fn start_waiting(&mut self, id: ConnectorId, now: Instant) {
        let timeout = self.settings.attach_timeout;
        let patience = self
            .connectors
            .get(&id)
            .map(|connector| connector.patience(timeout));
        if let Some(longer) = patience.and_then(|patience| patience.checked_sub(timeout)) {
            self.redate_waiting(id, |deadline| deadline + longer);
        }
        self.take_turns(id, now);
    }

    /// The connection that attaches waited for their turn on is gone: now they wait for the next.
    pub(super) fn hurry_waiting(&mut self, id: ConnectorId, now: Instant) {
        if let Some(connector) = self.connectors.get_mut(&id) {
            connector.forget_order_of_tokens();
        }
        let latest = now + self.settings.attach_timeout;
        self.redate_waiting(id, |deadline| deadline.min(latest));
    }

    /// Gives the attaches on a connector's list other deadlines.
    fn redate_waiting(&mut self, id: ConnectorId, deadline: impl Fn(Instant) -> Instant) {
        let Some(connector) = self.connectors.get_mut(&id) else {
            return;
        };
        for ((due, order), number) in std::mem::take(&mut connector.waiting) {
            let link = self.link_pairs.get_mut(index(number));
            if let Some(waiting) = link.and_then(|link| link.waiting.as_mut()) {
                waiting.deadline = deadline(due);
                connector.waiting.insert((waiting.deadline, order), number);
            }
        }
    }

    /// Starts what waits for an open connector, oldest first, until a device comes that has to wait for its turn. What
    /// a device has waiting goes together.
    pub(super) fn take_turns(&mut self, id: ConnectorId, now: Instant) {
        self.send_unsent(id, now);
        while self.usable_connection(id).is_some()
            && let Some((_, &number)) = self
                .connectors
                .get(&id)
                .and_then(|it| it.waiting.first_key_value())
        {
            let Some((device, body)) = self.waiting_attach(number) else {
                self.forget_first(id);
                continue;
            };
            if !self.is_served(device, &body, id) {
                self.forget_first(id);
                self.start_waiting_link(number, id, now);
                continue;
            }
            let connector = self.connectors.get_mut(&id);
            if connector.is_none_or(|connector| connector.admit_device(device, now) != Admit::Now) {
                return;
            }
            for number in self.take_waiting_of(device, id) {
                self.start_waiting_link(number, id, now);
            }
        }
    }

    fn forget_first(&mut self, id: ConnectorId) {
        if let Some(connector) = self.connectors.get_mut(&id) {
            connector.waiting.pop_first();
        }
    }

    fn is_served(&self, device: ConnectionKey, body: &[u8], id: ConnectorId) -> bool {
        match Performative::parse(body) {
            Ok(Performative::Attach(attach)) => self.served_as(device, &attach, id).is_some(),
            Ok(_) | Err(_) => false,
        }
    }

    /// Starts an attach that is off the list, unless the container turned out to be another one than it needs.
    fn start_waiting_link(&mut self, number: u32, id: ConnectorId, now: Instant) {
        let Some((device, body)) = self.waiting_attach(number) else {
            return;
        };
        let Ok(Performative::Attach(attach)) = Performative::parse(&body) else {
            return;
        };
        if let Some(service) = self.served_as(device, &attach, id) {
            let standing = self.standing(device, id, &service.address, now);
            if let Standing::Refused(error) = standing {
                self.report_suspect(device, &error, now);
                return self.refuse_waiting(number, Some(&error));
            }
            // The route that it has waited by may not be the one that leads to this container.
            if let Some(link) = self.link_pairs.get_mut(index(number)) {
                link.readdressing = service.readdressing;
            }
            if self.overflows(number, device, &attach, id, now) {
                return;
            }
            if standing == Standing::Awaited {
                self.queue_behind_tokens(number, id);
            } else if self.lacks_token(device, id, &service.address, now) {
                self.queue_behind_tokens(number, id);
                self.put_again(device, id, now);
            } else {
                self.put_again(device, id, now);
                self.start_link(number, &attach);
            }
        } else if !self.move_link(number, device, &attach, To::Any, now) {
            let error =
                self.unreachable_error("The connection that was waited for does not serve this address");
            self.refuse_waiting(number, Some(&error));
        }
    }

    /// Moves a link whose device the hub has no session for, as it turns out: to the next connection of the pool.
    fn overflows(
        &mut self,
        number: u32,
        device: ConnectionKey,
        attach: &Attach<'_>,
        id: ConnectorId,
        now: Instant,
    ) -> bool {
        if self.has_free_channel(id) || self.has_begun(device, id) {
            return false;
        }
        self.unpin(device, id);
        self.move_link(number, device, attach, To::Roomy, now)
    }

    /// Takes what waits of a device off a connector's list, in order.
    fn take_waiting_of(&mut self, device: ConnectionKey, id: ConnectorId) -> Vec<u32> {
        let pairs = self
            .entry(device)
            .into_iter()
            .flat_map(|entry| entry.connection.owners())
            .filter_map(|pair| self.session_pairs.get(index(pair)))
            .filter(|pair| pair.connector == id);
        let mut places: Vec<(Instant, u64)> = pairs
            .flat_map(|pair| &pair.links)
            .filter_map(|&link| self.place_in_line(link))
            .collect();
        places.sort_unstable();
        let Some(connector) = self.connectors.get_mut(&id) else {
            return Vec::new();
        };
        // One that waits for tokens is not on the list.
        places
            .iter()
            .filter_map(|place| connector.waiting.remove(place))
            .collect()
    }

    /// A connector is not coming soon: what waits for it goes to another one that is up.
    pub(super) fn move_waiting_from(&mut self, id: ConnectorId, now: Instant) {
        let Some(connector) = self.connectors.get_mut(&id) else {
            return;
        };
        for (place, number) in std::mem::take(&mut connector.waiting) {
            if !self.move_waiting(number, To::Up, now)
                && let Some(connector) = self.connectors.get_mut(&id)
            {
                connector.waiting.insert(place, number);
            }
        }
    }

    /// A connection is open: what waits for one that has failed, and could have this one, does.
    pub(super) fn move_waiting_to(&mut self, id: ConnectorId, now: Instant) {
        let elsewhere = self.connectors.iter().filter(|&(&other, _)| other != id);
        let is_absent =
            |connector: &Connector| connector.is_failing() && connector.open_connection().is_none();
        let waiting: Vec<u32> = elsewhere
            .filter(|(_, connector)| is_absent(connector))
            .flat_map(|(_, connector)| connector.waiting.values().copied())
            .collect();
        for number in waiting {
            if let Some((device, body)) = self.waiting_attach(number)
                && let Ok(Performative::Attach(attach)) = Performative::parse(&body)
                && self.served_as(device, &attach, id).is_some()
            {
                self.move_link(number, device, &attach, To::Open, now);
            }
        }
    }

    pub(super) fn move_waiting(&mut self, number: u32, to: To, now: Instant) -> bool {
        let Some((device, body)) = self.waiting_attach(number) else {
            return false;
        };
        match Performative::parse(&body) {
            Ok(Performative::Attach(attach)) => self.move_link(number, device, &attach, to, now),
            Ok(_) | Err(_) => false,
        }
    }

    /// Whose attach waits, and its body.
    fn waiting_attach(&self, number: u32) -> Option<(ConnectionKey, Vec<u8>)> {
        let (device, _, _) = self.link_end(number, Leg::Device)?;
        let waiting = self.link_pairs.get(index(number))?.waiting.as_ref()?;
        Some((device, waiting.attach.clone()))
    }

    /// Moves a link that was never attached to another connector. A device that has sent before it was allowed to has
    /// its frames in the lane, and stays.
    fn move_link(
        &mut self,
        number: u32,
        device: ConnectionKey,
        attach: &Attach<'_>,
        to: To,
        now: Instant,
    ) -> bool {
        let Some((session, from, deadline)) = self.movable(number) else {
            return false;
        };
        let placing = match to {
            To::Open | To::Up | To::Any => Placing::OpenFirst(from),
            To::Roomy => Placing::Overflow(from),
        };
        let Ok(decision) = self.decide(device, attach, placing) else {
            return false;
        };
        if let Standing::Refused(_) = self.standing(device, decision.connector, &decision.address, now) {
            return false;
        }
        let id = match (decision.slot, to) {
            (Slot::At(id), _) => id,
            (slot @ Slot::Next, To::Any | To::Roomy) => match self.take_slot(decision.connector, slot) {
                Ok(id) => id,
                Err(_) => return false,
            },
            (Slot::Next, To::Open | To::Up) | (Slot::Full, _) => return false,
        };
        let timeout = self.settings.attach_timeout;
        let is_open = self.usable_connection(id).is_some();
        let Some(connector) = self.connectors.get(&id).filter(|_| id != from) else {
            return false;
        };
        let suits = match to {
            To::Open => is_open,
            To::Up => is_open || connector.state == State::Idle,
            To::Any => true,
            // Or it would be sent back and forth between connections that the device is on.
            To::Roomy => self.has_free_channel(id) || self.has_begun(device, id),
        };
        if !suits || connector.waiting.len() >= limits::WAITING_ATTACHES {
            return false;
        }
        let deadline = deadline + connector.patience(timeout).saturating_sub(timeout);
        let Some(pair) = self.session_pair(session, id) else {
            return false;
        };
        self.forget_waiting(number);
        let Some(link) = self.link_pairs.get_mut(index(number)) else {
            return false;
        };
        let left = std::mem::replace(&mut link.session_pair, pair);
        link.parked = 0..0;
        link.readdressing = decision.readdressing;
        self.leave_pair(number, left);
        if let Some(pair) = self.session_pairs.get_mut(index(pair)) {
            pair.links.push(number);
        }
        if self.may_start(device, id, now) {
            self.start_waiting_link(number, id, now);
        } else {
            self.queue_waiting(number, id, deadline, now);
        }
        true
    }

    /// Takes a link out of a session pair.
    fn leave_pair(&mut self, number: u32, pair: u32) {
        if let Some(session_pair) = self.session_pairs.get_mut(index(pair)) {
            session_pair.links.retain(|&other| other != number);
        }
        self.free_if_unused(pair);
    }

    /// A session pair that has not begun goes with its last link.
    pub(super) fn free_if_unused(&mut self, pair: u32) {
        let Some(session_pair) = self.session_pairs.get(index(pair)) else {
            return;
        };
        let is_unused =
            session_pair.links.is_empty() && session_pair.upstream.is_none() && session_pair.up.is_empty();
        let Some(device) = session_pair.device.filter(|_| is_unused) else {
            return;
        };
        if let Some(session) = self
            .entry_mut(device.connection)
            .and_then(|entry| entry.connection.session_mut(device.channel))
        {
            session.owners.retain(|&other| other != pair);
        }
        self.free_session_pair(pair);
    }

    /// The device's session, the connector and the deadline of a link that waits and has sent nothing.
    fn movable(&self, number: u32) -> Option<(SessionRef, ConnectorId, Instant)> {
        let link = self.link_pairs.get(index(number))?;
        let pair = self.session_pairs.get(index(link.session_pair))?;
        let mut own = pair.up.entries.range(pair.up.range_of(&link.parked));
        let has_sent = own.any(|parked| parked.link == number);
        let deadline = link.waiting.as_ref()?.deadline;
        Some((pair.device?, pair.connector, deadline)).filter(|_| !has_sent)
    }

    /// Refuses the attaches that have waited long enough.
    pub(super) fn refuse_overdue(&mut self, id: ConnectorId, now: Instant) {
        while let Some(connector) = self.connectors.get(&id) {
            let Some((&place, &number)) = connector.waiting.first_key_value() else {
                return;
            };
            if place.0 > now {
                return;
            }
            if self.place_in_line(number) != Some(place) {
                self.forget_first(id);
                continue;
            }
            if self.move_waiting(number, To::Open, now) {
                continue;
            }
            let Some(connector) = self.connectors.get(&id) else {
                return;
            };
            let waited = connector.patience(self.settings.attach_timeout).as_secs();
            let name = &connector.settings.name;
            let what = match connector.open_connection().and(connector.next_turn()) {
                Some(_) => format!(
                    "More devices came at once to {name} than it takes in {waited} s (devicesPerSecond)"
                ),
                None => format!(
                    "No connection to {name} ({}) within {waited} s",
                    connector.hosts.current()
                ),
            };
            let error = self.unreachable_error(&what);
            self.refuse_waiting(number, Some(&error));
        }
    }

    /// The device gave an attach up that was still waiting.
    pub(super) fn abandon_waiting(&mut self, number: u32) {
        self.refuse_waiting(number, None);
    }

    pub(super) fn refuse_waiting(&mut self, number: u32, error: Option<&AmqpError>) {
        let Some(link) = self.link_pairs.get_mut(index(number)) else {
            return;
        };
        let attach = link
            .waiting
            .as_mut()
            .map(|waiting| std::mem::take(&mut waiting.attach))
            .unwrap_or_default();
        let end = self.link_end(number, Leg::Device);
        self.free_and_pump(number);
        let Some((connection, channel, handle)) = end else {
            return;
        };
        let Ok(Performative::Attach(attach)) = Performative::parse(&attach) else {
            return;
        };
        match error {
            Some(error) => self.refuse(connection, channel, handle, &attach, error),
            None => {
                let (source, target) = match attach.role {
                    Role::Sender => (attach.source, None),
                    Role::Receiver => (None, attach.target),
                };
                if let Some(entry) = self.entry_mut(connection) {
                    entry
                        .connection
                        .refuse_attach(channel, handle, source, target, None);
                    self.wake(connection);
                }
            }
        }
    }

    /// Takes a link off its connector's lists.
    pub(super) fn forget_waiting(&mut self, number: u32) {
        let Some((deadline, order)) = self.place_in_line(number) else {
            return;
        };
        let pair = self.link_pairs.get(index(number)).map(|link| link.session_pair);
        let Some(pair) = pair.and_then(|pair| self.session_pairs.get(index(pair))) else {
            return;
        };
        let Some(connector) = self.connectors.get_mut(&pair.connector) else {
            return;
        };
        connector.waiting.remove(&(deadline, order));
        if let Some(device) = pair.device {
            connector.behind_tokens.remove(&(device.connection, order));
        }
    }
}
