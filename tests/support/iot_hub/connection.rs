//! One connection of the stand-in, from TLS to close.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use fe2o3_amqp::types::definitions::{ConnectionError, Error};
use fe2o3_amqp::types::performatives::{Close, End, Performative};
use socket2::Socket;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::super::wire::{self, Frame, FrameReader, FrameWriter, Stream};
use super::cbs::Grants;
use super::clock::Moment;
use super::handshake::{self, Peer};
use super::observed::{ConnectionId, Observed};
use super::session::Session;
use super::timers::Late;
use super::{Order, Shared};

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
    socket: Option<Socket>,
    mut orders: mpsc::UnboundedReceiver<Order>,
    shared: Arc<Shared>,
) {
    let (mut reader, writer) = wire::split(stream, shared.settings().max_frame_size as usize);
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
            let has_had_token = !grants.is_empty();
            let mut connection = Connection {
                id,
                writer,
                peer,
                socket,
                sessions,
                grants,
                replies: 0,
                late: Vec::new(),
                ended: BTreeSet::new(),
                opened_at: shared.clock.now(),
                last_link_at: None,
                has_had_token,
                reading: true,
                shared: shared.clone(),
            };
            let departure = connection.run(&mut reader, &mut orders).await;
            shared.commands().unlock_connection(id);
            shared.twins().unsubscribe(id, None);
            shared.methods().forget(id, None);
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
    pub(super) writer: FrameWriter,
    pub(super) peer: Peer,
    socket: Option<Socket>,
    pub(super) sessions: BTreeMap<u16, Session>,
    pub(super) grants: Grants,
    /// Numbers the replies of `$cbs`.
    pub(super) replies: u32,
    /// What was put off, and until when.
    pub(super) late: Vec<(Moment, Late)>,
    /// Channels of sessions that we ended and the peer has not.
    ended: BTreeSet<u16>,
    pub(super) opened_at: Moment,
    /// When a link was last there.
    pub(super) last_link_at: Option<Moment>,
    pub(super) has_had_token: bool,
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
        let patience = Duration::from_millis(u64::from(self.shared.settings().idle_time_out));
        let (mut beat_at, mut silent_at) = (Instant::now() + heartbeat, Instant::now() + patience);
        loop {
            let shared = self.shared.clone();
            let deadline = self.next_deadline();
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
                () = shared.clock.wait_until(deadline) => self.on_time(),
                () = sleep_until(silent_at) => {
                    let limit = self.shared.settings().idle_time_out;
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
            Some(Order::Work) => self.on_time(),
            Some(Order::Evict(identity, eviction)) => self.evict(&identity, eviction),
            Some(Order::StealReader(id)) => self.steal_reader(id),
            Some(Order::Close(error)) => self.close(Some(error)),
            Some(Order::Detach { node, error }) => self.detach_where(|link| link.node == node, &error),
            Some(Order::FallSilent) => {
                self.writer.hold();
                Ok(())
            }
            Some(Order::StopReading) => {
                self.reading = false;
                Ok(())
            }
            Some(Order::Abort) => {
                if let Some(socket) = &self.socket {
                    socket.set_linger(Some(Duration::ZERO))?;
                }
                Err(Departure::Abrupt("reset on command".to_owned()))
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

    pub(super) fn close(&self, error: Option<Error>) -> Step {
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
                if self.sessions.contains_key(&channel)
                    || self.ended.contains(&channel)
                    || channel > self.shared.settings().channel_max
                {
                    return self.fault(format!("a begin on channel {channel}, in use or out of range"));
                }
                let session = Session::new(channel, &begin, &self.shared.settings());
                self.send(channel, session.begin(&self.shared.settings()))?;
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
            Performative::End(_) if self.ended.remove(&channel) => Ok(()),
            _ if self.ended.contains(&channel) => Ok(()),
            other => {
                if !self.sessions.contains_key(&channel) {
                    return self.fault(format!("a frame on channel {channel}, which has no session"));
                }
                self.on_session_frame(channel, other, &payload)
            }
        }
    }

    fn drop_session(&mut self, channel: u16) {
        if let Some(mut session) = self.sessions.remove(&channel) {
            self.last_link_at = Some(self.shared.clock.now());
            for (link, locks) in session.detach_all() {
                self.shared.commands().unlock_tokens(&locks);
                self.shared.part(self.id, &link.node);
            }
        }
    }

    /// Ends a session on the hub's own account.
    pub(super) fn end_session(&mut self, channel: u16, error: Error) -> Step {
        self.drop_session(channel);
        self.ended.insert(channel);
        self.send(channel, Performative::End(End { error: Some(error) }))
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
                self.drop_session(channel);
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
}
