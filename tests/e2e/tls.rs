//! A hub that cannot be trusted: what the operator reads in the log.

use std::sync::Arc;

use crate::support::article;
use crate::support::certificates::{Authority, Validity};
use crate::support::daemon::{self, ARTICLE_ROUTES, Daemon};
use crate::support::iot_hub::{IotHub, Observed};
use crate::support::raw::{self, RawDevice};
use crate::support::{Failure, ensure_eq};
use fe2o3_amqp::types::definitions::Role;
use fe2o3_amqp::types::performatives::Performative;
use rustls::ServerConfig;

/// Starts a router that trusts `ca` before a hub with these TLS settings, lets a device ask for a link, and waits for a
/// warning that has all of `expected` in its one line.
async fn warning_about(tls: Arc<ServerConfig>, ca: &str, expected: &[&str]) -> Result<(), Failure> {
    let hub = IotHub::start(article::hub_settings(), Some(tls)).await?;
    let router = Daemon::start(&daemon::config(hub.address().port(), &ARTICLE_ROUTES), ca).await?;
    let device = RawDevice::begin(router.address(), raw::open("device", 65_536), raw::begin(0)).await?;
    device.send(Performative::Attach(raw::attach("link", 0, Role::Sender, "$cbs")))?;
    let told = router
        .log()
        .find(&format!("a warning with {expected:?}"), |line: &String| {
            (line.contains("(warning)") && expected.iter().all(|word| line.contains(word))).then_some(())
        })
        .await;
    device.die();
    let log = router.stop().await?;
    told.map_err(|failure| Failure::new(format!("{failure}:\n{}", log.join("\n"))))?;
    let opened = hub
        .journal()
        .select(|observed| matches!(observed, Observed::Opened { .. }).then_some(()));
    ensure_eq("connections opened", opened.len(), 0)
}

#[tokio::test]
async fn server_certificate_for_another_name_is_explained() -> Result<(), Failure> {
    let authority = Authority::new("Test Root", Validity::Current)?;
    let identity = authority.issue(&["other.azure-devices.net"], Validity::Current)?;
    let expected = ["other.azure-devices.net", "not for 'localhost'"];
    warning_about(authority.server_config(&identity)?, &authority.pem(), &expected).await
}

#[tokio::test]
async fn expired_server_certificate_is_explained() -> Result<(), Failure> {
    let authority = Authority::new("Test Root", Validity::Current)?;
    let identity = authority.issue(&["localhost"], Validity::Expired)?;
    warning_about(
        authority.server_config(&identity)?,
        &authority.pem(),
        &["expired", "2018-08-22"],
    )
    .await
}

#[tokio::test]
async fn unknown_issuer_is_explained() -> Result<(), Failure> {
    let authority = Authority::new("Test Root", Validity::Current)?;
    let identity = authority.issue(&["localhost"], Validity::Current)?;
    let other = Authority::new("Other Root", Validity::Current)?;
    warning_about(authority.server_config(&identity)?, &other.pem(), &["Other Root"]).await
}

#[tokio::test]
async fn expired_ca_file_is_explained() -> Result<(), Failure> {
    let authority = Authority::new("Test Root", Validity::Current)?;
    let identity = authority.issue(&["localhost"], Validity::Current)?;
    let old = Authority::new("Equifax of Tests", Validity::Expired)?;
    let expected = ["Equifax of Tests", "expired", "2018-08-22"];
    warning_about(authority.server_config(&identity)?, &old.pem(), &expected).await
}
