//! A hub that grants credit and then stops reading: the router must hold devices back, not buffer for them.

#![cfg(target_os = "linux")]

use std::time::Duration;

use crate::support::article::{self, DEVICE};
use crate::support::gateway::Gateway;
use crate::support::iot_hub::Order;
use crate::support::raw::{self, RawDevice};
use crate::support::sas::Key;
use crate::support::{Failure, bounded, device, ensure, ensure_eq, message};
use fe2o3_amqp::types::definitions::Role;
use fe2o3_amqp::types::performatives::Performative;

const DEVICES: usize = 100;
const MESSAGES: u32 = 600;
const SIZE: usize = 2_048;
/// The budget for parked frames is 32 MiB; the rest is the process itself. What devices offer is 120 MiB.
const LIMIT: usize = 48 * 1024 * 1024;

/// The most memory that a process ever had resident, as the kernel counts it.
fn peak_memory(process: u32) -> Result<usize, Failure> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    kibibytes
        .map(|count| count * 1024)
        .ok_or_else(|| Failure::new("no VmHWM"))
}

/// The processor time that a process has used, in ticks.
fn processor_time(process: u32) -> Result<u64, Failure> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, after_name) = stat.rsplit_once(')').ok_or_else(|| Failure::new("no stat"))?;
    let ticks = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse::<u64>);
    Ok(ticks.sum::<Result<u64, _>>()?)
}

/// Returns when the process has used no processor time for a while.
async fn rest(process: u32) -> Result<(), Failure> {
    let mut looks = tokio::time::interval(Duration::from_millis(50));
    let (mut last, mut quiet) = (0, 0);
    while quiet < 10 {
        looks.tick().await;
        let now = processor_time(process)?;
        quiet = if now == last { quiet + 1 } else { 0 };
        last = now;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_stays_bounded_when_the_hub_stops_reading() -> Result<(), Failure> {
    // The log of a flood would measure the log. One program authorises all devices.
    let quiet = |config: &str| {
        config
            .replace("enable: trace+", "enable: notice+")
            .replace("role: on-demand\n", "role: on-demand\n    checkIdentity: no\n")
    };
    let name = |number: usize| format!("{DEVICE}{number}");
    let mut settings = article::hub_settings();
    for number in 0..DEVICES {
        settings = settings.with_device(&name(number), Key::from_text("key"));
    }
    let gateway = Gateway::to_iot_hub_with(settings, quiet).await?;
    let daemon = gateway.daemon()?;
    let mut preparing = gateway.reach.open("preparing").await?;
    // The right of the hub's owner covers every device.
    let token = article::service_token();
    let request = device::PutToken {
        token: &token,
        name: "all",
        token_type: "servicebus.windows.net:sastoken",
        message_id: 0.into(),
    };
    ensure_eq(
        "the token",
        device::put_token(&mut preparing, request).await?.status,
        200,
    )?;

    let mut devices = Vec::new();
    for number in 0..DEVICES {
        let container = name(number);
        let open = raw::open(&container, 65_536);
        let mut device = RawDevice::begin(daemon.address(), open, raw::begin(0)).await?;
        let address = format!("/devices/{container}/messages/events");
        let credit = device.attach_sender("send-link", 0, &address).await?;
        ensure_eq("the credit", credit, 1_000)?;
        devices.push(device);
    }
    gateway.hub.order(&Order::StopReading);
    let payload = message::encode(&message::data(vec![7; SIZE]));
    for device in &devices {
        for id in 0..MESSAGES {
            device.transfer(raw::transfer(0, id, &id.to_be_bytes()), &payload)?;
        }
    }
    // The flood has come to rest when the router reads nothing more from anybody: it is idle, and its memory is at its
    // peak. That is seen in the processor time that it uses.
    let process = daemon
        .process_id()
        .ok_or_else(|| Failure::new("the daemon is gone"))?;
    bounded("the flood's rest", rest(process)).await??;
    let peak = peak_memory(process)?;
    ensure(peak < LIMIT, || {
        format!("{} MiB for {DEVICES} devices", peak / (1024 * 1024))
    })?;

    // The router itself is well: it answers who does not need the hub.
    let mut other = RawDevice::begin(daemon.address(), raw::open("other", 65_536), raw::begin(0)).await?;
    other.send(Performative::Attach(raw::attach(
        "nowhere",
        0,
        Role::Sender,
        "no/route",
    )))?;
    other
        .expect("a refusal", |frame| {
            matches!(frame, Performative::Detach(_)).then_some(())
        })
        .await?;

    // When the hub goes away, everything that waited for it goes as well.
    gateway.hub.drop_connections();
    for device in &mut devices {
        device
            .expect("the detach", |frame| {
                matches!(frame, Performative::Detach(_)).then_some(())
            })
            .await?;
    }
    drop((devices, other));
    device::close(preparing).await?;
    gateway.hub.ensure_no_faults()?;
    gateway.stop().await?;
    Ok(())
}
