//! A scripted `$cbs` node on a hub of the world, and what devices say to it: messages are built and read with the
//! message codec, frames with the peers of this suite.

use std::time::Duration;

use linkrouterd::amqp::message::{Body, Message, Properties};
use linkrouterd::amqp::value::Value;
use linkrouterd::router::settings::{
    CbsMode, Destination, Direction, Matcher, RouteSettings, RouterSettings,
};

use super::peer::{Announces, Auto, Peer};
use super::wire::{self, composite, string};
use super::{DEVICE_AUTO, HUB_AUTO, PeerId, World, settings};

/// A hub that accepts what it is sent, with the credit that IoT Hub gives.
pub(crate) const CBS_HUB_AUTO: Auto = Auto {
    credit: 100,
    accept: true,
    ..HUB_AUTO
};

/// The usual settings, with `$cbs` routed and relayed.
pub(crate) fn cbs_settings() -> RouterSettings {
    let mut settings = settings();
    for connector in &mut settings.connectors {
        connector.sharing.cbs = CbsMode::Relay;
    }
    for direction in [Direction::In, Direction::Out] {
        settings.routes.push(RouteSettings {
            name: format!("cbs {direction:?}"),
            matcher: Matcher::Prefix("$cbs".into()),
            direction,
            destination: Destination::Connection("HUB".into()),
            add_external_prefix: String::new(),
            del_external_prefix: String::new(),
        });
    }
    settings
}

/// A world of these settings whose hub is one of [`CBS_HUB_AUTO`].
pub(crate) fn cbs_world(settings: RouterSettings) -> World {
    let mut world = World::new(settings);
    world.hub = Some((CBS_HUB_AUTO, Announces::default()));
    world
}

// ---- what a device says ------------------------------------------------------------------------------------------

/// A SAS token for a device of the hub, with a signature that nobody looks at.
pub(crate) fn token(device: &str) -> String {
    format!("SharedAccessSignature sr=hub.example%2Fdevices%2F{device}&sig=c2ln&se=2000000000")
}

/// The resource of [`token`].
pub(crate) fn audience(device: &str) -> String {
    format!("hub.example/devices/{device}")
}

/// A put-token of a device.
pub(crate) fn put_token(device: &str, id: Value) -> Message {
    let text = token(device);
    request(
        id,
        "put-token",
        SAS,
        &audience(device),
        Body::Value(string(&text)),
    )
}

/// The type of a SAS token.
pub(crate) const SAS: &str = "servicebus.windows.net:sastoken";

pub(crate) fn request(id: Value, operation: &str, kind: &str, name: &str, body: Body) -> Message {
    Message {
        properties: Properties {
            message_id: Some(id).filter(|id| *id != Value::Null),
            ..Properties::default()
        },
        application_properties: vec![
            (string("operation"), string(operation)),
            (string("type"), string(kind)),
            (string("name"), string(name)),
        ],
        body,
        ..Message::default()
    }
}

pub(crate) fn replying_to(mut message: Message, reply_to: &str) -> Message {
    message.properties.reply_to = Some(reply_to.into());
    message
}

pub(crate) fn encoded(message: &Message) -> Vec<u8> {
    let mut payload = Vec::new();
    message.encode(&mut payload);
    payload
}

/// A device with a `$cbs` pair on one session: handle 0 sends, handle 1 receives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CbsDevice {
    pub(crate) peer: PeerId,
    pub(crate) channel: u16,
}

/// Handle of a [`CbsDevice`]'s sender.
pub(crate) const ASKS: u32 = 0;
/// Handle of its receiver.
pub(crate) const HEARS: u32 = 1;

impl CbsDevice {
    /// One with a session on channel 0 and its pair attached, and credit for answers.
    pub(crate) fn new(world: &mut World, container: &str) -> Self {
        let peer = world.device_with(container, DEVICE_AUTO, Announces::default());
        Self::on(world, peer, 0)
    }

    /// The pair on a session that is there.
    pub(crate) fn on(world: &mut World, peer: PeerId, channel: u16) -> Self {
        let device = CbsDevice { peer, channel };
        let it = world.peer(peer);
        it.attach(channel, ASKS, "cbs-sender", true, "$cbs");
        it.attach(channel, HEARS, "cbs-receiver", false, "$cbs");
        world.run();
        world.peer(peer).grant(channel, HEARS, 100);
        world.run();
        device
    }

    /// Sends a request, unsettled.
    pub(crate) fn ask(self, world: &mut World, message: &Message) {
        world
            .peer(self.peer)
            .send(self.channel, ASKS, &encoded(message), false);
        world.run();
    }

    /// All answers so far.
    pub(crate) fn answers(self, world: &mut World) -> Vec<CbsAnswer> {
        answers_on(world.peer(self.peer), self.channel, HEARS)
    }

    /// Puts the token of this device id, which the hub accepts.
    #[track_caller]
    pub(crate) fn puts(self, world: &mut World, hub: &mut CbsHub, device: &str) {
        let before = self.answers(world).len();
        self.ask(world, &put_token(device, string(device)));
        let request = hub.request(world);
        hub.answer(world, &request, 200, "OK");
        assert_eq!(self.answers(world).len(), before + 1, "one answer more");
    }
}

/// What a device was told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CbsAnswer {
    pub(crate) id: Option<Value>,
    pub(crate) status: Option<Value>,
    pub(crate) description: Option<Value>,
}

impl CbsAnswer {
    /// Status code as a client reads it: only an int will do.
    #[track_caller]
    pub(crate) fn code(&self) -> i32 {
        match self.status {
            Some(Value::Int(code)) => code,
            ref other => panic!("{other:?} is no status of IoT Hub"),
        }
    }
}

