//! The nine performatives (AMQP 1.0 part 2, §2.7), read as borrowed views.
//!
//! A router needs a few fields of each. All others are checked for their type and for well-formedness when they are
//! read, so that what one peer sends can be carried to another without risk, and stay encoded in a [`Tail`].

use super::DecodeError;
use super::codes::descriptor;
use super::fields::{Fields, Kind, Tail};
use super::reader::Reader;
use super::serial::{Channel, DeliveryId, Handle, SequenceNo, TransferId};

/// Who a peer is on a link, or which end a disposition speaks for (AMQP 1.0 part 2, §2.8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// `false` on the wire.
    Sender,
    /// `true` on the wire.
    Receiver,
}

impl Role {
    /// The wire form.
    pub const fn is_receiver(self) -> bool {
        matches!(self, Role::Receiver)
    }

    /// The role of the other end.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Role::Sender => Role::Receiver,
            Role::Receiver => Role::Sender,
        }
    }

    const fn of(is_receiver: bool) -> Self {
        if is_receiver { Role::Receiver } else { Role::Sender }
    }
}

/// `open` (AMQP 1.0 part 2, §2.7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open<'a> {
    /// `container-id`
    pub container_id: &'a str,
    /// `hostname`
    pub hostname: Option<&'a str>,
    /// `max-frame-size`; 4294967295 when absent.
    pub max_frame_size: u32,
    /// `channel-max`; 65535 when absent.
    pub channel_max: u16,
    /// `idle-time-out` in milliseconds.
    pub idle_time_out: Option<u32>,
    /// `offered-capabilities`, encoded.
    pub offered_capabilities: Option<&'a [u8]>,
    /// `desired-capabilities`, encoded.
    pub desired_capabilities: Option<&'a [u8]>,
    /// `properties`, encoded.
    pub properties: Option<&'a [u8]>,
}

/// `begin` (§2.7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    /// `remote-channel`: the channel that this begin answers.
    pub remote_channel: Option<Channel>,
    /// `next-outgoing-id`
    pub next_outgoing_id: TransferId,
    /// `incoming-window`
    pub incoming_window: u32,
    /// `outgoing-window`
    pub outgoing_window: u32,
    /// `handle-max`; 4294967295 when absent.
    pub handle_max: u32,
}

/// `attach` (§2.7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attach<'a> {
    /// `name`
    pub name: &'a str,
    /// `handle`
    pub handle: Handle,
    /// `role` of the peer that sent the attach.
    pub role: Role,
    /// `source`, encoded.
    pub source: Option<&'a [u8]>,
    /// `target`, encoded.
    pub target: Option<&'a [u8]>,
    /// `initial-delivery-count`
    pub initial_delivery_count: Option<SequenceNo>,
    /// Everything from `snd-settle-mode` on.
    pub tail: Tail<'a>,
}

/// `flow` (§2.7.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<'a> {
    /// `next-incoming-id`
    pub next_incoming_id: Option<TransferId>,
    /// `incoming-window`
    pub incoming_window: u32,
    /// `next-outgoing-id`
    pub next_outgoing_id: TransferId,
    /// `outgoing-window`
    pub outgoing_window: u32,
    /// The link part, when there is one.
    pub link: Option<LinkFlow<'a>>,
    /// `echo`
    pub echo: bool,
}

/// The link part of a `flow`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkFlow<'a> {
    /// `handle`
    pub handle: Handle,
    /// `link-credit`
    pub link_credit: Option<u32>,
    /// `drain`
    pub drain: bool,
    /// Everything from `delivery-count` on.
    pub tail: Tail<'a>,
}

/// `transfer` (§2.7.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer<'a> {
    /// `handle`
    pub handle: Handle,
    /// `delivery-id`; absent on continuations.
    pub delivery_id: Option<DeliveryId>,
    /// `settled`
    pub settled: Option<bool>,
    /// `more`
    pub more: bool,
    /// `aborted`
    pub aborted: bool,
    /// `delivery-tag`, `message-format` and `settled`.
    pub before_more: Tail<'a>,
    /// `rcv-settle-mode`, `state`, `resume`, `aborted` and `batchable`.
    pub after_more: Tail<'a>,
    /// Everything from `delivery-tag` on.
    pub tail: Tail<'a>,
    /// What follows the performative: a piece of the message.
    pub payload: &'a [u8],
}

