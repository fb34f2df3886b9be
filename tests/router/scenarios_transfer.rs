//! Transfers, credit and settlement through the tunnel.

use linkrouterd::amqp::value::Value;

use crate::peer::Announces;
use crate::tunnel::{DOWN, UP, tunnel, tunnel_with};
use crate::wire::{self, described, string, symbol, uint};
use crate::world::{Chunks, DEVICE_AUTO, HUB_AUTO, World, settings};

#[test]
fn frames_go_on_before_the_last_has_come() {
    let mut p = tunnel();
    p.world
        .peer(p.device)
        .link(0, 0)
        .queue
        .push_back((vec![1; 3000], false));
    assert!(p.world.peer(p.device).send_piece(0, 0, 1000));
    p.world.run();
    let first = p.world.peer(p.hub).expect(wire::TRANSFER);
    assert_eq!((first.payload.len(), first.flag(5)), (1000, true));
    p.world.peer(p.device).send_piece(0, 0, 1000);
    p.world.run();
    let second = p.world.peer(p.hub).expect(wire::TRANSFER);
    assert_eq!(
        (second.payload.len(), second.flag(5), second.uint(1)),
        (1000, true, None)
    );
    p.world.peer(p.device).send_piece(0, 0, 1000);
    p.world.run();
    assert!(!p.world.peer(p.hub).expect(wire::TRANSFER).flag(5));
}

#[test]
fn a_message_is_cut_for_small_frames_and_whole_again() {
    for chunks in [Chunks::Whole, Chunks::One] {
        let mut world = World::new(settings());
        world.chunks = chunks;
        world.hub = Some((HUB_AUTO, Announces::default()));
        let small = Announces {
            max_frame_size: 512,
            ..Announces::default()
        };
        let device = world.device_with("small", DEVICE_AUTO, small);
        world.peer(device).attach(0, 0, "down", false, DOWN);
        world.peer(device).grant(0, 0, 10);
        world.run();
        let (channel, handle) = world.hub().find("down@small", true).expect("a sender");
        let message: Vec<u8> = (0..10_000u32).map(|n| (n % 251) as u8).collect();
        world.hub().send(channel, handle, &message, false);
        world.hub().send(channel, handle, b"short", true);
        world.run();
        let received = &world.peer(device).link(0, 0).received;
        assert_eq!(received.len(), 2);
        assert_eq!(received.first().map(|d| d.payload == message), Some(true));
        let transfers: Vec<_> = world
            .peer(device)
            .log
            .iter()
            .filter(|f| f.code == wire::TRANSFER)
            .collect();
        assert!(transfers.len() > 20 && transfers.iter().all(|f| f.size <= 512));
    }
}

#[test]
fn a_presettled_message_of_many_frames_is_settled_on_every_frame() {
    let mut world = World::new(settings());
    let small = Announces {
        max_frame_size: 512,
        ..Announces::default()
    };
    let device = world.device_with("small", DEVICE_AUTO, small);
    world.peer(device).attach(0, 0, "down", false, DOWN);
    world.peer(device).grant(0, 0, 10);
    world.run();
    let (channel, handle) = world.hub().find("down@small", true).expect("a sender");
    world.hub().send(channel, handle, &[1; 2000], true);
    world.run();
    let frames: Vec<_> = world
        .peer(device)
        .log
        .iter()
        .filter(|f| f.code == wire::TRANSFER)
        .cloned()
        .collect();
    assert!(frames.len() >= 4 && frames.iter().all(|frame| frame.flag(4)));
}

