//! What the certificates of a server tell about this machine's clock. They know bounds only, and nothing else in the
//! protocols tells the time.

use std::time::{Duration, SystemTime};

use super::sheet::Mark;
use crate::shard::tls::{CertificateFacts, clock_is_unset, day};

const DAY: u64 = 86_400;

/// Whether the clock can be right, and how that is known.
pub(super) fn judge(chain: &[CertificateFacts], now: SystemTime) -> (Mark, String) {
    let says = format!("this machine says {}", moment(now));
    if clock_is_unset(now) {
        return (
            Mark::Note,
            format!("{says}: the clock is not set. Let it be set by NTP (timedatectl), or by hand"),
        );
    }
    let first = chain.iter().map(|certificate| certificate.not_before).max();
    let last = chain.iter().map(|certificate| certificate.not_after).min();
    let (Some(first), Some(last)) = (first, last) else {
        return (
            Mark::Ok,
            format!("{says}; nothing here tells whether that is right"),
        );
    };
    if let Ok(behind) = first.duration_since(now)
        && !behind.is_zero()
    {
        return (
            Mark::Note,
            format!(
                "{says}: that is at least {} behind, if the server's certificates are dated rightly. Check it \
                 (timedatectl)",
                span(behind)
            ),
        );
    }
    if let Ok(ahead) = now.duration_since(last)
        && !ahead.is_zero()
    {
        return (
            Mark::Note,
            format!(
                "{says}: either a certificate of the server has expired, or that is at least {} ahead. Check it \
                 (timedatectl)",
                span(ahead)
            ),
        );
    }
    (
        Mark::Ok,
        format!(
            "{says}. The server's certificates allow anything from {} to {}; nothing else here tells the time",
            day(first),
            day(last)
        ),
    )
}

/// `2026-11-26 02:15 UTC`
fn moment(time: SystemTime) -> String {
    let since_1970 = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let minutes = since_1970.as_secs() % DAY / 60;
    format!("{} {:02}:{:02} UTC", day(time), minutes / 60, minutes % 60)
}

/// A length of time in its largest unit, rounded down: `3 days`.
pub(super) fn span(length: Duration) -> String {
    let seconds = length.as_secs();
    let (count, unit) = match seconds {
        DAY.. => (seconds / DAY, "day"),
        3600.. => (seconds / 3600, "hour"),
        _ => (seconds / 60, "minute"),
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-26 02:15 UTC.
    const NOW: u64 = 1_795_659_300;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn certificate(from: u64, to: u64) -> CertificateFacts {
        CertificateFacts {
            subject: "hub".to_owned(),
            issuer: "ca".to_owned(),
            not_before: at(from),
            not_after: at(to),
            hosts: Vec::new(),
        }
    }

    #[test]
    fn only_bounds_are_told() {
        let chain = [
            certificate(NOW - 40 * DAY, NOW + 50 * DAY),
            certificate(0, NOW + 60 * DAY),
        ];
        assert_eq!(
            judge(&chain, at(NOW)),
            (
                Mark::Ok,
                "this machine says 2026-11-26 02:15 UTC. The server's certificates allow anything from 2026-10-17 to \
                 2027-01-15; nothing else here tells the time"
                    .to_owned()
            )
        );
        let (mark, text) = judge(&[certificate(NOW + 3 * DAY + 5, NOW + 9 * DAY)], at(NOW));
        assert_eq!(mark, Mark::Note);
        assert!(text.contains("at least 3 days behind, if"), "{text}");
        let (mark, text) = judge(&[certificate(0, NOW - 7200)], at(NOW));
        assert_eq!(mark, Mark::Note);
        assert!(text.contains("or that is at least 2 hours ahead"), "{text}");
    }

    #[test]
    fn a_clock_that_was_never_set() {
        let (mark, text) = judge(&[certificate(NOW, NOW + DAY)], at(DAY));
        assert_eq!(mark, Mark::Note);
        assert!(
            text.starts_with("this machine says 1970-01-02 00:00 UTC: the clock is not set"),
            "{text}"
        );
    }

    #[test]
    fn without_certificates_nothing_is_known() {
        let (mark, text) = judge(&[], at(NOW));
        assert_eq!(mark, Mark::Ok);
        assert!(
            text.ends_with("nothing here tells whether that is right"),
            "{text}"
        );
    }
}
