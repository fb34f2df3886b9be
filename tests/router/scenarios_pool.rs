//! Several connections of one connector: when the next one is made, who is on which, and when it goes again.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use linkrouterd::amqp::message::{Body, Message, Properties};
use linkrouterd::amqp::value::Value;
use linkrouterd::router::ConnectorStatus;
use linkrouterd::router::settings::{
    CbsMode, ConnectorId, ConnectorRole, ConnectorSettings, Direction, RouterSettings,
};

use crate::cbs_hub::{self, CBS_HUB_AUTO, CbsDevice, CbsHub, cbs_settings};
use crate::peer::{Announces, Auto, Kind};
use crate::scenarios_routes::{HUB, SECOND, both, prefix, second_connector, to};
use crate::wire::{composite, condition, string};
use crate::world::{HUB_AUTO, PeerId, World, settings};

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn events(device: &str) -> String {
    format!("/devices/{device}/messages/events")
}

/// Settings with these limits; tokens are not relayed.
fn pooled(change: impl FnOnce(&mut ConnectorSettings)) -> RouterSettings {
    let mut settings = settings();
    change(settings.connectors.first_mut().expect("a connector"));
    settings
}

/// The same, with a `$cbs` that the router relays to.
fn relayed(change: impl FnOnce(&mut ConnectorSettings)) -> RouterSettings {
    let mut settings = pooled(|connector| {
        connector.sharing.cbs = CbsMode::Relay;
        connector.sharing.devices_per_second = 0;
        change(connector);
    });
    settings.routes.extend(both(|way| prefix("$cbs", way, to("HUB"))));
    settings
}

fn channel_max(channel_max: u16) -> (Auto, Announces) {
    let announces = Announces {
        channel_max,
        ..Announces::default()
    };
    (HUB_AUTO, announces)
}

/// The hubs that are there, in the order in which they came.
fn hubs(world: &World) -> Vec<PeerId> {
    (0..world.peers.len())
        .filter(|&id| world.peers[id].peer.kind == Kind::Hub && world.is_alive(id))
        .collect()
}

/// The hubs where a device has links of its own.
fn hubs_of(world: &World, device: &str) -> Vec<PeerId> {
    let suffix = format!("@{device}");
    let mut found = hubs(world);
    found.retain(|&hub| {
        let sessions = world.peers[hub].peer.sessions.values();
        let mut links = sessions.flat_map(|session| session.links.values());
        links.any(|link| link.name.ends_with(&suffix) && link.detached.is_none())
    });
    found
}

/// How many live links of devices each hub has.
fn links(world: &World) -> Vec<usize> {
    let count = |&hub: &PeerId| {
        let sessions = world.peers[hub].peer.sessions.values();
        let links = sessions.flat_map(|session| session.links.values());
        links
            .filter(|link| link.name.contains('@') && link.detached.is_none())
            .count()
    };
    hubs(world).iter().map(count).collect()
}

/// How many connections the pool has, dialed or not.
fn connections(world: &World) -> usize {
    world.router.connectors().count()
}

fn attach(world: &mut World, device: PeerId, handle: u32) {
    let name = world.peer(device).container.clone();
    let link = format!("l{handle}");
    world.peer(device).attach(0, handle, &link, true, &events(&name));
}

fn refusal(world: &mut World, device: PeerId, handle: u32) -> Option<(String, String)> {
    let error = world.peer(device).link(0, handle).detached.clone()?;
    let (_, fields) = composite(&error)?;
    let text = fields.get(1).and_then(Value::as_text).unwrap_or_default();
    Some((condition(&error)?.to_owned(), text.to_owned()))
}

// ---- tokens ------------------------------------------------------------------------------------------------------------

const DESK_SENDER: u32 = 100;
const DESK_RECEIVER: u32 = 101;
/// When tokens end: seconds since 1970.
const EXPIRY: u64 = 2_000_000;

