//! Layer 5: one thread's sockets, TLS and clock, and the tasks that move bytes between them and a [`Router`].
//!
//! # Contract
//!
//! [`Shard::bind`] opens the listeners, so that a program fails early and may give up its privileges afterwards.
//! [`Shard::run`] then serves until it is told to stop. Everything runs on the calling thread, in local tasks that
//! share the router; so `run` must be awaited in a [`LocalRuntime`](tokio::runtime::LocalRuntime) (or a
//! [`LocalSet`](tokio::task::LocalSet)).
//!
//! No decision about the protocol is taken here: bytes go in and out, and what becomes of a connection is the
//! router's answer. The rooms: `turn` (what the tasks share, the timer, wake-ups), `driver` (one connection),
//! `listener` and `admission` (accepting), `login` and `passwords` (who may log in), `dial` (reaching an upstream
//! peer), `tls`, `pulse` (how others see that it turns).

mod admission;
mod carrier;
pub mod dial;
mod driver;
mod listener;
mod login;
pub mod passwords;
mod pulse;
mod socket;
pub mod tls;
mod turn;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tracing::{error, info, warn};

use crate::endpoint::limits;
use crate::router::settings::{ListenerId, RouterSettings};
use crate::router::{Overview, Router};
use dial::DialSettings;
pub use listener::ListenSettings;
use passwords::Passwords;
use pulse::Pulse;
use turn::Turn;

/// How long a stop may take: for deliveries under way, and then for peers that do not answer a close.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);
const _: () = assert!(
    SHUTDOWN_LIMIT.as_secs() >= limits::DRAIN_LIMIT.as_secs() + limits::CLOSE_TIMEOUT.as_secs(),
    "the router is given the time that it needs"
);

/// Which addresses of a name are meant (qdrouterd: `socketAddressFamily`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AddressFamily {
    /// Both families.
    #[default]
    Any,
    /// IPv4 only.
    IPv4,
    /// IPv6 only.
    IPv6,
}

impl AddressFamily {
    fn admits(self, address: &SocketAddr) -> bool {
        match self {
            AddressFamily::Any => true,
            AddressFamily::IPv4 => address.is_ipv4(),
            AddressFamily::IPv6 => address.is_ipv6(),
        }
    }
}

impl fmt::Display for AddressFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AddressFamily::Any => "IPv4 or IPv6",
            AddressFamily::IPv4 => "IPv4",
            AddressFamily::IPv6 => "IPv6",
        })
    }
}

/// Everything that one shard is made from.
#[derive(Clone, Debug)]
pub struct ShardSettings {
    /// For the router.
    pub router: RouterSettings,
    /// The sockets of `router.listeners`, in the same order.
    pub listeners: Vec<ListenSettings>,
    /// Who may log in with a password.
    pub passwords: Arc<Passwords>,
    /// The ways to the peers of `router.connectors`, in the same order.
    pub connectors: Vec<DialSettings>,
}

/// What a running shard can be told.
#[derive(Debug)]
pub enum Command {
    /// Go on with these settings ([`Router::reconfigure`]). Their listeners are those that are open, in the same order;
    /// settings for which that is not so are refused with a line in the log. The answer, when it is done, is why not.
    Reload(Box<ShardSettings>, oneshot::Sender<Result<(), String>>),
    /// Close everything properly and return. So does the end of all senders.
    Shutdown,
}

impl ShardSettings {
    /// Whether the lists go together.
    fn check(&self) -> Result<(), ShardError> {
        let listeners = self.router.listeners.len().abs_diff(self.listeners.len());
        let connectors = self.router.connectors.len().abs_diff(self.connectors.len());
        if listeners + connectors > 0 {
            return Err(ShardError::Mismatch {
                listeners,
                connectors,
            });
        }
        Ok(())
    }
}

/// Why a shard cannot start.
#[derive(Debug, Error)]
pub enum ShardError {
    /// A listener's address cannot be had.
    #[error("cannot listen on {address} ({name}): {source}")]
    Listen {
        /// `HOST:PORT` as configured.
        address: String,
        /// The listener's name.
        name: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The settings for the router and for the sockets do not go together.
    #[error(
        "{listeners} listeners and {connectors} connectors are without their socket settings, or the reverse"
    )]
    Mismatch {
        /// Difference in number.
        listeners: usize,
        /// Difference in number.
        connectors: usize,
    },
}

/// One thread's worth of router, with its listeners open.
#[derive(Debug)]
pub struct Shard {
    settings: ShardSettings,
    bound: Vec<Bound>,
    pulse: Option<Pulse>,
}

/// One open socket of a listener.
#[derive(Debug)]
struct Bound {
    listener: ListenerId,
    address: SocketAddr,
    socket: std::net::TcpListener,
}

impl Shard {
    /// Opens all listeners.
    ///
    /// # Errors
    ///
    /// [`ShardError::Listen`] for the first one that cannot be opened, [`ShardError::Mismatch`] if the lists of
    /// `settings` differ in length.
    pub fn bind(settings: ShardSettings) -> Result<Shard, ShardError> {
        settings.check()?;
        let router = &settings.router;
        let mut bound = Vec::new();
        for (index, (listener, listen)) in router.listeners.iter().zip(&settings.listeners).enumerate() {
            let failed = |source| ShardError::Listen {
                address: listener.address.clone(),
                name: listener.name.clone(),
                source,
            };
            for socket in listener::bind(listen).map_err(failed)? {
                let address = socket.local_addr().map_err(failed)?;
                bound.push(Bound {
                    listener: ListenerId(index),
                    address,
                    socket,
                });
            }
        }
        Ok(Shard {
            settings,
            bound,
            pulse: None,
        })
    }

