//! Several connections behind one address: whose turn it is, and where attaches go that wait in vain.

use std::time::Duration;

use linkrouterd::amqp::value::Value;
use linkrouterd::router::settings::{ConnectorRole, Destination, Direction, RouterSettings, SharingSettings};

use crate::peer::{Announces, Session};
use crate::scenarios_routes::{
    HUB, SECOND, at, attempt, both, outcome, prefix, refused, second_connector, shares, to,
};
use crate::wire;
use crate::world::{HUB_AUTO, World, settings};

/// Two on-demand connectors behind one prefix, both ways. What a file does not say of tokens changes nothing for hubs
/// at which nobody puts any.
fn two_behind_one() -> RouterSettings {
    let mut settings = settings();
    second_connector(&mut settings);
    for connector in &mut settings.connectors {
        connector.sharing = SharingSettings::default();
    }
    settings.routes = both(|way| prefix("bal", way, to("HUB")))
        .into_iter()
        .chain(both(|way| prefix("bal", way, to("HUB2"))))
        .collect();
    settings
}

#[test]
fn two_connectors_that_must_be_dialed_share_from_the_first_attach_on_5_6() {
    let mut world = World::new(two_behind_one());
    world.hub = None;
    let device = world.device("dev");
    for handle in 0..2 {
        world
            .peer(device)
            .attach(0, handle, &format!("l{handle}"), true, "bal/1");
    }
    world.run();
    let mut dials = world.dials.clone();
    dials.sort();
    assert_eq!(dials, [HUB, SECOND]);
    let hubs = [HUB, SECOND].map(|id| world.answer_dial_of(id, "hub", HUB_AUTO, Announces::default()));
    world.run();
    assert_eq!(shares(&mut world, &hubs), [1, 1]);
    for handle in 2..10 {
        attempt(&mut world, device, handle, handle % 2 == 0, "bal/1");
    }
    assert_eq!(shares(&mut world, &hubs), [5, 5]);
    for hub in hubs {
        let senders = |session: &Session| session.links.values().filter(|link| link.is_sender).count();
        let out: usize = world.peer(hub).sessions.values().map(senders).sum();
        assert_eq!(out, 2, "each direction has turns of its own");
    }
    // A device's links to one hub share a session there, and existing links stay when a hub goes.
    world.lose(hubs[0]);
    world.run();
    assert_eq!(shares(&mut world, &hubs[1..]), [5]);
}

#[test]
fn one_in_back_off_is_left_out_and_comes_back() {
    let mut world = World::new(two_behind_one());
    world.hub = None;
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "a", true, "bal/1");
    world.run();
    world.peer(device).attach(0, 1, "b", true, "bal/1");
    world.run();
    let [bad, good] = [world.dials[0], world.dials[1]];
    let hub = world.answer_dial_of(good, "hub", HUB_AUTO, Announces::default());
    world.run();
    world.fail_dial_of(bad);
    world.run();
    assert_eq!(
        shares(&mut world, &[hub]),
        [2],
        "the attach that waited has moved"
    );
    for handle in 2..6 {
        attempt(&mut world, device, handle, true, "bal/1");
    }
    assert_eq!(shares(&mut world, &[hub]), [6]);
    assert!(
        world.dials.is_empty(),
        "nobody dials the one that failed for them"
    );
    world.advance(Duration::from_secs(3));
    // Its back-off is over: it is tried again, and takes its turn.
    for (handle, name) in [(6, "c"), (7, "d")] {
        world.peer(device).attach(0, handle, name, true, "bal/1");
    }
    world.run();
    assert_eq!(world.dials, [bad]);
    let back = world.answer_dial_of(bad, "hub", HUB_AUTO, Announces::default());
    world.run();
    assert_eq!(shares(&mut world, &[back, hub]), [1, 7]);
}

/// The first dial hangs: it neither succeeds nor fails.
#[test]
fn an_attach_that_has_waited_in_vain_goes_to_an_open_one_at_its_deadline() {
    let mut world = World::new(two_behind_one());
    world.hub = None;
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "a", false, "bal/1");
    world.peer(device).grant(0, 0, 7);
    world.run();
    let stuck = world.dials[0];
    world.peer(device).attach(0, 1, "b", true, "bal/1");
    world.run();
    let hub = world.answer_dial_of(world.dials[1], "hub", HUB_AUTO, Announces::default());
    world.run();
    assert_eq!(
        shares(&mut world, &[hub]),
        [1],
        "the first dial may still succeed"
    );
    world.peer(device).skip();
    world.advance(Duration::from_secs(16));
    assert_eq!(world.peer(device).expect(wire::ATTACH).text(0), Some("a"));
    let (channel, handle) = world
        .peer(hub)
        .find("a@dev", true)
        .expect("attached, not refused");
    assert_eq!(
        world.peer(hub).link(channel, handle).credit,
        7,
        "and its credit with it"
    );
    assert_eq!(world.dials, [stuck]);
}

