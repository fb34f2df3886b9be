//! Seeds that have found something, and seeds as such.

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

#[test]
fn a_seed_replays_byte_by_byte() {
    for seed in 0..30 {
        assert_eq!(
            format!("{:?}", links::run(seed)),
            format!("{:?}", links::run(seed))
        );
        assert_eq!(format!("{:?}", cbs::run(seed)), format!("{:?}", cbs::run(seed)));
    }
}
