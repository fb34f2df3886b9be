//! Claims-based security: put-token requests, and who may use what on a connection.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use fe2o3_amqp::types::messaging::{AmqpValue, ApplicationProperties, Body, MessageId, Properties};
use fe2o3_amqp::types::primitives::{SimpleValue, Value};

use super::super::message;
use super::super::sas::{Claim, Key};
use super::clock::Moment;
use super::observed::TokenRequest;
use super::settings::Settings;

const TOKEN_TYPES: [&str; 2] = ["servicebus.windows.net:sastoken", "azure-devices.net:sastoken"];

/// A resource below the hub that a connection may use, and until when.
struct Grant {
    path: Vec<String>,
    expiry: Moment,
}

/// The tokens of one connection. They outlive the `$cbs` links and go with the connection.
#[derive(Default)]
pub(super) struct Grants(Vec<Grant>);

impl Grants {
    /// Whether a token covers this resource, segment by segment.
    pub(super) fn cover(&self, resource: &[&str]) -> bool {
        self.0.iter().any(|Grant { path, .. }| {
            path.len() <= resource.len()
                && path
                    .iter()
                    .zip(resource)
                    .all(|(granted, wanted)| granted == wanted)
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// When the first token ends, grace included.
    pub(super) fn next_lapse(&self, grace: Duration) -> Option<Moment> {
        self.0.iter().map(|grant| grant.expiry + grace).min()
    }

    /// Drops tokens that have ended, grace included; says whether there were any.
    pub(super) fn lapse(&mut self, now: Moment, grace: Duration) -> bool {
        let before = self.0.len();
        self.0.retain(|grant| grant.expiry + grace > now);
        self.0.len() < before
    }

    fn put(&mut self, path: Vec<String>, expiry: Moment, cap: usize) -> Result<(), Status> {
        if let Some(grant) = self.0.iter_mut().find(|grant| grant.path == path) {
            grant.expiry = expiry;
            return Ok(());
        }
        if self.0.len() >= cap {
            return Err(Status::too_many_tokens(cap));
        }
        self.0.push(Grant { path, expiry });
        Ok(())
    }

    /// Judges a token and, if it is good, puts it in place.
    pub(super) fn put_token(&mut self, token: &str, settings: &Settings, now: Moment) -> Status {
        self.try_put_token(token, settings, now)
            .err()
            .unwrap_or_else(Status::ok)
    }

    fn try_put_token(&mut self, token: &str, settings: &Settings, now: Moment) -> Result<(), Status> {
        let claim = Claim::parse(token).ok_or_else(|| Status::bad_request("The token is malformed."))?;
        if !settings.is_ours(claim.host()) {
            return Err(Status::unauthorized("The token's resource is not this IoT hub."));
        }
        let keys = keys_of(&claim, settings)?;
        if !claim.signed_by(&keys) {
            return Err(Status::unauthorized(
                "The specified SAS token has an invalid signature. It does not match either the primary or secondary key.",
            ));
        }
        let expiry = Duration::from_secs(claim.expiry);
        if expiry <= now {
            return Err(Status::unauthorized("The specified SAS token is expired."));
        }
        let path = claim.path().into_iter().map(str::to_owned).collect();
        self.put(path, expiry, settings.max_tokens)
    }

    /// Opens everything, for a year, to who has the key of a policy; says whether this is it.
    pub(super) fn put_key(&mut self, policy: &str, key: &str, settings: &Settings, now: Moment) -> bool {
        let year = Duration::from_secs(365 * 24 * 3600);
        let is_it = settings
            .policies
            .get(policy)
            .is_some_and(|known| known.base64() == key);
        is_it && self.put(Vec::new(), now + year, settings.max_tokens).is_ok()
    }

    /// A token of Entra, for the service's side. Nobody here could verify its signature.
    fn put_jwt(&mut self, token: &str, settings: &Settings, now: Moment) -> Status {
        let expiry = token
            .split('.')
            .nth(1)
            .and_then(|part| URL_SAFE_NO_PAD.decode(part).ok())
            .and_then(|part| serde_json::from_slice::<serde_json::Value>(&part).ok())
            .and_then(|claims| claims.get("exp")?.as_u64())
            .map(Duration::from_secs);
        match expiry {
            Some(expiry) if settings.accepts_jwt && expiry > now => self
                .put(Vec::new(), expiry, settings.max_tokens)
                .err()
                .unwrap_or_else(Status::ok),
            Some(_) | None => Status::unauthorized("The JSON web token is not accepted."),
        }
    }

    /// Takes back the token for this resource, if there is one.
    fn delete(&mut self, name: &str) -> Status {
        let path = name.split_once("://").map_or(name, |(_, rest)| rest);
        let path: Vec<&str> = path.split('/').skip(1).collect();
        self.0.retain(|grant| grant.path != path);
        Status::ok()
    }
}

fn keys_of(claim: &Claim, settings: &Settings) -> Result<Vec<Key>, Status> {
    if let Some(policy) = &claim.policy {
        let key = settings.policies.get(policy).cloned();
        return key
            .map(|key| vec![key])
            .ok_or_else(|| Status::unauthorized("No such shared access policy."));
    }
    let path = claim.path();
    let hub = claim.host();
    let (device, module) = match path.as_slice() {
        ["devices", device, "modules", module, ..] => (*device, Some(*module)),
        ["devices", device, ..] => (*device, None),
        _ => return Err(Status::unauthorized("A device token must name a device.")),
    };
    let unknown = || {
        let name = path.iter().skip(1).copied().collect::<Vec<_>>().join("/");
        Status {
            code: 404,
            description: format!("Device {name} at IotHub {hub} not registered."),
        }
    };
    let device = settings.devices.get(device).ok_or_else(unknown)?;
    match module {
        Some(module) => Ok(vec![device.modules.get(module).ok_or_else(unknown)?.clone()]),
        None => Ok(vec![device.primary.clone(), device.secondary.clone()]),
    }
}

/// The hub's answer to a put-token.
pub(super) struct Status {
    pub(super) code: i32,
    description: String,
}

impl Status {
    fn ok() -> Self {
        Self {
            code: 200,
            description: "OK".to_owned(),
        }
    }

    fn bad_request(why: &str) -> Self {
        Self {
            code: 400,
            description: why.to_owned(),
        }
    }

    fn unauthorized(why: &str) -> Self {
        Self {
            code: 401,
            description: why.to_owned(),
        }
    }

    fn too_many_tokens(cap: usize) -> Self {
        let description = format!("The maximum number of tokens per connection ({cap}) has been reached.");
        Self {
            code: 500,
            description,
        }
    }

    /// The reply message. The correlation-id is the request's message-id, of the same AMQP type; the status code is
    /// an int.
    pub(super) fn reply(&self, correlation_id: Option<MessageId>) -> Bytes {
        let properties = Properties {
            correlation_id,
            ..Properties::default()
        };
        let mut reply = message::with_properties(Body::Value(AmqpValue(Value::Null)), properties);
        let mut map = ApplicationProperties::builder();
        map = map.insert("status-code", SimpleValue::Int(self.code));
        map = map.insert("status-description", self.description.clone());
        reply.application_properties = Some(map.build());
        message::encode(&reply)
    }
}

/// Reads a request from the `$cbs` link called `link`; gives what to record of it, and the judgement.
pub(super) fn serve(
    link: &str,
    payload: &[u8],
    grants: &mut Grants,
    settings: &Settings,
    now: Moment,
) -> (TokenRequest, Status) {
    let mut request = TokenRequest {
        link: link.to_owned(),
        name: String::new(),
        token_type: String::new(),
        message_id: None,
        reply_to: None,
    };
    let Ok(received) = message::decode(payload) else {
        return (request, Status::bad_request("The request cannot be decoded."));
    };
    if let Some(properties) = &received.properties {
        request.message_id.clone_from(&properties.message_id);
        request.reply_to.clone_from(&properties.reply_to);
    }
    let text = |name: &str| match message::application_property(&received, name) {
        Some(SimpleValue::String(text)) => text.clone(),
        Some(_) | None => String::new(),
    };
    request.name = text("name");
    request.token_type = text("type");
    let status = match message::text_of(&received) {
        _ if request.name.is_empty() => Status::bad_request("The name is missing."),
        _ if text("operation").eq_ignore_ascii_case("delete-token") => grants.delete(&request.name),
        _ if !text("operation").eq_ignore_ascii_case("put-token") => {
            Status::bad_request("The operation is not put-token.")
        }
        Some(token) if request.token_type.eq_ignore_ascii_case("jwt") => grants.put_jwt(token, settings, now),
        _ if !TOKEN_TYPES
            .iter()
            .any(|known| known.eq_ignore_ascii_case(&request.token_type)) =>
        {
            Status::bad_request("The token type is not known.")
        }
        // The name is not compared: devices in the field send names that are no resource, and it is the token's own
        // resource that counts.
        Some(token) => grants.put_token(token, settings, now),
        None => Status::bad_request("The body is not a string."),
    };
    (request, status)
}
