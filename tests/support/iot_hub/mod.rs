//! An Azure IoT Hub stand-in: what the cloud hub does on port 5671, as far as its published frames, its documentation
//! and the client libraries show it.
//!
//! * TLS with a client certificate asked for but not needed; SASL `EXTERNAL MSSBCBS ANONYMOUS PLAIN` and `Welcome!`;
//!   the hub's own values in open, begin, attach and flow.
//! * `$cbs` with SAS tokens verified; links authorised by the tokens of their connection, or refused with JSON.
//! * Telemetry; commands with 16-byte lock tokens for tags, receiver-settle-mode second, locks, delivery counts and
//!   feedback.
//! * Everything its peer says is in the [`Journal`], and what breaks the protocol is a [`Observed::Fault`].
//!
//! It is not built on `fe2o3-amqp`'s acceptor but on that project's codec and types, one level below, because the
//! acceptor cannot say what this hub says: its delivery-tags are its own four-byte counters where IoT Hub's are 16-byte
//! lock tokens; it cannot answer an attach with a null terminus and then detach with an error, nor echo a client's attach
//! properties; it joins links by name alone, without their role; and it neither shows an aborted delivery nor minds a gap
//! in delivery-ids, a window or a credit overrun. Where the acceptor's own view of AMQP is wanted, there is
//! [`broker`](super::broker).

mod attach;
mod cbs;
pub(crate) mod clock;
mod commands;
mod connection;
mod deliveries;
mod guid;
mod handshake;
mod link;
mod management;
mod methods;
mod node;
mod observed;
mod rates;
mod readers;
mod refusal;
mod session;
pub(crate) mod settings;
mod timers;
mod twins;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fe2o3_amqp::types::definitions::{ConnectionError, Error, Role};
use fe2o3_amqp::types::messaging::{Body, Message, TargetArchetype};
use fe2o3_amqp::types::performatives::Attach;
use fe2o3_amqp::types::primitives::Value;
use rustls::ServerConfig;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::journal::Journal;
use super::wire::Stream;
use super::{Failure, bounded};
use clock::Clock;
use commands::Commands;
use methods::Methods;
use rates::{Quota, Rate};
use readers::{Reader, ReaderId, Readers};
use refusal::Refusal;
use settings::Eviction;
use twins::Twins;

pub(crate) use methods::MethodAnswer;
use node::Partition;
pub(crate) use node::{Identity, Node};
pub(crate) use observed::{ConnectionId, Observed};
pub(crate) use settings::Settings;

/// What a connection is told to do.
#[derive(Clone)]
pub(crate) enum Order {
    /// Something may be waiting for one of its links.
    Work,
    /// An identity has come on another connection.
    Evict(Identity, Eviction),
    /// A receiver of a partition has to go for another.
    StealReader(ReaderId),
    /// Close with this error.
    Close(Error),
    /// Detach all links to this node with this error.
    Detach { node: Node, error: Error },
    /// Send nothing any more, but keep the transport.
    FallSilent,
    /// Read nothing any more, but keep the transport.
    StopReading,
    /// Drop the transport.
    Reset,
    /// Reset the transport, in the sense of TCP.
    Abort,
}

/// What all connections of one hub share.
pub(crate) struct Shared {
    settings: Mutex<Arc<Settings>>,
    clock: Clock,
    journal: Journal<Observed>,
    commands: Mutex<Commands>,
    twins: Mutex<Twins>,
    methods: Mutex<Methods>,
    readers: Readers,
    connections: Mutex<Connections>,
}

#[derive(Default)]
struct Connections {
    accepted: ConnectionId,
    /// How many of those to come are closed right after their open.
    to_refuse: usize,
    opened: Rate,
    attached: Rate,
    quota: Quota,
    /// Where an identity came last.
    holders: BTreeMap<Identity, ConnectionId>,
    orders: BTreeMap<ConnectionId, mpsc::UnboundedSender<Order>>,
}

