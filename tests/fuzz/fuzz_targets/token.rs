//! A SAS token and an address: any text is a token that reads the same when it is written again, or is refused; and what a
//! token of one device opens belongs to that device.
#![no_main]

use libfuzzer_sys::fuzz_target;
use linkrouterd::router::identity::{Resource, SasToken, diagnose, identity_of, in_one_spelling};

const ADDRESS_IN_SCOPE: &str = "messages/events";

fuzz_target!(|data: &[u8]| {
    let Ok(input) = std::str::from_utf8(data) else {
        return;
    };
    let (text, address) = input.rsplit_once('\n').unwrap_or((input, input));
    let identity = identity_of(address);
    if let Some(spelled) = in_one_spelling(address) {
        let (device, module) = identity.as_ref().expect("somebody's address");
        let mut expected = format!("devices/{device}");
        if let Some(module) = module {
            expected.push_str("/modules/");
            expected.push_str(module);
        }
        assert!(spelled.starts_with(&expected), "{spelled}");
    }
    opens_only_its_own(&Resource::of_audience(text), address);

    let Ok(token) = SasToken::parse(text) else {
        return;
    };
    let mut written = format!(
        "SharedAccessSignature se={}&sig=x&sr={}",
        token.expiry(),
        escaped(token.audience())
    );
    if let Some(policy) = token.policy() {
        written.push_str("&skn=");
        written.push_str(&escaped(policy));
    }
    assert_eq!(SasToken::parse(&written).as_ref(), Ok(&token), "{written}");
    opens_only_its_own(&token.resource(), address);
    if let Some((device, module)) = token.resource().device() {
        let of_module = module.map(|id| format!("/modules/{}", escaped(id)));
        let own = format!(
            "devices/{}{}/{ADDRESS_IN_SCOPE}",
            escaped(device),
            of_module.unwrap_or_default()
        );
        let is_straight = |id: &str| !matches!(id, "." | "..") && !id.contains(['/', '\\']);
        if is_straight(device) && module.is_none_or(is_straight) {
            assert!(token.resource().covers(&own), "{own}");
        }
    }
    for status in [0, 200, 401, 404, 429] {
        if let Some(line) = diagnose(&token, None, token.host(), status, address) {
            assert!(line.len() < 1500 && !line.contains(char::is_control), "{line}");
        }
    }
});

/// A device is never covered by a token of another.
fn opens_only_its_own(resource: &Resource, address: &str) {
    let Some((device, module)) = resource.device() else {
        return;
    };
    if !resource.covers(address) {
        return;
    }
    let (named, named_module) = identity_of(address).expect("an address of a device");
    let is = |granted: &str, named: &str| named == granted || named == unescaped(granted);
    assert!(is(device, &named), "{device} {named}");
    if let Some(module) = module {
        let named_module = named_module.expect("an address of a module");
        assert!(is(module, &named_module), "{module} {named_module}");
    }
}

fn escaped(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// A reader of its own, for the one under test must not agree with itself.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let digits = behind
            .first_chunk::<2>()
            .and_then(|two| std::str::from_utf8(two).ok());
        let escape = digits
            .filter(|two| *first == b'%' && two.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|two| u8::from_str_radix(two, 16).ok());
        bytes.push(escape.unwrap_or(*first));
        rest = if escape.is_some() { &behind[2..] } else { behind };
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}
