//! Connectors: when to dial, and what waits for it.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::ConnectionKey;
use super::attach::excerpt;
use super::cbs::{HubCbs, Unsent};
use super::failover::HostList;
use super::link_names::LinkNames;
use super::pace::{Admit, Pace};
use super::settings::{CbsMode, ConnectorId, ConnectorRole, ConnectorSettings};
use super::tokens::Tokens;
use crate::amqp::performative::Role;
use crate::endpoint::limits;

/// The first delay after a failure; it doubles with each further one.
const FIRST_DELAY: Duration = Duration::from_secs(2);
/// The longest delay.
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// The longest delay while a device waits for the connection.
const LONGEST_DELAY_WITH_WAITERS: Duration = Duration::from_secs(2);
/// The delay after the loss of a connection that had been open, while a device waits for it.
const DELAY_AFTER_LOSS: Duration = Duration::from_millis(500);
/// The delay before the next host is tried, when there are several (qdrouterd 1.19).
const NEXT_HOST_DELAY: Duration = Duration::from_secs(1);
/// The longest dial of one host among several: less than an attach waits.
const DIAL_LIMIT_OF_SEVERAL: Duration = Duration::from_secs(10);
/// A connection that was open for so long has held. A hub that opens and closes at once is as good as one that refuses,
/// and must not be dialed in a tight loop.
const HOLDS_AFTER: Duration = Duration::from_secs(10);

/// ```text
///   Idle --need--> Dialing --transport--> Opening --open--> Open --lost--> Backoff --time--> Dialing
///    ^                +------failed---------+---------------> Backoff         (or Idle, without need)
///    +-----lost, and no need----- Closing <--unused, changed, or shutting down-- Open, Opening
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Not wanted.
    Idle,
    /// The driver is connecting.
    Dialing,
    /// SASL and open are being exchanged.
    Opening(ConnectionKey),
    /// In use.
    Open(ConnectionKey),
    /// We have closed it, or that of its predecessor in the configuration; there is no other before it is gone.
    Closing(ConnectionKey),
    /// Waiting until it may be dialed again.
    Backoff {
        /// When.
        until: Instant,
    },
}

/// One connector.
#[derive(Debug)]
pub(super) struct Connector {
    pub(super) settings: ConnectorSettings,
    pub(super) hosts: HostList,
    pub(super) state: State,
    /// The peer's container-id, the last time that it was open.
    pub(super) container_id: Option<String>,
    /// Link pairs whose attach waits for it, by the time until which it does and their number in log lines: thousands may
    /// go at once, and each is found without a look at the others.
    pub(super) waiting: BTreeMap<(Instant, u64), u32>,
    /// Those whose turn has come, and that wait until their device's tokens are known to the connection: by the device, and
    /// their number in log lines. Each with the time that it would have on the other list.
    pub(super) behind_tokens: BTreeMap<(ConnectionKey, u64), (u32, Instant)>,
    /// The configured connector, if this is a further connection of its pool.
    pub(super) head: Option<ConnectorId>,
    /// The further connections of a configured connector, oldest first.
    pub(super) further: Vec<ConnectorId>,
    /// Link names in use on the connection.
    pub(super) names: LinkNames,
    /// Devices that have used the connection since it was opened, or whose tokens wait for it.
    pub(super) users: HashSet<ConnectionKey>,
    /// Those of them that have started there, with a link or a token.
    pub(super) started: HashSet<ConnectionKey>,
    /// How fast others may do so.
    pace: Option<Pace>,
    /// What the hub has accepted on the connection.
    pub(super) tokens: Tokens,
    /// Our `$cbs` pair on the connection, once there was something to ask.
    pub(super) cbs: Option<Box<HubCbs>>,
    /// Requests to its `$cbs` that are not answered.
    pub(super) asking: usize,
    /// Those of them that are not on their way, in order.
    pub(super) unsent: Unsent,
    /// Session pairs that wait for a session on the connection.
    pub(super) unbegun: usize,
    /// The hub's channel-max, the last time that it was open.
    pub(super) channel_max: u16,
    /// When the last of them went.
    pub(super) unused_since: Option<Instant>,
    /// Number in log lines of the connection that is being dialed.
    pub(super) number: u64,
    /// Failures since a connection has held.
    failures: u32,
    /// Attempts that have failed since it was last open, and when the trouble began.
    failed_attempts: u32,
    down_since: Option<Instant>,
    /// When it was opened, while it is open.
    opened_at: Option<Instant>,
    /// The last thing that happened, for whoever asks (qdrouterd: `connectionMsg`).
    pub(super) message: String,
    /// The deadline that is in the timers.
    pub(super) scheduled: Option<Instant>,
    /// The last failures that were logged: what, when, and how many like it have followed unseen.
    complaints: VecDeque<(String, Instant, u32)>,
    /// State of the jitter.
    jitter: u64,
}

