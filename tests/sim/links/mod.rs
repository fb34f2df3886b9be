//! Links that are routed: what must hold, whatever happens.
//!
//! - Every frame from the router is legal for its receiver ([`peer`](crate::peer) checks windows, credit, handles, and
//!   that delivery-ids and transfer-ids have no gap).
//! - What a link carries is whole, in order, once; a link that lives to the end has carried all ([`ledger`]).
//! - A sender hears of a settlement only if the receiver said so, or if the link was lost on the way; so does a receiver.
//! - An attach and a detach are answered, by the router if need be.
//! - What waits for anybody stays within its budget.
//! - Whoever does what is forbidden loses its session or its connection for it, and nobody else notices.
//! - When everybody has gone, or the router has stopped, it is empty.

mod acts;
mod ledger;
mod offences;
mod promises;
mod setup;

use std::time::Duration;

use linkrouterd::amqp::value::Value;
use linkrouterd::router::Snapshot;

use crate::peer::{Auto, Kind};
use crate::schedules;
use crate::world::{HUB_AUTO, PeerId, Random, World};
use ledger::Ledger;
use offences::Offence;
use setup::{Setup, Temper};

const STEPS: usize = 60;

#[test]
fn random_schedules_keep_every_promise() {
    let Some(totals) = schedules::run("random_schedules_keep_every_promise", 1, run) else {
        return;
    };
    // A simulation in which nothing happens proves nothing.
    assert!(totals.messages > 10_000 && totals.settled > 2000, "{totals:?}");
    assert!(
        totals.complete_links > 1000 && totals.undisturbed > 5000,
        "{totals:?}"
    );
    assert!(totals.losses > 1000 && totals.stops > 100, "{totals:?}");
    assert!(
        totals.silent > 500 && totals.resumable > 1000 && totals.further > 10,
        "{totals:?}"
    );
    assert!(totals.offences > 300 && totals.half_open > 300, "{totals:?}");
    assert!(totals.parked > 300 * 1024, "{totals:?}");
}

/// What happened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    messages: usize,
    /// Settlements that a receiver, or the sender, has made, other than those that it makes by itself.
    settled: usize,
    losses: usize,
    complete_links: usize,
    /// Peers that leave something unanswered.
    silent: usize,
    /// Further connections that there were at the end of schedules.
    further: usize,
    /// Links that are to outlive their connection.
    resumable: usize,
    offences: usize,
    half_open: usize,
    stops: usize,
    /// Most bytes of devices that have waited for hubs in one schedule.
    parked: usize,
    /// Messages of bystanders that arrived at once, whatever the others did.
    undisturbed: usize,
    /// [`World::digest`]
    digest: u64,
}

impl std::ops::AddAssign for Totals {
    fn add_assign(&mut self, other: Totals) {
        self.messages += other.messages;
        self.settled += other.settled;
        self.losses += other.losses;
        self.complete_links += other.complete_links;
        self.silent += other.silent;
        self.further += other.further;
        self.resumable += other.resumable;
        self.offences += other.offences;
        self.half_open += other.half_open;
        self.stops += other.stops;
        self.parked = self.parked.max(other.parked);
        self.undisturbed += other.undisturbed;
        self.digest ^= other.digest;
    }
}

/// What a peer has done, or suffered, other than what a peer should.
#[derive(Clone, Debug, Default)]
struct Conduct {
    /// Did not read, or did not speak, for a time.
    has_stalled: bool,
    /// Does neither any more, and nobody has told the router.
    is_half_open: bool,
    /// Its transport broke, or it has closed.
    has_gone: bool,
    offence: Option<Offence>,
}

struct Simulation {
    world: World,
    setup: Setup,
    random: Random,
    totals: Totals,
    ledger: Ledger,
    conducts: Vec<Conduct>,
    /// A device that does no wrong, in a steady schedule.
    bystander: Option<PeerId>,
    hub_is_away: bool,
    next_handle: u32,
    next_device: usize,
    next_channel: u16,
}

pub(crate) fn run(seed: u64) -> Totals {
    let mut random = Random::new(seed);
    let setup = Setup::of(seed, &mut random);
    let mut world = World::seeded(setup.settings.clone(), seed ^ 0xabcd);
    world.keeps_logs = false;
    world.chunks = setup.chunks;
    let mut simulation = Simulation {
        world,
        setup,
        random,
        totals: Totals::default(),
        ledger: Ledger::default(),
        conducts: Vec::new(),
        bystander: None,
        hub_is_away: false,
        next_handle: 0,
        next_device: 0,
        next_channel: 0,
    };
    simulation.place_bystander();
    for _ in 0..STEPS {
        simulation.draw_hub();
        simulation.bystander_speaks();
        simulation.act();
        simulation.open_windows();
        let is_at_rest = simulation.some_turns();
        simulation.check(is_at_rest);
    }
    simulation.settle_down();
    simulation.check_complete();
    if simulation.random.one_in(4) {
        simulation.stop();
    } else {
        simulation.leave();
    }
    simulation.finish()
}

