//! Requests to a `$cbs` node and their answers, as messages (IoT Hub: `put-token`; the AMQP CBS working draft).

use crate::amqp::DecodeError;
use crate::amqp::message::{Body, Message, Properties};
use crate::amqp::value::Value;
use crate::router::identity::{Resource, SasToken, TokenFault, may_be_of_a_device};
use crate::router::settings::Secret;

/// The type of a put-token that IoT Hub, Event Hubs and Service Bus all take.
pub(super) const SAS_TOKEN: &str = "servicebus.windows.net:sastoken";
/// Kinds of tokens that are SAS tokens end so.
const SAS_SUFFIX: &str = ":sastoken";

/// What a device asks of `$cbs`.
pub(super) struct Request {
    pub(super) message: Message,
    pub(super) operation: Operation,
}

/// See [`Request`].
#[derive(Debug)]
pub(super) enum Operation {
    Put(Claim),
    /// Of the token for this audience.
    Delete(Box<str>),
}

/// A token, and what it is for.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) audience: Box<str>,
    pub(super) resource: Resource,
    pub(super) kind: Box<str>,
    pub(super) token: Secret<Box<str>>,
    /// When it ends, in seconds since 1970; `None` if its text does not say.
    pub(super) expiry: Option<u64>,
}

impl Claim {
    /// Of a SAS token.
    pub(super) fn of_sas(kind: &str, text: &str) -> Result<Self, TokenFault> {
        let token = SasToken::parse(text)?;
        Ok(Claim {
            audience: token.audience().into(),
            resource: token.resource(),
            kind: kind.into(),
            token: Secret::new(text.into()),
            expiry: Some(token.expiry()),
        })
    }

    /// Whether it opens an address. A hub believes the resource of a SAS token, which is signed; what others are for is
    /// the client's own word, and devices have no such tokens (IoT Hub: Entra is for services).
    pub(super) fn covers(&self, address: &str) -> bool {
        // As a rule it does not, which is soon seen.
        self.resource.covers(address) && (self.is_signed() || !may_be_of_a_device(address))
    }

    /// Whether it makes a token for this resource the device's own.
    pub(super) fn owns(&self, resource: &Resource) -> bool {
        self.resource == *resource && (self.is_signed() || !resource.may_be_of_a_device())
    }

    const fn is_signed(&self) -> bool {
        self.expiry.is_some()
    }

    /// Bytes of its texts. What it is for is in the resource once more.
    pub(super) fn size(&self) -> usize {
        self.token.expose().len() + self.kind.len() + 2 * self.audience.len()
    }

    /// The request that puts it.
    pub(super) fn put(&self) -> Message {
        let text = |text: &str| Value::String(text.to_owned());
        Message {
            application_properties: vec![
                (text("operation"), text("put-token")),
                (text("type"), text(&self.kind)),
                (text("name"), text(&self.audience)),
            ],
            body: Body::Value(text(self.token.expose())),
            ..Message::default()
        }
    }
}

