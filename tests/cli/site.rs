//! A directory for a daemon, and the daemon.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Longest wait for anything; only a failing test waits that long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const LISTENER: &str =
    "router {\n    id: Router.T\n}\nlistener {\n    host: 127.0.0.1\n    port: 0\n}\n";

pub(crate) fn linkrouterd() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_linkrouterd"));
    command.stdin(Stdio::null()).env_remove("PN_TRACE_FRM");
    command
}

pub(crate) fn output(arguments: &[&str]) -> Output {
    linkrouterd().args(arguments).output().expect("the binary runs")
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// A directory with a configuration file.
pub(crate) struct Site {
    pub(crate) directory: TempDir,
}

impl Site {
    pub(crate) fn new(config: &str) -> Self {
        let site = Site {
            directory: tempfile::tempdir().expect("a directory"),
        };
        fs::write(site.config(), config).expect("a file");
        site
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.path("test.conf")
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = linkrouterd();
        command.arg("--conf").arg(self.config());
        command
    }

    pub(crate) fn output(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().expect("the binary runs")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).expect("the log")
    }
}

/// A daemon in the foreground; its stderr is read line by line. Killed when dropped.
pub(crate) struct Daemon {
    pub(crate) child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Daemon {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("the binary runs");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            stderr
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        Daemon {
            child,
            lines,
            seen: Vec::new(),
        }
    }

    /// One whose lines nobody reads.
    pub(crate) fn unheard(child: Child) -> Self {
        Daemon {
            child,
            lines: channel().1,
            seen: Vec::new(),
        }
    }

    /// The next line that contains `part`.
    pub(crate) fn line_with(&mut self, part: &str) -> String {
        loop {
            let Ok(line) = self.lines.recv_timeout(PATIENCE) else {
                panic!("no line with '{part}' in {:#?}", self.seen);
            };
            self.seen.push(line.clone());
            if line.contains(part) {
                return line;
            }
        }
    }

    pub(crate) fn send(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("it is alive");
    }

    /// Waits for the end: exit code and every line ever seen.
    pub(crate) fn end(mut self) -> (Option<i32>, Vec<String>) {
        // Its end closes the pipe.
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end: {:#?}", self.seen),
            }
        }
        let status = self.child.wait().expect("it ends");
        (status.code(), std::mem::take(&mut self.seen))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn bound_address(line: &str) -> String {
    line.split("Listening on ").nth(1).expect("an address").to_owned()
}

/// The line without its time.
pub(crate) fn untimed(line: &str) -> &str {
    line.get("2026-11-22 12:07:12.899143 +0000 ".len()..)
        .unwrap_or(line)
}
