//! Ten devices at once behind the router's one connection to IoT Hub, and one of them that tries to be another.
//!
//! They authorise themselves in the ways of four client libraries, which agree in nothing: sessions, names of links,
//! message-ids and reply-to. Every step is checked at both ends.

use std::collections::BTreeMap;
use std::sync::Arc;

use fe2o3_amqp::link::{ReceiverAttachError, SenderAttachError};
use fe2o3_amqp::types::definitions::{AmqpError, Error, ErrorCondition, Role};
use fe2o3_amqp::types::messaging::{
    AmqpValue, ApplicationProperties, Body, DeliveryState, MessageId, Properties, Source, Target,
    TargetArchetype,
};
use fe2o3_amqp::types::performatives::Attach;
use fe2o3_amqp::types::primitives::{Uuid, Value};
use fe2o3_amqp::{Receiver, Sender};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::article::{self, Secrets, Story};
use super::device::{self, Begun, Granted, Opened, PutToken, Reach};
use super::iot_hub::{IotHub, Observed, Settings};
use super::sas::{self, Key};
use super::{Failure, bounded, ensure, ensure_eq, message};

/// How many devices there are.
pub(crate) const SIZE: usize = 10;
/// Who gets a command, and whose name another one wants to use.
const VICTIM: usize = 6;
/// Who wants to.
const IMPOSTOR: usize = 3;
/// Who puts a token of a wrong key first.
const FORGETFUL: usize = 9;

const TOKEN_TYPE: &str = "servicebus.windows.net:sastoken";
const COMMAND: &str = r#"{"command":"valve","value":"open"}"#;
const COMMAND_ID: &str = "command-for-one-of-ten";

/// Adds the devices to a hub's registry.
pub(crate) fn register(settings: Settings) -> Settings {
    (0..SIZE).fold(settings, |settings, index| {
        settings.with_device(&id_of(index), key_of(index))
    })
}

/// The device that another one tries to be.
pub(crate) fn victim() -> String {
    id_of(VICTIM)
}

fn id_of(index: usize) -> String {
    format!("board-{}", index + 1)
}

fn key_of(index: usize) -> Key {
    Key::from_text(&format!("the key of {}", id_of(index)))
}

fn token_of(index: usize) -> String {
    article::device_token(&id_of(index), &key_of(index))
}

