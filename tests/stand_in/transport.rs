//! Connections: how they come, and how they go.

use crate::support::article;
use crate::support::iot_hub::IotHub;
use crate::support::{Failure, bounded, ensure};
use fe2o3_amqp::Connection;

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
