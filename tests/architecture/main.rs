//! The layering, checked: imports go one way, the three inner layers know no sockets and no clocks, what carries messages
//! knows no locks, TLS types live in one place, no file grows beyond what one can read, and the release is made of few crates.

mod panics;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which modules of the crate each room may name. A room that is not listed may not exist.
const ROOMS: [(&str, &[&str]); 10] = [
    ("amqp", &[]),
    ("endpoint", &["amqp"]),
    ("router", &["amqp", "endpoint"]),
    ("management", &["amqp", "endpoint", "router"]),
    ("shard", &["amqp", "endpoint", "router", "management"]),
    ("config", &[]),
    ("cli", &[]),
    (
        "daemon",
        &[
            "amqp",
            "endpoint",
            "router",
            "management",
            "shard",
            "config",
            "cli",
        ],
    ),
    ("main", &["daemon", "cli"]),
    ("lib", &[]),
];

/// The rooms that are a function of their inputs: no sockets, no files, no clocks.
const SANS_IO: [&str; 4] = ["amqp", "endpoint", "router", "management"];

/// What those may not name.
const IO: [&str; 9] = [
    "tokio",
    "std::net",
    "std::io",
    "std::fs",
    "std::thread",
    "rustls",
    "socket2",
    "std::time::SystemTime",
    "std::time::Instant::now",
];

/// What carries messages runs on one thread, and shares nothing with others that one could wait for.
const LOCK_FREE: [&str; 4] = ["amqp", "endpoint", "router", "shard"];

/// What those may not name.
const LOCKS: [&str; 8] = [
    "std::sync::Mutex",
    "std::sync::RwLock",
    "std::sync::Condvar",
    "std::sync::Barrier",
    "std::sync::mpsc",
    "std::sync::atomic",
    "tokio::sync::Mutex",
    "tokio::sync::RwLock",
];

/// Crates whose types stay in one room, so that they can be exchanged in one place.
const TLS: [&str; 4] = ["rustls", "rustls_pemfile", "tokio_rustls", "webpki_roots"];
const TLS_HOME: &str = "src/shard/tls";

const MAX_LINES: usize = 600;

/// Crates that a release is made of: this one, those that are linked, and the procedural macros that write its code. Each
/// one is somebody to trust.
const MAX_CRATES: usize = 60;
/// What we release for.
const TARGETS: [&str; 3] = [
    "x86_64-unknown-linux-gnu",
    "aarch64-unknown-linux-gnu",
    "armv7-unknown-linux-gnueabihf",
];

