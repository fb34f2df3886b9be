//! One session of the stand-in: its windows, its links and the deliveries under way, in exact terms.
//!
//! It is a strict peer. What the specification forbids (a gap in delivery-ids, a transfer beyond the window or the
//! credit, an unknown handle) comes back as an `Err` that the connection turns into a fault and a close.

use std::collections::BTreeMap;
use std::io;

use bytes::{Bytes, BytesMut};
use fe2o3_amqp::types::definitions::{DeliveryTag, Handle, ReceiverSettleMode};
use fe2o3_amqp::types::performatives::{Begin, Disposition, Flow, Performative, Transfer};

use super::super::wire::{FrameWriter, room_behind};
use super::commands::LockToken;
use super::link::{End, Link, Outgoing, Partial, Purpose};
use super::settings::Settings;

/// A delivery whose outcome is awaited.
pub(super) struct Awaiting {
    pub(super) link: String,
    pub(super) tag: Vec<u8>,
    pub(super) purpose: Purpose,
    handle: u32,
}

/// A delivery that is complete.
pub(super) struct Arrival {
    pub(super) delivery_id: u32,
    pub(super) tag: Vec<u8>,
    pub(super) message_format: Option<u32>,
    pub(super) settled: bool,
    pub(super) payload: Bytes,
    pub(super) frames: usize,
}

/// What a transfer led to.
pub(super) enum Progress {
    /// The link is being closed and nobody cares.
    None,
    /// More is to come after this many bytes.
    Partial(usize),
    Complete(Arrival),
    Aborted {
        tag: Vec<u8>,
        bytes: usize,
    },
    /// The message is larger than the link allows.
    TooLarge,
}

/// One session.
pub(super) struct Session {
    channel: u16,
    next_incoming_id: u32,
    incoming_window: u32,
    full_window: u32,
    next_outgoing_id: u32,
    remote_incoming_window: u32,
    next_delivery_id: u32,
    expected_delivery_id: Option<u32>,
    links: BTreeMap<u32, Link>,
    unsettled: BTreeMap<u32, Awaiting>,
}

impl Session {
    /// A session that the peer began on this channel; ours has the same number.
    pub(super) fn new(channel: u16, begin: &Begin, settings: &Settings) -> Self {
        Self {
            channel,
            next_incoming_id: begin.next_outgoing_id,
            incoming_window: settings.incoming_window,
            full_window: settings.incoming_window,
            next_outgoing_id: 1,
            remote_incoming_window: begin.incoming_window,
            next_delivery_id: 0,
            expected_delivery_id: None,
            links: BTreeMap::new(),
            unsettled: BTreeMap::new(),
        }
    }

    /// Our begin.
    pub(super) fn begin(&self, settings: &Settings) -> Performative {
        Performative::Begin(Begin {
            remote_channel: Some(self.channel),
            next_outgoing_id: self.next_outgoing_id,
            incoming_window: self.full_window,
            outgoing_window: u32::MAX,
            handle_max: Handle(settings.handle_max),
            offered_capabilities: None,
            desired_capabilities: None,
            properties: None,
        })
    }

    pub(super) fn link(&self, handle: u32) -> Option<&Link> {
        self.links.get(&handle)
    }

    pub(super) fn link_mut(&mut self, handle: u32) -> Option<&mut Link> {
        self.links.get_mut(&handle)
    }

    pub(super) fn links(&self) -> impl Iterator<Item = (u32, &Link)> {
        self.links.iter().map(|(handle, link)| (*handle, link))
    }

    pub(super) fn attach(&mut self, handle: u32, link: Link) {
        self.links.insert(handle, link);
    }

    /// The peer detached. Gives the link and the locks of what it had not settled.
    pub(super) fn detach(&mut self, handle: u32) -> Option<(Link, Vec<LockToken>)> {
        let locks = self.forget_unsettled(handle);
        Some((self.links.remove(&handle)?, locks))
    }

