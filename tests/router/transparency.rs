//! A device and a hub cannot tell by any field that they exchange on a link that a router stands between them: arbitrary
//! performatives with arbitrary fields in arbitrary encodings go in, and come out as they were, byte for byte, but for
//! what link routing rewrites: channel, handle, link name, delivery-ids and the session's part of a flow.

use linkrouterd::router::settings::{ConnectorRole, RouterSettings};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::said::{
    ADDRESS, Attaches, Piece, Said, a_flag, a_side, attaches, described, field, fields, form, large_piece,
    said,
};
use crate::tap::{CONTAINER, End, Form, Frame, NULL, Side, Tap, flag, null, string, uint};
use crate::wire;
use crate::world::settings;

// ---- what must come out ------------------------------------------------------------------------------------------

/// A link, as the test knows it.
struct Link {
    sender: End,
    /// The handles that its ends use: device, hub.
    handles: [u32; 2],
    /// The router's handles towards them.
    shown: [u32; 2],
    /// Deliveries so far: ids of the sender, ids of the router.
    deliveries: Vec<(u32, u32)>,
}

struct Session {
    tap: Tap,
    /// Delivery-ids that come next: of the ends, and of the router towards them.
    next: [u32; 2],
    next_shown: [u32; 2],
    /// Transfer frames that the ends have sent, and that the router has sent them.
    sent: [u32; 2],
    got: [u32; 2],
}

const fn place(end: End) -> usize {
    match end {
        End::Device => 0,
        End::Hub => 1,
    }
}

fn at<T: Copy>(pair: [T; 2], end: End) -> T {
    match (end, pair) {
        (End::Device, [value, _]) | (End::Hub, [_, value]) => value,
    }
}

/// A hub that is there before the first attach: one that has to wait for it may not be as large.
fn always_connected() -> RouterSettings {
    let mut settings = settings();
    for connector in &mut settings.connectors {
        connector.role = ConnectorRole::Persistent;
    }
    settings
}

impl Session {
    fn is_first_link(&self) -> bool {
        self.tap.router.snapshot().link_pairs == 0
    }

    fn attach(&mut self, attaches: &Attaches, sender: End) -> Link {
        let role = flag(sender != End::Device);
        let mut fields = vec![string(&attaches.name), uint(attaches.handle), role.clone()];
        fields.extend(attaches.request.iter().cloned());
        let attach = Frame::new(self.tap.channel(End::Device), wire::ATTACH, fields);
        let number = u32::from(!self.is_first_link());
        let heard = self.tap.attach(&attach, attaches.forms.0);
        assert_eq!((heard.channel, heard.code), (0, wire::ATTACH));
        let name = format!("{}@{CONTAINER}", attaches.name);
        assert_eq!(heard.text(0).as_deref(), Some(name.as_str()));
        assert_eq!(heard.uint(1), Some(number));
        assert_eq!(heard.raw(2), role);
        assert_eq!(heard.tail(3), attaches.request, "the attach");

        let role = flag(sender == End::Device);
        let mut fields = vec![heard.raw(0).to_vec(), uint(attaches.answer_handle), role.clone()];
        fields.extend(attaches.answer.iter().cloned());
        let answer = Frame::new(self.tap.channel(End::Hub), wire::ATTACH, fields);
        self.tap.say_as(End::Hub, &answer, attaches.forms.1);
        let heard = self.tap.hear_one(End::Device);
        assert_eq!((heard.channel, heard.code), (0, wire::ATTACH));
        assert_eq!(heard.text(0).as_deref(), Some(attaches.name.as_str()));
        assert_eq!(heard.uint(1), Some(number));
        assert_eq!(heard.raw(2), role);
        assert_eq!(heard.tail(3), attaches.answer, "the answer");
        Link {
            sender,
            handles: [attaches.handle, attaches.answer_handle],
            shown: [number, number],
            deliveries: Vec::new(),
        }
    }

    /// The session's fields of a flow, as `by` counts.
    fn session_fields(&self, by: End) -> Vec<Vec<u8>> {
        let first = self.tap.side(by).first_transfer;
        vec![
            uint(at(self.got, by)),
            uint(0x7fff_ffff),
            uint(first.wrapping_add(at(self.sent, by))),
            uint(u32::MAX),
        ]
    }

