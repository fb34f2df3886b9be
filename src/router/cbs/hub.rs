//! The router's own `$cbs` pair on a connection to a hub: one per connection, on a session of its own.

use std::collections::VecDeque;
use std::time::Instant;

use super::device::ACCEPTED_TAIL;
use super::request::Answer;
use super::{CBS, From, Pending, Unsent};
use crate::amqp::codes::{descriptor, format};
use crate::amqp::condition::{AmqpError, ErrorView};
use crate::amqp::delivery::write_accepted;
use crate::amqp::fields::Tail;
use crate::amqp::originate::{self, AttachFields};
use crate::amqp::performative::{Attach, Disposition, Flow, Role, Transfer};
use crate::amqp::reader::Reader;
use crate::amqp::serial::{Channel, DeliveryId, Handle};
use crate::amqp::terminus::TerminusKind;
use crate::amqp::value::Value;
use crate::endpoint::limits;
use crate::router::local::{LocalReceiver, LocalSender, Taken};
use crate::router::pace::Admit;
use crate::router::settings::ConnectorId;
use crate::router::{ConnectionKey, Router};

/// Name and target of our receiver: where answers are to go, for hubs that look.
pub(super) const REPLY_TO: &str = "cbs-receiver";
const SENDER: &str = "cbs-sender";

/// See the module.
#[derive(Debug)]
pub(in crate::router) struct HubCbs {
    hub: ConnectionKey,
    channel: Channel,
    sender: Handle,
    receiver: Handle,
    sending: LocalSender,
    receiving: LocalReceiver,
    /// Requests that the hub has neither settled nor answered.
    unsettled: VecDeque<(DeliveryId, u64)>,
}

impl HubCbs {
    /// Nobody waits for the answer to this request any more.
    pub(super) fn forget(&mut self, number: u64) {
        self.sending.cancel(number);
        // As a rule it is the oldest.
        if let Some(place) = self.unsettled.iter().position(|&(_, other)| other == number) {
            self.unsettled.remove(place);
        }
    }
}

impl Router {
    /// Sends the requests that wait for a connector, if it is open, and as fast as their devices may start there.
    pub(in crate::router) fn send_unsent(&mut self, id: ConnectorId, now: Instant) {
        while let Some(hub) = self.usable_connection(id)
            && let Some(device) = self.connectors.get_mut(&id).and_then(|it| it.unsent.front())
        {
            let is_there = self.entry(device).is_some();
            let Some(connector) = self.connectors.get_mut(&id) else {
                return;
            };
            // The token is good on this connection only, so the device stays. One that has gone would never leave it.
            if is_there && connector.admit_device(device, now) != Admit::Now {
                return;
            }
            for number in connector.unsent.take(device) {
                match is_there {
                    true => self.send_request(id, hub, number),
                    false => drop(self.forget_request(number)),
                }
            }
        }
    }

    /// Sends what a device has asked for that has started on the connection: it does not wait for those who have not.
    pub(super) fn send_unsent_of_started(&mut self, id: ConnectorId, device: ConnectionKey) {
        let Some(hub) = self.usable_connection(id) else {
            return;
        };
        let connector = self.connectors.get_mut(&id);
        if let Some(connector) = connector.filter(|connector| connector.started.contains(&device)) {
            for number in connector.unsent.take(device) {
                self.send_request(id, hub, number);
            }
        }
    }

    fn send_request(&mut self, id: ConnectorId, hub: ConnectionKey, number: u64) {
        if !self.relay.pending.contains_key(&number) {
            // It failed with one before it.
            return;
        }
        let is_there = self
            .connectors
            .get(&id)
            .and_then(|connector| connector.cbs.as_ref())
            .is_some_and(|cbs| cbs.hub == hub);
        if !is_there && let Err(error) = self.open_pair(id, hub) {
            return self.fail_requests(id, &error, self.now);
        }
        let Some(pending) = self.relay.pending.get_mut(&number) else {
            return;
        };
        pending.sent_on = Some(hub);
        let (device, payload) = (pending.from.device(), pending.payload.clone());
        let is_traced = self.is_traced(device);
        if let Some(connector) = self.connectors.get_mut(&id)
            && let Some(cbs) = &mut connector.cbs
        {
            cbs.sending.line_up(number, payload, is_traced);
        }
        self.pump_hub(id);
    }

