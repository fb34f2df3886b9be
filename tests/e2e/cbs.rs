//! `$cbs` through the real binary: what each kind of client sends, what devices do to each other and to the router, and a
//! hub that may treat a second pair of `$cbs` links in any of four ways: it never sees one.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::article::{self, DEVICE, Secrets};
use crate::support::device::{self, Granted, Opened, PutToken};
use crate::support::gateway::Gateway;
use crate::support::iot_hub::settings::CbsMode;
use crate::support::iot_hub::{IotHub, Observed, Order, Settings};
use crate::support::raw::{self, RawDevice};
use crate::support::sas::Key;
use crate::support::wire::{self, AMQP_HEADER};
use crate::support::{Failure, bounded, daemon, ensure, ensure_eq, message};
use bytes::Bytes;
use fe2o3_amqp::types::definitions::{Handle, Role};
use fe2o3_amqp::types::messaging::{
    AmqpValue, ApplicationProperties, Body, Message, MessageId, Properties, TargetArchetype,
};
use fe2o3_amqp::types::performatives::{Attach, Begin, Detach, Performative};
use fe2o3_amqp::types::primitives::{Binary, Uuid, Value};
use fe2o3_amqp::{Receiver, Sender};
use tokio::task::JoinSet;

const TOKEN_TYPE: &str = "servicebus.windows.net:sastoken";

fn board(index: usize) -> String {
    format!("board-{index}")
}

fn key_of(id: &str) -> Key {
    Key::from_text(&format!("the key of {id}"))
}

fn token_of(id: &str) -> String {
    article::device_token(id, &key_of(id))
}

fn events_of(id: &str) -> String {
    format!("/devices/{id}/messages/events")
}

/// The article's hub, and so many boards.
fn hub_of(boards: usize) -> Settings {
    (0..boards)
        .map(board)
        .fold(article::hub_settings(), |settings, id| {
            let key = key_of(&id);
            settings.with_device(&id, key)
        })
}

async fn put(connection: &mut Opened, token: &str, message_id: MessageId) -> Result<Granted, Failure> {
    let request = PutToken {
        token,
        name: "a name",
        token_type: TOKEN_TYPE,
        message_id,
    };
    device::put_token(connection, request).await
}

/// A put-token without a reply-to, as uAMQP writes it.
fn request(operation: &str, name: &str, token: &str, id: MessageId) -> Message<Body<Value>> {
    let properties = Properties {
        message_id: Some(id),
        ..Properties::default()
    };
    let mut request = message::with_properties(Body::Value(AmqpValue(Value::from(token))), properties);
    let map = ApplicationProperties::builder().insert("operation", operation);
    let map = map.insert("type", TOKEN_TYPE).insert("name", name);
    request.application_properties = Some(map.build());
    request
}

/// Statuses that the hub has given, in order.
fn statuses(hub: &IotHub) -> Vec<i32> {
    hub.journal().select(|observed| match observed {
        Observed::Token { status, .. } => Some(*status),
        _ => None,
    })
}

fn target_of(attach: &Attach) -> Option<&str> {
    match attach.target.as_deref() {
        Some(TargetArchetype::Target(target)) => target.address.as_deref(),
        _ => None,
    }
}

/// Targets of senders that came to the hub.
fn targets(hub: &IotHub) -> Vec<String> {
    hub.journal().select(|observed| match observed {
        Observed::Attached { attach, .. } if attach.role == Role::Sender => {
            target_of(attach).map(str::to_owned)
        }
        _ => None,
    })
}

async fn finish(gateway: Gateway<IotHub>) -> Result<Vec<String>, Failure> {
    gateway.hub.ensure_no_faults()?;
    Ok(gateway.stop().await?.1)
}

