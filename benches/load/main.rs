//! Load through the real daemon, TLS upstream: messages a second, CPU a message, frames a TLS record, memory, latency; and
//! the same through what else there is. `--help` tells how.
//!
//! The devices and the hub are written on bare sockets with frames encoded beforehand, so that they stay well below a
//! router's cost. Every measurement starts a router of its own, and checks that no message was lost, doubled or left
//! unsettled.

// A load generator is all clocks and threads; the bans on them are for the daemon's code.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod alarm;
mod contender;
mod device;
mod fleet;
mod floor;
mod pinned;
mod report;
#[path = "../rig/mod.rs"]
mod rig;
mod rows;

use std::process::ExitCode;
use std::time::Duration;

use contender::Contender;
use report::Series;
use rig::Failure;
use rows::Row;

const HELP: &str = "\
cargo bench --bench load -- [OPTIONS] [WORD]

Measures the release build of the daemon, beside stunnel and HAProxy if they are
installed, and beside the least that a router could do; prints a table of
figures and one of ratios.

WORD              only rows whose name has it
--json            the figures as JSON
--smoke           a moment each row, fewer devices, others than the daemon in few
                  rows: does everything work
--repeat N        rounds of each row, of which the median counts (3)
--seconds N       how long a row sends in each round (2)
--alone           the daemon only
--direct          in every row also devices to the hub without a router: what
                  the devices and the hub themselves can do
--peer NAME=CMD   also another router, as often as you like. CMD is for sh, which
                  is to stay in the foreground and take devices in plain TCP at
                  127.0.0.1:{listen}, and the hub by TLS at localhost:{hub},
                  whose certificate is in the file {ca}
LINKROUTERD_BINARY=FILE in the environment measures that build of the daemon.
";

/// Open files that a row may need on either side: sockets of idle devices, and of a wrapper's connections to the hub.
const OPEN_FILES: u64 = 16384;

/// What the command line asks for.
#[derive(Debug)]
struct Options {
    shared: rig::options::Options,
    help: bool,
    direct: bool,
    rounds: usize,
    duration: Duration,
    contenders: Vec<Contender>,
}

impl Options {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let (mut help, mut direct, mut is_alone) = (false, false, false);
        let (mut rounds, mut seconds, mut peers) = (None, None, Vec::new());
        let shared = rig::options::Options::parse(arguments, |option, rest| {
            match option {
                "--help" => help = true,
                "--direct" => direct = true,
                "--alone" => is_alone = true,
                "--repeat" => rounds = Some(number(option, rest)?),
                "--seconds" => seconds = Some(number(option, rest)?),
                "--peer" => {
                    let peer = rest.next().and_then(|peer| Contender::parse(&peer));
                    peers.push(peer.ok_or_else(|| Failure::new("--peer needs NAME=CMD"))?);
                }
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let mut contenders = vec![Contender::Linkrouterd];
        if !is_alone {
            contenders.extend(Contender::installed());
            contenders.push(Contender::Floor);
        }
        contenders.extend(peers);
        let (usual_rounds, usual_time) = if shared.smoke { (1, 0.2) } else { (3, 2.0) };
        Ok(Self {
            shared,
            help,
            direct,
            rounds: rounds.map_or(usual_rounds, |rounds: f64| rounds.max(1.0) as usize),
            duration: Duration::try_from_secs_f64(seconds.unwrap_or(usual_time))?,
            contenders,
        })
    }

    /// Who is measured in a row.
    fn contenders_of(&self, row: &Row) -> Vec<Contender> {
        let mut contenders = self.contenders.clone();
        contenders.retain(|contender| match contender {
            Contender::Linkrouterd => true,
            Contender::Floor => row.has_floor(),
            _ => !self.shared.smoke || row.is_small(),
        });
        if self.direct || row.needs_direct() {
            contenders.push(Contender::Direct);
        }
        contenders
    }
}

fn number(option: &str, rest: &mut dyn Iterator<Item = String>) -> Result<f64, Failure> {
    rest.next()
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| Failure::new(format!("{option} needs a number")))
}

fn main() -> ExitCode {
    match rig::allow_open_files(OPEN_FILES).and_then(|()| Options::parse(std::env::args().skip(1))) {
        Ok(options) if options.help => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
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
    let rows = rows::all(options.shared.smoke);
    for row in rows.iter().filter(|row| options.shared.wants(&row.name)) {
        let (series, failures) = measure(row, options);
        measured.extend(series);
        failed += failures;
    }
    if options.shared.json {
        print!("{}", report::json(&measured));
    } else {
        print!(
            "{}\n{}\n{}",
            report::table(&measured),
            report::ratios(&measured),
            report::added(&measured)
        );
    }
    if failed == 0 && !measured.is_empty() {
        ExitCode::SUCCESS
    } else {
        eprintln!("{failed} measurements failed");
        ExitCode::FAILURE
    }
}

/// A row with all its contenders, in rounds. Each round begins with another of them, so that what the machine does beside
/// is nobody's advantage.
fn measure(row: &Row, options: &Options) -> (Vec<Series>, usize) {
    let contenders = options.contenders_of(row);
    let mut all: Vec<Series> = contenders
        .iter()
        .map(|contender| Series {
            row: row.name.clone(),
            contender: contender.to_string(),
            rounds: Vec::new(),
        })
        .collect();
    let mut failed = 0;
    for round in 0..options.rounds {
        for place in 0..contenders.len() {
            let which = (round + place) % contenders.len();
            // The whole takes minutes.
            eprintln!("{}, {}, round {}", row.name, contenders[which], round + 1);
            match row.run(&contenders[which], options.duration) {
                Ok(figures) => all[which].rounds.push(figures),
                Err(failure) => {
                    failed += 1;
                    eprintln!("{}, {}: {failure}", row.name, contenders[which]);
                }
            }
        }
    }
    all.retain(|series| !series.rounds.is_empty());
    (all, failed)
}
