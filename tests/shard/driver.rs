//! The shard over real sockets: conversations byte by byte, peers that vanish, a system without file descriptors.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Command as Process, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crate::peers::Authority;
use crate::raw_device::{BEGIN, CLOSE, HEADER, OPEN, PATIENCE, RawDevice, begin, close, frame, open};
use linkrouterd::router::settings::policy::PolicySettings;
use linkrouterd::router::settings::{
    CbsMode, ConnectorRole, ConnectorSettings, ErrorConditions, HostPort, HubLoss, ListenerRole,
    ListenerSettings, PeerLimits, RouterSettings, SharingSettings,
};
use linkrouterd::shard::dial::DialSettings;
use linkrouterd::shard::tls::TlsSettings;
use linkrouterd::shard::{AddressFamily, Command, ListenSettings, Shard, ShardError, ShardSettings};
use rustls::ServerConfig;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

const LIMITS: PeerLimits = PeerLimits {
    max_frame_size: 16 * 1024,
    channel_max: 15,
    incoming_window: None,
    idle_timeout: None,
};

/// Settings with one listener on a free port of the loopback.
fn settings() -> ShardSettings {
    ShardSettings {
        router: RouterSettings {
            container_id: "gateway".to_owned(),
            listeners: vec![ListenerSettings {
                name: "devices".to_owned(),
                address: "127.0.0.1:0".to_owned(),
                role: ListenerRole::Normal,
                multi_tenant: false,
                policy_vhost: None,
                limits: LIMITS,
                handshake_timeout: Duration::ZERO,
                sasl_mechanisms: vec!["ANONYMOUS".to_owned()],
                authenticate_peer: false,
                require_encryption: false,
                failover: Vec::new(),
                on_hub_lost: HubLoss::Detach,
            }],
            connectors: Vec::new(),
            routes: Vec::new(),
            max_connections: 10_000,
            policy: PolicySettings::default(),
            error_conditions: ErrorConditions::Amqp,
            allow_resumable_link_route: true,
            attach_timeout: Duration::from_secs(30),
            linger: Duration::from_secs(60),
            trace: Default::default(),
        },
        listeners: vec![ListenSettings {
            host: "127.0.0.1".to_owned(),
            port: 0,
            family: AddressFamily::Any,
            tls: None,
        }],
        passwords: Arc::default(),
        connectors: Vec::new(),
    }
}

/// Adds a connector that dials at once.
fn with_hub(mut settings: ShardSettings, hub: SocketAddr, tls: Option<TlsSettings>) -> ShardSettings {
    settings.router.connectors.push(ConnectorSettings {
        name: "HUB".to_owned(),
        host: HostPort {
            host: hub.ip().to_string(),
            port: hub.port(),
        },
        failover: Vec::new(),
        server_name: Some("localhost".to_owned()),
        believes_failover_list: true,
        uses_tls: tls.is_some(),
        role: ConnectorRole::Persistent,
        role_name: "route-container".to_owned(),
        limits: LIMITS,
        sasl_mechanisms: Vec::new(),
        sasl_username: None,
        sasl_password: None,
        has_client_certificate: false,
        dial_timeout: PATIENCE,
        sharing: SharingSettings {
            cbs: CbsMode::Tunnel,
            ..SharingSettings::default()
        },
    });
    settings.connectors.push(DialSettings {
        host: hub.ip().to_string(),
        port: hub.port(),
        family: AddressFamily::Any,
        tls: tls.map(Arc::new),
    });
    settings
}

/// A running shard.
struct Gateway {
    address: SocketAddr,
    commands: mpsc::Sender<Command>,
    running: JoinHandle<Result<(), ShardError>>,
}

impl Gateway {
    fn start(settings: ShardSettings) -> Self {
        let shard = Shard::bind(settings).unwrap();
        let (_, address) = shard.bound_addresses()[0];
        let (commands, receiver) = mpsc::channel(1);
        Gateway {
            address,
            commands,
            running: tokio::task::spawn_local(shard.run(receiver)),
        }
    }

    async fn stop(self) {
        self.commands.send(Command::Shutdown).await.unwrap();
        self.stopped().await;
    }

    async fn stopped(self) {
        timeout(PATIENCE, self.running)
            .await
            .expect("did not stop")
            .unwrap()
            .unwrap();
    }
}

#[tokio::test(flavor = "local")]
async fn a_conversation() {
    let gateway = Gateway::start(settings());
    let mut device = RawDevice::connect(gateway.address).await;
    device.send(&HEADER).await;
    device.expect_header().await;
    device.send(&open("device")).await;
    let answer = device.expect(OPEN).await;
    assert!(answer.windows(7).any(|part| part == b"gateway"), "{answer:02x?}");
    device.send(&begin()).await;
    device.expect(BEGIN).await;
    device.send(&close()).await;
    device.expect(CLOSE).await;
    device.expect_end().await;
    drop(device);
    gateway.stop().await;
}

