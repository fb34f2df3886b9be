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

#[cfg(test)]
mod tests {
    use crate::config::Severity;
    use crate::daemon::build::site::Site;
    use crate::shard::passwords::hash_line;

    const CONFIG: &str = "router {\n    id: r\n    saslPasswordFile: DIR/users\n}\n";

    #[test]
    fn users_are_for_the_shard() {
        let site = Site::new();
        let path = site.0.path().join("users");
        std::fs::write(&path, hash_line("dev1", "p").expect("a line")).expect("a file");
        let plan = site.plan(CONFIG, &[]);
        assert!(plan.shard.passwords.verify("dev1", b"p"));
    }

    #[test]
    fn what_is_wrong_with_the_file_has_its_name_and_line() {
        for (content, severity, line, part) in [
            (Some("# nobody\n"), Severity::Warning, 0, "has no user"),
            (
                Some("# users\ndev1:hunter2\n"),
                Severity::Error,
                2,
                "--hash-password",
            ),
            (None, Severity::Error, 0, "cannot be read"),
        ] {
            let site = Site::new();
            let path = site.0.path().join("users");
            if let Some(content) = content {
                std::fs::write(&path, content).expect("a file");
            }
            let findings = site.load(CONFIG, &[]).findings;
            let found = findings.iter().any(|finding| {
                finding.severity == severity
                    && finding.line == line
                    && finding.file.ends_with("/users")
                    && finding.message.contains(part)
            });
            assert!(found, "{findings:#?}");
            assert!(!format!("{findings:?}").contains("hunter2"));
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_everyone_can_read_is_a_warning() {
        use std::os::unix::fs::PermissionsExt;
        let site = Site::new();
        let path = site.0.path().join("users");
        std::fs::write(&path, hash_line("dev1", "p").expect("a line")).expect("a file");
        for (mode, warned) in [(0o644, true), (0o640, false), (0o600, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("ours");
            let findings = site.load(CONFIG, &[]).findings;
            assert_eq!(!findings.is_empty(), warned, "{mode:o}: {findings:#?}");
        }
    }
}
