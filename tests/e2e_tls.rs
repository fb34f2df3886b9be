//! A hub that cannot be trusted: what the operator reads in the log, and what the device is told.

mod support;

use std::sync::Arc;

use fe2o3_amqp::Sender;
use fe2o3_amqp::link::SenderAttachError;
use fe2o3_amqp::types::definitions::{ErrorCondition, LinkError};
use rustls::ServerConfig;
use support::article;
use support::certificates::{Authority, Validity};
use support::daemon::{self, ARTICLE_ROUTES, Daemon};
use support::device::{self, Reach};
use support::iot_hub::IotHub;
use support::{Failure, bounded, ensure, ensure_eq};

/// Starts a router that trusts `ca` before a hub with these TLS settings, lets a device try a link, and gives what the
/// log says of the failure in one warning.
async fn warning_about(tls: Arc<ServerConfig>, ca: &str, expected: &[&str]) -> Result<(), Failure> {
    let hub = IotHub::start(article::hub_settings(), Some(tls)).await?;
    let router = Daemon::start(&daemon::config(hub.address().port(), &ARTICLE_ROUTES), ca).await?;
    let mut connection = Reach::Plain(router.address()).open("device").await?;
    let mut session = device::begin(&mut connection).await?;
    let refused = bounded("the attach", Sender::attach(&mut session, "link", "$cbs")).await?;
    let forced = matches!(&refused, Err(SenderAttachError::RemoteClosedWithError(error))
        if error.condition == ErrorCondition::LinkError(LinkError::DetachForced));
    ensure(forced, || format!("the device was told {refused:?}"))?;
    device::close(connection).await?;
    let log = router.stop().await?;
    let told = log
        .iter()
        .any(|line| line.contains("(warning)") && expected.iter().all(|word| line.contains(word)));
    ensure(told, || {
        format!("no warning with {expected:?} in\n{}", log.join("\n"))
    })?;
    let opened = hub.journal().select(|observed| match observed {
        support::iot_hub::Observed::Opened { .. } => Some(()),
        _ => None,
    });
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
