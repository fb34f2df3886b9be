//! The life of a connector: what it says of itself, failing over, coming back, and never storming.

use std::time::Duration;

use linkrouterd::amqp::value::Value;
use linkrouterd::router::ConnectorStatus;
use linkrouterd::router::settings::{ConnectorRole, RouterSettings};

use crate::peer::Announces;
use crate::tunnel::UP;
use crate::wire::{self, error, string, symbol};
use crate::world::{HUB_AUTO, World, host, settings};

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn persistent() -> RouterSettings {
    let mut settings = settings();
    for connector in &mut settings.connectors {
        connector.role = ConnectorRole::Persistent;
    }
    settings
}

/// A router whose connector dials by itself, and whose dials the test answers.
fn dialing(settings: RouterSettings) -> World {
    let mut world = World::new(settings);
    world.hub = None;
    world.run();
    assert_eq!(world.dials.len(), 1);
    world
}

/// Answers the dial with a hub whose open has this `failover-server-list`.
fn open_with(world: &mut World, list: Value) {
    let hub = world.answer_dial(HUB_AUTO, Announces::default());
    world.peer(hub).open_properties = Value::Map(vec![(symbol("failover-server-list"), list)]);
    world.run();
    assert_eq!(world.connector().status, ConnectorStatus::Success);
}

fn entry(host: &str, more: &[(&str, Value)]) -> Value {
    let mut fields = vec![(symbol("network-host"), string(host))];
    fields.extend(more.iter().map(|(key, value)| (symbol(key), value.clone())));
    Value::Map(fields)
}

/// The host that is dialed now, and how it is known.
fn target(world: &World) -> (String, String) {
    let id = *world.dials.first().expect("a dial");
    let target = world.router.dial_target(id).expect("wanted");
    (target.host.to_string(), target.server_name)
}

/// Moves the clock until the next dial; how long that took.
fn wait_for_dial(world: &mut World) -> Duration {
    let before = world.now;
    while world.dials.is_empty() {
        assert!(world.now < before + seconds(200), "no dial");
        world.advance(Duration::from_millis(50));
    }
    world.now - before
}

/// Defect D29 of qdrouterd: SUCCESS while connecting.
#[test]
fn status_tells_the_truth_at_every_step() {
    let mut world = World::new(settings());
    world.hub = None;
    let status = |world: &World| world.connector().status;
    assert_eq!(status(&world), ConnectorStatus::Initializing, "nobody needs it");
    assert_eq!(world.connector().message, "");
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "up", true, UP);
    world.run();
    assert_eq!(status(&world), ConnectorStatus::Connecting, "TCP and TLS");
    world.fail_dial();
    assert_eq!(status(&world), ConnectorStatus::Failed);
    let failed = "Connection to hub.example:5671 failed: Connection refused";
    assert_eq!(world.connector().message, failed);
    wait_for_dial(&mut world);
    let hub = world.answer_dial(HUB_AUTO, Announces::default());
    assert_eq!(status(&world), ConnectorStatus::Connecting, "SASL and open");
    world.run();
    assert_eq!(status(&world), ConnectorStatus::Success);
    assert!(
        world.connector().message.contains("opened"),
        "{}",
        world.connector().message
    );
    world.lose(hub);
    assert_eq!(status(&world), ConnectorStatus::Failed);
    assert!(world.connector().message.contains("reset by peer"));
    world.peer(device).attach(0, 1, "again", true, UP);
    world.run();
    wait_for_dial(&mut world);
    let mut mute = HUB_AUTO;
    mute.close = false;
    world.answer_dial(mute, Announces::default());
    world.run();
    assert_eq!(status(&world), ConnectorStatus::Success);
    world.lose(device);
    world.advance(seconds(61));
    assert_eq!(status(&world), ConnectorStatus::Closing, "unused");
    world.advance(seconds(6));
    assert_eq!(status(&world), ConnectorStatus::Initializing);
    assert_eq!(
        world.connector().message,
        "Connection closed: no device has used it for 60 s"
    );
    assert_eq!(ConnectorStatus::Closing.as_str(), "CLOSING");
}

