//! Connections: how they come, and how they go.

use crate::support::article;
use crate::support::iot_hub::IotHub;
use crate::support::{Failure, bounded, ensure};
use std::io::ErrorKind;
use std::time::Duration;

use fe2o3_amqp::Connection;
use fe2o3_amqp::types::performatives::{Open, Performative};

use super::client::Client;
use super::{close_of, opening, says};
use crate::support::article::HUB;
use crate::support::certificates::{Authority, Validity};
use crate::support::device::{self, Reach};
use crate::support::ensure_eq;
use crate::support::iot_hub::settings::NoLink;
use crate::support::iot_hub::{Observed, Order};
use crate::support::raw::{self, RawDevice};
use crate::support::wire::{AMQP_HEADER, Frame};

#[tokio::test]
async fn open_for_another_hub_is_closed() -> Result<(), Failure> {
    let hub = IotHub::start(article::hub_settings(), None).await?;
    let stream = tokio::net::TcpStream::connect(hub.address()).await?;
    let opening = Connection::builder()
        .container_id("lost")
        .hostname("other.azure-devices.net")
        .sasl_profile(fe2o3_amqp::sasl_profile::SaslProfile::Anonymous)
        .open_with_stream(stream);
    let mut connection = bounded("opening", opening).await??;
    let closed = bounded("the close", connection.on_close()).await?;
    let text = format!("{closed:?}");
    ensure(text.contains("iot-hub-not-found-error"), || text)
}

#[tokio::test]
async fn refused_connections_are_followed_by_one_that_is_taken() -> Result<(), Failure> {
    let hub = IotHub::start(article::hub_settings(), None).await?;
    hub.refuse_next(2);
    for _ in 0..2 {
        let mut peer = opening(&hub).await?;
        says(
            "the close",
            &close_of(&mut peer).await?,
            &["ConnectionForced", "400030"],
        )?;
    }
    let mut client = Client::with_cbs(&hub).await?;
    hub.close_connections("moved");
    says(
        "the close",
        &client.closed().await?,
        &["ConnectionForced", "moved"],
    )
}

#[tokio::test]
async fn slow_hub_begins_when_its_clock_says() -> Result<(), Failure> {
    let mut settings = article::hub_settings();
    settings.accept_delay = Duration::from_secs(3600);
    let hub = IotHub::start(settings, None).await?;
    let (client, accepted) = tokio::join!(Client::open(&hub), async {
        let accepted = hub.journal().find("a connection", |observed| {
            matches!(observed, Observed::Accepted { .. }).then_some(())
        });
        accepted.await?;
        hub.advance(Duration::from_secs(3600));
        Ok::<_, Failure>(())
    });
    accepted?;
    client.map(drop)
}

#[tokio::test]
async fn connection_without_a_token_or_a_link_is_closed_in_time() -> Result<(), Failure> {
    let mut settings = article::hub_settings();
    settings.first_token_deadline = Some(Duration::from_secs(20));
    settings.no_link_deadline = Some(NoLink {
        at_first: Duration::from_secs(60),
        later: Duration::from_secs(300),
    });
    let hub = IotHub::start(settings, None).await?;
    let mut without_token = Client::with_cbs(&hub).await?;
    let token = article::device_token("netduino", &article::device_key());
    let mut with_token = Client::with_token(&hub, &token).await?;
    hub.advance(Duration::from_secs(20));
    says(
        "the close",
        &without_token.closed().await?,
        &["ConnectionForced", "no token"],
    )?;
    hub.advance(Duration::from_secs(300));
    ensure_eq("with links it stays", with_token.put(&token).await?, 200)?;
    with_token.detach(0)?;
    with_token.detach(1)?;
    hub.journal()
        .find_all("the detaches", 2, |observed| match observed {
            Observed::Detached { connection: 2, .. } => Some(()),
            _ => None,
        })
        .await?;
    hub.advance(Duration::from_secs(300));
    says(
        "the close",
        &with_token.closed().await?,
        &["ConnectionForced", "no links"],
    )?;
    hub.change(|settings| settings.first_token_deadline = None);
    let mut empty = Client::open(&hub).await?;
    hub.advance(Duration::from_secs(60));
    says(
        "the close",
        &empty.closed().await?,
        &["ConnectionForced", "no links"],
    )
}

