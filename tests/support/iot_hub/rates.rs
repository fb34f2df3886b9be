//! How often something may happen: so many times in any second of the hub's clock.

use std::collections::VecDeque;
use std::time::Duration;

use super::clock::Moment;

/// The times at which something happened within the last second.
#[derive(Default)]
pub(super) struct Rate(VecDeque<Moment>);

impl Rate {
    /// Counts one more, unless that is too many.
    pub(super) fn admits(&mut self, limit: Option<u32>, now: Moment) -> bool {
        let Some(limit) = limit else {
            return true;
        };
        while self
            .0
            .front()
            .is_some_and(|&at| at + Duration::from_secs(1) <= now)
        {
            self.0.pop_front();
        }
        let fits = self.0.len() < limit as usize;
        if fits {
            self.0.push_back(now);
        }
        fits
    }
}

/// Telemetry of one day.
#[derive(Default)]
pub(super) struct Quota {
    day: u64,
    used: u32,
}

impl Quota {
    /// Counts one more, unless the day's messages are used up.
    pub(super) fn takes(&mut self, limit: Option<u32>, now: Moment) -> bool {
        let fits = self.is_left(limit, now);
        self.used += u32::from(fits);
        fits
    }

    pub(super) fn is_left(&mut self, limit: Option<u32>, now: Moment) -> bool {
        let today = now.as_secs() / 86_400;
        if self.day != today {
            *self = Self { day: today, used: 0 };
        }
        limit.is_none_or(|limit| self.used < limit)
    }
}