impl Simulation {
    /// Whether nothing moves any more.
    fn some_turns(&mut self) -> bool {
        let turns = *[0, 1, 5, 40, 100, 4000].get(self.random.below(6)).expect("one");
        (0..turns).any(|_| !self.world.step())
    }

    fn conduct(&mut self, id: PeerId) -> &mut Conduct {
        if self.conducts.len() <= id {
            self.conducts.resize(id + 1, Conduct::default());
        }
        self.conducts.get_mut(id).expect("just made")
    }

    /// Something that some peer may do now.
    fn act(&mut self) {
        let alive = self.alive();
        let chosen = alive.get(self.random.below(alive.len())).copied();
        match (self.random.below(47), chosen) {
            (0..5, _) | (_, None) if alive.len() < 7 => self.connect(),
            (_, None) => {}
            (5..11, _) => self.somebody(&alive, Self::attach),
            (11..22, _) => self.somebody(&alive, Self::send),
            (22..29, _) => self.somebody(&alive, Self::settle_some),
            (29, _) => self.somebody(&alive, Self::forget_one),
            (30, Some(id)) if self.may_misbehave(id) => self.drain(id),
            (31, Some(id)) => self.begin(id),
            (32 | 33, _) => self.pass_time(),
            (34, _) => self.treat_dial(),
            (35, _) => self.reload(),
            (_, Some(id)) if self.may_misbehave(id) => self.misbehave(id),
            _ => {}
        }
    }

    fn alive(&self) -> Vec<PeerId> {
        (0..self.world.peers.len())
            .filter(|&id| self.world.is_alive(id))
            .collect()
    }

    /// The first of a few peers that can do it.
    fn somebody(&mut self, alive: &[PeerId], act: fn(&mut Self, PeerId) -> Option<()>) {
        for _ in 0..4 {
            let chosen = alive.get(self.random.below(alive.len())).copied();
            if chosen.is_some_and(|id| act(self, id).is_some()) {
                return;
            }
        }
    }

    fn may_misbehave(&mut self, id: PeerId) -> bool {
        match self.setup.temper {
            Temper::Steady => self.world.peer(id).kind == Kind::Device && self.bystander != Some(id),
            Temper::Calm | Temper::Wild => true,
        }
    }

    /// Whatever is hard on the others. Where nobody may go, peers only stall.
    fn misbehave(&mut self, id: PeerId) {
        let is_calm = self.setup.temper == Temper::Calm;
        match self.random.below(11) {
            0 => self.stall_reading(id),
            1 => self.stall_speaking(id),
            _ if is_calm => {}
            2 => self.detach(id),
            3 => self.end(id),
            4 => self.close(id),
            5 | 6 => self.lose(id),
            7 => self.go_half_open(id),
            _ => self.offend(id),
        }
    }

    // ---- the end -------------------------------------------------------------------------------------------------

    /// Everybody reads and speaks, nothing new begins: all that can arrive arrives.
    fn settle_down(&mut self) {
        self.hub_is_away = false;
        self.setup.hubs_come_and_go = false;
        self.draw_hub();
        let hub = self
            .world
            .hub
            .unwrap_or((HUB_AUTO, crate::peer::Announces::default()));
        self.world.hub = Some((
            Auto {
                window: true,
                ..hub.0
            },
            hub.1,
        ));
        for id in 0..self.world.peers.len() {
            self.world.peer(id).auto.window = true;
            if !self.conduct(id).is_half_open {
                self.world.set_reads(id, true);
                self.world.set_speaks(id, true);
            } else if !self.setup.has_deadlines {
                self.world.lose(id);
            }
        }
        self.world.run();
        self.open_windows();
        for _ in 0..3 {
            for id in 0..self.world.peers.len() {
                if self.world.is_alive(id) && self.is_talking(id) {
                    self.push_and_grant(id);
                }
            }
            self.world.run();
        }
        // Attaches that wait for a redial, back-off, and detaches that nobody answers; and silence that has an end.
        self.advance(Duration::from_secs(45));
        self.world.run();
        self.check_silence();
        self.world.run();
    }

    /// Everybody goes, each in its own way.
    fn leave(&mut self) {
        self.world.hub = None;
        for id in 0..self.world.peers.len() {
            if !self.world.is_alive(id) {
                continue;
            }
            self.conduct(id).has_gone = true;
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
    }

    /// The router stops, in its own time.
    fn stop(&mut self) {
        self.totals.stops += 1;
        self.world.hub = None;
        self.world.router.shutdown(self.world.now);
        self.world.dials.clear();
        for id in 0..self.world.peers.len() {
            self.conduct(id).has_gone = true;
        }
        self.world.run();
        self.world.advance(Duration::from_secs(12));
        self.world.run();
    }

    /// Nothing may be left.
    fn finish(mut self) -> Totals {
        self.ledger.check(&mut self.world);
        assert!(self.world.router.is_empty(), "{:?}", self.world.router.snapshot());
        assert_eq!(self.world.router.snapshot(), Snapshot::default());
        self.totals.digest = self.world.digest;
        self.totals
    }
}
