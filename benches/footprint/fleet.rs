//! Many devices at once, and a daemon between them and a hub.

use std::net::Ipv4Addr;
use std::path::Path;

use tokio::task::JoinSet;

use super::rig::Failure;
use super::rig::daemon::{self, Daemon};
use super::rig::hub::{Hub, HubWork, Transport};
use super::rig::visitor::{Leave, Reach, Visitor};

/// Devices that connect at the same time; a listener's backlog need not hold more.
const CONNECTING: usize = 20;

/// A hub and a daemon in front of it, and the thread's runtime for the devices.
pub(crate) struct Site {
    pub(crate) hub: Hub,
    pub(crate) daemon: Daemon,
    pub(crate) runtime: tokio::runtime::Runtime,
}

/// Devices that come together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    /// Their container-ids are those of no other group.
    pub(crate) number: usize,
    /// Their identities are those of all groups of this fleet.
    pub(crate) fleet: usize,
}

impl Group {
    /// Of whom nobody else has a name.
    pub(crate) const fn of_its_own(number: usize) -> Self {
        Self {
            number,
            fleet: number,
        }
    }
}

/// Which hub the daemon is configured for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// As in `conf/linkrouterd-iothub.conf`.
    IotHub,
    /// Without tokens.
    Plain,
}

impl Site {
    pub(crate) fn start(shape: Shape) -> Result<Self, Failure> {
        let (hub, ca) = Hub::start(HubWork::Receive, Transport::Tls, 1)?;
        let configuration = |ca: &Path| match shape {
            Shape::IotHub => daemon::iot_hub(hub.port, ca),
            Shape::Plain => daemon::plain_hub(hub.port, ca),
        };
        let daemon = Daemon::start(configuration, &ca)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(Self { hub, daemon, runtime })
    }

    /// Connects devices.
    pub(crate) fn connect(&self, group: Group, count: usize, reach: Reach) -> Result<Vec<Visitor>, Failure> {
        self.runtime
            .block_on(connect(self.daemon.port, group, count, reach))
    }

    /// Ends everything, and fails if the hub saw a fault or the daemon does not end well.
    pub(crate) fn stop(self) -> Result<(), Failure> {
        let faults = self.hub.counters.faults();
        if !faults.is_empty() {
            return Err(Failure::new(faults.join("; ")));
        }
        self.daemon.stop()
    }
}

async fn connect(port: u16, group: Group, count: usize, reach: Reach) -> Result<Vec<Visitor>, Failure> {
    // A source address for each group, for a port is not free again at once.
    let source = Ipv4Addr::new(127, 0, 1, 1 + (group.number % 250) as u8);
    let mut connecting = JoinSet::new();
    let mut devices = Vec::new();
    for number in 0..count {
        let container = format!("board-{}-{number}", group.number);
        let id = format!("sensor-{}-{number}", group.fleet);
        connecting.spawn(async move { Visitor::connect(port, source, &container, &id, reach).await });
        if connecting.len() >= CONNECTING
            && let Some(device) = connecting.join_next().await
        {
            devices.push(device??);
        }
    }
    while let Some(device) = connecting.join_next().await {
        devices.push(device??);
    }
    Ok(devices)
}

/// All send a message, and go when the hub has accepted it: most with a goodbye, some without.
pub(crate) async fn finish(devices: Vec<Visitor>) -> Result<(), Failure> {
    let ways = [Leave::Closing, Leave::Ending, Leave::Closing, Leave::Vanishing];
    let mut leaving = JoinSet::new();
    for (mut device, way) in devices.into_iter().zip(ways.into_iter().cycle()) {
        leaving.spawn(async move {
            device.send(&[b'x'; 256]).await?;
            device.leave(way).await
        });
    }
    while let Some(left) = leaving.join_next().await {
        left??;
    }
    Ok(())
}
