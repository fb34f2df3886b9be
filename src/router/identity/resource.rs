//! What a token opens, and whether an address lies in it.

use std::borrow::Cow;

use super::percent;

/// What a token authorises: the whole hub, or a path and what is below it.
///
/// Device and module ids are compared exactly, all other words without regard to case (IoT Hub: ids are case-sensitive,
/// SDKs spell the rest in several ways; Service Bus: names are not case-sensitive). Ids are never patterns.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Resource(Reach);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Reach {
    Hub,
    /// Never empty; without separators at its end.
    Below(Box<str>),
    /// A text that another reader may take for something else.
    Nothing,
}

impl Resource {
    /// What an audience stands for: `[SCHEME://]HOST[:PORT][/PATH]`, or `/PATH`, with its escapes read.
    pub fn of_audience(audience: &str) -> Self {
        let (authority, path) = split_audience(audience);
        let path = path.trim_end_matches('/');
        let is_readable = is_host(authority) || (authority.is_empty() && !path.is_empty());
        Resource(match path {
            _ if !is_readable => Reach::Nothing,
            "" => Reach::Hub,
            path => Reach::Below(path.into()),
        })
    }

    /// Whether the address lies in it, by whole segments: `/a/b` covers `/a/b/c`, not `/a/bc`.
    ///
    /// The hub reads the escapes of an address (C# writes the id encoded, others do not). Some clients sign for the
    /// encoded id (C#, node), others for the id: so an encoded id in the token stands for the id as well. Two devices of
    /// which one is named with the encoding of the other's name cannot be told apart.
    pub fn covers(&self, address: &str) -> bool {
        let granted = match &self.0 {
            Reach::Hub => return true,
            Reach::Below(path) => path,
            Reach::Nothing => return false,
        };
        let Some(path) = path_of(address) else {
            return false;
        };
        let mut written = path.split('/');
        // Most tokens are for something else, which is seen at once; all of an address, which may be long, is read only for
        // the one that covers it.
        words_of(granted).all(|word| written.next().is_some_and(|segment| word.is_named_by(segment)))
            && path.split('/').all(is_straight)
    }

    /// The device, and the module, that it is all of: `devices/{id}[/modules/{module}]`, spelled as in the token.
    pub fn device(&self) -> Option<(&str, Option<&str>)> {
        let Reach::Below(path) = &self.0 else {
            return None;
        };
        let (device, module, below) = split_identity(path)?;
        below.is_none().then_some((device, module))
    }

    /// Whether it is one device, or something of one.
    pub(super) fn is_of_one_device(&self) -> bool {
        match &self.0 {
            Reach::Below(path) => split_identity(path).is_some(),
            Reach::Hub | Reach::Nothing => false,
        }
    }

    /// Whether any reader may take it for something of a device.
    pub fn may_be_of_a_device(&self) -> bool {
        match &self.0 {
            Reach::Below(path) => may_be_below_devices(path),
            Reach::Hub | Reach::Nothing => false,
        }
    }

    /// Whether it covers nothing at all.
    pub(super) fn is_nothing(&self) -> bool {
        self.0 == Reach::Nothing
    }
}

/// The device, and the module, that an address belongs to, as the hub reads it.
pub fn identity_of(address: &str) -> Option<(Cow<'_, str>, Option<Cow<'_, str>>)> {
    let (device, module, _) = split_identity(path_of(address)?)?;
    Some((percent::decoded(device), module.map(percent::decoded)))
}

/// Whether any reader may take an address for a device's: one with more slashes than it needs, or that climbs, too.
pub fn may_be_of_a_device(address: &str) -> bool {
    path_of(address).is_none_or(may_be_below_devices)
}

/// An address that belongs to a device or a module, in one spelling for all that the hub takes for the same.
pub fn in_one_spelling(address: &str) -> Option<String> {
    let path = path_of(address)?.trim_end_matches('/');
    let (device, module, rest) = split_identity(path)?;
    if !path.split('/').all(is_straight) {
        return None;
    }
    let mut spelled = format!("devices/{}", percent::decoded(device));
    if let Some(module) = module {
        spelled.push_str("/modules/");
        spelled.push_str(&percent::decoded(module));
    }
    if let Some(rest) = rest {
        spelled.push('/');
        spelled.push_str(&percent::decoded(rest).to_ascii_lowercase());
    }
    Some(spelled)
}

/// Host and port, and path, of an audience.
pub(super) fn split_audience(audience: &str) -> (&str, &str) {
    let rest = match audience.split_once("://") {
        Some((scheme, rest)) if is_scheme(scheme) => rest,
        Some(_) | None => audience,
    };
    rest.split_once('/').unwrap_or((rest, ""))
}

