//! The CBS relay: `$cbs` links of devices end in the router, which has one pair of its own per connection to a hub.
//!
//! IoT Hub has one `$cbs` node per connection and sends its answers to whichever receiver it likes, so devices that share
//! a connection must not each have a pair there. A device's request is sent on with a message-id of ours, and its answer
//! goes back to the receiver of the device that asked, with the id that it had, to the AMQP type.
//!
//! ```text
//!   device's sender --> desk::Desk --> Pending --> hub::HubCbs --> the hub's $cbs
//!   device's receiver <-- desk::Desk <-- Pending <-- hub::HubCbs <--+
//!                           grants::Grant <-- accepted
//! ```
//!
//! What the hub accepts authorises the device's own connection, and nobody else's (`grants`). A put-token is idempotent:
//! one whose answer was lost with the connection is sent again on the next.

mod advice;
mod desk;
mod device;
mod grants;
mod hub;
mod place;
mod request;
mod unsent;

use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

use super::admission::Denials;
use super::attach::excerpt;
use super::pair::Leg;
use super::settings::{ConnectorId, Secret};
use super::timer::Owner;
use super::{ConnectionKey, Router, Verdict};
use crate::amqp::condition::AmqpError;
use crate::amqp::message::Message;
use crate::amqp::performative::{Detach, Disposition, Flow, Transfer};
use crate::amqp::serial::{Channel, DeliveryId, Handle};
use crate::amqp::value::Value;
use crate::endpoint::limits;
pub(super) use desk::Desk;
pub(super) use grants::{Standing, is_cbs, names_cbs};
pub(super) use hub::HubCbs;
use request::{Answer, Claim, Operation};
pub(super) use unsent::Unsent;

/// What is said to those who ask when [`limits::CBS_BYTES_TOTAL`] is reached.
const OVERLOADED: &str = "the gateway waits for too many answers from the hub";

/// The address of the node.
pub(super) const CBS: &str = "$cbs";

/// What a router knows of requests that are not answered.
#[derive(Debug, Default)]
pub(super) struct Relay {
    /// By number, which is their order and that of their deadlines.
    pending: BTreeMap<u64, Pending>,
    last: u64,
    /// Bytes of their messages.
    bytes: usize,
    /// The deadline that is in the timers.
    pub(super) scheduled: Option<Instant>,
    complaints: Denials,
    /// What devices ask for that is not their own.
    suspects: Denials,
}

impl Relay {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }
}

/// A request that is not answered.
#[derive(Debug)]
struct Pending {
    from: From,
    connector: ConnectorId,
    operation: Operation,
    /// The message, as the hub gets it.
    payload: Secret<Vec<u8>>,
    deadline: Instant,
    /// The connection that it is on its way on.
    sent_on: Option<ConnectionKey>,
}

/// Who wants to know.
#[derive(Debug)]
enum From {
    /// A device that asked.
    Link(Asked),
    /// The router, for this device: what it had authorised is not known to a new connection.
    Again(ConnectionKey),
    /// The router, for a device that logs in with a token.
    Login(ConnectionKey),
}

impl From {
    const fn device(&self) -> ConnectionKey {
        match self {
            From::Link(asked) => asked.device,
            From::Again(device) | From::Login(device) => *device,
        }
    }
}

/// A device's request.
#[derive(Clone, Debug)]
struct Asked {
    device: ConnectionKey,
    /// Its link, by [`Desk`]'s number; which may be gone, and its handle another's.
    link: u64,
    channel: Channel,
    /// Where the link leads.
    connector: ConnectorId,
    delivery: DeliveryId,
    is_settled: bool,
    /// Its message-id.
    id: Option<Value>,
    reply_to: Option<Box<str>>,
}

