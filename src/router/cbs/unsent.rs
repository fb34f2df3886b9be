//! Requests that are not on their way to a hub: device by device, because a device waits for its turn to start there, and
//! goes with all that it has asked for.

use std::collections::{HashMap, VecDeque};

use crate::router::ConnectionKey;

/// See the module.
#[derive(Debug, Default)]
pub(in crate::router) struct Unsent {
    /// Who is next; also some who have nothing here any more.
    turns: VecDeque<ConnectionKey>,
    /// Numbers of requests, in order. Nobody's list is empty.
    requests: HashMap<ConnectionKey, VecDeque<u64>>,
}

impl Unsent {
    pub(super) fn push(&mut self, device: ConnectionKey, number: u64) {
        let requests = self.requests.entry(device).or_default();
        if requests.is_empty() {
            self.turns.push_back(device);
        }
        requests.push_back(number);
    }

    /// Whose turn it is.
    pub(super) fn front(&mut self) -> Option<ConnectionKey> {
        while let Some(device) = self.turns.front() {
            if self.requests.contains_key(device) {
                return Some(*device);
            }
            self.turns.pop_front();
        }
        None
    }

    /// What a device has asked for, in order.
    pub(super) fn take(&mut self, device: ConnectionKey) -> VecDeque<u64> {
        let taken = self.requests.remove(&device).unwrap_or_default();
        self.forget_turns();
        taken
    }

    /// Nobody waits for this one any more.
    pub(super) fn forget(&mut self, device: ConnectionKey, number: u64) {
        if let Some(requests) = self.requests.get_mut(&device) {
            requests.retain(|&other| other != number);
            if requests.is_empty() {
                self.requests.remove(&device);
                self.forget_turns();
            }
        }
    }

    pub(in crate::router) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Turns of those who have nothing here are no more than those of the others.
    fn forget_turns(&mut self) {
        if self.turns.len() > 2 * self.requests.len() {
            let requests = &self.requests;
            self.turns.retain(|device| requests.contains_key(device));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_take_turns_and_go_with_all_that_they_have_asked_for() {
        let [first, second] = [1, 2].map(ConnectionKey::of_test);
        let mut unsent = Unsent::default();
        for (device, number) in [(first, 1), (second, 2), (first, 3), (second, 4)] {
            unsent.push(device, number);
        }
        assert_eq!(unsent.front(), Some(first));
        assert_eq!(unsent.take(first), [1, 3]);
        assert_eq!(unsent.front(), Some(second));
        unsent.forget(second, 2);
        assert_eq!(unsent.front(), Some(second));
        unsent.forget(second, 4);
        assert_eq!((unsent.front(), unsent.is_empty()), (None, true));
    }

    #[test]
    fn who_comes_again_and_again_has_no_turn_for_each_time() {
        let [patient, other] = [1, 2].map(ConnectionKey::of_test);
        let mut unsent = Unsent::default();
        unsent.push(patient, 0);
        for number in 1..100 {
            unsent.push(other, number);
            unsent.forget(other, number);
        }
        assert!(unsent.turns.len() <= 2, "{unsent:?}");
        assert_eq!(unsent.front(), Some(patient));
    }
}
