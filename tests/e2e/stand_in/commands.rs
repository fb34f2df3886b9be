//! Commands to devices.

use std::time::Duration;

use crate::support::article::{self, DEVICE};
use crate::support::device;
use crate::support::iot_hub::IotHub;
use crate::support::{Failure, bounded, ensure, ensure_eq, message};
use fe2o3_amqp::types::definitions::Role;
use fe2o3_amqp::types::messaging::annotations::OwnedKey;
use fe2o3_amqp::types::messaging::{Accepted, DeliveryState, MessageId};
use fe2o3_amqp::types::performatives::{Disposition, Performative};
use fe2o3_amqp::types::primitives::Value;

use super::client::Client;
use super::{hub_with_tls, put, says};

#[tokio::test]
async fn released_command_comes_again_with_its_count() -> Result<(), Failure> {
    let (hub, reach) = hub_with_tls(article::hub_settings()).await?;
    let mut connection = reach.open("both").await?;
    ensure_eq(
        "the token",
        put(&mut connection, &article::service_token(), MessageId::Ulong(1))
            .await?
            .status,
        200,
    )?;
    let mut session = device::begin(&mut connection).await?;
    let mut sender = device::sender(&mut session, "commands", "/messages/deviceBound").await?;
    let token = article::device_token(DEVICE, &article::device_key());
    ensure_eq(
        "the token",
        put(&mut connection, &token, MessageId::Ulong(1)).await?.status,
        200,
    )?;
    let mut command = message::data("blink");
    if let Some(properties) = &mut command.properties {
        properties.to = Some(format!("/devices/{DEVICE}/messages/deviceBound"));
    }
    ensure(
        bounded("sending", sender.send(command)).await??.is_accepted(),
        || "not queued".to_owned(),
    )?;
    let address = format!("/devices/{DEVICE}/messages/deviceBound");
    let mut receiver = device::receiver(&mut session, "receive-link", &address).await?;
    let mut tags = Vec::new();
    for count in [0, 1] {
        let delivery = device::receive(&mut receiver).await?;
        let annotations = delivery.message().message_annotations.as_ref();
        let found = annotations.and_then(|map| map.0.get(&OwnedKey::from("iothub-deliverycount")).cloned());
        ensure_eq("iothub-deliverycount", found, Some(Value::Ubyte(count)))?;
        tags.push(delivery.delivery_tag().to_vec());
        bounded("releasing", receiver.release(&delivery)).await??;
    }
    ensure(tags.first() != tags.last(), || {
        "a lock token used twice".to_owned()
    })?;
    // fe2o3-amqp takes a transfer that crosses its close for an error, and the command is on its way a third time.
    bounded("closing receive-link", receiver.close()).await??;
    device::close(connection).await?;
    hub.ensure_no_faults()
}

const DEVICE_BOUND: &str = "/devices/netduino/messages/devicebound";

/// A command as it came: its delivery-id, its tag, and how often it had come before.
struct Came {
    delivery_id: Option<u32>,
    tag: Vec<u8>,
    count: Option<Value>,
}

async fn command(client: &mut Client) -> Result<Came, Failure> {
    let (transfer, payload) = client
        .raw
        .expect_with_payload("a command", |frame, payload| match frame {
            Performative::Transfer(transfer) => Some((transfer, payload)),
            _ => None,
        })
        .await?;
    let annotations = message::decode(&payload)?.message_annotations;
    Ok(Came {
        delivery_id: transfer.delivery_id,
        tag: transfer
            .delivery_tag
            .map(|tag| tag.into_vec())
            .unwrap_or_default(),
        count: annotations.and_then(|map| map.0.get(&OwnedKey::from("iothub-deliverycount")).cloned()),
    })
}

