//! When the hub is there, and who has been served since it came back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Even while the hub serves, odd while it does not; each change counts one.
#[derive(Debug)]
pub(crate) struct Outages {
    phase: AtomicU64,
    since: Mutex<Instant>,
}

/// A moment of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Phase(u64);

impl Phase {
    pub(crate) fn is_up(self) -> bool {
        self.0.is_multiple_of(2)
    }
}

impl Outages {
    /// The hub is not there yet.
    pub(crate) fn new() -> Self {
        Self {
            phase: AtomicU64::new(1),
            since: Mutex::new(Instant::now()),
        }
    }

    pub(crate) fn now(&self) -> Phase {
        Phase(self.phase.load(Ordering::SeqCst))
    }

    /// How long this phase has lasted.
    pub(crate) fn lasted(&self) -> Duration {
        self.since
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .elapsed()
    }

    /// Before the hub goes, and when it is back.
    pub(crate) fn change(&self) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.phase.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether the hub went, or was not there, at some time since `begin`.
    pub(crate) fn disturbed(&self, begin: Phase) -> bool {
        !begin.is_up() || self.now() != begin
    }
}

/// Who of those that stay has been served in which phase.
#[derive(Debug)]
pub(crate) struct Served {
    last: Mutex<Vec<Option<(Phase, Duration)>>>,
}

impl Served {
    pub(crate) fn of_devices(count: usize) -> Self {
        Self {
            last: Mutex::new(vec![None; count]),
        }
    }

    /// A message of this device that it sent in this phase was accepted, so long after the phase began.
    pub(crate) fn mark(&self, device: usize, phase: Phase, after: Duration) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = last.get_mut(device)
            && entry.is_none_or(|(known, _)| known != phase)
        {
            *entry = Some((phase, after));
        }
    }

    /// How many were not served in this phase, and how long the slowest of the others waited.
    pub(crate) fn judge(&self, phase: Phase) -> (usize, Duration) {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let times = last
            .iter()
            .flatten()
            .filter(|(known, _)| *known == phase)
            .map(|(_, after)| *after);
        let slowest = times.clone().max().unwrap_or_default();
        (last.len() - times.count(), slowest)
    }
}