#[test]
fn the_release_is_made_of_few_crates() {
    for target in TARGETS {
        let output = Command::new(env!("CARGO"))
            .args([
                "tree", "--frozen", "--edges", "normal", "--prefix", "none", "--format", "{p}",
            ])
            .args(["--target", target])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("cargo runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let tree = String::from_utf8(output.stdout).expect("UTF-8");
        // A name and a version; what follows marks repetitions and macros.
        let crates: BTreeSet<Vec<&str>> = tree
            .lines()
            .map(|line| line.split(' ').take(2).collect())
            .filter(|words: &Vec<&str>| words.len() == 2)
            .collect();
        assert!(crates.len() > 10, "{target}: {crates:?}");
        assert!(
            crates.len() <= MAX_CRATES,
            "{target}: {} crates, {MAX_CRATES} at most: {crates:#?}",
            crates.len()
        );
    }
}

#[test]
fn the_house_is_in_order() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut breaches = Vec::new();
    let mut files = 0;
    for folder in ["src", "tests", "benches"] {
        for path in rust_files(&root.join(folder)) {
            let name = path
                .strip_prefix(root)
                .expect("below the root")
                .to_string_lossy()
                .into_owned();
            let source = fs::read_to_string(&path).expect("a readable source file");
            breaches.extend(breaches_of(&name, &source));
            files += 1;
        }
    }
    assert!(files > 10, "only {files} source files found");
    assert!(breaches.is_empty(), "\n{}\n", breaches.join("\n"));
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Every rule that the file breaks, one line each.
fn breaches_of(name: &str, source: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    let lines = source.lines().count();
    if lines > MAX_LINES && name.starts_with("src/") {
        breaches.push(format!("{name}: {lines} lines, {MAX_LINES} at most"));
    }
    let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy();
    if ["utils", "util", "helpers", "common", "misc"].contains(&&*stem) {
        breaches.push(format!("{name}: a name that says nothing"));
    }
    let Some(module) = module_of(name) else {
        return breaches;
    };
    let room = module.first().map_or("lib", String::as_str);
    let Some((_, allowed)) = ROOMS.iter().find(|(known, _)| *known == room) else {
        breaches.push(format!("{name}: the house has no room {room}"));
        return breaches;
    };
    let is_test = |path: &Named| path.is_test || name.ends_with("/tests.rs") || name.contains("/tests/");
    for path in paths_of(&tokens_of(source), &module) {
        let text = path.segments.join("::");
        if let [root, other, ..] = path.segments.as_slice()
            && (root == "crate" || root == "linkrouterd")
            && ROOMS.iter().any(|(known, _)| known == other)
            && other != room
            && !allowed.contains(&other.as_str())
        {
            breaches.push(format!("{name}: {room} may not know {other} ({text})"));
        }
        if SANS_IO.contains(&room)
            && IO.iter().any(|banned| names(&text, banned))
            && !(is_test(&path) && names(&text, "std::time::Instant::now"))
        {
            breaches.push(format!(
                "{name}: {room} does no input or output and reads no clock ({text})"
            ));
        }
        if LOCK_FREE.contains(&room) && !is_test(&path) && LOCKS.iter().any(|banned| names(&text, banned)) {
            breaches.push(format!("{name}: {room} waits for no other thread ({text})"));
        }
        if TLS.iter().any(|banned| names(&text, banned)) && !name.starts_with(TLS_HOME) {
            breaches.push(format!("{name}: TLS types live in {TLS_HOME} ({text})"));
        }
    }
    breaches.dedup();
    breaches
}

/// Whether `path` is `banned` or something in it. `Instant::now` counts with and without its module.
fn names(path: &str, banned: &str) -> bool {
    let is_below = |path: &str| path == banned || path.starts_with(&format!("{banned}::"));
    is_below(path) || is_below(&format!("std::time::{path}"))
}

/// The module path of a file of the library or the program; `None` for tests and benchmarks.
fn module_of(name: &str) -> Option<Vec<String>> {
    let path = name.strip_prefix("src/")?.strip_suffix(".rs")?;
    let mut module: Vec<String> = path.split('/').map(str::to_owned).collect();
    match module.last().map(String::as_str) {
        Some("lib") if module.len() == 1 => module.clear(),
        Some("mod") => {
            module.pop();
        }
        _ => {}
    }
    Some(module)
}

/// The words and the punctuation that make paths, without comments and literals.
fn tokens_of(source: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            _ if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            _ if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            _ if rest.starts_with("::") => 2,
            '"' => quoted_length(rest),
            'r' | 'b' if raw_string_length(rest).is_some() => raw_string_length(rest).unwrap_or(1),
            '\'' => character_length(rest),
            _ if first.is_alphanumeric() || first == '_' => rest
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len()),
            _ => first.len_utf8(),
        };
        let (token, behind) = rest.split_at(length);
        let is_path = token == "::" || first.is_alphanumeric() || first == '_';
        if (is_path && raw_string_length(rest).is_none()) || "{},;*#[]()<".contains(first) {
            tokens.push(token.to_owned());
        }
        rest = behind;
    }
    tokens
}

/// Length of the string literal at the start of `text`.
fn quoted_length(text: &str) -> usize {
    let mut is_escaped = false;
    for (index, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return index + 1,
            _ => {}
        }
    }
    text.len()
}

