//! Another configuration for a router that runs: what is the same does not notice.

use std::time::Duration;

use linkrouterd::amqp::value::Value;
use linkrouterd::router::settings::policy::GroupSettings;
use linkrouterd::router::settings::{
    ConnectorRole, Destination, Direction, ListenerRole, Matcher, RouteSettings,
};
use linkrouterd::router::{ConnectorStatus, Reloaded};

use crate::peer::Announces;
use crate::scenarios_policy::{
    UNAUTHORIZED, eager_device, everything, expect_disallowed, expect_refused, listed, vhost, with_vhosts,
};
use crate::tunnel::{DOWN, UP, tunnel, tunnel_of};
use crate::wire::{self, composite, condition, error, symbol};
use crate::world::{HUB_AUTO, World, host, settings};

fn counts(reloaded: &Reloaded) -> [usize; 5] {
    [
        reloaded.unchanged,
        reloaded.changed,
        reloaded.added,
        reloaded.removed,
        reloaded.routes,
    ]
}

#[test]
fn equal_settings_touch_nothing_not_even_half_a_delivery() {
    let mut p = tunnel();
    p.world
        .peer(p.device)
        .link(0, 0)
        .queue
        .push_back((vec![1; 1000], false));
    p.world.peer(p.device).send_piece(0, 0, 400);
    p.world.run();
    let before = p.world.router.snapshot();
    for _ in 0..2 {
        let reloaded = p.world.reload(settings());
        assert_eq!(counts(&reloaded), [1, 0, 0, 0, 2]);
    }
    assert_eq!(p.world.router.snapshot(), before);
    p.world.peer(p.device).push_out(0);
    p.world.run();
    let received = &p.world.peer(p.hub).link(p.up.0, p.up.1).received;
    assert_eq!(received.len(), 1);
    assert_eq!(received.first().map(|d| d.payload.len()), Some(1000));
    p.world.peer(p.device).expect_nothing();
    assert!(p.world.dials.is_empty() && p.world.hubs_made == 1);
}

#[test]
fn routes_are_for_attaches_to_come() {
    let mut p = tunnel();
    let mut changed = settings();
    changed.routes.retain(|route| route.direction == Direction::Out);
    changed.routes.push(RouteSettings {
        name: "new".into(),
        matcher: Matcher::Prefix("fresh".into()),
        direction: Direction::In,
        destination: Destination::Connection("HUB".into()),
        add_external_prefix: String::new(),
        del_external_prefix: String::new(),
    });
    p.world.reload(changed);
    // The link that no route matches any more goes on.
    p.world.peer(p.device).send(0, 0, b"still", true);
    p.world.run();
    assert_eq!(p.world.peer(p.hub).link(p.up.0, p.up.1).received.len(), 1);
    p.world.peer(p.device).attach(0, 5, "again", true, UP);
    p.world.peer(p.device).attach(0, 6, "fresh", true, "fresh/a");
    p.world.run();
    assert!(p.world.peer(p.device).link(0, 5).detached.is_some(), "refused");
    assert!(p.world.peer(p.device).link(0, 6).detached.is_none());
    assert!(p.world.peer(p.hub).find("fresh@dev", false).is_some());
}

#[test]
fn a_changed_connector_is_closed_and_its_successor_never_overlaps() {
    let mut p = tunnel();
    p.world.peer(p.device).send(0, 0, b"unsettled", false);
    p.world.run();
    p.world.set_speaks(p.hub, false);
    let mut changed = settings();
    changed.connectors.first_mut().expect("a connector").sasl_username = Some("other".into());
    assert_eq!(counts(&p.world.reload(changed.clone())), [0, 1, 0, 0, 2]);
    assert_eq!(p.world.connector().status, ConnectorStatus::Closing);
    let device = p.world.peer(p.device);
    device.expect(wire::DISPOSITION);
    for _ in 0..2 {
        let detach = device.expect(wire::DETACH);
        assert_eq!(condition(detach.field(2)), Some("amqp:link:detach-forced"));
        let (_, fields) = composite(detach.field(2)).expect("an error");
        let text = fields.get(1).and_then(Value::as_text).expect("a description");
        assert!(text.contains("its configuration changed"), "{text}");
        let info = fields.get(2).expect("info");
        assert_eq!(info.entry("qd-condition"), Some(&symbol("qd:routed-link-lost")));
    }
    assert!(p.world.peer(p.hub).closed.is_some(), "a proper close");
    // Whoever attaches now waits until the hub has closed, too.
    p.world.peer(p.device).attach(0, 5, "up", true, UP);
    p.world.run();
    assert!(p.world.dials.is_empty() && p.world.hubs_made == 1);
    p.world.set_speaks(p.hub, true);
    p.world.run();
    assert_eq!(p.world.hubs_made, 2);
    assert!(p.world.hub().find("up@dev", false).is_some());
    assert_eq!(p.world.connector().status, ConnectorStatus::Success);
    // A second time, with the hub's close and ours crossing.
    let hub = p.world.hub_id();
    p.world
        .peer(hub)
        .close(error("amqp:connection:forced", "bye", Value::Null));
    p.world.reload(settings());
    p.world.advance(Duration::from_secs(6));
    p.world.peer(p.device).attach(0, 6, "up", true, UP);
    p.world.run();
    assert_eq!(p.world.hubs_made, 3);
}

