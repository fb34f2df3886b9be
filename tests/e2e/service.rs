//! The real binary under a service manager: what it tells the manager and when, that a stuck one is not fed, and a start
//! before the clock is set.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram as StdDatagram};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::support::certificates::{Authority, Validity};
use crate::support::daemon::{Daemon, config, tested_program};
use crate::support::gateway::{BROKER_ROUTES, Gateway};
use crate::support::journal::Journal;
use crate::support::raw::{self, RawDevice};
use crate::support::{Failure, bounded, ensure, ensure_eq};
use fe2o3_amqp::types::definitions::Role;
use fe2o3_amqp::types::performatives::Performative;
use nix::fcntl::{FcntlArg, fcntl};
use nix::time::{ClockId, clock_gettime};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe::Receiver;
use tokio::net::{TcpStream, UnixDatagram};
use tokio::process::Command;
use tokio::task::JoinHandle;

const LISTENER: &str = "listener {\n    host: 127.0.0.1\n    port: 0\n}\n";
/// What the manager says to itself, to know that it has read everything before.
const SENTINEL: &str = "SENTINEL=1";

/// A service manager: a socket, and what came in.
struct Manager {
    messages: Arc<Journal<String>>,
    name: String,
    reader: JoinHandle<()>,
    _directory: TempDir,
}

impl Manager {
    fn at_path() -> Result<Self, Failure> {
        let directory = TempDir::with_prefix("notify-")?;
        let path = directory.path().join("notify");
        let socket = StdDatagram::bind(&path)?;
        Self::new(socket, path.display().to_string(), directory)
    }

    fn abstract_name() -> Result<Self, Failure> {
        let directory = TempDir::with_prefix("notify-")?;
        let name = directory.path().join("abstract").display().to_string();
        let socket = StdDatagram::bind_addr(&UnixAddress::from_abstract_name(&name)?)?;
        Self::new(socket, format!("@{name}"), directory)
    }

    fn new(socket: StdDatagram, name: String, directory: TempDir) -> Result<Self, Failure> {
        socket.set_nonblocking(true)?;
        let socket = UnixDatagram::from_std(socket)?;
        let messages = Arc::new(Journal::default());
        let journal = messages.clone();
        let reader = tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok(length) = socket.recv(&mut buffer).await {
                journal.note(String::from_utf8_lossy(&buffer[..length]).into_owned());
            }
        });
        Ok(Manager {
            messages,
            name,
            reader,
            _directory: directory,
        })
    }

    /// A daemon that it manages.
    async fn start(&self, config: &str, ca: &str) -> Result<Daemon, Failure> {
        Daemon::start_in(&[("NOTIFY_SOCKET", &self.name)], config, ca).await
    }

    /// Waits for a message with all of these lines or parts of lines; gives it.
    async fn told(&self, parts: &[&str]) -> Result<String, Failure> {
        let pick = |message: &String| {
            let is_it = parts.iter().all(|part| message.contains(part));
            is_it.then(|| message.clone())
        };
        let found = self.messages.find(&format!("{parts:?}"), pick).await;
        found.map_err(|failure| Failure::new(format!("{failure}; told was {:#?}", self.so_far())))
    }

    fn so_far(&self) -> Vec<String> {
        self.messages.select(|message| Some(message.clone()))
    }

    /// All that it was told, once the daemon has ended.
    async fn everything(self) -> Result<Vec<String>, Failure> {
        let socket = StdDatagram::unbound()?;
        match self.name.strip_prefix('@') {
            Some(name) => {
                socket.send_to_addr(SENTINEL.as_bytes(), &UnixAddress::from_abstract_name(name)?)?
            }
            None => socket.send_to(SENTINEL.as_bytes(), &self.name)?,
        };
        self.told(&[SENTINEL]).await?;
        self.reader.abort();
        Ok(self.so_far())
    }
}

fn position(messages: &[String], part: &str) -> Result<usize, Failure> {
    let found = messages.iter().position(|message| message.contains(part));
    found.ok_or_else(|| Failure::new(format!("no '{part}' in {messages:#?}")))
}

fn monotonic_microseconds() -> Result<u128, Failure> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?).as_micros())
}

