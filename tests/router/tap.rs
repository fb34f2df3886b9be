//! Two peers that say exactly the bytes that a test gives them and record the bytes that come out. They know nothing of
//! the protocol beyond a handshake, so a test sees, and chooses, every encoding.

use std::time::Instant;

use linkrouterd::amqp::frame::{Frame as RawFrame, FrameType, write_frame};
use linkrouterd::amqp::reader::Reader;
use linkrouterd::amqp::serial::Channel;
use linkrouterd::amqp::value::Value;
use linkrouterd::router::settings::{ListenerId, RouterSettings};
use linkrouterd::router::{Action, ConnectionKey, Router, TransportInfo};

use crate::wire::{self, AMQP_HEADER, SASL_HEADER};

/// The null value.
pub(crate) const NULL: &[u8] = &[0x40];

/// One performative, field by field as it is encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) channel: u16,
    pub(crate) code: u64,
    pub(crate) fields: Vec<Vec<u8>>,
    pub(crate) payload: Vec<u8>,
    /// Bytes on the wire.
    pub(crate) size: usize,
}

/// How the head of a performative is written; a peer may choose (AMQP 1.0 part 1, §1.2 and §1.6).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Form {
    /// The list has 32-bit sizes even if it is small.
    pub(crate) is_wide: bool,
    pub(crate) descriptor: Descriptor,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Descriptor {
    #[default]
    SmallUlong,
    Ulong,
    Symbol,
}

const NAMES: [(u64, &str); 9] = [
    (wire::OPEN, "amqp:open:list"),
    (wire::BEGIN, "amqp:begin:list"),
    (wire::ATTACH, "amqp:attach:list"),
    (wire::FLOW, "amqp:flow:list"),
    (wire::TRANSFER, "amqp:transfer:list"),
    (wire::DISPOSITION, "amqp:disposition:list"),
    (wire::DETACH, "amqp:detach:list"),
    (wire::END, "amqp:end:list"),
    (wire::CLOSE, "amqp:close:list"),
];

impl Frame {
    pub(crate) fn new(channel: u16, code: u64, fields: Vec<Vec<u8>>) -> Self {
        Frame {
            channel,
            code,
            fields,
            payload: Vec::new(),
            size: 0,
        }
    }

    pub(crate) fn with_payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    pub(crate) fn bytes(&self, form: Form) -> Vec<u8> {
        let mut out = Vec::new();
        write_frame(&mut out, FrameType::Amqp, Channel(self.channel), |out| {
            out.push(0x00);
            match form.descriptor {
                Descriptor::SmallUlong => out.extend([0x53, u8::try_from(self.code).expect("small")]),
                Descriptor::Ulong => {
                    out.push(0x80);
                    out.extend(self.code.to_be_bytes());
                }
                Descriptor::Symbol => {
                    let (_, name) = NAMES.iter().find(|(code, _)| *code == self.code).expect("a name");
                    out.extend([0xa3, u8::try_from(name.len()).expect("short")]);
                    out.extend(name.as_bytes());
                }
            }
            let body = self.fields.concat();
            match (u8::try_from(body.len() + 1), u8::try_from(self.fields.len())) {
                (Ok(size), Ok(count)) if !form.is_wide => out.extend([0xc0, size, count]),
                _ => {
                    out.push(0xd0);
                    out.extend(u32::try_from(body.len() + 4).expect("a frame").to_be_bytes());
                    out.extend(u32::try_from(self.fields.len()).expect("few").to_be_bytes());
                }
            }
            out.extend(body);
            out.extend(&self.payload);
        });
        out
    }

    fn decode(bytes: &[u8]) -> Self {
        let raw = RawFrame::parse(bytes).expect("a frame");
        let (code, fields) = Reader::new(raw.body).composite().expect("a performative");
        let tail = fields.tail();
        // Behind the last field is the payload.
        let mut reader = Reader::new(raw.body);
        reader.skip().expect("the performative");
        let payload = reader.rest().to_vec();
        let mut reader = Reader::new(tail.bytes);
        let fields = (0..tail.count)
            .map(|_| reader.skip().expect("a field").to_vec())
            .collect();
        Frame {
            channel: raw.channel.0,
            code,
            fields,
            payload,
            size: bytes.len(),
        }
    }

