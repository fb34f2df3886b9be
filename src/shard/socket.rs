//! Socket options that every connection gets, and what they are for.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Silence before the first keepalive probe. Below the 4 or 5 minutes after which NAT boxes forget a connection.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// Time between two probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// Unanswered probes until the connection is dead.
const KEEPALIVE_PROBES: u32 = 4;
/// How long a device may acknowledge nothing of what was written. Keepalive does not run while something is not
/// acknowledged, and the system's own limit is about a quarter of an hour. Linux counts from when the device's window closed,
/// too, as does that of a device that has hung.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(120);

/// Prepares a connected socket: small writes leave at once, and a peer that vanished without a word is noticed.
///
/// # Errors
///
/// Only for a socket that is not connected any more.
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    Ok(())
}

/// As [`prepare`], for a peer that came to us: it may not leave us for ever with what it does not take. A hub may: one that is
/// short of memory stops reading for as long as that lasts, and its heartbeats go on (decision 3).
///
/// # Errors
///
/// As those of [`prepare`].
pub(super) fn prepare_accepted(stream: &TcpStream) -> io::Result<()> {
    prepare(stream)?;
    #[cfg(target_os = "linux")]
    SockRef::from(stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED_LIMIT))?;
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_device_has_its_time_to_take_something_and_a_hub_as_long_as_it_likes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (dialed, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (dialed, (accepted, _)) = (dialed.expect("connected"), accepted.expect("accepted"));
        prepare(&dialed).expect("connected");
        prepare_accepted(&accepted).expect("connected");
        let limit = |stream: &TcpStream| SockRef::from(stream).tcp_user_timeout().expect("an option");
        assert_eq!(limit(&accepted), Some(UNACKNOWLEDGED_LIMIT));
        assert_eq!(limit(&dialed), None);
        for stream in [&dialed, &accepted] {
            let socket = SockRef::from(stream);
            assert!(socket.keepalive().expect("an option") && socket.tcp_nodelay().expect("an option"));
            assert_eq!(socket.tcp_keepalive_time().expect("an option"), KEEPALIVE_IDLE);
        }
    }
}
