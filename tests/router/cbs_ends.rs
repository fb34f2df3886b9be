//! The CBS relay, and all that can end between a request and its answer.

use std::time::Duration;

use linkrouterd::amqp::value::Value;
use linkrouterd::router::settings::{CbsMode, RouterSettings};

use crate::cbs_hub::{
    ASKS, CBS_HUB_AUTO, CbsDevice, CbsHub, HEARS, answers_on, audience, cbs_settings, cbs_world, encoded,
    put_token, seconds, token,
};
use crate::peer::{Announces, Auto};
use crate::wire::{self, ACCEPTED, condition};
use crate::world::{PeerId, World};

const EVENTS: &str = "/devices/d1/messages/events";

fn codes(device: CbsDevice, world: &mut World) -> Vec<i32> {
    device.answers(world).iter().map(|answer| answer.code()).collect()
}

/// The condition with which a device's link was detached.
fn detached(world: &mut World, peer: PeerId, handle: u32) -> Option<String> {
    let link = world.peer(peer).link(0, handle);
    link.detached.as_ref().and_then(condition).map(ToOwned::to_owned)
}

/// A world without a hub yet.
fn hubless(settings: RouterSettings) -> World {
    let mut world = cbs_world(settings);
    world.hub = None;
    world
}

// ---- time ------------------------------------------------------------------------------------------------------------

#[test]
fn a_hub_that_does_not_answer_is_a_504_after_25_s_and_its_late_answer_is_dropped() {
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "d1");
    let mut hub = CbsHub::new(&world);
    device.ask(&mut world, &put_token("d1", Value::Ulong(7)));
    let late = hub.request(&mut world);
    world.advance(Duration::from_millis(24_900));
    assert!(codes(device, &mut world).is_empty());
    world.advance(Duration::from_millis(200));
    let answers = device.answers(&mut world);
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].id, Some(Value::Ulong(7)));
    assert_eq!(answers[0].code(), 504);
    hub.answer(&mut world, &late, 200, "OK");
    assert_eq!(codes(device, &mut world), [504]);
    assert_eq!(world.router.snapshot().cbs_requests, 0);
    device.puts(&mut world, &mut hub, "d1");
}

#[test]
fn a_request_that_the_hub_gave_no_credit_for_is_not_sent_once_it_has_timed_out() {
    let mut world = cbs_world(cbs_settings());
    let mean = Auto {
        credit: 0,
        ..CBS_HUB_AUTO
    };
    world.hub = Some((mean, Announces::default()));
    let device = CbsDevice::new(&mut world, "d1");
    let mut hub = CbsHub::new(&world);
    for _ in 0..10 {
        device.ask(&mut world, &put_token("d1", Value::Ulong(1)));
    }
    world.advance(seconds(26));
    assert_eq!(codes(device, &mut world), [504; 10]);
    device.ask(&mut world, &put_token("d1", Value::Ulong(2)));
    let (channel, handle) = hub.hears_on(&mut world).expect("a link");
    world.peer(hub.peer).grant(channel, handle, 100);
    world.run();
    assert_eq!(hub.accept_all(&mut world), 1, "only what somebody waits for");
}

#[test]
fn a_hub_that_cannot_be_reached_ends_the_links_that_asked() {
    let mut world = hubless(cbs_settings());
    let device = CbsDevice::new(&mut world, "d1");
    let idle = CbsDevice::new(&mut world, "d2");
    device.ask(&mut world, &put_token("d1", Value::Ulong(1)));
    for _ in 0..40 {
        if !world.dials.is_empty() {
            world.fail_dial();
        }
        world.advance(seconds(1));
    }
    for handle in [ASKS, HEARS] {
        let told = detached(&mut world, device.peer, handle);
        assert_eq!(told.as_deref(), Some("amqp:link:detach-forced"));
    }
    assert_eq!(
        detached(&mut world, idle.peer, ASKS),
        None,
        "it has asked for nothing"
    );
    assert!(world.is_alive(device.peer));
    assert_eq!(world.router.snapshot().cbs_requests, 0);
    // When the hub is there at last, nothing is left over to be asked.
    world.hub = Some((CBS_HUB_AUTO, Announces::default()));
    idle.ask(&mut world, &put_token("d2", Value::Ulong(2)));
    world.advance(seconds(5));
    let mut hub = CbsHub::new(&world);
    assert_eq!(hub.accept_all(&mut world), 1);
    assert_eq!(codes(idle, &mut world), [200]);
}

