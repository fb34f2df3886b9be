//! The scenario of the article: a Netduino that sends telemetry to Azure IoT Hub and takes commands from it.
//!
//! The device speaks plain AMQP without SASL, puts a token in a session of its own, ends that session, and works in a
//! new one. Every step is checked at both ends.

use fe2o3_amqp::types::messaging::annotations::OwnedKey;
use fe2o3_amqp::types::messaging::{ApplicationProperties, DeliveryState, MessageId};
use fe2o3_amqp::types::primitives::{SimpleValue, Value};

use super::device::{self, Granted, Opened, PutToken};
use super::iot_hub::{IotHub, Observed, Settings};
use super::sas::{self, Key};
use super::{Failure, bounded, ensure, ensure_eq, message};

/// The hub's name, as its tokens carry it.
pub(crate) const HUB: &str = "article-hub.azure-devices.net";
/// The device.
pub(crate) const DEVICE: &str = "netduino";
/// The policy that the service side uses.
pub(crate) const POLICY: &str = "iothubowner";

const TOKEN_TYPE: &str = "azure-devices.net:sastoken";
const TELEMETRY: &str = r#"{"deviceid":"netduino","temperature":27.4}"#;
const COMMAND: &str = r#"{"command":"fan","value":"on"}"#;
const COMMAND_ID: &str = "command-1";

/// The key of the device.
pub(crate) fn device_key() -> Key {
    Key::from_text("the key of the article's device")
}

/// The key of the service's policy.
pub(crate) fn policy_key() -> Key {
    Key::from_text("the key of the article's policy")
}

/// A hub that knows the device and the policy.
pub(crate) fn hub_settings() -> Settings {
    Settings::new(HUB)
        .with_device(DEVICE, device_key())
        .with_policy(POLICY, policy_key())
}

/// A token for a device of this hub, good for an hour.
pub(crate) fn device_token(device: &str, key: &Key) -> String {
    sas::token(
        &format!("{HUB}/devices/{device}"),
        key,
        None,
        sas::unix_now() + 3600,
    )
}

/// A token of the service's policy, good for an hour.
pub(crate) fn service_token() -> String {
    sas::token(HUB, &policy_key(), Some(POLICY), sas::unix_now() + 3600)
}

/// Tells what happened, step by step.
pub(crate) trait Story {
    /// A step that has been verified at both ends.
    fn step(&mut self, text: &str);
}

/// Nobody listens.
impl Story for () {
    fn step(&mut self, _: &str) {}
}

/// What must never be seen in a log of this scenario.
pub(crate) struct Secrets(pub(crate) Vec<String>);

/// Runs the whole scenario. `device` and `service` are open connections to the router, or to the hub itself.
pub(crate) async fn run(
    mut device: Opened,
    mut service: Opened,
    hub: &IotHub,
    story: &mut impl Story,
) -> Result<Secrets, Failure> {
    let token = device_token(DEVICE, &device_key());
    authorise(&mut device, hub, &token).await?;
    story.step("The device put its SAS token through $cbs; the hub verified it and answered 200, to the right message-id.");

    let mut session = device::begin(&mut device).await?;
    send_telemetry(&mut session, hub).await?;
    story.step("The device sent telemetry to /devices/netduino/messages/events; the hub has it byte for byte, and accepted it.");

    let address = format!("/devices/{DEVICE}/messages/deviceBound");
    let mut receiver = device::receiver(&mut session, "receive-link", &address).await?;
    story.step("The device attached receive-link to /devices/netduino/messages/deviceBound.");

    let service_token = service_token();
    let request = PutToken {
        token: &service_token,
        name: HUB,
        token_type: "servicebus.windows.net:sastoken",
        message_id: MessageId::Ulong(0),
    };
    let Granted { status, description } = device::put_token(&mut service, request).await?;
    ensure_eq(&format!("the service's token ({description})"), status, 200)?;
    let mut service_session = device::begin(&mut service).await?;
    let mut feedback = device::receiver(
        &mut service_session,
        "feedback",
        "/messages/servicebound/feedback",
    )
    .await?;
    send_command(&mut service_session, DEVICE, COMMAND, COMMAND_ID).await?;
    let to = hub
        .journal()
        .find("the command at the hub", |observed| match observed {
            Observed::Command { device, .. } => Some(device.clone()),
            _ => None,
        })
        .await?;
    ensure_eq("the device that the command is for", to.as_str(), DEVICE)?;
    story.step("A service sent a command to /messages/devicebound; the hub queued it for the device.");

    let delivery = device::receive(&mut receiver).await?;
    ensure_eq(
        "the command's body",
        message::body_of(delivery.message()),
        COMMAND.as_bytes(),
    )?;
    let tag = delivery.delivery_tag().to_vec();
    ensure_eq("the length of the command's delivery-tag", tag.len(), 16)?;
    let annotations = delivery.message().message_annotations.as_ref();
    let count = annotations.and_then(|annotations| {
        annotations
            .0
            .get(&OwnedKey::from("iothub-deliverycount"))
            .cloned()
    });
    ensure_eq("iothub-deliverycount", count, Some(Value::Ubyte(0)))?;
    bounded("accepting the command", receiver.accept(&delivery)).await??;
    let state = hub
        .journal()
        .find(
            "the outcome of the command at the hub",
            |observed| match observed {
                Observed::Disposed { tag: of, state, .. } if *of == tag => Some(state.clone()),
                _ => None,
            },
        )
        .await?;
    ensure(matches!(state, Some(DeliveryState::Accepted(_))), || {
        format!("the outcome is {state:?}")
    })?;
    story.step("The device received the command, unchanged, with the hub's 16-byte lock token, and accepted it; the hub saw that.");

    let report = device::receive(&mut feedback).await?;
    let text = String::from_utf8(message::body_of(report.message()))?;
    for expected in [COMMAND_ID, r#""statusCode":"Success""#, DEVICE] {
        ensure(text.contains(expected), || {
            format!("feedback without {expected}: {text}")
        })?;
    }
    bounded("accepting the feedback", feedback.accept(&report)).await??;
    story.step("The service received the feedback for its command: Success.");

    bounded("closing receive-link", receiver.close()).await??;
    device::end(session).await?;
    device::close(device).await?;
    bounded("closing the feedback link", feedback.close()).await??;
    device::end(service_session).await?;
    device::close(service).await?;
    hub.ensure_no_faults()?;
    story.step("Both closed everything in order, and the hub has nothing to complain of.");

    let secrets = [&token, &service_token].into_iter().flat_map(|token| {
        [
            token.clone(),
            sas::signature_of(token).unwrap_or_default().to_owned(),
        ]
    });
    let secrets = secrets.chain([device_key().base64(), policy_key().base64()]);
    Ok(Secrets(
        secrets
            .chain([TELEMETRY.to_owned(), COMMAND.to_owned()])
            .collect(),
    ))
}

