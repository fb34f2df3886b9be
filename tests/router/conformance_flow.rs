//! Flow: credit, drain and everything else that a link's flow says is end to end; the session's part never is.

use crate::peer::Announces;
use crate::tap::{
    DOWN, End, Form, Frame, NULL, Side, Tap, UP, attach, binary, encoded, flag, handle, linked, null, uint,
};
use crate::tunnel::tunnel;
use crate::wire;
use crate::world::{DEVICE_AUTO, HUB_AUTO, World, settings};

fn tap() -> Tap {
    linked(Side::default(), Side::default())
}

/// Each link with the end that receives on it.
const LINKS: [(u32, End); 2] = [(UP, End::Hub), (DOWN, End::Device)];

/// A flow of this link, from its delivery-count on, reaches the other end as it is, and nothing else happens.
#[track_caller]
fn reaches(tap: &mut Tap, by: End, link: u32, tail: &[Vec<u8>]) {
    tap.flow(by, link, tail);
    let heard = tap.hear_one(by.other());
    assert_eq!((heard.code, heard.uint(4)), (wire::FLOW, Some(link)));
    assert_eq!(heard.tail(5), tail);
    assert_eq!(tap.hear(by), []);
}

#[test]
fn d8_credit_10_then_4_then_12_reaches_the_other_side() {
    for (link, receiver) in LINKS {
        let mut tap = tap();
        for credit in [10, 4, 12, 0, 100, 1, u32::MAX, 0] {
            reaches(&mut tap, receiver, link, &[uint(0), uint(credit)]);
        }
    }
}

#[test]
fn d8_available_echo_drain_and_properties_reach_the_other_side() {
    let properties = encoded(&linkrouterd::amqp::value::Value::Map(vec![(
        wire::symbol("p"),
        wire::uint(1),
    )]));
    for (link, receiver) in LINKS {
        for by in [receiver, receiver.other()] {
            let mut tap = tap();
            for tail in [
                vec![
                    uint(1),
                    uint(2),
                    uint(3),
                    flag(false),
                    flag(true),
                    properties.clone(),
                ],
                vec![null(), uint(2), null(), flag(true)],
                vec![null(), null(), uint(u32::MAX), null(), null(), properties.clone()],
                vec![],
            ] {
                reaches(&mut tap, by, link, &tail);
            }
        }
    }
}

#[test]
fn d7_a_flow_of_the_sender_never_adds_to_the_credit() {
    for (link, receiver) in LINKS {
        let mut tap = tap();
        for _ in 0..3 {
            reaches(&mut tap, receiver, link, &[uint(0), uint(3)]);
            reaches(&mut tap, receiver.other(), link, &[uint(0), uint(3), uint(50)]);
            reaches(&mut tap, receiver, link, &[uint(0), uint(3)]);
        }
    }
}

#[test]
fn delivery_counts_wrap() {
    for (link, receiver) in LINKS {
        let mut tap = tap();
        let sender = receiver.other();
        for number in 0..4u32 {
            let count = 0xffff_fffeu32.wrapping_add(number);
            reaches(&mut tap, receiver, link, &[uint(count), uint(1)]);
            tap.transfer(
                sender,
                link,
                &[uint(number), binary(b"t"), uint(0), flag(true)],
                b"m",
            );
            assert_eq!(
                tap.hear_links(receiver).first().and_then(|f| f.uint(1)),
                Some(number)
            );
            tap.hear(sender);
            reaches(&mut tap, sender, link, &[uint(count.wrapping_add(1)), uint(0)]);
        }
        // Drained across the wrap.
        reaches(
            &mut tap,
            receiver,
            link,
            &[uint(2), uint(u32::MAX), null(), flag(true)],
        );
        reaches(&mut tap, sender, link, &[uint(1), uint(0), null(), flag(true)]);
    }
}