#[test]
fn ids_wrap_both_ways_and_settlements_find_them() {
    let wrapping = Announces {
        first_transfer_id: 0xffff_fffd,
        first_delivery_id: 0xffff_fffd,
        ..Announces::default()
    };
    let mut world = World::new(settings());
    world.hub = Some((HUB_AUTO, wrapping));
    let device = world.device_with("dev", DEVICE_AUTO, wrapping);
    world.peer(device).attach(0, 0, "up", true, UP);
    world.peer(device).attach(0, 1, "down", false, DOWN);
    world.peer(device).grant(0, 1, 20);
    world.run();
    let up = world.hub().find("up@dev", false).expect("a receiver");
    let down = world.hub().find("down@dev", true).expect("a sender");
    world.hub().grant(up.0, up.1, 20);
    world.run();
    for number in 0..8u8 {
        world.peer(device).send(0, 0, &[number], false);
        world.hub().send(down.0, down.1, &[number], false);
    }
    world.run();
    let at_hub: Vec<u32> = world
        .hub()
        .link(up.0, up.1)
        .received
        .iter()
        .map(|d| d.id)
        .collect();
    assert_eq!(
        at_hub,
        (0..8).collect::<Vec<u32>>(),
        "numbered anew, from the router's begin on"
    );
    // As one range each.
    world
        .hub()
        .dispose(up.0, true, 0, 7, true, described(wire::ACCEPTED, Vec::new()));
    let first = world
        .peer(device)
        .link(0, 1)
        .received
        .first()
        .map(|d| d.id)
        .expect("received");
    world.peer(device).dispose(
        0,
        true,
        first,
        first.wrapping_add(7),
        true,
        described(wire::ACCEPTED, Vec::new()),
    );
    world.peer(device).skip();
    world.hub().skip();
    world.run();
    let to_device = world.peer(device).expect(wire::DISPOSITION);
    assert_eq!(
        (to_device.uint(1), to_device.uint(2)),
        (Some(0xffff_fffd), Some(4))
    );
    let to_hub = world.hub().expect(wire::DISPOSITION);
    assert_eq!((to_hub.uint(1), to_hub.uint(2)), (Some(0xffff_fffd), Some(4)));
    assert_eq!(world.peer(device).link(0, 0).settled.len(), 8);
    assert_eq!(world.hub().link(down.0, down.1).settled.len(), 8);
}

#[test]
fn outcomes_go_through_with_all_their_fields() {
    let error = wire::error("amqp:not-allowed", "no", Value::Map(vec![(symbol("k"), uint(7))]));
    let annotations = Value::Map(vec![(symbol("x-opt-a"), string("b"))]);
    let states = [
        described(wire::REJECTED, vec![error]),
        described(wire::RELEASED, Vec::new()),
        described(
            wire::MODIFIED,
            vec![Value::Boolean(true), Value::Boolean(false), annotations],
        ),
        described(0x23, vec![uint(1), Value::Ulong(17)]),
        Value::Described(
            Box::new(symbol("private:state:list")),
            Box::new(Value::List(vec![uint(1)])),
        ),
    ];
    let mut p = tunnel();
    for (number, state) in (0u32..).zip(states) {
        p.world.peer(p.device).send(0, 0, b"m", false);
        p.world.run();
        let settled = number % 2 == 0;
        p.world
            .peer(p.hub)
            .dispose(p.up.0, true, number, number, settled, state.clone());
        p.world.run();
        let seen = p.world.peer(p.device).expect(wire::DISPOSITION);
        assert_eq!(
            (seen.uint(1), seen.flag(3), seen.field(4)),
            (Some(number), settled, &state)
        );
    }
}

#[test]
fn dispositions_for_nobody_are_dropped_and_harm_nobody() {
    let mut p = tunnel();
    p.world.peer(p.device).send(0, 0, b"m", false);
    p.world.run();
    p.world
        .peer(p.hub)
        .dispose(p.up.0, true, 5, 0xffff_0000, true, Value::Null);
    p.world.peer(p.hub).dispose(p.up.0, true, 9, 3, true, Value::Null);
    p.world
        .peer(p.hub)
        .dispose(p.up.0, false, 0, 3, true, Value::Null);
    p.world
        .peer(p.device)
        .dispose(0, true, 0, u32::MAX, true, Value::Null);
    p.world.run();
    p.world.peer(p.device).expect_nothing();
    // A range that reaches beyond what was sent means what was sent.
    p.world
        .peer(p.hub)
        .dispose(p.up.0, true, 0, 100, true, Value::Null);
    p.world.run();
    let seen = p.world.peer(p.device).expect(wire::DISPOSITION);
    assert_eq!((seen.uint(1), seen.uint(2)), (Some(0), None));
}

#[test]
fn the_sender_may_settle_first_and_never_before_its_message() {
    let mut p = tunnel_with(2048, 1);
    p.world.peer(p.device).send(0, 0, b"one", false);
    p.world.peer(p.device).send(0, 0, b"two", false);
    p.world.peer(p.device).dispose(0, false, 0, 1, true, Value::Null);
    p.world.run();
    p.world.peer(p.hub).expect(wire::TRANSFER);
    p.world.peer(p.hub).expect_nothing();
    p.world.peer(p.hub).widen(p.up.0, 5);
    p.world.run();
    p.world.peer(p.hub).expect(wire::TRANSFER);
    let seen = p.world.peer(p.hub).expect(wire::DISPOSITION);
    assert_eq!(
        (seen.flag(0), seen.uint(1), seen.uint(2)),
        (false, Some(0), Some(1))
    );
    let received = &p.world.peer(p.hub).link(p.up.0, p.up.1).received;
    assert!(received.iter().all(|delivery| delivery.settled));
}