    /// The session ends. Gives its links, each with the locks of what the peer had not settled.
    pub(super) fn detach_all(&mut self) -> Vec<(Link, Vec<LockToken>)> {
        let handles: Vec<u32> = self.links.keys().copied().collect();
        handles
            .into_iter()
            .filter_map(|handle| self.detach(handle))
            .collect()
    }

    /// Forgets what was sent on this handle and is not settled; gives the locks.
    pub(super) fn forget_unsettled(&mut self, handle: u32) -> Vec<LockToken> {
        let mut locks = Vec::new();
        self.unsettled.retain(|_, awaiting| {
            if awaiting.handle != handle {
                return true;
            }
            if let Purpose::Command(lock) = awaiting.purpose {
                locks.push(lock);
            }
            false
        });
        if let Some(Link {
            end: End::Sending { outbox, .. },
            ..
        }) = self.links.get_mut(&handle)
        {
            locks.extend(outbox.drain(..).filter_map(|outgoing| match outgoing.purpose {
                Purpose::Command(lock) => Some(lock),
                Purpose::Reply | Purpose::Feedback | Purpose::Paired => None,
            }));
        }
        locks
    }

    /// A flow arrived; says for which handle an answer is due, if one is.
    pub(super) fn on_flow(&mut self, flow: &Flow) -> Result<Option<Option<u32>>, String> {
        // AMQP 1.0 part 2, §2.5.6. Our initial outgoing id is 1.
        self.remote_incoming_window = flow
            .next_incoming_id
            .unwrap_or(1)
            .wrapping_add(flow.incoming_window)
            .wrapping_sub(self.next_outgoing_id);
        if flow
            .next_incoming_id
            .is_some_and(|id| self.next_outgoing_id.wrapping_sub(id) > u32::MAX / 2)
        {
            return Err("a flow whose next-incoming-id is ahead of what was sent".to_owned());
        }
        if flow.next_outgoing_id != self.next_incoming_id {
            let (said, expected) = (flow.next_outgoing_id, self.next_incoming_id);
            return Err(format!(
                "a flow with next-outgoing-id {said} after transfers up to {expected}"
            ));
        }
        let Some(Handle(handle)) = flow.handle else {
            return Ok(flow.echo.then_some(None));
        };
        let link = self
            .links
            .get_mut(&handle)
            .ok_or_else(|| format!("a flow on unattached handle {handle}"))?;
        let mut answer = flow.echo;
        if let End::Sending {
            credit,
            delivery_count,
            outbox,
        } = &mut link.end
        {
            if let Some(link_credit) = flow.link_credit {
                // AMQP 1.0 part 2, §2.6.7; a receiver that has not seen our attach yet has no delivery-count.
                let theirs = flow.delivery_count.unwrap_or(0);
                *credit = theirs.wrapping_add(link_credit).wrapping_sub(*delivery_count);
                if *credit > u32::MAX / 2 {
                    // Credit taken back while deliveries that had it were on their way.
                    *credit = 0;
                }
            }
            if flow.drain && outbox.is_empty() {
                *delivery_count = delivery_count.wrapping_add(*credit);
                *credit = 0;
                answer = true;
            }
        }
        Ok(answer.then_some(Some(handle)))
    }

    /// A flow with the state of the session, and of a link.
    pub(super) fn flow(&self, handle: Option<u32>) -> Performative {
        let (mut delivery_count, mut link_credit, mut available) = (None, None, None);
        match handle
            .and_then(|handle| self.links.get(&handle))
            .map(|link| &link.end)
        {
            Some(End::Receiving {
                credit,
                delivery_count: count,
                ..
            }) => {
                (delivery_count, link_credit) = (Some(*count), Some(*credit));
            }
            Some(End::Sending {
                credit,
                delivery_count: count,
                outbox,
            }) => {
                (delivery_count, link_credit) = (Some(*count), Some(*credit));
                available = u32::try_from(outbox.len()).ok();
            }
            Some(End::Closing) | None => {}
        }
        Performative::Flow(Flow {
            next_incoming_id: Some(self.next_incoming_id),
            incoming_window: self.incoming_window,
            next_outgoing_id: self.next_outgoing_id,
            outgoing_window: u32::MAX,
            handle: handle.map(Handle),
            delivery_count,
            link_credit,
            available,
            drain: false,
            echo: false,
            properties: None,
        })
    }

