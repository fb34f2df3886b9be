//! Seeded random schedules: devices and hubs that do what peers may do, in any order and cut anywhere, and are lost at
//! any moment. Some never answer a detach, an attach or an end. What must hold, whatever happens:
//!
//! - every frame from the router is legal for its receiver ([`peer`](crate::peer) checks windows, credit, handles, and
//!   that delivery-ids have no gap);
//! - what a link carries is whole, in order, once; a link that lives to the end has carried all;
//! - a detach is answered, by the router if need be;
//! - a sender hears of a settlement only if the receiver said so, or if the link was lost on the way;
//! - when everybody has gone, the router is empty.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use linkrouterd::amqp::value::Value;
use linkrouterd::router::settings::{Destination, Direction, ListenerId, ListenerRole, RouterSettings};

use crate::peer::{Announces, Auto, Kind, Link, Peer};
use crate::wire;
use crate::world::{Chunks, DEVICE_AUTO, HUB_AUTO, PeerId, Random, World, settings};

const SCHEDULES: u64 = 2000;
const STEPS: usize = 60;

/// Marks a message with the link that it was sent on, and its number there.
const MARK: usize = 16;

#[test]
fn random_schedules_keep_every_promise() {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("LINKROUTERD_SEED") {
        let trace = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .without_time();
        tracing::subscriber::with_default(trace.finish(), || run(seed));
        return;
    }
    let mut totals = Totals::default();
    for seed in 0..number("LINKROUTERD_SCHEDULES").unwrap_or(SCHEDULES) {
        match catch_unwind(AssertUnwindSafe(|| run(seed))) {
            Ok(outcome) => totals.add(outcome),
            Err(panic) => {
                eprintln!("LINKROUTERD_SEED={seed} replays this schedule");
                resume_unwind(panic);
            }
        }
    }
    println!("{totals:?}");
    // A simulation in which nothing happens proves nothing.
    assert!(
        totals.messages > 1000 && totals.settled > 500 && totals.losses > 100,
        "{totals:?}"
    );
    assert!(totals.complete_links > 500, "{totals:?}");
    assert!(totals.further > 20, "{totals:?}");
    assert!(totals.silent > 100 && totals.resumable > 500, "{totals:?}");
}

#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    messages: usize,
    settled: usize,
    losses: usize,
    complete_links: usize,
    /// Peers that leave something unanswered.
    silent: usize,
    /// Further connections that there were at the end of schedules.
    further: usize,
    /// Links that are to outlive their connection.
    resumable: usize,
}

impl Totals {
    fn add(&mut self, other: Totals) {
        self.messages += other.messages;
        self.settled += other.settled;
        self.losses += other.losses;
        self.complete_links += other.complete_links;
        self.silent += other.silent;
        self.further += other.further;
        self.resumable += other.resumable;
    }
}

struct Simulation {
    world: World,
    settings: RouterSettings,
    random: Random,
    totals: Totals,
    /// Nobody goes before the end.
    is_calm: bool,
    /// Two connectors and the brokers of a listener serve the same addresses.
    has_choice: bool,
    next_handle: u32,
    next_device: usize,
    next_channel: u16,
}

fn run(seed: u64) -> Totals {
    let mut random = Random::new(seed);
    let mut settings = settings();
    if random.one_in(3) {
        if let Some(listener) = settings.listeners.first_mut() {
            listener.limits.incoming_window = Some(1 + u32::try_from(random.below(4)).expect("small"));
            listener.limits.max_frame_size = 512;
        }
        if let Some(connector) = settings.connectors.first_mut() {
            connector.limits.incoming_window = Some(1 + u32::try_from(random.below(4)).expect("small"));
            connector.limits.max_frame_size = 1024;
        }
    }
    let mut limits = Random::new(seed ^ 0x7001);
    if limits.one_in(6) {
        limit_connections(&mut settings, &mut limits);
    }
    let has_choice = random.one_in(2);
    if has_choice {
        offer_choice(&mut settings);
    }
    let mut world = World::new(settings.clone());
    world.keeps_logs = false;
    world.random = Random::new(seed ^ 0xabcd);
    world.chunks = *[Chunks::Random, Chunks::Random, Chunks::Whole]
        .get(random.below(3))
        .expect("one");
    let mut simulation = Simulation {
        world,
        settings,
        random,
        totals: Totals::default(),
        is_calm: seed.is_multiple_of(3),
        has_choice,
        next_handle: 0,
        next_device: 0,
        next_channel: 0,
    };
    for _ in 0..STEPS {
        simulation.act();
        simulation.some_turns();
        simulation.check_links();
    }
    simulation.settle_down();
    simulation.check_complete();
    let connectors = simulation.world.router.connectors();
    simulation.totals.further += connectors.filter(|connector| connector.is_further).count();
    simulation.leave();
    simulation.totals
}

