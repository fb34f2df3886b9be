//! The IoT Hub stand-in as a process of its own, for devices on stacks that no test in Rust can run.
//!
//! It speaks the language of the interop peers: one JSON object a line, commands on stdin and answers and events on
//! stdout. It ends when stdin does.

#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use fe2o3_amqp::types::messaging::{ApplicationProperties, DeliveryState, MessageId};
use fe2o3_amqp::types::primitives::SimpleValue;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use support::iot_hub::{ConnectionId, Identity, IotHub, Observed, Settings};
use support::sas::Key;
use support::{Failure, message};

/// Bytes of a lock token, which is the delivery-tag of a command.
const LOCK_TOKEN: usize = 16;

/// A request, with the number that its answer carries.
#[derive(Deserialize)]
struct Numbered {
    id: u64,
    #[serde(flatten)]
    request: Request,
}

#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
enum Request {
    /// Be the hub called `name`, with these devices and their keys in base64.
    Listen {
        name: String,
        devices: BTreeMap<String, String>,
        tls: Tls,
    },
    /// A command of the cloud's for a device.
    Command {
        device: String,
        body: String,
        ack: String,
    },
    /// A service calls a method of a device; the answer is an event.
    Method {
        device: String,
        name: String,
        payload: Value,
    },
    /// A service changes the desired properties of a device's twin.
    Desired {
        device: String,
        patch: Map<String, Value>,
    },
    /// The reported properties of a device's twin.
    Reported { device: String },
    /// What there has been so far.
    Counts { device: String },
    /// Close all connections as an upgrade of the service does.
    CloseConnections { why: String },
}

