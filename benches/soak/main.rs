//! Load for a long time, with devices that come and go and a hub that is restarted again and again.
//!
//! ```text
//! cargo bench --bench soak                  30 minutes, a restart of the hub every 20 s
//! cargo bench --bench soak -- --minutes 1   shorter
//! cargo bench --bench soak -- --smoke       25 s, a restart every 5 s, for a check that all of it works
//! cargo bench --bench soak -- --json        the figures as JSON
//! ```
//!
//! Fails when a message is lost that its sender saw accepted, when one comes more often than it was sent, when a link's
//! messages change their order, when a device is not served again before the next restart, and when the daemon's memory
//! or its open files grow.

// A harness is all clocks and threads; the bans on them are for the daemon's code.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod device;
mod fleet;
mod hub;
mod hub_connection;
mod ledger;
mod outage;
#[path = "../rig/mod.rs"]
mod rig;
mod run;
mod site;

use std::process::ExitCode;
use std::time::Duration;

use rig::options::Options;
use rig::{Failure, figures};
use site::Site;

/// Of a device, before its number: its identity at the hub, and its container-id.
const NAME: &str = "soak-";

/// How long, and what is judged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    duration: Duration,
    restart_every: Duration,
    /// KiB a minute that memory may grow by, in the line through the second half.
    growth: f64,
    /// Open files that there may be more of at the end than at the beginning, by the line through all samples: visitors come
    /// and go. When all have gone none may be left.
    more_files: f64,
}

impl Plan {
    const FULL: Self = Self {
        duration: Duration::from_secs(30 * 60),
        restart_every: Duration::from_secs(20),
        growth: 16.0,
        more_files: 12.0,
    };

    /// Tables and timers still fill, and samples are few.
    const SHORT: Self = Self {
        growth: 8192.0,
        more_files: 40.0,
        ..Self::FULL
    };

    const SMOKE: Self = Self {
        duration: Duration::from_secs(25),
        restart_every: Duration::from_secs(5),
        ..Self::SHORT
    };

    fn of_minutes(minutes: Option<&str>) -> Result<Self, Failure> {
        let minutes = minutes.and_then(|text| text.parse::<f64>().ok());
        let minutes = minutes.filter(|minutes| (1.0..=10_000.0).contains(minutes));
        let minutes = minutes.ok_or_else(|| Failure::new("--minutes needs a number from 1 on"))?;
        Ok(Self {
            duration: Duration::from_secs_f64(minutes * 60.0),
            ..if minutes < 10.0 { Self::SHORT } else { Self::FULL }
        })
    }
}

/// What the command line asks for.
fn options() -> Result<(Options, Plan), Failure> {
    let mut plan = None;
    let options = Options::parse(std::env::args().skip(1), |option, rest| {
        if option != "--minutes" {
            return Ok(false);
        }
        plan = Some(Plan::of_minutes(rest.next().as_deref())?);
        Ok(true)
    })?;
    let usual = if options.smoke { Plan::SMOKE } else { Plan::FULL };
    Ok((options, plan.unwrap_or(usual)))
}

fn main() -> ExitCode {
    let outcome = options().and_then(|(options, plan)| Ok((options, run::soak(plan)?)));
    match outcome {
        Ok((options, (figures, faults))) => {
            if options.json {
                print!("{}", figures::json(&figures));
            } else {
                print!("{}", figures::table(&figures));
            }
            for fault in &faults {
                eprintln!("soak: {fault}");
            }
            if faults.is_empty() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(failure) => {
            eprintln!("soak: {failure}");
            ExitCode::FAILURE
        }
    }
}
