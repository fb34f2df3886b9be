//! The daemon under test: the real binary, with a configuration of its own, on a port of its own.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::journal::Journal;
use super::{Failure, bounded, ensure};

/// What the log says once the port is known, before the address.
const LISTENING: &str = "SERVER (notice) Listening on ";

/// The name of the file that holds the authority's certificate, beside the configuration file.
pub(crate) const CA_FILE: &str = "ca.pem";
/// The name of the configuration file.
const CONFIG_FILE: &str = "linkrouterd.conf";
/// Names a program to test in place of the one that was built: an emulator with the daemon of another processor, say.
const OTHER_PROGRAM: &str = "LINKROUTERD_BIN";

/// A configuration in the style of the article, which is that of release 0.6, for a hub called `localhost` on this
/// port; the listener takes any free port, and the log shows every frame.
///
/// `routes` are prefixes, each routed in both directions.
pub(crate) fn config(hub_port: u16, routes: &[&str]) -> String {
    let mut text = format!(
        "# A gateway in the shape of the article's.\n\
         container {{\n    workerThreads: 4\n    containerName: Qpid.Dispatch.Router.A\n}}\n\n\
         router {{\n    mode: standalone\n    routerId: Router.A\n}}\n\n\
         listener {{\n    addr: 127.0.0.1\n    port: 0\n    authenticatePeer: no\n}}\n\n\
         ssl-profile {{\n    name: azure-ssl-profile\n    cert-db: {CA_FILE}\n}}\n\n\
         connector {{\n    name: IOTHUB\n    addr: localhost\n    port: {hub_port}\n    role: on-demand\n    \
         sasl-mechanisms: ANONYMOUS\n    ssl-profile: azure-ssl-profile\n    idleTimeoutSeconds: 120\n}}\n\n\
         log {{\n    module: DEFAULT\n    enable: trace+\n}}\n"
    );
    for route in routes {
        for direction in ["in", "out"] {
            text.push_str(&format!(
                "\nlinkRoute {{\n    prefix: {route}\n    connection: IOTHUB\n    dir: {direction}\n}}\n"
            ));
        }
    }
    text
}

/// The routes of the article.
pub(crate) const ARTICLE_ROUTES: [&str; 4] = [
    "$cbs/",
    "devices/",
    "messages/devicebound",
    "messages/servicebound/feedback",
];

/// A running daemon.
pub(crate) struct Daemon {
    child: Child,
    address: SocketAddr,
    log: Arc<Journal<String>>,
    readers: Vec<JoinHandle<()>>,
    directory: TempDir,
}

impl Daemon {
    /// Starts the binary that these tests were built with.
    pub(crate) async fn start(config: &str, ca: &str) -> Result<Self, Failure> {
        Self::start_in(&[], config, ca).await
    }

    /// The same, with these in its environment.
    pub(crate) async fn start_in(
        environment: &[(&str, &str)],
        config: &str,
        ca: &str,
    ) -> Result<Self, Failure> {
        Self::start_with(&tested_program()?, environment, config, ca).await
    }

    /// Starts this binary with a configuration file of this text, and beside it the authority's certificate.
    pub(crate) async fn start_program(program: &Path, config: &str, ca: &str) -> Result<Self, Failure> {
        Self::start_with(program, &[], config, ca).await
    }

