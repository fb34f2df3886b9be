//! The hub: takes, counts and accepts what comes, sends what is asked for, on as many connections as come.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio_rustls::TlsAcceptor;

use super::Failure;
use super::hub_connection::HubConnection;
use super::tls::{self, RecordCounter};

/// What a connection reads from its socket at once; the TLS library would ask for 4 KiB at a time.
const READ_BUFFER: usize = 128 * 1024;
/// Longer than anything lasts.
pub(super) const FOREVER: Duration = Duration::from_secs(3600);

/// What the hub does on links it sends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HubWork {
    Receive,
    /// Send messages of this size while [`Phase::SendingUntil`] lasts, then detach.
    Send(usize),
    /// The same, settled.
    SendSettled(usize),
}

/// How the hub is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Plain,
    Tls,
}

/// Counted by the hub, read by the rows.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) deliveries: AtomicU64,
    pub(crate) frames: AtomicU64,
    pub(crate) payload_bytes: AtomicU64,
    pub(crate) records: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) settled: AtomicU64,
    /// Requests to `$cbs` that were answered.
    pub(crate) tokens: AtomicU64,
    faults: Mutex<Vec<String>>,
    ciphers: Mutex<BTreeSet<String>>,
}

impl Counters {
    pub(crate) fn fault(&self, text: String) {
        self.faults
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(text);
    }

    pub(crate) fn faults(&self) -> Vec<String> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The cipher suites that were agreed on.
    pub(crate) fn ciphers(&self) -> Vec<String> {
        let ciphers = self.ciphers.lock().unwrap_or_else(PoisonError::into_inner);
        ciphers.iter().cloned().collect()
    }

    fn cipher(&self, name: String) {
        let mut ciphers = self.ciphers.lock().unwrap_or_else(PoisonError::into_inner);
        ciphers.insert(name);
    }
}

/// What links that the hub sends on are to do now; after `SendingUntil` they detach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Waiting,
    SendingUntil(Instant),
}

/// The running hub.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) port: u16,
    pub(crate) counters: Arc<Counters>,
    phase: watch::Sender<Phase>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Hub {
    /// Listens on a free port of the loopback, and serves its connections on so many threads. Gives the text of a CA file
    /// for it, too; nothing without TLS.
    pub(crate) fn start(
        work: HubWork,
        transport: Transport,
        threads: usize,
    ) -> Result<(Self, String), Failure> {
        let (acceptor, ca) = match transport {
            Transport::Tls => tls::self_signed().map(|(acceptor, ca)| (Some(acceptor), ca))?,
            Transport::Plain => (None, String::new()),
        };
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let counters = Arc::new(Counters::default());
        let (phase, phases) = watch::channel(Phase::Waiting);
        let (stop, stopped) = oneshot::channel();
        let runtime = super::runtime(threads)?;
        let serving = Serving {
            acceptor,
            work,
            counters: Arc::clone(&counters),
            phases,
        };
        let thread = std::thread::Builder::new().name("hub".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serving.accept(listener) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok((
            Self {
                port,
                counters,
                phase,
                stop: Some(stop),
                thread: Some(thread),
            },
            ca,
        ))
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The thread may have ended by itself.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the hub's thread panicked");
        }
    }
}

/// What every connection of the hub shares.
#[derive(Clone)]
pub(super) struct Serving {
    acceptor: Option<TlsAcceptor>,
    pub(super) work: HubWork,
    pub(super) counters: Arc<Counters>,
    pub(super) phases: watch::Receiver<Phase>,
}

impl Serving {
    /// For a connection that nobody but the caller moves, and that sends all the time if it sends at all.
    pub(super) fn without_sockets(work: HubWork) -> Self {
        let until = Instant::now() + FOREVER;
        Self {
            acceptor: None,
            work,
            counters: Arc::default(),
            phases: watch::channel(Phase::SendingUntil(until)).1,
        }
    }

    async fn accept(self, listener: std::net::TcpListener) {
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return self.counters.fault(format!("hub: {error}")),
        };
        while let Ok((stream, _)) = listener.accept().await {
            let serving = self.clone();
            tokio::spawn(async move {
                let counters = Arc::clone(&serving.counters);
                if let Err(failure) = serving.serve(stream).await {
                    counters.fault(format!("hub: {failure}"));
                }
            });
        }
    }

    async fn serve(self, stream: TcpStream) -> Result<(), Failure> {
        stream.set_nodelay(true)?;
        let stream = RecordCounter::new(stream, Arc::clone(&self.counters));
        let stream = BufReader::with_capacity(READ_BUFFER, stream);
        let Some(acceptor) = self.acceptor.clone() else {
            return HubConnection::new(self).run(stream).await;
        };
        let stream = acceptor.accept(stream).await?;
        if let Some(suite) = stream.get_ref().1.negotiated_cipher_suite() {
            self.counters.cipher(format!("{:?}", suite.suite()));
        }
        HubConnection::new(self).run(stream).await
    }
}
