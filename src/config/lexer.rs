//! The section notation of a `.conf` file: lines into sections and attributes.
//!
//! Reads every dialect of qdrouterd 0.6.0 to 1.19.0. A line is one of
//!
//! ```text
//! # comment            NAME {            NAME: VALUE            NAME: {            }
//! ```
//!
//! qdrouterd rewrites such lines to JSON and lets a JSON parser object; this reads them directly, so line numbers are
//! true and a value is what the line says. Total on any text: what cannot be read becomes a finding and reading goes
//! on with the next line. A finding about an unreadable line repeats nothing of it that could be a secret.

use serde_json::value::RawValue;

use super::entity;
use super::json::{self, Place};
use super::names::{normalise, quoted};
use super::report::Findings;
use super::source::{
    LineIndex, MAP_DEPTH, Raw, RawAttribute, Section, blank_comments, blank_spare_commas, json_error_text,
    number,
};

/// After this many unreadable lines the rest is not looked at: it is some other kind of file.
const MAX_SYNTAX_ERRORS: usize = 50;

/// Attributes whose value is the first run of non-blank characters, with any `#` in it (qdrouterd 1.0+).
const KEEPS_HASH: [&str; 3] = ["pattern", "bindingKey", "hostname"];

/// Entries of nested maps in whose lists a `#` is a token, not a comment, unless there are blanks around it.
const HASH_IS_TOKEN: [&str; 2] = ["sourcePattern", "targetPattern"];

/// Cuts the text into sections.
pub(super) fn read(text: &str, findings: &mut Findings) -> Vec<Section> {
    Lexer {
        lines: text.split('\n').collect(),
        index: LineIndex::new(text),
        json: blank_spare_commas(&blank_comments(text)),
        text,
        next: 0,
        syntax_errors: 0,
        bare_word: None,
        open: None,
        maps: Vec::new(),
        done: Vec::new(),
        findings,
    }
    .run()
}

struct Lexer<'a> {
    text: &'a str,
    lines: Vec<&'a str>,
    index: LineIndex,
    /// The same text without comments and spare commas, for JSON blocks.
    json: String,
    /// The line to read next, from zero.
    next: usize,
    syntax_errors: usize,
    /// A name alone on its line: a section if the next line is `{`.
    bare_word: Option<(&'a str, usize)>,
    open: Option<Section>,
    /// The nested maps in which we are, the innermost last.
    maps: Vec<OpenMap>,
    done: Vec<Section>,
    findings: &'a mut Findings,
}

/// A map of which the end has not come.
struct OpenMap {
    name: String,
    line: u32,
    entries: Vec<RawAttribute>,
}

impl<'a> Lexer<'a> {
    fn run(mut self) -> Vec<Section> {
        while let Some(raw) = self.lines.get(self.next).copied() {
            let at = self.next;
            self.next += 1;
            let line = raw.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if self.syntax_errors >= MAX_SYNTAX_ERRORS {
                self.findings.error(
                    number(at),
                    "too many unreadable lines: the rest of the file was not read",
                );
                return self.done;
            }
            self.line(at, line);
        }
        self.forget_bare_word();
        if let Some(section) = self.open.take() {
            let message = format!(
                "section {} is never closed: `}}` is missing",
                quoted(&section.name)
            );
            self.findings.error(section.line, message);
            self.done.push(section);
        }
        self.done
    }

    fn line(&mut self, at: usize, line: &'a str) {
        if let Some(rest) = line.strip_prefix('}') {
            self.forget_bare_word();
            if !is_blank_or_comment(rest) {
                self.syntax(at, "`}` must stand alone on its line".to_owned());
            }
            return self.close(at);
        }
        if let Some(rest) = line.strip_prefix('{') {
            return match self.bare_word.take() {
                Some((name, named_at)) if is_blank_or_comment(rest) => self.open(named_at, name),
                _ => self.syntax(at, "`{` must follow a section's name: `NAME {`".to_owned()),
            };
        }
        self.forget_bare_word();
        if !self.maps.is_empty() {
            return self.map_line(at, line);
        }
        let (word, rest) = split_word(line);
        if word.is_empty() {
            return self.unreadable(at, line);
        }
        match rest.chars().next() {
            Some('{') if is_blank_or_comment(&rest[1..]) => self.open(at, word),
            Some('{') => self.syntax(
                at,
                format!(
                    "after `{{` of section {} the line must end: one attribute per line",
                    quoted(word)
                ),
            ),
            Some(':') => self.attribute(at, word, rest[1..].trim()),
            None | Some('#') if self.open.is_none() => self.bare_word = Some((word, at)),
            _ => self.unreadable(at, line),
        }
    }

