//! Each bound on what a peer may have, reached exactly and passed by one. `docs/reliability.md` lists them; what is held
//! in bytes is in [`limits_bytes`](crate::limits_bytes), what concerns `$cbs` in [`limits_cbs`](crate::limits_cbs).

use std::time::Duration;

use linkrouterd::amqp::value::Value;
use linkrouterd::endpoint::limits;
use linkrouterd::router::settings::ListenerId;

use crate::peer::{Announces, Auto};
use crate::tunnel::{DOWN, UP, tunnel};
use crate::wire::{self, Frame, condition, string, uint};
use crate::world::{DEVICE_AUTO, HUB_AUTO, PeerId, World, settings};

const INSTANT: Duration = Duration::from_millis(1);

/// The condition of the error in the first frame of this kind that a peer has heard.
fn heard(world: &mut World, peer: PeerId, code: u64) -> Option<String> {
    let place = if code == wire::DETACH { 2 } else { 0 };
    let frame = world.peer(peer).log.iter().find(|frame| frame.code == code)?;
    condition(frame.field(place)).map(str::to_owned)
}

fn is_attached(world: &mut World, device: PeerId, handle: u32) -> bool {
    let link = world.peer(device).link(0, handle);
    link.remote.is_some() && link.detached.is_none()
}

// ---- frames, channels, handles, links --------------------------------------------------------------------------------

/// An open of exactly so many bytes.
fn open_of(size: usize) -> Vec<u8> {
    let frame = |id: usize| {
        let mut bytes = Vec::new();
        Frame::new(0, wire::OPEN, vec![string(&"c".repeat(id))]).encode(&mut bytes);
        bytes
    };
    // A string of so many bytes has a length of four bytes.
    let frame = frame(1000 + size - frame(1000).len());
    assert_eq!(frame.len(), size);
    frame
}

#[test]
fn a_frame_of_the_announced_size_is_taken_and_one_byte_more_closes_the_connection() {
    let most = settings().listeners[0].limits.max_frame_size as usize;
    for (size, is_alive) in [(most, true), (most + 1, false)] {
        let mut world = World::new(settings());
        let device = world
            .connect("dev", DEVICE_AUTO, Announces::default())
            .expect("room");
        world.peer(device).out.tail().extend(wire::AMQP_HEADER);
        world.peer(device).out.tail().extend(open_of(size));
        world.run();
        assert_eq!(world.is_alive(device), is_alive, "{size}");
        let closed = heard(&mut world, device, wire::CLOSE);
        assert_eq!(
            closed.as_deref(),
            (!is_alive).then_some("amqp:connection:framing-error")
        );
    }
}

#[test]
fn the_highest_channel_of_a_device_is_the_announced_one() {
    let most = settings().listeners[0].limits.channel_max;
    for (channel, is_alive) in [(most, true), (most + 1, false)] {
        let mut world = World::new(settings());
        let device = world.device("dev");
        world.peer(device).begin(channel);
        world.run();
        assert_eq!(world.is_alive(device), is_alive, "{channel}");
        let closed = heard(&mut world, device, wire::CLOSE);
        assert_eq!(
            closed.as_deref(),
            (!is_alive).then_some("amqp:connection:framing-error")
        );
    }
}

#[test]
fn the_highest_channel_of_a_hub_is_bounded_whatever_is_configured() {
    for (channel, is_alive) in [
        (limits::UPSTREAM_CHANNEL_MAX, true),
        (limits::UPSTREAM_CHANNEL_MAX + 1, false),
    ] {
        let mut settings = settings();
        settings.connectors[0].limits.channel_max = u16::MAX;
        let mut world = World::new(settings);
        let silent = Auto {
            begin: false,
            ..HUB_AUTO
        };
        world.hub = Some((silent, Announces::default()));
        let device = world.device("dev");
        world.peer(device).attach(0, 0, "up", true, UP);
        world.run();
        let hub = world.hub_id();
        let mut log = world.peer(hub).log.iter();
        let begin = log.find(|frame| frame.code == wire::BEGIN);
        let begin = begin.cloned().expect("a begin");
        world.peer(hub).answer_begin(&begin, channel);
        world.run();
        assert_eq!(world.is_alive(hub), is_alive, "{channel}");
        // It went out behind the begin.
        let attach = world
            .peer(hub)
            .log
            .iter()
            .find(|frame| frame.code == wire::ATTACH);
        let attach = attach.cloned().expect("an attach");
        world.peer(hub).answer_attach(&attach, channel, 0);
        world.run();
        assert_eq!(is_attached(&mut world, device, 0), is_alive);
    }
}