// ---- devices that go -------------------------------------------------------------------------------------------------

#[test]
fn a_device_that_has_gone_does_not_hear_its_answer_and_leaves_nothing() {
    let mut world = cbs_world(cbs_settings());
    let [gone, closed, ended, stays] = ["d1", "d2", "d3", "d4"].map(|name| CbsDevice::new(&mut world, name));
    let mut hub = CbsHub::new(&world);
    for (device, name) in [(gone, "d1"), (closed, "d2"), (ended, "d3"), (stays, "d4")] {
        device.ask(&mut world, &put_token(name, Value::Ulong(0)));
    }
    world.lose(gone.peer);
    world.peer(closed.peer).close(Value::Null);
    world.peer(ended.peer).end(0, Value::Null);
    world.run();
    assert_eq!(hub.accept_all(&mut world), 4);
    assert_eq!(codes(stays, &mut world), [200]);
    assert!(!world.is_alive(closed.peer) && world.is_alive(ended.peer));
    let snapshot = world.router.snapshot();
    assert_eq!((snapshot.cbs_requests, snapshot.cbs_answers), (0, 0));
    stays.puts(&mut world, &mut hub, "d4");
}

#[test]
fn a_device_that_goes_before_its_request_is_sent_does_not_hold_the_connection() {
    let mut world = hubless(cbs_settings());
    let device = CbsDevice::new(&mut world, "d1");
    device.ask(&mut world, &put_token("d1", Value::Ulong(0)));
    world.lose(device.peer);
    world.answer_dial(CBS_HUB_AUTO, Announces::default());
    world.run();
    let hub = CbsHub::new(&world);
    assert_eq!(hub.attached(&mut world), (0, 0), "nobody waits for an answer");
    assert_eq!(world.router.snapshot().cbs_requests, 0);
    world.advance(seconds(61));
    world.run();
    assert!(!world.is_alive(hub.peer), "unused");
}

#[test]
fn a_late_answer_does_not_settle_what_another_session_sends_on_the_same_channel() {
    let mut world = cbs_world(cbs_settings());
    let sulky = Auto {
        accept: false,
        ..CBS_HUB_AUTO
    };
    world.hub = Some((sulky, Announces::default()));
    let device = CbsDevice::new(&mut world, "d1");
    let mut hub = CbsHub::new(&world);
    device.ask(&mut world, &put_token("d1", Value::Ulong(0)));
    let first = hub.request(&mut world);
    let at = hub.hears_on(&mut world).expect("a link");
    world.peer(hub.peer).settle(at.0, at.1, first.delivery, ACCEPTED);
    world.run();
    hub.answer(&mut world, &first, 200, "OK");
    device.ask(&mut world, &put_token("d1", Value::Ulong(1)));
    let second = hub.request(&mut world);
    // The session ends with the second request under way, and its channel and delivery-ids are used again.
    world.peer(device.peer).end(0, Value::Null);
    world.run();
    world.peer(device.peer).begin(0);
    world.peer(device.peer).attach(0, 0, "events", true, EVENTS);
    world.run();
    for text in ["one", "two"] {
        world.peer(device.peer).send(0, 0, text.as_bytes(), false);
    }
    world.run();
    let events = world.peer(hub.peer).find("events@d1", false).expect("carried");
    assert_eq!(world.peer(hub.peer).link(events.0, events.1).received.len(), 2);
    world.peer(hub.peer).settle(at.0, at.1, second.delivery, ACCEPTED);
    world.run();
    hub.answer(&mut world, &second, 200, "OK");
    let link = world.peer(device.peer).link(0, 0);
    assert!(link.settled.is_empty(), "nobody has accepted the telemetry");
    assert_eq!(link.unsettled.len(), 2);
}

