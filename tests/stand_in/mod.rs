//! The behaviours of the stand-in, each shown without a router between.

mod commands;
mod pairs;
mod recorded;
mod strictness;
mod tokens;
mod transport;

use crate::support::Failure;
use crate::support::certificates::{Authority, Validity};
use crate::support::device::{self, Granted, Opened, PutToken, Reach};
use crate::support::iot_hub::{IotHub, Settings};
use fe2o3_amqp::types::messaging::MessageId;

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
