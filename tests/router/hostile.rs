//! Peers that do not keep the rules: whatever they send, the router neither panics nor passes it on as its own, and
//! nobody else notices.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use linkrouterd::amqp::value::Value;
use linkrouterd::router::settings::{ConnectorId, ListenerId};
use linkrouterd::router::{ConnectionKey, TransportInfo, TransportState};

use crate::peer::{Announces, Kind, Peer};
use crate::tunnel::{DOWN, UP};
use crate::wire;
use crate::world::{DEVICE_AUTO, HUB_AUTO, Random, World, settings};

const SCHEDULES: u64 = 600;

/// What a device says in a whole life, unit by unit.
fn life_of_a_device() -> Vec<Vec<u8>> {
    let mut peer = Peer::new(Kind::Device, "hostile", DEVICE_AUTO, Announces::default());
    let mut units = vec![wire::AMQP_HEADER.to_vec()];
    let mut say = |act: &mut dyn FnMut(&mut Peer)| {
        act(&mut peer);
        let bytes = peer.out.as_slice().to_vec();
        peer.out.clear();
        units.push(bytes);
    };
    say(&mut |peer| {
        peer.open();
        peer.out.consume(8);
    });
    say(&mut |peer| peer.begin(0));
    say(&mut |peer| peer.attach(0, 0, "up", true, UP));
    say(&mut |peer| peer.attach(0, 1, "down", false, DOWN));
    say(&mut |peer| peer.grant(0, 1, 50));
    for number in 0..6u32 {
        let first = (number != 3).then_some((number, number));
        let more = number == 2;
        say(&mut |peer| peer.say_transfer(0, 0, first, number % 2 == 0, more, &[number as u8; 300]));
    }
    say(&mut |peer| peer.dispose(0, true, 0, 3, true, Value::Null));
    say(&mut |peer| peer.dispose(0, false, 0, 9, true, Value::Null));
    say(&mut |peer| peer.flow(0, Some(0), true, true));
    say(&mut |peer| peer.flow(0, None, false, true));
    say(&mut |peer| peer.begin(7));
    say(&mut |peer| peer.attach(7, 0, "up", true, UP));
    say(&mut |peer| peer.detach(0, 0, true, Value::Null));
    say(&mut |peer| peer.attach(0, 0, "up", true, UP));
    say(&mut |peer| peer.end(7, Value::Null));
    say(&mut |peer| peer.close(Value::Null));
    units
}

/// What a hub says to the router's first attaches, and more.
fn life_of_a_hub() -> Vec<Vec<u8>> {
    let mut peer = Peer::new(Kind::Hub, "hub", HUB_AUTO, Announces::default());
    let mut units = vec![wire::SASL_HEADER.to_vec()];
    let mut say = |act: &mut dyn FnMut(&mut Peer)| {
        act(&mut peer);
        let bytes = peer.out.as_slice().to_vec();
        peer.out.clear();
        units.push(bytes);
    };
    say(&mut |peer| {
        peer.say(&wire::Frame::new(
            0,
            wire::SASL_MECHANISMS,
            vec![wire::symbol("ANONYMOUS")],
        ))
    });
    say(&mut |peer| peer.say(&wire::Frame::new(0, wire::SASL_OUTCOME, vec![Value::Ubyte(0)])));
    say(&mut |peer| peer.open());
    say(&mut |peer| {
        peer.answer_begin(
            &wire::Frame::new(0, wire::BEGIN, vec![Value::Null, wire::uint(0), wire::uint(9)]),
            3,
        )
    });
    say(&mut |peer| peer.attach(3, 0, "up@hostile", false, UP));
    say(&mut |peer| peer.attach(3, 1, "down@hostile", true, DOWN));
    say(&mut |peer| peer.grant(3, 0, 50));
    for number in 0..6u32 {
        let first = (number != 3).then_some((number, number));
        say(&mut |peer| peer.say_transfer(3, 1, first, number % 2 == 0, number == 2, &[7; 900]));
    }
    say(&mut |peer| peer.dispose(3, true, 0, 3, true, Value::Null));
    say(&mut |peer| peer.dispose(3, false, 0, 9, true, Value::Null));
    say(&mut |peer| peer.detach(3, 1, false, Value::Null));
    say(&mut |peer| peer.flow(3, Some(0), true, true));
    say(&mut |peer| peer.begin(9));
    say(&mut |peer| peer.attach(9, 0, "own", true, "somewhere"));
    say(&mut |peer| peer.end(3, Value::Null));
    say(&mut |peer| peer.close(Value::Null));
    units
}

