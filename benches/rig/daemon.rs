//! The daemon as a process: started with a configuration, watched through `/proc`, ended by its id.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::{Failure, process};

/// Names another build of the daemon than the one made with the benchmark: an installed one, for example.
const BINARY: &str = "LINKROUTERD_BINARY";
const START: Duration = Duration::from_secs(10);
const STOP: Duration = Duration::from_secs(10);
/// How long a line may take from the daemon's log to us.
const READING: Duration = Duration::from_secs(10);
/// A line of ours in the daemon's log.
const MARK: &str = "mark of the benchmark";

/// A running daemon.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    pub(crate) port: u16,
    /// Before the process was made.
    pub(crate) begun: Instant,
    /// When it said that it listens.
    pub(crate) listening: Instant,
    /// What the log has come to, at each mark in it.
    marks: mpsc::Receiver<LogVolume>,
    _directory: tempfile::TempDir,
}

/// What the daemon has written to its log.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LogVolume {
    pub(crate) lines: u64,
    pub(crate) bytes: u64,
}

impl Daemon {
    /// Starts the daemon with what `configuration` makes of the path of a file with the certificate `ca`; the first of its
    /// listeners on 127.0.0.1 is the one for devices.
    pub(crate) fn start(configuration: impl FnOnce(&Path) -> String, ca: &str) -> Result<Self, Failure> {
        let directory = tempfile::tempdir()?;
        let ca_file = directory.path().join("ca.pem");
        std::fs::write(&ca_file, ca)?;
        let file = directory.path().join("bench.conf");
        std::fs::write(&file, configuration(&ca_file))?;
        let begun = Instant::now();
        let program = std::env::var_os(BINARY).unwrap_or_else(|| env!("CARGO_BIN_EXE_linkrouterd").into());
        let mut child = Command::new(program)
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let Some(stderr) = child.stderr.take() else {
            return Err(Failure::new("the daemon has no log"));
        };
        let (found, listening) = mpsc::channel();
        let (marked, marks) = mpsc::channel();
        std::thread::spawn(move || watch_log(stderr, &found, &marked));
        let (port, listening) = match listening.recv_timeout(START) {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(log)) => Err(Failure::new(format!("the daemon does not listen:\n{log}"))),
            Err(_) => Err(Failure::new("the daemon does not listen")),
        }
        .inspect_err(|_| end(&mut child))?;
        Ok(Self {
            child,
            port,
            begun,
            listening,
            marks,
            _directory: directory,
        })
    }

    /// All that the daemon has written to its log before this. Some of it may still be on its way to us: a mark that we
    /// put behind it tells when we have read so far.
    pub(crate) fn logged(&self) -> Result<LogVolume, Failure> {
        let mut log = OpenOptions::new().write(true).open(self.proc("fd/2"))?;
        log.write_all(format!("{MARK}\n").as_bytes())?;
        Ok(self.marks.recv_timeout(READING)?)
    }

    /// User and system time so far.
    pub(crate) fn cpu(&self) -> Result<Duration, Failure> {
        process::cpu(self.child.id())
    }

    /// Resident memory in KiB: now (`VmRSS`) or at its highest (`VmHWM`).
    pub(crate) fn memory(&self, field: &str) -> Result<u64, Failure> {
        process::memory(self.child.id(), field)
    }

    /// What the kernel says of the process.
    pub(crate) fn proc(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{file}", self.child.id()))
    }

    /// Asks the daemon to end, and fails if it does not end well.
    pub(crate) fn stop(mut self) -> Result<(), Failure> {
        let asked = Command::new("kill")
            .args(["-TERM", &self.child.id().to_string()])
            .status()?;
        if !asked.success() {
            return Err(Failure::new("the daemon had ended"));
        }
        let deadline = Instant::now() + STOP;
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(Failure::new(format!("the daemon ended with {status}"))),
                None if Instant::now() > deadline => {
                    return Err(Failure::new(format!("the daemon did not end within {STOP:?}")));
                }
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Ends a process that is there still, which means that its row has failed already; there is nothing to add.
fn end(child: &mut Child) {
    if matches!(child.try_wait(), Ok(None)) {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Reads the log to its end, so that the daemon never waits for it; tells the port that it listens on, and when it said so,
/// and at each mark how much was before it.
fn watch_log(
    log: ChildStderr,
    found: &mpsc::Sender<Result<(u16, Instant), String>>,
    marked: &mpsc::Sender<LogVolume>,
) {
    let mut head = Vec::new();
    let mut volume = LogVolume::default();
    // Nobody waits for what is told any more when the row has failed.
    for line in BufReader::new(log).lines().map_while(Result::ok) {
        let now = Instant::now();
        if line == MARK {
            let _ = marked.send(volume);
            continue;
        }
        volume.lines += 1;
        volume.bytes += line.len() as u64 + 1;
        if let Some((_, port)) = line.split_once("Listening on 127.0.0.1:") {
            let digits = port
                .split(|c: char| !c.is_ascii_digit())
                .next()
                .unwrap_or_default();
            let _ = found.send(
                digits
                    .parse::<u16>()
                    .map(|port| (port, now))
                    .map_err(|_| line.clone()),
            );
        } else if line.contains("(error)") || line.contains("(critical)") {
            eprintln!("daemon: {line}");
        }
        if head.len() < 20 {
            head.push(line);
        }
    }
    let _ = found.send(Err(head.join("\n")));
}

/// Links of devices to a hub that asks for no tokens, as fast as devices come, and over one connection for all.
pub(crate) fn plain_hub(hub_port: u16, ca: &Path) -> String {
    format!(
        "\
router {{
    mode: standalone
    id: load
}}

listener {{
    host: 127.0.0.1
    port: 0
    authenticatePeer: no
    idleTimeoutSeconds: 120
}}

sslProfile {{
    name: hub-tls
    caCertFile: {ca}
}}

connector {{
    name: HUB
    host: localhost
    port: {hub_port}
    role: on-demand
    saslMechanisms: ANONYMOUS
    sslProfile: hub-tls
    idleTimeoutSeconds: 120
    devicesPerSecond: 0
    maxTokens: 100000
}}

linkRoute {{
    prefix: devices/
    connection: HUB
    direction: in
}}

linkRoute {{
    prefix: devices/
    connection: HUB
    direction: out
}}
",
        ca = ca.display()
    )
}

/// The gateway to IoT Hub that `conf/` has, with another address and another hub, and as fast as devices come.
pub(crate) fn iot_hub(hub_port: u16, ca: &Path) -> String {
    let changes = [
        ("host: 0.0.0.0", "host: 127.0.0.1".to_owned()),
        ("port: 5672", "port: 0".to_owned()),
        ("host: <iotHub>.azure-devices.net", "host: localhost".to_owned()),
        (
            "port: amqps",
            format!("port: {hub_port}\n    devicesPerSecond: 0"),
        ),
        (
            "name: azure\n",
            format!("name: azure\n    caCertFile: {}\n", ca.display()),
        ),
    ];
    let shipped = include_str!("../../conf/linkrouterd-iothub.conf").to_owned();
    changes
        .iter()
        .fold(shipped, |text, (from, to)| text.replacen(from, to, 1))
}
