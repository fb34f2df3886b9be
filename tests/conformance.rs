//! `docs/conformance.md`, `docs/azure-clients.md`, `docs/hub-stand-in.md` and `docs/threat-model.md` name tests; each of them is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Names of all functions in the sources below `folder`: Rust, and the Python of the interop scenarios.
fn functions(folder: &Path, names: &mut BTreeSet<String>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            if !path.ends_with("node_modules") && !path.ends_with("target") {
                functions(&path, names);
            }
            continue;
        }
        let marker = match path.extension().and_then(|extension| extension.to_str()) {
            Some("rs") => "fn ",
            Some("py") => "def ",
            _ => continue,
        };
        let source = fs::read_to_string(&path).expect("a readable source file");
        let declarations = source.lines().filter_map(|line| line.split_once(marker));
        names.extend(
            declarations
                .filter_map(|(_, rest)| rest.split(['(', '<']).next())
                .map(str::to_owned),
        );
    }
}

/// Names of all tests, and other functions.
fn names() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for folder in ["src", "tests"] {
        functions(&root().join(folder), &mut names);
    }
    names
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The rows of a document's tables, cell by cell, below a header that begins with one of these words.
fn rows(document: &str, headers: &[&str]) -> Vec<Vec<String>> {
    let text = fs::read_to_string(root().join(document)).expect("the document");
    let mut rows = Vec::new();
    let mut is_wanted = false;
    let mut is_first = true;
    for line in text.lines() {
        let Some(row) = line.strip_prefix('|').and_then(|row| row.strip_suffix('|')) else {
            (is_wanted, is_first) = (false, true);
            continue;
        };
        let cells: Vec<String> = row.split(" | ").map(|cell| cell.trim().to_owned()).collect();
        if is_first {
            is_wanted = headers.contains(&cells[0].as_str());
        } else if is_wanted && !row.starts_with("---") {
            rows.push(cells);
        }
        is_first = false;
    }
    rows
}

/// Asserts that each of these cells names tests, and only such as there are; gives how many.
fn check(cells: &[&String]) -> usize {
    let names = names();
    let mut missing = Vec::new();
    let mut count = 0;
    for cell in cells {
        let tests: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        if tests.is_empty() {
            missing.push(format!("no test: {cell}"));
        }
        count += tests.len();
        let unknown = tests.iter().filter(|&&name| !names.contains(name));
        missing.extend(unknown.map(|name| format!("no such test: {name}")));
    }
    assert!(missing.is_empty(), "\n{}\n", missing.join("\n"));
    count
}

#[test]
fn every_rule_names_tests_that_exist() {
    let rows = rows("docs/conformance.md", &["Rule"]);
    let shown: Vec<&String> = rows.iter().filter_map(|row| row.last()).collect();
    let count = check(&shown);
    assert!(count > 50, "only {count} tests are named");
}

#[test]
fn every_behaviour_of_every_azure_client_names_tests_that_exist() {
    let rows = rows("docs/azure-clients.md", &["Client", "Together"]);
    let shown: Vec<&String> = rows.iter().flat_map(|row| row.iter().skip(1)).collect();
    let count = check(&shown);
    assert!(count > 30, "only {count} tests are named");
    let clients = self::rows("docs/azure-clients.md", &["Library"]).len();
    assert!(clients >= 7, "only {clients} clients are described");
}

#[test]
fn every_behaviour_of_the_hub_stand_in_names_tests_that_exist() {
    let rows = rows("docs/hub-stand-in.md", &["Behaviour"]);
    let shown: Vec<&String> = rows.iter().filter_map(|row| row.last()).collect();
    assert!(check(&shown) >= 20, "fewer tests than behaviours");
}

#[test]
fn every_claim_of_the_threat_model_names_tests_that_exist() {
    let rows = rows("docs/threat-model.md", &["Protected"]);
    let shown: Vec<&String> = rows.iter().filter_map(|row| row.last()).collect();
    let count = check(&shown);
    assert!(count > 10, "only {count} tests are named");
}

/// Names of tests in running text, told by their many underscores.
#[test]
fn every_test_named_in_passing_exists() {
    let names = names();
    let mut missing = Vec::new();
    let mut count = 0;
    for entry in fs::read_dir(root().join("docs")).expect("the documents") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a document");
        let spans = text.split('`').skip(1).step_by(2);
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        for name in spans.filter(|span| span.chars().all(is_name) && span.matches('_').count() > 3) {
            count += 1;
            if !names.contains(name) {
                missing.push(format!("{}: no such test: {name}", path.display()));
            }
        }
    }
    assert!(missing.is_empty(), "\n{}\n", missing.join("\n"));
    assert!(count > 100, "only {count} names found");
}