#[test]
fn a_sessions_flow_goes_no_further_and_its_echo_is_answered_here() {
    for end in [End::Device, End::Hub] {
        for echo in [true, false] {
            let mut tap = tap();
            let numbers = [uint(0), uint(77), uint(0), uint(5)];
            let fields = [
                &numbers[..],
                &[null(), null(), null(), null(), null(), flag(echo)],
            ]
            .concat();
            tap.say(end, &Frame::new(0, wire::FLOW, fields));
            assert_eq!(tap.hear(end.other()), []);
            let answers = tap.hear(end);
            assert_eq!(answers.len(), usize::from(echo));
            for answer in answers {
                assert_eq!((answer.raw(4), answer.uint(0)), (NULL, Some(0)));
                assert!(answer.uint(1).is_some_and(|window| window > 0 && window != 77));
            }
        }
    }
}

#[test]
fn an_echo_on_a_link_is_answered_by_the_other_end_and_by_nobody_else() {
    for (link, receiver) in LINKS {
        for by in [receiver, receiver.other()] {
            let mut tap = tap();
            reaches(
                &mut tap,
                by,
                link,
                &[uint(0), uint(5), null(), null(), flag(true)],
            );
            reaches(&mut tap, by.other(), link, &[uint(0), uint(5), uint(1)]);
        }
    }
}

#[test]
fn the_session_window_of_one_side_is_nothing_to_the_other() {
    let mut tap = tap();
    // The device announces a window and ids of its own with a link's flow; the hub hears the router's.
    let fields = [
        uint(0),
        uint(3),
        uint(0),
        uint(9),
        uint(handle(End::Device, DOWN)),
        uint(0),
        uint(1),
    ];
    tap.say(End::Device, &Frame::new(0, wire::FLOW, fields.to_vec()));
    let heard = tap.hear_one(End::Hub);
    assert_eq!(
        (heard.uint(0), heard.uint(2), heard.uint(3)),
        (Some(0), Some(0), Some(u32::MAX))
    );
    assert!(heard.uint(1).is_some_and(|window| window > 3));
    // Frames that the hub has sent are counted towards the hub alone.
    for number in 0..2 {
        tap.transfer(
            End::Hub,
            DOWN,
            &[uint(number), binary(b"t"), uint(0), flag(true)],
            b"m",
        );
    }
    tap.hear(End::Hub);
    tap.hear(End::Device);
    tap.flow(End::Device, DOWN, &[uint(2), uint(1)]);
    assert_eq!(tap.hear_one(End::Hub).uint(0), Some(2));
    tap.flow(End::Hub, UP, &[uint(0), uint(1)]);
    let heard = tap.hear_one(End::Device);
    assert_eq!((heard.uint(0), heard.uint(2)), (Some(0), Some(2)));
}

// ---- what went wrong in qdrouterd: credit and drain --------------------------------------------------------------

/// A drain of this link and its answer, which cross the router one after the other.
fn drain(tap: &mut Tap, link: u32, receiver: End, count: u32, credit: u32) {
    reaches(
        tap,
        receiver,
        link,
        &[uint(count), uint(credit), null(), flag(true)],
    );
    let given_back = count.wrapping_add(credit);
    reaches(
        tap,
        receiver.other(),
        link,
        &[uint(given_back), uint(0), null(), flag(true)],
    );
}

#[test]
fn regression_341_a_drain_is_answered_by_the_sender_not_by_the_router() {
    for (link, receiver) in LINKS {
        let mut tap = tap();
        let drain = [uint(0), uint(10), null(), flag(true)];
        reaches(&mut tap, receiver, link, &drain);
        // The sender uses three of the ten, then gives back the rest: in this order.
        for number in 0..3 {
            tap.transfer(
                receiver.other(),
                link,
                &[uint(number), binary(b"t"), uint(0), flag(true)],
                b"m",
            );
        }
        tap.flow(receiver.other(), link, &[uint(10), uint(0), null(), flag(true)]);
        let codes: Vec<u64> = tap.hear_links(receiver).iter().map(|frame| frame.code).collect();
        assert_eq!(
            codes,
            [wire::TRANSFER, wire::TRANSFER, wire::TRANSFER, wire::FLOW]
        );
    }
}

