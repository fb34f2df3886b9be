//! The way to an upstream peer: name, address, TCP connection, TLS.
//!
//! Contract: [`connect`] does all of it within one time limit, or says in one line why not. Its steps, [`resolve`],
//! [`reach`] and [`encrypt`], may be taken one by one by whoever wants to see what each comes to. Nothing is remembered
//! from dial to dial: a hub moves between addresses, and certificates are renewed.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::io::BufWriter;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::AddressFamily;
use super::socket;
use super::tls::{self, TlsClient, TlsError, TlsSettings, TlsStream};
use crate::endpoint::limits::DIAL_ADDRESSES;
use crate::router::{DialTarget, TransportInfo};

/// The payload of one full TLS record (RFC 8446, 5.1).
const TLS_RECORD: usize = 16 * 1024;

/// Where a connector connects to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DialSettings {
    /// Host name or address; an IPv6 address may be in brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Which addresses of the host to try.
    pub family: AddressFamily,
    /// How to encrypt, if at all.
    pub tls: Option<Arc<TlsSettings>>,
}

impl DialSettings {
    /// The same way to the host that is dialed now, with TLS for the name that it is known by.
    pub fn towards(&self, target: &DialTarget) -> DialSettings {
        let tls = self.tls.as_ref().map(|tls| {
            let mut tls = Arc::clone(tls);
            if tls.server_name != target.server_name {
                Arc::make_mut(&mut tls)
                    .server_name
                    .clone_from(&target.server_name);
            }
            tls
        });
        DialSettings {
            host: target.host.host.clone(),
            port: target.host.port,
            family: self.family,
            tls,
        }
    }
}

/// A connection to an upstream peer.
#[derive(Debug)]
pub enum Transport {
    /// Plain TCP.
    Tcp(TcpStream),
    /// TLS. Boxed, because its state is large; and with a write buffer, so that small writes that follow one another
    /// leave as one TLS record and one segment.
    Tls(Box<BufWriter<TlsStream>>),
}

/// Why there is no connection. The text is one line for the operator.
#[derive(Debug, Error)]
pub enum DialError {
    /// The name has no address.
    #[error(
        "cannot resolve {host}: {source}; is the name right, and does this machine reach a name server \
         (/etc/resolv.conf)?"
    )]
    Resolve {
        /// The name.
        host: String,
        /// The resolver's reason.
        source: io::Error,
    },
    /// The name has only addresses of the other family.
    #[error("{host} has no {family} address; see socketAddressFamily of the connector")]
    NoAddress {
        /// The name.
        host: String,
        /// The family asked for.
        family: AddressFamily,
    },
    /// No address answered.
    #[error("{}", Attempts(.0))]
    Connect(Vec<(SocketAddr, io::Error)>),
    /// TCP connected, TLS failed.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// It took too long.
    #[error("{stage} took longer than {} s", limit.as_secs_f32())]
    TimedOut {
        /// What was not finished.
        stage: Stage,
        /// The limit for the whole dial.
        limit: Duration,
    },
}

/// One step of a dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Asking the resolver.
    Resolving(String),
    /// Connecting and shaking hands for TLS.
    Handshake(SocketAddr),
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stage::Resolving(host) => write!(f, "resolving {host}"),
            Stage::Handshake(address) => write!(f, "the TLS handshake with {address}"),
        }
    }
}

/// A time by which something must be done.
#[derive(Clone, Copy, Debug)]
pub struct TimeLimit {
    deadline: Instant,
    whole: Duration,
}

impl TimeLimit {
    /// The time from now on.
    pub fn from_now(whole: Duration) -> Self {
        TimeLimit {
            deadline: Instant::now() + whole,
            whole,
        }
    }

    async fn hold<T>(
        self,
        stage: impl FnOnce() -> Stage,
        work: impl Future<Output = T>,
    ) -> Result<T, DialError> {
        timeout_at(self.deadline, work)
            .await
            .map_err(|_| DialError::TimedOut {
                stage: stage(),
                limit: self.whole,
            })
    }
}

