//! Event Hubs, and the way to it from an IoT hub's events.

use fe2o3_amqp::types::definitions::{Fields, Role};
use fe2o3_amqp::types::messaging::{DeliveryState, FilterSet, Source};
use fe2o3_amqp::types::performatives::{Attach, Performative};
use fe2o3_amqp::types::primitives::{Symbol, Value};
use serde_amqp::described::Described;
use serde_amqp::descriptor::Descriptor;

use super::client::Client;
use super::says;
use crate::support::article::{self, HUB, POLICY};
use crate::support::iot_hub::settings::BuiltInEvents;
use crate::support::iot_hub::{IotHub, Observed, Settings};
use crate::support::raw::{self, RawDevice};
use crate::support::sas;
use crate::support::wire::{AMQP_HEADER, Frame, SASL_HEADER};
use crate::support::{Failure, bounded, ensure, ensure_eq};
use fe2o3_amqp::types::performatives::Open;
use fe2o3_amqp::types::sasl::{SaslCode, SaslInit, SaslMechanisms, SaslOutcome};

const PARTITION: &str = "meters/ConsumerGroups/$Default/Partitions/0";

fn namespace() -> Settings {
    Settings::event_hubs(HUB, &["meters"]).with_policy(POLICY, article::policy_key())
}

async fn connected(hub: &IotHub) -> Result<Client, Failure> {
    Client::with_token(hub, &article::service_token()).await
}

/// A receiver of a partition that claims this epoch.
fn reader(name: &str, handle: u32, epoch: Option<Value>) -> Attach {
    let mut attach = raw::attach(name, handle, Role::Receiver, PARTITION);
    attach.properties = epoch.map(|epoch| {
        let mut properties = Fields::default();
        properties.insert(Symbol::from("com.microsoft:epoch"), epoch);
        properties
    });
    attach
}

/// The hub lets nobody in under this attach; gives what it says to that.
async fn refused(client: &mut Client, attach: Attach) -> Result<String, Failure> {
    let handle = attach.handle.0;
    let answer = client.attach_as(attach).await?;
    ensure(answer.source.is_none() || answer.target.is_none(), || {
        "a refused attach with both termini".to_owned()
    })?;
    let (of, error) = client.detached().await?;
    ensure_eq("the link that is refused", of, handle)?;
    Ok(format!("{error:?}"))
}

#[tokio::test]
async fn event_hub_takes_events_at_its_addresses_from_those_it_knows() -> Result<(), Failure> {
    let hub = IotHub::start(namespace(), None).await?;
    let mut client = connected(&hub).await?;
    for (handle, address) in [
        (2, "meters"),
        (3, "meters/Partitions/1"),
        (4, "/Meters/Publishers/p"),
    ] {
        client.attach(address, handle, Role::Sender, address).await?;
        client.send(handle, b"event")?;
        let outcome = client.outcome().await?;
        ensure(matches!(outcome, Some(DeliveryState::Accepted(_))), || {
            format!("{address}: {outcome:?}")
        })?;
    }
    let addresses = hub.journal().select(|observed| match observed {
        Observed::Telemetry(delivery) => Some(delivery.address.clone()),
        _ => None,
    });
    let expected = ["meters", "meters/Partitions/1", "/Meters/Publishers/p"];
    ensure_eq(
        "where the events are for",
        addresses,
        expected.map(str::to_owned).to_vec(),
    )?;
    for (handle, address) in [
        (5, "meters2"),
        (6, "meters/ConsumerGroups/g/Partitions/0"),
        (7, "messages"),
    ] {
        let attach = raw::attach(address, handle, Role::Sender, address);
        says(address, &refused(&mut client, attach).await?, &["NotFound"])?;
    }
    let token = sas::token(
        &format!("{HUB}/other"),
        &article::policy_key(),
        Some(POLICY),
        sas::unix_now() + 3600,
    );
    let mut stranger = Client::with_token(&hub, &token).await?;
    let attach = raw::attach("events", 2, Role::Sender, "meters");
    says(
        "a token for another hub",
        &refused(&mut stranger, attach).await?,
        &["UnauthorizedAccess"],
    )?;
    hub.ensure_no_faults()
}

