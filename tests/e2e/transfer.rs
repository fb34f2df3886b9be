//! Messages through the real binary, `fe2o3-amqp` at both ends: everything that was sent arrives once, unchanged and in
//! order, and every outcome comes back with all its fields.

use std::collections::BTreeSet;

use crate::support::broker::{Seen, modification, number_of, numbered, rejection};
use crate::support::device::{self, Received};
use crate::support::gateway::Gateway;
use crate::support::raw::{self, RawDevice};
use crate::support::{Failure, bounded, ensure, ensure_eq, message};
use fe2o3_amqp::types::definitions::{Handle, ReceiverSettleMode, Role};
use fe2o3_amqp::types::messaging::{Body, Outcome};
use fe2o3_amqp::types::performatives::Performative;
use fe2o3_amqp::types::primitives::Value;
use fe2o3_amqp::{Receiver, Sender};

const MEBIBYTE: usize = 1024 * 1024;

fn number_in(delivery: &Received) -> Result<u32, Failure> {
    number_of(&message::body_of(delivery.message())).ok_or_else(|| Failure::new("a damaged message"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_of_one_mebibyte_both_ways() -> Result<(), Failure> {
    let gateway = Gateway::to_broker().await?;
    let mut connection = gateway.reach.open("device").await?;
    let mut session = device::begin(&mut connection).await?;
    let mut sender = device::sender(&mut session, "up", "sink/accept/large").await?;
    let sent = message::data(numbered(7, MEBIBYTE));
    let outcome = bounded("the outcome", sender.send(sent.clone())).await??;
    ensure(outcome.is_accepted(), || format!("{outcome:?}"))?;
    let received = gateway.hub.messages("sink/accept/large", 1).await?;
    ensure(received == [sent], || {
        "the message was changed on the way up".to_owned()
    })?;

    let source = format!("source/1/{MEBIBYTE}");
    let mut receiver = device::receiver(&mut session, "down", &source).await?;
    let delivery = device::receive(&mut receiver).await?;
    ensure_eq("the size", message::body_of(delivery.message()).len(), MEBIBYTE)?;
    ensure_eq("the number", number_in(&delivery)?, 0)?;
    bounded("accepting", receiver.accept(&delivery)).await??;
    let outcomes = gateway.hub.outcomes(&source, 1).await?;
    ensure(matches!(outcomes.as_slice(), [(0, Outcome::Accepted(_))]), || {
        format!("{outcomes:?}")
    })?;
    device::close(connection).await?;
    gateway.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_messages_each_way_without_loss_duplicate_or_reorder() -> Result<(), Failure> {
    const COUNT: u32 = 10_000;
    let gateway = Gateway::to_broker().await?;
    let mut connection = gateway.reach.open("device").await?;
    let mut session = device::begin(&mut connection).await?;
    let mut sender = device::sender(&mut session, "up", "sink/accept/many").await?;
    let source = format!("source/{COUNT}/1024");
    let mut receiver = device::receiver(&mut session, "down", &source).await?;

    let up = tokio::spawn(async move {
        let mut outcomes = Vec::new();
        for number in 0..COUNT {
            let sending = sender.send_batchable(message::data(numbered(number, 1024)));
            outcomes.push(bounded("sending", sending).await??);
        }
        for outcome in outcomes {
            let outcome = bounded("an outcome", outcome).await??;
            ensure(outcome.is_accepted(), || format!("{outcome:?}"))?;
        }
        bounded("closing", sender.close()).await??;
        Ok::<_, Failure>(())
    });
    let down = tokio::spawn(async move {
        for number in 0..COUNT {
            let delivery = device::receive(&mut receiver).await?;
            ensure_eq("the number on the way down", number_in(&delivery)?, number)?;
            bounded("accepting", receiver.accept(&delivery)).await??;
        }
        Ok::<_, Failure>(receiver)
    });
    up.await??;
    let receiver = down.await??;

    let received = gateway.hub.messages("sink/accept/many", COUNT as usize).await?;
    let numbers: Vec<Option<u32>> = received
        .iter()
        .map(|message| number_of(&message::body_of(message)))
        .collect();
    ensure(numbers.iter().copied().eq((0..COUNT).map(Some)), || {
        "lost, doubled or out of order".to_owned()
    })?;
    let outcomes = gateway.hub.outcomes(&source, COUNT as usize).await?;
    let expected = (0..COUNT).collect::<Vec<_>>();
    ensure(outcomes.iter().map(|(number, _)| *number).eq(expected), || {
        "outcomes are missing".to_owned()
    })?;
    ensure(
        outcomes
            .iter()
            .all(|(_, outcome)| matches!(outcome, Outcome::Accepted(_))),
        || "not all were accepted".to_owned(),
    )?;
    bounded("closing", receiver.close()).await??;
    device::close(connection).await?;
    gateway.stop().await?;
    Ok(())
}

#[tokio::test]
async fn outcomes_of_the_hub_reach_the_device_with_all_fields() -> Result<(), Failure> {
    let gateway = Gateway::to_broker().await?;
    let mut connection = gateway.reach.open("device").await?;
    let mut session = device::begin(&mut connection).await?;
    for (address, check) in [
        (
            "sink/accept",
            (|outcome| matches!(outcome, Outcome::Accepted(_))) as fn(&Outcome) -> bool,
        ),
        ("sink/release", |outcome| matches!(outcome, Outcome::Released(_))),
        (
            "sink/reject",
            |outcome| matches!(outcome, Outcome::Rejected(rejected) if rejected.error == Some(rejection())),
        ),
        (
            "sink/modify",
            |outcome| matches!(outcome, Outcome::Modified(modified) if *modified == modification()),
        ),
    ] {
        let mut sender = device::sender(&mut session, address, address).await?;
        let outcome = bounded(address, sender.send(message::data("x"))).await??;
        ensure(check(&outcome), || format!("{address}: {outcome:?}"))?;
        bounded("closing", sender.close()).await??;
    }
    device::close(connection).await?;
    gateway.stop().await?;
    Ok(())
}

#[tokio::test]
async fn outcomes_of_the_device_reach_the_hub_with_all_fields() -> Result<(), Failure> {
    let gateway = Gateway::to_broker().await?;
    let mut connection = gateway.reach.open("device").await?;
    let mut session = device::begin(&mut connection).await?;
    let mut receiver = device::receiver(&mut session, "down", "source/5/10").await?;
    for number in 0..5 {
        let delivery = device::receive(&mut receiver).await?;
        ensure_eq("the number", number_in(&delivery)?, number)?;
        let settling = async {
            match number {
                0 => receiver.accept(&delivery).await,
                1 => receiver.release(&delivery).await,
                2 => receiver.reject(&delivery, rejection()).await,
                3 => receiver.modify(&delivery, modification()).await,
                _ => receiver.reject(&delivery, None).await,
            }
        };
        bounded("settling", settling).await??;
    }
    let outcomes = gateway.hub.outcomes("source/5/10", 5).await?;
    let right = match outcomes.as_slice() {
        [
            (0, Outcome::Accepted(_)),
            (1, Outcome::Released(_)),
            (2, Outcome::Rejected(with)),
            (3, Outcome::Modified(modified)),
            (4, Outcome::Rejected(without)),
        ] => with.error == Some(rejection()) && *modified == modification() && without.error.is_none(),
        _ => false,
    };
    ensure(right, || format!("{outcomes:#?}"))?;
    device::close(connection).await?;
    gateway.stop().await?;
    Ok(())
}

#[tokio::test]
async fn receiver_settle_mode_second_is_carried_both_ways() -> Result<(), Failure> {
    let gateway = Gateway::to_broker().await?;
    let mut connection = gateway.reach.open("device").await?;
    let mut session = device::begin(&mut connection).await?;
    let attaching = Sender::builder()
        .name("up")
        .target("sink/modify/second")
        .receiver_settle_mode(ReceiverSettleMode::Second)
        .attach(&mut session);
    let mut sender = bounded("attaching", attaching).await??;
    for _ in 0..3 {
        let outcome = bounded("the outcome", sender.send(message::data("x"))).await??;
        ensure_eq("the outcome", outcome, Outcome::Modified(modification()))?;
    }
    let attaching = Receiver::builder()
        .name("down")
        .source("source/3/10/second")
        .receiver_settle_mode(ReceiverSettleMode::Second)
        .attach(&mut session);
    let mut receiver = bounded("attaching", attaching).await??;
    for _ in 0..3 {
        let delivery = bounded("a message", receiver.recv::<Body<Value>>()).await??;
        bounded("modifying", receiver.modify(&delivery, modification())).await??;
    }
    let outcomes = gateway.hub.outcomes("source/3/10/second", 3).await?;
    ensure(
        outcomes
            .iter()
            .all(|(_, outcome)| *outcome == Outcome::Modified(modification())),
        || format!("{outcomes:?}"),
    )?;
    device::close(connection).await?;
    gateway.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_devices_at_once_share_one_connection_to_the_hub() -> Result<(), Failure> {
    const DEVICES: u32 = 50;
    const COUNT: u32 = 20;
    let gateway = Gateway::to_broker().await?;
    let mut running = Vec::new();
    for number in 0..DEVICES {
        let reach = gateway.reach.clone();
        running.push(tokio::spawn(async move {
            // All run the same program, so container-ids and link names are the same.
            let mut connection = reach.open("device").await?;
            let mut session = device::begin(&mut connection).await?;
            let mut sender = device::sender(&mut session, "up", &format!("sink/accept/{number}")).await?;
            let mut receiver =
                device::receiver(&mut session, "down", &format!("source/{COUNT}/{}", 100 + number)).await?;
            for count in 0..COUNT {
                let outcome =
                    bounded("the outcome", sender.send(message::data(numbered(count, 50)))).await??;
                ensure(outcome.is_accepted(), || format!("{outcome:?}"))?;
                let delivery = device::receive(&mut receiver).await?;
                ensure_eq("the number", number_in(&delivery)?, count)?;
                ensure_eq(
                    "the size",
                    message::body_of(delivery.message()).len(),
                    100 + number as usize,
                )?;
                bounded("accepting", receiver.accept(&delivery)).await??;
            }
            device::close(connection).await
        }));
    }
    for device in running {
        device.await??;
    }
    for number in 0..DEVICES {
        let received = gateway
            .hub
            .messages(&format!("sink/accept/{number}"), COUNT as usize)
            .await?;
        let numbers: Vec<_> = received
            .iter()
            .map(|message| number_of(&message::body_of(message)))
            .collect();
        ensure(numbers.iter().copied().eq((0..COUNT).map(Some)), || {
            format!("device {number}: {numbers:?}")
        })?;
    }
    if gateway.daemon().is_ok() {
        let opened = gateway
            .hub
            .journal()
            .select(|seen| matches!(seen, Seen::Opened(_)).then_some(()));
        ensure_eq("connections to the hub", opened.len(), 1)?;
    }
    gateway.stop().await?;
    Ok(())
}

#[tokio::test]
async fn device_with_frames_of_512_bytes_sends_and_receives_large_messages() -> Result<(), Failure> {
    let gateway = Gateway::to_broker().await?;
    let mut connection = gateway.reach.open_with_frames_of("small", 512).await?;
    let mut session = device::begin(&mut connection).await?;
    let mut sender = device::sender(&mut session, "up", "sink/accept/small").await?;
    let mut receiver = device::receiver(&mut session, "down", "source/20/20000").await?;
    let mut seen = BTreeSet::new();
    for number in 0..20 {
        let outcome = bounded(
            "the outcome",
            sender.send(message::data(numbered(number, 20_000))),
        )
        .await??;
        ensure(outcome.is_accepted(), || format!("{outcome:?}"))?;
        let delivery = device::receive(&mut receiver).await?;
        seen.insert(number_in(&delivery)?);
        bounded("accepting", receiver.accept(&delivery)).await??;
    }
    ensure_eq("messages received", seen.len(), 20)?;
    let received = gateway.hub.messages("sink/accept/small", 20).await?;
    let numbers: Vec<_> = received
        .iter()
        .map(|message| number_of(&message::body_of(message)))
        .collect();
    ensure(numbers.iter().copied().eq((0..20).map(Some)), || {
        format!("{numbers:?}")
    })?;
    device::close(connection).await?;
    gateway.stop().await?;
    Ok(())
}

#[tokio::test]
async fn settled_and_unsettled_messages_of_the_hub_reach_the_device_as_they_are() -> Result<(), Failure> {
    let gateway = Gateway::to_broker().await?;
    let address = gateway.daemon()?.address();
    let mut device = RawDevice::begin(address, raw::open("device", 65_536), raw::begin(0)).await?;
    for (handle, source, settled) in [(0, "source/3/10/settled", true), (1, "source/3/10", false)] {
        device.send(Performative::Attach(raw::attach(
            source,
            handle,
            Role::Receiver,
            source,
        )))?;
        device.send(Performative::Flow(raw::credit(handle, 10, 0, 0)))?;
        for number in 0..3 {
            let transferred = |performative, payload| match performative {
                Performative::Transfer(transfer) if transfer.handle == Handle(handle) => {
                    Some((transfer, payload))
                }
                _ => None,
            };
            let (transfer, payload) = device.expect_with_payload(source, transferred).await?;
            ensure_eq(source, transfer.settled.unwrap_or(false), settled)?;
            let body = message::body_of(&message::decode(&payload)?);
            ensure_eq("the number", number_of(&body), Some(number))?;
        }
    }
    device.die();
    gateway.stop().await?;
    Ok(())
}