/// A TCP connection.
#[derive(Debug)]
pub struct Reached {
    /// The address that answered.
    pub address: SocketAddr,
    /// The connection.
    pub stream: TcpStream,
    /// The addresses before it that did not.
    pub failed: Vec<(SocketAddr, io::Error)>,
}

/// Connects to an upstream peer within `limit`.
///
/// # Errors
///
/// See [`DialError`].
pub async fn connect(
    settings: &DialSettings,
    limit: Duration,
) -> Result<(Transport, TransportInfo), DialError> {
    let limit = TimeLimit::from_now(limit);
    let addresses = resolve(settings, limit).await?;
    let reached = reach(&addresses, limit).await?;
    let peer = reached.address.to_string();
    let Some(tls) = &settings.tls else {
        return Ok((Transport::Tcp(reached.stream), TransportInfo { peer, tls: None }));
    };
    let stage = || Stage::Handshake(reached.address);
    let client = limit.hold(stage, TlsClient::load(tls)).await??;
    let stream = encrypt(&client, reached, limit).await?;
    let info = TransportInfo {
        peer,
        tls: tls::negotiated_version(&stream),
    };
    let buffered = BufWriter::with_capacity(TLS_RECORD, stream);
    Ok((Transport::Tls(Box::new(buffered)), info))
}

/// Looks up the host's addresses, in the resolver's order.
///
/// # Errors
///
/// [`DialError::Resolve`], [`DialError::NoAddress`], [`DialError::TimedOut`].
pub async fn resolve(settings: &DialSettings, limit: TimeLimit) -> Result<Vec<SocketAddr>, DialError> {
    let host = bare_host(&settings.host);
    let stage = || Stage::Resolving(host.to_owned());
    let found = limit
        .hold(stage, tokio::net::lookup_host((host, settings.port)))
        .await?
        .map_err(|source| DialError::Resolve {
            host: host.to_owned(),
            source,
        })?;
    let addresses = to_try(found.filter(|address| settings.family.admits(address)));
    match addresses.is_empty() {
        true => Err(DialError::NoAddress {
            host: host.to_owned(),
            family: settings.family,
        }),
        false => Ok(addresses),
    }
}

/// The first different ones.
fn to_try(found: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for address in found {
        if !addresses.contains(&address) && addresses.len() < DIAL_ADDRESSES {
            addresses.push(address);
        }
    }
    addresses
}

/// Tries the addresses in turn. The time that is left is shared out evenly, so that a dead address leaves time for the
/// others.
///
/// # Errors
///
/// [`DialError::Connect`].
pub async fn reach(addresses: &[SocketAddr], limit: TimeLimit) -> Result<Reached, DialError> {
    let mut failed = Vec::new();
    for (tried, address) in addresses.iter().enumerate() {
        let left = limit.deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        let attempt = async {
            let stream = TcpStream::connect(address).await?;
            socket::prepare(&stream)?;
            Ok(stream)
        };
        match timeout(share, attempt).await {
            Ok(Ok(stream)) => {
                return Ok(Reached {
                    address: *address,
                    stream,
                    failed,
                });
            }
            Ok(Err(error)) => failed.push((*address, error)),
            Err(_) => failed.push((*address, io::ErrorKind::TimedOut.into())),
        }
    }
    Err(DialError::Connect(failed))
}

/// Shakes hands for TLS.
///
/// # Errors
///
/// [`DialError::Tls`], [`DialError::TimedOut`].
pub async fn encrypt(client: &TlsClient, reached: Reached, limit: TimeLimit) -> Result<TlsStream, DialError> {
    let stage = || Stage::Handshake(reached.address);
    Ok(limit.hold(stage, client.handshake(reached.stream)).await??)
}

/// A host without the brackets that an IPv6 address may wear.
pub fn bare_host(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host)
}

/// Failed attempts in plain words.
pub struct Attempts<'a>(pub &'a [(SocketAddr, io::Error)]);