/// A sender that does not wait for credit has frames in the router already: it is not moved.
#[test]
fn an_attach_with_transfers_behind_it_stays_where_it_waits() {
    let mut world = World::new(two_behind_one());
    world.hub = None;
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "a", true, "bal/1");
    world
        .peer(device)
        .say_transfer(0, 0, Some((0, 0)), false, false, b"early");
    world.run();
    let first = world.dials[0];
    world.fail_dial_of(first);
    world.run();
    assert!(world.dials.is_empty());
    world.advance(Duration::from_secs(3));
    assert_eq!(world.dials, [first]);
    let hub = world.answer_dial(HUB_AUTO, Announces::default());
    world.run();
    let (channel, handle) = world.peer(hub).find("a@dev", false).expect("attached");
    world.peer(hub).grant(channel, handle, 1);
    world.run();
    assert_eq!(
        world.peer(hub).link(channel, handle).received[0].payload,
        b"early"
    );
}

#[test]
fn an_attach_that_nobody_can_take_is_refused_at_its_deadline() {
    let mut world = World::new(two_behind_one());
    world.hub = None;
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "a", true, "bal/1");
    world.run();
    world.peer(device).skip();
    let deadline = world.now + Duration::from_secs(16);
    while world.now < deadline {
        if world.dials.is_empty() {
            world.advance(Duration::from_millis(500));
        } else {
            world.fail_dial();
            world.run();
        }
    }
    assert_eq!(
        outcome(&mut world, device, "a", true),
        refused("amqp:link:detach-forced")
    );
    let snapshot = world.router.snapshot();
    assert_eq!((snapshot.waiting_attaches, snapshot.link_pairs), (0, 0));
}

#[test]
fn pairs_of_attaches_that_moved_leave_nothing_behind() {
    let mut world = World::new(two_behind_one());
    world.hub = None;
    let device = world.device("dev");
    for handle in 0..6 {
        world
            .peer(device)
            .attach(0, handle, &format!("l{handle}"), true, "bal/1");
    }
    world.run();
    let [bad, good] = [world.dials[0], world.dials[1]];
    world.fail_dial_of(bad);
    let hub = world.answer_dial_of(good, "hub", HUB_AUTO, Announces::default());
    world.run();
    assert_eq!(shares(&mut world, &[hub]), [6]);
    assert_eq!(world.router.snapshot().session_pairs, 1);
    assert_eq!(world.router.snapshot().waiting_attaches, 0);
    let end = world
        .peer(hub)
        .sessions
        .keys()
        .next()
        .copied()
        .expect("a session");
    world.peer(hub).end(end, Value::Null);
    world.run();
    assert!(
        world.peer(device).log.iter().any(|frame| frame.code == wire::END),
        "the device's only session ends with it"
    );
    assert_eq!(world.router.snapshot().session_pairs, 0);
}

#[test]
fn a_container_is_found_by_its_open_5_6() {
    let mut settings = settings();
    second_connector(&mut settings).role = ConnectorRole::Persistent;
    settings.routes = vec![prefix("c", Direction::In, Destination::Container("two".into()))];
    let mut world = World::new(settings);
    world.hub = None;
    world.run();
    assert_eq!(world.dials, [SECOND], "the persistent one");
    let device = world.device("dev");
    // Nobody knows who `two` is: both may be.
    world.peer(device).attach(0, 0, "a", true, "c/1");
    world.peer(device).attach(0, 1, "b", true, "c/1");
    world.run();
    assert_eq!(world.dials, [SECOND, HUB]);
    let wrong = world.answer_dial_of(HUB, "one", HUB_AUTO, Announces::default());
    world.run();
    assert_eq!(shares(&mut world, &[wrong]), [0], "it is not the one");
    let right = world.answer_dial_of(SECOND, "two", HUB_AUTO, Announces::default());
    world.run();
    assert_eq!(shares(&mut world, &[wrong, right]), [0, 2]);
    assert_eq!(attempt(&mut world, device, 2, true, "c/2"), at("c/2"));
    assert_eq!(shares(&mut world, &[wrong, right]), [0, 3]);
}
