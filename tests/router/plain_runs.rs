//! A run of plain transfers comes out as if the router had asked for each of them: what it does while its frames are shown,
//! when it takes them one by one.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::said_in_log::Said;
use crate::tap::{DOWN, End, Form, Frame, Side, Tap, UP, binary, flag, handle, linked, null, uint};
use crate::wire;

/// What a peer does.
#[derive(Clone, Debug)]
enum Deed {
    /// Deliveries on one link, said at once, but for a cut somewhere in their bytes.
    Deliveries {
        by: End,
        deliveries: Vec<Delivery>,
        cut: prop::sample::Index,
    },
    /// An end tells how many frames it may be sent from now on.
    Window { by: End, frames: u32 },
}

#[derive(Clone, Debug)]
struct Delivery {
    pieces: Vec<Vec<u8>>,
    settled: Option<bool>,
    is_aborted: bool,
    is_wide: bool,
    /// Fields behind `more`.
    extra: usize,
}

fn delivery() -> impl Strategy<Value = Delivery> {
    let payload = prop_oneof![
        6 => vec(any::<u8>(), 0..60),
        1 => vec(any::<u8>(), 500..1500),
    ];
    let pieces = prop_oneof![
        6 => payload.clone().prop_map(|piece| vec![piece]),
        1 => vec(payload, 2..4),
    ];
    let is_aborted = prop_oneof![9 => Just(false), 1 => Just(true)];
    (
        pieces,
        any::<Option<bool>>(),
        is_aborted,
        any::<bool>(),
        0..6usize,
    )
        .prop_map(|(pieces, settled, is_aborted, is_wide, extra)| Delivery {
            pieces,
            settled,
            is_aborted,
            is_wide,
            extra,
        })
}

fn an_end() -> impl Strategy<Value = End> {
    prop_oneof![Just(End::Device), Just(End::Hub)]
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        3 => (an_end(), vec(delivery(), 1..12), any::<prop::sample::Index>())
            .prop_map(|(by, deliveries, cut)| Deed::Deliveries { by, deliveries, cut }),
        1 => (an_end(), 0..20u32).prop_map(|(by, frames)| Deed::Window { by, frames }),
    ]
}

fn link_of(sender: End) -> u32 {
    match sender {
        End::Device => UP,
        End::Hub => DOWN,
    }
}

/// Everything that both ends have heard in the end, but for the router's own news of its windows.
fn heard(sides: [Side; 2], deeds: &[Deed]) -> [Vec<Frame>; 2] {
    let mut tap = linked(sides[0], sides[1]);
    let mut next = [3u32, 0xffff_fffd];
    let mut got = [0u32; 2];
    let mut all = [Vec::new(), Vec::new()];
    for deed in deeds {
        match deed {
            Deed::Deliveries { by, deliveries, cut } => {
                let id = &mut next[*by as usize];
                let bytes: Vec<u8> = deliveries
                    .iter()
                    .flat_map(|delivery| encode(&tap, *by, delivery, id))
                    .collect();
                let (first, second) = bytes.split_at(cut.index(bytes.len()));
                tap.say_bytes(*by, first);
                tap.say_bytes(*by, second);
            }
            Deed::Window { by, frames } => {
                let fields = vec![uint(got[*by as usize]), uint(*frames), uint(0), uint(u32::MAX)];
                tap.say(*by, &Frame::new(tap.channel(*by), wire::FLOW, fields));
            }
        }
        for end in [End::Device, End::Hub] {
            let frames = tap.hear_links(end);
            let transfers = frames.iter().filter(|frame| frame.code == wire::TRANSFER).count();
            got[end as usize] += u32::try_from(transfers).expect("few");
            all[end as usize].extend(frames);
        }
    }
    all
}

fn encode(tap: &Tap, by: End, delivery: &Delivery, id: &mut u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (place, piece) in delivery.pieces.iter().enumerate() {
        let is_last = place + 1 == delivery.pieces.len();
        let mut fields = vec![
            uint(handle(by, link_of(by))),
            if place == 0 { uint(*id) } else { null() },
            binary(&id.to_be_bytes()),
            uint(0),
            delivery.settled.map_or_else(null, flag),
            flag(!is_last),
        ];
        let behind = [null(), null(), flag(false), flag(false), flag(true)];
        fields.extend(behind.into_iter().take(delivery.extra));
        if is_last && delivery.is_aborted {
            fields.resize(9, null());
            fields.push(flag(true));
        }
        let form = Form {
            is_wide: delivery.is_wide,
            ..Form::default()
        };
        let frame = Frame::new(tap.channel(by), wire::TRANSFER, fields).with_payload(piece);
        bytes.extend(frame.bytes(form));
    }
    *id = id.wrapping_add(1);
    bytes
}

proptest! {
    #[test]
    fn a_run_is_relayed_as_its_frames_are_one_by_one(
        windows in (0..30u32, 0..30u32),
        sizes in (512..1200u32, 512..1200u32),
        deeds in vec(deed(), 1..12),
    ) {
        let side = |incoming_window, max_frame_size| Side { incoming_window, max_frame_size, ..Side::default() };
        let sides = [side(windows.0, sizes.0), side(windows.1, sizes.1)];
        let in_runs = heard(sides, &deeds);
        let mut one_by_one = None;
        let shown = Said::frames_of(|| one_by_one = Some(heard(sides, &deeds)));
        prop_assert!(shown.contains("PROTOCOL"), "the frames were shown");
        prop_assert_eq!(Some(in_runs), one_by_one);
    }
}
