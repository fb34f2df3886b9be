//! Sequences of inputs to a whole router: legal conversations that turn illegal, transports that come and go, peers
//! that stop reading. Whatever happens, every byte it sends is a well-formed frame, and in the end nothing is left.
#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use linkrouterd::amqp::frame::{Frame, FrameType};
use linkrouterd::amqp::header::ProtocolHeader;
use linkrouterd::amqp::originate::{self, OpenFields};
use linkrouterd::amqp::performative::{Performative, Role};
use linkrouterd::amqp::relay::SessionFlow;
use linkrouterd::amqp::sasl::SaslFrame;
use linkrouterd::amqp::serial::{Channel, DeliveryId, Handle, TransferId};
use linkrouterd::amqp::value::Value;
use linkrouterd::router::settings::policy::{
    Addresses, GroupSettings, PolicySettings, RemoteHost, VhostPolicy, VhostSettings,
};
use linkrouterd::router::settings::{
    CbsMode, ConnectorId, ConnectorRole, ConnectorSettings, Destination, Direction, ErrorConditions,
    HostPort, HubLoss, ListenerId, ListenerRole, ListenerSettings, Matcher, PeerLimits, RouteSettings,
    RouterSettings, SharingSettings,
};
use linkrouterd::router::{Action, ConnectionKey, Router, TransportInfo, TransportState, Verdict};

const MAX_PEERS: usize = 6;
/// Channels that peers use of their own accord.
const CHANNELS: usize = 3;

fuzz_target!(|data: &[u8]| {
    let mut world = World::new();
    let mut bytes = Bytes(data);
    if bytes.next() % 4 != 0 {
        world.tunnel();
    }
    while !bytes.0.is_empty() {
        world.step(&mut bytes);
        world.settle();
    }
    world.end();
});

/// The fuzzer's choices, one after the other; zeros when there are no more.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn next(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::from(self.next()) % bound.max(1)
    }

    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at_checked(count).unwrap_or((self.0, &[]));
        self.0 = rest;
        taken
    }

    /// Small, or where serial numbers wrap.
    fn number(&mut self) -> u32 {
        match self.next() {
            small @ 0..=0xef => u32::from(small % 6),
            large => u32::MAX - u32::from(large & 7),
        }
    }
}

/// One transport, and what its peer has to answer.
struct Peer {
    key: ConnectionKey,
    is_upstream: bool,
    is_reading: bool,
    /// What the router sent and is not looked at yet.
    received: Vec<u8>,
    /// Channels on which the peer has begun a session in answer to the router.
    begun: Vec<Channel>,
    /// The next delivery-id on each channel.
    next_ids: [u32; CHANNELS],
    /// Attaches of the router that have no answer yet.
    attaches: Vec<(Channel, String, Handle, Role)>,
}

