//! The frame trace: module `PROTOCOL`, level trace, in qdrouterd's notation. Costs one check when it is off.

use core::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tracing::Level;

use super::connection::Connection;
use crate::amqp::display::{Direction, Trace, Unit};
use crate::amqp::frame::{Frame, FrameType};
use crate::amqp::header;
use crate::amqp::performative::Performative;
use crate::amqp::serial::Channel;

/// Whose frames are shown: everybody's, if it names nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceFilter {
    /// Ranges of addresses.
    hosts: Vec<(IpAddr, IpAddr)>,
    /// Container-ids, in which `*` stands for any text.
    containers: Vec<String>,
}

impl TraceFilter {
    /// Each name is an IP address, a network such as `10.0.0.0/24`, or else a container-id.
    pub fn new<'n>(names: impl IntoIterator<Item = &'n str>) -> Self {
        let mut filter = TraceFilter::default();
        for name in names {
            match hosts(name) {
                Some(range) => filter.hosts.push(range),
                None => filter.containers.push(name.to_owned()),
            }
        }
        filter
    }

    /// Whether it names nobody.
    pub const fn is_empty(&self) -> bool {
        self.hosts.is_empty() && self.containers.is_empty()
    }

    /// What is shown of a device at `peer`, `HOST:PORT`. `container_id` is its own, once it is known.
    pub fn of_device(self: &Arc<Self>, peer: &str, container_id: Option<&str>) -> Tracing {
        let address = peer.parse::<SocketAddr>().map(|peer| peer.ip().to_canonical());
        let is_host = |address: IpAddr| {
            self.hosts
                .iter()
                .any(|(first, last)| (*first..=*last).contains(&address))
        };
        match container_id {
            _ if self.is_empty() || address.is_ok_and(is_host) => Tracing::All,
            Some(id) if self.has_container(id) => Tracing::All,
            None if !self.containers.is_empty() => Tracing::FromOpen(Arc::clone(self)),
            _ => Tracing::Nothing,
        }
    }

    /// What is shown of a hub.
    pub const fn of_hub(&self) -> Tracing {
        if self.is_empty() {
            Tracing::All
        } else {
            Tracing::Sessions
        }
    }

    fn has_container(&self, id: &str) -> bool {
        self.containers.iter().any(|pattern| matches(pattern, id))
    }
}

/// The addresses of a host or network.
fn hosts(name: &str) -> Option<(IpAddr, IpAddr)> {
    let (address, length) = match name.split_once('/') {
        Some((address, length)) => (address, Some(length.parse::<u32>().ok()?)),
        None => (name, None),
    };
    // Devices are known by their IPv4 address, wherever they have one.
    let (address, length) = match (address.parse::<IpAddr>().ok()?, length) {
        (IpAddr::V6(mapped), None) => (mapped.to_canonical(), None),
        (IpAddr::V6(mapped), Some(96..)) if mapped.to_ipv4_mapped().is_some() => {
            (mapped.to_canonical(), length.map(|length| length - 96))
        }
        (address, length) => (address, length),
    };
    Some(match address {
        IpAddr::V4(address) => {
            let rest = host_bits(length, 32).map(|bits| u32::MAX.checked_shr(32 - bits).unwrap_or(0))?;
            let address = u32::from(address);
            (
                IpAddr::V4((address & !rest).into()),
                IpAddr::V4((address | rest).into()),
            )
        }
        IpAddr::V6(address) => {
            let rest = host_bits(length, 128).map(|bits| u128::MAX.checked_shr(128 - bits).unwrap_or(0))?;
            let address = u128::from(address);
            (
                IpAddr::V6((address & !rest).into()),
                IpAddr::V6((address | rest).into()),
            )
        }
    })
}

fn host_bits(length: Option<u32>, width: u32) -> Option<u32> {
    width.checked_sub(length.unwrap_or(width))
}

/// Whether a text is a pattern's, in which `*` stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(start) else {
        return false;
    };
    let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
    for piece in middle.split('*') {
        match text.split_once(piece) {
            Some((_, behind)) => text = behind,
            None => return false,
        }
    }
    text.ends_with(end)
}

/// What is shown of a connection, while the trace is on.
#[derive(Clone, Debug)]
pub enum Tracing {
    /// Every frame.
    All,
    /// Nothing until its open, and everything from that on if its container-id is one of these.
    FromOpen(Arc<TraceFilter>),
    /// No frame.
    Nothing,
    /// The frames of the sessions that are marked so: those of a hub that carry a device that is traced.
    Sessions,
}

/// Whether anybody wants frames.
#[inline]
pub(super) fn is_enabled() -> bool {
    tracing::enabled!(target: "PROTOCOL", Level::TRACE)
}

impl Connection {
    /// Shows other frames from now on.
    pub fn trace(&mut self, tracing: Tracing) {
        self.tracing = tracing;
    }

    /// Whether every frame is shown.
    pub const fn is_traced(&self) -> bool {
        matches!(self.tracing, Tracing::All)
    }

