//! Load through the real daemon, TLS upstream: messages a second, CPU a message, frames a TLS record, memory.
//!
//! ```text
//! cargo bench --bench load                 the table
//! cargo bench --bench load -- --json       the same as JSON
//! cargo bench --bench load -- --smoke      one second a row, for a check that everything works
//! cargo bench --bench load -- --direct     devices to hub without the daemon: what the harness itself can do
//! cargo bench --bench load -- idle         only rows whose name has this word
//! ```
//!
//! The devices and the hub are written on bare sockets with frames encoded beforehand, so that they stay well below the
//! daemon's cost. Every row starts a daemon of its own, and checks that no message was lost, doubled or left unsettled.

// A load generator is all clocks and threads; the bans on them are for the daemon's code.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod device;
mod report;
#[path = "../rig/mod.rs"]
mod rig;
mod rows;

use std::process::ExitCode;
use std::time::Duration;

use rig::Failure;

/// Open files that a row may need on either side: a socket for each idle device, and some.
const OPEN_FILES: u64 = 4096;

/// What the command line asks for.
#[derive(Debug, Default)]
pub(crate) struct Options {
    json: bool,
    smoke: bool,
    direct: bool,
    only: Option<String>,
}

impl Options {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let mut options = Self::default();
        for argument in arguments {
            match argument.as_str() {
                "--json" => options.json = true,
                "--smoke" => options.smoke = true,
                "--direct" => options.direct = true,
                // cargo passes this to every bench target.
                "--bench" => {}
                word if !word.starts_with('-') => options.only = Some(word.to_owned()),
                other => return Err(Failure::new(format!("unknown option {other}"))),
            }
        }
        Ok(options)
    }

    /// How long a row sends.
    fn duration(&self) -> Duration {
        Duration::from_secs(if self.smoke { 1 } else { 5 })
    }
}

fn main() -> ExitCode {
    match rig::allow_open_files(OPEN_FILES).and_then(|()| Options::parse(std::env::args().skip(1))) {
        Ok(options) => run(&options),
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> ExitCode {
    let mut measured = Vec::new();
    let mut failed = 0;
    for row in rows::all(options) {
        match row.run(options) {
            Ok(result) => measured.push(result),
            Err(failure) => {
                failed += 1;
                eprintln!("{}: {failure}", row.name);
            }
        }
    }
    if options.json {
        print!("{}", report::json(&measured));
    } else {
        print!("{}", report::table(&measured));
    }
    if failed == 0 && !measured.is_empty() {
        ExitCode::SUCCESS
    } else {
        eprintln!("{failed} of {} rows failed", failed + measured.len());
        ExitCode::FAILURE
    }
}
