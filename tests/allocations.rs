//! What a relayed transfer takes from the heap: nothing, once the buffers have their size.
//!
//! The counting allocator is that of a crate, for the crate's own code has no `unsafe`; it counts for each thread on its own,
//! so the peers here may allocate as they like.

#[path = "../benches/rig/mod.rs"]
mod rig;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::sync::mpsc;

use allocation_counter::AllocationInfo;
use linkrouterd::shard::{Command, Shard};
use rig::Failure;
use rig::daemon;
use rig::device::DeviceState;
use rig::gateway::{self, Gateway, Meter};
use rig::hub::{Hub, HubWork, Transport};
use rig::wire::{Input, Role};
use tokio::runtime::{Builder, LocalOptions};

/// Sums up what the router allocates.
#[derive(Default)]
struct Counter(u64);

impl Meter for Counter {
    fn watch<R>(&mut self, work: impl FnOnce() -> R) -> R {
        let mut result = None;
        let AllocationInfo { count_total, .. } = allocation_counter::measure(|| result = Some(work()));
        self.0 += count_total;
        result.expect("it has been run")
    }
}

fn gateway(work: HubWork, devices: usize) -> Result<Gateway<Counter>, Failure> {
    let (_, ca) = rig::tls::self_signed()?;
    let directory = tempfile::tempdir()?;
    let settings = gateway::settings(directory.path(), |file| daemon::plain_hub(1, file), &ca)?;
    let mut gateway = Gateway::new(settings, work, Counter::default());
    gateway.connect(devices)?;
    Ok(gateway)
}

/// Rounds in which buffers, queues and maps grow to their size.
const FIRST_ROUNDS: usize = 200;
const ROUNDS: usize = 200;

/// Unsettled messages up, each of which a disposition comes back for; frames that end in the middle of a read, too.
#[test]
fn a_transfer_to_the_hub_allocates_nothing() {
    for (devices, each, size) in [
        (1, 1, 256),
        (1, 200, 256),
        (20, 10, 256),
        (10, 3, 4096),
        (5, 1, 65_536),
    ] {
        let mut gateway = gateway(HubWork::Receive, devices).expect("a gateway");
        assert!(gateway.meter.0 > 0, "connecting allocates; is anything counted?");
        let template = gateway.template(size);
        for _ in 0..FIRST_ROUNDS {
            gateway.send_up(&template, each).expect("a round");
        }
        let (before, _) = gateway.done();
        gateway.meter.0 = 0;
        for _ in 0..ROUNDS {
            gateway.send_up(&template, each).expect("a round");
        }
        let (settled, _) = gateway.done();
        let sent = settled - before;
        assert!(sent > 0, "nothing was relayed");
        assert_eq!(
            gateway.meter.0, 0,
            "allocations for {sent} messages of {size} bytes from {devices} devices"
        );
    }
}

/// Settled messages, which no disposition comes back for.
#[test]
fn a_settled_transfer_allocates_nothing() {
    for (devices, each, size) in [(1, 200, 256), (20, 10, 256), (5, 1, 65_536)] {
        let mut up = gateway(HubWork::Receive, devices).expect("a gateway");
        let template = up.template(size).settled();
        let mut down = gateway(HubWork::SendSettled(size), devices).expect("a gateway");
        for round in 0..FIRST_ROUNDS + ROUNDS {
            if round == FIRST_ROUNDS {
                (up.meter.0, down.meter.0) = (0, 0);
            }
            up.send_up(&template, each).expect("a round");
            down.send_down().expect("a round");
        }
        let all = (devices * each * (FIRST_ROUNDS + ROUNDS)) as u64;
        assert_eq!(up.delivered(), all, "of {size} bytes from {devices} devices");
        assert!(down.done().1 > 0, "nothing was relayed");
        assert_eq!(
            (up.meter.0, down.meter.0),
            (0, 0),
            "allocations for messages of {size} bytes, {devices} devices"
        );
    }
}

