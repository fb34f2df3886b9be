//! What breaks the protocol is noticed.

use crate::support::article::{self, HUB};
use crate::support::iot_hub::{IotHub, Observed};
use crate::support::raw::{self, RawDevice};
use crate::support::wire::{AMQP_HEADER, SASL_HEADER};
use crate::support::{Failure, ensure};
use fe2o3_amqp::types::definitions::Role;
use fe2o3_amqp::types::performatives::{Open, Performative, Transfer};
use fe2o3_amqp::types::primitives::Symbol;
use fe2o3_amqp::types::sasl::SaslInit;

#[tokio::test]
async fn breach_of_the_protocol_is_a_fault() -> Result<(), Failure> {
    for (name, ids, credit_overrun) in [
        ("a gap in delivery-ids", [0, 2], false),
        ("no credit", [0, 1], true),
    ] {
        let mut settings = article::hub_settings();
        settings.cbs_credit = if credit_overrun { 1 } else { 100 };
        let hub = IotHub::start(settings, None).await?;
        let peer = RawDevice::connect(hub.address()).await?;
        peer.writer.raw(SASL_HEADER.to_vec());
        let mechanism = Symbol::from("ANONYMOUS");
        peer.writer.send_sasl(&SaslInit {
            mechanism,
            initial_response: None,
            hostname: None,
        })?;
        peer.writer.raw(AMQP_HEADER.to_vec());
        let hostname = Some(HUB.to_owned());
        peer.send(Performative::Open(Open {
            hostname,
            ..raw::open("device", 65_536)
        }))?;
        peer.send(Performative::Begin(raw::begin(0)))?;
        peer.send(Performative::Attach(raw::attach(
            "sender",
            0,
            Role::Sender,
            "$cbs",
        )))?;
        for id in ids {
            // The first of two transfers in the second delivery: refused before it is complete.
            let transfer = Transfer {
                more: true,
                aborted: id == 0,
                ..raw::transfer(0, id, &[0])
            };
            peer.transfer(transfer, b"x")?;
        }
        let fault = hub
            .journal()
            .find(name, |observed| match observed {
                Observed::Fault { what, .. } => Some(what.clone()),
                _ => None,
            })
            .await?;
        ensure(
            fault.contains(if credit_overrun {
                "without credit"
            } else {
                "delivery-id 2"
            }),
            || fault,
        )?;
        ensure(hub.ensure_no_faults().is_err(), || {
            "the fault was forgotten".to_owned()
        })?;
    }
    Ok(())
}
