//! One connection of the stand-in, from TLS to close.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use fe2o3_amqp::types::definitions::{ConnectionError, Error, Handle, LinkError, Role};
use fe2o3_amqp::types::messaging::{Accepted, DeliveryState, Rejected};
use fe2o3_amqp::types::performatives::{Close, Detach, Disposition, End, Performative, Transfer};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::super::message;
use super::super::wire::{self, Frame, FrameReader, FrameWriter, Stream};
use super::cbs::{self, Grants};
use super::commands::LockToken;
use super::handshake::{self, Peer};
use super::node::{Node, device_of};
use super::observed::{ConnectionId, Delivery, Observed};
use super::refusal::Refusal;
use super::session::{Arrival, Awaiting, Progress, Purpose, Session};
use super::settings::CbsMode;
use super::{Order, Shared, guid};

/// What a peer that names no idle time-out is taken to want.
const DEFAULT_IDLE_TIME_OUT: u32 = 120_000;

/// How a connection came to its end.
pub(super) enum Departure {
    /// A close was sent, or answered.
    Closed,
    /// The transport was lost, or is to be dropped.
    Abrupt(String),
}

/// Serves one transport until it is gone.
pub(super) async fn serve(
    id: ConnectionId,
    stream: Box<dyn Stream>,
    mut orders: mpsc::UnboundedReceiver<Order>,
    shared: Arc<Shared>,
) {
    let (mut reader, writer) = wire::split(stream, shared.settings.max_frame_size as usize);
    let mut grants = Grants::default();
    let opened = async {
        let greeting = handshake::authenticate(id, &mut reader, &writer, &mut grants, &shared).await?;
        handshake::open(id, greeting, &mut reader, &writer, &shared).await
    };
    let opened: io::Result<Option<Peer>> = tokio::select! {
        opened = opened => opened,
        () = reset(&mut orders) => Err(io::ErrorKind::ConnectionAborted.into()),
    };
    match opened {
        Err(error) => {
            writer.abort();
            shared.journal.note(Observed::Lost {
                connection: id,
                why: error.to_string(),
            });
        }
        Ok(None) => {
            writer.finish().await;
            shared.journal.note(Observed::Lost {
                connection: id,
                why: "refused".to_owned(),
            });
        }
        Ok(Some(peer)) => {
            let sessions = BTreeMap::new();
            let mut connection = Connection {
                id,
                writer,
                peer,
                sessions,
                grants,
                replies: 0,
                reading: true,
                shared: shared.clone(),
            };
            let departure = connection.run(&mut reader, &mut orders).await;
            shared.commands().unlock_connection(id);
            let why = match departure {
                Departure::Closed => {
                    connection.writer.finish().await;
                    "closed".to_owned()
                }
                Departure::Abrupt(why) => {
                    connection.writer.abort();
                    why
                }
            };
            shared.journal.note(Observed::Lost { connection: id, why });
            shared.work_for_all();
        }
    }
}

async fn reset(orders: &mut mpsc::UnboundedReceiver<Order>) {
    while let Some(order) = orders.recv().await {
        if matches!(order, Order::Reset) {
            return;
        }
    }
    std::future::pending().await
}

pub(super) struct Connection {
    pub(super) id: ConnectionId,
    writer: FrameWriter,
    peer: Peer,
    pub(super) sessions: BTreeMap<u16, Session>,
    pub(super) grants: Grants,
    /// Numbers the replies of `$cbs`.
    replies: u32,
    /// Cleared to leave what the peer sends where it is.
    reading: bool,
    pub(super) shared: Arc<Shared>,
}

/// What ends the loop.
pub(super) type Step = Result<(), Departure>;

impl From<io::Error> for Departure {
    fn from(error: io::Error) -> Self {
        Self::Abrupt(error.to_string())
    }
}