impl Router {
    /// Puts a token for a device that logs in with it; [`Router::login_answered`] follows.
    pub(super) fn put_token_for_login(
        &mut self,
        device: ConnectionKey,
        connector: ConnectorId,
        token: &str,
        now: Instant,
    ) {
        let claim = match Claim::of_sas(request::SAS_TOKEN, token) {
            Ok(claim) => claim,
            Err(fault) => return self.login_answered(device, Verdict::Refused, &fault.to_string(), now),
        };
        if self.relay.bytes + token.len() > limits::CBS_BYTES_TOTAL {
            return self.login_answered(device, Verdict::Unknown, OVERLOADED, now);
        }
        let message = claim.put();
        let Some(slot) = self.slot_for(device, connector, Some(&claim.audience)) else {
            let error = self.full_error(connector);
            return self.login_answered(device, Verdict::Unknown, &error.description, now);
        };
        self.ask(From::Login(device), slot, Operation::Put(claim), message, now);
    }

    /// Sends a request to a hub, as soon as that is there.
    fn ask(&mut self, from: From, id: ConnectorId, operation: Operation, mut message: Message, now: Instant) {
        self.relay.last += 1;
        let number = self.relay.last;
        message.properties.message_id = Some(Value::String(number.to_string()));
        message.properties.reply_to = Some(hub::REPLY_TO.to_owned());
        let mut payload = Vec::new();
        message.encode(&mut payload);
        self.relay.bytes += payload.len();
        if let Some(desk) = self.desk_of(&from) {
            desk.asked_bytes += payload.len();
        }
        let device = from.device();
        let pending = Pending {
            from,
            connector: id,
            operation,
            payload: Secret::new(payload),
            deadline: now + limits::CBS_TIMEOUT,
            sent_on: None,
        };
        self.relay.pending.insert(number, pending);
        if let Some(connector) = self.connectors.get_mut(&id) {
            connector.asking += 1;
            connector.unsent.push(device, number);
        }
        self.arm_relay();
        self.want(id, now);
        self.send_unsent_of_started(id, device);
        self.send_unsent(id, now);
        self.arm_connector(id);
    }

    /// The desk of a device that asked over a link of its own, if it is still there.
    fn desk_of(&mut self, from: &From) -> Option<&mut Desk> {
        match from {
            From::Link(asked) => self.entry_mut(asked.device)?.cbs.as_deref_mut(),
            From::Again(_) | From::Login(_) => None,
        }
    }

    /// The devices whose requests hubs have, and have not answered.
    pub(super) fn devices_with_requests_at_hubs(&self) -> HashSet<ConnectionKey> {
        let pending = self.relay.pending.values();
        pending
            .filter_map(|pending| match (&pending.from, pending.sent_on) {
                (From::Link(asked), Some(_)) => Some(asked.device),
                (From::Link(_) | From::Again(_) | From::Login(_), _) => None,
            })
            .collect()
    }

    fn forget_request(&mut self, number: u64) -> Option<Pending> {
        let pending = self.relay.pending.remove(&number)?;
        let size = pending.payload.expose().len();
        self.relay.bytes = self.relay.bytes.saturating_sub(size);
        if let Some(desk) = self.desk_of(&pending.from) {
            desk.asked_bytes = desk.asked_bytes.saturating_sub(size);
        }
        if let Some(connector) = self.connectors.get_mut(&pending.connector) {
            // What the hub was asked for it may have.
            if let (Operation::Put(claim), None) = (&pending.operation, pending.sent_on) {
                connector.tokens.give_up(&claim.audience);
            }
            connector.asking = connector.asking.saturating_sub(1);
            connector.unsent.forget(pending.from.device(), number);
            if let Some(cbs) = &mut connector.cbs {
                cbs.forget(number);
            }
        }
        // It may have been the last thing that the connection was kept for.
        self.arm_connector(pending.connector);
        Some(pending)
    }

    /// The numbers of the requests to a hub that are not answered, in order.
    fn requests_to(&self, id: ConnectorId) -> Vec<u64> {
        let pending = self.relay.pending.iter();
        pending
            .filter(|(_, pending)| pending.connector == id)
            .map(|(&number, _)| number)
            .collect()
    }