/// Leaves out, doubles, exchanges and damages.
fn twisted(units: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut units: Vec<Vec<u8>> = units.to_vec();
    for _ in 0..random.below(4) {
        // What opens the connection stays, mostly: else there is nothing behind it to test.
        let keep = if random.one_in(8) { 0 } else { 3 };
        let at = keep + random.below(units.len().saturating_sub(keep));
        let other = keep + random.below(units.len().saturating_sub(keep));
        match random.below(5) {
            0 if at < units.len() => {
                units.remove(at);
            }
            1 if at < units.len() => {
                let unit = units.get(at).expect("a unit").clone();
                units.insert(other.min(units.len()), unit);
            }
            2 if at < units.len() && other < units.len() => units.swap(at, other),
            _ => {
                if let Some(unit) = units.get_mut(at) {
                    for _ in 0..1 + random.below(3) {
                        // Sizes stay right more often than not, so that the damage lies in the fields.
                        let start = if random.one_in(6) {
                            0
                        } else {
                            8.min(unit.len() - 1)
                        };
                        let position = start + random.below((unit.len() - start).min(40));
                        if let Some(byte) = unit.get_mut(position) {
                            *byte = match random.below(4) {
                                0 => 0,
                                1 => 0xff,
                                2 => byte.wrapping_add(1),
                                _ => random.next() as u8,
                            };
                        }
                    }
                }
            }
        }
    }
    units.concat()
}

/// Feeds a connection whatever the router allows, and throws away what it answers.
fn feed(world: &mut World, key: ConnectionKey, bytes: &[u8], random: &mut Random) {
    let mut rest = bytes;
    for _ in 0..4000 {
        let waiting = world.router.transmit(key).len();
        world.router.transmitted(key, waiting, world.now);
        world.run();
        match world.router.transport_state(key) {
            TransportState::Open => {}
            TransportState::CloseWhenFlushed if !world.router.transmit(key).is_empty() => continue,
            TransportState::CloseWhenFlushed | TransportState::Abort => break,
        }
        if rest.is_empty() || !world.router.may_read(key) {
            break;
        }
        let (now, later) = rest.split_at(1 + random.below(rest.len().min(700)));
        world.router.handle_input(key, now, world.now);
        rest = later;
        world.run();
    }
}

fn each_seed(run: impl Fn(u64)) {
    let schedules = std::env::var("LINKROUTERD_SCHEDULES").ok();
    for seed in 0..schedules.and_then(|text| text.parse().ok()).unwrap_or(SCHEDULES) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(seed))) {
            eprintln!("schedule {seed}");
            resume_unwind(panic);
        }
    }
}

#[test]
fn a_device_that_breaks_the_rules_harms_nobody_else() {
    let life = life_of_a_device();
    let carried = Cell::new(0);
    each_seed(|seed| {
        let mut random = Random::new(seed);
        let mut world = World::new(settings());
        world.hub_ignores_credit = true;
        let mut auto = HUB_AUTO;
        auto.credit = 20;
        auto.accept = true;
        world.hub = Some((auto, Announces::default()));
        let decent = world.device("decent");
        world.peer(decent).attach(0, 0, "up", true, UP);
        world.run();
        let key = world
            .router
            .accepted(ListenerId(0), TransportInfo::default(), world.now)
            .expect("room");
        let bytes = twisted(&life, &mut random);
        feed(&mut world, key, &bytes, &mut random);
        for number in 0..5u8 {
            world.peer(decent).send(0, 0, &[number], false);
        }
        world.run();
        assert_eq!(world.peer(decent).link(0, 0).settled.len(), 5);
        assert_eq!(world.hubs_made, 1, "the hub saw nothing that it had to close for");
        let transfers = world
            .hub()
            .log
            .iter()
            .filter(|frame| frame.code == wire::TRANSFER);
        carried.set(carried.get() + transfers.count() - 5);
        world.router.transport_lost(key, "reset", world.now);
        world.run();
        let snapshot = world.router.snapshot();
        assert_eq!((snapshot.session_pairs, snapshot.link_pairs), (1, 1));
        assert_eq!(snapshot.buffered_bytes(), 0);
    });
    // Most of it must get behind the handshake.
    assert!(carried.get() > 200, "{carried:?}");
}