impl Connector {
    pub(super) fn new(settings: ConnectorSettings, seed: u64) -> Self {
        let paced = settings
            .relays_cbs()
            .then_some(settings.sharing.devices_per_second);
        Connector {
            hosts: HostList::new(&settings),
            settings,
            state: State::Idle,
            container_id: None,
            waiting: BTreeMap::new(),
            behind_tokens: BTreeMap::new(),
            head: None,
            further: Vec::new(),
            names: LinkNames::default(),
            users: HashSet::new(),
            started: HashSet::new(),
            pace: paced.and_then(Pace::new),
            tokens: Tokens::default(),
            cbs: None,
            asking: 0,
            unsent: Unsent::default(),
            unbegun: 0,
            channel_max: u16::MAX,
            unused_since: None,
            number: 0,
            failures: 0,
            failed_attempts: 0,
            down_since: None,
            opened_at: None,
            message: String::new(),
            scheduled: None,
            complaints: VecDeque::new(),
            jitter: seed | 1,
        }
    }

    pub(super) const fn open_connection(&self) -> Option<ConnectionKey> {
        match self.state {
            State::Open(key) => Some(key),
            State::Idle | State::Dialing | State::Opening(_) | State::Closing(_) | State::Backoff { .. } => {
                None
            }
        }
    }

    /// The connection that there is, in whatever state.
    pub(super) const fn connection(&self) -> Option<ConnectionKey> {
        match self.state {
            State::Opening(key) | State::Open(key) | State::Closing(key) => Some(key),
            State::Idle | State::Dialing | State::Backoff { .. } => None,
        }
    }

    /// Whether this connection is in use, or about to be.
    pub(super) fn uses(&self, key: ConnectionKey) -> bool {
        self.state == State::Opening(key) || self.state == State::Open(key)
    }

    pub(super) const fn is_persistent(&self) -> bool {
        matches!(self.settings.role, ConnectorRole::Persistent)
    }

    /// Whether it stands for a broker that connected to us.
    pub(super) const fn is_accepted(&self) -> bool {
        matches!(self.settings.role, ConnectorRole::Accepted)
    }

    pub(super) const fn is_on_demand(&self) -> bool {
        matches!(self.settings.role, ConnectorRole::OnDemand)
    }

    /// Whether its connection may be closed when nobody has used it for a while.
    pub(super) fn is_idle(&self) -> bool {
        self.is_on_demand() && self.waiting.is_empty() && self.asking == 0
    }

    /// Whether it has failed since a connection has held.
    pub(super) const fn is_failing(&self) -> bool {
        self.failures > 0 || self.failed_attempts > 0
    }

    /// Whether anybody needs a connection.
    pub(super) fn is_needed(&self) -> bool {
        self.is_persistent() || !self.waiting.is_empty() || !self.behind_tokens.is_empty() || self.asking > 0
    }

    /// A device is about to start on the open connection, with its first link or token there: whether it may. If so
    /// whatever else it does there is not held up.
    pub(super) fn admit_device(&mut self, device: ConnectionKey, now: Instant) -> Admit {
        if !self.started.contains(&device) {
            let admit = self.pace.as_mut().map_or(Admit::Now, |pace| pace.start(now));
            if admit != Admit::Now {
                return admit;
            }
            self.started.insert(device);
            self.users.insert(device);
        }
        self.unused_since = None;
        Admit::Now
    }

    /// How long an attach waits. `timeout` is for the connection to open; once it has, the hub can be seen to be there,
    /// and a device is better off waiting for its turn than coming again.
    pub(super) fn patience(&self, timeout: Duration) -> Duration {
        if self.pace.is_some() && self.open_connection().is_some() {
            timeout.max(limits::PACED_ATTACH_TIMEOUT)
        } else {
            timeout
        }
    }

    /// The connection is gone: what waited for tokens to be known there waits for the next.
    pub(super) fn forget_order_of_tokens(&mut self) {
        for ((_, order), (number, deadline)) in std::mem::take(&mut self.behind_tokens) {
            self.waiting.insert((deadline, order), number);
        }
    }

    /// When the next of those that wait for their turn on the open connection has it.
    pub(super) fn next_turn(&self) -> Option<Instant> {
        let pace = self
            .pace
            .as_ref()
            .filter(|_| !self.waiting.is_empty() || !self.unsent.is_empty())?;
        pace.ready_at()
    }

