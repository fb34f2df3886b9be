//! What is measured: our daemon, the byte wrappers that somebody would take instead, any other router, and nothing at all.

use std::fmt;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::rig::daemon::{self, Daemon};
use super::rig::{Failure, process};

const START: Duration = Duration::from_secs(10);
const STOP: Duration = Duration::from_secs(10);
/// Where Debian has programs that are not everybody's.
const SYSTEM_PROGRAMS: &str = "/usr/sbin";

/// Stands between devices and hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    /// Our daemon.
    Linkrouterd,
    /// Nothing: devices talk to the hub in plain TCP.
    Direct,
    Stunnel,
    HaProxy,
    /// No program: the least that any router does, see [`floor`](super::floor).
    Floor,
    /// Started by a command line for `sh`, see [`fill_in`].
    Other {
        name: String,
        command: String,
    },
}

impl Contender {
    /// The byte wrappers that are installed.
    pub(crate) fn installed() -> Vec<Self> {
        [(Self::Stunnel, "-version"), (Self::HaProxy, "-v")]
            .into_iter()
            .filter(|(contender, version)| {
                let asked = program(contender.name())
                    .arg(version)
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status();
                asked.is_ok_and(|status| status.success())
            })
            .map(|(contender, _)| contender)
            .collect()
    }

    /// One that is given as `NAME=CMD`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (name, command) = text.split_once('=')?;
        Some(Self::Other {
            name: name.to_owned(),
            command: command.to_owned(),
        })
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Linkrouterd => "linkrouterd",
            Self::Direct => "direct",
            Self::Stunnel => "stunnel",
            Self::HaProxy => "haproxy",
            Self::Floor => "floor",
            Self::Other { name, .. } => name,
        }
    }

    /// Starts it in front of the hub on this port, whose certificate is `ca`, and waits until it listens.
    pub(crate) fn start(&self, hub_port: u16, ca: &str) -> Result<Running, Failure> {
        match self {
            Self::Linkrouterd => Ok(Running::Linkrouterd(Daemon::start(
                |ca| daemon::plain_hub(hub_port, ca),
                ca,
            )?)),
            Self::Direct => Ok(Running::Direct(hub_port)),
            Self::Floor => Err(Failure::new("is no program")),
            Self::Stunnel | Self::HaProxy | Self::Other { .. } => {
                Process::start(self, hub_port, ca).map(Running::Process)
            }
        }
    }

    fn command(&self, ports: Ports, ca: &Path, directory: &Path) -> Result<Command, Failure> {
        let configuration = directory.join("configuration");
        let mut command = program(self.name());
        match self {
            Self::Stunnel => {
                std::fs::write(&configuration, stunnel(ports, ca))?;
                command.arg(&configuration);
            }
            Self::HaProxy => {
                std::fs::write(&configuration, haproxy(ports, ca))?;
                command.arg("-db").arg("-f").arg(&configuration);
            }
            Self::Other { command: line, .. } => {
                command = Command::new("sh");
                command.arg("-c").arg(fill_in(line, ports, ca));
            }
            Self::Linkrouterd | Self::Direct | Self::Floor => {
                return Err(Failure::new("is not started by a command"));
            }
        }
        Ok(command)
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn program(name: &str) -> Command {
    let system = Path::new(SYSTEM_PROGRAMS).join(name);
    if system.exists() {
        Command::new(system)
    } else {
        Command::new(name)
    }
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    listen: u16,
    hub: u16,
}

/// As its manual says for a client that verifies: plain TCP in, one TLS connection for each.
fn stunnel(ports: Ports, ca: &Path) -> String {
    format!(
        "foreground = yes\npid =\n\
         [hub]\nclient = yes\naccept = 127.0.0.1:{}\nconnect = 127.0.0.1:{}\n\
         CAfile = {}\nverifyChain = yes\ncheckHost = localhost\nsni = localhost\n",
        ports.listen,
        ports.hub,
        ca.display()
    )
}

/// The same, in one thread as our daemon.
fn haproxy(ports: Ports, ca: &Path) -> String {
    format!(
        "global\n    nbthread 1\n    maxconn 8000\n\
         defaults\n    mode tcp\n    timeout connect 10s\n    timeout client 1h\n    timeout server 1h\n\
         listen devices\n    bind 127.0.0.1:{}\n    \
         server hub 127.0.0.1:{} ssl ca-file {} verify required verifyhost localhost sni str(localhost)\n",
        ports.listen,
        ports.hub,
        ca.display()
    )
}

/// Puts the ports and the file into a command line.
fn fill_in(line: &str, ports: Ports, ca: &Path) -> String {
    line.replace("{listen}", &ports.listen.to_string())
        .replace("{hub}", &ports.hub.to_string())
        .replace("{ca}", &ca.display().to_string())
}

/// A contender at work.
#[derive(Debug)]
pub(crate) enum Running {
    Linkrouterd(Daemon),
    Direct(u16),
    Process(Process),
}

impl Running {
    /// Where devices connect.
    pub(crate) const fn port(&self) -> u16 {
        match self {
            Self::Linkrouterd(daemon) => daemon.port,
            Self::Direct(port) => *port,
            Self::Process(process) => process.port,
        }
    }

    /// From before its process was made until it listened.
    pub(crate) fn start_up(&self) -> Option<Duration> {
        match self {
            Self::Linkrouterd(daemon) => Some(daemon.listening.duration_since(daemon.begun)),
            Self::Direct(_) => None,
            Self::Process(process) => Some(process.start_up),
        }
    }

    /// User and system time of all its threads and processes.
    pub(crate) fn cpu(&self) -> Result<Option<Duration>, Failure> {
        match self {
            Self::Linkrouterd(daemon) => daemon.cpu().map(Some),
            Self::Direct(_) => Ok(None),
            Self::Process(process) => process.sum(process::cpu).map(Some),
        }
    }

    /// Resident memory of all its processes in KiB, see [`process::memory`].
    pub(crate) fn memory(&self, field: &str) -> Result<Option<u64>, Failure> {
        match self {
            Self::Linkrouterd(daemon) => daemon.memory(field).map(Some),
            Self::Direct(_) => Ok(None),
            Self::Process(process) => process.sum(|pid| process::memory(pid, field)).map(Some),
        }
    }

    /// Ends it; our daemon must end well.
    pub(crate) fn stop(self) -> Result<(), Failure> {
        match self {
            Self::Linkrouterd(daemon) => daemon.stop(),
            Self::Direct(_) => Ok(()),
            Self::Process(process) => process.stop(),
        }
    }
}

/// A contender that is not ours, in a group of processes of its own.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    port: u16,
    start_up: Duration,
    _directory: tempfile::TempDir,
}