    /// A transfer arrived.
    pub(super) fn on_transfer(
        &mut self,
        transfer: Transfer,
        payload: &[u8],
        max_message_size: u64,
    ) -> Result<Progress, String> {
        self.next_incoming_id = self.next_incoming_id.wrapping_add(1);
        self.incoming_window = self
            .incoming_window
            .checked_sub(1)
            .ok_or("a transfer beyond the session's incoming window")?;
        let Handle(handle) = transfer.handle;
        let link = self
            .links
            .get_mut(&handle)
            .ok_or_else(|| format!("a transfer on unattached handle {handle}"))?;
        let (name, is_settled) = (&link.name, link.is_settled);
        let (credit, delivery_count, partial) = match &mut link.end {
            End::Receiving {
                credit,
                delivery_count,
                partial,
                ..
            } => (credit, delivery_count, partial),
            End::Closing => {
                if let Some(id) = transfer.delivery_id {
                    self.expected_delivery_id = Some(id.wrapping_add(1));
                }
                return Ok(Progress::None);
            }
            End::Sending { .. } => {
                return Err(format!("a transfer on {name}, where the peer is the receiver"));
            }
        };
        let mut current = match partial.take() {
            Some(current) => {
                if transfer.delivery_id.is_some_and(|id| id != current.delivery_id) {
                    return Err(format!("a new delivery on {name} before the last was complete"));
                }
                if transfer
                    .delivery_tag
                    .as_ref()
                    .is_some_and(|tag| *tag != current.tag)
                {
                    return Err(format!("a changed delivery-tag on {name}"));
                }
                current
            }
            None => {
                let id = transfer
                    .delivery_id
                    .ok_or_else(|| format!("a first transfer on {name} without an id"))?;
                if self.expected_delivery_id.is_some_and(|expected| expected != id) {
                    let expected = self.expected_delivery_id.unwrap_or_default();
                    return Err(format!("delivery-id {id} on {name} where {expected} was due"));
                }
                self.expected_delivery_id = Some(id.wrapping_add(1));
                *credit = credit
                    .checked_sub(1)
                    .ok_or_else(|| format!("a delivery on {name} without credit"))?;
                *delivery_count = delivery_count.wrapping_add(1);
                let tag = transfer
                    .delivery_tag
                    .ok_or_else(|| format!("a first transfer on {name} without a tag"))?;
                Partial {
                    delivery_id: id,
                    tag: tag.into_vec(),
                    message_format: transfer.message_format,
                    settled: false,
                    payload: BytesMut::new(),
                    frames: 0,
                }
            }
        };
        current.frames += 1;
        current.settled |= transfer.settled.unwrap_or(false);
        current.payload.extend_from_slice(payload);
        if transfer.aborted {
            return Ok(Progress::Aborted {
                tag: current.tag,
                bytes: current.payload.len(),
            });
        }
        if current.payload.len() as u64 > max_message_size {
            return Ok(Progress::TooLarge);
        }
        if is_settled && !current.settled && !transfer.more {
            return Err(format!(
                "an unsettled delivery on {name}, where the peer said that all are settled"
            ));
        }
        if transfer.more {
            let bytes = current.payload.len();
            *partial = Some(current);
            return Ok(Progress::Partial(bytes));
        }
        let Partial {
            delivery_id,
            tag,
            message_format,
            settled,
            payload,
            frames,
        } = current;
        let payload = payload.freeze();
        Ok(Progress::Complete(Arrival {
            delivery_id,
            tag,
            message_format,
            settled,
            payload,
            frames,
        }))
    }

    /// Opens the session window again once half of it is used; says whether a flow is due.
    pub(super) fn refill_window(&mut self) -> bool {
        let due = self.incoming_window <= self.full_window / 2;
        if due {
            self.incoming_window = self.full_window;
        }
        due
    }

