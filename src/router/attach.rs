//! Attaches: which route, which connector, which session pair; refusals; and attaches that wait for a dial.

use std::time::Instant;

use super::admission::limited_answer;
use super::connection::{Kind, index};
use super::pair::{Leg, LinkPair, SessionPair, SessionRef, Waiting, Way};
use super::settings::{ConnectorId, Destination, Direction, ErrorConditions};
use super::{ConnectionKey, Router};
use crate::amqp::condition::{self, AmqpError};
use crate::amqp::edit::EditedTail;
use crate::amqp::performative::{Attach, Performative, Role};
use crate::amqp::serial::{Channel, Handle};
use crate::amqp::terminus::{Terminus, TerminusKind};
use crate::endpoint::SessionError;
use crate::endpoint::limits;
use crate::endpoint::session::AttachKind;

/// The pseudo-address of a transaction coordinator (qdrouterd 1.19).
const COORDINATOR: &str = "$coordinator";

/// Where a device's attach goes.
struct Decision {
    connector: ConnectorId,
    survives_disconnect: bool,
}

impl Router {
    #[expect(clippy::too_many_arguments, reason = "an attach and where it came from")]
    pub(super) fn on_attach(
        &mut self,
        key: ConnectionKey,
        channel: Channel,
        handle: Handle,
        kind: AttachKind,
        attach: &Attach<'_>,
        body: &[u8],
        now: Instant,
    ) {
        let Some(entry) = self.entry_mut(key) else { return };
        match (entry.kind, kind) {
            (Kind::Device(_), AttachKind::Request) => {
                self.on_device_attach(key, channel, handle, attach, body, now);
            }
            (Kind::Upstream(_), AttachKind::Answer) => {
                let owner = entry
                    .connection
                    .link_mut(channel, handle)
                    .and_then(|link| link.owner);
                if let Some(number) = owner {
                    self.on_upstream_answer(number, attach);
                }
            }
            (Kind::Upstream(_), AttachKind::Request) | (Kind::Device(_), AttachKind::Answer) => {
                let error = AmqpError::new(condition::NOT_ALLOWED, "only devices may attach links here");
                self.refuse(key, channel, handle, attach, &error);
            }
        }
    }

    fn on_device_attach(
        &mut self,
        key: ConnectionKey,
        channel: Channel,
        handle: Handle,
        attach: &Attach<'_>,
        body: &[u8],
        now: Instant,
    ) {
        self.link_number += 1;
        let number = self.link_number;
        if let Some(entry) = self.entry(key) {
            tracing::info!(
                target: "ROUTER_CORE",
                "[C{}][L{number}] Link attached: dir={} source={} target={}",
                entry.connection.number,
                if attach.role == Role::Sender { "in" } else { "out" },
                describe(attach.source),
                describe(attach.target),
            );
        }
        if let Err(error) = self.admit_link(key, attach, now) {
            return self.refuse(key, channel, handle, attach, &error);
        }
        let decision = match self.decide(attach) {
            Ok(decision) => decision,
            Err(error) => return self.refuse(key, channel, handle, attach, &error),
        };
        let id = decision.connector;
        let Some(session_pair) = self.session_pair(
            SessionRef {
                connection: key,
                channel,
            },
            id,
        ) else {
            return;
        };
        let link = LinkPair {
            session_pair,
            device: Some(handle),
            upstream: None,
            role: attach.role,
            number,
            name: attach.name.into(),
            upstream_name: None,
            waiting: None,
            survives_disconnect: decision.survives_disconnect,
            is_granted: false,
            is_answered: false,
            delivering: None,
            message_size: self.message_size(key, attach.role),
            deliveries: 0,
        };
        let pair = u32::try_from(self.link_pairs.insert(link)).unwrap_or(u32::MAX);
        if let Some(session_pair) = self.session_pairs.get_mut(index(session_pair)) {
            session_pair.links.push(pair);
        }
        if let Some(link) = self
            .entry_mut(key)
            .and_then(|entry| entry.connection.link_mut(channel, handle))
        {
            link.owner = Some(pair);
        }
        if let Some(connector) = self.connectors.get_mut(&id) {
            connector.users.insert(key);
            connector.unused_since = None;
        }
        match self.usable_connection(id) {
            Some(_) => self.start_link(pair, attach),
            None => self.wait(pair, id, body, now),
        }
    }

