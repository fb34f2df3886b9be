//! What the devices, the hub and the one who judges share.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::ledger::Ledger;
use super::outage::{Outages, Served};

/// Faults that are kept; behind so many there is nothing new.
const FAULTS: usize = 20;

/// The harness, without the daemon.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) ledger: Ledger,
    pub(crate) outages: Outages,
    pub(crate) served: Served,
    pub(crate) visits: AtomicU64,
    /// Visits that ended early because the hub went.
    pub(crate) cut_short: AtomicU64,
    goes_on: AtomicBool,
    /// Commands in doubt, of each device in their order.
    again: Vec<Mutex<BTreeSet<u32>>>,
    faults: Mutex<Vec<String>>,
}

impl Site {
    /// Of so many devices the first `staying` stay.
    pub(crate) fn new(devices: usize, staying: usize) -> Self {
        Self {
            ledger: Ledger::of_devices(devices),
            outages: Outages::new(),
            served: Served::of_devices(staying),
            visits: AtomicU64::new(0),
            cut_short: AtomicU64::new(0),
            goes_on: AtomicBool::new(true),
            again: (0..devices).map(|_| Mutex::default()).collect(),
            faults: Mutex::default(),
        }
    }

    /// Nothing new is sent any more.
    pub(crate) fn finish(&self) {
        self.goes_on.store(false, Ordering::SeqCst);
    }

    pub(crate) fn goes_on(&self) -> bool {
        self.goes_on.load(Ordering::SeqCst)
    }

    /// Commands whose link was lost before they were settled.
    pub(crate) fn send_again(&self, commands: impl Iterator<Item = (usize, u32)>) {
        for (device, number) in commands {
            if let Some(again) = self.again.get(device) {
                again
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(number);
            }
        }
    }

    pub(crate) fn next_again(&self, device: usize) -> Option<u32> {
        let mut again = self
            .again
            .get(device)?
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        again.pop_first()
    }

    /// Something that must not be.
    pub(crate) fn fault(&self, text: String) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        if faults.len() < FAULTS {
            eprintln!("fault: {text}");
            faults.push(text);
        }
    }

    pub(crate) fn faults(&self) -> Vec<String> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
