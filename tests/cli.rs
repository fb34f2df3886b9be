//! The real binary: command line, exit codes, start-up lines, signals, going to the background.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, User, geteuid, mkfifo};
use tempfile::TempDir;

/// Longest wait for anything; only a failing test waits that long.
const PATIENCE: Duration = Duration::from_secs(30);

const LISTENER: &str = "router {\n    id: Router.T\n}\nlistener {\n    host: 127.0.0.1\n    port: 0\n}\n";

fn linkrouterd() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_linkrouterd"));
    command.stdin(Stdio::null()).env_remove("PN_TRACE_FRM");
    command
}

fn output(arguments: &[&str]) -> Output {
    linkrouterd().args(arguments).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// A directory with a configuration file.
struct Site {
    directory: TempDir,
}

impl Site {
    fn new(config: &str) -> Self {
        let site = Site {
            directory: tempfile::tempdir().expect("a directory"),
        };
        fs::write(site.config(), config).expect("a file");
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn config(&self) -> PathBuf {
        self.path("test.conf")
    }

    fn command(&self) -> Command {
        let mut command = linkrouterd();
        command.arg("--conf").arg(self.config());
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().expect("the binary runs")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).expect("the log")
    }
}

/// A daemon in the foreground; its stderr is read line by line. Killed when dropped.
struct Daemon {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Daemon {
    fn start(command: &mut Command) -> Self {
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

    /// The next line that contains `part`.
    fn line_with(&mut self, part: &str) -> String {
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

    fn send(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("it is alive");
    }

    /// Waits for the end: exit code and every line ever seen.
    fn end(mut self) -> (Option<i32>, Vec<String>) {
        let status = self.child.wait().expect("it ends");
        let mut seen = std::mem::take(&mut self.seen);
        seen.extend(std::mem::replace(&mut self.lines, channel().1));
        (status.code(), seen)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn bound_address(line: &str) -> String {
    line.split("Listening on ").nth(1).expect("an address").to_owned()
}

/// The line without its time.
fn untimed(line: &str) -> &str {
    line.get("2026-11-22 12:07:12.899143 +0000 ".len()..)
        .unwrap_or(line)
}

#[test]
fn help_and_version() {
    for option in ["-h", "--help", "--he"] {
        let output = output(&[option]);
        assert_eq!(output.status.code(), Some(0), "{option}");
        let help = text(&output.stdout);
        for part in [
            "Usage: linkrouterd [OPTIONS]",
            "--config <PATH>",
            "--check",
            "--pidfile <PATH>",
        ] {
            assert!(help.contains(part), "{help}");
        }
        assert!(output.stderr.is_empty());
    }
    for option in ["-v", "--version", "--vers"] {
        let output = output(&[option]);
        assert_eq!(output.status.code(), Some(0), "{option}");
        assert_eq!(text(&output.stdout), concat!(env!("CARGO_PKG_VERSION"), "\n"));
    }
}

#[test]
fn usage_errors_exit_1_and_show_the_usage() {
    for arguments in [&["--bogus"][..], &["-c"], &["extra"], &["--check=1"], &["-x"]] {
        let output = output(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(
            text(&output.stderr).contains("Usage: linkrouterd [OPTIONS]"),
            "{arguments:?}"
        );
        assert!(output.stdout.is_empty());
    }
    assert!(text(&output(&["extra"]).stderr).contains("Unexpected arguments: extra"));
}

#[test]
fn check_says_whether_a_file_can_run() {
    let good = Site::new(LISTENER).output(&["--check"]);
    assert_eq!(good.status.code(), Some(0), "{}", text(&good.stdout));

    let bad = Site::new("router {\n    idd: x\n}\n\nlistener {\n    port: eleven hundred\n    bogus: 1\n}\n");
    let output = bad.output(&["--check"]);
    assert_eq!(output.status.code(), Some(78));
    let findings = text(&output.stdout);
    for line in [2, 6, 7] {
        let place = format!("{}:{line}: error: ", bad.config().display());
        assert!(findings.contains(&place), "{findings}");
    }

    let missing = output_of_check("/nonexistent/x.conf");
    assert_eq!(missing.status.code(), Some(78));
    assert!(
        text(&missing.stdout).contains("/nonexistent/x.conf"),
        "{}",
        text(&missing.stdout)
    );
}

fn output_of_check(path: &str) -> Output {
    output(&["--check", "-c", path])
}

#[test]
fn check_reads_the_certificates_too() {
    let site = Site::new("");
    fs::write(site.path("empty.pem"), "nothing here\n").expect("a file");
    let config = |ca: &Path| {
        format!(
            "{LISTENER}sslProfile {{\n    name: p\n    caCertFile: {}\n}}\nconnector {{\n    name: HUB\n    \
             host: hub.example\n    port: 5671\n    role: on-demand\n    sslProfile: p\n}}\n",
            ca.display()
        )
    };
    for ca in [site.path("missing.pem"), site.path("empty.pem")] {
        fs::write(site.config(), config(&ca)).expect("a file");
        let output = site.output(&["--check"]);
        let findings = text(&output.stdout);
        // They are read at every dial, and may come later than the daemon.
        assert_eq!(output.status.code(), Some(0), "{findings}");
        assert!(
            findings.contains("warning: ") && findings.contains(&ca.display().to_string()),
            "{findings}"
        );
    }
}

#[test]
fn check_names_what_lets_devices_use_each_others_identity() {
    let config = |attributes: &str| {
        format!(
            "{LISTENER}connector {{\n    name: HUB\n    host: hub.example\n    role: on-demand\n{attributes}}}\nlinkRoute {{\n    \
             prefix: $cbs\n    direction: in\n    connection: HUB\n}}\n"
        )
    };
    let login = "    saslUsername: me\n    saslPassword: env:HUB_PASSWORD\n";
    let cases = [
        (
            config("    checkIdentity: no\n"),
            12,
            "every device can send and receive as any other",
        ),
        (
            config("    cbs: tunnel\n"),
            12,
            "the tokens of devices go to the hub unseen",
        ),
        (
            config(&format!("    maxTokens: 5\n{login}")),
            12,
            "`maxTokens` has no effect: with `saslUsername` the connector logs in for all devices",
        ),
        (
            config("    cbs: relay\n").replace("$cbs", "devices"),
            12,
            "`cbs` has no effect: no linkRoute of `$cbs`",
        ),
    ];
    for (text_of_file, line, part) in cases {
        let site = Site::new(&text_of_file);
        let output = site
            .command()
            .arg("--check")
            .env("HUB_PASSWORD", "s3cret")
            .output();
        let output = output.expect("the binary runs");
        let findings = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{findings}");
        let place = format!("{}:{line}: warning: connector `HUB`: ", site.config().display());
        let found = findings.lines().find(|found| found.starts_with(&place));
        assert!(found.is_some_and(|found| found.contains(part)), "{findings}");
        assert!(!findings.contains("s3cret"));
    }
    let site = Site::new(&config(
        "    checkIdentity: yes\n    maxTokens: 5\n    maxLinks: 50\n    poolSize: 2\n    devicesPerSecond: 10\n",
    ));
    let output = site.output(&["--check"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(
        !text(&output.stdout).contains("warning: "),
        "{}",
        text(&output.stdout)
    );
}

#[test]
fn a_bad_file_stops_the_start_with_every_finding() {
    let site = Site::new("router {\n    idd: x\n}\nlistener {\n    bogus: 1\n}\n");
    let output = site.output(&[]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    for line in [2, 5] {
        assert!(
            stderr.contains(&format!("{}:{line}: error: ", site.config().display())),
            "{stderr}"
        );
    }
    assert!(
        stderr.contains("MAIN (critical) Router start-up failed: "),
        "{stderr}"
    );

    let output = self::output(&["--conf", "/nonexistent/x.conf"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/nonexistent/x.conf"));
}

#[test]
fn an_address_in_use_stops_the_start() {
    let occupied = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = occupied.local_addr().expect("bound");
    let site = Site::new(&format!(
        "listener {{\n    host: 127.0.0.1\n    port: {}\n}}\n",
        address.port()
    ));
    let output = site.output(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains(&address.to_string()),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn starts_listens_and_stops_on_every_stop_signal() {
    let connector = "sslProfile {\n    name: azure\n}\nconnector {\n    name: HUB\n    host: hub.example\n    \
                     port: 5671\n    role: on-demand\n    sslProfile: azure\n}\n";
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        let site = Site::new(&format!("{LISTENER}{connector}"));
        let mut daemon = Daemon::start(&mut site.command());
        let address = bound_address(&daemon.line_with("SERVER (notice) Listening on "));
        assert!(
            address.starts_with("127.0.0.1:") && address != "127.0.0.1:0",
            "{address}"
        );
        let connection = TcpStream::connect(&address).expect("it listens");
        daemon.send(signal);
        let (code, lines) = daemon.end();
        drop(connection);
        assert_eq!(code, Some(0), "{signal}: {lines:#?}");
        let pid_line = lines
            .iter()
            .find(|line| line.contains("Operational"))
            .expect("a line");
        assert!(pid_line.contains("(process ID "), "{pid_line}");
        let expected = [
            "SERVER (info) Container Name: Router.T",
            "ROUTER (info) Router started in Standalone mode",
            concat!("ROUTER (info) Version: ", env!("CARGO_PKG_VERSION")),
            "CONN_MGR (info) Created SSL Profile with name azure",
            "CONN_MGR (info) Configured Connector: hub.example:5671 proto=any, role=on-demand, sslProfile=azure",
            "CONN_MGR (info) Configured Listener: 127.0.0.1:0 proto=any, role=normal",
            &format!(
                "ROUTER (warning) There is no linkRoute in {}, so every link is refused: add a connector and routes \
                 to it, then reload",
                site.config().display()
            ),
            untimed(pid_line),
            &format!("SERVER (notice) Listening on {address}"),
            "SERVER (notice) Shut Down",
        ];
        let positions: Vec<_> = expected
            .iter()
            .map(|text| lines.iter().position(|line| untimed(line) == *text).ok_or(*text))
            .collect();
        assert!(
            positions.iter().all(Result::is_ok) && positions.is_sorted(),
            "{positions:?} in {lines:#?}"
        );
    }
}

/// What the journal hears on this stream of the daemon, which ends at once because an address is taken.
fn heard_by_journal(stream: &str, is_ours: bool, more: &str) -> String {
    let site = Site::new("");
    let occupied = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = occupied.local_addr().expect("bound").port();
    let taken = format!("{LISTENER}listener {{\n    host: 127.0.0.1\n    port: {port}\n}}\n{more}");
    fs::write(site.config(), taken).expect("a file");
    let journal = File::create(site.path("journal")).expect("a file");
    let metadata = journal.metadata().expect("metadata");
    let inode = metadata.ino() + u64::from(!is_ours);
    let mut command = site.command();
    command.env("JOURNAL_STREAM", format!("{}:{inode}", metadata.dev()));
    match stream {
        "stdout" => command.stdout(journal).stderr(Stdio::null()),
        _ => command.stderr(journal),
    };
    assert_eq!(command.status().expect("the binary runs").code(), Some(1));
    fs::read_to_string(site.path("journal")).expect("the journal")
}

#[test]
fn under_systemd_the_journal_adds_time_and_level() {
    let log = |output: &str| {
        format!(
            "log {{\n    module: DEFAULT\n    enable: trace+\n    outputFile: {output}\n}}\nconsole {{\n}}\n"
        )
    };
    for stream in ["stderr", "stdout"] {
        let lines = heard_by_journal(stream, true, &log(stream));
        for line in lines.lines() {
            let rest = line
                .strip_prefix('<')
                .and_then(|rest| rest.split_once('>'))
                .and_then(|(level, rest)| level.parse::<u8>().is_ok().then_some(rest));
            let rest = rest.unwrap_or_else(|| panic!("no level: {line}"));
            // Neither a time nor a colour.
            assert!(!rest.starts_with("20") && !rest.contains('\u{1b}'), "{line}");
        }
        for start in [
            "<6>SERVER (info) Container Name: ",
            "<4>AGENT (warning) ",
            "<2>MAIN (critical) ",
        ] {
            assert!(
                lines.lines().any(|line| line.starts_with(start)),
                "{start}: {lines}"
            );
        }
    }
    // The stream of another process, whose environment was inherited.
    let lines = heard_by_journal("stderr", false, "");
    assert!(lines.starts_with('2') && !lines.contains('<'), "{lines}");
}

/// What is said beside the log has its level on each line, too.
#[test]
fn the_journal_hears_why_nothing_starts() {
    let lines = heard_by_journal("stderr", true, "listner {\n}\nrouter {\n    bogus: 1\n}\n");
    let findings = lines
        .lines()
        .filter(|line| line.starts_with("<3>") && line.contains(": error: "));
    assert!(findings.count() >= 2, "{lines}");
    assert!(
        lines
            .lines()
            .all(|line| line.starts_with("<3>") || line.starts_with("<2>")),
        "{lines}"
    );

    let site = Site::new("");
    let journal = File::create(site.path("journal")).expect("a file");
    let metadata = journal.metadata().expect("metadata");
    let mut command = linkrouterd();
    command
        .arg("--bogus")
        .env("JOURNAL_STREAM", format!("{}:{}", metadata.dev(), metadata.ino()))
        .stderr(journal);
    assert_eq!(command.status().expect("the binary runs").code(), Some(1));
    let lines = fs::read_to_string(site.path("journal")).expect("the journal");
    assert!(
        lines.contains("Usage: ") && lines.lines().all(|line| line.starts_with("<3>")),
        "{lines}"
    );
}

#[test]
fn frames_are_traced_when_the_environment_says_so() {
    let site = Site::new(LISTENER);
    let mut daemon = Daemon::start(site.command().env("PN_TRACE_FRM", "1"));
    let address = bound_address(&daemon.line_with("(notice) Listening on "));
    let mut device = TcpStream::connect(&address).expect("it listens");
    // AMQP 1.0 part 2, §2.2.
    device.write_all(b"AMQP\x00\x01\x00\x00").expect("it reads");
    let line = daemon.line_with("PROTOCOL (trace) [C1]");
    assert!(line.contains("AMQP"), "{line}");
    daemon.send(Signal::SIGTERM);
    assert_eq!(daemon.end().0, Some(0));
}

#[test]
fn frames_of_a_device_are_traced_when_the_command_line_names_it() {
    let site = Site::new(LISTENER);
    for (named, is_traced) in [("127.0.0.0/8", true), ("127.0.0.2", false)] {
        let mut daemon =
            Daemon::start(
                site.command()
                    .args(["--trace-device", "nobody", "--trace-device", named]),
            );
        let address = bound_address(&daemon.line_with("(notice) Listening on "));
        let mut device = TcpStream::connect(&address).expect("it listens");
        device.write_all(b"AMQP\x00\x01\x00\x00").expect("it reads");
        let mut answer = [0; 8];
        device.read_exact(&mut answer).expect("the same");
        // A reload leaves the command line in force.
        daemon.send(Signal::SIGHUP);
        daemon.line_with("SERVER (notice) Configuration reloaded: 0 routes; ");
        let mut device = TcpStream::connect(&address).expect("it listens");
        device.write_all(b"AMQP\x00\x01\x00\x00").expect("it reads");
        device.read_exact(&mut answer).expect("the same");
        daemon.send(Signal::SIGTERM);
        let (code, lines) = daemon.end();
        assert_eq!(code, Some(0));
        for connection in ["[C1]", "[C2]"] {
            let shown = format!("PROTOCOL (trace) {connection}");
            let count = lines.iter().filter(|line| line.contains(&shown)).count();
            assert_eq!(count > 0, is_traced, "{named}: {lines:#?}");
        }
    }
}

#[test]
fn hangup_breaks_nothing() {
    let site = Site::new(LISTENER);
    let mut daemon = Daemon::start(&mut site.command());
    let address = bound_address(&daemon.line_with("(notice) Listening on "));
    for _ in 0..2 {
        daemon.send(Signal::SIGHUP);
        daemon.line_with("MAIN (notice) SIGHUP: reading ");
        daemon.line_with("SERVER (notice) Configuration reloaded: 0 routes; ");
    }
    TcpStream::connect(&address).expect("it still listens");
    daemon.send(Signal::SIGTERM);
    let (code, lines) = daemon.end();
    assert_eq!(code, Some(0), "{lines:#?}");
}

#[test]
fn options_of_the_background_are_ignored_aloud_in_the_foreground() {
    let site = Site::new(LISTENER);
    let pidfile = site.path("pid");
    let mut daemon = Daemon::start(
        site.command()
            .arg("-P")
            .arg(&pidfile)
            .args(["-U", "nobody", "-T"]),
    );
    daemon.line_with("MAIN (warning) ");
    daemon.line_with("(notice) Listening on ");
    assert!(!pidfile.exists());
    daemon.send(Signal::SIGTERM);
    assert_eq!(daemon.end().0, Some(0));
}

/// A daemon in the background, whose parent this process becomes.
struct Background {
    pid: Pid,
}

impl Background {
    /// Starts it in the site's directory, with relative paths, which must not depend on its own `/`.
    fn start(site: &Site, arguments: &[&str]) -> Self {
        Self::start_in(site, arguments, &[])
    }

    /// The same, with these in its environment.
    fn start_in(site: &Site, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        set_child_subreaper(true).expect("Linux");
        let output = linkrouterd()
            .envs(environment.iter().copied())
            .current_dir(site.directory.path())
            .args(["-d", "-P", "pid", "--conf", "test.conf"])
            .args(arguments)
            .output()
            .expect("the binary runs");
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert!(output.stdout.is_empty() && output.stderr.is_empty());
        let pid = fs::read_to_string(site.path("pid"))
            .expect("a pidfile")
            .trim()
            .parse()
            .expect("a number");
        Background {
            pid: Pid::from_raw(pid),
        }
    }

    fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.pid))
    }

    /// One line of `/proc/PID/status`.
    fn status(&self, key: &str) -> String {
        let status = fs::read_to_string(self.proc("status")).expect("it is alive");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .expect("a key");
        line.trim_start_matches(':')
            .split_whitespace()
            .next()
            .expect("a value")
            .to_owned()
    }

    fn stop(self) -> WaitStatus {
        kill(self.pid, Signal::SIGTERM).expect("it is alive");
        waitpid(self.pid, None).expect("our child by adoption")
    }
}

/// A service manager waits for the process that it has started, and that one has ended.
#[test]
fn the_background_tells_a_service_manager_nothing() {
    let site = Site::new("");
    fs::write(site.config(), background_config(&site)).expect("a file");
    let manager = UnixDatagram::bind(site.path("notify")).expect("a socket");
    manager.set_nonblocking(true).expect("a socket");
    let notify = site.path("notify").display().to_string();
    let environment = [("NOTIFY_SOCKET", notify.as_str()), ("WATCHDOG_USEC", "10000")];
    let daemon = Background::start_in(&site, &[], &environment);
    let pid = daemon.pid;
    kill(pid, Signal::SIGHUP).expect("it is alive");
    assert_eq!(daemon.stop(), WaitStatus::Exited(pid, 0));
    let nothing = manager.recv(&mut [0; 64]).expect_err("nothing was sent");
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
}

fn background_config(site: &Site) -> String {
    format!(
        "{LISTENER}log {{\n    module: DEFAULT\n    enable: info+\n    outputFile: {}\n}}\n",
        site.path("log").display()
    )
}

#[test]
fn background() {
    let site = Site::new("");
    fs::write(site.config(), background_config(&site)).expect("a file");
    let daemon = Background::start(&site, &[]);

    // The parent has ended only now, so the listener must be there.
    let log = site.log();
    let line = log
        .lines()
        .find(|line| line.contains("(notice) Listening on "))
        .expect("it listens already");
    TcpStream::connect(bound_address(line)).expect("it listens");
    let mode = fs::metadata(site.path("pid"))
        .expect("a pidfile")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o644);
    assert_eq!(fs::read_link(daemon.proc("cwd")).expect("a link"), Path::new("/"));
    for stream in ["fd/0", "fd/1", "fd/2"] {
        assert_eq!(
            fs::read_link(daemon.proc(stream)).expect("a link"),
            Path::new("/dev/null"),
            "{stream}"
        );
    }
    assert_eq!(daemon.status("Umask"), "0022");
    let stat = fs::read_to_string(daemon.proc("stat")).expect("it is alive");
    let session = stat
        .rsplit(')')
        .next()
        .and_then(|rest| rest.split_whitespace().nth(3))
        .expect("a session");
    let ours = nix::unistd::getsid(None).expect("a session");
    assert_ne!(session, ours.to_string(), "it left our session");
    assert_ne!(session, daemon.pid.to_string(), "it leads no session");
    assert_eq!(
        fs::read_to_string(daemon.proc("comm")).expect("a name").trim(),
        "linkrouterd"
    );

    // SIGHUP finds the file again, though its name was relative and the daemon's directory is another; and it opens the
    // log anew, which is a pipe now.
    fs::remove_file(site.path("log")).expect("a log");
    mkfifo(&site.path("log"), Mode::S_IRWXU).expect("a pipe");
    kill(daemon.pid, Signal::SIGHUP).expect("it is alive");
    let (sender, lines) = channel();
    let pipe = site.path("log");
    std::thread::spawn(move || {
        for line in BufReader::new(File::open(pipe).expect("a pipe")).lines() {
            let _ = sender.send(line.expect("text"));
        }
    });
    let wait_for = |part: &str| {
        while !lines.recv_timeout(PATIENCE).expect(part).contains(part) {}
    };
    wait_for("SERVER (notice) Configuration reloaded: ");

    let pid = daemon.pid;
    assert_eq!(daemon.stop(), WaitStatus::Exited(pid, 0));
    assert!(!site.path("pid").exists());
    wait_for("SERVER (notice) Shut Down");
}

#[test]
fn background_as_another_user() {
    if !geteuid().is_root() {
        eprintln!("SKIPPED: only root can become another user");
        return;
    }
    let nobody = User::from_name("nobody")
        .expect("a user database")
        .expect("nobody");
    let site = Site::new("");
    fs::set_permissions(site.directory.path(), fs::Permissions::from_mode(0o777)).expect("our directory");
    fs::write(site.config(), background_config(&site)).expect("a file");
    let daemon = Background::start(&site, &["-U", "nobody"]);
    assert_eq!(daemon.status("Uid"), nobody.uid.to_string());
    assert_eq!(daemon.status("Gid"), nobody.gid.to_string());
    let groups = fs::read_to_string(daemon.proc("status")).expect("it is alive");
    let groups = groups
        .lines()
        .find_map(|line| line.strip_prefix("Groups:"))
        .expect("groups");
    assert!(
        !groups.split_whitespace().any(|group| group == "0"),
        "root's group remains: {groups}"
    );
    let pid = daemon.pid;
    assert_eq!(daemon.stop(), WaitStatus::Exited(pid, 0));
    assert!(!site.path("pid").exists());
}

#[test]
fn a_background_that_cannot_start_says_why() {
    let bad = Site::new("listener {\n    bogus: 1\n}\n");
    let pidfile = bad.path("pid").display().to_string();
    let occupied = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = occupied.local_addr().expect("bound").port();
    let taken = Site::new(&format!(
        "listener {{\n    host: 127.0.0.1\n    port: {port}\n}}\n"
    ));
    let good = Site::new(LISTENER);
    let cases: [(&Site, &[&str], &str); 4] = [
        (&bad, &["-d", "-P", &pidfile], "test.conf:2: error: "),
        (&taken, &["-d"], &format!("127.0.0.1:{port}")),
        (
            &good,
            &["-d", "-U", "nosuchuser"],
            "Cannot run as user 'nosuchuser': no such user",
        ),
        (
            &good,
            &["-d", "-P", "/nonexistent/pid"],
            "Cannot write the pidfile '/nonexistent/pid': No such file",
        ),
    ];
    for (site, arguments, expected) in cases {
        let output = site.output(arguments);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
        assert!(stderr.contains(expected), "{arguments:?}: {stderr}");
    }
    assert!(
        !bad.path("pid").exists(),
        "the pidfile of a daemon that never was"
    );
}

#[test]
fn a_reader_who_leaves_early_harms_nothing() {
    let mut child = linkrouterd()
        .arg("--help")
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    drop(child.stdout.take());
    assert!(
        child.wait().expect("it ends").code().is_some(),
        "killed by a signal"
    );

    let site = Site::new(LISTENER);
    let mut command = site.command();
    let mut child = command.stderr(Stdio::piped()).spawn().expect("the binary runs");
    let mut stderr = child.stderr.take().expect("piped");
    stderr.read_exact(&mut [0]).expect("it logs");
    drop(stderr);
    let mut daemon = Daemon {
        child,
        lines: channel().1,
        seen: Vec::new(),
    };
    daemon.send(Signal::SIGHUP);
    daemon.send(Signal::SIGTERM);
    let status = daemon.child.wait().expect("it ends");
    // Either it was ready for signals and stopped politely, or it died of the signal before; never of the log.
    assert!(status.code() == Some(0) || status.code().is_none(), "{status}");
}

#[test]
fn hash_password_reads_standard_input_and_prints_one_line() {
    let hash = |user: &str, input: &str| {
        let mut command = linkrouterd();
        command.args(["--hash-password", user]).stdin(Stdio::piped());
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut stdin = child.stdin.take().expect("piped");
        // It may have said no already.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        child.wait_with_output().expect("it ends")
    };
    for input in ["s3cret", "s3cret\n", "s3cret\r\n", "s3cret\nmore\n"] {
        let output = hash("dev1", input);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let line = text(&output.stdout);
        assert!(line.starts_with("dev1:$pbkdf2-sha256$100000$") && line.ends_with('\n'));
        assert!(!line.contains("s3cret"), "{line}");
        let passwords = linkrouterd::shard::passwords::Passwords::parse(&line).expect("good");
        assert!(passwords.verify("dev1", b"s3cret"));
    }
    for (user, input) in [("dev1", ""), ("", "s3cret"), ("a\nb", "s3cret"), ("dev1", "\n")] {
        let output = hash(user, input);
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty() && text(&output.stderr).starts_with("linkrouterd: a "));
    }
}
