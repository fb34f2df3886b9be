//! The three inner rooms, which see the bytes of peers, do not panic: lints deny what is known to, and the calls of the
//! standard library that no lint knows are all here, each with what makes it safe.
//!
//! Arithmetic is not among them: a release wraps, and the tests, the simulation and the fuzz targets stop at an overflow.

use std::fs;
use std::path::Path;

/// Denied in each of [`super::SANS_IO`]. What nobody may write at all, `.clippy.toml` and `Cargo.toml` have.
const LINTS: [&str; 9] = [
    "clippy::cast_possible_truncation",
    "clippy::expect_used",
    "clippy::indexing_slicing",
    "clippy::panic",
    "clippy::string_slice",
    "clippy::todo",
    "clippy::unimplemented",
    "clippy::unreachable",
    "clippy::unwrap_used",
];

/// Panics for some arguments.
const CALLS: [&str; 24] = [
    ".split_at(",
    ".split_at_mut(",
    ".split_off(",
    ".split_to(",
    ".drain(",
    ".remove(",
    ".swap_remove(",
    ".swap(",
    ".insert_str(",
    ".replace_range(",
    ".copy_from_slice(",
    ".clone_from_slice(",
    ".copy_within(",
    ".rotate_left(",
    ".rotate_right(",
    ".chunks(",
    ".chunks_exact(",
    ".windows(",
    ".step_by(",
    ".clamp(",
    ".borrow_mut(",
    ".ilog",
    "assert",
    ".duration_since(",
];

/// File, what its line has, and why that never panics.
const SAFE: [(&str, &str, &str); 21] = [
    ("src/amqp/display.rs", ".windows(mark.len())", "no mark is empty"),
    (
        "src/amqp/originate.rs",
        "self.0.split_at(BEFORE_MORE)",
        "an array of more fields than that",
    ),
    (
        "src/endpoint/outbox.rs",
        ".drain(..self.start)",
        "what was written is a part of what there is",
    ),
    (
        "src/endpoint/window.rs",
        ".clamp(least, limits::UPSTREAM_WINDOW_FRAMES_MAX.max(least))",
        "the upper bound is the lower one or more",
    ),
    (
        "src/router/admission.rs",
        "(bytes / max_frame_size).clamp(1, frames.max(1))",
        "at least MIN_FRAME_SIZE; 1 or more",
    ),
    (
        "src/router/admission.rs",
        "(bytes / max_frame_size).max(1)",
        "at least MIN_MAX_FRAME_SIZE",
    ),
    (
        "src/router/cbs/grants.rs",
        "grants.drain(..grants.len() - kept)",
        "what is kept is some of them",
    ),
    (
        "src/router/cbs/grants.rs",
        "connector.tokens.remove(audience)",
        "a map",
    ),
    (
        "src/router/cbs/hub.rs",
        "self.unsettled.remove(place)",
        "where it has just been found, and of a VecDeque",
    ),
    (
        "src/router/cbs/request.rs",
        "rest.split_at(rest.find('/').unwrap_or(rest.len()))",
        "a place in the text, or its end",
    ),
    (
        "src/router/connection.rs",
        "limits::UPSTREAM_WINDOW_BYTES / frame_size(limits)",
        "at least MIN_MAX_FRAME_SIZE",
    ),
    ("src/router/drain.rs", "draining.len() / LOOKED_AT", "a constant"),
    ("src/router/eviction.rs", "self.0.remove(node)", "a map"),
    ("src/router/link_names.rs", "self.used.remove(name)", "a set"),
    ("src/router/link_names.rs", "self.suffixes.remove(base)", "a map"),
    (
        "src/router/local.rs",
        "self.queue.remove(place)",
        "where it has just been found, and of a VecDeque",
    ),
    (
        "src/router/mod.rs",
        "self.remove(key, reason, now)",
        "a function of ours",
    ),
    ("src/router/policy.rs", "users.remove(EVERYONE)", "a map"),
    ("src/router/policy.rs", "counts.remove(key)", "a map"),
    (
        "src/router/unanswered.rs",
        "pair.remnants.swap_remove(position)",
        "where it has just been found",
    ),
    (
        "src/router/waiting.rs",
        "connector.waiting.remove(place)",
        "a map",
    ),
];

#[test]
fn the_inner_rooms_deny_what_panics() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut faults = Vec::new();
    let mut used = vec![false; SAFE.len()];
    for room in super::SANS_IO {
        let files = super::rust_files(&root.join("src").join(room));
        for path in &files {
            let name = path.strip_prefix(root).expect("below the root").to_string_lossy();
            let source = fs::read_to_string(path).expect("a readable source file");
            if name.ends_with("tests.rs") {
                continue;
            }
            if name == format!("src/{room}/mod.rs") {
                let denied = source.split_once("#![deny(").map_or("", |(_, rest)| rest);
                let denied = denied.split(')').next().unwrap_or_default();
                let missing = LINTS.iter().filter(|lint| !denied.contains(*lint));
                faults.extend(missing.map(|lint| format!("{name}: does not deny {lint}")));
            }
            faults.extend(calls_of(&name, &source, &mut used));
        }
    }
    let unused = SAFE.iter().zip(used).filter(|(_, used)| !used);
    faults.extend(unused.map(|((file, text, _), _)| format!("{file}: has no `{text}` any more")));
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// The lines that may panic and are not in [`SAFE`], and those that take a lint back; up to a file's tests.
fn calls_of(name: &str, source: &str, used: &mut [bool]) -> Vec<String> {
    let mut faults = Vec::new();
    for line in source.lines().take_while(|line| line.trim() != "#[cfg(test)]") {
        let code = line.split("//").next().unwrap_or_default().trim();
        let takes_back = (code.contains("allow(") || code.contains("expect("))
            && LINTS.iter().any(|lint| code.contains(lint));
        // What is removed by reference is in a map or a set.
        let code_of_lists = code.replace(".remove(&", "");
        let calls = CALLS.iter().any(|call| code_of_lists.contains(call));
        let divides = [" / ", " % "].iter().any(|sign| {
            code.split(sign)
                .skip(1)
                .any(|divisor| !divisor.starts_with(|c: char| c.is_ascii_digit() && c != '0'))
        });
        if !(takes_back || calls || divides) {
            continue;
        }
        match SAFE
            .iter()
            .position(|(file, text, _)| *file == name && code.contains(text))
        {
            Some(index) => used[index] = true,
            None => faults.push(format!("{name}: {code}")),
        }
    }
    faults
}

#[test]
fn what_panics_is_found() {
    let found = |line: &str| calls_of("src/amqp/x.rs", line, &mut vec![false; SAFE.len()]);
    for line in [
        "let (a, b) = bytes.split_at(4);",
        "assert!(size > 0);",
        "#[allow(clippy::indexing_slicing)]",
        "let frames = bytes / size;",
        "let rest = bytes % 0;",
    ] {
        assert_eq!(found(line).len(), 1, "{line}");
    }
    for line in [
        "let half = bytes / 2;",
        "// assert!(true)",
        "let (a, b) = bytes.split_at_checked(4)?;",
        "#[cfg(test)]\nassert!(true);",
    ] {
        assert_eq!(found(line), Vec::<String>::new(), "{line}");
    }
}