async fn authorise(device: &mut Opened, hub: &IotHub, token: &str) -> Result<(), Failure> {
    let name = format!("/devices/{DEVICE}/events");
    let message_id = MessageId::String("3f2a54a6-41a6-4f3e-a8de-0d2a5d2f5d5c".to_owned());
    let request = PutToken {
        token,
        name: &name,
        token_type: TOKEN_TYPE,
        message_id: message_id.clone(),
    };
    let Granted { status, description } = device::put_token(device, request).await?;
    ensure(matches!(status, 200 | 202), || {
        format!("the token got {status} {description}")
    })?;
    let (request, status_at_hub) = hub
        .journal()
        .find("the token at the hub", |observed| match observed {
            Observed::Token { request, status, .. } => Some((request.clone(), *status)),
            _ => None,
        })
        .await?;
    ensure_eq("the status that the hub gave", status_at_hub, status)?;
    // The router says what the token itself is for; the article's program names what no hub has.
    let resource = format!("{HUB}/devices/{DEVICE}");
    ensure([&name, &resource].contains(&&request.name), || {
        format!("the token's name at the hub: {}", request.name)
    })?;
    ensure_eq(
        "the token's type at the hub",
        request.token_type.as_str(),
        TOKEN_TYPE,
    )
}

async fn send_telemetry(session: &mut device::Begun, hub: &IotHub) -> Result<(), Failure> {
    let address = format!("/devices/{DEVICE}/messages/events");
    let mut sender = device::sender(session, "send-link", &address).await?;
    let mut sent = message::data(TELEMETRY);
    let mut map = ApplicationProperties::builder();
    map = map.insert("time", SimpleValue::Long(1_478_000_000_000));
    sent.application_properties = Some(map.insert("sensor", "temperature").build());
    let delivery = bounded(
        "sending telemetry",
        sender.send_batchable_ref(&sent.clone().into()),
    )
    .await??;
    let tag = delivery.delivery_tag().to_vec();
    let outcome = bounded("the outcome of the telemetry", delivery).await??;
    ensure_eq("the telemetry is accepted", outcome.is_accepted(), true)?;
    let received = hub
        .journal()
        .find("the telemetry at the hub", |observed| match observed {
            Observed::Telemetry(delivery) => Some(delivery.clone()),
            _ => None,
        })
        .await?;
    ensure_eq(
        "the telemetry at the hub",
        &received.payload,
        &message::encode(&sent),
    )?;
    ensure_eq("its delivery-tag at the hub", received.tag, tag)?;
    ensure_eq("its message-format at the hub", received.message_format, Some(0))?;
    ensure_eq("its address at the hub", received.address, address)?;
    ensure_eq("whether it was sent settled", received.settled, false)?;
    bounded("closing send-link", sender.close()).await??;
    hub.journal()
        .find("the detach of send-link at the hub", |observed| match observed {
            Observed::Detached {
                link,
                closed: true,
                error: None,
                ..
            } if *link == received.link => Some(()),
            _ => None,
        })
        .await
}

/// Sends a device a command that wants feedback, as a service.
pub(crate) async fn send_command(
    session: &mut device::Begun,
    to: &str,
    body: &str,
    id: &str,
) -> Result<(), Failure> {
    let mut sender = device::sender(session, "commands", "/messages/devicebound").await?;
    let mut command = message::data(body);
    if let Some(properties) = &mut command.properties {
        properties.to = Some(format!("/devices/{to}/messages/devicebound"));
        properties.message_id = Some(MessageId::String(id.to_owned()));
    }
    command.application_properties = Some(
        ApplicationProperties::builder()
            .insert("iothub-ack", "full")
            .build(),
    );
    let outcome = bounded("the outcome of the command", sender.send(command)).await??;
    ensure_eq("the hub takes the command", outcome.is_accepted(), true)?;
    bounded("closing the command link", sender.close()).await??;
    Ok(())
}
