//! Deadlines, kept lazily: activity stores a timestamp where it happens, and only a deadline that has passed is
//! looked at again. Each owner has at most one entry that counts.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use super::ConnectionKey;
use super::settings::ConnectorId;

/// Whose deadline it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Connection(ConnectionKey),
    Connector(ConnectorId),
    /// The oldest detach that waits for its answer.
    Detaches,
    /// The oldest request to a hub's `$cbs` that waits for its answer.
    Relay,
    /// A stop that waits for deliveries under way, to look at them again.
    Drain,
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    at: Instant,
    owner: Owner,
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The deadlines of one router.
#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<Entry>>,
}

impl Timers {
    /// Moves an owner's deadline to `deadline`, if that is earlier than the entry that it has at `scheduled`; a later
    /// one is found when the entry fires.
    pub(super) fn arm(&mut self, owner: Owner, scheduled: &mut Option<Instant>, deadline: Option<Instant>) {
        let Some(at) = deadline else { return };
        if scheduled.is_none_or(|current| at < current) {
            *scheduled = Some(at);
            self.heap.push(Reverse(Entry { at, owner }));
        }
    }

    /// The first owner whose entry has passed, with the entry's time: it counts if the owner has it scheduled.
    pub(super) fn pop(&mut self, now: Instant) -> Option<(Owner, Instant)> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| (entry.owner, entry.at))
    }

    /// The earliest entry.
    pub(super) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse(entry)| entry.at)
    }
}
