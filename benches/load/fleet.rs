//! The devices of a row: connected a few at a time, started at once, and summed up.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::device::{Device, DeviceWork, PATIENCE};
use super::rig::Failure;
use super::rig::device::Tally;

/// Devices that connect at the same time; a listener's backlog need not hold more. Also those that come before memory is
/// looked at for the first time: what all devices share is there then.
pub(crate) const FIRST: usize = 20;
/// Devices of the churn that are there at the same time.
const LANES: usize = 16;

/// A row's moments: the first devices are attached; all are, and start; all are done.
pub(crate) trait Moments {
    fn first_attached(&mut self) -> Result<(), Failure>;
    fn attached(&mut self) -> Result<(), Failure>;
    fn done(&mut self) -> Result<(), Failure>;
}

/// Connects `count` devices, lets them work, and sums up what they did.
pub(crate) async fn run_all(
    port: u16,
    count: usize,
    work: DeviceWork,
    moments: &mut dyn Moments,
) -> Result<Tally, Failure> {
    let (start, started) = watch::channel(false);
    let (ready, mut readied) = mpsc::unbounded_channel();
    let mut devices = JoinSet::new();
    for number in 0..count {
        let (ready, started) = (ready.clone(), started.clone());
        devices.spawn(async move {
            let connecting = Device::connect(port, Ipv4Addr::LOCALHOST, number, work);
            let mut device = tokio::time::timeout(PATIENCE, connecting)
                .await
                .map_err(|_| Failure::new(format!("device {number}: not attached in {PATIENCE:?}")))??;
            // The row has given up when nobody listens.
            let _ = ready.send(());
            device.work(work, started).await
        });
        if number + 1 == FIRST.min(count) {
            for _ in 0..FIRST.min(count) {
                wait_for_one(&mut readied, &mut devices).await?;
            }
            moments.first_attached()?;
        } else if number >= 2 * FIRST {
            wait_for_one(&mut readied, &mut devices).await?;
        }
    }
    for _ in 0..count.saturating_sub(FIRST).min(FIRST) {
        wait_for_one(&mut readied, &mut devices).await?;
    }
    moments.attached()?;
    if let DeviceWork::Churn { size, duration } = work {
        let tally = churn(port, size, duration).await;
        moments.done()?;
        start.send_replace(true);
        while let Some(device) = devices.join_next().await {
            device??;
        }
        return tally;
    }
    start.send_replace(true);
    if work == DeviceWork::Idle {
        moments.done()?;
    }
    let mut all = Tally::default();
    while let Some(device) = devices.join_next().await {
        all.add(device??);
    }
    if work != DeviceWork::Idle {
        moments.done()?;
    }
    Ok(all)
}

async fn wait_for_one(
    readied: &mut mpsc::UnboundedReceiver<()>,
    devices: &mut JoinSet<Result<Tally, Failure>>,
) -> Result<(), Failure> {
    tokio::select! {
        biased;
        _ = readied.recv() => Ok(()),
        // No device ends before the start, but by failing.
        Some(ended) = devices.join_next() => match ended? {
            Ok(_) => Err(Failure::new("a device ended before it was started")),
            Err(failure) => Err(failure),
        },
    }
}

/// New devices, one after the other on each lane: each connects, attaches, sends a message and closes.
async fn churn(port: u16, size: usize, duration: Duration) -> Result<Tally, Failure> {
    let deadline = Instant::now() + duration;
    let work = DeviceWork::Churn { size, duration };
    let mut lanes = JoinSet::new();
    for lane in 0..LANES {
        // An address for each lane, for the ports of one would run out.
        let source = Ipv4Addr::new(127, 0, 2, 1 + lane as u8);
        lanes.spawn(async move {
            let mut all = Tally::default();
            let mut number = FIRST + lane;
            while Instant::now() < deadline {
                let mut device = Device::connect(port, source, number, work).await?;
                all.add(device.send_and_close(size).await?);
                number += LANES;
            }
            Ok::<_, Failure>(all)
        });
    }
    let mut all = Tally::default();
    while let Some(lane) = lanes.join_next().await {
        all.add(lane??);
    }
    // Of a device that sends once it says nothing.
    all.device_p99.clear();
    Ok(all)
}
