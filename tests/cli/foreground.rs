//! A daemon in the foreground: start-up lines, signals, traces.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::site::{Daemon, LISTENER, Site, bound_address, untimed};

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

/// A file that cannot be read to its end is like a name server that never answers: it keeps a thread, and must not keep
/// the process.
#[test]
fn a_stop_does_not_wait_for_what_the_system_never_answers() {
    let site = Site::new(LISTENER);
    let mut daemon = Daemon::start(&mut site.command());
    daemon.line_with("(notice) Listening on ");
    fs::remove_file(site.config()).expect("a file");
    mkfifo(&site.config(), Mode::S_IRWXU).expect("a pipe that nobody writes into");
    daemon.send(Signal::SIGHUP);
    daemon.line_with("MAIN (notice) SIGHUP: reading ");
    daemon.send(Signal::SIGTERM);
    daemon.line_with("SERVER (notice) Shut Down");
    assert_eq!(daemon.end().0, Some(0));
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