    pub(crate) fn raw(&self, index: usize) -> &[u8] {
        self.fields.get(index).map_or(NULL, Vec::as_slice)
    }

    pub(crate) fn value(&self, index: usize) -> Value {
        Value::decode(self.raw(index)).expect("a value")
    }

    pub(crate) fn uint(&self, index: usize) -> Option<u32> {
        match self.value(index) {
            Value::Uint(value) => Some(value),
            Value::Ushort(value) => Some(u32::from(value)),
            _ => None,
        }
    }

    pub(crate) fn text(&self, index: usize) -> Option<String> {
        self.value(index).as_text().map(str::to_owned)
    }

    pub(crate) fn flag(&self, index: usize) -> bool {
        self.value(index) == Value::Boolean(true)
    }

    /// The fields from `index` on, one behind the other, as they are encoded.
    pub(crate) fn tail(&self, index: usize) -> &[Vec<u8>] {
        self.fields.get(index..).unwrap_or_default()
    }
}

pub(crate) fn encoded(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    value.encode(&mut out);
    out
}

pub(crate) fn uint(value: u32) -> Vec<u8> {
    encoded(&Value::Uint(value))
}

pub(crate) fn flag(value: bool) -> Vec<u8> {
    encoded(&Value::Boolean(value))
}

pub(crate) fn string(text: &str) -> Vec<u8> {
    encoded(&Value::String(text.into()))
}

pub(crate) fn null() -> Vec<u8> {
    NULL.to_vec()
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Device,
    Hub,
}

impl End {
    pub(crate) fn other(self) -> End {
        match self {
            End::Device => End::Hub,
            End::Hub => End::Device,
        }
    }
}

/// What an end announces, and the numbers that it chooses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Side {
    pub(crate) max_frame_size: u32,
    pub(crate) channel: u16,
    pub(crate) incoming_window: u32,
    pub(crate) first_transfer: u32,
}

impl Default for Side {
    fn default() -> Self {
        Side {
            max_frame_size: 65536,
            channel: 0,
            incoming_window: 0x7fff_ffff,
            first_transfer: 0,
        }
    }
}

/// A router between a device and a hub, each with one session.
pub(crate) struct Tap {
    pub(crate) router: Router,
    pub(crate) now: Instant,
    device: ConnectionKey,
    hub: Option<ConnectionKey>,
    device_side: Side,
    hub_side: Side,
    /// Frames that have come out and that no test has looked at.
    heard: [Vec<u8>; 2],
}

pub(crate) const CONTAINER: &str = "dev";

impl Tap {
    /// The device has begun its session; the hub is there when it is dialed.
    pub(crate) fn new(settings: RouterSettings, device_side: Side, hub_side: Side) -> Self {
        let now = Instant::now();
        let mut router = Router::new(settings, now);
        let info = TransportInfo {
            peer: CONTAINER.into(),
            tls: None,
        };
        let device = router.accepted(ListenerId(0), info, now).expect("room");
        let mut tap = Tap {
            router,
            now,
            device,
            hub: None,
            device_side,
            hub_side,
            heard: [Vec::new(), Vec::new()],
        };
        let mut bytes = AMQP_HEADER.to_vec();
        bytes.extend(open(CONTAINER, device_side).bytes(Form::default()));
        bytes.extend(begin(device_side, None).bytes(Form::default()));
        tap.say_bytes(End::Device, &bytes);
        let begun = tap.hear(End::Device);
        assert_eq!(
            begun.iter().map(|f| f.code).collect::<Vec<_>>(),
            [wire::OPEN, wire::BEGIN]
        );
        tap
    }

    fn key(&self, end: End) -> ConnectionKey {
        match end {
            End::Device => self.device,
            End::Hub => self.hub.expect("a hub"),
        }
    }

    /// Says a frame, as itself.
    pub(crate) fn say(&mut self, end: End, frame: &Frame) {
        self.say_as(end, frame, Form::default());
    }

    pub(crate) fn say_as(&mut self, end: End, frame: &Frame, form: Form) {
        self.say_bytes(end, &frame.bytes(form));
    }

    pub(crate) fn say_bytes(&mut self, end: End, bytes: &[u8]) {
        let key = self.key(end);
        self.router.handle_input(key, bytes, self.now);
        self.settle();
    }