    /// Grants fresh credit once half of it is used; says whether a flow is due.
    pub(super) fn refill_credit(&mut self, handle: u32) -> bool {
        match self.links.get_mut(&handle).map(|link| &mut link.end) {
            Some(End::Receiving { credit, granted, .. }) if *credit <= *granted / 2 => {
                *credit = *granted;
                true
            }
            Some(End::Receiving { .. } | End::Sending { .. } | End::Closing) | None => false,
        }
    }

    /// Settles deliveries of ours; gives what was awaiting, by delivery-id.
    pub(super) fn on_disposition(&mut self, disposition: &Disposition) -> Vec<(u32, Awaiting)> {
        let last = disposition.last.unwrap_or(disposition.first);
        let ids: Vec<u32> = self
            .unsettled
            .keys()
            .copied()
            .filter(|id| id.wrapping_sub(disposition.first) <= last.wrapping_sub(disposition.first))
            .collect();
        ids.into_iter()
            .filter_map(|id| Some((id, self.unsettled.remove(&id)?)))
            .collect()
    }

    /// Queues a delivery on one of our sending ends.
    pub(super) fn queue(&mut self, handle: u32, tag: Vec<u8>, payload: Bytes, purpose: Purpose) {
        if let Some(Link {
            end: End::Sending { outbox, .. },
            ..
        }) = self.links.get_mut(&handle)
        {
            outbox.push_back(Outgoing {
                tag,
                payload,
                sent: 0,
                delivery_id: None,
                purpose,
            });
        }
    }

    /// Sends what credit and window allow.
    pub(super) fn pump(&mut self, writer: &FrameWriter, max_frame_size: usize) -> io::Result<()> {
        for (handle, link) in &mut self.links {
            let End::Sending {
                credit,
                delivery_count,
                outbox,
            } = &mut link.end
            else {
                continue;
            };
            while let Some(outgoing) = outbox.front_mut() {
                if self.remote_incoming_window == 0 || (outgoing.delivery_id.is_none() && *credit == 0) {
                    break;
                }
                let first = outgoing.delivery_id.is_none();
                let is_settled = outgoing.purpose == Purpose::Paired;
                let id = *outgoing.delivery_id.get_or_insert_with(|| {
                    let id = self.next_delivery_id;
                    self.next_delivery_id = id.wrapping_add(1);
                    id
                });
                if first {
                    *credit -= 1;
                    *delivery_count = delivery_count.wrapping_add(1);
                    if !is_settled {
                        let awaiting = Awaiting {
                            link: link.name.clone(),
                            tag: outgoing.tag.clone(),
                            purpose: outgoing.purpose,
                            handle: *handle,
                        };
                        self.unsettled.insert(id, awaiting);
                    }
                }
                let mut transfer = Transfer {
                    handle: Handle(*handle),
                    delivery_id: first.then_some(id),
                    delivery_tag: first.then(|| DeliveryTag::from(outgoing.tag.clone())),
                    message_format: first.then_some(0),
                    settled: first.then_some(is_settled),
                    more: true,
                    rcv_settle_mode: None::<ReceiverSettleMode>,
                    state: None,
                    resume: false,
                    aborted: false,
                    batchable: false,
                };
                let room = room_behind(&Performative::Transfer(transfer.clone()), max_frame_size)?;
                let end = outgoing.payload.len().min(outgoing.sent + room);
                transfer.more = end < outgoing.payload.len();
                let more = transfer.more;
                writer.send(
                    self.channel,
                    &Performative::Transfer(transfer),
                    outgoing.payload.get(outgoing.sent..end).unwrap_or_default(),
                )?;
                outgoing.sent = end;
                self.next_outgoing_id = self.next_outgoing_id.wrapping_add(1);
                self.remote_incoming_window -= 1;
                if !more {
                    outbox.pop_front();
                }
            }
        }
        Ok(())
    }
}
