//! What a peer does with the frames that it is sent, and what it holds the router to: windows, credit, ids without a gap,
//! nothing on a link behind its detach.

use linkrouterd::amqp::value::Value;

use super::{Delivery, Kind, Peer};
use crate::world::wire::{self, Frame, state_code};

impl Peer {
    /// Bytes from the router.
    pub(crate) fn hear(&mut self, bytes: &[u8]) {
        self.input.tail().extend_from_slice(bytes);
        while let Some(size) = self.whole_unit() {
            let unit = self.input.as_slice().get(..size).expect("whole").to_vec();
            self.input.consume(size);
            if unit.starts_with(b"AMQP") {
                self.hear_header(&unit);
                continue;
            }
            let frame = Frame::decode(&unit);
            // Before it knows better the router may send 512 bytes, and never more than we announced.
            assert!(
                frame.size <= self.announces.max_frame_size as usize,
                "{}: a frame of {} bytes",
                self.container,
                frame.size
            );
            if self.keeps_log {
                self.log.push(frame.clone());
            }
            self.hear_frame(frame);
        }
    }

    fn whole_unit(&self) -> Option<usize> {
        let first = self.input.as_slice().first_chunk::<4>()?;
        let size = match first {
            b"AMQP" => 8,
            size => u32::from_be_bytes(*size) as usize,
        };
        (self.input.len() >= size).then_some(size)
    }

    fn hear_header(&mut self, header: &[u8]) {
        self.headers += 1;
        if self.kind != Kind::Hub {
            let is_sasl = std::mem::take(&mut self.uses_sasl);
            let expected = if is_sasl {
                wire::SASL_HEADER
            } else {
                wire::AMQP_HEADER
            };
            assert_eq!(header, expected, "{}", self.container);
        } else if header == wire::SASL_HEADER {
            self.out.tail().extend(wire::SASL_HEADER);
            self.say(&Frame::new(
                0,
                wire::SASL_MECHANISMS,
                vec![wire::symbol("ANONYMOUS")],
            ));
        } else {
            self.out.tail().extend(wire::AMQP_HEADER);
        }
    }

    fn hear_frame(&mut self, frame: Frame) {
        assert!(self.closed.is_none(), "{}: {frame:?} after close", self.container);
        match frame.code {
            wire::EMPTY | wire::SASL_MECHANISMS | wire::SASL_OUTCOME => {}
            wire::SASL_INIT => self.say(&Frame::new(0, wire::SASL_OUTCOME, vec![Value::Ubyte(0)])),
            wire::OPEN => {
                assert!(!self.is_open, "{}: a second open", self.container);
                self.is_open = true;
                self.router_max_frame = frame.uint(2).unwrap_or(u32::MAX) as usize;
                if self.kind == Kind::Hub {
                    self.say_open();
                }
            }
            wire::CLOSE => {
                self.closed = Some(frame.field(0).clone());
                if self.auto.close && !self.close_sent {
                    self.close(Value::Null);
                }
            }
            wire::BEGIN => self.hear_begin(&frame),
            _ => self.hear_on_session(frame),
        }
    }

    fn hear_begin(&mut self, frame: &Frame) {
        let channel = match frame.uint(0) {
            Some(answered) => u16::try_from(answered).expect("a channel"),
            None => {
                if !self.auto.begin {
                    return;
                }
                // Numbers of the hub's own, other than the router's.
                let free = (0..).map(|n| 7 + 3 * n).find(|n| !self.sessions.contains_key(n));
                let channel = free.expect("a free channel");
                self.say_begin(channel, Some(frame.channel));
                channel
            }
        };
        let previous = self.channels.insert(frame.channel, channel);
        assert!(
            previous.is_none(),
            "{}: channel {} twice",
            self.container,
            frame.channel
        );
        let first = frame.uint(1).expect("next-outgoing-id");
        let window = frame.uint(2).expect("incoming-window");
        let session = self.session(channel);
        session.remote = Some(frame.channel);
        session.next_incoming = Some(first);
        session.outgoing_window = window;
    }