    /// A hub's answer to one of our requests.
    fn on_answer(&mut self, hub: ConnectionKey, number: u64, answer: Answer, now: Instant) {
        let is_asked = |pending: &Pending| pending.sent_on == Some(hub);
        if !self.relay.pending.get(&number).is_some_and(is_asked) {
            // It came too late, and somebody has heard so.
            return;
        }
        let Some(pending) = self.forget_request(number) else {
            return;
        };
        let device = pending.from.device();
        let pending = if answer.is_success() {
            pending
        } else {
            let Some(pending) = self.place_refused(pending, &answer, now) else {
                return;
            };
            pending
        };
        match (&pending.operation, answer.is_success()) {
            (Operation::Put(claim), true) => {
                self.grant(device, pending.connector, hub, claim.clone(), now);
            }
            (Operation::Put(claim), false) => {
                self.explain_refusal(device, pending.connector, claim, &answer, now);
                self.note_refusal(device, claim, &answer);
                if let From::Again(_) = pending.from {
                    self.withdraw(device, claim);
                }
            }
            (Operation::Delete(audience), true) => self.take_back(device, pending.connector, audience),
            (Operation::Delete(_), false) => {}
        }
        match pending.from {
            From::Link(asked) => {
                self.answer_device(asked, answer);
                self.start_behind_tokens(pending.connector, device, now);
            }
            From::Again(_) => self.start_behind_tokens(pending.connector, device, now),
            From::Login(_) => {
                let (verdict, what) = match answer.status {
                    200..=299 => (Verdict::Accepted, "accepts"),
                    // A time-out, and throttling.
                    408 | 429 => (Verdict::Unknown, "cannot judge"),
                    400..=499 => (Verdict::Refused, "refuses"),
                    _ => (Verdict::Unknown, "cannot judge"),
                };
                let (status, text) = (answer.status, excerpt(answer.description()));
                let reason = format!(
                    "the hub ({}) {what} the token: {status} {text}",
                    self.pool_name(pending.connector)
                );
                self.login_answered(device, verdict, &reason, now);
            }
        }
    }

    /// A request comes to nothing: whoever waits for its answer hears why.
    fn fail_request(&mut self, number: u64, error: &AmqpError, now: Instant) {
        if let Some(pending) = self.forget_request(number) {
            self.tell_failure(&pending.from, pending.connector, error, now);
        }
    }

    fn tell_failure(&mut self, from: &From, id: ConnectorId, error: &AmqpError, now: Instant) {
        match *from {
            From::Link(Asked { device, .. }) => {
                self.close_desk(device, id, error);
                self.give_up_again(device, id, error);
            }
            From::Again(device) => self.give_up_again(device, id, error),
            From::Login(device) => self.login_answered(device, Verdict::Unknown, &error.description, now),
        }
    }

    /// No request to this hub will be answered.
    pub(super) fn fail_requests(&mut self, id: ConnectorId, error: &AmqpError, now: Instant) {
        for number in self.requests_to(id) {
            self.fail_request(number, error, now);
        }
    }

    /// Links and requests to one connector are another's: its successor in the configuration. If that does not take
    /// them, they end.
    pub(super) fn move_requests(&mut self, from: ConnectorId, to: ConnectorId, now: Instant) {
        let mut moved = 0;
        for pending in self.relay.pending.values_mut() {
            if let From::Link(asked) = &mut pending.from
                && asked.connector == from
            {
                asked.connector = to;
            }
            if pending.connector == from {
                pending.connector = to;
                pending.sent_on = None;
                moved += 1;
            }
        }
        for (_, entry) in &mut self.connections {
            if let Some(desk) = &mut entry.cbs {
                desk.follow(from, to);
            }
        }
        if let Some(connector) = self.connectors.get_mut(&to) {
            connector.asking += moved;
        }
        self.line_up_requests(to);
        if !self.relays_cbs(to) {
            let name = self.pool_name(to);
            let error = self.unreachable_error(&format!("Connector {name} does not relay $cbs any more"));
            self.end_relay(to, &error, now);
        }
    }

    /// A connector relays no more: its requests come to nothing, and devices' links to it are detached.
    pub(super) fn end_relay(&mut self, id: ConnectorId, error: &AmqpError, now: Instant) {
        self.fail_requests(id, error, now);
        let connections = self.connections.iter();
        let desks = connections.filter(|(_, entry)| entry.cbs.as_ref().is_some_and(|desk| desk.leads_to(id)));
        let devices: Vec<ConnectionKey> = desks.map(|(index, entry)| entry.key(index)).collect();
        for device in devices {
            self.close_desk(device, id, error);
        }
    }