#[tokio::test]
async fn event_hub_takes_plain_with_the_key_of_a_policy() -> Result<(), Failure> {
    let hub = IotHub::start(namespace(), None).await?;
    for (key, expected) in [
        (article::device_key(), SaslCode::Auth),
        (article::policy_key(), SaslCode::Ok),
    ] {
        let mut peer = RawDevice::connect(hub.address()).await?;
        peer.writer.raw(SASL_HEADER.to_vec());
        ensure_eq(
            "the header",
            bounded("a header", peer.reader.header()).await??,
            SASL_HEADER,
        )?;
        let Frame::Sasl(body) = bounded("the mechanisms", peer.reader.next()).await?? else {
            return Err(Failure::new("no SASL frame"));
        };
        let _: SaslMechanisms = serde_amqp::from_slice(&body)?;
        let response = format!("\0{POLICY}\0{}", key.base64());
        peer.writer.send_sasl(&SaslInit {
            mechanism: Symbol::from("PLAIN"),
            initial_response: Some(response.into_bytes().into()),
            hostname: None,
        })?;
        let Frame::Sasl(body) = bounded("the outcome", peer.reader.next()).await?? else {
            return Err(Failure::new("no SASL frame"));
        };
        let outcome: SaslOutcome = serde_amqp::from_slice(&body)?;
        ensure_eq("the outcome", outcome.code, expected.clone())?;
        if expected == SaslCode::Auth {
            continue;
        }
        peer.writer.raw(AMQP_HEADER.to_vec());
        peer.send(Performative::Open(Open {
            hostname: Some(HUB.to_owned()),
            ..raw::open("device", 65_536)
        }))?;
        peer.send(Performative::Begin(raw::begin(0)))?;
        peer.expect_header().await?;
        let credit = peer.attach_sender("events", 0, "meters").await?;
        ensure(credit > 0, || "no credit".to_owned())?;
        peer.die();
    }
    hub.ensure_no_faults()
}

#[tokio::test]
async fn session_of_event_hubs_has_256_handles() -> Result<(), Failure> {
    let hub = IotHub::start(namespace(), None).await?;
    let open = Open {
        hostname: Some(HUB.to_owned()),
        ..raw::open("device", 65_536)
    };
    let mut peer = RawDevice::connect(hub.address()).await?;
    peer.writer.raw(AMQP_HEADER.to_vec());
    peer.send(Performative::Open(open))?;
    peer.send(Performative::Begin(raw::begin(0)))?;
    peer.expect_header().await?;
    let is_begin = |frame| match frame {
        Performative::Begin(begin) => Some(begin.handle_max.0),
        _ => None,
    };
    ensure_eq("handle-max", peer.expect("a begin", is_begin).await?, 255)?;
    peer.send(Performative::Attach(raw::attach(
        "last",
        255,
        Role::Sender,
        "$cbs",
    )))?;
    let is_attach = |frame| matches!(frame, Performative::Attach(_)).then_some(());
    peer.expect("an attach", is_attach).await?;
    peer.send(Performative::Attach(raw::attach(
        "more",
        256,
        Role::Receiver,
        "$cbs",
    )))?;
    says(
        "the close",
        &super::close_of(&mut peer).await?,
        &["handle 256", "out of range"],
    )?;
    ensure(hub.ensure_no_faults().is_err(), || "no fault".to_owned())
}

#[tokio::test]
async fn higher_or_equal_epoch_evicts_and_a_lower_one_is_refused() -> Result<(), Failure> {
    let hub = IotHub::start(namespace(), None).await?;
    let (mut first, mut second) = (connected(&hub).await?, connected(&hub).await?);
    // Any number without an epoch get along; one with an epoch ends them all.
    first.attach_as(reader("a", 2, None)).await?;
    second.attach_as(reader("b", 2, None)).await?;
    second.attach_as(reader("c", 3, Some(Value::Long(1)))).await?;
    for (client, of) in [(&mut first, "a"), (&mut second, "b")] {
        let (handle, error) = client.detached().await?;
        ensure_eq(of, handle, 2)?;
        says(of, &format!("{error:?}"), &["Stolen"])?;
    }
    // An equal one and a higher one, on this connection and on another.
    first.attach_as(reader("d", 3, Some(Value::Long(1)))).await?;
    ensure_eq("the older of two equals", second.detached().await?.0, 3)?;
    first.attach_as(reader("e", 4, Some(Value::Long(7)))).await?;
    ensure_eq("the lower of two", first.detached().await?.0, 3)?;
    for (handle, epoch, expected) in [
        (4, Some(Value::Long(6)), ["Stolen", "'7'"]),
        (5, None, ["Stolen", "'7'"]),
        (6, Some(Value::Int(8)), ["InvalidField", "no long"]),
    ] {
        let text = refused(&mut second, reader("late", handle, epoch)).await?;
        says("the refusal", &text, &expected)?;
    }
    // Another partition is another matter, and so is this one when its reader has gone.
    let elsewhere = PARTITION.replace("/0", "/1");
    second.attach("elsewhere", 7, Role::Receiver, &elsewhere).await?;
    first.detach(4)?;
    let is_detach = |frame| matches!(frame, Performative::Detach(_)).then_some(());
    first.raw.expect("a detach", is_detach).await?;
    let answer = second.attach_as(reader("after", 8, None)).await?;
    ensure(answer.source.is_some(), || "refused after the epoch".to_owned())?;
    hub.ensure_no_faults()
}