    fn open_pair(&mut self, id: ConnectorId, hub: ConnectionKey) -> Result<(), AmqpError> {
        let refused = |what: &str| AmqpError::new(crate::amqp::condition::RESOURCE_LIMIT_EXCEEDED, what);
        let entry = self
            .entry_mut(hub)
            .ok_or_else(|| refused("the connection to the hub is gone"))?;
        let connection = &mut entry.connection;
        let channel = connection
            .begin_session(false)
            .map_err(|_| refused("the hub allows no more sessions"))?;
        let mut attach = |name: &str, role, source: &str, target: &str| {
            let source = originate::terminus(TerminusKind::Source, source);
            let target = originate::terminus(TerminusKind::Target, target);
            let fields = AttachFields {
                carried: [None, None, Some(&source), Some(&target)],
                role,
                max_message_size: 0,
                properties: None,
            };
            let bytes = fields.encode();
            let tail = Tail {
                count: AttachFields::COUNT,
                bytes: &bytes,
            };
            connection
                .attach_link(channel, name, role, None, tail)
                .map_err(|_| refused("the hub allows no $cbs links"))
        };
        let pair = attach(SENDER, Role::Sender, SENDER, CBS)
            .and_then(|sender| Ok((sender, attach(REPLY_TO, Role::Receiver, CBS, REPLY_TO)?)));
        let (sender, receiver) = match pair {
            Ok(pair) => pair,
            Err(error) => {
                connection.end_session(channel, None);
                self.wake(hub);
                return Err(error);
            }
        };
        let mut receiving = LocalReceiver::default();
        receiving.top_up(limits::CBS_HUB_CREDIT, connection, channel, receiver);
        self.wake(hub);
        if let Some(connector) = self.connectors.get_mut(&id) {
            connector.cbs = Some(Box::new(HubCbs {
                hub,
                channel,
                sender,
                receiver,
                sending: LocalSender::default(),
                receiving,
                unsettled: VecDeque::new(),
            }));
        }
        Ok(())
    }

    /// The pair on this connection, if the channel is its session's.
    fn hub_cbs(&mut self, hub: ConnectionKey, channel: Channel) -> Option<(ConnectorId, &mut HubCbs)> {
        let id = self.entry(hub)?.kind.connector()?;
        let cbs = self.connectors.get_mut(&id)?.cbs.as_deref_mut()?;
        (cbs.hub == hub && cbs.channel == channel).then_some((id, cbs))
    }

    /// Sends what the hub's credit and window allow.
    pub(super) fn pump_hub(&mut self, id: ConnectorId) {
        let Some(cbs) = self
            .connectors
            .get_mut(&id)
            .and_then(|connector| connector.cbs.as_deref_mut())
        else {
            return;
        };
        let Some(entry) = self
            .connections
            .get_mut(cbs.hub.index())
            .filter(|entry| entry.generation == cbs.hub.generation)
        else {
            return;
        };
        let unsettled = &mut cbs.unsettled;
        cbs.sending
            .pump(&mut entry.connection, cbs.channel, cbs.sender, |number, id| {
                unsettled.push_back((id, number));
            });
        let hub = cbs.hub;
        self.wake(hub);
    }

    /// The hub's window may be wider.
    pub(in crate::router) fn on_hub_window(&mut self, hub: ConnectionKey, channel: Channel) {
        if let Some((id, _)) = self.hub_cbs(hub, channel) {
            self.pump_hub(id);
        }
    }

    pub(in crate::router) fn on_hub_cbs_attached(
        &mut self,
        hub: ConnectionKey,
        channel: Channel,
        handle: Handle,
        attach: &Attach<'_>,
    ) {
        let Some((id, cbs)) = self.hub_cbs(hub, channel) else {
            return;
        };
        if handle == cbs.receiver && attach.initial_delivery_count.is_some_and(|count| count.0 != 0) {
            cbs.receiving = LocalReceiver::new(attach.initial_delivery_count);
            if let Some(entry) = self
                .connections
                .get_mut(hub.index())
                .filter(|entry| entry.generation == hub.generation)
                && let Some(cbs) = self.connectors.get_mut(&id).and_then(|it| it.cbs.as_deref_mut())
            {
                cbs.receiving
                    .top_up(limits::CBS_HUB_CREDIT, &mut entry.connection, channel, handle);
            }
        }
        self.pump_hub(id);
    }