#[test]
fn status_is_closing_while_the_router_shuts_down() {
    let mut world = dialing(persistent());
    let hub = world.answer_dial(HUB_AUTO, Announces::default());
    world.run();
    world.set_speaks(hub, false);
    world.router.shutdown(world.now);
    assert_eq!(world.connector().status, ConnectorStatus::Closing);
    world.set_speaks(hub, true);
    world.run();
    assert_eq!(world.connector().status, ConnectorStatus::Initializing);
    world.advance(seconds(120));
    assert!(world.dials.is_empty());
}

#[test]
fn status_holds_no_password() {
    let mut settings = persistent();
    let connector = settings.connectors.first_mut().expect("a connector");
    connector.sasl_username = Some("user".into());
    connector.sasl_password = Some(linkrouterd::router::settings::Secret::new("hunter2".into()));
    let mut world = dialing(settings);
    world.fail_dial();
    assert!(!format!("{:?}", world.connector()).contains("hunter2"));
}

/// Regressions 726, 818 and 1008: current, then the hub's list, then what is configured, in turn.
#[test]
fn failover_goes_through_the_hubs_list_and_comes_back() {
    let mut world = dialing(persistent());
    let list = vec![
        entry(
            "b.example",
            &[("port", string("5671")), ("scheme", string("amqps"))],
        ),
        entry("c.example", &[("port", Value::Int(5673))]),
    ];
    open_with(&mut world, Value::List(list));
    let order = ["hub.example:5671", "b.example:5671", "c.example:5673"];
    assert_eq!(world.connector().hosts, order);
    let hub = world.hub_id();
    world.advance(seconds(20));
    world.lose(hub);
    // Each host gets its attempt, about a second after the one before failed; the usual delay is between rounds.
    for (turn, address) in order.iter().cycle().skip(1).take(6).enumerate() {
        let waited = wait_for_dial(&mut world);
        let (target, name) = target(&world);
        assert_eq!(target, *address);
        let id = *world.dials.first().expect("a dial");
        let limit = world.router.dial_target(id).map(|target| target.limit);
        assert_eq!(limit, Some(seconds(10)), "less than an attach waits");
        assert!(address.starts_with(&name), "the name that TLS asks for: {name}");
        let is_round = turn % 3 == 2;
        if !is_round {
            assert!(
                waited >= Duration::from_millis(450) && waited <= Duration::from_millis(1100),
                "{turn}: {waited:?}"
            );
        }
        if is_round {
            assert!(waited >= Duration::from_millis(950), "{waited:?}");
        }
        world.fail_dial();
    }
    // A host of the list serves, and announces itself and others: it is the first now.
    wait_for_dial(&mut world);
    assert_eq!(target(&world).0, "b.example:5671");
    open_with(
        &mut world,
        Value::List(vec![
            entry("d.example", &[]),
            entry("b.example", &[("port", string("5671"))]),
        ]),
    );
    assert_eq!(
        world.connector().hosts,
        ["b.example:5671", "d.example:5671", "hub.example:5671"]
    );
    let open = world.hub().log.iter().find(|frame| frame.code == wire::OPEN);
    assert_eq!(
        open.and_then(|open| open.text(1)),
        Some("b.example"),
        "open.hostname"
    );
    // An empty list clears what was learnt; the configured host stays.
    let hub = world.hub_id();
    world.lose(hub);
    wait_for_dial(&mut world);
    assert_eq!(target(&world).0, "d.example:5671");
    open_with(&mut world, Value::List(Vec::new()));
    let hub = world.hub_id();
    world.lose(hub);
    assert_eq!(world.connector().hosts, ["hub.example:5671"]);
    // An open that does not speak of it changes nothing.
    wait_for_dial(&mut world);
    open_with(&mut world, Value::List(vec![entry("e.example", &[])]));
    let hub = world.hub_id();
    world.lose(hub);
    wait_for_dial(&mut world);
    world.answer_dial(HUB_AUTO, Announces::default());
    world.run();
    assert_eq!(world.connector().hosts, ["e.example:5671", "hub.example:5671"]);
}

