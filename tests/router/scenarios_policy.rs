//! The vhost policy on the wire: who is admitted, what a group may attach, and how large its messages may be.

use linkrouterd::amqp::value::Value;
use linkrouterd::endpoint::limits;
use linkrouterd::router::settings::policy::{
    Addresses, GroupSettings, PolicySettings, RemoteHost, VhostPolicy, VhostSettings,
};
use linkrouterd::router::settings::{ListenerId, ListenerRole, RouterSettings};

use crate::peer::{Announces, Peer};
use crate::tunnel::{DOWN, Tunnel, UP, tunnel_of};
use crate::wire::{self, Frame, composite, condition};
use crate::world::{DEVICE_AUTO, HUB_AUTO, PeerId, World, settings};

pub(crate) const UNAUTHORIZED: &str = "amqp:unauthorized-access";
const LIMIT_EXCEEDED: &str = "amqp:resource-limit-exceeded";
const TOO_LARGE: &str = "amqp:link:message-size-exceeded";

pub(crate) fn listed(texts: &[&str]) -> Addresses {
    Addresses::Listed(texts.iter().map(|text| (*text).to_owned()).collect())
}

/// Everyone, from everywhere, to everything.
pub(crate) fn everything() -> GroupSettings {
    GroupSettings {
        users: vec!["*".into()],
        remote_hosts: vec![RemoteHost::Any],
        sources: listed(&["*"]),
        targets: listed(&["*"]),
        ..GroupSettings::new("everyone")
    }
}

pub(crate) fn vhost(name: &str, group: GroupSettings) -> VhostSettings {
    VhostSettings {
        name: name.into(),
        max_connections: 100,
        groups: vec![group],
        ..VhostSettings::default()
    }
}

pub(crate) fn with_vhosts(vhosts: Vec<VhostSettings>) -> RouterSettings {
    let policy = PolicySettings {
        max_message_size: 0,
        vhosts: Some(VhostPolicy {
            default_vhost: "$default".into(),
            name_patterns: false,
            vhosts,
        }),
    };
    RouterSettings { policy, ..settings() }
}

/// The vhost that every device of these tests names has this one group.
fn with_group(group: GroupSettings) -> RouterSettings {
    with_vhosts(vec![vhost("hub.example", group)])
}

/// A device from this address that has said open, begin, and attach.
pub(crate) fn eager_device(world: &mut World, address: &str) -> PeerId {
    let id = world
        .connect_from(address, ListenerId(0), "dev", DEVICE_AUTO, Announces::default())
        .expect("room for a device");
    let peer = world.peer(id);
    peer.open();
    peer.begin(0);
    peer.attach(0, 0, "up", true, UP);
    world.run();
    id
}

/// The next frame of this kind, whatever is before it.
#[track_caller]
fn next_of(peer: &mut Peer, code: u64) -> Frame {
    std::iter::from_fn(|| peer.next())
        .find(|frame| frame.code == code)
        .expect("such a frame")
}

#[track_caller]
pub(crate) fn expect_disallowed(world: &mut World, id: PeerId) {
    let peer = world.peer(id);
    peer.expect(wire::OPEN);
    let close = peer.expect(wire::CLOSE);
    peer.expect_nothing();
    assert_eq!(
        composite(close.field(0)).map(|(_, fields)| fields),
        Some(
            &[
                wire::symbol(LIMIT_EXCEEDED),
                wire::string("connection disallowed by local policy"),
                Value::Null
            ][..]
        )
    );
    assert!(
        !world.is_alive(id),
        "it answered, and nothing keeps the transport open"
    );
}

/// The answer to an attach that is refused, and its detach.
#[track_caller]
pub(crate) fn expect_refused(world: &mut World, id: PeerId, is_sender: bool, why: &str) {
    let peer = world.peer(id);
    let answer = peer.expect(wire::ATTACH);
    assert_eq!(
        answer.field(if is_sender { 6 } else { 5 }),
        &Value::Null,
        "{answer:?}"
    );
    let detach = peer.expect(wire::DETACH);
    assert!(detach.flag(1), "closed");
    assert_eq!(
        composite(detach.field(2)).map(|(_, fields)| fields),
        Some(
            &[
                wire::symbol(why),
                wire::string("link disallowed by local policy"),
                Value::Null
            ][..]
        )
    );
    peer.expect_nothing();
}

