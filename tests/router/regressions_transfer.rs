//! What went wrong in qdrouterd over the years with transfers, tags and settlement; each test has the number of its report.

use linkrouterd::amqp::value::Value;

use crate::conformance_transfer::{LINKS, frame, gather, is_known, message, reaches, small, tap};
use crate::tap::{
    DOWN, End, Frame, NULL, Side, Tap, UP, binary, encoded, flag, handle, linked_with, null, uint,
};
use crate::wire::{self, described};
use crate::world::settings;

#[test]
fn regression_237_the_tag_arrives_as_it_was_sent() {
    for (link, sender) in LINKS {
        let mut tap = tap();
        // Two deliveries in flight with one tag are between the two ends.
        for (id, tag) in [(0, b"same"), (1, b"same"), (2, b"\0\0\0\0")] {
            reaches(&mut tap, sender, link, &[uint(id), binary(tag)], b"m");
        }
    }
}

#[test]
fn regression_1488_states_with_equal_codes_are_each_carried_with_their_own_fields() {
    for (link, sender) in LINKS {
        let mut tap = tap();
        tap.transfer(sender, link, &[uint(0), binary(b"t")], b"m");
        tap.hear_links(sender.other());
        for section in [1, 2, 2, 3] {
            let states = [
                described(0x23, vec![wire::uint(section), Value::Ulong(8)]),
                described(0x34, vec![Value::Binary(vec![section as u8]), Value::Null]),
                Value::Described(Box::new(Value::Ulong(0xbeef)), Box::new(wire::uint(section))),
            ];
            for state in states {
                let fields = vec![flag(true), uint(0), null(), flag(false), encoded(&state)];
                tap.say(sender.other(), &Frame::new(0, wire::DISPOSITION, fields.clone()));
                assert_eq!(
                    tap.hear_links(sender).first().map(|f| f.fields.clone()),
                    Some(fields)
                );
            }
        }
    }
}

#[test]
fn regression_343_a_presettled_delivery_of_many_frames_is_settled_on_all_of_them_and_never_acknowledged_here()
{
    for (link, sender) in LINKS {
        let mut tap = small();
        for (id, more) in [(Some(0), true), (None, true), (None, false)] {
            tap.transfer(sender, link, &frame(id, Some(true), more, false), &[5; 1500]);
            let heard = tap.hear_links(sender.other());
            assert!(heard.len() > 2 && heard.iter().all(|frame| frame.flag(4)));
            assert_eq!(tap.hear_links(sender), []);
        }
    }
}

#[test]
fn regression_235_the_settle_mode_that_a_receiver_asks_for_reaches_the_sender() {
    // The device receives: its attach; the hub receives: its answer.
    let mut tap = Tap::new(settings(), Side::default(), Side::default());
    let mut asks = crate::tap::attach("L", DOWN, false);
    *asks.fields.get_mut(3).expect("snd-settle-mode") = encoded(&Value::Ubyte(1));
    assert_eq!(
        tap.attach(&asks, crate::tap::Form::default()).value(3),
        Value::Ubyte(1)
    );
    let mut heard = tap.attach(&crate::tap::attach("M", UP, true), crate::tap::Form::default());
    *heard.fields.get_mut(3).expect("snd-settle-mode") = encoded(&Value::Ubyte(0));
    tap.answer(&heard, UP);
    assert_eq!(tap.hear_one(End::Device).value(3), Value::Ubyte(0));
}

#[test]
fn regression_767_frames_of_a_large_message_leave_before_the_last_has_come() {
    for (link, sender) in LINKS {
        let mut tap = tap();
        for place in 0..500 {
            let id = (place == 0).then_some(0);
            reaches(
                &mut tap,
                sender,
                link,
                &frame(id, None, place < 499, false),
                &[9; 8000],
            );
            assert_eq!(tap.router.snapshot().buffered_bytes(), 0, "nothing is collected");
        }
    }
}