    /// The route of an attach: by the target's address if the device sends, by the source's if it receives.
    fn decide(&mut self, attach: &Attach<'_>) -> Result<Decision, AmqpError> {
        let malformed = |which: &str| AmqpError::new(condition::DECODE_ERROR, format!("malformed {which}"));
        let source = attach
            .source
            .map(Terminus::parse)
            .transpose()
            .map_err(|_| malformed("source"))?;
        let target = attach
            .target
            .map(Terminus::parse)
            .transpose()
            .map_err(|_| malformed("target"))?;
        let (direction, terminus) = match attach.role {
            Role::Sender => (Direction::In, target),
            Role::Receiver => (Direction::Out, source),
        };
        let address = terminus.and_then(|terminus| match terminus.kind {
            TerminusKind::Coordinator => Some(COORDINATOR),
            TerminusKind::Source | TerminusKind::Target => terminus.dynamic_address.or(terminus.address),
        });
        let Some(address) = address else {
            return Err(AmqpError::new(
                condition::NOT_FOUND,
                "The attach names no address; this router routes links by address only",
            ));
        };
        let Some(connector) = self.choose_connector(direction, address) else {
            let way = if direction == Direction::In { "in" } else { "out" };
            let mut error = AmqpError::new(
                condition::NOT_FOUND,
                format!(
                    "No link route with direction {way} matches the address '{}'",
                    excerpt(address)
                ),
            );
            if address == COORDINATOR {
                error.condition = condition::PRECONDITION_FAILED;
                error.description =
                    "Transactions need a link route with prefix $coordinator to a broker".into();
            }
            return Err(error);
        };
        let survives_disconnect = terminus.is_some_and(|terminus| terminus.survives_disconnect());
        Ok(Decision {
            connector,
            survives_disconnect,
        })
    }

    /// A connector of the best route: one that is open before one that must be dialed, in turn among equals.
    fn choose_connector(&mut self, direction: Direction, address: &str) -> Option<ConnectorId> {
        let mut candidates: Vec<ConnectorId> = Vec::new();
        for route in self.routes.find(direction, address) {
            let serves = |(&id, connector): (&ConnectorId, &super::Connector)| {
                let is_it = match &route.destination {
                    Destination::Connection(name) => connector.settings.name == *name,
                    Destination::Container(id) if connector.open_connection().is_some() => {
                        connector.container_id.as_ref() == Some(id)
                    }
                    // Not known yet, or was it when it was last open: worth waiting for.
                    Destination::Container(id) => {
                        connector.is_persistent() && connector.container_id.as_ref().is_none_or(|c| c == id)
                    }
                };
                is_it.then_some(id)
            };
            candidates.extend(self.connectors.iter().filter_map(serves));
        }
        let open: Vec<ConnectorId> = candidates
            .iter()
            .copied()
            .filter(|&id| self.usable_connection(id).is_some())
            .collect();
        let best = if open.is_empty() { candidates } else { open };
        if best.len() > 1 {
            self.rotation = self.rotation.wrapping_add(1);
        }
        best.get(self.rotation.checked_rem(best.len())?).copied()
    }

    /// A connector's connection, if links can be attached on it now.
    fn usable_connection(&self, id: ConnectorId) -> Option<ConnectionKey> {
        let key = self.connectors.get(&id)?.open_connection()?;
        self.entry(key)
            .filter(|entry| entry.connection.is_open())
            .map(|_| key)
    }

    /// The pair of this device session and a session on the connector's connection, made if there is none.
    fn session_pair(&mut self, device: SessionRef, connector: ConnectorId) -> Option<u32> {
        let open = self.usable_connection(connector);
        let session = self
            .entry(device.connection)?
            .connection
            .session(device.channel)?;
        let known = session.owners.iter().copied().find(|&pair| {
            self.session_pairs.get(index(pair)).is_some_and(|pair| {
                pair.connector == connector
                    && pair.upstream.map(|s| s.connection) == open.filter(|_| pair.upstream.is_some())
            })
        });
        if known.is_some() {
            return known;
        }
        let pair = u32::try_from(self.session_pairs.insert(SessionPair::new(device, connector))).ok()?;
        self.entry_mut(device.connection)?
            .connection
            .session_mut(device.channel)?
            .owners
            .push(pair);
        Some(pair)
    }

    /// Attaches the link at the hub, on a session that is begun if it has to be.
    fn start_link(&mut self, number: u32, attach: &Attach<'_>) {
        if let Err(error) = self.try_start_link(number, attach) {
            let Some((connection, channel, handle)) = self.link_end(number, Leg::Device) else {
                return;
            };
            self.free_and_pump(number);
            self.refuse(connection, channel, handle, attach, &error);
        }
    }