/// A connector that is full with a few links, and has several connections.
fn limit_connections(settings: &mut RouterSettings, random: &mut Random) {
    if let Some(connector) = settings.connectors.first_mut() {
        connector.sharing.max_links = 1 + random.below(3);
        connector.sharing.pool_size = 2 + random.below(3);
        connector.limits.channel_max = *[1, 2, 32767].get(random.below(3)).expect("one");
    }
}

/// A second connector, and a listener for brokers, behind the addresses of the first; one of them under other names.
fn offer_choice(settings: &mut RouterSettings) {
    let mut second = settings.connectors.first().expect("a connector").clone();
    second.name = "HUB2".into();
    settings.connectors.push(second);
    let mut brokers = settings.listeners.first().expect("a listener").clone();
    brokers.name = "BROKERS".into();
    brokers.role = ListenerRole::RouteContainer;
    settings.listeners.push(brokers);
    for (name, added) in [("HUB2", "second/"), ("BROKERS", "")] {
        for direction in [Direction::In, Direction::Out] {
            let mut route = settings.routes.first().expect("a route").clone();
            route.name = format!("{name} {direction:?}");
            route.direction = direction;
            route.destination = Destination::Connection(name.into());
            route.add_external_prefix = added.into();
            settings.routes.push(route);
        }
    }
}

impl Simulation {
    fn some_turns(&mut self) {
        let turns = *[0, 1, 5, 40, 100, 4000].get(self.random.below(6)).expect("one");
        for _ in 0..turns {
            if !self.world.step() {
                break;
            }
        }
    }

    fn announces(&mut self) -> Announces {
        let first = *[0, 0xffff_fffd, 7].get(self.random.below(3)).expect("one");
        Announces {
            max_frame_size: *[512, 700, 4096, 65536].get(self.random.below(4)).expect("one"),
            idle_time_out: None,
            channel_max: 8191,
            window: *[1, 2, 5, 2048].get(self.random.below(4)).expect("one"),
            first_transfer_id: first,
            first_delivery_id: first.wrapping_add(u32::try_from(self.random.below(3)).expect("small")),
            ..Announces::default()
        }
    }

    fn auto(&mut self, base: Auto) -> Auto {
        let mut answers = |usually: bool| usually && !self.random.one_in(12);
        Auto {
            attach: answers(base.attach),
            detach: answers(base.detach),
            end: answers(base.end),
            credit: *[1, 3, 50].get(self.random.below(3)).expect("one"),
            accept: self.random.one_in(2),
            ..base
        }
    }