#[tokio::test]
async fn the_article_works_however_the_hub_treats_a_second_pair() -> Result<(), Failure> {
    for mode in CbsMode::ALL {
        let gateway = Gateway::to_iot_hub_in(mode, article::hub_settings(), str::to_owned).await?;
        let device = gateway.reach.open(DEVICE).await?;
        let service = gateway.reach.open("service").await?;
        let Secrets(secrets) = article::run(device, service, &gateway.hub, &mut ())
            .await
            .map_err(|failure| Failure::new(format!("{mode:?}: {failure}")))?;
        daemon::ensure_none_of(&secrets, &finish(gateway).await?)?;
    }
    Ok(())
}

/// Twelve devices ask at once, all with one message-id, of a type that each client library has for itself; every third has
/// a wrong key, so that an answer that went astray would be seen.
#[tokio::test]
async fn equal_ids_of_any_type_at_the_same_instant_are_answered_each_for_its_device() -> Result<(), Failure> {
    const BOARDS: usize = 12;
    for (mode, id) in CbsMode::ALL.into_iter().zip([
        MessageId::Ulong(0),
        MessageId::Uuid(Uuid::from([7; 16])),
        MessageId::String("3f2a54a6-41a6-4f3e-a8de-0d2a5d2f5d5c".to_owned()),
        MessageId::Binary(Binary::from(vec![0, 0xff, 0x80])),
    ]) {
        let gateway = Gateway::to_iot_hub_in(mode, hub_of(BOARDS), str::to_owned).await?;
        let mut connections = Vec::new();
        for _ in 0..BOARDS {
            // As if a program had been copied, with all that tells it from another.
            connections.push(gateway.reach.open("AMQPNetLite-1").await?);
        }
        let mut asking = JoinSet::new();
        for (index, mut connection) in connections.into_iter().enumerate() {
            let id = id.clone();
            asking.spawn(async move {
                let name = board(index);
                let is_wrong = index % 3 == 2;
                let key = if is_wrong {
                    Key::from_text("another")
                } else {
                    key_of(&name)
                };
                let granted = put(&mut connection, &article::device_token(&name, &key), id).await?;
                let expected = if is_wrong { 401 } else { 200 };
                ensure_eq(
                    &format!("{name} ({})", granted.description),
                    granted.status,
                    expected,
                )?;
                device::close(connection).await
            });
        }
        while let Some(outcome) = asking.join_next().await {
            outcome?.map_err(|failure| Failure::new(format!("{mode:?}: {failure}")))?;
        }
        let counts = statuses(&gateway.hub).into_iter().fold(
            BTreeMap::new(),
            |mut counts: BTreeMap<i32, usize>, status| {
                *counts.entry(status).or_default() += 1;
                counts
            },
        );
        ensure_eq("what the hub said", counts, BTreeMap::from([(200, 8), (401, 4)]))?;
        finish(gateway).await?;
    }
    Ok(())
}

/// The article's program on fifty boards: its `$cbs` session is over before the telemetry begins, and no name of it differs
/// from board to board.
#[tokio::test]
async fn fifty_netduinos_at_once() -> Result<(), Failure> {
    const BOARDS: usize = 50;
    let gateway = Gateway::to_iot_hub_in(CbsMode::LastWins, hub_of(BOARDS), str::to_owned).await?;
    let mut boards = JoinSet::new();
    for index in 0..BOARDS {
        let reach = gateway.reach.clone();
        boards.spawn(async move {
            let id = board(index);
            let mut connection = reach.open("AMQPNetLite-1").await?;
            let message_id = MessageId::String("one GUID for all".to_owned());
            let granted = put(&mut connection, &token_of(&id), message_id).await?;
            ensure_eq(&granted.description, granted.status, 200)?;
            let mut session = device::begin(&mut connection).await?;
            let mut sender = device::sender(&mut session, "send-link", &events_of(&id)).await?;
            let bound = format!("/devices/{id}/messages/deviceBound");
            let receiver = device::receiver(&mut session, "receive-link", &bound).await?;
            let outcome = bounded("telemetry", sender.send(message::data(id.clone()))).await??;
            ensure(outcome.is_accepted(), || format!("{id}: {outcome:?}"))?;
            Ok::<_, Failure>((connection, session, sender, receiver))
        });
    }
    let mut kept = Vec::new();
    while let Some(board) = boards.join_next().await {
        kept.push(board??);
    }
    let mut seen = gateway.hub.journal().select(|observed| match observed {
        Observed::Telemetry(delivery) => Some((delivery.address.clone(), delivery.payload.clone())),
        _ => None,
    });
    let mut expected: Vec<(String, Bytes)> = (0..BOARDS)
        .map(board)
        .map(|id| (events_of(&id), message::encode(&message::data(id))))
        .collect();
    seen.sort();
    expected.sort();
    ensure_eq("telemetry at the hub", seen, expected)?;
    let connections = gateway
        .hub
        .journal()
        .select(|observed| matches!(observed, Observed::Connected { .. }).then_some(()));
    ensure_eq("connections to the hub", connections.len(), 1)?;
    drop(kept);
    finish(gateway).await?;
    Ok(())
}

