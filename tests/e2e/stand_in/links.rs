//! Links that get in each other's way.

use fe2o3_amqp::types::definitions::Role;

use super::client::Client;
use super::says;
use crate::support::article::{self, DEVICE};
use crate::support::iot_hub::IotHub;
use crate::support::iot_hub::settings::{Eviction, EvictionCondition, EvictionScope, NameClash};
use crate::support::{Failure, ensure_eq};

const EVENTS: &str = "/devices/netduino/messages/events";
const DEVICE_BOUND: &str = "/devices/netduino/messages/devicebound";

#[tokio::test]
async fn identity_that_comes_on_another_connection_evicts_its_older_links() -> Result<(), Failure> {
    let token = article::device_token(DEVICE, &article::device_key());
    for (condition, name) in [
        (EvictionCondition::InternalError, "InternalError"),
        (EvictionCondition::NotAllowed, "NotAllowed"),
        (
            EvictionCondition::LinkCreationConflict,
            "com.microsoft:link-creation-conflict",
        ),
    ] {
        for scope in [
            EvictionScope::Links,
            EvictionScope::Sessions,
            EvictionScope::Connection,
        ] {
            let mut settings = article::hub_settings();
            settings.eviction = Some(Eviction { condition, scope });
            let hub = IotHub::start(settings, None).await?;
            let mut older = Client::with_token(&hub, &token).await?;
            older.attach("events", 2, Role::Sender, EVENTS).await?;
            older.attach("commands", 3, Role::Receiver, DEVICE_BOUND).await?;
            let mut newer = Client::with_token(&hub, &token).await?;
            newer.attach("commands", 2, Role::Receiver, DEVICE_BOUND).await?;
            let expected = [name, "Another AMQP Client has opened a Receive Link"];
            match scope {
                EvictionScope::Links => {
                    for handle in [2, 3] {
                        let (of, error) = older.detached().await?;
                        ensure_eq("the link", of, handle)?;
                        says("the detach", &format!("{error:?}"), &expected)?;
                    }
                    ensure_eq("the connection stays", older.put(&token).await?, 200)?;
                }
                EvictionScope::Sessions => says("the end", &older.ended().await?, &expected)?,
                EvictionScope::Connection => says("the close", &older.closed().await?, &expected)?,
            }
            newer.attach("events", 3, Role::Sender, EVENTS).await?;
            newer.send(3, b"")?;
            newer.outcome().await?;
            hub.ensure_no_faults()?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn second_link_of_a_name_is_refused_or_steals() -> Result<(), Failure> {
    let token = article::device_token(DEVICE, &article::device_key());
    for (clash, gone, text) in [
        (NameClash::Refuse, 3, "ResourceLocked"),
        (NameClash::Steal, 2, "Stolen"),
    ] {
        let mut settings = article::hub_settings();
        settings.name_clash = clash;
        let hub = IotHub::start(settings, None).await?;
        let mut client = Client::with_token(&hub, &token).await?;
        client.attach("link", 2, Role::Sender, EVENTS).await?;
        client
            .raw
            .send(fe2o3_amqp::types::performatives::Performative::Attach(
                crate::support::raw::attach("link", 3, Role::Sender, EVENTS),
            ))?;
        let (handle, error) = client.detached().await?;
        ensure_eq("the link that goes", handle, gone)?;
        says("the detach", &format!("{error:?}"), &[text])?;
        // The same name in the other role is another link.
        client.attach("link", 4, Role::Receiver, DEVICE_BOUND).await?;
        client.put(&token).await?;
        hub.ensure_no_faults()?;
    }
    Ok(())
}