    // ---- time ----------------------------------------------------------------------------------------------------

    pub(super) fn arm_relay(&mut self) {
        let deadline = self.relay.pending.values().next().map(|first| first.deadline);
        self.timers.arm(Owner::Relay, &mut self.relay.scheduled, deadline);
    }

    /// Requests that have waited long enough.
    pub(super) fn on_requests_due(&mut self, now: Instant) {
        while let Some((&number, pending)) = self.relay.pending.first_key_value() {
            if pending.deadline > now {
                return;
            }
            let Some(pending) = self.forget_request(number) else {
                return;
            };
            let (seconds, name) = (limits::CBS_TIMEOUT.as_secs(), self.pool_name(pending.connector));
            let what = match pending.sent_on {
                Some(_) => format!("The hub has not answered a request to $cbs within {seconds} s ({name})"),
                None => format!("No connection to {name} within {seconds} s"),
            };
            let device = pending.from.device();
            if let Some(more) = self.relay.complaints.note(now) {
                let number = self.entry(device).map_or(0, |entry| entry.connection.number);
                tracing::warn!(target: "ROUTER_CORE", "[C{number}] {what}{more}");
            }
            match pending.from {
                From::Link(asked) if pending.sent_on.is_some() => {
                    self.answer_device(asked, Answer::new(504, &what));
                    self.start_behind_tokens(pending.connector, device, now);
                }
                from @ (From::Link(_) | From::Again(_) | From::Login(_)) => {
                    let error = self.unreachable_error(&what);
                    self.tell_failure(&from, pending.connector, &error, now);
                }
            }
        }
    }
}

// ---- links that end here, whosever they are ---------------------------------------------------------------------

impl Router {
    pub(super) fn on_local_transfer(
        &mut self,
        key: ConnectionKey,
        channel: Channel,
        handle: Handle,
        transfer: &Transfer<'_>,
        body: &[u8],
        now: Instant,
    ) {
        match self.leg(key) {
            Leg::Device => self.on_desk_transfer(key, channel, handle, transfer, now),
            Leg::Upstream => self.on_hub_cbs_transfer(key, channel, handle, transfer, body, now),
        }
    }

    /// `false`: the link is none of these.
    pub(super) fn on_local_flow(
        &mut self,
        key: ConnectionKey,
        channel: Channel,
        handle: Handle,
        flow: &Flow<'_>,
    ) -> bool {
        match self.leg(key) {
            Leg::Device => self.on_desk_flow(key, channel, handle, flow),
            Leg::Upstream => self.on_hub_cbs_flow(key, channel, handle, flow),
        }
    }

    pub(super) fn on_local_disposition(
        &mut self,
        key: ConnectionKey,
        channel: Channel,
        disposition: &Disposition<'_>,
    ) {
        match self.leg(key) {
            Leg::Device => self.on_desk_disposition(key, channel, disposition),
            Leg::Upstream => self.on_hub_cbs_disposition(key, channel, disposition),
        }
    }

    /// `false`: the link is none of these.
    pub(super) fn on_local_detach(
        &mut self,
        key: ConnectionKey,
        channel: Channel,
        handle: Handle,
        detach: &Detach<'_>,
    ) -> bool {
        let now = self.now;
        match self.leg(key) {
            Leg::Device => self.on_desk_detach(key, channel, handle, detach),
            Leg::Upstream => self.on_hub_cbs_detached(key, channel, detach.error, now),
        }
    }

    pub(super) fn on_local_session_ended(
        &mut self,
        key: ConnectionKey,
        channel: Channel,
        error: Option<&[u8]>,
        now: Instant,
    ) {
        match self.leg(key) {
            Leg::Device => self.on_desk_session_ended(key, channel),
            Leg::Upstream => self.on_hub_cbs_ended(key, channel, error, now),
        }
    }

    /// More may be sent on a session.
    pub(super) fn on_local_window(&mut self, key: ConnectionKey, channel: Channel) {
        match self.leg(key) {
            Leg::Device => self.pump_desk(key),
            Leg::Upstream => self.on_hub_window(key, channel),
        }
    }
}
