//! The hub: takes telemetry and tokens, sends commands, enters it all in the ledger, and goes away when it is told to.
//! One thread, as many connections as come.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::Site;
use super::hub_connection::Connection;
use super::rig::wire::{self, Input};
use super::rig::{Failure, tls};

/// How often it is looked whether a command is due.
const TICK: Duration = Duration::from_millis(50);
/// How long a peer may take to answer a close.
const CLOSING: Duration = Duration::from_secs(1);

/// How the hub goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Departure {
    /// As in an upgrade: `amqp:connection:forced`.
    Closing,
    /// The transport ends without a word.
    Ending,
    /// The transport is reset.
    Resetting,
}

/// A restart: in what way, and how long until it listens again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Restart {
    pub(crate) departure: Departure,
    pub(crate) away: Duration,
}

/// The running hub. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) port: u16,
    orders: Option<mpsc::UnboundedSender<Restart>>,
    thread: Option<JoinHandle<()>>,
}

impl Hub {
    /// Listens on a free port of the loopback. Gives the text of its CA file, too.
    pub(crate) fn start(site: &Arc<Site>) -> Result<(Self, String), Failure> {
        let (acceptor, ca) = tls::self_signed()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let listener = runtime.block_on(async { listen(0) })?;
        let port = listener.local_addr()?.port();
        let (orders, ordered) = mpsc::unbounded_channel();
        site.outages.change();
        let site = Arc::clone(site);
        let thread = std::thread::Builder::new().name("hub".into()).spawn(move || {
            if let Err(failure) = runtime.block_on(serve(&site, &acceptor, listener, ordered)) {
                site.fault(format!("hub: {failure}"));
            }
        })?;
        let hub = Self {
            port,
            orders: Some(orders),
            thread: Some(thread),
        };
        Ok((hub, ca))
    }

    /// Goes away and comes back.
    pub(crate) fn restart(&self, restart: Restart) -> Result<(), Failure> {
        let orders = self.orders.as_ref();
        orders
            .and_then(|orders| orders.send(restart).ok())
            .ok_or_else(|| Failure::new("the hub has ended"))
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the hub's thread panicked");
        }
    }
}

fn listen(port: u16) -> Result<TcpListener, Failure> {
    let socket = TcpSocket::new_v4()?;
    // Connections of the life before are not forgotten by the kernel at once.
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    Ok(socket.listen(128)?)
}

/// One life after the other.
async fn serve(
    site: &Arc<Site>,
    acceptor: &TlsAcceptor,
    mut listener: TcpListener,
    mut orders: mpsc::UnboundedReceiver<Restart>,
) -> Result<(), Failure> {
    let port = listener.local_addr()?.port();
    loop {
        let (leave, leaving) = watch::channel(None);
        let mut connections = JoinSet::new();
        let restart = loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(restart) => break restart,
                    None => return Ok(()),
                },
                accepted = listener.accept() => {
                    let (stream, _) = accepted?;
                    let (site, acceptor, leaving) = (Arc::clone(site), acceptor.clone(), leaving.clone());
                    connections.spawn(async move {
                        if let Err(failure) = attend(&site, &acceptor, stream, leaving).await {
                            site.fault(format!("hub: {failure}"));
                        }
                    });
                }
                Some(_) = connections.join_next() => {}
            }
        };
        site.outages.change();
        drop(listener);
        leave.send_replace(Some(restart.departure));
        while connections.join_next().await.is_some() {}
        tokio::time::sleep(restart.away).await;
        listener = listen(port)?;
        site.outages.change();
    }
}

async fn attend(
    site: &Arc<Site>,
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    mut leaving: watch::Receiver<Option<Departure>>,
) -> Result<(), Failure> {
    stream.set_nodelay(true)?;
    let stream = tokio::select! {
        stream = acceptor.accept(stream) => stream?,
        _ = leaving.changed() => return Ok(()),
    };
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut connection = Connection::new(Arc::clone(site));
    let mut input = Input::default();
    let mut ticks = tokio::time::interval(TICK);
    let departure = loop {
        if connection.is_closed {
            return Ok(writer.shutdown().await?);
        }
        tokio::select! {
            read = reader.read_buf(input.buffer()) => match read {
                // The daemon keeps no connection that it has no use for.
                Ok(0) | Err(_) => return Ok(()),
                Ok(_) => connection.take(&mut input)?,
            },
            _ = ticks.tick() => connection.send_commands(),
            changed = leaving.changed() => match *leaving.borrow_and_update() {
                Some(departure) => break departure,
                None => changed?,
            },
        }
        if !connection.output.is_empty() {
            // What cannot be written now waits here, and the daemon with it, as at a real hub.
            let written = tokio::select! {
                written = write(&mut writer, &connection.output) => written,
                _ = leaving.changed() => break leaving.borrow().unwrap_or(Departure::Ending),
            };
            connection.output.clear();
            if written.is_err() {
                return Ok(());
            }
        }
    };
    match departure {
        Departure::Ending => Ok(()),
        Departure::Resetting => {
            let stream = reader.unsplit(writer);
            Ok(socket2::SockRef::from(stream.get_ref().0).set_linger(Some(Duration::ZERO))?)
        }
        Departure::Closing => {
            let mut close = Vec::new();
            wire::FrameWriter::amqp(&mut close, 0, wire::CLOSE)
                .error("amqp:connection:forced")
                .finish();
            // Neither may be possible any more: then that is the end.
            let _ = tokio::time::timeout(CLOSING, async {
                write(&mut writer, &close).await?;
                let mut rest = [0; 4096];
                while reader.read(&mut rest).await? > 0 {}
                std::io::Result::Ok(())
            })
            .await;
            Ok(())
        }
    }
}

async fn write(writer: &mut (impl tokio::io::AsyncWrite + Unpin), bytes: &[u8]) -> std::io::Result<()> {
    writer.write_all(bytes).await?;
    writer.flush().await
}
