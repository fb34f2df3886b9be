//! The service manager's protocol: datagrams of `KEY=VALUE` lines to the socket that it names (sd_notify(3)).
//!
//! Written here rather than taken from a crate: what we need of it is one datagram, and the crate tree has a budget.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tracing::warn;

/// How often, and for how long, a manager that is too busy to listen is told again.
const RETRY: Duration = Duration::from_millis(100);
const RETRIES: usize = 50;

/// A service manager that listens.
#[derive(Debug)]
pub(super) struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl Manager {
    /// The one that `NOTIFY_SOCKET` names: the path of a socket, or `@` and a name in the abstract namespace. `None` if
    /// there is none; one that cannot be told anything is as good as none, but for a warning.
    pub(super) fn of_environment() -> Option<Self> {
        let name = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty())?;
        Manager::at(&name)
            .inspect_err(|error| {
                let name = name.display();
                warn!(target: "MAIN", "NOTIFY_SOCKET={name}: the service manager is told nothing: {error}");
            })
            .ok()
    }

    fn at(name: &OsStr) -> io::Result<Self> {
        let address = match name.as_bytes() {
            [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
            [b'/', ..] => SocketAddr::from_pathname(name)?,
            _ => return Err(io::Error::other("neither a path nor an abstract name")),
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Manager { socket, address })
    }

    /// Tells it something, unless it is too busy to listen.
    pub(super) fn try_tell(&self, message: &str) -> io::Result<()> {
        self.socket
            .send_to_addr(message.as_bytes(), &self.address)
            .map(drop)
    }

    /// Tells it something, and waits a little if it is too busy to listen.
    pub(super) async fn tell(&self, message: &str) {
        for _ in 0..RETRIES {
            match self.try_tell(message) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(RETRY).await,
                // A manager that has gone will not hear of this either; and we go on without it.
                Ok(()) | Err(_) => return,
            }
        }
    }
}

/// How long this process may be silent before the service manager takes it for stuck; `None` if it does not watch, or
/// watches another process, whose environment we have inherited.
pub(super) fn watchdog() -> Option<Duration> {
    let number = |name: &str| env::var(name).ok()?.parse::<u64>().ok();
    let limit = number("WATCHDOG_USEC").filter(|microseconds| *microseconds > 0)?;
    let is_ours = match env::var_os("WATCHDOG_PID") {
        Some(_) => number("WATCHDOG_PID") == Some(process::id().into()),
        None => true,
    };
    is_ours.then_some(Duration::from_micros(limit))
}

/// Now, as the service manager counts it: by this it tells the answer to its request from earlier ones.
pub(super) fn monotonic_microseconds() -> u128 {
    // Linux has this clock since ever; and a manager that is told 0 waits until its own patience ends.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(|time| Duration::from(time).as_micros())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_socket() {
        for (name, is_good) in [
            ("/run/systemd/notify", true),
            ("@linkrouterd/notify", true),
            ("run/notify", false),
            ("vsock:2:1234", false),
        ] {
            assert_eq!(Manager::at(OsStr::new(name)).is_ok(), is_good, "{name}");
        }
        let long = format!("/{}", "x".repeat(200));
        assert!(Manager::at(OsStr::new(&long)).is_err());
    }

    /// A manager whose queue is full is told again until it has room, without holding up the thread.
    #[tokio::test]
    async fn a_busy_manager_hears_everything_in_the_end() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("notify");
        let busy = UnixDatagram::bind(&path).expect("a socket");
        let manager = Manager::at(path.as_os_str()).expect("a path");
        let mut queued = 0;
        while manager.try_tell("WATCHDOG=1").is_ok() {
            queued += 1;
        }
        assert!(queued > 0);
        let read_all = async {
            tokio::task::yield_now().await;
            let mut buffer = [0; 64];
            for _ in 0..queued {
                busy.recv(&mut buffer).expect("what was queued");
            }
        };
        tokio::join!(manager.tell("STOPPING=1"), read_all);
        let mut buffer = [0; 64];
        let length = busy.recv(&mut buffer).expect("what was told");
        assert_eq!(&buffer[..length], b"STOPPING=1");
        drop(busy);
        manager.tell("READY=1").await;
    }
}
