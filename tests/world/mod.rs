//! One router, its peers, and a clock that only a test moves. Plays the driver's part, no more eagerly than a real one:
//! a connection is looked at when the router says so or when its own transport moved, never otherwise.
//!
//! `tests/router` tells it what happens, `tests/sim` leaves that to chance; both declare this module.

// Each of the two uses the part that it needs.
#![allow(dead_code)]

pub(crate) mod cbs_hub;
pub(crate) mod peer;
mod random;
pub(crate) mod wire;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use linkrouterd::router::settings::policy::PolicySettings;
use linkrouterd::router::settings::{
    CbsMode, ConnectorId, ConnectorRole, ConnectorSettings, Destination, Direction, ErrorConditions,
    HostPort, HubLoss, ListenerId, ListenerRole, ListenerSettings, Matcher, PeerLimits, RouteSettings,
    RouterSettings, SharingSettings,
};
use linkrouterd::router::{
    Action, ConnectionKey, ConnectorReport, Login, Reloaded, Router, TransportInfo, TransportState,
};

use peer::{Announces, Auto, Kind, Peer};
pub(crate) use random::Random;

/// How much of a stream crosses at once.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Chunks {
    One,
    Whole,
    Random,
}

/// A peer's place in [`World::peers`].
pub(crate) type PeerId = usize;

/// The transport of a peer, as its driver knows it.
#[derive(Debug)]
pub(crate) struct Transport {
    pub(crate) peer: Peer,
    /// Takes what the router writes.
    pub(crate) reads: bool,
    /// What it says reaches the router.
    pub(crate) speaks: bool,
    /// The router has said that it must not be read, and will wake us.
    is_paused: bool,
    /// The router, or the transport, has given a reason to look.
    wants_turn: bool,
}

impl Transport {
    pub(crate) fn is_paused(&self) -> bool {
        self.is_paused
    }

    fn is_ready(&self) -> bool {
        let has_input = self.speaks && !self.peer.out.is_empty() && !self.is_paused;
        self.peer.key.is_some() && (self.wants_turn || has_input)
    }
}

pub(crate) struct World {
    pub(crate) router: Router,
    pub(crate) now: Instant,
    pub(crate) peers: Vec<Transport>,
    pub(crate) chunks: Chunks,
    pub(crate) random: Random,
    /// Dials that nobody has answered.
    pub(crate) dials: Vec<ConnectorId>,
    /// Log-ins that nobody has judged.
    pub(crate) logins: Vec<(ConnectionKey, Login)>,
    /// What the hub is like when a dial is answered by itself; `None` leaves dials to the test.
    pub(crate) hub: Option<(Auto, Announces)>,
    pub(crate) hubs_made: usize,
    pub(crate) keeps_logs: bool,
    pub(crate) hub_ignores_credit: bool,
    /// Who has heard what, in which order: a number that is the same if all is.
    pub(crate) digest: u64,
}

pub(crate) const DEVICE_AUTO: Auto = Auto {
    begin: false,
    attach: false,
    detach: true,
    end: true,
    close: true,
    window: true,
    credit: 0,
    accept: false,
};

pub(crate) const HUB_AUTO: Auto = Auto {
    begin: true,
    attach: true,
    detach: true,
    end: true,
    close: true,
    window: true,
    credit: 0,
    accept: false,
};

pub(crate) fn host(name: &str) -> HostPort {
    HostPort {
        host: name.into(),
        port: 5671,
    }
}

