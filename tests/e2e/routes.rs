//! Routes through the real binary: a broker that connects to a listener of its own and serves devices of another
//! listener, and external prefixes towards a hub. Devices and the hub are `fe2o3-amqp`; the broker that connects speaks
//! frame by frame in that stack's types, as no stack accepts links on a connection that it opened.

use crate::support::broker::Broker;
use crate::support::certificates::{Authority, Validity};
use crate::support::daemon::{CA_FILE, Daemon};
use crate::support::device::{self, Reach};
use crate::support::raw::{self, DialingBroker, RawDevice};
use crate::support::{Failure, bounded, ensure, ensure_eq, message};
use fe2o3_amqp::types::definitions::{DeliveryTag, Handle, Role};
use fe2o3_amqp::types::messaging::{Accepted, DeliveryState, TargetArchetype};
use fe2o3_amqp::types::performatives::{Detach, Disposition, Performative, Transfer};

/// Devices on the first listener, brokers on the second.
const TWO_LISTENERS: &str = "\
router {
    id: Router.A
    errorConditions: qd
}
listener {
    host: 127.0.0.1
    port: 0
}
listener {
    name: BROKERS
    host: 127.0.0.1
    port: 0
    role: route-container
}
linkRoute {
    prefix: queue/
    connection: BROKERS
    direction: in
    addExternalPrefix: inner/
    delExternalPrefix: queue/
}
linkRoute {
    prefix: queue/
    containerId: broker-1
    direction: out
}
log {
    module: DEFAULT
    enable: trace+
}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_connects_serves_devices_of_another_listener() -> Result<(), Failure> {
    let daemon = Daemon::start(TWO_LISTENERS, "").await?;
    let addresses = daemon.addresses(2).await?;
    let devices = Reach::Plain(addresses[0]);
    let mut connection = devices.open("device").await?;
    let mut session = device::begin(&mut connection).await?;
    let refused = device::sender(&mut session, "too early", "queue/q1").await;
    ensure(refused.is_err(), || "attached to nobody".to_owned())?;

    let mut broker = DialingBroker::connect(addresses[1], "broker-1").await?;
    daemon
        .logged("Link Route Activated 'linkRoute/0' on connection BROKERS")
        .await?;
    daemon
        .logged("Link Route Activated 'linkRoute/1' on container broker-1")
        .await?;
    daemon.logged("Connection Opened: dir=in").await?;
    let serve = async {
        broker.begun().await?;
        let up = broker.attached().await?;
        ensure_eq("the name", up.name.as_str(), "up@device")?;
        let target = match up.target.as_deref() {
            Some(TargetArchetype::Target(target)) => target.address.clone(),
            _ => None,
        };
        ensure_eq("the address at the broker", target.as_deref(), Some("inner/q1"))?;
        broker
            .0
            .send(Performative::Flow(raw::credit(up.handle.0, 5, 0, 0)))?;
        let (transfer, payload) = broker
            .0
            .expect_with_payload("the message", |frame, payload| match frame {
                Performative::Transfer(transfer) => Some((transfer, payload)),
                _ => None,
            })
            .await?;
        broker.0.send(Performative::Disposition(Disposition {
            role: Role::Receiver,
            first: transfer.delivery_id.unwrap_or_default(),
            last: None,
            settled: true,
            state: Some(DeliveryState::Accepted(Accepted {})),
            batchable: false,
        }))?;
        let down = broker.attached().await?;
        ensure_eq("the name", down.name.as_str(), "down@device")?;
        // What the device had sent comes back.
        let back = Transfer {
            handle: down.handle.clone(),
            delivery_tag: Some(DeliveryTag::from(vec![1])),
            ..raw::transfer(down.handle.0, 0, &[1])
        };
        broker.0.transfer(back, &payload)?;
        broker
            .0
            .expect("the outcome", |frame| match frame {
                Performative::Disposition(disposition) => disposition.state,
                _ => None,
            })
            .await
    };
    let work = async {
        let mut sender = device::sender(&mut session, "up", "queue/q1").await?;
        let target = sender.target().as_ref().and_then(|target| target.address.clone());
        ensure_eq("the address in the answer", target.as_deref(), Some("queue/q1"))?;
        let outcome = bounded("the outcome", sender.send(message::data("ping"))).await??;
        ensure(outcome.is_accepted(), || format!("{outcome:?}"))?;
        let mut receiver = device::receiver(&mut session, "down", "queue/q1").await?;
        let delivery = device::receive(&mut receiver).await?;
        ensure_eq("the body", message::body_of(delivery.message()), b"ping".to_vec())?;
        bounded("accepting", receiver.accept(&delivery)).await??;
        Ok::<_, Failure>((sender, receiver))
    };
    let (served, worked) = tokio::join!(serve, work);
    let (state, (sender, mut receiver)) = (served?, worked?);
    ensure(matches!(state, DeliveryState::Accepted(_)), || {
        format!("{state:?}")
    })?;

    // The broker dies: its links are detached, the device's connection stays.
    broker.0.die();
    let lost = bounded("the detach", receiver.recv::<String>()).await?;
    ensure(lost.is_err(), || "still attached".to_owned())?;
    daemon
        .logged("Link Route Deactivated 'linkRoute/0' on connection BROKERS")
        .await?;
    daemon.logged("Link lost: qd:routed-link-lost").await?;
    drop((sender, receiver));
    let again = device::sender(&mut session, "nobody there", "queue/q1").await;
    ensure(again.is_err(), || "attached to nobody".to_owned())?;
    device::close(connection).await?;
    daemon.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_a_broker_attaches_itself_is_refused() -> Result<(), Failure> {
    let daemon = Daemon::start(TWO_LISTENERS, "").await?;
    let addresses = daemon.addresses(2).await?;
    let mut broker = RawDevice::begin(addresses[1], raw::open("broker-1", 65_536), raw::begin(0)).await?;
    broker.send(Performative::Attach(raw::attach(
        "own",
        0,
        Role::Sender,
        "queue/q1",
    )))?;
    let error = broker
        .expect("a detach", |frame| match frame {
            Performative::Detach(Detach {
                handle: Handle(_),
                closed: true,
                error,
            }) => Some(error),
            _ => None,
        })
        .await?;
    let condition = error.map(|error| format!("{:?}", error.condition));
    ensure(
        condition
            .as_deref()
            .is_some_and(|text| text.contains("NotAllowed")),
        || format!("{condition:?}"),
    )?;
    drop(broker);
    daemon.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn external_prefixes_lead_to_the_hubs_own_names() -> Result<(), Failure> {
    let authority = Authority::new("Test Root", Validity::Current)?;
    let identity = authority.issue(&["localhost"], Validity::Current)?;
    let hub = Broker::start(authority.server_config(&identity)?).await?;
    let port = hub.address().port();
    let config = format!(
        "listener {{\n host: 127.0.0.1\n port: 0\n}}\n\
         sslProfile {{\n name: ca\n caCertFile: {CA_FILE}\n}}\n\
         connector {{\n name: HUB\n host: localhost\n port: {port}\n role: on-demand\n sslProfile: ca\n \
         saslMechanisms: ANONYMOUS\n}}\n\
         linkRoute {{\n prefix: site/\n connection: HUB\n direction: in\n addExternalPrefix: sink/\n \
         delExternalPrefix: site/\n}}\n\
         linkRoute {{\n pattern: site/*/#\n connection: HUB\n direction: out\n addExternalPrefix: source/\n \
         delExternalPrefix: site/\n}}\n"
    );
    let daemon = Daemon::start(&config, &authority.pem()).await?;
    let mut connection = Reach::Plain(daemon.address()).open("device").await?;
    let mut session = device::begin(&mut connection).await?;
    let mut sender = device::sender(&mut session, "up", "site/accept/7").await?;
    let target = sender.target().as_ref().and_then(|target| target.address.clone());
    ensure_eq(
        "the target in the answer",
        target.as_deref(),
        Some("site/accept/7"),
    )?;
    let outcome = bounded("the outcome", sender.send(message::data("up"))).await??;
    ensure(outcome.is_accepted(), || format!("{outcome:?}"))?;
    let received = hub.messages("sink/accept/7", 1).await?;
    ensure_eq("messages at the hub", received.len(), 1)?;
    let mut receiver = device::receiver(&mut session, "down", "site/1/64").await?;
    let source = receiver
        .source()
        .as_ref()
        .and_then(|source| source.address.clone());
    ensure_eq("the source in the answer", source.as_deref(), Some("site/1/64"))?;
    let delivery = device::receive(&mut receiver).await?;
    ensure_eq("the size", message::body_of(delivery.message()).len(), 64)?;
    bounded("accepting", receiver.accept(&delivery)).await??;
    hub.outcomes("source/1/64", 1).await?;
    device::close(connection).await?;
    daemon.stop().await?;
    Ok(())
}