/// A service manager's watchdog is fed by this.
#[tokio::test(flavor = "local")]
async fn a_shard_beats_as_often_as_asked_while_it_is_idle() {
    let mut shard = Shard::bind(settings()).unwrap();
    let mut beats = shard.observe(Some(Duration::from_millis(20)));
    let (commands, receiver) = mpsc::channel(1);
    let running = tokio::task::spawn_local(shard.run(receiver));
    for _ in 0..5 {
        timeout(PATIENCE, beats.changed())
            .await
            .expect("no beat")
            .unwrap();
    }
    commands.send(Command::Shutdown).await.unwrap();
    running.await.unwrap().unwrap();
    // The last word is no beat.
    beats.borrow_and_update();
    beats.changed().await.expect_err("it has ended");
}

/// Nobody asked for a rhythm: an idle shard is not woken, one where something happens shows it.
#[tokio::test(flavor = "local")]
async fn a_shard_that_is_watched_by_people_only_beats_when_something_happens() {
    let mut shard = Shard::bind(settings()).unwrap();
    let (_, address) = shard.bound_addresses()[0];
    let mut beats = shard.observe(None);
    let (commands, receiver) = mpsc::channel(1);
    let running = tokio::task::spawn_local(shard.run(receiver));
    timeout(PATIENCE, beats.changed())
        .await
        .expect("no beat")
        .unwrap();
    let silence = Duration::from_millis(2500);
    timeout(silence, beats.changed())
        .await
        .expect_err("a beat for nothing");
    let first = RawDevice::connect(address).await;
    timeout(PATIENCE, beats.changed())
        .await
        .expect("no beat")
        .unwrap();
    assert_eq!(beats.borrow_and_update().devices, 1);
    // Soon, but not at once, or a storm of devices would be one of beats.
    let second = RawDevice::connect(address).await;
    timeout(Duration::from_millis(500), beats.changed())
        .await
        .expect_err("too soon");
    timeout(PATIENCE, beats.changed())
        .await
        .expect("no beat")
        .unwrap();
    assert_eq!(beats.borrow_and_update().devices, 2);
    drop((first, second));
    commands.send(Command::Shutdown).await.unwrap();
    running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "local")]
async fn everything_in_one_packet() {
    let gateway = Gateway::start(settings());
    let mut device = RawDevice::connect(gateway.address).await;
    let all = [&HEADER[..], &open("device"), &begin(), &close()].concat();
    device.send(&all).await;
    // Ends at once, too: what we have to say is sent all the same.
    device.stream.shutdown().await.unwrap();
    device.expect_header().await;
    device.expect(OPEN).await;
    device.expect(BEGIN).await;
    device.expect(CLOSE).await;
    device.expect_end().await;
    drop(device);
    gateway.stop().await;
}

#[tokio::test(flavor = "local")]
async fn one_byte_at_a_time() {
    let gateway = Gateway::start(settings());
    let mut device = RawDevice::connect(gateway.address).await;
    for byte in [&HEADER[..], &open("device"), &close()].concat() {
        device.send(&[byte]).await;
        tokio::task::yield_now().await;
    }
    device.expect_header().await;
    device.expect(OPEN).await;
    device.expect(CLOSE).await;
    device.expect_end().await;
    drop(device);
    gateway.stop().await;
}

/// With room for one connection only, the next one is proof that the last one is gone.
#[tokio::test(flavor = "local")]
async fn a_device_that_dies_in_the_middle_of_a_frame_is_noticed_at_once() {
    let mut only_one = settings();
    only_one.router.max_connections = 1;
    let gateway = Gateway::start(only_one);

    let mut device = RawDevice::opened(gateway.address).await;
    let mut second = RawDevice::connect(gateway.address).await;
    second.expect_end().await;

    let half = begin();
    device.send(&half[..half.len() / 2]).await;
    device.stream.shutdown().await.unwrap();
    device.expect_end().await;
    let mut device = RawDevice::opened(gateway.address).await;

    // The other way to die: a reset.
    device.send(&half[..half.len() / 2]).await;
    device.stream.set_zero_linger().unwrap();
    drop(device);
    let reopened = async {
        loop {
            let mut device = RawDevice::connect(gateway.address).await;
            // Refused for as long as the reset is on its way.
            if device
                .stream
                .write_all(&[&HEADER[..], &open("device")].concat())
                .await
                .is_ok()
                && device.stream.read_u64().await.is_ok()
            {
                break device;
            }
        }
    };
    let mut device = timeout(PATIENCE, reopened)
        .await
        .expect("the reset went unnoticed");
    device.expect(OPEN).await;
    drop(device);
    gateway.stop().await;
}