pub(crate) fn settings() -> RouterSettings {
    let limits = PeerLimits {
        max_frame_size: 16384,
        channel_max: 1023,
        incoming_window: None,
        idle_timeout: None,
    };
    RouterSettings {
        container_id: "router".into(),
        listeners: vec![ListenerSettings {
            name: "devices".into(),
            address: "127.0.0.1:5672".into(),
            role: ListenerRole::Normal,
            multi_tenant: false,
            policy_vhost: None,
            limits,
            handshake_timeout: Duration::from_secs(10),
            sasl_mechanisms: vec!["ANONYMOUS".into()],
            authenticate_peer: false,
            require_encryption: false,
            failover: Vec::new(),
            on_hub_lost: HubLoss::Detach,
        }],
        connectors: vec![ConnectorSettings {
            name: "HUB".into(),
            host: host("hub.example"),
            failover: Vec::new(),
            server_name: None,
            believes_failover_list: true,
            uses_tls: true,
            role: ConnectorRole::OnDemand,
            role_name: "on-demand".into(),
            limits: PeerLimits {
                max_frame_size: 65536,
                channel_max: 32767,
                ..limits
            },
            sasl_mechanisms: Vec::new(),
            sasl_username: None,
            sasl_password: None,
            has_client_certificate: false,
            dial_timeout: Duration::from_secs(30),
            sharing: SharingSettings {
                cbs: CbsMode::Tunnel,
                ..SharingSettings::default()
            },
        }],
        routes: [Direction::In, Direction::Out]
            .into_iter()
            .map(|direction| RouteSettings {
                name: format!("devices {direction:?}"),
                matcher: Matcher::Prefix("devices/".into()),
                direction,
                destination: Destination::Connection("HUB".into()),
                add_external_prefix: String::new(),
                del_external_prefix: String::new(),
            })
            .collect(),
        max_connections: 1000,
        policy: PolicySettings::default(),
        error_conditions: ErrorConditions::Amqp,
        allow_resumable_link_route: true,
        attach_timeout: Duration::from_secs(15),
        linger: Duration::from_secs(60),
        trace: Default::default(),
    }
}

impl World {
    pub(crate) fn new(settings: RouterSettings) -> Self {
        let now = Instant::now();
        Self::of(Router::new(settings, now), Random::new(1), now)
    }

    /// One in which nothing is left to chance that the seed does not decide.
    pub(crate) fn seeded(settings: RouterSettings, seed: u64) -> Self {
        let now = Instant::now();
        Self::of(Router::seeded(settings, seed, now), Random::new(seed), now)
    }

    fn of(router: Router, random: Random, now: Instant) -> Self {
        World {
            router,
            now,
            peers: Vec::new(),
            chunks: Chunks::Whole,
            random,
            dials: Vec::new(),
            logins: Vec::new(),
            hub: Some((HUB_AUTO, Announces::default())),
            hubs_made: 0,
            keeps_logs: true,
            hub_ignores_credit: false,
            digest: 0,
        }
    }

    /// A device that has connected; nothing said yet.
    pub(crate) fn connect(&mut self, container: &str, auto: Auto, announces: Announces) -> Option<PeerId> {
        self.connect_from(container, ListenerId(0), container, auto, announces)
    }

    pub(crate) fn connect_to(
        &mut self,
        listener: ListenerId,
        container: &str,
        auto: Auto,
        announces: Announces,
    ) -> Option<PeerId> {
        self.connect_from(container, listener, container, auto, announces)
    }

    /// One that has connected from this address.
    pub(crate) fn connect_from(
        &mut self,
        address: &str,
        listener: ListenerId,
        container: &str,
        auto: Auto,
        announces: Announces,
    ) -> Option<PeerId> {
        let info = TransportInfo {
            peer: address.into(),
            tls: None,
        };
        let key = self.router.accepted(listener, info, self.now)?;
        let mut peer = Peer::new(Kind::Device, container, auto, announces);
        peer.key = Some(key);
        Some(self.add(peer))
    }

    /// A broker that connects to a listener and opens.
    pub(crate) fn broker(&mut self, listener: ListenerId, container: &str) -> PeerId {
        let id = self.broker_with(listener, container, HUB_AUTO, Announces::default());
        self.run();
        id
    }

    pub(crate) fn broker_with(
        &mut self,
        listener: ListenerId,
        container: &str,
        auto: Auto,
        announces: Announces,
    ) -> PeerId {
        let id = self
            .connect_to(listener, container, auto, announces)
            .expect("room for a broker");
        self.peer(id).kind = Kind::Broker;
        self.peer(id).open();
        id
    }

    /// A device with an open connection and a session on channel 0.
    pub(crate) fn device(&mut self, container: &str) -> PeerId {
        self.device_with(container, DEVICE_AUTO, Announces::default())
    }

    pub(crate) fn device_with(&mut self, container: &str, auto: Auto, announces: Announces) -> PeerId {
        let id = self
            .connect(container, auto, announces)
            .expect("room for a device");
        self.peer(id).open();
        self.peer(id).begin(0);
        self.run();
        id
    }

