//! `docs/architecture.svg` is well-formed, stands alone, and can be read.

use super::read;

/// Smallest size of letters, in pixels of the drawing.
const SMALLEST: u32 = 11;

#[test]
fn the_picture_is_well_formed_and_stands_alone() {
    let svg = read("docs/architecture.svg");
    let mut open: Vec<&str> = Vec::new();
    let mut rest = svg.as_str();
    while let Some((_, tag)) = rest.split_once('<') {
        if let Some(comment) = tag.strip_prefix("!--") {
            rest = comment.split_once("-->").expect("the end of a comment").1;
            continue;
        }
        let (tag, behind) = tag.split_once('>').expect("the end of a tag");
        assert_eq!(tag.matches('"').count() % 2, 0, "<{tag}>");
        let name = tag
            .trim_start_matches('/')
            .split([' ', '\n', '/'])
            .next()
            .unwrap_or_default();
        match (tag.starts_with('/'), tag.ends_with('/')) {
            (true, _) => assert_eq!(open.pop(), Some(name), "<{tag}>"),
            (false, false) => open.push(name),
            (false, true) => {}
        }
        rest = behind;
    }
    assert!(open.is_empty(), "{open:?} have no end");
    assert!(svg.contains("viewBox=") && svg.contains("prefers-color-scheme: dark"));
    for alien in ["<script", "href=", "@import", "url(", "<image"] {
        assert!(!svg.contains(alien), "{alien}");
    }
}

#[test]
fn no_letter_of_the_picture_is_too_small() {
    let svg = read("docs/architecture.svg");
    let sizes = ["font-size: ", "font-size=\""].map(|mark| svg.split(mark).skip(1).collect::<Vec<_>>());
    let sizes: Vec<u32> = sizes
        .concat()
        .into_iter()
        .map(|rest| {
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
            digits.and_then(|digits| digits.parse().ok()).expect("a size")
        })
        .collect();
    assert!(
        sizes.len() > 2 && sizes.iter().all(|size| *size >= SMALLEST),
        "{sizes:?}"
    );
}