fn put_token(world: &mut World, device: PeerId, identity: &str) {
    let peer = world.peer(device);
    if !peer.session(0).links.contains_key(&DESK_SENDER) {
        peer.attach(0, DESK_SENDER, "cbs-s", true, "$cbs");
        peer.attach(0, DESK_RECEIVER, "cbs-r", false, "$cbs");
        peer.grant(0, DESK_RECEIVER, 50);
    }
    let text = |text: &str| Value::String(text.to_owned());
    let message = Message {
        properties: Properties {
            message_id: Some(text(identity)),
            reply_to: Some("cbs-r".to_owned()),
            ..Properties::default()
        },
        application_properties: vec![
            (text("operation"), text("put-token")),
            (text("type"), text("servicebus.windows.net:sastoken")),
            (
                text("name"),
                Value::String(format!("hub.example/devices/{identity}")),
            ),
        ],
        body: Body::Value(Value::String(format!(
            "SharedAccessSignature sr=hub.example%2Fdevices%2F{identity}&sig=AAAA&se={EXPIRY}"
        ))),
        ..Message::default()
    };
    let mut payload = Vec::new();
    message.encode(&mut payload);
    world.run();
    world.peer(device).send(0, DESK_SENDER, &payload, true);
    world.run();
}

/// The `$cbs` nodes of all hubs.
#[derive(Default)]
struct Nodes {
    /// By hub: the audiences that it has accepted, and how many requests have been looked at.
    accepted: HashMap<PeerId, (BTreeSet<String>, usize)>,
    /// A hub takes no more than so many.
    cap: Option<usize>,
}

impl Nodes {
    /// Answers what the hubs were asked, until they are asked nothing more.
    fn answer(&mut self, world: &mut World) {
        world.run();
        while hubs(world).into_iter().any(|hub| self.answer_one(world, hub)) {
            world.run();
        }
    }

    fn answer_one(&mut self, world: &mut World, hub: PeerId) -> bool {
        let peer = world.peer(hub);
        let (Some(requests), Some(answers)) =
            (peer.find("cbs-sender", false), peer.find("cbs-receiver", true))
        else {
            return false;
        };
        let (accepted, looked) = self.accepted.entry(hub).or_default();
        let Some(request) = peer.link(requests.0, requests.1).received.get(*looked) else {
            return false;
        };
        *looked += 1;
        let request = Message::decode(&request.payload).expect("a request");
        let name = request.application_property("name").and_then(Value::as_text);
        let name = name.expect("a name").to_owned();
        let is_full = self
            .cap
            .is_some_and(|cap| accepted.len() >= cap && !accepted.contains(&name));
        let (status, text) = match is_full {
            true => (500, "Maximum number of tokens per connection has been reached."),
            false => {
                accepted.insert(name);
                (200, "OK")
            }
        };
        let answer = Message {
            properties: Properties {
                correlation_id: request.properties.message_id,
                ..Properties::default()
            },
            application_properties: vec![
                (Value::String("status-code".to_owned()), Value::Int(status)),
                (
                    Value::String("status-description".to_owned()),
                    Value::String(text.to_owned()),
                ),
            ],
            body: Body::Value(Value::Null),
            ..Message::default()
        };
        let mut payload = Vec::new();
        answer.encode(&mut payload);
        peer.send(answers.0, answers.1, &payload, true);
        true
    }

    fn counts(&self, world: &World) -> Vec<usize> {
        let count = |hub| self.accepted.get(hub).map_or(0, |(accepted, _)| accepted.len());
        hubs(world).iter().map(count).collect()
    }
}

fn cbs_hub() -> (Auto, Announces) {
    let auto = Auto {
        credit: 100,
        accept: true,
        ..HUB_AUTO
    };
    (auto, Announces::default())
}

/// Devices `d0` on, each with a token of its own and one link.
fn authorised(world: &mut World, nodes: &mut Nodes, count: usize) -> Vec<PeerId> {
    world.router.tell_time(seconds(EXPIRY - 1000), world.now);
    world.hub = Some(cbs_hub());
    let devices: Vec<PeerId> = (0..count).map(|n| world.device(&format!("d{n}"))).collect();
    for (n, &device) in devices.iter().enumerate() {
        put_token(world, device, &format!("d{n}"));
    }
    nodes.answer(world);
    for &device in &devices {
        attach(world, device, 0);
    }
    nodes.answer(world);
    devices
}

// ---- scenarios ---------------------------------------------------------------------------------------------------------

