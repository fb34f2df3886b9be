//! IoT Hub behind the router: the article's scenario, what becomes of settlement modes and refusals, and a hub that goes
//! away in mid-stream. The router is the real binary, the hub a strict stand-in, and the devices `fe2o3-amqp`.

use crate::support::article::{self, DEVICE, Secrets};
use crate::support::device::{self, Begun, Opened, PutToken};
use crate::support::gateway::Gateway;
use crate::support::iot_hub::{Identity, IotHub, Node, Observed, Order};
use crate::support::sas::{self, Key};
use crate::support::{Failure, bounded, daemon, ensure, ensure_eq, message};
use fe2o3_amqp::link::SenderAttachError;
use fe2o3_amqp::types::definitions::{
    AmqpError, Error, ErrorCondition, LinkError, ReceiverSettleMode, SenderSettleMode,
};
use fe2o3_amqp::types::messaging::{Body, DeliveryState, MessageId};
use fe2o3_amqp::types::primitives::Value;
use fe2o3_amqp::{Receiver, Sendable, Sender};

fn events() -> String {
    format!("/devices/{DEVICE}/messages/events")
}

fn device_bound() -> String {
    format!("/devices/{DEVICE}/messages/deviceBound")
}

async fn put(connection: &mut Opened, token: &str) -> Result<(), Failure> {
    let token_type = "servicebus.windows.net:sastoken";
    let request = PutToken {
        token,
        name: "a name",
        token_type,
        message_id: MessageId::Ulong(0),
    };
    let granted = device::put_token(connection, request).await?;
    ensure_eq(&granted.description, granted.status, 200)
}

/// Opens a connection as the article's device, with its token in place.
async fn authorised_device(gateway: &Gateway<IotHub>) -> Result<Opened, Failure> {
    let mut connection = gateway.reach.open("netduino").await?;
    put(
        &mut connection,
        &article::device_token(DEVICE, &article::device_key()),
    )
    .await?;
    Ok(connection)
}

/// Sends a command to the article's device, as a service.
async fn send_command(session: &mut Begun, body: &str) -> Result<(), Failure> {
    let mut sender = device::sender(session, "commands", "/messages/devicebound").await?;
    let mut command = message::data(body);
    if let Some(properties) = &mut command.properties {
        properties.to = Some(device_bound());
    }
    ensure(
        bounded("a command", sender.send(command)).await??.is_accepted(),
        || "not accepted".to_owned(),
    )?;
    bounded("closing", sender.close()).await??;
    Ok(())
}

#[tokio::test]
async fn article_scenario_works_and_its_secrets_stay_out_of_the_trace() -> Result<(), Failure> {
    let gateway = Gateway::to_iot_hub(article::hub_settings()).await?;
    let device = gateway.reach.open("netduino").await?;
    let service = gateway.reach.open("service").await?;
    let Secrets(secrets) = article::run(device, service, &gateway.hub, &mut ()).await?;
    gateway.daemon()?.logged("PROTOCOL (trace)").await?;
    let (hub, log) = gateway.stop().await?;
    daemon::ensure_none_of(&secrets, &log)?;

    let journal = hub.journal();
    let asked = journal.select(|observed| match observed {
        Observed::Connected { sni, .. } => Some(sni.clone()),
        _ => None,
    });
    ensure_eq(
        "the TLS connections, by name asked for",
        asked,
        vec![Some("localhost".to_owned())],
    )?;
    let opened = journal.select(|observed| match observed {
        Observed::Opened { open, .. } => Some((open.hostname.clone(), open.idle_time_out)),
        _ => None,
    });
    // Half of the 120 s after which the router gives a peer up (AMQP 1.0 part 2, §2.4.5).
    ensure_eq(
        "open.hostname and idle-time-out",
        opened,
        vec![(Some("localhost".to_owned()), Some(60_000))],
    )?;
    let mechanism = journal.select(|observed| match observed {
        Observed::Authenticated { mechanism, .. } => Some(mechanism.clone()),
        _ => None,
    });
    ensure_eq("the SASL mechanism", mechanism, vec!["ANONYMOUS".to_owned()])?;
    // Stopped in order, the router closes; it does not just hang up.
    let closed = journal.select(|observed| matches!(observed, Observed::Closed { .. }).then_some(()));
    ensure_eq("closes at the hub", closed.len(), 1)?;
    hub.ensure_no_faults()
}

