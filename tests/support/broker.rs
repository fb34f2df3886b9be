//! A hub for any traffic: `fe2o3-amqp`'s own acceptor behind TLS, with sinks and sources whose behaviour is in their
//! address.
//!
//! A sink is `sink/accept`, `sink/reject`, `sink/release`, `sink/modify` (any further segments are a name): it notes
//! each message and settles it so, with all fields. A source is `source/COUNT/SIZE` (and a name): it sends that many
//! messages of that many bytes, numbered, and notes their outcomes; `source/COUNT/SIZE/settled` sends them settled.
//! `source/1/SIZE/recover` resumes its message when its link, detached, is attached again.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use fe2o3_amqp::acceptor::{
    ConnectionAcceptor, LinkAcceptor, LinkEndpoint, ListenerSessionHandle, SaslAnonymousMechanism,
    SessionAcceptor,
};
use fe2o3_amqp::link::SendError;
use fe2o3_amqp::link::delivery::DeliveryFut;
use fe2o3_amqp::types::definitions::{AmqpError, Error, Fields};
use fe2o3_amqp::types::messaging::{Body, Message, Modified, Outcome};
use fe2o3_amqp::types::performatives::Attach;
use fe2o3_amqp::types::primitives::{Symbol, Value};
use fe2o3_amqp::{Receiver, Sendable, Sender};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsAcceptor;

use super::journal::Journal;
use super::{Failure, PATIENCE, message};

/// What the hub saw.
#[derive(Clone, Debug)]
pub(crate) enum Seen {
    /// A connection was opened (1, 2, ...).
    Opened(u32),
    /// A message arrived at a sink.
    Message {
        address: String,
        tag: Vec<u8>,
        message_format: Option<u32>,
        message: Message<Body<Value>>,
    },
    /// What became of a source's message, by its number.
    Outcome {
        address: String,
        number: u32,
        outcome: Outcome,
    },
    /// A link came to its end, in the acceptor's words.
    Detached { address: String, why: String },
    /// A link was attached again, with these deliveries unsettled.
    AttachedAgain {
        address: String,
        unsettled: Vec<Vec<u8>>,
    },
    /// A connection came to its end.
    Gone(u32),
}

/// The fields of every rejected outcome that a sink gives.
pub(crate) fn rejection() -> Error {
    let mut info = Fields::default();
    info.insert(
        Symbol::from("com.example:why"),
        Value::String("because".to_owned()),
    );
    Error::new(AmqpError::PreconditionFailed, "the sink rejects".to_owned(), info)
}

/// The fields of every modified outcome that a sink gives.
pub(crate) fn modification() -> Modified {
    let mut annotations = Fields::default();
    annotations.insert(Symbol::from("x-opt-note"), Value::Int(7));
    Modified {
        delivery_failed: Some(true),
        undeliverable_here: Some(true),
        message_annotations: Some(annotations),
    }
}

/// The body of a numbered message of this size: its number, then a pattern.
pub(crate) fn numbered(number: u32, size: usize) -> Vec<u8> {
    let mut body = number.to_be_bytes().to_vec();
    body.extend(
        (0_usize..)
            .map(|index| (index % 251) as u8)
            .take(size.saturating_sub(4)),
    );
    body.truncate(size.max(4));
    body
}

/// The number of a message made by [`numbered`]; `None` if it is damaged.
pub(crate) fn number_of(body: &[u8]) -> Option<u32> {
    let number = u32::from_be_bytes(*body.first_chunk()?);
    (numbered(number, body.len()) == body).then_some(number)
}

/// A running hub, on a thread of its own. Dropping it drops its connections.
pub(crate) struct Broker {
    address: SocketAddr,
    tls: Arc<ServerConfig>,
    properties: Fields,
    journal: Arc<Journal<Seen>>,
    running: Option<Runtime>,
}

impl Broker {
    /// Starts a hub on a free port.
    pub(crate) async fn start(tls: Arc<ServerConfig>) -> Result<Self, Failure> {
        Self::start_with(tls, Fields::default()).await
    }