/// Why a request is not worth asking the hub.
#[derive(Debug, thiserror::Error)]
pub(super) enum Malformed {
    /// Not even a message.
    #[error("the request is not a well-formed message: {0}")]
    Message(#[from] DecodeError),
    /// Its sender can be told.
    #[error("{what}")]
    Request {
        /// Its message-id.
        id: Option<Value>,
        reply_to: Option<Box<str>>,
        what: String,
    },
}

impl Request {
    /// Reads a request, and corrects the name under which a device that knows only its gateway asks: `gateway` is the
    /// host that its open names, `hub` the one that it is to be.
    pub(super) fn read(payload: &[u8], gateway: &str, hub: &str) -> Result<Self, Malformed> {
        let mut message = Message::decode(payload)?;
        match understand(&mut message, gateway, hub) {
            Ok(operation) => Ok(Request { message, operation }),
            Err(what) => Err(Malformed::Request {
                id: message.properties.message_id,
                reply_to: message.properties.reply_to.map(String::into_boxed_str),
                what,
            }),
        }
    }
}

fn understand(message: &mut Message, gateway: &str, hub: &str) -> Result<Operation, String> {
    let text = |key: &str| {
        let value = message.application_property(key).and_then(Value::as_text);
        value
            .filter(|text| !text.is_empty())
            .ok_or_else(|| format!("the request has no application property '{key}'"))
    };
    let (operation, kind, name) = (text("operation")?, text("type")?, text("name")?);
    let (operation, audience) = if operation.eq_ignore_ascii_case("put-token") {
        let Body::Value(Value::String(token)) = &message.body else {
            return Err("the body of a put-token is an amqp-value with the token as a string".to_owned());
        };
        let claim = if kind.to_ascii_lowercase().ends_with(SAS_SUFFIX) {
            Claim::of_sas(kind, token).map_err(|fault| fault.to_string())?
        } else {
            let audience = at_hub(name, gateway, hub);
            Claim {
                resource: Resource::of_audience(&audience),
                audience: audience.into(),
                kind: kind.into(),
                token: Secret::new(token.as_str().into()),
                expiry: None,
            }
        };
        let audience = claim.audience.clone();
        (Operation::Put(claim), audience)
    } else if operation.eq_ignore_ascii_case("delete-token") {
        let audience: Box<str> = at_hub(name, gateway, hub).into();
        (Operation::Delete(audience.clone()), audience)
    } else {
        return Err("the operation is neither put-token nor delete-token".to_owned());
    };
    // IoT Hub goes by the token's own resource, whatever the name; clients put their gateway's name there, or nonsense.
    for (key, value) in &mut message.application_properties {
        if key.as_text() == Some("name") {
            *value = Value::String(audience.clone().into_string());
        }
    }
    Ok(operation)
}

/// A name whose host is the gateway's is the hub's.
fn at_hub(name: &str, gateway: &str, hub: &str) -> String {
    let (scheme, rest) = match name.split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        None => (None, name),
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.split_once(':').map_or(authority, |(host, _)| host);
    if gateway.is_empty() || !host.eq_ignore_ascii_case(gateway) {
        return name.to_owned();
    }
    match scheme {
        Some(scheme) => format!("{scheme}://{hub}{path}"),
        None => format!("{hub}{path}"),
    }
}

/// A hub's answer.
pub(super) struct Answer {
    pub(super) message: Message,
    pub(super) status: i32,
}

impl Answer {
    /// Reads an answer; `None` if it is none.
    pub(super) fn read(payload: &[u8]) -> Option<Self> {
        let message = Message::decode(payload).ok()?;
        let status = message.application_property("status-code")?.as_integer()?;
        Some(Answer {
            status: i32::try_from(status).ok()?,
            message,
        })
    }

    /// One of our own.
    pub(super) fn new(status: i32, description: &str) -> Self {
        let text = |text: &str| Value::String(text.to_owned());
        Answer {
            status,
            message: Message {
                properties: Properties::default(),
                application_properties: vec![
                    (text("status-code"), Value::Int(status)),
                    (text("status-description"), text(description)),
                ],
                body: Body::Value(Value::Null),
                ..Message::default()
            },
        }
    }

    pub(super) const fn is_success(&self) -> bool {
        matches!(self.status, 200..=299)
    }

    pub(super) fn description(&self) -> &str {
        let description = self.message.application_property("status-description");
        description.and_then(Value::as_text).unwrap_or_default()
    }

    /// The answer as the one who asked with this message-id gets it (IoT Hub: the same AMQP type comes back).
    pub(super) fn encode_for(mut self, id: Option<Value>) -> Vec<u8> {
        self.message.properties.correlation_id = id;
        let mut payload = Vec::new();
        self.message.encode(&mut payload);
        payload
    }
}