/// Our answer must arrive, though the peer goes on sending what we will never read.
#[tokio::test(flavor = "local")]
async fn a_peer_of_another_protocol_is_told_ours() {
    let gateway = Gateway::start(settings());
    let mut device = RawDevice::connect(gateway.address).await;
    device.send(b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n").await;
    device.send(&[b'x'; 100_000]).await;
    device.expect_header().await;
    device.expect_end().await;
    drop(device);
    gateway.stop().await;
}

#[tokio::test(flavor = "local")]
async fn garbage_is_answered_by_a_close() {
    let gateway = Gateway::start(settings());
    let mut device = RawDevice::opened(gateway.address).await;
    // A frame smaller than its own header.
    device.send(&[0, 0, 0, 3, 2, 0, 0, 0]).await;
    let body = device.expect(CLOSE).await;
    assert!(
        body.windows(13).any(|part| part == b"framing-error"),
        "{body:02x?}"
    );
    device.stream.shutdown().await.unwrap();
    device.expect_end().await;
    drop(device);
    gateway.stop().await;
}

#[tokio::test(flavor = "local")]
async fn many_devices_at_once() {
    let gateway = Gateway::start(settings());
    let devices: Vec<_> = (0..200)
        .map(|_| {
            let address = gateway.address;
            tokio::task::spawn_local(async move {
                let mut device = RawDevice::opened(address).await;
                for _ in 0..10 {
                    device.send(&frame(&[])).await;
                }
                device.send(&[begin(), close()].concat()).await;
                device.expect(BEGIN).await;
                device.expect(CLOSE).await;
                device.expect_end().await;
            })
        })
        .collect();
    for device in devices {
        device.await.unwrap();
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "local")]
async fn a_stop_closes_properly() {
    let gateway = Gateway::start(settings());
    let address = gateway.address;
    let mut device = RawDevice::opened(address).await;
    let silent = RawDevice::connect(address).await;
    let stopping = tokio::task::spawn_local(gateway.stop());
    let body = device.expect(CLOSE).await;
    assert!(body.windows(6).any(|part| part == b"forced"), "{body:02x?}");
    device.send(&close()).await;
    device.expect_end().await;
    drop(silent);
    stopping.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err(), "still listening");
}

/// A stop is not held up by a device that neither reads nor answers.
#[tokio::test(flavor = "local")]
async fn a_stop_is_bounded() {
    let gateway = Gateway::start(settings());
    let _device = RawDevice::opened(gateway.address).await;
    // The end of all senders means the same as the command.
    let Gateway {
        commands, running, ..
    } = gateway;
    drop(commands);
    timeout(Duration::from_secs(7), running)
        .await
        .expect("did not stop")
        .unwrap()
        .unwrap();
}

#[test]
fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let mut settings = settings();
    let address = taken.local_addr().unwrap();
    settings.listeners[0].port = address.port();
    settings.router.listeners[0].address = address.to_string();
    assert_eq!(
        Shard::bind(settings).unwrap_err().to_string(),
        format!("cannot listen on {address} (devices): Address already in use (os error 98)")
    );
}

#[test]
fn settings_must_go_together() {
    let mut settings = settings();
    settings.listeners.clear();
    assert!(matches!(
        Shard::bind(settings).unwrap_err(),
        ShardError::Mismatch {
            listeners: 1,
            connectors: 0
        }
    ));
}

/// Takes one TLS connection after the other, and for each reports how AMQP begins on it.
async fn hub(config: ServerConfig) -> (SocketAddr, mpsc::Receiver<std::io::Result<[u8; 8]>>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (report, reports) = mpsc::channel(4);
    tokio::task::spawn_local(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let greeted = async {
                let mut stream = acceptor.accept(tcp).await?;
                let mut header = [0; 8];
                stream.read_exact(&mut header).await?;
                Ok(header)
            };
            if report.send(greeted.await).await.is_err() {
                break;
            }
        }
    });
    (address, reports)
}

fn trusting(authority: &Authority, directory: &TempDir) -> TlsSettings {
    TlsSettings {
        profile: "hub-tls".to_owned(),
        server_name: "localhost".to_owned(),
        verify_hostname: true,
        ca_file: Some(authority.write(directory)),
        cert_file: None,
        key_file: None,
        versions: Vec::new(),
    }
}

