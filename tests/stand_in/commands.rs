//! Commands to devices.

use crate::support::article::{self, DEVICE};
use crate::support::device;
use crate::support::{Failure, bounded, ensure, ensure_eq, message};
use fe2o3_amqp::types::messaging::MessageId;
use fe2o3_amqp::types::messaging::annotations::OwnedKey;
use fe2o3_amqp::types::primitives::Value;

use super::{hub_with_tls, put};

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