    /// Lets everything that is written out, and dials.
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            while let Some(action) = self.router.poll_action() {
                moved = true;
                if let Action::Dial(connector) = action {
                    let info = TransportInfo {
                        peer: "hub".into(),
                        tls: None,
                    };
                    self.hub = self.router.dialed(connector, info, self.now);
                    let key = self.hub.expect("a dial that was asked for");
                    self.router.handle_input(key, &welcome(self.hub_side), self.now);
                }
            }
            for (index, key) in [Some(self.device), self.hub].into_iter().enumerate() {
                let Some(key) = key else { continue };
                let waiting = self.router.transmit(key).to_vec();
                if !waiting.is_empty() {
                    moved = true;
                    if let Some(heard) = self.heard.get_mut(index) {
                        heard.extend(&waiting);
                    }
                    self.router.transmitted(key, waiting.len(), self.now);
                }
            }
            if !moved {
                return;
            }
        }
    }

    /// The hub's transport breaks.
    pub(crate) fn lose_hub(&mut self) {
        let key = self.hub.take().expect("a hub");
        self.router
            .transport_lost(key, "Connection reset by peer", self.now);
        self.settle();
    }

    /// All frames that have come to an end since it was last asked.
    pub(crate) fn hear(&mut self, end: End) -> Vec<Frame> {
        let heard = match end {
            End::Device => &mut self.heard[0],
            End::Hub => &mut self.heard[1],
        };
        let bytes = std::mem::take(heard);
        let mut rest = bytes.as_slice();
        let mut frames = Vec::new();
        while let Some(size) = rest.first_chunk::<4>() {
            if rest.starts_with(b"AMQP") {
                rest = rest.get(8..).expect("a header");
                continue;
            }
            let size = usize::try_from(u32::from_be_bytes(*size)).expect("a size");
            let (frame, behind) = rest.split_at(size);
            rest = behind;
            frames.push(Frame::decode(frame));
        }
        frames
    }

    /// The one frame that has come to an end.
    pub(crate) fn hear_one(&mut self, end: End) -> Frame {
        let mut frames = self.hear(end);
        assert_eq!(frames.len(), 1, "{end:?}: {frames:?}");
        frames.remove(0)
    }

    /// A device's attach goes to the hub, behind the hub's begin: what the hub hears of it.
    pub(crate) fn attach(&mut self, attach: &Frame, form: Form) -> Frame {
        self.say_as(End::Device, attach, form);
        let mut frames = self.hear(End::Hub);
        if let Some(at) = frames.iter().position(|frame| frame.code == wire::BEGIN) {
            let theirs = frames.remove(at).channel;
            let answer = begin(self.hub_side, Some(theirs));
            self.say(End::Hub, &answer);
        }
        frames.retain(|frame| !matches!(frame.code, wire::SASL_INIT | wire::OPEN));
        assert_eq!(frames.len(), 1, "{frames:?}");
        frames.remove(0)
    }

    pub(crate) fn channel(&self, end: End) -> u16 {
        self.side(end).channel
    }

    pub(crate) fn side(&self, end: End) -> Side {
        match end {
            End::Device => self.device_side,
            End::Hub => self.hub_side,
        }
    }
}

fn open(container: &str, side: Side) -> Frame {
    let fields = vec![
        string(container),
        null(),
        uint(side.max_frame_size),
        encoded(&Value::Ushort(8191)),
    ];
    Frame::new(0, wire::OPEN, fields)
}

fn begin(side: Side, answers: Option<u16>) -> Frame {
    let fields = vec![
        answers.map_or_else(null, |channel| encoded(&Value::Ushort(channel))),
        uint(side.first_transfer),
        uint(side.incoming_window),
        uint(u32::MAX),
    ];
    Frame::new(side.channel, wire::BEGIN, fields)
}

/// A hub's whole part of the handshake, said at once.
fn welcome(side: Side) -> Vec<u8> {
    let mut bytes = SASL_HEADER.to_vec();
    let mechanisms = vec![Value::Symbol("ANONYMOUS".into())];
    wire::Frame::new(0, wire::SASL_MECHANISMS, mechanisms).encode(&mut bytes);
    wire::Frame::new(0, wire::SASL_OUTCOME, vec![Value::Ubyte(0)]).encode(&mut bytes);
    bytes.extend(AMQP_HEADER);
    bytes.extend(open("hub", side).bytes(Form::default()));
    bytes
}