#[tokio::test]
async fn settlement_of_the_device_reaches_the_hub_in_every_sender_mode() -> Result<(), Failure> {
    let gateway = Gateway::to_iot_hub(article::hub_settings()).await?;
    let mut connection = authorised_device(&gateway).await?;
    let mut session = device::begin(&mut connection).await?;
    for (name, mode, asked, settled) in [
        ("settled", SenderSettleMode::Settled, None, true),
        ("unsettled", SenderSettleMode::Unsettled, None, false),
        ("mixed, settled", SenderSettleMode::Mixed, Some(true), true),
        ("mixed, unsettled", SenderSettleMode::Mixed, Some(false), false),
    ] {
        let attaching = Sender::builder()
            .name(name)
            .target(events())
            .sender_settle_mode(mode.clone())
            .attach(&mut session);
        let mut sender = bounded(name, attaching).await??;
        let sendable = Sendable::builder()
            .message(message::data(name))
            .settled(asked)
            .build();
        let outcome = bounded(name, sender.send(sendable)).await??;
        ensure(outcome.is_accepted(), || format!("{name}: {outcome:?}"))?;
        let journal = gateway.hub.journal();
        let seen = journal
            .find(name, |observed| match observed {
                Observed::Telemetry(delivery) if delivery.link.starts_with(name) => Some(delivery.clone()),
                _ => None,
            })
            .await?;
        ensure_eq(name, seen.settled, settled)?;
        let attached = journal
            .find(name, |observed| match observed {
                Observed::Attached { attach, .. } if attach.name == seen.link => {
                    Some(attach.snd_settle_mode.clone())
                }
                _ => None,
            })
            .await?;
        ensure_eq("snd-settle-mode at the hub", attached, mode)?;
        bounded("closing", sender.close()).await??;
    }
    device::close(connection).await?;
    gateway.hub.ensure_no_faults()?;
    gateway.stop().await?;
    Ok(())
}

#[tokio::test]
async fn command_in_receiver_settle_mode_second_is_settled_by_the_hub() -> Result<(), Failure> {
    let gateway = Gateway::to_iot_hub(article::hub_settings()).await?;
    let mut connection = authorised_device(&gateway).await?;
    put(&mut connection, &article::service_token()).await?;
    let mut session = device::begin(&mut connection).await?;
    send_command(&mut session, "blink").await?;
    let attaching = Receiver::builder()
        .name("receive-link")
        .source(device_bound())
        .receiver_settle_mode(ReceiverSettleMode::Second)
        .attach(&mut session);
    let mut receiver = bounded("attaching", attaching).await??;
    let delivery = bounded("the command", receiver.recv::<Body<Value>>()).await??;
    let tag = delivery.delivery_tag().to_vec();
    bounded("accepting", receiver.accept(&delivery)).await??;
    let (state, settled) = gateway
        .hub
        .journal()
        .find("the outcome at the hub", |observed| match observed {
            Observed::Disposed {
                tag: of,
                state,
                settled,
                ..
            } if *of == tag => Some((state.clone(), *settled)),
            _ => None,
        })
        .await?;
    ensure(matches!(state, Some(DeliveryState::Accepted(_))), || {
        format!("{state:?}")
    })?;
    ensure_eq("settled by the device", settled, false)?;
    bounded("closing", receiver.close()).await??;
    device::close(connection).await?;
    gateway.hub.ensure_no_faults()?;
    gateway.stop().await?;
    Ok(())
}