    fn try_start_link(&mut self, number: u32, attach: &Attach<'_>) -> Result<(), AmqpError> {
        let lost = || AmqpError::new(condition::INTERNAL_ERROR, "the link's session is gone");
        let link = self.link_pairs.get(index(number)).ok_or_else(lost)?;
        let (pair, role, name) = (link.session_pair, link.role, link.name.clone());
        let session_pair = self.session_pairs.get(index(pair)).ok_or_else(lost)?;
        let (id, device) = (session_pair.connector, session_pair.device.ok_or_else(lost)?);
        let hub = self.usable_connection(id).ok_or_else(lost)?;
        let upstream = match session_pair.upstream {
            Some(session) => session,
            None => {
                let entry = self.entry_mut(hub).ok_or_else(lost)?;
                let channel = entry.connection.begin_session().map_err(|_| {
                    AmqpError::new(
                        condition::RESOURCE_LIMIT_EXCEEDED,
                        "the hub allows no more sessions",
                    )
                })?;
                if let Some(session) = entry.connection.session_mut(channel) {
                    session.owners.push(pair);
                }
                SessionRef {
                    connection: hub,
                    channel,
                }
            }
        };
        if let Some(session_pair) = self.session_pairs.get_mut(index(pair)) {
            session_pair.upstream = Some(upstream);
        }
        let container_id = self
            .entry(device.connection)
            .map(|entry| entry.container_id.clone())
            .unwrap_or_default();
        let connector = self.connectors.get_mut(&id).ok_or_else(lost)?;
        let upstream_name = connector.claim_name(role, &name, &container_id);
        let entry = self.connections.get_mut(hub.index()).ok_or_else(lost)?;
        let attached =
            entry
                .connection
                .attach_link(upstream.channel, &upstream_name, role, number, attach.tail);
        let handle = match attached {
            Ok(handle) => handle,
            Err(error) => {
                connector.names.remove(&(role, upstream_name));
                let what = if error == SessionError::AttachTooLarge {
                    "the attach is larger than the hub's frames"
                } else {
                    "the hub allows no more links on a session"
                };
                return Err(AmqpError::new(condition::RESOURCE_LIMIT_EXCEEDED, what));
            }
        };
        let flow = match self.link_pairs.get_mut(index(number)) {
            Some(link) => {
                link.upstream = Some(handle);
                link.upstream_name = Some(upstream_name);
                link.waiting.take().and_then(|waiting| waiting.flow)
            }
            None => None,
        };
        if let Some(body) = flow
            && let Ok(Performative::Flow(flow)) = Performative::parse(&body)
            && let Some(flow) = flow.link
        {
            self.forward_flow(number, Leg::Upstream, flow.tail);
        }
        self.feeds(device.connection, hub);
        self.wake(hub);
        Ok(())
    }

    /// The hub answered: so does the device's side, with everything that the hub said.
    fn on_upstream_answer(&mut self, number: u32, attach: &Attach<'_>) {
        let Some(link) = self.link_pairs.get_mut(index(number)) else {
            return;
        };
        link.is_answered = true;
        let (pair, way) = (link.session_pair, link.way());
        let limited = limited_answer(link, attach, attach.tail);
        let tail = limited.as_ref().map_or(attach.tail, EditedTail::tail);
        if let Some((connection, channel, handle)) = self.link_end(number, Leg::Device)
            && let Some(entry) = self.entry_mut(connection)
        {
            entry.connection.answer_attach(channel, handle, tail);
            self.wake(connection);
        }
        self.pump(pair, way);
    }

    /// Answers an attach with a null terminus and a detach (AMQP 1.0 part 2, §2.6.3).
    fn refuse(
        &mut self,
        key: ConnectionKey,
        channel: Channel,
        handle: Handle,
        attach: &Attach<'_>,
        error: &AmqpError,
    ) {
        let Some(entry) = self.entry_mut(key) else { return };
        tracing::info!(
            target: "ROUTER_CORE",
            "[C{}] Link '{}' refused: {} {}",
            entry.connection.number,
            excerpt(attach.name),
            error.condition,
            excerpt(&error.description)
        );
        let (source, target) = match attach.role {
            Role::Sender => (attach.source, None),
            Role::Receiver => (None, attach.target),
        };
        entry
            .connection
            .refuse_attach(channel, handle, source, target, Some(error));
        self.wake(key);
    }

    // ---- attaches that wait --------------------------------------------------------------------------------------