#[test]
fn a_single_connection_is_the_rule_until_links_are_used_up() {
    let mut world = World::new(pooled(|it| it.sharing.max_links = 4));
    let devices: Vec<PeerId> = (0..3).map(|n| world.device(&format!("d{n}"))).collect();
    for &device in &devices[..2] {
        for handle in 0..2 {
            attach(&mut world, device, handle);
            world.run();
        }
    }
    assert_eq!((links(&world), connections(&world)), (vec![4], 1));
    // Full: the next device opens the next connection, and those that are there stay where they are.
    attach(&mut world, devices[2], 0);
    attach(&mut world, devices[0], 2);
    world.run();
    assert_eq!((links(&world), connections(&world)), (vec![5, 1], 2));
    assert_eq!(
        hubs_of(&world, "d0").len(),
        1,
        "all links of a device are together"
    );
    // There is room on the first again: it is filled before the second.
    world.lose(devices[0]);
    world.run();
    let another = world.device("d3");
    attach(&mut world, another, 0);
    world.run();
    assert_eq!(links(&world), [3, 1]);
}

#[test]
fn sessions_are_used_up_by_what_waits_for_a_connection_that_is_not_there_yet() {
    let mut world = World::new(settings());
    world.hub = Some(channel_max(1));
    let devices: Vec<PeerId> = (0..5).map(|n| world.device(&format!("d{n}"))).collect();
    let hub = world.hub.take();
    for &device in &devices {
        for handle in 0..2 {
            attach(&mut world, device, handle);
        }
    }
    world.run();
    assert_eq!(world.dials, [HUB], "nobody knows yet how many the hub takes");
    world.hub = hub;
    world.run();
    assert_eq!(links(&world), [4, 4, 2]);
    for n in 0..5 {
        assert_eq!(hubs_of(&world, &format!("d{n}")).len(), 1);
    }
    // Now it is known, and all that is lost at once is spread at once.
    world.hub = None;
    for hub in hubs(&world) {
        world.lose(hub);
    }
    world.run();
    for &device in &devices {
        attach(&mut world, device, 10);
    }
    world.run();
    assert_eq!(world.router.snapshot().waiting_attaches, 5);
    world.hub = Some(channel_max(1));
    world.advance(seconds(10));
    assert_eq!(links(&world), [2, 2, 1]);
}

#[test]
fn tokens_are_used_up_and_each_device_is_where_its_token_is() {
    let mut world = World::new(relayed(|it| it.sharing.max_tokens = 2));
    let mut nodes = Nodes::default();
    let devices = authorised(&mut world, &mut nodes, 5);
    assert_eq!(nodes.counts(&world), [2, 2, 1]);
    assert_eq!(links(&world), [2, 2, 1]);
    for n in 0..5 {
        let [hub] = hubs_of(&world, &format!("d{n}"))[..] else {
            panic!("d{n} is in one place")
        };
        let (accepted, _) = &nodes.accepted[&hub];
        assert!(accepted.iter().any(|name| name.ends_with(&format!("d{n}"))));
    }
    // A token is renewed where it is, though that is full.
    put_token(&mut world, devices[0], "d0");
    nodes.answer(&mut world);
    assert_eq!(nodes.counts(&world), [2, 2, 1]);
    // One that has gone keeps its place, and takes it again.
    world.lose(devices[0]);
    world.run();
    let stranger = world.device("d8");
    put_token(&mut world, stranger, "d8");
    let returned = world.device("d0");
    put_token(&mut world, returned, "d0");
    nodes.answer(&mut world);
    assert_eq!(nodes.counts(&world), [2, 2, 2]);
    // When its token has ended, its place is another's.
    world.lose(returned);
    world.run();
    world.advance(seconds(1001));
    let late = world.device("late");
    put_token(&mut world, late, "late");
    nodes.answer(&mut world);
    let first = hubs(&world)[0];
    assert!(nodes.accepted[&first].0.iter().any(|name| name.ends_with("late")));
    assert_eq!(connections(&world), 3);
}

#[test]
fn a_hub_that_takes_fewer_tokens_than_configured_is_full_when_it_says_so() {
    let mut world = World::new(relayed(|it| it.sharing.max_tokens = 100));
    let mut nodes = Nodes {
        cap: Some(2),
        ..Nodes::default()
    };
    let devices = authorised(&mut world, &mut nodes, 5);
    assert_eq!(nodes.counts(&world), [2, 2, 1]);
    for &device in &devices {
        assert!(world.peer(device).link(0, 0).remote.is_some());
        assert_eq!(refusal(&mut world, device, 0), None, "nobody hears of it");
        assert_eq!(world.peer(device).link(0, DESK_RECEIVER).received.len(), 1);
    }
}

