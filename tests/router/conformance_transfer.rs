//! Transfers: every field, any tag, any frames; the payload byte for byte.

use linkrouterd::amqp::value::Value;

use crate::tap::{DOWN, End, Frame, Side, Tap, UP, binary, encoded, flag, linked, null, uint};
use crate::wire::{self, described};
use crate::world::settings;

pub(crate) fn tap() -> Tap {
    linked(Side::default(), Side::default())
}

pub(crate) fn small() -> Tap {
    let side = Side {
        max_frame_size: 512,
        ..Side::default()
    };
    linked(side, side)
}

/// Each link with the end that sends on it.
pub(crate) const LINKS: [(u32, End); 2] = [(UP, End::Device), (DOWN, End::Hub)];

/// A transfer, from its delivery-id on, reaches the other end as it is; ids of both sides start at 0 in these tests.
#[track_caller]
pub(crate) fn reaches(tap: &mut Tap, sender: End, link: u32, tail: &[Vec<u8>], payload: &[u8]) {
    tap.transfer(sender, link, tail, payload);
    let heard = tap.hear_links(sender.other());
    let [transfer] = heard.as_slice() else {
        panic!("{heard:?}")
    };
    assert_eq!((transfer.code, transfer.uint(0)), (wire::TRANSFER, Some(link)));
    assert_eq!(transfer.tail(1), tail);
    assert_eq!(transfer.payload, payload);
    assert_eq!(tap.hear_links(sender), []);
}

/// Settles at the receiver, and the sender hears of it: the delivery is known on both sides.
#[track_caller]
pub(crate) fn is_known(tap: &mut Tap, sender: End, id: u32) {
    let accepted = encoded(&described(wire::ACCEPTED, vec![]));
    let fields = vec![flag(true), uint(id), null(), flag(true), accepted];
    let receiver = sender.other();
    tap.say(
        receiver,
        &Frame::new(tap.channel(receiver), wire::DISPOSITION, fields.clone()),
    );
    let heard = tap.hear_links(sender);
    assert_eq!(
        heard.iter().map(|f| f.fields.clone()).collect::<Vec<_>>(),
        [fields]
    );
}

#[test]
fn d1_message_format_0x80013700_is_carried_both_ways() {
    for (link, sender) in LINKS {
        let mut tap = tap();
        for (id, message_format) in (0..).zip([0x8001_3700u32, 0, 1, u32::MAX, 0x8001_3700]) {
            reaches(
                &mut tap,
                sender,
                link,
                &[uint(id), binary(b"t"), uint(message_format)],
                b"batch",
            );
        }
    }
}

#[test]
fn d25_delivery_tags_of_any_length_are_carried() {
    for (link, sender) in LINKS {
        let mut tap = tap();
        for (id, length) in (0..).zip([0usize, 1, 32, 33, 36, 255, 256, 10_000]) {
            let tag: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            reaches(
                &mut tap,
                sender,
                link,
                &[uint(id), binary(&tag), uint(0), null(), flag(false)],
                b"payload",
            );
            is_known(&mut tap, sender, id);
        }
    }
}

#[test]
fn d25_a_tag_that_no_frame_of_the_receiver_holds_costs_its_link_alone() {
    for (link, sender) in LINKS {
        let mut tap = small();
        reaches(&mut tap, sender, link, &[uint(0), binary(&[7; 255])], b"fits");
        tap.transfer(sender, link, &[uint(1), binary(&[7; 600])], b"does not");
        for end in [sender, sender.other()] {
            let detach = tap.hear_links(end);
            assert_eq!(
                detach.iter().map(|f| (f.code, f.uint(0))).collect::<Vec<_>>(),
                [(wire::DETACH, Some(link))]
            );
            let error = detach.first().expect("one").value(2);
            assert_eq!(wire::condition(&error), Some("amqp:frame-size-too-small"));
        }
        let (other, sender) = if link == UP {
            (DOWN, End::Hub)
        } else {
            (UP, End::Device)
        };
        reaches(
            &mut tap,
            sender,
            other,
            &[uint(0), binary(b"t")],
            b"the other link lives",
        );
    }
}

