//! The device's side of the relay: its `$cbs` links, answered as the hub answers them.

use std::collections::VecDeque;
use std::time::Instant;

use super::desk::{Desk, DeskEnd, DeskLink, Unclaimed};
use super::request::{Answer, Malformed, Operation, Request};
use super::{Asked, From, OVERLOADED};
use crate::amqp::condition::{self, AmqpError};
use crate::amqp::delivery::write_accepted;
use crate::amqp::fields::Tail;
use crate::amqp::originate::AttachFields;
use crate::amqp::performative::{Attach, Detach, Disposition, Flow, Role, Transfer};
use crate::amqp::reader::Reader;
use crate::amqp::serial::{Channel, Handle};
use crate::amqp::terminus::Terminus;
use crate::endpoint::limits;
use crate::router::connection::Entry;
use crate::router::local::{LocalReceiver, LocalSender, Taken};
use crate::router::settings::{ConnectorId, Secret};
use crate::router::{ConnectionKey, Router};

impl Router {
    /// A device attaches a link to `$cbs`. It is answered as the hub answers: everything that was asked for comes back.
    pub(in crate::router) fn attach_cbs(
        &mut self,
        key: ConnectionKey,
        channel: Channel,
        handle: Handle,
        attach: &Attach<'_>,
        id: ConnectorId,
    ) {
        let Some(entry) = self.entry_mut(key) else { return };
        let desk = entry.cbs.get_or_insert_default();
        if desk.links.len() >= limits::CBS_LINKS {
            let error = AmqpError::new(
                condition::RESOURCE_LIMIT_EXCEEDED,
                "this connection has too many $cbs links",
            );
            return self.refuse(key, channel, handle, attach, &error);
        }
        let fields = AttachFields {
            carried: [0, 1, 2, 3].map(|index| attach.tail.field(index)),
            role: attach.role.other(),
            max_message_size: limits::CBS_REQUEST_BYTES as u64,
            properties: attach.tail.field(PROPERTIES),
        };
        let bytes = fields.encode();
        let tail = Tail {
            count: AttachFields::COUNT,
            bytes: &bytes,
        };
        if let Err(error) = entry.connection.answer_attach(channel, handle, tail) {
            let error = AmqpError::new(error.condition(), "no frame of the device holds the answer");
            return self.refuse(key, channel, handle, attach, &error);
        }
        let end = match attach.role {
            Role::Sender => DeskEnd::Requests {
                receiving: LocalReceiver::new(attach.initial_delivery_count),
                outstanding: 0,
            },
            Role::Receiver => DeskEnd::Answers {
                sending: LocalSender::default(),
                address: attach
                    .target
                    .and_then(|target| Terminus::parse(target).ok()?.address)
                    .map(Into::into),
                in_doubt: is_second(attach).then(VecDeque::new),
            },
        };
        desk.attached += 1;
        desk.links.push(DeskLink {
            number: desk.attached,
            channel,
            handle,
            name: attach.name.into(),
            connector: id,
            end,
        });
        match attach.role {
            // As much as those on all its links leave: answers that wait for a receiver outlive the link of the request.
            Role::Sender => self.grant_requests(key),
            Role::Receiver => self.deliver_unclaimed(key),
        }
        // There will be something to ask.
        let now = self.now;
        self.want(id, now);
    }

    /// An answer for a device that asked. One that has gone does not hear it.
    pub(super) fn answer_device(&mut self, asked: Asked, answer: Answer) {
        self.settle_asked(&asked, ACCEPTED_TAIL);
        self.finish_asked(&asked);
        let Some(desk) = self.entry_mut(asked.device).and_then(|entry| entry.cbs.as_mut()) else {
            return;
        };
        let answer = Unclaimed {
            link: asked.link,
            channel: asked.channel,
            connector: asked.connector,
            reply_to: asked.reply_to,
            payload: Secret::new(answer.encode_for(asked.id)),
        };
        match desk.receiver(&answer) {
            Some(sending) => sending.push(answer.link, answer.payload, false),
            None => desk.keep(answer),
        }
        self.pump_desk(asked.device);
    }