#[test]
fn regression_1055_credit_given_after_a_drain_is_passed_on() {
    for (link, receiver) in LINKS {
        let mut tap = tap();
        drain(&mut tap, link, receiver, 0, 10);
        for credit in [1, 10, 3] {
            reaches(&mut tap, receiver, link, &[uint(10), uint(credit)]);
        }
    }
}

#[test]
fn regression_1496_a_second_drain_carries_the_credit_that_is_outstanding() {
    for (link, receiver) in LINKS {
        let mut tap = tap();
        drain(&mut tap, link, receiver, 0, 1000);
        drain(&mut tap, link, receiver, 1000, 1000);
        drain(&mut tap, link, receiver, 2000, 1);
    }
}

#[test]
fn regression_1287_nothing_is_pending_once_the_sender_says_drained() {
    for (link, receiver) in LINKS {
        let mut tap = tap();
        reaches(&mut tap, receiver, link, &[uint(0), uint(5)]);
        drain(&mut tap, link, receiver, 0, 5);
        // The next grant is what it says, not what was left over.
        reaches(&mut tap, receiver, link, &[uint(5), uint(2)]);
        assert_eq!((tap.hear(End::Device), tap.hear(End::Hub)), (vec![], vec![]));
    }
}

#[test]
fn regression_1194_credit_said_in_one_breath_with_the_attach_is_passed_on_once() {
    let mut world = World::new(settings());
    world.hub = None;
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "down", false, "devices/d1");
    world.peer(device).grant(0, 0, 7);
    world.peer(device).grant(0, 0, 5);
    world.run();
    let hub = world.answer_dial(HUB_AUTO, Announces::default());
    world.run();
    let flows: Vec<_> = world
        .peer(hub)
        .log
        .iter()
        .filter(|frame| frame.code == wire::FLOW && frame.uint(4).is_some())
        .map(|frame| frame.uint(6))
        .collect();
    assert_eq!(flows, [Some(5)], "the last word, once");
    // With a hub that is there already, at once and before its answer.
    let mut tap = tap();
    let mut bytes = attach("third", 2, false).bytes(Form::default());
    let fields = [uint(0), uint(9), uint(0), uint(9), uint(2), null(), uint(9)];
    bytes.extend(Frame::new(0, wire::FLOW, fields.to_vec()).bytes(Form::default()));
    tap.say_bytes(End::Device, &bytes);
    let heard = tap.hear(End::Hub);
    let [attach, flow] = heard.as_slice() else {
        panic!("{heard:?}")
    };
    assert_eq!((attach.code, attach.uint(1)), (wire::ATTACH, Some(2)));
    assert_eq!(
        (flow.code, flow.uint(4), flow.tail(5)),
        (wire::FLOW, Some(2), [null(), uint(9)].as_slice())
    );
}

/// A receiver may give credit because of it (AMQP 1.0 part 2, §2.6.7, available).
#[test]
fn what_a_sender_says_is_available_before_the_hub_is_there_is_passed_on() {
    let mut world = World::new(settings());
    world.hub = None;
    let device = world.device("dev");
    let peer = world.peer(device);
    peer.attach(0, 0, "up", true, "devices/d1");
    for available in [1, 3] {
        let fields = [0, 9, 0, 9, 0, 0, 0, available].map(wire::uint);
        peer.say(&wire::Frame::new(0, wire::FLOW, fields.to_vec()));
    }
    world.run();
    let hub = world.answer_dial(HUB_AUTO, Announces::default());
    world.run();
    let flows = world
        .peer(hub)
        .log
        .iter()
        .filter(|frame| frame.code == wire::FLOW);
    let available: Vec<_> = flows.map(|frame| frame.uint(7)).collect();
    assert_eq!(available, [Some(3)]);
}

