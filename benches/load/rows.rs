//! The rows of the table, and how one is measured.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Options;
use super::device::{self, DeviceWork, Moments, Tally};
use super::rig::Failure;
use super::rig::daemon::{self, Daemon};
use super::rig::hub::{Hub, HubWork, Phase};

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    devices: usize,
    size: usize,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Up,
    /// Every device sends this often.
    Paced(Duration),
    Down,
    PingPong,
    Idle,
}

/// What a row came to. Absent: does not apply, or not measured without the daemon.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) name: String,
    pub(crate) messages: u64,
    pub(crate) messages_per_second: Option<f64>,
    pub(crate) mebibytes_per_second: Option<f64>,
    pub(crate) cpu_micros_per_message: Option<f64>,
    pub(crate) cpu_share: Option<f64>,
    pub(crate) frames_per_record: Option<f64>,
    pub(crate) peak_memory_kib: Option<u64>,
    pub(crate) memory_per_device_kib: Option<f64>,
    pub(crate) p50: Option<Duration>,
    pub(crate) p99: Option<Duration>,
}

/// The rows that the options ask for.
pub(crate) fn all(options: &Options) -> Vec<Row> {
    let mut rows = Vec::new();
    for devices in [1, 100] {
        for (size, label) in [(256, "256 B"), (4096, "4 KiB"), (65536, "64 KiB")] {
            let plural = if devices == 1 { "device" } else { "devices" };
            rows.push(Row {
                name: format!("{devices} {plural} up, {label}"),
                devices,
                size,
                kind: Kind::Up,
            });
        }
    }
    rows.push(Row {
        name: "1000 devices up, 5 msg/s each, 256 B".into(),
        devices: 1000,
        size: 256,
        kind: Kind::Paced(Duration::from_millis(200)),
    });
    rows.push(Row {
        name: "100 devices down, 256 B".into(),
        devices: 100,
        size: 256,
        kind: Kind::Down,
    });
    rows.push(Row {
        name: "1 device ping-pong, 256 B".into(),
        devices: 1,
        size: 256,
        kind: Kind::PingPong,
    });
    rows.push(Row {
        name: "1000 devices idle".into(),
        devices: 1000,
        size: 0,
        kind: Kind::Idle,
    });
    rows.retain(|row| options.only.as_ref().is_none_or(|word| row.name.contains(word)));
    rows
}

impl Row {
    /// Starts a hub and a daemon, lets the devices work, and checks what came of it.
    pub(crate) fn run(&self, options: &Options) -> Result<Measured, Failure> {
        let duration = options.duration();
        let (device_work, hub_work) = match self.kind {
            Kind::Up => (
                DeviceWork::Send {
                    size: self.size,
                    duration,
                },
                HubWork::Receive,
            ),
            Kind::Paced(every) => (
                DeviceWork::Paced {
                    size: self.size,
                    every,
                    duration,
                },
                HubWork::Receive,
            ),
            Kind::Down => (DeviceWork::Receive, HubWork::Send(self.size)),
            Kind::PingPong => (
                DeviceWork::PingPong {
                    size: self.size,
                    duration,
                },
                HubWork::Receive,
            ),
            Kind::Idle => (DeviceWork::Idle, HubWork::Receive),
        };
        let (hub, ca) = Hub::start(hub_work, !options.direct)?;
        let daemon = if options.direct {
            None
        } else {
            Some(Daemon::start(|ca| daemon::plain_hub(hub.port, ca), &ca)?)
        };
        let port = daemon.as_ref().map_or(hub.port, |daemon| daemon.port);
        let mut probe = Probe::new(&hub, daemon.as_ref(), duration)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let tally = runtime.block_on(device::run_all(port, self.devices, device_work, &mut probe));
        let faults = hub.counters.faults();
        if !faults.is_empty() {
            return Err(Failure::new(faults.join("; ")));
        }
        let tally = tally?;
        self.check(&hub, &tally)?;
        let measured = self.sum_up(&probe, tally)?;
        if let Some(daemon) = daemon {
            daemon.stop()?;
        }
        Ok(measured)
    }