    /// Settles a device's request, if that is still to be done, with the outcome in `tail`.
    pub(super) fn settle_asked(&mut self, asked: &Asked, tail: Tail<'_>) {
        let Some(entry) = self.entry_mut(asked.device).filter(|_| !asked.is_settled) else {
            return;
        };
        // On the channel of a session that is gone, the same id may be another delivery's.
        let desk = entry.cbs.as_ref();
        if !desk.is_some_and(|desk| desk.links.iter().any(|link| link.number == asked.link)) {
            return;
        }
        let (channel, delivery) = (asked.channel, asked.delivery);
        entry
            .connection
            .relay_disposition(channel, Role::Receiver, delivery, delivery, tail);
        self.wake(asked.device);
    }

    /// A request less is under way.
    pub(super) fn finish_asked(&mut self, asked: &Asked) {
        let desk = self.entry_mut(asked.device).and_then(|entry| entry.cbs.as_mut());
        let link = desk.and_then(|desk| desk.links.iter_mut().find(|link| link.number == asked.link));
        if let Some(DeskLink {
            end: DeskEnd::Requests { outstanding, .. },
            ..
        }) = link
        {
            *outstanding = outstanding.saturating_sub(1);
        }
    }

    /// Gives a device credit for more requests. One that does not take its answers gets none.
    pub(super) fn grant_requests(&mut self, key: ConnectionKey) {
        let Some(Entry { connection, cbs, .. }) = self.entry_mut(key) else {
            return;
        };
        let Some(desk) = cbs else { return };
        let untaken = u32::try_from(desk.untaken()).unwrap_or(u32::MAX);
        for link in &mut desk.links {
            if let DeskEnd::Requests {
                receiving,
                outstanding,
            } = &mut link.end
            {
                let most = limits::CBS_CREDIT.saturating_sub(outstanding.saturating_add(untaken));
                receiving.top_up(most, connection, link.channel, link.handle);
            }
        }
        self.wake(key);
    }

    fn deliver_unclaimed(&mut self, key: ConnectionKey) {
        if let Some(desk) = self.entry_mut(key).and_then(|entry| entry.cbs.as_mut()) {
            for answer in std::mem::take(&mut desk.unclaimed) {
                match desk.receiver(&answer) {
                    Some(sending) => sending.push(answer.link, answer.payload, false),
                    None => desk.unclaimed.push_back(answer),
                }
            }
        }
        self.pump_desk(key);
    }

    /// Sends the answers that a device's credit and window allow.
    pub(in crate::router) fn pump_desk(&mut self, key: ConnectionKey) {
        let Some(Entry { connection, cbs, .. }) = self.entry_mut(key) else {
            return;
        };
        let Some(desk) = cbs else { return };
        for link in &mut desk.links {
            if let DeskEnd::Answers {
                sending, in_doubt, ..
            } = &mut link.end
            {
                sending.pump(connection, link.channel, link.handle, |_, id| {
                    if let Some(in_doubt) = in_doubt {
                        in_doubt.push_back(id);
                        if in_doubt.len() > limits::CBS_IN_DOUBT {
                            in_doubt.pop_front();
                        }
                    }
                });
            }
        }
        self.grant_requests(key);
    }

    pub(super) fn on_desk_flow(
        &mut self,
        key: ConnectionKey,
        channel: Channel,
        handle: Handle,
        flow: &Flow<'_>,
    ) -> bool {
        let Some(Entry { connection, cbs, .. }) = self.entry_mut(key) else {
            return false;
        };
        let Some(link) = cbs.as_mut().and_then(|desk| desk.link_mut(channel, handle)) else {
            return false;
        };
        match &mut link.end {
            DeskEnd::Answers { sending, .. } => {
                if let Some(flow) = &flow.link {
                    sending.on_flow(flow);
                }
                if flow.echo {
                    sending.echo(connection, channel, handle);
                }
            }
            DeskEnd::Requests { receiving, .. } if flow.echo => receiving.echo(connection, channel, handle),
            DeskEnd::Requests { .. } => {}
        }
        self.pump_desk(key);
        true
    }