/// Defect D30: an entry without host was the end of the process.
#[test]
fn failover_entries_that_cannot_be_dialed_are_passed_over() {
    let mut world = dialing(persistent());
    let mut list = vec![
        Value::Map(Vec::new()),
        Value::Null,
        string("x"),
        entry("", &[]),
        entry("a b", &[]),
        entry("ok.example", &[("port", Value::Uint(1))]),
        entry("ok.example", &[("port", Value::Uint(1))]),
        entry("h", &[("port", Value::Uint(0))]),
    ];
    list.extend((0..100).map(|_| entry("late.example", &[])));
    open_with(&mut world, Value::List(list));
    assert_eq!(world.connector().hosts, ["hub.example:5671", "ok.example:1"]);
    let hub = world.hub_id();
    world.lose(hub);
    wait_for_dial(&mut world);
    open_with(&mut world, string("not a list"));
    assert_eq!(
        world.connector().hosts,
        ["ok.example:1", "hub.example:5671"],
        "kept"
    );
}

#[test]
fn failover_lists_are_believed_only_from_a_hub_whose_name_was_checked() {
    let mut settings = persistent();
    let connector = settings.connectors.first_mut().expect("a connector");
    connector.believes_failover_list = false;
    connector.failover = vec![host("spare.example")];
    let mut world = dialing(settings);
    open_with(&mut world, Value::List(vec![entry("evil.example", &[])]));
    assert_eq!(
        world.connector().hosts,
        ["hub.example:5671", "spare.example:5671"]
    );
}

#[test]
fn failover_never_asks_for_tls_where_none_is_configured() {
    let mut settings = persistent();
    settings.connectors.first_mut().expect("a connector").uses_tls = false;
    let mut world = dialing(settings);
    let list = vec![
        entry("a.example", &[("scheme", string("amqps"))]),
        entry("b.example", &[]),
    ];
    open_with(&mut world, Value::List(list));
    assert_eq!(world.connector().hosts, ["hub.example:5671", "b.example:5672"]);
}

/// Defect D32: one name for the dial and for everything else.
#[test]
fn server_name_is_what_every_host_is_known_by() {
    let mut settings = persistent();
    let connector = settings.connectors.first_mut().expect("a connector");
    connector.host = host("proxy.local");
    connector.failover = vec![host("10.0.0.7")];
    connector.server_name = Some("hub.example".into());
    let mut world = dialing(settings);
    for address in ["proxy.local:5671", "10.0.0.7:5671"] {
        assert_eq!(target(&world), (address.to_owned(), "hub.example".to_owned()));
        world.fail_dial();
        wait_for_dial(&mut world);
    }
    world.answer_dial(HUB_AUTO, Announces::default());
    world.run();
    let open = world.hub().log.iter().find(|frame| frame.code == wire::OPEN);
    assert_eq!(open.and_then(|open| open.text(1)), Some("hub.example"));
}

/// 0.6 dialed a hub that opens and closes in a tight loop.
#[test]
fn a_hub_that_opens_and_closes_at_once_is_dialed_ever_less_often() {
    for condition in ["amqp:connection:forced", "amqp:connection:redirect"] {
        let mut world = dialing(persistent());
        let mut waits = Vec::new();
        for _ in 0..7 {
            assert_eq!(target(&world).0, "hub.example:5671", "no redirect is followed");
            world.answer_dial(HUB_AUTO, Announces::default());
            world.run();
            world.hub().close(error(condition, "elsewhere", Value::Null));
            world.run();
            assert_eq!(world.connector().status, ConnectorStatus::Failed);
            waits.push(wait_for_dial(&mut world));
        }
        assert!(waits[0] <= seconds(2), "{waits:?}");
        assert!(waits[6] >= seconds(30), "{waits:?}");
        // One that holds is forgiven.
        let hub = world.answer_dial(HUB_AUTO, Announces::default());
        world.run();
        world.advance(seconds(11));
        world.lose(hub);
        assert!(wait_for_dial(&mut world) <= seconds(2));
    }
}

#[test]
fn a_waiting_device_does_not_make_it_a_storm() {
    let mut world = World::new(settings());
    world.hub = None;
    let device = world.device("dev");
    let mut dials = 0;
    let start = world.now;
    let mut handle = 0;
    while world.now < start + seconds(60) {
        world.peer(device).attach(0, handle, "up", true, UP);
        handle += 1;
        world.run();
        wait_for_dial(&mut world);
        dials += 1;
        world.answer_dial(HUB_AUTO, Announces::default());
        world.run();
        world.hub().close(Value::Null);
        world.run();
    }
    assert!(dials <= 62, "{dials} in a minute");
}
