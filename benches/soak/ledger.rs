//! What was sent, seen and accepted, message by message: the account that a soak is judged by.
//!
//! A sender may send a message again when its link was lost before the message was settled (AMQP 1.0 part 2, §2.6.13:
//! in doubt). So a message that was accepted must have been seen, and nothing may be seen more often than it was sent.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Up,
    Down,
}

/// What is known of one message.
#[derive(Clone, Copy, Debug, Default)]
struct Fate {
    sent: u8,
    seen: u8,
    accepted: bool,
}

/// The messages of one device, by way and number.
#[derive(Debug, Default)]
struct Account {
    up: Vec<Fate>,
    down: Vec<Fate>,
}

impl Account {
    fn way(&mut self, way: Way) -> &mut Vec<Fate> {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }
}

/// Shared by the devices and the hub.
#[derive(Debug)]
pub(crate) struct Ledger {
    accounts: Vec<Mutex<Account>>,
}

/// What it all came to, one way.
#[derive(Debug, Default)]
pub(crate) struct Sum {
    pub(crate) sent: u64,
    pub(crate) accepted: u64,
    /// Accepted at the sender and never seen at the other end.
    pub(crate) lost: u64,
    /// Seen more often than sent.
    pub(crate) doubled: u64,
    /// Sent again because they were in doubt.
    pub(crate) repeated: u64,
    /// Of those, seen each time: what AMQP permits.
    pub(crate) seen_again: u64,
}

impl Ledger {
    pub(crate) fn of_devices(count: usize) -> Self {
        Self {
            accounts: (0..count).map(|_| Mutex::default()).collect(),
        }
    }

    fn account(&self, device: usize) -> Option<MutexGuard<'_, Account>> {
        let account = self.accounts.get(device)?;
        Some(account.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The number of a message that was never sent before.
    pub(crate) fn next(&self, device: usize, way: Way) -> u32 {
        let Some(mut account) = self.account(device) else {
            return 0;
        };
        let messages = account.way(way);
        messages.push(Fate::default());
        messages.len() as u32 - 1
    }

    pub(crate) fn sent(&self, device: usize, way: Way, number: u32) {
        self.change(device, way, number, |fate| {
            fate.sent = fate.sent.saturating_add(1)
        });
    }

    /// Whether there is such a message at all.
    pub(crate) fn seen(&self, device: usize, way: Way, number: u32) -> bool {
        self.change(device, way, number, |fate| {
            fate.seen = fate.seen.saturating_add(1)
        })
    }

    pub(crate) fn accepted(&self, device: usize, way: Way, number: u32) {
        self.change(device, way, number, |fate| fate.accepted = true);
    }

    fn change(&self, device: usize, way: Way, number: u32, change: impl FnOnce(&mut Fate)) -> bool {
        let Some(mut account) = self.account(device) else {
            return false;
        };
        let fate = account.way(way).get_mut(number as usize);
        fate.map(change).is_some()
    }

    pub(crate) fn sum(&self, way: Way) -> Sum {
        let mut sum = Sum::default();
        for device in 0..self.accounts.len() {
            let Some(mut account) = self.account(device) else {
                continue;
            };
            for fate in account.way(way).iter() {
                sum.sent += u64::from(fate.sent > 0);
                sum.accepted += u64::from(fate.accepted);
                sum.lost += u64::from(fate.accepted && fate.seen == 0);
                sum.doubled += u64::from(fate.seen > fate.sent);
                sum.repeated += u64::from(fate.sent > 1);
                sum.seen_again += u64::from(fate.sent > 1 && fate.seen > 1);
            }
        }
        sum
    }
}

/// A message's payload: whose it is and which, then as many bytes as are wanted.
pub(crate) fn payload(device: usize, number: u32, size: usize) -> Vec<u8> {
    let size = size.max(MARK);
    let mut section = vec![0x00, 0x53, 0x75, 0xb0];
    section.extend((size as u32).to_be_bytes());
    section.extend((device as u32).to_be_bytes());
    section.extend(number.to_be_bytes());
    section.resize(HEAD + size, number as u8);
    section
}

/// Reads it back; nothing when it is not whole or not as it was sent.
pub(crate) fn read(payload: &[u8]) -> Option<(usize, u32)> {
    let (head, content) = payload.split_at_checked(HEAD)?;
    let size = u32::from_be_bytes(*head.last_chunk::<4>()?) as usize;
    let (device, rest) = content.split_first_chunk::<4>()?;
    let (number, filling) = rest.split_first_chunk::<4>()?;
    let number = u32::from_be_bytes(*number);
    let is_whole = content.len() == size && filling.iter().all(|byte| *byte == number as u8);
    is_whole.then(|| (u32::from_be_bytes(*device) as usize, number))
}

/// Descriptor, constructor and size of the data section.
const HEAD: usize = 8;
/// Whose it is and which.
const MARK: usize = 8;