#[test]
fn denied_connection_gets_open_then_close() {
    let mut group = everything();
    group.remote_hosts = vec![RemoteHost::Range(
        "10.0.0.1".parse().expect("an address"),
        "10.0.0.9".parse().expect("an address"),
    )];
    let mut world = World::new(with_group(group));
    let denied = eager_device(&mut world, "10.0.0.10:4711");
    expect_disallowed(&mut world, denied);
    assert_eq!(world.hubs_made, 0, "what it had sent already is for nobody");
    let allowed = eager_device(&mut world, "[::ffff:10.0.0.9]:4711");
    world.peer(allowed).expect(wire::OPEN);
    assert_eq!(world.router.snapshot().admitted, 1);
    assert_eq!(world.router.snapshot().link_pairs, 1);
}

#[test]
fn unknown_vhost_is_denied_without_default_vhost() {
    let mut world = World::new(with_vhosts(vec![vhost("other.example", everything())]));
    let denied = eager_device(&mut world, "10.0.0.1:4711");
    expect_disallowed(&mut world, denied);
    let mut world = World::new(with_vhosts(vec![vhost("$default", everything())]));
    let allowed = eager_device(&mut world, "10.0.0.1:4711");
    assert!(world.is_alive(allowed));
    let mut world = World::new(with_vhosts(Vec::new()));
    let denied = eager_device(&mut world, "10.0.0.1:4711");
    expect_disallowed(&mut world, denied);
}

#[test]
fn a_broker_that_connects_needs_its_vhost_too() {
    for (name, is_admitted) in [("hub.example", true), ("other.example", false)] {
        let mut settings = with_vhosts(vec![vhost(name, everything())]);
        settings.listeners[0].role = ListenerRole::RouteContainer;
        let mut world = World::new(settings);
        let broker = world
            .connect("broker", DEVICE_AUTO, Announces::default())
            .expect("room for a broker");
        world.peer(broker).open();
        world.run();
        assert_eq!(world.is_alive(broker), is_admitted);
        if is_admitted {
            assert_eq!(world.router.snapshot().admitted, 1);
            world.lose(broker);
        } else {
            expect_disallowed(&mut world, broker);
        }
        assert_eq!(world.router.snapshot().admitted, 0);
    }
}

#[test]
fn the_vhost_of_a_listener_is_that_of_all_its_devices() {
    let mut settings = with_vhosts(vec![vhost("gateway", everything())]);
    settings.listeners[0].policy_vhost = Some("gateway".into());
    let mut world = World::new(settings);
    let device = eager_device(&mut world, "10.0.0.1:4711");
    assert!(world.is_alive(device));
    assert_eq!(world.router.snapshot().link_pairs, 1);
}

#[test]
fn a_place_is_given_back_however_the_connection_ends() {
    let mut group = everything();
    group.max_connections_per_user = 1;
    let mut world = World::new(with_group(group));
    let ends: [fn(&mut World, PeerId); 4] = [
        |world, id| world.lose(id),
        |world, id| world.end_of_stream(id),
        |world, id| world.peer(id).close(Value::Null),
        // An error of the device: a frame on a channel that was never begun.
        |world, id| world.peer(id).say(&Frame::new(9, wire::END, Vec::new())),
    ];
    for (number, end) in ends.into_iter().enumerate() {
        let first = eager_device(&mut world, "10.0.0.1:4711");
        assert_eq!(world.router.snapshot().admitted, 1, "{number}");
        let second = eager_device(&mut world, "10.0.0.1:4712");
        expect_disallowed(&mut world, second);
        assert!(world.is_alive(first), "the one that was there first stays");
        end(&mut world, first);
        world.run();
        assert_eq!(world.router.snapshot().admitted, 0, "{number}");
    }
}

