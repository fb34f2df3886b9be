//! Peers whose frames are small: what is left out of what cannot be split, in which order, and what it costs at worst.

use linkrouterd::amqp::value::Value;

use crate::conformance_attach::{ADDRESS, map, only, symbols};
use crate::tap::{
    End, Form, Frame, HUB_HANDLES, NULL, Side, Tap, UP, attach, binary, encoded, flag, handle, linked, null,
    uint,
};
use crate::wire::{self, composite, condition, described, error};
use crate::world::settings;

fn small(max_frame_size: u32) -> Side {
    Side {
        max_frame_size,
        ..Side::default()
    }
}

/// The answer that a device with small frames hears to its sender `up`, when the hub says this from snd-settle-mode on.
fn answered_small(max_frame_size: u32, answer: &[Vec<u8>]) -> Vec<Frame> {
    let mut tap = Tap::new(settings(), small(max_frame_size), Side::default());
    let heard = tap.attach(&attach("up", 0, true), Form::default());
    let mut fields = vec![heard.raw(0).to_vec(), uint(3), flag(true)];
    fields.extend(answer.iter().cloned());
    tap.say(End::Hub, &Frame::new(0, wire::ATTACH, fields));
    let heard = tap.hear(End::Device);
    assert!(
        heard.iter().all(|frame| frame.size <= max_frame_size as usize),
        "{heard:?}"
    );
    heard
}

fn bulk(size: usize) -> Value {
    map(&[("bulk", wire::string(&"b".repeat(size)))])
}

#[test]
fn an_attach_that_just_fits_is_whole_and_one_byte_more_costs_the_properties_alone() {
    for max in [512, 1024] {
        let answer = |size| only(&[(8, symbols(&["offered"])), (10, bulk(size))]);
        let fitting = (0..max as usize)
            .rfind(|&size| {
                let heard = answered_small(max, &answer(size));
                heard.first().is_some_and(|frame| frame.tail(3) == answer(size))
            })
            .expect("some size");
        let whole = answered_small(max, &answer(fitting));
        assert_eq!(
            whole.first().map(|frame| frame.size),
            Some(max as usize),
            "nothing is lost too early"
        );
        let trimmed = answered_small(max, &answer(fitting + 1));
        let expected = answer(0).get(..10).expect("ten fields").to_vec();
        assert_eq!(
            trimmed.first().map(|frame| frame.tail(3).to_vec()),
            Some(expected)
        );
    }
}

#[test]
fn an_attach_loses_properties_then_unsettled_then_capabilities_then_the_echo() {
    let tags = |count: u8| {
        (0..count)
            .map(|n| (Value::Binary(vec![n; 32]), Value::Null))
            .collect()
    };
    let filler = |size: usize| encoded(&symbols(&[&"c".repeat(size)]));
    let with = |unsettled: u8, desired: usize, offered: usize, echo: usize| {
        let mut tail = only(&[(4, Value::Map(tags(unsettled))), (10, bulk(900))]);
        let long = described(
            0x28,
            vec![
                wire::string("here"),
                Value::Null,
                Value::Null,
                Value::Null,
                Value::Null,
                bulk(echo),
            ],
        );
        for (place, field) in [
            (2, encoded(&long)),
            (3, encoded(&wire::terminus(0x29, ADDRESS))),
            (8, filler(offered)),
            (9, filler(desired)),
        ] {
            *tail.get_mut(place).expect("a field") = field;
        }
        tail
    };
    let is_whole =
        |heard: &Frame, said: &[Vec<u8>], place: usize| heard.fields.get(place + 3) == said.get(place);
    let first = |said: &[Vec<u8>]| answered_small(512, said).remove(0);

    let said = with(3, 50, 50, 10);
    let heard = first(&said);
    assert!(
        [2, 3, 4, 5, 8, 9]
            .iter()
            .all(|&place| is_whole(&heard, &said, place)),
        "{heard:?}"
    );
    assert_eq!(heard.raw(13), NULL, "properties go first");

    let said = with(20, 50, 50, 10);
    let heard = first(&said);
    assert!(
        [2, 3, 8, 9].iter().all(|&place| is_whole(&heard, &said, place)),
        "{heard:?}"
    );
    let Value::Map(entries) = heard.value(7) else {
        panic!("no map: {heard:?}")
    };
    assert!((1..20).contains(&entries.len()), "as many as fit");
    let all: Vec<(Value, Value)> = tags(20);
    assert!(all.starts_with(&entries), "the first ones, whole");
    assert!(heard.flag(8), "and the map is said to be incomplete");

    let said = with(0, 420, 50, 10);
    let heard = first(&said);
    assert!(
        [2, 3, 4, 5, 8]
            .iter()
            .all(|&place| is_whole(&heard, &said, place)),
        "{heard:?}"
    );
    assert_eq!(heard.raw(12), NULL, "then what is desired");

    let said = with(0, 300, 420, 10);
    let heard = first(&said);
    assert!(
        [2, 3].iter().all(|&place| is_whole(&heard, &said, place)),
        "{heard:?}"
    );
    assert_eq!(
        (heard.raw(11), heard.raw(12)),
        (NULL, NULL),
        "then what is offered"
    );

    let said = with(0, 300, 300, 450);
    let heard = first(&said);
    assert!(
        is_whole(&heard, &said, 3),
        "the hub's own terminus is never touched: {heard:?}"
    );
    assert_eq!(
        heard.value(5),
        wire::terminus(0x28, "here"),
        "the echo keeps its address"
    );
}