    async fn start_with(
        program: &Path,
        environment: &[(&str, &str)],
        config: &str,
        ca: &str,
    ) -> Result<Self, Failure> {
        let directory = TempDir::with_prefix("linkrouterd-")?;
        let file = directory.path().join(CONFIG_FILE);
        std::fs::write(directory.path().join(CA_FILE), ca)?;
        std::fs::write(&file, config)?;
        let mut child = Command::new(program)
            .arg("--conf")
            .arg(&file)
            .current_dir(directory.path())
            .env_remove("PN_TRACE_FRM")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Failure::new(format!("{}: {error}", program.display())))?;
        let log = Arc::new(Journal::default());
        let outputs = (child.stdout.take(), child.stderr.take());
        let mut readers = Vec::new();
        readers.extend(outputs.0.map(|output| tokio::spawn(collect(output, log.clone()))));
        readers.extend(outputs.1.map(|output| tokio::spawn(collect(output, log.clone()))));
        let listening = log.find("the daemon's listening port", listening);
        let address = tokio::select! {
            address = listening => address,
            status = child.wait() => Err(Failure::new(format!("the daemon ended at once, with {}", status?))),
        };
        let address = address
            .map_err(|failure| Failure::new(format!("{failure}\n{}", log.select(line_of).join("\n"))))?;
        Ok(Self {
            child,
            address,
            log,
            readers,
            directory,
        })
    }

    /// Where devices connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where each of its listeners is, in the order of the file.
    pub(crate) async fn addresses(&self, count: usize) -> Result<Vec<SocketAddr>, Failure> {
        self.log.find_all("the listening ports", count, listening).await
    }

    /// What it has written, line by line.
    pub(crate) fn log(&self) -> &Journal<String> {
        &self.log
    }

    /// Waits for a log line that contains this text.
    pub(crate) async fn logged(&self, text: &str) -> Result<String, Failure> {
        let what = format!("a log line with '{text}'");
        let found = self
            .log
            .find(&what, |line| line.contains(text).then(|| line.clone()))
            .await;
        found.map_err(|failure| {
            Failure::new(format!(
                "{failure}; the log:\n{}",
                self.log.select(line_of).join("\n")
            ))
        })
    }

    /// The directory of its configuration file.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Its process id.
    pub(crate) fn process_id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Writes another configuration, whole at once, and has it read (SIGHUP).
    pub(crate) async fn reload(&self, config: &str) -> Result<(), Failure> {
        let (new, file) = (self.directory().join("new"), self.directory().join(CONFIG_FILE));
        std::fs::write(&new, config)?;
        std::fs::rename(&new, &file)?;
        self.signal("HUP").await
    }

    /// Waits for the end of a reload, the `count`th since the start: its summary.
    pub(crate) async fn reloaded(&self, count: usize) -> Result<String, Failure> {
        let done = |line: &String| {
            let is_done =
                line.contains("Configuration reloaded: ") || line.contains("SIGHUP: nothing changed");
            is_done.then(|| line.clone())
        };
        let what = format!("reload {count}");
        let lines = self.log.find_all(&what, count, done).await?;
        lines
            .into_iter()
            .nth(count.saturating_sub(1))
            .ok_or_else(|| Failure::new(what))
    }

    /// Sends a signal, by its name without `SIG`.
    pub(crate) async fn signal(&self, name: &str) -> Result<(), Failure> {
        let id = self
            .child
            .id()
            .ok_or_else(|| Failure::new("the daemon has ended by itself"))?;
        let status = Command::new("/bin/sh")
            .arg("-c")
            .arg(format!("kill -{name} {id}"))
            .status()
            .await?;
        ensure(status.success(), || format!("SIG{name} to {id}: {status}"))
    }

    /// Stops it with SIGTERM, which it must obey with exit code 0; gives all that it wrote.
    pub(crate) async fn stop(self) -> Result<Vec<String>, Failure> {
        self.signal("TERM").await?;
        self.ended().await
    }

    /// Waits for its end, which must be with exit code 0; gives all that it wrote.
    pub(crate) async fn ended(mut self) -> Result<Vec<String>, Failure> {
        let status = bounded("the daemon's end", self.child.wait()).await??;
        for reader in self.readers.drain(..) {
            bounded("the end of the daemon's output", reader).await??;
        }
        let lines = self.log.select(line_of);
        ensure(status.success(), || {
            format!("the daemon ended with {status}:\n{}", lines.join("\n"))
        })?;
        Ok(lines)
    }
}

#[allow(clippy::ptr_arg)]
fn listening(line: &String) -> Option<SocketAddr> {
    let (_, rest) = line.split_once(LISTENING)?;
    rest.split_whitespace().next()?.parse().ok()
}

#[allow(clippy::ptr_arg)]
fn line_of(line: &String) -> Option<String> {
    Some(line.clone())
}

async fn collect(output: impl AsyncRead + Unpin, log: Arc<Journal<String>>) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        log.note(line);
    }
}

