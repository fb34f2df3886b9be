//! Client libraries that talk to IoT Hub, as they are on the wire: what each says for its token, its telemetry and its
//! commands, frame by frame. Two devices of a kind run the same program at the same time, so that whatever a library
//! does not tell apart, the router must.

use crate::support::article::{self, HUB};
use crate::support::client::{self, Board, Client, SAS, own_path};
use crate::support::device::{self, PutToken};
use crate::support::gateway::Gateway;
use crate::support::iot_hub::{IotHub, Observed};
use crate::support::sas::Key;
use crate::support::{Failure, ensure, ensure_eq, message};
use bytes::Bytes;
use fe2o3_amqp::types::definitions::{ReceiverSettleMode, Role};
use fe2o3_amqp::types::messaging::annotations::OwnedKey;
use fe2o3_amqp::types::messaging::{
    Accepted, Body, DeliveryState, Message, MessageId, Rejected, Released, TargetArchetype,
};
use fe2o3_amqp::types::performatives::Attach;
use fe2o3_amqp::types::primitives::Value;

const DEVICES: [&str; 2] = ["one", "two"];

fn key() -> Key {
    Key::from_text("the key of both")
}

async fn gateway() -> Result<Gateway<IotHub>, Failure> {
    let settings = DEVICES.into_iter().fold(article::hub_settings(), |settings, id| {
        settings.with_device(id, key())
    });
    let gateway = Gateway::to_iot_hub(settings).await?;
    gateway.daemon()?;
    Ok(gateway)
}

fn token(id: &str) -> String {
    article::device_token(id, &key())
}

fn wrong_token(id: &str) -> String {
    article::device_token(id, &Key::from_text("another key"))
}

/// Two devices that cannot be told apart but by their tokens, both there from the beginning.
async fn both<'a>(gateway: &Gateway<IotHub>, client: &'a Client) -> Result<[Board<'a>; 2], Failure> {
    let address = gateway.daemon()?.address();
    Ok([
        Board::open(client, DEVICES[0], address).await?,
        Board::open(client, DEVICES[1], address).await?,
    ])
}