#[test]
fn an_answer_that_no_frame_of_the_device_holds_refuses_the_link_on_both_sides_and_nothing_else() {
    for device_sends in [true, false] {
        let mut tap = Tap::new(settings(), small(512), Side::default());
        tap.link(5, "other", true);
        let heard = tap.attach(&attach("L", 6, device_sends), Form::default());
        let mut answer = heard.clone();
        answer.channel = 0;
        // The hub's own terminus, as long as this, cannot be left out.
        let (place, code) = if device_sends { (6, 0x29) } else { (5, 0x28) };
        for (place, field) in [
            (1, uint(6 + HUB_HANDLES)),
            (2, flag(device_sends)),
            (place, encoded(&wire::terminus(code, &"far/".repeat(200)))),
        ] {
            *answer.fields.get_mut(place).expect("a field") = field;
        }
        tap.say(End::Hub, &answer);
        let at_hub = tap.hear_one(End::Hub);
        assert_eq!(
            (at_hub.code, at_hub.uint(0), at_hub.flag(1)),
            (wire::DETACH, Some(1), true)
        );
        assert_eq!(condition(&at_hub.value(2)), Some("amqp:frame-size-too-small"));
        let at_device = tap.hear(End::Device);
        let [refused, detach] = at_device.as_slice() else {
            panic!("{at_device:?}")
        };
        assert_eq!(
            (refused.text(0).as_deref(), refused.raw(place)),
            (Some("L"), NULL)
        );
        assert_eq!((detach.code, detach.flag(1)), (wire::DETACH, true));
        assert_eq!(condition(&detach.value(2)), Some("amqp:frame-size-too-small"));
        // Both answer, and the other link lives on.
        for end in [End::Device, End::Hub] {
            tap.say(
                end,
                &Frame::new(0, wire::DETACH, vec![uint(handle(end, 6)), flag(true)]),
            );
        }
        tap.transfer(
            End::Device,
            5,
            &[uint(0), binary(b"t"), uint(0), flag(true)],
            b"alive",
        );
        assert_eq!(
            tap.hear_links(End::Hub).first().map(|f| f.payload.clone()),
            Some(b"alive".to_vec())
        );
        assert_eq!(tap.hear_links(End::Device), []);
        assert_eq!(tap.router.snapshot().link_pairs, 1);
        // The name is free again.
        assert_eq!(
            tap.attach(&attach("L", 6, device_sends), Form::default())
                .text(0)
                .as_deref(),
            Some("L@dev")
        );
    }
}

#[test]
fn an_attach_that_no_frame_of_the_hub_holds_is_refused_with_the_reason() {
    let mut tap = Tap::new(settings(), Side::default(), small(512));
    tap.link(0, "up", true);
    let mut long = attach("L", 1, true);
    *long.fields.get_mut(6).expect("a target") =
        encoded(&wire::terminus(0x29, &format!("devices/{}", "x".repeat(600))));
    tap.say(End::Device, &long);
    let heard = tap.hear(End::Device);
    let [refused, detach] = heard.as_slice() else {
        panic!("{heard:?}")
    };
    assert_eq!(refused.raw(6), NULL);
    assert_eq!(condition(&detach.value(2)), Some("amqp:frame-size-too-small"));
    assert_eq!(tap.hear(End::Hub), []);
    // What can be trimmed is trimmed, and its handle is not lost to the refused one.
    let mut long = attach("M", 2, true);
    long.fields.resize(13, null());
    long.fields.push(encoded(&bulk(600)));
    let heard = tap.attach(&long, Form::default());
    assert_eq!(
        (heard.uint(1), heard.text(0).as_deref()),
        (Some(1), Some("M@dev"))
    );
    assert!(heard.size <= 512 && heard.raw(13) == NULL);
}