    /// Something that some peer may do now.
    fn act(&mut self) {
        let (hub_auto, hub_announces) = (self.auto(HUB_AUTO), self.announces());
        self.world.hub = (!self.random.one_in(20)).then_some((hub_auto, hub_announces));
        let alive: Vec<PeerId> = (0..self.world.peers.len())
            .filter(|&id| self.world.is_alive(id))
            .collect();
        let chosen = alive.get(self.random.below(alive.len())).copied();
        let what = self.random.below(38);
        if self.is_calm && matches!(what, 28 | 29 | 31 | 32) {
            return;
        }
        match (what, chosen) {
            (0..5, _) | (_, None) if alive.len() < 6 => self.connect(),
            (_, None) => {}
            (5..11, Some(id)) => self.attach(id),
            (11..22, Some(id)) => self.send(id),
            (22..28, Some(id)) => self.settle_some(id),
            (28, Some(id)) => self.detach(id),
            (29, Some(id)) => self.end(id),
            (30, Some(id)) => self.begin(id),
            (31, Some(id)) => {
                self.totals.losses += 1;
                if self.random.one_in(2) {
                    self.world.lose(id);
                } else {
                    self.world.end_of_stream(id);
                }
            }
            (32, Some(id)) if self.random.one_in(3) && self.is_talking(id) => {
                self.world.peer(id).close(Value::Null);
            }
            (33, Some(id)) => {
                let reads = !self.random.one_in(3);
                self.world.set_reads(id, reads);
            }
            (34, Some(id)) => {
                let speaks = !self.random.one_in(3);
                self.world.set_speaks(id, speaks);
            }
            (35, _) => {
                let most = if self.random.one_in(4) { 25_000 } else { 3000 };
                let by = Duration::from_millis(u64::try_from(self.random.below(most)).expect("small"));
                self.world.advance(by);
            }
            (36, _) if !self.world.dials.is_empty() => self.world.fail_dial(),
            (37, _) => self.reload(),
            _ => {}
        }
    }

    /// Another configuration, which is mostly the same one.
    fn reload(&mut self) {
        let connector = self.settings.connectors.first_mut().expect("a connector");
        if !self.is_calm && self.random.one_in(4) {
            let user = connector.sasl_username.take();
            connector.sasl_username = user.is_none().then(|| "other".to_owned());
            self.totals.losses += 1;
        }
        let before = self.world.router.snapshot();
        let reloaded = self.world.reconfigure(self.settings.clone());
        if reloaded.changed == 0 {
            assert_eq!(self.world.router.snapshot(), before, "nothing changed");
        }
    }

    fn connect(&mut self) {
        self.next_device += 1;
        let (auto, announces) = (self.auto(DEVICE_AUTO), self.announces());
        // Some devices share their container-id.
        let name = format!("dev{}", self.next_device % 3);
        if self.has_choice && self.random.one_in(4) {
            let auto = Auto {
                begin: true,
                attach: true,
                ..auto
            };
            self.world.broker_with(ListenerId(1), "broker", auto, announces);
            return;
        }
        let id = self.world.connect(&name, auto, announces).expect("room");
        self.world.peer(id).open();
        self.world.peer(id).begin(0);
    }

    fn is_talking(&mut self, id: PeerId) -> bool {
        let peer = self.world.peer(id);
        peer.is_open && !peer.close_sent && peer.closed.is_none()
    }

    fn channel_of(&mut self, id: PeerId) -> Option<u16> {
        if !self.is_talking(id) {
            return None;
        }
        let channels: Vec<u16> = self
            .world
            .peer(id)
            .sessions
            .iter()
            .filter(|(_, session)| !session.end_sent && !session.is_ended && session.remote.is_some())
            .map(|(&channel, _)| channel)
            .collect();
        channels.get(self.random.below(channels.len())).copied()
    }

    fn begin(&mut self, id: PeerId) {
        if self.world.peer(id).kind == Kind::Device && self.is_talking(id) {
            self.next_channel = (self.next_channel + 1) % 1000;
            let channel = self.next_channel;
            if !self.world.peer(id).sessions.contains_key(&channel) {
                self.world.peer(id).begin(channel);
            }
        }
    }

