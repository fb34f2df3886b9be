//! From accept to a driver: finding out what a device speaks, and shaking hands with those who speak TLS.
//!
//! A listener with an `sslProfile` takes TLS and clear text on one port (qdrouterd 1.19), so the first byte decides; it
//! is looked at, not taken. The router knows the connection from the start: it counts, its time for the handshake runs,
//! and a shutdown ends it. A device that says nothing costs a socket and a small task.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::driver::Driver;
use super::tls::{Accepted, HANDSHAKE_RECORD, ServerTls};
use super::turn::{Presence, Turn};
use crate::router::{ConnectionKey, TransportState};

/// How long a device has to read why its handshake failed.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Starts the task of a connection that the router has just named `key`.
pub(super) fn admit(stream: TcpStream, key: ConnectionKey, tls: Option<Arc<ServerTls>>, turn: Rc<Turn>) {
    match tls {
        None => tokio::task::spawn_local(Driver::new(stream, key, turn)),
        Some(tls) => tokio::task::spawn_local(recognise(stream, key, tls, Presence::new(turn))),
    };
}

/// Hands the connection over to a driver of the right kind.
async fn recognise(stream: TcpStream, key: ConnectionKey, tls: Arc<ServerTls>, presence: Presence) {
    let turn = presence.turn();
    let first = tokio::select! {
        biased;
        () = dismissed(turn, key) => return lose(turn, key, "aborted"),
        first = first_byte(&stream) => first,
    };
    match first {
        Ok(Some(HANDSHAKE_RECORD)) => {}
        // Also one that has hung up: the driver tells the router.
        Ok(_) => {
            tokio::task::spawn_local(Driver::new(stream, key, Rc::clone(turn)));
            return;
        }
        Err(error) => return lose(turn, key, &error.to_string()),
    }
    let accepted = tokio::select! {
        biased;
        () = dismissed(turn, key) => return lose(turn, key, "aborted"),
        accepted = tls.accept(stream) => accepted,
    };
    match accepted {
        Ok(Accepted {
            stream,
            version,
            user,
        }) => {
            turn.enter(|core, _| core.router.secured(key, version, user));
            tokio::task::spawn_local(Driver::new(Box::new(stream), key, Rc::clone(turn)));
        }
        Err((reason, mut stream)) => {
            lose(turn, key, &reason);
            // A socket that is dropped with unread input is reset, and the alert with it.
            let _ = tokio::time::timeout(LAST_WORDS, async {
                stream.shutdown().await?;
                tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
            })
            .await;
        }
    }
}

/// The first byte, which stays where it is; `None` when there is none and never will be.
async fn first_byte(stream: &TcpStream) -> io::Result<Option<u8>> {
    let mut byte = [0];
    let count = stream.peek(&mut byte).await?;
    Ok(byte.first().copied().filter(|_| count > 0))
}

/// Waits until the router, or the shard, does not want the connection any more.
async fn dismissed(turn: &Rc<Turn>, key: ConnectionKey) {
    poll_fn(|context| {
        if turn.is_stopped() {
            return Poll::Ready(());
        }
        turn.enter_as(Some(key), |core, _| {
            core.wakers.register(key, context.waker());
            match core.router.transport_state(key) {
                TransportState::Open => Poll::Pending,
                TransportState::CloseWhenFlushed | TransportState::Abort => Poll::Ready(()),
            }
        })
    })
    .await;
}

fn lose(turn: &Rc<Turn>, key: ConnectionKey, reason: &str) {
    turn.enter(|core, now| {
        core.wakers.forget(key);
        core.router.transport_lost(key, reason, now);
    });
}
