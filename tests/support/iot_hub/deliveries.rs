//! Messages of one connection: what comes is judged by the node of its link, and what waits for a link goes out.

use fe2o3_amqp::types::definitions::{Error, Handle, LinkError, Role};
use fe2o3_amqp::types::messaging::{Accepted, DeliveryState, Rejected};
use fe2o3_amqp::types::performatives::{Disposition, Performative, Transfer};

use super::super::message;
use super::cbs;
use super::commands::LockToken;
use super::connection::{Connection, Departure, Step};
use super::guid;
use super::link::Purpose;
use super::node::{Identity, Node, recipient_of};
use super::observed::{Delivery, Observed};
use super::refusal::Refusal;
use super::session::{Arrival, Awaiting, Progress};
use super::settings::{CbsAnswers, CbsMode, Throttle};
use super::timers::Late;

impl Connection {
    pub(super) fn on_transfer(&mut self, channel: u16, transfer: Transfer, payload: &[u8]) -> Step {
        let Handle(handle) = transfer.handle;
        let max_message_size = self.shared.settings().max_message_size;
        let session = self.session(channel)?;
        let progress = session.on_transfer(transfer, payload, max_message_size);
        if session.refill_window() {
            let flow = session.flow(None);
            self.send(channel, flow)?;
        }
        match progress {
            Err(what) => self.fault(what),
            Ok(Progress::None) => Ok(()),
            Ok(Progress::Partial(bytes)) => {
                let (connection, link) = (self.id, self.link_name(channel, handle)?);
                self.note(Observed::Partial {
                    connection,
                    link,
                    bytes,
                });
                Ok(())
            }
            Ok(Progress::Aborted { tag, bytes }) => {
                let link = self.link_name(channel, handle)?;
                self.note(Observed::Aborted {
                    connection: self.id,
                    link,
                    tag,
                    bytes,
                });
                Ok(())
            }
            Ok(Progress::TooLarge) => {
                let text = format!("The message is larger than the link allows, {max_message_size} bytes.");
                self.detach_link(
                    channel,
                    handle,
                    Error::new(LinkError::MessageSizeExceeded, text, None),
                )
            }
            Ok(Progress::Complete(arrival)) => {
                self.on_delivery(channel, handle, arrival)?;
                let session = self.session(channel)?;
                if session.refill_credit(handle) {
                    let flow = session.flow(Some(handle));
                    self.send(channel, flow)?;
                }
                Ok(())
            }
        }
    }

    fn link_name(&mut self, channel: u16, handle: u32) -> Result<String, Departure> {
        let link = self.session(channel)?.link(handle);
        Ok(link.map_or_else(String::new, |link| link.name.clone()))
    }

    fn on_delivery(&mut self, channel: u16, handle: u32, arrival: Arrival) -> Step {
        let now = self.shared.clock.now();
        let Some(link) = self.session(channel)?.link_mut(handle) else {
            return Ok(());
        };
        link.used_at = now;
        let (name, address, node) = (link.name.clone(), link.address.clone(), link.node.clone());
        let Arrival {
            delivery_id,
            tag,
            message_format,
            settled,
            payload,
            frames,
        } = arrival;
        let delivery = Delivery {
            connection: self.id,
            channel,
            link: name,
            address,
            delivery_id,
            tag,
            message_format,
            settled,
            payload,
            frames,
        };
        let outcome = match node {
            Node::Cbs => return self.on_cbs_request(channel, &delivery),
            Node::Management(_) => return self.on_management_request(channel, handle, &delivery),
            Node::Events(_) | Node::EventHub(_) | Node::Queue(_) => {
                self.note(Observed::Telemetry(delivery.clone()));
                return self.on_telemetry(channel, handle, &delivery);
            }
            Node::ServiceCommands => match self.enqueue_command(delivery) {
                Ok(()) => accepted(),
                Err(refusal) => rejected(refusal),
            },
            Node::Twin(identity) => {
                self.on_twin_request(channel, handle, &identity, &delivery)?;
                accepted()
            }
            Node::Methods(identity) => {
                self.on_method_answer(identity, &delivery);
                accepted()
            }
            Node::DeviceBound(_) | Node::Feedback | Node::BuiltInEvents(_) | Node::Partition(_) => accepted(),
        };
        if !settled {
            self.dispose(channel, delivery_id, outcome)?;
        }
        self.shared.work_for_all();
        Ok(())
    }