#[tokio::test]
async fn idle_time_outs_are_kept_both_ways() -> Result<(), Failure> {
    let mut settings = article::hub_settings();
    settings.idle_time_out = 200;
    settings.min_idle_time_out = 100;
    let hub = IotHub::start(settings, None).await?;
    let open = |idle_time_out| Open {
        hostname: Some(HUB.to_owned()),
        idle_time_out: Some(idle_time_out),
        ..raw::open("device", 65_536)
    };
    let mut peer = RawDevice::connect(hub.address()).await?;
    peer.writer.raw(AMQP_HEADER.to_vec());
    peer.send(Performative::Open(open(120)))?;
    peer.expect_header().await?;
    bounded("an open", peer.reader.next()).await??;
    let heartbeat = bounded("a heartbeat", peer.reader.next()).await??;
    ensure(matches!(heartbeat, Frame::Empty), || format!("{heartbeat:?}"))?;
    says(
        "the close",
        &close_of(&mut peer).await?,
        &["ConnectionForced", "inactive for more than the allowed 200"],
    )?;
    let mut peer = RawDevice::connect(hub.address()).await?;
    peer.writer.raw(AMQP_HEADER.to_vec());
    peer.send(Performative::Open(open(99)))?;
    peer.expect_header().await?;
    says(
        "too short",
        &close_of(&mut peer).await?,
        &["NotAllowed", "below 100 ms"],
    )
}

#[tokio::test]
async fn certificate_can_change_between_connections() -> Result<(), Failure> {
    let authority = Authority::new("Old Root", Validity::Current)?;
    let old = authority.issue(&["localhost"], Validity::Current)?;
    let hub = IotHub::start(article::hub_settings(), Some(authority.server_config(&old)?)).await?;
    let reach = Reach::Tls(hub.address(), authority.client_config()?);
    let kept = reach.open("before").await?;
    let next = Authority::new("New Root", Validity::Current)?;
    for (identity, authority) in [
        (next.issue(&["localhost"], Validity::Current)?, &next),
        (authority.issue(&["elsewhere"], Validity::Current)?, &authority),
        (authority.issue(&["localhost"], Validity::Expired)?, &authority),
    ] {
        hub.present(authority.server_config(&identity)?);
        let outcome = format!("{:?}", reach.open("after").await.err());
        says("a client of the old root", &outcome, &["certificate"])?;
    }
    device::close(kept).await
}

#[tokio::test]
async fn dropped_connection_ends_without_a_word_and_the_next_is_taken() -> Result<(), Failure> {
    let hub = IotHub::start(article::hub_settings(), None).await?;
    let mut client = Client::with_cbs(&hub).await?;
    hub.drop_connections();
    loop {
        match bounded("the end", client.raw.reader.next()).await? {
            Ok(Frame::Amqp {
                performative: Performative::Close(close),
                ..
            }) => return Err(Failure::new(format!("a close: {close:?}"))),
            Ok(_) => {}
            Err(error) => {
                // A reset, if something that we sent was not read.
                let kind = error.kind();
                let is_end = matches!(kind, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset);
                ensure(is_end, || format!("it ends with {error}"))?;
                break;
            }
        }
    }
    let is_lost = |observed: &Observed| match observed {
        Observed::Lost { connection: 1, why } => Some(why.clone()),
        _ => None,
    };
    let why = hub.journal().find("the loss", is_lost).await?;
    ensure_eq("why", why.as_str(), "dropped on command")?;
    Client::with_cbs(&hub).await?;
    hub.ensure_no_faults()
}

#[tokio::test]
async fn tls_client_that_names_no_hub_is_a_fault_unless_it_need_not() -> Result<(), Failure> {
    let authority = Authority::new("Test Root", Validity::Current)?;
    let identity = authority.issue(&["localhost"], Validity::Current)?;
    let hub = IotHub::start(article::hub_settings(), Some(authority.server_config(&identity)?)).await?;
    let mut config = (*authority.client_config()?).clone();
    config.enable_sni = false;
    let nameless = Reach::Tls(hub.address(), config.into());
    let outcome = nameless.open("nameless").await;
    ensure(outcome.is_err(), || "a client without SNI was taken".to_owned())?;
    let is_fault = |observed: &Observed| match observed {
        Observed::Fault { connection: 1, what } => Some(what.clone()),
        _ => None,
    };
    let fault = hub.journal().find("the fault", is_fault).await?;
    says("the fault", &fault, &["does not say which hub"])?;
    hub.change(|settings| settings.require_sni = false);
    device::close(nameless.open("nameless").await?).await?;
    let names = hub.journal().select(|observed| match observed {
        Observed::Connected { connection, sni } => Some((*connection, sni.clone())),
        _ => None,
    });
    ensure_eq("the names asked for", names, vec![(2, None)])
}

#[tokio::test]
async fn aborted_connection_is_reset() -> Result<(), Failure> {
    let hub = IotHub::start(article::hub_settings(), None).await?;
    let mut client = Client::with_cbs(&hub).await?;
    let token = article::device_token("netduino", &article::device_key());
    // All that was sent has been read: nothing but the order makes this a reset.
    ensure_eq("the token", client.put(&token).await?, 200)?;
    hub.order(&Order::Abort);
    let error = loop {
        if let Err(error) = bounded("the end", client.raw.reader.next()).await? {
            break error;
        }
    };
    ensure_eq("how it ends", error.kind(), ErrorKind::ConnectionReset)?;
    Client::with_token(&hub, &token).await?;
    hub.ensure_no_faults()
}