/// Opens a connection and attaches a `$cbs` sender; returns when there is credit.
async fn raw_client(gateway: &Gateway<IotHub>) -> Result<RawDevice, Failure> {
    let mut device = RawDevice::connect(gateway.daemon()?.address()).await?;
    let mut packet = AMQP_HEADER.to_vec();
    for performative in [
        Performative::Open(raw::open("uamqp", 65_536)),
        Performative::Begin(Begin {
            handle_max: Handle(255),
            ..raw::begin(0)
        }),
        Performative::Attach(raw::attach("$cbs-sender", 0, Role::Sender, "$cbs")),
    ] {
        packet.extend(wire::frame_of(0, &performative)?);
    }
    device.writer.raw(packet);
    device.expect_header().await?;
    device
        .expect("credit", |frame| match frame {
            Performative::Flow(flow) => flow.handle.zip(flow.link_credit),
            _ => None,
        })
        .await?;
    Ok(device)
}

/// The status and the correlation-id of the next message.
async fn raw_answer(device: &mut RawDevice) -> Result<Granted, Failure> {
    let payload = device
        .expect_with_payload("an answer", |frame, payload| {
            matches!(frame, Performative::Transfer(_)).then_some(payload)
        })
        .await?;
    device::granted(&message::decode(&payload)?, MessageId::Ulong(0))
}

/// uAMQP sends its token as soon as it has credit, before its receiver is answered or even attached.
#[tokio::test]
async fn a_token_sent_before_the_receiver_is_there_is_answered_on_it() -> Result<(), Failure> {
    let gateway = Gateway::to_iot_hub(hub_of(1)).await?;
    let mut device = raw_client(&gateway).await?;
    let token = message::encode(&request(
        "put-token",
        "a name",
        &token_of(&board(0)),
        MessageId::Ulong(0),
    ));
    device.transfer(raw::transfer(0, 0, b"\0"), &token)?;
    device
        .expect("the outcome of the request", |frame| {
            matches!(frame, Performative::Disposition(_)).then_some(())
        })
        .await?;
    device.send(Performative::Attach(raw::attach(
        "$cbs-receiver",
        1,
        Role::Receiver,
        "$cbs",
    )))?;
    device.send(Performative::Flow(raw::credit(1, 100, 0, 1)))?;
    let granted = raw_answer(&mut device).await?;
    ensure_eq(&granted.description, granted.status, 200)?;
    device.die();
    finish(gateway).await?;
    Ok(())
}

#[tokio::test]
async fn a_device_that_leaves_before_its_answer_costs_nobody_else_theirs() -> Result<(), Failure> {
    let gateway = Gateway::to_iot_hub(hub_of(11)).await?;
    for index in 0..10 {
        let device = raw_client(&gateway).await?;
        let id = MessageId::Ulong(0);
        let token = message::encode(&request(
            "put-token",
            "a name",
            &token_of(&board(index)),
            id.clone(),
        ));
        device.transfer(raw::transfer(0, 0, b"\0"), &token)?;
        // In order, so that the request is read before the end of the connection.
        device.writer.finish().await;
        let mut connection = gateway.reach.open("stays").await?;
        let granted = put(&mut connection, &token_of(&board(10)), id).await?;
        ensure_eq(&granted.description, granted.status, 200)?;
        device::close(connection).await?;
    }
    finish(gateway).await?;
    Ok(())
}

