//! Devices that come and go: what they leave behind.

use std::time::{Duration, Instant};

use super::Options;
use super::fleet::{self, Group, Shape, Site};
use super::rig::figures::Figure;
use super::rig::visitor::Reach;
use super::rig::{Failure, kernel, trend};
use super::rows::Measured;

/// KiB that a device's visit may leave behind, by the trend of the second half: nothing that is kept of it is so small.
const GROWTH: f64 = 0.016;
/// The same for few visits in a short time, while timers and tables still fill: less than a connection.
const GROWTH_AT_FIRST: f64 = 1.0;
const PATIENCE: Duration = Duration::from_secs(30);

/// What was there after a cycle.
struct After {
    resident: u64,
    files: usize,
}

/// Who comes in a cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Visitors {
    /// Devices, link names and addresses that nobody has seen before.
    New,
    /// Devices that have been there before, each with its token. A hub keeps the tokens of devices that have gone, so new
    /// ones would make one connection to it after the other, until those have not been used for a while.
    Again,
}

/// Cycles of devices that come, send a message and leave, one way or the other.
pub(crate) fn measure(options: &Options) -> Result<Measured, Failure> {
    // At most as many with tokens as one connection has room for; and often, for something may be kept that is small.
    let (bound, new, again) = if options.smoke {
        (GROWTH_AT_FIRST, (10, 100), (10, 100))
    } else {
        (GROWTH, (20, 1000), (60, 990))
    };
    let mut measured = Measured::default();
    for (visitors, (cycles, count)) in [(Visitors::New, new), (Visitors::Again, again)] {
        repeat(cycles, count, visitors, bound, &mut measured)?;
    }
    Ok(measured)
}

fn repeat(
    cycles: usize,
    count: usize,
    visitors: Visitors,
    bound: f64,
    measured: &mut Measured,
) -> Result<(), Failure> {
    let (shape, reach, who) = match visitors {
        Visitors::New => (Shape::Plain, Reach::Link, format!("{count} new devices")),
        Visitors::Again => (
            Shape::IotHub,
            Reach::Token,
            format!("{count} devices with tokens"),
        ),
    };
    let site = Site::start(shape)?;
    // One who stays until the connection to the hub is there; its own socket does not count.
    let first = site.connect(Group::of_its_own(cycles), 1, reach)?;
    let files = kernel::open_files(&site.daemon)? - 1;
    site.runtime.block_on(fleet::finish(first))?;
    let before = site.daemon.logged()?;
    let mut after = Vec::new();
    for cycle in 0..cycles {
        let group = Group {
            number: cycle,
            fleet: if visitors == Visitors::New { cycle } else { 0 },
        };
        let devices = site.connect(group, count, reach)?;
        site.runtime.block_on(fleet::finish(devices))?;
        after.push(when_gone(&site, files)?);
    }
    let logged = site.daemon.logged()?;
    site.stop()?;

    let visits = (cycles * count) as f64;
    let series = |of: fn(&After) -> f64| after.iter().map(of).collect::<Vec<f64>>();
    let resident = series(|it| it.resident as f64);
    let last = &resident[cycles / 2..];
    let growth = trend::slope(last);
    if growth > bound * count as f64 {
        measured.faults.push(format!(
            "{who}: RSS grows by {growth:.1} KiB a cycle: {resident:?}"
        ));
    }
    measured.figures.extend([
        Figure {
            values: resident.clone(),
            ..Figure::new(format!("RSS after each cycle of {who}"), 0.0, "KiB")
        },
        Figure::new(
            format!("its growth a cycle, last {} of {cycles}", last.len()),
            growth,
            "KiB",
        ),
        Figure {
            values: series(|it| it.files as f64),
            ..Figure::new(
                format!("open files after each cycle, {files} without devices"),
                0.0,
                "",
            )
        },
        Figure::new(
            "lines logged for a device's visit",
            (logged.lines - before.lines) as f64 / visits,
            "",
        ),
        Figure::new(
            "bytes logged for a device's visit",
            (logged.bytes - before.bytes) as f64 / visits,
            "B",
        ),
    ]);
    Ok(())
}

/// Waits until the daemon has let go of all devices' sockets.
fn when_gone(site: &Site, files: usize) -> Result<After, Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let open = kernel::open_files(&site.daemon)?;
        if open <= files {
            return Ok(After {
                resident: kernel::memory(&site.daemon)?.resident,
                files: open,
            });
        }
        if Instant::now() > deadline {
            return Err(Failure::new(format!(
                "{open} files open with all devices gone, not {files}"
            )));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
