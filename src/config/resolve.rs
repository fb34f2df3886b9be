//! Sections to entities: names looked up, old names replaced, values read, what we do not run named once.

use std::collections::HashSet;

use super::entity::{self, Attribute, Entity, Handling, Kind, Support};
use super::names::{normalise, quoted, suggestion};
use super::refusal;
use super::report::Findings;
use super::secret::{Exposure, Secret};
use super::source::{Raw, RawAttribute, Section};
use super::value::{self, Value};

/// The environment as the reader sees it.
pub(super) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// One entity with the values that its section gives, each of its attribute's kind.
#[derive(Clone)]
pub(super) struct Fields {
    pub(super) entity: &'static Entity,
    pub(super) line: u32,
    values: Vec<Field>,
    /// Of a vhost: its user groups, by name.
    pub(super) groups: Vec<(String, Fields)>,
    /// Attributes whose value could not be read.
    broken: Vec<&'static str>,
}

#[derive(Clone)]
struct Field {
    attribute: &'static Attribute,
    /// The spelling that was used, normalised.
    spelling: String,
    line: u32,
    value: Value,
}

/// Turns sections into entities, and remembers what it has already said.
pub(super) struct Resolver<'a> {
    environment: Environment<'a>,
    /// Old names that were already mentioned, one warning each.
    mentioned: HashSet<(&'static str, String)>,
}

impl<'a> Resolver<'a> {
    pub(super) fn new(environment: Environment<'a>) -> Self {
        Resolver {
            environment,
            mentioned: HashSet::new(),
        }
    }

    /// The entity of a section; `None` if there is none of that name.
    pub(super) fn resolve(&self, section: Section, findings: &mut Findings) -> Option<Fields> {
        let name = normalise(&section.name);
        let Some(entity) = entity::entity(&name) else {
            let hint = suggestion(&name, entity::entity_names());
            findings.error(
                section.line,
                format!("unknown section {}{hint}", quoted(&section.name)),
            );
            return None;
        };
        if let Handling::Ignored(consequence) = entity.handling {
            findings.warning(section.line, format!("{} is not run: {consequence}", entity.name));
        }
        let mut fields = Fields {
            entity,
            line: section.line,
            values: Vec::new(),
            groups: Vec::new(),
            broken: Vec::new(),
        };
        for raw in section.attributes {
            self.attribute(&mut fields, raw, findings);
        }
        Some(fields)
    }

    fn attribute(&self, fields: &mut Fields, raw: RawAttribute, findings: &mut Findings) {
        let entity = fields.entity;
        let spelling = normalise(&raw.name);
        let Some(attribute) = entity.attribute(&spelling) else {
            if !entity.is_open() {
                unknown(entity, &raw, &spelling, findings);
            }
            return;
        };
        let value = match value::read(attribute.kind, &raw.value, self.environment) {
            Ok(value) => value,
            Err(wrong) => {
                findings.error(raw.line, format!("{}: `{spelling}` {wrong}", entity.name));
                return fields.broken.push(attribute.name);
            }
        };
        if let Some(placeholder) = placeholder(attribute, &raw.value) {
            let message = format!(
                "{}: `{spelling}` still holds a placeholder{placeholder}: fill in the real value",
                entity.name
            );
            findings.warning(raw.line, message);
        } else if let Value::Secret(_, Exposure::InFile) = value {
            let message = format!(
                "{}: `{spelling}` is a password in plain text; `env:NAME` or `file:PATH` keeps it out of this file",
                entity.name
            );
            findings.warning(raw.line, message);
        }
        fields.add(
            Field {
                attribute,
                spelling,
                line: raw.line,
                value,
            },
            findings,
        );
        if let (Kind::Groups, Raw::Map(groups)) = (attribute.kind, raw.value) {
            fields.groups = self.groups(groups, findings);
        }
    }

    fn groups(&self, groups: Vec<RawAttribute>, findings: &mut Findings) -> Vec<(String, Fields)> {
        let mut read = Vec::with_capacity(groups.len());
        for group in groups {
            let Raw::Map(settings) = group.value else {
                let message = format!(
                    "vhost: group {} must be a map of its settings",
                    quoted(&group.name)
                );
                findings.error(group.line, message);
                continue;
            };
            let mut fields = Fields {
                entity: entity::group(),
                line: group.line,
                values: Vec::new(),
                groups: Vec::new(),
                broken: Vec::new(),
            };
            for raw in settings {
                self.attribute(&mut fields, raw, findings);
            }
            read.push((group.name, fields));
        }
        read
    }