#[test]
fn a_hub_that_breaks_the_rules_is_survived() {
    let life = life_of_a_hub();
    let carried = Cell::new(0);
    each_seed(|seed| {
        let mut random = Random::new(seed);
        let mut world = World::new(settings());
        world.keeps_logs = false;
        world.hub = None;
        let device = world.device("hostile");
        world.peer(device).ignores_credit = true;
        world.peer(device).attach(0, 0, "up", true, UP);
        world.peer(device).attach(0, 1, "down", false, DOWN);
        world.peer(device).grant(0, 1, 50);
        world.run();
        world.dials.clear();
        let key = world
            .router
            .dialed(ConnectorId(0), TransportInfo::default(), world.now)
            .expect("asked for");
        let bytes = twisted(&life, &mut random);
        feed(&mut world, key, &bytes, &mut random);
        let sessions = world.peer(device).sessions.values();
        let links = sessions.flat_map(|session| session.links.values());
        carried.set(carried.get() + links.map(|link| link.received.len()).sum::<usize>());
        world.router.transport_lost(key, "reset", world.now);
        world.run();
        assert!(world.is_alive(device), "a device keeps its connection");
        let snapshot = world.router.snapshot();
        assert_eq!(snapshot.link_pairs, snapshot.waiting_attaches, "{snapshot:?}");
        world.lose(device);
        world.run();
        assert_eq!(world.router.snapshot(), linkrouterd::router::Snapshot::default());
    });
    assert!(carried.get() > 200, "{carried:?}");
}

#[test]
fn a_device_may_not_attach_links_without_end() {
    let mut world = World::new(settings());
    world.keeps_logs = false;
    let device = world.device("greedy");
    // It does not detach what was refused.
    world.peer(device).auto.detach = false;
    for channel in 1..=5 {
        world.peer(device).begin(channel);
        for handle in 0..2000 {
            let name = format!("l{handle}");
            world.peer(device).attach(channel, handle, &name, true, "nowhere");
        }
        world.run();
    }
    assert!(world.is_alive(device));
    let sessions = &world.peer(device).sessions;
    assert!(
        sessions.contains_key(&4) && !sessions.contains_key(&5),
        "the last one is ended"
    );
    world.lose(device);
    assert_eq!(world.router.snapshot(), linkrouterd::router::Snapshot::default());
}

/// Each of its ids is a run of its own here, for none follows on the one before.
#[test]
fn what_a_device_says_of_ids_with_gaps_is_said_once_to_its_hub() {
    let mut world = World::new(settings());
    world.keeps_logs = false;
    world.hub_ignores_credit = true;
    let device = world.device("gaps");
    world.peer(device).attach(0, 0, "up", true, UP);
    world.run();
    let hub = world.hub_id();
    let (channel, handle) = world.peer(hub).find("up@gaps", false).expect("attached");
    world.peer(hub).grant(channel, handle, 1);
    world.run();
    for id in (0..4000).step_by(2) {
        let peer = world.peer(device);
        peer.say_transfer(0, 0, Some((id, id)), false, false, b"unsettled");
    }
    world.run();
    world.set_reads(hub, false);
    let peer = world.peer(device);
    let start = peer.out.len();
    for _ in 0..100 {
        peer.dispose(0, false, 0, 4000, false, Value::Null);
    }
    let said = peer.out.len() - start;
    world.run();
    let waiting = world.router.snapshot().outbox_bytes;
    assert!((1..=said).contains(&waiting), "{waiting} of {said}");
}
