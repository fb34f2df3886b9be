//! SAS tokens, as far as their text goes.

use std::borrow::Cow;
use std::fmt;

use super::percent;
use super::resource::{self, Resource};

/// What a token says; whether it is true is for the hub to say (IoT Hub: `SharedAccessSignature sr=…&sig=…&se=…[&skn=…]`,
/// the fields in any order). The signature is not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SasToken {
    audience: String,
    expiry: u64,
    policy: Option<String>,
}

/// Why a text is not a SAS token that a hub can accept. Never shows the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenFault {
    /// The scheme is another one, or none.
    #[error("the token does not begin with `SharedAccessSignature` and a space")]
    Scheme,
    /// A reader that splits at blanks would see another token.
    #[error("the token has blanks or control characters in it")]
    Blank,
    /// A field that every token has is not there, or empty.
    #[error("the token has no `{0}`")]
    Missing(Field),
    /// Two readers may choose differently.
    #[error("the token has more than one `{0}`")]
    Repeated(Field),
    /// Not a number.
    #[error("the token's `se` is not a time in seconds since 1970")]
    Expiry,
    /// `sr` is not what it should be.
    #[error("the token's `sr` is not a percent-encoded `HOST/devices/ID`")]
    Resource,
    /// Only policies sign for more than a device.
    #[error("the token's `sr` is not of one device, and it names no policy (`skn`)")]
    Policy,
}

/// The fields of a token that mean something to a hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// `sr`
    Resource,
    /// `sig`
    Signature,
    /// `se`
    Expiry,
    /// `skn`
    Policy,
}

impl Field {
    const ALL: [Field; 4] = [Field::Resource, Field::Signature, Field::Expiry, Field::Policy];

    const fn name(self) -> &'static str {
        match self {
            Field::Resource => "sr",
            Field::Signature => "sig",
            Field::Expiry => "se",
            Field::Policy => "skn",
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl SasToken {
    /// Reads a token's text.
    ///
    /// # Errors
    /// [`TokenFault`] where a hub could not accept it, or two readers might read it in two ways.
    pub fn parse(text: &str) -> Result<Self, TokenFault> {
        let fields = Fields::parse(text)?;
        let written = fields.resource.ok_or(TokenFault::Missing(Field::Resource))?;
        fields.signature.ok_or(TokenFault::Missing(Field::Signature))?;
        let expiry = fields.expiry.ok_or(TokenFault::Missing(Field::Expiry))?;
        let token = SasToken {
            audience: audience(written)?,
            expiry: seconds(expiry).ok_or(TokenFault::Expiry)?,
            policy: fields.policy.map(|policy| percent::decoded(policy).into_owned()),
        };
        let resource = token.resource();
        if resource.is_nothing() {
            return Err(TokenFault::Resource);
        }
        if token.policy.is_none() && !resource.is_of_one_device() {
            return Err(TokenFault::Policy);
        }
        Ok(token)
    }

    /// What it is signed for, escapes read: what a put-token request has as its `name`.
    pub fn audience(&self) -> &str {
        &self.audience
    }

    /// The host that it is signed for, without scheme and port.
    pub fn host(&self) -> &str {
        host_of(resource::split_audience(&self.audience).0)
    }

    /// When it ends, in seconds since 1970.
    pub const fn expiry(&self) -> u64 {
        self.expiry
    }

    /// The hub's policy whose key signed it, if it was not the device's own.
    pub fn policy(&self) -> Option<&str> {
        self.policy.as_deref()
    }

    /// What it opens, once the hub has accepted it.
    pub fn resource(&self) -> Resource {
        Resource::of_audience(&self.audience)
    }
}

/// Whose token one for this audience is, in one spelling: the device's, or the module's, or else what it says.
pub(in crate::router) fn counted_as(audience: &str) -> Box<str> {
    match resource::split_identity(resource::split_audience(audience).1) {
        Some((device, None, _)) => format!("devices/{}", percent::plain(device)).into(),
        Some((device, Some(module), _)) => format!(
            "devices/{}/modules/{}",
            percent::plain(device),
            percent::plain(module)
        )
        .into(),
        None => audience.to_ascii_lowercase().into(),
    }
}

/// The values as they stand in the text; `None` when a field is not there or empty.
#[derive(Default)]
struct Fields<'a> {
    resource: Option<&'a str>,
    signature: Option<&'a str>,
    expiry: Option<&'a str>,
    policy: Option<&'a str>,
}

impl<'a> Fields<'a> {
    fn parse(text: &'a str) -> Result<Self, TokenFault> {
        let (scheme, rest) = text.trim_end().split_once(' ').ok_or(TokenFault::Scheme)?;
        if !scheme.eq_ignore_ascii_case("SharedAccessSignature") {
            return Err(TokenFault::Scheme);
        }
        let rest = rest.trim_start_matches(' ');
        if rest.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(TokenFault::Blank);
        }
        let mut fields = Fields::default();
        let mut seen = [false; Field::ALL.len()];
        for part in rest.split('&') {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let mut known = Field::ALL.into_iter().zip(&mut seen);
            let Some((field, seen)) = known.find(|(field, _)| name.eq_ignore_ascii_case(field.name())) else {
                continue;
            };
            if std::mem::replace(seen, true) {
                return Err(TokenFault::Repeated(field));
            }
            let slot = match field {
                Field::Resource => &mut fields.resource,
                Field::Signature => &mut fields.signature,
                Field::Expiry => &mut fields.expiry,
                Field::Policy => &mut fields.policy,
            };
            *slot = Some(value).filter(|value| !value.is_empty());
        }
        Ok(fields)
    }
}

