//! The hub's own clock, which runs as fast as a test wants and can be put forward, so that nobody waits for a minute.
//!
//! Tokens, locks, deadlines, delays and rates go by it. Idle time-outs do not: the peer counts them, too, in its time.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::super::sas::unix_now;

/// Time since 1970, by the hub's clock.
pub(crate) type Moment = Duration;

pub(crate) struct Clock {
    started: Instant,
    started_at: Moment,
    rate: u32,
    ahead: watch::Sender<Duration>,
}

impl Clock {
    /// A clock that is right now and then runs `rate` times as fast as others.
    pub(super) fn start(rate: u32) -> Self {
        Self {
            started: Instant::now(),
            started_at: Duration::from_secs(unix_now()),
            rate,
            ahead: watch::Sender::default(),
        }
    }

    pub(crate) fn now(&self) -> Moment {
        let ahead = *self.ahead.borrow();
        self.started_at + self.started.elapsed() * self.rate + ahead
    }

    /// Puts the clock forward.
    pub(super) fn advance(&self, by: Duration) {
        self.ahead.send_modify(|ahead| *ahead += by);
    }

    /// Waits until `moment`; for ever if there is none.
    pub(super) async fn wait_until(&self, moment: Option<Moment>) {
        let Some(moment) = moment else {
            return std::future::pending().await;
        };
        let mut advanced = self.ahead.subscribe();
        loop {
            let now = self.now();
            if now >= moment {
                return;
            }
            // Not a hair too early: what is due is asked of the same clock.
            let rest = (moment - now) / self.rate + Duration::from_millis(1);
            tokio::select! {
                () = sleep(rest) => {}
                _ = advanced.changed() => {}
            }
        }
    }
}
