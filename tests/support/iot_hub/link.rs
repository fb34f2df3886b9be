//! One link of the stand-in, its deliveries under way included.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use fe2o3_amqp::types::definitions::{Role, SenderSettleMode};
use fe2o3_amqp::types::messaging::TargetArchetype;
use fe2o3_amqp::types::performatives::Attach;

use super::clock::Moment;
use super::commands::LockToken;
use super::node::Node;
use super::readers::Reader;

/// Why a delivery is sent, which decides what its outcome means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The answer to a request.
    Reply,
    Command(LockToken),
    Feedback,
    /// A twin or method message, which is sent settled.
    Paired,
}

/// A delivery that is being sent.
pub(super) struct Outgoing {
    pub(super) tag: Vec<u8>,
    pub(super) payload: Bytes,
    pub(super) sent: usize,
    pub(super) delivery_id: Option<u32>,
    pub(super) purpose: Purpose,
}

/// A delivery of which the last transfer has not come.
pub(super) struct Partial {
    pub(super) delivery_id: u32,
    pub(super) tag: Vec<u8>,
    pub(super) message_format: Option<u32>,
    pub(super) settled: bool,
    pub(super) payload: BytesMut,
    pub(super) frames: usize,
}

/// A link, its peer being the device or service.
pub(super) struct Link {
    pub(super) name: String,
    pub(super) address: String,
    pub(super) node: Node,
    pub(super) peer_role: Role,
    /// The names that a reply-to may use for this link.
    pub(super) reply_names: Vec<String>,
    /// What holds the links of a pair together, if this is one of a pair.
    pub(super) pairing: Option<Pairing>,
    /// Its place among the readers of a partition.
    pub(super) reader: Option<Reader>,
    /// The peer said that it would send nothing that is not settled.
    pub(super) is_settled: bool,
    /// When it was attached, or the peer last sent on it.
    pub(super) used_at: Moment,
    pub(super) end: End,
}

/// A link that may be: its address as the peer spelt it, and what that means.
pub(super) struct Admitted {
    pub(super) address: String,
    pub(super) node: Node,
    pub(super) pairing: Option<Pairing>,
    pub(super) reader: Option<Reader>,
}

/// The attach properties that both links of a pair carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pairing {
    pub(super) correlation_id: String,
    pub(super) api_version: String,
}

pub(super) enum End {
    Receiving {
        credit: u32,
        granted: u32,
        delivery_count: u32,
        partial: Option<Partial>,
    },
    Sending {
        credit: u32,
        delivery_count: u32,
        outbox: VecDeque<Outgoing>,
    },
    /// We have sent a detach and await the peer's.
    Closing,
}

impl Link {
    /// The end that receives what the peer sends, granting this much credit.
    pub(super) fn receiving(attach: &Attach, admitted: Admitted, granted: u32, now: Moment) -> Self {
        let end = End::Receiving {
            credit: granted,
            granted,
            delivery_count: attach.initial_delivery_count.unwrap_or(0),
            partial: None,
        };
        Self::new(attach, admitted, end, now)
    }

    /// The end that sends to the peer.
    pub(super) fn sending(attach: &Attach, admitted: Admitted, now: Moment) -> Self {
        let end = End::Sending {
            credit: 0,
            delivery_count: 0,
            outbox: VecDeque::new(),
        };
        Self::new(attach, admitted, end, now)
    }

    fn new(attach: &Attach, admitted: Admitted, end: End, now: Moment) -> Self {
        let Admitted {
            address,
            node,
            pairing,
            reader,
        } = admitted;
        let target = match attach.target.as_deref() {
            Some(TargetArchetype::Target(target)) => target.address.clone(),
            None => None,
        };
        Self {
            name: attach.name.clone(),
            address,
            node,
            peer_role: attach.role.clone(),
            reply_names: [Some(attach.name.clone()), target]
                .into_iter()
                .flatten()
                .collect(),
            pairing,
            reader,
            is_settled: attach.role == Role::Sender && attach.snd_settle_mode == SenderSettleMode::Settled,
            used_at: now,
            end,
        }
    }

    /// A link that was refused as soon as it was asked for.
    pub(super) fn refused(name: &str, peer_role: Role) -> Self {
        Self {
            name: name.to_owned(),
            address: String::new(),
            node: Node::Cbs,
            peer_role,
            reply_names: Vec::new(),
            pairing: None,
            reader: None,
            is_settled: false,
            used_at: Moment::ZERO,
            end: End::Closing,
        }
    }

    pub(super) fn is_closing(&self) -> bool {
        matches!(self.end, End::Closing)
    }

    /// We have sent a detach of our own.
    pub(super) fn close(&mut self) {
        self.end = End::Closing;
        self.reader = None;
    }

    /// Whether an answer that is for `reply_to` is for this link.
    pub(super) fn is_for(&self, reply_to: Option<&str>) -> bool {
        reply_to.is_some_and(|to| self.reply_names.iter().any(|name| name == to))
    }

    /// How many more deliveries the peer has asked for than are queued here.
    pub(super) fn appetite(&self) -> usize {
        match &self.end {
            End::Sending { credit, outbox, .. } => (*credit as usize).saturating_sub(outbox.len()),
            End::Receiving { .. } | End::Closing => 0,
        }
    }
}