impl Process {
    fn start(contender: &Contender, hub_port: u16, ca: &str) -> Result<Self, Failure> {
        let directory = tempfile::tempdir()?;
        let ca_file = directory.path().join("ca.pem");
        std::fs::write(&ca_file, ca)?;
        // It cannot tell which port it got, so it is told one that was free.
        let listen = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let ports = Ports {
            listen,
            hub: hub_port,
        };
        let log = directory.path().join("log");
        let begun = Instant::now();
        let child = contender
            .command(ports, &ca_file, directory.path())?
            .current_dir(directory.path())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()?;
        let mut process = Self {
            child,
            port: listen,
            start_up: Duration::ZERO,
            _directory: directory,
        };
        while !is_listening(listen)? {
            let has_ended = process.child.try_wait()?;
            if has_ended.is_some() || begun.elapsed() > START {
                let log = std::fs::read_to_string(&log)?;
                return Err(Failure::new(format!("{contender} does not listen:\n{log}")));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        process.start_up = begun.elapsed();
        Ok(process)
    }

    fn sum<T: std::iter::Sum>(&self, of: impl Fn(u32) -> Result<T, Failure>) -> Result<T, Failure> {
        let members = process::group(self.child.id())?;
        if members.is_empty() {
            return Err(Failure::new("it has ended"));
        }
        members.into_iter().map(of).sum()
    }

    fn signal(&self, signal: &str) -> Result<(), Failure> {
        Command::new("kill")
            .args([signal, "--", &format!("-{}", self.child.id())])
            .stderr(Stdio::null())
            .status()?;
        Ok(())
    }

    fn stop(mut self) -> Result<(), Failure> {
        self.signal("-TERM")?;
        let deadline = Instant::now() + STOP;
        while self.child.try_wait()?.is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // What has ended already needs no signal; of the rest nothing can be said any more.
        let _ = self.signal("-KILL");
        let _ = self.child.wait();
    }
}

/// Whether somebody listens on this port of the loopback, or of all addresses; looking must not be a connection.
fn is_listening(port: u16) -> Result<bool, Failure> {
    const LISTEN: &str = "0A";
    let sockets = std::fs::read_to_string("/proc/net/tcp")?;
    let wanted = format!(":{port:04X}");
    Ok(sockets.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state) = (fields.next(), fields.nth(1));
        state == Some(LISTEN) && local.is_some_and(|local| local.ends_with(&wanted))
    }))
}