    /// Somebody needs the connection. `true`: dial now.
    pub(super) fn want(&mut self, now: Instant) -> bool {
        match self.state {
            State::Idle => {
                self.state = State::Dialing;
                true
            }
            State::Backoff { until } => {
                // A waiting device cuts the back-off short, but never below what keeps a dead hub from a storm.
                self.state = State::Backoff {
                    until: until.min(now + LONGEST_DELAY_WITH_WAITERS),
                };
                false
            }
            State::Dialing | State::Opening(_) | State::Open(_) | State::Closing(_) => false,
        }
    }

    /// The name that the host is known by: for TLS, and for `open.hostname`.
    pub(super) fn server_name(&self) -> &str {
        self.settings.name_of(self.hosts.current())
    }

    /// The only name of a host that the hub is to see in addresses; `None`: it sees what devices write. A broker that
    /// came to us has none, and a tunnel carries addresses as qdrouterd does.
    pub(super) fn only_name(&self) -> Option<&str> {
        let rewrites = self.settings.sharing.cbs == CbsMode::Relay && !self.is_accepted();
        rewrites.then(|| self.server_name())
    }

    /// How long TCP and TLS may take. A host that swallows everything must not keep the next one from its turn while
    /// devices wait.
    pub(super) fn dial_limit(&self) -> Duration {
        let limit = self.settings.dial_timeout;
        match self.hosts.iter().nth(1) {
            Some(_) => limit.min(DIAL_LIMIT_OF_SEVERAL),
            None => limit,
        }
    }

    /// Notes what has gone wrong with the current host: `failed: ...`. The line for the log, if it is to be logged.
    pub(super) fn complain(&mut self, what: &str, now: Instant) -> Option<String> {
        let complaint = format!("Connection to {} {what}", self.hosts.current());
        self.message = excerpt(&complaint);
        self.news(complaint, now)
    }

    /// A line for the log, unless it was logged within a minute: a hub that is away for a night shall not fill the log.
    pub(super) fn news(&mut self, line: String, now: Instant) -> Option<String> {
        let Some((_, at, unseen)) = self.complaints.iter_mut().find(|(last, ..)| *last == line) else {
            if self.complaints.len() >= limits::LOGGED_TROUBLES {
                self.complaints.pop_front();
            }
            self.complaints.push_back((line.clone(), now, 0));
            return Some(line);
        };
        if now < *at + limits::LOG_PERIOD {
            *unseen = unseen.saturating_add(1);
            return None;
        }
        *at = now;
        Some(format!(
            "{line} (and {} times before that)",
            std::mem::take(unseen)
        ))
    }

    /// The peer's open is here. After failed attempts: how many there were, and for how long.
    pub(super) fn opened(
        &mut self,
        key: ConnectionKey,
        container_id: &str,
        now: Instant,
    ) -> Option<(u32, Duration)> {
        self.state = State::Open(key);
        self.opened_at = Some(now);
        self.container_id = Some(container_id.to_owned());
        self.unused_since = self.users.is_empty().then_some(now);
        let attempts = std::mem::take(&mut self.failed_attempts);
        let since = self.down_since.take()?;
        (attempts > 0).then(|| (attempts, now.saturating_duration_since(since)))
    }

    /// The connection, or the attempt at one, is over: when the next may be made, and with which host.
    pub(super) fn lost(&mut self, now: Instant) {
        self.down_since.get_or_insert(now);
        let opened_at = self.opened_at.take();
        let was_open = opened_at.is_some();
        if was_open {
            self.forget_connection();
        }
        let has_held = opened_at.is_some_and(|at| now >= at + HOLDS_AFTER);
        if has_held {
            self.failures = 0;
            self.complaints.clear();
            self.hosts.begin_round();
        }
        if !was_open {
            self.failed_attempts = self.failed_attempts.saturating_add(1);
        }
        let is_round = self.hosts.turn();
        let nobody_waits = self.waiting.is_empty() && self.asking == 0;
        let delay = if !is_round {
            NEXT_HOST_DELAY
        } else if was_open && self.failures == 0 {
            self.failures = u32::from(!has_held);
            if nobody_waits {
                FIRST_DELAY
            } else {
                DELAY_AFTER_LOSS
            }
        } else {
            let doubled = FIRST_DELAY.saturating_mul(1 << self.failures.min(5));
            self.failures = self.failures.saturating_add(1);
            doubled.min(if nobody_waits {
                LONGEST_DELAY
            } else {
                LONGEST_DELAY_WITH_WAITERS
            })
        };
        self.state = State::Backoff {
            until: now + self.jittered(delay),
        };
    }

    /// The connection is of no use any more, and is being closed.
    pub(super) fn closing(&mut self, key: ConnectionKey) {
        self.forget_connection();
        self.opened_at = None;
        self.state = State::Closing(key);
    }