async fn finish(gateway: Gateway<IotHub>, boards: [Board<'_>; 2]) -> Result<(), Failure> {
    for board in boards {
        board.close().await?;
    }
    let hub = &gateway.hub;
    hub.ensure_no_faults()?;
    let pairs = hub.journal().select(|observed| match observed {
        Observed::Attached { attach, .. } if is_cbs(attach) => Some(()),
        _ => None,
    });
    ensure_eq("$cbs links at the hub", pairs.len(), 2)?;
    gateway.stop().await?;
    Ok(())
}

fn is_cbs(attach: &Attach) -> bool {
    match attach.role {
        Role::Sender => matches!(attach.target.as_deref(),
            Some(TargetArchetype::Target(target)) if target.address.as_deref() == Some("$cbs")),
        Role::Receiver => attach
            .source
            .as_ref()
            .is_some_and(|source| source.address.as_deref() == Some("$cbs")),
    }
}

/// Each hears what the hub says of its own token, to its own id; and again at a renewal.
async fn answers(client: &Client) -> Result<(), Failure> {
    let gateway = gateway().await?;
    let [mut one, mut two] = both(&gateway, client).await?;
    let (right, wrong) = (token(one.id), wrong_token(two.id));
    let (first, second) = tokio::join!(one.put_token(&right), two.put_token(&wrong));
    ensure_eq("the status of a good token", first?.status, 200)?;
    ensure_eq("the status of a wrong token", second?.status, 401)?;
    let (right, renewed) = (token(two.id), token(one.id));
    let (first, second) = tokio::join!(one.put_token(&renewed), two.put_token(&right));
    ensure_eq("the status of the renewal", first?.status, 200)?;
    ensure_eq("the status after the mistake", second?.status, 200)?;
    let kinds = gateway.hub.journal().select(|observed| match observed {
        Observed::Token { request, status, .. } => Some((request.name.clone(), *status)),
        _ => None,
    });
    for (name, status) in &kinds {
        let resource = name
            .strip_prefix(HUB)
            .is_some_and(|path| path.starts_with("/devices/"));
        ensure(resource, || format!("the hub saw a token for {name} ({status})"))?;
    }
    ensure_eq("tokens at the hub", kinds.len(), 4)?;
    finish(gateway, [one, two]).await
}

/// Each sends telemetry to the address that it writes, which comes back as it was written.
async fn telemetry(client: &Client) -> Result<(), Failure> {
    let gateway = gateway().await?;
    let mut boards = both(&gateway, client).await?;
    for board in &mut boards {
        ensure_eq("the status", board.put_token(&token(board.id)).await?.status, 200)?;
        board.move_on().await?;
        let address = (client.events)(board.id);
        let link = board.attach_telemetry().await?;
        let Some(TargetArchetype::Target(target)) = link.target.as_deref() else {
            return Err(Failure::new("telemetry is refused"));
        };
        ensure_eq(
            "the address in the answer",
            target.address.as_ref(),
            Some(&address),
        )?;
    }
    let payloads: Vec<Bytes> = DEVICES
        .iter()
        .map(|id| message::encode(&message::data(format!("from {id} {}", "x".repeat(600)))))
        .collect();
    for (board, payload) in boards.iter_mut().zip(&payloads) {
        let state = board.send_telemetry(payload).await?;
        ensure(matches!(state, Some(DeliveryState::Accepted(_))), || {
            format!("the outcome is {state:?}")
        })?;
    }
    let seen = gateway
        .hub
        .journal()
        .find_all("telemetry", 2, |observed| match observed {
            Observed::Telemetry(delivery) => Some(delivery.clone()),
            _ => None,
        })
        .await?;
    for ((id, payload), delivery) in DEVICES.iter().zip(&payloads).zip(&seen) {
        ensure_eq("the payload", &delivery.payload, payload)?;
        ensure_eq("the format", delivery.message_format, Some(client.message_format))?;
        let path = own_path(id, "events");
        let is_own = delivery.address.ends_with(path.trim_start_matches('/'));
        let names_the_gateway = delivery.address.contains(client::GATEWAY);
        ensure(is_own && !names_the_gateway, || {
            format!("{id} sent to {}", delivery.address)
        })?;
    }
    ensure_eq("messages", seen.len(), 2)?;
    finish(gateway, boards).await
}

/// How often a command has come before, as the hub says.
fn count_of(command: &Message<Body<Value>>) -> Option<u8> {
    let annotations = command.message_annotations.as_ref()?;
    match annotations.0.get(&OwnedKey::from("iothub-deliverycount")) {
        Some(Value::Ubyte(count)) => Some(*count),
        _ => None,
    }
}

/// Each outcome of a command reaches the hub, and means there what it should.
async fn commands(client: &Client) -> Result<(), Failure> {
    let gateway = gateway().await?;
    let [mut one, mut two] = both(&gateway, client).await?;
    for board in [&mut one, &mut two] {
        ensure_eq("the status", board.put_token(&token(board.id)).await?.status, 200)?;
        board.move_on().await?;
        let address = (client.commands)(board.id);
        let link = board.attach_commands().await?;
        let source = link.source.as_ref().and_then(|source| source.address.as_ref());
        ensure_eq("the address in the answer", source, Some(&address))?;
        ensure_eq(
            "the hub settles last",
            &link.rcv_settle_mode,
            &ReceiverSettleMode::Second,
        )?;
    }

    let mut service = gateway.reach.open("service").await?;
    let request = PutToken {
        token: &article::service_token(),
        name: HUB,
        token_type: SAS,
        message_id: MessageId::Ulong(0),
    };
    ensure_eq(
        "the service's token",
        device::put_token(&mut service, request).await?.status,
        200,
    )?;
    let mut session = device::begin(&mut service).await?;
    let outcomes: [(&str, DeliveryState, u8); 4] = [
        ("complete", Accepted {}.into(), 0),
        ("reject", Rejected { error: None }.into(), 0),
        ("abandon", Released {}.into(), 0),
        ("abandon", Accepted {}.into(), 1),
    ];
    for (index, (what, state, count)) in outcomes.into_iter().enumerate() {
        // More than the smallest of them takes in one frame.
        let body = format!("{what} {}", "x".repeat(1_500));
        // What was given up comes again by itself.
        if count == 0 {
            article::send_command(&mut session, one.id, &body, &format!("{what}-{index}")).await?;
        }
        let (transfer, payload) = one.command().await?;
        let received = message::decode(&payload)?;
        ensure_eq("the body", message::body_of(&received), body.as_bytes())?;
        ensure_eq("the delivery count", count_of(&received), Some(count))?;
        let tag: Vec<u8> = transfer.delivery_tag.as_deref().cloned().unwrap_or_default();
        ensure_eq("the length of the lock token", tag.len(), 16)?;
        one.dispose(&transfer, state.clone())?;
        let seen = gateway
            .hub
            .journal()
            .find(what, |observed| match observed {
                Observed::Disposed { tag: of, state, .. } if *of == tag => Some(state.clone()),
                _ => None,
            })
            .await?;
        ensure_eq("the outcome at the hub", seen, Some(state))?;
    }
    ensure_eq("commands given up for good", gateway.hub.dead_letters(), 1)?;
    ensure_eq("commands left", gateway.hub.pending_commands(one.id), 0)?;
    device::end(session).await?;
    device::close(service).await?;
    finish(gateway, [one, two]).await
}

#[tokio::test]
async fn lite_gets_the_answers_to_its_own_tokens() -> Result<(), Failure> {
    answers(&client::lite()).await
}

#[tokio::test]
async fn lite_sends_telemetry() -> Result<(), Failure> {
    telemetry(&client::lite()).await
}

#[tokio::test]
async fn lite_completes_rejects_and_abandons_commands() -> Result<(), Failure> {
    commands(&client::lite()).await
}

#[tokio::test]
async fn lite_micro_gets_the_answers_to_its_own_tokens() -> Result<(), Failure> {
    answers(&client::lite_micro()).await
}

#[tokio::test]
async fn lite_micro_sends_telemetry() -> Result<(), Failure> {
    telemetry(&client::lite_micro()).await
}

#[tokio::test]
async fn lite_micro_completes_rejects_and_abandons_commands() -> Result<(), Failure> {
    commands(&client::lite_micro()).await
}

#[tokio::test]
async fn uamqp_gets_the_answers_to_its_own_tokens() -> Result<(), Failure> {
    answers(&client::uamqp()).await
}

#[tokio::test]
async fn uamqp_sends_telemetry() -> Result<(), Failure> {
    telemetry(&client::uamqp()).await
}

#[tokio::test]
async fn uamqp_completes_rejects_and_abandons_commands() -> Result<(), Failure> {
    commands(&client::uamqp()).await
}

#[tokio::test]
async fn node_gets_the_answers_to_its_own_tokens() -> Result<(), Failure> {
    answers(&client::node()).await
}

#[tokio::test]
async fn node_sends_telemetry() -> Result<(), Failure> {
    telemetry(&client::node()).await
}

#[tokio::test]
async fn node_completes_rejects_and_abandons_commands() -> Result<(), Failure> {
    commands(&client::node()).await
}

#[tokio::test]
async fn dotnet_gets_the_answers_to_its_own_tokens() -> Result<(), Failure> {
    answers(&client::dotnet()).await
}

#[tokio::test]
async fn dotnet_sends_telemetry() -> Result<(), Failure> {
    telemetry(&client::dotnet()).await
}

#[tokio::test]
async fn dotnet_completes_rejects_and_abandons_commands() -> Result<(), Failure> {
    commands(&client::dotnet()).await
}

#[tokio::test]
async fn java_gets_the_answers_to_its_own_tokens() -> Result<(), Failure> {
    answers(&client::java()).await
}

#[tokio::test]
async fn java_sends_telemetry() -> Result<(), Failure> {
    telemetry(&client::java()).await
}

#[tokio::test]
async fn java_completes_rejects_and_abandons_commands() -> Result<(), Failure> {
    commands(&client::java()).await
}

#[tokio::test]
async fn proton_gets_the_answers_to_its_own_tokens() -> Result<(), Failure> {
    answers(&client::proton()).await
}

#[tokio::test]
async fn proton_sends_telemetry() -> Result<(), Failure> {
    telemetry(&client::proton()).await
}

#[tokio::test]
async fn proton_completes_rejects_and_abandons_commands() -> Result<(), Failure> {
    commands(&client::proton()).await
}
