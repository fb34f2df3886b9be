//! The command line: help, errors, and what does not start a daemon.

use std::io::{Read, Write};
use std::process::Stdio;

use nix::sys::signal::Signal;

use crate::site::{Daemon, LISTENER, Site, linkrouterd, output, text};

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
    let mut daemon = Daemon::unheard(child);
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
