//! `failover-server-list`: a property of open, by which a peer names the hosts that stand in for it. No standard defines
//! it; qdrouterd, ActiveMQ and Proton's clients agree on a list of maps with `network-host`, `port`, `scheme` and
//! `hostname`.

use super::value::Value;
use super::writer::Writer;

/// The property's key.
pub const KEY: &str = "failover-server-list";

/// Longest name of a host (RFC 1035, §2.3.4).
const MAX_HOST: usize = 253;

/// One host that stands in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailoverServer {
    /// `network-host`, without brackets.
    pub host: String,
    /// `port`; `None` leaves it to the scheme.
    pub port: Option<u16>,
    /// `scheme`, when the entry has one.
    pub scheme: Option<Scheme>,
}

/// Whether a host wants TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `amqp`
    Amqp,
    /// `amqps`
    Amqps,
}

impl Scheme {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Scheme::Amqp => "amqp",
            Scheme::Amqps => "amqps",
        }
    }

    /// The scheme of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Scheme::Amqp, Scheme::Amqps]
            .into_iter()
            .find(|scheme| scheme.as_str() == name)
    }
}

/// Why an entry, or the whole list, is passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FailoverFault {
    /// The property is no list.
    #[error("it is not a list")]
    NotAList,
    /// An entry is no map.
    #[error("it is not a map")]
    NotAMap,
    /// `network-host` is missing, or not text.
    #[error("it has no network-host")]
    NoHost,
    /// `network-host` is no name and no address.
    #[error("its network-host is neither a host name nor an address")]
    Host,
    /// `port` is not a number from 1 to 65535.
    #[error("its port is not a number from 1 to 65535")]
    Port,
    /// `scheme` is another.
    #[error("its scheme is neither amqp nor amqps")]
    Scheme,
}

/// What a list says, entry by entry.
pub type Entries = Vec<Result<FailoverServer, FailoverFault>>;

/// Reads the list out of the properties of an open, `limit` entries at most. `None` when they have none; an empty list is
/// one that says that there is no other host.
///
/// # Errors
/// [`FailoverFault::NotAList`] when the property is something else.
pub fn read(properties: &[u8], limit: usize) -> Result<Option<Entries>, FailoverFault> {
    let properties = Value::decode(properties).map_err(|_| FailoverFault::NotAList)?;
    match properties.entry(KEY) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::List(entries)) => Ok(Some(entries.iter().take(limit).map(read_entry).collect())),
        Some(_) => Err(FailoverFault::NotAList),
    }
}

fn read_entry(entry: &Value) -> Result<FailoverServer, FailoverFault> {
    if !matches!(entry, Value::Map(_)) {
        return Err(FailoverFault::NotAMap);
    }
    let field = |key| entry.entry(key).filter(|value| **value != Value::Null);
    let host = field("network-host")
        .and_then(Value::as_text)
        .filter(|host| !host.is_empty())
        .ok_or(FailoverFault::NoHost)?;
    let host = without_brackets(host);
    if !is_host(host) {
        return Err(FailoverFault::Host);
    }
    let port = field("port").map(read_port).transpose()?;
    let scheme = field("scheme")
        .map(|scheme| {
            scheme
                .as_text()
                .and_then(Scheme::from_name)
                .ok_or(FailoverFault::Scheme)
        })
        .transpose()?;
    Ok(FailoverServer {
        host: host.to_owned(),
        port,
        scheme,
    })
}

/// qdrouterd writes the port as text, others as a number.
fn read_port(port: &Value) -> Result<u16, FailoverFault> {
    let number = match port.as_text() {
        Some(text) => text.parse().ok(),
        None => port.as_integer().and_then(|number| u16::try_from(number).ok()),
    };
    number.filter(|port| *port > 0).ok_or(FailoverFault::Port)
}

/// A host without the brackets that an IPv6 address may wear.
pub fn without_brackets(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host)
}

/// Whether this may be a host name, or an IPv4 or IPv6 address.
pub fn is_host(text: &str) -> bool {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let has_letters = text.contains(|c: char| c.is_ascii_alphanumeric());
    let fits = match text.split_once('%') {
        // The interface of a link-local address.
        Some((address, zone)) => {
            address.contains(':')
                && !zone.is_empty()
                && zone.chars().all(is_name)
                && address.chars().all(is_address)
        }
        None if text.contains(':') => text.chars().all(is_address),
        None => has_letters && text.chars().all(is_name),
    };
    fits && text.len() <= MAX_HOST
}

const fn is_address(character: char) -> bool {
    character.is_ascii_hexdigit() || matches!(character, ':' | '.')
}

