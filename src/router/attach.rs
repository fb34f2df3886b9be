//! Attaches: which session pair, the attach at the hub, its answer, and refusals.

use std::time::Instant;

use super::admission::limited_answer;
use super::cbs::{Standing, is_cbs};
use super::connection::{Kind, index};
use super::pair::{Leg, LinkPair, SessionPair, SessionRef, Way};
use super::route::Placing;
use super::settings::{ConnectorId, ErrorConditions};
use super::{ConnectionKey, Router};
use crate::amqp::condition::{self, AmqpError};
use crate::amqp::edit::EditedTail;
use crate::amqp::performative::{Attach, Performative, Role};
use crate::amqp::serial::{Channel, Handle};
use crate::amqp::terminus::{Terminus, TerminusKind};
use crate::endpoint::SessionError;
use crate::endpoint::limits;
use crate::endpoint::session::AttachKind;

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
            (Kind::Upstream(_) | Kind::Broker(..), AttachKind::Answer) => {
                let owner = entry
                    .connection
                    .link_mut(channel, handle)
                    .and_then(|link| link.owner);
                match owner {
                    Some(number) => self.on_upstream_answer(number, attach),
                    None => self.on_hub_cbs_attached(key, channel, handle, attach),
                }
            }
            (Kind::Upstream(_) | Kind::Broker(..), AttachKind::Request)
            | (Kind::Device(_), AttachKind::Answer) => {
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
        let decision = match self.decide(key, attach, Placing::InTurn) {
            Ok(decision) => decision,
            Err(error) => return self.refuse(key, channel, handle, attach, &error),
        };
        let pool = decision.connector;
        if is_cbs(&decision.address) && self.relays_cbs(pool) {
            return self.attach_cbs(key, channel, handle, attach, self.configured(pool));
        }
        let standing = self.standing(key, pool, &decision.address, now);
        if let Standing::Refused(error) = standing {
            self.report_suspect(key, &error, now);
            return self.refuse(key, channel, handle, attach, &error);
        }
        let id = match self.take_slot(pool, decision.slot) {
            Ok(id) => id,
            Err(error) => return self.refuse(key, channel, handle, attach, &error),
        };
        self.expect_tokens(key, id, now);
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
            readdressing: decision.readdressing,
            own_node: None,
            survives_disconnect: decision.survives_disconnect,
            is_granted: false,
            is_answered: false,
            closing: None,
            parked: 0..0,
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
        if standing == Standing::Awaited {
            self.wait_for_tokens(pair, id, body, now);
        } else if !self.may_start(key, id, now) {
            self.wait(pair, id, body, now);
        } else if self.lacks_token(key, id, &decision.address, now) {
            self.wait_for_tokens(pair, id, body, now);
            self.put_again(key, id, now);
        } else {
            self.put_again(key, id, now);
            self.start_link(pair, attach);
        }
    }

    /// The pair of this device session and a session on the connector's connection, made if there is none.
    pub(super) fn session_pair(&mut self, device: SessionRef, connector: ConnectorId) -> Option<u32> {
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
        if let Some(connector) = self.connectors.get_mut(&connector) {
            connector.unbegun += 1;
        }
        self.entry_mut(device.connection)?
            .connection
            .session_mut(device.channel)?
            .owners
            .push(pair);
        Some(pair)
    }

    /// Attaches the link at the hub, on a session that is begun if it has to be.
    pub(super) fn start_link(&mut self, number: u32, attach: &Attach<'_>) {
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
        let (id, upstream) = (session_pair.connector, session_pair.upstream);
        let device = session_pair.device.ok_or_else(lost)?;
        let hub = self.usable_connection(id).ok_or_else(lost)?;
        if self.upstream_links(device.connection) >= limits::DEVICE_LINKS {
            return Err(AmqpError::new(
                condition::RESOURCE_LIMIT_EXCEEDED,
                "the hub has not let go of too many links that this device has detached",
            ));
        }
        let container_id = self
            .entry(device.connection)
            .map(|entry| entry.container_id.clone())
            .unwrap_or_default();
        if container_id.len() > limits::CONTAINER_ID {
            return Err(AmqpError::new(
                condition::RESOURCE_LIMIT_EXCEEDED,
                "The container-id in the open is too long for the names of links",
            ));
        }
        let upstream = match upstream {
            Some(session) => session,
            None => {
                let is_traced = self.is_traced(device.connection);
                let entry = self.entry_mut(hub).ok_or_else(lost)?;
                let channel = entry.connection.begin_session(is_traced).map_err(|_| {
                    AmqpError::new(
                        condition::RESOURCE_LIMIT_EXCEEDED,
                        "the hub allows no more sessions",
                    )
                })?;
                if let Some(session) = entry.connection.session_mut(channel) {
                    session.owners.push(pair);
                }
                if let Some(connector) = self.connectors.get_mut(&id) {
                    connector.unbegun = connector.unbegun.saturating_sub(1);
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
        self.evict_predecessors(number, device.connection, id, attach);
        // The address that was decided about, or none.
        let edited = match self
            .link_pairs
            .get(index(number))
            .and_then(|link| link.readdressing.as_ref())
        {
            Some(readdressing) => Some(readdressing.towards_hub(role, attach.tail).ok_or_else(|| {
                AmqpError::new(
                    condition::DECODE_ERROR,
                    "the address cannot be changed as the route says",
                )
            })?),
            None => None,
        };
        let tail = edited.as_ref().map_or(attach.tail, EditedTail::tail);
        let connector = self.connectors.get_mut(&id).ok_or_else(lost)?;
        let upstream_name = connector.claim_name(role, &name, &container_id);
        let entry = self.connections.get_mut(hub.index()).ok_or_else(lost)?;
        let attached =
            entry
                .connection
                .attach_link(upstream.channel, &upstream_name, role, Some(number), tail);
        let handle = match attached {
            Ok(handle) => handle,
            Err(error) => {
                connector.names.release(role, &upstream_name);
                return Err(if error == SessionError::FrameSizeTooSmall {
                    let what = "the attach is larger than the hub's max-frame-size";
                    AmqpError::new(error.condition(), what)
                } else {
                    let what = "the hub allows no more links on a session";
                    AmqpError::new(condition::RESOURCE_LIMIT_EXCEEDED, what)
                });
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
        let (pair, way, role) = (link.session_pair, link.way(), link.role);
        // The address is not needed again: an idle link keeps nothing of it.
        let edited = link
            .readdressing
            .take()
            .and_then(|readdressing| readdressing.towards_device(role, attach));
        let tail = edited.as_ref().map_or(attach.tail, EditedTail::tail);
        let limited = limited_answer(link, attach, tail);
        let tail = limited.as_ref().map_or(tail, EditedTail::tail);
        if let Some((connection, channel, handle)) = self.link_end(number, Leg::Device)
            && let Some(entry) = self.entry_mut(connection)
        {
            let answered = entry.connection.answer_attach(channel, handle, tail);
            self.wake(connection);
            if let Err(error) = answered {
                return self.refuse_answered(number, attach, error);
            }
        }
        self.pump(pair, way);
    }

    /// The device cannot be told what the hub answered, so neither gets the link.
    fn refuse_answered(&mut self, number: u32, answer: &Attach<'_>, error: SessionError) {
        let error = AmqpError::new(
            error.condition(),
            "the hub's attach is larger than the device's max-frame-size, even without all that it can lose",
        );
        let device = self.link_end(number, Leg::Device);
        let upstream = self.link_end(number, Leg::Upstream);
        self.free_and_pump(number);
        if let Some((connection, channel, handle)) = device {
            // What was asked for is what the answer repeats.
            let asked = Attach {
                role: answer.role.other(),
                ..*answer
            };
            self.refuse(connection, channel, handle, &asked, &error);
        }
        if let Some((connection, channel, handle)) = upstream
            && let Some(entry) = self.entry_mut(connection)
        {
            entry.connection.detach_link(channel, handle, true, Some(&error));
            self.wake(connection);
        }
    }

    /// Answers an attach with a null terminus and a detach (AMQP 1.0 part 2, §2.6.3).
    pub(super) fn refuse(
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

    /// The error for a device whose route has no connection.
    pub(super) fn unreachable_error(&self, what: &str) -> AmqpError {
        self.route_error(
            condition::DETACH_FORCED,
            condition::QD_NO_ROUTE,
            "No route to the destination node",
            what,
        )
    }

    /// The error for a device whose link's connection is gone.
    pub(super) fn lost_error(&self, what: &str) -> AmqpError {
        self.route_error(
            condition::DETACH_FORCED,
            condition::QD_LINK_LOST,
            "Connectivity to the peer container was lost",
            what,
        )
    }

    /// An event that has a name of its own in qdrouterd, under the condition that the configuration wants.
    pub(super) fn route_error(
        &self,
        amqp: &'static str,
        qd: &'static str,
        qd_text: &str,
        what: &str,
    ) -> AmqpError {
        match self.settings.error_conditions {
            ErrorConditions::Qd => AmqpError::new(qd, qd_text),
            ErrorConditions::Amqp => AmqpError {
                qd_condition: Some(qd),
                ..AmqpError::new(amqp, format!("{qd}: {qd_text}. {what}"))
            },
        }
    }

    /// Frees a link that never was, and what its device had sent on it: others may wait behind that.
    pub(super) fn free_and_pump(&mut self, number: u32) {
        let pair = self.link_pairs.get(index(number)).map(|link| link.session_pair);
        self.free_link_pair(number);
        if let Some(pair) = pair {
            self.pump(pair, Way::Up);
            self.free_if_unused(pair);
        }
    }
}

/// What a peer wrote, as log lines show it: not as long as a frame. (The log escapes control characters.)
pub(super) fn excerpt(text: &str) -> String {
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
