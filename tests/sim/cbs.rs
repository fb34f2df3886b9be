//! Seeded random schedules of the CBS relay: devices ask, swap their receivers and are lost; hubs answer in any order,
//! late or never, detach `$cbs` and are lost. What must hold, whatever happens:
//!
//! - a device hears answers to its own requests only, each once;
//! - a device whose links live to the end has an answer to all that it has asked;
//! - a hub never sees a second pair beside a first;
//! - when everybody has gone, nothing is left.

use std::collections::BTreeSet;
use std::time::Duration;

use linkrouterd::amqp::value::Value;
use linkrouterd::router::Snapshot;

use crate::cbs_hub::{
    ASKS, CBS_HUB_AUTO, CbsAnswer, CbsHub, CbsRequest, cbs_settings, encoded, put_token, read_answer, seconds,
};
use crate::peer::{Announces, Auto, Peer};
use crate::schedules;
use crate::wire::terminus;
use crate::world::{Chunks, DEVICE_AUTO, PeerId, Random, World};

const STEPS: usize = 80;

#[test]
fn random_schedules_of_the_cbs_relay_keep_every_promise() {
    let Some(totals) = schedules::run("random_schedules_of_the_cbs_relay_keep_every_promise", 10, run) else {
        return;
    };
    assert!(
        totals.asked > 500 && totals.answered > 300 && totals.complete > 60,
        "{totals:?}"
    );
}

/// Requests, answers to them, and devices that have the answers to all of theirs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    asked: u64,
    answered: usize,
    complete: usize,
    /// [`World::digest`]
    digest: u64,
}

impl std::ops::AddAssign for Totals {
    fn add_assign(&mut self, other: Totals) {
        self.asked += other.asked;
        self.answered += other.answered;
        self.complete += other.complete;
        self.digest ^= other.digest;
    }
}

struct Device {
    peer: PeerId,
    asked: u64,
    /// Handle of its receiver, and those that it has had.
    hears: u32,
    /// It has had one receiver, and nothing of it is gone.
    is_steady: bool,
    /// What it has had answers to.
    heard: BTreeSet<u64>,
}

struct Simulation {
    world: World,
    random: Random,
    devices: Vec<Device>,
    hubs: Vec<(CbsHub, Vec<CbsRequest>)>,
}

pub(crate) fn run(seed: u64) -> Totals {
    let mut random = Random::new(seed);
    let mut settings = cbs_settings();
    if random.one_in(2)
        && let Some(connector) = settings.connectors.first_mut()
    {
        connector.sharing.devices_per_second = 3;
    }
    let mut world = World::seeded(settings, seed ^ 0x5a5a);
    world.chunks = if random.one_in(2) {
        Chunks::Random
    } else {
        Chunks::Whole
    };
    let mut simulation = Simulation {
        world,
        random,
        devices: Vec::new(),
        hubs: Vec::new(),
    };
    for _ in 0..STEPS {
        simulation.act();
        for _ in 0..*[0, 3, 30, 3000].get(simulation.random.below(4)).expect("one") {
            if !simulation.world.step() {
                break;
            }
        }
        simulation.check();
    }
    let mut totals = simulation.settle_down();
    simulation.leave();
    totals.digest = simulation.world.digest;
    totals
}

impl Simulation {
    fn announces(&mut self) -> Announces {
        Announces {
            max_frame_size: *[512, 4096].get(self.random.below(2)).expect("one"),
            window: *[1, 3, 2048].get(self.random.below(3)).expect("one"),
            ..Announces::default()
        }
    }

    fn auto(&mut self, base: Auto) -> Auto {
        Auto {
            credit: *[1, 2, 100].get(self.random.below(3)).expect("one"),
            accept: !self.random.one_in(4),
            ..base
        }
    }

