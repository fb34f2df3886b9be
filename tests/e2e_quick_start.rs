//! What `docs/quick-start.md` has a reader do with a device: `docs/telemetry.py`, on Qpid Proton, through a daemon with
//! the example configuration for IoT Hub, of which only the addresses are the test's.

mod support;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use support::article::{self, DEVICE, HUB};
use support::daemon::CA_FILE;
use support::gateway::Gateway;
use support::iot_hub::{IotHub, Observed};
use support::sas::Key;
use support::{Failure, bounded, ensure, ensure_eq, message};
use tokio::process::Command;

/// Debian's, which has Debian's `python3-qpid-proton`.
const PYTHON: &str = "/usr/bin/python3";

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// A stand-in of the hub, and before it the daemon with `conf/linkrouterd-iothub.conf`.
async fn gateway() -> Result<Gateway<IotHub>, Failure> {
    let example = std::fs::read_to_string(path("conf/linkrouterd-iothub.conf"))?;
    Gateway::to_iot_hub_with(article::hub_settings(), |articles| {
        let hub_port = articles
            .lines()
            .filter_map(|line| line.trim().strip_prefix("port: "))
            .next_back()
            .unwrap_or_default();
        let edits = [
            ("host: 0.0.0.0", "host: 127.0.0.1"),
            ("port: 5672", "port: 0"),
            (
                "name: azure\n",
                &format!("name: azure\n    caCertFile: {CA_FILE}\n"),
            ),
            ("host: <iotHub>.azure-devices.net", "host: localhost"),
            ("port: amqps", &format!("port: {hub_port}")),
        ];
        edits.iter().fold(example.clone(), |text, (from, to)| {
            assert!(text.contains(from), "the example has no `{from}`");
            text.replace(from, to)
        })
    })
    .await
}

/// Runs the quick start's device; gives whether it ended well, and what it said.
async fn telemetry(gateway: &Gateway<IotHub>, key: &Key) -> Result<(bool, String), Failure> {
    let connection_string = format!(
        "HostName={HUB};DeviceId={DEVICE};SharedAccessKey={}",
        key.base64()
    );
    let device = Command::new(PYTHON)
        .arg(path("docs/telemetry.py"))
        .arg(gateway.daemon()?.address().to_string())
        .args([&connection_string, "it is warm"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = bounded("the device", device).await??;
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    Ok((output.status.success(), said.concat()))
}

#[tokio::test]
async fn the_device_of_the_quick_start_sends_telemetry_through_the_example_configuration()
-> Result<(), Failure> {
    let gateway = gateway().await?;
    let (is_well, said) = telemetry(&gateway, &article::device_key()).await?;
    ensure_eq(
        "what the device says",
        said.as_str(),
        "token accepted\ntelemetry of netduino accepted by article-hub.azure-devices.net\n",
    )?;
    ensure(is_well, || "the device ended with an error".to_owned())?;
    let payload = gateway
        .hub
        .journal()
        .find("telemetry", |seen| match seen {
            Observed::Telemetry(delivery) => Some(delivery.payload.clone()),
            _ => None,
        })
        .await?;
    let body = message::body_of(&message::decode(&payload)?);
    ensure_eq("what the hub has", body.as_slice(), b"it is warm".as_slice())?;
    gateway.hub.ensure_no_faults()?;
    gateway.stop().await?;
    Ok(())
}

#[tokio::test]
async fn the_device_of_the_quick_start_tells_that_its_key_is_wrong() -> Result<(), Failure> {
    let gateway = gateway().await?;
    let (is_well, said) = telemetry(&gateway, &Key::from_text("another key")).await?;
    ensure(!is_well && said.starts_with("token refused: 401 "), || said)?;
    gateway.stop().await?;
    Ok(())
}