    pub(super) fn on_desk_transfer(
        &mut self,
        key: ConnectionKey,
        channel: Channel,
        handle: Handle,
        transfer: &Transfer<'_>,
        now: Instant,
    ) {
        let Some(entry) = self.entry_mut(key) else { return };
        let Some(link) = entry.cbs.as_mut().and_then(|desk| desk.link_mut(channel, handle)) else {
            return;
        };
        let (connector, number) = (link.connector, link.number);
        let DeskEnd::Requests {
            receiving,
            outstanding,
        } = &mut link.end
        else {
            return;
        };
        match receiving.take(transfer, limits::CBS_REQUEST_BYTES) {
            Taken::Nothing if transfer.aborted => self.grant_requests(key),
            Taken::Nothing => {
                let desk = self.entry(key).and_then(|entry| entry.cbs.as_ref());
                if desk.is_some_and(|desk| desk.begun_bytes() > limits::CBS_BEGUN_BYTES) {
                    let what = "too much of requests to $cbs has come that have no end";
                    let error = AmqpError::new(condition::RESOURCE_LIMIT_EXCEEDED, what);
                    self.detach_desk_link(key, channel, handle, &error);
                }
            }
            Taken::Message {
                id,
                is_settled,
                payload,
            } => {
                *outstanding += 1;
                let asked = Asked {
                    device: key,
                    link: number,
                    channel,
                    connector,
                    delivery: id,
                    is_settled,
                    id: None,
                    reply_to: None,
                };
                self.on_request(asked, handle, &payload, now);
            }
            Taken::TooLarge { .. } => {
                let what = format!("a request to $cbs may have {} bytes", limits::CBS_REQUEST_BYTES);
                let error = AmqpError::new(condition::MESSAGE_SIZE_EXCEEDED, what);
                self.detach_desk_link(key, channel, handle, &error);
            }
            Taken::Overrun => {
                let what = "a message for which there was no credit";
                let error = AmqpError::new(condition::TRANSFER_LIMIT_EXCEEDED, what);
                self.detach_desk_link(key, channel, handle, &error);
            }
        }
    }

    fn on_request(&mut self, mut asked: Asked, handle: Handle, payload: &Secret<Vec<u8>>, now: Instant) {
        let (key, connector) = (asked.device, asked.connector);
        let gateway = self
            .entry(key)
            .map(|entry| entry.vhost.clone())
            .unwrap_or_default();
        let hub = self
            .connectors
            .get(&connector)
            .map_or("", |connector| connector.server_name());
        let request = match Request::read(payload.expose(), &gateway, hub) {
            Ok(request) => request,
            Err(Malformed::Message(error)) => {
                let what = format!("a request to $cbs is not a well-formed message: {error}");
                let error = AmqpError::new(condition::DECODE_ERROR, what);
                return self.detach_desk_link(key, asked.channel, handle, &error);
            }
            Err(Malformed::Request { id, reply_to, what }) => {
                asked.id = id;
                asked.reply_to = reply_to;
                if let Some(more) = self.relay.complaints.note(now) {
                    let number = self.entry(key).map_or(0, |entry| entry.connection.number);
                    tracing::warn!(
                        target: "ROUTER_CORE",
                        "[C{number}] A request to $cbs was answered with status 400, and not sent on: {what}{more}"
                    );
                }
                return self.answer_device(asked, Answer::new(400, &what));
            }
        };
        let Request { message, operation } = request;
        asked.id = message.properties.message_id.clone();
        asked.reply_to = message.properties.reply_to.as_deref().map(Into::into);
        let desk = self.entry(key).and_then(|entry| entry.cbs.as_deref());
        let size = payload.expose().len();
        let is_too_much = |desk: &Desk| {
            desk.outstanding() > limits::CBS_CREDIT || desk.asked_bytes + size > limits::CBS_DEVICE_BYTES
        };
        if self.relay.bytes + size > limits::CBS_BYTES_TOTAL || desk.is_some_and(is_too_much) {
            return self.answer_device(asked, Answer::new(503, OVERLOADED));
        }
        let audience = match &operation {
            Operation::Put(claim) => &claim.audience,
            Operation::Delete(audience) if self.has_put(key, connector, audience) => audience,
            Operation::Delete(_) => {
                let what = "this connection has put no token for that name";
                return self.answer_device(asked, Answer::new(404, what));
            }
        };
        let Some(slot) = self.slot_for(key, connector, Some(audience)) else {
            let error = self.full_error(connector);
            return self.close_desk(key, connector, &error);
        };
        self.ask(From::Link(asked), slot, operation, message, now);
    }