/// The path of an address: `PATH`, `/PATH`, `SCHEME://HOST[:PORT]/PATH`, or `amqps:PATH`.
fn path_of(address: &str) -> Option<&str> {
    let Some((scheme, rest)) = address.split_once(':').filter(|(scheme, _)| is_scheme(scheme)) else {
        return Some(relative(address));
    };
    if let Some(rest) = rest.strip_prefix("//") {
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        return is_host(authority).then_some(path);
    }
    if scheme.eq_ignore_ascii_case("amqps") || scheme.eq_ignore_ascii_case("amqp") {
        return Some(relative(rest));
    }
    Some(address)
}

fn relative(path: &str) -> &str {
    path.strip_prefix('/').unwrap_or(path)
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

/// Host and port and nothing else: not a path, a query or a second escape in disguise.
fn is_host(authority: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':' | '[' | ']');
    !authority.is_empty() && authority.chars().all(is_plain)
}

/// Whether a segment is one segment for every reader: URL libraries resolve `..`, encoded or not, and take `\` for `/`.
/// Of escapes that are no text, some read what they can.
fn is_straight(segment: &str) -> bool {
    percent::decode(segment).is_some_and(|read| !matches!(&*read, "." | "..") && !read.contains(['/', '\\']))
}

/// Whether some reader gets up from a place in an address: URL libraries resolve `..`, as above.
pub(in crate::router) fn climbs(address: &str) -> bool {
    percent::decode(address).is_none_or(|read| read.split(['/', '\\']).any(|segment| segment == ".."))
}

/// Device, module, and the rest of a path that begins with a device.
pub(super) fn split_identity(path: &str) -> Option<(&str, Option<&str>, Option<&str>)> {
    let below_devices = split_word(path, "devices")?;
    let (device, rest) = split_segment(below_devices);
    // What names no module is still something of the device.
    let module = rest
        .and_then(|rest| split_word(rest, "modules"))
        .map(split_segment)
        .filter(|(module, _)| !module.is_empty());
    let (module, rest) = match module {
        Some((module, rest)) => (Some(module), rest),
        None => (None, rest),
    };
    (!device.is_empty()).then_some((device, module, rest))
}

fn may_be_below_devices(path: &str) -> bool {
    let mut words = path.split('/').filter(|segment| !segment.is_empty());
    let is_below_devices = words
        .next()
        .is_some_and(|word| percent::decoded(word).eq_ignore_ascii_case("devices"))
        && words.next().is_some();
    is_below_devices || !path.split('/').all(is_straight)
}

/// What follows `WORD/`.
fn split_word<'a>(path: &'a str, word: &str) -> Option<&'a str> {
    let (first, rest) = path.split_once('/')?;
    first.eq_ignore_ascii_case(word).then_some(rest)
}

fn split_segment(path: &str) -> (&str, Option<&str>) {
    match path.split_once('/') {
        Some((first, rest)) => (first, Some(rest)),
        None => (path, None),
    }
}

/// A segment of what is granted.
enum Word<'a> {
    /// Of a device or a module.
    Id(&'a str),
    /// `devices`, `messages`, an entity's name, …
    Fixed(&'a str),
}

impl Word<'_> {
    /// Whether a segment of an address, as the hub reads it, is this one.
    fn is_named_by(&self, segment: &str) -> bool {
        let read = percent::decoded(segment);
        match self {
            Word::Id(id) => read == *id || read == percent::plain(id),
            Word::Fixed(word) => {
                read.eq_ignore_ascii_case(word) || read.eq_ignore_ascii_case(&percent::plain(word))
            }
        }
    }
}