#[tokio::test]
async fn a_malformed_request_is_answered_400_and_the_hub_hears_nothing_of_it() -> Result<(), Failure> {
    let gateway = Gateway::to_iot_hub(hub_of(1)).await?;
    let mut connection = gateway.reach.open("garbled").await?;
    for token in [
        "",
        "a token",
        "SharedAccessSignature sr=a",
        "SharedAccessSignature sr=a&sig=b&se=soon",
    ] {
        let granted = put(&mut connection, token, MessageId::Ulong(7)).await?;
        ensure_eq(&format!("{token}: {}", granted.description), granted.status, 400)?;
    }
    ensure_eq("requests at the hub", statuses(&gateway.hub), Vec::<i32>::new())?;
    let granted = put(&mut connection, &token_of(&board(0)), MessageId::Ulong(7)).await?;
    ensure_eq(&granted.description, granted.status, 200)?;
    ensure_eq("requests at the hub", statuses(&gateway.hub), vec![200])?;
    device::close(connection).await?;
    finish(gateway).await?;
    Ok(())
}

/// Whatever a hub makes of it: its answer is what the device gets.
#[tokio::test]
async fn a_delete_token_reaches_the_hub_and_its_answer_the_device() -> Result<(), Failure> {
    let gateway = Gateway::to_iot_hub(hub_of(1)).await?;
    let mut connection = gateway.reach.open("leaver").await?;
    let mut session = device::begin(&mut connection).await?;
    let mut sender: Sender = device::sender(&mut session, "$cbs-sender", "$cbs").await?;
    let mut receiver: Receiver = device::receiver(&mut session, "$cbs-receiver", "$cbs").await?;
    let audience = format!("{}/devices/{}", article::HUB, board(0));
    let own = token_of(&board(0));
    let mut statuses = Vec::new();
    // Without a token of its own there is nothing that is the device's to delete.
    for (number, operation, token) in [
        (0, "delete-token", ""),
        (1, "put-token", &own),
        (2, "delete-token", ""),
    ] {
        let id = MessageId::Ulong(number);
        let message = request(operation, &audience, token, id.clone());
        bounded("a request", sender.send(message)).await??;
        let answer = device::receive(&mut receiver).await?;
        bounded("accepting the answer", receiver.accept(&answer)).await??;
        statuses.push(device::granted(answer.message(), id)?.status);
    }
    let asked = gateway.hub.journal().select(|observed| match observed {
        Observed::Token { request, status, .. } => Some((request.name.clone(), *status)),
        _ => None,
    });
    let (refused, put, deleted) = (statuses[0], statuses[1], statuses[2]);
    ensure_eq("the refusal", refused, 404)?;
    let expected = vec![(audience.clone(), put), (audience, deleted)];
    ensure_eq("requests at the hub", asked, expected)?;
    device::close(connection).await?;
    finish(gateway).await?;
    Ok(())
}

/// A hub that takes requests and says nothing any more. The router says so after half a minute, in an answer.
#[tokio::test]
async fn a_hub_that_never_answers_is_answered_for() -> Result<(), Failure> {
    let gateway = Gateway::to_iot_hub(hub_of(1)).await?;
    let mut connection = gateway.reach.open("first").await?;
    put(&mut connection, &token_of(&board(0)), MessageId::Ulong(0)).await?;
    gateway.hub.order(&Order::FallSilent);
    let mut second = gateway.reach.open("second").await?;
    let mut session = device::begin(&mut second).await?;
    let mut sender = device::sender(&mut session, "$cbs-sender", "$cbs").await?;
    let mut receiver = device::receiver(&mut session, "$cbs-receiver", "$cbs").await?;
    let id = MessageId::Ulong(0);
    let request = request("put-token", "a name", &token_of(&board(0)), id.clone());
    // Longer than anything else here may take.
    let answering = async {
        let outcome = sender.send(request).await?;
        ensure(outcome.is_accepted(), || format!("{outcome:?}"))?;
        Ok::<_, Failure>(receiver.recv::<Body<Value>>().await?)
    };
    let answer = tokio::time::timeout(Duration::from_secs(45), Box::pin(answering)).await??;
    let granted = device::granted(answer.message(), id)?;
    ensure_eq(&granted.description, granted.status, 504)?;
    drop((connection, second, session));
    gateway.stop().await?;
    Ok(())
}