    /// How the shard is, as long as it runs: a new value at least every `rhythm`, and soon after something happened, but
    /// not for everything that happens. Every value has passed through the loop that serves connections, so there is none
    /// while that is stuck. One observer only: the last to ask.
    pub fn observe(&mut self, rhythm: Option<Duration>) -> watch::Receiver<Overview> {
        let (pulse, beats) = Pulse::new(rhythm);
        self.pulse = Some(pulse);
        beats
    }

    /// The open addresses, with the real port of a listener that asked for port 0. A listener whose name has several
    /// addresses appears once for each.
    pub fn bound_addresses(&self) -> Vec<(ListenerId, SocketAddr)> {
        self.bound
            .iter()
            .map(|bound| (bound.listener, bound.address))
            .collect()
    }

    /// Serves until told to stop; then lets deliveries that are under way be settled, 5 seconds at most, and closes every
    /// connection, which takes 5 seconds more if a peer does not answer.
    ///
    /// # Errors
    ///
    /// [`ShardError::Listen`] if the runtime cannot take over a socket.
    pub async fn run(self, mut commands: mpsc::Receiver<Command>) -> Result<(), ShardError> {
        let Shard {
            settings,
            bound,
            pulse,
        } = self;
        let mut listeners = Vec::new();
        for Bound {
            listener,
            address,
            socket,
        } in bound
        {
            let socket = TcpListener::from_std(socket).map_err(|source| ShardError::Listen {
                address: address.to_string(),
                name: settings.router.listeners[listener.0].name.clone(),
                source,
            })?;
            listeners.push((listener, socket));
        }
        let open = settings.listeners.len();
        let turn = Rc::new(Turn::new(
            Router::new(settings.router, turn::now()),
            settings.connectors,
            settings.passwords,
            settings.listeners,
        ));
        let mut tasks = Tasks::spawn(&turn, listeners, pulse);

        while let Some(Command::Reload(settings, done)) = commands.recv().await {
            // Whoever does not wait for the answer does not want it.
            let _ = done.send(reload(&turn, open, *settings));
        }
        tasks.stop_accepting().await;
        turn.stop_dialing();
        turn.enter(|core, now| core.router.shutdown(now));
        if tokio::time::timeout(SHUTDOWN_LIMIT, turn.all_closed())
            .await
            .is_err()
        {
            warn!(
                target: "SERVER",
                "Some connections did not close within {} s and were dropped",
                SHUTDOWN_LIMIT.as_secs()
            );
        }
        turn.stop();
        Ok(())
    }
}

fn reload(turn: &Rc<Turn>, open: usize, settings: ShardSettings) -> Result<(), String> {
    let refusal = match settings.check() {
        Ok(()) if settings.listeners.len() == open => None,
        Ok(()) => Some("listeners cannot come or go while they are open".to_owned()),
        Err(fault) => Some(fault.to_string()),
    };
    if let Some(fault) = refusal {
        error!(target: "SERVER", "Configuration not taken over: {fault}");
        return Err(fault);
    }
    let reloaded = turn.reconfigure(settings);
    info!(
        target: "SERVER",
        severity = "notice",
        "Configuration reloaded: {} routes; connectors: {} unchanged, {} changed, {} added, {} removed",
        reloaded.routes,
        reloaded.unchanged,
        reloaded.changed,
        reloaded.added,
        reloaded.removed
    );
    Ok(())
}

/// The tasks that live as long as the shard; they end with this value.
struct Tasks {
    accepting: Vec<tokio::task::JoinHandle<()>>,
    timer: AbortHandle,
    pulse: Option<AbortHandle>,
}

impl Tasks {
    fn spawn(turn: &Rc<Turn>, listeners: Vec<(ListenerId, TcpListener)>, pulse: Option<Pulse>) -> Self {
        let accepting = listeners
            .into_iter()
            .map(|(id, socket)| tokio::task::spawn_local(listener::accept(socket, id, Rc::clone(turn))))
            .collect();
        let timer = tokio::task::spawn_local(Rc::clone(turn).keep_time()).abort_handle();
        // What the router wants of its own accord: persistent connectors are dialed at once.
        turn.enter(|_, _| ());
        let pulse = pulse.map(|pulse| tokio::task::spawn_local(pulse.beat(Rc::clone(turn))).abort_handle());
        Tasks {
            accepting,
            timer,
            pulse,
        }
    }

    /// Closes the listening sockets.
    async fn stop_accepting(&mut self) {
        for task in self.accepting.drain(..) {
            task.abort();
            // Only to see it gone, and its socket with it; that it was aborted is no news.
            let _ = task.await;
        }
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in &self.accepting {
            task.abort();
        }
        self.timer.abort();
        if let Some(pulse) = &self.pulse {
            pulse.abort();
        }
    }
}