// ---- life ----------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ready_means_that_every_listener_is_bound_and_stopping_that_it_ends() -> Result<(), Failure> {
    for manager in [Manager::at_path()?, Manager::abstract_name()?] {
        let named = |name: &str| LISTENER.replace("{\n", &format!("{{\n    name: {name}\n"));
        let daemon = manager
            .start(&format!("{}{}", named("one"), named("two")), "")
            .await?;
        manager.told(&["READY=1"]).await?;
        ensure_eq(
            "first",
            manager.so_far().first().map(String::as_str),
            Some("READY=1"),
        )?;
        for address in daemon.addresses(2).await? {
            TcpStream::connect(address).await?;
        }
        manager.told(&["STATUS=0 devices, 0 links"]).await?;
        daemon.stop().await?;
        let told = manager.everything().await?;
        ensure(
            position(&told, "READY=1")? < position(&told, "STOPPING=1")?,
            || format!("{told:#?}"),
        )?;
        let ready = told.iter().filter(|message| message.contains("READY=1")).count();
        ensure_eq("READY=1", ready, 1)?;
        ensure(!told.concat().contains("WATCHDOG"), || format!("{told:#?}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_cannot_listen_is_never_ready_and_says_why() -> Result<(), Failure> {
    let manager = Manager::at_path()?;
    let occupied = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = occupied.local_addr()?.port();
    let config = format!("{LISTENER}listener {{\n    host: 127.0.0.1\n    port: {port}\n}}\n");
    let failure = match manager.start(&config, "").await {
        Ok(_) => return Err(Failure::new("it started")),
        Err(failure) => failure.to_string(),
    };
    ensure(failure.contains("exit status: 1"), || failure.clone())?;
    let told = manager.everything().await?;
    let why = format!(
        "STATUS=cannot listen on 127.0.0.1:{port} (listener/127.0.0.1:{port}): Address already in use"
    );
    position(&told, &why)?;
    ensure(!told.concat().contains("READY"), || format!("{told:#?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_that_has_gone_is_no_reason_to_stop() -> Result<(), Failure> {
    let manager = Manager::at_path()?;
    let daemon = manager.start(LISTENER, "").await?;
    manager.told(&["READY=1"]).await?;
    manager.reader.abort();
    drop(manager);
    daemon.signal("HUP").await?;
    daemon.reloaded(1).await?;
    for nonsense in ["relative", "vsock:2:1", "/no/such/socket"] {
        let daemon = Daemon::start_in(&[("NOTIFY_SOCKET", nonsense)], LISTENER, "").await?;
        daemon.stop().await?;
    }
    daemon.stop().await.map(drop)
}

// ---- status --------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_has_devices_links_and_how_the_hub_is() -> Result<(), Failure> {
    let manager = Manager::at_path()?;
    let authority = Authority::new("Test Root", Validity::Current)?;
    let mut hub = Gateway::another_broker(&authority).await?;
    let port = hub.address().port();
    let daemon = manager
        .start(&config(port, &BROKER_ROUTES), &authority.pem())
        .await?;
    manager
        .told(&[&format!(
            "STATUS=0 devices, 0 links; hub localhost:{port}: not needed"
        )])
        .await?;
    let mut device = RawDevice::begin(daemon.address(), raw::open("device", 65_536), raw::begin(0)).await?;
    device.send(Performative::Attach(raw::attach(
        "up",
        0,
        Role::Sender,
        "sink/accept/status",
    )))?;
    let credit = |performative| matches!(performative, Performative::Flow(_)).then_some(());
    device.expect("credit", credit).await?;
    manager
        .told(&[&format!("STATUS=1 device, 1 link; hub localhost:{port}: open")])
        .await?;
    hub.stop().await?;
    manager.told(&["STATUS=1 device, 0 links; "]).await?;
    device.send(Performative::Attach(raw::attach(
        "again",
        1,
        Role::Sender,
        "sink/accept/status",
    )))?;
    manager
        .told(&[
            "STATUS=1 device, 1 link; ",
            &format!("hub localhost:{port}: failed: "),
        ])
        .await?;
    device.die();
    manager.told(&["STATUS=0 devices, 0 links; "]).await?;
    daemon.stop().await.map(drop)
}

// ---- reload --------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_is_announced_and_ends_with_its_outcome() -> Result<(), Failure> {
    let manager = Manager::at_path()?;
    let daemon = manager.start(LISTENER, "").await?;
    manager.told(&["STATUS=0 devices"]).await?;

    let before = monotonic_microseconds()?;
    daemon.signal("HUP").await?;
    let begun = manager.told(&["RELOADING=1\n"]).await?;
    manager
        .told(&["READY=1\nSTATUS=configuration reloaded; 0 devices, 0 links"])
        .await?;
    let after = monotonic_microseconds()?;
    let said: u128 = begun
        .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
        .ok_or_else(|| Failure::new(begun.clone()))?
        .parse()?;
    ensure((before..=after).contains(&said), || {
        format!("{before}, {said}, {after}")
    })?;

    daemon.reload(&LISTENER.replace("127.0.0.1", "")).await?;
    daemon.reload(&format!("{LISTENER}listner {{\n}}\n")).await?;
    let file = daemon.directory().join("linkrouterd.conf").display().to_string();
    let refused = format!(
        "READY=1\nSTATUS=configuration not reloaded: {file}: 1 error, 0 warnings; 0 devices, 0 links"
    );
    manager.told(&[&refused]).await?;
    // It stays in sight for as long as the file is not what runs.
    let _device = RawDevice::begin(daemon.address(), raw::open("device", 65_536), raw::begin(0)).await?;
    manager
        .told(&["STATUS=configuration not reloaded: ", "; 1 device, 0 links"])
        .await?;
    daemon.reload(LISTENER).await?;
    manager
        .told(&["READY=1\nSTATUS=configuration reloaded; 1 device, 0 links"])
        .await?;
    daemon.stop().await?;

    // Whatever came while another was under way: each is announced, and the last word is that it is over.
    let told = manager.everything().await?;
    let last_begun = told.iter().rposition(|message| message.contains("RELOADING=1"));
    let last_over = told.iter().rposition(|message| message.contains("READY=1"));
    ensure(last_begun < last_over, || format!("{told:#?}"))?;
    let begun = told
        .iter()
        .filter(|message| message.contains("RELOADING=1"))
        .count();
    ensure((3..=4).contains(&begun), || format!("{told:#?}"))
}

/// The line of the unit, run as it is by a shell, with a systemd of each age.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_unit_reloads_once_whatever_the_age_of_systemd() -> Result<(), Failure> {
    let unit = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/conf/linkrouterd.service"))?;
    let line = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecReload=/bin/sh -c '")?.strip_suffix('\''))
        .ok_or_else(|| Failure::new("no ExecReload"))?;
    // systemd.service(5): what a unit doubles is one character for the shell.
    let script = line.replace("$$", "$").replace("%%", "%");
    let directory = TempDir::new()?;
    let daemon = Daemon::start(LISTENER, "").await?;
    let id = daemon.process_id().ok_or_else(|| Failure::new("no daemon"))?;
    let mut signals = 0;
    for (version, sends) in [
        ("systemd 252 (252.39-1~deb12u2)", true),
        ("systemd 253 (253)", false),
        ("systemd 257~rc1 (257~rc1)", false),
        ("systemd 257 (257.9-1~deb13u1)", false),
        // Not to be told: rather twice than never.
        ("", true),
    ] {
        let program = directory.path().join("systemctl");
        std::fs::write(
            &program,
            format!("#!/bin/sh\necho '{version}'\necho '+PAM +AUDIT'\n"),
        )?;
        let chmod = Command::new("chmod").arg("+x").arg(&program).status().await?;
        ensure(chmod.success(), || chmod.to_string())?;
        let path = format!("{}:/usr/bin:/bin", directory.path().display());
        let output = Command::new("/bin/sh")
            .args(["-c", &script])
            .env("PATH", path)
            .env("MAINPID", id.to_string())
            .output()
            .await?;
        ensure(output.status.success(), || format!("{version}: {output:?}"))?;
        if sends {
            signals += 1;
            daemon.reloaded(signals).await?;
        }
    }
    let log = daemon.stop().await?;
    let reloads = log.iter().filter(|line| line.contains("SIGHUP: reading")).count();
    ensure_eq("reloads", reloads, signals)
}