    /// Shows the protocol headers and frames that were appended to the outbox: its last `length` bytes.
    #[cold]
    pub(super) fn show_sent(&self, length: usize) {
        if let Tracing::Nothing | Tracing::FromOpen(_) = self.tracing {
            return;
        }
        let outbox = self.outbox.as_slice();
        let mut rest = outbox
            .get(outbox.len().saturating_sub(length)..)
            .unwrap_or_default();
        while let Some(first) = rest.first_chunk::<4>() {
            let size = match first {
                b"AMQP" => header::LENGTH,
                size => usize::try_from(u32::from_be_bytes(*size))
                    .unwrap_or(usize::MAX)
                    .max(1),
            };
            let (unit, next) = rest.split_at_checked(size).unwrap_or((rest, &[]));
            rest = next;
            match (first, unit.first_chunk::<{ header::LENGTH }>()) {
                (b"AMQP", Some(header)) if self.is_traced() => {
                    self.show(Direction::Sent, Unit::Header(*header));
                }
                (b"AMQP", _) => {}
                _ => {
                    if let Ok(frame) = Frame::parse(unit)
                        && (self.is_traced() || self.is_session_traced(&frame, Some(frame.channel)))
                    {
                        self.show(Direction::Sent, Unit::Frame(frame));
                    }
                }
            }
        }
    }

    /// Shows what came in.
    #[cold]
    pub(super) fn show_received(&mut self, unit: Unit<'_>) {
        let is_shown = match (&self.tracing, unit) {
            (Tracing::All, _) => true,
            (Tracing::Nothing, _) | (_, Unit::Header(_) | Unit::EndOfStream) => false,
            (Tracing::FromOpen(filter), Unit::Frame(frame)) => match Performative::parse(frame.body) {
                Ok(Performative::Open(open)) if frame.frame_type == FrameType::Amqp => {
                    let is_named = filter.has_container(open.container_id);
                    self.tracing = if is_named { Tracing::All } else { Tracing::Nothing };
                    is_named
                }
                _ => false,
            },
            (Tracing::Sessions, Unit::Frame(frame)) => {
                let channel = match Performative::parse(frame.body) {
                    // The one frame whose channel is news.
                    Ok(Performative::Begin(begin)) => begin.remote_channel,
                    _ => self.local_channel(frame.channel).ok(),
                };
                self.is_session_traced(&frame, channel)
            }
        };
        if is_shown {
            self.show(Direction::Received, unit);
        }
    }

    /// Shows a frame that came in on a session that is not marked, because it turns out to be a traced device's.
    pub fn show_for_device(&self, channel: Channel, body: &[u8]) {
        if is_enabled()
            && let Tracing::Sessions = self.tracing
            && let Some(remote) = self.session(channel).and_then(|session| session.remote_channel)
        {
            let frame = Frame {
                frame_type: FrameType::Amqp,
                channel: remote,
                body,
            };
            self.show(Direction::Received, Unit::Frame(frame));
        }
    }

    fn is_session_traced(&self, frame: &Frame<'_>, channel: Option<Channel>) -> bool {
        let is_of_session = frame.frame_type == FrameType::Amqp
            && matches!(
                Performative::parse(frame.body),
                Ok(performative) if !matches!(performative, Performative::Open(_) | Performative::Close(_))
            );
        is_of_session
            && channel
                .and_then(|channel| self.session(channel))
                .is_some_and(|session| session.is_traced)
    }

    fn show(&self, direction: Direction, unit: Unit<'_>) {
        tracing::trace!(target: "PROTOCOL", "[C{}]:FRAME: {}", self.number, Trace { direction, unit });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(names: &[&str], peer: &str, container_id: Option<&str>) -> &'static str {
        match Arc::new(TraceFilter::new(names.iter().copied())).of_device(peer, container_id) {
            Tracing::All => "all",
            Tracing::FromOpen(_) => "from open",
            Tracing::Nothing => "nothing",
            Tracing::Sessions => "sessions",
        }
    }

    #[test]
    fn a_device_is_named_by_address_network_or_container() {
        let named = [
            "192.168.1.20",
            "10.1.0.0/16",
            "::ffff:10.3.0.7",
            "::ffff:10.4.0.0/112",
            "fd00::/8",
            "Netduino-*",
            "dev1",
        ];
        for (peer, container_id, expected) in [
            ("192.168.1.20:4711", None, "all"),
            ("[::ffff:192.168.1.20]:4711", None, "all"),
            ("192.168.1.21:4711", None, "from open"),
            ("192.168.1.21:4711", Some("other"), "nothing"),
            ("10.1.255.255:1", None, "all"),
            ("10.2.0.0:1", Some("x"), "nothing"),
            ("10.3.0.7:1", None, "all"),
            ("10.3.0.8:1", Some("x"), "nothing"),
            ("10.4.255.255:1", None, "all"),
            ("10.5.0.0:1", Some("x"), "nothing"),
            ("[fd12::1]:1", None, "all"),
            ("[fe80::1]:1", Some("x"), "nothing"),
            ("1.2.3.4:1", Some("Netduino-7"), "all"),
            ("1.2.3.4:1", Some("dev1"), "all"),
            ("1.2.3.4:1", Some("dev12"), "nothing"),
        ] {
            assert_eq!(
                shown(&named, peer, container_id),
                expected,
                "{peer} {container_id:?}"
            );
        }
        assert_eq!(shown(&["10.0.0.0/8"], "1.2.3.4:1", None), "nothing");
        assert_eq!(shown(&["0.0.0.0/0"], "1.2.3.4:1", None), "all");
        assert_eq!(
            shown(&["10.0.0.0/33"], "10.0.0.0:1", Some("10.0.0.0/33")),
            "all",
            "a name"
        );
        assert_eq!(shown(&[], "1.2.3.4:1", None), "all");
    }

    #[test]
    fn stars_stand_for_any_text() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("a*c", "abc", true),
            ("a*c", "ac", true),
            ("a*c", "acb", false),
            ("a*a", "a", false),
            ("*b*", "abc", true),
            ("a*b*c*d", "a-b-c-c-d", true),
            ("a*b*c*d", "a-c-b-d", false),
            ("", "", true),
            ("", "x", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
