//! Service Bus.

use std::time::Duration;

use fe2o3_amqp::types::definitions::{Handle, Role};
use fe2o3_amqp::types::messaging::{
    AmqpValue, ApplicationProperties, Body, DeliveryState, MessageId, Properties, Target,
};
use fe2o3_amqp::types::performatives::{Attach, Performative};
use fe2o3_amqp::types::primitives::{SimpleValue, Value};

use super::client::Client;
use super::says;
use crate::support::article::{self, HUB, POLICY};
use crate::support::iot_hub::{IotHub, Observed, Settings};
use crate::support::{Failure, ensure, ensure_eq, message, raw};

const MANAGEMENT: &str = "orders/$management";

async fn namespace() -> Result<(IotHub, Client), Failure> {
    let settings = Settings::service_bus(HUB, &["orders"]).with_policy(POLICY, article::policy_key());
    let hub = IotHub::start(settings, None).await?;
    let client = Client::with_token(&hub, &article::service_token()).await?;
    Ok((hub, client))
}

fn request(operation: Option<&str>, message_id: &MessageId, reply_to: &str) -> Vec<u8> {
    let properties = Properties {
        message_id: Some(message_id.clone()),
        reply_to: Some(reply_to.to_owned()),
        ..Properties::default()
    };
    let mut request = message::with_properties(Body::Value(AmqpValue(Value::Null)), properties);
    request.application_properties = operation.map(|operation| {
        ApplicationProperties::builder()
            .insert("operation", operation)
            .build()
    });
    message::encode(&request).to_vec()
}

async fn ensure_accepted(client: &mut Client) -> Result<(), Failure> {
    let outcome = client.outcome().await?;
    ensure(matches!(outcome, Some(DeliveryState::Accepted(_))), || {
        format!("{outcome:?}")
    })
}

#[tokio::test]
async fn management_of_a_queue_answers_the_link_that_the_request_names() -> Result<(), Failure> {
    let (hub, mut client) = namespace().await?;
    client.attach("management", 2, Role::Sender, MANAGEMENT).await?;
    for (handle, reply_to) in [(3, "answers-a"), (4, "answers-b")] {
        client
            .attach_as(Attach {
                target: Some(Box::new(Target::from(reply_to).into())),
                ..raw::attach(
                    &format!("management {handle}"),
                    handle,
                    Role::Receiver,
                    MANAGEMENT,
                )
            })
            .await?;
        client.credit(handle, 10)?;
    }
    let operations = ["com.microsoft:renew-lock", "com.microsoft:peek-message"];
    let ids = [MessageId::Ulong(7), MessageId::String("seven".to_owned())];
    for (((operation, id), handle), reply_to) in operations
        .iter()
        .zip(&ids)
        .zip([4, 3])
        .zip(["answers-b", "answers-a"])
    {
        client.send(2, &request(Some(operation), id, reply_to))?;
        ensure_accepted(&mut client).await?;
        let (of, payload) = client
            .raw
            .expect_with_payload("an answer", |frame, payload| match frame {
                Performative::Transfer(transfer) => Some((transfer.handle, payload)),
                _ => None,
            })
            .await?;
        ensure_eq("the link of the answer", of, Handle(handle))?;
        let answer = message::decode(&payload)?;
        ensure_eq(
            "the status",
            message::application_property(&answer, "statusCode").cloned(),
            Some(SimpleValue::Int(200)),
        )?;
        let correlation_id = answer.properties.and_then(|properties| properties.correlation_id);
        ensure_eq("the correlation-id", correlation_id.as_ref(), Some(id))?;
    }
    let seen = hub.journal().select(|observed| match observed {
        Observed::Management {
            operation,
            message_id,
            ..
        } => Some((operation.clone(), message_id.clone())),
        _ => None,
    });
    let asked = operations.iter().map(|&operation| operation.to_owned());
    let asked: Vec<_> = asked.zip(ids.into_iter().map(Some)).collect();
    ensure_eq("what was asked", seen, asked)?;
    client.send(2, &request(None, &MessageId::Ulong(8), "answers-a"))?;
    let outcome = format!("{:?}", client.outcome().await?);
    says("no operation", &outcome, &["Rejected", "no operation"])?;
    hub.ensure_no_faults()
}

#[tokio::test]
async fn sender_that_is_idle_for_ten_minutes_is_detached() -> Result<(), Failure> {
    let (hub, mut client) = namespace().await?;
    client.attach("busy", 2, Role::Sender, "orders").await?;
    client.attach("idle", 3, Role::Sender, "orders").await?;
    hub.advance(Duration::from_secs(540));
    client.send(2, b"an order")?;
    ensure_accepted(&mut client).await?;
    let token = article::service_token();
    ensure_eq("a token", client.put(&token).await?, 200)?;
    hub.advance(Duration::from_secs(60));
    let (handle, error) = client.detached().await?;
    ensure_eq("the link that is idle", handle, 3)?;
    says(
        "the detach",
        &format!("{error:?}"),
        &["DetachForced", "IdleTimerExpired: Idle timeout: 00:10:00."],
    )?;
    client.send(2, b"another")?;
    ensure_accepted(&mut client).await?;
    let orders = hub.journal().select(|observed| match observed {
        Observed::Telemetry(delivery) => Some((delivery.link.clone(), delivery.payload.to_vec())),
        _ => None,
    });
    let expected = ["an order", "another"].map(|order| ("busy".to_owned(), order.as_bytes().to_vec()));
    ensure_eq("the orders", orders, expected.to_vec())?;
    hub.ensure_no_faults()
}