struct World {
    router: Router,
    now: Instant,
    peers: Vec<Peer>,
    dials: Vec<ConnectorId>,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let router = Router::new(settings(), now);
        World {
            router,
            now,
            peers: Vec::new(),
            dials: Vec::new(),
        }
    }

    /// A device with a link in each direction, both answered by the hub: where most conversations go wrong.
    fn tunnel(&mut self) {
        self.accept(&mut Bytes(&[1]));
        let mut attaches = Vec::new();
        write_attach(&mut attaches, Channel(0), "a", Handle(0), Role::Sender);
        write_attach(&mut attaches, Channel(0), "b", Handle(1), Role::Receiver);
        self.feed(0, &mut Bytes(&[]), &attaches);
        self.settle();
        self.dial(&mut Bytes(&[1]));
        self.settle();
        for _ in 0..2 {
            // The hub is the second peer, and grants ten credits.
            self.answer(&mut Bytes(&[1, 10]));
            self.settle();
        }
        assert_eq!(self.peers.len(), 2);
        assert!(self.peers.iter().all(|peer| peer.attaches.is_empty()));
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.below(16) {
            0 => self.accept(bytes),
            1 => self.dial(bytes),
            2 => self.answer(bytes),
            3 => self.lose(bytes),
            4 => {
                self.now += Duration::from_millis(u64::from(bytes.next()) * 100);
                self.router.handle_timeout(self.now);
            }
            5 => {
                if let Some(peer) = self.pick(bytes) {
                    let peer = &mut self.peers[peer];
                    peer.is_reading = !peer.is_reading;
                }
            }
            6 => {
                let Some(index) = self.pick(bytes) else { return };
                let count = bytes.below(40);
                let noise = bytes.take(count);
                self.feed(index, bytes, noise);
            }
            7 => {
                let mut settings = settings();
                match bytes.below(3) {
                    0 => {}
                    1 => settings.connectors[0].sasl_username = Some(bytes.next().to_string()),
                    _ => {
                        settings.connectors.clear();
                        settings.routes.clear();
                    }
                }
                self.router.reconfigure(settings, |_, _| true, self.now);
            }
            _ => {
                let Some(index) = self.pick(bytes) else { return };
                let mut frame = Vec::new();
                write_frame(bytes, &mut self.peers[index].next_ids, &mut frame);
                // Now and then with one byte changed.
                if bytes.next() > 240 {
                    let at = bytes.below(frame.len());
                    frame[at] = bytes.next();
                }
                self.feed(index, bytes, &frame);
            }
        }
    }

    fn pick(&self, bytes: &mut Bytes<'_>) -> Option<usize> {
        if self.peers.is_empty() {
            None
        } else {
            Some(bytes.below(self.peers.len()))
        }
    }

    fn accept(&mut self, bytes: &mut Bytes<'_>) {
        if self.peers.len() >= MAX_PEERS {
            return;
        }
        let choice = bytes.next();
        // Every fourth is a broker, which answers the router's attaches.
        let listener = usize::from(choice & 6 == 6);
        if let Some(key) = self.router.accepted(ListenerId(listener), transport(), self.now) {
            self.peers.push(peer(key, listener == 1));
            let mut hello = Vec::new();
            if choice % 2 == 0 {
                hello.extend(ProtocolHeader::Sasl.bytes());
                SaslFrame::Init {
                    mechanism: "ANONYMOUS",
                    initial_response: None,
                }
                .write(&mut hello);
            }
            write_hello(bytes, true, &mut hello);
            self.router.handle_input(key, &hello, self.now);
        }
    }

    fn dial(&mut self, bytes: &mut Bytes<'_>) {
        let Some(connector) = self.dials.pop() else { return };
        if bytes.next() % 8 == 0 {
            return self.router.dial_failed(connector, "refused", self.now);
        }
        if let Some(key) = self.router.dialed(connector, transport(), self.now) {
            self.peers.push(peer(key, true));
            let mut hello = ProtocolHeader::Sasl.bytes().to_vec();
            SaslFrame::Mechanisms(vec!["ANONYMOUS"]).write(&mut hello);
            SaslFrame::Outcome(linkrouterd::amqp::sasl::SaslCode::Ok).write(&mut hello);
            write_hello(bytes, false, &mut hello);
            self.router.handle_input(key, &hello, self.now);
        }
    }

    /// The hub answers an attach as a hub does, on the channel of the same number.
    fn answer(&mut self, bytes: &mut Bytes<'_>) {
        let Some(index) = self.pick(bytes) else { return };
        let peer = &mut self.peers[index];
        let Some((channel, name, handle, role)) = peer.attaches.pop() else {
            return;
        };
        let key = peer.key;
        let mut frames = Vec::new();
        // A session is begun once; by a hub that is out of its mind, twice.
        if !peer.begun.contains(&channel) || bytes.next() > 250 {
            peer.begun.push(channel);
            originate::write_begin(&mut frames, channel, Some(channel), numbers(0, 1000), 255);
        }
        write_attach(&mut frames, channel, &name, handle, role.other());
        if role == Role::Sender {
            let fields = [0, 1000, 0, 1000, handle.0, 0, u32::from(bytes.next())]
                .map(Value::Uint)
                .to_vec();
            write_composite(&mut frames, channel, 0x13, fields, &[]);
        }
        self.router.handle_input(key, &frames, self.now);
    }

    fn lose(&mut self, bytes: &mut Bytes<'_>) {
        let Some(index) = self.pick(bytes) else { return };
        let peer = self.peers.swap_remove(index);
        match bytes.next() % 2 {
            0 => self.router.transport_lost(peer.key, "reset", self.now),
            _ => self.router.handle_eof(peer.key, self.now),
        }
    }

    fn feed(&mut self, index: usize, bytes: &mut Bytes<'_>, input: &[u8]) {
        let key = self.peers[index].key;
        if self.router.may_read(key) {
            let cut = bytes.below(input.len() + 1);
            let (first, second) = input.split_at(cut);
            self.router.handle_input(key, first, self.now);
            self.router.handle_input(key, second, self.now);
        }
    }

    /// What a driver does after any input.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            let mut is_quiet = true;
            while let Some(action) = self.router.poll_action() {
                is_quiet = false;
                match action {
                    Action::Dial(connector) => self.dials.push(connector),
                    Action::Authenticate(key, login) => {
                        let verdict = match login.password.expose().first() {
                            Some(b'a'..=b'z') => Verdict::Accepted,
                            Some(b'?') => Verdict::Unknown,
                            Some(_) | None => Verdict::Refused,
                        };
                        self.router.authenticated(key, verdict, self.now);
                    }
                    Action::Wake(_) => {}
                }
            }
            for index in 0..self.peers.len() {
                is_quiet &= !self.write(index);
            }
            self.peers.retain(|peer| {
                let is_alive =
                    self.router.transport_state(peer.key) == TransportState::Open || !peer.is_reading;
                if !is_alive {
                    self.router.transport_lost(peer.key, "closed", self.now);
                }
                is_alive
            });
            if is_quiet {
                return;
            }
        }
        panic!("the router never comes to rest");
    }

    fn write(&mut self, index: usize) -> bool {
        let peer = &mut self.peers[index];
        let sent = self.router.transmit(peer.key);
        if sent.is_empty() || !peer.is_reading {
            return false;
        }
        peer.received.extend_from_slice(sent);
        let count = sent.len();
        self.router.transmitted(peer.key, count, self.now);
        peer.look();
        true
    }

    /// Everything ends: nothing may be left, and nothing may want to be dialed for nobody.
    fn end(&mut self) {
        self.router.shutdown(self.now);
        for peer in &mut self.peers {
            peer.is_reading = true;
        }
        self.settle();
        for peer in std::mem::take(&mut self.peers) {
            self.router.transport_lost(peer.key, "gone", self.now);
        }
        while self.router.poll_action().is_some() {}
        assert!(self.router.is_empty());
    }
}