    pub(super) fn on_hub_cbs_flow(
        &mut self,
        hub: ConnectionKey,
        channel: Channel,
        handle: Handle,
        flow: &Flow<'_>,
    ) -> bool {
        let Some((id, cbs)) = self.hub_cbs(hub, channel) else {
            return false;
        };
        let is_sender = handle == cbs.sender;
        if is_sender && let Some(link) = &flow.link {
            cbs.sending.on_flow(link);
        }
        self.pump_hub(id);
        if flow.echo
            && let Some(entry) = self
                .connections
                .get_mut(hub.index())
                .filter(|entry| entry.generation == hub.generation)
            && let Some(cbs) = self
                .connectors
                .get(&id)
                .and_then(|connector| connector.cbs.as_deref())
        {
            if is_sender {
                cbs.sending.echo(&mut entry.connection, channel, handle);
            } else {
                cbs.receiving.echo(&mut entry.connection, channel, handle);
            }
        }
        true
    }

    pub(super) fn on_hub_cbs_transfer(
        &mut self,
        hub: ConnectionKey,
        channel: Channel,
        handle: Handle,
        transfer: &Transfer<'_>,
        body: &[u8],
        now: Instant,
    ) {
        let Some((id, cbs)) = self.hub_cbs(hub, channel) else {
            return;
        };
        if handle != cbs.receiver {
            return;
        }
        let taken = cbs.receiving.take(transfer, limits::CBS_ANSWER_BYTES);
        let (delivery, is_settled, payload) = match taken {
            Taken::Nothing if !transfer.aborted => return,
            Taken::Overrun => return,
            // Nobody settles it, but its credit is used.
            Taken::Nothing => (DeliveryId::default(), true, None),
            Taken::Message {
                id,
                is_settled,
                payload,
            } => (id, is_settled, Some(payload)),
            Taken::TooLarge { id, is_settled } => (id, is_settled, None),
        };
        if let Some(entry) = self
            .connections
            .get_mut(hub.index())
            .filter(|entry| entry.generation == hub.generation)
            && let Some(cbs) = self
                .connectors
                .get_mut(&id)
                .and_then(|connector| connector.cbs.as_deref_mut())
        {
            if !is_settled {
                entry
                    .connection
                    .settle(channel, Role::Receiver, delivery, delivery, write_accepted);
            }
            cbs.receiving
                .top_up(limits::CBS_HUB_CREDIT, &mut entry.connection, channel, handle);
        }
        self.wake(hub);
        let answer = payload.and_then(|payload| Answer::read(payload.expose()));
        let number = answer
            .as_ref()
            .and_then(|answer| match &answer.message.properties.correlation_id {
                Some(Value::String(number)) => number.parse().ok(),
                _ => None,
            });
        match (answer, number) {
            (Some(answer), Some(number)) => {
                let device = self.relay.pending.get(&number).map(|it| it.from.device());
                if device.is_some_and(|device| self.is_traced(device))
                    && let Some(entry) = self.entry(hub)
                {
                    entry.connection.show_for_device(channel, body);
                }
                self.on_answer(hub, number, answer, now);
            }
            _ => {
                tracing::debug!(target: "ROUTER_CORE", "The hub's $cbs sent what answers none of our requests");
            }
        }
    }

    /// What the hub says of the delivery of our requests goes on to whoever asked.
    pub(in crate::router) fn on_hub_cbs_disposition(
        &mut self,
        hub: ConnectionKey,
        channel: Channel,
        disposition: &Disposition<'_>,
    ) {
        if disposition.role != Role::Receiver {
            return;
        }
        let state = disposition.tail.field(1);
        let outcome = state
            .and_then(|state| Reader::new(state).composite().ok())
            .map(|(code, _)| code);
        if !disposition.settled && matches!(outcome, None | Some(descriptor::RECEIVED)) {
            return;
        }
        let span = disposition.last.since(disposition.first);
        let Some((_, cbs)) = self.hub_cbs(hub, channel) else {
            return;
        };
        let mut settled = Vec::new();
        cbs.unsettled.retain(|&(id, number)| {
            let is_meant = id.since(disposition.first) <= span;
            if is_meant {
                settled.push((id, number));
            }
            !is_meant
        });
        for (id, number) in settled {
            if !disposition.settled
                && let Some(entry) = self.entry_mut(hub)
            {
                // The sender has the last word (AMQP 1.0 part 2, §2.6.12).
                entry
                    .connection
                    .settle(channel, Role::Sender, id, id, write_accepted);
            }
            match state {
                Some(state) if outcome != Some(descriptor::ACCEPTED) => self.reject_request(number, state),
                Some(_) | None => self.accept_request(number),
            }
        }
        self.wake(hub);
    }

