//! Device twins: a document with desired and reported properties per device or module, read and patched over a pair of
//! pre-settled links.

use std::collections::BTreeMap;

use bytes::Bytes;
use fe2o3_amqp::types::messaging::annotations::OwnedKey;
use fe2o3_amqp::types::messaging::{Body, Data, MessageAnnotations, MessageId, Properties};
use fe2o3_amqp::types::primitives::{Symbol, Value};
use serde_json::{Map, Value as Json, json};

use super::super::message;
use super::node::Identity;
use super::observed::ConnectionId;

/// One half of a twin; each change gives it a new version.
struct Section {
    properties: Map<String, Json>,
    version: u64,
}

impl Default for Section {
    fn default() -> Self {
        Self {
            properties: Map::new(),
            version: 1,
        }
    }
}

impl Section {
    fn patch(&mut self, patch: &Map<String, Json>) {
        merge(&mut self.properties, patch);
        self.version += 1;
    }

    fn document(&self) -> Json {
        let mut document = self.properties.clone();
        document.insert("$version".to_owned(), json!(self.version));
        Json::Object(document)
    }
}

/// RFC 7386: null takes away, objects are merged, anything else replaces.
fn merge(target: &mut Map<String, Json>, patch: &Map<String, Json>) {
    for (name, value) in patch {
        match value {
            Json::Null => {
                target.remove(name);
            }
            Json::Object(inner) => {
                let entry = target.entry(name.clone()).or_insert_with(|| json!({}));
                if !entry.is_object() {
                    *entry = json!({});
                }
                if let Json::Object(outer) = entry {
                    merge(outer, inner);
                }
            }
            other => {
                target.insert(name.clone(), other.clone());
            }
        }
    }
}

#[derive(Default)]
struct Twin {
    desired: Section,
    reported: Section,
    /// The connection that asked to be told of changes, and what it has not been sent.
    subscriber: Option<(ConnectionId, Vec<Bytes>)>,
}

/// A request as it was understood, and the status it got.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TwinRequest {
    pub(crate) operation: String,
    pub(crate) resource: String,
    pub(crate) correlation_id: Option<MessageId>,
    pub(crate) status: i32,
}

/// All twins of the hub.
#[derive(Default)]
pub(super) struct Twins(BTreeMap<Identity, Twin>);

impl Twins {
    /// Changes desired properties, as a service does, and tells whom it concerns.
    pub(super) fn set_desired(&mut self, identity: &Identity, patch: &Map<String, Json>) {
        let Twin {
            desired, subscriber, ..
        } = self.of(identity);
        desired.patch(patch);
        if let Some((_, unsent)) = subscriber {
            let mut notice = patch.clone();
            notice.insert("$version".to_owned(), json!(desired.version));
            let body = Json::Object(notice).to_string();
            unsent.push(encode(Properties::default(), None, body));
        }
    }

    /// The reported properties, with their version.
    pub(super) fn reported(&mut self, identity: &Identity) -> Json {
        self.of(identity).reported.document()
    }

    /// What a connection has still to be told about a twin.
    pub(super) fn next_notice(&mut self, identity: &Identity, connection: ConnectionId) -> Option<Bytes> {
        match &mut self.0.get_mut(identity)?.subscriber {
            Some((subscriber, unsent)) if *subscriber == connection && !unsent.is_empty() => {
                Some(unsent.remove(0))
            }
            Some(_) | None => None,
        }
    }

    /// A connection, or its link to this twin, is gone.
    pub(super) fn unsubscribe(&mut self, connection: ConnectionId, of: Option<&Identity>) {
        for (identity, twin) in &mut self.0 {
            if of.is_none_or(|of| of == identity) {
                twin.subscriber
                    .take_if(|(subscriber, _)| *subscriber == connection);
            }
        }
    }

    /// Serves a request; gives what to record of it, and the answer.
    pub(super) fn serve(
        &mut self,
        identity: &Identity,
        payload: &[u8],
        connection: ConnectionId,
    ) -> (TwinRequest, Bytes) {
        let mut request = TwinRequest {
            operation: String::new(),
            resource: String::new(),
            correlation_id: None,
            status: 400,
        };
        let mut body = error(400, "The request cannot be decoded.");
        if let Ok(received) = message::decode(payload) {
            let annotation = |name: &str| {
                let MessageAnnotations(map) = received.message_annotations.as_ref()?;
                match map.get(&OwnedKey::from(name))? {
                    Value::String(text) | Value::Symbol(Symbol(text)) => Some(text.clone()),
                    _ => None,
                }
            };
            request.operation = annotation("operation").unwrap_or_default();
            request.resource = annotation("resource").unwrap_or_default();
            request.correlation_id = received
                .properties
                .as_ref()
                .and_then(|properties| properties.correlation_id.clone());
            let content = message::body_of(&received);
            (request.status, body) = self.of(identity).serve(&request, &content, connection);
        }
        let properties = Properties {
            correlation_id: request.correlation_id.clone(),
            ..Properties::default()
        };
        let answer = encode(properties, Some(request.status), body);
        (request, answer)
    }

    fn of(&mut self, identity: &Identity) -> &mut Twin {
        self.0.entry(identity.clone()).or_default()
    }
}

impl Twin {
    fn serve(&mut self, request: &TwinRequest, content: &[u8], connection: ConnectionId) -> (i32, String) {
        const REPORTED: &str = "/properties/reported";
        const DESIRED: &str = "/notifications/twin/properties/desired";
        if request.correlation_id.is_none() {
            return (400, error(400, "The correlation-id is missing."));
        }
        match (request.operation.as_str(), request.resource.as_str()) {
            ("GET", "") => {
                let twin =
                    json!({ "desired": self.desired.document(), "reported": self.reported.document() });
                (200, twin.to_string())
            }
            ("PATCH", REPORTED) => match serde_json::from_slice(content) {
                Ok(Json::Object(patch)) => {
                    self.reported.patch(&patch);
                    (204, String::new())
                }
                Ok(_) | Err(_) => (400, error(400, "The patch is no JSON object.")),
            },
            ("PUT", DESIRED) => {
                self.subscriber = Some((connection, Vec::new()));
                (200, String::new())
            }
            ("DELETE", DESIRED) => {
                self.subscriber = None;
                (200, String::new())
            }
            _ => (400, error(400, "No such operation on this resource.")),
        }
    }
}

fn error(code: i32, text: &str) -> String {
    json!({ "errorCode": code * 1000, "message": text }).to_string()
}

fn encode(properties: Properties, status: Option<i32>, body: String) -> Bytes {
    let body = Body::Data(vec![Data(body.into_bytes().into())].into());
    let mut answer = message::with_properties(body, properties);
    answer.message_annotations = status.map(|status| {
        MessageAnnotations::builder()
            .insert("status", Value::Int(status))
            .build()
    });
    message::encode(&answer)
}
