//! What the benchmarks that start the daemon share: the hub, the daemon as a process, and frames on bare sockets.

// Each benchmark uses the part that it needs.
#![allow(dead_code)]

pub(crate) mod cbs;
pub(crate) mod daemon;
pub(crate) mod device;
pub(crate) mod figures;
pub(crate) mod gateway;
pub(crate) mod greeting;
pub(crate) mod hub;
pub(crate) mod hub_connection;
pub(crate) mod kernel;
pub(crate) mod options;
pub(crate) mod process;
pub(crate) mod tls;
pub(crate) mod trend;
pub(crate) mod visitor;
pub(crate) mod wire;

use std::fmt;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Why a row came to nothing.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// Starts this program again with a higher limit of open files, if it has less than `needed`. The daemon inherits it.
pub(crate) fn allow_open_files(needed: u64) -> Result<(), Failure> {
    const MARK: &str = "LOAD_BENCH_LIMIT_RAISED";
    let limits = std::fs::read_to_string("/proc/self/limits")?;
    let soft = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .and_then(|line| line.split_whitespace().nth(3))
        .and_then(|soft| soft.parse::<u64>().ok());
    // Not a number is `unlimited`.
    if soft.is_none_or(|soft| soft >= needed) {
        return Ok(());
    }
    if std::env::var_os(MARK).is_some() {
        return Err(Failure::new(format!("needs {needed} open files (ulimit -n)")));
    }
    let program = std::env::current_exe()?;
    let error = Command::new("sh")
        .args(["-c", &format!("ulimit -n {needed} && exec \"$0\" \"$@\"")])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(MARK, "1")
        .exec();
    Err(error.into())
}

/// A runtime for peers of the daemon: the thread that it is driven by, or so many of its own.
pub(crate) fn runtime(threads: usize) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = match threads {
        0 | 1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder.worker_threads(threads.max(1)).enable_all().build()
}
