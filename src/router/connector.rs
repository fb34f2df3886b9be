//! Connectors: when to dial, and what waits for it.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::ConnectionKey;
use super::settings::{ConnectorRole, ConnectorSettings};
use crate::amqp::performative::Role;

/// The first delay after a failure; it doubles with each further one.
const FIRST_DELAY: Duration = Duration::from_secs(2);
/// The longest delay.
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// The longest delay while a device waits for the connection.
const LONGEST_DELAY_WITH_WAITERS: Duration = Duration::from_secs(2);
/// The delay after the loss of a connection that had been open, while a device waits for it.
const DELAY_AFTER_LOSS: Duration = Duration::from_millis(500);

/// The same failure is not logged more often than this.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

/// ```text
///   Idle --need--> Dialing --transport--> Opening --open--> Open --lost--> Backoff --time--> Dialing
///                     +------failed---------+---------------> Backoff         (or Idle, without need)
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
    pub(super) state: State,
    /// The peer's container-id, the last time that it was open.
    pub(super) container_id: Option<String>,
    /// Link pairs whose attach waits for it, oldest first.
    pub(super) waiting: VecDeque<u32>,
    /// Link names in use on the connection, by the device's role.
    pub(super) names: HashSet<(Role, Box<str>)>,
    /// Devices that have used the connection since it was opened.
    pub(super) users: HashSet<ConnectionKey>,
    /// When the last of them went.
    pub(super) unused_since: Option<Instant>,
    /// Number in log lines of the connection that is being dialed.
    pub(super) number: u64,
    /// Failures since it was last open.
    pub(super) failures: u32,
    /// The deadline that is in the timers.
    pub(super) scheduled: Option<Instant>,
    /// The last failure that was logged: why, when, and how many like it have followed unseen.
    complaint: Option<(String, Instant, u32)>,
    /// State of the jitter.
    jitter: u64,
}

impl Connector {
    pub(super) fn new(settings: ConnectorSettings, seed: u64) -> Self {
        Connector {
            settings,
            state: State::Idle,
            container_id: None,
            waiting: VecDeque::new(),
            names: HashSet::new(),
            users: HashSet::new(),
            unused_since: None,
            number: 0,
            failures: 0,
            scheduled: None,
            complaint: None,
            jitter: seed | 1,
        }
    }

    pub(super) const fn open_connection(&self) -> Option<ConnectionKey> {
        match self.state {
            State::Open(key) => Some(key),
            State::Idle | State::Dialing | State::Opening(_) | State::Backoff { .. } => None,
        }
    }

    pub(super) const fn is_persistent(&self) -> bool {
        matches!(self.settings.role, ConnectorRole::Persistent)
    }

    pub(super) const fn is_on_demand(&self) -> bool {
        matches!(self.settings.role, ConnectorRole::OnDemand)
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
            State::Dialing | State::Opening(_) | State::Open(_) => false,
        }
    }

    /// Whether a failed dial is to be logged, and if so, what to say of those before it: a hub that is away for a night
    /// shall not fill the log.
    pub(super) fn is_news(&mut self, reason: &str, now: Instant) -> Option<String> {
        let again = match &mut self.complaint {
            Some((last, at, unseen)) if last == reason && now < *at + COMPLAINT_INTERVAL => {
                *unseen = unseen.saturating_add(1);
                return None;
            }
            Some((last, _, unseen)) if last == reason => format!(" (and {unseen} times before that)"),
            Some(_) | None => String::new(),
        };
        self.complaint = Some((reason.to_owned(), now, 0));
        Some(again)
    }

    /// The peer's open is here.
    pub(super) fn opened(&mut self, key: ConnectionKey, container_id: &str, now: Instant) {
        self.state = State::Open(key);
        self.failures = 0;
        self.complaint = None;
        self.container_id = Some(container_id.to_owned());
        self.unused_since = Some(now);
    }

    /// The connection, or the attempt at one, is over.
    pub(super) fn lost(&mut self, was_open: bool, now: Instant) {
        self.names.clear();
        self.users.clear();
        self.unused_since = None;
        let delay = if was_open {
            self.failures = 0;
            if self.waiting.is_empty() {
                FIRST_DELAY
            } else {
                DELAY_AFTER_LOSS
            }
        } else {
            let doubled = FIRST_DELAY.saturating_mul(1 << self.failures.min(5));
            self.failures = self.failures.saturating_add(1);
            let longest = if self.waiting.is_empty() {
                LONGEST_DELAY
            } else {
                LONGEST_DELAY_WITH_WAITERS
            };
            doubled.min(longest)
        };
        self.state = State::Backoff {
            until: now + self.jittered(delay),
        };
    }

    /// Between half of a delay and all of it, so that many gateways do not return at once.
    fn jittered(&mut self, delay: Duration) -> Duration {
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        let fraction = u32::try_from(self.jitter % 512).unwrap_or(0);
        delay / 2 + delay * fraction / 1024
    }

    /// When the connector has to be looked at; `oldest_waiting` is the deadline of the attach that waits longest.
    pub(super) fn next_deadline(&self, oldest_waiting: Option<Instant>, linger: Duration) -> Option<Instant> {
        let own = match self.state {
            State::Backoff { until } => Some(until),
            State::Open(_) if self.is_on_demand() => self.unused_since.map(|since| since + linger),
            State::Idle | State::Dialing | State::Opening(_) | State::Open(_) => None,
        };
        own.into_iter().chain(oldest_waiting).min()
    }

    /// The link's name at the hub: stable, because durable subscriptions and link recovery key on it, and unique among
    /// the links of this connection (qdrouterd 1.19: `<name>@<container-id>`).
    pub(super) fn claim_name(&mut self, role: Role, name: &str, container_id: &str) -> Box<str> {
        let base = format!("{name}@{container_id}");
        let mut candidate: Box<str> = base.as_str().into();
        let mut suffix = 1u32;
        while !self.names.insert((role, candidate.clone())) {
            suffix = suffix.saturating_add(1);
            candidate = format!("{base}#{suffix}").into();
        }
        candidate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_are_told_apart_and_come_back() {
        let mut connector = Connector::new(settings(), 7);
        let claim = |c: &mut Connector, role| c.claim_name(role, "send", "dev").to_string();
        assert_eq!(claim(&mut connector, Role::Sender), "send@dev");
        assert_eq!(claim(&mut connector, Role::Receiver), "send@dev");
        assert_eq!(claim(&mut connector, Role::Sender), "send@dev#2");
        connector.names.remove(&(Role::Sender, "send@dev".into()));
        assert_eq!(claim(&mut connector, Role::Sender), "send@dev");
    }

    #[test]
    fn delays_double_with_jitter_and_are_capped() {
        let mut connector = Connector::new(settings(), 99);
        let now = Instant::now();
        let mut delays = Vec::new();
        for _ in 0..8 {
            connector.lost(false, now);
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
        assert_eq!(connector.is_news("refused", at(0)).as_deref(), Some(""));
        assert_eq!(connector.is_news("refused", at(2)), None);
        assert_eq!(connector.is_news("refused", at(59)), None);
        assert_eq!(
            connector.is_news("refused", at(61)).as_deref(),
            Some(" (and 2 times before that)")
        );
        assert_eq!(
            connector.is_news("no such host", at(62)).as_deref(),
            Some(""),
            "another reason is news"
        );
    }

    fn settings() -> ConnectorSettings {
        ConnectorSettings {
            name: "HUB".into(),
            address: "hub:5671".into(),
            hostname: "hub".into(),
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
        }
    }
}
