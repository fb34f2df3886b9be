//! The attacks, one after the other, each on a daemon of its own.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::crowd::{self, Toll};
use super::others::{Latencies, Others, Period};
use super::rig::Failure;
use super::rig::daemon::{self, Daemon};
use super::rig::figures::Figure;
use super::rig::hub::{Hub, HubWork, Phase, Transport};
use super::rig::options::Options;

/// Messages that a hub pushes.
const PUSHED: usize = 16 * 1024;
/// What a daemon has with a TLS connection and a few devices, and some for its allocator.
const PROCESS: f64 = 12.0;
/// The budgets of `endpoint::limits`, in MiB: all parked, all held, and what waits for one device that does not read, with
/// what its buffer has grown by.
const PARKED: f64 = 24.0;
const HELD: f64 = 32.0;
const OUTBOX: f64 = 0.25;
/// What the daemon reads of a device at once.
const READ: f64 = 0.0625;
/// A connection that is not open.
const CONNECTION: f64 = 0.004;

/// How long each part of an attack lasts.
struct Times {
    undisturbed: Duration,
    onset: Duration,
    attacked: Duration,
    /// `initialHandshakeTimeoutSeconds`
    handshake: u32,
}

const FULL: Times = Times {
    undisturbed: Duration::from_secs(20),
    onset: Duration::from_secs(10),
    attacked: Duration::from_secs(20),
    handshake: 10,
};
const SMOKE: Times = Times {
    undisturbed: Duration::from_secs(1),
    onset: Duration::from_secs(1),
    attacked: Duration::from_secs(2),
    handshake: 1,
};

const SILENT: usize = 1000;
const CONNECTING: usize = 20;
const CONNECTS_A_MINUTE: u32 = 10_000;
const DEAF: usize = 200;
const PUSHING: usize = 100;
const PUSHED_IN_ALL: u64 = 1 << 30;

/// One attack.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    kind: Kind,
    work: HubWork,
    /// MiB that the daemon may have resident.
    budget: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Silence,
    Connects,
    Deafness,
    Flood,
}

pub(crate) const ATTACKS: [Attack; 4] = [
    Attack {
        name: "silence",
        kind: Kind::Silence,
        work: HubWork::Receive,
        budget: PROCESS + SILENT as f64 * CONNECTION,
    },
    Attack {
        name: "connects",
        kind: Kind::Connects,
        work: HubWork::Receive,
        budget: PROCESS,
    },
    Attack {
        name: "deafness",
        kind: Kind::Deafness,
        work: HubWork::Send(PUSHED),
        budget: PROCESS + HELD + DEAF as f64 * OUTBOX,
    },
    Attack {
        name: "flood",
        kind: Kind::Flood,
        work: HubWork::Receive,
        budget: PROCESS + PARKED + PUSHING as f64 * READ,
    },
];

impl Kind {
    fn crowd(self) -> String {
        match self {
            Kind::Silence => format!("{SILENT} peers that say nothing or a byte now and then"),
            Kind::Connects => format!("{CONNECTS_A_MINUTE} connections a minute"),
            Kind::Deafness => format!("{DEAF} devices that never read what a hub pushes"),
            Kind::Flood => format!("{PUSHING} devices that push 1 GiB to a hub that gives no credit"),
        }
    }

    /// Starts the attackers; those that come again and again not all at once.
    fn begin(self, port: u16, within: Duration, toll: &Arc<Toll>) -> JoinSet<Result<(), Failure>> {
        let mut crowd = JoinSet::new();
        match self {
            Kind::Silence => {
                for number in 0..SILENT {
                    let begin = within * number as u32 / SILENT as u32;
                    crowd.spawn(crowd::waste_time(port, number, begin, Arc::clone(toll)));
                }
            }
            Kind::Connects => {
                let every = Duration::from_secs(60) * CONNECTING as u32 / CONNECTS_A_MINUTE;
                for number in 0..CONNECTING {
                    let begin = every * number as u32 / CONNECTING as u32;
                    crowd.spawn(crowd::connect_and_go(
                        port,
                        number,
                        (begin, every),
                        Arc::clone(toll),
                    ));
                }
            }
            Kind::Deafness => {
                for number in 0..DEAF {
                    crowd.spawn(crowd::never_read(port, number, Arc::clone(toll)));
                }
            }
            Kind::Flood => {
                let share = PUSHED_IN_ALL / PUSHING as u64;
                for number in 0..PUSHING {
                    crowd.spawn(crowd::push(port, number, share, Arc::clone(toll)));
                }
            }
        }
        crowd
    }
}