    /// Starts a hub whose opens have these properties.
    pub(crate) async fn start_with(tls: Arc<ServerConfig>, properties: Fields) -> Result<Self, Failure> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut broker = Self {
            address,
            tls,
            properties,
            journal: Arc::default(),
            running: None,
        };
        broker.resume().await?;
        Ok(broker)
    }

    /// Listens again, on the same port, after [`stop`](Self::stop).
    pub(crate) async fn resume(&mut self) -> Result<(), Failure> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let listener = runtime.spawn(TcpListener::bind(self.address)).await??;
        self.address = listener.local_addr()?;
        runtime.spawn(accept(
            listener,
            TlsAcceptor::from(self.tls.clone()),
            self.properties.clone(),
            self.journal.clone(),
        ));
        self.running = Some(runtime);
        Ok(())
    }

    /// Stops listening and drops every connection without a word, whatever the acceptor is about to do.
    pub(crate) async fn stop(&mut self) -> Result<(), Failure> {
        if let Some(runtime) = self.running.take() {
            tokio::task::spawn_blocking(move || runtime.shutdown_timeout(PATIENCE)).await?;
        }
        Ok(())
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it saw.
    pub(crate) fn journal(&self) -> &Journal<Seen> {
        &self.journal
    }

    /// The messages that reached a sink, once there are this many.
    pub(crate) async fn messages(
        &self,
        sink: &str,
        count: usize,
    ) -> Result<Vec<Message<Body<Value>>>, Failure> {
        let what = format!("{count} messages at {sink}");
        let pick = |seen: &Seen| match seen {
            Seen::Message { address, message, .. } if address == sink => Some(message.clone()),
            _ => None,
        };
        self.journal.find_all(&what, count, pick).await
    }

    /// The outcomes that a source's messages had, with their numbers, once there are this many.
    pub(crate) async fn outcomes(&self, source: &str, count: usize) -> Result<Vec<(u32, Outcome)>, Failure> {
        let what = format!("{count} outcomes at {source}");
        let pick = |seen: &Seen| match seen {
            Seen::Outcome {
                address,
                number,
                outcome,
            } if address == source => Some((*number, outcome.clone())),
            _ => None,
        };
        self.journal.find_all(&what, count, pick).await
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(runtime) = self.running.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, properties: Fields, journal: Arc<Journal<Seen>>) {
    let mut connections = 0;
    while let Ok((transport, _)) = listener.accept().await {
        let _ = transport.set_nodelay(true);
        connections += 1;
        tokio::spawn(serve_connection(
            connections,
            transport,
            tls.clone(),
            properties.clone(),
            journal.clone(),
        ));
    }
}

async fn serve_connection(
    number: u32,
    transport: TcpStream,
    tls: TlsAcceptor,
    properties: Fields,
    journal: Arc<Journal<Seen>>,
) {
    let acceptor = ConnectionAcceptor::builder()
        .container_id("broker")
        .max_frame_size(65_536)
        .channel_max(8_191)
        .properties(properties)
        .sasl_acceptor(SaslAnonymousMechanism::new())
        .build();
    let Ok(transport) = tls.accept(transport).await else {
        return;
    };
    let Ok(mut connection) = acceptor.accept(transport).await else {
        return;
    };
    journal.note(Seen::Opened(number));
    while let Some(incoming) = connection.next_incoming_session().await {
        let acceptor = SessionAcceptor::new();
        if let Ok(session) = acceptor.accept_incoming_session(incoming, &mut connection).await {
            tokio::spawn(serve_session(session, journal.clone()));
        }
    }
    journal.note(Seen::Gone(number));
}

async fn serve_session(mut session: ListenerSessionHandle, journal: Arc<Journal<Seen>>) {
    let acceptor = LinkAcceptor::new();
    let mut recovering: HashMap<String, oneshot::Sender<Attach>> = HashMap::new();
    // The handle is kept, for dropping it ends the session.
    while let Some(attach) = session.next_incoming_attach().await {
        let name = attach.name.clone();
        if let Some(link) = recovering.remove(&name) {
            let _ = link.send(attach);
            continue;
        }
        match acceptor.accept_incoming_attach(attach, &mut session).await {
            Ok(LinkEndpoint::Sender(sender)) if source_of(&sender).ends_with("/recover") => {
                let (link, again) = oneshot::channel();
                recovering.insert(name, link);
                tokio::spawn(recover(sender, again, journal.clone()))
            }
            Ok(LinkEndpoint::Receiver(receiver)) => tokio::spawn(sink(receiver, journal.clone())),
            Ok(LinkEndpoint::Sender(sender)) => tokio::spawn(source(sender, journal.clone())),
            Err(_) => continue,
        };
    }
}

async fn sink(mut receiver: Receiver, journal: Arc<Journal<Seen>>) {
    let address = receiver
        .target()
        .as_ref()
        .and_then(|target| target.address.clone())
        .unwrap_or_default();
    let behaviour = address.split('/').nth(1).unwrap_or_default().to_owned();
    loop {
        let delivery = match receiver.recv::<Body<Value>>().await {
            Ok(delivery) => delivery,
            Err(error) => {
                let _ = receiver.close().await;
                journal.note(Seen::Detached {
                    address,
                    why: format!("{error:?}"),
                });
                return;
            }
        };
        // One that cannot be settled any more is on a link that the next `recv` finds closed.
        let _ = match behaviour.as_str() {
            "reject" => receiver.reject(&delivery, rejection()).await,
            "release" => receiver.release(&delivery).await,
            "modify" => receiver.modify(&delivery, modification()).await,
            _ => receiver.accept(&delivery).await,
        };
        let (tag, message_format) = (delivery.delivery_tag().to_vec(), *delivery.message_format());
        let message = delivery.into_message();
        journal.note(Seen::Message {
            address: address.clone(),
            tag,
            message_format,
            message,
        });
    }
}

fn source_of(sender: &Sender) -> String {
    let source = sender.source().as_ref();
    source
        .and_then(|source| source.address.clone())
        .unwrap_or_default()
}

/// Sends one message, and resumes it on the link's second life.
async fn recover(mut sender: Sender, again: oneshot::Receiver<Attach>, journal: Arc<Journal<Seen>>) {
    let address = source_of(&sender);
    let size = address.split('/').nth(2).and_then(|word| word.parse().ok());
    let sendable = Sendable::builder()
        .message(message::data(numbered(0, size.unwrap_or(0))))
        .build();
    let Ok(outcome) = sender.send_batchable(sendable).await else {
        return;
    };
    let why = format!("{:?}", sender.on_detach().await);
    let (Ok(detached) | Err((detached, _))) = sender.detach().await;
    journal.note(Seen::Detached {
        address: address.clone(),
        why,
    });
    let Ok(attach) = again.await else { return };
    let unsettled = attach.unsettled.iter().flatten();
    journal.note(Seen::AttachedAgain {
        address,
        unsettled: unsettled.map(|(tag, _)| tag.to_vec()).collect(),
    });
    // What comes in on a link that it attaches again does not reach this acceptor, so it waits here for ever for a detach.
    let _ = detached.resume_incoming_attach(attach).await;
    drop(outcome);
}

async fn source(mut sender: Sender, journal: Arc<Journal<Seen>>) {
    let address = source_of(&sender);
    let mut words = address.split('/').skip(1);
    let count = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
    let size = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
    let settled = words.next() == Some("settled");
    let (outcomes, mut pending) = mpsc::unbounded_channel();
    let noting = {
        let (journal, address) = (journal.clone(), address.clone());
        tokio::spawn(async move {
            while let Some((number, outcome)) = pending.recv().await {
                let outcome: DeliveryFut<Result<Outcome, SendError>> = outcome;
                if let Ok(outcome) = outcome.await {
                    journal.note(Seen::Outcome {
                        address: address.clone(),
                        number,
                        outcome,
                    });
                }
            }
        })
    };
    for number in 0..count {
        let body = message::data(numbered(number, size));
        let sendable = Sendable::builder().message(body).settled(settled).build();
        match sender.send_batchable(sendable).await {
            Ok(outcome) => {
                let _ = outcomes.send((number, outcome));
            }
            Err(_) => break,
        }
    }
    drop(outcomes);
    let _ = noting.await;
    let why = format!("{:?}", sender.on_detach().await);
    let _ = sender.close().await;
    journal.note(Seen::Detached { address, why });
}
