//! A scripted AMQP peer: it keeps the little state that the protocol asks of it, checks everything that the router
//! sends it, and answers on its own only where its [`Auto`] says so.

mod hearing;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use linkrouterd::amqp::value::Value;
use linkrouterd::endpoint::outbox::ByteQueue;
use linkrouterd::router::ConnectionKey;

use crate::world::wire::{self, Frame, described, string, terminus, uint};

/// What a peer does by itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Auto {
    pub(crate) begin: bool,
    pub(crate) attach: bool,
    pub(crate) detach: bool,
    pub(crate) end: bool,
    pub(crate) close: bool,
    /// Opens its session window again when half of it is used.
    pub(crate) window: bool,
    /// Credit that a receiving link of its own gets, and gets again when half is used.
    pub(crate) credit: u32,
    /// Accepts and settles every unsettled delivery when it is complete.
    pub(crate) accept: bool,
}

/// What a peer announces in open and begin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Announces {
    pub(crate) max_frame_size: u32,
    pub(crate) idle_time_out: Option<u32>,
    pub(crate) channel_max: u16,
    pub(crate) handle_max: u32,
    pub(crate) window: u32,
    pub(crate) first_transfer_id: u32,
    pub(crate) first_delivery_id: u32,
}

impl Default for Announces {
    fn default() -> Self {
        Announces {
            max_frame_size: 65536,
            idle_time_out: None,
            channel_max: 8191,
            handle_max: 262_143,
            window: 2048,
            first_transfer_id: 0,
            first_delivery_id: 0,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Device,
    /// A hub that was dialed.
    Hub,
    /// A hub that came by itself.
    Broker,
}

/// A message as its receiver put it together.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Delivery {
    pub(crate) id: u32,
    pub(crate) tag: Vec<u8>,
    pub(crate) payload: Vec<u8>,
    /// The sender settled it.
    pub(crate) settled: bool,
    /// We settled it, with this state.
    pub(crate) outcome: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct Link {
    /// Tells it from all others of this peer.
    pub(crate) number: u32,
    pub(crate) name: String,
    pub(crate) is_sender: bool,
    /// Our attach, the peer's attach, our detach, the peer's detach.
    pub(crate) local: bool,
    pub(crate) remote: Option<u32>,
    pub(crate) detach_sent: bool,
    pub(crate) detached: Option<Value>,
    pub(crate) credit: u32,
    pub(crate) delivery_count: u32,
    pub(crate) drain: bool,
    /// Receivers: what has come.
    pub(crate) received: Vec<Delivery>,
    pub(crate) partial: Option<Delivery>,
    pub(crate) aborted: usize,
    /// Senders: messages to send, and how much of the first has gone.
    pub(crate) queue: VecDeque<(Vec<u8>, bool)>,
    pub(crate) offset: usize,
    pub(crate) sent: u32,
    /// Unsettled deliveries sent: id, number of the message on this link.
    pub(crate) unsettled: BTreeMap<u32, u32>,
    /// Settled by the receiver: number of the message, state.
    pub(crate) settled: Vec<(u32, Option<u64>)>,
    /// Settled here, by the sender: numbers of messages.
    pub(crate) forgotten: BTreeSet<u32>,
    /// How much of what has been received, or settled, a test has looked at.
    pub(crate) looked: usize,
}

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) remote: Option<u16>,
    pub(crate) end_sent: bool,
    /// The router has ended it, and we have not answered.
    pub(crate) is_ended: bool,
    pub(crate) next_outgoing: u32,
    /// Frames that the router lets us send.
    pub(crate) outgoing_window: u32,
    next_incoming: Option<u32>,
    pub(crate) incoming_window: u32,
    pub(crate) next_delivery: u32,
    expected_delivery: Option<u32>,
    pub(crate) links: BTreeMap<u32, Link>,
    /// Our handle by the router's.
    handles: BTreeMap<u32, u32>,
    /// Handles of the router's that it has detached before we answered the attach.
    given_up: BTreeSet<u32>,
}

#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) kind: Kind,
    pub(crate) container: String,
    /// `open.hostname`
    pub(crate) hostname: Option<String>,
    pub(crate) auto: Auto,
    pub(crate) announces: Announces,
    /// `properties` of its open.
    pub(crate) open_properties: Value,
    pub(crate) key: Option<ConnectionKey>,
    /// Bytes on their way to the router.
    pub(crate) out: ByteQueue,
    input: ByteQueue,
    headers: usize,
    /// Every frame from the router, in order, and how many a test has looked at.
    pub(crate) log: Vec<Frame>,
    pub(crate) looked: usize,
    pub(crate) sessions: BTreeMap<u16, Session>,
    /// Those that both sides have ended.
    pub(crate) past: Vec<Session>,
    channels: BTreeMap<u16, u16>,
    links_made: u32,
    pub(crate) is_open: bool,
    pub(crate) close_sent: bool,
    pub(crate) closed: Option<Value>,
    /// Does not mind a device that ignores credit: that is between the two ends of a link.
    pub(crate) ignores_credit: bool,
    /// Keep the log; long simulations do without.
    pub(crate) keeps_log: bool,
    /// Largest frame that the router takes.
    router_max_frame: usize,
    /// A device that has asked for SASL.
    uses_sasl: bool,
    /// It says nothing more.
    pub(crate) is_mute: bool,
}