impl Peer {
    /// Reads what the router sent: it must be well formed, whatever was sent to it.
    fn look(&mut self) {
        let mut at = 0;
        while let Some(rest) = self.received.get(at..).filter(|rest| rest.len() >= 8) {
            if rest.starts_with(b"AMQP") {
                at += 8;
                continue;
            }
            let size = u32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            assert!((8..=65_536).contains(&size), "a frame of {size} bytes");
            let Some(unit) = rest.get(..size) else { break };
            let frame = Frame::parse(unit).expect("a frame");
            if frame.frame_type == FrameType::Amqp && !frame.body.is_empty() {
                match Performative::parse(frame.body).expect("a performative") {
                    Performative::Attach(attach) if self.is_upstream => {
                        let attach = (frame.channel, attach.name.to_owned(), attach.handle, attach.role);
                        self.attaches.push(attach);
                    }
                    _ => {}
                }
            }
            at += size;
        }
        self.received.drain(..at);
    }
}

fn peer(key: ConnectionKey, is_upstream: bool) -> Peer {
    Peer {
        key,
        is_upstream,
        is_reading: true,
        received: Vec::new(),
        begun: Vec::new(),
        next_ids: [0; CHANNELS],
        attaches: Vec::new(),
    }
}

fn transport() -> TransportInfo {
    TransportInfo {
        peer: "127.0.0.1:1".to_owned(),
        ..TransportInfo::default()
    }
}

/// Header, open and, from a device, begin, in one packet.
fn write_hello(bytes: &mut Bytes<'_>, begins: bool, out: &mut Vec<u8>) {
    out.extend(ProtocolHeader::Amqp.bytes());
    let sizes = [512, 600, 4096, u32::MAX];
    originate::write_open(
        out,
        &OpenFields {
            container_id: "peer",
            hostname: None,
            max_frame_size: sizes[bytes.below(sizes.len())],
            channel_max: u16::from(bytes.next()),
            idle_time_out: (bytes.next() % 2 == 0).then_some(30_000),
            connection_number: 1,
            failover: &[],
        },
    );
    if begins {
        originate::write_begin(out, Channel(0), None, numbers(0, 1000), 255);
    }
}

