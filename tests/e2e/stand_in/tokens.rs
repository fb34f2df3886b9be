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

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fe2o3_amqp::types::definitions::Role;
use fe2o3_amqp::types::messaging::DeliveryState;

use super::client::Client;
use super::{TOKEN_TYPE, hub_with_tls, put, says};
use crate::support::iot_hub::settings::{CbsAnswers, Expiry};
use crate::support::iot_hub::{IotHub, Observed};

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

fn token_until(device: &str, key: &Key, end: Duration) -> String {
    sas::token(&format!("{HUB}/devices/{device}"), key, None, end.as_secs())
}

#[tokio::test]
async fn answers_carry_the_message_id_in_its_own_type() -> Result<(), Failure> {
    let hub = IotHub::start(article::hub_settings(), None).await?;
    let mut client = Client::with_cbs(&hub).await?;
    for id in [
        MessageId::Ulong(0),
        MessageId::Uuid(Uuid::from([9; 16])),
        MessageId::String("text".to_owned()),
        MessageId::Binary(vec![0, 255].into()),
    ] {
        client.request("put-token", TOKEN_TYPE, "a name", "no token", id.clone())?;
        ensure_eq("the answer", client.answer().await?, (Some(id), 400))?;
    }
    hub.ensure_one_cbs_pair()?;
    hub.ensure_no_faults()
}

#[tokio::test]
async fn links_end_with_their_token_after_the_grace_and_renewal_keeps_them() -> Result<(), Failure> {
    for on_expiry in [Expiry::Detach, Expiry::Close] {
        let mut settings = article::hub_settings().with_device("second", Key::from_text("second"));
        settings.on_expiry = on_expiry;
        let grace = settings.token_grace;
        let hub = IotHub::start(settings, None).await?;
        let (key, second) = (article::device_key(), Key::from_text("second"));
        let end = hub.clock().now() + Duration::from_secs(60);
        let mut client = Client::with_token(&hub, &token_until(DEVICE, &key, end)).await?;
        client.put(&token_until("second", &second, end)).await?;
        for (handle, device) in [(2, DEVICE), (3, "second")] {
            let address = format!("/devices/{device}/messages/events");
            client.attach(device, handle, Role::Sender, &address).await?;
        }
        hub.advance(Duration::from_secs(50));
        let renewed = token_until("second", &second, end + Duration::from_secs(3600));
        ensure_eq("the renewal", client.put(&renewed).await?, 200)?;
        // Ended, and still in its grace; for a new put it is too late.
        hub.advance(grace);
        client.send(2, b"")?;
        client.outcome().await?;
        ensure_eq(
            "an ended token",
            client.put(&token_until(DEVICE, &key, end)).await?,
            401,
        )?;
        hub.advance(Duration::from_secs(11));
        if on_expiry == Expiry::Close {
            says(
                "the close",
                &client.closed().await?,
                &["Unauthorized", "Token Invalid."],
            )?;
            continue;
        }
        let (handle, error) = client.detached().await?;
        ensure_eq("the link", handle, 2)?;
        says(
            "the detach",
            &format!("{error:?}"),
            &["Unauthorized", "Token Invalid."],
        )?;
        client.send(3, b"")?;
        let outcome = client.outcome().await?;
        ensure(matches!(outcome, Some(DeliveryState::Accepted(_))), || {
            format!("{outcome:?}")
        })?;
        hub.ensure_no_faults()?;
    }
    Ok(())
}

#[tokio::test]
async fn deleted_token_opens_nothing_any_more() -> Result<(), Failure> {
    let hub = IotHub::start(article::hub_settings(), None).await?;
    let token = article::device_token(DEVICE, &article::device_key());
    let mut client = Client::with_token(&hub, &token).await?;
    let events = format!("/devices/{DEVICE}/messages/events");
    client.attach("before", 2, Role::Sender, &events).await?;
    let name = format!("{HUB}/devices/{DEVICE}");
    let status = client.ask("delete-token", TOKEN_TYPE, &name, "").await?;
    ensure_eq("delete-token", status, 200)?;
    client.attach("after", 3, Role::Sender, &events).await?;
    let (_, error) = client.detached().await?;
    says("the refusal", &format!("{error:?}"), &["Unauthorized", "401002"])?;
    hub.ensure_no_faults()
}

#[tokio::test]
async fn jwt_is_taken_where_the_switch_says() -> Result<(), Failure> {
    let hub = IotHub::start(article::hub_settings(), None).await?;
    let mut client = Client::with_cbs(&hub).await?;
    let claims = URL_SAFE_NO_PAD.encode(format!("{{\"exp\":{}}}", sas::unix_now() + 60));
    let token = format!("e30.{claims}.c2ln");
    ensure_eq("refused", client.ask("put-token", "jwt", HUB, &token).await?, 401)?;
    hub.change(|settings| settings.accepts_jwt = true);
    ensure_eq("taken", client.ask("put-token", "jwt", HUB, &token).await?, 200)?;
    client
        .attach("commands", 2, Role::Sender, "/messages/devicebound")
        .await?;
    ensure(hub.journal().select(refused).is_empty(), || {
        "it opens nothing".to_owned()
    })
}

fn refused(observed: &Observed) -> Option<String> {
    match observed {
        Observed::Refused { error, .. } => Some(format!("{error:?}")),
        _ => None,
    }
}

#[tokio::test]
async fn cbs_can_be_slow_and_silent() -> Result<(), Failure> {
    let mut settings = article::hub_settings();
    settings.cbs_answers = CbsAnswers::After(Duration::from_secs(3600));
    let hub = IotHub::start(settings, None).await?;
    let mut client = Client::with_cbs(&hub).await?;
    let slow = MessageId::String("slow".to_owned());
    client.request("put-token", TOKEN_TYPE, "a name", "no token", slow.clone())?;
    client.outcome().await?;
    hub.change(|settings| settings.cbs_answers = CbsAnswers::Never);
    client.request("put-token", TOKEN_TYPE, "a name", "no token", MessageId::Ulong(1))?;
    client.outcome().await?;
    hub.change(|settings| settings.cbs_answers = CbsAnswers::AtOnce);
    let prompt = MessageId::Ulong(2);
    client.request("put-token", TOKEN_TYPE, "a name", "no token", prompt.clone())?;
    ensure_eq("the first answer", client.answer().await?.0, Some(prompt))?;
    hub.advance(Duration::from_secs(3600));
    ensure_eq("the second", client.answer().await?.0, Some(slow))?;
    hub.ensure_no_faults()
}

#[tokio::test]
async fn second_cbs_pair_at_once_is_noticed_and_one_after_the_other_is_not() -> Result<(), Failure> {
    let hub = IotHub::start(article::hub_settings(), None).await?;
    let mut client = Client::with_cbs(&hub).await?;
    client.detach(0)?;
    client.attach("again", 2, Role::Sender, "$cbs").await?;
    hub.ensure_one_cbs_pair()?;
    client.attach("another", 3, Role::Sender, "$cbs").await?;
    let outcome = format!("{:?}", hub.ensure_one_cbs_pair());
    says("the check", &outcome, &["connection 1: 2 of role Sender"])
}
