//! The driver of one connection, whatever carries it: a device's socket, or TLS towards a hub.
//!
//! ```text
//!              state: CloseWhenFlushed,            our side is shut down:
//!              nothing left to write               transport_lost
//!   Serving ----------------------> ShuttingDown ----------------------> Lingering ---> ended
//!      |                                 |                                  peer's end, or LINGER
//!      +-- state: Abort, or an error ----+---> transport_lost ----------------------> ended
//! ```
//!
//! It is one hand-written future, because an idle connection must cost next to nothing: a socket, a key and a pointer;
//! no buffer and no stack of awaits. Each poll is one turn (see `turn`). What it writes is lent by the router and goes
//! to the transport without a copy.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use super::carrier::Carrier;
use super::tls;
use super::turn::{Core, Presence, Turn};
use crate::endpoint::limits;
use crate::router::{ConnectionKey, TransportState};

/// What one connection may read in one turn, so that a fast one leaves room for the others: one full buffer of plain TCP,
/// and no more than an outbox takes. TLS yields one record at a time, and a busy hub sends many small ones.
const TURN: ReadBudget = ReadBudget {
    bytes: limits::OUTBOX_HIGH,
    reads: 32,
};
/// What is read of a connection that cannot be written to any more: whatever a socket may hold.
const LAST_READ: ReadBudget = ReadBudget {
    bytes: 16 * 1024 * 1024,
    reads: u32::MAX,
};
/// A connection that is to be closed, and whose peer takes nothing of what is left for so long, is dropped.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);
/// How long we wait for the peer's end after our own. A socket that is dropped with unread input is reset, and a reset
/// takes from the peer what it had not read yet: our last frames.
const LINGER: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Driver<S> {
    transport: S,
    key: ConnectionKey,
    presence: Presence,
    phase: Phase,
    peer_end: PeerEnd,
    /// Set in the last phases only; boxed, because most connections never see it.
    patience: Option<Pin<Box<Sleep>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    ShuttingDown,
    Lingering,
}

/// The peer's sending side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PeerEnd {
    Open,
    /// It has ended, and the router does not know yet: what we have for the peer is written first, because a device
    /// may well say all it has to say, end, and then listen.
    Seen,
    Told,
}

/// How serving came to its end.
enum Ending {
    /// All is written; shut down.
    Flushed,
    /// The router wants the connection gone.
    Aborted,
    /// The transport failed.
    Failed(io::Error),
}

/// What one turn of serving left behind.
enum Served {
    /// Wait for the transport, or for the router to wake us.
    Waiting {
        /// Closing, and the peer is slow to take the rest.
        closing: bool,
        /// Something was written in this turn.
        wrote: bool,
    },
    Ended(Ending),
}

impl<S: Carrier> Driver<S> {
    /// The driver of a connection that the router has just named `key`.
    pub(super) fn new(transport: S, key: ConnectionKey, turn: Rc<Turn>) -> Self {
        Driver {
            transport,
            key,
            presence: Presence::new(turn),
            phase: Phase::Serving,
            peer_end: PeerEnd::Open,
            patience: None,
        }
    }

    fn poll_serving(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let turn = Rc::clone(self.presence.turn());
        let served = turn.enter_as(Some(self.key), |core, now| self.serve(core, now, context));
        match served {
            Served::Waiting { closing: false, .. } => Poll::Pending,
            Served::Waiting { closing: true, wrote } => {
                if wrote {
                    self.patience = None;
                }
                match self.poll_patience(CLOSE_PATIENCE, context) {
                    Poll::Ready(()) => self.lose("the peer does not read"),
                    Poll::Pending => return Poll::Pending,
                }
                Poll::Ready(())
            }
            Served::Ended(Ending::Flushed) => {
                self.phase = Phase::ShuttingDown;
                self.patience = None;
                self.poll_shutting_down(context)
            }
            Served::Ended(Ending::Aborted) => {
                self.lose("aborted");
                Poll::Ready(())
            }
            Served::Ended(Ending::Failed(error)) => {
                self.lose(&explain_loss(error));
                Poll::Ready(())
            }
        }
    }

    /// One turn of reading and writing.
    fn serve(&mut self, core: &mut Core, now: Instant, context: &mut Context<'_>) -> Served {
        core.wakers.register(self.key, context.waker());
        let mut budget = TURN;
        let mut wrote = false;
        loop {
            // Reading first: what it brings about for this peer then leaves in one piece.
            if let Err(error) = self.read_all(core, now, context, &mut budget) {
                return Served::Ended(Ending::Failed(error));
            }
            let written = match self.write_all(core, now, context) {
                Ok(written) => written,
                Err(error) => {
                    // A peer that says its last word and hangs up resets what we write to it meanwhile. What it had said
                    // is here all the same: a device's messages, or the alert by which a hub tells us why.
                    let last = self.read_all(core, now, context, &mut { LAST_READ });
                    return Served::Ended(Ending::Failed(last.err().unwrap_or(error)));
                }
            };
            wrote |= written.any;
            let closing = match core.router.transport_state(self.key) {
                TransportState::Open => false,
                TransportState::Abort => return Served::Ended(Ending::Aborted),
                TransportState::CloseWhenFlushed if written.flushed => return Served::Ended(Ending::Flushed),
                TransportState::CloseWhenFlushed => true,
            };
            if self.peer_end == PeerEnd::Seen {
                self.peer_end = PeerEnd::Told;
                core.router.handle_eof(self.key, now);
                continue;
            }
            // What was written may have made room to read again.
            if !written.any {
                return Served::Waiting { closing, wrote };
            }
        }
    }