/// Checks a configuration file of this text, dials its connectors (`--check FILE --probe`), and gives the exit code and
/// all that was printed. `files` are put beside it.
pub(crate) async fn probe(config: &str, files: &[(&str, &str)]) -> Result<(Option<i32>, String), Failure> {
    let directory = TempDir::with_prefix("linkrouterd-")?;
    std::fs::write(directory.path().join(CONFIG_FILE), config)?;
    for (name, text) in files {
        std::fs::write(directory.path().join(name), text)?;
    }
    let probing = Command::new(tested_program()?)
        .args(["--check", CONFIG_FILE, "--probe"])
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = bounded("the end of the probe", probing).await??;
    let printed = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8(printed)?))
}

/// A line of a password file, as `--hash-password` prints it.
pub(crate) fn hash_password(user: &str, password: &str) -> Result<String, Failure> {
    let mut child = std::process::Command::new(tested_program()?)
        .args(["--hash-password", user])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child
        .stdin
        .take()
        .ok_or_else(|| Failure::new("no standard input"))?;
    writeln!(input, "{password}")?;
    drop(input);
    let output = child.wait_with_output()?;
    ensure(output.status.success(), || format!("{}", output.status))?;
    Ok(String::from_utf8(output.stdout)?)
}

/// The binary that these tests were built with, or the one that is to be tested instead.
pub(crate) fn tested_program() -> Result<PathBuf, Failure> {
    let built = option_env!("CARGO_BIN_EXE_linkrouterd").map(PathBuf::from);
    let program = other_program().or(built);
    program.ok_or_else(|| Failure::new("no binary to test"))
}

fn other_program() -> Option<PathBuf> {
    std::env::var_os(OTHER_PROGRAM).map(PathBuf::from)
}

/// Fails if any of these secrets is in any of these lines. The secret itself is not repeated.
pub(crate) fn ensure_none_of(secrets: &[String], lines: &[String]) -> Result<(), Failure> {
    for (index, secret) in secrets.iter().enumerate() {
        ensure(!secret.is_empty(), || format!("secret {index} is empty"))?;
        let found = lines.iter().position(|line| line.contains(secret.as_str()));
        ensure(found.is_none(), || {
            format!(
                "secret {index} is in line {} of the log",
                found.unwrap_or_default()
            )
        })?;
    }
    Ok(())
}

/// The daemon's binary for a program that is not a test: the one that belongs to `beside`, an example of the same
/// build, brought up to date first; or the one that is to be tested instead.
pub(crate) async fn built_beside(beside: &Path) -> Result<PathBuf, Failure> {
    if let Some(program) = other_program() {
        return Ok(program);
    }
    let profile = beside
        .parent()
        .and_then(Path::parent)
        .ok_or_else(|| Failure::new("no build directory"))?;
    let target = profile
        .parent()
        .ok_or_else(|| Failure::new("no target directory"))?;
    let program = profile.join(format!("linkrouterd{}", std::env::consts::EXE_SUFFIX));
    let example = beside
        .file_stem()
        .ok_or_else(|| Failure::new("no name of an example"))?;
    let mut build = Command::new(env!("CARGO"));
    // Together with the example, the daemon takes the crates as they were built for that. And with an environment in
    // which `cargo run` has left its own variables, crates that look at them would be built anew each time.
    build.args(["build", "--bin", "linkrouterd", "--example"]);
    build.arg(example).arg("--manifest-path");
    for (name, _) in std::env::vars_os() {
        let is_of_cargo_run =
            |name: &str| name.starts_with("CARGO_MANIFEST_") || name.starts_with("CARGO_PKG_");
        if name.to_str().is_some_and(is_of_cargo_run) {
            build.env_remove(name);
        }
    }
    build
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .arg("--target-dir")
        .arg(target);
    match profile.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => {}
        Some(name) => {
            build.args(["--profile", name]);
        }
    }
    match build.status().await {
        Ok(status) => ensure(status.success(), || format!("building the daemon: {status}"))?,
        // Moved to a machine without cargo, together with the daemon.
        Err(error) => ensure(program.exists(), || format!("{}: {error}", env!("CARGO")))?,
    }
    Ok(program)
}
