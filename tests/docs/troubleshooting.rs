//! `docs/troubleshooting.md` and the source say the same: what the page quotes is in the source, and what the source logs
//! as a warning or an error, or refuses a device with, is on the page.

use std::collections::BTreeSet;

use super::{code_spans, files, read};

const PAGE: &str = "docs/troubleshooting.md";

/// A quotation or a text is told by a run of this many characters without a placeholder; shorter ones tell nothing.
const TELLING: usize = 12;

/// Where a text is given to that goes into the log as a warning or worse, or to a device as an error.
const CALLS: [&str; 7] = [
    "warn!",
    "error!",
    ".complain",
    "AmqpError::new",
    ".unreachable_error",
    ".lost_error",
    "#[error",
];
/// Errors of these say why a frame is malformed, or what is wrong in detail behind a text that is on the page.
const DETAILS: [&str; 4] = [
    "src/amqp/",
    "src/config/",
    "src/router/identity/token.rs",
    "src/shard/passwords.rs",
];
/// Files that explain: what they write is on the page, too.
const EXPLAINING: [(&str, &str); 4] = [
    ("src/shard/tls/explain.rs", "write!"),
    ("src/shard/tls/explain.rs", "f.write_str"),
    ("src/shard/dial.rs", "write!"),
    ("src/router/identity/diagnosis.rs", "format!"),
];

/// A string literal of the source.
struct Literal {
    place: String,
    file: String,
    text: String,
    /// The calls and attributes that it stands in, from the outermost.
    calls: Vec<String>,
}

impl Literal {
    /// The longest run between placeholders.
    fn telling(&self) -> Option<&str> {
        fragments(&self.text, '{', '}')
            .into_iter()
            .max_by_key(|fragment| fragment.len())
            .filter(|fragment| fragment.len() >= TELLING)
    }

    fn is_wanted(&self) -> bool {
        let is_in = |name: &str| self.calls.iter().any(|call| call == name);
        let is_detail = DETAILS.iter().any(|detail| self.file.starts_with(detail));
        let explains = |&(file, call): &(&str, &str)| self.file == file && is_in(call);
        (!is_detail && CALLS.iter().any(|call| is_in(call))) || EXPLAINING.iter().any(explains)
    }
}

/// What is between placeholders, without quotation marks and punctuation at the ends.
fn fragments(text: &str, open: char, close: char) -> Vec<&str> {
    let pieces = text.split(open).enumerate().map(|(index, piece)| match index {
        0 => piece,
        _ => piece.split_once(close).map_or(piece, |(_, behind)| behind),
    });
    pieces
        .map(|piece| piece.trim_matches(|c: char| !c.is_alphanumeric() && c != '$'))
        .collect()
}

/// All string literals of the program, without those of its tests.
fn literals() -> Vec<Literal> {
    let sources = files("src", "rs").into_iter();
    sources
        .filter(|file| !file.ends_with("/tests.rs") && !file.contains("/tests/"))
        .flat_map(|file| {
            let source = read(&file);
            let program = source.split("mod tests {").next().unwrap_or(&source);
            literals_of(&file, program)
        })
        .collect()
}

fn literals_of(file: &str, source: &str) -> Vec<Literal> {
    let mut literals = Vec::new();
    let mut calls: Vec<String> = Vec::new();
    let mut line = 1;
    let mut characters = source.char_indices().peekable();
    while let Some((at, c)) = characters.next() {
        match c {
            '\n' => line += 1,
            '/' if source[at..].starts_with("//") => {
                while characters.peek().is_some_and(|(_, c)| *c != '\n') {
                    characters.next();
                }
            }
            // A character literal that would open something. Lifetimes have no second mark.
            '\'' if ["'\"'", "'('", "')'", "'\\''"]
                .iter()
                .any(|it| source[at..].starts_with(it)) =>
            {
                while characters.next().is_some_and(|(_, c)| c == '\\') {
                    characters.next();
                }
                characters.next();
            }
            '(' => calls.push(name_before(&source[..at])),
            ')' => {
                calls.pop();
            }
            '"' => {
                let begun = line;
                let mut text = String::new();
                while let Some((_, c)) = characters.next().filter(|(_, c)| *c != '"') {
                    match c {
                        '\\' => match characters.next() {
                            Some((_, '\n')) => {
                                line += 1;
                                while characters.peek().is_some_and(|(_, c)| *c == ' ') {
                                    characters.next();
                                }
                            }
                            Some((_, escaped)) => text.push(escaped),
                            None => {}
                        },
                        '\n' => line += 1,
                        other => text.push(other),
                    }
                }
                literals.push(Literal {
                    place: format!("{file}:{begun}"),
                    file: file.to_owned(),
                    text,
                    calls: calls.clone(),
                });
            }
            _ => {}
        }
    }
    literals
}

