//! The IoT Hub stand-in by itself, no router between: it must do what the tests that rely on it expect of it.

mod support;

use fe2o3_amqp::link::SenderAttachError;
use fe2o3_amqp::types::messaging::MessageId;
use fe2o3_amqp::types::messaging::annotations::OwnedKey;
use fe2o3_amqp::types::primitives::{Uuid, Value};
use fe2o3_amqp::{Connection, Sender};
use support::article::{self, DEVICE, HUB};
use support::certificates::{Authority, Validity};
use support::device::{self, Granted, Opened, PutToken, Reach};
use support::iot_hub::{IotHub, Observed, Settings};
use support::sas::{self, Key};
use support::{Failure, bounded, ensure, ensure_eq, message};

const TOKEN_TYPE: &str = "servicebus.windows.net:sastoken";

async fn hub_with_tls(settings: Settings) -> Result<(IotHub, Reach), Failure> {
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

#[tokio::test]
async fn article_scenario_works_without_a_router() -> Result<(), Failure> {
    let (hub, reach) = hub_with_tls(article::hub_settings()).await?;
    let device = reach.open("netduino").await?;
    let service = reach.open("service").await?;
    article::run(device, service, &hub, &mut ()).await?;
    let sni = hub.journal().select(|observed| match observed {
        Observed::Connected { sni, .. } => sni.clone(),
        _ => None,
    });
    ensure_eq("the names asked for", sni, vec!["localhost".to_owned(); 2])
}

#[tokio::test]
async fn tokens_are_judged_as_iot_hub_judges_them() -> Result<(), Failure> {
    let mut settings = article::hub_settings().with_device("second", Key::from_text("second"));
    settings.max_tokens = 1;
    let (hub, reach) = hub_with_tls(settings).await?;
    let mut connection = reach.open("device").await?;
    let later = sas::unix_now() + 60;
    let resource = format!("{HUB}/devices/{DEVICE}");
    let (good, wrong) = (article::device_key(), Key::from_text("not the key"));
    let second = sas::token(
        &format!("{HUB}/devices/second"),
        &Key::from_text("second"),
        None,
        later,
    );
    let cases = [
        (
            sas::token(&resource, &wrong, None, later),
            401,
            "invalid signature",
        ),
        (sas::token(&resource, &good, None, 1), 401, "expired"),
        (
            sas::token(&format!("{HUB}/devices/nobody"), &good, None, later),
            404,
            "Device nobody at IotHub",
        ),
        (
            sas::token("other.azure-devices.net/devices/netduino", &good, None, later),
            401,
            "not this IoT hub",
        ),
        ("SharedAccessSignature sr=x".to_owned(), 400, "malformed"),
        (sas::token(&resource, &good, None, later), 200, "OK"),
        (sas::token(&resource, &good, None, later + 60), 200, "OK"),
        (second, 500, "The maximum number of tokens per connection (1)"),
    ];
    let ids = [
        MessageId::Ulong(0),
        MessageId::Uuid(Uuid::from([7; 16])),
        MessageId::String("id".to_owned()),
    ];
    for ((token, status, text), id) in cases.into_iter().zip(ids.into_iter().cycle()) {
        let granted = put(&mut connection, &token, id).await?;
        ensure_eq(text, granted.status, status)?;
        ensure(granted.description.contains(text), || {
            format!("{granted:?} does not say {text}")
        })?;
    }
    device::close(connection).await?;
    hub.ensure_no_faults()
}

#[tokio::test]
async fn links_are_authorised_by_the_tokens_of_their_connection() -> Result<(), Failure> {
    let settings = article::hub_settings().with_device("netduino2", Key::from_text("2"));
    let (hub, reach) = hub_with_tls(settings).await?;
    let mut connection = reach.open("device").await?;
    let token = article::device_token(DEVICE, &article::device_key());
    ensure_eq(
        "the token",
        put(&mut connection, &token, MessageId::Ulong(1)).await?.status,
        200,
    )?;
    let mut session = device::begin(&mut connection).await?;
    let spelt_out = format!("amqps://{HUB}:5671/devices/{DEVICE}/messages/Events");
    let own = device::sender(&mut session, "own", &spelt_out).await?;
    for (address, condition, code) in [
        // A prefix of a name is no prefix of a path.
        (
            "/devices/netduino2/messages/events",
            "UnauthorizedAccess",
            "401002",
        ),
        ("/messages/devicebound", "UnauthorizedAccess", "401002"),
        ("/devices/nobody/messages/events", "NotFound", "404001"),
        ("/devices/netduino/messages/event", "NotFound", "404006"),
    ] {
        // fe2o3-amqp can attach nothing more in a session that refused it a link.
        let mut session = device::begin(&mut connection).await?;
        let refused = bounded(address, Sender::attach(&mut session, address, address)).await?;
        let Err(SenderAttachError::RemoteClosedWithError(error)) = refused else {
            return Err(Failure::new(format!("{address}: {refused:?}")));
        };
        let text = format!("{error:?}");
        ensure(text.contains(condition) && text.contains(code), || {
            format!("{address}: {text}")
        })?;
    }
    bounded("closing", own.close()).await??;
    device::close(connection).await?;
    hub.ensure_no_faults()
}

#[tokio::test]
async fn released_command_comes_again_with_its_count() -> Result<(), Failure> {
    let (hub, reach) = hub_with_tls(article::hub_settings()).await?;
    let mut connection = reach.open("both").await?;
    ensure_eq(
        "the token",
        put(&mut connection, &article::service_token(), MessageId::Ulong(1))
            .await?
            .status,
        200,
    )?;
    let mut session = device::begin(&mut connection).await?;
    let mut sender = device::sender(&mut session, "commands", "/messages/deviceBound").await?;
    let token = article::device_token(DEVICE, &article::device_key());
    ensure_eq(
        "the token",
        put(&mut connection, &token, MessageId::Ulong(1)).await?.status,
        200,
    )?;
    let mut command = message::data("blink");
    if let Some(properties) = &mut command.properties {
        properties.to = Some(format!("/devices/{DEVICE}/messages/deviceBound"));
    }
    ensure(
        bounded("sending", sender.send(command)).await??.is_accepted(),
        || "not queued".to_owned(),
    )?;
    let address = format!("/devices/{DEVICE}/messages/deviceBound");
    let mut receiver = device::receiver(&mut session, "receive-link", &address).await?;
    let mut tags = Vec::new();
    for count in [0, 1] {
        let delivery = device::receive(&mut receiver).await?;
        let annotations = delivery.message().message_annotations.as_ref();
        let found = annotations.and_then(|map| map.0.get(&OwnedKey::from("iothub-deliverycount")).cloned());
        ensure_eq("iothub-deliverycount", found, Some(Value::Ubyte(count)))?;
        tags.push(delivery.delivery_tag().to_vec());
        bounded("releasing", receiver.release(&delivery)).await??;
    }
    ensure(tags.first() != tags.last(), || {
        "a lock token used twice".to_owned()
    })?;
    // fe2o3-amqp takes a transfer that crosses its close for an error, and the command is on its way a third time.
    bounded("closing receive-link", receiver.close()).await??;
    device::close(connection).await?;
    hub.ensure_no_faults()
}

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