#[test]
fn settled_is_carried_on_whichever_frame_it_is() {
    for (link, sender) in LINKS {
        let mut tap = tap();
        for (id, settled) in (0..).zip([
            [None, None, Some(true)],
            [None, Some(true), None],
            [Some(true), None, None],
            [Some(true), Some(true), Some(true)],
            [Some(false), Some(false), Some(true)],
            [Some(false), None, None],
        ]) {
            for (place, settled) in settled.iter().enumerate() {
                let settled = settled.map_or_else(null, flag);
                let number = if place == 0 { uint(id) } else { null() };
                let tag = if place == 0 { binary(b"t") } else { null() };
                reaches(
                    &mut tap,
                    sender,
                    link,
                    &[number, tag, null(), settled, flag(place < 2)],
                    b"part",
                );
            }
        }
    }
}

#[test]
fn rcv_settle_mode_state_resume_and_batchable_are_carried() {
    let transactional = described(
        0x34,
        vec![Value::Binary(vec![1; 16]), described(wire::ACCEPTED, vec![])],
    );
    let unknown = Value::Described(
        Box::new(wire::symbol("private:state:map")),
        Box::new(Value::Map(vec![(wire::symbol("k"), Value::Float(1.5))])),
    );
    let received = described(0x23, vec![wire::uint(3), Value::Ulong(400)]);
    for (link, sender) in LINKS {
        let mut tap = tap();
        let mut id = 0;
        for state in [
            Value::Null,
            transactional.clone(),
            unknown.clone(),
            received.clone(),
            described(0x33, vec![]),
        ] {
            for (mode, resume, batchable) in [(0u8, true, false), (1, false, true)] {
                let tail = [
                    uint(id),
                    binary(b"t"),
                    uint(0),
                    flag(false),
                    flag(false),
                    encoded(&Value::Ubyte(mode)),
                    encoded(&state),
                    flag(resume),
                    flag(false),
                    flag(batchable),
                ];
                reaches(&mut tap, sender, link, &tail, b"m");
                is_known(&mut tap, sender, id);
                id += 1;
            }
        }
    }
}

/// The fields of a transfer from its delivery-id on.
pub(crate) fn frame(id: Option<u32>, settled: Option<bool>, more: bool, aborted: bool) -> Vec<Vec<u8>> {
    vec![
        id.map_or_else(null, uint),
        if id.is_some() { binary(b"t") } else { null() },
        null(),
        settled.map_or_else(null, flag),
        flag(more),
        null(),
        null(),
        null(),
        flag(aborted),
    ]
}

#[test]
fn an_abort_is_carried_on_whichever_frame_it_is_and_the_next_delivery_is_whole() {
    for (link, sender) in LINKS {
        let mut tap = tap();
        let mut id = 0;
        for frames in 1..4 {
            for settled in [None, Some(true)] {
                for place in 0..frames {
                    let (is_first, is_last) = (place == 0, place + 1 == frames);
                    let tail = frame(is_first.then_some(id), settled, !is_last, is_last);
                    reaches(&mut tap, sender, link, &tail, b"lost");
                }
                reaches(
                    &mut tap,
                    sender,
                    link,
                    &frame(Some(id + 1), None, true, false),
                    b"next, ",
                );
                reaches(&mut tap, sender, link, &frame(None, None, false, false), b"whole");
                is_known(&mut tap, sender, id + 1);
                id += 2;
            }
        }
    }
}

#[test]
fn an_abort_in_large_frames_is_one_small_frame() {
    for (link, sender) in LINKS {
        let mut tap = small();
        tap.transfer(sender, link, &frame(Some(0), None, true, false), &[1; 2000]);
        assert!(
            tap.hear_links(sender.other())
                .iter()
                .all(|f| f.flag(5) && !f.flag(9))
        );
        tap.transfer(sender, link, &frame(None, None, false, true), &[2; 2000]);
        let heard = tap.hear_links(sender.other());
        assert_eq!(
            heard.iter().map(|f| (f.flag(5), f.flag(9))).collect::<Vec<_>>(),
            [(false, true)]
        );
        reaches(
            &mut tap,
            sender,
            link,
            &frame(Some(1), None, false, false),
            b"next",
        );
        is_known(&mut tap, sender, 1);
    }
}