/// A device attaches a link, and hears the end of its session with this condition, or none if there is none.
fn attach_is_answered(handle: u32, name: &str, end: Option<&str>) {
    let mut world = World::new(settings());
    let device = world.device("dev");
    world.peer(device).attach(0, handle, name, true, UP);
    world.run();
    assert_eq!(heard(&mut world, device, wire::END).as_deref(), end);
    assert!(world.is_alive(device));
    assert_eq!(world.router.snapshot().link_pairs, usize::from(end.is_none()));
}

#[test]
fn the_highest_handle_is_taken_and_the_next_ends_the_session() {
    attach_is_answered(limits::HANDLE_MAX, "up", None);
    attach_is_answered(
        limits::HANDLE_MAX + 1,
        "up",
        Some("amqp:session:unattached-handle"),
    );
}

#[test]
fn a_links_name_may_be_so_long_and_not_a_byte_longer() {
    attach_is_answered(0, &"n".repeat(limits::LINK_NAME), None);
    let longer = "n".repeat(limits::LINK_NAME + 1);
    attach_is_answered(0, &longer, Some("amqp:resource-limit-exceeded"));
}

#[test]
fn a_device_has_as_many_links_as_it_may_and_one_more_ends_its_session() {
    let mut world = World::new(settings());
    let device = world.device("greedy");
    // It does not detach what was refused: that counts as long.
    world.peer(device).auto.detach = false;
    let each = limits::HANDLE_MAX + 1;
    assert_eq!(2 * each as usize, limits::DEVICE_LINKS);
    world.peer(device).begin(1);
    world.peer(device).begin(2);
    for channel in 0..2 {
        for handle in 0..each {
            world
                .peer(device)
                .attach(channel, handle, &format!("l{handle}"), true, "nowhere");
        }
        world.run();
    }
    assert_eq!(heard(&mut world, device, wire::END), None);
    world.peer(device).attach(2, 0, "one more", true, "nowhere");
    world.run();
    assert_eq!(
        heard(&mut world, device, wire::END).as_deref(),
        Some("amqp:resource-limit-exceeded")
    );
    assert!(world.is_alive(device));
}

// ---- what a name may be ----------------------------------------------------------------------------------------------

#[test]
fn a_virtual_host_as_long_as_the_name_of_a_host_may_be_is_put_in_front() {
    for (length, is_taken) in [(limits::TENANT_HOST, true), (limits::TENANT_HOST + 1, false)] {
        let mut settings = settings();
        let host = "h".repeat(length);
        settings.listeners[0].multi_tenant = true;
        for route in &mut settings.routes {
            route.matcher = linkrouterd::router::settings::Matcher::Pattern("#".into());
        }
        let mut world = World::new(settings);
        let device = world
            .connect("dev", DEVICE_AUTO, Announces::default())
            .expect("room");
        world.peer(device).hostname = Some(host);
        world.peer(device).open();
        world.peer(device).begin(0);
        world.peer(device).attach(0, 0, "up", true, "devices/d1");
        world.run();
        let refused = heard(&mut world, device, wire::DETACH);
        assert_eq!(
            refused.as_deref(),
            (!is_taken).then_some("amqp:resource-limit-exceeded"),
            "{length}"
        );
    }
}

/// The hub gets the whole of it with each link.
#[test]
fn a_container_id_as_long_as_an_open_may_be_is_put_behind_the_names_of_links() {
    for (length, is_taken) in [(limits::CONTAINER_ID, true), (limits::CONTAINER_ID + 1, false)] {
        let mut world = World::new(settings());
        let id = "c".repeat(length);
        let device = world.device(&id);
        world.peer(device).attach(0, 0, "up", true, "devices/d1");
        world.run();
        let refused = heard(&mut world, device, wire::DETACH);
        assert_eq!(
            refused.as_deref(),
            (!is_taken).then_some("amqp:resource-limit-exceeded"),
            "{length}"
        );
        let name = format!("up@{id}");
        assert_eq!(world.hub().find(&name, false).is_some(), is_taken, "{length}");
    }
}

