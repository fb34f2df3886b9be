//! Accepting devices.
//!
//! Contract: [`bind`] opens every address that a listener stands for, or says why not. [`accept`] runs until its task
//! is aborted; no failure ends it and none makes it spin.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener, ToSocketAddrs};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::AddressFamily;
use super::admission;
use super::dial::bare_host;
use super::socket;
use super::tls::ServerTls;
use super::turn::Turn;
use crate::endpoint::limits::LOG_PERIOD;
use crate::router::TransportInfo;
use crate::router::settings::ListenerId;

/// Connections that may wait to be accepted: a site's devices all come back at once after a power cut.
const BACKLOG: i32 = 1024;
/// How long accepting pauses when the system has no room for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// Where a listener listens.
#[derive(Clone, Debug)]
pub struct ListenSettings {
    /// Host name or address; empty: all interfaces, IPv4 and IPv6.
    pub host: String,
    /// TCP port; 0: any free one.
    pub port: u16,
    /// Which addresses of the host.
    pub family: AddressFamily,
    /// How to encrypt; `None`: clear text only.
    pub tls: Option<Arc<ServerTls>>,
}

impl ListenSettings {
    /// Whether both mean the same sockets.
    pub fn is_same_socket(&self, other: &ListenSettings) -> bool {
        (&self.host, self.port, self.family) == (&other.host, other.port, other.family)
    }
}

/// Opens the sockets of one listener: at least one, more if its name has several addresses. They share one port.
///
/// If the machine has none of the addresses, they are opened all the same, with a warning: a lease or a cable may come
/// after the daemon, and must find it listening.
pub(super) fn bind(settings: &ListenSettings) -> io::Result<Vec<StdListener>> {
    let addresses = addresses(settings)?;
    match bind_addresses(&addresses, settings, Expected::Now) {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable && !addresses.is_empty() => {
            let bound = bind_addresses(&addresses, settings, Expected::Later)?;
            let host = &settings.host;
            warn!(target: "SERVER", "No interface has the address {host} (yet): listening for the time when one has");
            Ok(bound)
        }
        outcome => outcome,
    }
}

/// When this machine must have an address that is listened on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    Now,
    Later,
}

fn bind_addresses(
    addresses: &[SocketAddr],
    settings: &ListenSettings,
    expected: Expected,
) -> io::Result<Vec<StdListener>> {
    let mut port = settings.port;
    let mut bound = Vec::new();
    let mut skipped = None;
    for mut address in addresses.iter().copied() {
        address.set_port(port);
        match bind_address(address, settings.family, expected) {
            Ok(listener) => {
                port = listener.local_addr()?.port();
                bound.push(listener);
            }
            Err(error) if concerns_the_port(&error) => return Err(error),
            // A name may stand for an address that this machine does not have, such as ::1 with IPv6 turned off.
            Err(error) => skipped = Some(error),
        }
    }
    match (bound.is_empty(), skipped) {
        (false, _) => Ok(bound),
        (true, Some(error)) => Err(error),
        (true, None) => Err(io::Error::new(
            io::ErrorKind::AddrNotAvailable,
            format!("the name has no {} address", settings.family),
        )),
    }
}

fn addresses(settings: &ListenSettings) -> io::Result<Vec<SocketAddr>> {
    let port = settings.port;
    if settings.host.is_empty() {
        return Ok(match settings.family {
            AddressFamily::IPv4 => vec![(Ipv4Addr::UNSPECIFIED, port).into()],
            AddressFamily::IPv6 => vec![(Ipv6Addr::UNSPECIFIED, port).into()],
            // One socket for both; a second one for IPv4 would be refused, unless IPv6 is turned off.
            AddressFamily::Any if has_ipv6() => vec![(Ipv6Addr::UNSPECIFIED, port).into()],
            AddressFamily::Any => vec![(Ipv4Addr::UNSPECIFIED, port).into()],
        });
    }
    let mut addresses: Vec<_> = (bare_host(&settings.host), port)
        .to_socket_addrs()?
        .filter(|address| settings.family.admits(address))
        .collect();
    addresses.dedup();
    Ok(addresses)
}

fn has_ipv6() -> bool {
    bind_address(
        (Ipv6Addr::LOCALHOST, 0).into(),
        AddressFamily::IPv6,
        Expected::Now,
    )
    .is_ok()
}

fn concerns_the_port(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied
    )
}