    fn forget_connection(&mut self) {
        self.names = LinkNames::default();
        self.users.clear();
        self.started.clear();
        self.tokens.lose();
        self.cbs = None;
        self.unused_since = None;
    }

    /// Between half of a delay and all of it, so that many gateways do not return at once.
    fn jittered(&mut self, delay: Duration) -> Duration {
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        let fraction = u32::try_from(self.jitter % 512).unwrap_or(0);
        delay / 2 + delay * fraction / 1024
    }

    /// When the connector has to be looked at; `waiting` is when it has to be for those that wait.
    pub(super) fn next_deadline(&self, waiting: Option<Instant>, linger: Duration) -> Option<Instant> {
        let own = match self.state {
            State::Backoff { until } => Some(until),
            State::Open(_) if self.is_idle() => self.unused_since.map(|since| since + linger),
            State::Idle | State::Dialing | State::Opening(_) | State::Open(_) | State::Closing(_) => None,
        };
        own.into_iter().chain(waiting).min()
    }

    /// The link's name at the hub: stable, because durable subscriptions and link recovery key on it, and unique among
    /// the links of this connection (qdrouterd 1.19: `<name>@<container-id>`).
    pub(super) fn claim_name(&mut self, role: Role, name: &str, container_id: &str) -> Box<str> {
        self.names.claim(role, &format!("{name}@{container_id}"))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::router::settings::HostPort;

    #[test]
    fn so_many_troubles_are_told_apart_and_each_is_logged_once_in_its_time() {
        let mut connector = Connector::new(settings(), 99);
        let now = Instant::now();
        let logged = |connector: &mut Connector, number: usize, now: Instant| {
            connector.news(format!("trouble {number}"), now).is_some()
        };
        for number in 0..limits::LOGGED_TROUBLES {
            assert!(logged(&mut connector, number, now));
        }
        let almost = now + limits::LOG_PERIOD - Duration::from_millis(1);
        assert!(!logged(&mut connector, 0, almost));
        assert!(logged(&mut connector, 0, now + limits::LOG_PERIOD));
        assert!(logged(&mut connector, limits::LOGGED_TROUBLES, now));
        assert!(logged(&mut connector, 0, almost), "the oldest is forgotten");
        assert!(!logged(&mut connector, 2, almost));
    }

    #[test]
    fn delays_double_with_jitter_and_are_capped() {
        let mut connector = Connector::new(settings(), 99);
        let now = Instant::now();
        let mut delays = Vec::new();
        for _ in 0..8 {
            connector.lost(now);
            let State::Backoff { until } = connector.state else {
                panic!("not in back-off")
            };
            delays.push(until - now);
        }
        for (delay, full) in delays.iter().zip([2, 4, 8, 16, 32, 60, 60, 60]) {
            let full = Duration::from_secs(full);
            assert!(*delay >= full / 2 && *delay <= full, "{delay:?} of {full:?}");
        }
        assert!(
            !connector.want(now),
            "a device that waits does not storm a hub that refuses"
        );
        let State::Backoff { until } = connector.state else {
            panic!("not in back-off")
        };
        assert!(until <= now + LONGEST_DELAY_WITH_WAITERS);
    }

    #[test]
    fn a_lasting_failure_is_logged_once_a_minute() {
        let mut connector = Connector::new(settings(), 7);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let line = "Connection to hub:5671 failed: refused";
        assert_eq!(
            connector.complain("failed: refused", at(0)).as_deref(),
            Some(line)
        );
        assert_eq!(connector.complain("failed: refused", at(2)), None);
        assert!(
            connector.complain("failed: no such host", at(3)).is_some(),
            "another reason is news"
        );
        assert_eq!(connector.complain("failed: refused", at(59)), None);
        assert_eq!(
            connector.complain("failed: refused", at(61)),
            Some(format!("{line} (and 2 times before that)"))
        );
        assert_eq!(connector.message, line);
    }

    pub(in crate::router) fn settings() -> ConnectorSettings {
        ConnectorSettings {
            name: "HUB".into(),
            host: HostPort {
                host: "hub".into(),
                port: 5671,
            },
            failover: Vec::new(),
            server_name: None,
            believes_failover_list: true,
            uses_tls: true,
            role: ConnectorRole::OnDemand,
            role_name: "on-demand".into(),
            limits: super::super::settings::PeerLimits {
                max_frame_size: 16384,
                channel_max: 100,
                incoming_window: None,
                idle_timeout: None,
            },
            sasl_mechanisms: Vec::new(),
            sasl_username: None,
            sasl_password: None,
            has_client_certificate: false,
            dial_timeout: Duration::from_secs(30),
            sharing: super::super::settings::SharingSettings::default(),
        }
    }
}