fn words_of(path: &str) -> impl Iterator<Item = Word<'_>> {
    let is_device = split_word(path, "devices").is_some();
    let mut before = "";
    path.split('/').enumerate().map(move |(index, segment)| {
        let is_id = match index {
            1 => is_device,
            3 => is_device && before.eq_ignore_ascii_case("modules"),
            _ => false,
        };
        before = segment;
        if is_id {
            Word::Id(segment)
        } else {
            Word::Fixed(segment)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
    use proptest::prelude::*;

    const HUB: &str = "hub.azure-devices.net";

    fn covers(path: &str, address: &str) -> bool {
        Resource::of_audience(&format!("{HUB}/{path}")).covers(address)
    }

    #[test]
    fn addresses_are_covered_in_every_spelling() {
        for address in [
            "devices/Dev1/messages/events",
            "/devices/Dev1/messages/deviceBound",
            "/devices/Dev1",
            "/Devices/Dev1/twin",
            "amqps://gateway/devices/Dev1/twin",
            "amqps://gateway.local:5671/devices/Dev1/methods/devicebound",
            "amqps://[fd00::1]:5671/devices/Dev1/twin",
            "amqps:devices/Dev1/messages/events",
            "AMQPS:/devices/Dev1/messages/events",
            "/devices/Dev1/modules/m1/messages/events",
        ] {
            assert!(covers("devices/Dev1", address), "{address}");
            assert!(covers("DEVICES/Dev1/", address), "{address}");
            assert!(covers("", address), "{address}");
            assert!(covers("devices", address), "{address}");
            assert!(!covers("devices/dev1", address), "{address}");
            assert!(!covers("devices/Dev", address), "{address}");
            assert!(!covers("devices/Dev1/messages/eventsx", address), "{address}");
        }
    }

    #[test]
    fn what_is_beside_or_above_is_not_covered() {
        for (granted, address) in [
            ("devices/a", "/devices/ab/messages/events"),
            ("devices/a", "/devices/A/messages/events"),
            ("devices/a", "/devices/b/messages/events"),
            ("devices/a", "/devices"),
            ("devices/a", ""),
            ("devices/a", "//devices/a/messages/events"),
            ("devices/a", "/messages/devicebound"),
            ("devices/a", "x/devices/a/messages/events"),
            ("devices/a", "http:devices/a"),
            ("devices/*", "/devices/a/messages/events"),
            ("devices/#", "/devices/a/messages/events"),
            ("devices/a/modules/m", "/devices/a/messages/events"),
            ("devices/a/modules/m", "/devices/a/modules/M/messages/events"),
            ("devices/a/messages/events", "/devices/a/twin"),
            ("messages/events", "/devices/a/messages/events"),
        ] {
            assert!(!covers(granted, address), "{granted} {address}");
        }
    }

    /// What URL libraries make of them would be another device.
    #[test]
    fn nothing_but_the_whole_hub_covers_an_address_that_climbs() {
        for address in [
            "/devices/a/../b/messages/events",
            "/devices/a/%2e%2E/b/messages/events",
            "/devices/a/..%2Fb/messages/events",
            "/devices/a/..%2Fb%2Fmessages%2Fevents%FF",
            "/devices/a/..%2Fb%2Fmessages%2Fevents%00",
            "/devices/a/..\\b/messages/events",
            "/devices/a%5C..%5Cb/messages/events",
            "/devices/./a/messages/events",
            "amqps://hub\\devices\\b\\twin?/devices/a/twin",
            "amqps://hub/..?/devices/a/twin",
            "amqps://hub%2Fdevices%2Fb/devices/a/twin",
            "amqps:///devices/a/twin",
        ] {
            assert!(!covers("devices/a", address), "{address}");
            assert!(!covers("devices", address), "{address}");
            assert!(covers("", address), "{address}");
        }
    }

    #[test]
    fn ids_in_addresses_are_read_once() {
        for (granted, address, expected) in [
            ("a+b", "a+b", true),
            ("a+b", "a%2Bb", true),
            ("a+b", "a%2bb", true),
            ("a+b", "a b", false),
            ("a+b", "a%20b", false),
            ("a%2Bb", "a+b", true),
            ("a%2bb", "a%2Bb", true),
            ("a%2Bb", "a%252Bb", true),
            ("a%2Bb", "a%25252Bb", false),
            ("50%", "50%", true),
            ("50%", "50%25", true),
            ("50%25", "50%", true),
            // `%41` is an id that no encoder makes of `A`, and an address that the hub reads as `A`.
            ("%41", "A", false),
            ("%41", "%41", false),
            ("%41", "%2541", true),
            ("%2541", "%2541", true),
            ("%2541", "A", false),
            ("A", "%41", true),
            ("a#b?c*d", "a#b?c*d", true),
            ("$(x),:=@'!", "$(x),:=@'!", true),
            ("%24(x)%2C%3A%3D%40%27!", "%24%28x%29%2C%3A%3D%40'%21", true),
        ] {
            let (granted, address) = (format!("devices/{granted}"), format!("devices/{address}/twin"));
            assert_eq!(covers(&granted, &address), expected, "{granted} {address}");
        }
    }

    #[test]
    fn an_entity_of_event_hubs_covers_what_is_below_it() {
        let resource = Resource::of_audience("sb://ns.servicebus.windows.net/Telemetry");
        for (address, expected) in [
            ("telemetry", true),
            ("amqps://ns.servicebus.windows.net/telemetry", true),
            ("telemetry/consumergroups/$default/Partitions/0", true),
            ("Telemetry/ConsumerGroups/%24Default/Partitions/0", true),
            ("telemetry2", false),
            ("telemetr", false),
            ("other/telemetry", false),
        ] {
            assert_eq!(resource.covers(address), expected, "{address}");
        }
    }

    #[test]
    fn a_host_that_hides_a_path_opens_nothing() {
        for audience in [
            "",
            "/",
            "hub%2Fdevices%2Fa",
            "hub\\devices\\a",
            "hub?devices",
            "hub#",
            "sb://",
        ] {
            let resource = Resource::of_audience(audience);
            assert!(resource.is_nothing(), "{audience}");
            assert!(!resource.covers("devices/a/twin"), "{audience}");
            assert!(!resource.covers(""), "{audience}");
        }
        for audience in ["hub", "hub:5671/", "sb://ns/", "HUB.azure-devices.net//"] {
            assert!(
                Resource::of_audience(audience).covers("devices/a/twin"),
                "{audience}"
            );
        }
        assert!(!Resource::of_audience("hub/devices%2Fa").covers("devices%2FA/twin"));
    }

    #[test]
    fn a_resource_may_be_all_of_a_device() {
        for (audience, expected) in [
            ("hub/devices/d", Some(("d", None))),
            ("/Devices/d/", Some(("d", None))),
            ("hub/devices/d/Modules/m", Some(("d", Some("m")))),
            ("hub/devices/d/modules", None),
            ("hub/devices/d/modules/", None),
            ("hub/devices/d/messages/events", None),
            ("hub/devices", None),
            ("hub", None),
            ("sb://ns/eh", None),
        ] {
            assert_eq!(Resource::of_audience(audience).device(), expected, "{audience}");
        }
    }

    #[test]
    fn an_address_belongs_to_a_device() {
        let identity = |address| {
            identity_of(address).map(|(device, module)| (device.into_owned(), module.map(Cow::into_owned)))
        };
        for (address, expected) in [
            ("/devices/a%2Bb/messages/events", Some(("a+b", None))),
            (
                "amqps://gw:5671/Devices/d/modules/m%3a1/twin",
                Some(("d", Some("m:1"))),
            ),
            ("devices/a%0Ab", Some(("a%0Ab", None))),
            ("devices/d/modules", Some(("d", None))),
            ("devices/d/modules/", Some(("d", None))),
            ("devices/d/modules//twin", Some(("d", None))),
            ("devices//twin", None),
            ("devices", None),
            ("/messages/devicebound", None),
            ("$cbs", None),
        ] {
            let expected = expected.map(|(device, module)| (device.to_owned(), module.map(str::to_owned)));
            assert_eq!(identity(address), expected, "{address}");
        }
    }

    #[test]
    fn what_may_be_a_devices_is_nobody_elses() {
        for (address, expected) in [
            ("/devices/d/messages/events", true),
            ("DEVICES/d", true),
            ("%64evices/d/twin", true),
            ("//devices//d/twin", true),
            ("amqps://hub.example/%44evices/d/twin", true),
            ("amqps:///devices/d/twin", true),
            ("/x/../devices/d/twin", true),
            ("/x/..%2Fdevices%2Fd%2Ftwin", true),
            ("devices", false),
            ("/messages/devicebound", false),
            ("plant/devices/7", false),
            ("telemetry/ConsumerGroups/%24Default/Partitions/0", false),
            ("sb://ns/telemetry", false),
        ] {
            assert_eq!(may_be_of_a_device(address), expected, "{address}");
        }
    }

    /// Everything that a device's name may be made of.
    fn id() -> impl Strategy<Value = String> {
        "([A-Za-z0-9]|[-.+%_#*?!(),:=@$']|%[2-5][0-9A-F]){1,12}"
            .prop_filter("no name to climb with", |id| id != "." && id != "..")
    }

    /// The encoders of the SDKs: none, RFC 3986's, JavaScript's, and that of .NET.
    fn spellings(id: &str) -> [String; 4] {
        const RFC_3986: AsciiSet = NON_ALPHANUMERIC
            .remove(b'-')
            .remove(b'.')
            .remove(b'_')
            .remove(b'~');
        const DOT_NET: AsciiSet = RFC_3986.remove(b'!').remove(b'*').remove(b'(').remove(b')');
        const JAVASCRIPT: AsciiSet = DOT_NET.remove(b'\'');
        let encoded = |set| utf8_percent_encode(id, set).to_string();
        [
            id.to_owned(),
            encoded(&RFC_3986),
            encoded(&JAVASCRIPT),
            with_small_digits(&encoded(&DOT_NET)),
        ]
    }

    /// The escapes of an encoded text in lower case.
    fn with_small_digits(text: &str) -> String {
        let small = |(index, part): (usize, &str)| match part.split_at_checked(2) {
            Some((digits, rest)) if index > 0 => format!("%{}{rest}", digits.to_lowercase()),
            Some(_) | None => part.to_owned(),
        };
        text.split('%').enumerate().map(small).collect()
    }

    fn read(text: &str) -> String {
        percent_decode_str(text).decode_utf8_lossy().into_owned()
    }

    proptest! {
        #[test]
        fn a_device_reaches_its_own_addresses(id in id()) {
            for granted in spellings(&id) {
                for address in spellings(&id) {
                    // Whoever does not encode an id with an escape in it asks the hub for another device.
                    if read(&address) == id {
                        let resource = Resource::of_audience(&format!("{HUB}/devices/{granted}"));
                        let covers = resource.covers(&format!("/devices/{address}/messages/events"));
                        prop_assert!(covers, "{} {}", granted, address);
                    }
                }
            }
        }

        #[test]
        fn no_device_reaches_another(one in id(), other in id(), similar in any::<prop::sample::Index>()) {
            let near = spellings(&one);
            let others = [other, one.to_uppercase(), read(&one), similar.get(&near).clone(), format!("{one}x")];
            for other in others {
                let encodes = |a: &str, b: &str| percent::is_encoding(a) && read(a) == b;
                let is_encoding = encodes(&one, &other) || encodes(&other, &one);
                if other == one || is_encoding {
                    continue;
                }
                for granted in spellings(&one) {
                    for address in spellings(&other) {
                        if read(&address) == one {
                            continue;
                        }
                        let resource = Resource::of_audience(&format!("{HUB}/devices/{granted}"));
                        let covers = resource.covers(&format!("/devices/{address}/messages/events"));
                        prop_assert!(!covers, "{} {}", granted, address);
                    }
                }
            }
        }

        /// Whatever the texts: what is covered is, as the hub reads it, what was granted, or its encoding's id.
        #[test]
        fn what_is_covered_was_granted(granted in "[aA%254b/.\\\\:]{1,12}", address in "[aA%254b/.\\\\:]{0,16}") {
            let resource = Resource::of_audience(&format!("{HUB}/devices/{granted}"));
            let is_below_devices = granted.starts_with(|c| c != '/');
            if is_below_devices && resource.covers(&format!("/devices/{address}")) {
                let pairs = granted.trim_end_matches('/').split('/').zip(address.split('/'));
                for (index, (granted, address)) in pairs.enumerate() {
                    let is_id = index == 0;
                    let same = |a: String, b: &str| if is_id { a == b } else { a.eq_ignore_ascii_case(b) };
                    prop_assert!(same(read(address), granted) || same(read(address), &read(granted)));
                }
            }
        }

        #[test]
        fn any_text_is_read(audience in "\\PC{0,60}", address in "\\PC{0,60}") {
            let resource = Resource::of_audience(&audience);
            let _ = (resource.covers(&address), resource.device(), identity_of(&address));
        }
    }

    #[test]
    fn one_spelling_for_what_the_hub_takes_for_the_same() {
        for (address, expected) in [
            (
                "devices/Dev-1/messages/events",
                Some("devices/Dev-1/messages/events"),
            ),
            (
                "/Devices/Dev-1/Messages/DeviceBound",
                Some("devices/Dev-1/messages/devicebound"),
            ),
            ("amqps://hub:5671/devices/Dev-1/twin/", Some("devices/Dev-1/twin")),
            ("amqps:devices/D%2D1/twin", Some("devices/D-1/twin")),
            (
                "devices/D/Modules/M/messages/Events",
                Some("devices/D/modules/M/messages/events"),
            ),
            ("devices/D/modules/Modules/X", Some("devices/D/modules/Modules/x")),
            ("devices/D", Some("devices/D")),
            ("devices/D/modules/", Some("devices/D/modules")),
            ("devices/a%2Fb/twin", None),
            ("devices/D/../E/twin", None),
            ("devices//twin", None),
            ("devices", None),
            ("messages/devicebound", None),
            ("messages/servicebound/feedback", None),
            ("$cbs", None),
            ("", None),
        ] {
            assert_eq!(in_one_spelling(address).as_deref(), expected, "{address}");
        }
    }
}
