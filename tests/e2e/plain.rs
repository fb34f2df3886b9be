//! Devices that log in to IoT Hub by SASL PLAIN, their SAS token for a password: the real binary, a strict stand-in of the
//! hub, `fe2o3-amqp` as device, and the micro client's way of saying everything at once.

use std::net::SocketAddr;

use fe2o3_amqp::Connection;
use fe2o3_amqp::types::performatives::Performative;
use fe2o3_amqp::types::primitives::Symbol;
use fe2o3_amqp::types::sasl::{SaslCode, SaslInit, SaslOutcome};
use serde_bytes::ByteBuf;
use tokio::net::TcpStream;

use crate::support::article::{self, DEVICE, device_key, device_token};
use crate::support::daemon::ensure_none_of;
use crate::support::device::{self, Opened, plain};
use crate::support::gateway::Gateway;
use crate::support::iot_hub::{IotHub, Observed};
use crate::support::raw::{self, RawDevice};
use crate::support::sas::{self, Key};
use crate::support::wire::{AMQP_HEADER, Frame, SASL_HEADER};
use crate::support::{Failure, bounded, ensure, ensure_eq, message};

const OTHER: &str = "second";

/// A gateway whose devices must log in, and which has no passwords.
async fn gateway() -> Result<Gateway<IotHub>, Failure> {
    let settings = article::hub_settings().with_device(OTHER, other_key());
    Gateway::to_iot_hub_with(settings, |config| {
        config.replace(
            "authenticatePeer: no",
            "authenticatePeer: yes\n    saslMechanisms: PLAIN",
        )
    })
    .await
}

fn other_key() -> Key {
    Key::from_text("the key of the second device")
}

fn user(device: &str) -> String {
    format!("{device}@sas.article-hub")
}

async fn log_in(router: SocketAddr, container: &str, user: &str, token: &str) -> Result<Opened, Failure> {
    let stream = TcpStream::connect(router).await?;
    let opening = Connection::builder()
        .container_id(container)
        .scheme("amqp")
        .hostname("127.0.0.1")
        .sasl_profile(plain(user, token))
        .open_with_stream(stream);
    Ok(bounded("a log-in", Box::pin(opening)).await??)
}

fn secrets_of(tokens: &[&str]) -> Result<Vec<String>, Failure> {
    let mut secrets = Vec::new();
    for token in tokens {
        secrets.push((*token).to_owned());
        secrets.push(sas::signature_of(token)?.to_owned());
    }
    Ok(secrets)
}

#[tokio::test]
async fn devices_log_in_with_their_tokens_over_one_connection() -> Result<(), Failure> {
    let gateway = gateway().await?;
    let router = gateway.daemon()?.address();
    let devices = [(DEVICE, device_key()), (OTHER, other_key())];
    let tokens: Vec<String> = devices.iter().map(|(id, key)| device_token(id, key)).collect();
    let mut opened = Vec::new();
    for ((id, _), token) in devices.iter().zip(&tokens) {
        let mut connection = log_in(router, id, &user(id), token).await?;
        let mut session = device::begin(&mut connection).await?;
        let address = format!("/devices/{id}/messages/events");
        let mut sender = device::sender(&mut session, "telemetry", &address).await?;
        let outcome = bounded("telemetry", sender.send(message::data(format!("from {id}")))).await??;
        ensure_eq("the telemetry is accepted", outcome.is_accepted(), true)?;
        let expected = format!("from {id}").into_bytes();
        let what = format!("the telemetry of {id}");
        let pick = |observed: &Observed| match observed {
            Observed::Telemetry(delivery) => {
                let message = message::decode(&delivery.payload).ok()?;
                (message::body_of(&message) == expected).then(|| delivery.address.clone())
            }
            _ => None,
        };
        let came_to = gateway.hub.journal().find(&what, pick).await?;
        ensure(came_to.ends_with(&address), || {
            format!("{what} came to {came_to}")
        })?;
        opened.push((connection, session));
    }
    let Some((_, session)) = opened.last_mut() else {
        return Err(Failure::new("nobody is there"));
    };
    let foreign = format!("/devices/{DEVICE}/messages/events");
    let refused = device::sender(session, "impersonation", &foreign).await;
    device::ensure_says("another's address", refused, &["UnauthorizedAccess"])?;

    let connections = gateway.hub.journal().select(|observed| match observed {
        Observed::Opened { connection, .. } => Some(*connection),
        _ => None,
    });
    ensure_eq("connections to the hub", connections.len(), 1)?;
    for (connection, session) in opened {
        device::end(session).await?;
        device::close(connection).await?;
    }
    let (hub, log) = gateway.stop().await?;
    hub.ensure_no_faults()?;
    let secrets = secrets_of(&tokens.iter().map(String::as_str).collect::<Vec<_>>())?;
    ensure_none_of(&secrets, &log)
}