#[test]
fn what_waits_for_a_changed_connector_waits_for_its_successor() {
    let mut world = World::new(settings());
    world.hub = None;
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "up", true, UP);
    world.peer(device).attach(0, 1, "down", false, DOWN);
    world.peer(device).grant(0, 1, 5);
    world.run();
    let former = world.dials.remove(0);
    let mut changed = settings();
    changed.connectors.first_mut().expect("a connector").host = host("new.example");
    let reloaded = world.reload(changed);
    assert_ne!(reloaded.connectors, [former], "an id is never used again");
    assert_eq!(world.dials, reloaded.connectors, "dialed at once");
    // What the driver still has to say of the former dial is nobody's.
    assert!(world.router.dial_target(former).is_none());
    world.router.dial_failed(former, "too late", world.now);
    assert!(
        world
            .router
            .dialed(former, Default::default(), world.now)
            .is_none()
    );
    assert_eq!(world.connector().status, ConnectorStatus::Connecting);
    world.answer_dial(HUB_AUTO, Announces::default());
    world.run();
    for handle in [0, 1] {
        assert!(world.peer(device).link(0, handle).remote.is_some());
    }
    assert!(world.hub().find("down@dev", true).is_some());
    assert_eq!(world.router.snapshot().waiting_attaches, 0);
    world.lose(device);
    world.run();
    assert_eq!(world.router.snapshot().session_pairs, 0);
}

/// Regressions 870 and 887: the retry of a deleted connector opened it again.
#[test]
fn a_removed_connector_is_closed_and_never_dialed_again() {
    for step in ["idle", "dialing", "back-off", "opening", "open"] {
        let mut first = settings();
        if step != "idle" {
            first.connectors.first_mut().expect("a connector").role = ConnectorRole::Persistent;
        }
        let mut world = World::new(first);
        world.hub = None;
        let device = world.device("dev");
        world.run();
        match step {
            "back-off" => world.fail_dial(),
            "opening" => {
                let hub = world.answer_dial(HUB_AUTO, Announces::default());
                world.set_speaks(hub, false);
            }
            "open" => {
                world.answer_dial(HUB_AUTO, Announces::default());
            }
            _ => {}
        }
        world.run();
        if step != "idle" {
            world.peer(device).attach(0, 0, "up", true, UP);
            world.run();
        }
        let mut none = settings();
        none.connectors.clear();
        none.routes.clear();
        assert_eq!(counts(&world.reload(none)), [0, 0, 0, 1, 0], "{step}");
        world.dials.clear();
        if step != "idle" {
            let why = world.peer(device).link(0, 0).detached.clone().expect("detached");
            assert!(
                format!("{why:?}").contains("removed from the configuration"),
                "{why:?}"
            );
        }
        world.advance(Duration::from_secs(300));
        assert!(world.dials.is_empty(), "{step}");
        assert_eq!(world.router.connectors().count(), 0);
        world.lose(device);
        world.run();
        assert!(world.router.is_empty(), "{step}");
        assert_eq!(world.router.snapshot().link_pairs, 0, "{step}");
    }
}

#[test]
fn one_connector_changes_and_the_other_does_not_notice() {
    let mut both = settings();
    let mut second = both.connectors.first().expect("a connector").clone();
    second.name = "HUB2".into();
    both.connectors.push(second);
    let mut p = tunnel();
    // Added: nothing happens to the first.
    assert_eq!(counts(&p.world.reload(both.clone())), [1, 0, 1, 0, 2]);
    let mut changed = both.clone();
    changed.connectors.last_mut().expect("the second").host = host("other.example");
    changed.connectors.reverse();
    assert_eq!(counts(&p.world.reload(changed)), [1, 1, 0, 0, 2]);
    assert_eq!(counts(&p.world.reload(settings())), [1, 0, 0, 1, 2]);
    p.world.peer(p.device).send(0, 0, b"on", true);
    p.world.run();
    assert_eq!(p.world.peer(p.hub).link(p.up.0, p.up.1).received.len(), 1);
    p.world.peer(p.device).expect_nothing();
}

