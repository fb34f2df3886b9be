//! The behaviours of the stand-in, each shown without a router between.

mod client;
mod commands;
mod event_hubs;
mod limits;
mod links;
mod pairs;
mod recorded;
mod service_bus;
mod strictness;
mod tokens;
mod transport;

use crate::support::article::HUB;
use crate::support::certificates::{Authority, Validity};
use crate::support::device::{self, Granted, Opened, PutToken, Reach};
use crate::support::iot_hub::{IotHub, Settings};
use crate::support::raw::{self, RawDevice};
use crate::support::wire::AMQP_HEADER;
use crate::support::{Failure, ensure};
use fe2o3_amqp::types::messaging::MessageId;
use fe2o3_amqp::types::performatives::{Open, Performative};

const TOKEN_TYPE: &str = "servicebus.windows.net:sastoken";

pub(crate) async fn hub_with_tls(settings: Settings) -> Result<(IotHub, Reach), Failure> {
    let authority = Authority::new("Test Root", Validity::Current)?;
    let identity = authority.issue(&["*.azure-devices.net", "localhost"], Validity::Current)?;
    let hub = IotHub::start(settings, Some(authority.server_config(&identity)?)).await?;
    let reach = Reach::Tls(hub.address(), authority.client_config()?);
    Ok((hub, reach))
}

async fn put(connection: &mut Opened, token: &str, message_id: MessageId) -> Result<Granted, Failure> {
    device::put_token(
        connection,
        PutToken {
            token,
            name: "a name",
            token_type: TOKEN_TYPE,
            message_id,
        },
    )
    .await
}

/// What an error says, in the words of the codec.
pub(crate) fn says(what: &str, text: &str, expected: &[&str]) -> Result<(), Failure> {
    for part in expected {
        ensure(text.contains(part), || format!("{what}: no {part} in {text}"))?;
    }
    Ok(())
}

/// A connection that has said its open, and waits for what comes of it.
pub(crate) async fn opening(hub: &IotHub) -> Result<RawDevice, Failure> {
    let mut peer = RawDevice::connect(hub.address()).await?;
    peer.writer.raw(AMQP_HEADER.to_vec());
    let hostname = Some(HUB.to_owned());
    peer.send(Performative::Open(Open {
        hostname,
        ..raw::open("device", 65_536)
    }))?;
    peer.expect_header().await?;
    Ok(peer)
}

/// The error that the hub closes with.
pub(crate) async fn close_of(peer: &mut RawDevice) -> Result<String, Failure> {
    let is_close = |frame| match frame {
        Performative::Close(close) => Some(format!("{:?}", close.error)),
        _ => None,
    };
    peer.expect("a close", is_close).await
}