impl Peer {
    pub(crate) fn new(kind: Kind, container: &str, auto: Auto, announces: Announces) -> Self {
        Peer {
            kind,
            container: container.into(),
            hostname: Some("hub.example".into()),
            auto,
            announces,
            open_properties: Value::Null,
            key: None,
            out: ByteQueue::default(),
            input: ByteQueue::default(),
            headers: 0,
            log: Vec::new(),
            looked: 0,
            sessions: BTreeMap::new(),
            past: Vec::new(),
            channels: BTreeMap::new(),
            links_made: 0,
            is_open: false,
            close_sent: false,
            closed: None,
            ignores_credit: false,
            keeps_log: true,
            router_max_frame: 512,
            uses_sasl: false,
            is_mute: false,
        }
    }

    // ---- saying things -------------------------------------------------------------------------------------------

    pub(crate) fn say(&mut self, frame: &Frame) {
        if !self.is_mute {
            frame.encode(self.out.tail());
        }
    }

    /// A device's header and open, without SASL.
    pub(crate) fn open(&mut self) {
        self.out.tail().extend(wire::AMQP_HEADER);
        self.say_open();
    }

    /// The next header from the router is that of SASL.
    pub(crate) fn expects_sasl(&mut self) {
        self.uses_sasl = true;
    }

    fn say_open(&mut self) {
        let mut fields = vec![
            string(&self.container),
            self.hostname.as_deref().map_or(Value::Null, string),
            uint(self.announces.max_frame_size),
            Value::Ushort(self.announces.channel_max),
            self.announces.idle_time_out.map_or(Value::Null, uint),
        ];
        fields.resize(9, Value::Null);
        fields.push(self.open_properties.clone());
        self.say(&Frame::new(0, wire::OPEN, fields));
    }

    pub(crate) fn begin(&mut self, channel: u16) {
        self.say_begin(channel, None);
    }

    fn say_begin(&mut self, channel: u16, answers: Option<u16>) {
        let announces = self.announces;
        let fields = vec![
            answers.map_or(Value::Null, Value::Ushort),
            uint(announces.first_transfer_id),
            uint(announces.window),
            uint(u32::MAX),
            uint(announces.handle_max),
        ];
        self.say(&Frame::new(channel, wire::BEGIN, fields));
        self.sessions.insert(
            channel,
            Session {
                remote: None,
                end_sent: false,
                is_ended: false,
                next_outgoing: announces.first_transfer_id,
                outgoing_window: 0,
                next_incoming: None,
                incoming_window: announces.window,
                next_delivery: announces.first_delivery_id,
                expected_delivery: None,
                links: BTreeMap::new(),
                handles: BTreeMap::new(),
                given_up: BTreeSet::new(),
            },
        );
    }

    pub(crate) fn attach(&mut self, channel: u16, handle: u32, name: &str, is_sender: bool, address: &str) {
        let (source, target) = match is_sender {
            true => (terminus(0x28, "here"), terminus(0x29, address)),
            false => (terminus(0x28, address), terminus(0x29, "here")),
        };
        self.attach_with(channel, handle, name, is_sender, source, target);
    }

    pub(crate) fn attach_with(
        &mut self,
        channel: u16,
        handle: u32,
        name: &str,
        is_sender: bool,
        source: Value,
        target: Value,
    ) {
        let mut fields = vec![
            string(name),
            uint(handle),
            Value::Boolean(!is_sender),
            Value::Ubyte(2),
            Value::Ubyte(0),
            source,
            target,
            Value::Null,
            Value::Null,
        ];
        if is_sender {
            fields.push(uint(0));
        }
        self.say_attach(&Frame::new(channel, wire::ATTACH, fields));
    }