/// Length of the raw string literal at the start of `text`, if there is one.
fn raw_string_length(text: &str) -> Option<usize> {
    let prefix = if text.starts_with("br") { 2 } else { 1 };
    if !text.starts_with('r') && prefix == 1 {
        return None;
    }
    let behind = text.get(prefix..)?;
    let hashes = behind.chars().take_while(|c| *c == '#').count();
    if !behind.get(hashes..)?.starts_with('"') {
        return None;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let start = prefix + hashes + 1;
    Some(
        text.get(start..)?
            .find(&end)
            .map_or(text.len(), |at| start + at + end.len()),
    )
}

/// Length of the character literal at the start of `text`; 1 for a lifetime.
fn character_length(text: &str) -> usize {
    let mut characters = text.char_indices().skip(1);
    match characters.next() {
        Some((_, '\\')) => text
            .char_indices()
            .skip(3)
            .find(|(_, c)| *c == '\'')
            .map_or(text.len(), |(at, _)| at + 1),
        Some(_) => match characters.next() {
            Some((at, '\'')) => at + 1,
            _ => 1,
        },
        None => 1,
    }
}

/// A path as it is named in a file, with `self` and `super` resolved.
struct Named {
    segments: Vec<String>,
    /// It stands in an item behind `#[cfg(test)]`.
    is_test: bool,
}

/// Every path in the file: those in `use` trees, expanded, and those in code.
fn paths_of(tokens: &[String], module: &[String]) -> Vec<Named> {
    let mut paths = Vec::new();
    let mut position = 0;
    // The brace depth outside of which a test item ends, once it has begun.
    let mut depth = 0usize;
    let mut test_depth = None;
    while let Some(token) = tokens.get(position) {
        let is_test = test_depth.is_some();
        match token.as_str() {
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                if test_depth == Some(depth) {
                    test_depth = None;
                }
            }
            ";" if test_depth == Some(depth) => test_depth = None,
            "#" if tokens
                .get(position + 1..position + 6)
                .is_some_and(|t| t == ["[", "cfg", "(", "test", ")"]) =>
            {
                test_depth = test_depth.or(Some(depth));
            }
            // Not the `use<…>` that names what an `impl Trait` captures.
            "use" if tokens.get(position + 1).is_some_and(|next| next != "<") => {
                position += 1;
                for segments in use_tree(tokens, &mut position, &[]) {
                    paths.push(Named {
                        segments: resolved(segments, module),
                        is_test,
                    });
                }
                continue;
            }
            word if is_word(word) => {
                let mut segments = vec![word.to_owned()];
                while tokens.get(position + 1).is_some_and(|next| next == "::")
                    && let Some(next) = tokens.get(position + 2).filter(|next| is_word(next))
                {
                    segments.push(next.clone());
                    position += 2;
                }
                if segments.len() > 1 {
                    paths.push(Named {
                        segments: resolved(segments, module),
                        is_test,
                    });
                }
            }
            _ => {}
        }
        position += 1;
    }
    paths
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// The paths of the `use` tree at `position`, which is moved behind it.
fn use_tree(tokens: &[String], position: &mut usize, prefix: &[String]) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    let mut path = prefix.to_vec();
    while let Some(token) = tokens.get(*position) {
        match token.as_str() {
            "::" => {}
            "as" => *position += 1,
            "{" => {
                *position += 1;
                while tokens
                    .get(*position)
                    .is_some_and(|token| token != "}" && token != ";")
                {
                    paths.extend(use_tree(tokens, position, &path));
                    if tokens.get(*position).is_some_and(|token| token == ",") {
                        *position += 1;
                    }
                }
                *position += 1;
                return paths;
            }
            "," | "}" | ";" => break,
            word => path.push(word.to_owned()),
        }
        *position += 1;
    }
    paths.push(path);
    paths
}

/// With `self` and `super` replaced. Paths inside of an inline module resolve one level too far up, which only a
/// `super::super` could tell.
fn resolved(segments: Vec<String>, module: &[String]) -> Vec<String> {
    let mut base: Option<Vec<String>> = None;
    let mut rest = segments.as_slice();
    while let [first, behind @ ..] = rest {
        match first.as_str() {
            "self" => base = base.or_else(|| Some(module.to_vec())),
            "super" => {
                let mut parent = base.unwrap_or_else(|| module.to_vec());
                parent.pop();
                base = Some(parent);
            }
            _ => break,
        }
        rest = behind;
    }
    match base {
        Some(base) => [&["crate".to_owned()], base.as_slice(), rest].concat(),
        None => segments,
    }
}