/// The name that stands before a parenthesis, with its path, or the dot of a method, or `#[`.
fn name_before(source: &str) -> String {
    let is_name = |c: char| c.is_alphanumeric() || "_:!.#[".contains(c);
    let name: String = source.chars().rev().take_while(|&c| is_name(c)).collect();
    let name: String = name.chars().rev().collect();
    // Of a chain of calls the last one.
    match name.rfind('.') {
        Some(dot) if name.starts_with("f.") => name[dot - 1..].to_owned(),
        Some(dot) => name[dot..].to_owned(),
        None => name.trim_start_matches("tracing::").to_owned(),
    }
}

/// The rows of the page's tables, with their line numbers.
fn rows(page: &str) -> impl Iterator<Item = (usize, &str)> {
    page.lines()
        .enumerate()
        .filter(|(_, line)| line.starts_with('|') && !line.starts_with("|---"))
        .map(|(index, line)| (index + 1, line))
}

fn quoted(text: &str) -> impl Iterator<Item = String> {
    code_spans(text).flat_map(|span| {
        let pieces = span.split('…').map(|piece| {
            piece
                .trim_matches(|c: char| !c.is_alphanumeric() && c != '$')
                .to_owned()
        });
        pieces.collect::<Vec<_>>()
    })
}

#[test]
fn what_the_page_quotes_is_in_the_source() {
    let page = read(PAGE);
    let literals = literals();
    let mut unknown = Vec::new();
    let mut count = 0;
    for (line, row) in rows(&page) {
        // The third column says what to do, in other words than the source's.
        let told = row.splitn(4, " | ").take(2).collect::<Vec<_>>().join(" | ");
        for piece in quoted(&told).filter(|piece| piece.len() >= TELLING && piece.matches(' ').count() > 1) {
            count += 1;
            let is_known = |literal: &Literal| literal.text.contains(piece.as_str());
            if !literals.iter().any(is_known) {
                unknown.push(format!("{PAGE}:{line}: not in the source: {piece}"));
            }
        }
    }
    assert!(unknown.is_empty(), "\n{}\n", unknown.join("\n"));
    assert!(count > 100, "only {count} quotations");
}

#[test]
fn what_the_source_warns_of_is_on_the_page() {
    let page = read(PAGE);
    let quoted: BTreeSet<String> = rows(&page)
        .flat_map(|(_, row)| quoted(row).collect::<Vec<_>>())
        .filter(|piece| piece.len() >= TELLING)
        .collect();
    let mut missing = Vec::new();
    let mut count = 0;
    for literal in literals().iter().filter(|literal| literal.is_wanted()) {
        let Some(telling) = literal.telling() else {
            continue;
        };
        count += 1;
        if !quoted.iter().any(|piece| literal.text.contains(piece.as_str())) {
            missing.push(format!("{}: not on the page: {telling}", literal.place));
        }
    }
    assert!(missing.is_empty(), "\n{}\n", missing.join("\n"));
    assert!(count > 80, "only {count} texts found");
}

#[test]
fn literals_are_found_with_the_calls_they_stand_in() {
    let source = "fn f(f: &mut F) { // \"no\"\n    tracing::warn!(target: \"T\", \"a {x} b \\\n       c \\\" d\");\n    \
                  f.write_str(match c { '\"' => \"e\", _ => \"\" });\n    entry.complain(&format!(\"g\"));\n}\n\
                  #[error(\"h {0}\")]\nconst A: &str = \"i\";";
    let found: Vec<(String, String)> = literals_of("x.rs", source)
        .into_iter()
        .map(|literal| (literal.text, literal.calls.join(" ")))
        .collect();
    let wanted = [
        ("T", "warn!"),
        ("a {x} b c \" d", "warn!"),
        ("e", "f.write_str"),
        ("", "f.write_str"),
        ("g", ".complain format!"),
        ("h {0}", "#[error"),
        ("i", ""),
    ];
    let wanted: Vec<(String, String)> = wanted
        .map(|(text, calls)| (text.to_owned(), calls.to_owned()))
        .into();
    assert_eq!(found, wanted);
}
