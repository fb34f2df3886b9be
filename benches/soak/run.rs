//! The soak itself: who is there, when the hub goes, what is measured, and what it comes to.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::Plan;
use super::fleet;
use super::hub::{Departure, Hub, Restart};
use super::ledger::{Sum, Way};
use super::rig::daemon::{self, Daemon};
use super::rig::figures::Figure;
use super::rig::{Failure, kernel, trend};
use super::site::Site;

/// Devices that stay.
const STAYING: usize = 100;
/// Devices that come and go, at one time.
const VISITORS: usize = 20;
/// Identities that each visitor has, in turn.
const IDENTITIES: usize = 15;
const RESTARTS: [Restart; 4] = [
    Restart {
        departure: Departure::Closing,
        away: Duration::from_secs(1),
    },
    Restart {
        departure: Departure::Ending,
        away: Duration::from_secs(2),
    },
    Restart {
        departure: Departure::Resetting,
        away: Duration::from_millis(500),
    },
    Restart {
        departure: Departure::Ending,
        away: Duration::ZERO,
    },
];
/// How long what is under way may take at the end.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is seen of the daemon before each restart of the hub.
#[derive(Debug, Default)]
struct Samples {
    /// The highest since the last restart, in KiB.
    resident: Vec<f64>,
    files: Vec<f64>,
    /// Until the last device was served after a restart, in ms.
    served: Vec<f64>,
}

pub(crate) fn soak(plan: Plan) -> Result<(Vec<Figure>, Vec<String>), Failure> {
    let site = Arc::new(Site::new(STAYING + VISITORS * IDENTITIES, STAYING));
    let (hub, ca) = Hub::start(&site)?;
    let daemon = Daemon::start(|ca: &Path| daemon::iot_hub(hub.port, ca), &ca)?;
    let files = kernel::open_files(&daemon)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut samples = Samples::default();
    let begin = Instant::now();
    runtime.block_on(async {
        let mut devices = JoinSet::new();
        for number in 0..STAYING {
            devices.spawn(fleet::stay(daemon.port, number, Arc::clone(&site)));
        }
        for visitor in 0..VISITORS {
            let first = STAYING + visitor * IDENTITIES;
            let identities = (first..first + IDENTITIES).cycle();
            devices.spawn(fleet::visit(daemon.port, identities, Arc::clone(&site)));
        }
        watch(plan, &site, &hub, &daemon, &mut devices, &mut samples).await?;
        site.finish();
        let ended = tokio::time::timeout(PATIENCE, async {
            while let Some(ended) = devices.join_next().await {
                ended??;
            }
            Ok::<(), Failure>(())
        });
        ended
            .await
            .map_err(|_| Failure::new(format!("messages were not settled within {PATIENCE:?}")))?
    })?;
    let lasted = begin.elapsed();
    let cpu = daemon.cpu()?;
    let lines = daemon.logged()?.lines;
    let left = left_behind(&daemon, files)?;
    let peak = daemon.memory("VmHWM")?;
    daemon.stop()?;
    drop(hub);
    let mut faults = site.faults();
    if left > 0 {
        faults.push(format!("{left} files more are open than at the beginning"));
    }
    Ok((
        figures(plan, &site, &samples, (lasted, cpu, lines, peak), &mut faults),
        faults,
    ))
}

