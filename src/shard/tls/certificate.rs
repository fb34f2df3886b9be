//! What a certificate says of itself: names and dates, for messages and warnings only.
//!
//! Nothing here decides about trust, that is rustls' business; so a certificate that cannot be read is no error, it
//! is only described less well. The text in a certificate is the peer's: every name is made printable first.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime};

use x509_cert::certificate::{CertificateInner, Raw, TbsCertificateInner};
use x509_cert::der::{DateTime, Decode};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::name::Name;

/// Longest name that is shown; certificates may carry kilobytes of text.
const NAME_LIMIT: usize = 96;
/// Most names of one certificate that are shown.
const NAMES_SHOWN: usize = 6;

/// The readable part of one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Common name of the owner, or the whole name if it has none.
    pub subject: String,
    /// The same of the authority that signed it.
    pub issuer: String,
    /// First moment of validity.
    pub not_before: SystemTime,
    /// Last moment of validity.
    pub not_after: SystemTime,
    /// The hosts it is for (subjectAltName), a handful at most.
    pub hosts: Vec<String>,
}

impl CertificateFacts {
    /// Reads a DER certificate; `None` if it is not one.
    pub fn read(der: &[u8]) -> Option<Self> {
        // The `Raw` profile takes old roots with odd serial numbers, which RFC 5280 would not.
        let certificate = CertificateInner::<Raw>::from_der(der).ok()?;
        let body = certificate.tbs_certificate();
        Some(CertificateFacts {
            subject: short_name(body.subject()),
            issuer: short_name(body.issuer()),
            not_before: body.validity().not_before.to_system_time(),
            not_after: body.validity().not_after.to_system_time(),
            hosts: hosts(body),
        })
    }

    /// Whether its time is over.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        now > self.not_after
    }

    /// Whether its time has not come.
    pub fn is_premature(&self, now: SystemTime) -> bool {
        now < self.not_before
    }
}

/// The day of a moment, `2018-08-22`, in UTC.
pub fn day(time: SystemTime) -> String {
    match DateTime::from_system_time(time) {
        Ok(date) => format!("{:04}-{:02}-{:02}", date.year(), date.month(), date.day()),
        Err(_) => "an impossible date".to_owned(),
    }
}

/// Whether this machine's clock shows a year before this program was written: a board without a battery-backed
/// clock starts in 1970 (or at its image's date), and every certificate looks invalid until NTP has run.
pub fn clock_is_unset(now: SystemTime) -> bool {
    const START_OF_2025: Duration = Duration::from_secs(1_735_689_600);
    now < SystemTime::UNIX_EPOCH + START_OF_2025
}

/// Makes foreign text fit for one log line.
pub(super) fn printable(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .take(NAME_LIMIT)
        .collect();
    if text.chars().nth(NAME_LIMIT).is_some() {
        shown.push_str("...");
    }
    shown
}

fn short_name(name: &Name) -> String {
    match name.common_name() {
        Ok(Some(common_name)) => printable(&common_name.value()),
        Ok(None) | Err(_) => printable(&name.to_string()),
    }
}

fn hosts(body: &TbsCertificateInner<Raw>) -> Vec<String> {
    let Ok(Some((_, names))) = body.get_extension::<SubjectAltName>() else {
        return Vec::new();
    };
    names.0.iter().filter_map(host).take(NAMES_SHOWN).collect()
}

fn host(name: &GeneralName) -> Option<String> {
    if let GeneralName::DnsName(name) = name {
        return Some(printable(name.as_str()));
    }
    let GeneralName::IpAddress(octets) = name else {
        return None;
    };
    let octets = octets.as_bytes();
    if let Ok(v4) = <[u8; 4]>::try_from(octets) {
        return Some(IpAddr::V4(Ipv4Addr::from(v4)).to_string());
    }
    let v6 = <[u8; 16]>::try_from(octets).ok()?;
    Some(IpAddr::V6(Ipv6Addr::from(v6)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_dates_and_hosts_are_read() {
        let mut params =
            rcgen::CertificateParams::new(vec!["hub.test".to_owned(), "10.1.2.3".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "two\nlines");
        params.not_before = rcgen::date_time_ymd(2001, 2, 3);
        params.not_after = rcgen::date_time_ymd(2051, 12, 31);
        let key = rcgen::KeyPair::generate().unwrap();
        let facts = CertificateFacts::read(params.self_signed(&key).unwrap().der()).unwrap();

        assert_eq!(facts.subject, "two?lines");
        assert_eq!(facts.issuer, "two?lines");
        assert_eq!(facts.hosts, ["hub.test", "10.1.2.3"]);
        assert_eq!(day(facts.not_before), "2001-02-03");
        assert_eq!(day(facts.not_after), "2051-12-31");
        let first_moment = facts.not_before;
        assert!(!facts.is_premature(first_moment));
        assert!(facts.is_premature(first_moment - Duration::from_secs(1)));
        assert!(!facts.is_expired(facts.not_after));
        assert!(facts.is_expired(facts.not_after + Duration::from_secs(1)));
    }

    #[test]
    fn rubbish_is_no_certificate() {
        assert_eq!(CertificateFacts::read(b""), None);
        assert_eq!(CertificateFacts::read(&[0x30, 0x82, 0xff, 0xff, 1, 2, 3]), None);
    }

    #[test]
    fn long_text_is_cut() {
        let shown = printable(&"x".repeat(500));
        assert_eq!(shown.len(), NAME_LIMIT + 3);
    }

    #[test]
    fn a_clock_before_2025_is_unset() {
        assert!(clock_is_unset(SystemTime::UNIX_EPOCH));
        assert!(!clock_is_unset(
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_735_689_600)
        ));
    }
}