fn telemetry_of(id: &str, round: u32) -> String {
    format!(r#"{{"deviceid":"{id}","round":{round}}}"#)
}

fn events_of(id: &str) -> String {
    format!("/devices/{id}/messages/events")
}

fn commands_of(id: &str) -> String {
    format!("/devices/{id}/messages/deviceBound")
}

/// How a client library authorises itself.
#[derive(Clone, Copy)]
enum Style {
    /// The article's program: in a session of its own, ended before the telemetry; a GUID as text.
    Netduino,
    /// The C SDK: in the session of its telemetry, ids 0, 1, 2… of type ulong like every other device, no reply-to.
    Ulong,
    /// The node SDK: a GUID as text, `to`, and a reply-to that names nothing.
    Text,
    /// The Java SDK: an AMQP uuid, and a reply-to that names nothing.
    Uuid,
}

impl Style {
    fn of(index: usize) -> Self {
        [Self::Netduino, Self::Ulong, Self::Text, Self::Uuid][index % 4]
    }

    fn message_id(self, index: usize, attempt: u64) -> MessageId {
        let number = u128::from(attempt) << 64 | index as u128;
        match self {
            Self::Ulong => MessageId::Ulong(attempt),
            Self::Netduino | Self::Text => {
                MessageId::String(format!("3f2a54a6-41a6-4f3e-a8de-{number:012x}"))
            }
            Self::Uuid => MessageId::Uuid(Uuid::from(number.to_be_bytes())),
        }
    }

    fn link_names(self) -> (&'static str, &'static str) {
        match self {
            Self::Netduino => ("cbs-sender", "cbs-reply-to"),
            Self::Ulong => ("$cbs-sender", "$cbs-receiver"),
            Self::Text => ("rheaSender_cbs", "rheaReceiver_cbs"),
            Self::Uuid => ("cbs-sender-java", "cbs-receiver-java"),
        }
    }
}

/// A device that has authorised itself.
struct Board {
    index: usize,
    id: String,
    connection: Opened,
    session: Begun,
    /// Its `$cbs` links, which most libraries keep.
    cbs: Option<(Sender, Receiver)>,
}

/// A board at work.
struct Working {
    board: Board,
    telemetry: Sender,
    commands: Receiver,
}

/// Runs the scenario on a hub that knows the devices (see [`register`]) and the article's policy.
pub(crate) async fn run(reach: &Reach, hub: &IotHub, story: &mut impl Story) -> Result<Secrets, Failure> {
    let begun = Seen::by(hub);
    let boards = authorise_all(reach).await?;
    let seen = Seen::by(hub);
    ensure_eq(
        "tokens at the hub",
        seen.statuses(begun.tokens),
        BTreeMap::from([(200, SIZE), (401, 1)]),
    )?;
    story.step(&format!(
        "{SIZE} devices connected at the same time, and each put its own SAS token, in the ways of four client libraries. \
         {} had a wrong key first: it alone was told 401.",
        id_of(FORGETFUL)
    ));

    let mut working = Vec::new();
    for board in boards {
        working.push(start(board).await?);
    }
    for board in &mut working {
        send_telemetry(board, 1).await?;
    }
    ensure_telemetry(hub, 1).await?;
    story.step("Each device sent telemetry over links of the same names; the hub has each message from the right device.");

    let token = article::service_token();
    command(reach, hub, &token, &mut working).await?;
    story.step(&format!(
        "A service sent {} a command; that device received it and accepted it, and no other saw it.",
        victim()
    ));

    let refusal = impersonate(&mut working[IMPOSTOR], hub).await?;
    story.step(&format!(
        "{} tried to send and to receive in the name of {}, whose token is good on the same connection to the hub. The router \
         refused both with amqp:unauthorized-access, and the hub heard nothing of it:\n    \"{refusal}\"",
        id_of(IMPOSTOR),
        victim()
    ));

    for board in &mut working {
        send_telemetry(board, 2).await?;
    }
    ensure_telemetry(hub, 2).await?;
    story.step("All ten went on sending in their own names, the refused one too.");

    for board in working {
        finish(board).await?;
    }
    hub.ensure_no_faults()?;
    let all = Seen::by(hub);
    ensure_eq("connections that the hub accepted", all.connections, 1)?;
    ensure_eq("$cbs links at the hub", all.cbs_links, (1, 1))?;
    story.step(&format!(
        "All closed in order. In all this the hub saw one TLS connection, and on it one pair of $cbs links, which carried {} tokens.",
        all.tokens
    ));
    Ok(secrets(token))
}

/// What the hub has seen so far of what there must be one of.
struct Seen {
    connections: usize,
    /// Senders, receivers.
    cbs_links: (usize, usize),
    tokens: usize,
    all_statuses: Vec<i32>,
}

impl Seen {
    fn by(hub: &IotHub) -> Self {
        let journal = hub.journal();
        let connections =
            journal.select(|observed| matches!(observed, Observed::Connected { .. }).then_some(()));
        let cbs_links = journal.select(|observed| match observed {
            Observed::Attached { attach, .. } if address_of(attach).as_deref() == Some("$cbs") => {
                Some(attach.role == Role::Sender)
            }
            _ => None,
        });
        let senders = cbs_links.iter().filter(|is_sender| **is_sender).count();
        let all_statuses = journal.select(|observed| match observed {
            Observed::Token { status, .. } => Some(*status),
            _ => None,
        });
        Self {
            connections: connections.len(),
            cbs_links: (senders, cbs_links.len() - senders),
            tokens: all_statuses.len(),
            all_statuses,
        }
    }

    /// How often the hub gave each status, after the first `earlier` tokens.
    fn statuses(&self, earlier: usize) -> BTreeMap<i32, usize> {
        let mut counts = BTreeMap::new();
        for status in self.all_statuses.iter().skip(earlier) {
            *counts.entry(*status).or_default() += 1;
        }
        counts
    }
}

fn address_of(attach: &Attach) -> Option<String> {
    match attach.role {
        Role::Receiver => attach.source.as_ref().and_then(|source| source.address.clone()),
        Role::Sender => match attach.target.as_deref() {
            Some(TargetArchetype::Target(target)) => target.address.clone(),
            _ => None,
        },
    }
}

/// All devices connect, and only when the last one has, put their tokens.
async fn authorise_all(reach: &Reach) -> Result<Vec<Board>, Failure> {
    let barrier = Arc::new(Barrier::new(SIZE));
    let mut devices = JoinSet::new();
    for index in 0..SIZE {
        let (reach, barrier) = (reach.clone(), barrier.clone());
        devices.spawn(async move {
            let opened = reach.open(&id_of(index)).await;
            // Also after a failure, or the others would wait for ever.
            barrier.wait().await;
            authorise(index, opened?).await
        });
    }
    let mut boards = Vec::new();
    while let Some(board) = devices.join_next().await {
        boards.push(board??);
    }
    boards.sort_by_key(|board: &Board| board.index);
    Ok(boards)
}

async fn authorise(index: usize, mut connection: Opened) -> Result<Board, Failure> {
    let id = id_of(index);
    let style = Style::of(index);
    if let Style::Netduino = style {
        let name = format!("/devices/{id}/events");
        let token = token_of(index);
        let request = PutToken {
            token: &token,
            name: &name,
            token_type: "azure-devices.net:sastoken",
            message_id: style.message_id(index, 0),
        };
        let Granted { status, description } = device::put_token(&mut connection, request).await?;
        ensure_eq(&format!("the token of {id} ({description})"), status, 200)?;
        let session = device::begin(&mut connection).await?;
        return Ok(Board {
            index,
            id,
            connection,
            session,
            cbs: None,
        });
    }
    let mut session = device::begin(&mut connection).await?;
    let (sender, receiver) = style.link_names();
    let attaching = Sender::builder()
        .name(sender)
        .source(Source::builder().address("$cbs").build())
        .target("$cbs")
        .attach(&mut session);
    let mut sender = bounded("the attach of a $cbs sender", attaching).await??;
    let attaching = Receiver::builder()
        .name(receiver)
        .source("$cbs")
        .target(Target::builder().address("$cbs").build())
        .attach(&mut session);
    let mut receiver = bounded("the attach of a $cbs receiver", attaching).await??;
    let attempts = if index == FORGETFUL {
        let wrong = article::device_token(&id, &Key::from_text("some other key"));
        vec![(wrong, 401), (token_of(index), 200)]
    } else {
        vec![(token_of(index), 200)]
    };
    for (attempt, (token, expected)) in (0..).zip(attempts) {
        let message_id = style.message_id(index, attempt);
        let request = put_token(&id, token, style, message_id.clone());
        let outcome = bounded("the outcome of a put-token", sender.send(request)).await??;
        ensure_eq("a put-token is accepted", outcome.is_accepted(), true)?;
        let answer = device::receive(&mut receiver).await?;
        bounded("accepting the answer", receiver.accept(&answer)).await??;
        let Granted { status, description } = device::granted(answer.message(), message_id)?;
        ensure_eq(&format!("the token of {id} ({description})"), status, expected)?;
    }
    Ok(Board {
        index,
        id,
        connection,
        session,
        cbs: Some((sender, receiver)),
    })
}

fn put_token(
    id: &str,
    token: String,
    style: Style,
    message_id: MessageId,
) -> fe2o3_amqp::types::messaging::Message<Body<Value>> {
    let properties = Properties {
        message_id: Some(message_id),
        to: matches!(style, Style::Text).then(|| "$cbs".to_owned()),
        reply_to: matches!(style, Style::Text | Style::Uuid).then(|| "cbs".to_owned()),
        ..Properties::default()
    };
    let mut request = message::with_properties(Body::Value(AmqpValue(Value::from(token))), properties);
    let map = ApplicationProperties::builder().insert("operation", "put-token");
    let map = map.insert("type", TOKEN_TYPE);
    let map = map.insert("name", format!("{}/devices/{id}", article::HUB));
    request.application_properties = Some(map.build());
    request
}

async fn start(mut board: Board) -> Result<Working, Failure> {
    let telemetry = device::sender(&mut board.session, "send-link", &events_of(&board.id)).await?;
    let commands = device::receiver(&mut board.session, "receive-link", &commands_of(&board.id)).await?;
    Ok(Working {
        board,
        telemetry,
        commands,
    })
}

async fn send_telemetry(working: &mut Working, round: u32) -> Result<(), Failure> {
    let id = &working.board.id;
    let what = format!("the telemetry of {id}");
    let sending = working.telemetry.send(message::data(telemetry_of(id, round)));
    ensure_eq(&what, bounded(&what, sending).await??.is_accepted(), true)
}

/// The hub has exactly one message of this round from each device, in the device's own name.
async fn ensure_telemetry(hub: &IotHub, round: u32) -> Result<(), Failure> {
    let ids = (0..SIZE).map(id_of);
    let mut expected: Vec<_> = ids
        .map(|id| {
            let encoded = message::encode(&message::data(telemetry_of(&id, round)));
            (events_of(&id), encoded)
        })
        .collect();
    let this_round = format!(r#""round":{round}}}"#);
    let mut found = hub
        .journal()
        .find_all("the telemetry of all devices", SIZE, |observed| match observed {
            Observed::Telemetry(delivery) if delivery.payload.ends_with(this_round.as_bytes()) => {
                Some((delivery.address.clone(), delivery.payload.clone()))
            }
            _ => None,
        })
        .await?;
    expected.sort();
    found.sort();
    ensure_eq("the telemetry of all devices at the hub", found, expected)
}

/// A service sends the victim a command, and only the victim gets it.
async fn command(reach: &Reach, hub: &IotHub, token: &str, working: &mut [Working]) -> Result<(), Failure> {
    let mut service = reach.open("service-of-ten").await?;
    let request = PutToken {
        token,
        name: article::HUB,
        token_type: TOKEN_TYPE,
        message_id: MessageId::Ulong(0),
    };
    let Granted { status, description } = device::put_token(&mut service, request).await?;
    ensure_eq(&format!("the service's token ({description})"), status, 200)?;
    let mut session = device::begin(&mut service).await?;
    article::send_command(&mut session, &victim(), COMMAND, COMMAND_ID).await?;
    let Some(Working { commands, .. }) = working.get_mut(VICTIM) else {
        return Err(Failure::new("no such device"));
    };
    let delivery = device::receive(commands).await?;
    ensure_eq(
        "the command's body",
        message::body_of(delivery.message()),
        COMMAND.as_bytes(),
    )?;
    let tag = delivery.delivery_tag().to_vec();
    bounded("accepting the command", commands.accept(&delivery)).await??;
    let is_it = |observed: &Observed| match observed {
        Observed::Disposed { tag: of, state, .. } if *of == tag => Some(state.clone()),
        _ => None,
    };
    let state = hub.journal().find("the outcome of the command", is_it).await?;
    ensure(matches!(state, Some(DeliveryState::Accepted(_))), || {
        format!("the outcome is {state:?}")
    })?;
    ensure_eq("outcomes of the command", hub.journal().select(is_it).len(), 1)?;
    ensure_eq("commands left", hub.pending_commands(&victim()), 0)?;
    device::end(session).await?;
    device::close(service).await
}

/// One device attaches what belongs to another, both ways; gives what it was told.
async fn impersonate(working: &mut Working, hub: &IotHub) -> Result<String, Failure> {
    let victim = victim();
    let mut session = device::begin(&mut working.board.connection).await?;
    let sending = Sender::attach(&mut session, "send-link-2", events_of(&victim));
    let refused = match bounded("the refusal of a sender", sending).await? {
        Err(SenderAttachError::RemoteClosedWithError(error)) => error,
        other => return Err(Failure::new(format!("a foreign sender: {other:?}"))),
    };
    let text = ensure_unauthorized("a foreign sender", &refused)?;
    device::end(session).await?;
    let mut session = device::begin(&mut working.board.connection).await?;
    let receiving = Receiver::attach(&mut session, "receive-link-2", commands_of(&victim));
    let refused = match bounded("the refusal of a receiver", receiving).await? {
        Err(ReceiverAttachError::RemoteClosedWithError(error)) => error,
        other => return Err(Failure::new(format!("a foreign receiver: {other:?}"))),
    };
    ensure_unauthorized("a foreign receiver", &refused)?;
    // This stack detaches a refused receiver twice, which costs it the session.
    drop(session);
    let attached = hub.journal().select(|observed| match observed {
        Observed::Attached { attach, .. } => {
            address_of(attach).filter(|address| address.contains(&format!("/{victim}/")))
        }
        _ => None,
    });
    let own = vec![events_of(&victim), commands_of(&victim)];
    ensure_eq("links of the other device at the hub", attached, own)?;
    Ok(text)
}

fn ensure_unauthorized(what: &str, error: &Error) -> Result<String, Failure> {
    let expected = ErrorCondition::AmqpError(AmqpError::UnauthorizedAccess);
    ensure_eq(what, &error.condition, &expected)?;
    let text = error.description.clone().unwrap_or_default();
    ensure(!text.is_empty(), || format!("{what}: refused without a reason"))?;
    Ok(text)
}

async fn finish(working: Working) -> Result<(), Failure> {
    let Working {
        board,
        telemetry,
        commands,
    } = working;
    bounded("closing send-link", telemetry.close()).await??;
    bounded("closing receive-link", commands.close()).await??;
    if let Some((sender, receiver)) = board.cbs {
        bounded("closing a $cbs sender", sender.close()).await??;
        bounded("closing a $cbs receiver", receiver.close()).await??;
    }
    device::end(board.session).await?;
    device::close(board.connection).await
}

fn secrets(service_token: String) -> Secrets {
    let tokens = (0..SIZE).map(token_of).chain([service_token]);
    let of_token = |token: String| [sas::signature_of(&token).unwrap_or_default().to_owned(), token];
    let keys = (0..SIZE).map(|index| key_of(index).base64());
    let telemetry = (0..SIZE).flat_map(|index| [1, 2].map(|round| telemetry_of(&id_of(index), round)));
    Secrets(
        tokens
            .flat_map(of_token)
            .chain(keys)
            .chain(telemetry)
            .chain([COMMAND.to_owned()])
            .collect(),
    )
}
