//! Going to the background, and being there.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;

use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, User, geteuid, mkfifo};

use crate::site::{LISTENER, PATIENCE, Site, bound_address, linkrouterd, text};

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

/// Whoever starts a daemon that is there already hears of it, and can still stop the first one by its pidfile.
#[test]
fn a_start_that_fails_leaves_the_pidfile_to_whoever_has_it() {
    let site = Site::new("");
    fs::write(site.config(), background_config(&site)).expect("a file");
    let daemon = Background::start(&site, &[]);
    let log = site.log();
    let line = log.lines().find(|line| line.contains("(notice) Listening on "));
    let address = bound_address(line.expect("it listens already"));
    let (_, port) = address.rsplit_once(':').expect("a port");
    let taken = format!("listener {{\n    host: 127.0.0.1\n    port: {port}\n}}\n");
    fs::write(site.config(), taken).expect("a file");
    let again = site.output(&["-d", "-P", &site.path("pid").display().to_string()]);
    assert_eq!(again.status.code(), Some(1), "{}", text(&again.stderr));
    let pidfile = fs::read_to_string(site.path("pid")).expect("a pidfile");
    assert_eq!(pidfile, format!("{}\n", daemon.pid));
    let pid = daemon.pid;
    assert_eq!(daemon.stop(), WaitStatus::Exited(pid, 0));
    assert!(!site.path("pid").exists());
}