    /// Answers a begin that [`Auto::begin`] left alone.
    pub(crate) fn answer_begin(&mut self, begin: &Frame, channel: u16) {
        self.say_begin(channel, Some(begin.channel));
        self.channels.insert(begin.channel, channel);
        let session = self.sessions.get_mut(&channel).expect("just made");
        session.remote = Some(begin.channel);
        session.next_incoming = begin.uint(1);
        session.outgoing_window = begin.uint(2).expect("incoming-window");
    }

    // ---- on a session --------------------------------------------------------------------------------------------

    pub(super) fn hear_on_session(&mut self, frame: Frame) {
        let container = self.container.clone();
        let Some(&channel) = self.channels.get(&frame.channel) else {
            if !self.auto.begin && self.kind != Kind::Device {
                return; // of a session that a test has not answered
            }
            panic!("{container}: {frame:?} on a channel that is not in use");
        };
        let end_sent = self.session(channel).end_sent;
        if end_sent && frame.code != wire::END {
            return;
        }
        match frame.code {
            wire::ATTACH => self.hear_attach(channel, &frame),
            wire::FLOW => self.hear_flow(channel, &frame),
            wire::TRANSFER => self.hear_transfer(channel, &frame),
            wire::DISPOSITION => self.hear_disposition(channel, &frame),
            wire::DETACH => self.hear_detach(channel, &frame),
            wire::END => {
                self.channels.remove(&frame.channel);
                if !end_sent && !self.auto.end {
                    self.session(channel).is_ended = true;
                    return;
                }
                if !end_sent {
                    self.end(channel, Value::Null);
                }
                self.past.extend(self.sessions.remove(&channel));
            }
            other => panic!("{container}: {other:#x} is no frame of a session"),
        }
    }

    fn hear_attach(&mut self, channel: u16, frame: &Frame) {
        let name = frame.text(0).expect("a name").to_owned();
        let theirs = frame.uint(1).expect("a handle");
        let is_sender = frame.flag(2);
        let session = self.session(channel);
        assert!(
            !session.handles.contains_key(&theirs),
            "handle {theirs} twice: {frame:?}"
        );
        let waits =
            |link: &super::Link| link.name == name && link.is_sender == is_sender && link.remote.is_none();
        // Answers come in the order of the attaches, and a test gives its handles out in that order.
        if let Some((&handle, link)) = session.links.iter_mut().find(|(_, link)| waits(link)) {
            link.remote = Some(theirs);
            session.handles.insert(theirs, handle);
            if link.is_sender {
                return;
            }
            link.delivery_count = frame.uint(9).unwrap_or(0);
            return;
        }
        if !self.auto.attach {
            return;
        }
        let handle = self.free_handle(channel);
        self.answer_attach(frame, channel, handle);
    }

    fn free_handle(&mut self, channel: u16) -> u32 {
        let session = self.session(channel);
        (5..)
            .find(|handle| !session.links.contains_key(handle))
            .expect("a free handle")
    }

    /// Answers an attach: what the router asked for is what it gets.
    pub(crate) fn answer_attach(&mut self, frame: &Frame, channel: u16, handle: u32) {
        let name = frame.text(0).expect("a name");
        let is_sender = frame.flag(2);
        self.attach_with(
            channel,
            handle,
            name,
            is_sender,
            frame.field(5).clone(),
            frame.field(6).clone(),
        );
        self.is_answer(frame, channel, handle);
    }