    /// Keeps an attach until its connector is open.
    fn wait(&mut self, number: u32, id: ConnectorId, attach: &[u8], now: Instant) {
        let deadline = now + self.settings.attach_timeout;
        let Some(connector) = self.connectors.get_mut(&id) else {
            return;
        };
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
        connector.waiting.push_back(number);
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

    /// The connector is open: everything that waited for it starts.
    pub(super) fn start_waiting(&mut self, id: ConnectorId) {
        let Some(connector) = self.connectors.get_mut(&id) else {
            return;
        };
        for number in std::mem::take(&mut connector.waiting) {
            let Some(key) = self
                .link_end(number, Leg::Device)
                .map(|(connection, _, _)| connection)
            else {
                continue;
            };
            if let Some(connector) = self.connectors.get_mut(&id) {
                connector.users.insert(key);
                connector.unused_since = None;
            }
            let Some(link) = self.link_pairs.get_mut(index(number)) else {
                continue;
            };
            let Some(waiting) = link.waiting.as_mut() else {
                continue;
            };
            let body = std::mem::take(&mut waiting.attach);
            if let Ok(Performative::Attach(attach)) = Performative::parse(&body) {
                self.start_link(number, &attach);
            }
        }
    }

    /// Refuses the attaches that have waited long enough.
    pub(super) fn refuse_overdue(&mut self, id: ConnectorId, now: Instant) {
        while let Some(connector) = self.connectors.get(&id) {
            let Some(&number) = connector.waiting.front() else {
                return;
            };
            let deadline = self
                .link_pairs
                .get(index(number))
                .and_then(|link| Some(link.waiting.as_ref()?.deadline));
            match deadline {
                Some(deadline) if deadline > now => return,
                Some(_) => {}
                None => {
                    if let Some(connector) = self.connectors.get_mut(&id) {
                        connector.waiting.pop_front();
                    }
                    continue;
                }
            }
            let waited = self.settings.attach_timeout.as_secs();
            let what = format!(
                "No connection to {} ({}) within {waited} s",
                connector.settings.name, connector.settings.address
            );
            let error = self.unreachable_error(&what);
            self.refuse_waiting(number, Some(&error));
        }
    }

    /// The error for a device whose route has no connection.
    pub(super) fn unreachable_error(&self, what: &str) -> AmqpError {
        self.route_error(condition::QD_NO_ROUTE, "No route to the destination node", what)
    }

    /// The error for a device whose link's connection is gone.
    pub(super) fn lost_error(&self, what: &str) -> AmqpError {
        self.route_error(
            condition::QD_LINK_LOST,
            "Connectivity to the peer container was lost",
            what,
        )
    }

    fn route_error(&self, qd: &'static str, qd_text: &str, what: &str) -> AmqpError {
        match self.settings.error_conditions {
            ErrorConditions::Qd => AmqpError::new(qd, qd_text),
            ErrorConditions::Amqp => AmqpError {
                qd_condition: Some(qd),
                ..AmqpError::new(condition::DETACH_FORCED, format!("{qd}: {qd_text}. {what}"))
            },
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
            .take()
            .map(|waiting| waiting.attach)
            .unwrap_or_default();
        let end = self.link_end(number, Leg::Device);
        self.forget_waiting(number);
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

    /// Frees a link that never was, and what its device had sent on it: others may wait behind that.
    fn free_and_pump(&mut self, number: u32) {
        let pair = self.link_pairs.get(index(number)).map(|link| link.session_pair);
        self.free_link_pair(number);
        if let Some(pair) = pair {
            self.pump(pair, Way::Up);
        }
    }

    /// Takes a link off its connector's list.
    pub(super) fn forget_waiting(&mut self, number: u32) {
        let pair = self.link_pairs.get(index(number)).map(|link| link.session_pair);
        let id = pair
            .and_then(|pair| self.session_pairs.get(index(pair)))
            .map(|pair| pair.connector);
        if let Some(connector) = id.and_then(|id| self.connectors.get_mut(&id)) {
            connector.waiting.retain(|&other| other != number);
        }
    }
}

/// What a peer wrote, as log lines show it: not as long as a frame. (The log escapes control characters.)
fn excerpt(text: &str) -> String {
    text.chars().take(256).collect()
}

/// A terminus as log lines show it (qdrouterd 1.19).
fn describe(encoded: Option<&[u8]>) -> String {
    let Some(Ok(terminus)) = encoded.map(Terminus::parse) else {
        return "{<none> expire:sess}".into();
    };
    if terminus.kind == TerminusKind::Coordinator {
        return "{<coordinator>}".into();
    }
    let mut text = String::from("{");
    if terminus.dynamic {
        text.push_str("(dyn)");
    }
    match terminus.address {
        Some(address) => text.push_str(&excerpt(address)),
        None => text.push_str("<none>"),
    }
    text.push_str(match terminus.durable {
        1 => " dur:config",
        2 => " dur:deliveries",
        _ => "",
    });
    text.push_str(match terminus.expiry_policy {
        Some("link-detach") => " expire:link",
        Some("connection-close") => " expire:conn",
        Some("never") => "",
        _ => " expire:sess",
    });
    if terminus.timeout > 0 {
        text.push_str(&format!(" timeout:{}", terminus.timeout));
    }
    text.push('}');
    text
}