    fn add(&mut self, mut peer: Peer) -> PeerId {
        peer.keeps_log = self.keeps_logs;
        self.peers.push(Transport {
            peer,
            reads: true,
            speaks: true,
            is_paused: false,
            wants_turn: true,
        });
        self.peers.len() - 1
    }

    pub(crate) fn peer(&mut self, id: PeerId) -> &mut Peer {
        &mut self.peers.get_mut(id).expect("a peer").peer
    }

    /// The hub of the youngest dial.
    pub(crate) fn hub_id(&self) -> PeerId {
        self.peers
            .iter()
            .rposition(|transport| transport.peer.kind == Kind::Hub)
            .expect("a hub")
    }

    pub(crate) fn hub(&mut self) -> &mut Peer {
        let id = self.hub_id();
        self.peer(id)
    }

    pub(crate) fn is_alive(&self, id: PeerId) -> bool {
        self.peers
            .get(id)
            .is_some_and(|transport| transport.peer.key.is_some())
    }

    /// Whether the router has been told to be deaf to this peer.
    pub(crate) fn is_paused(&self, id: PeerId) -> bool {
        self.peers.get(id).expect("a peer").is_paused()
    }

    pub(crate) fn set_reads(&mut self, id: PeerId, reads: bool) {
        let transport = self.peers.get_mut(id).expect("a peer");
        transport.reads = reads;
        transport.wants_turn |= reads;
    }

    pub(crate) fn set_speaks(&mut self, id: PeerId, speaks: bool) {
        self.peers.get_mut(id).expect("a peer").speaks = speaks;
    }

    /// Answers the oldest dial with a hub.
    pub(crate) fn answer_dial(&mut self, auto: Auto, announces: Announces) -> PeerId {
        let connector = *self.dials.first().expect("a dial");
        self.answer_dial_of(connector, "hub", auto, announces)
    }

    /// Answers the dial of one connector with a hub that has this container-id.
    pub(crate) fn answer_dial_of(
        &mut self,
        connector: ConnectorId,
        container: &str,
        auto: Auto,
        announces: Announces,
    ) -> PeerId {
        self.dials.retain(|&other| other != connector);
        self.hubs_made += 1;
        let mut peer = Peer::new(Kind::Hub, container, auto, announces);
        let info = TransportInfo {
            peer: "hub".into(),
            tls: Some("TLSv1.3".into()),
        };
        peer.ignores_credit = self.hub_ignores_credit;
        peer.key = self.router.dialed(connector, info, self.now);
        assert!(peer.key.is_some(), "a dial that the router asked for");
        self.add(peer)
    }

    pub(crate) fn fail_dial(&mut self) {
        let connector = self.dials.remove(0);
        self.fail_dial_of(connector);
    }

    pub(crate) fn fail_dial_of(&mut self, connector: ConnectorId) {
        self.dials.retain(|&other| other != connector);
        self.router.dial_failed(connector, "Connection refused", self.now);
    }

    /// What the router's only connector reports.
    pub(crate) fn connector(&self) -> ConnectorReport {
        self.router.connectors().next().expect("a connector")
    }

    /// Another configuration, of which the driver has nothing to say.
    pub(crate) fn reload(&mut self, settings: RouterSettings) -> Reloaded {
        let reloaded = self.reconfigure(settings);
        self.run();
        reloaded
    }

    /// The same, with nothing done yet.
    pub(crate) fn reconfigure(&mut self, settings: RouterSettings) -> Reloaded {
        let reloaded = self.router.reconfigure(settings, |_, _| true, self.now);
        // The driver gives up what it dials for connectors that are gone.
        let router = &self.router;
        self.dials.retain(|&id| router.dial_target(id).is_some());
        reloaded
    }

    /// The transport of a peer breaks.
    pub(crate) fn lose(&mut self, id: PeerId) {
        if let Some(key) = self.peer(id).key.take() {
            self.router
                .transport_lost(key, "Connection reset by peer", self.now);
        }
    }

    /// The peer shuts its sending side down.
    pub(crate) fn end_of_stream(&mut self, id: PeerId) {
        if let Some(key) = self.peer(id).key.take() {
            self.router.handle_eof(key, self.now);
        }
    }