#[tokio::test]
async fn a_token_that_the_hub_refuses_is_refused_and_the_log_says_why() -> Result<(), Failure> {
    let gateway = gateway().await?;
    let router = gateway.daemon()?.address();
    let wrong_key = device_token(DEVICE, &other_key());
    let unknown = device_token("stranger", &other_key());
    let expired = sas::token(
        &format!("{}/devices/{DEVICE}", article::HUB),
        &device_key(),
        None,
        sas::unix_now() - 60,
    );
    let good = device_token(DEVICE, &device_key());
    for (id, token, reason) in [
        (DEVICE, &wrong_key, "invalid signature"),
        ("stranger", &unknown, "not registered"),
        (DEVICE, &expired, "expired"),
        (OTHER, &good, "somebody else's"),
    ] {
        let outcome = log_in(router, "wrong", &user(id), token).await;
        ensure(outcome.is_err(), || format!("{id} is in, though: {reason}"))?;
        gateway.daemon()?.logged(reason).await?;
    }
    // What was wrong before does not stand in the way of what is right.
    device::close(log_in(router, DEVICE, &user(DEVICE), &good).await?).await?;
    let (hub, log) = gateway.stop().await?;
    hub.ensure_no_faults()?;
    ensure_none_of(&secrets_of(&[&wrong_key, &unknown, &expired, &good])?, &log)
}

#[tokio::test]
async fn a_micro_client_that_waits_for_nothing_logs_in_with_its_token() -> Result<(), Failure> {
    let gateway = gateway().await?;
    let token = device_token(DEVICE, &device_key());
    let mut device = RawDevice::connect(gateway.daemon()?.address()).await?;
    let response = format!("\0{}\0{token}", user(DEVICE)).into_bytes();
    device.writer.raw(SASL_HEADER.to_vec());
    device.writer.send_sasl(&SaslInit {
        mechanism: Symbol::from("PLAIN"),
        initial_response: Some(ByteBuf::from(response)),
        hostname: None,
    })?;
    device.writer.raw(AMQP_HEADER.to_vec());
    device.send(Performative::Open(raw::open("micro", 1024)))?;
    device.send(Performative::Begin(raw::begin(0)))?;

    let header = bounded("the SASL header", device.reader.header()).await??;
    ensure_eq("the header", header, SASL_HEADER)?;
    let Frame::Sasl(_) = bounded("the mechanisms", device.reader.next()).await?? else {
        return Err(Failure::new("no offer of mechanisms"));
    };
    let Frame::Sasl(body) = bounded("the outcome", device.reader.next()).await?? else {
        return Err(Failure::new("no outcome"));
    };
    let outcome: SaslOutcome = serde_amqp::from_slice(&body)?;
    ensure(matches!(outcome.code, SaslCode::Ok), || {
        format!("{:?}", outcome.code)
    })?;
    device.expect_header().await?;
    for what in ["open", "begin"] {
        device
            .expect(what, |frame| match (what, frame) {
                ("open", Performative::Open(_)) | ("begin", Performative::Begin(_)) => Some(()),
                _ => None,
            })
            .await?;
    }
    device.die();
    let (hub, log) = gateway.stop().await?;
    hub.ensure_no_faults()?;
    ensure_none_of(&secrets_of(&[&token])?, &log)
}
