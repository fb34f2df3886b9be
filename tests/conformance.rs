//! `docs/conformance.md` and `docs/hub-stand-in.md` name tests; each of them is there.

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

#[test]
fn every_test_that_the_table_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = BTreeSet::new();
    for folder in ["src", "tests"] {
        functions(&root.join(folder), &mut names);
    }
    let table = ["docs/conformance.md", "docs/hub-stand-in.md"]
        .map(|name| fs::read_to_string(root.join(name)).expect("the table"))
        .concat();
    let rows = table.lines().filter(|line| {
        line.starts_with("| ") && !line.starts_with("| Rule") && !line.starts_with("| Behaviour")
    });
    let mut missing = Vec::new();
    let mut count = 0;
    for row in rows {
        let shown = row
            .trim_end_matches([' ', '|'])
            .rsplit_once(" | ")
            .map_or("", |(_, shown)| shown);
        let tests: Vec<&str> = shown.split('`').skip(1).step_by(2).collect();
        if tests.is_empty() {
            missing.push(format!("no test: {row}"));
        }
        count += tests.len();
        missing.extend(
            tests
                .iter()
                .filter(|&&name| !names.contains(name))
                .map(|name| format!("no such test: {name}")),
        );
    }
    assert!(count > 50, "only {count} tests are named");
    assert!(missing.is_empty(), "\n{}\n", missing.join("\n"));
}