#[test]
fn limits_of_a_group_are_announced_and_kept() {
    let limited = GroupSettings {
        max_frame_size: Some(1024),
        channel_max: Some(1),
        session_window: Some(10 * 1024),
        ..everything()
    };
    let mut world = World::new(with_vhosts(vec![
        vhost("hub.example", limited),
        vhost("$default", everything()),
    ]));
    for number in 0..3 {
        let device = world.device("dev");
        let peer = world.peer(device);
        let open = peer.expect(wire::OPEN);
        assert_eq!((open.uint(2), open.uint(3)), (Some(1024), Some(1)));
        assert_eq!(peer.expect(wire::BEGIN).uint(2), Some(10));
        peer.begin(1);
        world.run();
        world.peer(device).expect(wire::BEGIN);
        match number {
            0 => {
                // One session too many: above the channel-max, so an error of the connection.
                world.peer(device).begin(2);
                world.run();
                let close = world.peer(device).expect(wire::CLOSE);
                assert_eq!(condition(close.field(0)), Some("amqp:connection:framing-error"));
            }
            1 => {
                let padding = "x".repeat(1100);
                world.peer(device).attach(0, 0, &padding, true, UP);
                world.run();
                let close = world.peer(device).expect(wire::CLOSE);
                assert_eq!(condition(close.field(0)), Some("amqp:connection:framing-error"));
            }
            _ => assert!(world.is_alive(device)),
        }
    }
}

#[test]
fn a_group_does_not_widen_the_limits_of_the_listener() {
    let wide = GroupSettings {
        max_frame_size: Some(1 << 20),
        channel_max: Some(32767),
        session_window: Some(u32::MAX),
        ..everything()
    };
    let mut world = World::new(with_group(wide));
    let device = world.device("dev");
    let open = world.peer(device).expect(wire::OPEN);
    assert_eq!((open.uint(2), open.uint(3)), (Some(16384), Some(1023)));
    assert_eq!(
        world.peer(device).expect(wire::BEGIN).uint(2),
        Some(u32::MAX / 16384)
    );
}

#[test]
fn denied_address_is_refused_with_null_terminus_and_the_hub_hears_nothing() {
    let group = GroupSettings {
        sources: listed(&[DOWN]),
        targets: listed(&["/devices/${user}/messages/events", "devices/d1*"]),
        ..everything()
    };
    let mut world = World::new(with_group(group));
    let device = world.device("dev");
    world.peer(device).skip();
    let denied = [
        (true, UP),
        (true, "/devices/d1"),
        (true, "$cbs"),
        (false, UP),
        (false, "devices/d1"),
    ];
    for (handle, (is_sender, address)) in (0..).zip(denied) {
        world.peer(device).attach(0, handle, address, is_sender, address);
        world.run();
        expect_refused(&mut world, device, is_sender, UNAUTHORIZED);
    }
    assert_eq!(world.hubs_made, 0);
    let allowed = [
        (true, "/devices/anonymous/messages/events"),
        (true, "devices/d12/x"),
        (false, DOWN),
    ];
    for (handle, (is_sender, address)) in (10..).zip(allowed) {
        world.peer(device).attach(0, handle, address, is_sender, address);
        world.run();
        let answer = world.peer(device).expect(wire::ATTACH);
        assert_ne!(answer.field(if is_sender { 6 } else { 5 }), &Value::Null);
    }
    assert_eq!(world.router.snapshot().link_pairs, 3);
}

/// Dynamic-node-properties mean nothing where no node is to be made: the address that routes the link is the terminus's.
#[test]
fn the_address_that_the_policy_judges_is_the_one_that_routes_the_link() {
    let other = "/devices/d2/messages/events";
    let group = GroupSettings {
        sources: listed(&[UP]),
        targets: listed(&[UP]),
        ..everything()
    };
    let mut world = World::new(with_group(group));
    let device = world.device("dev");
    world.peer(device).skip();
    for (handle, is_sender) in [(0, true), (1, false)] {
        let disguised = wire::described(
            if is_sender { 0x29 } else { 0x28 },
            vec![
                wire::string(other),
                Value::Null,
                Value::Null,
                Value::Null,
                Value::Boolean(false),
                Value::Map(vec![(wire::symbol("x-opt-qd.address"), wire::string(UP))]),
            ],
        );
        let (source, target) = match is_sender {
            true => (wire::terminus(0x28, "here"), disguised),
            false => (disguised, wire::terminus(0x29, "here")),
        };
        let name = format!("disguised {handle}");
        world
            .peer(device)
            .attach_with(0, handle, &name, is_sender, source, target);
        world.run();
        expect_refused(&mut world, device, is_sender, UNAUTHORIZED);
    }
    assert_eq!(world.hubs_made, 0);
}