    /// The session's fields of a flow from the router to `to`: its own numbers, nothing of the other session.
    fn check_session_fields(&self, flow: &Frame, to: End) {
        let first = self.tap.side(to).first_transfer;
        assert_eq!(
            flow.uint(0),
            Some(first.wrapping_add(at(self.sent, to))),
            "next-incoming-id"
        );
        assert!(flow.uint(1).is_some_and(|window| window > 0), "incoming-window");
        assert_eq!(flow.uint(2), Some(at(self.got, to)), "next-outgoing-id");
    }

    /// What came to an end, without the router's own refreshing of its window.
    fn hear(&mut self, end: End) -> Vec<Frame> {
        let mut frames = self.tap.hear(end);
        frames.retain(|frame| frame.code != wire::FLOW || frame.raw(4) != NULL);
        frames
    }

    fn hear_one(&mut self, end: End) -> Frame {
        let mut frames = self.hear(end);
        assert_eq!(frames.len(), 1, "{frames:?}");
        frames.remove(0)
    }

    fn flow(&mut self, link: &Link, by: End, tail: &[Vec<u8>], form: Form) {
        let mut fields = self.session_fields(by);
        fields.push(uint(at(link.handles, by)));
        fields.extend(tail.iter().cloned());
        let flow = Frame::new(self.tap.channel(by), wire::FLOW, fields);
        self.tap.say_as(by, &flow, form);
        let heard = self.hear_one(by.other());
        assert_eq!(heard.code, wire::FLOW);
        self.check_session_fields(&heard, by.other());
        assert_eq!(heard.uint(4), Some(at(link.shown, by.other())));
        assert_eq!(heard.tail(5), tail, "the flow");
        assert_eq!(self.hear(by), []);
    }

    fn session_flow(&mut self, by: End, echo: bool) {
        let mut fields = self.session_fields(by);
        fields.extend([null(), null(), null(), null(), null(), flag(echo)]);
        let flow = Frame::new(self.tap.channel(by), wire::FLOW, fields);
        assert_eq!((self.hear(End::Device), self.hear(End::Hub)), (vec![], vec![]));
        self.tap.say(by, &flow);
        assert_eq!(self.tap.hear(by.other()), [], "a session's flow goes nowhere");
        let answers = self.tap.hear(by);
        assert_eq!(answers.len(), usize::from(echo), "{answers:?}");
        for answer in answers {
            self.check_session_fields(&answer, by);
            assert_eq!(answer.raw(4), NULL);
        }
    }

    fn deliver(&mut self, link: &mut Link, pieces: &[Piece], is_aborted: bool) {
        let (from, to) = (link.sender, link.sender.other());
        let id = at(self.next, from);
        let shown = at(self.next_shown, to);
        for (index, piece) in pieces.iter().enumerate() {
            let (is_first, is_last) = (index == 0, index + 1 == pieces.len());
            let has_id = is_first || piece.repeats_id;
            let mut tail = piece.before_more.clone();
            tail.push(flag(!is_last));
            tail.extend(piece.behind_more.iter().cloned());
            if is_last && is_aborted {
                tail.resize(tail.len().max(8), null());
                *tail.get_mut(7).expect("aborted") = flag(true);
            }
            let mut fields = vec![
                uint(at(link.handles, from)),
                if has_id { uint(id) } else { null() },
            ];
            fields.extend(tail.iter().cloned());
            let transfer =
                Frame::new(self.tap.channel(from), wire::TRANSFER, fields).with_payload(&piece.payload);
            self.tap.say_as(from, &transfer, piece.form);
            let heard = self.hear_one(to);
            assert_eq!(heard.code, wire::TRANSFER);
            assert_eq!(heard.uint(0), Some(at(link.shown, to)));
            assert_eq!(heard.uint(1), has_id.then_some(shown));
            assert_eq!(heard.tail(2), tail, "the transfer");
            assert_eq!(heard.payload, piece.payload);
            self.sent[place(from)] += 1;
            self.got[place(to)] += 1;
        }
        self.next[place(from)] = id.wrapping_add(1);
        self.next_shown[place(to)] = shown.wrapping_add(1);
        link.deliveries.push((id, shown));
    }