// ---- watchdog ------------------------------------------------------------------------------------------------------

/// A daemon with a watchdog of this many milliseconds, whose own process id is in `WATCHDOG_PID`. Its stderr is this.
fn watched(
    manager: &Manager,
    directory: &TempDir,
    milliseconds: u64,
    stderr: Stdio,
) -> Result<tokio::process::Child, Failure> {
    let file = directory.path().join("test.conf");
    std::fs::write(
        &file,
        format!("{LISTENER}log {{\n    module: DEFAULT\n    enable: trace+\n}}\n"),
    )?;
    let child = Command::new("/bin/sh")
        .args(["-c", "WATCHDOG_PID=$$ exec \"$0\" --conf \"$1\""])
        .args([tested_program()?, file])
        .env("NOTIFY_SOCKET", &manager.name)
        .env("WATCHDOG_USEC", (milliseconds * 1000).to_string())
        .stdin(Stdio::null())
        .stderr(stderr)
        .kill_on_drop(true)
        .spawn()?;
    Ok(child)
}

/// When each of the first `count` meals came.
async fn meals(manager: &Manager, count: usize) -> Result<usize, Failure> {
    let meal = |message: &String| message.contains("WATCHDOG=1").then_some(());
    let found = manager.messages.find_all("WATCHDOG=1", count, meal).await?;
    Ok(found.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_watchdog_is_fed_while_the_daemon_idles() -> Result<(), Failure> {
    let manager = Manager::at_path()?;
    let directory = TempDir::new()?;
    let mut child = watched(&manager, &directory, 200, Stdio::null())?;
    let begun = std::time::Instant::now();
    meals(&manager, 6).await?;
    // One at once, and then every 100 ms.
    ensure(begun.elapsed() >= Duration::from_millis(490), || {
        format!("{:?}: {:#?}", begun.elapsed(), manager.so_far())
    })?;
    child.kill().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_watchdog_of_another_process_is_not_fed() -> Result<(), Failure> {
    let manager = Manager::at_path()?;
    let environment = [
        ("NOTIFY_SOCKET", manager.name.as_str()),
        ("WATCHDOG_USEC", "1000"),
        ("WATCHDOG_PID", "1"),
    ];
    let daemon = Daemon::start_in(&environment, LISTENER, "").await?;
    // The first beat of the shard would have been a meal, too.
    let first = manager.told(&["STATUS=0 devices"]).await?;
    daemon.signal("HUP").await?;
    manager.told(&["READY=1\nSTATUS="]).await?;
    daemon.stop().await?;
    let told = manager.everything().await?;
    ensure(!told.concat().contains("WATCHDOG"), || {
        format!("{first} {told:#?}")
    })
}

/// The loop stops in the middle of a turn: nobody reads the log, and its pipe is full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_that_is_stuck_is_not_fed_until_it_goes_on() -> Result<(), Failure> {
    const LIMIT: Duration = Duration::from_millis(400);
    let manager = Manager::at_path()?;
    let directory = TempDir::new()?;
    let (log, writer) = nix::unistd::pipe()?;
    fcntl(&log, FcntlArg::F_SETPIPE_SZ(4096))?;
    let mut child = watched(&manager, &directory, 400, writer.into())?;
    manager.told(&["READY=1"]).await?;
    let mut log = Receiver::from_owned_fd(log)?;
    let mut start = String::new();
    let mut buffer = [0; 512];
    let address: std::net::SocketAddr = loop {
        let length = bounded("the log", log.read(&mut buffer)).await??;
        start.push_str(&String::from_utf8_lossy(&buffer[..length]));
        let address = start
            .split_once("Listening on ")
            .and_then(|(_, rest)| rest.split_once('\n'));
        if let Some((address, _)) = address {
            break address.parse()?;
        }
    };
    // Each leaves some lines; the last one finds nobody who answers.
    let is_answered = async || -> Result<bool, Failure> {
        let mut device = TcpStream::connect(address).await?;
        device.write_all(b"AMQP\x00\x01\x00\x00").await?;
        let mut answer = [0; 8];
        let answered = tokio::time::timeout(LIMIT, device.read_exact(&mut answer)).await;
        Ok(answered.is_ok())
    };
    while is_answered().await? {}
    let fed = manager
        .messages
        .select(|message| message.contains("WATCHDOG=1").then_some(()))
        .len();
    ensure(fed > 0, || "it was never fed".to_owned())?;
    let more = tokio::time::timeout(LIMIT * 4, meals(&manager, fed + 1)).await;
    ensure(more.is_err(), || {
        format!("fed while stuck: {:#?}", manager.so_far())
    })?;
    // It was this that it was stuck in.
    let reading = tokio::spawn(async move { tokio::io::copy(&mut log, &mut tokio::io::sink()).await });
    meals(&manager, fed + 2).await?;
    child.kill().await?;
    reading.abort();
    Ok(())
}

// ---- before the network and the clock ---------------------------------------------------------------------------------

/// RFC 5737: an address that no machine has. One whose lease comes later looks the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_not_there_yet_does_not_keep_the_others_away() -> Result<(), Failure> {
    let manager = Manager::at_path()?;
    let config = format!("{LISTENER}{}", LISTENER.replace("127.0.0.1", "192.0.2.1"));
    let daemon = manager.start(&config, "").await?;
    manager.told(&["READY=1"]).await?;
    let addresses = daemon.addresses(2).await?;
    TcpStream::connect(addresses[0]).await?;
    ensure_eq(
        "the other one",
        addresses[1].ip().to_string().as_str(),
        "192.0.2.1",
    )?;
    daemon
        .logged("SERVER (warning) No interface has the address 192.0.2.1 (yet)")
        .await?;
    daemon.stop().await.map(drop)
}

fn since_1970() -> Result<u64, Failure> {
    Ok(SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)?
        .as_secs())
}