/// Attaches a sender as a raw frame; the answer's target, and the condition of the detach that follows a null one.
async fn attempt(
    device: &mut RawDevice,
    handle: u32,
    address: &str,
) -> Result<Result<String, String>, Failure> {
    let name = format!("link {handle}");
    device.send(Performative::Attach(raw::attach(
        &name,
        handle,
        Role::Sender,
        address,
    )))?;
    let answer = device
        .expect(address, |frame| match frame {
            Performative::Attach(attach) if attach.name == name => Some(attach),
            _ => None,
        })
        .await?;
    match target_of(&answer) {
        Some(target) => Ok(Ok(target.to_owned())),
        None => {
            let error = device
                .expect("the reason", |frame| match frame {
                    Performative::Detach(Detach { error, .. }) => error,
                    _ => None,
                })
                .await?;
            Ok(Err(format!("{:?}", error.condition)))
        }
    }
}

/// A device with its token in place, frame by frame from there on.
async fn raw_board(gateway: &Gateway<IotHub>, index: usize) -> Result<RawDevice, Failure> {
    let mut device = raw_client(gateway).await?;
    device.send(Performative::Attach(raw::attach(
        "$cbs-receiver",
        1,
        Role::Receiver,
        "$cbs",
    )))?;
    device.send(Performative::Flow(raw::credit(1, 100, 0, 0)))?;
    let token = message::encode(&request(
        "put-token",
        "a name",
        &token_of(&board(index)),
        MessageId::Ulong(0),
    ));
    device.transfer(raw::transfer(0, 0, b"\0"), &token)?;
    let granted = raw_answer(&mut device).await?;
    ensure_eq(&granted.description, granted.status, 200)?;
    Ok(device)
}

/// Clients that were pointed at a gateway name it in their addresses: the hub sees its own name, the device its own text.
#[tokio::test]
async fn a_gateways_host_in_an_address_is_the_hubs_at_the_hub_and_comes_back_to_the_device()
-> Result<(), Failure> {
    let gateway = Gateway::to_iot_hub(hub_of(1)).await?;
    let mut device = raw_board(&gateway, 0).await?;
    let path = "devices/board-0/messages/events";
    for (handle, (written, at_hub)) in (2..).zip([
        (
            format!("amqps://gateway:5671/{path}"),
            format!("amqps://localhost/{path}"),
        ),
        (
            format!("amqps://192.168.7.1/{path}"),
            format!("amqps://localhost/{path}"),
        ),
        (
            format!("amqps://localhost/{path}"),
            format!("amqps://localhost/{path}"),
        ),
        (format!("/{path}"), format!("/{path}")),
        (path.to_owned(), path.to_owned()),
    ]) {
        let answered = attempt(&mut device, handle, &written).await?;
        ensure_eq("the address in the answer", answered, Ok(written))?;
        ensure_eq(
            "the address at the hub",
            targets(&gateway.hub).pop(),
            Some(at_hub),
        )?;
    }
    device.die();
    finish(gateway).await?;
    Ok(())
}

