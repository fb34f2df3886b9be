//! The JSON notation, chosen by a file name ending in `.json`: `[["router", {"id": "A"}], ["listener", {…}]]`.
//!
//! Values keep their place in the file ([`RawValue`]), so that a finding about one names its true line.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::names::quoted;
use super::report::Findings;
use super::source::{LineIndex, MAP_DEPTH, Raw, RawAttribute, Section, blank_comments, json_error_text};

/// Cuts the text into sections.
pub(super) fn read(text: &str, findings: &mut Findings) -> Vec<Section> {
    let json = blank_comments(text);
    let index = LineIndex::new(&json);
    let place = Place::new(&json, &index);
    // Syntax first, for the file as a whole: from here on only a wrong shape can be met.
    if let Err(error) = serde_json::from_str::<&RawValue>(&json) {
        let line = u32::try_from(error.line()).unwrap_or(u32::MAX).max(1);
        findings.error(line, format!("not JSON: {}", json_error_text(&error)));
        return Vec::new();
    }
    let Ok(entries) = serde_json::from_str::<Vec<&RawValue>>(&json) else {
        findings.error(
            1,
            "a JSON configuration is a list of sections: `[[\"router\", {…}], …]`",
        );
        return Vec::new();
    };
    entries
        .into_iter()
        .filter_map(|entry| section(entry, &place, findings))
        .collect()
}

fn section(entry: &RawValue, place: &Place<'_>, findings: &mut Findings) -> Option<Section> {
    let line = place.line_of(entry);
    let parts = serde_json::from_str::<(String, &RawValue)>(entry.get()).ok();
    let section = parts.and_then(|(name, body)| {
        let Attributes(attributes) = serde_json::from_str(body.get()).ok()?;
        let mut kept = Vec::with_capacity(attributes.len());
        for (name, value) in attributes {
            let line = place.line_of(value);
            match raw(value, place, MAP_DEPTH) {
                Ok(Some(value)) => kept.push(RawAttribute { name, line, value }),
                Ok(None) => {}
                Err(_) => findings.error(
                    line,
                    format!("the value of {} is not valid Unicode", quoted(&name)),
                ),
            }
        }
        Some(Section {
            name,
            line,
            attributes: kept,
        })
    });
    if section.is_none() {
        findings.error(
            line,
            "a section is a list of its name and its attributes: `[\"router\", {…}]`",
        );
    }
    section
}

/// `None` for `null`, which means as much as no attribute at all. Maps are read `depth` levels deep.
pub(super) fn raw(
    value: &RawValue,
    place: &Place<'_>,
    depth: usize,
) -> Result<Option<Raw>, serde_json::Error> {
    let text = value.get();
    Ok(match text.bytes().next() {
        Some(b'"') => Some(Raw::Text(serde_json::from_str(text)?)),
        Some(b'{') => Some(Raw::Map(entries(value, place, depth)?)),
        Some(b'[') => Some(Raw::List(serde_json::from_str(text).ok())),
        Some(b't') => Some(Raw::Boolean(true)),
        Some(b'f') => Some(Raw::Boolean(false)),
        Some(b'n') | None => None,
        Some(_) => Some(Raw::Number(text.to_owned())),
    })
}

fn entries(map: &RawValue, place: &Place<'_>, depth: usize) -> Result<Vec<RawAttribute>, serde_json::Error> {
    let Some(depth) = depth.checked_sub(1) else {
        return Ok(Vec::new());
    };
    let Attributes(members) = serde_json::from_str(map.get())?;
    let mut entries = Vec::with_capacity(members.len());
    for (name, value) in members {
        let line = place.line_of(value);
        if let Some(value) = raw(value, place, depth)? {
            entries.push(RawAttribute { name, line, value });
        }
    }
    Ok(entries)
}

/// Tells where in the text a value stands.
pub(super) struct Place<'a> {
    base: usize,
    index: &'a LineIndex,
}

impl<'a> Place<'a> {
    /// For values borrowed from `json`, whose lines `index` knows.
    pub(super) fn new(json: &str, index: &'a LineIndex) -> Self {
        Place {
            base: json.as_ptr().addr(),
            index,
        }
    }

    fn line_of(&self, value: &RawValue) -> u32 {
        self.index
            .number_of(value.get().as_ptr().addr().saturating_sub(self.base))
    }
}

/// The members of a JSON object in file order, doubles included.
struct Attributes<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Attributes<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(members)
            }
        }

        deserializer.deserialize_map(Members).map(Attributes)
    }
}
