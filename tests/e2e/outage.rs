//! Hubs that go, and devices and hubs that come back: the real binary before the IoT Hub stand-in.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use crate::support::article::{self, DEVICE};
use crate::support::certificates::{Authority, Validity};
use crate::support::daemon::{ARTICLE_ROUTES, Daemon, config};
use crate::support::device::{self, Begun, Opened, PutToken, Reach};
use crate::support::gateway::Gateway;
use crate::support::iot_hub::{IotHub, Observed};
use crate::support::{Failure, bounded, ensure, ensure_eq};
use fe2o3_amqp::Sender;
use fe2o3_amqp::types::messaging::MessageId;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Where a hub is reached: a front end that leads to one of several, or drops whoever comes.
struct Front {
    address: SocketAddr,
    /// The hub, and how many are dropped before anybody gets there.
    leads: Arc<Mutex<(SocketAddr, usize)>>,
    accepting: JoinHandle<()>,
}

impl Front {
    async fn start(hub: SocketAddr) -> Result<Self, Failure> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let leads = Arc::new(Mutex::new((hub, 0)));
        let to = leads.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let hub = {
                    let mut to = to.lock().unwrap_or_else(PoisonError::into_inner);
                    if to.1 > 0 {
                        to.1 -= 1;
                        continue;
                    }
                    to.0
                };
                tokio::spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(hub).await {
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        Ok(Self {
            address,
            leads,
            accepting,
        })
    }

    fn lead(&self, to: SocketAddr, dropped: usize) {
        *self.leads.lock().unwrap_or_else(PoisonError::into_inner) = (to, dropped);
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn events() -> String {
    format!("/devices/{DEVICE}/messages/events")
}

/// A connection of the article's device, with its token in place.
async fn authorised(reach: &Reach) -> Result<Opened, Failure> {
    let mut connection = reach.open("netduino").await?;
    let request = PutToken {
        token: &article::device_token(DEVICE, &article::device_key()),
        name: "a name",
        token_type: "servicebus.windows.net:sastoken",
        message_id: MessageId::Ulong(0),
    };
    let granted = device::put_token(&mut connection, request).await?;
    ensure_eq(&granted.description, granted.status, 200)?;
    Ok(connection)
}

/// Attaches a sender in a new session and sends.
async fn send(connection: &mut Opened, text: &str) -> Result<(Sender, Begun), Failure> {
    let mut session = device::begin(connection).await?;
    let mut sender = device::sender(&mut session, "send-link", &events()).await?;
    let outcome = bounded("sending", sender.send(text)).await??;
    ensure(outcome.is_accepted(), || format!("{text}: {outcome:?}"))?;
    Ok((sender, session))
}

fn telemetry(hub: &IotHub) -> usize {
    let is_telemetry = |observed: &Observed| matches!(observed, Observed::Telemetry(_)).then_some(());
    hub.journal().select(is_telemetry).len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hub_loss_close_closes_the_device_as_azure_does_and_it_comes_back() -> Result<(), Failure> {
    let gateway = Gateway::to_iot_hub_with(article::hub_settings(), |config| {
        config.replace(
            "authenticatePeer: no",
            "authenticatePeer: no\n    onHubLost: close",
        )
    })
    .await?;
    gateway.daemon()?;
    let mut connection = authorised(&gateway.reach).await?;
    let _link = send(&mut connection, "before").await?;
    gateway.hub.close_connections("The service is being upgraded.");
    let text = format!("{:?}", bounded("the close", connection.on_close()).await?);
    for part in [
        "ConnectionForced",
        "Connection IOTHUB: ",
        "The service is being upgraded.",
    ] {
        ensure(text.contains(part), || format!("no '{part}' in {text}"))?;
    }
    let mut connection = authorised(&gateway.reach).await?;
    let _link = send(&mut connection, "after").await?;
    ensure_eq("telemetry", telemetry(&gateway.hub), 2)?;
    device::close(connection).await?;
    gateway.hub.ensure_no_faults()?;
    gateway.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_comes_back_under_another_root_and_elsewhere_gets_the_tokens_again() -> Result<(), Failure>
{
    let mut hubs = Vec::new();
    let mut roots = String::new();
    for name in ["Old Root", "New Root"] {
        let authority = Authority::new(name, Validity::Current)?;
        let identity = authority.issue(&["localhost"], Validity::Current)?;
        let tls = authority.server_config(&identity)?;
        hubs.push(IotHub::start(article::hub_settings(), Some(tls)).await?);
        roots.push_str(&authority.pem());
    }
    let [mut old, new] = <[IotHub; 2]>::try_from(hubs).map_err(|_| Failure::new("two hubs"))?;
    let front = Front::start(old.address()).await?;
    let text = config(front.address.port(), &ARTICLE_ROUTES);
    let daemon = Daemon::start(&text, &roots).await?;
    let reach = Reach::Plain(daemon.address());
    let mut connection = authorised(&reach).await?;
    let (mut sender, _session) = send(&mut connection, "to the old").await?;
    // The first dials after the loss are dropped, as by a front end in the middle of a move.
    front.lead(new.address(), 2);
    old.stop().await;
    let text = format!("{:?}", bounded("the detach", sender.on_detach()).await?);
    ensure(text.contains("DetachForced"), || text)?;
    // Same connection, and no token from the device.
    let _link = send(&mut connection, "to the new").await?;
    ensure_eq("telemetry", [telemetry(&old), telemetry(&new)], [1, 1])?;
    let tokens = new
        .journal()
        .select(|observed| matches!(observed, Observed::Token { .. }).then_some(()));
    ensure_eq("tokens that the router put again", tokens.len(), 1)?;
    daemon.logged(" is back after 2 failed attempts").await?;
    device::close(connection).await?;
    for hub in [&old, &new] {
        hub.ensure_no_faults()?;
    }
    daemon.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_comes_back_takes_its_links_from_its_former_connection() -> Result<(), Failure> {
    let gateway = Gateway::to_iot_hub(article::hub_settings()).await?;
    gateway.daemon()?;
    let mut former = authorised(&gateway.reach).await?;
    let (mut taken, _session) = send(&mut former, "before").await?;
    let mut connection = authorised(&gateway.reach).await?;
    let _link = send(&mut connection, "after").await?;
    let text = format!("{:?}", bounded("the detach", taken.on_detach()).await?);
    ensure(text.contains("Stolen"), || text)?;
    let order = gateway.hub.journal().select(|observed| match observed {
        Observed::Attached { attach, .. } if attach.name.starts_with("send-link") => Some("attach"),
        Observed::Detached { link, .. } if link.starts_with("send-link") => Some("detach"),
        _ => None,
    });
    ensure_eq("the links at the hub", order, vec!["attach", "detach", "attach"])?;
    gateway
        .daemon()?
        .logged("loses 'devices/netduino/messages/events' to [C")
        .await?;
    device::close(connection).await?;
    device::close(former).await?;
    gateway.hub.ensure_no_faults()?;
    gateway.stop().await?;
    Ok(())
}
