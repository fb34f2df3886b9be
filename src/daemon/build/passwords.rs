//! The password file, and what is to be said of it.

use std::path::Path;

use crate::config::{Finding, Severity};
use crate::shard::passwords::Passwords;

/// Reads a password file; with an error among the findings nobody uses what is returned.
pub(super) fn load(file: &str, findings: &mut Vec<Finding>) -> Passwords {
    let mut add = |severity, line, message| {
        findings.push(Finding {
            severity,
            file: file.to_owned(),
            line,
            message,
        });
    };
    if is_readable_by_all(Path::new(file)) {
        let message = format!(
            "the password file can be read by everyone on this machine, who may then try to guess: chmod o= {file}"
        );
        add(Severity::Warning, 0, message);
    }
    match Passwords::read(Path::new(file)) {
        Ok(passwords) => {
            if passwords.is_empty() {
                let message = "the password file has no user: nobody can log in with a password";
                add(Severity::Warning, 0, message.to_owned());
            }
            passwords
        }
        Err(faults) => {
            for fault in faults {
                add(
                    Severity::Error,
                    fault.line,
                    format!("the password file: {}", fault.what),
                );
            }
            Passwords::default()
        }
    }
}

#[cfg(unix)]
fn is_readable_by_all(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o004 != 0)
}

#[cfg(not(unix))]
const fn is_readable_by_all(_: &Path) -> bool {
    false
}
