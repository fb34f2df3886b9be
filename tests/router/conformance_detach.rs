//! The life of links and sessions: detaches that nobody answers, what goes before them, and that nothing is left.

use std::time::Duration;

use linkrouterd::amqp::value::Value;
use linkrouterd::endpoint::limits;
use linkrouterd::router::Snapshot;
use linkrouterd::router::settings::ErrorConditions;

use crate::peer::{Announces, Auto};
use crate::tunnel::{DOWN, UP, tunnel, tunnel_with};
use crate::wire::{self, composite, condition, described, error, string, symbol, uint};
use crate::world::{DEVICE_AUTO, HUB_AUTO, PeerId, World, settings};

/// Just before a detach is given up, and the rest of that time.
const NOT_YET: Duration = Duration::from_millis(9900);
const REST: Duration = Duration::from_millis(200);

/// A world whose hub is like this, with a device on an open session.
fn world_with(hub: Auto) -> (World, PeerId) {
    let mut world = World::new(settings());
    world.hub = Some((hub, Announces::default()));
    let device = world.device("dev");
    (world, device)
}

#[track_caller]
fn assert_forced(error: &Value) {
    assert_eq!(condition(error), Some("amqp:link:detach-forced"), "{error:?}");
}

#[test]
fn a_hub_that_never_answers_a_detach_holds_a_device_up_for_ten_seconds() {
    for closed in [true, false] {
        let mut p = tunnel();
        p.world.peer(p.hub).auto.detach = false;
        p.world.peer(p.device).detach(0, 0, closed, Value::Null);
        p.world.run();
        p.world.peer(p.hub).expect(wire::DETACH);
        p.world.advance(NOT_YET);
        p.world.peer(p.device).expect_nothing();
        p.world.advance(REST);
        let detach = p.world.peer(p.device).expect(wire::DETACH);
        assert_eq!(detach.flag(1), closed, "as the device asked");
        assert_forced(detach.field(2));
        let (_, fields) = composite(detach.field(2)).expect("an error");
        let info = fields.get(2).expect("info");
        assert_eq!(info.entry("qd-condition"), Some(&symbol("qd:routed-link-lost")));
        assert_eq!(p.world.router.snapshot().link_pairs, 1);
        // The other link, and the hub, have not noticed.
        p.world.peer(p.hub).expect_nothing();
        p.world.peer(p.hub).send(p.down.0, p.down.1, b"still here", true);
        p.world.run();
        assert_eq!(p.world.peer(p.device).link(0, 1).received.len(), 1);
    }
}

#[test]
fn what_a_hub_has_not_let_go_keeps_its_name_and_handle_until_it_does() {
    let mut p = tunnel();
    p.world.peer(p.hub).auto.detach = false;
    p.world.peer(p.device).detach(0, 1, true, Value::Null);
    p.world.run();
    p.world.advance(NOT_YET + REST);
    p.world.peer(p.device).expect(wire::DETACH);
    let first = p.world.peer(p.hub).expect(wire::DETACH).uint(0);
    // What it still sends there reaches nobody and costs no more than its window.
    for number in 0..3000 {
        p.world
            .peer(p.hub)
            .say_transfer(p.down.0, p.down.1, Some((number, number)), true, false, b"late");
    }
    p.world.run();
    p.world.peer(p.device).expect_nothing();
    assert_eq!(p.world.router.snapshot().buffered_bytes(), 0);
    assert!(p.world.peer(p.hub).session(p.down.0).outgoing_window > 0);
    // A successor meanwhile is another link.
    p.world.peer(p.device).attach(0, 2, "down", false, DOWN);
    p.world.run();
    let second = p.world.peer(p.hub).expect_past_flows(wire::ATTACH);
    assert_eq!(second.text(0), Some("down@dev#2"));
    assert_ne!(second.uint(1), first, "the handle is still taken");
    // The hub lets go at last.
    p.world.peer(p.hub).auto.detach = true;
    p.world.peer(p.device).detach(0, 2, true, Value::Null);
    p.world.peer(p.hub).detach(p.down.0, p.down.1, true, Value::Null);
    p.world.run();
    p.world.peer(p.hub).expect(wire::DETACH);
    p.world.peer(p.device).attach(0, 3, "down", false, DOWN);
    p.world.run();
    let third = p.world.peer(p.hub).expect(wire::ATTACH);
    assert_eq!((third.text(0), third.uint(1)), (Some("down@dev"), first));
    assert_eq!(p.world.router.snapshot().link_pairs, 2);
}

