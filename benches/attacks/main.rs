//! What peers that mean harm take from others: the latency of decent devices, and the daemon's memory.
//!
//! ```text
//! cargo bench --bench attacks               the table
//! cargo bench --bench attacks -- --json     the same as JSON
//! cargo bench --bench attacks -- --smoke    each attack for some seconds, for a check that all is served meanwhile
//! cargo bench --bench attacks -- silence    only the attacks whose name has this word
//! ```
//!
//! Fails when a decent device is not served, when an attacker is not dropped that should be, and when memory exceeds the
//! budget. Latencies are for people to judge: the harness and the daemon share the machine.

// A harness is all clocks and threads; the bans on them are for the daemon's code.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod crowd;
mod others;
#[path = "../rig/mod.rs"]
mod rig;
mod rows;

use std::process::ExitCode;

use rig::figures;
use rig::options::Options;

/// Open files that the largest attack needs on either side.
const OPEN_FILES: u64 = 8192;

fn main() -> ExitCode {
    let options = rig::allow_open_files(OPEN_FILES)
        .and_then(|()| Options::parse(std::env::args().skip(1), |_, _| Ok(false)));
    match options {
        Ok(options) => run(&options),
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> ExitCode {
    let mut measured = Vec::new();
    let mut faults = Vec::new();
    for attack in rows::ATTACKS.iter().filter(|attack| options.wants(attack.name)) {
        match attack.run(options, &mut faults) {
            Ok(figures) => measured.extend(figures),
            Err(failure) => faults.push(format!("{}: {failure}", attack.name)),
        }
    }
    if options.json {
        print!("{}", figures::json(&measured));
    } else {
        print!("{}", figures::table(&measured));
    }
    for fault in &faults {
        eprintln!("{fault}");
    }
    if faults.is_empty() && !measured.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