#[test]
fn a_name_that_no_frame_of_the_device_can_answer_ends_its_session_alone() {
    let mut tap = linked(small(512), Side::default());
    let begin = vec![null(), uint(0), uint(1000), uint(1000)];
    tap.say(End::Device, &Frame::new(1, wire::BEGIN, begin));
    tap.hear_one(End::Device);
    let mut long = attach(&"n".repeat(600), 0, true);
    long.channel = 1;
    tap.say(End::Device, &long);
    let end = tap.hear_one(End::Device);
    assert_eq!(end.code, wire::END);
    assert_eq!(condition(&end.value(0)), Some("amqp:frame-size-too-small"));
    tap.transfer(
        End::Device,
        UP,
        &[uint(0), binary(b"t"), uint(0), flag(true)],
        b"alive",
    );
    assert_eq!(
        tap.hear_links(End::Hub).first().map(|f| f.payload.clone()),
        Some(b"alive".to_vec())
    );
    // One that just can be answered is refused, or attached, like any other.
    let mut tap = Tap::new(settings(), small(512), Side::default());
    let mut refused = attach(&"n".repeat(470), 0, true);
    *refused.fields.get_mut(6).expect("a target") = encoded(&wire::terminus(0x29, "nowhere"));
    tap.say(End::Device, &refused);
    let heard = tap.hear(End::Device);
    assert_eq!(
        heard.iter().map(|f| f.code).collect::<Vec<_>>(),
        [wire::ATTACH, wire::DETACH]
    );
    assert!(heard.iter().all(|frame| frame.size <= 512), "{heard:?}");
}

#[test]
fn what_is_not_an_attach_is_cut_for_small_frames_and_keeps_what_matters() {
    for max in [512, 1024] {
        let mut tap = linked(small(max), Side::default());
        tap.transfer(End::Device, UP, &[uint(0), binary(b"t")], b"m");
        tap.hear_links(End::Hub);
        let mut check = |frame: Frame| {
            tap.say(End::Hub, &frame);
            let heard = tap
                .hear(End::Device)
                .into_iter()
                .find(|f| f.code != wire::FLOW || f.raw(4) != NULL);
            let heard = heard.expect("a frame");
            assert!(heard.size <= max as usize, "{heard:?}");
            assert_eq!((heard.code, heard.fields.len()), (frame.code, frame.fields.len()));
            heard
        };
        // A flow loses its properties.
        let numbers = [uint(0), uint(100), uint(0), uint(100), uint(handle(End::Hub, UP))];
        let tail = [uint(5), uint(6), uint(7), flag(true), flag(true)];
        let flow = [&numbers[..], &tail[..], &[encoded(&bulk(2000))]].concat();
        let heard = check(Frame::new(0, wire::FLOW, flow));
        assert_eq!(
            (heard.fields.get(5..10), heard.raw(10)),
            (Some(tail.as_slice()), NULL)
        );
        // A transactional state keeps its transaction, and an outcome as much of its error as fits.
        let outcome = described(
            wire::REJECTED,
            vec![error("my:condition", &"d".repeat(3000), bulk(3000))],
        );
        let state = described(0x34, vec![Value::Binary(vec![9; 32]), outcome]);
        let disposition = vec![flag(true), uint(0), null(), flag(false), encoded(&state)];
        let heard = check(Frame::new(0, wire::DISPOSITION, disposition));
        let state = heard.value(4);
        let (code, fields) = composite(&state).expect("a state");
        assert_eq!((code, fields.first()), (0x34, Some(&Value::Binary(vec![9; 32]))));
        let (code, fields) = composite(fields.get(1).expect("an outcome")).expect("an outcome");
        assert_eq!(
            (code, condition(fields.first().expect("an error"))),
            (wire::REJECTED, Some("my:condition"))
        );
        // A description in JSON is cut between its escapes.
        let text = format!("{{\"m\":\"{}\"}}", "\\u00e4\\\"".repeat(500));
        let detach = vec![
            uint(handle(End::Hub, UP)),
            flag(false),
            encoded(&error("amqp:x", &text, bulk(9))),
        ];
        let heard = check(Frame::new(0, wire::DETACH, detach));
        let error = heard.value(2);
        let (_, fields) = composite(&error).expect("an error");
        let cut = fields.get(1).and_then(Value::as_text).expect("a description");
        assert!(text.starts_with(cut) && cut.len() > max as usize / 2);
        assert_eq!((cut.len() - "{\"m\":\"".len()) % 8 % 6, 0, "{cut}");
        assert!(!heard.flag(1));
        let end = vec![encoded(&wire::error("amqp:y", &text, Value::Null))];
        tap.say(End::Hub, &Frame::new(0, wire::END, end.clone()));
        tap.say(End::Hub, &Frame::new(0, wire::CLOSE, end));
        assert!(
            tap.hear(End::Device)
                .iter()
                .all(|frame| frame.size <= max as usize)
        );
    }
}