    fn act(&mut self) {
        let (auto, announces) = (self.auto(CBS_HUB_AUTO), self.announces());
        self.world.hub = (!self.random.one_in(10)).then_some((auto, announces));
        let alive: Vec<usize> = (0..self.devices.len())
            .filter(|&it| self.is_talking(it))
            .collect();
        let chosen = alive.get(self.random.below(alive.len())).copied();
        match (self.random.below(24), chosen) {
            (0..3, _) | (_, None) if alive.len() < 8 => self.connect(),
            (3..10, Some(device)) => self.ask(device),
            (10..17, _) => self.answer(),
            (17, Some(device)) => self.swap(device),
            (18, Some(device)) => self.lose(device),
            (19, _) if self.random.one_in(3) => self.lose_hub(),
            (20, _) if self.random.one_in(3) => self.detach_at_hub(),
            (21 | 22, _) => {
                let most = if self.random.one_in(5) { 26_000 } else { 2000 };
                let by = u64::try_from(self.random.below(most)).expect("small");
                self.world.advance(Duration::from_millis(by));
            }
            (23, _) if !self.world.dials.is_empty() => self.world.fail_dial(),
            _ => {}
        }
    }

    fn is_talking(&mut self, device: usize) -> bool {
        let Some(id) = self.devices.get(device).map(|device| device.peer) else {
            return false;
        };
        self.world.is_alive(id) && self.world.peer(id).closed.is_none() && !self.world.peer(id).close_sent
    }

    fn device(&mut self, device: usize) -> &mut Device {
        self.devices.get_mut(device).expect("a device")
    }

    fn connect(&mut self) {
        let (auto, announces) = (self.auto(DEVICE_AUTO), self.announces());
        let Some(peer) = self.world.connect("dev", auto, announces) else {
            return;
        };
        let it = self.world.peer(peer);
        it.open();
        it.begin(0);
        it.attach(0, ASKS, "ask", true, "$cbs");
        self.devices.push(Device {
            peer,
            asked: 0,
            hears: 1,
            is_steady: true,
            heard: BTreeSet::new(),
        });
        self.attach_receiver(peer, 1);
    }

    fn attach_receiver(&mut self, peer: PeerId, handle: u32) {
        let it = self.world.peer(peer);
        let credit = it.auto.credit;
        let name = format!("hear{handle}");
        it.attach_with(
            0,
            handle,
            &name,
            false,
            terminus(0x28, "$cbs"),
            terminus(0x29, &name),
        );
        it.grant(0, handle, credit);
    }

    /// Asks, unless more is under way than is kept for a receiver that is to come.
    fn ask(&mut self, device: usize) {
        let (peer, number) = (self.device(device).peer, self.device(device).asked);
        if number - self.heard(device) as u64 >= 12 {
            return;
        }
        let id = ((peer as u64) << 32) | number;
        let payload = encoded(&put_token(&format!("d{peer}"), Value::Ulong(id)));
        self.device(device).asked += 1;
        self.world.peer(peer).send(0, ASKS, &payload, false);
    }

    /// How many answers the receivers of a device have heard, each of which is its own and new.
    fn heard(&mut self, device: usize) -> usize {
        let device = self.devices.get_mut(device).expect("a device");
        for handle in 1..=device.hears {
            let link = self.world.peer(device.peer).link(0, handle);
            let fresh = link.received.iter().skip(link.looked);
            let fresh: Vec<CbsAnswer> = fresh.map(|it| read_answer(&it.payload)).collect();
            link.looked = link.received.len();
            for answer in fresh {
                let Some(Value::Ulong(id)) = answer.id else {
                    panic!("{answer:?} is no answer to this device");
                };
                assert_eq!(id >> 32, device.peer as u64, "another device's: {answer:?}");
                assert!(id & 0xffff_ffff < device.asked, "{answer:?}");
                assert!(device.heard.insert(id), "twice: {answer:?}");
                assert!([200, 401, 504].contains(&answer.code()), "{answer:?}");
            }
        }
        device.heard.len()
    }

    /// Hubs that the world has made since.
    fn find_hubs(&mut self) {
        for id in 0..self.world.peers.len() {
            let is_hub = self.world.peer(id).kind == crate::peer::Kind::Hub;
            if is_hub && self.hubs.iter().all(|(hub, _)| hub.peer != id) {
                let hub = CbsHub::of(id);
                self.hubs.push((hub, Vec::new()));
            }
        }
    }

    fn hear_requests(&mut self) {
        self.find_hubs();
        for (hub, requests) in &mut self.hubs {
            let fresh = hub.requests(&mut self.world);
            requests.extend(fresh);
        }
    }