/// How many files are open, all devices gone, beside those of the beginning and the connection to the hub.
fn left_behind(daemon: &Daemon, files: usize) -> Result<usize, Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = kernel::open_files(daemon)?.saturating_sub(files + 1);
        if left == 0 || Instant::now() > deadline {
            return Ok(left);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Restarts the hub at its times; before each, looks at the daemon and at who has been served.
async fn watch(
    plan: Plan,
    site: &Site,
    hub: &Hub,
    daemon: &Daemon,
    devices: &mut JoinSet<Result<(), Failure>>,
    samples: &mut Samples,
) -> Result<(), Failure> {
    let begin = Instant::now();
    let mut restarts = RESTARTS.into_iter().cycle();
    let mut next = begin + plan.restart_every;
    let mut highest = 0;
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    while next <= begin + plan.duration {
        tokio::select! {
            _ = seconds.tick() => highest = highest.max(daemon.memory("VmRSS")?),
            Some(ended) = devices.join_next() => {
                ended??;
                return Err(Failure::new("a device left before its time"));
            }
            () = tokio::time::sleep_until(next.into()) => {
                let phase = site.outages.now();
                let (missing, slowest) = site.served.judge(phase);
                if missing > 0 || !phase.is_up() {
                    site.fault(format!("{missing} devices not served {:?} after the hub came", site.outages.lasted()));
                }
                samples.served.push(slowest.as_secs_f64() * 1e3);
                samples.resident.push(highest.max(daemon.memory("VmRSS")?) as f64);
                samples.files.push(kernel::open_files(daemon)? as f64);
                highest = 0;
                next += plan.restart_every;
                // The last stretch ends undisturbed.
                if next <= begin + plan.duration {
                    hub.restart(restarts.next().unwrap_or(RESTARTS[0]))?;
                }
            }
        }
    }
    Ok(())
}

fn figures(
    plan: Plan,
    site: &Site,
    samples: &Samples,
    (lasted, cpu, lines, peak): (Duration, Duration, u64, u64),
    faults: &mut Vec<String>,
) -> Vec<Figure> {
    let (up, down) = (site.ledger.sum(Way::Up), site.ledger.sum(Way::Down));
    let half = &samples.resident[samples.resident.len() / 2..];
    let a_minute = 60.0 / plan.restart_every.as_secs_f64();
    let growth = trend::slope(half) * a_minute;
    let more_files = trend::slope(&samples.files) * samples.files.len() as f64;
    let visits = site.visits.load(Ordering::Relaxed);
    let mut figures = vec![
        Figure::new("duration", lasted.as_secs_f64() / 60.0, "min"),
        Figure::new("restarts of the hub", samples.served.len() as f64 - 1.0, ""),
        Figure::new("devices that stay", STAYING as f64, ""),
        Figure::new("visits of others", visits as f64, ""),
        Figure::new(
            "of them, cut short by a restart",
            site.cut_short.load(Ordering::Relaxed) as f64,
            "",
        ),
    ];
    for (way, sum) in [("up", &up), ("down", &down)] {
        figures.extend(messages(way, sum));
    }
    figures.extend([
        Figure {
            values: samples.served[1..].to_vec(),
            ..Figure::new(
                "from the hub's return until the last device was served",
                0.0,
                "ms",
            )
        },
        Figure {
            values: samples.resident.clone(),
            ..Figure::new("highest RSS between two restarts", 0.0, "KiB")
        },
        Figure::new("its growth, second half", growth, "KiB/min").at_most(plan.growth),
        Figure {
            values: samples.files.clone(),
            ..Figure::new("open files before each restart", 0.0, "")
        },
        Figure::new("their growth over all of it", more_files, "").at_most(plan.more_files),
        Figure::new("peak RSS", peak as f64, "KiB"),
        Figure::new("CPU of the daemon", cpu.as_secs_f64(), "s"),
        Figure::new("lines logged", lines as f64, ""),
    ]);
    let missed = figures.iter().filter(|figure| figure.is_met() == Some(false));
    faults.extend(missed.map(|figure| format!("{}: {:?}", figure.name, figure.values)));
    figures
}

fn messages(way: &str, sum: &Sum) -> [Figure; 7] {
    let figure = |what: &str, count: u64| Figure::new(format!("messages {way}{what}"), count as f64, "");
    [
        figure("", sum.sent),
        figure(", accepted", sum.accepted),
        figure(", not settled when their device went", sum.sent - sum.accepted),
        figure(", accepted and lost", sum.lost).at_most(0.0),
        figure(", seen more often than sent", sum.doubled).at_most(0.0),
        figure(", in doubt and sent again", sum.repeated),
        figure(", of them seen each time", sum.seen_again),
    ]
}