#[test]
fn max_senders_and_max_receivers_count_the_links_there_are_now() {
    let group = GroupSettings {
        max_senders: Some(2),
        max_receivers: Some(1),
        targets: listed(&["/devices/*"]),
        ..everything()
    };
    let mut world = World::new(with_group(group));
    let device = world.device("dev");
    world.peer(device).begin(1);
    world.run();
    world.peer(device).skip();
    // A refused link takes no place.
    world.peer(device).attach(0, 9, "nowhere", true, "nowhere");
    world.run();
    expect_refused(&mut world, device, true, UNAUTHORIZED);
    for (channel, handle) in [(0, 0), (1, 0)] {
        world.peer(device).attach(channel, handle, "up", true, UP);
        world.run();
        assert_ne!(world.peer(device).expect(wire::ATTACH).field(6), &Value::Null);
    }
    world.peer(device).attach(0, 1, "third", true, UP);
    world.run();
    expect_refused(&mut world, device, true, LIMIT_EXCEEDED);
    world.peer(device).attach(0, 2, "down", false, DOWN);
    world.run();
    assert_ne!(world.peer(device).expect(wire::ATTACH).field(5), &Value::Null);
    world.peer(device).attach(0, 3, "down2", false, DOWN);
    world.run();
    expect_refused(&mut world, device, false, LIMIT_EXCEEDED);
    // Its place is free as soon as the device gives it up, whatever the hub takes to answer.
    let hub = world.hub_id();
    world.peer(hub).auto.detach = false;
    world.peer(device).detach(0, 0, true, Value::Null);
    world.peer(device).attach(0, 5, "fourth", true, UP);
    world.run();
    assert_ne!(world.peer(device).expect(wire::ATTACH).field(6), &Value::Null);
    // One session's end gives up all that was on it.
    world.peer(device).end(1, Value::Null);
    world.peer(device).attach(0, 6, "fifth", true, UP);
    world.run();
    world.peer(device).expect(wire::END);
    assert_ne!(world.peer(device).expect(wire::ATTACH).field(6), &Value::Null);
}

#[test]
fn a_coordinator_needs_its_address_among_the_targets() {
    for (target, why) in [
        ("$coordinator", "amqp:precondition-failed"),
        ("devices/*", UNAUTHORIZED),
    ] {
        let group = GroupSettings {
            targets: listed(&[target]),
            ..everything()
        };
        let mut world = World::new(with_group(group));
        let device = world.device("dev");
        world.peer(device).skip();
        let coordinator = wire::described(0x30, Vec::new());
        world
            .peer(device)
            .attach_with(0, 0, "tx", true, wire::terminus(0x28, "here"), coordinator);
        world.run();
        world.peer(device).expect(wire::ATTACH);
        let detach = world.peer(device).expect(wire::DETACH);
        assert_eq!(condition(detach.field(2)), Some(why), "{target}");
    }
}

// ---- maxMessageSize ------------------------------------------------------------------------------------------------

fn with_message_size(limit: u64) -> RouterSettings {
    with_group(GroupSettings {
        max_message_size: limit,
        ..everything()
    })
}

#[test]
fn max_message_size_is_announced_where_the_device_sends_and_the_hub_allows_more() {
    let ours = |limit| RouterSettings {
        policy: PolicySettings {
            max_message_size: limit,
            vhosts: None,
        },
        ..settings()
    };
    for (settings, hubs, shown) in [
        (with_message_size(1000), Value::Null, Value::Ulong(1000)),
        (with_message_size(1000), Value::Ulong(0), Value::Ulong(1000)),
        (with_message_size(1000), Value::Ulong(5000), Value::Ulong(1000)),
        (with_message_size(1000), Value::Ulong(500), Value::Ulong(500)),
        (with_message_size(0), Value::Ulong(500), Value::Ulong(500)),
        (with_message_size(0), Value::Null, Value::Null),
        // Without vhosts the policy's own limit is for everyone.
        (ours(700), Value::Ulong(5000), Value::Ulong(700)),
    ] {
        let mut world = World::new(settings);
        let mut auto = HUB_AUTO;
        auto.attach = false;
        world.hub = Some((auto, Announces::default()));
        let device = world.device("dev");
        world.peer(device).attach(0, 0, "up", true, UP);
        world.peer(device).attach(0, 1, "down", false, DOWN);
        world.run();
        world.peer(device).skip();
        for handle in [0, 1] {
            let asked = next_of(world.hub(), wire::ATTACH);
            let mut fields = asked.fields.clone();
            fields.resize(14, Value::Null);
            fields.splice(1..3, [wire::uint(handle), Value::Boolean(!asked.flag(2))]);
            fields.splice(9..11, [wire::uint(0), hubs.clone()]);
            world.hub().say(&Frame::new(7, wire::ATTACH, fields));
            world.run();
            let answer = world.peer(device).expect(wire::ATTACH);
            let expected = if handle == 0 { &shown } else { &hubs };
            assert_eq!(answer.field(10), expected, "{hubs:?} {handle}");
        }
    }
}

