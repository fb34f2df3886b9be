//! The configuration reader: a file in any dialect of qdrouterd 0.6.0 to 1.19.0 becomes typed, checked entities.
//!
//! ```text
//! text ── lexer / json ──▶ sections ── resolve ──▶ entities ── build ──▶ Config ── check ──▶ Report
//! ```
//!
//! Reading never stops at the first fault: a [`Report`] holds every finding of a file, each with its true line, and
//! a [`Config`] only if none of them is an error. A finding never contains a password. What is read, accepted,
//! ignored or refused is one table, [`entity::entities`].
//!
//! A leaf: it imports nothing else of the crate. Files are the only thing it touches, and only these: the file
//! itself, the files of `policyDir`, password files, the list of service names, and whether a certificate file is there.

mod assemble;
mod build;
mod check;
pub mod entity;
mod json;
mod levels;
mod lexer;
mod model;
mod names;
pub mod refusal;
mod report;
mod resolve;
mod secret;
mod source;
mod table;
mod value;
mod vhost_files;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

pub use model::{
    AddressFamily, Addresses, CbsMode, ClientCertificates, Config, Connector, ConnectorRole, Destination,
    Direction, ErrorConditions, FailoverUrl, Group, HubLoss, LevelSet, LinkRoute, Listener, ListenerRole,
    Log, LogLevel, LogOutput, Matcher, Policy, RemoteHost, Router, Sharing, SslProfile, TlsVersion, Vhost,
};
pub use report::{Finding, Report, Severity, sort};
pub use secret::Secret;

use report::Findings;

/// A configuration is written by people; a larger file is something else.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Reads and checks a file; a name ending in `.json` chooses the JSON notation. `environment` answers `env:NAME`.
pub fn load(path: &Path, environment: &dyn Fn(&str) -> Option<String>) -> Report {
    let name = path.display().to_string();
    let fail = |line, message: String| {
        let mut findings = Findings::new(&name);
        findings.error(line, message);
        Report {
            config: None,
            findings: findings.into_sorted(),
        }
    };
    let bytes = match read(path) {
        Ok(bytes) => bytes,
        Err(error) => return fail(0, format!("the configuration cannot be read: {error}")),
    };
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return fail(
            0,
            format!("the configuration has more than {MAX_FILE_BYTES} bytes"),
        );
    }
    match String::from_utf8(bytes) {
        Ok(text) => parse(&name, &text, environment),
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let line = error
                .as_bytes()
                .iter()
                .take(valid)
                .filter(|byte| **byte == b'\n')
                .count();
            fail(source::number(line), "not UTF-8 text from here on".to_owned())
        }
    }
}

/// Checks a text as if it were the content of a file of this name.
pub fn parse(file_name: &str, text: &str, environment: &dyn Fn(&str) -> Option<String>) -> Report {
    let mut findings = Findings::new(file_name);
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.is_empty() {
        findings.error(
            1,
            "the file is empty; a comment alone would do to start with defaults",
        );
        return Report {
            config: None,
            findings: findings.into_sorted(),
        };
    }
    let sections = if file_name.ends_with(".json") {
        json::read(text, &mut findings)
    } else {
        lexer::read(text, &mut findings)
    };
    let config = assemble::assemble(sections, environment, &mut findings);
    let config = config.filter(|_| !findings.has_errors());
    Report {
        config,
        findings: findings.into_sorted(),
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}