    /// The attach with this handle, which has just been said, answers the router's.
    pub(crate) fn is_answer(&mut self, frame: &Frame, channel: u16, handle: u32) {
        let theirs = frame.uint(1).expect("a handle");
        let is_sender = frame.flag(2);
        let session = self.session(channel);
        let is_given_up = session.given_up.remove(&theirs);
        let link = session.links.get_mut(&handle).expect("just made");
        if is_given_up {
            link.detached = Some(Value::Null);
        } else {
            session.handles.insert(theirs, handle);
        }
        link.remote = Some(theirs);
        if !is_sender {
            link.delivery_count = frame.uint(9).unwrap_or(0);
            if self.auto.credit > 0 {
                let credit = self.auto.credit;
                self.grant(channel, handle, credit);
            }
        }
    }

    fn hear_flow(&mut self, channel: u16, frame: &Frame) {
        let container = self.container.clone();
        let (ignores_credit, answers_attaches) = (self.ignores_credit, self.auto.attach);
        let (first, announced) = (self.announces.first_transfer_id, frame.uint(1).expect("a window"));
        let session = self.session(channel);
        let seen = session.next_outgoing.wrapping_sub(frame.uint(0).unwrap_or(first));
        assert!(
            seen < 0x8000_0000,
            "{container}: the router counts frames that were not sent: {frame:?}"
        );
        session.outgoing_window = announced.saturating_sub(seen);
        assert_eq!(
            frame.uint(2),
            session.next_incoming,
            "{container}: a gap in the transfer-ids: {frame:?}"
        );
        let Some(theirs) = frame.uint(4) else {
            self.push_out(channel);
            return;
        };
        if !answers_attaches && !session.handles.contains_key(&theirs) {
            return; // for a link that a test has not answered yet
        }
        let handle = *session
            .handles
            .get(&theirs)
            .unwrap_or_else(|| panic!("{container}: {frame:?}"));
        let link = session.links.get_mut(&handle).expect("a link");
        if link.is_sender {
            let (credit, count) = (frame.uint(6).unwrap_or(0), frame.uint(5).unwrap_or(0));
            link.credit = count.wrapping_add(credit).wrapping_sub(link.delivery_count);
            if link.credit > 0x8000_0000 {
                link.credit = 0;
            }
            let drain = frame.flag(8);
            link.drain = drain;
            self.push_out(channel);
            let link = self.link(channel, handle);
            if drain && link.queue.is_empty() && link.credit > 0 {
                link.delivery_count = link.delivery_count.wrapping_add(link.credit);
                link.credit = 0;
                self.flow(channel, Some(handle), true, false);
            } else if frame.flag(9) {
                self.flow(channel, Some(handle), drain, false);
            }
        } else {
            let count = frame.uint(5).expect("a sender's delivery-count");
            let link = session.links.get_mut(&handle).expect("a link");
            let used = count.wrapping_sub(link.delivery_count);
            assert!(
                used <= link.credit || ignores_credit,
                "{container}: {used} credits of {}: {frame:?}",
                link.credit
            );
            link.credit = link.credit.saturating_sub(used);
            link.delivery_count = count;
        }
    }

