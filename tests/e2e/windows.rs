//! Floods through the real binary: no window, however narrow and however it is refreshed, makes anybody wait for ever; and
//! large messages stream through little memory.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::support::bare::{Bare, Manners, Part, Refresh};
use crate::support::daemon::Daemon;
use crate::support::{Failure, ensure, ensure_eq};
use tokio::net::{TcpListener, TcpStream};

/// IoT Hub's own numbers.
const HUB: Manners = Manners {
    max_frame_size: 65_536,
    channel_max: 8191,
    handle_max: 262_143,
    window: 5000,
    refresh: Refresh::AtHalf,
    credit: 1000,
    messages: 100_001,
    size: 16,
};

/// AMQP.Net Lite, rhea.
const LITE: Manners = Manners {
    window: 2048,
    credit: 200,
    ..HUB
};

/// AMQP.Net Lite's smallest: one session, eight links.
const MICRO: Manners = Manners {
    max_frame_size: 1024,
    channel_max: 0,
    handle_max: 7,
    window: 100,
    credit: 100,
    ..HUB
};

/// The narrowest that can be.
const ONE: Manners = Manners {
    window: 1,
    credit: 100,
    ..HUB
};

fn config(hub_port: u16) -> String {
    let mut text = format!(
        "router {{\n    mode: standalone\n    id: Router.A\n}}\n\
         listener {{\n    host: 127.0.0.1\n    port: 0\n    authenticatePeer: no\n}}\n\
         connector {{\n    name: HUB\n    host: 127.0.0.1\n    port: {hub_port}\n    role: route-container\n    \
         saslMechanisms: ANONYMOUS\n}}\n\
         log {{\n    module: DEFAULT\n    enable: notice+\n}}\n"
    );
    for (prefix, direction) in [("sink", "in"), ("source", "out")] {
        text.push_str(&format!(
            "linkRoute {{\n    prefix: {prefix}\n    connection: HUB\n    direction: {direction}\n}}\n"
        ));
    }
    text
}

/// All messages of both, each way, at the same time; gives what the daemon had resident before and at most.
async fn exchange(device: Manners, hub: Manners) -> Result<(usize, usize), Failure> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let daemon = Daemon::start(&config(listener.local_addr()?.port()), "").await?;
    let (hub_stream, _) = crate::support::bounded("the daemon's dial", listener.accept()).await??;
    let device_stream = TcpStream::connect(daemon.address()).await?;
    let before = resident(&daemon, "VmRSS:")?;
    let progress = [AtomicU64::new(0), AtomicU64::new(0)];
    // The hub's part ends when the daemon closes the connection, as it is told to by then.
    let (device_end, hub_end) = tokio::join!(
        async {
            let end = Bare::run(device_stream, Part::Device, device, &progress[0]).await;
            let most = resident(&daemon, "VmHWM:");
            let stopped = daemon.stop().await;
            (end, most, stopped)
        },
        Bare::run(hub_stream, Part::Hub, hub, &progress[1]),
    );
    let (end, most, stopped) = device_end;
    end?;
    hub_end?;
    stopped?;
    ensure_eq(
        "at the device",
        progress[0].load(Ordering::Relaxed),
        device.messages,
    )?;
    ensure_eq("at the hub", progress[1].load(Ordering::Relaxed), hub.messages)?;
    Ok((before, most?))
}

/// A line of what the kernel knows of the daemon's memory, in bytes; nothing where there is no such kernel.
fn resident(daemon: &Daemon, which: &str) -> Result<usize, Failure> {
    let id = daemon
        .process_id()
        .ok_or_else(|| Failure::new("the daemon has ended"))?;
    let Ok(status) = std::fs::read_to_string(format!("/proc/{id}/status")) else {
        return Ok(0);
    };
    let line = status.lines().find_map(|line| line.strip_prefix(which));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    kibibytes
        .map(|count| count * 1024)
        .ok_or_else(|| Failure::new("no such line"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_of_2048_never_stalls_in_100_000_messages_each_way() -> Result<(), Failure> {
    exchange(LITE, HUB).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_of_2048_that_only_credit_refreshes_never_stalls() -> Result<(), Failure> {
    let device = Manners {
        refresh: Refresh::WithCredit,
        messages: 20_001,
        ..LITE
    };
    let hub = Manners {
        window: 2048,
        refresh: Refresh::WithCredit,
        messages: 20_001,
        ..HUB
    };
    exchange(device, hub).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_smallest_client_and_a_hub_with_a_window_of_100_never_stall_in_100_000_messages()
-> Result<(), Failure> {
    let hub = Manners { window: 100, ..HUB };
    exchange(MICRO, hub).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_of_1_on_both_sides_never_stalls_in_100_000_messages() -> Result<(), Failure> {
    exchange(ONE, ONE).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_10_mebibytes_stream_to_slow_receivers_in_bounded_memory() -> Result<(), Failure> {
    const SIZE: usize = 10 * 1024 * 1024;
    // A frame of a kilobyte for each round trip is slow; the sender offers all of 30 MiB at once.
    let slow = Manners {
        max_frame_size: 1024,
        window: 1,
        credit: 10,
        messages: 3,
        size: SIZE,
        ..HUB
    };
    let (before, most) = exchange(slow, slow).await?;
    let used = most.saturating_sub(before);
    println!("{} KiB before, {} KiB more at most", before / 1024, used / 1024);
    ensure(used < SIZE / 2, || format!("{used} bytes for messages of {SIZE}"))
}