#[test]
fn continuations_need_neither_id_nor_tag_and_may_repeat_them() {
    for (link, sender) in LINKS {
        let mut tap = tap();
        for (id, repeats) in [(0, false), (1, true)] {
            let again = || repeats.then_some(id);
            reaches(
                &mut tap,
                sender,
                link,
                &frame(Some(id), None, true, false),
                b"one ",
            );
            reaches(
                &mut tap,
                sender,
                link,
                &frame(again(), None, true, false),
                b"two ",
            );
            reaches(
                &mut tap,
                sender,
                link,
                &frame(again(), None, false, false),
                b"three",
            );
        }
        // The shortest form there is.
        reaches(
            &mut tap,
            sender,
            link,
            &[uint(2), binary(b""), null(), null(), flag(true)],
            b"a",
        );
        reaches(&mut tap, sender, link, &[null()], b"b");
    }
}

/// A message with every section, annotations of all kinds among them.
pub(crate) fn message() -> Vec<u8> {
    let symbol_map = |descriptor: u64| {
        let entries = vec![
            (wire::symbol("x-opt-own"), wire::string("v")),
            (wire::symbol("x-opt-qd.trace"), Value::List(vec![])),
        ];
        Value::Described(Box::new(Value::Ulong(descriptor)), Box::new(Value::Map(entries)))
    };
    let mut out = Vec::new();
    described(0x70, vec![Value::Boolean(true), Value::Ubyte(9), wire::uint(5)]).encode(&mut out);
    symbol_map(0x71).encode(&mut out);
    symbol_map(0x72).encode(&mut out);
    described(0x73, vec![Value::Ulong(1)]).encode(&mut out);
    Value::Described(
        Box::new(Value::Ulong(0x75)),
        Box::new(Value::Binary(vec![0xfe; 5000])),
    )
    .encode(&mut out);
    symbol_map(0x78).encode(&mut out);
    out
}

/// All that came to an end of a delivery: the payload, and how many frames it was in.
pub(crate) fn gather(frames: &[Frame]) -> (Vec<u8>, usize) {
    (
        frames.iter().flat_map(|frame| frame.payload.clone()).collect(),
        frames.len(),
    )
}

#[test]
fn payloads_are_not_looked_at_and_arrive_byte_for_byte() {
    for (link, sender) in LINKS {
        for is_small in [false, true] {
            let mut tap = if is_small { small() } else { tap() };
            for (id, payload) in (0..).zip([
                message(),
                vec![0xff; 3000],
                b"\x00\x53\x75\xa0\xff".to_vec(),
                vec![],
            ]) {
                tap.transfer(sender, link, &[uint(id), binary(b"t")], &payload);
                let heard = tap.hear_links(sender.other());
                assert!(heard.iter().all(|frame| !is_small || frame.size <= 512));
                assert_eq!(gather(&heard).0, payload);
                is_known(&mut tap, sender, id);
            }
        }
    }
}

#[test]
fn deliveries_of_several_links_interleave_on_one_session() {
    for is_small in [false, true] {
        for device_sends in [true, false] {
            let side = Side {
                max_frame_size: if is_small { 512 } else { 65536 },
                ..Side::default()
            };
            let mut tap = Tap::new(settings(), side, side);
            let links = [0, 1, 2];
            for link in links {
                tap.link(link, &format!("link{link}"), device_sends);
            }
            let sender = if device_sends { End::Device } else { End::Hub };
            let mut came: [Vec<Frame>; 3] = Default::default();
            // Frames of 700 bytes, link by link in turn; the deliveries begin and end at different times.
            for turn in 0..12u32 {
                for (link, came) in links.iter().zip(&mut came) {
                    let (first, last) = (*link, 9 + *link);
                    if !(first..=last).contains(&turn) {
                        continue;
                    }
                    let payload = vec![u8::try_from(16 * link + turn).expect("small"); 700];
                    let id = (turn == first).then_some(*link);
                    tap.transfer(sender, *link, &frame(id, None, turn != last, false), &payload);
                    let heard = tap.hear_links(sender.other());
                    assert!(
                        heard.iter().all(|frame| frame.uint(0) == Some(*link)),
                        "{heard:?}"
                    );
                    assert_eq!(heard.len(), if is_small { 2 } else { 1 });
                    came.extend(heard);
                }
            }
            for (link, came) in links.iter().zip(&came) {
                let expected: Vec<u8> = (*link..=9 + link)
                    .flat_map(|turn| vec![u8::try_from(16 * link + turn).expect("small"); 700])
                    .collect();
                assert_eq!(gather(came).0, expected);
                // Ids in the order in which the deliveries began, each once; `more` on all frames but the last.
                assert_eq!(
                    came.iter().filter_map(|frame| frame.uint(1)).collect::<Vec<_>>(),
                    [*link]
                );
                assert_eq!(came.iter().position(|frame| !frame.flag(5)), Some(came.len() - 1));
                is_known(&mut tap, sender, *link);
            }
        }
    }
}

