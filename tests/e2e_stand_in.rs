//! The IoT Hub stand-in by itself, no router between: it must do what the tests that rely on it expect of it.

mod support;

use fe2o3_amqp::link::SenderAttachError;
use fe2o3_amqp::types::definitions::{Fields, Handle, Role};
use fe2o3_amqp::types::messaging::annotations::OwnedKey;
use fe2o3_amqp::types::messaging::{AmqpValue, Body, MessageId, Properties};
use fe2o3_amqp::types::performatives::{Attach, Open, Performative, Transfer};
use fe2o3_amqp::types::primitives::{Array, SimpleValue, Symbol, Uuid, Value};
use fe2o3_amqp::types::sasl::{SaslCode, SaslInit, SaslMechanisms, SaslOutcome};
use fe2o3_amqp::{Connection, Receiver, Sender};
use serde_bytes::ByteBuf;
use support::article::{self, DEVICE, HUB};
use support::certificates::{Authority, Validity};
use support::device::{self, Granted, Opened, PutToken, Reach};
use support::iot_hub::settings::CbsMode;
use support::iot_hub::{IotHub, Observed, Settings};
use support::raw::{self, RawDevice};
use support::sas::{self, Key};
use support::wire::{AMQP_HEADER, Frame, SASL_HEADER};
use support::{Failure, bounded, ensure, ensure_eq, message};

const TOKEN_TYPE: &str = "servicebus.windows.net:sastoken";

async fn hub_with_tls(settings: Settings) -> Result<(IotHub, Reach), Failure> {
    let authority = Authority::new("Test Root", Validity::Current)?;
    let identity = authority.issue(&["*.azure-devices.net", "localhost"], Validity::Current)?;
    let hub = IotHub::start(settings, Some(authority.server_config(&identity)?)).await?;
    let reach = Reach::Tls(hub.address(), authority.client_config()?);
    Ok((hub, reach))
}

async fn put(connection: &mut Opened, token: &str, message_id: MessageId) -> Result<Granted, Failure> {
    device::put_token(
        connection,
        PutToken {
            token,
            name: "a name",
            token_type: TOKEN_TYPE,
            message_id,
        },
    )
    .await
}

#[tokio::test]
async fn article_scenario_works_without_a_router() -> Result<(), Failure> {
    let (hub, reach) = hub_with_tls(article::hub_settings()).await?;
    let device = reach.open("netduino").await?;
    let service = reach.open("service").await?;
    article::run(device, service, &hub, &mut ()).await?;
    let sni = hub.journal().select(|observed| match observed {
        Observed::Connected { sni, .. } => sni.clone(),
        _ => None,
    });
    ensure_eq("the names asked for", sni, vec!["localhost".to_owned(); 2])
}

