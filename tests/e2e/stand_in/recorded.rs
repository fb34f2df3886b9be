//! What the hub says of its own accord has the values recorded from the real one.

use crate::support::article::{self, HUB};
use crate::support::iot_hub::{IotHub, Observed};
use crate::support::raw::{self, RawDevice};
use crate::support::wire::{AMQP_HEADER, Frame, SASL_HEADER};
use crate::support::{Failure, bounded, ensure, ensure_eq};
use fe2o3_amqp::types::definitions::{Fields, Handle, Role};
use fe2o3_amqp::types::performatives::{Attach, Open, Performative};
use fe2o3_amqp::types::primitives::{Array, Symbol, Value};
use fe2o3_amqp::types::sasl::{SaslCode, SaslInit, SaslMechanisms, SaslOutcome};
use serde_bytes::ByteBuf;

use super::hub_with_tls;

/// The values recorded from the real hub, one by one.
#[tokio::test]
async fn handshake_session_and_links_have_the_recorded_values() -> Result<(), Failure> {
    let hub = IotHub::start(article::hub_settings(), None).await?;
    let mut peer = RawDevice::connect(hub.address()).await?;
    peer.writer.raw(SASL_HEADER.to_vec());
    ensure_eq(
        "the SASL header",
        bounded("a header", peer.reader.header()).await??,
        SASL_HEADER,
    )?;
    let Frame::Sasl(body) = bounded("the mechanisms", peer.reader.next()).await?? else {
        return Err(Failure::new("no SASL frame"));
    };
    let SaslMechanisms {
        sasl_server_mechanisms: Array(mechanisms),
    } = serde_amqp::from_slice(&body)?;
    let mechanisms: Vec<&str> = mechanisms.iter().map(|Symbol(name)| name.as_str()).collect();
    ensure_eq(
        "the mechanisms",
        mechanisms,
        vec!["EXTERNAL", "MSSBCBS", "ANONYMOUS", "PLAIN"],
    )?;
    let mechanism = Symbol::from("MSSBCBS");
    peer.writer.send_sasl(&SaslInit {
        mechanism,
        initial_response: None,
        hostname: None,
    })?;
    let Frame::Sasl(body) = bounded("the outcome", peer.reader.next()).await?? else {
        return Err(Failure::new("no SASL frame"));
    };
    let SaslOutcome {
        code,
        additional_data,
    } = serde_amqp::from_slice(&body)?;
    ensure_eq(
        "the SASL outcome",
        (code, additional_data),
        (SaslCode::Ok, Some(ByteBuf::from(*b"Welcome!"))),
    )?;

    peer.writer.raw(AMQP_HEADER.to_vec());
    let hostname = Some(HUB.to_owned());
    peer.send(Performative::Open(Open {
        hostname,
        ..raw::open("device", 65_536)
    }))?;
    peer.send(Performative::Begin(raw::begin(0)))?;
    peer.expect_header().await?;
    let open = peer
        .expect("open", |frame| {
            if let Performative::Open(open) = frame {
                Some(open)
            } else {
                None
            }
        })
        .await?;
    let (prefix, id) = open.container_id.split_at("DeviceGateway_".len());
    ensure(prefix == "DeviceGateway_" && id.len() == 32, || {
        open.container_id.clone()
    })?;
    let limits = (open.max_frame_size.0, open.channel_max.0, open.idle_time_out);
    ensure_eq("the limits", limits, (65_536, 8_191, Some(240_000)))?;
    let begun = |frame| {
        if let Performative::Begin(begin) = frame {
            Some(begin)
        } else {
            None
        }
    };
    let begin = peer.expect("begin", begun).await?;
    let numbers = (
        begin.remote_channel,
        begin.next_outgoing_id,
        begin.incoming_window,
        begin.outgoing_window,
    );
    ensure_eq("the session", numbers, (Some(0), 1, 5_000, u32::MAX))?;
    ensure_eq("handle-max", begin.handle_max, Handle(262_143))?;

    let mut asked = raw::attach("sender", 3, Role::Sender, "$cbs");
    let mut properties = Fields::default();
    properties.insert(
        Symbol::from("com.microsoft:client-version"),
        Value::String("test".to_owned()),
    );
    asked.properties = Some(properties);
    peer.send(Performative::Attach(asked.clone()))?;
    let attached = |frame| {
        if let Performative::Attach(attach) = frame {
            Some(attach)
        } else {
            None
        }
    };
    let answer = peer.expect("attach", attached).await?;
    let expected = Attach {
        role: Role::Receiver,
        initial_delivery_count: None,
        max_message_size: Some(1_048_576),
        ..asked.clone()
    };
    ensure_eq("the answer to a sender", answer, expected)?;
    let flowed = |frame| {
        if let Performative::Flow(flow) = frame {
            Some(flow)
        } else {
            None
        }
    };
    let flow = peer.expect("flow", flowed).await?;
    let numbers = (
        flow.next_incoming_id,
        flow.incoming_window,
        flow.next_outgoing_id,
        flow.link_credit,
    );
    ensure_eq("the first flow", numbers, (Some(0), 5_000, 1, Some(100)))?;
    let mut asked = raw::attach("receiver", 4, Role::Receiver, "$cbs");
    asked.max_message_size = Some(65_536);
    peer.send(Performative::Attach(asked.clone()))?;
    let answer = peer.expect("attach", attached).await?;
    let expected = Attach {
        role: Role::Sender,
        initial_delivery_count: Some(0),
        ..asked
    };
    ensure_eq("the answer to a receiver", answer, expected)?;
    peer.die();
    hub.ensure_no_faults()
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
