//! A file cut into sections and attributes, before any name or value has been looked at.
//!
//! Both notations (`lexer` and `json`) yield this. Values may be secrets, so nothing here can be printed.

/// One section: an entity to be.
pub(super) struct Section {
    /// As written.
    pub(super) name: String,
    pub(super) line: u32,
    pub(super) attributes: Vec<RawAttribute>,
}

/// One `name: value`.
pub(super) struct RawAttribute {
    /// As written.
    pub(super) name: String,
    pub(super) line: u32,
    pub(super) value: Raw,
}

/// A value by its notation. Text is all that a `.conf` file has, maps apart.
pub(super) enum Raw {
    Text(String),
    Number(String),
    Boolean(bool),
    /// Its entries, as deep as [`MAP_DEPTH`].
    Map(Vec<RawAttribute>),
    /// Its members if all of them are text.
    List(Option<Vec<String>>),
}

/// Maps within maps whose entries are kept; whatever is deeper means nothing to us, and is not worth a stack.
pub(super) const MAP_DEPTH: usize = 3;

/// Finds the line of a byte offset.
pub(super) struct LineIndex {
    starts: Vec<usize>,
}

impl LineIndex {
    pub(super) fn new(text: &str) -> Self {
        let mut starts = vec![0];
        starts.extend(
            text.bytes()
                .enumerate()
                .filter(|(_, byte)| *byte == b'\n')
                .map(|(at, _)| at + 1),
        );
        LineIndex { starts }
    }

    /// Zero-based index of the line that holds this offset.
    pub(super) fn index_of(&self, offset: usize) -> usize {
        self.starts
            .partition_point(|start| *start <= offset)
            .saturating_sub(1)
    }

    /// The line number people count by.
    pub(super) fn number_of(&self, offset: usize) -> u32 {
        number(self.index_of(offset))
    }

    /// Offset of the first byte of a line.
    pub(super) fn start(&self, index: usize) -> usize {
        self.starts.get(index).copied().unwrap_or(usize::MAX)
    }
}

/// The line number people count by, of a zero-based index.
pub(super) fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX).saturating_add(1)
}

/// The text with comments replaced by blanks, so that offsets stay true: from a `#` outside a JSON string to the
/// end of the line. (qdrouterd 1.12+ knows only whole-line comments in JSON; older releases cut at any `#`.)
pub(super) fn blank_comments(text: &str) -> String {
    let mut blanked = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let cut = comment_start(line).unwrap_or(line.len());
        let (kept, comment) = line.split_at(cut);
        blanked.push_str(kept);
        let end = if comment.ends_with('\n') {
            comment.len() - 1
        } else {
            comment.len()
        };
        blanked.extend(std::iter::repeat_n(' ', end));
        if end < comment.len() {
            blanked.push('\n');
        }
    }
    blanked
}

/// The text with commas before a closing bracket replaced by blanks, so that offsets stay true: qdrouterd 1.13+ takes
/// them in the maps of a `.conf` file.
pub(super) fn blank_spare_commas(json: &str) -> String {
    let mut blanked = String::with_capacity(json.len());
    let mut copied = 0;
    for at in spare_commas(json) {
        blanked.push_str(&json[copied..at]);
        blanked.push(' ');
        copied = at + 1;
    }
    blanked.push_str(&json[copied..]);
    blanked
}

fn spare_commas(json: &str) -> Vec<usize> {
    let mut spare = Vec::new();
    let mut in_string = false;
    let mut escaped = false;
    let mut comma = None;
    for (at, byte) in json.bytes().enumerate() {
        match byte {
            // Strings do not span lines.
            b'\n' => (in_string, escaped) = (false, false),
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => {
                in_string = !in_string;
                comma = None;
            }
            _ if in_string => {}
            b',' => comma = Some(at),
            b']' | b'}' => spare.extend(comma.take()),
            _ if byte.is_ascii_whitespace() => {}
            _ => comma = None,
        }
    }
    spare
}

/// Where a comment starts in a line of JSON; strings do not span lines.
fn comment_start(line: &str) -> Option<usize> {
    let mut in_string = false;
    let mut escaped = false;
    for (at, byte) in line.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'#' if !in_string => return Some(at),
            _ => {}
        }
    }
    None
}

/// A JSON syntax error's text without its position, which is given as the finding's line.
pub(super) fn json_error_text(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rfind(" at line ")
        .map_or(text.as_str(), |at| &text[..at])
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_by_offset() {
        let index = LineIndex::new("a\nbc\n\nd");
        let found: Vec<u32> = (0..7).map(|offset| index.number_of(offset)).collect();
        assert_eq!(found, [1, 1, 2, 2, 2, 3, 4]);
        assert_eq!(index.start(1), 2);
    }

    #[test]
    fn comments_are_blanked_without_moving_anything() {
        let text = "{\"a\": \"x#y\\\"#\"} # ü\r\n# whole\n1 # end";
        let blanked = blank_comments(text);
        assert_eq!(blanked.len(), text.len());
        assert!(blanked.starts_with("{\"a\": \"x#y\\\"#\"} "));
        assert!(!blanked.contains("whole") && !blanked.contains("end"));
        assert_eq!(blanked.matches('\n').count(), 2);
    }

    #[test]
    fn spare_commas_are_blanked_and_no_others() {
        for (text, expected) in [
            ("[1, 2,]", "[1, 2 ]"),
            ("{\"é\": [1,\n ],\n}", "{\"é\": [1 \n ] \n}"),
            ("[\"a,]\", \"b\\\",}\",]", "[\"a,]\", \"b\\\",}\" ]"),
            (
                "it isn\"t, so:\n[\"x,\",\n\"y\"]",
                "it isn\"t, so:\n[\"x,\",\n\"y\"]",
            ),
            (",", ","),
        ] {
            assert_eq!(blank_spare_commas(text), expected);
        }
    }
}