    /// An attach in a test's own words.
    pub(crate) fn say_attach(&mut self, attach: &Frame) {
        self.say(attach);
        let handle = attach.uint(1).expect("a handle");
        let is_sender = !attach.flag(2);
        self.links_made += 1;
        let number = self.links_made;
        let links = &mut self.session(attach.channel).links;
        let link = links.entry(handle).or_insert_with(|| Link {
            number,
            name: attach.text(0).expect("a name").into(),
            is_sender,
            local: false,
            remote: None,
            detach_sent: false,
            detached: None,
            credit: 0,
            delivery_count: 0,
            drain: false,
            received: Vec::new(),
            partial: None,
            aborted: 0,
            queue: VecDeque::new(),
            offset: 0,
            sent: 0,
            unsettled: BTreeMap::new(),
            settled: Vec::new(),
            forgotten: BTreeSet::new(),
            looked: 0,
        });
        link.local = true;
    }

    /// A flow of the session, or of one of its links.
    pub(crate) fn flow(&mut self, channel: u16, handle: Option<u32>, drain: bool, echo: bool) {
        let session = self.session(channel);
        let mut fields = vec![
            session.next_incoming.map_or(Value::Null, uint),
            uint(session.incoming_window),
            uint(session.next_outgoing),
            uint(u32::MAX),
        ];
        if let Some(handle) = handle {
            let link = session.links.get(&handle).expect("a link");
            fields.extend([
                uint(handle),
                uint(link.delivery_count),
                uint(link.credit),
                Value::Null,
                Value::Boolean(drain),
                Value::Boolean(echo),
            ]);
        } else if echo {
            fields.extend([Value::Null, Value::Null, Value::Null, Value::Null, Value::Null]);
            fields.push(Value::Boolean(true));
        }
        self.say(&Frame::new(channel, wire::FLOW, fields));
    }

    /// Lets the other end of a receiving link send `credit` more.
    pub(crate) fn grant(&mut self, channel: u16, handle: u32, credit: u32) {
        self.link(channel, handle).credit = credit;
        self.flow(channel, Some(handle), false, false);
    }

    /// Gives frames back that were withheld from the session window.
    pub(crate) fn widen(&mut self, channel: u16, window: u32) {
        self.session(channel).incoming_window = window;
        self.flow(channel, None, false, false);
    }

    /// Queues a message; it goes as credit and window allow.
    pub(crate) fn send(&mut self, channel: u16, handle: u32, payload: &[u8], settled: bool) {
        self.link(channel, handle)
            .queue
            .push_back((payload.to_vec(), settled));
        self.push_out(channel);
    }

    /// Sends what credit and window allow.
    pub(crate) fn push_out(&mut self, channel: u16) {
        let limit = self.router_max_frame.min(16 * 1024) - 64;
        let handles: Vec<u32> = self.session(channel).links.keys().copied().collect();
        for handle in handles {
            while self.send_piece(channel, handle, limit) {}
        }
    }

    /// Sends one frame of at most `limit` bytes of payload; `false` when nothing may go.
    pub(crate) fn send_piece(&mut self, channel: u16, handle: u32, limit: usize) -> bool {
        let session = self.session(channel);
        let Some(link) = session.links.get_mut(&handle) else {
            return false;
        };
        let is_open = link.is_sender && !link.detach_sent && link.detached.is_none();
        if !is_open
            || session.end_sent
            || session.outgoing_window == 0
            || (link.offset == 0 && link.credit == 0)
        {
            return false;
        }
        let Some((payload, settled)) = link.queue.front() else {
            return false;
        };
        let rest = payload.get(link.offset..).expect("an offset inside");
        let piece = rest.get(..limit.min(rest.len())).expect("a piece").to_vec();
        let (is_first, is_last, settled) = (link.offset == 0, piece.len() == rest.len(), *settled);
        let number = link.sent;
        link.offset += piece.len();
        let id = session.next_delivery;
        if is_first {
            session.next_delivery = id.wrapping_add(1);
            link.credit -= 1;
            link.delivery_count = link.delivery_count.wrapping_add(1);
            if !settled {
                link.unsettled.insert(id, number);
            }
        }
        if is_last {
            link.sent += 1;
            link.offset = 0;
            link.queue.pop_front();
        }
        self.say_transfer(
            channel,
            handle,
            is_first.then_some((id, number)),
            settled,
            !is_last,
            &piece,
        );
        true
    }

    /// A transfer, whatever the state of its link.
    pub(crate) fn say_transfer(
        &mut self,
        channel: u16,
        handle: u32,
        first: Option<(u32, u32)>,
        settled: bool,
        more: bool,
        payload: &[u8],
    ) {
        let mut fields = vec![uint(handle)];
        match first {
            Some((id, tag)) => fields.extend([
                uint(id),
                Value::Binary(tag.to_be_bytes().to_vec()),
                uint(0),
                Value::Boolean(settled),
            ]),
            None => fields.extend([Value::Null, Value::Null, Value::Null, Value::Boolean(settled)]),
        }
        fields.push(Value::Boolean(more));
        self.transfer_frame(channel, fields, payload);
    }

