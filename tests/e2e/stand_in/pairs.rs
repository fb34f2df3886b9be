//! Twins and direct methods, each over a pair of links.

use fe2o3_amqp::types::definitions::{Fields, ReceiverSettleMode, SenderSettleMode};
use fe2o3_amqp::types::messaging::annotations::OwnedKey;
use fe2o3_amqp::types::messaging::{ApplicationProperties, Body, MessageAnnotations, MessageId, Properties};
use fe2o3_amqp::types::primitives::{SimpleValue, Symbol, Value};
use fe2o3_amqp::{Receiver, Sender};
use serde_json::{Value as Json, json};

use crate::support::article::{self, DEVICE};
use crate::support::device::{self, Begun, Opened, Received};
use crate::support::iot_hub::{Identity, IotHub, Observed};
use crate::support::sas::{self, Key};
use crate::support::{Failure, bounded, ensure, ensure_eq, message};

use super::{hub_with_tls, put};

const API_VERSION: &str = "2021-04-12";

fn properties(correlation_id: &str) -> Fields {
    let mut properties = Fields::default();
    for (name, value) in [
        ("com.microsoft:channel-correlation-id", correlation_id),
        ("com.microsoft:api-version", API_VERSION),
    ] {
        properties.insert(Symbol::from(name), Value::String(value.to_owned()));
    }
    properties
}

async fn pair_sender(session: &mut Begun, address: &str, correlation_id: &str) -> Result<Sender, Failure> {
    let attaching = Sender::builder()
        .name(format!("to {correlation_id}"))
        .target(address)
        .sender_settle_mode(SenderSettleMode::Settled)
        .properties(properties(correlation_id))
        .attach(session);
    Ok(bounded("the sender of a pair", attaching).await??)
}

async fn pair_receiver(
    session: &mut Begun,
    address: &str,
    correlation_id: &str,
) -> Result<Receiver, Failure> {
    let attaching = Receiver::builder()
        .name(format!("from {correlation_id}"))
        .source(address)
        .sender_settle_mode(SenderSettleMode::Settled)
        .receiver_settle_mode(ReceiverSettleMode::First)
        .properties(properties(correlation_id))
        .attach(session);
    Ok(bounded("the receiver of a pair", attaching).await??)
}

/// Sends a twin request, `id` for its correlation-id.
async fn request(
    sender: &mut Sender,
    operation: &str,
    resource: &str,
    id: &str,
    body: &str,
) -> Result<(), Failure> {
    let properties = Properties {
        correlation_id: Some(MessageId::String(id.to_owned())),
        ..Properties::default()
    };
    let mut request = message::with_properties(message::data(body).body, properties);
    let mut map = MessageAnnotations::builder().insert("operation", operation);
    if !resource.is_empty() {
        map = map.insert("resource", resource);
    }
    request.message_annotations = Some(map.build());
    bounded("sending a twin request", sender.send(request)).await??;
    Ok(())
}

/// What comes next on a twin's link: its correlation-id, its status, and its body unless that is empty.
async fn answer(receiver: &mut Receiver) -> Result<(Option<MessageId>, Option<Value>, Json), Failure> {
    let received = device::receive(receiver).await?;
    let answer = received.message();
    let status = answer
        .message_annotations
        .as_ref()
        .and_then(|map| map.0.get(&OwnedKey::from("status")).cloned());
    let body = message::body_of(answer);
    let body = if body.is_empty() {
        Json::Null
    } else {
        serde_json::from_slice(&body)?
    };
    Ok((correlation_id(&received), status, body))
}

fn correlation_id(received: &Received) -> Option<MessageId> {
    let properties = received.message().properties.as_ref()?;
    properties.correlation_id.clone()
}

async fn authorised(
    hub: &IotHub,
    reach: &device::Reach,
    resource: &str,
    key: &Key,
) -> Result<Opened, Failure> {
    let mut connection = reach.open("device").await?;
    let resource = format!("{}/{resource}", article::HUB);
    let token = sas::token(&resource, key, None, sas::unix_now() + 60);
    let granted = put(&mut connection, &token, MessageId::Ulong(0)).await?;
    ensure_eq("the token", granted.status, 200)?;
    hub.ensure_no_faults()?;
    Ok(connection)
}