#[tokio::test]
async fn refusal_by_the_hub_reaches_the_device_word_for_word() -> Result<(), Failure> {
    // Without the router's own check, which would refuse this device first.
    let edit = |config: &str| config.replace("role: on-demand\n", "role: on-demand\n    checkIdentity: no\n");
    let gateway = Gateway::to_iot_hub_with(article::hub_settings(), edit).await?;
    let mut connection = gateway.reach.open("netduino").await?;
    for address in [
        events(),
        "/devices/nobody/messages/events".to_owned(),
        "/devices/netduino/other".to_owned(),
    ] {
        let mut session = device::begin(&mut connection).await?;
        let refused = bounded(
            &address,
            Sender::attach(&mut session, address.as_str(), address.as_str()),
        )
        .await?;
        let Err(SenderAttachError::RemoteClosedWithError(received)) = refused else {
            return Err(Failure::new(format!("{address}: {refused:?}")));
        };
        let sent = gateway.hub.journal().select(|observed| match observed {
            Observed::Refused { error, .. } => Some(error.clone()),
            _ => None,
        });
        ensure_eq(&address, sent.last(), Some(&received))?;
        device::end(session).await?;
    }
    device::close(connection).await?;
    gateway.hub.ensure_no_faults()?;
    gateway.stop().await?;
    Ok(())
}

#[tokio::test]
async fn hub_restarted_in_mid_stream_detaches_links_and_keeps_the_device() -> Result<(), Failure> {
    let mut gateway = Gateway::to_iot_hub(article::hub_settings()).await?;
    let mut connection = authorised_device(&gateway).await?;
    let mut session = device::begin(&mut connection).await?;
    let mut sender = device::sender(&mut session, "send-link", &events()).await?;
    let mut receiver = device::receiver(&mut session, "receive-link", &device_bound()).await?;
    for _ in 0..100 {
        ensure(
            bounded("sending", sender.send("before")).await??.is_accepted(),
            || "not accepted".to_owned(),
        )?;
    }

    gateway.hub.stop().await;
    let error = bounded("the detach of the sender", sender.on_detach()).await?;
    let text = format!("{error:?}");
    ensure(text.contains("DetachForced"), || format!("the sender: {text}"))?;
    let received = bounded("the detach of the receiver", receiver.recv::<Body<Value>>()).await?;
    let text = format!("{received:?}");
    ensure(text.contains("DetachForced"), || format!("the receiver: {text}"))?;
    ensure(!connection.is_closed(), || {
        "the device's connection was closed".to_owned()
    })?;

    gateway.hub.resume().await?;
    // The same connection of the device: a token, links, telemetry.
    put(
        &mut connection,
        &article::device_token(DEVICE, &article::device_key()),
    )
    .await?;
    let mut session = device::begin(&mut connection).await?;
    let mut sender = device::sender(&mut session, "send-link", &events()).await?;
    for _ in 0..100 {
        ensure(
            bounded("sending", sender.send("after")).await??.is_accepted(),
            || "not accepted".to_owned(),
        )?;
    }
    let telemetry = gateway.hub.journal().select(|observed| match observed {
        Observed::Telemetry(delivery) => Some(delivery.connection),
        _ => None,
    });
    ensure_eq("telemetry at the hub", telemetry.len(), 200)?;
    ensure(telemetry.first() < telemetry.last(), || {
        "no new connection was made".to_owned()
    })?;
    device::close(connection).await?;
    gateway.hub.ensure_no_faults()?;
    gateway.stop().await?;
    Ok(())
}

#[tokio::test]
async fn detach_by_the_hub_reaches_the_device_and_only_its_link() -> Result<(), Failure> {
    let gateway = Gateway::to_iot_hub(article::hub_settings()).await?;
    let mut connection = authorised_device(&gateway).await?;
    let mut session = device::begin(&mut connection).await?;
    let mut sender = device::sender(&mut session, "send-link", &events()).await?;
    let mut receiver = device::receiver(&mut session, "receive-link", &device_bound()).await?;
    let error = Error::new(
        LinkError::DetachForced,
        "Server Busy. Please retry operation".to_owned(),
        None,
    );
    gateway.hub.order(&Order::Detach {
        node: Node::DeviceBound(Identity::device(DEVICE)),
        error,
    });
    let text = format!(
        "{:?}",
        bounded("the detach", receiver.recv::<Body<Value>>()).await?
    );
    ensure(
        text.contains("DetachForced") && text.contains("Server Busy"),
        || text,
    )?;
    ensure(
        bounded("sending", sender.send("still")).await??.is_accepted(),
        || "not accepted".to_owned(),
    )?;
    device::close(connection).await?;
    gateway.hub.ensure_no_faults()?;
    gateway.stop().await?;
    Ok(())
}