#[test]
fn devices_that_come_and_ask_for_ever_while_the_hub_is_away_leave_nothing() {
    let mut world = hubless(cbs_settings());
    for round in 0..50 {
        let device = CbsDevice::new(&mut world, "d1");
        device.ask(&mut world, &put_token("d1", Value::Ulong(round)));
        if !world.dials.is_empty() {
            world.fail_dial();
        }
        world.advance(seconds(30));
        assert_eq!(world.router.snapshot().cbs_requests, 0);
        world.lose(device.peer);
    }
    let snapshot = world.router.snapshot();
    assert_eq!((snapshot.connections, snapshot.cbs_answers), (0, 0));
}

// ---- hubs that go ----------------------------------------------------------------------------------------------------

#[test]
fn requests_under_way_when_the_hub_is_lost_are_sent_again_and_answered_once() {
    let mut world = cbs_world(cbs_settings());
    let devices = ["d1", "d2"].map(|name| CbsDevice::new(&mut world, name));
    let mut hub = CbsHub::new(&world);
    for (device, name) in devices.iter().zip(["d1", "d2"]) {
        device.ask(&mut world, &put_token(name, Value::Ulong(0)));
    }
    let first = hub.requests(&mut world);
    assert_eq!(first.len(), 2);
    world.lose(hub.peer);
    world.run();
    world.advance(seconds(3));
    let mut next = CbsHub::new(&world);
    assert_ne!(next.peer, hub.peer);
    let again = next.requests(&mut world);
    assert_eq!(again.len(), 2);
    let names: Vec<_> = again.iter().map(|request| request.text("name")).collect();
    assert_eq!(names, [audience("d1"), audience("d2")]);
    for request in &again {
        next.answer(&mut world, request, 200, "OK");
        next.answer(&mut world, request, 200, "OK");
    }
    for device in devices {
        assert_eq!(codes(device, &mut world), [200]);
        assert_eq!(
            world.peer(device.peer).link(0, ASKS).settled,
            [(0, Some(ACCEPTED))]
        );
    }
    assert_eq!(next.attached(&mut world), (1, 1));
}

#[test]
fn a_hub_that_closes_its_connection_is_asked_again_on_the_next() {
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "d1");
    let mut hub = CbsHub::new(&world);
    device.ask(&mut world, &put_token("d1", Value::Ulong(0)));
    assert_eq!(hub.requests(&mut world).len(), 1);
    let error = wire::error("amqp:connection:forced", "upgrade", Value::Null);
    world.peer(hub.peer).close(error);
    world.run();
    world.advance(seconds(3));
    let mut next = CbsHub::new(&world);
    assert_eq!(next.accept_all(&mut world), 1);
    assert_eq!(codes(device, &mut world), [200]);
}

#[test]
fn a_hub_that_ends_the_session_or_detaches_cbs_ends_the_links_that_asked_and_the_next_get_a_new_pair() {
    for ends_session in [true, false] {
        let mut world = cbs_world(cbs_settings());
        let device = CbsDevice::new(&mut world, "d1");
        let idle = CbsDevice::new(&mut world, "d2");
        let mut hub = CbsHub::new(&world);
        device.ask(&mut world, &put_token("d1", Value::Ulong(0)));
        assert_eq!(hub.requests(&mut world).len(), 1);
        let (channel, handle) = hub.answers_on(&mut world).expect("a link");
        let error = wire::error("amqp:not-allowed", "only one", Value::Null);
        if ends_session {
            world.peer(hub.peer).end(channel, error);
        } else {
            world.peer(hub.peer).detach(channel, handle, true, error);
        }
        world.run();
        for handle in [ASKS, HEARS] {
            let told = detached(&mut world, device.peer, handle);
            assert_eq!(told.as_deref(), Some("amqp:link:detach-forced"), "{ends_session}");
        }
        assert_eq!(detached(&mut world, idle.peer, ASKS), None);
        assert_eq!(world.router.snapshot().cbs_requests, 0);
        idle.puts(&mut world, &mut hub, "d2");
        assert_eq!(hub.attached(&mut world), (2, 2), "one pair after the other");
        assert!(world.is_alive(hub.peer));
    }
}