#[tokio::test]
async fn twin_is_read_and_patched_and_tells_of_desired_properties() -> Result<(), Failure> {
    let settings = article::hub_settings().with_module(DEVICE, "m1", Key::from_text("m1"));
    let (hub, reach) = hub_with_tls(settings).await?;
    for (resource, key, identity) in [
        (
            "devices/netduino",
            article::device_key(),
            Identity::device(DEVICE),
        ),
        (
            "devices/netduino/modules/m1",
            Key::from_text("m1"),
            Identity::module(DEVICE, "m1"),
        ),
    ] {
        let mut connection = authorised(&hub, &reach, resource, &key).await?;
        let mut session = device::begin(&mut connection).await?;
        let address = format!("/{resource}/twin");
        let mut sender = pair_sender(&mut session, &address, "twin:1").await?;
        let mut receiver = pair_receiver(&mut session, &address, "twin:1").await?;
        let id = |text: &str| Some(MessageId::String(text.to_owned()));
        let status = |status| Some(Value::Int(status));

        request(&mut sender, "GET", "", "read", " ").await?;
        let empty = json!({ "desired": { "$version": 1 }, "reported": { "$version": 1 } });
        ensure_eq(
            "the twin",
            answer(&mut receiver).await?,
            (id("read"), status(200), empty),
        )?;

        let patch = r#"{"fan":{"speed":2,"mode":"auto"},"gone":1}"#;
        request(&mut sender, "PATCH", "/properties/reported", "patch", patch).await?;
        let done = (id("patch"), status(204), Json::Null);
        ensure_eq("the answer to a patch", answer(&mut receiver).await?, done)?;
        let patch = r#"{"fan":{"mode":null},"gone":null}"#;
        request(&mut sender, "PATCH", "/properties/reported", "again", patch).await?;
        answer(&mut receiver).await?;
        let reported = json!({ "fan": { "speed": 2 }, "$version": 3 });
        ensure_eq("what is reported", hub.reported(&identity), reported)?;

        let desired = json!({ "interval": 5 });
        let Json::Object(desired) = desired else {
            return Err(Failure::new("no object"));
        };
        hub.set_desired(&identity, &desired);
        let notices = "/notifications/twin/properties/desired";
        request(&mut sender, "PUT", notices, "tell", " ").await?;
        let told = (id("tell"), status(200), Json::Null);
        ensure_eq("the answer to a PUT", answer(&mut receiver).await?, told)?;
        hub.set_desired(&identity, &desired);
        let notice = (None, None, json!({ "interval": 5, "$version": 3 }));
        ensure_eq("the notice", answer(&mut receiver).await?, notice)?;
        request(&mut sender, "DELETE", notices, "hush", " ").await?;
        answer(&mut receiver).await?;
        hub.set_desired(&identity, &desired);
        request(&mut sender, "GET", "", "read", " ").await?;
        let (of, _, twin) = answer(&mut receiver).await?;
        ensure_eq("nothing comes in between", of, id("read"))?;
        ensure_eq("the version", twin["desired"]["$version"].clone(), json!(4))?;

        request(&mut sender, "PATCH", "/properties/desired", "wrong", "{}").await?;
        let (_, refused, _) = answer(&mut receiver).await?;
        ensure_eq("what a device may not do", refused, status(400))?;
        let unsettled = hub.journal().select(|observed| match observed {
            Observed::Twin {
                settled: false,
                request,
                ..
            } => Some(request.clone()),
            _ => None,
        });
        ensure(unsettled.is_empty(), || format!("{unsettled:?} came unsettled"))?;
        device::close(connection).await?;
    }
    hub.ensure_no_faults()
}

#[tokio::test]
async fn method_is_called_and_answered() -> Result<(), Failure> {
    let (hub, reach) = hub_with_tls(article::hub_settings()).await?;
    let mut connection = authorised(&hub, &reach, "devices/netduino", &article::device_key()).await?;
    let mut session = device::begin(&mut connection).await?;
    let address = "/devices/netduino/methods/deviceBound";
    let mut sender = pair_sender(&mut session, address, DEVICE).await?;
    let mut receiver = pair_receiver(&mut session, address, DEVICE).await?;
    let identity = Identity::device(DEVICE);
    let serve = async {
        let call = device::receive(&mut receiver).await?;
        let name = message::application_property(call.message(), "IoThub-methodname").cloned();
        ensure_eq("the method", name, Some(SimpleValue::String("reboot".to_owned())))?;
        ensure_eq("the payload", message::body_of(call.message()), b"{\"in\":5}")?;
        let correlation_id = correlation_id(&call);
        ensure(matches!(correlation_id, Some(MessageId::Uuid(_))), || {
            format!("{correlation_id:?} is no GUID")
        })?;
        let properties = Properties {
            correlation_id,
            ..Properties::default()
        };
        let mut answer = message::with_properties(message::data("\"ok\"").body, properties);
        let map = ApplicationProperties::builder().insert("IoThub-status", SimpleValue::Int(200));
        answer.application_properties = Some(map.build());
        bounded("answering", sender.send(answer)).await??;
        Ok::<_, Failure>(())
    };
    let (answer, served) = tokio::join!(hub.invoke(&identity, "reboot", b"{\"in\":5}"), serve);
    served?;
    let answer = answer?;
    ensure_eq("the status", answer.status, 200)?;
    ensure_eq("the answer", answer.payload, b"\"ok\"")?;

    // Nobody answers any more once the device has gone.
    let leave = async {
        device::receive(&mut receiver).await?;
        device::close(connection).await
    };
    let (answer, left) = tokio::join!(hub.invoke(&identity, "reboot", b""), leave);
    left?;
    let text = format!("{answer:?}");
    ensure(text.contains("went away"), || text)?;
    hub.ensure_no_faults()
}

#[tokio::test]
async fn links_of_a_pair_belong_together_by_correlation_id_and_version() -> Result<(), Failure> {
    let (hub, reach) = hub_with_tls(article::hub_settings()).await?;
    let mut connection = authorised(&hub, &reach, "devices/netduino", &article::device_key()).await?;
    for path in ["twin", "methods/devicebound"] {
        let mut session = device::begin(&mut connection).await?;
        let address = format!("/devices/netduino/{path}");
        let attaching = Sender::attach(&mut session, "without properties", address.as_str());
        let attached = bounded("an attach", attaching).await?;
        device::ensure_says("a link of no pair", attached, &["NotAllowed", "correlation-id"])?;

        let mut session = device::begin(&mut connection).await?;
        let sender = pair_sender(&mut session, &address, "first").await?;
        let mut first = pair_receiver(&mut session, &address, "first").await?;
        let second = pair_receiver(&mut session, &address, "second").await?;
        let closed = bounded("the detach of the older receiver", first.recv::<Body<Value>>()).await?;
        device::ensure_says("a receiver of another pair", closed, &["DetachForced"])?;
        let mut sender = sender;
        let closed = bounded("the detach of its sender", sender.on_detach()).await?;
        let text = format!("{closed:?}");
        ensure(text.contains("DetachForced"), || text)?;
        hub.ensure_no_faults()?;
        drop(second);
    }
    hub.ensure_no_faults()
}