impl Connection {
    async fn run(
        &mut self,
        reader: &mut FrameReader,
        orders: &mut mpsc::UnboundedReceiver<Order>,
    ) -> Departure {
        let theirs = self.peer.idle_time_out.unwrap_or(DEFAULT_IDLE_TIME_OUT);
        let heartbeat = Duration::from_millis(u64::from(theirs) * 7 / 8);
        let patience = Duration::from_millis(u64::from(self.shared.settings.idle_time_out));
        let (mut beat_at, mut silent_at) = (Instant::now() + heartbeat, Instant::now() + patience);
        loop {
            let expiry = self.shared.commands().next_expiry().unwrap_or(beat_at);
            let step = tokio::select! {
                frame = reader.next(), if self.reading => {
                    silent_at = Instant::now() + patience;
                    match frame {
                        Ok(frame) => self.on_frame(frame),
                        Err(error) if error.kind() == io::ErrorKind::InvalidData => self.fault(error.to_string()),
                        Err(error) => Err(error.into()),
                    }
                }
                order = orders.recv() => self.on_order(order),
                () = sleep_until(beat_at) => {
                    self.writer.heartbeat();
                    beat_at = Instant::now() + heartbeat;
                    Ok(())
                }
                () = sleep_until(expiry), if expiry != beat_at => {
                    self.shared.commands().unlock_expired(Instant::now());
                    self.work()
                }
                () = sleep_until(silent_at) => {
                    let limit = self.shared.settings.idle_time_out;
                    let text = format!(
                        "The connection was inactive for more than the allowed {limit} milliseconds and is closed by container 'hub'."
                    );
                    self.close(Some(Error::new(ConnectionError::ConnectionForced, text, None)))
                }
            };
            if let Err(departure) = step {
                return departure;
            }
        }
    }

    fn on_order(&mut self, order: Option<Order>) -> Step {
        match order {
            Some(Order::Work) => self.work(),
            Some(Order::Close(error)) => self.close(Some(error)),
            Some(Order::Detach { node, error }) => self.detach_all(&node, &error),
            Some(Order::FallSilent) => {
                self.writer.hold();
                Ok(())
            }
            Some(Order::StopReading) => {
                self.reading = false;
                Ok(())
            }
            Some(Order::Reset) | None => Err(Departure::Abrupt("dropped on command".to_owned())),
        }
    }

    pub(super) fn send(&self, channel: u16, performative: Performative) -> Step {
        Ok(self.writer.send(channel, &performative, &[])?)
    }

    pub(super) fn note(&self, observed: Observed) {
        self.shared.journal.note(observed);
    }

    fn close(&self, error: Option<Error>) -> Step {
        self.send(0, Performative::Close(Close { error }))?;
        Err(Departure::Closed)
    }

    /// The peer broke the protocol.
    pub(super) fn fault(&self, what: String) -> Step {
        self.note(Observed::Fault {
            connection: self.id,
            what: what.clone(),
        });
        self.close(Some(Error::new(ConnectionError::FramingError, what, None)))
    }

    fn on_frame(&mut self, frame: Frame) -> Step {
        let (channel, performative, payload) = match frame {
            Frame::Empty => {
                self.note(Observed::Heartbeat { connection: self.id });
                return Ok(());
            }
            Frame::Sasl(_) => return self.fault("a SASL frame after open".to_owned()),
            Frame::Amqp {
                channel,
                performative,
                payload,
            } => (channel, performative, payload),
        };
        match performative {
            Performative::Open(_) => self.fault("a second open".to_owned()),
            Performative::Begin(begin) => {
                if self.sessions.contains_key(&channel) || channel > self.shared.settings.channel_max {
                    return self.fault(format!("a begin on channel {channel}, in use or out of range"));
                }
                let session = Session::new(channel, &begin, &self.shared.settings);
                self.send(channel, session.begin(&self.shared.settings))?;
                self.sessions.insert(channel, session);
                self.note(Observed::Begun {
                    connection: self.id,
                    channel,
                    begin,
                });
                Ok(())
            }
            Performative::Close(Close { error }) => {
                self.note(Observed::Closed {
                    connection: self.id,
                    error,
                });
                self.close(None)
            }
            other => {
                if !self.sessions.contains_key(&channel) {
                    return self.fault(format!("a frame on channel {channel}, which has no session"));
                }
                self.on_session_frame(channel, other, &payload)
            }
        }
    }

    pub(super) fn session(&mut self, channel: u16) -> Result<&mut Session, Departure> {
        self.sessions
            .get_mut(&channel)
            .ok_or_else(|| Departure::Abrupt(format!("no session on {channel}")))
    }

