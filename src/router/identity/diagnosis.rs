//! What a refusal of the hub means, and what to do about it, in words for whoever runs the gateway.

use std::time::Duration;

use super::percent;
use super::token::{SasToken, host_of};

/// 2024-01-01, in seconds since 1970. A clock that is behind this has not been set.
const NO_CLOCK_BEFORE: u64 = 1_704_067_200;

/// Longest name that is shown; ids have 128 characters at most.
const SHOWN: usize = 128;

/// Why the hub refused the token, or refused or ended what the token opened, and what to do: one sentence, without a
/// full stop. `None` when nothing is known that the hub's own words do not say.
///
/// `status` is that of the answer to a put-token, 0 where there is none: before the request, and for a detach.
/// `description` is the hub's text. For a success there is something to say only if by our clock it was none.
pub fn diagnose(
    token: &SasToken,
    now_unix: Option<Duration>,
    hub_host: &str,
    status: i32,
    description: &str,
) -> Option<String> {
    let who = bearer(token);
    let clock = Clock::new(token.expiry(), now_unix);
    let text = description.to_ascii_lowercase();
    let cause = Cause::new(status, &text);
    match cause {
        Cause::Success => clock.accepted(&who),
        Cause::TokenCap => Some(format!(
            "the hub has no room for the token of {who}: the connection holds all the tokens that the hub allows on \
             one; lower the connector's maxTokens below the hub's number, so that another connection opens in time"
        )),
        Cause::Quota => Some(format!(
            "the hub {hub_host} has used up its daily quota of messages and serves nobody until the next day (UTC): add \
             units to the hub, or let the devices send less"
        )),
        Cause::Throttled => Some(format!(
            "the hub {hub_host} slows down {who}, because too much is asked of it at once: lower the connector's \
             devicesPerSecond, add units to the hub, or let the devices send less"
        )),
        Cause::OtherClient => Some(format!(
            "another client has connected to the hub as {who}, and the hub serves one at a time: give each device an \
             identity of its own, and stop the program that uses this one twice"
        )),
        Cause::UnknownHub => Some(format!(
            "there is no hub {hub_host}: correct the connector's host, or see whether the hub was deleted"
        )),
        Cause::UnknownDevice | Cause::WrongKey | Cause::Expired | Cause::Unauthorized
            if !is_host_of(token, hub_host) =>
        {
            Some(format!(
                "the token of {who} is signed for the host '{}', and the hub is {hub_host}: let the device's program \
                 sign for the hub's name (sr={hub_host}/devices/ID), wherever it connects to",
                shown(token.host())
            ))
        }
        Cause::UnknownDevice => Some(format!(
            "the hub {hub_host} does not know {who}: register it in the hub, or enable it there, or correct the id in \
             the device's program (ids are case-sensitive)"
        )),
        Cause::WrongKey => Some(format!(
            "the token of {who} is not signed with a key that the hub has for it: give the device its primary or \
             secondary key from the hub {hub_host}"
        )),
        Cause::Expired | Cause::Unauthorized => clock.refused(&who, cause),
        Cause::Other => None,
    }
}

/// Whether a hub says that it takes no more tokens on the connection (IoT Hub: 1000, then status 500 and these words, or the
/// code).
pub(in crate::router) fn says_no_room(description: &str) -> bool {
    let text = description.to_ascii_lowercase();
    hub_code(&text) == Some(403_005) || text.contains("maximum number of tokens")
}

/// What a hub's answer is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Success,
    TokenCap,
    Quota,
    Throttled,
    OtherClient,
    UnknownHub,
    UnknownDevice,
    WrongKey,
    Expired,
    /// No more than that.
    Unauthorized,
    Other,
}

