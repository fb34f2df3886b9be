//! Every entity and attribute that any qdrouterd from 0.6.0 to 1.19.0 knows, plus ours: the shape of the table.
//!
//! The rows are in `table`. They drive the reader (`resolve`), and the documentation is tested against them, so a key
//! cannot be read without being documented, nor the reverse.

use super::names::{nearest, normalise};
use super::table;

/// One kind of section.
#[derive(Debug)]
pub struct Entity {
    /// Canonical name, as qdrouterd 1.19 spells it.
    pub name: &'static str,
    /// Whether a file may hold only one.
    pub singleton: bool,
    /// What we do with it.
    pub handling: Handling,
    /// Its attributes; those of every entity (`COMMON`) apart.
    pub attributes: &'static [Attribute],
}

/// What we do with an entity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handling {
    /// It does what it says.
    Run,
    /// Known but not run: one warning, with this consequence.
    Ignored(&'static str),
}

/// One attribute of an entity.
#[derive(Debug)]
pub struct Attribute {
    /// Canonical name, as qdrouterd 1.19 spells it.
    pub name: &'static str,
    /// Spellings of older releases.
    pub old_names: &'static [&'static str],
    /// What a value may look like.
    pub kind: Kind,
    /// The value when none is given, as one would write it; empty when there is none.
    pub default: &'static str,
    /// What we do with it.
    pub support: Support,
}

/// What a value may look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Not looked at.
    Any,
    /// `yes`, `true`, `on`, `no`, `false`, `off` in any case.
    Boolean,
    /// One of these words, or the zero-based index of one of the first list.
    Enum {
        /// The words of qdrouterd 1.19, in its order.
        tags: &'static [&'static str],
        /// Words of other releases, and ours.
        more: &'static [&'static str],
    },
    /// A map of maps: the user groups of a `vhost`, each with the attributes of [`group`].
    Groups,
    /// A decimal number within these bounds.
    Integer {
        /// Smallest.
        min: u32,
        /// Largest.
        max: u32,
    },
    /// Text between commas, or a JSON list of texts.
    List,
    /// A map: `NAME: {` lines `}` or JSON.
    Map,
    /// The name of a file or directory.
    Path,
    /// A port number or service name.
    Port,
    /// A password: `env:NAME`, `file:PATH`, `pass:TEXT`, or the text itself.
    Secret {
        /// Whether `literal:TEXT` is a form too.
        literal: bool,
    },
    /// Any text.
    Text,
    /// Words separated by blanks.
    Words,
}

/// What we do with an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// It does what it says; see `refusal` for values that we refuse.
    Run,
    /// Accepted silently: it could make no difference to link routing.
    Accepted,
    /// A warning with this consequence, unless the value is `harmless`.
    Ignored {
        /// The value that asks for nothing; may be empty.
        harmless: &'static str,
        /// What the operator will miss.
        consequence: &'static str,
    },
    /// Reported by management, never set: a warning.
    ReadOnly,
}

impl Attribute {
    pub(super) const fn new(name: &'static str, kind: Kind, default: &'static str, support: Support) -> Self {
        Attribute {
            name,
            old_names: &[],
            kind,
            default,
            support,
        }
    }

    /// Adds the spellings of older releases.
    pub(super) const fn old(mut self, names: &'static [&'static str]) -> Self {
        self.old_names = names;
        self
    }

    /// Whether the value must not be shown.
    pub const fn is_secret(&self) -> bool {
        matches!(self.kind, Kind::Secret { .. })
    }
}

impl Entity {
    /// The attribute of this canonical or old name.
    pub fn attribute(&self, name: &str) -> Option<&'static Attribute> {
        let all = self.attributes.iter().chain(table::COMMON);
        all.into_iter()
            .find(|attribute| attribute.name == name || attribute.old_names.contains(&name))
    }

    /// Every spelling of every attribute.
    pub fn attribute_names(&self) -> impl Iterator<Item = &'static str> {
        self.attributes.iter().chain(table::COMMON).flat_map(spellings)
    }

    /// Whether any attribute may be written: entities that are ignored whole, and not known in detail.
    pub fn is_open(&self) -> bool {
        self.attributes.is_empty()
    }
}

/// Every entity, ours to run first.
pub fn entities() -> &'static [Entity] {
    table::ENTITIES
}

/// The attributes that every entity has.
pub fn common_attributes() -> &'static [Attribute] {
    table::COMMON
}

/// A user group of a `vhost`: no section, but read like one.
pub fn group() -> &'static Entity {
    &table::GROUP_ENTITY
}

/// The entity of this canonical name.
pub(super) fn entity(name: &str) -> Option<&'static Entity> {
    table::ENTITIES.iter().find(|entity| entity.name == name)
}

/// The names of all entities.
pub(super) fn entity_names() -> impl Iterator<Item = &'static str> {
    table::ENTITIES.iter().map(|entity| entity.name)
}

/// Whether a word is the name of an entity or attribute, or a slip of the pen away from one.
pub(super) fn is_nearly_known(word: &str) -> bool {
    let all = table::ENTITIES.iter().chain([group()]);
    let attributes = all.flat_map(Entity::attribute_names);
    nearest(&normalise(word), entity_names().chain(attributes)).is_some()
}

fn spellings(attribute: &'static Attribute) -> impl Iterator<Item = &'static str> {
    std::iter::once(attribute.name).chain(attribute.old_names.iter().copied())
}
