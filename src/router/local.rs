//! Links that end inside the router: what our sender and our receiver know of theirs.

use std::collections::VecDeque;

use crate::amqp::fields::Tail;
use crate::amqp::originate::{DeliveryHead, link_flow};
use crate::amqp::performative::{LinkFlow, Transfer};
use crate::amqp::reader::Reader;
use crate::amqp::relay::Written;
use crate::amqp::serial::{Channel, DeliveryId, Handle, SequenceNo};
use crate::endpoint::connection::Connection;
use crate::endpoint::link::End;
use crate::router::settings::Secret;

/// The sending end of a link. Messages wait in it for credit and window.
#[derive(Debug, Default)]
pub(super) struct LocalSender {
    delivery_count: SequenceNo,
    credit: u32,
    is_draining: bool,
    next_tag: u32,
    queue: VecDeque<Outgoing>,
}

#[derive(Debug)]
struct Outgoing {
    /// Its owner's name for it.
    label: u64,
    payload: Secret<Vec<u8>>,
    /// Its frames are shown, though those of its session are not.
    is_traced: bool,
    /// Bytes that have gone.
    offset: usize,
    /// Its id and its head, once it has begun.
    delivery: Option<(DeliveryId, DeliveryHead)>,
}

impl Outgoing {
    const fn new(label: u64, payload: Secret<Vec<u8>>, is_traced: bool) -> Self {
        Outgoing {
            label,
            payload,
            is_traced,
            offset: 0,
            delivery: None,
        }
    }
}

impl LocalSender {
    pub(super) fn push(&mut self, label: u64, payload: Secret<Vec<u8>>, is_traced: bool) {
        self.queue.push_back(Outgoing::new(label, payload, is_traced));
    }

    /// How many messages have not gone, or not all of them.
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether a message has gone in part.
    pub(super) fn is_delivering(&self) -> bool {
        self.queue.front().is_some_and(|message| message.offset > 0)
    }

    /// Puts a message behind those with lower labels, so that [`cancel`](Self::cancel) finds it.
    pub(super) fn line_up(&mut self, label: u64, payload: Secret<Vec<u8>>, is_traced: bool) {
        let place = self.place(label);
        self.queue.insert(place, Outgoing::new(label, payload, is_traced));
    }

    /// Takes a message back that was [lined up](Self::line_up), if nothing of it has gone.
    pub(super) fn cancel(&mut self, label: u64) {
        let place = self.place(label);
        if self
            .queue
            .get(place)
            .is_some_and(|message| message.label == label)
        {
            self.queue.remove(place);
        }
    }

    /// Where a message with this label is, or would be, among those of which nothing has gone: thousands may wait.
    fn place(&self, label: u64) -> usize {
        self.queue
            .partition_point(|message| message.delivery.is_some() || message.label < label)
    }

    /// What has not begun to go, with its labels.
    pub(super) fn into_unsent(self) -> impl Iterator<Item = (u64, Secret<Vec<u8>>)> {
        let unsent = self
            .queue
            .into_iter()
            .filter(|message| message.delivery.is_none());
        unsent.map(|message| (message.label, message.payload))
    }

    /// The receiver's flow (AMQP 1.0 part 2, §2.6.7).
    pub(super) fn on_flow(&mut self, flow: &LinkFlow<'_>) {
        // A receiver that has not seen our attach counts from what that says: zero.
        let counted = flow
            .tail
            .field(0)
            .and_then(|field| Reader::new(field).uint().ok())
            .map_or(SequenceNo::default(), SequenceNo);
        let credit = flow.link_credit.unwrap_or(0);
        let ahead = self.delivery_count.since(counted);
        self.credit = credit.saturating_sub(ahead);
        self.is_draining = flow.drain;
    }

    /// Sends what credit and window allow; tells of each message that begins, with its delivery-id.
    pub(super) fn pump(
        &mut self,
        connection: &mut Connection,
        channel: Channel,
        handle: Handle,
        mut begun: impl FnMut(u64, DeliveryId),
    ) {
        while let Some(message) = self.queue.front_mut() {
            let Some(session) = connection.session_mut(channel) else {
                return;
            };
            let is_attached = session
                .link(handle)
                .is_some_and(|link| link.local == End::Attached && link.remote == End::Attached);
            if !is_attached || !session.outgoing.is_open() {
                return;
            }
            let (id, head) = match message.delivery {
                Some(delivery) => delivery,
                None if self.credit == 0 => return,
                None => {
                    let id = session.next_delivery_id();
                    session.use_delivery_id();
                    self.credit -= 1;
                    self.delivery_count = self.delivery_count.plus(1);
                    let head = DeliveryHead::new(self.next_tag, false);
                    self.next_tag = self.next_tag.wrapping_add(1);
                    begun(message.label, id);
                    *message.delivery.insert((id, head))
                }
            };
            let transfer = head.transfer(handle, id, message.payload.expose());
            mark(connection, channel, message.is_traced);
            let written = connection.send_transfer(channel, handle, Some(id), &transfer, message.offset);
            mark(connection, channel, false);
            match written {
                Written::UpTo(next) => message.offset = next,
                // A frame of 512 bytes holds the head of a transfer of ours.
                Written::All | Written::HeadTooLarge => {
                    self.queue.pop_front();
                }
            }
        }
        if std::mem::take(&mut self.is_draining) {
            self.delivery_count = self.delivery_count.plus(std::mem::take(&mut self.credit));
            let flow = link_flow(self.delivery_count.0, 0, true);
            connection.send_flow(channel, Some((handle, link_tail(&flow))));
        }
    }