/// The values recorded from the real hub, one by one.
#[tokio::test]
async fn handshake_session_and_links_have_the_recorded_values() -> Result<(), Failure> {
    let hub = IotHub::start(article::hub_settings(), None).await?;
    let mut peer = RawDevice::connect(hub.address()).await?;
    peer.writer.raw(SASL_HEADER.to_vec());
    ensure_eq(
        "the SASL header",
        bounded("a header", peer.reader.header()).await??,
        SASL_HEADER,
    )?;
    let Frame::Sasl(body) = bounded("the mechanisms", peer.reader.next()).await?? else {
        return Err(Failure::new("no SASL frame"));
    };
    let SaslMechanisms {
        sasl_server_mechanisms: Array(mechanisms),
    } = serde_amqp::from_slice(&body)?;
    let mechanisms: Vec<&str> = mechanisms.iter().map(|Symbol(name)| name.as_str()).collect();
    ensure_eq(
        "the mechanisms",
        mechanisms,
        vec!["EXTERNAL", "MSSBCBS", "ANONYMOUS", "PLAIN"],
    )?;
    let mechanism = Symbol::from("MSSBCBS");
    peer.writer.send_sasl(&SaslInit {
        mechanism,
        initial_response: None,
        hostname: None,
    })?;
    let Frame::Sasl(body) = bounded("the outcome", peer.reader.next()).await?? else {
        return Err(Failure::new("no SASL frame"));
    };
    let SaslOutcome {
        code,
        additional_data,
    } = serde_amqp::from_slice(&body)?;
    ensure_eq(
        "the SASL outcome",
        (code, additional_data),
        (SaslCode::Ok, Some(ByteBuf::from(*b"Welcome!"))),
    )?;

    peer.writer.raw(AMQP_HEADER.to_vec());
    let hostname = Some(HUB.to_owned());
    peer.send(Performative::Open(Open {
        hostname,
        ..raw::open("device", 65_536)
    }))?;
    peer.send(Performative::Begin(raw::begin(0)))?;
    peer.expect_header().await?;
    let open = peer
        .expect("open", |frame| {
            if let Performative::Open(open) = frame {
                Some(open)
            } else {
                None
            }
        })
        .await?;
    let (prefix, id) = open.container_id.split_at("DeviceGateway_".len());
    ensure(prefix == "DeviceGateway_" && id.len() == 32, || {
        open.container_id.clone()
    })?;
    let limits = (open.max_frame_size.0, open.channel_max.0, open.idle_time_out);
    ensure_eq("the limits", limits, (65_536, 8_191, Some(240_000)))?;
    let begun = |frame| {
        if let Performative::Begin(begin) = frame {
            Some(begin)
        } else {
            None
        }
    };
    let begin = peer.expect("begin", begun).await?;
    let numbers = (
        begin.remote_channel,
        begin.next_outgoing_id,
        begin.incoming_window,
        begin.outgoing_window,
    );
    ensure_eq("the session", numbers, (Some(0), 1, 5_000, u32::MAX))?;
    ensure_eq("handle-max", begin.handle_max, Handle(262_143))?;

    let mut asked = raw::attach("sender", 3, Role::Sender, "$cbs");
    let mut properties = Fields::default();
    properties.insert(
        Symbol::from("com.microsoft:client-version"),
        Value::String("test".to_owned()),
    );
    asked.properties = Some(properties);
    peer.send(Performative::Attach(asked.clone()))?;
    let attached = |frame| {
        if let Performative::Attach(attach) = frame {
            Some(attach)
        } else {
            None
        }
    };
    let answer = peer.expect("attach", attached).await?;
    let expected = Attach {
        role: Role::Receiver,
        initial_delivery_count: None,
        max_message_size: Some(1_048_576),
        ..asked.clone()
    };
    ensure_eq("the answer to a sender", answer, expected)?;
    let flowed = |frame| {
        if let Performative::Flow(flow) = frame {
            Some(flow)
        } else {
            None
        }
    };
    let flow = peer.expect("flow", flowed).await?;
    let numbers = (
        flow.next_incoming_id,
        flow.incoming_window,
        flow.next_outgoing_id,
        flow.link_credit,
    );
    ensure_eq("the first flow", numbers, (Some(0), 5_000, 1, Some(100)))?;
    let mut asked = raw::attach("receiver", 4, Role::Receiver, "$cbs");
    asked.max_message_size = Some(65_536);
    peer.send(Performative::Attach(asked.clone()))?;
    let answer = peer.expect("attach", attached).await?;
    let expected = Attach {
        role: Role::Sender,
        initial_delivery_count: Some(0),
        ..asked
    };
    ensure_eq("the answer to a receiver", answer, expected)?;
    peer.die();
    hub.ensure_no_faults()
}

#[tokio::test]
async fn breach_of_the_protocol_is_a_fault() -> Result<(), Failure> {
    for (name, ids, credit_overrun) in [
        ("a gap in delivery-ids", [0, 2], false),
        ("no credit", [0, 1], true),
    ] {
        let mut settings = article::hub_settings();
        settings.cbs_credit = if credit_overrun { 1 } else { 100 };
        let hub = IotHub::start(settings, None).await?;
        let peer = RawDevice::connect(hub.address()).await?;
        peer.writer.raw(SASL_HEADER.to_vec());
        let mechanism = Symbol::from("ANONYMOUS");
        peer.writer.send_sasl(&SaslInit {
            mechanism,
            initial_response: None,
            hostname: None,
        })?;
        peer.writer.raw(AMQP_HEADER.to_vec());
        let hostname = Some(HUB.to_owned());
        peer.send(Performative::Open(Open {
            hostname,
            ..raw::open("device", 65_536)
        }))?;
        peer.send(Performative::Begin(raw::begin(0)))?;
        peer.send(Performative::Attach(raw::attach(
            "sender",
            0,
            Role::Sender,
            "$cbs",
        )))?;
        for id in ids {
            // The first of two transfers in the second delivery: refused before it is complete.
            let transfer = Transfer {
                more: true,
                aborted: id == 0,
                ..raw::transfer(0, id, &[0])
            };
            peer.transfer(transfer, b"x")?;
        }
        let fault = hub
            .journal()
            .find(name, |observed| match observed {
                Observed::Fault { what, .. } => Some(what.clone()),
                _ => None,
            })
            .await?;
        ensure(
            fault.contains(if credit_overrun {
                "without credit"
            } else {
                "delivery-id 2"
            }),
            || fault,
        )?;
        ensure(hub.ensure_no_faults().is_err(), || {
            "the fault was forgotten".to_owned()
        })?;
    }
    Ok(())
}

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

#[tokio::test]
async fn open_for_another_hub_is_closed() -> Result<(), Failure> {
    let hub = IotHub::start(article::hub_settings(), None).await?;
    let stream = tokio::net::TcpStream::connect(hub.address()).await?;
    let opening = Connection::builder()
        .container_id("lost")
        .hostname("other.azure-devices.net")
        .sasl_profile(fe2o3_amqp::sasl_profile::SaslProfile::Anonymous)
        .open_with_stream(stream);
    let mut connection = bounded("opening", opening).await??;
    let closed = bounded("the close", connection.on_close()).await?;
    let text = format!("{closed:?}");
    ensure(text.contains("iot-hub-not-found-error"), || text)
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
