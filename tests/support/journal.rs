//! A list of what was observed, which tests read and wait on.

use std::sync::Mutex;
use std::sync::PoisonError;

use tokio::sync::watch;

use super::{Failure, bounded};

/// Everything observed, in order.
pub(crate) struct Journal<T> {
    entries: Mutex<Vec<T>>,
    length: watch::Sender<usize>,
}

impl<T> Default for Journal<T> {
    fn default() -> Self {
        Self {
            entries: Mutex::new(Vec::new()),
            length: watch::Sender::new(0),
        }
    }
}

impl<T: Clone + std::fmt::Debug> Journal<T> {
    /// Adds an entry and wakes who waits.
    pub(crate) fn note(&self, entry: T) {
        let length = {
            let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            entries.push(entry);
            entries.len()
        };
        self.length.send_replace(length);
    }

    /// What `pick` makes of each entry that it takes, in order.
    pub(crate) fn select<U>(&self, pick: impl FnMut(&T) -> Option<U>) -> Vec<U> {
        self.entries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .filter_map(pick)
            .collect()
    }

    /// The entries after the first `seen`, once there is one: without a bound, for those who only watch.
    pub(crate) async fn after(&self, seen: usize) -> Vec<T> {
        let mut length = self.length.subscribe();
        // The sender lives as long as the journal.
        let _ = length.wait_for(|&length| length > seen).await;
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().skip(seen).cloned().collect()
    }

    /// The first entry, past or to come, that `pick` takes.
    pub(crate) async fn find<U>(&self, what: &str, pick: impl FnMut(&T) -> Option<U>) -> Result<U, Failure> {
        let found = self.find_all(what, 1, pick).await?;
        found.into_iter().next().ok_or_else(|| Failure::new(what))
    }

    /// The entries that `pick` takes, once there are at least `count`.
    pub(crate) async fn find_all<U>(
        &self,
        what: &str,
        count: usize,
        mut pick: impl FnMut(&T) -> Option<U>,
    ) -> Result<Vec<U>, Failure> {
        let mut length = self.length.subscribe();
        let mut seen = 0;
        let mut found = Vec::new();
        let search = async {
            loop {
                let now = *length.borrow_and_update();
                {
                    let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
                    found.extend(entries.iter().take(now).skip(seen).filter_map(&mut pick));
                }
                seen = now;
                if found.len() >= count || length.changed().await.is_err() {
                    return;
                }
            }
        };
        bounded(what, search).await?;
        match found.len() {
            enough if enough >= count => Ok(found),
            few => Err(Failure::new(format!("{what}: {few} of {count}"))),
        }
    }
}
