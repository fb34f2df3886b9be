//! Seeds that have found something, and seeds as such.

use std::fmt::Debug;

use crate::{cbs, links};

/// Schedules of links that have found something, and what.
const LINKS: [(u64, &str); 0] = [];

#[test]
fn seeds_that_have_found_bugs_find_none() {
    for (seed, bug) in LINKS {
        println!("{seed}: {bug}");
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