/// A bare `=` ends the value for readers that split at every one, and `\` is a slash for some.
fn audience(written: &str) -> Result<String, TokenFault> {
    percent::decode(written)
        .filter(|read| !written.contains('=') && !read.contains('\\'))
        .map(Cow::into_owned)
        .ok_or(TokenFault::Resource)
}

/// Whole seconds; a time beyond all numbers is the last one. Fractions are allowed: python programs write them.
fn seconds(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(whole) && is_number(fraction)).then(|| whole.parse().unwrap_or(u64::MAX))
}

/// A host without its port.
pub(super) fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        Some(_) | None => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TAIL: &str = "sig=c2ln%3d&se=1700000000";

    fn parsed(fields: &str) -> Result<SasToken, TokenFault> {
        SasToken::parse(&format!("SharedAccessSignature {fields}"))
    }

    #[test]
    fn tokens_of_every_client_are_read() {
        for (text, audience, expiry) in [
            (
                "SharedAccessSignature sr=hub.azure-devices.net%2Fdevices%2Fd1&sig=a%2Bb%3D&se=1700000000",
                "hub.azure-devices.net/devices/d1",
                1_700_000_000,
            ),
            (
                "sharedaccesssignature se=1700000000.75&skn=&sr=HUB%2fdevices%2fd%2B1&sig=ab==\n",
                "HUB/devices/d+1",
                1_700_000_000,
            ),
            (
                "SharedAccessSignature sr=hub/devices/a%252Bb&sig=x&se=1",
                "hub/devices/a%2Bb",
                1,
            ),
            (
                "SharedAccessSignature SR=sb%3A%2F%2Fns%2Feh&Sig=x&SE=99999999999999999999999&skn=Root&x=1&x=2",
                "sb://ns/eh",
                u64::MAX,
            ),
        ] {
            let token = SasToken::parse(text).expect(text);
            assert_eq!((token.audience(), token.expiry()), (audience, expiry), "{text}");
        }
    }

    #[test]
    fn hosts_have_neither_scheme_nor_port() {
        for (resource, expected) in [
            ("hub.azure-devices.net/devices/d", "hub.azure-devices.net"),
            ("amqps://gw.local:5671/devices/d", "gw.local"),
            ("sb://ns/devices/d", "ns"),
            ("/devices/d", ""),
        ] {
            let token = parsed(&format!("sr={resource}&{TAIL}")).expect(resource);
            assert_eq!(token.host(), expected, "{resource}");
        }
    }

    #[test]
    fn tokens_of_one_device_are_one_in_any_spelling() {
        for (audience, expected) in [
            ("hub.example/devices/D+1", "devices/D+1"),
            ("HUB.example:5671/Devices/D%2B1/", "devices/D+1"),
            ("amqps://hub.example/devices/d/messages/events", "devices/d"),
            ("/devices/d/modules/M/twin", "devices/d/modules/M"),
            ("Hub.Example", "hub.example"),
            ("sb://ns/Entity", "sb://ns/entity"),
        ] {
            assert_eq!(&*counted_as(audience), expected, "{audience}");
        }
    }

    #[test]
    fn what_is_no_token_is_said_without_showing_it() {
        use TokenFault as Fault;
        for (text, expected) in [
            ("", Fault::Scheme),
            ("SharedAccessSignature", Fault::Scheme),
            ("Bearer SECRET", Fault::Scheme),
            (
                "SharedAccessSignature\tsr=h/devices/d&sig=SECRET&se=1",
                Fault::Scheme,
            ),
            ("SharedAccessSignature  ", Fault::Scheme),
            (
                "SharedAccessSignature sr=h/devices/d&sig=SECRET&se=1 &sr=x",
                Fault::Blank,
            ),
            (
                "SharedAccessSignature sig=SECRET&se=1",
                Fault::Missing(Field::Resource),
            ),
            (
                "SharedAccessSignature sr=&sig=SECRET&se=1",
                Fault::Missing(Field::Resource),
            ),
            (
                "SharedAccessSignature sr=h/devices/d&se=1",
                Fault::Missing(Field::Signature),
            ),
            (
                "SharedAccessSignature sr=h/devices/d&sig=SECRET",
                Fault::Missing(Field::Expiry),
            ),
            (
                "SharedAccessSignature sr=h/devices/d&SR=h/devices/e&sig=SECRET&se=1",
                Fault::Repeated(Field::Resource),
            ),
            (
                "SharedAccessSignature skn=&skn=p&sr=h&sig=SECRET&se=1",
                Fault::Repeated(Field::Policy),
            ),
            (
                "SharedAccessSignature sr=h/devices/d&sig=SECRET&se=soon",
                Fault::Expiry,
            ),
            (
                "SharedAccessSignature sr=h/devices/d&sig=SECRET&se=-1",
                Fault::Expiry,
            ),
            (
                "SharedAccessSignature sr=h/devices/d&sig=SECRET&se=1.",
                Fault::Expiry,
            ),
            // For some readers, this is a token of `d`.
            (
                "SharedAccessSignature sr=h/devices/d=e&sig=SECRET&se=1",
                Fault::Resource,
            ),
            (
                "SharedAccessSignature sr=h/devices/d%5Ce&sig=SECRET&se=1",
                Fault::Resource,
            ),
            (
                "SharedAccessSignature sr=h/devices/d%0A&sig=SECRET&se=1",
                Fault::Resource,
            ),
            (
                "SharedAccessSignature sr=h/devices/%FF&sig=SECRET&se=1",
                Fault::Resource,
            ),
            // And for readers that decode twice, this is one.
            (
                "SharedAccessSignature sr=h%252Fdevices%252Fd&sig=SECRET&se=1&skn=p",
                Fault::Resource,
            ),
            ("SharedAccessSignature sr=h&sig=SECRET&se=1", Fault::Policy),
            (
                "SharedAccessSignature sr=h/devices&sig=SECRET&se=1&skn=",
                Fault::Policy,
            ),
        ] {
            let fault = SasToken::parse(text).expect_err(text);
            assert_eq!(fault, expected, "{text}");
            assert!(
                !format!("{fault} {fault:?}").contains("SECRET"),
                "{text} shows in {fault}"
            );
        }
    }

    #[test]
    fn the_signature_is_not_kept() {
        let token = parsed("sr=h/devices/d&sig=SECRET&se=1").expect("a token");
        assert!(!format!("{token:?}").contains("SECRET"));
    }

    #[test]
    fn a_policy_signs_for_the_whole_hub() {
        let token = parsed(&format!("sr=hub&skn=iothub%6fwner&{TAIL}")).expect("a token");
        assert_eq!(token.policy(), Some("iothubowner"));
        assert!(token.resource().covers("/messages/devicebound"));
    }

    proptest! {
        #[test]
        fn any_text_is_a_token_or_a_fault(fields in "((sr|sig|se|skn|x)=?[a-zA-Z0-9%/:.=]{0,20}&?|\\PC){0,12}") {
            if let Ok(token) = parsed(&fields) {
                prop_assert!(!token.resource().is_nothing());
                prop_assert!(token.audience().starts_with(token.host()) || token.audience().contains("://"));
                prop_assert!(token.policy().is_some() || !token.resource().covers("messages/devicebound"));
            }
            let _ = SasToken::parse(&fields);
        }

        /// Fields in any order are the same token.
        #[test]
        fn order_does_not_matter(id in "[a-zA-Z0-9_]{1,20}", expiry in any::<u64>(), order in Just([0usize, 1, 2, 3]).prop_shuffle()) {
            let fields = [format!("sr=h%2Fdevices%2F{id}"), "sig=x".to_owned(), format!("se={expiry}"), "skn=p".to_owned()];
            let text = order.map(|index| fields[index].clone()).join("&");
            let token = parsed(&text).expect("a token");
            prop_assert_eq!(token.expiry(), expiry);
            prop_assert_eq!(token.audience, format!("h/devices/{id}"));
        }
    }
}
