//! A router without sockets, between devices and a hub that are without them, too: bytes in, bytes out, in turns as the
//! driver takes them.

use std::path::Path;
use std::time::{Instant, SystemTime};

use linkrouterd::daemon::build::{self, Surroundings};
use linkrouterd::router::settings::{ConnectorId, ListenerId};
use linkrouterd::router::{Action, ConnectionKey, Router, TransportInfo};
use linkrouterd::shard::ShardSettings;

use super::Failure;
use super::device::DeviceState;
use super::hub::{HubWork, Serving};
use super::hub_connection::HubConnection;
use super::wire::{self, Input, MessageTemplate, Role, Termini};

/// What a driver reads at once.
const READ: usize = 64 * 1024;

/// Watches what the router does, and nothing else.
pub(crate) trait Meter {
    /// Runs a part of the router's work.
    fn watch<R>(&mut self, work: impl FnOnce() -> R) -> R;
}

/// What the daemon makes of a configuration, which is kept in the directory, as is the file with the certificate `ca`.
pub(crate) fn settings(
    directory: &Path,
    configuration: impl FnOnce(&Path) -> String,
    ca: &str,
) -> Result<ShardSettings, Failure> {
    let (ca_file, file) = (directory.join("ca.pem"), directory.join("bench.conf"));
    std::fs::write(&ca_file, ca)?;
    std::fs::write(&file, configuration(&ca_file))?;
    let surroundings = Surroundings {
        environment: &|_| None,
        now: SystemTime::now(),
        trace_devices: &[],
    };
    let loaded = build::load(&file, &surroundings);
    let plan = loaded
        .plan
        .ok_or_else(|| Failure::new(format!("the configuration is wrong: {:?}", loaded.findings)))?;
    Ok(plan.shard)
}

/// The router, and its peers.
pub(crate) struct Gateway<M> {
    pub(crate) meter: M,
    router: Router,
    now: Instant,
    hub: Option<(ConnectionKey, HubConnection)>,
    from_router: Input,
    work: HubWork,
    devices: Vec<Device>,
}

struct Device {
    key: ConnectionKey,
    state: DeviceState,
    input: Input,
}

impl<M: Meter> Gateway<M> {
    /// With no device.
    pub(crate) fn new(settings: ShardSettings, work: HubWork, meter: M) -> Self {
        let now = Instant::now();
        Self {
            meter,
            router: Router::new(settings.router, now),
            now,
            hub: None,
            from_router: Input::default(),
            work,
            devices: Vec::new(),
        }
    }

    /// Connects devices, each with a link.
    pub(crate) fn connect(&mut self, count: usize) -> Result<(), Failure> {
        let role = match self.work {
            HubWork::Receive => Role::Sender,
            HubWork::Send(_) | HubWork::SendSettled(_) => Role::Receiver,
        };
        for _ in 0..count {
            let number = self.devices.len();
            let device = self.device(number, role)?;
            self.devices.push(device);
            while !self.devices[number].state.is_ready(role) {
                self.hear_device(number)?;
                self.turn_of_hub()?;
                self.tell_device(number)?;
            }
            if role == Role::Receiver {
                self.devices[number].state.give_credit();
                self.hear_device(number)?;
            }
        }
        Ok(())
    }

    fn device(&mut self, number: usize, role: Role) -> Result<Device, Failure> {
        let info = TransportInfo {
            peer: format!("device-{number}"),
            tls: None,
        };
        let key = self.router.accepted(ListenerId(0), info, self.now);
        Ok(Device {
            key: key.ok_or_else(|| Failure::new("no room for a device"))?,
            state: DeviceState::new(number, role),
            input: Input::default(),
        })
    }

    /// A message that devices can send.
    pub(crate) fn template(&self, size: usize) -> MessageTemplate {
        self.devices[0].state.template(size)
    }

    /// Deliveries that have come whole to the hub.
    pub(crate) fn delivered(&self) -> u64 {
        self.hub.as_ref().map_or(0, |(_, hub)| hub.delivered())
    }

    /// What devices and hub have done: deliveries that were sent and settled, and received.
    pub(crate) fn done(&self) -> (u64, u64) {
        self.devices.iter().fold((0, 0), |(settled, received), device| {
            let tally = &device.state.tally;
            (settled + tally.settled, received + tally.received)
        })
    }

    /// Each device sends so many messages, unless it has no credit; then the hub has its turn, and all hear of it.
    pub(crate) fn send_up(&mut self, template: &MessageTemplate, each: usize) -> Result<(), Failure> {
        for number in 0..self.devices.len() {
            let device = &mut self.devices[number].state;
            for _ in 0..each {
                if device.may_send(template.frames()) {
                    device.send(template, None);
                }
            }
            self.hear_device(number)?;
            if self.waiting_for_hub() >= READ {
                self.turn_of_hub()?;
            }
        }
        self.turn_of_hub()?;
        self.tell_devices()
    }

    /// The hub sends what it may, and devices accept it.
    pub(crate) fn send_down(&mut self) -> Result<(), Failure> {
        if let Some((_, hub)) = &mut self.hub {
            hub.pump();
        }
        self.turn_of_hub()?;
        self.tell_devices()?;
        for number in 0..self.devices.len() {
            self.hear_device(number)?;
        }
        self.turn_of_hub()
    }