// ---- what waits ------------------------------------------------------------------------------------------------------

#[test]
fn as_many_attaches_wait_for_a_connector_as_may_and_one_more_is_refused() {
    let mut settings = settings();
    // All on one connection.
    settings.connectors[0].sharing.max_links = usize::MAX;
    let mut world = World::new(settings);
    world.hub = None;
    world.keeps_logs = false;
    let device = world.device("many");
    let other = world.device("one-more");
    let each = limits::HANDLE_MAX + 1;
    world.peer(device).begin(1);
    for channel in 0..2 {
        for handle in 0..each {
            world
                .peer(device)
                .attach(channel, handle, &format!("l{handle}"), true, UP);
        }
        world.run();
    }
    assert_eq!(world.router.snapshot().waiting_attaches, limits::WAITING_ATTACHES);
    world.peer(other).attach(0, 0, "up", true, UP);
    world.run();
    let link = world.peer(other).link(0, 0);
    assert_eq!(
        link.detached.as_ref().and_then(condition),
        Some("amqp:resource-limit-exceeded")
    );
    assert_eq!(world.router.snapshot().waiting_attaches, limits::WAITING_ATTACHES);
    world.lose(device);
    world.run();
    assert_eq!(world.router.snapshot().waiting_attaches, 0);
}

/// An attach, or a flow, whose performative has exactly so many bytes.
fn padded(frame: impl Fn(&str) -> Frame, bytes: usize) -> Frame {
    let size = |padding: usize| {
        let mut encoded = Vec::new();
        frame(&"p".repeat(padding)).encode(&mut encoded);
        // Without the header of the frame.
        encoded.len() - 8
    };
    let padding = 1000 + bytes - size(1000);
    assert_eq!(size(padding), bytes);
    frame(&"p".repeat(padding))
}

#[test]
fn an_attach_waits_if_it_is_not_too_large_and_so_does_the_flow_behind_it() {
    let attach = |padding: &str| {
        let properties = Value::Map(vec![(wire::symbol("p"), string(padding))]);
        let mut fields = vec![string("down"), uint(0), Value::Boolean(true)];
        fields.extend([
            Value::Null,
            Value::Null,
            wire::terminus(0x28, DOWN),
            wire::terminus(0x29, "here"),
        ]);
        fields.resize(13, Value::Null);
        fields.push(properties);
        Frame::new(0, wire::ATTACH, fields)
    };
    let flow = |padding: &str| {
        let mut fields = vec![uint(0), uint(100), uint(0), uint(100), uint(0), uint(0), uint(7)];
        fields.resize(10, Value::Null);
        fields.push(Value::Map(vec![(wire::symbol("p"), string(padding))]));
        Frame::new(0, wire::FLOW, fields)
    };
    let most = limits::WAITING_ATTACH_BYTES;
    for (attach_bytes, flow_bytes, is_kept) in [
        (most, most, true),
        (most + 1, most, false),
        (most, most + 1, false),
    ] {
        let mut world = World::new(settings());
        world.hub = None;
        let device = world.device("dev");
        world.peer(device).say_attach(&padded(attach, attach_bytes));
        world.peer(device).say(&padded(flow, flow_bytes));
        world.run();
        assert_eq!(world.router.snapshot().waiting_attaches, usize::from(is_kept));
        let refused = heard(&mut world, device, wire::DETACH);
        assert_eq!(
            refused.as_deref(),
            (!is_kept).then_some("amqp:resource-limit-exceeded"),
            "{attach_bytes} {flow_bytes}"
        );
        if is_kept {
            let hub = world.answer_dial(HUB_AUTO, Announces::default());
            world.run();
            let place = world.peer(hub).find("down@dev", true).expect("attached");
            assert_eq!(world.peer(hub).link(place.0, place.1).credit, 7);
        }
    }
}

// ---- time ------------------------------------------------------------------------------------------------------------

#[test]
fn a_handshake_has_its_time_to_the_last_millisecond() {
    let mut settings = settings();
    let limit = Duration::from_secs(7);
    settings.listeners[0].handshake_timeout = limit;
    let mut world = World::new(settings);
    let silent = world
        .connect("silent", DEVICE_AUTO, Announces::default())
        .expect("room");
    let late = world
        .connect("late", DEVICE_AUTO, Announces::default())
        .expect("room");
    world.advance(limit - INSTANT);
    assert!(world.is_alive(silent));
    world.peer(late).open();
    world.run();
    world.advance(INSTANT);
    assert!(!world.is_alive(silent), "to the millisecond");
    assert!(world.is_alive(late));
}

