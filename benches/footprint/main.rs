//! What the real daemon costs a small machine: memory, time to start, storage, wake-ups, lines in the log.
//!
//! ```text
//! cargo bench --bench footprint                 the table
//! cargo bench --bench footprint -- --json       the same as JSON
//! cargo bench --bench footprint -- --smoke      few devices and short times, for a check that nothing grows
//! cargo bench --bench footprint -- churn        only the parts whose name has this word
//! ```
//!
//! Fails when memory or open files grow while devices come and go, and when anything is stored or logged while devices
//! only send. The other figures are for people to judge: each has a goal beside it.

// A harness is all clocks and threads; the bans on them are for the daemon's code.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod churn;
mod fleet;
#[path = "../rig/mod.rs"]
mod rig;
mod rows;

use std::process::ExitCode;

use rig::figures;
use rig::options::Options;

/// Open files that the largest part needs on either side.
const OPEN_FILES: u64 = 8192;

fn main() -> ExitCode {
    match rig::allow_open_files(OPEN_FILES)
        .and_then(|()| Options::parse(std::env::args().skip(1), |_, _| Ok(false)))
    {
        Ok(options) => run(&options),
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> ExitCode {
    let mut figures = Vec::new();
    let mut failed = 0;
    for part in rows::PARTS.iter().filter(|part| options.wants(part.name)) {
        match (part.measure)(options) {
            Ok(measured) => {
                for fault in measured.faults {
                    failed += 1;
                    eprintln!("{}: {fault}", part.name);
                }
                figures.extend(measured.figures);
            }
            Err(failure) => {
                failed += 1;
                eprintln!("{}: {failure}", part.name);
            }
        }
    }
    if options.json {
        print!("{}", figures::json(&figures));
    } else {
        print!("{}", figures::table(&figures));
    }
    if failed == 0 && !figures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
