//! Files that are larger than anybody writes them.

use std::fs;

use linkrouterd::config;
use linkrouterd::shard::passwords::Passwords;

use super::shown;

/// `const MAX_FILE_BYTES` of `src/config/mod.rs`, `src/shard/passwords.rs`; `MAX_FILE_LINE` of `src/config/secret.rs`.
const CONFIGURATION: usize = 1 << 20;
const PASSWORDS: usize = 16 << 20;
const LINE: usize = 4096;

/// A comment of so many bytes.
fn comment(bytes: usize) -> String {
    format!("#{}\n", "c".repeat(bytes - 2))
}

#[test]
fn a_configuration_may_be_so_large_and_not_a_byte_larger() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("large.conf");
    for (bytes, is_read) in [(CONFIGURATION, true), (CONFIGURATION + 1, false)] {
        fs::write(&file, comment(bytes)).expect("a file");
        let report = config::load(&file, &|_| None);
        assert_eq!(report.config.is_some(), is_read);
        assert_eq!(shown(&report).contains("has more than 1048576 bytes"), !is_read);
    }
}

#[test]
fn a_file_of_users_may_be_so_large_and_not_a_byte_larger() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("users");
    for (bytes, is_read) in [(PASSWORDS, true), (PASSWORDS + 1, false)] {
        fs::write(&file, comment(bytes)).expect("a file");
        assert_eq!(Passwords::read(&file).is_ok(), is_read);
    }
}

#[test]
fn the_first_line_of_a_password_file_may_be_so_long_and_not_a_byte_longer() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("password");
    for (bytes, is_read) in [(LINE, true), (LINE + 1, false)] {
        fs::write(&file, "p".repeat(bytes)).expect("a file");
        let text = format!(
            "connector {{\n    name: HUB\n    host: h\n    port: 5672\n    saslUsername: u\n    saslPassword: file:{}\n}}\n",
            file.display()
        );
        let report = config::parse("t.conf", &text, &|_| None);
        assert_eq!(
            shown(&report).contains("has a first line of more than 4096 bytes"),
            !is_read,
            "{}",
            shown(&report)
        );
    }
}
