//! Passwords: where they come from, and how they are kept from being shown.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};

use super::names::quoted;

/// Longest first line of a password file.
const MAX_FILE_LINE: u64 = 4096;

/// A password. Neither `Debug` nor `Display` shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a password.
    pub const fn new(text: String) -> Self {
        Secret(text)
    }

    /// The password itself: only where it is used, never where it is shown.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<hidden>")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<hidden>")
    }
}

/// Whether a password stands in the configuration itself, where everyone who may read the file may read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exposure {
    InFile,
    Elsewhere,
}

/// The password that a configured text stands for; `Err` is what to tell the operator, without the text.
pub(super) fn resolve(
    text: &str,
    literal_is_prefix: bool,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<(Secret, Exposure), String> {
    if let Some(name) = text.strip_prefix("env:") {
        let name = name.trim_start();
        return match environment(name) {
            Some(value) => Ok((Secret(value), Exposure::Elsewhere)),
            None if is_variable_name(name) => {
                Err(format!("the environment variable {} is not set", quoted(name)))
            }
            None => Err("the environment variable that follows `env:` is not set".to_owned()),
        };
    }
    if let Some(path) = text.strip_prefix("file:") {
        let path = path.trim_start();
        return first_line(path).map(|line| (Secret(line), Exposure::Elsewhere));
    }
    let literal = text.strip_prefix("literal:").filter(|_| literal_is_prefix);
    let bare = text.strip_prefix("pass:").or(literal).unwrap_or(text);
    Ok((Secret(bare.to_owned()), Exposure::InFile))
}

/// The first line of a password file, without its line end.
pub(super) fn first_line(path: &str) -> Result<String, String> {
    let fail = |what: String| format!("the password file {} {what}", quoted(path));
    let file = File::open(path).map_err(|error| fail(format!("cannot be opened: {error}")))?;
    let mut line = Vec::new();
    BufReader::new(file.take(MAX_FILE_LINE + 1))
        .read_until(b'\n', &mut line)
        .map_err(|error| fail(format!("cannot be read: {error}")))?;
    if line.len() as u64 > MAX_FILE_LINE {
        return Err(fail(format!(
            "has a first line of more than {MAX_FILE_LINE} bytes"
        )));
    }
    let line = String::from_utf8(line).map_err(|_| fail("is not UTF-8 text".to_owned()))?;
    let password = line.trim_end_matches(['\n', '\r']);
    if password.is_empty() {
        return Err(fail("has an empty first line".to_owned()));
    }
    Ok(password.to_owned())
}

/// Anything else after `env:` may be a password that was put there by mistake.
fn is_variable_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 60
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name
            .chars()
            .all(|character| character.is_ascii_alphanumeric() || character == '_')
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn environment(name: &str) -> Option<String> {
        (name == "HUB_KEY").then(|| "from-environment".to_owned())
    }

    #[test]
    fn every_form_of_a_password() {
        let cases = [
            ("env:HUB_KEY", true, "from-environment", Exposure::Elsewhere),
            ("env:  HUB_KEY", false, "from-environment", Exposure::Elsewhere),
            ("pass:abc", true, "abc", Exposure::InFile),
            ("literal:abc", true, "abc", Exposure::InFile),
            ("literal:abc", false, "literal:abc", Exposure::InFile),
            ("a:b", true, "a:b", Exposure::InFile),
        ];
        for (text, literal, password, exposure) in cases {
            let (secret, found) =
                resolve(text, literal, &environment).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((secret.expose(), found), (password, exposure), "{text}");
        }
    }

    #[test]
    fn a_password_file_gives_its_first_line() {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        write!(file, "first word\r\nsecond\n").expect("written");
        let text = format!("file:{}", file.path().display());
        let (secret, exposure) = resolve(&text, false, &environment).expect("readable");
        assert_eq!((secret.expose(), exposure), ("first word", Exposure::Elsewhere));
    }

    #[test]
    fn failures_name_the_place_but_not_what_may_be_a_password() {
        let unset = resolve("env:NO_SUCH", true, &environment).expect_err("unset");
        assert!(unset.contains("NO_SUCH"), "{unset}");
        let mistaken = resolve("env:s3cret!", true, &environment).expect_err("unset");
        assert!(!mistaken.contains("s3cret"), "{mistaken}");
        let missing = resolve("file:/nonexistent/password", true, &environment).expect_err("missing");
        assert!(missing.contains("/nonexistent/password"), "{missing}");
    }

    #[test]
    fn neither_debug_nor_display_shows_it() {
        let secret = Secret::new("hunter2".to_owned());
        assert_eq!(format!("{secret:?} {secret}"), "<hidden> <hidden>");
    }
}
