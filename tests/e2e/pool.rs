//! More devices than one connection to IoT Hub has room for: each with a token of its own, all at once. The router is the
//! real binary, the hub a strict stand-in that refuses the token that is too much, the devices `fe2o3-amqp`.
//!
//! `LINKROUTERD_POOL_DEVICES=3000` is the full size: three thousand devices, 995 tokens on one connection.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fe2o3_amqp::types::messaging::MessageId;
use tokio::sync::{Barrier, Semaphore};
use tokio::task::JoinSet;

use crate::support::device::{self, Opened, PutToken, Reach};
use crate::support::gateway::Gateway;
use crate::support::iot_hub::{ConnectionId, Observed, Settings};
use crate::support::sas::Key;
use crate::support::{Failure, article, bounded, ensure_eq};

/// How many devices there are in a usual run.
const SIZE: usize = 300;
/// How many are in the middle of something at once: as many as this machine serves in time, for all of them are here.
const AT_ONCE: usize = 32;

fn id_of(index: usize) -> String {
    format!("board-{index}")
}

fn key_of(index: usize) -> Key {
    Key::from_text(&format!("the key of {}", id_of(index)))
}

#[tokio::test]
async fn more_devices_than_one_connection_has_room_for() -> Result<(), Failure> {
    let size = std::env::var("LINKROUTERD_POOL_DEVICES").ok();
    let size = size.and_then(|text| text.parse().ok()).unwrap_or(SIZE);
    let cap = size * 995 / 3000;
    let mut settings: Settings = (0..size).fold(article::hub_settings(), |settings, index| {
        settings.with_device(&id_of(index), key_of(index))
    });
    settings.max_tokens = cap;
    let gateway = Gateway::to_iot_hub_with(settings, |config| {
        config
            .replace(
                "role: on-demand\n",
                &format!("role: on-demand\n    maxTokens: {cap}\n    devicesPerSecond: 1000\n"),
            )
            .replace("enable: trace+", "enable: info+")
    })
    .await?;
    gateway.daemon()?;

    let (gate, all_are_here) = (Arc::new(Semaphore::new(AT_ONCE)), Arc::new(Barrier::new(size)));
    let mut devices = JoinSet::new();
    for index in 0..size {
        let (reach, gate, all_are_here) = (gateway.reach.clone(), gate.clone(), all_are_here.clone());
        devices.spawn(async move {
            let turn = gate.acquire().await?;
            let authorised = authorise(&reach, index).await;
            drop(turn);
            // Also after a failure, or the others would wait for ever.
            all_are_here.wait().await;
            let connection = authorised?;
            let _turn = gate.acquire().await?;
            report(connection, index).await
        });
    }
    while let Some(outcome) = devices.join_next().await {
        outcome??;
    }

    let journal = gateway.hub.journal();
    let tokens = journal.select(|observed| match observed {
        Observed::Token {
            connection,
            request,
            status,
        } => Some((*connection, *status, request.name.clone())),
        _ => None,
    });
    ensure_eq("tokens", tokens.len(), size)?;
    ensure_eq(
        "tokens that the hub refused",
        tokens.iter().filter(|(_, status, _)| *status != 200).count(),
        0,
    )?;
    let mut on: BTreeMap<ConnectionId, usize> = BTreeMap::new();
    for (connection, ..) in &tokens {
        *on.entry(*connection).or_default() += 1;
    }
    let mut counts: Vec<usize> = on.values().copied().collect();
    counts.sort_unstable();
    let full = size / cap;
    let mut expected = vec![cap; full];
    expected.insert(0, size - full * cap);
    ensure_eq("tokens of each connection", counts, expected)?;
    // Each device's message came on the connection that has its token.
    let authorised: BTreeSet<(ConnectionId, String)> = tokens
        .into_iter()
        .map(|(connection, _, name)| (connection, name))
        .collect();
    let telemetry = journal.select(|observed| match observed {
        Observed::Telemetry(delivery) => Some((delivery.connection, delivery.address.clone())),
        _ => None,
    });
    ensure_eq("messages", telemetry.len(), size)?;
    let strays = telemetry.iter().filter(|(connection, address)| {
        let id = address.split('/').rfind(|part| part.starts_with("board-"));
        let is_named = |name: &String| name.ends_with(&format!("devices/{}", id.unwrap_or_default()));
        !authorised
            .iter()
            .any(|(on, name)| on == connection && is_named(name))
    });
    ensure_eq("messages away from their token", strays.count(), 0)?;
    gateway.hub.ensure_no_faults()?;
    gateway.stop().await?;
    Ok(())
}

async fn authorise(reach: &Reach, index: usize) -> Result<Opened, Failure> {
    let id = id_of(index);
    let mut connection = reach.open(&id).await?;
    let token = article::device_token(&id, &key_of(index));
    let request = PutToken {
        token: &token,
        name: &format!("{}/devices/{id}", article::HUB),
        token_type: "servicebus.windows.net:sastoken",
        message_id: MessageId::Ulong(0),
    };
    let granted = device::put_token(&mut connection, request).await?;
    ensure_eq(&format!("{id}: {}", granted.description), granted.status, 200)?;
    Ok(connection)
}

async fn report(mut connection: Opened, index: usize) -> Result<(), Failure> {
    let mut session = device::begin(&mut connection).await?;
    let events = format!("/devices/{}/messages/events", id_of(index));
    let mut sender = device::sender(&mut session, "events", &events).await?;
    let outcome = bounded("the outcome of the message", sender.send("{}")).await??;
    ensure_eq("the message is accepted", outcome.is_accepted(), true)?;
    device::close(connection).await
}
