//! The tables of the configuration reference, one entry for each attribute: what it takes, its default and what
//! becomes of it by the entity table, then the note of the reference.

use clap_mangen::roff::{Inline, Roff, bold, italic, roman};
use linkrouterd::config::entity::{Attribute, Entity, Support, common_attributes, entities, group};
use linkrouterd::config::refusal::{REFUSALS, When};

use crate::page::{Table, Text, plain, plain_table};

/// The columns of a table of attributes.
const COLUMNS: [&str; 6] = ["Attribute", "Old names", "Value", "Default", "Runs", "Notes"];

/// Writes any table of the reference.
pub(crate) fn table(table: &Table, page: &mut Roff) {
    let [names, rows @ ..] = table.rows.as_slice() else {
        return;
    };
    let names: Vec<String> = names.iter().map(|name| plain(name)).collect();
    if names != COLUMNS {
        return plain_table(table, page);
    }
    for row in rows {
        let name = plain(&row[0]);
        let attribute = attribute(&table.heading, &name)
            .unwrap_or_else(|| panic!("{}: no attribute {name}", table.heading));
        entry(&table.heading, attribute, &row[2], &row[5], page);
    }
}

fn attribute(section: &str, name: &str) -> Option<&'static Attribute> {
    let is_it = |attribute: &&'static Attribute| attribute.name == name;
    entities()
        .iter()
        .chain([group()])
        .find(|entity: &&Entity| entity.name == section)
        .map_or(common_attributes(), |entity| entity.attributes)
        .iter()
        .find(is_it)
}

fn entry(section: &str, attribute: &Attribute, kind: &[Inline], note: &[Inline], page: &mut Roff) {
    page.control("TP", []);
    page.text([bold(attribute.name)]);
    page.text(value(attribute, kind));
    if !note.is_empty() {
        page.text(sentence(note.to_vec()));
    }
    if let [first, others @ ..] = attribute.old_names {
        let mut text = vec![italic("Old names:"), roman(" "), bold(*first)];
        for name in others {
            text.extend([roman(", "), bold(*name)]);
        }
        page.text(sentence(text));
    }
    let refusals = REFUSALS
        .iter()
        .filter(|refusal| refusal.entity == section && refusal.attribute == attribute.name);
    for refusal in refusals {
        let values = match refusal.when {
            When::Set => "whatever it says".to_owned(),
            When::Is(values) => values.join(", "),
        };
        page.text([
            italic("Refused:"),
            roman(format!(" {values}: {}.", refusal.reason)),
        ]);
    }
    match attribute.support {
        Support::Run => {}
        Support::Accepted => {
            page.text([italic("Accepted.")]);
        }
        Support::Ignored { consequence, .. } => {
            page.text([
                italic("Warning:"),
                roman(format!(" {}.", consequence.replace('`', ""))),
            ]);
        }
        Support::ReadOnly => {
            page.text([italic("Read-only.")]);
        }
    }
}

/// What the attribute takes, and what it is without.
fn value(attribute: &Attribute, kind: &[Inline]) -> Text {
    let mut text = kind.to_vec();
    if !attribute.default.is_empty() {
        text.extend([roman("; default "), bold(attribute.default)]);
    }
    sentence(text)
}

/// With a capital letter and a full stop.
fn sentence(mut text: Text) -> Text {
    if let Some(Inline::Roman(first)) = text.first_mut() {
        let mut letters = first.chars();
        if let Some(letter) = letters.next() {
            *first = letter.to_uppercase().chain(letters).collect();
        }
    }
    if !plain(&text).ends_with(['.', ':']) {
        text.push(roman("."));
    }
    text
}
