//! Direct methods: calls of a service that a device answers at once, over a pair of pre-settled links.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use fe2o3_amqp::types::messaging::{ApplicationProperties, Body, Data, MessageId, Properties};
use fe2o3_amqp::types::primitives::{SimpleValue, Uuid};
use tokio::sync::oneshot;

use super::super::message;
use super::guid;
use super::node::Identity;
use super::observed::ConnectionId;

/// What a device answered to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MethodAnswer {
    pub(crate) status: i32,
    pub(crate) payload: Vec<u8>,
}

type CallId = [u8; 16];

struct Call {
    id: CallId,
    request: Bytes,
    answer: oneshot::Sender<MethodAnswer>,
}

/// A call whose answer is awaited from this connection.
struct Pending {
    connection: ConnectionId,
    identity: Identity,
    answer: oneshot::Sender<MethodAnswer>,
}

/// All calls under way.
#[derive(Default)]
pub(super) struct Methods {
    waiting: BTreeMap<Identity, VecDeque<Call>>,
    pending: BTreeMap<CallId, Pending>,
}

impl Methods {
    /// Calls a method once the device listens. The answer never comes if the device goes away meanwhile.
    pub(super) fn call(
        &mut self,
        identity: &Identity,
        name: &str,
        payload: &[u8],
    ) -> oneshot::Receiver<MethodAnswer> {
        let id = guid::random_v4();
        let properties = Properties {
            correlation_id: Some(MessageId::Uuid(Uuid::from(id))),
            ..Properties::default()
        };
        let body = Body::Data(vec![Data(payload.to_vec().into())].into());
        let mut request = message::with_properties(body, properties);
        let map = ApplicationProperties::builder().insert("IoThub-methodname", name);
        request.application_properties = Some(map.build());
        let (answer, answered) = oneshot::channel();
        self.waiting.entry(identity.clone()).or_default().push_back(Call {
            id,
            request: message::encode(&request),
            answer,
        });
        answered
    }

    /// The next call to send to a device that is on this connection.
    pub(super) fn next_request(&mut self, identity: &Identity, connection: ConnectionId) -> Option<Bytes> {
        let Call { id, request, answer } = self.waiting.get_mut(identity)?.pop_front()?;
        let identity = identity.clone();
        self.pending.insert(
            id,
            Pending {
                connection,
                identity,
                answer,
            },
        );
        Some(request)
    }

    /// A device's answer.
    ///
    /// # Errors
    ///
    /// It answers no call of this device, or not in the form that is due: a correlation-id of type uuid and
    /// `IoThub-status`, an int.
    pub(super) fn answer(&mut self, identity: &Identity, payload: &[u8]) -> Result<MethodAnswer, String> {
        let received = message::decode(payload).map_err(|_| "an answer that cannot be decoded".to_owned())?;
        let correlation_id = received
            .properties
            .as_ref()
            .and_then(|properties| properties.correlation_id.as_ref());
        let Some(MessageId::Uuid(id)) = correlation_id else {
            return Err(format!("an answer whose correlation-id is {correlation_id:?}"));
        };
        let Some(SimpleValue::Int(status)) = message::application_property(&received, "IoThub-status") else {
            return Err("an answer without an IoThub-status of type int".to_owned());
        };
        let id: CallId = id.clone().into_inner();
        let is_called = |pending: &Pending| pending.identity == *identity;
        if self.pending.get(&id).is_none_or(|pending| !is_called(pending)) {
            return Err("an answer to no call".to_owned());
        }
        let answer = MethodAnswer {
            status: *status,
            payload: message::body_of(&received),
        };
        if let Some(pending) = self.pending.remove(&id) {
            // Who called may have given up.
            let _ = pending.answer.send(answer.clone());
        }
        Ok(answer)
    }

    /// A connection, or its link for the methods of this device, is gone: nobody will answer.
    pub(super) fn forget(&mut self, connection: ConnectionId, of: Option<&Identity>) {
        self.pending.retain(|_, pending| {
            pending.connection != connection || of.is_some_and(|of| *of != pending.identity)
        });
    }
}
