//! One attribute's value: from its notation to what it means.

use std::fs::File;
use std::io::Read;

use super::entity::Kind;
use super::names::{quoted, suggestion};
use super::secret::{Exposure, Secret, resolve};
use super::source::Raw;

/// A value of the kind that its attribute asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// Of no interest, or a map.
    Opaque,
    Boolean(bool),
    Integer(u32),
    Port(u16),
    Secret(Secret, Exposure),
    Tag(&'static str),
    Text(String),
    Words(Vec<String>),
}

/// Reads one value; `Err` is what is wrong with it, and never contains a secret.
pub(super) fn read(
    kind: Kind,
    raw: &Raw,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Value, String> {
    match (kind, raw) {
        (Kind::Any, _) | (Kind::Map | Kind::Groups, Raw::Map(_)) => return Ok(Value::Opaque),
        (Kind::List, Raw::List(Some(members))) => return Ok(Value::Words(members.clone())),
        (Kind::Map | Kind::Groups, _) => return Err("must be a map: `NAME: {` … `}`".to_owned()),
        (_, Raw::Map(_)) => return Err("cannot be a map".to_owned()),
        (_, Raw::List(_)) => return Err("cannot be a list".to_owned()),
        (Kind::Boolean, Raw::Boolean(value)) => return Ok(Value::Boolean(*value)),
        (Kind::Boolean, Raw::Number(number)) if number == "0" || number == "1" => {
            return Ok(Value::Boolean(number == "1"));
        }
        (_, Raw::Text(_) | Raw::Number(_) | Raw::Boolean(_)) => {}
    }
    let text = match raw {
        Raw::Text(text) | Raw::Number(text) => text.as_str(),
        Raw::Boolean(true) => "true",
        Raw::Boolean(false) => "false",
        Raw::Map(_) | Raw::List(_) => "",
    };
    match kind {
        Kind::Any | Kind::Map | Kind::Groups => Ok(Value::Opaque),
        Kind::Boolean => boolean(text).map(Value::Boolean),
        Kind::Enum { tags, more } => tag(text, tags, more).map(Value::Tag),
        Kind::Integer { min, max } => integer(text, min, max).map(Value::Integer),
        Kind::List => Ok(Value::Words(list(text))),
        Kind::Path | Kind::Text => Ok(Value::Text(text.to_owned())),
        Kind::Port => port(text).map(Value::Port),
        Kind::Secret { literal } => {
            resolve(text, literal, environment).map(|(secret, exposure)| Value::Secret(secret, exposure))
        }
        Kind::Words => Ok(Value::Words(text.split_whitespace().map(str::to_owned).collect())),
    }
}

/// What stands between commas, without the blanks around it.
fn list(text: &str) -> Vec<String> {
    let members = text.split(',').map(str::trim).filter(|member| !member.is_empty());
    members.map(str::to_owned).collect()
}

fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "yes" | "true" | "on" => Ok(true),
        "no" | "false" | "off" => Ok(false),
        _ => Err(format!(
            "is {}, but must be `yes` or `no` (or true, false, on, off)",
            quoted(text)
        )),
    }
}

fn tag(
    text: &str,
    tags: &'static [&'static str],
    more: &'static [&'static str],
) -> Result<&'static str, String> {
    let all = || tags.iter().chain(more).copied();
    if let Some(tag) = all().find(|tag| *tag == text) {
        return Ok(tag);
    }
    if let Some(tag) = text.parse().ok().and_then(|index: usize| tags.get(index)) {
        return Ok(tag);
    }
    let expected: Vec<String> = all().map(|tag| format!("`{tag}`")).collect();
    Err(format!(
        "is {}, but must be one of {}{}",
        quoted(text),
        expected.join(", "),
        suggestion(text, all())
    ))
}

/// As Python reads it: a sign, decimal digits, single underscores between them.
fn integer(text: &str, min: u32, max: u32) -> Result<u32, String> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let well_formed = digits
        .split('_')
        .all(|group| !group.is_empty() && group.bytes().all(|b| b.is_ascii_digit()));
    if !well_formed {
        return Err(format!("is {}, but must be a whole number", quoted(text)));
    }
    let number: Result<i64, _> = text.replace('_', "").parse();
    let number = number.ok().and_then(|number| u32::try_from(number).ok());
    match number.filter(|number| (min..=max).contains(number)) {
        Some(number) => Ok(number),
        None => Err(format!(
            "is {}, but must be a number from {min} to {max}",
            quoted(text)
        )),
    }
}

