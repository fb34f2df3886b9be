//! What is wrong with a configuration: `--check`, and starts that fail.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Output;

use crate::site::{LISTENER, Site, output, text};

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
