//! The time as tokens mean it, which the router is told and never reads.

use std::time::{Duration, Instant};

/// The time of the day, as last told.
#[derive(Debug, Default)]
pub(super) struct Clock {
    told: Option<(Instant, Duration)>,
}

impl Clock {
    pub(super) const fn tell(&mut self, since_1970: Duration, now: Instant) {
        self.told = Some((now, since_1970));
    }

    /// Since 1970, UTC; `None` if nobody has said.
    pub(super) fn since_1970(&self, now: Instant) -> Option<Duration> {
        let (at, told) = self.told?;
        Some(told + now.saturating_duration_since(at))
    }
}