    /// Says where this end stands, to a receiver that asked.
    pub(super) fn echo(&self, connection: &mut Connection, channel: Channel, handle: Handle) {
        let flow = link_flow(self.delivery_count.0, self.credit, self.is_draining);
        connection.send_flow(channel, Some((handle, link_tail(&flow))));
    }
}

/// Whether the frames of a session are shown.
fn mark(connection: &mut Connection, channel: Channel, is_traced: bool) {
    if let Some(session) = connection.session_mut(channel) {
        session.is_traced = is_traced;
    }
}

/// The receiving end of a link. It puts messages together and grants credit.
#[derive(Debug, Default)]
pub(super) struct LocalReceiver {
    delivery_count: SequenceNo,
    credit: u32,
    assembling: Option<Assembling>,
}

#[derive(Debug)]
struct Assembling {
    id: DeliveryId,
    is_settled: bool,
    is_too_large: bool,
    payload: Secret<Vec<u8>>,
}

/// What a transfer amounts to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Part of a message, or the end of one that was aborted.
    Nothing,
    /// A whole message.
    Message {
        id: DeliveryId,
        is_settled: bool,
        payload: Secret<Vec<u8>>,
    },
    /// The end of a message that has more bytes than were to be kept.
    TooLarge { id: DeliveryId, is_settled: bool },
    /// A message for which there was no credit.
    Overrun,
}

impl LocalReceiver {
    /// For a sender that counts its deliveries from here.
    pub(super) fn new(initial_delivery_count: Option<SequenceNo>) -> Self {
        LocalReceiver {
            delivery_count: initial_delivery_count.unwrap_or_default(),
            ..LocalReceiver::default()
        }
    }

    /// Bytes of a message that is not there in full.
    pub(super) fn begun(&self) -> usize {
        self.assembling
            .as_ref()
            .map_or(0, |message| message.payload.expose().len())
    }

    /// Takes a transfer; keeps at most `limit` bytes of a message.
    pub(super) fn take(&mut self, transfer: &Transfer<'_>, limit: usize) -> Taken {
        if self.assembling.is_none() {
            let Some(id) = transfer.delivery_id else {
                return Taken::Nothing;
            };
            if self.credit == 0 {
                return Taken::Overrun;
            }
            self.credit -= 1;
            self.delivery_count = self.delivery_count.plus(1);
            self.assembling = Some(Assembling {
                id,
                is_settled: false,
                is_too_large: false,
                payload: Secret::default(),
            });
        }
        let Some(message) = &mut self.assembling else {
            return Taken::Nothing;
        };
        message.is_settled |= transfer.settled == Some(true);
        if message.payload.expose().len() + transfer.payload.len() > limit {
            message.is_too_large = true;
            message.payload = Secret::default();
        }
        if !message.is_too_large {
            message.payload.expose_mut().extend_from_slice(transfer.payload);
        }
        if transfer.more && !transfer.aborted {
            return Taken::Nothing;
        }
        match self.assembling.take() {
            Some(message) if !transfer.aborted && message.is_too_large => Taken::TooLarge {
                id: message.id,
                is_settled: message.is_settled,
            },
            Some(message) if !transfer.aborted => Taken::Message {
                id: message.id,
                is_settled: message.is_settled,
                payload: message.payload,
            },
            Some(_) | None => Taken::Nothing,
        }
    }

    /// Grants credit for `most` messages again, if half of that or less is left.
    pub(super) fn top_up(
        &mut self,
        most: u32,
        connection: &mut Connection,
        channel: Channel,
        handle: Handle,
    ) {
        if self.credit > most / 2 || self.credit == most {
            return;
        }
        self.credit = most;
        self.echo(connection, channel, handle);
    }

    /// Says where this end stands, to a sender that asked.
    pub(super) fn echo(&self, connection: &mut Connection, channel: Channel, handle: Handle) {
        let flow = link_flow(self.delivery_count.0, self.credit, false);
        connection.send_flow(channel, Some((handle, link_tail(&flow))));
    }
}

const fn link_tail(bytes: &[u8]) -> Tail<'_> {
    Tail { count: 6, bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_in_line_is_taken_back_wherever_it_is() {
        let mut sender = LocalSender::default();
        for label in [4, 9, 7, 12, 1] {
            sender.line_up(label, Secret::default(), false);
        }
        // It has begun.
        let front = sender.queue.front_mut().expect("a message");
        front.delivery = Some((DeliveryId(0), DeliveryHead::new(0, false)));
        let first = front.label;
        sender.line_up(0, Secret::default(), false);
        for label in [first, 8, 7, 12, 13, 7] {
            sender.cancel(label);
        }
        let labels: Vec<u64> = sender.queue.iter().map(|message| message.label).collect();
        assert_eq!(labels, [first, 0, 4, 9]);
    }
}