/// What the hub got on the link upwards: whole messages, aborted ones, and the detach if there was one.
fn at_hub(tunnel: &mut Tunnel) -> (Vec<usize>, usize, Option<Value>) {
    let (channel, handle) = tunnel.up;
    let link = tunnel.world.peer(tunnel.hub).link(channel, handle);
    let sizes = link.received.iter().map(|it| it.payload.len()).collect();
    (sizes, link.aborted, link.detached.clone())
}

/// The device's link upwards is gone with the right error, and nothing else of it is.
#[track_caller]
fn expect_too_large(tunnel: &mut Tunnel, limit: u64) {
    let detach = tunnel.world.peer(tunnel.device).expect_past_flows(wire::DETACH);
    assert!(detach.flag(1), "closed");
    let text = format!("Message size exceeded: a message on this link may have {limit} bytes");
    assert_eq!(
        composite(detach.field(2)).map(|(_, fields)| fields),
        Some(&[wire::symbol(TOO_LARGE), wire::string(&text), Value::Null][..])
    );
    assert!(tunnel.world.is_alive(tunnel.device) && tunnel.world.is_alive(tunnel.hub));
    // The other link goes on.
    let (channel, handle) = tunnel.down;
    tunnel
        .world
        .peer(tunnel.hub)
        .send(channel, handle, b"still here", true);
    tunnel.world.run();
    let down = tunnel.world.peer(tunnel.device).link(0, 1);
    assert_eq!(
        down.received.last().map(|it| it.payload.as_slice()),
        Some(&b"still here"[..])
    );
}

#[test]
fn a_message_of_the_limit_passes_in_one_frame_or_many() {
    let mut p = tunnel_of(with_message_size(20_000), 2048, 2048);
    for size in [20_000, 1, 20_000, 0, 19_999] {
        p.world.peer(p.device).send(0, 0, &vec![1; size], true);
    }
    p.world.run();
    assert_eq!(at_hub(&mut p), (vec![20_000, 1, 20_000, 0, 19_999], 0, None));
    // What the hub sends is not limited.
    p.world.peer(p.hub).send(p.down.0, p.down.1, &[2; 50_000], true);
    p.world.run();
    assert_eq!(p.world.peer(p.device).link(0, 1).received.len(), 1);
}

#[test]
fn d28_a_message_too_large_in_its_first_frame_never_reaches_the_hub() {
    let mut p = tunnel_of(with_message_size(1000), 2048, 2048);
    p.world.peer(p.device).send(0, 0, &[1; 1001], false);
    p.world.run();
    expect_too_large(&mut p, 1000);
    let (received, aborted, detached) = at_hub(&mut p);
    assert_eq!((received, aborted), (vec![], 0));
    assert_eq!(detached.as_ref().and_then(condition), Some(TOO_LARGE));
    assert_eq!(p.world.router.snapshot().link_pairs, 1);
}

#[test]
fn d28_a_message_that_grows_too_large_is_aborted_and_those_before_it_keep_their_outcomes() {
    let mut p = tunnel_of(with_message_size(40_000), 2048, 2048);
    p.world.peer(p.hub).auto.detach = false;
    for (size, settled) in [(100, false), (200, true), (60_000, false), (300, false)] {
        p.world.peer(p.device).send(0, 0, &vec![1; size], settled);
    }
    p.world.run();
    expect_too_large(&mut p, 40_000);
    let (received, aborted, detached) = at_hub(&mut p);
    assert_eq!((received, aborted), (vec![100, 200], 1));
    assert_eq!(detached.as_ref().and_then(condition), Some(TOO_LARGE));
    // The outcome of the first one comes after all that.
    p.world.peer(p.hub).dispose(
        p.up.0,
        true,
        0,
        0,
        true,
        wire::described(wire::ACCEPTED, Vec::new()),
    );
    p.world.run();
    let disposition = next_of(p.world.peer(p.device), wire::DISPOSITION);
    assert_eq!((disposition.uint(1), disposition.flag(3)), (Some(0), true));
    p.world.peer(p.hub).detach(p.up.0, p.up.1, true, Value::Null);
    p.world.run();
    // And the device may attach again.
    p.world.peer(p.device).attach(0, 2, "up", true, UP);
    p.world.run();
    assert_eq!(p.world.router.snapshot().link_pairs, 2);
}