/// A hub whose certificate begins at this time, and the daemon before it, with a device that waits for credit.
async fn credit_through(
    validity: Validity,
    environment: &[(&str, &str)],
) -> Result<(Daemon, RawDevice), Failure> {
    let authority = Authority::new("Test Root", Validity::Current)?;
    let identity = authority.issue(&["localhost"], validity)?;
    let hub = crate::support::broker::Broker::start(authority.server_config(&identity)?).await?;
    let config = config(hub.address().port(), &BROKER_ROUTES);
    let daemon = Daemon::start_in(environment, &config, &authority.pem()).await?;
    let device = RawDevice::begin(daemon.address(), raw::open("device", 65_536), raw::begin(0)).await?;
    device.send(Performative::Attach(raw::attach(
        "up",
        0,
        Role::Sender,
        "sink/accept/early",
    )))?;
    // It serves until the test's runtime ends.
    std::mem::forget(hub);
    Ok((daemon, device))
}

async fn credit(device: &mut RawDevice) -> Result<(), Failure> {
    let credit = |performative| matches!(performative, Performative::Flow(_)).then_some(());
    device.expect("credit", credit).await
}

/// The clock is asked at each dial: what is too early for the first one is not for a later one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_whose_time_comes_is_taken_at_the_next_dial() -> Result<(), Failure> {
    let (daemon, mut device) = credit_through(Validity::From(since_1970()? + 3), &[]).await?;
    daemon
        .logged("a certificate of the server is not valid yet, only from 20")
        .await?;
    credit(&mut device).await?;
    daemon.logged(" is back after ").await?;
    device.die();
    daemon.stop().await.map(drop)
}