/// A thousand peers take all places there are, say nothing or a byte now and then, and are gone when their time is.
#[test]
fn peers_that_say_nothing_or_little_go_at_the_deadline_and_the_others_are_served() {
    const PEERS: usize = 1000;
    let limit = Duration::from_secs(10);
    let mut settings = settings();
    settings.listeners[0].handshake_timeout = limit;
    settings.max_connections = PEERS + 1;
    let mut world = World::new(settings);
    world.keeps_logs = false;
    let served = Auto {
        credit: 10,
        accept: true,
        ..HUB_AUTO
    };
    world.hub = Some((served, Announces::default()));
    let device = world.device("decent");
    world.peer(device).attach(0, 0, "up", true, UP);
    world.run();
    let crowd: Vec<PeerId> = (0..PEERS)
        .map(|number| {
            let name = format!("crowd{number}");
            let peer = world.connect(&name, DEVICE_AUTO, Announces::default());
            peer.expect("room")
        })
        .collect();
    let newcomer = world.connect("newcomer", DEVICE_AUTO, Announces::default());
    assert!(newcomer.is_none(), "they have taken all places");
    // A header and an open that does not come to its end.
    let words = [wire::AMQP_HEADER.as_slice(), &open_of(1000)].concat();
    for second in 0..limit.as_secs() as usize {
        for (number, &peer) in crowd.iter().enumerate() {
            let said: &[u8] = match (number % 3, second) {
                (0, _) => &[],
                (1, 0) => &words[..8],
                (1, _) => &[],
                (_, _) => &words[second..=second],
            };
            world.peer(peer).out.tail().extend_from_slice(said);
        }
        world.peer(device).send(0, 0, b"served", false);
        world.run();
        assert_eq!(world.peer(device).link(0, 0).settled.len(), second + 1);
        assert!(crowd.iter().all(|&peer| world.is_alive(peer)), "{second} s");
        let step = Duration::from_secs(1);
        world.advance(if second == 9 { step - INSTANT } else { step });
    }
    assert!(crowd.iter().all(|&peer| world.is_alive(peer)));
    world.advance(INSTANT);
    assert!(crowd.iter().all(|&peer| !world.is_alive(peer)));
    assert!(world.is_alive(device));
    let newcomer = world.device("newcomer");
    world.peer(newcomer).attach(0, 0, "up", true, UP);
    world.run();
    assert!(is_attached(&mut world, newcomer, 0));
}

/// The transport is there, and then nothing.
#[test]
fn a_dial_has_so_much_time_and_no_more() {
    let mut settings = settings();
    settings.connectors[0].dial_timeout = limits::DIAL_TIMEOUT;
    let mut world = World::new(settings);
    world.hub = None;
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "up", true, UP);
    world.run();
    let hub = world.answer_dial(HUB_AUTO, Announces::default());
    world.set_speaks(hub, false);
    world.run();
    world.advance(limits::DIAL_TIMEOUT - INSTANT);
    assert!(world.is_alive(hub));
    world.advance(INSTANT);
    assert!(!world.is_alive(hub));
}

#[test]
fn an_attach_waits_for_its_connector_to_the_last_millisecond() {
    let mut settings = settings();
    settings.attach_timeout = limits::ATTACH_TIMEOUT;
    let mut world = World::new(settings);
    world.hub = None;
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "up", true, UP);
    world.run();
    world.advance(limits::ATTACH_TIMEOUT - INSTANT);
    assert_eq!(heard(&mut world, device, wire::DETACH), None);
    world.advance(INSTANT);
    assert_eq!(
        heard(&mut world, device, wire::DETACH).as_deref(),
        Some("amqp:link:detach-forced")
    );
}