/// Unsettled messages down, each of which a disposition goes back for.
#[test]
fn a_transfer_to_a_device_allocates_nothing() {
    for (devices, size) in [(1, 256), (20, 256), (10, 4096), (5, 65_536)] {
        let mut gateway = gateway(HubWork::Send(size), devices).expect("a gateway");
        for _ in 0..FIRST_ROUNDS {
            gateway.send_down().expect("a round");
        }
        let (_, before) = gateway.done();
        gateway.meter.0 = 0;
        for _ in 0..ROUNDS {
            gateway.send_down().expect("a round");
        }
        let (_, received) = gateway.done();
        let sent = received - before;
        assert!(sent > 0, "nothing was relayed");
        assert_eq!(
            gateway.meter.0, 0,
            "allocations for {sent} messages of {size} bytes to {devices} devices"
        );
    }
}

/// What the whole of a shard does to carry messages, sockets and TLS included.
struct Carried {
    allocations: u64,
    messages: u64,
    /// Of TLS, to the hub.
    records: u64,
}

/// A device sends batches of small messages through a shard, each when the hub has accepted the one before.
fn carry(batches: usize) -> Result<Carried, Failure> {
    const BATCH: usize = 200;
    let (hub, ca) = Hub::start(HubWork::Receive, Transport::Tls, 1)?;
    let directory = tempfile::tempdir()?;
    let settings = gateway::settings(directory.path(), |file| daemon::plain_hub(hub.port, file), &ca)?;
    let (bound, address) = mpsc::channel();
    let (commands, receiver) = tokio::sync::mpsc::channel(1);
    let shard = std::thread::spawn(move || {
        let info = allocation_counter::measure(|| {
            let mut runtime = Builder::new_current_thread();
            let runtime = runtime.enable_all().build_local(LocalOptions::default());
            let shard = Shard::bind(settings).expect("a shard");
            bound.send(shard.bound_addresses()[0].1).expect("somebody waits");
            runtime
                .expect("a runtime")
                .block_on(shard.run(receiver))
                .expect("a shard that runs");
        });
        info.count_total
    });
    let mut stream = TcpStream::connect(address.recv()?)?;
    stream.set_nodelay(true)?;
    let (mut device, mut input) = (DeviceState::new(0, Role::Sender), Input::default());
    let mut exchange = |device: &mut DeviceState| -> Result<(), Failure> {
        stream.write_all(&device.output)?;
        device.output.clear();
        let mut bytes = [0; 4096];
        let read = stream.read(&mut bytes)?;
        input.buffer().extend_from_slice(&bytes[..read]);
        device.take(&mut input)
    };
    while !device.is_ready(Role::Sender) {
        exchange(&mut device)?;
    }
    let template = device.template(256);
    for _ in 0..batches {
        for _ in 0..BATCH {
            assert!(device.may_send(1), "the hub gives credit in time");
            device.send(&template, None);
        }
        while device.tally.settled < device.tally.sent {
            exchange(&mut device)?;
        }
    }
    let records = hub.counters.records.load(Ordering::Relaxed);
    commands.blocking_send(Command::Shutdown)?;
    let allocations = shard.join().map_err(|_| Failure::new("the shard panicked"))?;
    Ok(Carried {
        allocations,
        messages: device.tally.settled,
        records,
    })
}

/// One for each record of TLS, either way, and those are rustls' own: it makes a buffer for what it encrypts, and one for
/// what it has decrypted.
#[test]
fn a_shard_allocates_for_records_of_tls_and_not_for_messages() {
    let few = carry(50).expect("few messages");
    let many = carry(300).expect("many messages");
    let messages = many.messages - few.messages;
    let records = many.records - few.records;
    let allocations = many.allocations.saturating_sub(few.allocations);
    let seen = format!("{allocations} allocations for {messages} messages in {records} records");
    eprintln!("{seen}");
    assert!(messages > 10 * records, "records are shared by messages: {seen}");
    // A batch is answered by a record or two, and takes four.
    assert!(allocations <= 2 * records, "{seen}");
}
