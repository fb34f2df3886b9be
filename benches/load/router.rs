//! The daemon under load: started with a configuration of the usual shape, watched through `/proc`, ended by its id.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::Failure;

/// Linux counts process times in hundredths of a second in `/proc`, whatever the kernel's own tick.
const TICK: Duration = Duration::from_millis(10);
const START: Duration = Duration::from_secs(10);
const STOP: Duration = Duration::from_secs(10);

/// A running daemon.
#[derive(Debug)]
pub(crate) struct Router {
    child: Child,
    pub(crate) port: u16,
    _directory: tempfile::TempDir,
}

impl Router {
    /// Starts the daemon in front of the hub on `hub_port`, whose CA is `ca`.
    pub(crate) fn start(hub_port: u16, ca: &str) -> Result<Self, Failure> {
        let directory = tempfile::tempdir()?;
        let ca_file = directory.path().join("ca.pem");
        std::fs::write(&ca_file, ca)?;
        let file = directory.path().join("load.conf");
        std::fs::write(&file, configuration(hub_port, &ca_file))?;
        let mut child = Command::new(env!("CARGO_BIN_EXE_linkrouterd"))
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let Some(log) = child.stderr.take() else {
            return Err(Failure::new("the daemon has no log"));
        };
        let (found, port) = mpsc::channel();
        // Reads the log to its end, so that the daemon never waits for it.
        std::thread::spawn(move || {
            let mut head = Vec::new();
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                if let Some((_, port)) = line.split_once("Listening on 127.0.0.1:") {
                    let digits = port
                        .split(|c: char| !c.is_ascii_digit())
                        .next()
                        .unwrap_or_default();
                    // Nobody waits any more when the row has failed.
                    let _ = found.send(digits.parse::<u16>().map_err(|_| line.clone()));
                } else if line.contains("(error)") || line.contains("(critical)") {
                    eprintln!("daemon: {line}");
                }
                if head.len() < 20 {
                    head.push(line);
                }
            }
            let _ = found.send(Err(head.join("\n")));
        });
        let port = match port.recv_timeout(START) {
            Ok(Ok(port)) => Ok(port),
            Ok(Err(log)) => Err(Failure::new(format!("the daemon does not listen:\n{log}"))),
            Err(_) => Err(Failure::new("the daemon does not listen")),
        };
        let mut router = Self {
            child,
            port: 0,
            _directory: directory,
        };
        router.port = port?;
        Ok(router)
    }

    /// User and system time so far.
    pub(crate) fn cpu(&self) -> Result<Duration, Failure> {
        let stat = std::fs::read_to_string(self.proc("stat"))?;
        // The name of the program may have blanks; what is behind it has none. utime and stime are fields 14 and 15.
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map_or_else(Vec::new, |(_, rest)| rest.split_whitespace().collect());
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u32>().ok());
        match (ticks(11), ticks(12)) {
            (Some(user), Some(system)) => Ok(TICK * (user + system)),
            _ => Err(Failure::new("no times in /proc")),
        }
    }

    /// Resident memory in KiB: now (`VmRSS`) or at its highest (`VmHWM`).
    pub(crate) fn memory(&self, field: &str) -> Result<u64, Failure> {
        let status = std::fs::read_to_string(self.proc("status"))?;
        status
            .lines()
            .find_map(|line| {
                line.strip_prefix(field)?
                    .strip_prefix(':')?
                    .split_whitespace()
                    .next()?
                    .parse()
                    .ok()
            })
            .ok_or_else(|| Failure::new(format!("no {field} in /proc")))
    }

    fn proc(&self, file: &str) -> PathBuf {
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

impl Drop for Router {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // It runs still, so the row has failed already; there is nothing to add.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn configuration(hub_port: u16, ca: &std::path::Path) -> String {
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