    /// Says what is old, what has no effect, and what is refused.
    pub(super) fn judge(&mut self, fields: &Fields, findings: &mut Findings) {
        let entity = fields.entity;
        if matches!(entity.handling, Handling::Ignored(_)) {
            return;
        }
        // A listener that is not opened can do no harm.
        let refusable = !fields.is_http_listener();
        let mut told: Vec<&str> = Vec::new();
        for field in &fields.values {
            let (attribute, spelling) = (field.attribute, field.spelling.as_str());
            if spelling != attribute.name && self.mentioned.insert((entity.name, spelling.to_owned())) {
                let message = format!(
                    "{}: `{spelling}` is an old name of `{}`",
                    entity.name, attribute.name
                );
                findings.warning(field.line, message);
            }
            match attribute.support {
                Support::Run | Support::Accepted => {}
                Support::Ignored { harmless, .. } if is_harmless(attribute, &field.value, harmless) => {}
                Support::Ignored { consequence, .. } if told.contains(&consequence) => {}
                Support::Ignored { consequence, .. } => {
                    told.push(consequence);
                    let message = format!("{}: `{spelling}` has no effect: {consequence}", entity.name);
                    findings.warning(field.line, message);
                }
                Support::ReadOnly => {
                    let message = format!("{}: `{spelling}` cannot be set, and is ignored", entity.name);
                    findings.warning(field.line, message);
                }
            }
            if let Some(refusal) = refusal::of(entity.name, attribute, &field.value).filter(|_| refusable) {
                let value = field.value.shown();
                let message = format!(
                    "{}: `{spelling}{value}` is refused: {}",
                    entity.name, refusal.reason
                );
                findings.error(field.line, message);
            }
        }
        for (_, group) in &fields.groups {
            self.judge(group, findings);
        }
    }
}

impl Fields {
    /// An entity of which a file says nothing.
    pub(super) fn absent(name: &str) -> Option<Fields> {
        entity::entity(name).map(|entity| Fields {
            entity,
            line: 0,
            values: Vec::new(),
            groups: Vec::new(),
            broken: Vec::new(),
        })
    }

    /// Whether the file gives a value.
    pub(super) fn is_set(&self, name: &str) -> bool {
        self.field(name).is_some()
    }

    /// Whether the file gives a value, readable or not.
    pub(super) fn is_given(&self, name: &str) -> bool {
        self.is_set(name) || self.broken.contains(&name)
    }

    /// Whether the file gives a value by this very name, old or new.
    pub(super) fn is_spelled(&self, spelling: &str) -> bool {
        self.values.iter().any(|field| field.spelling == spelling)
    }

    /// The line of an attribute, or that of the section.
    pub(super) fn line_of(&self, name: &str) -> u32 {
        self.field(name).map_or(self.line, |field| field.line)
    }

    /// Takes over what another section says, where this one says nothing.
    pub(super) fn inherit(&mut self, other: &Fields) {
        for field in other.values.iter().filter(|field| field.attribute.name != "name") {
            if let Some(attribute) = self.entity.attribute(field.attribute.name)
                && !self.is_given(attribute.name)
            {
                let (spelling, value) = (attribute.name.to_owned(), field.value.clone());
                self.values.push(Field {
                    attribute,
                    spelling,
                    line: field.line,
                    value,
                });
            }
        }
    }

    /// Whether qdrouterd would serve HTTP and WebSockets here instead of AMQP.
    pub(super) fn is_http_listener(&self) -> bool {
        self.entity.name == "listener" && (self.boolean("http") || self.is_set("httpRootDir"))
    }

    pub(super) fn boolean(&self, name: &str) -> bool {
        matches!(self.value(name), Some(Value::Boolean(true)))
    }

    pub(super) fn optional_boolean(&self, name: &str) -> Option<bool> {
        match self.value(name) {
            Some(Value::Boolean(value)) => Some(value),
            _ => None,
        }
    }

    pub(super) fn integer(&self, name: &str) -> Option<u32> {
        match self.value(name) {
            Some(Value::Integer(value)) => Some(value),
            _ => None,
        }
    }

    pub(super) fn port(&self, name: &str) -> u16 {
        match self.value(name) {
            Some(Value::Port(value)) => value,
            _ => 0,
        }
    }

    pub(super) fn secret(&self, name: &str) -> Option<Secret> {
        match self.value(name) {
            Some(Value::Secret(secret, _)) => Some(secret),
            _ => None,
        }
    }