#[test]
fn a_parked_disposition_outlives_a_link_that_is_freed_before_it() {
    let mut p = tunnel_with(2048, 1);
    for side in [p.device, p.hub] {
        p.world.peer(side).auto.detach = false;
    }
    p.world.peer(p.device).attach(0, 2, "second", true, UP);
    p.world.run();
    let (channel, handle) = p
        .world
        .peer(p.hub)
        .find("second@dev", false)
        .expect("the second link");
    p.world.peer(p.hub).grant(channel, handle, 10);
    p.world.run();
    // The hub's window takes one frame; the rest is parked, and the disposition last.
    p.world.peer(p.device).send(0, 0, b"one", false);
    p.world.peer(p.device).send(0, 0, b"two", false);
    p.world.run();
    p.world.peer(p.device).detach(0, 0, true, Value::Null);
    p.world.peer(p.device).send(0, 2, b"three", false);
    p.world.peer(p.device).dispose(0, false, 2, 2, true, Value::Null);
    p.world.run();
    // The first link goes for good, while the second still waits.
    p.world.peer(p.hub).detach(p.up.0, p.up.1, true, Value::Null);
    p.world.run();
    assert_eq!(p.world.router.snapshot().link_pairs, 2);
    p.world.peer(p.hub).skip();
    p.world.peer(p.hub).widen(p.up.0, 5);
    p.world.run();
    p.world.peer(p.hub).expect(wire::TRANSFER);
    let seen = p.world.peer(p.hub).expect(wire::DISPOSITION);
    assert_eq!((seen.flag(0), seen.uint(1), seen.flag(3)), (false, Some(1), true));
}

#[test]
fn both_ends_settle_at_once_and_the_three_steps_work() {
    let mut p = tunnel();
    p.world.peer(p.device).send(0, 0, b"m", false);
    p.world.run();
    // The receiver states, the sender settles, the receiver settles.
    let accepted = described(wire::ACCEPTED, Vec::new());
    p.world
        .peer(p.hub)
        .dispose(p.up.0, true, 0, 0, false, accepted.clone());
    p.world.run();
    assert!(!p.world.peer(p.device).expect(wire::DISPOSITION).flag(3));
    p.world
        .peer(p.device)
        .dispose(0, false, 0, 0, true, accepted.clone());
    p.world.peer(p.hub).dispose(p.up.0, true, 0, 0, true, accepted);
    p.world.run();
    p.world.peer(p.device).expect(wire::DISPOSITION);
    p.world.peer(p.device).expect_nothing();
}

#[test]
fn a_senders_abort_is_passed_on_and_the_next_message_is_intact() {
    let mut p = tunnel();
    p.world
        .peer(p.device)
        .link(0, 0)
        .queue
        .push_back((vec![1; 100], false));
    p.world.peer(p.device).send_piece(0, 0, 10);
    p.world.run();
    let peer = p.world.peer(p.device);
    let link = peer.link(0, 0);
    link.queue.clear();
    link.offset = 0;
    link.sent += 1;
    let mut fields = vec![uint(0)];
    fields.extend(vec![Value::Null; 8]);
    fields.push(Value::Boolean(true));
    peer.session(0).next_outgoing += 1;
    peer.say(&wire::Frame::new(0, wire::TRANSFER, fields));
    peer.send(0, 0, b"whole", false);
    p.world.run();
    let link = p.world.peer(p.hub).link(p.up.0, p.up.1);
    assert_eq!((link.aborted, link.received.len()), (1, 1));
    assert_eq!(
        link.received.first().map(|d| (d.id, d.payload.clone())),
        Some((1, b"whole".to_vec()))
    );
}

#[test]
fn drain_is_end_to_end_both_ways_and_credit_can_be_given_again() {
    let mut p = tunnel();
    // The device drains what the hub may send.
    p.world.peer(p.device).link(0, 1).credit = 100;
    p.world.peer(p.device).flow(0, Some(1), true, false);
    p.world.run();
    let seen = p.world.peer(p.hub).expect(wire::FLOW);
    assert_eq!((seen.uint(6), seen.flag(8)), (Some(100), true));
    let answer = p.world.peer(p.device).expect(wire::FLOW);
    assert_eq!(
        (answer.uint(5), answer.uint(6), answer.flag(8)),
        (Some(100), Some(0), true)
    );
    p.world.peer(p.device).grant(0, 1, 3);
    p.world.run();
    assert_eq!(p.world.peer(p.hub).link(p.down.0, p.down.1).credit, 3);

    // The hub drains what the device may send: one message first, then the rest of the credit.
    p.world.peer(p.hub).auto.window = true;
    p.world.peer(p.hub).flow(p.up.0, Some(p.up.1), true, false);
    p.world.peer(p.device).send(0, 0, b"last", true);
    p.world.peer(p.hub).skip();
    p.world.run();
    p.world.peer(p.hub).expect(wire::TRANSFER);
    let answer = p.world.peer(p.hub).expect(wire::FLOW);
    assert_eq!((answer.uint(5), answer.uint(6)), (Some(100), Some(0)));
    assert_eq!(p.world.peer(p.hub).link(p.up.0, p.up.1).credit, 0);
}

