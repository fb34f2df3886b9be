//! Links between documents lead to files that are there, and to headings in them.

use std::collections::BTreeSet;
use std::path::Path;

use super::{documents, read, root};

/// The text of a document without its fenced blocks and its code spans, which hold no links.
fn prose(document: &str) -> String {
    let text = read(document);
    let outside = text.split("```").step_by(2).collect::<String>();
    outside.split('`').step_by(2).collect()
}

/// `[text](target)` and `![text](target)`.
fn targets(prose: &str) -> Vec<&str> {
    let behind = prose.split("](").skip(1);
    behind.filter_map(|rest| rest.split(')').next()).collect()
}

/// The anchors of a document's headings: in lower case, letters, digits, hyphens and underscores, blanks as hyphens.
fn anchors(document: &str) -> BTreeSet<String> {
    let text = read(document);
    let outside = text.split("\n```").step_by(2).collect::<Vec<_>>().join("\n");
    let headings = outside
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| line.trim_start_matches('#').trim());
    headings
        .map(|heading| {
            let kept = heading.chars().filter_map(|c| match c {
                ' ' => Some('-'),
                c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c.to_ascii_lowercase()),
                _ => None,
            });
            kept.collect()
        })
        .collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    let mut count = 0;
    for document in documents() {
        let prose = prose(&document);
        let folder = Path::new(&document).parent().unwrap_or(Path::new(""));
        for target in targets(&prose)
            .into_iter()
            .filter(|target| !target.contains("://"))
        {
            count += 1;
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = match path {
                "" => document.clone(),
                path => folder.join(path).to_string_lossy().into_owned(),
            };
            if !root().join(&file).exists() {
                broken.push(format!("{document}: no file {target}"));
            } else if !anchor.is_empty() && !anchors(&file).contains(anchor) {
                broken.push(format!("{document}: no heading {target}"));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
    assert!(count > 20, "only {count} links found");
}

#[test]
fn every_document_can_be_reached_from_the_readme() {
    let mut reached = BTreeSet::from(["README.md".to_owned()]);
    let mut next = vec!["README.md".to_owned()];
    while let Some(document) = next.pop() {
        let prose = prose(&document);
        let folder = Path::new(&document).parent().unwrap_or(Path::new(""));
        for target in targets(&prose) {
            let path = folder.join(target.split('#').next().unwrap_or_default());
            let Ok(path) = root().join(path).canonicalize() else {
                continue;
            };
            let Ok(name) = path.strip_prefix(root().canonicalize().expect("the root")) else {
                continue;
            };
            let name = name.to_string_lossy().into_owned();
            if name.ends_with(".md") && reached.insert(name.clone()) {
                next.push(name);
            }
        }
    }
    let lost: Vec<String> = documents()
        .into_iter()
        .filter(|document| !reached.contains(document))
        // Those lead to each other, and those become manual pages.
        .filter(|document| {
            !["docs/decisions/", "docs/man/"]
                .iter()
                .any(|folder| document.starts_with(folder))
        })
        .collect();
    assert!(lost.is_empty(), "nothing leads to {lost:?}");
}
