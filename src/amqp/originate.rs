//! Writes the performatives that this router itself originates, each with every field, nulls included: a widely used
//! SDK indexes the list by position.

use super::codes::format;
use super::failover::{self, FailoverServer};
use super::fields::Tail;
use super::frame::{FrameType, HEADER_LENGTH, write_frame};
use super::performative::{Role, Transfer};
use super::relay::SessionFlow;
use super::serial::{Channel, DeliveryId, Handle};
use super::terminus::TerminusKind;
use super::writer::Writer;

/// The fields of an `open` that differ from connection to connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFields<'a> {
    /// `container-id`
    pub container_id: &'a str,
    /// `hostname`
    pub hostname: Option<&'a str>,
    /// `max-frame-size`
    pub max_frame_size: u32,
    /// `channel-max`
    pub channel_max: u16,
    /// `idle-time-out` in milliseconds
    pub idle_time_out: Option<u32>,
    /// Number of this connection, shown to the peer as qdrouterd does.
    pub connection_number: i32,
    /// Hosts that stand in for us.
    pub failover: &'a [FailoverServer],
}

/// Appends an `open` frame (AMQP 1.0 part 2, §2.7.1).
pub fn write_open(out: &mut Vec<u8>, open: &OpenFields<'_>) {
    write_frame(out, FrameType::Amqp, Channel(0), |out| {
        Writer::new(out).composite(0x10, 10, |f| {
            f.string(open.container_id);
            f.optional(open.hostname, Writer::string);
            f.uint(open.max_frame_size);
            f.ushort(open.channel_max);
            f.optional(open.idle_time_out, Writer::uint);
            for _ in 0..4 {
                f.null(); // outgoing-locales, incoming-locales, offered- and desired-capabilities
            }
            let pairs = 3 + usize::from(!open.failover.is_empty());
            f.map(pairs, |properties| {
                properties.symbol("product");
                properties.string(env!("CARGO_PKG_NAME"));
                properties.symbol("version");
                properties.string(env!("CARGO_PKG_VERSION"));
                properties.symbol("qd.conn-id");
                properties.int(open.connection_number);
                if !open.failover.is_empty() {
                    properties.symbol(failover::KEY);
                    failover::write(properties, open.failover);
                }
            });
        });
    });
}

/// Appends a `begin` frame (§2.7.2).
pub fn write_begin(
    out: &mut Vec<u8>,
    channel: Channel,
    remote_channel: Option<Channel>,
    session: SessionFlow,
    handle_max: u32,
) {
    write_frame(out, FrameType::Amqp, channel, |out| {
        Writer::new(out).composite(0x11, 8, |f| {
            f.optional(remote_channel, |f, channel| f.ushort(channel.0));
            f.uint(session.next_outgoing_id.0);
            f.uint(session.incoming_window);
            f.uint(session.outgoing_window);
            f.uint(handle_max);
            for _ in 0..3 {
                f.null(); // offered- and desired-capabilities, properties
            }
        });
    });
}

/// What a refusing attach without termini takes besides the name, at most: the frame's header, a long list's head, the
/// head of a long name, handle, role, and eleven fields of a byte.
pub const REFUSING_ATTACH: usize = HEADER_LENGTH + 12 + 5 + 5 + 1 + 11;

/// Appends the answer to an attach that is refused: the terminus that the refusing side answers for is null (§2.6.3).
pub fn write_refusing_attach(
    out: &mut Vec<u8>,
    channel: Channel,
    name: &str,
    handle: Handle,
    role: Role,
    source: Option<&[u8]>,
    target: Option<&[u8]>,
) {
    write_frame(out, FrameType::Amqp, channel, |out| {
        Writer::new(out).composite(0x12, 14, |f| {
            f.string(name);
            f.uint(handle.0);
            f.boolean(role.is_receiver());
            f.null(); // snd-settle-mode
            f.null(); // rcv-settle-mode
            f.optional(source, Writer::raw);
            f.optional(target, Writer::raw);
            f.null(); // unsettled
            f.null(); // incomplete-unsettled
            match role {
                Role::Sender => f.uint(0), // initial-delivery-count: a sender must give one
                Role::Receiver => f.null(),
            }
            for _ in 0..4 {
                f.null(); // max-message-size, offered- and desired-capabilities, properties
            }
        });
    });
}

/// The fields behind `role` of an attach for a link of ours that ends here (§2.7.3).
#[derive(Clone, Copy, Debug)]
pub struct AttachFields<'a> {
    /// `snd-settle-mode`, `rcv-settle-mode`, `source` and `target`, encoded.
    pub carried: [Option<&'a [u8]>; 4],
    /// Our role: a sender gives its first delivery-count, which is 0.
    pub role: Role,
    /// `max-message-size` in bytes.
    pub max_message_size: u64,
    /// `properties`, encoded.
    pub properties: Option<&'a [u8]>,
}

impl AttachFields<'_> {
    /// How many there are.
    pub const COUNT: u8 = 11;

    /// The fields, encoded.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        let mut fields = Writer::new(&mut out);
        for field in self.carried {
            fields.optional(field, Writer::raw);
        }
        fields.null(); // unsettled
        fields.null(); // incomplete-unsettled
        match self.role {
            Role::Sender => fields.uint(0),
            Role::Receiver => fields.null(),
        }
        fields.ulong(self.max_message_size);
        fields.null(); // offered-capabilities
        fields.null(); // desired-capabilities
        fields.optional(self.properties, Writer::raw);
        out
    }
}