/// What a begin says of a session's windows.
fn numbers(next_outgoing_id: u32, incoming_window: u32) -> SessionFlow {
    SessionFlow {
        next_incoming_id: None,
        incoming_window,
        next_outgoing_id: TransferId(next_outgoing_id),
        outgoing_window: u32::MAX,
    }
}

/// One frame of any kind, with small numbers that may or may not mean something.
fn write_frame(bytes: &mut Bytes<'_>, next_ids: &mut [u32; CHANNELS], out: &mut Vec<u8>) {
    // Mostly the first session and its first links.
    let lane = [0, 0, 0, 0, 0, 1, 2][bytes.below(7)];
    let channel = Channel(lane as u16);
    let handle = Handle([0, 0, 0, 1, 1, 2, 3][bytes.below(7)]);
    let number = bytes.number();
    let flag = bytes.next();
    let role = if flag & 1 == 0 {
        Role::Sender
    } else {
        Role::Receiver
    };
    let error = Value::Described(
        Box::new(Value::Ulong(0x1d)),
        Box::new(Value::List(vec![Value::Symbol("amqp:internal-error".to_owned())])),
    );
    let some_error = if flag & 2 == 0 { error } else { Value::Null };
    let id = Value::Uint(number);
    match bytes.below(10) {
        0 => {
            let remote = (flag & 2 == 0).then_some(channel);
            next_ids[lane] = number;
            originate::write_begin(out, channel, remote, numbers(number, number % 50), 255);
        }
        1 | 2 => {
            let name = ["a", "b", "c"][bytes.below(3)];
            write_attach(out, channel, name, handle, role);
        }
        3 | 4 => {
            let link = flag & 4 == 0;
            let credit = Value::Uint(u32::from(bytes.next()));
            let mut fields = vec![
                Value::Uint(number),
                Value::Uint(100),
                Value::Uint(number),
                Value::Uint(100),
            ];
            if link {
                let delivery_count = if flag & 8 == 0 { Value::Uint(0) } else { id };
                fields.extend([Value::Uint(handle.0), delivery_count, credit, Value::Null]);
                fields.extend([Value::Boolean(flag & 16 != 0), Value::Boolean(flag & 32 != 0)]);
            }
            write_composite(out, channel, 0x13, fields, &[]);
        }
        5..=7 => {
            let delivery_id = match flag & 6 {
                0 if bytes.next() > 220 => id,
                2 => Value::Null,
                _ => {
                    let next = next_ids[lane];
                    next_ids[lane] = next.wrapping_add(1);
                    Value::Uint(next)
                }
            };
            let fields = vec![
                Value::Uint(handle.0),
                delivery_id,
                Value::Binary(vec![7]),
                Value::Uint(0),
                Value::Boolean(flag & 8 != 0),
                Value::Boolean(flag & 16 != 0),
                Value::Null,
                Value::Null,
                Value::Null,
                Value::Boolean(flag & 0xe0 == 0xe0),
            ];
            let payload = vec![0x5a; usize::from(bytes.next()) * 16];
            write_composite(out, channel, 0x14, fields, &payload);
        }
        8 => {
            let state = Value::Described(Box::new(Value::Ulong(0x24)), Box::new(Value::List(vec![])));
            let last = DeliveryId(number).plus(u32::from(bytes.next() % 4));
            let settled = Value::Boolean(flag & 4 == 0);
            let fields = vec![
                Value::Boolean(role.is_receiver()),
                id,
                Value::Uint(last.0),
                settled,
                state,
            ];
            write_composite(out, channel, 0x15, fields, &[]);
        }
        _ => match flag % 8 {
            0 => write_composite(out, channel, 0x17, vec![some_error], &[]),
            1 => write_composite(out, channel, 0x18, vec![some_error], &[]),
            _ => {
                let closed = Value::Boolean(flag & 8 == 0);
                write_composite(
                    out,
                    channel,
                    0x16,
                    vec![Value::Uint(handle.0), closed, some_error],
                    &[],
                );
            }
        },
    }
}

