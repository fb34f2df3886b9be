//! How fast new devices may start on a connection: a hub counts each as a new connection, and throttles those who bring
//! too many at once (IoT Hub S1: 100 new device connections in a second, or 12 for each unit).

use std::time::{Duration, Instant};

/// Whether a device may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admit {
    Now,
    /// Not before then, and perhaps not then: others may wait as well.
    At(Instant),
}

/// A bucket that holds one second's worth of starts, full at first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Between two starts, in the long run.
    interval: Duration,
    /// How far starts may run ahead of that: all of the bucket but the one that is asked for.
    ahead: Duration,
    /// When the bucket is full again.
    full_at: Option<Instant>,
}

impl Pace {
    /// `None`: as many as come.
    pub(super) fn new(per_second: u32) -> Option<Self> {
        let interval = Duration::from_secs(1).checked_div(per_second)?;
        Some(Pace {
            interval,
            ahead: interval * (per_second - 1),
            full_at: None,
        })
    }

    /// Takes one start out of the bucket, if there is one.
    pub(super) fn start(&mut self, now: Instant) -> Admit {
        match self.ready_at().filter(|&at| at > now) {
            Some(at) => Admit::At(at),
            None => {
                let full_at = self.full_at.map_or(now, |at| at.max(now));
                self.full_at = Some(full_at + self.interval);
                Admit::Now
            }
        }
    }

    /// When the bucket holds a start. `None`: it always did.
    pub(super) fn ready_at(&self) -> Option<Instant> {
        self.full_at?.checked_sub(self.ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_s_worth_goes_at_once_and_the_rest_at_the_rate() {
        for rate in [1, 3, 100, 1_000] {
            let mut pace = Pace::new(rate).unwrap();
            let start = Instant::now();
            let mut now = start;
            let starts = (0..3 * rate).map(|_| {
                while let Admit::At(at) = pace.start(now) {
                    assert!(at > now, "no waiting for what is here");
                    now = at;
                }
                now - start
            });
            let starts: Vec<Duration> = starts.collect();
            let within = |second| {
                starts
                    .iter()
                    .filter(|&&at| at <= Duration::from_secs(second))
                    .count()
            };
            let rate = usize::try_from(rate).unwrap();
            assert!(starts[..rate].iter().all(Duration::is_zero), "{rate}");
            assert!(within(1).abs_diff(2 * rate) <= 1, "{rate}: {}", within(1));
            assert!(within(2).abs_diff(3 * rate) <= 1, "{rate}: {}", within(2));
        }
    }

    #[test]
    fn what_was_not_used_is_kept_for_a_second_and_no_longer() {
        let mut pace = Pace::new(2).unwrap();
        let start = Instant::now();
        let later = start + Duration::from_secs(100);
        for now in [start, later] {
            assert_eq!([pace.start(now), pace.start(now)], [Admit::Now; 2]);
            assert_eq!(pace.start(now), Admit::At(now + Duration::from_millis(500)));
        }
    }

    #[test]
    fn no_rate_and_the_highest_rate_hold_nobody_up() {
        assert!(Pace::new(0).is_none());
        let mut pace = Pace::new(u32::MAX).unwrap();
        let now = Instant::now();
        assert!((0..100_000).all(|_| pace.start(now) == Admit::Now));
    }
}
