//! One event as one line of text.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};

use super::level::Level;

/// Longest TEXT in bytes, as in qdrouterd 1.19.
pub(super) const TEXT_MAX: usize = 2047;
/// Shows that a text was cut.
const CUT: &str = "...";
/// The field that carries a level which `tracing` lacks.
pub(super) const SEVERITY_FIELD: &str = "severity";
/// What a signature stands behind in a SAS token, and a key in a connection string.
const BEFORE_SECRETS: [&[u8]; 3] = [b"sig=", b"sig%3D", b"SharedAccessKey="];
/// Shows that there was one.
const HIDDEN: &str = "<hidden>";
/// The field of an event's message.
const MESSAGE_FIELD: &str = "message";

/// Finds an event's `severity` field.
#[derive(Default)]
pub(super) struct SeverityVisitor {
    pub(super) level: Option<Level>,
}

impl Visit for SeverityVisitor {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == SEVERITY_FIELD {
            self.level = Level::from_severity(value);
        }
    }

    fn record_debug(&mut self, _field: &Field, _value: &dyn fmt::Debug) {}
}

/// Appends an event's TEXT to a line: the message, then the other fields as ` key=value`.
pub(super) fn write_text(event: &tracing::Event<'_>, line: &mut String) {
    let mut text = Text {
        start: line.len(),
        line,
    };
    let whole = write_fields(event, &mut text);
    text.finish(whole);
}

fn write_fields(event: &tracing::Event<'_>, text: &mut Text<'_>) -> fmt::Result {
    // Two passes, because the order of the fields is the caller's.
    for part in [Part::Message, Part::Others] {
        let mut visitor = TextVisitor {
            part,
            text: &mut *text,
            result: Ok(()),
        };
        event.record(&mut visitor);
        visitor.result?;
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Message,
    Others,
}

struct TextVisitor<'a, 'line> {
    part: Part,
    text: &'a mut Text<'line>,
    result: fmt::Result,
}

impl TextVisitor<'_, '_> {
    fn record(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let part = if field.name() == MESSAGE_FIELD {
            Part::Message
        } else {
            Part::Others
        };
        if part != self.part || self.result.is_err() || field.name() == SEVERITY_FIELD {
            return;
        }
        self.result = match part {
            Part::Message => self.text.write_fmt(value),
            Part::Others => write!(self.text, " {}={value}", field.name()),
        };
    }
}

impl Visit for TextVisitor<'_, '_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        // Quoted only where it would not read as one word.
        let plain = !value.is_empty() && !value.contains(|c: char| c.is_whitespace() || c == '"' || c == '=');
        if plain || field.name() == MESSAGE_FIELD {
            self.record(field, format_args!("{value}"));
        } else {
            self.record(field, format_args!("{value:?}"));
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record(field, format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record(field, format_args!("{value:?}"));
    }
}

/// A writer that escapes what could forge or hide a line, and that fails once [`TEXT_MAX`] is reached, so that
/// nobody goes on formatting a giant.
struct Text<'a> {
    line: &'a mut String,
    start: usize,
}

impl Text<'_> {
    fn room(&self) -> usize {
        (self.start + TEXT_MAX).saturating_sub(self.line.len())
    }

    fn push(&mut self, piece: &str) -> fmt::Result {
        if piece.len() <= self.room() {
            self.line.push_str(piece);
            return Ok(());
        }
        let end = char_boundary(piece, self.room());
        self.line.push_str(piece.get(..end).unwrap_or_default());
        Err(fmt::Error)
    }

    fn finish(mut self, whole: fmt::Result) {
        if whole.is_err() {
            self.mark_cut();
        }
        hide_secrets(self.line, self.start);
    }

    fn mark_cut(&mut self) {
        let end = char_boundary(self.line, self.start + TEXT_MAX - CUT.len());
        self.line.truncate(end);
        self.line.push_str(CUT);
    }
}

impl Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some((at, unsafe_char)) = rest.char_indices().find(|(_, c)| is_unsafe(*c)) {
            let (plain, tail) = rest.split_at(at);
            self.push(plain)?;
            let mut escape = String::new();
            write_escape(unsafe_char, &mut escape)?;
            self.push(&escape)?;
            rest = tail.get(unsafe_char.len_utf8()..).unwrap_or_default();
        }
        self.push(rest)
    }
}

/// Makes foreign text fit for one line of output, as the log shows it.
pub(in crate::daemon) fn one_line(text: &str) -> String {
    let mut line = String::new();
    let mut out = Text {
        start: 0,
        line: &mut line,
    };
    let whole = out.write_str(text);
    out.finish(whole);
    line
}

