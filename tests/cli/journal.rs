//! What the journal of systemd hears.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

use crate::site::{LISTENER, Site, linkrouterd};

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
