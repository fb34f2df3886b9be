//! Devices that stay, and devices that come and go.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::device::{Device, Leave, LinkKind};
use super::rig::Failure;
use super::site::Site;

/// Messages of one device that are not settled, at most.
const IN_FLIGHT: usize = 50;
/// Of each device that stays, a message in this time.
const MESSAGE_EVERY: Duration = Duration::from_millis(100);
/// How long a device still takes commands when it has nothing more to send.
const LAST_COMMANDS: Duration = Duration::from_secs(1);
/// What a visitor sends.
const VISIT: u32 = 20;
/// Between the visits of one visitor.
const AWAY: Duration = Duration::from_millis(700);
/// How long the end of a visit may take when the hub is there.
const PATIENCE: Duration = Duration::from_secs(40);

/// A device that stays until all is over, whatever becomes of the hub.
pub(crate) async fn stay(port: u16, number: usize, site: Arc<Site>) -> Result<(), Failure> {
    let named = |failure: Failure| Failure::new(format!("device {number}: {failure}"));
    let mut device = Device::connect(port, number, &site).await.map_err(named)?;
    device.attach(LinkKind::Telemetry);
    device.attach(LinkKind::Commands);
    // They must not all be due at once.
    let mut due = Instant::now() + MESSAGE_EVERY * (number as u32 * 37 % 101) / 101;
    loop {
        let now = Instant::now();
        while device.may_send()
            && device.open_messages() < IN_FLIGHT
            && (device.has_doubts() || (site.goes_on() && due <= now))
        {
            if !device.has_doubts() {
                due += MESSAGE_EVERY;
            }
            device.send();
        }
        if due <= now {
            due = now + MESSAGE_EVERY;
        }
        if !site.goes_on() && device.open_messages() == 0 {
            let deadline = now + LAST_COMMANDS;
            while Instant::now() < deadline {
                device.turn(deadline).await.map_err(named)?;
            }
            return device.leave(Leave::Closing).await.map_err(named);
        }
        device.turn(due).await.map_err(named)?;
    }
}

/// A device that comes, sends, and leaves in one way or the other, again and again, with an identity of `identities`
/// each time.
pub(crate) async fn visit(
    port: u16,
    identities: impl Iterator<Item = usize>,
    site: Arc<Site>,
) -> Result<(), Failure> {
    let ways = [
        Leave::Closing,
        Leave::Ending,
        Leave::Closing,
        Leave::Vanishing,
        Leave::Breaking,
    ];
    for (number, way) in identities.zip(ways.into_iter().cycle()) {
        if !site.goes_on() {
            break;
        }
        let begin = site.outages.now();
        match once(port, number, &site, way).await {
            Ok(()) => {}
            Err(_) if site.outages.disturbed(begin) => {
                site.cut_short.fetch_add(1, Ordering::Relaxed);
            }
            Err(failure) => site.fault(format!("visitor {number}: {failure}")),
        }
        site.visits.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(AWAY).await;
    }
    Ok(())
}

async fn once(port: u16, number: usize, site: &Arc<Site>, way: Leave) -> Result<(), Failure> {
    let mut device = Device::connect(port, number, site).await?;
    device.attach(LinkKind::Telemetry);
    device.until_it_may_send().await?;
    let mut left = VISIT;
    let deadline = Instant::now() + PATIENCE;
    while left > 0 || (device.open_messages() > 0 && way == Leave::Closing) {
        if device.losses() > 0 {
            return Err(Failure::new("a link was lost"));
        }
        while left > 0 && device.may_send() {
            device.send();
            left -= 1;
        }
        if Instant::now() > deadline {
            return Err(Failure::new(format!(
                "{} messages not settled",
                device.open_messages()
            )));
        }
        device.turn(deadline).await?;
    }
    device.leave(way).await
}