    fn on_telemetry(&mut self, channel: u16, handle: u32, delivery: &Delivery) -> Step {
        let settings = self.shared.settings();
        let now = self.shared.clock.now();
        if !self.shared.takes_telemetry() {
            if !delivery.settled {
                let refusal = Refusal::quota_exceeded(settings.name());
                self.dispose(channel, delivery.delivery_id, rejected(refusal))?;
            }
            return self.force_close("The daily quota of the IoT hub is used up.");
        }
        let outcome = match settings.throttle {
            Throttle::Off if delivery.payload.len() > settings.max_telemetry_size => {
                rejected(Refusal::too_large(settings.max_telemetry_size))
            }
            Throttle::Off => match delivery.batched() {
                Ok(bodies) => {
                    self.note_batch(delivery, bodies);
                    accepted()
                }
                Err(_) if settings.checks_batches => {
                    rejected(Refusal::invalid_operation("The batch cannot be decoded."))
                }
                Err(_) => accepted(),
            },
            Throttle::Reject => rejected(Refusal::throttled()),
            Throttle::Busy => {
                let text = "Server Busy. Please retry operation".to_owned();
                let error = Error::new(LinkError::DetachForced, text, None);
                return self.detach_link(channel, handle, error);
            }
        };
        if delivery.settled {
            return Ok(());
        }
        if settings.outcome_delay.is_zero() {
            return self.dispose(channel, delivery.delivery_id, outcome);
        }
        let late = Late::Outcome {
            channel,
            delivery_id: delivery.delivery_id,
            state: outcome,
        };
        self.late.push((now + settings.outcome_delay, late));
        Ok(())
    }

    fn note_batch(&self, of: &Delivery, bodies: Vec<Vec<u8>>) {
        for body in bodies {
            self.note(Observed::Batched {
                connection: self.id,
                link: of.link.clone(),
                body,
            });
        }
    }

    pub(super) fn dispose(&self, channel: u16, delivery_id: u32, state: DeliveryState) -> Step {
        let disposition = Disposition {
            role: Role::Receiver,
            first: delivery_id,
            last: None,
            settled: true,
            state: Some(state),
            batchable: false,
        };
        self.send(channel, Performative::Disposition(disposition))
    }

    fn enqueue_command(&self, delivery: Delivery) -> Result<(), Refusal> {
        let message = message::decode(&delivery.payload)
            .map_err(|_| Refusal::invalid_operation("The command cannot be decoded."))?;
        let to = message
            .properties
            .as_ref()
            .and_then(|properties| properties.to.clone())
            .unwrap_or_default();
        let recipient = recipient_of(&to)
            .ok_or_else(|| Refusal::invalid_operation(format!("The command is for no device: {to}.")))?;
        self.shared
            .commands()
            .enqueue(&recipient, message, &self.shared.settings())?;
        let device = recipient.to_string();
        self.note(Observed::Command { device, delivery });
        Ok(())
    }

    /// The answer goes to the link that the request's link is paired with.
    fn on_twin_request(
        &mut self,
        channel: u16,
        handle: u32,
        identity: &Identity,
        delivery: &Delivery,
    ) -> Step {
        let (request, answer) = self.shared.twins().serve(identity, &delivery.payload, self.id);
        self.note(Observed::Twin {
            connection: self.id,
            identity: identity.clone(),
            request,
            settled: delivery.settled,
        });
        if let Some((channel, handle)) = self.partner(channel, handle) {
            let tag = guid::random().to_vec();
            self.session(channel)?.queue(handle, tag, answer, Purpose::Paired);
        }
        self.work()
    }

    fn on_method_answer(&mut self, identity: Identity, delivery: &Delivery) {
        let answer = self.shared.methods().answer(&identity, &delivery.payload);
        self.note(Observed::MethodAnswer {
            connection: self.id,
            identity,
            answer,
            settled: delivery.settled,
        });
    }

    /// The request is settled first, then answered, in a transfer whose tag is a four-byte little-endian counter.
    fn on_cbs_request(&mut self, channel: u16, delivery: &Delivery) -> Step {
        let shared = self.shared.clone();
        let (request, status) = cbs::serve(
            &delivery.link,
            &delivery.payload,
            &mut self.grants,
            &shared.settings(),
            shared.clock.now(),
        );
        self.has_had_token |= !self.grants.is_empty();
        self.on_lapse(shared.settings().on_expiry)?;
        if !delivery.settled {
            self.dispose(channel, delivery.delivery_id, accepted())?;
        }
        let reply = status.reply(request.message_id.clone());
        let receiver = self.cbs_receiver(channel, request.reply_to.as_deref());
        self.note(Observed::Token {
            connection: self.id,
            request,
            status: status.code,
        });
        if let Some((channel, handle)) = receiver {
            self.replies += 1;
            let tag = self.replies.to_le_bytes().to_vec();
            match shared.settings().cbs_answers {
                CbsAnswers::Never => {}
                CbsAnswers::AtOnce => {
                    self.session(channel)?.queue(handle, tag, reply, Purpose::Reply);
                }
                CbsAnswers::After(delay) => {
                    let late = Late::CbsReply {
                        channel,
                        handle,
                        tag,
                        reply,
                    };
                    self.late.push((shared.clock.now() + delay, late));
                }
            }
        }
        self.work()
    }

