//! How a shard shows that it turns, and how it is.
//!
//! Each beat has passed through a turn, so a shard that is stuck has none. A beat comes at once after something happened,
//! but not within [`STEP`] of the last one; and when nothing happens, as often as was asked for. A shard that is idle and
//! was not asked for a rhythm is never woken for this.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout_at;

use super::turn::{self, Turn};
use crate::router::Overview;

/// The least time between two beats, except where the rhythm is faster.
const STEP: Duration = Duration::from_secs(2);

/// What is wanted of a shard's pulse, and by whom.
#[derive(Debug)]
pub(super) struct Pulse {
    rhythm: Option<Duration>,
    beats: watch::Sender<Overview>,
}

impl Pulse {
    pub(super) fn new(rhythm: Option<Duration>) -> (Pulse, watch::Receiver<Overview>) {
        let (beats, receiver) = watch::channel(Overview::default());
        (Pulse { rhythm, beats }, receiver)
    }

    /// Beats until nobody is left to notice.
    pub(super) async fn beat(self, turn: Rc<Turn>) {
        while self.beats.send(turn.look()).is_ok() {
            let looked = turn::now();
            let something_happened = async {
                turn.touched().await;
                tokio::time::sleep_until((looked + STEP).into()).await;
            };
            match self.rhythm {
                // That the time is up says all.
                Some(rhythm) => drop(timeout_at((looked + rhythm).into(), something_happened).await),
                None => something_happened.await,
            }
        }
    }
}