/// The answers that have come on one link of a peer.
pub(crate) fn answers_on(peer: &mut Peer, channel: u16, handle: u32) -> Vec<CbsAnswer> {
    let received = peer.link(channel, handle).received.iter();
    received.map(|delivery| read_answer(&delivery.payload)).collect()
}

pub(crate) fn read_answer(payload: &[u8]) -> CbsAnswer {
    let message = Message::decode(payload).expect("an answer is a message");
    CbsAnswer {
        status: message.application_property("status-code").cloned(),
        description: message.application_property("status-description").cloned(),
        id: message.properties.correlation_id,
    }
}

// ---- what the hub hears and says ---------------------------------------------------------------------------------

/// The `$cbs` node of one connection to the hub.
#[derive(Debug)]
pub(crate) struct CbsHub {
    pub(crate) peer: PeerId,
    /// The pair that was read last, by its place among all, and how many of its requests.
    pair: usize,
    read: usize,
}

/// A request as the hub got it.
#[derive(Clone, Debug)]
pub(crate) struct CbsRequest {
    pub(crate) message: Message,
    /// Its delivery-id at the hub.
    pub(crate) delivery: u32,
}

impl CbsRequest {
    pub(crate) fn text(&self, property: &str) -> &str {
        let value = self.message.application_property(property);
        value.and_then(Value::as_text).unwrap_or_default()
    }

    /// The body, which is the token.
    pub(crate) fn token(&self) -> &str {
        match &self.message.body {
            Body::Value(Value::String(text)) => text,
            _ => "",
        }
    }
}

impl CbsHub {
    /// Of the youngest connection.
    pub(crate) fn new(world: &World) -> Self {
        Self::of(world.hub_id())
    }

    /// Of the connection to this hub.
    pub(crate) const fn of(peer: PeerId) -> Self {
        CbsHub {
            peer,
            pair: 0,
            read: 0,
        }
    }

    /// How many `$cbs` senders and receivers the router has attached on this connection.
    pub(crate) fn attached(&self, world: &mut World) -> (usize, usize) {
        let hub = world.peer(self.peer);
        (names_at(hub, true).len(), names_at(hub, false).len())
    }

    /// Channel and handle of the link that requests come on, if there is one.
    pub(crate) fn hears_on(&self, world: &mut World) -> Option<(u16, u32)> {
        let hub = world.peer(self.peer);
        names_at(hub, true).iter().find_map(|name| hub.find(name, false))
    }

    /// Channel and handle of the link that answers go on.
    pub(crate) fn answers_on(&self, world: &mut World) -> Option<(u16, u32)> {
        let hub = world.peer(self.peer);
        names_at(hub, false).iter().find_map(|name| hub.find(name, true))
    }

    /// The requests that have come since the last look.
    pub(crate) fn requests(&mut self, world: &mut World) -> Vec<CbsRequest> {
        let Some((channel, handle)) = self.hears_on(world) else {
            return Vec::new();
        };
        let (pairs, _) = self.attached(world);
        if std::mem::replace(&mut self.pair, pairs) != pairs {
            self.read = 0;
        }
        let received = &world.peer(self.peer).link(channel, handle).received;
        let fresh = received.iter().skip(self.read);
        let requests: Vec<CbsRequest> = fresh
            .map(|delivery| CbsRequest {
                message: Message::decode(&delivery.payload).expect("a request is a message"),
                delivery: delivery.id,
            })
            .collect();
        self.read += requests.len();
        requests
    }

    /// The only request that has come since the last look.
    #[track_caller]
    pub(crate) fn request(&mut self, world: &mut World) -> CbsRequest {
        let mut requests = self.requests(world);
        assert_eq!(requests.len(), 1, "one request");
        requests.remove(0)
    }

    /// Answers as IoT Hub does: the correlation-id and two application properties, unsettled.
    pub(crate) fn answer(&self, world: &mut World, request: &CbsRequest, status: i32, description: &str) {
        self.say(world, &answer_to(request, status, description));
        world.run();
    }

    /// Sends any message to the router's receiver.
    pub(crate) fn say(&self, world: &mut World, message: &Message) {
        let (channel, handle) = self.answers_on(world).expect("a link for answers");
        world
            .peer(self.peer)
            .send(channel, handle, &encoded(message), false);
    }

    /// Accepts the tokens of all requests that have come.
    pub(crate) fn accept_all(&mut self, world: &mut World) -> usize {
        let requests = self.requests(world);
        for request in &requests {
            self.answer(world, request, 200, "OK");
        }
        requests.len()
    }
}

pub(crate) fn answer_to(request: &CbsRequest, status: i32, description: &str) -> Message {
    Message {
        properties: Properties {
            correlation_id: request.message.properties.message_id.clone(),
            ..Properties::default()
        },
        application_properties: vec![
            (string("status-code"), Value::Int(status)),
            (string("status-description"), string(description)),
        ],
        ..Message::default()
    }
}

/// The names of the links to `$cbs` that the router has attached at a hub, in order: those it sends on, or the others.
fn names_at(hub: &Peer, sends: bool) -> Vec<String> {
    let attaches = hub.log.iter().filter(|frame| frame.code == wire::ATTACH);
    attaches
        .filter(|frame| frame.flag(2) != sends)
        .filter(|frame| {
            let terminus = frame.field(if sends { 6 } else { 5 });
            let address = composite(terminus).and_then(|(_, fields)| fields.first()?.as_text());
            address == Some("$cbs")
        })
        .map(|frame| frame.text(0).expect("a name").to_owned())
        .collect()
}

pub(crate) const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}