    fn attach(&mut self, id: PeerId) {
        let Some(channel) = self.channel_of(id) else {
            return;
        };
        if self.world.peer(id).kind != Kind::Device {
            return;
        }
        self.next_handle += 1;
        let handle = self.next_handle % 4000;
        let is_sender = self.random.one_in(2);
        let name = format!("link{}", self.random.below(4));
        // A name that is in use is in use (AMQP 1.0 part 2, §2.6.1).
        let in_use = |link: &Link| link.name == name && link.is_sender == is_sender && !link.detach_sent;
        if self
            .world
            .peer(id)
            .sessions
            .values()
            .any(|session| session.links.values().any(in_use))
        {
            return;
        }
        let address = match self.random.below(12) {
            0 => "nowhere",
            _ => "/devices/d1/messages",
        };
        let routed = self.terminus(if is_sender { 0x29 } else { 0x28 }, address);
        let (source, target) = match is_sender {
            true => (wire::terminus(0x28, "here"), routed),
            false => (routed, wire::terminus(0x29, "here")),
        };
        self.world
            .peer(id)
            .attach_with(channel, handle, &name, is_sender, source, target);
        if !is_sender && self.random.one_in(2) {
            let credit = self.world.peer(id).auto.credit;
            self.world.peer(id).grant(channel, handle, credit);
        }
        if self.random.one_in(12) {
            self.world.peer(id).detach(channel, handle, true, Value::Null);
        }
    }

    /// A terminus of any life time.
    fn terminus(&mut self, code: u64, address: &str) -> Value {
        let policies = ["link-detach", "session-end", "connection-close", "never"];
        let policy = policies.get(self.random.below(6)).copied();
        let timeout = if self.random.one_in(8) { 60 } else { 0 };
        self.totals.resumable += usize::from(policy == Some("never") || timeout > 0);
        let fields = vec![
            wire::string(address),
            Value::Null,
            policy.map_or(Value::Null, wire::symbol),
            wire::uint(timeout),
        ];
        wire::described(code, fields)
    }

    /// A live link, of a peer's choice.
    fn link_of(&mut self, id: PeerId, is_sender: bool) -> Option<(u16, u32)> {
        let channel = self.channel_of(id)?;
        let handles: Vec<u32> = self
            .world
            .peer(id)
            .session(channel)
            .links
            .iter()
            .filter(|(_, link)| link.is_sender == is_sender && link.remote.is_some() && !link.detach_sent)
            .map(|(&handle, _)| handle)
            .collect();
        Some((channel, *handles.get(self.random.below(handles.len()))?))
    }

    fn send(&mut self, id: PeerId) {
        let Some((channel, handle)) = self.link_of(id, true) else {
            return;
        };
        for _ in 0..1 + self.random.below(5) {
            let link = self.world.peer(id).link(channel, handle);
            let number = u64::from(link.sent) + link.queue.len() as u64;
            let mark = ((id as u64) << 32) | (u64::from(channel) << 16) | u64::from(handle);
            let size = MARK
                + *[0, 10, 10, 400, 400, 2000, 20_000]
                    .get(self.random.below(7))
                    .expect("one");
            let mut payload = mark.to_be_bytes().to_vec();
            payload.extend(number.to_be_bytes());
            payload.resize(size, (number % 251) as u8);
            let settled = self.random.one_in(3);
            self.world
                .peer(id)
                .link(channel, handle)
                .queue
                .push_back((payload, settled));
            self.totals.messages += 1;
        }
        if self.random.one_in(3) {
            // A part of a message only.
            let limit = 1 + self.random.below(400);
            self.world.peer(id).send_piece(channel, handle, limit);
        } else {
            self.world.peer(id).push_out(channel);
        }
    }

    /// A receiver settles some of what it has, singly or as a range.
    fn settle_some(&mut self, id: PeerId) {
        let Some((channel, handle)) = self.link_of(id, false) else {
            return;
        };
        let open: Vec<u32> = self
            .world
            .peer(id)
            .link(channel, handle)
            .received
            .iter()
            .filter(|delivery| !delivery.settled && delivery.outcome.is_none())
            .map(|delivery| delivery.id)
            .collect();
        for delivery in open.into_iter().take(1 + self.random.below(4)) {
            let outcomes = [wire::ACCEPTED, wire::REJECTED, wire::RELEASED, wire::MODIFIED];
            let outcome = *outcomes.get(self.random.below(4)).expect("one");
            self.totals.settled += 1;
            self.world.peer(id).settle(channel, handle, delivery, outcome);
        }
        if self.random.one_in(8) {
            // Nobody knows these.
            self.world
                .peer(id)
                .dispose(channel, true, 0x4000_0000, 0x4000_0005, true, Value::Null);
        }
    }