    /// The link that a reply goes to. Links attached later come later, by channel and handle.
    fn cbs_receiver(&self, channel: u16, reply_to: Option<&str>) -> Option<(u16, u32)> {
        let mut receivers = self.sessions.iter().flat_map(|(&channel, session)| {
            session
                .links()
                .filter(|(_, link)| {
                    link.node == Node::Cbs && link.peer_role == Role::Receiver && !link.is_closing()
                })
                .map(move |(handle, link)| (channel, handle, link))
        });
        let place = |(channel, handle, _)| (channel, handle);
        match self.shared.settings().cbs_mode {
            CbsMode::Refuse | CbsMode::LastWins => receivers.last().map(place),
            CbsMode::PerSession => receivers.filter(|&(of, ..)| of == channel).last().map(place),
            CbsMode::ReplyTo => receivers.find(|(_, _, link)| link.is_for(reply_to)).map(place),
        }
    }

    pub(super) fn on_disposition(&mut self, channel: u16, disposition: &Disposition) -> Step {
        if disposition.role == Role::Sender {
            return Ok(());
        }
        for (
            id,
            Awaiting {
                link, tag, purpose, ..
            },
        ) in self.session(channel)?.on_disposition(disposition)
        {
            let state = disposition.state.clone();
            let settled = disposition.settled;
            let mut answer = state.clone();
            if let Purpose::Command(lock) = purpose
                && !self
                    .shared
                    .commands()
                    .settle(&lock, state.as_ref(), &self.shared.settings())
            {
                answer = Some(rejected(Refusal::lock_lost()));
            }
            self.note(Observed::Disposed {
                connection: self.id,
                link,
                tag,
                state: state.clone(),
                settled,
            });
            if !settled {
                // Receiver-settle-mode second: our own settlement lets the peer forget the delivery.
                let settlement = Disposition {
                    role: Role::Sender,
                    first: id,
                    last: None,
                    settled: true,
                    state: answer,
                    batchable: false,
                };
                self.send(channel, Performative::Disposition(settlement))?;
            }
        }
        self.shared.work_for_all();
        Ok(())
    }

    /// Hands out what is waiting for links of this connection, and sends.
    pub(super) fn work(&mut self) -> Step {
        let now = self.shared.clock.now();
        for session in self.sessions.values_mut() {
            let hungry: Vec<(u32, Node, usize)> = session
                .links()
                .filter(|(_, link)| link.appetite() > 0)
                .map(|(handle, link)| (handle, link.node.clone(), link.appetite()))
                .collect();
            for (handle, node, appetite) in hungry {
                let mut commands = self.shared.commands();
                match node {
                    Node::DeviceBound(device) => {
                        for _ in 0..appetite {
                            let Some((lock, payload)) = commands.lock_next(
                                &device.to_string(),
                                self.id,
                                &self.shared.settings(),
                                now,
                            ) else {
                                break;
                            };
                            let lock: LockToken = lock;
                            session.queue(handle, lock.to_vec(), payload, Purpose::Command(lock));
                        }
                    }
                    Node::Feedback => {
                        if let Some(payload) = commands.take_feedback() {
                            session.queue(handle, guid::random().to_vec(), payload, Purpose::Feedback);
                        }
                    }
                    Node::Twin(identity) => {
                        for _ in 0..appetite {
                            let Some(notice) = self.shared.twins().next_notice(&identity, self.id) else {
                                break;
                            };
                            session.queue(handle, guid::random().to_vec(), notice, Purpose::Paired);
                        }
                    }
                    Node::Methods(identity) => {
                        for _ in 0..appetite {
                            let Some(call) = self.shared.methods().next_request(&identity, self.id) else {
                                break;
                            };
                            session.queue(handle, guid::random().to_vec(), call, Purpose::Paired);
                        }
                    }
                    Node::Cbs
                    | Node::Events(_)
                    | Node::ServiceCommands
                    | Node::BuiltInEvents(_)
                    | Node::EventHub(_)
                    | Node::Partition(_)
                    | Node::Queue(_)
                    | Node::Management(_) => {}
                }
            }
            session.pump(
                &self.writer,
                self.peer
                    .max_frame_size
                    .min(self.shared.settings().max_frame_size as usize),
            )?;
        }
        Ok(())
    }
}

pub(super) fn accepted() -> DeliveryState {
    DeliveryState::Accepted(Accepted {})
}

pub(super) fn rejected(refusal: Refusal) -> DeliveryState {
    DeliveryState::Rejected(Rejected {
        error: Some(refusal.to_error()),
    })
}
