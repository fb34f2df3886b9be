//! The parts of the table that need one daemon each.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use super::fleet::{Group, Shape, Site};
use super::rig::figures::Figure;
use super::rig::visitor::Reach;
use super::rig::{Failure, kernel, wire};
use super::{Options, churn};

/// One part of the table.
pub(crate) struct Part {
    pub(crate) name: &'static str,
    pub(crate) measure: fn(&Options) -> Result<Measured, Failure>,
}

/// What a part came to.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) figures: Vec<Figure>,
    /// What must not be so.
    pub(crate) faults: Vec<String>,
}

pub(crate) const PARTS: [Part; 4] = [
    Part {
        name: "start",
        measure: start,
    },
    Part {
        name: "idle",
        measure: idle,
    },
    Part {
        name: "steady",
        measure: steady,
    },
    Part {
        name: "churn",
        measure: churn::measure,
    },
];

/// The goals of a gateway for a small board.
const LISTENING: f64 = 5.0;
const START_KIB: f64 = 6.0 * 1024.0;
const DEVICE_KIB: f64 = 4.0;

/// From nothing to a daemon that listens, and what that takes.
fn start(options: &Options) -> Result<Measured, Failure> {
    let starts = if options.smoke { 5 } else { 25 };
    let (mut listening, mut answering) = (Vec::new(), Vec::new());
    let mut figures = Vec::new();
    for number in 0..starts {
        let site = Site::start(Shape::IotHub)?;
        let daemon = &site.daemon;
        listening.push(daemon.listening.duration_since(daemon.begun));
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, daemon.port))?;
        stream.write_all(&wire::AMQP_HEADER)?;
        stream.read_exact(&mut [0; 8])?;
        answering.push(daemon.begun.elapsed());
        if number == 0 {
            figures.extend(memory_figures(
                "at start",
                kernel::memory(daemon)?,
                Some(START_KIB),
            ));
            let _device = site.connect(Group::of_its_own(0), 1, Reach::Token)?;
            let memory = kernel::memory(daemon)?;
            figures.extend(memory_figures("with TLS to the hub and one device", memory, None));
        }
        drop(stream);
        site.stop()?;
    }
    figures.push(Figure::new("start to listening, median", median(&mut listening), "ms").at_most(LISTENING));
    figures.push(Figure::new(
        "start to the first answer to a device, median",
        median(&mut answering),
        "ms",
    ));
    Ok(Measured {
        figures,
        ..Measured::default()
    })
}

fn memory_figures(when: &str, memory: kernel::Memory, goal: Option<f64>) -> [Figure; 3] {
    let figure = |what: &str, kib: u64| Figure::new(format!("{what} {when}"), kib as f64, "KiB");
    let resident = figure("RSS", memory.resident);
    [
        Figure { goal, ..resident },
        figure("of it, not from the program's file,", memory.anonymous),
        figure("PSS", memory.proportional),
    ]
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times
        .get(times.len() / 2)
        .map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}

/// What a device costs that only is there, beside the first few of its kind.
fn idle(options: &Options) -> Result<Measured, Failure> {
    const FIRST: usize = 20;
    let numbers: &[usize] = if options.smoke { &[200] } else { &[1000, 5000] };
    let kinds = [
        ("a connection", Shape::IotHub, Reach::Connection, None),
        (
            "a connection with a link",
            Shape::Plain,
            Reach::Link,
            Some(DEVICE_KIB),
        ),
        (
            "a connection with a link, $cbs links and a token",
            Shape::IotHub,
            Reach::Token,
            None,
        ),
    ];
    let mut figures = Vec::new();
    for (what, shape, reach, goal) in kinds {
        let site = Site::start(shape)?;
        let mut devices = site.connect(Group::of_its_own(0), FIRST, reach)?;
        let before = kernel::memory(&site.daemon)?.resident;
        for (round, number) in numbers.iter().enumerate() {
            devices.extend(site.connect(
                Group::of_its_own(1 + round),
                number + FIRST - devices.len(),
                reach,
            )?);
            let growth = kernel::memory(&site.daemon)?.resident.saturating_sub(before);
            let figure = Figure::new(
                format!("RSS of {what}, {number} devices"),
                growth as f64 / *number as f64,
                "KiB",
            );
            figures.push(Figure { goal, ..figure });
        }
        drop(devices);
        site.stop()?;
    }
    Ok(Measured {
        figures,
        ..Measured::default()
    })
}

/// What a daemon does that has nothing new to do: nothing may be stored or logged.
fn steady(options: &Options) -> Result<Measured, Failure> {
    let (count, period) = if options.smoke {
        (100, Duration::from_secs(1))
    } else {
        (900, Duration::from_secs(10))
    };
    let site = Site::start(Shape::IotHub)?;
    let mut measured = Measured::default();
    let wait = || {
        std::thread::sleep(period);
        Ok(())
    };
    let nobody = Stretch::over(&site, "no device", wait)?;
    let mut devices = site.connect(Group::of_its_own(0), count, Reach::Token)?;
    let idle = Stretch::over(&site, "idle devices", wait)?;
    let mut messages = 0;
    let busy = Stretch::over(&site, "devices that send", || {
        let deadline = Instant::now() + period;
        site.runtime.block_on(async {
            while Instant::now() < deadline {
                for device in &mut devices {
                    device.send(&[b'x'; 256]).await?;
                    messages += 1;
                }
            }
            Ok(())
        })
    })?;
    for (stretch, label) in [
        (&nobody, "no device".to_owned()),
        (&idle, format!("{count} idle devices")),
    ] {
        measured.figures.push(Figure::new(
            format!("wake-ups with {label}"),
            stretch.waits as f64 / stretch.time.as_secs_f64(),
            "/s",
        ));
    }
    let total = |of: fn(&Stretch) -> u64| [&nobody, &idle, &busy].into_iter().map(of).sum::<u64>() as f64;
    let label = format!("in {} s and {messages} messages", 3 * period.as_secs());
    measured.figures.extend([
        Figure::new(format!("stored {label}"), total(|it| it.stored), "B").at_most(0.0),
        Figure::new(format!("lines logged {label}"), total(|it| it.lines), "").at_most(0.0),
        Figure::new(
            "files open for writing",
            kernel::writable_files(&site.daemon)?.len() as f64,
            "",
        )
        .at_most(0.0),
    ]);
    for stretch in [&nobody, &idle, &busy] {
        if stretch.stored + stretch.lines > 0 {
            let Stretch {
                name, stored, lines, ..
            } = stretch;
            measured
                .faults
                .push(format!("{name}: {stored} bytes stored, {lines} lines logged"));
        }
    }
    let writable = kernel::writable_files(&site.daemon)?;
    if !writable.is_empty() {
        measured
            .faults
            .push(format!("open for writing: {}", writable.join(", ")));
    }
    drop(devices);
    site.stop()?;
    Ok(measured)
}

/// What the daemon did during a time.
struct Stretch {
    name: &'static str,
    time: Duration,
    stored: u64,
    waits: u64,
    lines: u64,
}

impl Stretch {
    fn over(
        site: &Site,
        name: &'static str,
        work: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<Self, Failure> {
        let logged = site.daemon.logged()?;
        let (begin, before) = (Instant::now(), kernel::activity(&site.daemon)?);
        work()?;
        let after = kernel::activity(&site.daemon)?;
        Ok(Self {
            name,
            time: begin.elapsed(),
            stored: after.stored - before.stored,
            waits: after.waits - before.waits,
            lines: site.daemon.logged()?.lines - logged.lines,
        })
    }
}