#[test]
fn one_connection_lost_is_the_loss_of_its_devices_only() {
    let mut world = World::new(relayed(|it| it.sharing.max_tokens = 2));
    let mut nodes = Nodes::default();
    let devices = authorised(&mut world, &mut nodes, 4);
    let all = hubs(&world);
    for &device in &devices {
        world.peer(device).skip();
    }
    world.lose(all[0]);
    world.run();
    assert!(refusal(&mut world, devices[0], 0).is_some() && refusal(&mut world, devices[1], 0).is_some());
    for &device in &devices[2..] {
        world.peer(device).expect_nothing();
    }
    for &device in &devices[..2] {
        attach(&mut world, device, 1);
    }
    nodes.answer(&mut world);
    world.advance(seconds(10));
    nodes.answer(&mut world);
    for device in ["d0", "d1"] {
        assert_eq!(hubs_of(&world, device).len(), 1);
    }
    // Their tokens were put again, and there is no more than there may be.
    assert_eq!(nodes.counts(&world), [2, 2]);
    assert_eq!(links(&world), [2, 2]);
    assert_eq!(connections(&world), 2);
    for &device in &devices[2..] {
        world.peer(device).expect_nothing();
    }
}

#[test]
fn the_pool_shrinks_when_nobody_uses_it() {
    let mut world = World::new(pooled(|it| it.sharing.max_links = 1));
    let devices: Vec<PeerId> = (0..3).map(|n| world.device(&format!("d{n}"))).collect();
    for &device in &devices {
        attach(&mut world, device, 0);
        world.run();
    }
    assert_eq!((links(&world), connections(&world)), (vec![1, 1, 1], 3));
    for &device in &devices[1..] {
        world.lose(device);
    }
    world.run();
    world.advance(seconds(59));
    assert_eq!(connections(&world), 3, "it lingers");
    world.advance(seconds(2));
    assert_eq!((links(&world), connections(&world)), (vec![1], 1));
    // And grows again.
    let again = world.device("again");
    attach(&mut world, again, 0);
    world.run();
    assert_eq!((links(&world), connections(&world)), (vec![1, 1], 2));
}

#[test]
fn a_further_connection_that_fails_goes_when_nobody_waits_for_it() {
    let mut world = World::new(pooled(|it| it.sharing.max_links = 1));
    let (one, two) = (world.device("one"), world.device("two"));
    attach(&mut world, one, 0);
    world.run();
    world.hub = None;
    attach(&mut world, two, 0);
    world.run();
    let further = world.dials[0];
    let target = world.router.dial_target(further).expect("a target");
    assert_eq!(target.configured, HUB, "it is dialed as the connector is");
    world.fail_dial();
    world.run();
    assert_eq!(connections(&world), 2);
    world.advance(seconds(16));
    assert_eq!(
        refusal(&mut world, two, 0).expect("refused").0,
        "amqp:link:detach-forced"
    );
    while let Some(&id) = world.dials.first() {
        world.fail_dial_of(id);
        world.advance(seconds(70));
    }
    assert_eq!(connections(&world), 1);
    assert!(refusal(&mut world, one, 0).is_none(), "the first does not mind");
}

#[test]
fn a_full_pool_refuses_and_says_which_limits_those_are() {
    let mut world = World::new(pooled(|it| {
        it.sharing.max_links = 1;
        it.sharing.pool_size = 2;
    }));
    let devices: Vec<PeerId> = (0..3).map(|n| world.device(&format!("d{n}"))).collect();
    for &device in &devices {
        attach(&mut world, device, 0);
        world.run();
    }
    assert_eq!((links(&world), connections(&world)), (vec![1, 1], 2));
    let (condition, text) = refusal(&mut world, devices[2], 0).expect("refused");
    assert_eq!(condition, "amqp:resource-limit-exceeded");
    for key in ["HUB", "poolSize", "maxLinks", "maxTokens"] {
        assert!(text.contains(key), "{text}");
    }
    // The same for a token.
    let mut world = World::new(relayed(|it| {
        it.sharing.max_tokens = 1;
        it.sharing.pool_size = 1;
    }));
    let mut nodes = Nodes::default();
    let devices = authorised(&mut world, &mut nodes, 2);
    assert_eq!(nodes.counts(&world), [1]);
    let (condition, text) = refusal(&mut world, devices[1], DESK_SENDER).expect("refused");
    assert_eq!(condition, "amqp:resource-limit-exceeded");
    assert!(
        text.contains("maxTokens 1") && text.contains("poolSize"),
        "{text}"
    );
}