fn write_attach(out: &mut Vec<u8>, channel: Channel, name: &str, handle: Handle, role: Role) {
    let terminus = |code| {
        let address = Value::String("devices/d/messages".to_owned());
        Value::Described(Box::new(Value::Ulong(code)), Box::new(Value::List(vec![address])))
    };
    let count = if role == Role::Sender {
        Value::Uint(0)
    } else {
        Value::Null
    };
    let fields = vec![
        Value::String(name.to_owned()),
        Value::Uint(handle.0),
        Value::Boolean(role.is_receiver()),
        Value::Null,
        Value::Null,
        terminus(0x28),
        terminus(0x29),
        Value::Null,
        Value::Null,
        count,
    ];
    write_composite(out, channel, 0x12, fields, &[]);
}

fn write_composite(out: &mut Vec<u8>, channel: Channel, code: u64, fields: Vec<Value>, payload: &[u8]) {
    linkrouterd::amqp::frame::write_frame(out, FrameType::Amqp, channel, |out| {
        Value::Described(Box::new(Value::Ulong(code)), Box::new(Value::List(fields))).encode(out);
        out.extend_from_slice(payload);
    });
}

/// Everybody is admitted; some attaches and some messages are too much.
fn policy() -> PolicySettings {
    let group = GroupSettings {
        remote_hosts: vec![RemoteHost::Any],
        channel_max: Some(5),
        max_senders: Some(4),
        max_message_size: 300,
        sources: Addresses::Listed(vec!["devices/*".to_owned()]),
        targets: Addresses::Patterns(vec!["devices/*/#".to_owned()]),
        ..GroupSettings::new("everybody")
    };
    PolicySettings {
        max_message_size: 0,
        vhosts: Some(VhostPolicy {
            default_vhost: "$default".to_owned(),
            name_patterns: false,
            vhosts: vec![VhostSettings {
                name: "$default".to_owned(),
                max_connections: 5,
                unknown_users: Some("everybody".to_owned()),
                groups: vec![group],
                ..VhostSettings::default()
            }],
        }),
    }
}

fn settings() -> RouterSettings {
    let limits = PeerLimits {
        max_frame_size: 16_384,
        channel_max: 7,
        incoming_window: None,
        idle_timeout: Some(Duration::from_secs(16)),
    };
    let route = |direction, connection: &str, added: &str| RouteSettings {
        name: "route".to_owned(),
        matcher: Matcher::Prefix("devices".to_owned()),
        direction,
        destination: Destination::Connection(connection.to_owned()),
        add_external_prefix: added.to_owned(),
        del_external_prefix: "dev".to_owned(),
    };
    let listener = |name: &str, role| ListenerSettings {
        name: name.to_owned(),
        address: "127.0.0.1:5672".to_owned(),
        role,
        multi_tenant: false,
        policy_vhost: None,
        limits,
        handshake_timeout: Duration::from_secs(10),
        sasl_mechanisms: vec!["ANONYMOUS".to_owned(), "PLAIN".to_owned()],
        authenticate_peer: false,
        require_encryption: false,
        failover: Vec::new(),
        on_hub_lost: HubLoss::Detach,
    };
    RouterSettings {
        container_id: "router".to_owned(),
        listeners: vec![
            listener("devices", ListenerRole::Normal),
            listener("brokers", ListenerRole::RouteContainer),
        ],
        connectors: vec![ConnectorSettings {
            name: "hub".to_owned(),
            host: HostPort {
                host: "127.0.0.1".to_owned(),
                port: 5671,
            },
            failover: Vec::new(),
            server_name: Some("hub".to_owned()),
            believes_failover_list: true,
            uses_tls: true,
            role: ConnectorRole::OnDemand,
            role_name: "on-demand".to_owned(),
            limits,
            sasl_mechanisms: vec![],
            sasl_username: None,
            sasl_password: None,
            has_client_certificate: false,
            dial_timeout: Duration::from_secs(10),
            sharing: SharingSettings {
                cbs: CbsMode::Tunnel,
                ..SharingSettings::default()
            },
        }],
        routes: vec![
            route(Direction::In, "hub", "hub/"),
            route(Direction::Out, "hub", ""),
            route(Direction::In, "brokers", ""),
            route(Direction::Out, "brokers", "x/"),
        ],
        max_connections: 100,
        policy: policy(),
        error_conditions: ErrorConditions::Amqp,
        allow_resumable_link_route: true,
        attach_timeout: Duration::from_secs(15),
        linger: Duration::from_secs(30),
        trace: Default::default(),
    }
}