#[test]
fn breaches_are_found() {
    for (name, source, found) in [
        (
            "src/amqp/frame.rs",
            "use crate::endpoint::session::Session;",
            "amqp may not know endpoint",
        ),
        (
            "src/amqp/frame.rs",
            "use super::super::router::Router;",
            "amqp may not know router",
        ),
        (
            "src/endpoint/mod.rs",
            "use crate::{amqp, router::{self, table}};",
            "endpoint may not know router",
        ),
        (
            "src/router/pair.rs",
            "fn f() { crate::shard::spawn() }",
            "router may not know shard",
        ),
        (
            "src/config/load.rs",
            "use crate::amqp::codes;",
            "config may not know amqp",
        ),
        (
            "src/shard/mod.rs",
            "use crate::config::Config;",
            "shard may not know config",
        ),
        (
            "src/main.rs",
            "use linkrouterd::router::Router;",
            "main may not know router",
        ),
        (
            "src/amqp/mod.rs",
            "use std::{fmt, io::Read};",
            "no input or output",
        ),
        (
            "src/router/mod.rs",
            "fn f() { let now = Instant::now(); }",
            "no input or output",
        ),
        (
            "src/router/mod.rs",
            "fn f() { let now = std::time::Instant::now(); }",
            "no input or output",
        ),
        (
            "src/router/mod.rs",
            "use std::time::{Duration, SystemTime};",
            "no input or output",
        ),
        (
            "src/endpoint/link.rs",
            "async fn f(s: tokio::net::TcpStream) {}",
            "no input or output",
        ),
        (
            "src/router/mod.rs",
            "#[cfg(test)] mod tests { } fn f() { Instant::now(); }",
            "no input or output",
        ),
        (
            "src/shard/dial.rs",
            "use rustls::pki_types::ServerName;",
            "TLS types",
        ),
        (
            "src/daemon/run.rs",
            "fn f() { rustls_pemfile::certs(r) }",
            "TLS types",
        ),
        (
            "src/shard/upstream.rs",
            "use tokio_rustls::client::TlsStream;",
            "TLS types",
        ),
        (
            "src/router/mod.rs",
            "use std::sync::{Arc, Mutex};",
            "waits for no other thread",
        ),
        (
            "src/shard/driver.rs",
            "fn f() { std::sync::atomic::AtomicU64::new(0); }",
            "waits for no other thread",
        ),
        ("src/plugins/mod.rs", "", "no room plugins"),
        ("src/amqp/utils.rs", "", "says nothing"),
        ("src/amqp/frame.rs", &"\n".repeat(601), "601 lines"),
    ] {
        let breaches = breaches_of(name, source);
        assert!(
            breaches.iter().any(|breach| breach.contains(found)),
            "{name}: {source}: {breaches:?}"
        );
    }
}

#[test]
fn what_is_in_order_is_left_alone() {
    for (name, source) in [
        (
            "src/amqp/frame.rs",
            "use super::serial::Channel; use std::fmt; // crate::router::Router",
        ),
        (
            "src/amqp/frame.rs",
            "/* tokio::spawn */ const A: &str = \"crate::router::X\"; const B: char = '\"';",
        ),
        (
            "src/amqp/frame.rs",
            "const A: &str = r#\"tokio::net \" crate::shard::X\"#; fn f<'a>(a: &'a str) {}",
        ),
        (
            "src/router/mod.rs",
            "use crate::{amqp::frame, endpoint}; use std::time::{Duration, Instant};",
        ),
        (
            "src/router/mod.rs",
            "#[cfg(test)] mod tests { use super::*; fn f() { Instant::now(); } }",
        ),
        (
            "src/shard/tls.rs",
            "use rustls::ClientConfig; use tokio_rustls::TlsConnector;",
        ),
        (
            "src/shard/mod.rs",
            "use tokio::net::TcpListener; use crate::router::Router; use self::tls::Dialer;",
        ),
        (
            "src/daemon/build.rs",
            "use crate::config::Listener; use crate::router::settings;",
        ),
        (
            "src/shard/tls/verify.rs",
            "use std::sync::{Arc, OnceLock}; #[cfg(test)] mod tests { use std::sync::Mutex; }",
        ),
        ("src/daemon/logging.rs", "use std::sync::Mutex;"),
        ("src/main.rs", "use linkrouterd::{cli::Arguments, daemon};"),
        (
            "src/shard/mod.rs",
            "fn f(a: &A) -> impl B + use<'_> { let b = 1; { b } }",
        ),
        (
            "tests/codec/golden.rs",
            "use linkrouterd::amqp::frame::Frame; use std::fs;",
        ),
    ] {
        assert_eq!(
            breaches_of(name, source),
            Vec::<String>::new(),
            "{name}: {source}"
        );
    }
}
