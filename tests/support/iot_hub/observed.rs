//! What the stand-in saw, in its peer's own words.

use bytes::Bytes;
use fe2o3_amqp::types::definitions::{Error, Role};
use fe2o3_amqp::types::messaging::{Body, Data};
use fe2o3_amqp::types::messaging::{DeliveryState, MessageId};
use fe2o3_amqp::types::performatives::{Attach, Begin, Open};

use super::super::{Failure, message};
use super::methods::MethodAnswer;
use super::node::Identity;
use super::twins::TwinRequest;

/// Numbers connections in the order they were accepted, from 1.
pub(crate) type ConnectionId = u32;

/// One observation.
#[derive(Clone, Debug)]
pub(crate) enum Observed {
    /// The transport is there.
    Accepted {
        connection: ConnectionId,
    },
    /// TLS is done (or there is none); `sni` is the name asked for.
    Connected {
        connection: ConnectionId,
        sni: Option<String>,
    },
    /// SASL is done.
    Authenticated {
        connection: ConnectionId,
        mechanism: String,
    },
    Opened {
        connection: ConnectionId,
        open: Open,
    },
    Begun {
        connection: ConnectionId,
        channel: u16,
        begin: Begin,
    },
    Attached {
        connection: ConnectionId,
        channel: u16,
        attach: Box<Attach>,
    },
    /// An attach to `$cbs` came, and so many of its role the connection would have now.
    CbsLink {
        connection: ConnectionId,
        role: Role,
        open: usize,
    },
    /// An attach was answered with a detach.
    Refused {
        connection: ConnectionId,
        link: String,
        error: Error,
    },
    /// A put-token request and the status it got.
    Token {
        connection: ConnectionId,
        request: TokenRequest,
        status: i32,
    },
    Telemetry(Delivery),
    /// A message of a batch that was taken, in its order; the batch itself was seen as it came.
    Batched {
        connection: ConnectionId,
        link: String,
        body: Vec<u8>,
    },
    /// A request to the management of a queue.
    Management {
        connection: ConnectionId,
        operation: String,
        message_id: Option<MessageId>,
    },
    /// A request to the twin of a device, and whether it came settled.
    Twin {
        connection: ConnectionId,
        identity: Identity,
        request: TwinRequest,
        settled: bool,
    },
    /// A device's answer to a method call; an error says why it is none.
    MethodAnswer {
        connection: ConnectionId,
        identity: Identity,
        answer: Result<MethodAnswer, String>,
        settled: bool,
    },
    /// A transfer came that is not the last of its delivery, which has this many bytes now.
    Partial {
        connection: ConnectionId,
        link: String,
        bytes: usize,
    },
    /// An empty frame.
    Heartbeat {
        connection: ConnectionId,
    },
    /// A command handed in by a service.
    Command {
        device: String,
        delivery: Delivery,
    },
    /// A delivery was aborted after this many bytes.
    Aborted {
        connection: ConnectionId,
        link: String,
        tag: Vec<u8>,
        bytes: usize,
    },
    /// What became of a command or a feedback message on its way out.
    Disposed {
        connection: ConnectionId,
        link: String,
        tag: Vec<u8>,
        state: Option<DeliveryState>,
        settled: bool,
    },
    Detached {
        connection: ConnectionId,
        link: String,
        closed: bool,
        error: Option<Error>,
    },
    Ended {
        connection: ConnectionId,
        channel: u16,
        error: Option<Error>,
    },
    Closed {
        connection: ConnectionId,
        error: Option<Error>,
    },
    /// The transport went away; after a `Closed`, in good order.
    Lost {
        connection: ConnectionId,
        why: String,
    },
    /// The peer broke the protocol. No test passes with one of these, unless it asked for it.
    Fault {
        connection: ConnectionId,
        what: String,
    },
}

/// A put-token request, without its secret.
#[derive(Clone, Debug)]
pub(crate) struct TokenRequest {
    pub(crate) link: String,
    pub(crate) name: String,
    pub(crate) token_type: String,
    pub(crate) message_id: Option<MessageId>,
    pub(crate) reply_to: Option<String>,
}

/// The message-format of a batch: each data section is an encoded message.
const BATCH: u32 = 0x8001_3700;

/// One message as it came.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    pub(crate) connection: ConnectionId,
    pub(crate) channel: u16,
    pub(crate) link: String,
    /// The target address, as the link's attach spelt it.
    pub(crate) address: String,
    pub(crate) delivery_id: u32,
    pub(crate) tag: Vec<u8>,
    pub(crate) message_format: Option<u32>,
    pub(crate) settled: bool,
    /// The encoded message.
    pub(crate) payload: Bytes,
    /// How many transfers it took.
    pub(crate) frames: usize,
}

impl Delivery {
    /// The bodies of its messages, if it is a batch.
    pub(super) fn batched(&self) -> Result<Vec<Vec<u8>>, Failure> {
        if self.message_format != Some(BATCH) {
            return Ok(Vec::new());
        }
        let Body::Data(sections) = message::decode(&self.payload)?.body else {
            return Err(Failure::new("a batch without data sections"));
        };
        sections
            .iter()
            .map(|Data(encoded)| Ok(message::body_of(&message::decode(encoded)?)))
            .collect()
    }
}