#[test]
fn a_name_is_free_again_when_the_session_ends_that_a_hub_held_it_on() {
    let mut p = tunnel();
    p.world.peer(p.hub).auto.detach = false;
    p.world.peer(p.device).detach(0, 0, true, Value::Null);
    p.world.run();
    p.world.advance(NOT_YET + REST);
    p.world.peer(p.device).end(0, Value::Null);
    p.world.peer(p.device).begin(1);
    p.world.peer(p.device).attach(1, 0, "up", true, UP);
    p.world.run();
    assert!(p.world.peer(p.hub).find("up@dev", false).is_some());
    assert_eq!(p.world.router.snapshot().link_pairs, 1);
}

#[test]
fn a_hub_that_never_answers_an_attach_or_a_begin_lets_a_device_detach() {
    for answers_begin in [true, false] {
        let (mut world, device) = world_with(Auto {
            begin: answers_begin,
            attach: false,
            ..HUB_AUTO
        });
        world.peer(device).attach(0, 0, "up", true, UP);
        world.run();
        world.peer(device).skip();
        world.peer(device).detach(0, 0, true, Value::Null);
        world.run();
        world.advance(NOT_YET);
        world.peer(device).expect_nothing();
        world.advance(REST);
        let attach = world.peer(device).expect(wire::ATTACH);
        assert_eq!((attach.field(5), attach.field(6)), (&Value::Null, &Value::Null));
        assert_forced(world.peer(device).expect(wire::DETACH).field(2));
        assert_eq!(world.router.snapshot().link_pairs, 0);
        // The answer comes after all, and is nobody's.
        let hub = world.hub();
        hub.expect(wire::OPEN);
        let begin = hub.expect(wire::BEGIN);
        let attach = hub.expect(wire::ATTACH);
        hub.expect(wire::DETACH);
        if !answers_begin {
            hub.answer_begin(&begin, 7);
        }
        hub.answer_attach(&attach, 7, 5);
        hub.grant(7, 5, 10);
        hub.detach(7, 5, true, Value::Null);
        world.run();
        world.peer(device).expect_nothing();
        if !answers_begin {
            continue; // this hub did not hear the rest of it
        }
        world.hub().skip();
        world.hub().auto.attach = true;
        world.peer(device).attach(0, 1, "up", true, UP);
        world.run();
        assert_eq!(world.hub().expect(wire::ATTACH).text(0), Some("up@dev"));
        world.peer(device).expect(wire::ATTACH);
    }
}

#[test]
fn a_device_that_never_answers_a_detach_holds_its_hub_up_for_ten_seconds() {
    for closed in [true, false] {
        let mut p = tunnel();
        p.world.peer(p.device).auto.detach = false;
        let reason = error("amqp:link:stolen", "because", Value::Null);
        p.world.peer(p.hub).detach(p.down.0, p.down.1, closed, reason);
        p.world.run();
        p.world.peer(p.device).expect(wire::DETACH);
        p.world.advance(NOT_YET);
        p.world.peer(p.hub).expect_nothing();
        p.world.advance(REST);
        let detach = p.world.peer(p.hub).expect(wire::DETACH);
        assert_eq!(detach.flag(1), closed);
        assert_forced(detach.field(2));
        assert_eq!(p.world.router.snapshot().link_pairs, 1);
        // Late: settled, credited and detached, and nobody hears of it.
        p.world.peer(p.device).grant(0, 1, 7);
        p.world.peer(p.device).detach(0, 1, true, Value::Null);
        p.world.run();
        p.world.peer(p.hub).expect_nothing();
        p.world.peer(p.device).attach(0, 1, "down", false, DOWN);
        p.world.run();
        assert!(p.world.peer(p.hub).find("down@dev", true).is_some());
    }
}

