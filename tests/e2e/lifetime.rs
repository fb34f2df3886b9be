//! The life of the real binary: a stop that lets what has begun end, certificates that are read at every dial, and the
//! frames of one device.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::broker::{Broker, number_of, numbered};
use crate::support::certificates::{Authority, Identity, Validity};
use crate::support::daemon::{CA_FILE, Daemon, config};
use crate::support::device::{self, Opened, Reach};
use crate::support::gateway::{BROKER_ROUTES, Gateway};
use crate::support::journal::Journal;
use crate::support::raw::{self, DialingBroker, RawDevice};
use crate::support::{Failure, bounded, ensure, ensure_eq, message};
use fe2o3_amqp::Connection;
use fe2o3_amqp::types::definitions::Role;
use fe2o3_amqp::types::messaging::{Accepted, DeliveryState};
use fe2o3_amqp::types::performatives::{Close, Disposition, Performative, Transfer};
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpSocket};
use tokio_rustls::TlsAcceptor;

// ---- the stop --------------------------------------------------------------------------------------------------------

const SLOW_HUB: &str = "
router {
    id: Router.A
}
listener {
    host: 127.0.0.1
    port: 0
}
listener {
    name: HUB
    host: 127.0.0.1
    port: 0
    role: route-container
}
linkRoute {
    prefix: queue
    connection: HUB
    direction: in
}
";

/// A device whose one delivery a hub has, and has not settled.
struct Waiting {
    daemon: Daemon,
    hub: DialingBroker,
    device: RawDevice,
    delivery: Transfer,
}

async fn waiting() -> Result<Waiting, Failure> {
    let daemon = Daemon::start(SLOW_HUB, "").await?;
    let addresses = daemon.addresses(2).await?;
    let mut hub = DialingBroker::connect(addresses[1], "hub").await?;
    daemon.logged("Link Route Activated").await?;
    let mut device = RawDevice::begin(addresses[0], raw::open("device", 65_536), raw::begin(0)).await?;
    device.send(Performative::Attach(raw::attach(
        "up",
        0,
        Role::Sender,
        "queue/a",
    )))?;
    hub.begun().await?;
    let attach = hub.attached().await?;
    let credit = raw::credit(attach.handle.0, 5, 0, 0);
    hub.0.send(Performative::Flow(credit))?;
    device
        .expect("credit", |frame| match frame {
            Performative::Flow(flow) => flow.link_credit,
            _ => None,
        })
        .await?;
    device.transfer(raw::transfer(0, 0, b"tag"), b"telemetry")?;
    let delivery = hub
        .0
        .expect("the delivery", |frame| match frame {
            Performative::Transfer(transfer) => Some(transfer),
            _ => None,
        })
        .await?;
    Ok(Waiting {
        daemon,
        hub,
        device,
        delivery,
    })
}

fn closed(frame: &Performative) -> Option<String> {
    match frame {
        Performative::Close(Close { error }) => Some(format!("{error:?}")),
        _ => None,
    }
}

async fn answer_close(peer: &mut RawDevice) -> Result<String, Failure> {
    let error = peer.expect("a close", |frame| closed(&frame)).await?;
    peer.send(Performative::Close(Close { error: None }))?;
    Ok(error)
}