#[test]
fn the_driver_may_know_of_a_change_that_the_router_does_not() {
    let mut p = tunnel();
    let now = p.world.now;
    let reloaded = p.world.router.reconfigure(settings(), |_, _| false, now);
    assert_eq!(counts(&reloaded), [0, 1, 0, 0, 2]);
    p.world.run();
    assert!(!p.world.is_alive(p.hub));
}

#[test]
fn limits_apply_at_once_and_listener_settings_to_connections_to_come() {
    let mut world = World::new(settings());
    world.device("one");
    let mut changed = settings();
    changed.max_connections = 2;
    changed
        .listeners
        .first_mut()
        .expect("a listener")
        .limits
        .max_frame_size = 4096;
    world.reload(changed);
    let second = world.device("two");
    assert_eq!(world.peer(second).expect(wire::OPEN).uint(2), Some(4096));
    let refused = world.connect("three", crate::world::DEVICE_AUTO, Announces::default());
    assert!(refused.is_none());
}

#[test]
fn a_policy_is_for_those_who_come_after_it_and_counts_those_before() {
    let of = |max_connections, group| {
        let mut vhost = vhost("hub.example", group);
        vhost.max_connections = max_connections;
        with_vhosts(vec![vhost])
    };
    let announcing = |frame_size| GroupSettings {
        max_frame_size: Some(frame_size),
        ..everything()
    };
    let mut p = tunnel_of(of(100, announcing(4096)), 2048, 2048);
    let tighter = GroupSettings {
        targets: listed(&["/devices/${user}/*"]),
        ..announcing(2048)
    };
    assert_eq!(counts(&p.world.reload(of(2, tighter))), [1, 0, 0, 0, 2]);
    p.world.peer(p.device).expect_nothing();
    // Admitted before: the link goes on, and another one of the same address is allowed.
    p.world.peer(p.device).send(0, 0, b"on", true);
    p.world.peer(p.device).attach(0, 5, "again", true, UP);
    p.world.run();
    assert_eq!(p.world.peer(p.hub).link(p.up.0, p.up.1).received.len(), 1);
    assert!(p.world.peer(p.device).link(0, 5).detached.is_none());
    // Admitted after: held to the new group, and announced its limits.
    let held = eager_device(&mut p.world, "10.0.0.1:1");
    assert_eq!(p.world.peer(held).expect(wire::OPEN).uint(2), Some(2048));
    p.world.peer(held).expect(wire::BEGIN);
    expect_refused(&mut p.world, held, true, UNAUTHORIZED);
    p.world
        .peer(held)
        .attach(0, 1, "own", true, "/devices/anonymous/messages/events");
    p.world.run();
    assert!(p.world.peer(held).link(0, 1).detached.is_none());
    let denied = eager_device(&mut p.world, "10.0.0.1:2");
    expect_disallowed(&mut p.world, denied);
    assert_eq!(p.world.router.snapshot().admitted, 2);
    for device in [p.device, held] {
        p.world.lose(device);
    }
    p.world.run();
    assert_eq!(p.world.router.snapshot().admitted, 0);
}

#[test]
fn what_waits_for_a_removed_connector_goes_where_the_new_routes_lead() {
    let mut both = settings();
    let mut second = both.connectors.first().expect("a connector").clone();
    second.name = "HUB2".into();
    both.connectors.push(second);
    let mut world = World::new(both.clone());
    world.hub = None;
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "up", true, UP);
    world.run();
    both.connectors.remove(0);
    for route in &mut both.routes {
        route.destination = Destination::Connection("HUB2".into());
    }
    let reloaded = world.reload(both);
    assert_eq!(counts(&reloaded), [1, 0, 0, 1, 2]);
    assert_eq!(world.dials, reloaded.connectors);
    world.answer_dial(HUB_AUTO, Announces::default());
    world.run();
    assert!(world.peer(device).link(0, 0).detached.is_none());
    assert!(world.hub().find("up@dev", false).is_some());
}

#[test]
fn a_broker_that_connected_to_us_is_no_connector_and_stays() {
    let mut first = settings();
    first.listeners.first_mut().expect("a listener").role = ListenerRole::RouteContainer;
    let mut world = World::new(first.clone());
    let broker = world
        .connect("broker", crate::world::DEVICE_AUTO, Announces::default())
        .expect("room");
    world.peer(broker).open();
    world.run();
    let before = world.router.snapshot();
    first.listeners.first_mut().expect("a listener").name = "renamed".into();
    first.connectors.clear();
    for route in &mut first.routes {
        route.destination = Destination::Connection("renamed".into());
    }
    assert_eq!(counts(&world.reload(first)), [0, 0, 0, 1, 2]);
    assert!(world.is_alive(broker));
    assert_eq!(world.router.snapshot(), before);
    assert_eq!(world.router.connectors().count(), 0);
    world.lose(broker);
    world.run();
    assert!(world.router.is_empty());
}