/// Accepts without settling, as receiver-settle-mode second wants it; gives what the hub settles with.
async fn accept(client: &mut Client, came: &Came) -> Result<String, Failure> {
    let delivery_id = came
        .delivery_id
        .ok_or_else(|| Failure::new("a command without an id"))?;
    client.raw.send(Performative::Disposition(Disposition {
        role: Role::Receiver,
        first: delivery_id,
        last: None,
        settled: false,
        state: Some(DeliveryState::Accepted(Accepted {})),
        batchable: false,
    }))?;
    let settlement = client.disposition().await?;
    ensure_eq("what is settled", settlement.first, delivery_id)?;
    ensure(settlement.settled, || "not settled".to_owned())?;
    Ok(format!("{:?}", settlement.state))
}

#[tokio::test]
async fn command_whose_lock_ran_out_comes_again_and_a_late_outcome_is_refused() -> Result<(), Failure> {
    let hub = IotHub::start(article::hub_settings(), None).await?;
    let token = article::device_token(DEVICE, &article::device_key());
    let mut client = Client::with_token(&hub, &token).await?;
    client.attach("commands", 2, Role::Receiver, DEVICE_BOUND).await?;
    client.credit(2, 10)?;
    hub.send_command(DEVICE, message::data("blink"))?;
    let first = command(&mut client).await?;
    ensure_eq("the first count", &first.count, &Some(Value::Ubyte(0)))?;
    hub.advance(Duration::from_secs(60));
    let second = command(&mut client).await?;
    ensure_eq("the count after the lock", &second.count, &Some(Value::Ubyte(0)))?;
    ensure(first.tag != second.tag, || "a lock token used twice".to_owned())?;
    says(
        "a late outcome",
        &accept(&mut client, &first).await?,
        &["Rejected", "com.microsoft:message-lock-lost", "412002"],
    )?;
    // It was not the late outcome that counted.
    says("one in time", &accept(&mut client, &second).await?, &["Accepted"])?;
    hub.advance(Duration::from_secs(60));
    hub.send_command(DEVICE, message::data("stop"))?;
    let next = command(&mut client).await?;
    ensure(next.tag != second.tag, || "it came again after all".to_owned())?;
    says("the next", &accept(&mut client, &next).await?, &["Accepted"])?;
    ensure_eq("commands that wait", hub.pending_commands(DEVICE), 0)?;
    ensure_eq("commands given up", hub.dead_letters(), 0)?;
    hub.ensure_no_faults()
}

#[tokio::test]
async fn queue_of_a_device_takes_fifty_commands_those_under_way_among_them() -> Result<(), Failure> {
    let hub = IotHub::start(article::hub_settings(), None).await?;
    for _ in 0..50 {
        hub.send_command(DEVICE, message::data("blink"))?;
    }
    let mut service = Client::with_token(&hub, &article::service_token()).await?;
    service
        .attach("commands", 2, Role::Sender, "/messages/devicebound")
        .await?;
    let mut another = message::data("once more");
    if let Some(properties) = &mut another.properties {
        properties.to = Some(DEVICE_BOUND.to_owned());
    }
    let another = message::encode(&another);
    let token = article::device_token(DEVICE, &article::device_key());
    let mut device = Client::with_token(&hub, &token).await?;
    service.send(2, &another)?;
    let full = ["Rejected", "ResourceLimitExceeded", "403004"];
    says("one more", &format!("{:?}", service.outcome().await?), &full)?;
    device.attach("commands", 2, Role::Receiver, DEVICE_BOUND).await?;
    device.credit(2, 1)?;
    let came = command(&mut device).await?;
    ensure_eq("those that wait", hub.pending_commands(DEVICE), 49)?;
    service.send(2, &another)?;
    let outcome = format!("{:?}", service.outcome().await?);
    says("while one is under way", &outcome, &full)?;
    accept(&mut device, &came).await?;
    service.send(2, &another)?;
    let outcome = format!("{:?}", service.outcome().await?);
    says("in its place", &outcome, &["Accepted"])?;
    ensure_eq("those that wait", hub.pending_commands(DEVICE), 50)?;
    hub.ensure_no_faults()
}