    fn dispose(
        &mut self,
        link: &Link,
        by_receiver: bool,
        from: usize,
        count: usize,
        tail: &[Vec<u8>],
        form: Form,
    ) {
        let by = if by_receiver {
            link.sender.other()
        } else {
            link.sender
        };
        // Ids of the end that speaks, ids of the router towards the other.
        let ids = |&(sender, receiver): &(u32, u32)| match by_receiver {
            true => (receiver, sender),
            false => (sender, receiver),
        };
        let Some((said, expected)) = link.deliveries.get(from).map(ids) else {
            return;
        };
        // Deliveries of a session are numbered over all its links; a range is one of neighbours.
        let length = (1..count as u32)
            .take_while(|&offset| {
                link.deliveries.get(from + offset as usize).map(ids)
                    == Some((said.wrapping_add(offset), expected.wrapping_add(offset)))
            })
            .count() as u32;
        let last = said.wrapping_add(length);
        let mut fields = vec![flag(by_receiver), uint(said)];
        let omits_last = length == 0 && form.is_wide;
        fields.push(if omits_last { null() } else { uint(last) });
        fields.extend(tail.iter().cloned());
        let disposition = Frame::new(self.tap.channel(by), wire::DISPOSITION, fields);
        self.tap.say_as(by, &disposition, form);
        let heard = self.hear_one(by.other());
        assert_eq!(heard.code, wire::DISPOSITION);
        assert_eq!(heard.flag(0), by_receiver);
        assert_eq!(heard.uint(1), Some(expected));
        assert_eq!(heard.uint(2).unwrap_or(expected), expected.wrapping_add(length));
        assert_eq!(heard.tail(3), tail, "the disposition");
    }

