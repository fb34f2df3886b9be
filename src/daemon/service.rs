//! What the service manager is told of this daemon, and when: that it serves, reloads, stops, how it is, and that it is
//! not stuck. Without a manager, nothing of it costs anything.

use std::fmt::{self, Write as _};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::logging;
use super::systemd::{Manager, monotonic_microseconds, watchdog};
use crate::router::{ConnectorReport, ConnectorStatus, Overview};
use crate::shard::Shard;

/// Most hubs that the status names.
const HUBS_NAMED: usize = 4;
/// Longest status in characters; a screen is not much wider.
const STATUS_MAX: usize = 400;

/// See the module.
#[derive(Debug)]
pub(super) struct Service {
    manager: Option<Manager>,
    watchdog: Option<Watchdog>,
    beats: Option<watch::Receiver<Overview>>,
    /// Why the file does not count that was read last.
    refusal: Option<String>,
    /// The status as last told.
    told: String,
}

/// A watchdog, to be fed from the beats of the shard and from nothing else.
#[derive(Debug)]
struct Watchdog {
    rhythm: Duration,
    fed: Option<Instant>,
}

impl Watchdog {
    /// Fed twice as often as it wants, as sd_watchdog_enabled(3) advises.
    fn new(limit: Duration) -> Self {
        Watchdog {
            rhythm: limit / 2,
            fed: None,
        }
    }

    /// Whether this beat is one to feed it with: there are more beats than it needs.
    fn is_due(&mut self, now: Instant) -> bool {
        // After a beat that is passed over the next one may be a whole rhythm away.
        let is_due = self
            .fed
            .is_none_or(|fed| now.duration_since(fed) >= self.rhythm / 2);
        if is_due {
            self.fed = Some(now);
        }
        is_due
    }
}

impl Service {
    /// By the environment that the service manager has made.
    pub(super) fn of_environment() -> Self {
        let manager = Manager::of_environment();
        let watchdog = manager.as_ref().and_then(|_| watchdog()).map(Watchdog::new);
        Service {
            manager,
            watchdog,
            beats: None,
            refusal: None,
            told: String::new(),
        }
    }

    /// A daemon that nobody manages.
    pub(super) const fn unmanaged() -> Self {
        Service {
            manager: None,
            watchdog: None,
            beats: None,
            refusal: None,
            told: String::new(),
        }
    }

    /// To be called before the shard runs.
    pub(super) fn observe(&mut self, shard: &mut Shard) {
        if self.manager.is_some() {
            let rhythm = self.watchdog.as_ref().map(|watchdog| watchdog.rhythm);
            self.beats = Some(shard.observe(rhythm));
        }
    }

    /// All listeners are open.
    pub(super) async fn ready(&self) {
        self.tell("READY=1").await;
    }

    /// The configuration is being read again.
    pub(super) async fn reloading(&self) {
        let now = monotonic_microseconds();
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={now}")).await;
    }

    /// It has been read again, and this came of it.
    pub(super) async fn reloaded(&mut self, outcome: Result<(), String>) {
        let news = match &outcome {
            Ok(()) => "configuration reloaded; ",
            Err(_) => "",
        };
        self.refusal = outcome.err();
        let status = one_line(&format!("{news}{}", self.status()));
        self.tell(&format!("READY=1\nSTATUS={status}")).await;
        self.told = status;
    }

    /// The end has begun.
    pub(super) async fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=closing all connections").await;
    }

    /// It never began, for this reason.
    pub(super) fn failed(&self, reason: &str) {
        if let Some(manager) = &self.manager {
            // The log has it, too.
            let _ = manager.try_tell(&format!("STATUS={}", one_line(reason)));
        }
    }

    /// Waits for the next beat of the shard. For ever pending if nobody is to be told of it; cancel-safe.
    pub(super) async fn beat(&mut self) {
        let is_beating = match &mut self.beats {
            Some(beats) => beats.changed().await.is_ok(),
            None => false,
        };
        if !is_beating {
            std::future::pending().await
        }
    }

    /// Passes on of a beat what the manager wants of it.
    pub(super) async fn pass_on(&mut self) {
        let mut message = String::new();
        if let Some(watchdog) = &mut self.watchdog
            && watchdog.is_due(Instant::now())
        {
            message.push_str("WATCHDOG=1\n");
        }
        let status = one_line(&self.status());
        if status != self.told {
            message.push_str("STATUS=");
            message.push_str(&status);
            self.told = status;
        }
        if !message.is_empty() {
            self.tell(&message).await;
        }
    }

    fn status(&mut self) -> String {
        let mut status = String::new();
        if let Some(refusal) = &self.refusal {
            // Nothing fails that writes to a String.
            let _ = write!(status, "configuration not reloaded: {refusal}; ");
        }
        if let Some(beats) = &mut self.beats {
            let _ = write!(status, "{}", Glance(&beats.borrow_and_update()));
        }
        status
    }

    async fn tell(&self, message: &str) {
        if let Some(manager) = &self.manager {
            manager.tell(message).await;
        }
    }
}