#[test]
fn a_hub_that_refuses_cbs_ends_the_links_that_asked_and_no_others() {
    let mut world = cbs_world(cbs_settings());
    let deaf = Auto {
        attach: false,
        ..CBS_HUB_AUTO
    };
    world.hub = Some((deaf, Announces::default()));
    let device = CbsDevice::new(&mut world, "d1");
    let hub = world.hub_id();
    device.ask(&mut world, &put_token("d1", Value::Ulong(0)));
    let is_attach = |frame: &&wire::Frame| frame.code == wire::ATTACH;
    let attach = world
        .peer(hub)
        .log
        .iter()
        .find(is_attach)
        .cloned()
        .expect("asked for");
    let channel = *world.peer(hub).sessions.keys().next().expect("a session");
    world.peer(hub).attach_with(
        channel,
        5,
        "cbs-sender",
        false,
        attach.field(5).clone(),
        Value::Null,
    );
    world.peer(hub).is_answer(&attach, channel, 5);
    let error = wire::error("amqp:not-allowed", "no", Value::Null);
    world.peer(hub).detach(channel, 5, true, error);
    world.run();
    let told = detached(&mut world, device.peer, ASKS);
    assert_eq!(told.as_deref(), Some("amqp:link:detach-forced"));
    assert!(world.is_alive(hub) && world.is_alive(device.peer));
}

/// The device's session ends with that of the hub, and whatever is attached on it; channel and handles may be used again.
#[test]
fn a_session_that_ends_with_that_of_the_hub_takes_its_cbs_links_along() {
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "d1");
    let mut hub = CbsHub::new(&world);
    device.puts(&mut world, &mut hub, "d1");
    world.peer(device.peer).attach(0, 5, "telemetry", true, EVENTS);
    world.run();
    let (channel, _) = world
        .peer(hub.peer)
        .find("telemetry@d1", false)
        .expect("attached");
    device.ask(&mut world, &put_token("d1", Value::Ulong(1)));
    let under_way = hub.request(&mut world);
    world.peer(hub.peer).end(channel, Value::Null);
    world.run();
    assert!(world.peer(device.peer).sessions.is_empty());
    hub.answer(&mut world, &under_way, 200, "OK");
    let it = world.peer(device.peer);
    it.begin(0);
    // Under each other's handles.
    it.attach(0, HEARS, "cbs-sender", true, "$cbs");
    it.attach(0, ASKS, "cbs-receiver", false, "$cbs");
    world.run();
    let it = world.peer(device.peer);
    it.grant(0, ASKS, 100);
    it.send(0, HEARS, &encoded(&put_token("d1", Value::Ulong(2))), false);
    world.run();
    let request = hub.request(&mut world);
    hub.answer(&mut world, &request, 200, "OK");
    let answers = answers_on(world.peer(device.peer), 0, ASKS);
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].id, Some(Value::Ulong(2)));
}

#[test]
fn an_unused_connection_is_closed_when_its_devices_have_gone_and_not_before() {
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "d1");
    let mut hub = CbsHub::new(&world);
    device.puts(&mut world, &mut hub, "d1");
    world.advance(seconds(600));
    assert!(world.is_alive(hub.peer), "its token is good there only");
    world.lose(device.peer);
    world.advance(seconds(59));
    assert!(world.is_alive(hub.peer));
    world.advance(seconds(2));
    world.run();
    assert!(!world.is_alive(hub.peer));
    // Who comes next has a pair on the next connection.
    let device = CbsDevice::new(&mut world, "d1");
    device.ask(&mut world, &put_token("d1", Value::Ulong(0)));
    world.advance(seconds(3));
    let mut next = CbsHub::new(&world);
    assert_eq!(next.accept_all(&mut world), 1);
    assert_eq!(codes(device, &mut world), [200]);
}

#[test]
fn a_hub_with_few_channels_is_asked_all_the_same() {
    for channel_max in [0, 1] {
        let mut world = cbs_world(cbs_settings());
        let narrow = Announces {
            channel_max,
            ..Announces::default()
        };
        world.hub = Some((CBS_HUB_AUTO, narrow));
        let device = CbsDevice::new(&mut world, "d1");
        device.ask(&mut world, &put_token("d1", Value::Ulong(0)));
        CbsHub::new(&world).accept_all(&mut world);
        world.advance(seconds(30));
        let told = detached(&mut world, device.peer, ASKS);
        assert_eq!((told, codes(device, &mut world)), (None, vec![200]));
        if channel_max > 0 {
            world.peer(device.peer).attach(0, 2, "events", true, EVENTS);
            world.run();
            assert_eq!(detached(&mut world, device.peer, 2), None);
        }
        assert_eq!(world.router.snapshot().cbs_requests, 0);
        assert!(world.is_alive(device.peer));
    }
}

