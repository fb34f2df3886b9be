//! Seeds that are run again and again, and seeds as such.

use std::fmt::Debug;

use crate::{cbs, links};

/// Schedules of links beyond those of an ordinary run that have found something, in the router or in a mutation of it.
const LINKS: [(u64, &str); 2] = [
    (
        1714,
        "a device that was held back for a full outbox is to be read again",
    ),
    (
        80_422,
        "a half-open device that takes nothing is not read, so that its silence says nothing: its transport gives it up",
    ),
];

#[test]
fn seeds_that_have_found_something_find_nothing() {
    for (seed, finding) in LINKS {
        println!("{seed}: {finding}");
        links::run(seed);
    }
}

/// Nothing is left to chance: a schedule is what its seed makes it.
#[test]
fn a_seed_replays_alike() {
    fn twice<T: Debug>(seed: u64, run: fn(u64) -> T) {
        let (first, second) = (format!("{:?}", run(seed)), format!("{:?}", run(seed)));
        assert_eq!(first, second, "seed {seed}");
    }
    for seed in 0..30 {
        twice(seed, links::run);
        twice(seed, cbs::run);
    }
}
