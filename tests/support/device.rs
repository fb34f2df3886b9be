//! Devices and services on `fe2o3-amqp`, a stack that is not ours.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::Arc;

use fe2o3_amqp::connection::ConnectionHandle;
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::messaging::{
    AmqpValue, ApplicationProperties, Body, Message, MessageId, Properties, Target,
};
use fe2o3_amqp::types::primitives::{SimpleValue, Value};
use fe2o3_amqp::{Connection, Delivery, Receiver, Sender, Session};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Failure, bounded, ensure, ensure_eq, message};

/// An open connection.
pub(crate) type Opened = ConnectionHandle<()>;
/// A session of it.
pub(crate) type Begun = SessionHandle<()>;
/// A message received.
pub(crate) type Received = Delivery<Body<Value>>;

/// How to reach the other side.
#[derive(Clone)]
pub(crate) enum Reach {
    /// In clear text, the AMQP header first and no SASL: how the article's device talks to the router.
    Plain(SocketAddr),
    /// By TLS and SASL ANONYMOUS to a hub called `localhost`: how a device talks to the hub without a router.
    Tls(SocketAddr, Arc<ClientConfig>),
    /// By TLS to a router called `localhost`, and with SASL as given.
    Login(SocketAddr, Arc<ClientConfig>, SaslProfile),
}

impl Reach {
    /// Opens a connection.
    pub(crate) async fn open(&self, container_id: &str) -> Result<Opened, Failure> {
        self.open_with_frames_of(container_id, u32::MAX).await
    }

    /// Opens a connection that takes frames of this size at most.
    pub(crate) async fn open_with_frames_of(&self, container_id: &str, max: u32) -> Result<Opened, Failure> {
        let builder = Connection::builder()
            .container_id(container_id)
            .max_frame_size(max);
        let opening = async {
            match self {
                Self::Plain(address) => {
                    let stream = connect(*address).await?;
                    Ok(builder
                        .scheme("amqp")
                        .hostname("127.0.0.1")
                        .open_with_stream(stream)
                        .await?)
                }
                Self::Tls(address, config) => {
                    let stream = encrypt(*address, config).await?;
                    let builder = builder
                        .scheme("amqp")
                        .hostname("localhost")
                        .sasl_profile(SaslProfile::Anonymous);
                    Ok(builder.open_with_stream(stream).await?)
                }
                Self::Login(address, config, profile) => {
                    let stream = encrypt(*address, config).await?;
                    let builder = builder
                        .scheme("amqp")
                        .hostname("localhost")
                        .sasl_profile(profile.clone());
                    Ok(builder.open_with_stream(stream).await?)
                }
            }
        };
        Box::pin(bounded(
            &format!("opening a connection for {container_id}"),
            opening,
        ))
        .await?
    }
}

/// How to log in with a password.
pub(crate) fn plain(user: &str, password: &str) -> SaslProfile {
    SaslProfile::Plain {
        username: user.to_owned(),
        password: password.to_owned(),
    }
}