    /// Until nothing moves any more.
    pub(crate) fn run(&mut self) {
        // Two peers that answer each other for ever are a finding, not a wait.
        for _ in 0..20_000_000 {
            if !self.step() {
                return;
            }
        }
        panic!("this never comes to rest");
    }

    /// One turn of one connection that has a reason for it; `false` when there is none.
    pub(crate) fn step(&mut self) -> bool {
        self.take_actions();
        if let (Some((auto, announces)), false) = (self.hub, self.dials.is_empty()) {
            self.answer_dial(auto, announces);
            self.take_actions();
        }
        let (mut ready, mut chosen) = (0, None);
        for (id, transport) in self.peers.iter().enumerate() {
            if transport.is_ready() {
                ready += 1;
                // Each is as likely as any other.
                if self.random.one_in(ready) {
                    chosen = Some(id);
                }
            }
        }
        let Some(id) = chosen else { return false };
        self.turn(id);
        self.take_actions();
        true
    }

    fn take_actions(&mut self) {
        while let Some(action) = self.router.poll_action() {
            match action {
                Action::Dial(connector) if self.router.dial_target(connector).is_some() => {
                    self.dials.push(connector);
                }
                Action::Dial(_) => {}
                Action::Authenticate(key, login) => self.logins.push((key, *login)),
                Action::Wake(key) => {
                    let woken = self.peers.iter_mut().find(|t| t.peer.key == Some(key));
                    if let Some(transport) = woken {
                        transport.wants_turn = true;
                    }
                }
            }
        }
    }

    fn chunk(&mut self, available: usize) -> usize {
        match self.chunks {
            Chunks::One => 1,
            Chunks::Whole => available.min(64 * 1024),
            Chunks::Random => {
                let most = [3, 50, 1000, 1000, 8000, 65536]
                    .get(self.random.below(6))
                    .copied();
                1 + self.random.below(available.min(most.unwrap_or(1)))
            }
        }
    }

    fn turn(&mut self, id: PeerId) {
        let now = self.now;
        let (key, reads, speaks) = {
            let transport = self.peers.get_mut(id).expect("a peer");
            transport.wants_turn = false;
            (
                transport.peer.key.expect("alive"),
                transport.reads,
                transport.speaks,
            )
        };
        let waiting = self.router.transmit(key).len();
        if reads && waiting > 0 {
            let count = self.chunk(waiting);
            let bytes = self.router.transmit(key).get(..count).expect("a part").to_vec();
            self.router.transmitted(key, count, now);
            let transport = self.peers.get_mut(id).expect("a peer");
            transport.wants_turn = true;
            transport.peer.hear(&bytes);
            let mut hasher = DefaultHasher::new();
            (self.digest, id, count, bytes.last_chunk::<16>()).hash(&mut hasher);
            self.digest = hasher.finish();
        }
        match self.router.transport_state(key) {
            TransportState::Open => {}
            // What comes meanwhile is read, and of no interest.
            TransportState::CloseWhenFlushed if !self.router.transmit(key).is_empty() => {}
            TransportState::CloseWhenFlushed => {
                self.router.transport_lost(key, "closed", now);
                self.peer(id).key = None;
                return;
            }
            TransportState::Abort => {
                self.peer(id).key = None;
                return;
            }
        }
        let may_read = self.router.may_read(key);
        self.peers.get_mut(id).expect("a peer").is_paused = !may_read;
        let available = self.peer(id).out.len();
        if may_read && speaks && available > 0 {
            let count = self.chunk(available);
            let out = &mut self.peer(id).out;
            let bytes = out.as_slice().get(..count).expect("a part").to_vec();
            out.consume(count);
            self.router.handle_input(key, &bytes, now);
            self.peers.get_mut(id).expect("a peer").wants_turn = true;
        }
    }

    /// Moves the clock, stopping at each of the router's deadlines.
    pub(crate) fn advance(&mut self, by: Duration) {
        let end = self.now + by;
        while let Some(next) = self.router.poll_timeout().filter(|&next| next <= end) {
            self.now = self.now.max(next);
            self.router.handle_timeout(self.now);
            self.run();
        }
        self.now = end;
    }
}
