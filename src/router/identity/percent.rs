//! Percent-encoding (RFC 3986, section 2.1), as far as ids in addresses and tokens need it.

use std::borrow::Cow;

/// The text with its escapes read, or as it is when that is no text.
pub(in crate::router) fn decoded(text: &str) -> Cow<'_, str> {
    decode(text).unwrap_or(Cow::Borrowed(text))
}

/// The text with its escapes read, once. `+` is a plus; what is not an escape stays. `None` when that is not UTF-8, or
/// has control characters, which no name at a hub has.
pub(super) fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        let (byte, behind) = escape(rest).unwrap_or((*first, behind));
        bytes.push(byte);
        rest = behind;
    }
    let read = String::from_utf8(bytes).ok()?;
    (!read.contains(char::is_control)).then_some(Cow::Owned(read))
}

/// Whether an encoder writes some id in just this way: everything that encoders differ about may be bare or escaped,
/// letters, digits and `-._~` are always bare, and the rest is always escaped.
pub(super) fn is_encoding(text: &str) -> bool {
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        rest = match escape(rest) {
            Some((byte, behind)) if !is_unreserved(byte) => behind,
            Some(_) => return false,
            None if is_unreserved(*first) || b"!*'()".contains(first) => behind,
            None => return false,
        };
    }
    true
}

/// What an id that is spelled so is, for a reader.
pub(super) fn plain(text: &str) -> Cow<'_, str> {
    if is_encoding(text) {
        decoded(text)
    } else {
        Cow::Borrowed(text)
    }
}

const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// The byte of the escape at the start, and what follows it.
fn escape(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let [b'%', high, low, behind @ ..] = bytes else {
        return None;
    };
    Some(((hex(*high)? << 4) | hex(*low)?, behind))
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use percent_encoding::percent_decode_str;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_escape_stays() {
        for (text, expected) in [
            ("a+b", "a+b"),
            ("a%2Bb%2b", "a+b+"),
            ("50%", "50%"),
            ("50%2", "50%2"),
            ("%zz%2", "%zz%2"),
            ("%%41", "%A"),
            ("%2541", "%41"),
            ("%C3%A4", "ä"),
            ("%C3", "%C3"),
            ("a%0Ab%41", "a%0Ab%41"),
        ] {
            assert_eq!(decoded(text), expected, "{text}");
        }
    }

    #[test]
    fn an_encoding_is_told_from_an_id() {
        for (text, expected) in [
            ("thermo-7", true),
            ("a%2Bb", true),
            ("a%2bb(%29", true),
            ("%2541", true),
            ("%41", false),
            ("a+b%2B", false),
            ("50%", false),
            ("ä%2B", false),
        ] {
            assert_eq!(is_encoding(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn escapes_are_read_as_another_reader_does(text in "([a-zA-Z0-9+%]|%[0-9a-fA-F]{2}|\\PC){0,40}") {
            let other = percent_decode_str(&text).decode_utf8();
            match other {
                Ok(read) if !read.contains(char::is_control) => prop_assert_eq!(decoded(&text), read),
                Ok(_) | Err(_) => prop_assert_eq!(decoded(&text), text.as_str()),
            }
        }
    }
}