/// Another's address in any spelling, and those of services. Both devices have tokens on the one connection to the hub, which
/// would let either use them all.
#[tokio::test]
async fn what_is_not_a_devices_own_is_refused_here_in_every_spelling() -> Result<(), Failure> {
    let gateway = Gateway::to_iot_hub(hub_of(2)).await?;
    let victim = raw_board(&gateway, 0).await?;
    let mut impostor = raw_board(&gateway, 1).await?;
    let before = targets(&gateway.hub);
    for (handle, address) in (2..).zip([
        "/devices/board-0/messages/events",
        "devices/board-0/messages/events",
        "amqps://gateway:5671/devices/board-0/messages/events",
        "amqps://localhost/devices/board-0/messages/events",
        "/devices/board%2D0/messages/events",
        "/devices/board-0/modules/m/messages/events",
        "/devices/board-10/messages/events",
        "/devices/Board-1/messages/events",
        "/messages/devicebound",
    ]) {
        let refused = attempt(&mut impostor, handle, address).await?;
        let is_refused = refused
            .as_ref()
            .is_err_and(|condition| condition.contains("UnauthorizedAccess"));
        ensure(is_refused, || format!("{address}: {refused:?}"))?;
    }
    let own = attempt(&mut impostor, 20, "/devices/board-1/messages/events").await?;
    ensure(own.is_ok(), || format!("its own: {own:?}"))?;
    let mut after = targets(&gateway.hub);
    ensure_eq(
        "the last that the hub heard",
        after.pop().as_deref(),
        Some("/devices/board-1/messages/events"),
    )?;
    ensure_eq("and nothing before it", after, before)?;
    victim.die();
    impostor.die();
    finish(gateway).await?;
    Ok(())
}

/// `cbs: tunnel` is for one device at a time: its links reach the hub as they are.
#[tokio::test]
async fn a_connector_may_tunnel_cbs_links() -> Result<(), Failure> {
    let edit = |config: &str| config.replace("role: on-demand\n", "role: on-demand\n    cbs: tunnel\n");
    let gateway = Gateway::to_iot_hub_with(hub_of(1), edit).await?;
    let mut connection = gateway.reach.open("lonely").await?;
    let granted = put(&mut connection, &token_of(&board(0)), MessageId::Ulong(0)).await?;
    ensure_eq(&granted.description, granted.status, 200)?;
    let links = gateway.hub.journal().select(|observed| match observed {
        Observed::Token { request, .. } => Some((request.link.clone(), request.name.clone())),
        _ => None,
    });
    ensure_eq(
        "the request at the hub",
        links,
        vec![("cbs-sender@lonely".to_owned(), "a name".to_owned())],
    )?;
    gateway.hub.ensure_no_faults()?;
    // A second pair on the connection, which only a tunnel makes: the hub of these tests finds it.
    put(&mut connection, &token_of(&board(0)), MessageId::Ulong(1)).await?;
    let found = gateway.hub.ensure_no_faults();
    let is_found = matches!(&found, Err(failure) if failure.to_string().contains("2 $cbs links"));
    ensure(is_found, || format!("{found:?}"))?;
    device::close(connection).await?;
    gateway.stop().await?;
    Ok(())
}

/// The same through the relay: the hub sees the router's own link, and the resource that the token itself names.
#[tokio::test]
async fn the_name_of_a_request_is_the_tokens_own_resource() -> Result<(), Failure> {
    let gateway = Gateway::to_iot_hub(hub_of(1)).await?;
    let mut connection = gateway.reach.open("netduino").await?;
    let request = PutToken {
        token: &token_of(&board(0)),
        name: "127.0.0.1/devices/board-0",
        token_type: TOKEN_TYPE,
        message_id: MessageId::Ulong(0),
    };
    let granted = device::put_token(&mut connection, request).await?;
    ensure_eq(&granted.description, granted.status, 200)?;
    let names = gateway.hub.journal().select(|observed| match observed {
        Observed::Token { request, .. } => Some(request.name.clone()),
        _ => None,
    });
    ensure_eq(
        "the name",
        names,
        vec![format!("{}/devices/board-0", article::HUB)],
    )?;
    device::close(connection).await?;
    finish(gateway).await?;
    Ok(())
}