#[test]
fn a_detach_waits_behind_messages_as_long_as_they_move() {
    let mut p = tunnel_with(2048, 1);
    for number in 0..6u8 {
        p.world.peer(p.device).send(0, 0, &[number], false);
    }
    p.world.peer(p.device).detach(0, 0, true, Value::Null);
    p.world.run();
    // One message in 8 s: much longer than 10 s in all.
    for _ in 0..3 {
        p.world.peer(p.hub).expect(wire::TRANSFER);
        p.world.peer(p.hub).expect_nothing();
        p.world.advance(Duration::from_secs(8));
        p.world.peer(p.hub).widen(p.up.0, 1);
        p.world.run();
    }
    p.world.peer(p.hub).expect(wire::TRANSFER);
    p.world.peer(p.device).expect_nothing();
    // Then it stops taking any: the detach goes without the last two.
    p.world.advance(Duration::from_secs(21));
    p.world.peer(p.hub).expect(wire::DETACH);
    assert!(p.world.peer(p.device).expect(wire::DETACH).flag(1));
    let snapshot = p.world.router.snapshot();
    assert_eq!((snapshot.link_pairs, snapshot.parked_bytes), (1, 0));
}

#[test]
fn a_hubs_detach_does_not_wait_for_a_device_that_takes_nothing() {
    let mut p = tunnel_with(1, 2048);
    for number in 0..6u8 {
        p.world.peer(p.hub).send(p.down.0, p.down.1, &[number], false);
    }
    let reason = error("amqp:resource-deleted", "gone", Value::Null);
    p.world
        .peer(p.hub)
        .detach(p.down.0, p.down.1, true, reason.clone());
    p.world.run();
    p.world.advance(Duration::from_secs(21));
    p.world.peer(p.device).expect(wire::TRANSFER);
    let detach = p.world.peer(p.device).expect(wire::DETACH);
    assert_eq!(detach.field(2), &reason, "the hub's own words");
    p.world.peer(p.hub).expect_past_flows(wire::DETACH);
    let snapshot = p.world.router.snapshot();
    assert_eq!((snapshot.link_pairs, snapshot.held_bytes), (1, 0));
}