#[test]
fn regression_1223_frames_with_more_are_one_delivery() {
    for (link, sender) in LINKS {
        let mut tap = tap();
        for place in 0..10 {
            let id = (place == 0).then_some(0);
            reaches(
                &mut tap,
                sender,
                link,
                &frame(id, None, place < 9, false),
                b"part",
            );
        }
        // The next delivery has the next id, and one disposition settles the ten frames.
        reaches(&mut tap, sender, link, &frame(Some(1), None, false, false), b"m");
        is_known(&mut tap, sender, 0);
        is_known(&mut tap, sender, 1);
    }
}

#[test]
fn regression_992_a_sender_that_detaches_in_the_middle_of_a_delivery_aborts_it_once() {
    for (link, sender) in LINKS {
        let mut tap = tap();
        reaches(
            &mut tap,
            sender,
            link,
            &frame(Some(0), None, true, false),
            b"half",
        );
        let fields = vec![uint(handle(sender, link)), flag(true)];
        tap.say(sender, &Frame::new(0, wire::DETACH, fields));
        let heard = tap.hear_links(sender.other());
        let [abort, detach] = heard.as_slice() else {
            panic!("{heard:?}")
        };
        assert_eq!(
            (abort.code, abort.flag(9), abort.flag(4)),
            (wire::TRANSFER, true, true)
        );
        assert_eq!(detach.code, wire::DETACH);
    }
}

#[test]
fn regression_1988_transfers_without_a_byte_are_carried_in_one_frame_or_several() {
    for (link, sender) in LINKS {
        let mut tap = tap();
        reaches(&mut tap, sender, link, &frame(Some(0), None, false, false), b"");
        for (id, more) in [(Some(1), true), (None, true), (None, false)] {
            reaches(&mut tap, sender, link, &frame(id, None, more, false), b"");
        }
        reaches(
            &mut tap,
            sender,
            link,
            &frame(Some(2), None, false, false),
            b"good",
        );
        for id in 0..3 {
            is_known(&mut tap, sender, id);
        }
    }
}

#[test]
fn regression_566_annotations_of_a_message_are_neither_stripped_nor_added() {
    for (link, sender) in LINKS {
        reaches(&mut tap(), sender, link, &[uint(0), binary(b"t")], &message());
    }
}

#[test]
fn regression_1136_a_presettled_delivery_under_way_is_not_dropped_when_the_window_closes() {
    for (link, sender) in LINKS {
        let narrow = Side {
            max_frame_size: 512,
            incoming_window: 2,
            ..Side::default()
        };
        let mut settings = settings();
        settings.linger = std::time::Duration::from_secs(600);
        let mut tap = match sender {
            End::Device => linked_with(settings, Side::default(), narrow),
            End::Hub => linked_with(settings, narrow, Side::default()),
        };
        let payload: Vec<u8> = (0..6000u32).map(|at| (at % 253) as u8).collect();
        // The flows that granted credit have opened the window; this one closes it but for two frames.
        let receiver = sender.other();
        let numbers = [uint(0), uint(2), uint(0), uint(9)];
        tap.say(receiver, &Frame::new(0, wire::FLOW, numbers.to_vec()));
        tap.transfer(sender, link, &frame(Some(0), Some(true), false, false), &payload);
        let mut came = tap.hear_links(receiver);
        assert_eq!(came.len(), 2, "as many as the window allows");
        for round in 1.. {
            let numbers = [uint(2 * round), uint(2), uint(0), uint(9)];
            tap.say(receiver, &Frame::new(0, wire::FLOW, numbers.to_vec()));
            let more = tap.hear_links(receiver);
            if more.is_empty() {
                break;
            }
            came.extend(more);
        }
        assert_eq!(gather(&came).0, payload);
        assert!(came.iter().all(|frame| frame.flag(4)));
        assert_eq!(
            came.last().map(|frame| frame.raw(5) == NULL || !frame.flag(5)),
            Some(true)
        );
    }
}