/// The next disposition or close: the outcome of the delivery, if it is one.
async fn outcome(device: &mut RawDevice) -> Result<Option<DeliveryState>, Failure> {
    device
        .expect("an outcome", |frame| match frame {
            Performative::Disposition(disposition) => Some(disposition.state),
            Performative::Close(_) => Some(None),
            _ => None,
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_lets_a_slow_hub_settle_what_it_has() -> Result<(), Failure> {
    let Waiting {
        daemon,
        mut hub,
        mut device,
        delivery,
    } = waiting().await?;
    daemon.signal("TERM").await?;
    daemon
        .logged("Waiting up to 5 s for deliveries under way")
        .await?;
    hub.0.send(Performative::Disposition(Disposition {
        role: Role::Receiver,
        first: delivery.delivery_id.unwrap_or_default(),
        last: None,
        settled: true,
        state: Some(DeliveryState::Accepted(Accepted {})),
        batchable: false,
    }))?;
    let state = outcome(&mut device).await?;
    ensure(matches!(state, Some(DeliveryState::Accepted(_))), || {
        format!("{state:?}")
    })?;
    let error = answer_close(&mut device).await?;
    ensure(
        error.contains("ConnectionForced") && error.contains("connect again"),
        || error,
    )?;
    answer_close(&mut hub.0).await?;
    daemon.ended().await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_gives_a_hub_that_settles_nothing_five_seconds() -> Result<(), Failure> {
    let Waiting {
        daemon,
        mut hub,
        mut device,
        ..
    } = waiting().await?;
    let begun = Instant::now();
    daemon.signal("TERM").await?;
    let state = outcome(&mut device).await?;
    let taken = begun.elapsed();
    ensure(matches!(state, Some(DeliveryState::Modified(_))), || {
        format!("{state:?}")
    })?;
    ensure(taken >= Duration::from_millis(4_900), || format!("{taken:?}"))?;
    answer_close(&mut device).await?;
    answer_close(&mut hub.0).await?;
    let log = daemon.ended().await?;
    let says = log
        .iter()
        .any(|line| line.contains("were not settled within 5 s"));
    ensure(says, || log.join("\n"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_waits_for_nothing() -> Result<(), Failure> {
    let waiting = waiting().await?;
    waiting.daemon.signal("TERM").await?;
    waiting.daemon.logged("Waiting up to 5 s").await?;
    let begun = Instant::now();
    waiting.daemon.stop().await?;
    ensure(begun.elapsed() < Duration::from_secs(4), || {
        format!("{:?}", begun.elapsed())
    })
}

/// Sends as fast as it is answered, until it cannot; gives how many were accepted, which are the first.
async fn stream(reach: Reach, container: String) -> Result<u32, Failure> {
    let mut connection = reach.open(&container).await?;
    let mut session = device::begin(&mut connection).await?;
    let mut sender = device::sender(&mut session, "up", &format!("sink/accept/{container}")).await?;
    for number in 0.. {
        let sent = bounded("an outcome", sender.send(message::data(numbered(number, 200)))).await?;
        match sent {
            Ok(outcome) if outcome.is_accepted() => {}
            _ => return Ok(number),
        }
    }
    Err(Failure::new("it was never stopped"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_streaming_devices_saw_accepted_before_a_stop_is_at_the_hub() -> Result<(), Failure> {
    const DEVICES: usize = 4;
    let gateway = Gateway::to_broker_with(|config| config.replace("trace+", "info+")).await?;
    let names: Vec<String> = (0..DEVICES).map(|number| format!("device{number}")).collect();
    let devices: Vec<_> = names
        .iter()
        .map(|name| tokio::spawn(stream(gateway.reach.clone(), name.clone())))
        .collect();
    for name in &names {
        gateway.hub.messages(&format!("sink/accept/{name}"), 50).await?;
    }
    let begun = Instant::now();
    let (hub, log) = gateway.stop().await?;
    let taken = begun.elapsed();
    ensure(taken < Duration::from_secs(8), || {
        format!("{taken:?}\n{}", log.join("\n"))
    })?;
    for (name, device) in names.iter().zip(devices) {
        let accepted = bounded("the device's end", device).await???;
        let at_hub = hub
            .messages(&format!("sink/accept/{name}"), accepted as usize)
            .await?;
        let numbers: Vec<u32> = at_hub
            .iter()
            .filter_map(|message| number_of(&message::body_of(message)))
            .collect();
        let missing: Vec<u32> = (0..accepted).filter(|number| !numbers.contains(number)).collect();
        ensure(accepted >= 49 && missing.is_empty(), || {
            format!("{name}: of {accepted} accepted the hub lacks {missing:?}")
        })?;
    }
    Ok(())
}

// ---- certificates at each dial ---------------------------------------------------------------------------------------

/// Whole at once.
fn replace(directory: &Path, file: &str, text: &str) -> Result<(), Failure> {
    let new = directory.join("new");
    std::fs::write(&new, text)?;
    Ok(std::fs::rename(&new, directory.join(file))?)
}

async fn deliver(connection: &mut Opened, hub: &Broker, name: &str, count: usize) -> Result<(), Failure> {
    let mut session = device::begin(connection).await?;
    let mut sender = device::sender(&mut session, name, "sink/accept/a").await?;
    let outcome = bounded("the outcome", sender.send(message::data("x"))).await??;
    ensure(outcome.is_accepted(), || format!("{outcome:?}"))?;
    hub.messages("sink/accept/a", count).await?;
    device::end(session).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_ca_is_read_at_the_next_dial_and_a_broken_one_is_named() -> Result<(), Failure> {
    let mut gateway = Gateway::to_broker().await?;
    let reach = gateway.reach.clone();
    let mut connection = reach.open("device").await?;
    deliver(&mut connection, &gateway.hub, "first", 1).await?;
    let ca = gateway.authority.pem();
    let other = Authority::new("Another Root", Validity::Current)?;

    // Only the new file knows nothing of the hub's issuer; nobody sends a signal.
    gateway.hub.stop().await?;
    let daemon = gateway.daemon()?;
    daemon.logged("Link Route Deactivated").await?;
    replace(daemon.directory(), CA_FILE, &other.pem())?;
    gateway.hub.resume().await?;
    let daemon = gateway.daemon()?;
    let waiting = tokio::spawn(async move {
        let mut connection = reach.open("waits").await?;
        let mut session = device::begin(&mut connection).await?;
        let sender = device::sender(&mut session, "waits", "sink/accept/b").await;
        Ok::<_, Failure>((connection, session, sender))
    });
    let line = daemon.logged("leads to the authority 'Test Root'").await?;
    ensure(line.contains(CA_FILE), || line)?;

    // A file that is being written.
    replace(daemon.directory(), CA_FILE, &ca[..ca.len() / 2])?;
    let line = daemon.logged("is not in PEM form").await?;
    ensure(line.contains(CA_FILE), || line)?;

    replace(daemon.directory(), CA_FILE, &ca)?;
    let (waited, session, _sender) = bounded("the end of the wait", waiting).await???;
    device::end(session).await?;
    device::close(waited).await?;
    deliver(&mut connection, &gateway.hub, "second", 2).await?;
    let (_, log) = gateway.stop().await?;
    ensure(!log.iter().any(|line| line.contains("SIGHUP")), || log.join("\n"))
}

/// A hub that looks at the certificate of whoever dials, and hangs up.
async fn certificates(tls: TlsAcceptor, listener: TcpListener, seen: Arc<Journal<CertificateDer<'static>>>) {
    while let Ok((stream, _)) = listener.accept().await {
        if let Ok(stream) = tls.accept(stream).await
            && let Some([first, ..]) = stream.get_ref().1.peer_certificates()
        {
            seen.note(first.clone());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_client_certificate_is_shown_at_the_next_dial_and_a_broken_one_is_named()
-> Result<(), Failure> {
    let authority = Authority::new("Test Root", Validity::Current)?;
    let hub = authority.issue(&["localhost"], Validity::Current)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let port = listener.local_addr()?.port();
    let seen = Arc::new(Journal::default());
    let tls = TlsAcceptor::from(authority.server_config(&hub)?);
    let serving = tokio::spawn(certificates(tls, listener, seen.clone()));
    let directory = TempDir::with_prefix("linkrouterd-")?;
    let [first, second, third] =
        ["one", "two", "three"].map(|name| authority.issue_device(name, Validity::Current));
    let (first, second, third) = (first?, second?, third?);
    let renew = |identity: &Identity| {
        replace(directory.path(), "client.key", &identity.key_pem)?;
        replace(directory.path(), "client.pem", &identity.certificate_pem)
    };
    let is = |expected: &Identity| {
        let expected = expected.certificate.clone();
        move |seen: &CertificateDer<'static>| (*seen == expected).then_some(())
    };
    renew(&first)?;
    let place = directory.path().display();
    // The connector is persistent, and dials by itself.
    let text = config(port, &[])
        .replace("role: on-demand", "role: route-container")
        .replace(
            "cert-db:",
            &format!("certFile: {place}/client.pem\n    privateKeyFile: {place}/client.key\n    cert-db:"),
        );
    let daemon = Daemon::start(&text, &authority.pem()).await?;
    seen.find("the first certificate", is(&first)).await?;
    renew(&second)?;
    seen.find("the second certificate", is(&second)).await?;
    let half = third.certificate_pem.len() / 2;
    replace(directory.path(), "client.pem", &third.certificate_pem[..half])?;
    let line = daemon.logged("client.pem is not in PEM form").await?;
    ensure(line.contains("(warning)") && line.contains("failed: "), || line)?;
    renew(&third)?;
    seen.find("the third certificate", is(&third)).await?;
    let log = daemon.stop().await?;
    serving.abort();
    ensure(!log.iter().any(|line| line.contains("SIGHUP")), || log.join("\n"))
}

// ---- the trace of one device -----------------------------------------------------------------------------------------

/// A device that connects from this address of this machine.
async fn open_from(last: u8, to: SocketAddr, container: &str) -> Result<Opened, Failure> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::new(127, 0, 0, last), 0).into())?;
    let stream = socket.connect(to).await?;
    let opening = Connection::builder()
        .container_id(container)
        .scheme("amqp")
        .hostname("127.0.0.1")
        .open_with_stream(stream);
    Ok(bounded("opening", opening).await??)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_ten_devices_one_is_traced_by_its_container_and_one_by_its_host() -> Result<(), Failure> {
    let traced = |what: &str| format!("\nlog {{\n    module: PROTOCOL\n    traceDevice: {what}\n}}\n");
    let authority = Authority::new("Test Root", Validity::Current)?;
    let hub = Gateway::another_broker(&authority).await?;
    let plain = config(hub.address().port(), &BROKER_ROUTES);
    let text = format!("{plain}{}", traced("Netduino-*, 127.0.0.9/32"));
    let daemon = Daemon::start(&text, &authority.pem()).await?;
    let mut connections = Vec::new();
    for number in 1..=10_u8 {
        let container = match number {
            4 => "Netduino-4".to_owned(),
            _ => format!("quiet-{number}"),
        };
        let mut connection = open_from(number, daemon.address(), &container).await?;
        deliver(
            &mut connection,
            &hub,
            &format!("link{number}"),
            usize::from(number),
        )
        .await?;
        connections.push(connection);
    }
    let of_device = |log: &[String], number: u8| {
        log.iter()
            .filter(|line| line.contains("PROTOCOL (trace)") && line.contains(&format!("\"link{number}")))
            .count()
    };
    let frames = || {
        daemon
            .log()
            .select(|line| line.contains("PROTOCOL").then(|| line.clone()))
    };
    for number in 1..=10 {
        let count = of_device(&frames(), number);
        // The attach of the device and its answer, and the same at the hub.
        let expected = if matches!(number, 4 | 9) { 4 } else { 0 };
        ensure_eq(&format!("attaches shown of device {number}"), count, expected)?;
    }
    // Transfers of two devices, on two connections each.
    let transfers = |log: &[String]| log.iter().filter(|line| line.contains("@transfer")).count();
    ensure_eq("transfers", transfers(&frames()), 4)?;

    // A reload changes it for connections that are there.
    daemon.reload(&format!("{plain}{}", traced("127.0.0.2"))).await?;
    daemon.reloaded(1).await?;
    let before = frames().len();
    for (number, connection) in [(11, 3), (12, 1)] {
        deliver(
            &mut connections[connection],
            &hub,
            &format!("link{number}"),
            number,
        )
        .await?;
    }
    let after = frames().split_off(before);
    ensure_eq("device 4", of_device(&after, 11), 0)?;
    ensure_eq("device 2", of_device(&after, 12), 4)?;
    ensure_eq("transfers", transfers(&after), 2)?;
    for connection in connections {
        device::close(connection).await?;
    }
    daemon.stop().await.map(drop)
}
