//! The usual arrangement: a hub behind TLS, the daemon before it, devices in clear text before that.
//!
//! With `LINKROUTERD_TEST_DIRECT` in the environment the daemon is left out and devices talk TLS to the hub, to tell
//! whether a failure is the router's or that of the stacks on both sides of it.

use std::net::SocketAddr;

use super::Failure;
use super::broker::Broker;
use super::certificates::{Authority, Validity};
use super::daemon::{ARTICLE_ROUTES, Daemon, config};
use super::device::Reach;
use super::iot_hub::settings::CbsMode;
use super::iot_hub::{IotHub, Settings};

const DIRECT: &str = "LINKROUTERD_TEST_DIRECT";
/// A number that shifts the choice of the hub's [`CbsMode`].
const CBS_MODES: &str = "LINKROUTERD_TEST_CBS_MODES";

/// A hub and the way to it.
pub(crate) struct Gateway<H> {
    pub(crate) hub: H,
    /// How devices reach the hub.
    pub(crate) reach: Reach,
    pub(crate) authority: Authority,
    daemon: Option<Daemon>,
}

/// The routes to a [`Broker`].
pub(crate) const BROKER_ROUTES: [&str; 2] = ["sink/", "source/"];

/// The names that the hub's certificate carries.
const NAMES: [&str; 2] = ["*.azure-devices.net", "localhost"];

impl Gateway<Broker> {
    /// A gateway to a hub for any traffic.
    pub(crate) async fn to_broker() -> Result<Self, Failure> {
        Self::to_broker_with(str::to_owned).await
    }

    /// The same, its configuration rewritten by `edit`.
    pub(crate) async fn to_broker_with(edit: impl FnOnce(&str) -> String) -> Result<Self, Failure> {
        let authority = Authority::new("Test Root", Validity::Current)?;
        let hub = Self::another_broker(&authority).await?;
        let address = hub.address();
        let config = edit(&config(address.port(), &BROKER_ROUTES));
        Self::before(hub, address, authority, config).await
    }

    /// One more hub that shows a certificate of this authority.
    pub(crate) async fn another_broker(authority: &Authority) -> Result<Broker, Failure> {
        let identity = authority.issue(&NAMES, Validity::Current)?;
        Broker::start(authority.server_config(&identity)?).await
    }
}

impl Gateway<IotHub> {
    /// A gateway to an IoT Hub stand-in, in the shape of the article's.
    pub(crate) async fn to_iot_hub(settings: Settings) -> Result<Self, Failure> {
        Self::to_iot_hub_with(settings, str::to_owned).await
    }

    /// The same, its configuration rewritten by `edit`.
    ///
    /// What the hub does with a second pair of `$cbs` links differs from test to test, for the router never makes one;
    /// [`CBS_MODES`] in the environment shifts it, so that four runs show every test every mode.
    pub(crate) async fn to_iot_hub_with(
        settings: Settings,
        edit: impl FnOnce(&str) -> String,
    ) -> Result<Self, Failure> {
        Self::to_iot_hub_in(mode_of_this_test(), settings, edit).await
    }

    /// The same, with this mode.
    pub(crate) async fn to_iot_hub_in(
        mode: CbsMode,
        mut settings: Settings,
        edit: impl FnOnce(&str) -> String,
    ) -> Result<Self, Failure> {
        settings.cbs_mode = mode;
        settings.is_behind_router = std::env::var_os(DIRECT).is_none();
        let authority = Authority::new("Test Root", Validity::Current)?;
        let identity = authority.issue(&NAMES, Validity::Current)?;
        let hub = IotHub::start(settings, Some(authority.server_config(&identity)?)).await?;
        let address = hub.address();
        let config = edit(&config(address.port(), &ARTICLE_ROUTES));
        Self::before(hub, address, authority, config).await
    }
}

/// Chosen by the name of the test, which is that of its thread.
fn mode_of_this_test() -> CbsMode {
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    let shift = std::env::var(CBS_MODES).ok().and_then(|text| text.parse().ok());
    let sum = name
        .bytes()
        .fold(shift.unwrap_or(0_usize), |sum, byte| sum + usize::from(byte));
    CbsMode::ALL[sum % CbsMode::ALL.len()]
}

impl<H> Gateway<H> {
    async fn before(
        hub: H,
        address: SocketAddr,
        authority: Authority,
        config: String,
    ) -> Result<Self, Failure> {
        if std::env::var_os(DIRECT).is_some() {
            let reach = Reach::Tls(address, authority.client_config()?);
            return Ok(Self {
                hub,
                reach,
                authority,
                daemon: None,
            });
        }
        let daemon = Daemon::start(&config, &authority.pem()).await?;
        let reach = Reach::Plain(daemon.address());
        Ok(Self {
            hub,
            reach,
            authority,
            daemon: Some(daemon),
        })
    }

    /// The daemon, for what cannot be tested without it.
    pub(crate) fn daemon(&self) -> Result<&Daemon, Failure> {
        self.daemon
            .as_ref()
            .ok_or_else(|| Failure::new("this cannot be tested without the router"))
    }

    /// Stops the daemon, which must end in order; gives the hub and what the daemon wrote.
    pub(crate) async fn stop(self) -> Result<(H, Vec<String>), Failure> {
        let log = match self.daemon {
            Some(daemon) => daemon.stop().await?,
            None => Vec::new(),
        };
        Ok((self.hub, log))
    }
}