    fn accept_request(&mut self, number: u64) {
        let Some(pending) = self.relay.pending.get_mut(&number) else {
            return;
        };
        if let From::Link(asked) = &mut pending.from {
            let unsettled = asked.clone();
            asked.is_settled = true;
            self.settle_asked(&unsettled, ACCEPTED_TAIL);
        }
    }

    /// The hub takes a request with an outcome other than accepted: there will be no answer.
    fn reject_request(&mut self, number: u64, state: &[u8]) {
        let Some(pending) = self.forget_request(number) else {
            return;
        };
        tracing::info!(
            target: "ROUTER_CORE",
            "The hub's $cbs did not accept a request: the outcome goes to whoever asked"
        );
        match pending.from {
            From::Link(asked) => {
                let mut bytes = vec![format::TRUE];
                bytes.extend_from_slice(state);
                let tail = Tail {
                    count: 2,
                    bytes: &bytes,
                };
                self.settle_asked(&asked, tail);
                self.finish_asked(&asked);
                self.grant_requests(asked.device);
                let now = self.now;
                self.start_behind_tokens(pending.connector, asked.device, now);
            }
            From::Again(_) | From::Login(_) => {
                let error = self.unreachable_error("The hub's $cbs did not accept the request");
                let now = self.now;
                self.tell_failure(&pending.from, pending.connector, &error, now);
            }
        }
    }

    /// The hub detached one of the pair's links.
    pub(super) fn on_hub_cbs_detached(
        &mut self,
        hub: ConnectionKey,
        channel: Channel,
        error: Option<&[u8]>,
        now: Instant,
    ) -> bool {
        let Some((id, cbs)) = self.hub_cbs(hub, channel) else {
            return false;
        };
        let channel = cbs.channel;
        if let Some(connector) = self.connectors.get_mut(&id) {
            connector.cbs = None;
        }
        if let Some(entry) = self.entry_mut(hub) {
            entry.connection.end_session(channel, None);
        }
        self.wake(hub);
        self.lose_requests(id, error, now);
        true
    }

    /// The hub ended the pair's session.
    pub(in crate::router) fn on_hub_cbs_ended(
        &mut self,
        hub: ConnectionKey,
        channel: Channel,
        error: Option<&[u8]>,
        now: Instant,
    ) {
        let Some((id, _)) = self.hub_cbs(hub, channel) else {
            return;
        };
        if let Some(connector) = self.connectors.get_mut(&id) {
            connector.cbs = None;
        }
        self.lose_requests(id, error, now);
    }

    /// The next request gets a new pair; those under way are not answered any more.
    fn lose_requests(&mut self, id: ConnectorId, error: Option<&[u8]>, now: Instant) {
        let error = match error.and_then(|error| ErrorView::parse(error).ok()) {
            Some(error) => AmqpError::new(
                crate::amqp::condition::DETACH_FORCED,
                format!(
                    "The hub detached $cbs: {} {}",
                    error.condition,
                    error.description.unwrap_or_default()
                ),
            ),
            None => self.lost_error("The hub detached $cbs"),
        };
        tracing::info!(target: "ROUTER_CORE", "{}", error.description);
        self.fail_requests(id, &error, now);
    }

    /// A connection of a connector is gone: its requests go out again on the next.
    pub(in crate::router) fn requeue_requests(&mut self, id: ConnectorId, hub: ConnectionKey) {
        for pending in self.relay.pending.values_mut() {
            if pending.sent_on == Some(hub) {
                pending.sent_on = None;
            }
        }
        self.line_up_requests(id);
    }

    pub(super) fn line_up_requests(&mut self, id: ConnectorId) {
        let pending = self.relay.pending.iter();
        let is_unsent = |pending: &Pending| pending.connector == id && pending.sent_on.is_none();
        if let Some(connector) = self.connectors.get_mut(&id) {
            connector.unsent = Unsent::default();
            for (&number, pending) in pending.filter(|(_, it)| is_unsent(it)) {
                connector.unsent.push(pending.from.device(), number);
            }
        }
    }
}