#[test]
fn regression_458_a_receiver_that_gives_one_credit_at_a_time_gets_all() {
    for (receiver_is_device, window) in [(true, 1), (true, 2048), (false, 1), (false, 2048)] {
        let one = Announces {
            window,
            ..Announces::default()
        };
        let mut world = World::new(settings());
        let (mut device_auto, mut hub_auto) = (DEVICE_AUTO, HUB_AUTO);
        (device_auto.credit, hub_auto.credit) = (1, 1);
        world.hub = Some((hub_auto, one));
        let device = world.device_with("dev", device_auto, one);
        world
            .peer(device)
            .attach(0, 0, "link", !receiver_is_device, "devices/d1");
        if receiver_is_device {
            world.peer(device).grant(0, 0, 1);
        }
        world.run();
        let hub = world.hub_id();
        let (channel, handle) = world
            .peer(hub)
            .find("link@dev", receiver_is_device)
            .expect("a link");
        let (sender, receiver) = match receiver_is_device {
            true => ((hub, channel, handle), (device, 0, 0)),
            false => ((device, 0, 0), (hub, channel, handle)),
        };
        for _ in 0..500 {
            world.peer(sender.0).send(sender.1, sender.2, b"m", true);
            world.run();
        }
        assert_eq!(
            world.peer(receiver.0).link(receiver.1, receiver.2).received.len(),
            500
        );
    }
}

#[test]
fn regression_519_nothing_is_rejected_here_so_no_credit_is_lost() {
    for (link, receiver) in LINKS {
        let mut tap = tap();
        let sender = receiver.other();
        // What qdrouterd rejects by itself: long tags, empty payloads, garbage.
        for (number, tag, payload) in [
            (0, vec![1; 40], &b"m"[..]),
            (1, vec![2], &b""[..]),
            (2, vec![3], &b"\xff\xff"[..]),
        ] {
            tap.transfer(sender, link, &[uint(number), binary(&tag)], payload);
            let heard = tap.hear_links(receiver);
            assert_eq!(
                heard
                    .iter()
                    .map(|f| (f.code, f.payload.clone()))
                    .collect::<Vec<_>>(),
                [(wire::TRANSFER, payload.to_vec())]
            );
        }
        assert_eq!(
            tap.hear_links(sender),
            [],
            "no disposition, no flow of the router's own"
        );
    }
}

#[test]
fn regression_1325_what_comes_before_any_credit_waits_and_is_not_lost() {
    let mut world = World::new(settings());
    let device = world.device("dev");
    world.peer(device).attach(0, 0, "up", true, "devices/d1");
    world.run();
    let (channel, handle) = world.hub().find("up@dev", false).expect("a receiver");
    for number in 0..3 {
        world
            .peer(device)
            .say_transfer(0, 0, Some((number, number)), true, false, b"m");
    }
    world.run();
    assert!(world.hub().link(channel, handle).received.is_empty());
    // Credit of none is none.
    world.hub().grant(channel, handle, 0);
    world.run();
    assert!(world.hub().link(channel, handle).received.is_empty());
    world.hub().grant(channel, handle, 3);
    world.run();
    assert_eq!(world.hub().link(channel, handle).received.len(), 3);
}

#[test]
fn regression_1322_credit_of_one_link_does_not_starve_another() {
    let mut p = tunnel();
    // `up` has all the credit there is and uses none of it; a second link of the session is served all the same.
    p.world.peer(p.hub).grant(p.up.0, p.up.1, u32::MAX / 2);
    p.world
        .peer(p.device)
        .attach(0, 2, "second", true, "devices/d1/second");
    p.world.run();
    let (channel, second) = p.world.peer(p.hub).find("second@dev", false).expect("a receiver");
    for number in 0..50 {
        p.world.peer(p.hub).grant(channel, second, 1);
        p.world.peer(p.device).send(0, 2, b"m", true);
        p.world.run();
        assert_eq!(
            p.world.peer(p.hub).link(channel, second).received.len(),
            number + 1
        );
    }
}
