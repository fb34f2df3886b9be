//! Tokens, and what they open.

use crate::support::article::{self, DEVICE, HUB};
use crate::support::device;
use crate::support::iot_hub::settings::CbsMode;
use crate::support::sas::{self, Key};
use crate::support::{Failure, bounded, ensure, ensure_eq, message};
use fe2o3_amqp::link::SenderAttachError;
use fe2o3_amqp::types::messaging::{AmqpValue, Body, MessageId, Properties};
use fe2o3_amqp::types::primitives::{SimpleValue, Uuid, Value};
use fe2o3_amqp::{Receiver, Sender};

use super::{hub_with_tls, put};

#[tokio::test]
async fn tokens_are_judged_as_iot_hub_judges_them() -> Result<(), Failure> {
    let mut settings = article::hub_settings().with_device("second", Key::from_text("second"));
    settings.max_tokens = 1;
    let (hub, reach) = hub_with_tls(settings).await?;
    let mut connection = reach.open("device").await?;
    let later = sas::unix_now() + 60;
    let resource = format!("{HUB}/devices/{DEVICE}");
    let (good, wrong) = (article::device_key(), Key::from_text("not the key"));
    let second = sas::token(
        &format!("{HUB}/devices/second"),
        &Key::from_text("second"),
        None,
        later,
    );
    let cases = [
        (
            sas::token(&resource, &wrong, None, later),
            401,
            "invalid signature",
        ),
        (sas::token(&resource, &good, None, 1), 401, "expired"),
        (
            sas::token(&format!("{HUB}/devices/nobody"), &good, None, later),
            404,
            "Device nobody at IotHub",
        ),
        (
            sas::token("other.azure-devices.net/devices/netduino", &good, None, later),
            401,
            "not this IoT hub",
        ),
        ("SharedAccessSignature sr=x".to_owned(), 400, "malformed"),
        (sas::token(&resource, &good, None, later), 200, "OK"),
        (sas::token(&resource, &good, None, later + 60), 200, "OK"),
        (second, 500, "The maximum number of tokens per connection (1)"),
    ];
    let ids = [
        MessageId::Ulong(0),
        MessageId::Uuid(Uuid::from([7; 16])),
        MessageId::String("id".to_owned()),
    ];
    for ((token, status, text), id) in cases.into_iter().zip(ids.into_iter().cycle()) {
        let granted = put(&mut connection, &token, id).await?;
        ensure_eq(text, granted.status, status)?;
        ensure(granted.description.contains(text), || {
            format!("{granted:?} does not say {text}")
        })?;
    }
    device::close(connection).await?;
    hub.ensure_no_faults()
}

#[tokio::test]
async fn links_are_authorised_by_the_tokens_of_their_connection() -> Result<(), Failure> {
    let settings = article::hub_settings().with_device("netduino2", Key::from_text("2"));
    let (hub, reach) = hub_with_tls(settings).await?;
    let mut connection = reach.open("device").await?;
    let token = article::device_token(DEVICE, &article::device_key());
    ensure_eq(
        "the token",
        put(&mut connection, &token, MessageId::Ulong(1)).await?.status,
        200,
    )?;
    let mut session = device::begin(&mut connection).await?;
    let spelt_out = format!("amqps://{HUB}:5671/devices/{DEVICE}/messages/Events");
    let own = device::sender(&mut session, "own", &spelt_out).await?;
    for (address, condition, code) in [
        // A prefix of a name is no prefix of a path.
        (
            "/devices/netduino2/messages/events",
            "UnauthorizedAccess",
            "401002",
        ),
        ("/messages/devicebound", "UnauthorizedAccess", "401002"),
        ("/devices/nobody/messages/events", "NotFound", "404001"),
        ("/devices/netduino/messages/event", "NotFound", "404006"),
    ] {
        // fe2o3-amqp can attach nothing more in a session that refused it a link.
        let mut session = device::begin(&mut connection).await?;
        let refused = bounded(address, Sender::attach(&mut session, address, address)).await?;
        let Err(SenderAttachError::RemoteClosedWithError(error)) = refused else {
            return Err(Failure::new(format!("{address}: {refused:?}")));
        };
        let text = format!("{error:?}");
        ensure(text.contains(condition) && text.contains(code), || {
            format!("{address}: {text}")
        })?;
    }
    bounded("closing", own.close()).await??;
    device::close(connection).await?;
    hub.ensure_no_faults()
}

/// Two `$cbs` pairs on one connection: whether there may be, and which gets the answer to a request of the first.
#[tokio::test]
async fn second_cbs_pair_is_treated_as_each_mode_says() -> Result<(), Failure> {
    for (mode, answered) in [
        (CbsMode::Refuse, None),
        (CbsMode::LastWins, Some("second")),
        (CbsMode::PerSession, Some("first")),
        (CbsMode::ReplyTo, Some("second")),
    ] {
        let mut settings = article::hub_settings();
        settings.cbs_mode = mode;
        let (hub, reach) = hub_with_tls(settings).await?;
        let mut connection = reach.open("device").await?;
        let mut first = device::begin(&mut connection).await?;
        let mut sender = device::sender(&mut first, "requests", "$cbs").await?;
        let mut receivers = vec![device::receiver(&mut first, "first", "$cbs").await?];
        let mut second = device::begin(&mut connection).await?;
        let attached = bounded("an attach", Receiver::attach(&mut second, "second", "$cbs")).await?;
        let Some(answered) = answered else {
            let text = format!("{attached:?}");
            ensure(
                text.contains("NotAllowed") && text.contains("already been opened"),
                || text,
            )?;
            device::end(second).await?;
            device::close(connection).await?;
            continue;
        };
        receivers.push(attached?);
        let properties = Properties {
            reply_to: Some("second".to_owned()),
            ..Properties::default()
        };
        let body = Body::Value(AmqpValue(Value::String("not a token".to_owned())));
        let request = message::with_properties(body, properties);
        ensure(
            bounded("a request", sender.send(request)).await??.is_accepted(),
            || "not accepted".to_owned(),
        )?;
        for mut receiver in receivers {
            if receiver.name() == answered {
                let delivery = device::receive(&mut receiver).await?;
                let status = message::application_property(delivery.message(), "status-code").cloned();
                ensure_eq("the status", status, Some(SimpleValue::Int(400)))?;
            }
            bounded("closing", receiver.close()).await??;
        }
        bounded("closing", sender.close()).await??;
        device::close(connection).await?;
        hub.ensure_no_faults()?;
    }
    Ok(())
}