#[test]
fn a_drained_answer_does_not_overtake_parked_messages() {
    let mut p = tunnel_with(2048, 1);
    p.world.peer(p.device).send(0, 0, b"one", true);
    p.world.peer(p.device).send(0, 0, b"two", true);
    let link = p.world.peer(p.device).link(0, 0);
    link.delivery_count += link.credit;
    link.credit = 0;
    p.world.peer(p.device).flow(0, Some(0), true, false);
    p.world.run();
    p.world.peer(p.hub).expect(wire::TRANSFER);
    p.world.peer(p.hub).expect_nothing();
    p.world.peer(p.hub).widen(p.up.0, 5);
    p.world.run();
    p.world.peer(p.hub).expect(wire::TRANSFER);
    assert_eq!(p.world.peer(p.hub).expect(wire::FLOW).uint(5), Some(100));
}

#[test]
fn echo_is_answered_for_the_session_and_end_to_end_for_a_link() {
    let mut p = tunnel();
    p.world.peer(p.device).flow(0, None, false, true);
    p.world.run();
    assert_eq!(p.world.peer(p.device).expect(wire::FLOW).uint(4), None);
    p.world.peer(p.hub).expect_nothing();
    p.world.peer(p.device).flow(0, Some(1), false, true);
    p.world.run();
    assert!(p.world.peer(p.hub).expect(wire::FLOW).flag(9));
    let answer = p.world.peer(p.device).expect(wire::FLOW);
    assert!(
        answer.uint(4).is_some(),
        "the hub's own numbers, not the router's"
    );
}

#[test]
fn thousands_of_messages_go_both_ways_through_any_window() {
    for window in [1, 2, 2048] {
        let announces = Announces {
            window,
            ..Announces::default()
        };
        let mut narrow = settings();
        if window < 10 {
            for limits in narrow.listeners.iter_mut().map(|l| &mut l.limits) {
                limits.incoming_window = Some(window);
            }
            for limits in narrow.connectors.iter_mut().map(|c| &mut c.limits) {
                limits.incoming_window = Some(window);
            }
        }
        let mut world = World::new(narrow);
        world.keeps_logs = false;
        let mut auto = HUB_AUTO;
        auto.credit = 500;
        auto.accept = true;
        world.hub = Some((auto, announces));
        let mut device_auto = DEVICE_AUTO;
        device_auto.credit = 500;
        device_auto.accept = true;
        let device = world.device_with("dev", device_auto, announces);
        world.peer(device).attach(0, 0, "up", true, UP);
        world.peer(device).attach(0, 1, "down", false, DOWN);
        world.peer(device).grant(0, 1, 500);
        world.run();
        let up = world.hub().find("up@dev", false).expect("a receiver");
        let down = world.hub().find("down@dev", true).expect("a sender");
        let total = 10_500u32;
        for number in 0..total {
            let message = (number.to_be_bytes().to_vec(), number % 3 == 0);
            world.peer(device).link(0, 0).queue.push_back(message.clone());
            world.hub().link(down.0, down.1).queue.push_back(message);
        }
        world.peer(device).push_out(0);
        world.hub().push_out(down.0);
        world.run();
        let unsettled = (0..total).filter(|number| number % 3 != 0).count();
        for (peer, receiver, sender) in [(device, (0, 1), (0, 0)), (world.hub_id(), up, down)] {
            let numbers = world.peer(peer).link(receiver.0, receiver.1).received.iter();
            assert!(
                numbers
                    .map(|d| d.payload.clone())
                    .eq((0..total).map(|n| n.to_be_bytes().to_vec()))
            );
            assert_eq!(
                world.peer(peer).link(sender.0, sender.1).settled.len(),
                unsettled,
                "window {window}"
            );
        }
        assert_eq!(world.router.snapshot().buffered_bytes(), 0);
    }
}

#[test]
fn a_transfer_without_a_byte_is_carried_like_any_other() {
    let mut p = tunnel();
    p.world.peer(p.device).send(0, 0, b"", false);
    p.world.peer(p.device).send(0, 0, b"x", false);
    p.world.run();
    assert_eq!(p.world.peer(p.hub).link(p.up.0, p.up.1).received.len(), 2);
}
