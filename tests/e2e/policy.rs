//! The vhost policy of the real binary, as a device on `fe2o3-amqp` meets it.

use crate::support::broker::numbered;
use crate::support::device::{self, ensure_disallowed, ensure_says};
use crate::support::gateway::Gateway;
use crate::support::raw::{self, RawDevice};
use crate::support::{Failure, bounded, ensure, ensure_eq, message};
use fe2o3_amqp::types::definitions::{LinkError, Role};
use fe2o3_amqp::types::performatives::Performative;

const POLICY: &str = "
policy {
    enableVhostPolicy: yes
}

vhost {
    hostname: 127.0.0.1
    maxConnections: 1
    maxMessageSize: 100000
    groups: {
        \"devices\": {
            \"users\": \"*\",
            \"remoteHosts\": \"127.0.0.1\",
            \"maxSenders\": 1,
            \"sources\": \"source/*\",
            \"targets\": \"sink/accept/${user}/*\"
        }
    }
}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_may_do_what_its_vhost_says_and_nothing_else() -> Result<(), Failure> {
    let gateway = Gateway::to_broker_with(|config| format!("{config}{POLICY}")).await?;
    let mut connection = gateway.reach.open("device").await?;
    let mut session = device::begin(&mut connection).await?;

    // Addresses, and the number of links. This library may detach a refused link twice, which ends its session.
    let mut denials = device::begin(&mut connection).await?;
    let denied = device::sender(&mut denials, "elsewhere", "sink/accept/other/a").await;
    ensure_says(
        "a target of others",
        denied,
        &["UnauthorizedAccess", "link disallowed by local policy"],
    )?;
    let mut sender = device::sender(&mut session, "up", "sink/accept/anonymous/a").await?;
    let mut denials = device::begin(&mut connection).await?;
    let denied = device::sender(&mut denials, "second", "sink/accept/anonymous/b").await;
    ensure_says(
        "a second sender",
        denied,
        &["ResourceLimitExceeded", "link disallowed by local policy"],
    )?;
    let outcome = bounded("the outcome", sender.send(message::data("x"))).await??;
    ensure(outcome.is_accepted(), || format!("{outcome:?}"))?;

    // The size of messages is announced, and this library keeps to it by itself.
    ensure_eq("max-message-size", sender.max_message_size(), Some(100_000))?;
    let large = bounded("sending", sender.send(message::data(numbered(1, 200_000)))).await?;
    ensure_says("a large message", large, &["MessageSizeExceeded"])?;
    let mut receiver = device::receiver(&mut session, "down", "source/1/200000").await?;
    let delivery = device::receive(&mut receiver).await?;
    bounded("accepting", receiver.accept(&delivery)).await??;
    // A sender that is closed leaves room for another.
    bounded("closing", sender.close()).await??;
    let mut again = device::sender(&mut session, "again", "sink/accept/anonymous/c").await?;
    let outcome = bounded("the outcome", again.send(message::data("y"))).await??;
    ensure(outcome.is_accepted(), || format!("{outcome:?}"))?;

    // The number of connections, and that a place is given back.
    ensure_disallowed(gateway.reach.open("second").await).await?;
    device::close(connection).await?;
    let mut connection = gateway.reach.open("third").await?;
    let mut session = device::begin(&mut connection).await?;
    let mut sender = device::sender(&mut session, "up", "sink/accept/anonymous/a").await?;
    let outcome = bounded("the outcome", sender.send(message::data("z"))).await??;
    ensure(outcome.is_accepted(), || format!("{outcome:?}"))?;
    ensure_eq(
        "messages",
        gateway.hub.messages("sink/accept/anonymous/a", 2).await?.len(),
        2,
    )?;
    device::close(connection).await?;
    gateway.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_grows_too_large_takes_its_own_link_only() -> Result<(), Failure> {
    const LIMITED: &str = "\npolicy {\n    maxMessageSize: 100000\n}\n";
    let gateway = Gateway::to_broker_with(|config| format!("{config}{LIMITED}")).await?;
    let address = gateway.daemon()?.address();
    let mut device = RawDevice::begin(address, raw::open("device", 65_536), raw::begin(0)).await?;
    for (handle, target) in [(0, "sink/accept/large"), (1, "sink/accept/small")] {
        device.send(Performative::Attach(raw::attach(
            target,
            handle,
            Role::Sender,
            target,
        )))?;
        let has_credit = |performative| match performative {
            Performative::Flow(flow) if flow.link_credit > Some(0) => Some(()),
            _ => None,
        };
        device.expect("credit", has_credit).await?;
    }
    let piece = [0x5a; 15_000];
    for number in 0..7 {
        let mut transfer = raw::transfer(0, 0, b"large");
        transfer.more = true;
        if number > 0 {
            transfer.delivery_id = None;
            transfer.delivery_tag = None;
        }
        device.transfer(transfer, &piece)?;
    }
    let detach = device
        .expect("a detach", |performative| match performative {
            Performative::Detach(detach) => Some(detach),
            _ => None,
        })
        .await?;
    ensure_eq("closed", detach.closed, true)?;
    let error = detach
        .error
        .ok_or_else(|| Failure::new("a detach without error"))?;
    ensure_eq(
        "the condition",
        error.condition,
        LinkError::MessageSizeExceeded.into(),
    )?;
    // The other link goes on, and the hub has nothing of the message that was too large.
    let payload = message::encode(&message::data("small"));
    device.transfer(raw::transfer(1, 1, b"small"), &payload)?;
    let settled = |performative| match performative {
        Performative::Disposition(disposition) if disposition.settled => Some(disposition.first),
        _ => None,
    };
    ensure_eq("the delivery", device.expect("an outcome", settled).await?, 1)?;
    let seen = gateway.hub.messages("sink/accept/small", 1).await?;
    ensure_eq("messages", seen.len(), 1)?;
    ensure(
        gateway.hub.messages("sink/accept/large", 0).await?.is_empty(),
        || "the hub has the large message".to_owned(),
    )?;
    device.die();
    gateway.stop().await?;
    Ok(())
}