pub(crate) async fn encrypt(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, Failure> {
    let stream = connect(address).await?;
    let name = ServerName::try_from("localhost")?;
    Ok(TlsConnector::from(config.clone()).connect(name, stream).await?)
}

async fn connect(address: SocketAddr) -> Result<TcpStream, Failure> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Begins a session.
pub(crate) async fn begin(connection: &mut Opened) -> Result<Begun, Failure> {
    Ok(bounded("a begin", Session::begin(connection)).await??)
}

/// Attaches a sender.
pub(crate) async fn sender(session: &mut Begun, name: &str, address: &str) -> Result<Sender, Failure> {
    Ok(bounded(
        &format!("the attach of sender {name}"),
        Sender::attach(session, name, address),
    )
    .await??)
}

/// Attaches a receiver that settles nothing by itself.
pub(crate) async fn receiver(session: &mut Begun, name: &str, address: &str) -> Result<Receiver, Failure> {
    Ok(bounded(
        &format!("the attach of receiver {name}"),
        Receiver::attach(session, name, address),
    )
    .await??)
}

/// The next message on a link.
pub(crate) async fn receive(receiver: &mut Receiver) -> Result<Received, Failure> {
    let what = format!("a message on {}", receiver.name());
    Ok(bounded(&what, receiver.recv::<Body<Value>>()).await??)
}

/// Closes what a scenario opened, in order.
pub(crate) async fn close(mut connection: Opened) -> Result<(), Failure> {
    Ok(bounded("closing a connection", connection.close()).await??)
}

/// Ends a session in order.
pub(crate) async fn end(mut session: Begun) -> Result<(), Failure> {
    Ok(bounded("ending a session", session.end()).await??)
}

/// The error says this, in the words of the client library.
pub(crate) fn ensure_says<T>(
    what: &str,
    outcome: Result<T, impl Debug>,
    texts: &[&str],
) -> Result<(), Failure> {
    let error = match outcome {
        Ok(_) => return Err(Failure::new(format!("{what}: no error"))),
        Err(error) => format!("{error:?}"),
    };
    for text in texts {
        ensure(error.contains(text), || format!("{what}: no {text} in {error}"))?;
    }
    Ok(())
}

/// A second connection is opened and at once closed, with the reason; or the opening itself is told so.
pub(crate) async fn ensure_disallowed(outcome: Result<Opened, Failure>) -> Result<(), Failure> {
    let texts = ["ResourceLimitExceeded", "connection disallowed by local policy"];
    match outcome {
        Ok(mut connection) => {
            let closed = bounded("the close of a denied connection", connection.on_close()).await?;
            ensure_says("a denied connection", closed, &texts)
        }
        Err(failure) => ensure(failure.to_string().contains(texts[1]), || failure.to_string()),
    }
}

/// A put-token request as the article's device writes it.
pub(crate) struct PutToken<'a> {
    pub(crate) token: &'a str,
    pub(crate) name: &'a str,
    pub(crate) token_type: &'a str,
    pub(crate) message_id: MessageId,
}

/// The answer to a put-token.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) status: i32,
    pub(crate) description: String,
}

/// Puts a token as the article's device does: links `cbs-sender` and `cbs-reply-to` in a session of their own, closed
/// and ended afterwards. The first message received is taken for the answer.
pub(crate) async fn put_token(connection: &mut Opened, request: PutToken<'_>) -> Result<Granted, Failure> {
    let mut session = begin(connection).await?;
    let mut sender = sender(&mut session, "cbs-sender", "$cbs").await?;
    let attaching = Receiver::builder()
        .name("cbs-reply-to")
        .source("$cbs")
        .target(Target {
            address: Some("cbs-reply-to".to_owned()),
            ..Target::default()
        })
        .attach(&mut session);
    let mut receiver = bounded("the attach of receiver cbs-reply-to", attaching).await??;
    let PutToken {
        token,
        name,
        token_type,
        message_id,
    } = request;
    let properties = Properties {
        message_id: Some(message_id.clone()),
        reply_to: Some("cbs-reply-to".to_owned()),
        ..Properties::default()
    };
    let mut request = message::with_properties(Body::Value(AmqpValue(Value::from(token))), properties);
    let map = ApplicationProperties::builder().insert("operation", "put-token");
    let map = map.insert("type", token_type).insert("name", name);
    request.application_properties = Some(map.build());
    let outcome = bounded("the outcome of the put-token", sender.send(request)).await??;
    ensure_eq("the put-token is accepted", outcome.is_accepted(), true)?;
    let delivery = receive(&mut receiver).await?;
    bounded("accepting the answer", receiver.accept(&delivery)).await??;
    let granted = granted(delivery.message(), message_id)?;
    bounded("closing cbs-sender", sender.close()).await??;
    bounded("closing cbs-reply-to", receiver.close()).await??;
    end(session).await?;
    Ok(granted)
}

/// What an answer to the put-token of this id says.
pub(crate) fn granted(answer: &Message<Body<Value>>, message_id: MessageId) -> Result<Granted, Failure> {
    let correlation_id = answer
        .properties
        .as_ref()
        .and_then(|properties| properties.correlation_id.clone());
    ensure_eq(
        "the correlation-id of the answer",
        correlation_id,
        Some(message_id),
    )?;
    let Some(SimpleValue::Int(status)) = message::application_property(answer, "status-code").cloned() else {
        return Err(Failure::new("an answer without a status-code of type int"));
    };
    let description = match message::application_property(answer, "status-description") {
        Some(SimpleValue::String(text)) => text.clone(),
        _ => String::new(),
    };
    Ok(Granted { status, description })
}