    /// The word of an enum; empty when there is none.
    pub(super) fn tag(&self, name: &str) -> &'static str {
        match self.value(name) {
            Some(Value::Tag(tag)) => tag,
            _ => "",
        }
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        match self.value(name) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    pub(super) fn words(&self, name: &str) -> Vec<String> {
        match self.value(name) {
            Some(Value::Words(words)) => words,
            _ => Vec::new(),
        }
    }

    /// The value given, else the default of the table.
    fn value(&self, name: &str) -> Option<Value> {
        if let Some(field) = self.field(name) {
            return Some(field.value.clone());
        }
        let attribute = self.entity.attribute(name)?;
        if attribute.default.is_empty() {
            return None;
        }
        value::read(attribute.kind, &Raw::Text(attribute.default.to_owned()), &|_| {
            None
        })
        .ok()
    }

    /// Adds a value, unless the attribute has one already under another name.
    fn add(&mut self, field: Field, findings: &mut Findings) {
        let entity = self.entity.name;
        let Some(earlier) = self
            .values
            .iter_mut()
            .find(|f| std::ptr::eq(f.attribute, field.attribute))
        else {
            return self.values.push(field);
        };
        if earlier.spelling == field.spelling {
            let message = format!(
                "{entity}: `{}` is given again; this value replaces that of line {}",
                field.spelling, earlier.line
            );
            findings.warning(field.line, message);
            *earlier = field;
        } else if earlier.value != field.value {
            // 0.6 to 0.8 had `addr` and `host` side by side and took the one that is not the default.
            let default = Value::Text(field.attribute.default.to_owned());
            if field.attribute.name == "host" && earlier.value == default {
                *earlier = field;
            } else if field.attribute.name != "host" || field.value != default {
                let message = format!(
                    "{entity}: `{}` and `{}` (line {}) are the same attribute, but have different values",
                    field.spelling, earlier.spelling, earlier.line
                );
                findings.error(field.line, message);
            }
        }
    }

    fn field(&self, name: &str) -> Option<&Field> {
        self.values.iter().find(|field| field.attribute.name == name)
    }
}

impl Value {
    /// `": VALUE"` where a finding may show it.
    fn shown(&self) -> String {
        match self {
            Value::Boolean(true) => ": yes".to_owned(),
            Value::Boolean(false) => ": no".to_owned(),
            Value::Tag(tag) => format!(": {tag}"),
            Value::Words(words) => format!(": {}", quoted(&words.join(" ")).trim_matches('`')),
            Value::Integer(_) | Value::Opaque | Value::Port(_) | Value::Secret(..) | Value::Text(_) => {
                String::new()
            }
        }
    }
}

fn unknown(entity: &Entity, raw: &RawAttribute, spelling: &str, findings: &mut Findings) {
    let mut hint = suggestion(spelling, entity.attribute_names());
    if hint.is_empty()
        && let Some(other) = entity::entities()
            .iter()
            .find(|other| other.attribute(spelling).is_some())
    {
        hint = format!("; it belongs to {}", other.name);
    }
    findings.error(
        raw.line,
        format!("{}: unknown attribute {}{hint}", entity.name, quoted(&raw.name)),
    );
}

fn is_harmless(attribute: &Attribute, value: &Value, harmless: &str) -> bool {
    !harmless.is_empty()
        && value::read(attribute.kind, &Raw::Text(harmless.to_owned()), &|_| None)
            .is_ok_and(|it| it == *value)
}

/// `` ` <iotHub>` `` if a value that we use is still one of a template; a secret's is not repeated.
fn placeholder(attribute: &Attribute, raw: &Raw) -> Option<String> {
    let (Raw::Text(text), Support::Run) = (raw, attribute.support) else {
        return None;
    };
    if matches!(attribute.kind, Kind::Secret { .. }) {
        let inner = text.strip_prefix('<')?.strip_suffix('>')?;
        return is_template_word(inner).then(String::new);
    }
    let (_, after) = text.split_once('<')?;
    let (inner, _) = after.split_once('>')?;
    is_template_word(inner).then(|| format!(" `<{inner}>`"))
}

fn is_template_word(text: &str) -> bool {
    let is_part = |character: char| character.is_alphanumeric() || matches!(character, ' ' | '_' | '-' | '.');
    !text.is_empty() && text.chars().count() <= 40 && text.chars().all(is_part)
}