impl Attack {
    pub(crate) fn run(&self, options: &Options, faults: &mut Vec<String>) -> Result<Vec<Figure>, Failure> {
        let times = if options.smoke { SMOKE } else { FULL };
        let attacked = times.onset + times.attacked;
        let (hub, ca) = Hub::start(self.work, Transport::Tls, 1)?;
        let daemon = Daemon::start(|ca| configuration(hub.port, ca, times.handshake), &ca)?;
        let others = Others::start(daemon.port)?;
        others.enter(Period::Undisturbed);
        std::thread::sleep(times.undisturbed);
        let lines = daemon.logged()?.lines;
        let toll = Arc::new(Toll::default());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        others.enter(Period::Onset);
        hub.enter(Phase::SendingUntil(Instant::now() + attacked));
        let failed = runtime.block_on(async {
            let mut crowd = self.kind.begin(daemon.port, times.onset, &toll);
            tokio::time::sleep(times.onset).await;
            others.enter(Period::Attacked);
            tokio::time::sleep(times.attacked).await;
            let mut failed = 0;
            // Those that were closed found out, and have nothing more to do.
            while crowd.try_join_next().is_some() {
                failed += 1;
            }
            failed
        });
        drop(runtime);
        let latencies = others.finish()?;
        let peak = daemon.memory("VmHWM")? as f64 / 1024.0;
        let lines = daemon.logged()?.lines - lines;
        let sent = hub.counters.sent.load(std::sync::atomic::Ordering::Relaxed);
        faults.extend(
            hub.counters
                .faults()
                .into_iter()
                .map(|fault| format!("{}: {fault}", self.name)),
        );
        daemon.stop()?;
        if peak > self.budget {
            faults.push(format!("{}: {peak:.1} MiB, not {:.1}", self.name, self.budget));
        }
        let dropped = Toll::of(&toll.dropped);
        if self.kind == Kind::Silence && dropped < SILENT as f64 {
            faults.push(format!("silence: only {dropped} of {SILENT} were dropped"));
        }
        if self.kind == Kind::Connects && failed > 0 {
            faults.push(format!("connects: {failed} of {CONNECTING} were not served"));
        }
        let mut figures = self.latencies(&latencies);
        figures.push(Figure::new(format!("{}: peak RSS", self.name), peak, "MiB").at_most(self.budget));
        let figure =
            |what: &str, value: f64, unit| Figure::new(format!("{}: {what}", self.name), value, unit);
        match self.kind {
            Kind::Silence => figures.push(figure("dropped at the deadline", dropped, "")),
            Kind::Connects => {
                let rate = Toll::of(&toll.connections) * 60.0 / attacked.as_secs_f64();
                figures.push(figure("connections", rate, "/min"));
            }
            Kind::Deafness => figures.push(figure(
                "pushed by the hub",
                sent as f64 * PUSHED as f64 / 1024.0 / 1024.0,
                "MiB",
            )),
            Kind::Flood => figures.push(figure(
                "taken of what is pushed",
                Toll::of(&toll.bytes) / 1024.0 / 1024.0,
                "MiB",
            )),
        }
        figures.push(figure(
            "lines logged a second",
            lines as f64 / attacked.as_secs_f64(),
            "",
        ));
        Ok(figures)
    }

    fn latencies(&self, latencies: &Latencies) -> Vec<Figure> {
        let name = self.name;
        let figure = |what: &str, value: f64, unit| Figure::new(format!("{name}: {what}"), value, unit);
        let Latencies {
            undisturbed,
            onset,
            attacked,
        } = latencies;
        let (before, during) = (undisturbed.usual(99), attacked.usual(99));
        vec![
            figure(
                &format!("{}; p99 of others before", self.kind.crowd()),
                undisturbed.percentile(99),
                "ms",
            ),
            figure("p99 of others at its onset", onset.percentile(99), "ms"),
            figure("p50 of others", attacked.percentile(50), "ms"),
            figure("p99 of others", attacked.percentile(99), "ms"),
            figure("p99 of a usual second before", before, "ms"),
            figure("p99 of a usual second", during, "ms"),
            figure("that, by what it was before", during / before, "").at_most(2.0),
        ]
    }
}

fn configuration(hub_port: u16, ca: &Path, handshake: u32) -> String {
    let text = daemon::plain_hub(hub_port, ca).replacen(
        "authenticatePeer: no",
        &format!("authenticatePeer: no\n    initialHandshakeTimeoutSeconds: {handshake}"),
        1,
    );
    if text.contains("devicesPerSecond") {
        return text;
    }
    text.replacen("role: on-demand", "role: on-demand\n    devicesPerSecond: 0", 1)
}