    fn open(&mut self, at: usize, name: &str) {
        self.maps.clear();
        if let Some(section) = self.open.take() {
            self.syntax(
                at,
                format!(
                    "section {} starts inside section {} of line {}: `}}` is missing before it",
                    quoted(name),
                    quoted(&section.name),
                    section.line
                ),
            );
            self.done.push(section);
        }
        self.open = Some(Section {
            name: name.to_owned(),
            line: number(at),
            attributes: Vec::new(),
        });
    }

    fn close(&mut self, at: usize) {
        if let Some(map) = self.maps.pop() {
            let depth = self.maps.len();
            return self.keep(
                depth,
                RawAttribute {
                    name: map.name,
                    line: map.line,
                    value: Raw::Map(map.entries),
                },
            );
        }
        match self.open.take() {
            Some(section) => self.done.push(section),
            None => self.syntax(at, "`}` closes nothing: no section is open here".to_owned()),
        }
    }

    /// Puts an attribute into the map that is open at this depth, or the section.
    fn keep(&mut self, depth: usize, attribute: RawAttribute) {
        let entries = match depth.checked_sub(1) {
            Some(index) if depth <= MAP_DEPTH => self.maps.get_mut(index).map(|map| &mut map.entries),
            Some(_) => None,
            None => self.open.as_mut().map(|section| &mut section.attributes),
        };
        if let Some(entries) = entries {
            entries.push(attribute);
        }
    }

    fn attribute(&mut self, at: usize, name: &'a str, rest: &'a str) {
        if self.open.is_none() {
            return self.syntax(
                at,
                format!("attribute {} stands outside any section", quoted(name)),
            );
        }
        let keeps_hash = KEEPS_HASH.contains(&normalise(name).as_str());
        let value = if rest.starts_with('{') && !keeps_hash {
            self.map(at, name, rest)
        } else if let Some(opened) = rest.strip_prefix('"') {
            self.quoted_value(at, name, opened)
        } else if keeps_hash {
            self.first_word(at, name, rest)
        } else {
            self.plain_value(at, name, rest)
        };
        if let Some(value) = value {
            let name = name.to_owned();
            let line = number(at);
            self.keep(0, RawAttribute { name, line, value });
        }
    }

    /// The rest of the line up to a `#`.
    fn plain_value(&mut self, at: usize, name: &str, rest: &str) -> Option<Raw> {
        let (kept, comment) = match rest.find('#') {
            Some(hash) => (&rest[..hash], true),
            None => (rest, false),
        };
        let value = kept.trim_end();
        if value.is_empty() {
            let hint = if comment {
                " (everything from `#` on is a comment)"
            } else {
                ""
            };
            self.syntax(at, format!("attribute {} has no value{hint}", quoted(name)));
            return None;
        }
        if comment && value.len() == kept.len() {
            let message = format!(
                "the value of {} ends before `#`, where a comment starts; write the value in double quotes to keep the `#`",
                quoted(name)
            );
            self.findings.warning(number(at), message);
        }
        if value.contains('\\') {
            let message = format!(
                "a backslash in the value of {} is taken as it is; qdrouterd took it for a JSON escape",
                quoted(name)
            );
            self.findings.warning(number(at), message);
        }
        Some(Raw::Text(value.to_owned()))
    }

    /// What stands between double quotes, `#` included. There are no escapes.
    fn quoted_value(&mut self, at: usize, name: &str, opened: &str) -> Option<Raw> {
        let Some((value, rest)) = opened.split_once('"') else {
            self.syntax(
                at,
                format!("the value of {} has no closing double quote", quoted(name)),
            );
            return None;
        };
        if !is_blank_or_comment(rest) {
            self.syntax(
                at,
                format!("text follows the closing double quote of {}", quoted(name)),
            );
            return None;
        }
        Some(Raw::Text(value.to_owned()))
    }

    /// The first run of non-blank characters, `#` included.
    fn first_word(&mut self, at: usize, name: &str, rest: &str) -> Option<Raw> {
        let (value, ignored) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        if value.is_empty() {
            self.syntax(at, format!("attribute {} has no value", quoted(name)));
            return None;
        }
        if !is_blank_or_comment(ignored) {
            let message = format!(
                "the value of {} ends at the first blank; the rest is ignored",
                quoted(name)
            );
            self.findings.warning(number(at), message);
        }
        Some(Raw::Text(value.to_owned()))
    }

