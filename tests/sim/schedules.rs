//! Runs many seeded schedules on all processors, or replays one.

use std::env;
use std::fmt::Debug;
use std::ops::AddAssign;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// Schedules of an ordinary `cargo test`, which has other work, and is not optimised.
const SCHEDULES: u64 = 1000;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

/// What became of all schedules together: so many as `LINKROUTERD_SCHEDULES` says, or one of so many, from the seed 0 on.
/// With `LINKROUTERD_SEED` only that one is run, and nothing is to be judged by its sums.
///
/// A failure names its seed, and how to run it again.
pub(crate) fn run<T>(test: &str, one_of: u64, run: fn(u64) -> T) -> Option<T>
where
    T: AddAssign + Debug + Default + Send,
{
    if let Some(seed) = number("LINKROUTERD_SEED") {
        replay(seed, run);
        return None;
    }
    let seeds = number("LINKROUTERD_SCHEDULES").unwrap_or(SCHEDULES) / one_of;
    let next = AtomicU64::new(0);
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let outcomes: Vec<Result<T, u64>> = thread::scope(|scope| {
        let spawned: Vec<_> = (0..workers)
            .map(|_| scope.spawn(|| work(&next, seeds, run)))
            .collect();
        let joined = spawned.into_iter().map(|worker| worker.join());
        joined.map(|outcome| outcome.expect("a worker")).collect()
    });
    let mut totals = T::default();
    for outcome in outcomes {
        match outcome {
            Ok(outcome) => totals += outcome,
            Err(seed) => {
                panic!("replay it: LINKROUTERD_SEED={seed} cargo test --test sim {test} -- --nocapture")
            }
        }
    }
    println!("{seeds} schedules: {totals:?}");
    Some(totals)
}

/// Runs one with the router's log at its most talkative. Some frames have a shorter way while nobody looks: a failure
/// that shows only then has shown itself before.
fn replay<T: Debug>(seed: u64, run: fn(u64) -> T) {
    let unseen = catch_unwind(AssertUnwindSafe(|| run(seed)));
    let trace = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .without_time();
    let seen = tracing::subscriber::with_default(trace.finish(), || run(seed));
    match unseen {
        Ok(_) => println!("{seen:?}"),
        Err(panic) => resume_unwind(panic),
    }
}

/// Takes seeds until there are no more, or one has failed.
fn work<T: AddAssign + Default>(next: &AtomicU64, end: u64, run: fn(u64) -> T) -> Result<T, u64> {
    let mut totals = T::default();
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end {
            return Ok(totals);
        }
        match catch_unwind(AssertUnwindSafe(|| run(seed))) {
            Ok(outcome) => totals += outcome,
            Err(_) => {
                next.fetch_max(end, Ordering::Relaxed);
                return Err(seed);
            }
        }
    }
}