impl Shared {
    fn settings(&self) -> Arc<Settings> {
        self.settings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Why a connection that has opened must go again, if it must.
    fn turn_away(&self) -> Option<Error> {
        let (settings, now) = (self.settings(), self.clock.now());
        let mut connections = self.connections();
        if connections.to_refuse > 0 {
            connections.to_refuse -= 1;
            return Some(Refusal::upgrading().to_error());
        }
        if !connections.quota.is_left(settings.daily_quota, now) {
            return Some(Refusal::quota_exceeded(settings.name()).to_error());
        }
        let fits = connections.opened.admits(settings.connections_per_second, now);
        (!fits).then(|| Refusal::throttled().to_error())
    }

    fn admits_link(&self) -> bool {
        let (settings, now) = (self.settings(), self.clock.now());
        self.connections()
            .attached
            .admits(settings.link_opens_per_second, now)
    }

    /// Counts a telemetry message, unless the day's are used up.
    fn takes_telemetry(&self) -> bool {
        let (settings, now) = (self.settings(), self.clock.now());
        self.connections().quota.takes(settings.daily_quota, now)
    }

    /// A link of this connection is there; if its identity was on another one, that is over.
    fn claim(&self, node: &Node, connection: ConnectionId) {
        let (Some(identity), Some(eviction)) = (node.identity(), self.settings().eviction) else {
            return;
        };
        let mut connections = self.connections();
        let older = connections.holders.insert(identity.clone(), connection);
        if let Some(older) = older.filter(|&older| older != connection)
            && let Some(orders) = connections.orders.get(&older)
        {
            // One that has gone meanwhile needs no word.
            let _ = orders.send(Order::Evict(identity.clone(), eviction));
        }
    }

    /// Lets a receiver of a partition in; others may have to go for it.
    fn admit_reader(
        &self,
        partition: &Partition,
        epoch: Option<i64>,
        connection: ConnectionId,
    ) -> Result<Reader, Error> {
        let (reader, gone) = self.readers.enter(partition, epoch, connection)?;
        let connections = self.connections();
        for (connection, id) in gone {
            if let Some(orders) = connections.orders.get(&connection) {
                // One that has gone meanwhile needs no word.
                let _ = orders.send(Order::StealReader(id));
            }
        }
        Ok(reader)
    }

    fn commands(&self) -> MutexGuard<'_, Commands> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn twins(&self) -> MutexGuard<'_, Twins> {
        self.twins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn methods(&self) -> MutexGuard<'_, Methods> {
        self.methods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A link of a connection to this node is gone.
    fn part(&self, connection: ConnectionId, node: &Node) {
        match node {
            Node::Twin(identity) => self.twins().unsubscribe(connection, Some(identity)),
            Node::Methods(identity) => self.methods().forget(connection, Some(identity)),
            Node::Cbs
            | Node::Events(_)
            | Node::DeviceBound(_)
            | Node::ServiceCommands
            | Node::Feedback
            | Node::BuiltInEvents(_)
            | Node::EventHub(_)
            | Node::Partition(_)
            | Node::Queue(_)
            | Node::Management(_) => {}
        }
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work_for_all(&self) {
        self.order_all(&Order::Work);
    }

    fn order_all(&self, order: &Order) {
        self.connections()
            .orders
            .retain(|_, orders| orders.send(order.clone()).is_ok());
    }
}

/// What connections are shown for a certificate; `None` for clear text.
type Tls = Arc<Mutex<Option<Arc<ServerConfig>>>>;

/// A running hub.
pub(crate) struct IotHub {
    shared: Arc<Shared>,
    tls: Tls,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

impl IotHub {
    /// Starts a hub on a free port; without `tls`, in clear text.
    pub(crate) async fn start(settings: Settings, tls: Option<Arc<ServerConfig>>) -> Result<Self, Failure> {
        let shared = Arc::new(Shared {
            clock: Clock::start(settings.clock_rate),
            settings: Mutex::new(Arc::new(settings)),
            journal: Journal::default(),
            commands: Mutex::default(),
            twins: Mutex::default(),
            methods: Mutex::default(),
            readers: Readers::default(),
            connections: Mutex::default(),
        });
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut hub = Self {
            shared,
            tls: Arc::new(Mutex::new(tls)),
            address,
            accepting: None,
        };
        hub.resume().await?;
        Ok(hub)
    }

    /// Listens again, on the same port, after [`stop`](Self::stop).
    pub(crate) async fn resume(&mut self) -> Result<(), Failure> {
        let listener = TcpListener::bind(self.address).await?;
        self.address = listener.local_addr()?;
        self.accepting = Some(tokio::spawn(accept(
            listener,
            self.tls.clone(),
            self.shared.clone(),
        )));
        Ok(())
    }

    /// Stops listening and drops every connection, as a host that goes down. The registry, the queues and the journal
    /// stay; tokens go with their connections.
    pub(crate) async fn stop(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
            let _ = accepting.await;
        }
        self.drop_connections();
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it saw.
    pub(crate) fn journal(&self) -> &Journal<Observed> {
        &self.shared.journal
    }

    /// Changes the switches while it runs.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Settings)) {
        let mut settings = self
            .shared
            .settings
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut settings));
        drop(settings);
        self.shared.work_for_all();
    }

    /// What connections to come are shown for a certificate.
    pub(crate) fn present(&self, tls: Arc<ServerConfig>) {
        *self.tls.lock().unwrap_or_else(PoisonError::into_inner) = Some(tls);
    }

    /// Its clock.
    pub(crate) fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    /// Puts its clock forward.
    pub(crate) fn advance(&self, by: Duration) {
        self.shared.clock.advance(by);
        self.shared.work_for_all();
    }

    /// Closes the next so many connections right after their open, as during an upgrade.
    pub(crate) fn refuse_next(&self, connections: usize) {
        self.shared.connections().to_refuse = connections;
    }

    /// Drops every connection without a word.
    pub(crate) fn drop_connections(&self) {
        self.order(&Order::Reset);
    }

    /// Closes every connection as an upgrade of the service does.
    pub(crate) fn close_connections(&self, why: &str) {
        self.order(&Order::Close(Error::new(
            ConnectionError::ConnectionForced,
            why.to_owned(),
            None,
        )));
    }

    /// Gives an order to every connection.
    pub(crate) fn order(&self, order: &Order) {
        self.shared.order_all(order);
    }

    /// Puts a command into a device's queue, as a service does by HTTPS.
    pub(crate) fn send_command(&self, device: &str, command: Message<Body<Value>>) -> Result<(), Failure> {
        let queued =
            self.shared
                .commands()
                .enqueue(&Identity::device(device), command, &self.shared.settings());
        queued.map_err(|refusal| Failure::new(format!("{:?}", refusal.to_error())))?;
        self.shared.work_for_all();
        Ok(())
    }

    /// Commands waiting for a device.
    pub(crate) fn pending_commands(&self, device: &str) -> usize {
        self.shared.commands().pending(device)
    }

    /// Commands given up.
    pub(crate) fn dead_letters(&self) -> usize {
        self.shared.commands().dead_letters()
    }

    /// Calls a method of a device once it listens for calls, and waits for its answer.
    pub(crate) async fn invoke(
        &self,
        identity: &Identity,
        method: &str,
        payload: &[u8],
    ) -> Result<MethodAnswer, Failure> {
        let answer = self.shared.methods().call(identity, method, payload);
        self.shared.work_for_all();
        let what = format!("the answer of {identity} to {method}");
        bounded(&what, answer)
            .await?
            .map_err(|_| Failure::new(format!("{what}: the device went away")))
    }

    /// Patches the desired properties of a device's twin.
    pub(crate) fn set_desired(
        &self,
        identity: &Identity,
        patch: &serde_json::Map<String, serde_json::Value>,
    ) {
        self.shared.twins().set_desired(identity, patch);
        self.shared.work_for_all();
    }

    /// The reported properties of a device's twin, `$version` among them.
    pub(crate) fn reported(&self, identity: &Identity) -> serde_json::Value {
        self.shared.twins().reported(identity)
    }

    /// Fails if a connection ever had more than one pair of links to `$cbs` at once.
    pub(crate) fn ensure_one_cbs_pair(&self) -> Result<(), Failure> {
        let extra = self.shared.journal.select(|observed| match observed {
            Observed::CbsLink {
                connection,
                role,
                open,
            } if *open > 1 => Some(format!("connection {connection}: {open} of role {role:?}")),
            _ => None,
        });
        super::ensure(extra.is_empty(), || {
            format!("more than one pair of $cbs links: {}", extra.join("; "))
        })
    }

    /// Fails if a peer broke the protocol.
    pub(crate) fn ensure_no_faults(&self) -> Result<(), Failure> {
        let mut faults = self.shared.journal.select(|observed| match observed {
            Observed::Fault { connection, what } => Some(format!("connection {connection}: {what}")),
            _ => None,
        });
        if self.shared.settings().is_behind_router {
            faults.extend(self.second_cbs_pairs());
        }
        super::ensure(faults.is_empty(), || {
            format!("the hub's peer broke the protocol: {}", faults.join("; "))
        })
    }
}

impl IotHub {
    /// Connections on which more than one pair of `$cbs` links has been attached.
    fn second_cbs_pairs(&self) -> impl Iterator<Item = String> {
        let attached = self.shared.journal.select(|observed| match observed {
            Observed::Attached {
                connection, attach, ..
            } if node_of(attach) == Some(Node::Cbs) => Some((*connection, attach.role.clone())),
            _ => None,
        });
        let mut counts = BTreeMap::new();
        for (connection, role) in attached {
            *counts
                .entry((connection, role == Role::Sender))
                .or_insert(0_usize) += 1;
        }
        counts
            .into_iter()
            .filter(|&(_, count)| count > 1)
            .map(|((connection, _), count)| {
                format!("connection {connection}: {count} $cbs links of one role")
            })
    }
}

/// The node that an attach of a peer names.
fn node_of(attach: &Attach) -> Option<Node> {
    let address = match attach.role {
        Role::Receiver => attach.source.as_ref()?.address.as_deref(),
        Role::Sender => {
            let TargetArchetype::Target(target) = attach.target.as_deref()?;
            target.address.as_deref()
        }
    };
    Node::find(address?, &attach.role)
}

impl Drop for IotHub {
    fn drop(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
        }
        self.drop_connections();
    }
}

