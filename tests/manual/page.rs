//! Markdown, as far as the documentation uses it, as a manual page.

use clap_mangen::roff::{Inline, Roff, bold, italic, roman};
use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

/// Columns that a list or an example is moved in.
const INDENT: &str = "4";

/// Text of one style after the other; a `\n` where the source has one.
pub(crate) type Text = Vec<Inline>;

/// A table below a heading.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// The innermost heading above it.
    pub(crate) heading: String,
    /// Its rows, the first with the names of the columns.
    pub(crate) rows: Vec<Vec<Text>>,
}

/// The page of a text; `write_table` knows what a table looks like. A heading of the first level is left out.
pub(crate) fn of(markdown: &str, write_table: &dyn Fn(&Table, &mut Roff)) -> Roff {
    let mut writer = Writer {
        page: Roff::new(),
        write_table,
        text: Vec::new(),
        is_bold: false,
        is_italic: false,
        items: Vec::new(),
        is_item_begun: false,
        code: None,
        table: Table::default(),
    };
    for event in Parser::new_ext(markdown, Options::ENABLE_TABLES) {
        writer.on_event(event);
    }
    writer.flush();
    writer.page
}

/// A table as a list: the first column in front, the others below it, named if there are several.
pub(crate) fn plain_table(table: &Table, page: &mut Roff) {
    let [names, rows @ ..] = table.rows.as_slice() else {
        return;
    };
    for row in rows {
        let [first, others @ ..] = row.as_slice() else {
            continue;
        };
        page.control("TP", []);
        page.text(first.clone());
        for (name, text) in names
            .iter()
            .skip(1)
            .zip(others)
            .filter(|(_, text)| !text.is_empty())
        {
            if others.len() > 1 {
                page.text([italic(format!("{}:", plain(name)))]);
                page.text(text.clone());
                page.control("br", []);
            } else {
                page.text(text.clone());
            }
        }
    }
}

/// The text without its styles.
pub(crate) fn plain(text: &[Inline]) -> String {
    text.iter()
        .map(|part| match part {
            Inline::Roman(text) | Inline::Italic(text) | Inline::Bold(text) => text.as_str(),
            Inline::LineBreak => "\n",
        })
        .collect()
}

struct Writer<'a> {
    page: Roff,
    write_table: &'a dyn Fn(&Table, &mut Roff),
    /// What is to be written as one line.
    text: Text,
    is_bold: bool,
    is_italic: bool,
    /// For each list that is open, the number of its next item, if they are numbered.
    items: Vec<Option<u64>>,
    /// An item has its mark, and nothing behind it yet.
    is_item_begun: bool,
    /// The example that is open.
    code: Option<String>,
    table: Table,
}

impl Writer<'_> {
    fn on_event(&mut self, event: Event<'_>) {
        match event {
            Event::Start(tag) => self.on_start(tag),
            Event::End(tag) => self.on_end(tag),
            Event::Text(text) => match &mut self.code {
                Some(code) => code.push_str(&text),
                None => self.push(&text),
            },
            Event::Code(text) => self.text.push(bold(text.into_string())),
            // A placeholder such as <name>.
            Event::InlineHtml(text) => self.push(&text),
            // A comment between paragraphs.
            Event::Html(_) => {}
            Event::SoftBreak => self.flush(),
            Event::HardBreak => self.text.push(Inline::LineBreak),
            other => panic!("a manual page has no room for {other:?}"),
        }
    }

    fn on_start(&mut self, tag: Tag<'_>) {
        match tag {
            Tag::Heading { .. } => self.flush(),
            Tag::Paragraph => self.begin_paragraph(),
            Tag::List(first) => {
                self.flush();
                self.is_item_begun = false;
                if !self.items.is_empty() {
                    self.page.control("RS", [INDENT]);
                }
                self.items.push(first);
            }
            Tag::Item => {
                let mark = match self.items.last_mut() {
                    Some(Some(number)) => {
                        let mark = format!("{number}.");
                        *number += 1;
                        mark
                    }
                    _ => r"\(bu".to_owned(),
                };
                self.page.control("IP", [mark.as_str(), INDENT]);
                self.is_item_begun = true;
            }
            Tag::CodeBlock(_) => {
                self.flush();
                self.code = Some(String::new());
            }
            Tag::Table(_) => self.table.rows.clear(),
            Tag::TableHead | Tag::TableRow => self.table.rows.push(Vec::new()),
            Tag::TableCell | Tag::Link { .. } | Tag::HtmlBlock => {}
            Tag::Strong => self.is_bold = true,
            Tag::Emphasis => self.is_italic = true,
            other => panic!("a manual page has no room for {other:?}"),
        }
    }

    fn on_end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Heading(level) => self.end_heading(level),
            TagEnd::Paragraph | TagEnd::Item => self.flush(),
            TagEnd::List(_) => {
                self.items.pop();
                if !self.items.is_empty() {
                    self.page.control("RE", []);
                }
            }
            TagEnd::CodeBlock => self.end_code(),
            TagEnd::Table => (self.write_table)(&self.table, &mut self.page),
            TagEnd::TableCell => {
                let text = std::mem::take(&mut self.text);
                if let Some(row) = self.table.rows.last_mut() {
                    row.push(text);
                }
            }
            TagEnd::Strong => self.is_bold = false,
            TagEnd::Emphasis => self.is_italic = false,
            _ => {}
        }
    }

    fn begin_paragraph(&mut self) {
        if self.items.is_empty() {
            self.page.control("PP", []);
        } else if !self.is_item_begun {
            self.page.control("IP", ["\"\"", INDENT]);
        }
        self.is_item_begun = false;
    }

    fn end_heading(&mut self, level: HeadingLevel) {
        let heading = plain(&std::mem::take(&mut self.text));
        match level {
            HeadingLevel::H1 => {}
            HeadingLevel::H2 => {
                self.page.control("SH", [heading.to_uppercase().as_str()]);
            }
            HeadingLevel::H3 => {
                self.page.control("SS", [heading.as_str()]);
            }
            _ => {
                self.page.control("PP", []);
                self.page.text([bold(heading.as_str())]);
            }
        }
        self.table.heading = heading;
    }

    fn end_code(&mut self) {
        let code = self.code.take().unwrap_or_default();
        self.page.control("RS", [INDENT]);
        self.page.control("PP", []);
        self.page.control("EX", []);
        for line in code.lines() {
            self.page.text([roman(line)]);
        }
        self.page.control("EE", []);
        self.page.control("RE", []);
    }

    fn push(&mut self, text: &str) {
        self.text.push(if self.is_bold {
            bold(text)
        } else if self.is_italic {
            italic(text)
        } else {
            roman(text)
        });
    }

    /// Writes what there is of a line. In a table there are no lines.
    fn flush(&mut self) {
        let text = std::mem::take(&mut self.text);
        if !text.is_empty() {
            self.is_item_begun = false;
            self.page.text(text);
        }
    }
}