    fn detach(&mut self, link: &Link, by: End, tails: [&[Vec<u8>]; 2], form: Form) {
        for (end, tail) in [(by, tails[0]), (by.other(), tails[1])] {
            let mut fields = vec![uint(at(link.handles, end))];
            fields.extend(tail.iter().cloned());
            let detach = Frame::new(self.tap.channel(end), wire::DETACH, fields);
            self.tap.say_as(end, &detach, form);
            let heard = self.hear_one(end.other());
            assert_eq!(heard.code, wire::DETACH);
            assert_eq!(heard.uint(0), Some(at(link.shown, end.other())));
            assert_eq!(heard.tail(1), tail, "the detach");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_two_peers_say_on_links_comes_out_as_it_went_in(
        sides in (a_side(), a_side()),
        firsts in (any::<u32>(), any::<u32>()),
        up in attaches(true),
        down in attaches(false),
        story in vec((any::<bool>(), said()), 1..12),
        by_hub in any::<bool>(),
        detaches in (fields(0, vec![a_flag(), field(described())]), fields(0, vec![a_flag(), field(described())])),
        last_form in form(),
    ) {
        let mut session = Session {
            tap: Tap::new(always_connected(), sides.0, sides.1),
            next: [firsts.0, firsts.1],
            next_shown: [0, 0],
            sent: [0, 0],
            got: [0, 0],
        };
        let mut links = [
            session.attach(&up, End::Device),
            session.attach(&down, End::Hub),
        ];
        for link in &links {
            session.flow(link, link.sender.other(), &[null(), uint(100)], Form::default());
        }
        for (is_down, said) in &story {
            let link = &mut links[usize::from(*is_down)];
            match said {
                Said::Flow { by_receiver, tail, form } => {
                    let by = if *by_receiver { link.sender.other() } else { link.sender };
                    session.flow(link, by, tail, *form);
                }
                Said::SessionFlow { by, echo } => session.session_flow(*by, *echo),
                Said::Delivery { pieces, is_aborted } => session.deliver(link, pieces, *is_aborted),
                Said::Disposition { by_receiver, from, count, tail, form } => {
                    if !link.deliveries.is_empty() {
                        let from = from.index(link.deliveries.len());
                        session.dispose(link, *by_receiver, from, *count, tail, *form);
                    }
                }
            }
        }
        let by = if by_hub { End::Hub } else { End::Device };
        for link in &links {
            session.detach(link, by, [&detaches.0, &detaches.1], last_form);
        }
        prop_assert_eq!(session.tap.router.snapshot().link_pairs, 0);
    }
}

// ---- small frames ------------------------------------------------------------------------------------------------

proptest! {
    #[test]
    fn a_delivery_cut_for_small_frames_keeps_every_field(
        is_down in any::<bool>(),
        deliveries in vec((vec(large_piece(), 1..4), any::<bool>()), 1..4),
        small in 512..1100u32,
    ) {
        let sender = if is_down { End::Hub } else { End::Device };
        let side = Side { max_frame_size: small, ..Side::default() };
        let sides = match sender {
            End::Device => (Side::default(), side),
            End::Hub => (side, Side::default()),
        };
        let mut session = Session {
            tap: Tap::new(always_connected(), sides.0, sides.1),
            next: [5, 7],
            next_shown: [0, 0],
            sent: [0, 0],
            got: [0, 0],
        };
        let routed = if is_down { 2 } else { 3 };
        let termini = [wire::terminus(0x28, ADDRESS), wire::terminus(0x29, ADDRESS)].map(|t| crate::tap::encoded(&t));
        let link = session.attach(
            &Attaches {
                name: "link".into(),
                handle: 3,
                answer_handle: 4,
                request: [vec![null(), null()], termini[..routed - 1].to_vec()].concat(),
                answer: [vec![null(), null()], termini.to_vec()].concat(),
                forms: (Form::default(), Form::default()),
            },
            sender,
        );
        session.flow(&link, sender.other(), &[null(), uint(100)], Form::default());
        for (pieces, is_aborted) in &deliveries {
            session.deliver_cut(&link, pieces, *is_aborted, small);
        }
    }
}

impl Session {
    /// As [`deliver`](Self::deliver), to an end with small frames: the first frame of each that was said has all its
    /// fields, those behind it what a continuation needs.
    fn deliver_cut(&mut self, link: &Link, pieces: &[Piece], is_aborted: bool, small: u32) {
        let (from, to) = (link.sender, link.sender.other());
        let id = at(self.next, from);
        for (index, piece) in pieces.iter().enumerate() {
            let is_last = index + 1 == pieces.len();
            let aborts = is_last && is_aborted;
            let mut behind = piece.behind_more.clone();
            if aborts {
                behind.resize(behind.len().max(4), null());
                *behind.get_mut(3).expect("aborted") = flag(true);
            }
            let mut fields = vec![
                uint(at(link.handles, from)),
                if index == 0 || piece.repeats_id {
                    uint(id)
                } else {
                    null()
                },
            ];
            fields.extend(piece.before_more.iter().cloned());
            fields.push(flag(!is_last));
            fields.extend(behind.iter().cloned());
            let transfer =
                Frame::new(self.tap.channel(from), wire::TRANSFER, fields).with_payload(&piece.payload);
            self.tap.say_as(from, &transfer, piece.form);
            let heard = self.hear(to);
            let (first, rest) = heard.split_first().expect("a frame");
            assert_eq!(first.uint(1).is_some(), index == 0 || piece.repeats_id);
            assert_eq!(first.fields.get(2..5), Some(piece.before_more.as_slice()));
            assert_eq!(first.tail(6), behind);
            for (place, frame) in heard.iter().enumerate() {
                assert!(frame.size <= small as usize, "{frame:?}");
                assert_eq!(frame.uint(0), Some(at(link.shown, to)));
                assert_eq!(frame.flag(5), !is_last || place + 1 < heard.len());
            }
            for frame in rest {
                assert!(!aborts, "nothing follows an abort");
                assert_eq!((frame.raw(1), frame.raw(2), frame.raw(3)), (NULL, NULL, NULL));
                assert_eq!(frame.flag(4), first.flag(4), "settled on every frame");
            }
            let payload: Vec<u8> = heard.iter().flat_map(|frame| frame.payload.clone()).collect();
            // What an abort carries is nothing (AMQP 1.0 part 2, §2.7.5).
            assert!(payload == piece.payload || aborts && piece.payload.starts_with(&payload));
        }
        self.next[place(from)] = id.wrapping_add(1);
    }
}