fn bind_address(address: SocketAddr, family: AddressFamily, expected: Expected) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        let dual_stack = address.ip().is_unspecified() && family == AddressFamily::Any;
        socket.set_only_v6(!dual_stack)?;
    }
    // A restart must not wait for the last connections of the former process to time out.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    #[cfg(target_os = "linux")]
    if expected == Expected::Later {
        match address {
            SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
            SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
        }
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Accepts connections for ever.
pub(super) async fn accept(listener: TcpListener, id: ListenerId, turn: Rc<Turn>) {
    let mut complaints = Complaints::default();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Fails for a connection that is over already; the driver will find out.
                if let Err(error) = socket::prepare_accepted(&stream) {
                    debug!(target: "SERVER", "Connection from {peer}: {error}");
                }
                // On a socket for both families an IPv4 peer looks like ::ffff:192.0.2.1.
                let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                let info = TransportInfo {
                    peer: peer.to_string(),
                    tls: None,
                };
                let accepted = turn.enter(|core, now| core.router.accepted(id, info, now));
                if let Some(key) = accepted {
                    admission::admit(stream, key, turn.listener_tls(id), Rc::clone(&turn));
                }
            }
            Err(error) if concerns_one_connection(&error) => {
                debug!(target: "SERVER", "A connection was gone before it was accepted: {error}");
            }
            Err(error) => {
                match complaints.raise(Instant::now()) {
                    Some(0) => warn!(target: "SERVER", "Cannot accept connections: {error}; trying again"),
                    Some(withheld) => warn!(
                        target: "SERVER",
                        "Cannot accept connections: {error}; trying again ({withheld} more times since last reported)"
                    ),
                    None => {}
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Errors of the connection that was to be accepted, not of the listener (Linux: accept(2) passes network errors on).
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::Interrupted
    )
}

/// Limits how often the same trouble is reported.
#[derive(Debug, Default)]
struct Complaints {
    last: Option<Instant>,
    withheld: u64,
}

impl Complaints {
    /// Whether to report now; if so, how many reports were withheld since the last one.
    fn raise(&mut self, now: Instant) -> Option<u64> {
        if self
            .last
            .is_some_and(|last| now.duration_since(last) < LOG_PERIOD)
        {
            self.withheld += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.withheld))
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    fn settings(host: &str, family: AddressFamily) -> ListenSettings {
        ListenSettings {
            host: host.to_owned(),
            port: 0,
            family,
            tls: None,
        }
    }

    #[test]
    fn an_address_is_bound_as_given() {
        let bound = bind(&settings("127.0.0.1", AddressFamily::Any)).unwrap();
        assert_eq!(bound.len(), 1);
        let address = bound[0].local_addr().unwrap();
        assert_eq!(address.ip(), Ipv4Addr::LOCALHOST);
        TcpStream::connect(address).unwrap();
    }

    #[test]
    fn no_host_means_every_interface() {
        let bound = bind(&settings("", AddressFamily::Any)).unwrap();
        assert_eq!(bound.len(), 1);
        let port = bound[0].local_addr().unwrap().port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        if has_ipv6() {
            TcpStream::connect((Ipv6Addr::LOCALHOST, port)).unwrap();
        }
    }

    #[test]
    fn ipv6_alone_leaves_ipv4_alone() {
        if !has_ipv6() {
            return;
        }
        let bound = bind(&settings("::", AddressFamily::IPv6)).unwrap();
        let port = bound[0].local_addr().unwrap().port();
        TcpStream::connect((Ipv6Addr::LOCALHOST, port)).unwrap();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap_err();
    }

    #[test]
    fn the_addresses_of_a_name_share_a_port() {
        let bound = bind(&settings("localhost", AddressFamily::Any)).unwrap();
        let ports: Vec<_> = bound
            .iter()
            .map(|listener| listener.local_addr().unwrap().port())
            .collect();
        assert!(ports.iter().all(|port| *port == ports[0]), "{ports:?}");
    }

    /// RFC 5737: no machine has this address, so it is as one that has not come yet.
    #[test]
    fn an_address_that_is_not_there_yet_is_listened_on() {
        let mut later = settings("192.0.2.1", AddressFamily::Any);
        let bound = bind(&later).unwrap();
        let [bound] = bound.as_slice() else {
            panic!("{bound:?}")
        };
        let address = bound.local_addr().unwrap();
        assert_eq!(address.ip(), Ipv4Addr::new(192, 0, 2, 1));
        later.port = address.port();
        assert_eq!(bind(&later).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn an_address_in_use_is_an_error() {
        let first = bind(&settings("127.0.0.1", AddressFamily::Any)).unwrap();
        let mut again = settings("127.0.0.1", AddressFamily::Any);
        again.port = first[0].local_addr().unwrap().port();
        assert_eq!(bind(&again).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_family_without_address_is_an_error() {
        let error = bind(&settings("127.0.0.1", AddressFamily::IPv6)).unwrap_err();
        assert_eq!(error.to_string(), "the name has no IPv6 address");
    }

    #[test]
    fn complaints_are_limited() {
        let mut complaints = Complaints::default();
        let start = Instant::now();
        assert_eq!(complaints.raise(start), Some(0));
        assert_eq!(complaints.raise(start + Duration::from_secs(1)), None);
        assert_eq!(complaints.raise(start + Duration::from_secs(59)), None);
        assert_eq!(complaints.raise(start + LOG_PERIOD), Some(2));
        assert_eq!(complaints.raise(start + LOG_PERIOD * 2), Some(0));
    }
}
