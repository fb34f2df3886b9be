//! SIGHUP and the real binary: what has not changed does not notice, what has is taken over, and a bad file changes
//! nothing.

use crate::support::broker::{Broker, numbered};
use crate::support::daemon::{Daemon, config};
use crate::support::device;
use crate::support::gateway::{BROKER_ROUTES, Gateway};
use crate::support::raw::{self, RawDevice};
use crate::support::{Failure, bounded, ensure, ensure_eq, message};
use fe2o3_amqp::types::definitions::{Handle, Role};
use fe2o3_amqp::types::performatives::{Detach, Flow, Performative};

/// A device with a sender that has credit (handle 0).
async fn sending_device(daemon: &Daemon, address: &str) -> Result<RawDevice, Failure> {
    let mut device = RawDevice::begin(daemon.address(), raw::open("device", 65_536), raw::begin(0)).await?;
    device.attach_sender("up-0", 0, address).await?;
    Ok(device)
}

/// Waits for the detach of a link of the device; gives its error's text.
async fn detached(device: &mut RawDevice) -> Result<String, Failure> {
    let pick = |performative| match performative {
        Performative::Detach(Detach { error, .. }) => Some(format!("{error:?}")),
        _ => None,
    };
    device.expect("a detach", pick).await
}

fn port(hub: &Broker) -> u16 {
    hub.address().port()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unchanged_file_leaves_links_and_half_a_delivery_alone() -> Result<(), Failure> {
    let gateway = Gateway::to_broker().await?;
    let daemon = gateway.daemon()?;
    let mut device = sending_device(daemon, "sink/accept/half").await?;
    let sent = message::data(numbered(1, 2_000));
    let payload = message::encode(&sent);
    let (head, tail) = payload.split_at(700);
    let mut transfer = raw::transfer(0, 0, b"tag");
    transfer.more = true;
    device.transfer(transfer.clone(), head)?;
    for count in 1..=2 {
        daemon.signal("HUP").await?;
        let summary = daemon.reloaded(count).await?;
        ensure(
            summary.contains("4 routes; connectors: 1 unchanged, 0 changed, 0 added, 0 removed"),
            || summary.clone(),
        )?;
    }
    transfer.more = false;
    transfer.delivery_id = None;
    transfer.delivery_tag = None;
    device.transfer(transfer, tail)?;
    let received = gateway.hub.messages("sink/accept/half", 1).await?;
    ensure(received == [sent], || "the message was changed".to_owned())?;
    let settled = |performative| matches!(performative, Performative::Disposition(_)).then_some(());
    device.expect("the disposition", settled).await?;
    device.die();
    // SIGTERM works after SIGHUP (defect D17 of qdrouterd): `stop` insists on it.
    let (hub, log) = gateway.stop().await?;
    let opened = hub.journal().select(|seen| {
        let is_opened = matches!(seen, crate::support::broker::Seen::Opened(_));
        is_opened.then_some(())
    });
    ensure_eq("connections to the hub", opened.len(), 1)?;
    ensure(!log.iter().any(|line| line.contains("Link lost")), || {
        log.join("\n")
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_file_changes_nothing_and_says_where() -> Result<(), Failure> {
    let gateway = Gateway::to_broker().await?;
    let daemon = gateway.daemon()?;
    let mut device = sending_device(daemon, "sink/accept/bad").await?;
    let good = config(port(&gateway.hub), &BROKER_ROUTES);
    let bad = [
        (
            good.replace("saslMechanisms", "x")
                .replace("role: on-demand", "role: on-demnd"),
            "on-demnd",
        ),
        (format!("{good}\nlinkRoute {{\n"), "linkRoute"),
        (String::new(), "empty"),
        (
            format!("{good}\nlog {{\n    module: SERVER\n    outputFile: no/such/directory/log\n}}\n"),
            "no/such/directory/log",
        ),
    ];
    for (count, (text, part)) in bad.iter().enumerate() {
        daemon.reload(text).await?;
        let summary = daemon.reloaded(count + 1).await?;
        ensure(summary.contains("nothing changed"), || summary.clone())?;
        let what = format!("a finding with '{part}'");
        let found = |line: &String| {
            let is_it = line.contains("(error)") && line.contains("linkrouterd.conf:") && line.contains(part);
            is_it.then_some(())
        };
        daemon.log().find(&what, found).await?;
    }
    // All goes on as before, and the next good file is taken.
    device.attach_sender("up-1", 1, "sink/accept/worse").await?;
    daemon.reload(&good).await?;
    let summary = daemon.reloaded(bad.len() + 1).await?;
    ensure(summary.contains("1 unchanged, 0 changed"), || summary.clone())?;
    device.die();
    gateway.stop().await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_and_log_levels_count_at_once() -> Result<(), Failure> {
    let quiet = |text: &str| text.replace("enable: trace+", "enable: info+");
    let gateway = Gateway::to_broker_with(quiet).await?;
    let daemon = gateway.daemon()?;
    let mut device = sending_device(daemon, "sink/accept/routes").await?;
    device.send(Performative::Attach(raw::attach(
        "no",
        1,
        Role::Sender,
        "other/a",
    )))?;
    ensure(detached(&mut device).await?.contains("No link route"), || {
        "no refusal".to_owned()
    })?;
    let traced = |line: &String| line.contains("PROTOCOL (trace)").then_some(());
    ensure_eq("traces before", daemon.log().select(traced).len(), 0)?;
    daemon.reload(&config(port(&gateway.hub), &["other/"])).await?;
    daemon.reloaded(1).await?;
    device.attach_sender("up-2", 2, "other/a").await?;
    daemon.log().find("a trace", traced).await?;
    daemon
        .logged("Link Route Deactivated 'linkRoute/0' on connection IOTHUB")
        .await?;
    daemon
        .logged("Link Route Activated 'linkRoute/0' on connection IOTHUB")
        .await?;
    // The link of a route that is gone goes on; a new one is refused.
    let payload = message::encode(&message::data(numbered(2, 10)));
    device.transfer(raw::transfer(0, 0, b"t"), &payload)?;
    gateway.hub.messages("sink/accept/routes", 1).await?;
    device.send(Performative::Attach(raw::attach(
        "gone",
        3,
        Role::Sender,
        "sink/accept/x",
    )))?;
    ensure(detached(&mut device).await?.contains("No link route"), || {
        "no refusal".to_owned()
    })?;
    device.die();
    gateway.stop().await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_connector_is_dialed_anew_and_devices_are_told_why() -> Result<(), Failure> {
    let gateway = Gateway::to_broker().await?;
    let daemon = gateway.daemon()?;
    let other = Gateway::another_broker(&gateway.authority).await?;
    let mut device = sending_device(daemon, "sink/accept/first").await?;
    daemon.reload(&config(port(&other), &BROKER_ROUTES)).await?;
    let summary = daemon.reloaded(1).await?;
    ensure(summary.contains("0 unchanged, 1 changed"), || summary.clone())?;
    let why = detached(&mut device).await?;
    ensure(why.contains("its configuration changed"), || why.clone())?;
    device.attach_sender("up-1", 1, "sink/accept/second").await?;
    let payload = message::encode(&message::data(numbered(3, 10)));
    device.transfer(raw::transfer(1, 0, b"t"), &payload)?;
    other.messages("sink/accept/second", 1).await?;
    // The hub saw a close, not a loss, and its connection is gone.
    let gone = |seen: &crate::support::broker::Seen| {
        matches!(seen, crate::support::broker::Seen::Gone(1)).then_some(())
    };
    gateway
        .hub
        .journal()
        .find("the end of the first connection", gone)
        .await?;
    device.die();
    gateway.stop().await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_a_restart_can_change_is_named() -> Result<(), Failure> {
    let gateway = Gateway::to_broker().await?;
    let daemon = gateway.daemon()?;
    let text = config(port(&gateway.hub), &BROKER_ROUTES);
    let text = text.replace("containerName: Qpid.Dispatch.Router.A", "containerName: Another");
    let text = format!("{text}\nlistener {{\n    host: 127.0.0.2\n    port: 0\n}}\n");
    daemon.reload(&text).await?;
    daemon.reloaded(1).await?;
    for part in [
        "the router's id is still 'Qpid.Dispatch.Router.A': restart",
        "listener 127.0.0.2:0 is not opened: restart",
    ] {
        let line = daemon.logged(part).await?;
        ensure(
            line.contains("(warning)") && line.contains("linkrouterd.conf:"),
            || line.clone(),
        )?;
    }
    gateway.stop().await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_while_the_router_stops_is_too_late() -> Result<(), Failure> {
    let gateway = Gateway::to_broker().await?;
    let daemon = gateway.daemon()?;
    // A device that does not answer a close holds the stop up.
    let device = sending_device(daemon, "sink/accept/late").await?;
    daemon.signal("TERM").await?;
    daemon.logged("SIGTERM: closing all connections").await?;
    daemon.signal("HUP").await?;
    daemon.logged("SIGHUP: too late").await?;
    let (_, log) = gateway.stop().await?;
    device.die();
    ensure(
        !log.iter().any(|line| line.contains("Configuration reloaded")),
        || log.join("\n"),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_log_is_opened_anew() -> Result<(), Failure> {
    let gateway = Gateway::to_broker().await?;
    let daemon = gateway.daemon()?;
    let log = daemon.directory().join("router.log");
    let rotated = daemon.directory().join("router.log.1");
    let text = config(port(&gateway.hub), &BROKER_ROUTES);
    let logging = format!(
        "{text}\nlog {{\n    module: ROUTER_CORE\n    outputFile: {}\n}}\n",
        log.display()
    );
    daemon.reload(&logging).await?;
    daemon.reloaded(1).await?;
    device::close(gateway.reach.open("before").await?).await?;
    std::fs::rename(&log, &rotated)?;
    daemon.signal("HUP").await?;
    daemon.reloaded(2).await?;
    device::close(gateway.reach.open("after").await?).await?;
    // A line is in its file before the peer hears of what it is about.
    let (old, new) = (std::fs::read_to_string(&rotated)?, std::fs::read_to_string(&log)?);
    gateway.stop().await?;
    ensure(
        old.contains("container_id=before") && !old.contains("container_id=after"),
        || old.clone(),
    )?;
    ensure(new.contains("container_id=after"), || new.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_authority_is_read_at_each_dial_and_needs_no_reload() -> Result<(), Failure> {
    let gateway = Gateway::to_broker().await?;
    let daemon = gateway.daemon()?;
    let good = std::fs::read_to_string(daemon.directory().join(crate::support::daemon::CA_FILE))?;
    let other = crate::support::certificates::Authority::new(
        "Other Root",
        crate::support::certificates::Validity::Current,
    )?;
    let file = daemon.directory().join(crate::support::daemon::CA_FILE);
    std::fs::write(&file, other.pem())?;
    let device = RawDevice::begin(daemon.address(), raw::open("device", 65_536), raw::begin(0)).await?;
    device.send(Performative::Attach(raw::attach(
        "up",
        0,
        Role::Sender,
        "sink/accept/ca",
    )))?;
    daemon.logged("(warning) [C2] Connection to localhost").await?;
    std::fs::write(&file, good)?;
    // The attach that waits is served by the next dial; and the log tells that the trouble is over.
    let line = daemon.logged("is back after").await?;
    ensure(
        line.contains("SERVER (info)") && line.contains(" failed attempt"),
        || line.clone(),
    )?;
    let mut device = device;
    let credit = |performative| match performative {
        Performative::Flow(Flow {
            handle: Some(Handle(0)),
            ..
        }) => Some(()),
        _ => None,
    };
    device.expect("credit", credit).await?;
    device.die();
    bounded("the stop", gateway.stop()).await?.map(drop)
}