/// `12 devices, 24 links; hub example.azure-devices.net:5671: open`.
struct Glance<'a>(&'a Overview);

impl fmt::Display for Glance<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Overview {
            devices,
            links,
            connectors,
        } = self.0;
        let plural = |count: &usize| if *count == 1 { "" } else { "s" };
        write!(
            f,
            "{devices} device{}, {links} link{}",
            plural(devices),
            plural(links)
        )?;
        let hubs = || connectors.iter().filter(|connector| !connector.is_further);
        for hub in hubs().take(HUBS_NAMED) {
            let host = hub.hosts.first().map_or(hub.name.as_str(), String::as_str);
            write!(f, "; hub {host}: ")?;
            match hub.status {
                ConnectorStatus::Initializing => f.write_str("not needed")?,
                ConnectorStatus::Connecting => f.write_str("connecting")?,
                ConnectorStatus::Success => f.write_str("open")?,
                ConnectorStatus::Closing => f.write_str("closing")?,
                ConnectorStatus::Failed => {
                    let what = hub.message.strip_prefix("Connection to ").unwrap_or(&hub.message);
                    let what = what.strip_prefix(host).unwrap_or(what).trim_start();
                    f.write_str(if what.is_empty() { "failed" } else { what })?;
                }
            }
            let is_open_too = |other: &&ConnectorReport| {
                other.is_further && other.name == hub.name && other.status == ConnectorStatus::Success
            };
            match connectors.iter().filter(is_open_too).count() {
                0 => {}
                further => write!(f, " (and {further} further connection{})", plural(&further))?,
            }
        }
        match hubs().count().saturating_sub(HUBS_NAMED) {
            0 => Ok(()),
            more => write!(f, "; {more} more hub{}", plural(&more)),
        }
    }
}

/// A status is one line, and what a peer has written must not become an order to the manager.
fn one_line(text: &str) -> String {
    let line = logging::one_line(text);
    match line.char_indices().nth(STATUS_MAX) {
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(name: &str, is_further: bool, status: ConnectorStatus, message: &str) -> ConnectorReport {
        ConnectorReport {
            name: name.to_owned(),
            is_further,
            status,
            message: message.to_owned(),
            hosts: vec![format!("{}.example:5671", name.to_lowercase())],
        }
    }

    fn glance(devices: usize, links: usize, connectors: Vec<ConnectorReport>) -> String {
        let overview = Overview {
            devices,
            links,
            connectors,
        };
        Glance(&overview).to_string()
    }

    #[test]
    fn the_status_says_who_is_there_and_how_the_hubs_are() {
        use ConnectorStatus::{Closing, Connecting, Failed, Initializing, Success};
        assert_eq!(glance(0, 0, Vec::new()), "0 devices, 0 links");
        assert_eq!(
            glance(12, 1, vec![report("A", false, Success, "Connection to … opened")]),
            "12 devices, 1 link; hub a.example:5671: open"
        );
        let pool = vec![
            report("A", false, Success, ""),
            report("A", true, Success, ""),
            report("A", true, Connecting, ""),
            report("B", false, Initializing, ""),
        ];
        assert_eq!(
            glance(1, 2, pool),
            "1 device, 2 links; hub a.example:5671: open (and 1 further connection); hub b.example:5671: not needed"
        );
        let failed = report(
            "A",
            false,
            Failed,
            "Connection to a.example:5671 failed: no such host",
        );
        let other = report(
            "B",
            false,
            Failed,
            "Connection to c.example:5671 lost: end of file",
        );
        assert_eq!(
            glance(0, 0, vec![failed, other]),
            "0 devices, 0 links; hub a.example:5671: failed: no such host; hub b.example:5671: c.example:5671 lost: \
             end of file"
        );
        let many = (0..6)
            .map(|n| report(&format!("H{n}"), false, Closing, ""))
            .collect();
        let text = glance(0, 0, many);
        assert!(
            text.ends_with("; hub h3.example:5671: closing; 2 more hubs"),
            "{text}"
        );
    }

    #[test]
    fn what_a_peer_says_is_no_order_to_the_manager() {
        assert_eq!(one_line("a\nMAINPID=1\r\0b"), "a\\nMAINPID=1\\r\\x00b");
        let long = one_line(&"é".repeat(STATUS_MAX + 5));
        assert_eq!(long.chars().count(), STATUS_MAX + 1);
        assert!(long.ends_with("é…"), "{long}");
        assert_eq!(one_line(&"é".repeat(STATUS_MAX)), "é".repeat(STATUS_MAX));
    }

    #[test]
    fn a_watchdog_is_fed_at_half_its_time_however_many_beats_there_are() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(Duration::from_secs(20));
        let fed: Vec<_> = (0..40)
            .filter(|second| watchdog.is_due(start + Duration::from_secs(*second)))
            .collect();
        assert_eq!(fed, [0, 5, 10, 15, 20, 25, 30, 35]);
        let mut watchdog = Watchdog::new(Duration::from_secs(20));
        assert!(watchdog.is_due(start) && watchdog.is_due(start + Duration::from_millis(9_999)));
    }
}