    fn detach(&mut self, id: PeerId) {
        let is_sender = self.random.one_in(2);
        if let Some((channel, handle)) = self.link_of(id, is_sender) {
            let closed = self.random.one_in(2);
            self.world.peer(id).detach(channel, handle, closed, Value::Null);
        }
    }

    fn end(&mut self, id: PeerId) {
        if let Some(channel) = self.channel_of(id) {
            self.world.peer(id).end(channel, Value::Null);
        }
    }

    // ---- what must hold ------------------------------------------------------------------------------------------

    /// Whatever has come in on a link is one sender's, whole, in order, from the first on.
    fn check_links(&mut self) {
        for transport in &self.world.peers {
            for session in transport.peer.sessions.values() {
                for link in session.links.values().filter(|link| !link.is_sender) {
                    check_received(&transport.peer, link);
                }
            }
        }
    }

    /// Everybody reads and speaks, nothing new begins: all that can arrive arrives.
    fn settle_down(&mut self) {
        if self.world.hub.is_none() {
            self.world.hub = Some((HUB_AUTO, Announces::default()));
        }
        for id in 0..self.world.peers.len() {
            self.world.set_reads(id, true);
            self.world.set_speaks(id, true);
        }
        self.world.run();
        for _ in 0..3 {
            for id in 0..self.world.peers.len() {
                if !self.world.is_alive(id) || !self.is_talking(id) {
                    continue;
                }
                let credit = self.world.peer(id).auto.credit;
                for (channel, handle, is_sender) in live_links(self.world.peer(id)) {
                    if is_sender {
                        self.world.peer(id).push_out(channel);
                    } else if self.world.peer(id).link(channel, handle).credit < credit {
                        self.world.peer(id).grant(channel, handle, credit);
                    }
                }
            }
            self.world.run();
        }
        // Attaches that wait for a redial, back-off, and detaches that nobody answers.
        self.world.advance(Duration::from_secs(45));
        self.world.run();
    }

    fn check_complete(&mut self) {
        self.check_links();
        self.totals.silent += self
            .world
            .peers
            .iter()
            .map(|transport| transport.peer.auto)
            .filter(|auto| !(auto.detach && auto.end))
            .count();
        let snapshot = self.world.router.snapshot();
        assert_eq!(
            (snapshot.parked_bytes, snapshot.held_bytes, snapshot.outbox_bytes),
            (0, 0, 0),
            "{snapshot:?}"
        );
        let all_attaches_answered = !self
            .world
            .peers
            .iter()
            .any(|transport| transport.peer.kind == Kind::Hub && !transport.peer.auto.attach);
        let mut received: BTreeMap<u64, (usize, BTreeMap<u32, u64>)> = BTreeMap::new();
        for transport in self
            .world
            .peers
            .iter()
            .filter(|transport| transport.peer.key.is_some())
        {
            for link in transport
                .peer
                .sessions
                .values()
                .flat_map(|session| session.links.values())
            {
                if let Some(first) = link.received.first() {
                    let outcomes = (0u32..)
                        .zip(&link.received)
                        .filter_map(|(number, delivery)| Some((number, delivery.outcome?)))
                        .collect();
                    received.insert(mark(&first.payload), (link.received.len(), outcomes));
                }
            }
        }
        for (id, transport) in self.world.peers.iter().enumerate() {
            if transport.peer.key.is_none() || !transport.peer.is_open || transport.peer.close_sent {
                continue;
            }
            for (&channel, session) in &transport.peer.sessions {
                if session.end_sent || session.is_ended {
                    continue;
                }
                for (&handle, link) in &session.links {
                    let ends = (link.remote.is_some(), link.detach_sent, link.detached.is_some());
                    let is_as_it_should_be = match ends {
                        (true, false, false) | (true, true, true) => true,
                        // What it does not answer.
                        (true, false, true) => !transport.peer.auto.detach,
                        // What the hub has not answered, so far.
                        (false, false, false) => !all_attaches_answered,
                        _ => false,
                    };
                    assert!(
                        is_as_it_should_be,
                        "{} {channel}/{handle} {}: attached, detached, answered: {ends:?}",
                        transport.peer.container, link.name
                    );
                    let is_live = link.remote.is_some() && !link.detach_sent && link.detached.is_none();
                    if !link.is_sender || !is_live || link.sent == 0 {
                        continue;
                    }
                    let mark = ((id as u64) << 32) | (u64::from(channel) << 16) | u64::from(handle);
                    let what = format!("{} {channel}/{handle} {}", transport.peer.container, link.name);
                    assert!(
                        link.queue.is_empty(),
                        "{what}: {} messages had no way",
                        link.queue.len()
                    );
                    let (count, outcomes) = received
                        .get(&mark)
                        .unwrap_or_else(|| panic!("{what}: all is lost"));
                    assert_eq!(
                        *count, link.sent as usize,
                        "{what}: sent is not what was received"
                    );
                    let settled: BTreeMap<u32, u64> = link
                        .settled
                        .iter()
                        .map(|&(number, state)| (number, state.unwrap_or(0)))
                        .collect();
                    assert_eq!(settled.len(), link.settled.len(), "{what}: settled twice");
                    assert_eq!(&settled, outcomes, "{what}: settlements");
                    self.totals.complete_links += 1;
                }
            }
        }
    }

