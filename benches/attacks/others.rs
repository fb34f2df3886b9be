//! The decent devices: each sends a small message at its times, whatever becomes of the one before.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::rig::Failure;
use super::rig::visitor::{Leave, Reach, Visitor};

const DEVICES: u32 = 20;
const EVERY: Duration = Duration::from_millis(50);
const MESSAGE: [u8; 256] = [b'x'; 256];

/// What there is to be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Period {
    /// Nothing yet.
    Preparing,
    Undisturbed,
    /// The attackers come.
    Onset,
    /// They are there, and go on.
    Attacked,
    Over,
}

/// From when each message should have been sent until it was accepted, second by second.
#[derive(Debug, Default)]
pub(crate) struct Series(BTreeMap<u64, Vec<Duration>>);

impl Series {
    fn push(&mut self, second: u64, time: Duration) {
        self.0.entry(second).or_default().push(time);
    }

    fn add(&mut self, other: Self) {
        for (second, mut times) in other.0 {
            self.0.entry(second).or_default().append(&mut times);
        }
    }

    /// In ms, the time that so many of a hundred messages did not exceed.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let mut all: Vec<Duration> = self.0.values().flatten().copied().collect();
        percentile(&mut all, percent)
    }

    /// The same for each second, and of those the median: what else the machine does for a moment does not count.
    pub(crate) fn usual(&self, percent: usize) -> f64 {
        let seconds = self
            .0
            .values()
            .map(|times| percentile(&mut times.clone(), percent));
        let mut seconds: Vec<f64> = seconds.collect();
        seconds.sort_unstable_by(f64::total_cmp);
        seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// What the devices have seen in each period.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    pub(crate) undisturbed: Series,
    pub(crate) onset: Series,
    pub(crate) attacked: Series,
}

impl Latencies {
    fn add(&mut self, other: Self) {
        self.undisturbed.add(other.undisturbed);
        self.onset.add(other.onset);
        self.attacked.add(other.attacked);
    }
}

fn percentile(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    let place = (times.len() * percent).div_ceil(100).max(1) - 1;
    times.get(place).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}

/// The devices at work, on a thread of their own.
pub(crate) struct Others {
    period: watch::Sender<Period>,
    thread: JoinHandle<Result<Latencies, Failure>>,
}

impl Others {
    /// Connects them to the port; they are served when this returns.
    pub(crate) fn start(port: u16) -> Result<Self, Failure> {
        let (period, periods) = watch::channel(Period::Preparing);
        let (ready, is_ready) = std::sync::mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = std::thread::Builder::new().name("others".into()).spawn(move || {
            runtime.block_on(async move {
                let mut devices = JoinSet::new();
                for number in 0..DEVICES {
                    let name = format!("decent-{number}");
                    let mut device =
                        Visitor::connect(port, Ipv4Addr::LOCALHOST, &name, &name, Reach::Link).await?;
                    device.send(&MESSAGE).await?;
                    devices.spawn(work(device, number, periods.clone()));
                }
                drop(ready);
                let mut all = Latencies::default();
                while let Some(ended) = devices.join_next().await {
                    all.add(ended??);
                }
                Ok(all)
            })
        })?;
        // Nothing is sent: the end is the sign, of failure, too.
        let _: Result<(), _> = is_ready.recv();
        if thread.is_finished() {
            return Err(match thread.join() {
                Ok(Err(failure)) => failure,
                Ok(Ok(_)) | Err(_) => Failure::new("the decent devices have gone"),
            });
        }
        Ok(Self { period, thread })
    }

    pub(crate) fn enter(&self, period: Period) {
        self.period.send_replace(period);
    }

    /// Lets them leave, and gives what they have seen.
    pub(crate) fn finish(self) -> Result<Latencies, Failure> {
        self.enter(Period::Over);
        match self.thread.join() {
            Ok(latencies) => latencies,
            Err(_) => Err(Failure::new("the decent devices panicked")),
        }
    }
}

async fn work(
    mut device: Visitor,
    number: u32,
    periods: watch::Receiver<Period>,
) -> Result<Latencies, Failure> {
    let mut latencies = Latencies::default();
    let begin = Instant::now();
    // They must not all be due at once.
    let mut due = begin + EVERY * number / DEVICES;
    loop {
        tokio::time::sleep_until(due.into()).await;
        let period = *periods.borrow();
        if period == Period::Over {
            device.leave(Leave::Closing).await?;
            return Ok(latencies);
        }
        device.send(&MESSAGE).await?;
        let series = match period {
            Period::Undisturbed => Some(&mut latencies.undisturbed),
            Period::Onset => Some(&mut latencies.onset),
            Period::Attacked => Some(&mut latencies.attacked),
            Period::Preparing | Period::Over => None,
        };
        if let Some(series) = series {
            series.push((due - begin).as_secs(), due.elapsed());
        }
        due += EVERY;
    }
}