#[test]
fn an_attach_that_waits_for_its_turn_waits_longer() {
    let mut settings = settings();
    settings.connectors[0].sharing.cbs = linkrouterd::router::settings::CbsMode::Relay;
    settings.connectors[0].sharing.devices_per_second = 1;
    let mut world = World::new(settings);
    let early = limits::PACED_ATTACH_TIMEOUT.as_secs() as usize * 2;
    for number in 0..early {
        let device = world.device(&format!("d{number}"));
        world.peer(device).attach(0, 0, "up", true, UP);
    }
    let last = world.device("last");
    world.peer(last).attach(0, 0, "up", true, UP);
    world.run();
    world.advance(limits::PACED_ATTACH_TIMEOUT - INSTANT);
    assert_eq!(heard(&mut world, last, wire::DETACH), None);
    world.advance(INSTANT);
    assert_eq!(
        heard(&mut world, last, wire::DETACH).as_deref(),
        Some("amqp:link:detach-forced")
    );
}

#[test]
fn a_detach_is_answered_by_the_router_when_the_other_side_has_had_its_time() {
    let mut it = tunnel();
    it.world.peer(it.hub).auto.detach = false;
    it.world.peer(it.device).detach(0, 0, true, Value::Null);
    it.world.run();
    it.world.advance(limits::DETACH_TIMEOUT - INSTANT);
    assert_eq!(heard(&mut it.world, it.device, wire::DETACH), None);
    it.world.advance(INSTANT);
    assert_eq!(
        heard(&mut it.world, it.device, wire::DETACH).as_deref(),
        Some("amqp:link:detach-forced")
    );
}

#[test]
fn a_connection_that_nobody_needs_lingers_and_is_then_closed() {
    let mut settings = settings();
    settings.linger = limits::LINGER;
    let mut world = World::new(settings);
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "up", true, UP);
    world.run();
    let hub = world.hub_id();
    world.lose(device);
    world.run();
    world.advance(limits::LINGER - INSTANT);
    assert!(world.is_alive(hub));
    world.advance(INSTANT);
    assert!(!world.is_alive(hub));
}

#[test]
fn a_close_is_waited_for_and_not_longer() {
    let mut it = tunnel();
    it.world.peer(it.device).auto.close = false;
    let now = it.world.now;
    it.world.router.shutdown(now);
    it.world.run();
    assert!(heard(&mut it.world, it.device, wire::CLOSE).is_some());
    it.world.advance(limits::CLOSE_TIMEOUT - INSTANT);
    assert!(it.world.is_alive(it.device));
    it.world.advance(INSTANT);
    assert!(!it.world.is_alive(it.device));
}

#[test]
fn a_stop_waits_for_what_is_not_settled_and_not_longer() {
    let mut it = tunnel();
    it.world.peer(it.device).send(0, 0, b"not settled", false);
    it.world.run();
    let now = it.world.now;
    it.world.router.shutdown(now);
    it.world.run();
    it.world.advance(limits::DRAIN_LIMIT - INSTANT);
    assert_eq!(heard(&mut it.world, it.device, wire::CLOSE), None);
    it.world.advance(INSTANT);
    assert!(heard(&mut it.world, it.device, wire::CLOSE).is_some());
}

#[test]
fn heartbeats_are_not_sent_more_often_than_makes_sense() {
    let mut world = World::new(settings());
    let announces = Announces {
        idle_time_out: Some(2),
        ..Announces::default()
    };
    let device = world.device_with("impatient", DEVICE_AUTO, announces);
    let beats = |world: &mut World| {
        let log = &world.peer(device).log;
        log.iter().filter(|frame| frame.code == wire::EMPTY).count()
    };
    world.advance(limits::MIN_HEARTBEAT - INSTANT);
    assert_eq!(beats(&mut world), 0);
    world.advance(INSTANT);
    assert_eq!(beats(&mut world), 1);
    world.advance(limits::MIN_HEARTBEAT * 10);
    assert_eq!(beats(&mut world), 11);
}

#[test]
fn connections_above_the_configured_number_are_dropped_and_their_places_used_again() {
    let mut settings = settings();
    settings.max_connections = 3;
    let mut world = World::new(settings);
    let devices: Vec<PeerId> = (0..3).map(|number| world.device(&format!("d{number}"))).collect();
    let connect = |world: &mut World| {
        world
            .connect_to(ListenerId(0), "more", DEVICE_AUTO, Announces::default())
            .is_some()
    };
    assert!(!connect(&mut world));
    world.lose(devices[1]);
    assert!(connect(&mut world));
    assert!(!connect(&mut world));
}
