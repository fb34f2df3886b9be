//! The configuration reader as an operator meets it: files in, a configuration or findings out.

mod compatibility;
mod documents;
mod entities;
mod failover;
mod grammar;
mod policy;
mod properties;
mod secrets;
mod security;
mod sharing;
mod sizes;

use linkrouterd::config::{self, Config, Report};

/// Reads a text as a `.conf` file in an environment that has only `HUB_KEY`.
fn read(text: &str) -> Report {
    read_as("t.conf", text)
}

/// Reads a text as a file of this name.
fn read_as(name: &str, text: &str) -> Report {
    config::parse(name, text, &|variable| {
        (variable == "HUB_KEY").then(|| "key-of-the-hub".to_owned())
    })
}

/// The findings as the operator sees them, one a line.
fn shown(report: &Report) -> String {
    report
        .findings
        .iter()
        .map(|finding| format!("{finding}\n"))
        .collect()
}

/// The configuration of a text that must be good.
fn good(text: &str) -> Config {
    let report = read(text);
    let findings = shown(&report);
    report
        .config
        .unwrap_or_else(|| panic!("refused:\n{findings}\nof\n{text}"))
}

/// The configuration of a text of which there must be nothing to say.
fn flawless(text: &str) -> Config {
    let report = read(text);
    assert_eq!(shown(&report), "", "of\n{text}");
    good(text)
}

/// Asserts that a text yields exactly these findings: line, severity, and a part of the message each.
#[track_caller]
fn expect(text: &str, expected: &[(u32, &str, &str)]) {
    expect_as("t.conf", text, expected);
}

/// The same for a file of this name.
#[track_caller]
fn expect_as(name: &str, text: &str, expected: &[(u32, &str, &str)]) {
    let report = read_as(name, text);
    let fits = report.findings.len() == expected.len()
        && report
            .findings
            .iter()
            .zip(expected)
            .all(|(finding, (line, severity, part))| {
                let text = finding.to_string();
                text.starts_with(&format!("{name}:{line}: {severity}: ")) && text.contains(part)
            });
    assert!(
        fits,
        "found\n{}\nwanted\n{expected:#?}\nof\n{text}",
        shown(&report)
    );
    let has_errors = expected.iter().any(|(_, severity, _)| *severity == "error");
    assert_eq!(
        report.config.is_none(),
        has_errors,
        "a configuration exactly if there is no error"
    );
}
