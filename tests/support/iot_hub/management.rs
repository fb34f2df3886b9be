//! `$management` of a queue: whatever is asked for is answered 200, to the link that the request names.

use fe2o3_amqp::types::definitions::Role;
use fe2o3_amqp::types::messaging::{AmqpValue, ApplicationProperties, Body, Properties};
use fe2o3_amqp::types::primitives::{OrderedMap, SimpleValue, Value};

use super::super::message;
use super::connection::{Connection, Step};
use super::deliveries::{accepted, rejected};
use super::guid;
use super::link::Purpose;
use super::observed::{Delivery, Observed};
use super::refusal::Refusal;

impl Connection {
    /// A request is settled first, then answered.
    pub(super) fn on_management_request(&mut self, channel: u16, handle: u32, delivery: &Delivery) -> Step {
        let request = message::decode(&delivery.payload).ok();
        let operation =
            request.as_ref().and_then(
                |request| match message::application_property(request, "operation") {
                    Some(SimpleValue::String(operation)) => Some(operation.clone()),
                    Some(_) | None => None,
                },
            );
        let (Some(request), Some(operation)) = (request, operation) else {
            if delivery.settled {
                return Ok(());
            }
            let refusal = Refusal::invalid_operation("The request has no operation.");
            return self.dispose(channel, delivery.delivery_id, rejected(refusal));
        };
        let Properties {
            message_id, reply_to, ..
        } = request.properties.unwrap_or_default();
        if !delivery.settled {
            self.dispose(channel, delivery.delivery_id, accepted())?;
        }
        self.note(Observed::Management {
            connection: self.id,
            operation,
            message_id: message_id.clone(),
        });
        let body = Body::Value(AmqpValue(Value::Map(OrderedMap::new())));
        let properties = Properties {
            correlation_id: message_id,
            ..Properties::default()
        };
        let mut reply = message::with_properties(body, properties);
        let mut map = ApplicationProperties::builder();
        map = map.insert("statusCode", SimpleValue::Int(200));
        reply.application_properties = Some(map.insert("statusDescription", "OK").build());
        let session = self.session(channel)?;
        let node = session.link(handle).map(|link| link.node.clone());
        let receiver = session
            .links()
            .find(|(_, link)| {
                Some(&link.node) == node.as_ref()
                    && link.peer_role == Role::Receiver
                    && !link.is_closing()
                    && link.is_for(reply_to.as_deref())
            })
            .map(|(handle, _)| handle);
        if let Some(handle) = receiver {
            session.queue(
                handle,
                guid::random().to_vec(),
                message::encode(&reply),
                Purpose::Reply,
            );
        }
        self.work()
    }
}