    /// A transfer with all its fields as a test wants them.
    pub(crate) fn transfer_frame(&mut self, channel: u16, fields: Vec<Value>, payload: &[u8]) {
        let session = self.session(channel);
        session.next_outgoing = session.next_outgoing.wrapping_add(1);
        session.outgoing_window = session.outgoing_window.saturating_sub(1);
        self.say(&Frame::new(channel, wire::TRANSFER, fields).with_payload(payload));
    }

    /// A disposition with an empty state.
    pub(crate) fn dispose(
        &mut self,
        channel: u16,
        is_receiver: bool,
        first: u32,
        last: u32,
        settled: bool,
        state: Value,
    ) {
        let fields = vec![
            Value::Boolean(is_receiver),
            uint(first),
            uint(last),
            Value::Boolean(settled),
            state,
        ];
        self.say(&Frame::new(channel, wire::DISPOSITION, fields));
    }

    /// Settles one received delivery.
    pub(crate) fn settle(&mut self, channel: u16, handle: u32, id: u32, outcome: u64) {
        if let Some(delivery) = self
            .link(channel, handle)
            .received
            .iter_mut()
            .find(|d| d.id == id)
        {
            delivery.outcome = Some(outcome);
        }
        self.dispose(channel, true, id, id, true, described(outcome, Vec::new()));
    }

    /// Settles one delivery that was sent; whatever the receiver makes of it, it does not matter any more.
    pub(crate) fn forget(&mut self, channel: u16, handle: u32, id: u32) {
        let link = self.link(channel, handle);
        let number = link.unsettled.remove(&id).expect("an unsettled delivery");
        link.forgotten.insert(number);
        self.dispose(channel, false, id, id, true, Value::Null);
    }

    pub(crate) fn detach(&mut self, channel: u16, handle: u32, closed: bool, error: Value) {
        let fields = vec![uint(handle), Value::Boolean(closed), error];
        self.say(&Frame::new(channel, wire::DETACH, fields));
        let session = self.session(channel);
        let link = session.links.get_mut(&handle).expect("a link");
        link.detach_sent = true;
    }

    pub(crate) fn end(&mut self, channel: u16, error: Value) {
        self.say(&Frame::new(channel, wire::END, vec![error]));
        self.session(channel).end_sent = true;
    }

    pub(crate) fn close(&mut self, error: Value) {
        self.say(&Frame::new(0, wire::CLOSE, vec![error]));
        self.close_sent = true;
    }

    // ---- what it knows -------------------------------------------------------------------------------------------

    pub(crate) fn session(&mut self, channel: u16) -> &mut Session {
        self.sessions
            .get_mut(&channel)
            .expect("a session on this channel")
    }

    pub(crate) fn link(&mut self, channel: u16, handle: u32) -> &mut Link {
        self.session(channel)
            .links
            .get_mut(&handle)
            .expect("a link with this handle")
    }

    /// Channel and handle of the link with this name and our role.
    pub(crate) fn find(&self, name: &str, is_sender: bool) -> Option<(u16, u32)> {
        self.sessions.iter().find_map(|(&channel, session)| {
            let (&handle, _) = session.links.iter().find(|(_, link)| {
                link.name == name
                    && link.is_sender == is_sender
                    && !link.detach_sent
                    && link.detached.is_none()
            })?;
            Some((channel, handle))
        })
    }

    /// The next frame that nobody has looked at, heartbeats aside.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        while let Some(frame) = self.log.get(self.looked) {
            self.looked += 1;
            if frame.code != wire::EMPTY && frame.code < wire::SASL_MECHANISMS {
                return Some(frame.clone());
            }
        }
        None
    }

    /// The next frame, which must be of this kind.
    #[track_caller]
    pub(crate) fn expect(&mut self, code: u64) -> Frame {
        match self.next() {
            Some(frame) if frame.code == code => frame,
            other => panic!("{}: expected {code:#x}, got {other:?}", self.container),
        }
    }

    /// The next frame that is no flow, which must be of this kind.
    #[track_caller]
    pub(crate) fn expect_past_flows(&mut self, code: u64) -> Frame {
        loop {
            match self.next() {
                Some(frame) if frame.code == wire::FLOW => {}
                Some(frame) if frame.code == code => return frame,
                other => panic!("{}: expected {code:#x}, got {other:?}", self.container),
            }
        }
    }

    #[track_caller]
    pub(crate) fn expect_nothing(&mut self) {
        if let Some(frame) = self.next() {
            panic!("{}: expected nothing, got {frame:?}", self.container);
        }
    }

    /// Skips all that has been received so far.
    pub(crate) fn skip(&mut self) {
        self.looked = self.log.len();
    }
}