async fn accept(listener: TcpListener, tls: Tls, shared: Arc<Shared>) {
    while let Ok((transport, _)) = listener.accept().await {
        let (orders, receiver) = mpsc::unbounded_channel();
        let id = {
            let mut connections = shared.connections();
            connections.accepted += 1;
            let id = connections.accepted;
            connections.orders.insert(id, orders);
            id
        };
        tokio::spawn(welcome(id, transport, tls.clone(), receiver, shared.clone()));
    }
}

async fn welcome(
    connection: ConnectionId,
    transport: TcpStream,
    tls: Tls,
    orders: mpsc::UnboundedReceiver<Order>,
    shared: Arc<Shared>,
) {
    let _ = transport.set_nodelay(true);
    let until = shared.clock.now() + shared.settings().accept_delay;
    shared.journal.note(Observed::Accepted { connection });
    shared.clock.wait_until(Some(until)).await;
    // A second hold on the socket, for what cannot be said through TLS.
    let socket = SockRef::from(&transport).try_clone().ok();
    let tls = tls.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let (stream, sni): (Box<dyn Stream>, _) = match tls.map(TlsAcceptor::from) {
        None => (Box::new(transport), None),
        Some(acceptor) => match acceptor.accept(transport).await {
            Err(error) => {
                shared.journal.note(Observed::Lost {
                    connection,
                    why: format!("TLS: {error}"),
                });
                return;
            }
            Ok(stream) => {
                let sni = stream.get_ref().1.server_name().map(str::to_owned);
                if sni.is_none() && shared.settings().require_sni {
                    let what = "a TLS client that does not say which hub it wants".to_owned();
                    shared.journal.note(Observed::Fault { connection, what });
                    return;
                }
                (Box::new(stream), sni)
            }
        },
    };
    shared.journal.note(Observed::Connected { connection, sni });
    connection::serve(connection, stream, socket, orders, shared).await;
}