    fn hear_transfer(&mut self, channel: u16, frame: &Frame) {
        let container = self.container.clone();
        let (auto, window, ignores_credit) = (self.auto, self.announces.window, self.ignores_credit);
        let session = self.session(channel);
        session.incoming_window = session
            .incoming_window
            .checked_sub(1)
            .unwrap_or_else(|| panic!("{container}: beyond the session window: {frame:?}"));
        session.next_incoming = session.next_incoming.map(|id| id.wrapping_add(1));
        let theirs = frame.uint(0).expect("a handle");
        let handle = *session
            .handles
            .get(&theirs)
            .unwrap_or_else(|| panic!("{container}: {frame:?}"));
        let link = session.links.get_mut(&handle).expect("a link");
        assert!(!link.is_sender, "{container}: {frame:?}");
        assert!(link.detached.is_none(), "{container}: behind a detach: {frame:?}");
        let (aborted, more) = (frame.flag(9), frame.flag(5));
        if link.partial.is_none() {
            let id = frame
                .uint(1)
                .unwrap_or_else(|| panic!("{container}: no delivery-id: {frame:?}"));
            if let Some(expected) = session.expected_delivery {
                assert_eq!(id, expected, "{container}: a gap in the delivery-ids: {frame:?}");
            }
            session.expected_delivery = Some(id.wrapping_add(1));
            assert!(
                link.credit > 0 || ignores_credit,
                "{container}: without credit: {frame:?}"
            );
            link.credit = link.credit.saturating_sub(1);
            link.delivery_count = link.delivery_count.wrapping_add(1);
            let tag = match frame.field(2) {
                Value::Binary(tag) => tag.clone(),
                _ => Vec::new(),
            };
            link.partial = Some(Delivery {
                id,
                tag,
                payload: Vec::new(),
                settled: false,
                outcome: None,
            });
        }
        let mut delivery = link.partial.take().expect("just made");
        delivery.payload.extend_from_slice(&frame.payload);
        delivery.settled |= frame.flag(4);
        let mut settle = None;
        if aborted {
            link.aborted += 1;
        } else if more {
            link.partial = Some(delivery);
        } else {
            settle = (!delivery.settled && auto.accept).then_some(delivery.id);
            link.received.push(delivery);
        }
        let top_up =
            (auto.credit > 0 && link.credit <= auto.credit / 2 && !link.detach_sent).then_some(auto.credit);
        if auto.window && session.incoming_window <= window / 2 {
            session.incoming_window = window;
            self.flow(channel, None, false, false);
        }
        if let Some(credit) = top_up {
            self.grant(channel, handle, credit);
        }
        if let Some(id) = settle {
            self.settle(channel, handle, id, wire::ACCEPTED);
        }
    }

    fn hear_disposition(&mut self, channel: u16, frame: &Frame) {
        let is_receiver = frame.flag(0);
        let first = frame.uint(1).expect("first");
        let count = frame.uint(2).unwrap_or(first).wrapping_sub(first).wrapping_add(1);
        assert!(count < 0x8000_0000, "{}: {frame:?}", self.container);
        let (settled, state) = (frame.flag(3), state_code(frame.field(4)));
        for link in self.session(channel).links.values_mut() {
            if link.is_sender == is_receiver && is_receiver {
                let ids: Vec<u32> = link
                    .unsettled
                    .keys()
                    .copied()
                    .filter(|id| id.wrapping_sub(first) < count)
                    .collect();
                for id in ids.into_iter().filter(|_| settled) {
                    let number = link.unsettled.remove(&id).expect("just seen");
                    link.settled.push((number, state));
                }
            } else if !is_receiver && !link.is_sender && settled {
                for delivery in &mut link.received {
                    delivery.settled |= delivery.id.wrapping_sub(first) < count;
                }
            }
        }
    }

    fn hear_detach(&mut self, channel: u16, frame: &Frame) {
        let container = self.container.clone();
        let theirs = frame.uint(0).expect("a handle");
        let (auto, window) = (self.auto, self.announces.window);
        let session = self.session(channel);
        if !auto.attach && !session.handles.contains_key(&theirs) {
            session.given_up.insert(theirs);
            return; // of a link that a test has not answered yet
        }
        let handle = session
            .handles
            .remove(&theirs)
            .unwrap_or_else(|| panic!("{container}: detached twice: {frame:?}"));
        let link = session.links.get_mut(&handle).expect("a link");
        link.detached = Some(frame.field(2).clone());
        // Only a window without room excuses it, and a wide one always has some; or that we wanted no more of it,
        // or that it may be resumed.
        assert!(
            link.partial.is_none() || link.detach_sent || !frame.flag(1) || window < 1000,
            "{container}: a delivery is left open: {frame:?}"
        );
        if auto.detach && !link.detach_sent {
            self.detach(channel, handle, frame.flag(1), Value::Null);
        }
    }
}
