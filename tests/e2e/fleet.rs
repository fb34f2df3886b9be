//! Ten devices at once behind one connection to IoT Hub, in every way that a hub may treat a second pair of `$cbs`
//! links: they never make one. The router is the real binary, the hub a strict stand-in, the devices `fe2o3-amqp`.

use crate::support::article::{self, Secrets};
use crate::support::fleet;
use crate::support::gateway::Gateway;
use crate::support::iot_hub::settings::CbsMode;
use crate::support::{Failure, daemon, ensure};

#[tokio::test]
async fn ten_devices_share_one_connection_and_none_passes_for_another() -> Result<(), Failure> {
    for mode in CbsMode::ALL {
        let settings = fleet::register(article::hub_settings());
        let gateway = Gateway::to_iot_hub_in(mode, settings, str::to_owned).await?;
        gateway.daemon()?;
        let Secrets(secrets) = fleet::run(&gateway.reach, &gateway.hub, &mut ())
            .await
            .map_err(|failure| Failure::new(format!("{mode:?}: {failure}")))?;
        let (_, log) = gateway.stop().await?;
        daemon::ensure_none_of(&secrets, &log)?;
        let victim = fleet::victim();
        ensure(
            log.iter()
                .any(|line| line.contains("(warning)") && line.contains(&victim)),
            || format!("{mode:?}: the log says nothing of who was refused {victim}"),
        )?;
    }
    Ok(())
}
