//! `docs/conformance.md` and `docs/threat-model.md` name tests; each of them is there.

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

/// Names of all functions of the project.
fn all_functions() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = BTreeSet::new();
    for folder in ["src", "tests"] {
        functions(&root.join(folder), &mut names);
    }
    names
}

fn document(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    fs::read_to_string(path).expect("a document")
}

#[test]
fn every_test_that_the_threat_model_names_exists() {
    let names = all_functions();
    let text = document("threat-model.md");
    let quoted = text.split('`').skip(1).step_by(2);
    let tests: Vec<&str> = quoted.filter(|name| name.matches('_').count() > 2).collect();
    assert!(tests.len() > 15, "only {} tests are named", tests.len());
    for test in tests {
        assert!(names.contains(test), "no such test: {test}");
    }
}

#[test]
fn every_test_that_the_table_names_exists() {
    let names = all_functions();
    let table = document("conformance.md");
    let rows = table
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| Rule"));
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