/// Files in PEM.
#[derive(Deserialize)]
struct Tls {
    cert: String,
    key: String,
    ca: String,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> Result<(), Failure> {
    let (sender, mut lines) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let mut hub = None;
    while let Some(line) = lines.recv().await.transpose()? {
        let Numbered { id, request } = serde_json::from_str(&line)?;
        let mut answer = match obey(&mut hub, request).await {
            Ok(answer) => answer,
            Err(failure) => json!({ "error": failure.to_string() }),
        };
        answer["id"] = id.into();
        say(&answer)?;
    }
    Ok(())
}

async fn obey(hub: &mut Option<Arc<IotHub>>, request: Request) -> Result<Value, Failure> {
    let running = || {
        hub.as_ref()
            .ok_or_else(|| Failure::new("the hub does not listen yet"))
    };
    match request {
        Request::Listen { name, devices, tls } => {
            let mut settings = Settings::new(&name);
            for (device, key) in devices {
                settings = settings.with_device(&device, Key::from_base64(&key)?);
            }
            let started = Arc::new(IotHub::start(settings, Some(tls.server_config()?)).await?);
            let port = started.address().port();
            tokio::spawn(report(started.clone()));
            *hub = Some(started);
            Ok(json!({ "port": port }))
        }
        Request::Command { device, body, ack } => {
            let mut command = message::data(body.clone());
            if let Some(properties) = &mut command.properties {
                properties.to = Some(format!("/devices/{device}/messages/devicebound"));
                properties.message_id = Some(MessageId::String(body));
            }
            let acknowledged = ApplicationProperties::builder().insert("iothub-ack", ack);
            command.application_properties = Some(acknowledged.build());
            running()?.send_command(&device, command)?;
            Ok(json!({}))
        }
        Request::Method {
            device,
            name,
            payload,
        } => {
            tokio::spawn(call(running()?.clone(), device, name, payload));
            Ok(json!({}))
        }
        Request::Desired { device, patch } => {
            running()?.set_desired(&Identity::device(&device), &patch);
            Ok(json!({}))
        }
        Request::Reported { device } => {
            Ok(json!({ "reported": running()?.reported(&Identity::device(&device)) }))
        }
        Request::Counts { device } => {
            let hub = running()?;
            Ok(json!({
                "connections": connections(hub).len(),
                "cbs_links": cbs_links(hub),
                "pending": hub.pending_commands(&device),
                "dead_letters": hub.dead_letters(),
            }))
        }
        Request::CloseConnections { why } => {
            running()?.close_connections(&why);
            Ok(json!({}))
        }
    }
}

/// Calls a method, and says what came of it.
async fn call(hub: Arc<IotHub>, device: String, name: String, payload: Value) {
    let outcome = hub
        .invoke(&Identity::device(&device), &name, payload.to_string().as_bytes())
        .await;
    // Who does not listen any more has no use for it.
    let _ = say(&match outcome {
        Ok(answer) => {
            let payload: Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
            json!({ "event": "answered", "device": device, "status": answer.status, "payload": payload })
        }
        Err(failure) => json!({ "event": "unanswered", "device": device, "why": failure.to_string() }),
    });
}

/// Connections that have been opened.
fn connections(hub: &IotHub) -> Vec<ConnectionId> {
    hub.journal().select(|observed| match observed {
        Observed::Opened { connection, .. } => Some(*connection),
        _ => None,
    })
}

/// The most `$cbs` links that were attached on one connection, one after the other or at once.
fn cbs_links(hub: &IotHub) -> usize {
    let mut attached = BTreeMap::<ConnectionId, usize>::new();
    hub.journal().select(|observed| match observed {
        Observed::Attached {
            connection, attach, ..
        } if format!("{:?}{:?}", attach.source, attach.target).contains("$cbs") => {
            *attached.entry(*connection).or_default() += 1;
            Some(())
        }
        _ => None,
    });
    attached.into_values().max().unwrap_or_default()
}

/// Says what happens, from the start on, for as long as the process lives.
async fn report(hub: Arc<IotHub>) {
    let mut seen = 0;
    loop {
        let news = hub.journal().after(seen).await;
        seen += news.len();
        for event in news.iter().filter_map(event) {
            if say(&event).is_err() {
                return;
            }
        }
    }
}

/// What of the journal is an event for the other side of the pipe.
fn event(observed: &Observed) -> Option<Value> {
    match observed {
        Observed::Opened { connection, open } => Some(json!({
            "event": "opened", "connection": connection, "container": open.container_id, "hostname": open.hostname,
        })),
        Observed::Token {
            connection,
            request,
            status,
        } => Some(json!({
            "event": "token", "connection": connection, "name": request.name, "status": status,
        })),
        Observed::Telemetry(delivery) => {
            let message = message::decode(&delivery.payload).ok()?;
            let property = match message::application_property(&message, "number") {
                Some(SimpleValue::String(number)) => Some(number.clone()),
                Some(_) | None => None,
            };
            Some(json!({
                "event": "telemetry", "connection": delivery.connection, "address": delivery.address,
                "body": String::from_utf8_lossy(&message::body_of(&message)), "number": property,
            }))
        }
        Observed::Twin {
            identity, request, ..
        } => Some(json!({
            "event": "twin", "device": identity.to_string(), "operation": request.operation, "status": request.status,
        })),
        // The answers of `$cbs` have shorter tags than the lock tokens of commands.
        Observed::Disposed {
            connection,
            state,
            tag,
            ..
        } if tag.len() == LOCK_TOKEN => {
            Some(json!({ "event": "disposed", "connection": connection, "state": name_of(state.as_ref()) }))
        }
        Observed::Refused { link, error, .. } => Some(json!({
            "event": "refused", "link": link, "description": error.description,
        })),
        Observed::Closed { connection, .. } | Observed::Lost { connection, .. } => {
            Some(json!({ "event": "gone", "connection": connection }))
        }
        Observed::Fault { connection, what } => Some(json!({
            "event": "fault", "connection": connection, "what": what,
        })),
        _ => None,
    }
}

fn name_of(state: Option<&DeliveryState>) -> &'static str {
    match state {
        Some(DeliveryState::Accepted(_)) => "accepted",
        Some(DeliveryState::Rejected(_)) => "rejected",
        Some(DeliveryState::Released(_)) => "released",
        Some(DeliveryState::Modified(_)) => "modified",
        Some(DeliveryState::Received(_)) => "received",
        None => "none",
    }
}

fn say(value: &Value) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}

impl Tls {
    /// As IoT Hub: a client certificate is asked for, and not needed.
    fn server_config(&self) -> Result<Arc<ServerConfig>, Failure> {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.ca)?)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![CertificateDer::from_pem_file(&self.cert)?],
                PrivateKeyDer::from_pem_file(&self.key)?,
            )?;
        Ok(Arc::new(config))
    }
}
