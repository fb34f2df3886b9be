//! Sizes, throttles, quotas and rates.

use std::time::Duration;

use fe2o3_amqp::types::definitions::Role;
use fe2o3_amqp::types::messaging::{Body, Data, DeliveryState, Properties};

use super::client::Client;
use super::says;
use crate::support::article::{self, DEVICE};
use crate::support::iot_hub::settings::Throttle;
use crate::support::iot_hub::{IotHub, Observed, Settings};
use crate::support::{Failure, ensure, ensure_eq, message};

const EVENTS: &str = "/devices/netduino/messages/events";

async fn sending(settings: Settings) -> Result<(IotHub, Client), Failure> {
    let hub = IotHub::start(settings, None).await?;
    let token = article::device_token(DEVICE, &article::device_key());
    let mut client = Client::with_token(&hub, &token).await?;
    client.attach("events", 2, Role::Sender, EVENTS).await?;
    Ok((hub, client))
}

async fn ensure_accepted(client: &mut Client) -> Result<(), Failure> {
    let outcome = client.outcome().await?;
    ensure(matches!(outcome, Some(DeliveryState::Accepted(_))), || {
        format!("{outcome:?}")
    })
}

#[tokio::test]
async fn large_telemetry_is_rejected_and_larger_costs_the_link() -> Result<(), Failure> {
    let (hub, mut client) = sending(article::hub_settings()).await?;
    client.send(2, &vec![0; 256 * 1024])?;
    ensure_accepted(&mut client).await?;
    client.send(2, &vec![0; 256 * 1024 + 1])?;
    let outcome = format!("{:?}", client.outcome().await?);
    says(
        "a message above 256 KiB",
        &outcome,
        &["Rejected", "MessageSizeExceeded", "413001"],
    )?;
    client.send(2, &vec![0; 1024 * 1024 + 1])?;
    let (_, error) = client.detached().await?;
    says(
        "a message above 1 MiB",
        &format!("{error:?}"),
        &["MessageSizeExceeded"],
    )?;
    hub.ensure_no_faults()
}

#[tokio::test]
async fn busy_hub_is_late_then_rejects_then_detaches() -> Result<(), Failure> {
    let mut settings = article::hub_settings();
    settings.outcome_delay = Duration::from_secs(3600);
    let (hub, mut client) = sending(settings).await?;
    client.send(2, b"")?;
    let token = article::device_token(DEVICE, &article::device_key());
    client.request(
        "put-token",
        "servicebus.windows.net:sastoken",
        "a name",
        &token,
        0.into(),
    )?;
    let first = client.disposition().await?.first;
    ensure(first == 2, || format!("the outcome of {first} came first"))?;
    hub.advance(Duration::from_secs(3600));
    ensure_accepted(&mut client).await?;
    hub.change(|settings| settings.throttle = Throttle::Reject);
    hub.change(|settings| settings.outcome_delay = Duration::ZERO);
    client.send(2, b"")?;
    let outcome = format!("{:?}", client.outcome().await?);
    says(
        "the outcome",
        &outcome,
        &["com.microsoft:device-container-throttled", "429001"],
    )?;
    hub.change(|settings| settings.throttle = Throttle::Busy);
    client.send(2, b"")?;
    let (_, error) = client.detached().await?;
    says(
        "the detach",
        &format!("{error:?}"),
        &["DetachForced", "Server Busy. Please retry operation"],
    )?;
    hub.ensure_no_faults()
}

#[tokio::test]
async fn used_up_quota_closes_connections_until_the_next_day() -> Result<(), Failure> {
    let mut settings = article::hub_settings();
    settings.daily_quota = Some(1);
    let (hub, mut client) = sending(settings).await?;
    client.send(2, b"")?;
    ensure_accepted(&mut client).await?;
    client.send(2, b"")?;
    let text = "exceeded the allocated quota.";
    let outcome = format!("{:?}", client.outcome().await?);
    says(
        "the outcome",
        &outcome,
        &["ResourceLimitExceeded", "403002", text],
    )?;
    client.closed().await?;
    let mut raw = super::opening(&hub).await?;
    says(
        "a new connection",
        &super::close_of(&mut raw).await?,
        &["403002", text],
    )?;
    hub.advance(Duration::from_secs(86_400));
    Client::open(&hub).await?;
    Ok(())
}

#[tokio::test]
async fn connections_and_links_come_no_faster_than_their_rates() -> Result<(), Failure> {
    let mut settings = article::hub_settings();
    settings.connections_per_second = Some(1);
    settings.link_opens_per_second = Some(1);
    let (hub, mut client) = sending(settings).await?;
    client.attach("too soon", 3, Role::Sender, EVENTS).await?;
    let (_, error) = client.detached().await?;
    says(
        "a link",
        &format!("{error:?}"),
        &["device-container-throttled", "429001"],
    )?;
    hub.advance(Duration::from_secs(1));
    Client::open(&hub).await?;
    let mut raw = super::opening(&hub).await?;
    says(
        "a connection",
        &super::close_of(&mut raw).await?,
        &["device-container-throttled"],
    )?;
    client.attach("in time", 4, Role::Sender, EVENTS).await?;
    client.send(4, b"")?;
    ensure_accepted(&mut client).await?;
    hub.ensure_no_faults()
}

#[tokio::test]
async fn batch_is_taken_apart_message_by_message() -> Result<(), Failure> {
    const BATCH: u32 = 0x8001_3700;
    let batch = |sections: Vec<Vec<u8>>| {
        let sections: Vec<Data> = sections.into_iter().map(|section| Data(section.into())).collect();
        message::encode(&message::with_properties(
            Body::Data(sections.into()),
            Properties::default(),
        ))
    };
    let mut settings = article::hub_settings();
    settings.checks_batches = true;
    let (hub, mut client) = sending(settings).await?;
    let readings = ["12.5", "", "13"].map(|reading| message::encode(&message::data(reading)).to_vec());
    let good = batch(readings.to_vec());
    client.send_as(2, BATCH, &good)?;
    ensure_accepted(&mut client).await?;
    // The same bytes in the format of a message are one message.
    client.send_as(2, 0, &good)?;
    ensure_accepted(&mut client).await?;
    let [first, ..] = readings;
    for bad in [batch(vec![first, b"no message".to_vec()]).to_vec(), b"".to_vec()] {
        client.send_as(2, BATCH, &bad)?;
        let outcome = format!("{:?}", client.outcome().await?);
        says("what is no batch", &outcome, &["Rejected", "cannot be decoded"])?;
    }
    hub.change(|settings| settings.checks_batches = false);
    client.send_as(2, BATCH, b"")?;
    ensure_accepted(&mut client).await?;
    let bodies = hub.journal().select(|observed| match observed {
        Observed::Batched { link, body, .. } => Some((link.clone(), body.clone())),
        _ => None,
    });
    let expected = ["12.5", "", "13"].map(|body| ("events".to_owned(), body.as_bytes().to_vec()));
    ensure_eq("the readings", bodies, expected.to_vec())?;
    let formats = hub.journal().select(|observed| match observed {
        Observed::Telemetry(delivery) => delivery.message_format,
        _ => None,
    });
    ensure_eq("the formats", formats, vec![BATCH, 0, BATCH, BATCH, BATCH])?;
    hub.ensure_no_faults()
}