    pub(super) fn on_desk_disposition(
        &mut self,
        key: ConnectionKey,
        channel: Channel,
        disposition: &Disposition<'_>,
    ) {
        if disposition.role != Role::Receiver {
            return;
        }
        let Some(Entry { connection, cbs, .. }) = self.entry_mut(key) else {
            return;
        };
        let Some(desk) = cbs else { return };
        let span = disposition.last.since(disposition.first);
        for link in desk.links.iter_mut().filter(|link| link.channel == channel) {
            let DeskEnd::Answers {
                in_doubt: Some(in_doubt),
                ..
            } = &mut link.end
            else {
                continue;
            };
            in_doubt.retain(|&id| {
                let is_meant = id.since(disposition.first) <= span;
                if is_meant && !disposition.settled {
                    // The sender has the last word (AMQP 1.0 part 2, §2.6.12).
                    connection.settle(channel, Role::Sender, id, id, write_accepted);
                }
                !is_meant
            });
        }
        self.wake(key);
    }

    /// The device detached one of its `$cbs` links. `false`: it is none.
    pub(super) fn on_desk_detach(
        &mut self,
        key: ConnectionKey,
        channel: Channel,
        handle: Handle,
        detach: &Detach<'_>,
    ) -> bool {
        let Some(Entry { connection, cbs, .. }) = self.entry_mut(key) else {
            return false;
        };
        let Some(desk) = cbs else { return false };
        if desk.link_mut(channel, handle).is_none() {
            return false;
        }
        desk.forget(|link| link.channel == channel && link.handle == handle);
        connection.detach_link(channel, handle, detach.closed, None);
        self.deliver_unclaimed(key);
        true
    }

    /// A device's session is over.
    pub(super) fn on_desk_session_ended(&mut self, key: ConnectionKey, channel: Channel) {
        if let Some(desk) = self.entry_mut(key).and_then(|entry| entry.cbs.as_mut()) {
            desk.forget(|link| link.channel == channel);
            self.deliver_unclaimed(key);
        }
    }

    fn detach_desk_link(&mut self, key: ConnectionKey, channel: Channel, handle: Handle, error: &AmqpError) {
        let Some(Entry { connection, cbs, .. }) = self.entry_mut(key) else {
            return;
        };
        let Some(desk) = cbs else { return };
        if let Some(DeskLink {
            end: DeskEnd::Answers { sending, .. },
            ..
        }) = desk.link_mut(channel, handle)
            && sending.is_delivering()
        {
            connection.abort_delivery(channel, handle);
        }
        desk.forget(|link| link.channel == channel && link.handle == handle);
        connection.detach_link(channel, handle, true, Some(error));
        tracing::info!(
            target: "ROUTER_CORE",
            "[C{}] $cbs link detached: {} {}",
            connection.number,
            error.condition,
            error.description
        );
        self.wake(key);
    }

    /// Detaches a device's `$cbs` links to a hub that does not answer them.
    pub(super) fn close_desk(&mut self, key: ConnectionKey, id: ConnectorId, error: &AmqpError) {
        let pool = self.pool_name(id).to_owned();
        let Some(desk) = self.entry(key).and_then(|entry| entry.cbs.as_ref()) else {
            return;
        };
        let links: Vec<_> = desk
            .links
            .iter()
            .filter(|link| self.pool_name(link.connector) == pool)
            .map(|link| (link.channel, link.handle))
            .collect();
        for (channel, handle) in links {
            self.detach_desk_link(key, channel, handle, error);
        }
    }

    /// Detaches all `$cbs` links of a device, because we go.
    pub(in crate::router) fn close_all_desks(&mut self, key: ConnectionKey, error: &AmqpError) {
        let Some(desk) = self.entry(key).and_then(|entry| entry.cbs.as_ref()) else {
            return;
        };
        let links: Vec<_> = desk
            .links
            .iter()
            .map(|link| (link.channel, link.handle))
            .collect();
        for (channel, handle) in links {
            self.detach_desk_link(key, channel, handle, error);
        }
    }
}

/// Place of `properties` among the fields of an attach behind its role (AMQP 1.0 part 2, §2.7.3).
const PROPERTIES: usize = 10;

/// `settled`, and `accepted` as the state: a disposition from `settled` on.
pub(super) const ACCEPTED_TAIL: Tail<'static> = Tail {
    count: 2,
    bytes: &[0x41, 0x00, 0x53, 0x24, 0x45],
};

/// Whether the receiver settles in two steps.
fn is_second(attach: &Attach<'_>) -> bool {
    let mode = attach.tail.field(1).map(Reader::new);
    mode.and_then(|mut mode| mode.ubyte().ok()) == Some(1)
}