#[tokio::test]
async fn selector_of_a_reader_is_echoed() -> Result<(), Failure> {
    let hub = IotHub::start(namespace(), None).await?;
    let mut client = connected(&hub).await?;
    let mut filter = FilterSet::new();
    let selector = Described {
        descriptor: Descriptor::Code(0x0000_468c_0000_0004),
        value: Value::from("amqp.annotation.x-opt-offset > '12'"),
    };
    filter.insert(
        Symbol::from("apache.org:selector-filter:string"),
        Value::Described(Box::new(selector)),
    );
    let source = Source {
        filter: Some(filter),
        ..Source::from(PARTITION)
    };
    let mut attach = reader("selective", 2, Some(Value::Long(0)));
    attach.source = Some(Box::new(source));
    let answer = client.attach_as(attach.clone()).await?;
    ensure_eq("the source", answer.source, attach.source)?;
    ensure_eq("the properties", answer.properties, attach.properties)?;
    hub.ensure_no_faults()
}

#[tokio::test]
async fn reader_of_a_hubs_events_is_sent_to_event_hubs() -> Result<(), Failure> {
    let events = Settings::event_hubs("localhost", &["meters"]).with_policy(POLICY, article::policy_key());
    let events = IotHub::start(events, None).await?;
    let mut settings = article::hub_settings();
    settings.built_in_events = BuiltInEvents {
        host: "localhost".to_owned(),
        port: events.address().port(),
        hub: "meters".to_owned(),
    };
    let hub = IotHub::start(settings, None).await?;
    let mut client = connected(&hub).await?;
    let address = "/messages/events/ConsumerGroups/$Default/Partitions/0";
    let attach = raw::attach("reader", 2, Role::Receiver, address);
    let answer = client.attach_as(attach).await?;
    ensure(answer.source.is_none(), || "the answer has a source".to_owned())?;
    let (_, error) = client.detached().await?;
    says("the detach", &format!("{error:?}"), &["Redirect"])?;
    let info = error.info.unwrap_or_default();
    let at = |key: &str| info.get(&Symbol::from(key)).cloned();
    let port = events.address().port();
    ensure_eq("hostname", at("hostname"), Some(Value::from("localhost")))?;
    ensure_eq("network-host", at("network-host"), Some(Value::from("localhost")))?;
    ensure_eq("port", at("port"), Some(Value::Ushort(port)))?;
    let to = format!("amqps://localhost:{port}/{PARTITION}");
    ensure_eq("address", at("address"), Some(Value::String(to.clone())))?;
    // Who is no service learns nothing.
    let token = article::device_token(article::DEVICE, &article::device_key());
    let mut device = Client::with_token(&hub, &token).await?;
    let attach = raw::attach("reader", 2, Role::Receiver, address);
    let text = refused(&mut device, attach).await?;
    says("a device", &text, &["UnauthorizedAccess"])?;
    // The way leads somewhere.
    let token = sas::token(
        "localhost/meters",
        &article::policy_key(),
        Some(POLICY),
        sas::unix_now() + 3600,
    );
    events.change(|settings| settings.names.push(HUB.to_owned()));
    let mut follower = Client::with_token(&events, &token).await?;
    let answer = follower.attach("reader", 2, Role::Receiver, &to).await?;
    ensure(answer.source.is_some(), || {
        "refused at the end of the way".to_owned()
    })?;
    hub.ensure_no_faults()?;
    events.ensure_no_faults()
}