// ---- links -------------------------------------------------------------------------------------------------------

/// The device's handle of its sender, and of its receiver; the router uses the same, towards both.
pub(crate) const UP: u32 = 0;
pub(crate) const DOWN: u32 = 1;
/// The hub's own handles are so much higher.
pub(crate) const HUB_HANDLES: u32 = 10;

/// The handle that an end uses for a link.
pub(crate) fn handle(end: End, link: u32) -> u32 {
    match end {
        End::Device => link,
        End::Hub => link + HUB_HANDLES,
    }
}

/// A tap with a link each way, `up` and `down`, with 100 credits.
pub(crate) fn linked(device: Side, hub: Side) -> Tap {
    linked_with(crate::world::settings(), device, hub)
}

pub(crate) fn linked_with(settings: RouterSettings, device: Side, hub: Side) -> Tap {
    let mut tap = Tap::new(settings, device, hub);
    for (link, name, device_sends) in [(UP, "up", true), (DOWN, "down", false)] {
        tap.link(link, name, device_sends);
    }
    tap
}

impl Tap {
    /// Attaches a link of the device, answers it, and gives its sender 100 credits.
    pub(crate) fn link(&mut self, link: u32, name: &str, device_sends: bool) {
        let attach = attach(name, link, device_sends);
        let heard = self.attach(&attach, Form::default());
        self.answer(&heard, link);
        assert_eq!(self.hear_one(End::Device).text(0).as_deref(), Some(name));
        let receiver = if device_sends { End::Hub } else { End::Device };
        self.flow(receiver, link, &[null(), uint(100)]);
        assert_eq!(self.hear_one(receiver.other()).uint(6), Some(100));
    }

    /// The hub answers an attach with what was asked for.
    pub(crate) fn answer(&mut self, heard: &Frame, link: u32) {
        let mut answer = heard.clone();
        answer.channel = self.channel(End::Hub);
        let role = flag(!heard.flag(2));
        for (place, field) in [(1, uint(handle(End::Hub, link))), (2, role)] {
            if let Some(slot) = answer.fields.get_mut(place) {
                *slot = field;
            }
        }
        self.say(End::Hub, &answer);
    }

    /// A flow of a link, from its delivery-count on.
    pub(crate) fn flow(&mut self, by: End, link: u32, tail: &[Vec<u8>]) {
        let mut fields = vec![
            uint(0),
            uint(0x7fff_ffff),
            uint(0),
            uint(u32::MAX),
            uint(handle(by, link)),
        ];
        fields.extend(tail.iter().cloned());
        self.say(by, &Frame::new(self.channel(by), wire::FLOW, fields));
    }

    /// A transfer of a link, from its delivery-id on.
    pub(crate) fn transfer(&mut self, by: End, link: u32, tail: &[Vec<u8>], payload: &[u8]) {
        let mut fields = vec![uint(handle(by, link))];
        fields.extend(tail.iter().cloned());
        let frame = Frame::new(self.channel(by), wire::TRANSFER, fields).with_payload(payload);
        self.say(by, &frame);
    }

    /// Frames other than the router's own refreshing of its window.
    pub(crate) fn hear_links(&mut self, end: End) -> Vec<Frame> {
        let mut frames = self.hear(end);
        frames.retain(|frame| frame.code != wire::FLOW || frame.raw(4) != NULL);
        frames
    }
}

/// An attach of the device.
pub(crate) fn attach(name: &str, handle: u32, is_sender: bool) -> Frame {
    let (source, target) = match is_sender {
        true => ("here", "devices/d1/events"),
        false => ("devices/d1/commands", "here"),
    };
    let fields = vec![
        string(name),
        uint(handle),
        flag(!is_sender),
        null(),
        null(),
        encoded(&wire::terminus(0x28, source)),
        encoded(&wire::terminus(0x29, target)),
    ];
    Frame::new(0, wire::ATTACH, fields)
}

pub(crate) fn binary(bytes: &[u8]) -> Vec<u8> {
    encoded(&Value::Binary(bytes.to_vec()))
}

pub(crate) fn symbol(text: &str) -> Vec<u8> {
    encoded(&wire::symbol(text))
}