impl Cause {
    /// `text` is in lower case.
    fn new(status: i32, text: &str) -> Self {
        let says = |words: &str| text.contains(words);
        let code = hub_code(text);
        let has = |codes: &[u32]| code.is_some_and(|code| codes.contains(&code));
        let is_throttle = matches!(code, Some(429_000..=429_999 | 503_008));
        if (200..300).contains(&status) {
            Cause::Success
        } else if !matches!(status, 400 | 401 | 404) && says_no_room(text) {
            Cause::TokenCap
        // Before words that may be the device's name.
        } else if has(&[404_001]) || says("not registered") || says("devicenotfound") {
            Cause::UnknownDevice
        } else if has(&[403_002]) || says("allocated quota") || says("quotaexceeded") {
            Cause::Quota
        } else if status == 429
            || is_throttle
            || says("throttl")
            || says("server busy")
            || says("server-busy")
        {
            Cause::Throttled
        } else if has(&[409_002, 400_027]) || says("another amqp client") || says("link-creation-conflict") {
            Cause::OtherClient
        } else if says("iot-hub-not-found") || says("iothubnotfound") {
            Cause::UnknownHub
        } else if says("invalid signature") || says("primary or secondary key") {
            Cause::WrongKey
        } else if says("expired") {
            Cause::Expired
        } else if status == 401 || has(&[401_002, 401_003]) || says("unauthorized") || says("token invalid") {
            Cause::Unauthorized
        } else if status == 404 && code.is_none() {
            Cause::UnknownDevice
        } else if status == 0 && text.is_empty() {
            Cause::Unauthorized
        } else {
            Cause::Other
        }
    }
}

/// The number in `"errorCode":404001,` (IoT Hub: descriptions are JSON). Other numbers mean nothing.
fn hub_code(text: &str) -> Option<u32> {
    let (_, behind) = text.split_once("errorcode")?;
    let number = behind.trim_start_matches(['"', ':', '=', ' ']);
    let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    number.get(..end)?.parse().ok()
}

/// What our clock makes of an expiry.
enum Clock {
    Unknown,
    /// It is before any time at which this program can run.
    NotSet,
    /// This many seconds ago.
    Past {
        seconds: u64,
        expiry: u64,
    },
    /// In this many seconds.
    Ahead(u64),
}

impl Clock {
    fn new(expiry: u64, now_unix: Option<Duration>) -> Self {
        let Some(now) = now_unix.map(|now| now.as_secs()) else {
            return Clock::Unknown;
        };
        match expiry.checked_sub(now) {
            _ if now < NO_CLOCK_BEFORE => Clock::NotSet,
            Some(seconds @ 1..) => Clock::Ahead(seconds),
            Some(0) | None => Clock::Past {
                seconds: now.saturating_sub(expiry),
                expiry,
            },
        }
    }

    fn accepted(&self, who: &str) -> Option<String> {
        match self {
            Clock::Past { seconds, .. } => Some(format!(
                "the hub accepts the token of {who}, which by the gateway's clock expired {seconds} s ago: the gateway's \
                 clock is wrong; set it, best by NTP"
            )),
            Clock::Unknown | Clock::NotSet | Clock::Ahead(_) => None,
        }
    }

    fn refused(&self, who: &str, cause: Cause) -> Option<String> {
        match self {
            Clock::Past { expiry, .. } if *expiry < NO_CLOCK_BEFORE => Some(format!(
                "the token of {who} ends before the year 2024: the device's clock is not set; let the device ask for \
                 the time before it signs"
            )),
            Clock::Past { seconds, .. } => Some(format!(
                "the token of {who} expired {seconds} s ago: the device's clock is behind, or its tokens live too short \
                 or are not renewed; set the device's clock, or let its tokens live longer"
            )),
            Clock::NotSet => Some(format!(
                "the gateway's own clock is not set, so whether the token of {who} has expired cannot be told: set the \
                 gateway's clock, best by NTP, then look at the device's"
            )),
            Clock::Ahead(seconds) if cause == Cause::Expired => Some(format!(
                "the hub calls the token of {who} expired, which by the gateway's clock is good for another {seconds} s: \
                 the clocks of the gateway and the device are behind; set them, best by NTP"
            )),
            Clock::Unknown if cause == Cause::Expired => Some(format!(
                "the token of {who} has expired: the device's clock is behind, or its tokens live too short or are not \
                 renewed; set the device's clock, or let its tokens live longer"
            )),
            Clock::Unknown | Clock::Ahead(_) => None,
        }
    }
}

/// Whose token it is.
fn bearer(token: &SasToken) -> String {
    let resource = token.resource();
    match (token.policy(), resource.device()) {
        (Some(policy), _) => format!("the hub's policy {}", shown(policy)),
        (None, Some((device, None))) => format!("device {}", shown(&percent::plain(device))),
        (None, Some((device, Some(module)))) => format!(
            "module {} of device {}",
            shown(&percent::plain(module)),
            shown(&percent::plain(device))
        ),
        (None, None) => shown(token.audience()),
    }
}