    /// `NAME: {`: JSON if a quoted key follows (qdrouterd 1.13+), else lines of `name: value` (1.12), which are kept when
    /// the map is closed.
    fn map(&mut self, at: usize, name: &str, rest: &'a str) -> Option<Raw> {
        if is_blank_or_comment(&rest[1..]) && !self.quoted_key_follows() {
            self.open_map(at, name);
            return None;
        }
        // `rest` is a piece of `text`, so this is its offset there, and in `json` too.
        let start = rest.as_ptr().addr() - self.text.as_ptr().addr();
        let mut stream = serde_json::Deserializer::from_str(&self.json[start..]).into_iter::<&RawValue>();
        let place = Place::new(&self.json, &self.index);
        let outcome = stream
            .next()
            .map(|value| value.and_then(|value| json::raw(value, &place, MAP_DEPTH)));
        let end = start + stream.byte_offset();
        match outcome {
            Some(Ok(value)) => {
                let last = self.index.index_of(end.saturating_sub(1));
                self.next = last + 1;
                let line_end = self.index.start(last + 1).min(self.json.len());
                if !self.json[end..line_end].trim().is_empty() {
                    self.syntax(last, format!("text follows the closing `}}` of {}", quoted(name)));
                }
                value
            }
            Some(Err(error)) => {
                let line = at + error.line().saturating_sub(1);
                let line = line.min(self.lines.len() - 1);
                self.syntax(
                    line,
                    format!(
                        "the JSON of {} is wrong: {}",
                        quoted(name),
                        json_error_text(&error)
                    ),
                );
                self.skip_block(at);
                None
            }
            None => None,
        }
    }

    /// Whether the next line with anything on it starts with a double quote.
    fn quoted_key_follows(&self) -> bool {
        let mut following = self.lines.iter().skip(self.next).map(|line| line.trim());
        following
            .find(|line| !line.is_empty() && !line.starts_with('#'))
            .is_some_and(|line| line.starts_with('"'))
    }

    /// Goes on behind a broken JSON block, by counting the braces of its lines.
    fn skip_block(&mut self, at: usize) {
        let mut depth = 0_usize;
        for (index, line) in self.json.split('\n').enumerate().skip(at) {
            depth += line.matches('{').count();
            depth = depth.saturating_sub(line.matches('}').count());
            self.next = index + 1;
            if depth == 0 {
                break;
            }
        }
    }

    fn open_map(&mut self, at: usize, name: &str) {
        self.maps.push(OpenMap {
            name: name.to_owned(),
            line: number(at),
            entries: Vec::new(),
        });
    }

    /// A line of a nested map.
    fn map_line(&mut self, at: usize, line: &'a str) {
        let (word, rest) = split_word(line);
        if rest.starts_with('{') && !word.is_empty() {
            return self.open(at, word);
        }
        match line.split_once(':') {
            Some((key, value)) if !key.trim().is_empty() => {
                let value = value.trim();
                let key = key.trim();
                let keeps_hash =
                    KEEPS_HASH.contains(&key) || HASH_IS_TOKEN.contains(&normalise(key).as_str());
                if value.starts_with('{') && is_blank_or_comment(&value[1..]) {
                    self.open_map(at, key);
                } else if is_blank_or_comment(value) && !keeps_hash {
                    self.syntax(at, "an entry of a nested map has no value".to_owned());
                } else {
                    let text = entry_text(value, keeps_hash).to_owned();
                    let entry = RawAttribute {
                        name: key.to_owned(),
                        line: number(at),
                        value: Raw::Text(text),
                    };
                    self.keep(self.maps.len(), entry);
                }
            }
            _ => self.unreadable(at, line),
        }
    }

    fn forget_bare_word(&mut self) {
        if let Some((word, at)) = self.bare_word.take() {
            self.unreadable(at, word);
        }
    }

    /// A line that has none of the forms. It may be a piece of a password, so only a word that we know is repeated.
    fn unreadable(&mut self, at: usize, line: &str) {
        let (word, rest) = split_word(line);
        let shown = if word.is_empty() || !entity::is_nearly_known(word) {
            "this line".to_owned()
        } else if rest.is_empty() {
            quoted(word)
        } else {
            format!("`{word} …`")
        };
        self.syntax(
            at,
            format!("cannot read {shown}: expected `NAME: VALUE`, `NAME {{` or `}}`"),
        );
    }

    fn syntax(&mut self, at: usize, message: String) {
        self.syntax_errors += 1;
        self.findings.error(number(at), message);
    }
}

/// The name a line starts with, and the rest of it without leading blanks.
fn split_word(line: &str) -> (&str, &str) {
    let is_name = |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | '-' | '.');
    let end = line.find(|character| !is_name(character)).unwrap_or(line.len());
    let (word, rest) = line.split_at(end);
    (word, rest.trim_start())
}

/// The value of an entry of a nested map: without quotes, and without the comment behind it.
fn entry_text(value: &str, keeps_hash: bool) -> &str {
    if let Some((quoted, _)) = value.strip_prefix('"').and_then(|rest| rest.split_once('"')) {
        return quoted;
    }
    let comment = if keeps_hash {
        value.find(" # ")
    } else {
        value.find('#')
    };
    value[..comment.unwrap_or(value.len())].trim_end()
}

fn is_blank_or_comment(text: &str) -> bool {
    let text = text.trim_start();
    text.is_empty() || text.starts_with('#')
}