/// Nobody here writes a token or a connection string. But a device may have put one where a name belongs, and a hub may
/// quote one in an error.
fn hide_secrets(line: &mut String, start: usize) {
    for mark in BEFORE_SECRETS {
        let mut from = start;
        while let Some(found) = line.as_bytes().get(from..).and_then(|text| find(text, mark)) {
            from += found + mark.len();
            let rest = line.as_bytes().get(from..).unwrap_or_default();
            let length = rest.iter().take_while(|byte| is_of_secret(**byte)).count();
            if length > 0 {
                line.replace_range(from..from + length, HIDDEN);
                from += HIDDEN.len();
            }
        }
    }
}

fn find(text: &[u8], mark: &[u8]) -> Option<usize> {
    let mut windows = text.windows(mark.len());
    windows.position(|window| window.eq_ignore_ascii_case(mark))
}

/// Base64 of both alphabets, escaped as in a URL or not.
const fn is_of_secret(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=' | b'%' | b'-' | b'_')
}

/// The last place at or before `index` where a text may be cut.
fn char_boundary(text: &str, index: usize) -> usize {
    (0..=index.min(text.len()))
        .rev()
        .find(|end| text.is_char_boundary(*end))
        .unwrap_or(0)
}

/// Characters that end a line, drive a terminal, or make it show text in another order than it is written.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn write_escape(c: char, out: &mut String) -> fmt::Result {
    match c {
        '\n' => out.write_str("\\n"),
        '\r' => out.write_str("\\r"),
        '\t' => out.write_str("\\t"),
        c if c.is_ascii() => write!(out, "\\x{:02x}", u32::from(c)),
        c => write!(out, "\\u{{{:x}}}", u32::from(c)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_can_forge_a_line() {
        assert_eq!(one_line("plain, b\"\\x00\", Grüße"), "plain, b\"\\x00\", Grüße");
        assert_eq!(one_line("a\r\nSERVER (error) b\t"), "a\\r\\nSERVER (error) b\\t");
        assert_eq!(one_line("\u{1b}[2J\0\u{7f}"), "\\x1b[2J\\x00\\x7f");
        assert_eq!(one_line("\u{9b}\u{202e}\u{2028}"), "\\u{9b}\\u{202e}\\u{2028}");
    }

    #[test]
    fn what_is_put_into_a_name_by_mistake_shows_no_secret() {
        for (text, expected) in [
            (
                "user 'SharedAccessSignature sr=h%2Fdevices%2Fd&sig=aB%2b/+-_%3D&se=1'",
                "user 'SharedAccessSignature sr=h%2Fdevices%2Fd&sig=<hidden>&se=1'",
            ),
            ("se=1&SIG=a= sig=b sig=", "se=1&SIG=<hidden> sig=<hidden> sig="),
            (
                "HostName=h;SharedAccessKeyName=n;SharedAccessKey=a/b+c==;x",
                "HostName=h;SharedAccessKeyName=n;SharedAccessKey=<hidden>;x",
            ),
            (
                "?sas=sr%3dh%26sig%3dab%26se%3d1 x",
                "?sas=sr%3dh%26sig%3d<hidden> x",
            ),
            ("sig=(44 bytes)", "sig=(44 bytes)"),
            ("Grüße, sig=a€", "Grüße, sig=<hidden>€"),
        ] {
            assert_eq!(one_line(text), expected);
        }
        let cut = one_line(&format!("sig={}", "x".repeat(TEXT_MAX)));
        assert_eq!(cut, "sig=<hidden>...");
    }

    #[test]
    fn long_texts_are_cut_visibly() {
        assert_eq!(one_line(&"x".repeat(TEXT_MAX)), "x".repeat(TEXT_MAX));
        let cut = one_line(&"x".repeat(TEXT_MAX + 1));
        assert_eq!(cut, format!("{}...", "x".repeat(TEXT_MAX - 3)));
        // Never in the middle of a character, whatever its position.
        for lead in 0..4 {
            let cut = one_line(&format!("{}{}", "x".repeat(lead), "€".repeat(TEXT_MAX)));
            assert!(
                cut.len() <= TEXT_MAX && cut.len() > TEXT_MAX - 6 && cut.ends_with("€..."),
                "{lead}"
            );
        }
        assert!(one_line(&"\n".repeat(TEXT_MAX)).ends_with("\\n..."));
    }
}