    /// Reads until there is nothing to read, the router wants no more, or the budget is spent.
    fn read_all(
        &mut self,
        core: &mut Core,
        now: Instant,
        context: &mut Context<'_>,
        budget: &mut ReadBudget,
    ) -> io::Result<()> {
        while self.peer_end == PeerEnd::Open && core.router.may_read(self.key) {
            if budget.is_spent() {
                // There may be more: come back after everybody else.
                context.waker().wake_by_ref();
                break;
            }
            match self.read(core, now, context) {
                Poll::Ready(Ok(count)) => budget.spend(count),
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    fn read(&mut self, core: &mut Core, now: Instant, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match self.transport.poll_lend(context, &mut core.read_buffer) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(bytes)) if !bytes.is_empty() => {
                core.router.handle_input(self.key, bytes, now);
                let count = bytes.len();
                self.transport.consume(count);
                return Poll::Ready(Ok(count));
            }
            // Also the answer of TLS to a peer that hangs up without close_notify, as many do. AMQP ends with a frame
            // of its own, so nothing can be cut off unnoticed.
            Poll::Ready(Err(error)) if error.kind() != io::ErrorKind::UnexpectedEof => {
                return Poll::Ready(Err(error));
            }
            Poll::Ready(_) => {
                self.peer_end = PeerEnd::Seen;
            }
        }
        Poll::Ready(Ok(0))
    }

    /// Writes until nothing is left or the transport takes no more.
    fn write_all(&mut self, core: &mut Core, now: Instant, context: &mut Context<'_>) -> io::Result<Written> {
        let mut written = Written {
            any: false,
            flushed: false,
        };
        loop {
            let bytes = core.router.transmit(self.key);
            if bytes.is_empty() {
                break;
            }
            match Pin::new(&mut self.transport).poll_write(context, bytes) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => {
                    core.router.transmitted(self.key, count, now);
                    written.any = true;
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(written),
            }
        }
        // Always: reading may have made TLS write something of its own, and a former flush may be unfinished.
        match Pin::new(&mut self.transport).poll_flush(context) {
            Poll::Ready(Ok(())) => written.flushed = true,
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => {}
        }
        Ok(written)
    }

    fn poll_shutting_down(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match Pin::new(&mut self.transport).poll_shutdown(context) {
            Poll::Ready(Ok(())) => {
                self.lose("closed");
                if self.peer_end != PeerEnd::Open {
                    return Poll::Ready(());
                }
                self.phase = Phase::Lingering;
                self.patience = None;
                self.poll_lingering(context)
            }
            // A peer that has hung up meanwhile got what it wanted.
            Poll::Ready(Err(_)) => {
                self.lose("closed");
                Poll::Ready(())
            }
            Poll::Pending => {
                let turn = Rc::clone(self.presence.turn());
                let state = turn.enter_as(Some(self.key), |core, _| core.router.transport_state(self.key));
                if state == TransportState::Abort || self.poll_patience(CLOSE_PATIENCE, context).is_ready() {
                    self.lose("the peer does not read");
                    return Poll::Ready(());
                }
                Poll::Pending
            }
        }
    }

    /// Throws away what still comes in. The router does not know this connection any more.
    fn poll_lingering(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.poll_patience(LINGER, context).is_ready() {
            return Poll::Ready(());
        }
        let turn = Rc::clone(self.presence.turn());
        for _ in 0..TURN.reads {
            let read = turn.enter(|core, _| {
                let read = self.transport.poll_lend(context, &mut core.read_buffer);
                let read = read.map_ok(<[u8]>::len);
                if let Poll::Ready(Ok(count)) = read {
                    self.transport.consume(count);
                }
                read
            });
            match read {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(_)) => {}
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_patience(&mut self, limit: Duration, context: &mut Context<'_>) -> Poll<()> {
        let patience = self
            .patience
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        patience.as_mut().poll(context)
    }

    /// Tells the router that the transport is gone.
    fn lose(&self, reason: &str) {
        self.presence.turn().enter(|core, now| {
            core.wakers.forget(self.key);
            core.router.transport_lost(self.key, reason, now);
        });
    }
}

/// Why a transport is gone, in words for the operator.
fn explain_loss(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::TimedOut => {
            format!("the peer's host does not answer, or takes nothing of what is sent: {error}")
        }
        _ => tls::explain_loss(error),
    }
}

/// What may still be read in a turn.
struct ReadBudget {
    bytes: usize,
    reads: u32,
}

impl ReadBudget {
    fn is_spent(&self) -> bool {
        self.bytes == 0 || self.reads == 0
    }

    fn spend(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
        self.reads = self.reads.saturating_sub(1);
    }
}

/// What writing came to.
struct Written {
    /// Bytes were handed over.
    any: bool,
    /// Nothing is left to write, here or below.
    flushed: bool,
}

impl<S: Carrier> Future for Driver<S> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let driver = self.get_mut();
        if driver.presence.turn().is_stopped() {
            return Poll::Ready(());
        }
        match driver.phase {
            Phase::Serving => driver.poll_serving(context),
            Phase::ShuttingDown => driver.poll_shutting_down(context),
            Phase::Lingering => driver.poll_lingering(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    /// Thousands of idle devices are the rule; Tokio's own record of a task and a socket is on top of this.
    #[test]
    fn an_idle_connection_is_small() {
        assert!(
            size_of::<Driver<TcpStream>>() <= 128,
            "{}",
            size_of::<Driver<TcpStream>>()
        );
    }
}