#[tokio::test(flavor = "local")]
async fn a_hub_is_dialed_over_tls_and_dialed_again_when_lost() {
    let directory = TempDir::new().unwrap();
    let authority = Authority::new("Test Root");
    let server = authority.issue_for_loopback().server(rustls::ALL_VERSIONS);
    let (address, mut reports) = hub(server).await;
    let gateway = Gateway::start(with_hub(
        settings(),
        address,
        Some(trusting(&authority, &directory)),
    ));
    for _ in 0..2 {
        // The hub hangs up after the header, without close_notify.
        let header = timeout(PATIENCE, reports.recv()).await.unwrap().unwrap().unwrap();
        assert_eq!(&header[..4], b"AMQP");
    }
    gateway.stop().await;
}

/// In TLS 1.3 a server speaks of our certificate when the handshake is over on our side.
#[tokio::test(flavor = "local")]
async fn a_client_certificate_that_is_missed_late_is_explained() {
    let directory = TempDir::new().unwrap();
    let authority = Authority::new("Test Root");
    let server = crate::peers::demanding(
        &authority.issue_for_loopback(),
        authority.certificate.der().clone(),
        &rustls::version::TLS13,
    );
    let (address, mut reports) = hub(server).await;
    let mut log = log_lines();
    let gateway = Gateway::start(with_hub(
        settings(),
        address,
        Some(trusting(&authority, &directory)),
    ));
    timeout(PATIENCE, reports.recv())
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
    let mut seen = Vec::new();
    let explained = async {
        loop {
            seen.push(log.recv().await.unwrap());
            if seen.last().unwrap().contains("demands a client certificate") {
                break;
            }
        }
    };
    if timeout(PATIENCE, explained).await.is_err() {
        panic!("no explanation in {seen:#?}");
    }
    let line = seen.last().unwrap();
    assert!(line.contains(&format!("Connection to {address}")), "{line}");
    gateway.stop().await;
}

thread_local! {
    static LOG: RefCell<Option<mpsc::UnboundedSender<String>>> = const { RefCell::new(None) };
}

/// The log of this thread, where the shard runs. One subscriber for the whole process hands it out: with one for each
/// thread, whoever comes to a log line first decides for all whether it is of interest.
fn log_lines() -> mpsc::UnboundedReceiver<String> {
    struct Lines;

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            LOG.with_borrow(|log| {
                if let Some(log) = log {
                    let _ = log.send(String::from_utf8_lossy(bytes).into_owned());
                }
            });
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    let (sender, receiver) = mpsc::unbounded_channel();
    LOG.set(Some(sender));
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(|| Lines)
        .finish();
    // The first test that asks does it for all.
    let _ = tracing::subscriber::set_global_default(subscriber);
    receiver
}

/// Runs in a process of its own, started by the next test with few file descriptors: a gateway that reports its
/// address and its log on stdout, until stdin ends.
#[tokio::test(flavor = "local")]
#[ignore = "started by running_out_of_file_descriptors_is_survived"]
async fn gateway_process() {
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(std::io::stdout)
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let gateway = Gateway::start(settings());
    println!("Listening on {}", gateway.address);
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()))
        .await
        .unwrap()
        .unwrap();
    gateway.stop().await;
}

#[test]
fn running_out_of_file_descriptors_is_survived() {
    let mut gateway = Process::new("/bin/sh")
        .args([
            "-c",
            "ulimit -n 32 && exec \"$0\" --exact driver::gateway_process --ignored --nocapture",
        ])
        .arg(std::env::current_exe().unwrap())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(gateway.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let listening = log.find(|line| line.contains("Listening on ")).unwrap();
    let address = listening
        .split("Listening on ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap();
    let address: SocketAddr = address.parse().unwrap();

    let connect = || {
        let device = std::net::TcpStream::connect(address).unwrap();
        device.set_read_timeout(Some(PATIENCE)).unwrap();
        device
    };
    // The system completes them all; the gateway cannot accept them all.
    let mut crowd: Vec<_> = (0..48).map(|_| connect()).collect();
    let complaint = log
        .find(|line| line.contains("Cannot accept connections"))
        .unwrap();
    assert!(complaint.contains("Too many open files"), "{complaint}");

    // It is alive for those that it has, and takes the others as soon as it can.
    for device in &mut crowd[..4] {
        greet(device);
    }
    crowd.truncate(4);
    let mut late = connect();
    greet(&mut late);
    for device in &mut crowd {
        device.write_all(&close()).unwrap();
    }

    drop((crowd, late));
    drop(gateway.stdin.take());
    assert!(gateway.wait().unwrap().success());
    let complaints = log
        .filter(|line| line.contains("Cannot accept connections"))
        .count();
    assert_eq!(complaints, 0, "complained again within the minute");
}

/// Opens a connection, without Tokio.
fn greet(device: &mut std::net::TcpStream) {
    device
        .write_all(&[&HEADER[..], &open("device")].concat())
        .unwrap();
    let mut answer = [0; 16];
    device.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..8], HEADER);
}
