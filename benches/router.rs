//! The router alone: bytes in, bytes out, without sockets and without TLS.
//!
//! ```text
//! cargo bench --bench router
//! ```
//!
//! Times are those of the router's calls; what devices and hub do in between is left out. All of a message counts: the
//! transfer, the disposition that comes back, and the flows now and then.

// A benchmark is all clocks; the bans on them are for the daemon's code.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

#[path = "rig/mod.rs"]
mod rig;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use linkrouterd::shard::ShardSettings;
use rig::daemon;
use rig::gateway::{self, Gateway, Meter};
use rig::hub::HubWork;

/// Sums up the time.
#[derive(Default)]
struct Stopwatch(Duration);

impl Meter for Stopwatch {
    fn watch<R>(&mut self, work: impl FnOnce() -> R) -> R {
        let begin = Instant::now();
        let result = work();
        self.0 += begin.elapsed();
        result
    }
}

fn settings(more: &str) -> ShardSettings {
    let (_, ca) = rig::tls::self_signed().expect("a certificate");
    let directory = tempfile::tempdir().expect("a directory");
    gateway::settings(directory.path(), |file| daemon::plain_hub(1, file) + more, &ca).expect("settings")
}

fn gateway(work: HubWork, devices: usize) -> Gateway<Stopwatch> {
    let mut gateway = Gateway::new(settings(""), work, Stopwatch::default());
    gateway.connect(devices).expect("devices");
    gateway
}

/// From devices to the hub, by the number of devices: it must not matter to a message how many there are.
fn up(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("up, 256 B");
    for devices in [1, 10, 100, 1000] {
        let mut gateway = gateway(HubWork::Receive, devices);
        let template = gateway.template(256);
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new("devices", devices), |bencher| {
            bencher.iter_custom(|messages| {
                let (before, _) = gateway.done();
                let mut all = 0;
                gateway.meter.0 = Duration::ZERO;
                while all < messages {
                    // As much as one read brings.
                    gateway.send_up(&template, 200).expect("a round");
                    all = gateway.done().0 - before;
                }
                share(gateway.meter.0, messages, all)
            });
        });
    }
    group.finish();
}

/// The same from the hub.
fn down(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("down, 256 B");
    for devices in [1, 10, 100, 1000] {
        let mut gateway = gateway(HubWork::Send(256), devices);
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new("devices", devices), |bencher| {
            bencher.iter_custom(|messages| {
                let (_, before) = gateway.done();
                let mut all = 0;
                gateway.meter.0 = Duration::ZERO;
                while all < messages {
                    gateway.send_down().expect("a round");
                    all = gateway.done().1 - before;
                }
                share(gateway.meter.0, messages, all)
            });
        });
    }
    group.finish();
}

/// One message at a time: nothing is shared by several.
fn lone(criterion: &mut Criterion) {
    let mut gateway = gateway(HubWork::Receive, 1);
    let template = gateway.template(256);
    criterion.bench_function("lone round trip, 256 B", |bencher| {
        bencher.iter_custom(|messages| {
            gateway.meter.0 = Duration::ZERO;
            for _ in 0..messages {
                gateway.send_up(&template, 1).expect("a round");
            }
            gateway.meter.0
        });
    });
}

/// An attach that no route matches, refused, by the number of routes: all of the lookup, and nothing of a hub.
fn lookup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("refused attach");
    for routes in [1, 100, 10_000] {
        let mut more = String::new();
        for route in 0..routes {
            let _ = write!(
                more,
                "linkRoute {{\n prefix: site-{route}/sensors/of/this/site\n connection: HUB\n direction: in\n}}\n"
            );
        }
        let mut gateway = Gateway::new(settings(&more), HubWork::Receive, Stopwatch::default());
        gateway.connect(1).expect("a device");
        let address = format!("site-{}/sensors/of/another", routes - 1);
        group.bench_function(BenchmarkId::new("routes", routes), |bencher| {
            bencher.iter_custom(|attaches| {
                gateway.meter.0 = Duration::ZERO;
                for _ in 0..attaches {
                    gateway.attach_in_vain(&address).expect("a refusal");
                }
                gateway.meter.0
            });
        });
    }
    group.finish();
}

/// The time of `wanted` messages when it took so long for `all`.
fn share(time: Duration, wanted: u64, all: u64) -> Duration {
    time.mul_f64(wanted as f64 / all as f64)
}

criterion_group!(benches, up, down, lone, lookup);
criterion_main!(benches);