    /// Everybody goes, each in its own way; nothing may be left.
    fn leave(&mut self) {
        self.world.hub = None;
        let ids: BTreeSet<PeerId> = (0..self.world.peers.len()).collect();
        for id in ids {
            if !self.world.is_alive(id) {
                continue;
            }
            if self.random.one_in(2) {
                self.world.lose(id);
            } else if self.is_talking(id) {
                self.world.peer(id).close(Value::Null);
            } else {
                self.world.end_of_stream(id);
            }
            self.world.run();
        }
        while !self.world.dials.is_empty() {
            self.world.fail_dial();
        }
        self.world.run();
        assert!(self.world.router.is_empty(), "{:?}", self.world.router.snapshot());
        assert_eq!(
            self.world.router.snapshot(),
            linkrouterd::router::Snapshot::default()
        );
    }
}

fn live_links(peer: &Peer) -> Vec<(u16, u32, bool)> {
    let mut links = Vec::new();
    for (&channel, session) in &peer.sessions {
        if session.end_sent || session.is_ended || session.remote.is_none() {
            continue;
        }
        for (&handle, link) in &session.links {
            if link.remote.is_some() && !link.detach_sent && link.detached.is_none() {
                links.push((channel, handle, link.is_sender));
            }
        }
    }
    links
}

fn mark(payload: &[u8]) -> u64 {
    u64::from_be_bytes(*payload.first_chunk::<8>().expect("a mark"))
}

fn check_received(peer: &Peer, link: &Link) {
    let what = || format!("{} {}", peer.container, link.name);
    for (number, delivery) in (0u64..).zip(&link.received) {
        let first = &link.received.first().expect("not empty").payload;
        assert_eq!(mark(&delivery.payload), mark(first), "{}: two senders", what());
        let seen = u64::from_be_bytes(
            *delivery
                .payload
                .get(8..16)
                .and_then(|n| n.first_chunk())
                .expect("a number"),
        );
        assert_eq!(seen, number, "{}: lost, doubled or out of order", what());
        let filling = (number % 251) as u8;
        let is_whole = delivery
            .payload
            .get(MARK..)
            .is_some_and(|rest| rest.iter().all(|&byte| byte == filling));
        assert!(is_whole, "{}: message {number} is damaged", what());
        assert_eq!(
            delivery.tag,
            u32::try_from(number).expect("small").to_be_bytes(),
            "{}: tag",
            what()
        );
    }
}