/// A source or target that is an address and nothing else (AMQP 1.0 part 3, §3.5.3 and §3.5.4).
pub fn terminus(kind: TerminusKind, address: &str) -> Vec<u8> {
    let code = match kind {
        TerminusKind::Source => 0x28,
        TerminusKind::Target => 0x29,
        TerminusKind::Coordinator => 0x30,
    };
    let mut out = Vec::with_capacity(address.len() + 16);
    Writer::new(&mut out).composite(code, 1, |fields| fields.string(address));
    out
}

/// The link part of a `flow` behind its handle (§2.7.4).
pub fn link_flow(delivery_count: u32, link_credit: u32, drain: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(16);
    let mut fields = Writer::new(&mut out);
    fields.uint(delivery_count);
    fields.uint(link_credit);
    fields.uint(0); // available
    fields.boolean(drain);
    fields.boolean(false); // echo
    fields.null(); // properties
    out
}

/// The fields of a `transfer` of ours that say what a delivery is: a tag of four bytes, settled or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryHead([u8; DeliveryHead::LENGTH]);

impl DeliveryHead {
    /// A tag of four bytes with its head, message-format, settled; then `more` and five nulls.
    const LENGTH: usize = BEFORE_MORE + 1 + 5;

    /// A delivery with this tag.
    pub const fn new(tag: u32, settled: bool) -> Self {
        let [a, b, c, d] = tag.to_le_bytes();
        let settled = if settled { format::TRUE } else { format::FALSE };
        let (zero, null) = (format::UINT0, format::NULL);
        DeliveryHead([
            format::VBIN8,
            4,
            a,
            b,
            c,
            d,
            zero,
            settled,
            format::FALSE,
            null,
            null,
            null,
            null,
            null,
        ])
    }

    /// The whole delivery.
    pub fn transfer<'a>(&'a self, handle: Handle, id: DeliveryId, payload: &'a [u8]) -> Transfer<'a> {
        let (before, rest) = self.0.split_at(BEFORE_MORE);
        Transfer {
            handle,
            delivery_id: Some(id),
            settled: Some(before.last() == Some(&format::TRUE)),
            more: false,
            aborted: false,
            before_more: Tail {
                count: 3,
                bytes: before,
            },
            after_more: Tail {
                count: 5,
                bytes: rest.get(1..).unwrap_or_default(),
            },
            tail: Tail {
                count: 9,
                bytes: &self.0,
            },
            payload,
        }
    }
}

/// Length of `delivery-tag`, `message-format` and `settled` in a [`DeliveryHead`].
const BEFORE_MORE: usize = 8;

/// Appends a `transfer` that aborts a delivery under way (§2.7.5).
pub fn write_abort(out: &mut Vec<u8>, channel: Channel, handle: Handle) {
    write_frame(out, FrameType::Amqp, channel, |out| {
        Writer::new(out).composite(0x14, 11, |f| {
            f.uint(handle.0);
            for _ in 0..3 {
                f.null(); // delivery-id, delivery-tag, message-format
            }
            f.boolean(true); // settled
            f.boolean(false); // more
            for _ in 0..3 {
                f.null(); // rcv-settle-mode, state, resume
            }
            f.boolean(true); // aborted
            f.null(); // batchable
        });
    });
}

/// Appends a settling `disposition` with a state of ours (§2.7.6).
pub fn write_disposition(
    out: &mut Vec<u8>,
    channel: Channel,
    role: Role,
    first: DeliveryId,
    last: DeliveryId,
    state: impl FnOnce(&mut Writer<'_>),
) {
    write_frame(out, FrameType::Amqp, channel, |out| {
        Writer::new(out).composite(0x15, 6, |f| {
            f.boolean(role.is_receiver());
            f.uint(first.0);
            f.uint(last.0);
            f.boolean(true); // settled
            state(f);
            f.null(); // batchable
        });
    });
}

/// Appends a `detach` (§2.7.7) with an encoded error.
pub fn write_detach(out: &mut Vec<u8>, channel: Channel, handle: Handle, closed: bool, error: Option<&[u8]>) {
    write_frame(out, FrameType::Amqp, channel, |out| {
        Writer::new(out).composite(0x16, 3, |f| {
            f.uint(handle.0);
            f.boolean(closed);
            f.optional(error, Writer::raw);
        });
    });
}

/// Appends an `end` (§2.7.8) with an encoded error.
pub fn write_end(out: &mut Vec<u8>, channel: Channel, error: Option<&[u8]>) {
    write_frame(out, FrameType::Amqp, channel, |out| {
        Writer::new(out).composite(0x17, 1, |f| f.optional(error, Writer::raw));
    });
}

/// Appends a `close` (§2.7.9) with an encoded error.
pub fn write_close(out: &mut Vec<u8>, error: Option<&[u8]>) {
    write_frame(out, FrameType::Amqp, Channel(0), |out| {
        Writer::new(out).composite(0x18, 1, |f| f.optional(error, Writer::raw));
    });
}