/// A board without a battery: its clock starts in 1970, and jumps when the network is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs LINKROUTERD_FAKETIME, the path of libfaketime.so.1"]
async fn a_clock_that_is_set_after_the_start() -> Result<(), Failure> {
    let library = std::env::var("LINKROUTERD_FAKETIME")?;
    let directory = TempDir::new()?;
    let clock = directory.path().join("clock");
    std::fs::write(&clock, "@1970-01-02 00:00:00\n")?;
    let clock_name = clock.display().to_string();
    let environment = [
        ("LD_PRELOAD", library.as_str()),
        ("FAKETIME_TIMESTAMP_FILE", clock_name.as_str()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("TZ", "UTC"),
    ];
    let (daemon, mut device) = credit_through(Validity::Current, &environment).await?;
    let line = daemon
        .logged("a certificate of the server is not valid yet, only from 2020-08-22")
        .await?;
    ensure(line.contains("clock says 1970-01-02: clock not set?"), || {
        line.clone()
    })?;
    // Whole at once: the library reads the file for every look at the clock.
    let new = directory.path().join("new");
    std::fs::write(&new, "+0\n")?;
    std::fs::rename(&new, &clock)?;
    credit(&mut device).await?;
    daemon.logged(" is back after ").await?;
    device.die();
    daemon.stop().await.map(drop)
}