#[test]
fn delivery_ids_wrap_at_their_sender_and_begin_at_nought_here() {
    for (link, sender) in LINKS {
        let mut tap = tap();
        for number in 0..5u32 {
            let said = 0xffff_fffeu32.wrapping_add(number);
            tap.transfer(sender, link, &[uint(said), binary(b"t")], b"m");
            assert_eq!(
                tap.hear_links(sender.other()).first().and_then(|f| f.uint(1)),
                Some(number)
            );
        }
        // One disposition for all of them, across the wrap.
        let fields = vec![flag(true), uint(0), uint(4), flag(true)];
        tap.say(sender.other(), &Frame::new(0, wire::DISPOSITION, fields));
        let heard = tap.hear_links(sender);
        assert_eq!(
            heard.iter().map(|f| (f.uint(1), f.uint(2))).collect::<Vec<_>>(),
            [(Some(0xffff_fffe), Some(2))]
        );
    }
}

#[test]
fn d5_nothing_is_accepted_here_on_behalf_of_a_receiver() {
    for settle_mode in [0u8, 1, 2] {
        let mut tap = Tap::new(settings(), Side::default(), Side::default());
        let mut attach = crate::tap::attach("L", DOWN, false);
        *attach.fields.get_mut(3).expect("snd-settle-mode") = encoded(&Value::Ubyte(settle_mode));
        let heard = tap.attach(&attach, crate::tap::Form::default());
        assert_eq!(
            heard.value(3),
            Value::Ubyte(settle_mode),
            "the hub knows what the device asked for"
        );
        tap.answer(&heard, DOWN);
        tap.hear(End::Device);
        tap.flow(End::Device, DOWN, &[null(), uint(5)]);
        tap.hear(End::Hub);
        // The hub sends unsettled all the same: then unsettled it is, until the device has settled.
        let expected = [uint(0), binary(b"t"), uint(0), flag(false)];
        tap.transfer(End::Hub, DOWN, &expected, b"m");
        let at_device = tap.hear_links(End::Device);
        assert_eq!(
            at_device.first().map(|f| f.tail(1).to_vec()),
            Some(expected.to_vec())
        );
        assert_eq!(tap.hear_links(End::Hub), [], "no disposition before the device's");
        is_known(&mut tap, End::Hub, 0);
    }
}

#[test]
fn d6_modified_without_fields_stays_without_fields() {
    for (link, sender) in LINKS {
        let mut tap = tap();
        tap.transfer(sender, link, &[uint(0), binary(b"t")], b"m");
        tap.hear_links(sender.other());
        for modified in [
            described(wire::MODIFIED, vec![]),
            described(wire::MODIFIED, vec![Value::Boolean(false)]),
        ] {
            let fields = vec![flag(true), uint(0), null(), flag(false), encoded(&modified)];
            tap.say(sender.other(), &Frame::new(0, wire::DISPOSITION, fields.clone()));
            assert_eq!(
                tap.hear_links(sender).first().map(|f| f.fields.clone()),
                Some(fields)
            );
        }
    }
}

#[test]
fn d12_deliveries_in_doubt_get_an_outcome_when_the_hub_is_lost() {
    let mut tap = tap();
    for id in 0..3 {
        tap.transfer(
            End::Device,
            UP,
            &[uint(id), binary(b"t"), uint(0), flag(id == 1)],
            b"m",
        );
    }
    tap.hear(End::Hub);
    tap.lose_hub();
    let heard = tap.hear_links(End::Device);
    let settled: Vec<_> = heard
        .iter()
        .filter(|frame| frame.code == wire::DISPOSITION)
        .map(|f| (f.uint(1), f.uint(2), f.flag(3), wire::state_code(&f.value(4))))
        .collect();
    let modified = Some(wire::MODIFIED);
    assert_eq!(
        settled,
        [
            (Some(0), Some(0), true, modified),
            (Some(2), Some(2), true, modified)
        ]
    );
    // Before the links' detaches, or nobody would know them any more.
    let codes: Vec<u64> = heard.iter().map(|frame| frame.code).collect();
    assert_eq!(
        codes,
        [wire::DISPOSITION, wire::DISPOSITION, wire::DETACH, wire::DETACH]
    );
}