#[test]
fn a_device_stays_with_the_connector_that_has_its_token() {
    let mut settings = relayed(|_| {});
    let mut second = settings.connectors[0].clone();
    second.name = "HUB2".into();
    settings.connectors.push(second);
    for address in ["$cbs", "devices/"] {
        settings
            .routes
            .extend(both(|way| prefix(address, way, to("HUB2"))));
    }
    let mut world = World::new(settings);
    let mut nodes = Nodes::default();
    let devices = authorised(&mut world, &mut nodes, 4);
    for (n, &device) in devices.iter().enumerate() {
        for handle in 1..4 {
            attach(&mut world, device, handle);
            nodes.answer(&mut world);
            assert_eq!(refusal(&mut world, device, handle), None);
        }
        assert_eq!(hubs_of(&world, &format!("d{n}")).len(), 1);
    }
    let mut tokens = nodes.counts(&world);
    tokens.sort_unstable();
    assert_eq!(tokens.iter().sum::<usize>(), 4, "each token was put once");
    assert_eq!(tokens.len(), 2, "devices take turns");
}

#[test]
fn reload_keeps_closes_and_succeeds_the_connections_of_a_pool_with_their_connector() {
    let small = || pooled(|it| it.sharing.max_links = 1);
    let mut world = World::new(small());
    let devices: Vec<PeerId> = (0..3).map(|n| world.device(&format!("d{n}"))).collect();
    for &device in &devices {
        attach(&mut world, device, 0);
        world.run();
    }
    let before = world.router.snapshot();
    let reloaded = world.reload(small());
    assert_eq!((reloaded.unchanged, connections(&world)), (1, 3));
    assert_eq!(world.router.snapshot(), before);
    // Another device waits for a further connection while the connector changes.
    world.hub = None;
    let waiting = world.device("waiting");
    attach(&mut world, waiting, 0);
    world.run();
    assert_eq!(world.dials.len(), 1);
    let mut changed = small();
    changed.connectors[0].sharing.max_links = 2;
    let reloaded = world.reload(changed.clone());
    assert_eq!((reloaded.changed, reloaded.removed), (1, 0));
    assert_eq!(reloaded.connectors.len(), 1);
    for &device in &devices {
        let (_, text) = refusal(&mut world, device, 0).expect("lost");
        assert!(text.contains("its configuration changed"), "{text}");
    }
    assert_eq!(hubs(&world).len(), 0, "all were closed");
    let target = world.dials.last().and_then(|&id| world.router.dial_target(id));
    assert_eq!(
        target.map(|it| it.configured),
        reloaded.connectors.first().copied()
    );
    world.hub = Some((HUB_AUTO, Announces::default()));
    world.run();
    assert_eq!(links(&world), [1], "what waited goes to the successor");
    // And a connector that is no more takes all of its pool with it.
    for &device in &devices {
        attach(&mut world, device, 1);
        world.run();
    }
    assert_eq!(links(&world).iter().sum::<usize>(), 4);
    changed.connectors.clear();
    let reloaded = world.reload(changed);
    assert_eq!((reloaded.removed, connections(&world)), (1, 0));
    assert!(hubs(&world).is_empty());
    assert_eq!(world.router.snapshot().link_pairs, 0);
}

#[test]
fn a_persistent_connector_has_further_connections_on_demand() {
    let mut world = World::new(pooled(|it| {
        it.role = ConnectorRole::Persistent;
        it.sharing.max_links = 1;
    }));
    world.run();
    assert_eq!(world.hubs_made, 1);
    let devices: Vec<PeerId> = (0..2).map(|n| world.device(&format!("d{n}"))).collect();
    for &device in &devices {
        attach(&mut world, device, 0);
        world.run();
    }
    assert_eq!(links(&world), [1, 1]);
    for &device in &devices {
        world.lose(device);
    }
    world.run();
    world.advance(seconds(61));
    assert_eq!(connections(&world), 1);
    let report = world.connector();
    assert_eq!(
        (report.status, report.is_further),
        (ConnectorStatus::Success, false)
    );
}

