//! What time does to a [`Connection`]: heartbeats, idle time-outs, and limits for the handshake and the close (AMQP 1.0
//! part 2, §2.4.5).

use std::time::Instant;

use super::ConnectionError;
use super::connection::{Connection, Phase};
use super::limits;
use crate::amqp::frame::HEARTBEAT;

impl Connection {
    /// When [`on_timeout`](Self::on_timeout) wants to be called.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.phase == Phase::Over {
            // A peer that does not even read our Close is not waited for.
            return (!self.outbox.is_empty()).then(|| self.last_output + limits::CLOSE_TIMEOUT);
        }
        let idle = if let Phase::CloseSent { deadline } = self.phase {
            Some(deadline)
        } else {
            let limit = self.announce.idle_timeout.filter(|_| self.open_sent);
            limit.map(|limit| self.last_input + limit)
        };
        let heartbeat = self.heartbeat.filter(|_| self.phase == Phase::Opened);
        let heartbeat = heartbeat.map(|interval| self.last_output + interval);
        [idle, heartbeat, self.handshake_deadline]
            .into_iter()
            .flatten()
            .min()
    }

    /// We did not read, so the peer's silence means nothing.
    pub const fn excuse_silence(&mut self, now: Instant) {
        self.last_input = now;
    }

    /// Time has passed: sends a heartbeat if one is due.
    ///
    /// # Errors
    /// The peer was silent for too long; [`fail`](Self::fail) the connection.
    pub fn on_timeout(&mut self, now: Instant) -> Result<(), ConnectionError> {
        if self.phase == Phase::Over {
            if self.last_output + limits::CLOSE_TIMEOUT <= now {
                self.outbox.clear();
            }
            return Ok(());
        }
        if let Phase::CloseSent { deadline } = self.phase {
            if deadline <= now {
                self.finish();
            }
            return Ok(());
        }
        if self.handshake_deadline.is_some_and(|deadline| deadline <= now) {
            return Err(ConnectionError::HandshakeTimeout);
        }
        let limit = self.announce.idle_timeout.filter(|_| self.open_sent);
        if limit.is_some_and(|limit| self.last_input + limit <= now) {
            return Err(ConnectionError::IdleTimeout);
        }
        if self.phase == Phase::Opened
            && self
                .heartbeat
                .is_some_and(|interval| self.last_output + interval <= now)
        {
            self.last_output = now;
            if self.outbox.is_empty() {
                self.emit(|out| out.extend_from_slice(&HEARTBEAT));
            }
            self.deframer.release_memory();
        }
        if self.outbox.is_empty() {
            self.outbox.release_memory();
        }
        Ok(())
    }
}