#[tokio::test]
async fn close_by_the_hub_costs_links_and_not_the_device() -> Result<(), Failure> {
    let gateway = Gateway::to_iot_hub(article::hub_settings()).await?;
    gateway.daemon()?;
    let mut connection = authorised_device(&gateway).await?;
    let mut session = device::begin(&mut connection).await?;
    let mut sender = device::sender(&mut session, "send-link", &events()).await?;
    gateway.hub.close_connections("The service is being upgraded.");
    let text = format!("{:?}", bounded("the detach", sender.on_detach()).await?);
    ensure(text.contains("DetachForced"), || text)?;
    put(
        &mut connection,
        &article::device_token(DEVICE, &article::device_key()),
    )
    .await?;
    let mut session = device::begin(&mut connection).await?;
    let mut sender = device::sender(&mut session, "send-link", &events()).await?;
    ensure(
        bounded("sending", sender.send("again")).await??.is_accepted(),
        || "not accepted".to_owned(),
    )?;
    device::close(connection).await?;
    gateway.hub.ensure_no_faults()?;
    gateway.stop().await?;
    Ok(())
}

#[tokio::test]
async fn address_without_a_route_is_refused_at_once() -> Result<(), Failure> {
    let gateway = Gateway::to_iot_hub(article::hub_settings()).await?;
    gateway.daemon()?;
    let mut connection = gateway.reach.open("lost").await?;
    for address in [
        "device/netduino/messages/events",
        "Devices/netduino",
        "messages/other",
        "$management",
    ] {
        let mut session = device::begin(&mut connection).await?;
        let refused = bounded(address, Sender::attach(&mut session, address, address)).await?;
        let not_found = matches!(&refused, Err(SenderAttachError::RemoteClosedWithError(error))
            if error.condition == ErrorCondition::AmqpError(AmqpError::NotFound));
        ensure(not_found, || format!("{address}: {refused:?}"))?;
        device::end(session).await?;
        let mut session = device::begin(&mut connection).await?;
        let refused = bounded(address, Receiver::attach(&mut session, address, address)).await?;
        let text = format!("{refused:?}");
        ensure(text.contains("NotFound"), || format!("{address}: {text}"))?;
        device::end(session).await?;
    }
    device::close(connection).await?;
    let (hub, _) = gateway.stop().await?;
    let contacted = hub.journal().select(|_| Some(()));
    ensure_eq("what the hub saw of it", contacted.len(), 0)
}

#[tokio::test]
async fn password_of_the_connector_stays_out_of_the_log() -> Result<(), Failure> {
    let password = article::device_token(DEVICE, &article::device_key());
    let user = format!("{DEVICE}@sas.article-hub");
    let gateway = Gateway::to_iot_hub_with(article::hub_settings(), |config| {
        let plain =
            format!("saslMechanisms: PLAIN\n    saslUsername: {user}\n    saslPassword: pass:{password}\n");
        config.replace("sasl-mechanisms: ANONYMOUS\n", &plain)
    })
    .await?;
    gateway.daemon()?;
    let mut connection = gateway.reach.open("netduino").await?;
    let mut session = device::begin(&mut connection).await?;
    // The connector's own right: no token is put.
    let mut sender = device::sender(&mut session, "send-link", &events()).await?;
    ensure(
        bounded("sending", sender.send("with PLAIN"))
            .await??
            .is_accepted(),
        || "not accepted".to_owned(),
    )?;
    device::close(connection).await?;
    gateway.hub.ensure_no_faults()?;
    let mechanisms = gateway.hub.journal().select(|observed| match observed {
        Observed::Authenticated { mechanism, .. } => Some(mechanism.clone()),
        _ => None,
    });
    ensure_eq("the SASL mechanism", mechanisms, vec!["PLAIN".to_owned()])?;
    let secrets = [sas::signature_of(&password)?.to_owned(), password];
    let (_, log) = gateway.stop().await?;
    daemon::ensure_none_of(&secrets, &log)
}