/// A number, or a service name: the two of AMQP always, others as the system's service list has them.
fn port(text: &str) -> Result<u16, String> {
    match text {
        "amqp" => return Ok(5672),
        "amqps" => return Ok(5671),
        _ => {}
    }
    if text.starts_with(|first: char| first.is_ascii_digit() || matches!(first, '+' | '-')) {
        let number = integer(text, 0, u32::from(u16::MAX))?;
        return Ok(u16::try_from(number).unwrap_or_default());
    }
    system_service(text).ok_or_else(|| {
        let hint = suggestion(text, ["amqp", "amqps"]);
        format!(
            "is {}, which is neither a number from 0 to 65535 nor a known service name{hint}",
            quoted(text)
        )
    })
}

fn system_service(name: &str) -> Option<u16> {
    let mut services = String::new();
    File::open("/etc/services")
        .ok()?
        .take(1 << 20)
        .read_to_string(&mut services)
        .ok()?;
    service_in(&services, name)
}

/// Looks a TCP service up in the format of `services(5)`: `name port/protocol alias… # comment`.
fn service_in(services: &str, name: &str) -> Option<u16> {
    services.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let official = words.next()?;
        let port = words.next()?.strip_suffix("/tcp")?.parse().ok()?;
        (official == name || words.any(|alias| alias == name)).then_some(port)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(kind: Kind, text: &str) -> Result<Value, String> {
        read(kind, &Raw::Text(text.to_owned()), &|_| None)
    }

    #[test]
    fn booleans_in_every_spelling_but_digits() {
        for text in ["yes", "TRUE", "On"] {
            assert_eq!(read_text(Kind::Boolean, text), Ok(Value::Boolean(true)));
        }
        for text in ["no", "False", "OFF"] {
            assert_eq!(read_text(Kind::Boolean, text), Ok(Value::Boolean(false)));
        }
        assert!(read_text(Kind::Boolean, "1").is_err());
        let one = Raw::Number("1".to_owned());
        assert_eq!(read(Kind::Boolean, &one, &|_| None), Ok(Value::Boolean(true)));
    }

    #[test]
    fn integers_as_python_reads_them_but_within_bounds() {
        let kind = Kind::Integer { min: 0, max: 100 };
        for (text, number) in [("7", 7), ("+7", 7), ("1_0", 10), ("0100", 100), ("-0", 0)] {
            assert_eq!(read_text(kind, text), Ok(Value::Integer(number)), "{text}");
        }
        for text in [
            "",
            "abc",
            "0x10",
            "1.5",
            "_1",
            "1_",
            "1__0",
            "-1",
            "101",
            "99999999999999999999",
            "--1",
        ] {
            assert!(read_text(kind, text).is_err(), "{text}");
        }
    }

    #[test]
    fn enums_by_word_or_index() {
        let kind = Kind::Enum {
            tags: &["in", "out"],
            more: &["both"],
        };
        assert_eq!(read_text(kind, "out"), Ok(Value::Tag("out")));
        assert_eq!(read_text(kind, "1"), Ok(Value::Tag("out")));
        assert_eq!(read_text(kind, "both"), Ok(Value::Tag("both")));
        assert!(read_text(kind, "2").is_err());
        let wrong = read_text(kind, "In").expect_err("case matters");
        assert!(wrong.contains("did you mean `in`?"), "{wrong}");
    }

    #[test]
    fn ports_by_number_or_service_name() {
        for (text, number) in [
            ("0", 0),
            ("5672", 5672),
            ("amqp", 5672),
            ("amqps", 5671),
            ("65535", 65535),
        ] {
            assert_eq!(read_text(Kind::Port, text), Ok(Value::Port(number)), "{text}");
        }
        for text in ["65536", "-1", "25999,", "no-such-service", ""] {
            assert!(read_text(Kind::Port, text).is_err(), "{text}");
        }
        let services = "# list\nftp 21/udp\nftp 21/tcp fsp # file\nodd\n";
        assert_eq!(service_in(services, "fsp"), Some(21));
        assert_eq!(service_in(services, "file"), None);
    }
}
