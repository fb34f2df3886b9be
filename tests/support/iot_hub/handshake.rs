//! Headers, SASL and open, with the values recorded from the real hub.

use std::io;

use fe2o3_amqp::types::definitions::{AmqpError, Error};
use fe2o3_amqp::types::performatives::{ChannelMax, Close, MaxFrameSize, Open, Performative};
use fe2o3_amqp::types::primitives::{Array, Symbol};
use fe2o3_amqp::types::sasl::{SaslCode, SaslInit, SaslMechanisms, SaslOutcome};
use serde_bytes::ByteBuf;

use super::super::wire::{AMQP_HEADER, Frame, FrameReader, FrameWriter, SASL_HEADER};
use super::Shared;
use super::cbs::Grants;
use super::clock::Moment;
use super::guid;
use super::observed::{ConnectionId, Observed};
use super::refusal::Refusal;
use super::settings::{Kind, Settings};

/// In the hub's order.
const MECHANISMS: [&str; 4] = ["EXTERNAL", "MSSBCBS", "ANONYMOUS", "PLAIN"];

/// What came of a peer's first header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Greeting {
    /// It is that of AMQP itself: Microsoft's device SDK for Node does without SASL, and is let in.
    Bare,
    /// SASL went well, and the header of AMQP follows.
    Authenticated,
    /// Nothing more is to be said.
    Refused,
}

/// SASL, server side.
pub(super) async fn authenticate(
    connection: ConnectionId,
    reader: &mut FrameReader,
    writer: &FrameWriter,
    grants: &mut Grants,
    shared: &Shared,
) -> io::Result<Greeting> {
    let header = reader.header().await?;
    if header == AMQP_HEADER {
        return Ok(Greeting::Bare);
    }
    writer.raw(SASL_HEADER.to_vec());
    if header != SASL_HEADER {
        return Ok(Greeting::Refused);
    }
    let mechanisms = MECHANISMS
        .iter()
        .map(|&name| Symbol::from(name))
        .collect::<Vec<_>>();
    writer.send_sasl(&SaslMechanisms {
        sasl_server_mechanisms: Array::from(mechanisms),
    })?;
    let Frame::Sasl(body) = reader.next().await? else {
        return Ok(Greeting::Refused);
    };
    let init: SaslInit = serde_amqp::from_slice(&body).map_err(io::Error::other)?;
    let Symbol(mechanism) = init.mechanism;
    let good = match mechanism.as_str() {
        "ANONYMOUS" | "MSSBCBS" => true,
        "PLAIN" => plain(
            &init.initial_response.unwrap_or_default(),
            grants,
            &shared.settings(),
            shared.clock.now(),
        ),
        _ => false,
    };
    let code = if good { SaslCode::Ok } else { SaslCode::Auth };
    let additional_data = good.then(|| ByteBuf::from(*b"Welcome!"));
    writer.send_sasl(&SaslOutcome {
        code,
        additional_data,
    })?;
    if !good {
        return Ok(Greeting::Refused);
    }
    shared.journal.note(Observed::Authenticated {
        connection,
        mechanism,
    });
    Ok(Greeting::Authenticated)
}

/// `PLAIN`: of IoT Hub, `{device}@sas.{hub}` and a token; elsewhere, a policy and its key. What it opens is then open to
/// the connection.
fn plain(response: &[u8], grants: &mut Grants, settings: &Settings, now: Moment) -> bool {
    let mut fields = response
        .split(|&byte| byte == 0)
        .skip(1)
        .map(String::from_utf8_lossy);
    let (Some(user), Some(token)) = (fields.next(), fields.next()) else {
        return false;
    };
    if settings.kind != Kind::IotHub {
        return grants.put_key(&user, &token, settings, now);
    }
    user.contains("@sas.") && grants.put_token(&token, settings, now).code == 200
}

/// What the peer's open says that matters later.
pub(super) struct Peer {
    pub(super) max_frame_size: usize,
    /// Milliseconds, when it wants to be kept awake.
    pub(super) idle_time_out: Option<u32>,
}

/// AMQP header and open, server side. `None`: refused, a close is on its way.
pub(super) async fn open(
    connection: ConnectionId,
    greeting: Greeting,
    reader: &mut FrameReader,
    writer: &FrameWriter,
    shared: &Shared,
) -> io::Result<Option<Peer>> {
    let header = match greeting {
        Greeting::Bare => AMQP_HEADER,
        Greeting::Authenticated => reader.header().await?,
        Greeting::Refused => return Ok(None),
    };
    writer.raw(AMQP_HEADER.to_vec());
    if header != AMQP_HEADER {
        return Ok(None);
    }
    let theirs = loop {
        match reader.next().await? {
            Frame::Empty => {}
            Frame::Amqp {
                channel: 0,
                performative: Performative::Open(open),
                ..
            } => break open,
            Frame::Amqp { .. } | Frame::Sasl(_) => {
                let what = "the first frame is no open on channel 0".to_owned();
                shared.journal.note(Observed::Fault { connection, what });
                return Ok(None);
            }
        }
    };
    shared.journal.note(Observed::Opened {
        connection,
        open: theirs.clone(),
    });
    let settings = &*shared.settings();
    let ours = Open {
        container_id: format!("DeviceGateway_{}", guid::hex(&guid::random())),
        hostname: Some("localhost".to_owned()),
        max_frame_size: MaxFrameSize(settings.max_frame_size),
        channel_max: ChannelMax(settings.channel_max),
        idle_time_out: Some(settings.idle_time_out),
        outgoing_locales: None,
        incoming_locales: None,
        offered_capabilities: None,
        desired_capabilities: None,
        properties: None,
    };
    writer.send(0, &Performative::Open(ours), &[])?;
    match objection(&theirs, settings).or_else(|| shared.turn_away()) {
        Some(error) => {
            writer.send(0, &Performative::Close(Close { error: Some(error) }), &[])?;
            Ok(None)
        }
        None => Ok(Some(Peer {
            max_frame_size: theirs.max_frame_size.into(),
            idle_time_out: theirs.idle_time_out,
        })),
    }
}

fn objection(open: &Open, settings: &Settings) -> Option<Error> {
    let host = open.hostname.as_deref().unwrap_or_default();
    if !settings.is_ours(host) {
        return Some(Refusal::unknown_hub(host).to_error());
    }
    let too_short = open
        .idle_time_out
        .is_some_and(|time_out| time_out < settings.min_idle_time_out);
    too_short.then(|| {
        let least = settings.min_idle_time_out;
        Error::new(
            AmqpError::NotAllowed,
            format!("The idle time-out is below {least} ms."),
            None,
        )
    })
}