#[test]
fn d28_messages_that_wait_still_go_before_the_link_does() {
    // The hub's window takes one frame at a time, so most of this is parked when the large message comes.
    let mut p = tunnel_of(with_message_size(40_000), 2048, 1);
    for size in [100, 20_000, 300, 60_000, 400] {
        p.world.peer(p.device).send(0, 0, &vec![1; size], false);
    }
    p.world.run();
    expect_too_large(&mut p, 40_000);
    for _ in 0..10 {
        p.world.peer(p.hub).widen(p.up.0, 1);
        p.world.run();
    }
    let (received, aborted, detached) = at_hub(&mut p);
    assert_eq!((received, aborted), (vec![100, 20_000, 300], 0));
    assert_eq!(detached.as_ref().and_then(condition), Some(TOO_LARGE));
    assert_eq!(p.world.router.snapshot().link_pairs, 1);
    assert_eq!(p.world.router.snapshot().parked_bytes, 0);
}

#[test]
fn d28_a_hub_that_does_not_answer_the_detach_reaches_no_later_link_of_the_device() {
    let mut p = tunnel_of(with_message_size(1000), 2048, 2048);
    p.world.peer(p.hub).auto.detach = false;
    p.world.peer(p.device).send(0, 0, &[1; 1001], false);
    p.world.run();
    expect_too_large(&mut p, 1000);
    // The same handle, and so probably the same at the router.
    p.world.peer(p.device).session(0).links.remove(&0);
    p.world.peer(p.device).attach(0, 0, "again", true, UP);
    p.world.run();
    p.world.peer(p.device).skip();
    // Credit for the old link.
    p.world.peer(p.hub).grant(p.up.0, p.up.1, 77);
    p.world.run();
    p.world.peer(p.device).expect_nothing();
    p.world.peer(p.hub).detach(p.up.0, p.up.1, true, Value::Null);
    p.world.run();
    p.world.peer(p.device).expect_nothing();
    assert_eq!(p.world.router.snapshot().link_pairs, 2);
}

#[test]
fn d28_a_hub_that_never_answers_the_detach_holds_nothing() {
    for hub_window in [2048, 1] {
        let mut p = tunnel_of(with_message_size(40_000), 2048, hub_window);
        p.world.peer(p.hub).auto.detach = false;
        for size in [20_000, 60_000] {
            p.world.peer(p.device).send(0, 0, &vec![1; size], false);
        }
        p.world.run();
        expect_too_large(&mut p, 40_000);
        p.world.advance(limits::DETACH_TIMEOUT * 4);
        p.world.run();
        let snapshot = p.world.router.snapshot();
        assert_eq!((snapshot.link_pairs, snapshot.parked_bytes), (1, 0));
    }
}

#[test]
fn d28_too_large_before_the_hub_has_answered_or_is_even_there() {
    for has_hub in [false, true] {
        let mut world = World::new(with_message_size(1000));
        let mut auto = HUB_AUTO;
        auto.attach = false;
        world.hub = has_hub.then_some((auto, Announces::default()));
        let device = world.device("dev");
        world.peer(device).attach(0, 0, "up", true, UP);
        world.run();
        world.peer(device).skip();
        world
            .peer(device)
            .say_transfer(0, 0, Some((0, 0)), false, true, &[1; 900]);
        world
            .peer(device)
            .say_transfer(0, 0, None, false, false, &[1; 900]);
        world.run();
        let answer = world.peer(device).expect_past_flows(wire::ATTACH);
        assert_eq!(answer.field(6), &Value::Null);
        let detach = world.peer(device).expect_past_flows(wire::DETACH);
        assert_eq!(condition(detach.field(2)), Some(TOO_LARGE));
        assert!(world.is_alive(device));
        if has_hub {
            let transfers = world.hub().log.iter().filter(|it| it.code == wire::TRANSFER);
            assert_eq!(transfers.count(), 0);
        }
        world.lose(device);
        world.run();
        let snapshot = world.router.snapshot();
        assert_eq!((snapshot.link_pairs, snapshot.parked_bytes), (0, 0));
    }
}