#[test]
fn a_pool_is_one_choice_among_equal_routes() {
    let mut settings = pooled(|it| it.sharing.max_links = 2);
    let mut second = settings.connectors[0].clone();
    second.name = "HUB2".into();
    second.sharing.max_links = 1000;
    settings.connectors.push(second);
    settings.routes = ["HUB", "HUB2"]
        .map(|name| prefix("devices/", Direction::In, to(name)))
        .into();
    let mut world = World::new(settings);
    world.hub = None;
    for n in 0..12 {
        let device = world.device(&format!("d{n}"));
        attach(&mut world, device, 0);
        world.run();
    }
    let further: Vec<ConnectorId> = world.dials.clone();
    assert_eq!(further.len(), 4, "three of one, and one of the other");
    assert!(further.contains(&HUB) && further.contains(&SECOND));
    world.hub = Some((HUB_AUTO, Announces::default()));
    world.run();
    let mut shares = links(&world);
    shares.sort_unstable();
    assert_eq!(shares, [2, 2, 2, 6], "each connector has half of the devices");
}

// ---- what waits for tokens ---------------------------------------------------------------------------------------------

#[test]
fn a_token_that_is_answered_on_another_connection_releases_what_waits_for_it() {
    let mut world = World::new(relayed(|it| it.sharing.max_links = 1));
    let mut nodes = Nodes::default();
    let first = authorised(&mut world, &mut nodes, 1);
    let device = world.device("d");
    put_token(&mut world, device, "d");
    let all = hubs(&world);
    assert_eq!(all.len(), 2, "asked on a further connection, and not answered");
    world.lose(first[0]);
    world.lose(all[1]);
    world.run();
    // There is room on the first one now.
    attach(&mut world, device, 0);
    nodes.answer(&mut world);
    assert_eq!(links(&world), [0], "the token is not known to be good");
    world.advance(seconds(5));
    nodes.answer(&mut world);
    assert_eq!(hubs_of(&world, "d"), [all[0]]);
    assert_eq!(refusal(&mut world, device, 0), None);
}

#[test]
fn what_waits_for_a_token_in_a_session_that_the_hub_ends_takes_no_place() {
    let mut world = World::new(relayed(|it| it.sharing.max_links = 2));
    let mut nodes = Nodes::default();
    let devices = authorised(&mut world, &mut nodes, 1);
    put_token(&mut world, devices[0], "x");
    world.peer(devices[0]).attach(0, 1, "l1", true, &events("x"));
    world.run();
    let hub = hubs(&world)[0];
    let (channel, _) = world.peer(hub).find("l0@d0", false).expect("attached");
    world.peer(hub).end(channel, Value::Null);
    world.run();
    nodes.answer(&mut world);
    for name in ["e0", "e1"] {
        let device = world.device(name);
        put_token(&mut world, device, name);
        nodes.answer(&mut world);
        attach(&mut world, device, 0);
        nodes.answer(&mut world);
    }
    assert_eq!(links(&world), [2]);
}

#[test]
fn a_connection_that_an_answer_comes_on_for_a_device_that_has_gone_is_closed_all_the_same() {
    let mut world = World::new(relayed(|_| {}));
    world.hub = Some(cbs_hub());
    let mut nodes = Nodes::default();
    let device = world.device("d");
    put_token(&mut world, device, "d");
    nodes.answer(&mut world);
    world.advance(seconds(70));
    put_token(&mut world, device, "d");
    world.lose(device);
    world.run();
    nodes.answer(&mut world);
    assert_eq!(hubs(&world).len(), 1, "it lingers");
    world.advance(seconds(61));
    assert_eq!(hubs(&world).len(), 0);
}

#[test]
fn what_waited_for_a_token_on_a_lost_connection_is_not_taken_for_what_waits_for_another_hub() {
    let mut settings = relayed(|_| {});
    second_connector(&mut settings).sharing.cbs = CbsMode::Tunnel;
    settings
        .routes
        .extend(both(|way| prefix("devices", way, to("HUB2"))));
    let mut world = World::new(settings);
    let mut nodes = Nodes::default();
    let devices = authorised(&mut world, &mut nodes, 1);
    put_token(&mut world, devices[0], "x");
    world.peer(devices[0]).attach(0, 1, "l1", true, &events("x"));
    world.run();
    let lost = hubs(&world)[0];
    world.hub = None;
    world.lose(lost);
    world.run();
    let other = world.device("e");
    attach(&mut world, other, 0);
    world.run();
    world.advance(seconds(3));
    assert!(world.dials.contains(&HUB) && world.dials.contains(&SECOND));
    let (auto, announces) = cbs_hub();
    world.answer_dial_of(HUB, "hub", auto, announces);
    world.run();
    assert_eq!(refusal(&mut world, other, 0), None);
    let second = world.answer_dial_of(SECOND, "two", HUB_AUTO, Announces::default());
    world.run();
    assert_eq!(hubs_of(&world, "e"), [second]);
}