// ---- reload and shutdown ---------------------------------------------------------------------------------------------

#[test]
fn the_successor_of_a_connector_takes_over_its_requests_and_the_links_that_lead_there() {
    let mut world = cbs_world(cbs_settings());
    let asking = CbsDevice::new(&mut world, "d1");
    let idle = CbsDevice::new(&mut world, "d2");
    let mut hub = CbsHub::new(&world);
    asking.ask(&mut world, &put_token("d1", Value::Ulong(0)));
    let under_way = hub.request(&mut world);
    let mut changed = cbs_settings();
    changed.connectors[0].limits.max_frame_size = 4096;
    world.reload(changed);
    world.advance(seconds(1));
    world.run();
    let mut next = CbsHub::new(&world);
    assert_ne!(next.peer, hub.peer);
    let again = next.request(&mut world);
    assert_eq!(again.token(), under_way.token());
    next.answer(&mut world, &again, 200, "OK");
    assert_eq!(codes(asking, &mut world), [200]);
    idle.puts(&mut world, &mut next, "d2");
    asking.puts(&mut world, &mut next, "d1");
    assert_eq!(world.router.snapshot().cbs_requests, 0);
}

#[test]
fn links_to_a_connector_that_is_removed_or_relays_no_more_are_detached() {
    let mut removed = cbs_settings();
    removed.connectors.clear();
    let mut tunnel = cbs_settings();
    tunnel.connectors[0].sharing.cbs = CbsMode::Tunnel;
    for other in [removed, tunnel] {
        let mut world = cbs_world(cbs_settings());
        let asking = CbsDevice::new(&mut world, "d1");
        let idle = CbsDevice::new(&mut world, "d2");
        asking.ask(&mut world, &put_token("d1", Value::Ulong(0)));
        world.reload(other);
        for device in [asking, idle] {
            for handle in [ASKS, HEARS] {
                let told = detached(&mut world, device.peer, handle);
                assert_eq!(told.as_deref(), Some("amqp:link:detach-forced"));
            }
            assert!(world.is_alive(device.peer));
        }
        assert_eq!(world.router.snapshot().cbs_requests, 0);
        world.advance(seconds(60));
    }
}

#[test]
fn a_reload_without_a_change_is_not_noticed() {
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "d1");
    let mut hub = CbsHub::new(&world);
    device.ask(&mut world, &put_token("d1", Value::Ulong(0)));
    world.reload(cbs_settings());
    assert_eq!(hub.accept_all(&mut world), 1);
    assert_eq!(codes(device, &mut world), [200]);
}

#[test]
fn shutting_down_with_requests_under_way_comes_to_an_end() {
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "d1");
    let mut hub = CbsHub::new(&world);
    device.ask(&mut world, &put_token("d1", Value::Ulong(0)));
    assert_eq!(hub.requests(&mut world).len(), 1);
    world.router.shutdown(world.now);
    world.run();
    assert_eq!(
        detached(&mut world, device.peer, HEARS),
        None,
        "the hub may answer"
    );
    world.advance(seconds(5));
    for handle in [ASKS, HEARS] {
        let told = detached(&mut world, device.peer, handle);
        assert_eq!(told.as_deref(), Some("amqp:link:detach-forced"));
    }
    assert!(world.router.is_empty());
    world.advance(seconds(60));
    assert!(world.dials.is_empty());
    assert_eq!(world.router.snapshot().cbs_requests, 0);
}

#[test]
fn a_token_goes_to_the_hub_and_nowhere_else() {
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "d1");
    let other = CbsDevice::new(&mut world, "d2");
    let mut hub = CbsHub::new(&world);
    device.puts(&mut world, &mut hub, "d1");
    let shown = format!("{:?}", world.router);
    assert!(!shown.contains("c2ln"), "no debug print shows a token");
    assert!(token("d1").contains("c2ln"));
    assert!(answers_on(world.peer(other.peer), 0, HEARS).is_empty());
}
