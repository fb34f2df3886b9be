//! What a relayed transfer takes from the heap: nothing, once the buffers have their size.
//!
//! The counting allocator is that of a crate, for the crate's own code has no `unsafe`; it counts for each thread on its own,
//! so the peers here may allocate as they like.

#[path = "../benches/rig/mod.rs"]
mod rig;

use allocation_counter::AllocationInfo;
use rig::Failure;
use rig::daemon;
use rig::gateway::{self, Gateway, Meter};
use rig::hub::HubWork;

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
    let settings = gateway::settings(|file| daemon::plain_hub(1, file), &ca)?;
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