#[tokio::test]
async fn devices_put_their_tokens_at_once_and_each_gets_its_own_answer() -> Result<(), Failure> {
    const DEVICES: usize = 30;
    let name = |number: usize| format!("device{number}");
    let mut settings = article::hub_settings();
    for number in 0..DEVICES {
        settings = settings.with_device(&name(number), Key::from_text(&name(number)));
    }
    let gateway = Gateway::to_iot_hub(settings).await?;
    let mut running = Vec::new();
    for number in 0..DEVICES {
        let reach = gateway.reach.clone();
        running.push(tokio::spawn(async move {
            let mut connection = reach.open("netduino").await?;
            // Every third device has a wrong key, and the same message-id as all others.
            let key = if number % 3 == 0 {
                Key::from_text("wrong")
            } else {
                Key::from_text(&name(number))
            };
            let token = article::device_token(&name(number), &key);
            let token_type = "servicebus.windows.net:sastoken";
            let request = PutToken {
                token: &token,
                name: "a name",
                token_type,
                message_id: MessageId::Ulong(0),
            };
            let granted = device::put_token(&mut connection, request).await?;
            ensure_eq(
                "the status",
                granted.status,
                if number % 3 == 0 { 401 } else { 200 },
            )?;
            if granted.status == 200 {
                let mut session = device::begin(&mut connection).await?;
                let address = format!("/devices/{}/messages/events", name(number));
                let mut sender = device::sender(&mut session, "send-link", &address).await?;
                let outcome = bounded("sending", sender.send(name(number))).await??;
                ensure(outcome.is_accepted(), || format!("{outcome:?}"))?;
                device::close(connection).await?;
            } else {
                device::close(connection).await?;
            }
            Ok::<_, Failure>(())
        }));
    }
    for device in running {
        device.await??;
    }
    gateway.hub.ensure_no_faults()?;
    gateway.stop().await?;
    Ok(())
}

#[tokio::test]
async fn hub_that_falls_silent_is_given_up_after_the_idle_timeout() -> Result<(), Failure> {
    let mut settings = article::hub_settings();
    settings.min_idle_time_out = 0;
    let gateway = Gateway::to_iot_hub_with(settings, |config| {
        config.replace("idleTimeoutSeconds: 120", "idleTimeoutSeconds: 2")
    })
    .await?;
    gateway.daemon()?;
    let mut connection = authorised_device(&gateway).await?;
    let mut session = device::begin(&mut connection).await?;
    let mut sender = device::sender(&mut session, "send-link", &events()).await?;
    gateway.hub.order(&Order::FallSilent);
    let text = format!("{:?}", bounded("the detach", sender.on_detach()).await?);
    ensure(text.contains("DetachForced"), || text)?;
    // What is silent now is the old connection; the next one is not.
    put(
        &mut connection,
        &article::device_token(DEVICE, &article::device_key()),
    )
    .await?;
    device::close(connection).await?;
    gateway.hub.ensure_no_faults()?;
    gateway.stop().await?;
    Ok(())
}

#[tokio::test]
async fn hub_is_kept_awake_by_heartbeats() -> Result<(), Failure> {
    let mut settings = article::hub_settings();
    settings.idle_time_out = 1_000;
    let gateway = Gateway::to_iot_hub(settings).await?;
    gateway.daemon()?;
    let mut connection = authorised_device(&gateway).await?;
    let mut session = device::begin(&mut connection).await?;
    let mut sender = device::sender(&mut session, "send-link", &events()).await?;
    gateway
        .hub
        .journal()
        .find_all("heartbeats", 5, |observed| {
            matches!(observed, Observed::Heartbeat { .. }).then_some(())
        })
        .await?;
    ensure(
        bounded("sending", sender.send("still")).await??.is_accepted(),
        || "not accepted".to_owned(),
    )?;
    device::close(connection).await?;
    gateway.hub.ensure_no_faults()?;
    let lost = gateway
        .hub
        .journal()
        .select(|observed| matches!(observed, Observed::Lost { .. }).then_some(()));
    ensure_eq("connections that the hub gave up", lost.len(), 0)?;
    gateway.stop().await?;
    Ok(())
}