    fn on_session_frame(&mut self, channel: u16, performative: Performative, payload: &[u8]) -> Step {
        match performative {
            Performative::Attach(attach) => self.on_attach(channel, attach),
            Performative::Flow(flow) => match self.session(channel)?.on_flow(&flow) {
                Err(what) => self.fault(what),
                Ok(answer) => {
                    self.work()?;
                    match answer {
                        Some(handle) => {
                            let flow = self.session(channel)?.flow(handle);
                            self.send(channel, flow)
                        }
                        None => Ok(()),
                    }
                }
            },
            Performative::Transfer(transfer) => self.on_transfer(channel, transfer, payload),
            Performative::Disposition(disposition) => self.on_disposition(channel, &disposition),
            Performative::Detach(detach) => self.on_detach(channel, detach),
            Performative::End(End { error }) => {
                let connection = self.id;
                if let Some(mut session) = self.sessions.remove(&channel) {
                    let handles: Vec<u32> = session.links().map(|(handle, _)| handle).collect();
                    for handle in handles {
                        let locks = session.forget_unsettled(handle);
                        self.shared.commands().unlock_tokens(&locks);
                    }
                }
                self.note(Observed::Ended {
                    connection,
                    channel,
                    error,
                });
                self.send(channel, Performative::End(End { error: None }))?;
                self.shared.work_for_all();
                Ok(())
            }
            Performative::Open(_) | Performative::Begin(_) | Performative::Close(_) => Ok(()),
        }
    }

    fn on_transfer(&mut self, channel: u16, transfer: Transfer, payload: &[u8]) -> Step {
        let Handle(handle) = transfer.handle;
        let max_message_size = self.shared.settings.max_message_size;
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
                if let Some(link) = self.session(channel)?.link_mut(handle) {
                    link.close();
                }
                let text = format!("The message is larger than the link allows, {max_message_size} bytes.");
                let error = Some(Error::new(LinkError::MessageSizeExceeded, text, None));
                self.send(
                    channel,
                    Performative::Detach(Detach {
                        handle: Handle(handle),
                        closed: true,
                        error,
                    }),
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
        let Some(link) = self.session(channel)?.link(handle) else {
            return Ok(());
        };
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
            Node::Events(_) => {
                let limit = self.shared.settings.max_telemetry_size;
                let too_large = delivery.payload.len() > limit;
                self.note(Observed::Telemetry(delivery));
                if too_large {
                    rejected(Refusal::too_large(limit))
                } else {
                    accepted()
                }
            }
            Node::ServiceCommands => match self.enqueue_command(delivery) {
                Ok(()) => accepted(),
                Err(refusal) => rejected(refusal),
            },
            Node::DeviceBound(_) | Node::Feedback => accepted(),
        };
        if !settled {
            self.dispose(channel, delivery_id, outcome)?;
        }
        self.shared.work_for_all();
        Ok(())
    }

    fn dispose(&self, channel: u16, delivery_id: u32, state: DeliveryState) -> Step {
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
        let device = device_of(&to)
            .ok_or_else(|| Refusal::invalid_operation(format!("The command is for no device: {to}.")))?;
        self.shared
            .commands()
            .enqueue(&device, message, &self.shared.settings)?;
        self.note(Observed::Command { device, delivery });
        Ok(())
    }

    /// The request is settled first, then answered, in a transfer whose tag is a four-byte little-endian counter.
    fn on_cbs_request(&mut self, channel: u16, delivery: &Delivery) -> Step {
        let shared = self.shared.clone();
        let (request, status) = cbs::serve(
            &delivery.link,
            &delivery.payload,
            &mut self.grants,
            &shared.settings,
        );
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
            self.session(channel)?
                .queue(handle, tag, reply, Purpose::CbsReply);
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
        match self.shared.settings.cbs_mode {
            CbsMode::Refuse | CbsMode::LastWins => receivers.last().map(place),
            CbsMode::PerSession => receivers.filter(|&(of, ..)| of == channel).last().map(place),
            CbsMode::ReplyTo => receivers
                .find(|(_, _, link)| reply_to.is_some_and(|to| link.reply_names.iter().any(|n| n == to)))
                .map(place),
        }
    }

    fn on_disposition(&mut self, channel: u16, disposition: &Disposition) -> Step {
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
            if let Purpose::Command(lock) = purpose {
                self.shared
                    .commands()
                    .settle(&lock, state.as_ref(), &self.shared.settings);
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
                    state,
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
        let now = Instant::now();
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
                            let Some((lock, payload)) =
                                commands.lock_next(&device, self.id, &self.shared.settings, now)
                            else {
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
                    Node::Cbs | Node::Events(_) | Node::ServiceCommands => {}
                }
            }
            session.pump(
                &self.writer,
                self.peer
                    .max_frame_size
                    .min(self.shared.settings.max_frame_size as usize),
            )?;
        }
        Ok(())
    }
}

fn accepted() -> DeliveryState {
    DeliveryState::Accepted(Accepted {})
}

fn rejected(refusal: Refusal) -> DeliveryState {
    DeliveryState::Rejected(Rejected {
        error: Some(refusal.to_error()),
    })
}
