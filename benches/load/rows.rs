//! The rows of the table, and how one is measured once.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::contender::{Contender, Running};
use super::device::DeviceWork;
use super::fleet::{self, FIRST, Moments};
use super::floor;
use super::pinned::Pinned;
use super::report::Figures;
use super::rig::device::{Tally, percentile};
use super::rig::hub::{Hub, HubWork, Phase, Transport};
use super::rig::{self, Failure};

/// One line of the table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    devices: usize,
    size: usize,
    kind: Kind,
    cpus: Cpus,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Up,
    /// The same, and each message is timed.
    Fair,
    /// Every device sends this often.
    Paced(Duration),
    Down,
    PingPong,
    Idle,
    Churn,
}

/// What devices, router and hub run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cpus {
    All,
    One,
}

const SIZES: [(usize, &str); 3] = [(256, "256 B"), (4096, "4 KiB"), (65536, "64 KiB")];

/// All rows; fewer devices where there are very many, if it is only to see that everything works.
pub(crate) fn all(smoke: bool) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |name: String, devices, size, kind| {
        rows.push(Row {
            name,
            devices,
            size,
            kind,
            cpus: Cpus::All,
        });
    };
    let counted = |devices| match devices {
        1 => "1 device".to_owned(),
        _ => format!("{devices} devices"),
    };
    for devices in [1, 100] {
        for (size, label) in SIZES {
            add(
                format!("{} up, {label}", counted(devices)),
                devices,
                size,
                Kind::Up,
            );
        }
    }
    for devices in [10, if smoke { 200 } else { 1000 }] {
        add(format!("{} up, 256 B", counted(devices)), devices, 256, Kind::Up);
    }
    for devices in [1, 100] {
        for (size, label) in SIZES {
            let name = format!("{} down, {label}", counted(devices));
            add(name, devices, size, Kind::Down);
        }
    }
    add("100 devices, fair, 64 KiB".into(), 100, 65536, Kind::Fair);
    add(
        "open loop, 100 devices, 2000 msg/s, 256 B".into(),
        100,
        256,
        Kind::Paced(Duration::from_millis(50)),
    );
    let many = if smoke { 200 } else { 1000 };
    add(
        format!("open loop, {many} devices, {} msg/s, 256 B", 5 * many),
        many,
        256,
        Kind::Paced(Duration::from_millis(200)),
    );
    add("ping-pong, 256 B".into(), 1, 256, Kind::PingPong);
    add("ping-pong on one CPU, 256 B".into(), 1, 256, Kind::PingPong);
    let idle: &[usize] = if smoke { &[200] } else { &[1000, 5000] };
    for devices in idle {
        add(format!("{devices} devices idle"), *devices, 0, Kind::Idle);
    }
    add("churn, 256 B".into(), FIRST, 256, Kind::Churn);
    for row in &mut rows {
        if row.name.contains("one CPU") {
            row.cpus = Cpus::One;
        }
    }
    rows
}

impl Row {
    /// Whether the latency of the row is to be compared with that of no router at all.
    pub(crate) fn needs_direct(&self) -> bool {
        self.kind == Kind::PingPong
    }

    /// Whether it is soon done, however slow the contender is.
    pub(crate) fn is_small(&self) -> bool {
        self.devices <= FIRST && self.size <= 256
    }

    /// Whether it is known what the least is that it costs.
    pub(crate) fn has_floor(&self) -> bool {
        self.kind == Kind::Up || self.kind == Kind::PingPong
    }

    /// Starts a hub and the contender, lets the devices work, and checks what came of it.
    pub(crate) fn run(&self, contender: &Contender, duration: Duration) -> Result<Figures, Failure> {
        let _pinned = match self.cpus {
            Cpus::One => Some(Pinned::to_one_cpu()?),
            Cpus::All => None,
        };
        let size = self.size;
        match (contender, self.kind) {
            (Contender::Floor, Kind::PingPong) => return floor::round_trip(size, duration),
            (Contender::Floor, _) => return floor::up(size, duration),
            _ => {}
        }
        let (device_work, hub_work) = match self.kind {
            Kind::Up | Kind::Fair => (
                DeviceWork::Send {
                    size,
                    duration,
                    timed: self.kind == Kind::Fair,
                },
                HubWork::Receive,
            ),
            Kind::Paced(every) => (
                DeviceWork::Paced {
                    size,
                    every,
                    duration,
                    count: self.devices,
                },
                HubWork::Receive,
            ),
            Kind::Down => (DeviceWork::Receive, HubWork::Send(size)),
            Kind::PingPong => (DeviceWork::PingPong { size, duration }, HubWork::Receive),
            Kind::Idle => (DeviceWork::Idle, HubWork::Receive),
            Kind::Churn => (DeviceWork::Churn { size, duration }, HubWork::Receive),
        };
        let transport = match contender {
            Contender::Direct => Transport::Plain,
            _ => Transport::Tls,
        };
        let threads = self.threads();
        let (hub, ca) = Hub::start(hub_work, transport, threads)?;
        let running = contender.start(hub.port, &ca)?;
        let mut probe = Probe::new(&hub, &running, duration);
        let runtime = rig::runtime(threads)?;
        let devices = fleet::run_all(running.port(), self.devices, device_work, &mut probe);
        let tally = runtime.block_on(devices);
        let faults = hub.counters.faults();
        if !faults.is_empty() {
            return Err(Failure::new(faults.join("; ")));
        }
        let tally = tally?;
        self.check(&hub, &tally)?;
        let figures = self.sum_up(&probe, tally)?;
        running.stop()?;
        Ok(figures)
    }