/// Appends the list as the value of the property (qdrouterd 1.19: symbols for keys, strings for values, port included).
pub fn write(out: &mut Writer<'_>, servers: &[FailoverServer]) {
    let text = |text: &str| Value::String(text.to_owned());
    let entry = |server: &FailoverServer| {
        let port = server.port.map(|port| ("port", port.to_string()));
        let scheme = server.scheme.map(|scheme| ("scheme", scheme.as_str().to_owned()));
        let host = ("network-host", server.host.clone());
        let fields = std::iter::once(host).chain(port).chain(scheme);
        Value::Map(
            fields
                .map(|(key, value)| (Value::Symbol(key.to_owned()), text(&value)))
                .collect(),
        )
    };
    let mut encoded = Vec::new();
    Value::List(servers.iter().map(entry).collect()).encode(&mut encoded);
    out.raw(&encoded);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(list: Value) -> Vec<u8> {
        let product = (Value::Symbol("product".to_owned()), Value::String("x".to_owned()));
        let mut out = Vec::new();
        Value::Map(vec![product, (Value::Symbol(KEY.to_owned()), list)]).encode(&mut out);
        out
    }

    fn entry(fields: &[(&str, Value)]) -> Value {
        let pairs = fields
            .iter()
            .map(|(key, value)| (Value::Symbol((*key).to_owned()), value.clone()));
        Value::Map(pairs.collect())
    }

    fn text(text: &str) -> Value {
        Value::String(text.to_owned())
    }

    #[test]
    fn a_list_as_qdrouterd_and_activemq_write_it() {
        let list = Value::List(vec![
            entry(&[
                ("network-host", text("b.example")),
                ("port", text("5671")),
                ("scheme", text("amqps")),
            ]),
            entry(&[
                ("network-host", text("[::1]")),
                ("port", Value::Int(5672)),
                ("hostname", text("x")),
            ]),
            entry(&[("network-host", text("10.0.0.1")), ("port", Value::Null)]),
        ]);
        let expected = [
            ("b.example", Some(5671), Some(Scheme::Amqps)),
            ("::1", Some(5672), None),
            ("10.0.0.1", None, None),
        ]
        .map(|(host, port, scheme)| {
            Ok(FailoverServer {
                host: host.to_owned(),
                port,
                scheme,
            })
        });
        assert_eq!(read(&properties(list), 8), Ok(Some(expected.to_vec())));
    }

    /// Defect D30 of qdrouterd: an entry without a host ended the process.
    #[test]
    fn entries_that_cannot_be_dialed_say_why() {
        let host = ("network-host", text("h"));
        let cases = [
            (Value::Null, FailoverFault::NotAMap),
            (text("h:5671"), FailoverFault::NotAMap),
            (entry(&[]), FailoverFault::NoHost),
            (entry(&[("network-host", Value::Null)]), FailoverFault::NoHost),
            (entry(&[("network-host", text(""))]), FailoverFault::NoHost),
            (entry(&[("network-host", Value::Int(7))]), FailoverFault::NoHost),
            (entry(&[("network-host", text("a b"))]), FailoverFault::Host),
            (entry(&[("network-host", text("amqps://h"))]), FailoverFault::Host),
            (entry(&[("network-host", text("..."))]), FailoverFault::Host),
            (
                entry(&[("network-host", text(&"h".repeat(254)))]),
                FailoverFault::Host,
            ),
            (
                entry(&[host.clone(), ("port", Value::Int(0))]),
                FailoverFault::Port,
            ),
            (
                entry(&[host.clone(), ("port", Value::Int(65536))]),
                FailoverFault::Port,
            ),
            (
                entry(&[host.clone(), ("port", text("amqp"))]),
                FailoverFault::Port,
            ),
            (
                entry(&[host.clone(), ("port", Value::Boolean(true))]),
                FailoverFault::Port,
            ),
            (entry(&[host, ("scheme", text("wss"))]), FailoverFault::Scheme),
        ];
        for (entry, fault) in cases {
            let found = read(&properties(Value::List(vec![entry.clone()])), 8);
            assert_eq!(found, Ok(Some(vec![Err(fault)])), "{entry:?}");
        }
        assert_eq!(read(&properties(text("h")), 8), Err(FailoverFault::NotAList));
        assert_eq!(read(&[0x45], 8), Ok(None));
        assert_eq!(read(&properties(Value::Null), 8), Ok(None));
        assert_eq!(
            read(&properties(Value::List(Vec::new())), 8),
            Ok(Some(Vec::new()))
        );
        let longest = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
        assert!(longest.len() == MAX_HOST && is_host(&longest));
        assert!(!is_host(&format!("{longest}d")));
        let many = Value::List(vec![Value::Null; 100]);
        assert_eq!(
            read(&properties(many), 8).map(|list| list.map(|list| list.len())),
            Ok(Some(8))
        );
    }

    #[test]
    fn what_is_written_can_be_read() {
        let servers = [
            FailoverServer {
                host: "b.example".to_owned(),
                port: Some(5671),
                scheme: Some(Scheme::Amqps),
            },
            FailoverServer {
                host: "::1".to_owned(),
                port: None,
                scheme: None,
            },
        ];
        let mut out = Vec::new();
        Writer::new(&mut out).map(1, |map| {
            map.symbol(KEY);
            write(map, &servers);
        });
        assert_eq!(read(&out, 8), Ok(Some(servers.into_iter().map(Ok).collect())));
    }
}