/// Whoever asks, and goes before the hub has heard of it, must not keep the places of others.
#[test]
fn a_device_that_goes_before_its_tokens_are_on_their_way_leaves_their_places_to_others() {
    let mut settings = cbs_settings();
    for connector in &mut settings.connectors {
        connector.sharing.max_tokens = 3;
        connector.sharing.pool_size = 1;
    }
    let mut world = World::new(settings);
    world.hub = None;
    let first = CbsDevice::new(&mut world, "first");
    for id in ["a", "b", "c"] {
        first.ask(&mut world, &cbs_hub::put_token(id, string(id)));
    }
    let second = CbsDevice::new(&mut world, "second");
    world.lose(first.peer);
    world.answer_dial(CBS_HUB_AUTO, Announces::default());
    world.run();
    let mut hub = CbsHub::new(&world);
    second.puts(&mut world, &mut hub, "d");
}

/// Its token would be of no use there, and its place nobody's to give back.
#[test]
fn a_hub_without_room_for_the_token_of_a_device_that_has_gone_makes_no_other_connection() {
    let mut world = cbs_hub::cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "gone");
    device.ask(&mut world, &cbs_hub::put_token("a", string("1")));
    let mut hub = CbsHub::new(&world);
    let request = hub.request(&mut world);
    world.lose(device.peer);
    world.run();
    let full = "The maximum number of tokens per connection (1000) has been reached.";
    hub.answer(&mut world, &request, 500, full);
    world.run();
    assert_eq!(hubs(&world).len(), 1);
    world.advance(seconds(600));
    assert_eq!(hubs(&world).len(), 0, "nobody uses it any more");
}

/// The hub's words for a device that it does not know have the name in them that the device has chosen.
#[test]
fn a_device_whose_name_is_the_hubs_code_for_a_full_connection_fills_none() {
    for name in ["403005", "maximum%20number%20of%20tokens"] {
        let mut settings = cbs_settings();
        for connector in &mut settings.connectors {
            connector.sharing.pool_size = 2;
        }
        let mut world = cbs_hub::cbs_world(settings);
        let device = CbsDevice::new(&mut world, "stranger");
        device.ask(&mut world, &cbs_hub::put_token(name, string("1")));
        let mut hub = CbsHub::new(&world);
        let request = hub.request(&mut world);
        let read = name.replace("%20", " ");
        let unknown = format!("Device {read} at IotHub hub.example not registered.");
        hub.answer(&mut world, &request, 404, &unknown);
        assert_eq!(hubs(&world).len(), 1, "{name}");
        let codes: Vec<i32> = device.answers(&mut world).iter().map(|it| it.code()).collect();
        assert_eq!(codes, [404], "{name}");
        let other = CbsDevice::new(&mut world, "other");
        other.puts(&mut world, &mut hub, "d");
    }
}

/// A hub has one token of a device, whatever the device calls itself.
#[test]
fn a_device_takes_one_place_however_it_spells_what_its_tokens_are_for() {
    let mut settings = cbs_settings();
    for connector in &mut settings.connectors {
        connector.sharing.max_tokens = 2;
        connector.sharing.pool_size = 1;
    }
    let mut world = cbs_hub::cbs_world(settings);
    let device = CbsDevice::new(&mut world, "d");
    let other = CbsDevice::new(&mut world, "other");
    let mut hub = CbsHub::new(&world);
    for resource in [
        "hub.example%2Fdevices%2Fd",
        "HUB.example%2Fdevices%2Fd",
        "hub.example:5671%2FDevices%2Fd",
        "amqps%3A%2F%2Fhub.example%2Fdevices%2Fd%2F",
        "hub.example%2Fdevices%2Fd%2Fmessages",
    ] {
        let text = format!("SharedAccessSignature sr={resource}&sig=c2ln&se=2000000000");
        let body = Body::Value(string(&text));
        let put = cbs_hub::request(string("1"), "put-token", cbs_hub::SAS, "d", body);
        device.ask(&mut world, &put);
        assert_eq!(hub.accept_all(&mut world), 1, "{resource}");
    }
    other.puts(&mut world, &mut hub, "other");
}