    /// The first device attaches a link to where nobody is, and is told so.
    pub(crate) fn attach_in_vain(&mut self, address: &str) -> Result<(), Failure> {
        let Self {
            meter,
            router,
            now,
            devices,
            ..
        } = self;
        let device = &mut devices[0];
        let mut said = std::mem::take(&mut device.state.output);
        let termini = Termini {
            source: None,
            target: Some(address),
        };
        wire::attach(&mut said, 0, "vain", 1, Role::Sender, termini);
        wire::detach(&mut said, 0, 1);
        hear(router, meter, device.key, &said, *now)?;
        device.state.output = emptied(said);
        tell(router, meter, device.key, &mut device.input, *now);
        let mut heard = Vec::new();
        while let Some((frame, size)) = wire::read_frame(device.input.rest())? {
            heard.push(frame.code);
            device.input.consume(size);
        }
        device.input.compact();
        if heard != [wire::ATTACH, wire::DETACH] {
            return Err(Failure::new(format!("the attach was answered by {heard:x?}")));
        }
        self.act()
    }

    fn waiting_for_hub(&self) -> usize {
        self.hub
            .as_ref()
            .map_or(0, |(key, _)| self.router.transmit(*key).len())
    }

    fn tell_devices(&mut self) -> Result<(), Failure> {
        (0..self.devices.len()).try_for_each(|number| self.tell_device(number))
    }

    /// The router takes what a device has said.
    fn hear_device(&mut self, number: usize) -> Result<(), Failure> {
        let Self {
            meter,
            router,
            now,
            devices,
            ..
        } = self;
        let device = &mut devices[number];
        if device.state.output.is_empty() {
            return Ok(());
        }
        let output = std::mem::take(&mut device.state.output);
        hear(router, meter, device.key, &output, *now)?;
        device.state.output = emptied(output);
        self.act()
    }

    /// A device takes what the router has for it.
    fn tell_device(&mut self, number: usize) -> Result<(), Failure> {
        let device = &mut self.devices[number];
        if self.router.transmit(device.key).is_empty() {
            return Ok(());
        }
        tell(
            &mut self.router,
            &mut self.meter,
            device.key,
            &mut device.input,
            self.now,
        );
        device.state.take(&mut device.input)?;
        self.act()
    }

    /// The hub takes what the router has for it, and the router what the hub says.
    fn turn_of_hub(&mut self) -> Result<(), Failure> {
        let Self {
            meter,
            router,
            now,
            hub,
            from_router,
            ..
        } = self;
        let Some((key, hub)) = hub else { return Ok(()) };
        // Until neither has anything to say; what the hub says may make room for more.
        loop {
            let told = tell(router, meter, *key, from_router, *now);
            hub.take(from_router)?;
            let output = std::mem::take(&mut hub.output);
            hear(router, meter, *key, &output, *now)?;
            let is_quiet = told == 0 && output.is_empty();
            hub.output = emptied(output);
            if is_quiet {
                break;
            }
        }
        self.act()
    }

    fn act(&mut self) -> Result<(), Failure> {
        while let Some(action) = self.meter.watch(|| self.router.poll_action()) {
            match action {
                // All connections are looked at in their turn.
                Action::Wake(_) => {}
                Action::Dial(connector) => self.dialed(connector)?,
                Action::Authenticate(..) => return Err(Failure::new("a log-in of a device that has none")),
            }
        }
        Ok(())
    }

    fn dialed(&mut self, connector: ConnectorId) -> Result<(), Failure> {
        let info = TransportInfo {
            peer: "hub".into(),
            tls: Some("TLSv1.3".into()),
        };
        let key = self.router.dialed(connector, info, self.now);
        let key = key.ok_or_else(|| Failure::new("a dial that is not wanted"))?;
        if self.hub.is_some() {
            return Err(Failure::new("a second connection to the hub"));
        }
        self.hub = Some((key, HubConnection::new(Serving::without_sockets(self.work))));
        self.turn_of_hub()
    }
}

/// The router takes what a peer has said, a driver's read at a time.
fn hear(
    router: &mut Router,
    meter: &mut impl Meter,
    key: ConnectionKey,
    mut bytes: &[u8],
    now: Instant,
) -> Result<(), Failure> {
    while !bytes.is_empty() {
        let (read, rest) = bytes.split_at(READ.min(bytes.len()));
        let may_read = meter.watch(|| {
            let may_read = router.may_read(key);
            if may_read {
                router.handle_input(key, read, now);
            }
            may_read
        });
        if !may_read {
            return Err(Failure::new(format!("the router does not read from {key:?}")));
        }
        bytes = rest;
    }
    Ok(())
}

/// A peer's input gets what the router has for it; tells how much that is.
fn tell(
    router: &mut Router,
    meter: &mut impl Meter,
    key: ConnectionKey,
    input: &mut Input,
    now: Instant,
) -> usize {
    let mut told = 0;
    loop {
        let bytes = router.transmit(key);
        let count = bytes.len();
        if count == 0 {
            return told;
        }
        input.buffer().extend_from_slice(bytes);
        meter.watch(|| router.transmitted(key, count, now));
        told += count;
    }
}

/// The same buffer with nothing in it.
fn emptied(mut buffer: Vec<u8>) -> Vec<u8> {
    buffer.clear();
    buffer
}