    /// Of devices and of the hub each. One at a time needs no other thread to be woken.
    fn threads(&self) -> usize {
        match self.kind {
            Kind::PingPong => 1,
            _ => std::thread::available_parallelism().map_or(1, usize::from).min(4),
        }
    }

    /// Nothing lost, nothing doubled, everything settled.
    fn check(&self, hub: &Hub, tally: &Tally) -> Result<(), Failure> {
        let counters = &hub.counters;
        let taken = counters.deliveries.load(Ordering::Relaxed);
        let sent = counters.sent.load(Ordering::Relaxed);
        match self.kind {
            Kind::Up | Kind::Fair | Kind::Paced(_) | Kind::PingPong | Kind::Churn => {
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

    fn sum_up(&self, probe: &Probe<'_>, mut tally: Tally) -> Result<Figures, Failure> {
        let (Some(first), Some(begin), Some(end)) = (&probe.first, &probe.begin, &probe.end) else {
            return Err(Failure::new("the row was not measured"));
        };
        let mut figures = Figures {
            start_millis: probe.running.start_up().map(|time| time.as_secs_f64() * 1e3),
            peak_memory_mib: end.peak_memory_kib.map(|kib| kib as f64 / 1024.0),
            ciphers: probe.hub.counters.ciphers(),
            ..Figures::default()
        };
        if self.kind == Kind::Idle {
            if let (Some(before), Some(after)) = (first.memory_kib, end.memory_kib) {
                let growth = after.saturating_sub(before) as f64;
                figures.memory_per_device_kib = Some(growth / (self.devices - FIRST) as f64);
            }
            return Ok(figures);
        }
        let messages = if self.kind == Kind::Down {
            tally.received
        } else {
            tally.settled
        };
        let elapsed = tally
            .last
            .unwrap_or(end.at)
            .duration_since(begin.at)
            .as_secs_f64();
        figures.messages_per_second = Some(messages as f64 / elapsed);
        figures.mebibytes_per_second =
            Some((messages * self.size as u64) as f64 / elapsed / f64::from(1 << 20));
        if let (Some(before), Some(after)) = (begin.cpu, end.cpu) {
            let cpu = after.saturating_sub(before).as_secs_f64();
            figures.cpu_micros_per_message = Some(cpu * 1e6 / messages as f64);
            figures.cpu_percent = Some(cpu * 100.0 / end.at.duration_since(begin.at).as_secs_f64());
        }
        let records = end.records - begin.records;
        // Of one that goes down nothing comes in but answers, and handshakes of TLS are records, too.
        let is_counted = !figures.ciphers.is_empty() && !matches!(self.kind, Kind::Down | Kind::Churn);
        if is_counted && records > 0 {
            figures.frames_per_record = Some((end.frames - begin.frames) as f64 / records as f64);
        }
        tally.latencies.sort_unstable();
        let micros =
            |percent| percentile(&tally.latencies, percent).map(|latency| latency.as_secs_f64() * 1e6);
        if self.kind != Kind::Churn {
            [figures.p50_micros, figures.p99_micros, figures.p999_micros] = [50.0, 99.0, 99.9].map(micros);
        }
        if self.kind == Kind::Fair {
            figures.unfairness = unfairness(tally.device_p99);
        }
        Ok(figures)
    }
}

/// How many times the median device's 99th percentile that of the slowest is.
fn unfairness(mut of_devices: Vec<Duration>) -> Option<f64> {
    of_devices.sort_unstable();
    let median = percentile(&of_devices, 50.0)?;
    Some(of_devices.last()?.as_secs_f64() / median.as_secs_f64())
}

/// Reads the hub's counters and the contender's at the row's moments.
struct Probe<'a> {
    hub: &'a Hub,
    running: &'a Running,
    duration: Duration,
    first: Option<Reading>,
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
    fn new(hub: &'a Hub, running: &'a Running, duration: Duration) -> Self {
        Self {
            hub,
            running,
            duration,
            first: None,
            begin: None,
            end: None,
        }
    }

    fn read(&self) -> Result<Reading, Failure> {
        Ok(Reading {
            at: Instant::now(),
            cpu: self.running.cpu()?,
            frames: self.hub.counters.frames.load(Ordering::Relaxed),
            records: self.hub.counters.records.load(Ordering::Relaxed),
            memory_kib: self.running.memory("VmRSS")?,
            peak_memory_kib: self.running.memory("VmHWM")?,
        })
    }
}

impl Moments for Probe<'_> {
    fn first_attached(&mut self) -> Result<(), Failure> {
        self.first = Some(self.read()?);
        Ok(())
    }

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