/// `disposition` (§2.7.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disposition<'a> {
    /// `role` of the peer that speaks.
    pub role: Role,
    /// `first`
    pub first: DeliveryId,
    /// `last`; equal to `first` when absent.
    pub last: DeliveryId,
    /// `settled`
    pub settled: bool,
    /// Everything from `settled` on.
    pub tail: Tail<'a>,
}

/// `detach` (§2.7.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detach<'a> {
    /// `handle`
    pub handle: Handle,
    /// `closed`
    pub closed: bool,
    /// `error`, encoded.
    pub error: Option<&'a [u8]>,
    /// Everything from `closed` on.
    pub tail: Tail<'a>,
}

/// A frame's performative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Performative<'a> {
    /// `open`
    Open(Open<'a>),
    /// `begin`
    Begin(Begin),
    /// `attach`
    Attach(Attach<'a>),
    /// `flow`
    Flow(Flow<'a>),
    /// `transfer`
    Transfer(Transfer<'a>),
    /// `disposition`
    Disposition(Disposition<'a>),
    /// `detach`
    Detach(Detach<'a>),
    /// `end`; its error, encoded.
    End(Option<&'a [u8]>),
    /// `close`; its error, encoded.
    Close(Option<&'a [u8]>),
}

impl<'a> Performative<'a> {
    /// Reads the performative at the start of a frame's body.
    ///
    /// # Errors
    /// The body is no performative, or one of its fields is malformed, missing or of a wrong type.
    #[inline]
    pub fn parse(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let (code, fields) = reader.composite()?;
        Ok(match code {
            descriptor::TRANSFER => Performative::Transfer(transfer(fields, reader.rest())?),
            descriptor::DISPOSITION => Performative::Disposition(disposition(fields)?),
            descriptor::FLOW => Performative::Flow(flow(fields)?),
            descriptor::OPEN => Performative::Open(open(fields)?),
            descriptor::BEGIN => Performative::Begin(begin(fields)?),
            descriptor::ATTACH => Performative::Attach(attach(fields)?),
            descriptor::DETACH => Performative::Detach(detach(fields)?),
            descriptor::END => Performative::End(only_error(fields)?),
            descriptor::CLOSE => Performative::Close(only_error(fields)?),
            _ => return Err(DecodeError::Descriptor),
        })
    }
}

fn open(mut fields: Fields<'_>) -> Result<Open<'_>, DecodeError> {
    let container_id = fields.string()?.ok_or(DecodeError::Missing("container-id"))?;
    let hostname = fields.string()?;
    let max_frame_size = fields.uint()?.unwrap_or(u32::MAX);
    let channel_max = fields.ushort()?.unwrap_or(u16::MAX);
    let idle_time_out = fields.uint()?;
    fields.raw(Kind::Symbols)?; // outgoing-locales
    fields.raw(Kind::Symbols)?; // incoming-locales
    let offered_capabilities = fields.raw(Kind::Symbols)?;
    let desired_capabilities = fields.raw(Kind::Symbols)?;
    let properties = fields.raw(Kind::Map)?;
    fields.unknown()?;
    fields.end()?;
    Ok(Open {
        container_id,
        hostname,
        max_frame_size,
        channel_max,
        idle_time_out,
        offered_capabilities,
        desired_capabilities,
        properties,
    })
}

fn begin(mut fields: Fields<'_>) -> Result<Begin, DecodeError> {
    let begin = Begin {
        remote_channel: fields.ushort()?.map(Channel),
        next_outgoing_id: TransferId(fields.uint()?.ok_or(DecodeError::Missing("next-outgoing-id"))?),
        incoming_window: fields.uint()?.ok_or(DecodeError::Missing("incoming-window"))?,
        outgoing_window: fields.uint()?.ok_or(DecodeError::Missing("outgoing-window"))?,
        handle_max: fields.uint()?.unwrap_or(u32::MAX),
    };
    fields.raw(Kind::Symbols)?;
    fields.raw(Kind::Symbols)?;
    fields.raw(Kind::Map)?;
    fields.unknown()?;
    fields.end()?;
    Ok(begin)
}

fn attach(mut fields: Fields<'_>) -> Result<Attach<'_>, DecodeError> {
    let name = fields.string()?.ok_or(DecodeError::Missing("name"))?;
    let handle = Handle(fields.uint()?.ok_or(DecodeError::Missing("handle"))?);
    let role = Role::of(fields.boolean()?.ok_or(DecodeError::Missing("role"))?);
    let tail = fields.tail();
    fields.raw(Kind::Ubyte)?; // snd-settle-mode
    fields.raw(Kind::Ubyte)?; // rcv-settle-mode
    let source = fields.raw(Kind::Described)?;
    let target = fields.raw(Kind::Described)?;
    fields.raw(Kind::Map)?; // unsettled
    fields.raw(Kind::Boolean)?; // incomplete-unsettled
    let initial_delivery_count = fields.uint()?.map(SequenceNo);
    fields.raw(Kind::Ulong)?; // max-message-size
    fields.raw(Kind::Symbols)?; // offered-capabilities
    fields.raw(Kind::Symbols)?; // desired-capabilities
    fields.raw(Kind::Map)?; // properties
    fields.unknown()?;
    fields.end()?;
    Ok(Attach {
        name,
        handle,
        role,
        source,
        target,
        initial_delivery_count,
        tail,
    })
}

fn flow(mut fields: Fields<'_>) -> Result<Flow<'_>, DecodeError> {
    let next_incoming_id = fields.uint()?.map(TransferId);
    let incoming_window = fields.uint()?.ok_or(DecodeError::Missing("incoming-window"))?;
    let next_outgoing_id = TransferId(fields.uint()?.ok_or(DecodeError::Missing("next-outgoing-id"))?);
    let outgoing_window = fields.uint()?.ok_or(DecodeError::Missing("outgoing-window"))?;
    let handle = fields.uint()?.map(Handle);
    let tail = fields.tail();
    fields.raw(Kind::Uint)?; // delivery-count
    let link_credit = fields.uint()?;
    fields.raw(Kind::Uint)?; // available
    let drain = fields.boolean()?.unwrap_or(false);
    let echo = fields.boolean()?.unwrap_or(false);
    fields.raw(Kind::Map)?; // properties
    fields.unknown()?;
    fields.end()?;
    let link = handle.map(|handle| LinkFlow {
        handle,
        link_credit,
        drain,
        tail,
    });
    Ok(Flow {
        next_incoming_id,
        incoming_window,
        next_outgoing_id,
        outgoing_window,
        link,
        echo,
    })
}

#[inline]
fn transfer<'a>(mut fields: Fields<'a>, payload: &'a [u8]) -> Result<Transfer<'a>, DecodeError> {
    let handle = Handle(fields.uint()?.ok_or(DecodeError::Missing("handle"))?);
    let delivery_id = fields.uint()?.map(DeliveryId);
    let tail = fields.tail();
    fields.raw(Kind::Binary)?; // delivery-tag
    fields.raw(Kind::Uint)?; // message-format
    let settled = fields.boolean()?;
    let before_more = tail.until(fields.tail());
    let more = fields.boolean()?.unwrap_or(false);
    let after_more = fields.tail();
    fields.raw(Kind::Ubyte)?; // rcv-settle-mode
    fields.raw(Kind::Described)?; // state
    fields.raw(Kind::Boolean)?; // resume
    let aborted = fields.boolean()?.unwrap_or(false);
    fields.raw(Kind::Boolean)?; // batchable
    fields.unknown()?;
    fields.end()?;
    Ok(Transfer {
        handle,
        delivery_id,
        settled,
        more,
        aborted,
        before_more,
        after_more,
        tail,
        payload,
    })
}

fn disposition(mut fields: Fields<'_>) -> Result<Disposition<'_>, DecodeError> {
    let role = Role::of(fields.boolean()?.ok_or(DecodeError::Missing("role"))?);
    let first = DeliveryId(fields.uint()?.ok_or(DecodeError::Missing("first"))?);
    let last = fields.uint()?.map_or(first, DeliveryId);
    let tail = fields.tail();
    let settled = fields.boolean()?.unwrap_or(false);
    fields.raw(Kind::Described)?; // state
    fields.raw(Kind::Boolean)?; // batchable
    fields.unknown()?;
    fields.end()?;
    Ok(Disposition {
        role,
        first,
        last,
        settled,
        tail,
    })
}

fn detach(mut fields: Fields<'_>) -> Result<Detach<'_>, DecodeError> {
    let handle = Handle(fields.uint()?.ok_or(DecodeError::Missing("handle"))?);
    let tail = fields.tail();
    let closed = fields.boolean()?.unwrap_or(false);
    let error = fields.raw(Kind::Described)?;
    fields.unknown()?;
    fields.end()?;
    Ok(Detach {
        handle,
        closed,
        error,
        tail,
    })
}

fn only_error(mut fields: Fields<'_>) -> Result<Option<&[u8]>, DecodeError> {
    let error = fields.raw(Kind::Described)?;
    fields.unknown()?;
    fields.end()?;
    Ok(error)
}
