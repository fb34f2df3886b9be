//! Link recovery through the real binary, `fe2o3-amqp` at both ends: a device detaches without closing and attaches again
//! with its unsettled map, and the hub resumes what was not settled.

use crate::support::broker::{Seen, numbered};
use crate::support::device;
use crate::support::gateway::Gateway;
use crate::support::{Failure, bounded, ensure, ensure_eq, message};
use fe2o3_amqp::Receiver;
use fe2o3_amqp::link::receiver::ResumingReceiver;
use fe2o3_amqp::types::messaging::{Source, TerminusDurability, TerminusExpiryPolicy};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_detaches_attaches_again_and_its_unsettled_delivery_is_resumed() -> Result<(), Failure> {
    let gateway = Gateway::to_broker().await?;
    let mut connection = gateway.reach.open("device").await?;
    let mut session = device::begin(&mut connection).await?;
    let address = "source/1/3000/recover";
    let source = Source::builder()
        .address(address)
        .durable(TerminusDurability::UnsettledState)
        .expiry_policy(TerminusExpiryPolicy::Never)
        .build();
    let attaching = Receiver::builder()
        .name("down")
        .source(source)
        .attach(&mut session);
    let mut receiver = bounded("the attach", attaching).await??;
    let first = device::receive(&mut receiver).await?;
    let tag = first.delivery_tag().to_vec();

    let detaching = bounded("the detach", receiver.detach()).await?;
    let detached = detaching.map_err(|(_, error)| error)?;
    let resuming = bounded("the second attach", detached.resume()).await?;
    let mut receiver = match resuming.map_err(|error| Failure::new(format!("{:?}", error.kind)))? {
        ResumingReceiver::Resume(receiver) => receiver,
        other => return Err(Failure::new(format!("nothing to resume: {other:?}"))),
    };
    let seen = gateway
        .hub
        .journal()
        .find("the second attach at the hub", |seen| match seen {
            Seen::AttachedAgain {
                address: at,
                unsettled,
            } if at == address => Some(unsettled.clone()),
            _ => None,
        });
    ensure_eq("the device's unsettled map", seen.await?, vec![tag.clone()])?;

    let resumed = device::receive(&mut receiver).await?;
    ensure_eq("the tag", resumed.delivery_tag().to_vec(), tag)?;
    let body = message::body_of(resumed.message());
    ensure(body == numbered(0, 3000), || "the message was changed".to_owned())?;
    // This acceptor does not hear what comes in for a link that it has attached again: with the router or without it.
    bounded("accepting", receiver.accept(&resumed)).await??;
    device::close(connection).await?;
    gateway.stop().await?;
    Ok(())
}