impl fmt::Display for Attempts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (address, error)) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            match error.kind() {
                io::ErrorKind::ConnectionRefused => {
                    write!(f, "connection refused by {address}: nothing listens on that port")?;
                }
                io::ErrorKind::TimedOut => {
                    write!(f, "no answer from {address}: down, or blocked by a firewall?")?
                }
                io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
                    write!(f, "no route to {address}: {error}")?;
                }
                _ => write!(f, "cannot connect to {address}: {error}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn settings(host: &str, port: u16) -> DialSettings {
        DialSettings {
            host: host.to_owned(),
            port,
            family: AddressFamily::Any,
            tls: None,
        }
    }

    #[test]
    fn so_many_addresses_of_a_name_are_tried() {
        let address = |port: usize| SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()));
        let all = (0..DIAL_ADDRESSES).map(address);
        // A resolver may tell one twice.
        assert_eq!(
            to_try(all.clone().chain(all.clone())),
            all.clone().collect::<Vec<_>>()
        );
        assert_eq!(to_try((0..=DIAL_ADDRESSES).map(address)), all.collect::<Vec<_>>());
    }

    async fn failure(settings: &DialSettings, limit: Duration) -> DialError {
        match connect(settings, limit).await {
            Ok(_) => panic!("connected"),
            Err(error) => error,
        }
    }

    #[tokio::test]
    async fn plain_tcp() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (transport, info) = connect(&settings("127.0.0.1", address.port()), LIMIT)
            .await
            .unwrap();
        assert_eq!(
            info,
            TransportInfo {
                peer: address.to_string(),
                tls: None
            }
        );
        let Transport::Tcp(stream) = transport else {
            panic!("{transport:?}")
        };
        assert!(stream.nodelay().unwrap());
        assert!(socket2::SockRef::from(&stream).keepalive().unwrap());
    }

    #[tokio::test]
    async fn a_refused_connection_names_the_address() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let error = failure(&settings("127.0.0.1", port), LIMIT).await;
        assert_eq!(
            error.to_string(),
            format!("connection refused by 127.0.0.1:{port}: nothing listens on that port")
        );
    }

    #[tokio::test]
    async fn the_next_address_is_tried() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let live = listener.local_addr().unwrap();
        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .unwrap()
            .local_addr()
            .unwrap();
        let reached = reach(&[closed, live], TimeLimit::from_now(LIMIT)).await.unwrap();
        assert_eq!(reached.address, live);
        assert_eq!(reached.failed.len(), 1);
        assert_eq!(reached.failed[0].0, closed);
    }

    #[tokio::test]
    async fn a_name_without_address() {
        let error = failure(&settings("no-such-host.invalid", 5671), LIMIT)
            .await
            .to_string();
        assert!(
            error.starts_with("cannot resolve no-such-host.invalid: "),
            "{error}"
        );
    }

    #[tokio::test]
    async fn the_family_is_respected() {
        let mut wanted = settings("127.0.0.1", 1);
        wanted.family = AddressFamily::IPv6;
        assert_eq!(
            failure(&wanted, LIMIT).await.to_string(),
            "127.0.0.1 has no IPv6 address; see socketAddressFamily of the connector"
        );
    }

    #[tokio::test]
    async fn brackets_are_dropped() {
        assert_eq!(bare_host("[::1]"), "::1");
        assert_eq!(bare_host("hub"), "hub");
        let mut wanted = settings("[::1]", 1);
        wanted.family = AddressFamily::IPv4;
        assert_eq!(
            failure(&wanted, LIMIT).await.to_string(),
            "::1 has no IPv4 address; see socketAddressFamily of the connector"
        );
    }

    #[test]
    fn silence_is_explained() {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        let error = DialError::Connect(vec![
            (address, io::ErrorKind::TimedOut.into()),
            (address, io::ErrorKind::ConnectionRefused.into()),
        ]);
        assert_eq!(
            error.to_string(),
            "no answer from 127.0.0.1:9: down, or blocked by a firewall?; connection refused by 127.0.0.1:9: \
             nothing listens on that port"
        );
    }
}