    /// Nothing lost, nothing doubled, everything settled.
    fn check(&self, hub: &Hub, tally: &Tally) -> Result<(), Failure> {
        let counters = &hub.counters;
        let taken = counters.deliveries.load(Ordering::Relaxed);
        let sent = counters.sent.load(Ordering::Relaxed);
        match self.kind {
            Kind::Up | Kind::Paced(_) | Kind::PingPong => {
                let bytes = counters.payload_bytes.load(Ordering::Relaxed);
                // Each message is one data section: 8 bytes of head and the content.
                let expected = tally.sent * (self.size as u64 + 8);
                if tally.sent == 0 || taken != tally.sent || tally.settled != tally.sent || bytes != expected
                {
                    return Err(Failure::new(format!(
                        "{} sent, {taken} taken by the hub, {} settled; {bytes} bytes, not {expected}",
                        tally.sent, tally.settled
                    )));
                }
            }
            Kind::Down => {
                if sent == 0 || tally.received != sent {
                    return Err(Failure::new(format!(
                        "{sent} sent by the hub, {} received",
                        tally.received
                    )));
                }
            }
            Kind::Idle => {}
        }
        Ok(())
    }

    fn sum_up(&self, probe: &Probe<'_>, mut tally: Tally) -> Result<Measured, Failure> {
        let (Some(begin), Some(end)) = (&probe.begin, &probe.end) else {
            return Err(Failure::new("the row was not measured"));
        };
        let mut measured = Measured {
            name: self.name.clone(),
            ..Measured::default()
        };
        measured.peak_memory_kib = end.peak_memory_kib;
        if self.kind == Kind::Idle {
            if let (Some(before), Some(after)) = (probe.memory_before_kib, end.memory_kib) {
                measured.memory_per_device_kib =
                    Some(after.saturating_sub(before) as f64 / self.devices as f64);
            }
            return Ok(measured);
        }
        let messages = if self.kind == Kind::Down {
            tally.received
        } else {
            tally.settled
        };
        let elapsed = tally
            .last
            .map_or(end.at, |last| last)
            .duration_since(begin.at)
            .as_secs_f64();
        measured.messages = messages;
        measured.messages_per_second = Some(messages as f64 / elapsed);
        measured.mebibytes_per_second =
            Some((messages * self.size as u64) as f64 / elapsed / f64::from(1 << 20));
        if let (Some(before), Some(after)) = (begin.cpu, end.cpu) {
            let cpu = after.saturating_sub(before).as_secs_f64();
            measured.cpu_micros_per_message = Some(cpu * 1e6 / messages as f64);
            measured.cpu_share = Some(cpu / end.at.duration_since(begin.at).as_secs_f64());
        }
        let records = end.records - begin.records;
        if probe.daemon.is_some() && self.kind != Kind::Down && records > 0 {
            measured.frames_per_record = Some((end.frames - begin.frames) as f64 / records as f64);
        }
        if self.kind == Kind::PingPong {
            tally.round_trips.sort_unstable();
            measured.p50 = percentile(&tally.round_trips, 50);
            measured.p99 = percentile(&tally.round_trips, 99);
        }
        Ok(measured)
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> Option<Duration> {
    sorted
        .get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)))
        .copied()
}

/// Reads the hub's counters and the daemon's at the row's moments.
struct Probe<'a> {
    hub: &'a Hub,
    daemon: Option<&'a Daemon>,
    duration: Duration,
    memory_before_kib: Option<u64>,
    begin: Option<Reading>,
    end: Option<Reading>,
}

struct Reading {
    at: Instant,
    cpu: Option<Duration>,
    frames: u64,
    records: u64,
    memory_kib: Option<u64>,
    peak_memory_kib: Option<u64>,
}

impl<'a> Probe<'a> {
    fn new(hub: &'a Hub, daemon: Option<&'a Daemon>, duration: Duration) -> Result<Self, Failure> {
        let memory_before_kib = daemon.map(|daemon| daemon.memory("VmRSS")).transpose()?;
        Ok(Self {
            hub,
            daemon,
            duration,
            memory_before_kib,
            begin: None,
            end: None,
        })
    }

    fn read(&self) -> Result<Reading, Failure> {
        Ok(Reading {
            at: Instant::now(),
            cpu: self.daemon.map(Daemon::cpu).transpose()?,
            frames: self.hub.counters.frames.load(Ordering::Relaxed),
            records: self.hub.counters.records.load(Ordering::Relaxed),
            memory_kib: self.daemon.map(|daemon| daemon.memory("VmRSS")).transpose()?,
            peak_memory_kib: self.daemon.map(|daemon| daemon.memory("VmHWM")).transpose()?,
        })
    }
}

impl Moments for Probe<'_> {
    fn attached(&mut self) -> Result<(), Failure> {
        self.begin = Some(self.read()?);
        self.hub
            .enter(Phase::SendingUntil(Instant::now() + self.duration));
        Ok(())
    }

    fn done(&mut self) -> Result<(), Failure> {
        self.end = Some(self.read()?);
        Ok(())
    }
}