fn shown(name: &str) -> String {
    name.chars().take(SHOWN).collect()
}

/// Whether the token is for this hub; host names are not case-sensitive.
fn is_host_of(token: &SasToken, hub_host: &str) -> bool {
    token.host().eq_ignore_ascii_case(host_of(hub_host))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HUB: &str = "hub.azure-devices.net";
    /// In the year 2025.
    const NOW: u64 = 1_750_000_000;

    fn token(resource: &str, expiry: u64) -> SasToken {
        SasToken::parse(&format!(
            "SharedAccessSignature sr={resource}&sig=SECRET&se={expiry}"
        ))
        .expect("a token")
    }

    fn on_device(expiry: u64, now: Option<u64>, status: i32, description: &str) -> Option<String> {
        let token = token("hub.azure-devices.net%2Fdevices%2Fd1", expiry);
        diagnose(
            &token,
            now.map(Duration::from_secs),
            "Hub.azure-devices.net",
            status,
            description,
        )
    }

    #[test]
    fn the_hubs_texts_are_explained() {
        let signature = "The specified SAS token has an invalid signature. It does not match either the primary or \
                         secondary key.";
        for (status, description, expected) in [
            (
                401,
                signature,
                Some(["device d1", "not signed with a key", "primary or secondary"]),
            ),
            (
                404,
                "Device d1 at IotHub hub not registered.",
                Some(["does not know device d1", "register it", "case-sensitive"]),
            ),
            (
                404,
                "Device throttled-403005 at IotHub hub not registered.",
                Some(["does not know device d1", "register it", "case-sensitive"]),
            ),
            (
                0,
                r#"{"errorCode":404001,"trackingId":"x","message":"Device is disabled"}"#,
                Some(["does not know device d1", "register it", "enable it"]),
            ),
            (
                0,
                "Device Not Found ErrorCode:DeviceNotFound;d1",
                Some(["does not know device d1", "register it", "Hub.azure-devices.net"]),
            ),
            (
                500,
                "The maximum number of tokens per connection (1000) has been reached.",
                Some(["no room", "device d1", "maxTokens"]),
            ),
            (
                0,
                r#"{"errorCode":403005}"#,
                Some(["no room", "device d1", "maxTokens"]),
            ),
            (
                403,
                "Total number of messages on IotHub 'hub' exceeded the allocated quota. Max allowed message count : 8000",
                Some(["daily quota", "add units", "next day (UTC)"]),
            ),
            (
                0,
                r#"{"errorCode":403002,"message":"m"}"#,
                Some(["daily quota", "add units", "UTC"]),
            ),
            (
                429,
                "",
                Some(["slows down device d1", "devicesPerSecond", "units"]),
            ),
            (
                0,
                r#"{"errorCode": 429001}"#,
                Some(["slows down device d1", "devicesPerSecond", "units"]),
            ),
            (
                0,
                r#"{"errorCode":503008}"#,
                Some(["slows down device d1", "devicesPerSecond", "units"]),
            ),
            (
                0,
                "Server Busy. Please retry operation",
                Some(["slows down device d1", "devicesPerSecond", "units"]),
            ),
            (
                0,
                "com.microsoft:device-container-throttled",
                Some(["slows down device d1", "devicesPerSecond", "units"]),
            ),
            (
                0,
                "Another AMQP Client has opened a Receive Link",
                Some(["another client", "device d1", "identity of its own"]),
            ),
            (
                0,
                "com.microsoft:link-creation-conflict",
                Some(["another client", "device d1", "twice"]),
            ),
            (
                0,
                r#"{"errorCode":409002}"#,
                Some(["another client", "device d1", "twice"]),
            ),
            (
                0,
                "com.microsoft:iot-hub-not-found-error",
                Some(["no hub", "Hub.azure-devices.net", "host"]),
            ),
            (401, "", None),
            (400, "Malformed", None),
            (0, "Token Invalid.", None),
            (
                0,
                r#"{"errorCode":404006,"trackingId":"403002-429001-G:2"}"#,
                None,
            ),
            (404, r#"{"errorCode":404006}"#, None),
            (504, "The hub did not answer.", None),
            (200, "OK", None),
            (202, "", None),
        ] {
            let said = on_device(NOW + 3600, Some(NOW), status, description);
            match expected {
                Some(words) => {
                    let said = said.expect(description);
                    for word in words {
                        assert!(said.contains(word), "{description}: {said}");
                    }
                }
                None => assert_eq!(said, None, "{description}"),
            }
        }
    }

    #[test]
    fn clocks_are_told_apart() {
        for (expiry, now, status, description, expected) in [
            (
                NOW - 93,
                Some(NOW),
                401,
                "",
                Some("device d1 expired 93 s ago: the device's clock is behind"),
            ),
            (NOW - 93, Some(NOW), 0, "Token Invalid.", Some("expired 93 s ago")),
            (NOW - 93, Some(NOW), 0, "", Some("expired 93 s ago")),
            (NOW, Some(NOW), 401, "Unauthorized", Some("expired 0 s ago")),
            (3600, Some(NOW), 401, "", Some("the device's clock is not set")),
            (
                3600,
                Some(NOW),
                401,
                "SAS token is expired",
                Some("the device's clock is not set"),
            ),
            (
                NOW + 60,
                Some(86_400),
                401,
                "",
                Some("the gateway's own clock is not set"),
            ),
            (
                3600,
                Some(86_400),
                401,
                "",
                Some("the gateway's own clock is not set"),
            ),
            (
                NOW + 60,
                Some(NOW),
                401,
                "The token has expired",
                Some("good for another 60 s: the clocks of"),
            ),
            (
                NOW,
                None,
                401,
                "The token has expired",
                Some("has expired: the device's clock is behind"),
            ),
            (NOW, None, 401, "", None),
            (NOW + 60, Some(NOW), 0, "", None),
            (u64::MAX, Some(NOW), 401, "", None),
            // The hub knows better.
            (
                NOW - 93,
                Some(NOW),
                200,
                "OK",
                Some("accepts the token of device d1, which by the gateway's clock"),
            ),
            (NOW + 60, Some(86_400), 202, "", None),
            // An expired token is not the reason for everything.
            (
                NOW - 93,
                Some(NOW),
                404,
                "Device d1 at IotHub hub not registered.",
                Some("does not know"),
            ),
            (NOW - 93, Some(NOW), 504, "", None),
        ] {
            let said = on_device(expiry, now, status, description);
            match expected {
                Some(words) => {
                    let said = said.unwrap_or_default();
                    assert!(
                        said.contains(words),
                        "{expiry} {now:?} {status} {description}: {said}"
                    );
                }
                None => assert_eq!(said, None, "{expiry} {now:?} {status} {description}"),
            }
        }
    }

    #[test]
    fn a_token_for_the_gateway_is_told_from_a_wrong_key() {
        let gateway = token("raspberry.local%3A5672%2Fdevices%2Fd1", NOW + 60);
        for (status, description) in [
            (401, "The specified SAS token has an invalid signature."),
            (404, "Device d1 at IotHub raspberry not registered."),
            (0, ""),
        ] {
            let now = Some(Duration::from_secs(NOW));
            let said = diagnose(&gateway, now, HUB, status, description).expect(description);
            assert!(said.contains("signed for the host 'raspberry.local'"), "{said}");
            assert!(said.contains("sr=hub.azure-devices.net/devices/ID"), "{said}");
        }
        let now = Some(Duration::from_secs(NOW));
        assert_eq!(diagnose(&gateway, now, HUB, 200, "OK"), None);
    }

    #[test]
    fn the_bearer_is_named() {
        for (resource, expected) in [
            ("hub%2Fdevices%2Fd1%2Fmodules%2Fm1", "module m1 of device d1"),
            ("hub%2Fdevices%2Fa%252Bb", "device a+b"),
            ("hub%2Fdevices%2F%2541", "device %41"),
            ("hub&skn=iothubowner", "the hub's policy iothubowner"),
            ("hub%2Fdevices%2Fd1%2Fmessages", "hub/devices/d1/messages"),
        ] {
            assert_eq!(bearer(&token(resource, NOW)), expected, "{resource}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_read(
            status in any::<i32>(), expiry in any::<u64>(), now in prop::option::of(any::<u64>()),
            description in "((errorCode|expired|quota|[\":0-9]{1,12})|\\PC){0,20}",
        ) {
            if let Some(said) = on_device(expiry, now, status, &description) {
                prop_assert!(!said.contains("SECRET") && !said.contains('\n') && !said.ends_with('.'));
            }
        }
    }
}