#[test]
fn a_hub_that_answers_no_detach_at_all_cannot_make_us_hold_links_without_end() {
    let (mut world, device) = world_with(Auto {
        detach: false,
        ..HUB_AUTO
    });
    let other = world.device("other");
    world.peer(other).attach(0, 0, "first", true, UP);
    world.run();
    let mut refused = 0;
    for (channel, count) in [(0, 4000), (1, 4000), (2, 200)] {
        if channel > 0 {
            world.peer(device).begin(channel);
        }
        for handle in 0..count {
            let name = format!("link{handle}");
            world.peer(device).attach(channel, handle, &name, true, UP);
            world.peer(device).detach(channel, handle, true, Value::Null);
        }
        world.run();
        world.advance(NOT_YET + REST);
        assert_eq!(world.router.snapshot().link_pairs, 1);
        let session = world.peer(device).session(channel);
        for link in session.links.values() {
            match condition(link.detached.as_ref().expect("an answer")) {
                Some("amqp:link:detach-forced") => {}
                Some("amqp:resource-limit-exceeded") => refused += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(
        refused,
        8200 - limits::DEVICE_LINKS,
        "no more than the device itself may have"
    );
    // Another device has its own.
    world.peer(other).attach(0, 1, "up", true, UP);
    world.run();
    assert!(world.hub().find("up@other", false).is_some());
    // And all is over when the device goes.
    world.lose(device);
    world.run();
    assert_eq!(world.router.snapshot().session_pairs, 1);
}

#[test]
fn a_hub_that_never_answers_an_end_keeps_that_channel_and_no_more() {
    let mut world = World::new(settings());
    let hub_auto = Auto {
        end: false,
        ..HUB_AUTO
    };
    let announces = Announces {
        channel_max: 1,
        ..Announces::default()
    };
    world.hub = Some((hub_auto, announces));
    let device = world.device("dev");
    for channel in 0..2 {
        if channel > 0 {
            world.peer(device).begin(channel);
        }
        world.peer(device).attach(channel, 0, "up", true, UP);
        world.run();
        world.peer(device).end(channel, Value::Null);
        world.run();
    }
    assert_eq!(world.router.snapshot().session_pairs, 0);
    let ends: Vec<u16> = world
        .hub()
        .log
        .iter()
        .filter(|frame| frame.code == wire::END)
        .map(|frame| frame.channel)
        .collect();
    assert_eq!(ends, [0, 1]);
    // What the hub still says there is nobody's.
    let first = *world.hub().sessions.keys().next().expect("a session");
    world.hub().dispose(first, true, 0, 9, true, Value::Null);
    world.peer(device).begin(5);
    world.run();
    world.peer(device).skip();
    world.peer(device).attach(5, 0, "up", true, UP);
    world.run();
    world.peer(device).expect(wire::ATTACH);
    let refused = world.peer(device).expect(wire::DETACH);
    assert_eq!(condition(refused.field(2)), Some("amqp:resource-limit-exceeded"));
    // One answer, one channel.
    world.hub().end(first, Value::Null);
    world.hub().sessions.remove(&first);
    world.run();
    world.hub().skip();
    world.peer(device).attach(5, 1, "up", true, UP);
    world.run();
    assert_eq!(world.hub().expect(wire::BEGIN).channel, 0);
    world.peer(device).expect(wire::ATTACH);
}

#[test]
fn many_links_closed_at_once_are_all_answered_and_another_session_stands() {
    let (mut world, device) = world_with(HUB_AUTO);
    world.peer(device).begin(1);
    world.peer(device).attach(1, 0, "other", true, UP);
    for handle in 0..10 {
        world
            .peer(device)
            .attach(0, handle, &format!("link{handle}"), handle % 2 == 0, UP);
    }
    world.run();
    for handle in 0..10 {
        world.peer(device).detach(0, handle, true, Value::Null);
    }
    world.run();
    for handle in 0..10 {
        assert!(world.peer(device).link(0, handle).detached.is_some(), "{handle}");
    }
    world.peer(device).end(0, Value::Null);
    world.run();
    let (channel, handle) = world.hub().find("other@dev", false).expect("stands");
    world.hub().grant(channel, handle, 1);
    world.run();
    world.peer(device).send(1, 0, b"m", true);
    world.run();
    assert_eq!(world.hub().link(channel, handle).received.len(), 1);
    let snapshot = world.router.snapshot();
    assert_eq!((snapshot.session_pairs, snapshot.link_pairs), (1, 1));
}

#[test]
fn nothing_is_delivered_to_a_receiver_behind_its_detach() {
    let mut p = tunnel_with(1, 2048);
    for number in 0..5u8 {
        p.world.peer(p.hub).send(p.down.0, p.down.1, &[number], false);
    }
    p.world.run();
    p.world.peer(p.device).expect(wire::TRANSFER);
    p.world.peer(p.hub).auto.detach = false;
    p.world.peer(p.device).detach(0, 1, true, Value::Null);
    p.world.peer(p.device).widen(0, 100);
    p.world.run();
    // Still attached at the hub, which does not know yet.
    p.world
        .peer(p.hub)
        .say_transfer(p.down.0, p.down.1, Some((5, 5)), true, false, b"crossing");
    p.world.run();
    p.world.peer(p.hub).detach(p.down.0, p.down.1, true, Value::Null);
    p.world.run();
    p.world.peer(p.device).expect(wire::DETACH);
    p.world.peer(p.device).expect_nothing();
    assert_eq!(p.world.router.snapshot().held_bytes, 0);
}

/// A peer that answered an echo would use a handle that it has given up.
#[test]
fn no_flow_reaches_a_device_behind_its_detach() {
    let mut p = tunnel();
    p.world.peer(p.hub).auto.detach = false;
    for handle in [0, 1] {
        p.world.peer(p.device).detach(0, handle, true, Value::Null);
    }
    p.world.run();
    // Still attached at the hub, which does not know yet.
    for (channel, handle) in [p.up, p.down] {
        p.world.peer(p.hub).flow(channel, Some(handle), false, true);
    }
    p.world.run();
    p.world.peer(p.device).expect_nothing();
    for (channel, handle) in [p.up, p.down] {
        p.world.peer(p.hub).detach(channel, handle, true, Value::Null);
    }
    p.world.run();
    for _ in 0..2 {
        p.world.peer(p.device).expect(wire::DETACH);
    }
    p.world.peer(p.device).expect_nothing();
}

#[test]
fn a_large_message_followed_by_a_detach_an_end_or_a_close_at_once_arrives_whole() {
    for goodbye in 0..3 {
        let mut p = tunnel_with(2048, 3);
        p.world.peer(p.hub).auto.window = true;
        p.world.peer(p.device).send(0, 0, &[7; 200_000], false);
        match goodbye {
            0 => p.world.peer(p.device).detach(0, 0, true, Value::Null),
            1 => p.world.peer(p.device).end(0, Value::Null),
            _ => p.world.peer(p.device).close(Value::Null),
        }
        p.world.run();
        let mut size = 0;
        loop {
            let transfer = p.world.peer(p.hub).expect_past_flows(wire::TRANSFER);
            assert!(!transfer.flag(9), "aborted, by goodbye {goodbye}");
            size += transfer.payload.len();
            if !transfer.flag(5) {
                break;
            }
        }
        assert_eq!(size, 200_000, "goodbye {goodbye}");
        p.world.peer(p.hub).expect_past_flows(wire::DETACH);
    }
}

#[test]
fn what_a_device_left_behind_goes_as_long_as_it_moves_and_is_dropped_when_it_does_not() {
    let mut p = tunnel_with(2048, 1);
    for number in 0..5u8 {
        p.world.peer(p.device).send(0, 0, &[number; 100], true);
    }
    p.world.peer(p.device).close(Value::Null);
    p.world.run();
    for _ in 0..2 {
        p.world.peer(p.hub).expect(wire::TRANSFER);
        p.world.advance(Duration::from_secs(9));
        p.world.peer(p.hub).widen(p.up.0, 1);
        p.world.run();
    }
    p.world.peer(p.hub).expect(wire::TRANSFER);
    assert!(p.world.router.snapshot().parked_bytes > 0);
    p.world.advance(Duration::from_secs(21));
    for _ in 0..2 {
        assert_forced(p.world.peer(p.hub).expect(wire::DETACH).field(2));
    }
    p.world.peer(p.hub).expect(wire::END);
    let snapshot = p.world.router.snapshot();
    assert_eq!((snapshot.session_pairs, snapshot.parked_bytes), (0, 0));
}

#[test]
fn nothing_is_held_for_a_device_that_has_gone_and_left_something_behind() {
    let mut p = tunnel_with(2048, 1);
    for number in 0..3u8 {
        p.world.peer(p.device).send(0, 0, &[number; 100], true);
    }
    p.world.peer(p.device).end(0, Value::Null);
    p.world.run();
    p.world.peer(p.hub).send(p.down.0, p.down.1, &[7; 1000], false);
    p.world.run();
    let snapshot = p.world.router.snapshot();
    assert!(snapshot.parked_bytes > 0, "what the device left behind waits");
    assert_eq!(snapshot.held_bytes, 0, "and nothing waits for it");
}

#[test]
fn windows_that_open_again_move_every_link_of_the_session() {
    let mut p = tunnel_with(2048, 1);
    p.world.peer(p.device).attach(0, 2, "second", true, UP);
    p.world.run();
    let second = p.world.peer(p.hub).find("second@dev", false).expect("attached");
    p.world.peer(p.hub).grant(second.0, second.1, 100);
    p.world.run();
    for number in 0..10u8 {
        for handle in [0, 2] {
            p.world.peer(p.device).send(0, handle, &[number], true);
        }
    }
    p.world.run();
    p.world.peer(p.hub).widen(p.up.0, 100);
    p.world.run();
    for (channel, handle) in [p.up, second] {
        assert_eq!(p.world.peer(p.hub).link(channel, handle).received.len(), 10);
    }
    assert!(!p.world.is_paused(p.device));
}

#[test]
fn a_link_closed_with_unsettled_and_half_received_deliveries_leaves_nothing() {
    for from_hub in [false, true] {
        let mut p = tunnel();
        let reason = error("amqp:internal-error", "both say why", Value::Null);
        for side in [p.device, p.hub] {
            p.world.peer(side).auto.detach = false;
        }
        for _ in 0..3 {
            p.world.peer(p.device).send(0, 0, b"m", false);
            p.world.peer(p.hub).send(p.down.0, p.down.1, b"m", false);
        }
        p.world
            .peer(p.device)
            .say_transfer(0, 0, Some((3, 3)), false, true, b"half");
        p.world
            .peer(p.hub)
            .say_transfer(p.down.0, p.down.1, Some((3, 3)), false, true, b"half");
        p.world.run();
        let ends = [
            (p.device, 0, 0),
            (p.device, 0, 1),
            (p.hub, p.up.0, p.up.1),
            (p.hub, p.down.0, p.down.1),
        ];
        let (first, second) = ends.split_at(2);
        let order = if from_hub {
            [second, first]
        } else {
            [first, second]
        };
        for (side, channel, handle) in order.concat() {
            p.world.peer(side).detach(channel, handle, true, reason.clone());
            p.world.run();
        }
        assert_eq!(
            p.world.peer(p.hub).link(p.up.0, p.up.1).aborted,
            usize::from(!from_hub)
        );
        assert_eq!(p.world.peer(p.device).link(0, 1).aborted, usize::from(from_hub));
        // What was unsettled on them is nobody's business any more.
        p.world.peer(p.device).skip();
        p.world.peer(p.hub).skip();
        p.world.peer(p.hub).dispose(p.up.0, true, 0, 9, true, Value::Null);
        p.world.peer(p.device).dispose(0, true, 0, 9, true, Value::Null);
        p.world.run();
        p.world.peer(p.device).expect_nothing();
        p.world.peer(p.hub).expect_nothing();
        let snapshot = p.world.router.snapshot();
        assert_eq!((snapshot.link_pairs, snapshot.buffered_bytes()), (0, 0));
    }
}

#[test]
fn attaching_and_detaching_without_end_leaves_tables_and_memory_as_they_were() {
    let mut p = tunnel();
    p.world.keeps_logs = false;
    for side in [p.device, p.hub] {
        p.world.peer(side).keeps_log = false;
    }
    let mut handles = Vec::new();
    for turn in 0..5000u32 {
        let closed = turn % 2 == 0;
        let device = p.world.peer(p.device);
        device.attach(0, 9, "cycle", turn % 3 > 0, UP);
        if turn % 5 > 0 {
            p.world.run();
        }
        p.world.peer(p.device).detach(0, 9, closed, Value::Null);
        p.world.run();
        assert_eq!(p.world.router.snapshot().link_pairs, 2);
        handles.push(p.world.peer(p.hub).session(p.up.0).links.len());
        let gone = |link: &crate::peer::Link| link.detach_sent && link.detached.is_some();
        for side in [p.device, p.hub] {
            for session in p.world.peer(side).sessions.values_mut() {
                session.links.retain(|_, link| !gone(link));
            }
        }
        assert!(
            p.world.peer(p.hub).find("cycle@dev#2", true).is_none()
                && p.world.peer(p.hub).find("cycle@dev#2", false).is_none()
        );
    }
    assert_eq!(handles.iter().max(), Some(&3));
    // Sessions, too.
    for turn in 0..1000u16 {
        p.world.peer(p.device).begin(1 + turn % 3);
        p.world.peer(p.device).attach(1 + turn % 3, 0, "cycle", true, UP);
        p.world.peer(p.device).end(1 + turn % 3, Value::Null);
        p.world.run();
    }
    assert_eq!(p.world.router.snapshot().session_pairs, 1);
    assert!(p.world.peer(p.hub).sessions.len() <= 2);
    for id in [p.device, p.hub] {
        p.world.lose(id);
    }
    p.world.run();
    assert_eq!(p.world.router.snapshot(), Snapshot::default());
}

/// A target or source with an address, an expiry-policy and a timeout.
fn expiring(code: u64, policy: Option<&str>, timeout: Option<u32>) -> Value {
    let policy = policy.map_or(Value::Null, symbol);
    described(
        code,
        vec![
            string("/devices/d1/messages"),
            uint(0),
            policy,
            timeout.map_or(Value::Null, uint),
        ],
    )
}

#[test]
fn without_allow_resumable_link_route_a_terminus_may_not_outlive_its_connection() {
    for conditions in [ErrorConditions::Amqp, ErrorConditions::Qd] {
        let mut settings = settings();
        settings.allow_resumable_link_route = false;
        settings.error_conditions = conditions;
        let mut world = World::new(settings);
        let device = world.device_with("dev", DEVICE_AUTO, Announces::default());
        world.peer(device).skip();
        let cases = [
            (Some("never"), None, false),
            (Some("session-end"), Some(1), false),
            (None, Some(60), false),
            (None, None, true),
            (Some("link-detach"), Some(0), true),
            (Some("session-end"), None, true),
            (Some("connection-close"), None, true),
        ];
        for (handle, (policy, timeout, passes)) in (0u32..).zip(cases) {
            for is_sender in [true, false] {
                let handle = 2 * handle + u32::from(is_sender);
                let (source, target) = match is_sender {
                    // The other terminus is the device's own affair.
                    true => (
                        expiring(0x28, Some("never"), None),
                        expiring(0x29, policy, timeout),
                    ),
                    false => (
                        expiring(0x28, policy, timeout),
                        expiring(0x29, Some("never"), None),
                    ),
                };
                let name = format!("link{handle}");
                world
                    .peer(device)
                    .attach_with(0, handle, &name, is_sender, source, target);
                world.run();
                let attach = world.peer(device).expect(wire::ATTACH);
                let routed = attach.field(if is_sender { 6 } else { 5 });
                if passes {
                    assert_ne!(routed, &Value::Null, "{policy:?} {timeout:?}");
                    world.peer(device).expect_nothing();
                    continue;
                }
                assert_eq!(routed, &Value::Null, "{policy:?} {timeout:?}");
                let detach = world.peer(device).expect(wire::DETACH);
                let (_, fields) = composite(detach.field(2)).expect("an error");
                let text = fields.get(1).and_then(Value::as_text).expect("a description");
                assert!(text.contains("Requested link expiration not allowed"), "{text}");
                let info = fields.get(2).expect("info");
                match conditions {
                    ErrorConditions::Amqp => {
                        assert_eq!(condition(detach.field(2)), Some("amqp:not-allowed"));
                        assert_eq!(info.entry("qd-condition"), Some(&symbol("qd:link-expiration")));
                    }
                    ErrorConditions::Qd => {
                        assert_eq!(condition(detach.field(2)), Some("qd:link-expiration"));
                    }
                }
            }
        }
    }
}