    fn answer(&mut self) {
        self.hear_requests();
        for (hub, requests) in &mut self.hubs {
            if !self.world.is_alive(hub.peer) || hub.answers_on(&mut self.world).is_none() {
                continue;
            }
            for _ in 0..self.random.below(4) {
                if requests.is_empty() {
                    break;
                }
                let request = requests.remove(self.random.below(requests.len()));
                let status = if self.random.one_in(4) { 401 } else { 200 };
                hub.say(
                    &mut self.world,
                    &crate::cbs_hub::answer_to(&request, status, "said"),
                );
            }
        }
    }

    fn swap(&mut self, device: usize) {
        let (peer, old) = (self.device(device).peer, self.device(device).hears);
        if self.world.peer(peer).link(0, old).detached.is_some() {
            return;
        }
        self.world.peer(peer).detach(0, old, true, Value::Null);
        self.device(device).hears += 1;
        self.device(device).is_steady = false;
        self.attach_receiver(peer, old + 1);
    }

    fn lose(&mut self, device: usize) {
        let peer = self.device(device).peer;
        if self.random.one_in(2) {
            self.world.lose(peer);
        } else {
            self.world.peer(peer).close(Value::Null);
        }
    }

    fn lose_hub(&mut self) {
        self.find_hubs();
        if let Some((hub, _)) = self.hubs.last()
            && self.world.is_alive(hub.peer)
        {
            self.world.lose(hub.peer);
        }
    }

    fn detach_at_hub(&mut self) {
        self.find_hubs();
        if let Some((hub, requests)) = self.hubs.last_mut()
            && self.world.is_alive(hub.peer)
            && let Some((channel, handle)) = hub.answers_on(&mut self.world)
        {
            self.world
                .peer(hub.peer)
                .detach(channel, handle, true, Value::Null);
            requests.clear();
        }
    }

    fn check(&mut self) {
        for device in 0..self.devices.len() {
            self.heard(device);
        }
        for transport in self.world.peers.iter().filter(|it| it.peer.key.is_some()) {
            let live = live_pairs(&transport.peer);
            assert!(live <= 1, "{live} pairs at once");
        }
    }

    fn settle_down(&mut self) -> Totals {
        self.world.hub = Some((CBS_HUB_AUTO, Announces::default()));
        for _ in 0..12 {
            self.world.run();
            for _ in 0..20 {
                self.answer();
                self.world.run();
            }
            self.world.advance(seconds(3));
        }
        self.check();
        let mut totals = Totals::default();
        for device in 0..self.devices.len() {
            let heard = self.heard(device);
            totals.answered += heard;
            totals.asked += self.device(device).asked;
            let (peer, hears, is_steady) = {
                let device = self.device(device);
                (device.peer, device.hears, device.is_steady)
            };
            if !self.is_talking(device) {
                continue;
            }
            let links = [ASKS, hears].map(|handle| self.world.peer(peer).link(0, handle).detached.is_some());
            if is_steady {
                assert_eq!(links.first(), links.last(), "both ends of a pair go, or neither");
            }
            if links == [false, false] && is_steady {
                assert_eq!(heard as u64, self.device(device).asked, "device {peer}");
                totals.complete += 1;
            }
        }
        totals
    }

    fn leave(&mut self) {
        self.world.hub = None;
        for id in 0..self.world.peers.len() {
            if self.world.is_alive(id) {
                self.world.lose(id);
                self.world.run();
            }
        }
        while !self.world.dials.is_empty() {
            self.world.fail_dial();
        }
        self.world.advance(seconds(30));
        self.world.run();
        assert_eq!(self.world.router.snapshot(), Snapshot::default());
    }
}

/// How many of the router's `$cbs` senders live on a hub's connection.
fn live_pairs(peer: &Peer) -> usize {
    let sessions = peer
        .sessions
        .values()
        .filter(|session| !session.end_sent && !session.is_ended);
    let links = sessions.flat_map(|session| session.links.values());
    links
        .filter(|link| link.name == "cbs-sender" && !link.detach_sent && link.detached.is_none())
        .count()
}
