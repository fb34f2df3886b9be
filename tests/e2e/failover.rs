//! A hub that has stand-ins, or goes by another name than where it is dialed: the real binary over TLS.

use crate::support::article;
use crate::support::broker::Broker;
use crate::support::certificates::{Authority, Validity};
use crate::support::daemon::{ARTICLE_ROUTES, Daemon, config};
use crate::support::gateway::{BROKER_ROUTES, Gateway};
use crate::support::iot_hub::{IotHub, Observed};
use crate::support::raw::{self, RawDevice};
use crate::support::{Failure, bounded, ensure, ensure_eq};
use fe2o3_amqp::types::definitions::{Fields, Role};
use fe2o3_amqp::types::performatives::{Detach, Performative};
use fe2o3_amqp::types::primitives::{OrderedMap, Symbol, Value};

async fn device(daemon: &Daemon, max_frame_size: u32) -> Result<RawDevice, Failure> {
    let open = raw::open("device", max_frame_size);
    RawDevice::begin(daemon.address(), open, raw::begin(0)).await
}

/// The list as qdrouterd writes it, with a host that cannot be in it (defect D30 of qdrouterd).
fn announcing(port: u16) -> Fields {
    let entry = |fields: &[(&str, &str)]| {
        let mut map = OrderedMap::new();
        for (key, value) in fields {
            map.insert(
                Value::Symbol(Symbol::from(*key)),
                Value::String((*value).to_owned()),
            );
        }
        Value::Map(map)
    };
    let list = vec![
        entry(&[("port", "5671")]),
        entry(&[
            ("network-host", "localhost"),
            ("port", &port.to_string()),
            ("scheme", "amqps"),
        ]),
    ];
    let mut fields = Fields::default();
    fields.insert(Symbol::from("failover-server-list"), Value::List(list));
    fields
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_goes_is_replaced_by_a_configured_host() -> Result<(), Failure> {
    let authority = Authority::new("Test Root", Validity::Current)?;
    let mut first = Gateway::another_broker(&authority).await?;
    let second = Gateway::another_broker(&authority).await?;
    let spare = format!(
        "    role: on-demand\n    failoverUrls: amqps://localhost:{}\n",
        second.address().port()
    );
    let text = config(first.address().port(), &BROKER_ROUTES).replace("    role: on-demand\n", &spare);
    fails_over(&text, &authority, &mut first, &second).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_goes_is_replaced_by_a_host_that_it_has_announced() -> Result<(), Failure> {
    let authority = Authority::new("Test Root", Validity::Current)?;
    let second = Gateway::another_broker(&authority).await?;
    let identity = authority.issue(&["localhost"], Validity::Current)?;
    let tls = authority.server_config(&identity)?;
    let mut first = Broker::start_with(tls, announcing(second.address().port())).await?;
    let text = config(first.address().port(), &BROKER_ROUTES);
    fails_over(&text, &authority, &mut first, &second).await
}

async fn fails_over(
    text: &str,
    authority: &Authority,
    first: &mut Broker,
    second: &Broker,
) -> Result<(), Failure> {
    let daemon = Daemon::start(text, &authority.pem()).await?;
    let mut device = device(&daemon, 65_536).await?;
    device.attach_sender("up-0", 0, "sink/accept/one").await?;
    first.stop().await?;
    let detached = |performative| matches!(performative, Performative::Detach(Detach { .. })).then_some(());
    device.expect("the loss", detached).await?;
    device.attach_sender("up-1", 1, "sink/accept/two").await?;
    let opened = |seen: &crate::support::broker::Seen| {
        matches!(seen, crate::support::broker::Seen::Opened(_)).then_some(())
    };
    second.journal().find("the second hub's open", opened).await?;
    let second_host = format!("host=localhost:{}", second.address().port());
    daemon.logged(&second_host).await?;
    device.die();
    let log = daemon.stop().await?;
    if text.contains("failoverUrls") {
        return Ok(());
    }
    for part in [
        "Entry 1 of the hub's failover-server-list is passed over: it has no network-host",
        "Connector IOTHUB fails over in the order announced by the hub: localhost:",
    ] {
        ensure(log.iter().any(|line| line.contains(part)), || {
            format!("no '{part}' in\n{}", log.join("\n"))
        })?;
    }
    Ok(())
}

/// Defect D32 of qdrouterd: the host was the name for everything.
#[tokio::test]
async fn a_pinned_address_is_known_by_the_servers_name() -> Result<(), Failure> {
    let authority = Authority::new("Test Root", Validity::Current)?;
    let identity = authority.issue(&["hub.example"], Validity::Current)?;
    let hub = IotHub::start(article::hub_settings(), Some(authority.server_config(&identity)?)).await?;
    let text = config(hub.address().port(), &ARTICLE_ROUTES);
    // Nobody asks the hub for anything: it is the link that must wait for it, without a token.
    let pinned = text.replace(
        "    addr: localhost\n",
        "    host: 127.0.0.1\n    checkIdentity: no\n",
    );
    ensure(pinned != text, || "another template".to_owned())?;

    // The address alone is not in the certificate.
    let daemon = Daemon::start(&pinned, &authority.pem()).await?;
    let asking = device(&daemon, 65_536).await?;
    asking.send(Performative::Attach(raw::attach(
        "a",
        0,
        Role::Sender,
        "devices/d/messages/events",
    )))?;
    daemon.logged("not for '127.0.0.1'").await?;

    let named = pinned.replace(
        "    host: 127.0.0.1\n",
        "    host: 127.0.0.1\n    serverName: hub.example\n",
    );
    daemon.reload(&named).await?;
    let opened = |seen: &Observed| match seen {
        Observed::Opened { connection, open } => Some((*connection, open.hostname.clone())),
        _ => None,
    };
    let (number, hostname) = hub.journal().find("an open", opened).await?;
    ensure_eq("open.hostname", hostname.as_deref(), Some("hub.example"))?;
    let names = hub.journal().select(|seen| match seen {
        Observed::Connected { connection, sni } if *connection == number => Some(sni.clone()),
        _ => None,
    });
    ensure_eq("SNI", names, vec![Some("hub.example".to_owned())])?;
    asking.die();
    daemon.stop().await.map(drop)
}

#[tokio::test]
async fn a_listener_announces_its_hosts_if_they_fit() -> Result<(), Failure> {
    let long = "gateway-with-a-rather-long-name.plant-seven.example";
    let urls: Vec<String> = (1..=7)
        .map(|number| format!("amqp://{long}{number}:5672"))
        .collect();
    let text = format!(
        "router {{\n    id: A\n}}\nlistener {{\n    host: 127.0.0.1\n    port: 0\n    failoverUrls: {}\n}}\n",
        urls.join(", ")
    );
    let daemon = Daemon::start(&text, "").await?;
    for (max_frame_size, fits) in [(65_536, true), (512, false)] {
        let mut device = RawDevice::connect(daemon.address()).await?;
        device.writer.raw(crate::support::wire::AMQP_HEADER.to_vec());
        device.send(Performative::Open(raw::open("device", max_frame_size)))?;
        device.expect_header().await?;
        let open = |performative| match performative {
            Performative::Open(open) => Some(open),
            _ => None,
        };
        let open = bounded("the open", device.expect("open", open)).await??;
        let properties = open.properties.unwrap_or_default();
        let list = properties.get(&Symbol::from("failover-server-list"));
        match list {
            Some(Value::List(entries)) if fits => {
                ensure_eq("entries", entries.len(), urls.len())?;
                let Some(Value::Map(first)) = entries.first() else {
                    return Err(Failure::new("no map"));
                };
                for (key, value) in [
                    ("network-host", format!("{long}1")),
                    ("port", "5672".to_owned()),
                    ("scheme", "amqp".to_owned()),
                ] {
                    let found = first.get(&Value::Symbol(Symbol::from(key)));
                    ensure_eq(key, found, Some(&Value::String(value)))?;
                }
            }
            None if !fits => {}
            other => return Err(Failure::new(format!("{max_frame_size}: {other:?}"))),
        }
        device.die();
    }
    daemon.stop().await.map(drop)
}
