//! The frame trace: module `PROTOCOL`, level trace, in qdrouterd's notation. Costs one check when it is off.

use tracing::Level;

use crate::amqp::display::{Direction, Trace, Unit};
use crate::amqp::frame::Frame;
use crate::amqp::header;

/// Whether anybody wants frames.
#[inline]
pub(super) fn is_enabled() -> bool {
    tracing::enabled!(target: "PROTOCOL", Level::TRACE)
}

/// Shows the protocol headers and frames that were appended to an outbox.
#[cold]
pub(super) fn sent(connection: u64, bytes: &[u8]) {
    let mut rest = bytes;
    while let Some(first) = rest.first_chunk::<4>() {
        let size = match first {
            b"AMQP" => header::LENGTH,
            size => usize::try_from(u32::from_be_bytes(*size))
                .unwrap_or(usize::MAX)
                .max(1),
        };
        let (unit, next) = rest.split_at_checked(size).unwrap_or((rest, &[]));
        rest = next;
        match (first, unit.first_chunk::<{ header::LENGTH }>()) {
            (b"AMQP", Some(header)) => show(connection, Direction::Sent, Unit::Header(*header)),
            _ => {
                if let Ok(frame) = Frame::parse(unit) {
                    show(connection, Direction::Sent, Unit::Frame(frame));
                }
            }
        }
    }
}

/// Shows what came in.
#[cold]
pub(super) fn received(connection: u64, unit: Unit<'_>) {
    show(connection, Direction::Received, unit);
}

fn show(connection: u64, direction: Direction, unit: Unit<'_>) {
    tracing::trace!(target: "PROTOCOL", "[C{connection}]:FRAME: {}", Trace { direction, unit });
}
