//! Deadlines, kept lazily: activity stores a timestamp where it happens, and only a deadline that has passed is
//! looked at again. Each owner has at most one entry, and an owner that goes takes its entry along ([`Timers::disarm`]):
//! devices come and go faster than their deadlines pass.

use std::collections::BTreeSet;
use std::time::Instant;

use super::ConnectionKey;
use super::settings::ConnectorId;

/// Whose deadline it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

/// The deadlines of one router.
#[derive(Debug, Default)]
pub(super) struct Timers {
    entries: BTreeSet<(Instant, Owner)>,
}

impl Timers {
    /// Moves an owner's deadline to `deadline`, if that is earlier than the entry that it has at `scheduled`; a later
    /// one is found when the entry fires.
    pub(super) fn arm(&mut self, owner: Owner, scheduled: &mut Option<Instant>, deadline: Option<Instant>) {
        let Some(at) = deadline else { return };
        if scheduled.is_none_or(|current| at < current) {
            self.disarm(owner, scheduled);
            *scheduled = Some(at);
            self.entries.insert((at, owner));
        }
    }

    /// Forgets the entry that an owner has at `scheduled`.
    pub(super) fn disarm(&mut self, owner: Owner, scheduled: &mut Option<Instant>) {
        if let Some(at) = scheduled.take() {
            self.entries.remove(&(at, owner));
        }
    }

    /// The first owner whose entry has passed; it has none any more.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Owner> {
        if self.next()? > now {
            return None;
        }
        self.entries.pop_first().map(|(_, owner)| owner)
    }

    /// The earliest entry.
    pub(super) fn next(&self) -> Option<Instant> {
        self.entries.first().map(|&(at, _)| at)
    }
}
