//! Makes what cannot be split into frames fit a peer with small ones (AMQP 1.0 part 2, §2.7.1: at least 512 bytes).
//!
//! Errors and delivery states come from other peers and may be as large as those peers' frames. What does not fit is
//! left out, not cut to pieces: a text is shortened, a composite loses what is inside from the end, any other value
//! becomes null. The condition of an error and the kind of an outcome come first and so survive. An attach has an order
//! of its own: [`attach_tail`].

use std::borrow::Cow;

use super::codes::{descriptor, format};
use super::fields::{Kind, Tail};
use super::performative::Role;
use super::reader::Reader;
use super::writer::Writer;

/// Head of a list32, of a string32: the most that a value has before its content.
const HEAD: usize = 9;

/// What is left of the fields of `tail` in at most `room` bytes; their number stays.
pub fn tail(tail: Tail<'_>, room: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(room);
    fields(Reader::new(tail.bytes), u32::from(tail.count), room, &mut out);
    out
}

/// What is left of a value in at most `room` bytes.
pub fn value(encoded: &[u8], room: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(room);
    write(encoded, room, &mut out);
    out
}

// ---- attaches ----------------------------------------------------------------------------------------------------

/// Who is asked by an attach, and who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attaching {
    /// The attach asks for a link: nothing of its termini may be lost.
    Request,
    /// The attach is the answer to the peer's, from an end of this role: it repeats the peer's own terminus.
    Answer(Role),
}

/// What an attach can lose.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Properties,
    Unsettled,
    DesiredCapabilities,
    OfferedCapabilities,
    Echo,
}

/// In which order it goes.
const LOSSES: [Loss; 5] = [
    Loss::Properties,
    Loss::Unsettled,
    Loss::DesiredCapabilities,
    Loss::OfferedCapabilities,
    Loss::Echo,
];

/// The fields of an attach from `snd-settle-mode` on.
mod place {
    pub(super) const SOURCE: usize = 2;
    pub(super) const TARGET: usize = 3;
    pub(super) const UNSETTLED: usize = 4;
    pub(super) const INCOMPLETE_UNSETTLED: usize = 5;
    pub(super) const OFFERED_CAPABILITIES: usize = 8;
    pub(super) const DESIRED_CAPABILITIES: usize = 9;
    pub(super) const PROPERTIES: usize = 10;
}

/// What is left in at most `room` bytes of the fields of an attach behind its role, with their number; `None` when the
/// attach cannot be said in so little room.
///
/// It loses, in this order, and only until it fits:
///
/// 1. `properties`, and unknown fields behind them;
/// 2. entries of `unsettled`, from the end; `incomplete-unsettled` is then true, so that nobody takes a delivery that is
///    not in the map for one that is settled (AMQP 1.0 part 2, §2.7.3);
/// 3. `desired-capabilities`;
/// 4. `offered-capabilities`;
/// 5. in an answer, all but the address of the terminus that is the peer's own and is only repeated to it.
///
/// Settle modes, the terminus that the attach stands for, `initial-delivery-count` and `max-message-size` are never lost:
/// without them it would be another link.
pub fn attach_tail(tail: Tail<'_>, attaching: Attaching, room: usize) -> Option<(u8, Vec<u8>)> {
    let mut reader = Reader::new(tail.bytes);
    let mut fields: Vec<Cow<'_, [u8]>> = (0..tail.count)
        .map(|_| reader.skip().map(Cow::Borrowed))
        .collect::<Result<_, _>>()
        .ok()?;
    let unsettled = fields.get(place::UNSETTLED).cloned();
    LOSSES.iter().find(|loss| {
        match loss {
            Loss::Properties => fields.truncate(place::PROPERTIES),
            Loss::Unsettled => lose_unsettled(&mut fields),
            Loss::DesiredCapabilities => lose(&mut fields, place::DESIRED_CAPABILITIES),
            Loss::OfferedCapabilities => lose(&mut fields, place::OFFERED_CAPABILITIES),
            Loss::Echo => lose_echo(&mut fields, attaching),
        }
        size(&fields) <= room
    })?;
    if let Some(unsettled) = unsettled
        && let Some(slot) = fields.get(place::UNSETTLED)
        && *slot != unsettled
    {
        let left = (room + slot.len()).saturating_sub(size(&fields));
        if let (Some(part), Some(slot)) = (first_entries(&unsettled, left), fields.get_mut(place::UNSETTLED))
        {
            *slot = Cow::Owned(part);
        }
    }
    Some((u8::try_from(fields.len()).ok()?, fields.concat()))
}

fn size(fields: &[Cow<'_, [u8]>]) -> usize {
    fields.iter().map(|field| field.len()).sum()
}

fn lose(fields: &mut [Cow<'_, [u8]>], place: usize) {
    if let Some(field) = fields.get_mut(place) {
        *field = Cow::Borrowed(&[format::NULL]);
    }
}

fn lose_unsettled(fields: &mut Vec<Cow<'_, [u8]>>) {
    if !fields.get(place::UNSETTLED).is_some_and(|map| has_entries(map)) {
        return;
    }
    lose(fields, place::UNSETTLED);
    if fields.len() == place::INCOMPLETE_UNSETTLED {
        fields.push(Cow::Borrowed(&[format::NULL]));
    }
    if let Some(field) = fields.get_mut(place::INCOMPLETE_UNSETTLED) {
        *field = Cow::Borrowed(&[format::TRUE]);
    }
}

fn has_entries(map: &[u8]) -> bool {
    let mut reader = Reader::new(map);
    let count = reader.byte().and_then(|code| reader.compound(code));
    count.is_ok_and(|(count, _)| count > 0)
}

/// Cuts the terminus that the answering end does not stand for down to its address.
fn lose_echo(fields: &mut [Cow<'_, [u8]>], attaching: Attaching) {
    let echo = match attaching {
        Attaching::Request => return,
        Attaching::Answer(Role::Receiver) => place::SOURCE,
        Attaching::Answer(Role::Sender) => place::TARGET,
    };
    if let Some(field) = fields.get_mut(echo)
        && let Some(short) = address_alone(field)
    {
        *field = Cow::Owned(short);
    }
}

/// A source or target with nothing but its address; `None` when that would not be shorter.
pub fn address_alone(terminus: &[u8]) -> Option<Vec<u8>> {
    let (code, mut fields) = Reader::new(terminus).composite().ok()?;
    if !matches!(code, descriptor::SOURCE | descriptor::TARGET) {
        return None;
    }
    let address = fields.raw(Kind::Any).ok()?.unwrap_or(&[format::NULL]);
    let mut out = Vec::with_capacity(address.len() + HEAD);
    let code = u8::try_from(code).ok()?;
    Writer::new(&mut out).composite(code, 1, |fields| fields.raw(address));
    (out.len() < terminus.len()).then_some(out)
}

/// A map with as many of its first entries as `room` holds; `None` when it holds none.
fn first_entries(map: &[u8], room: usize) -> Option<Vec<u8>> {
    let mut reader = Reader::new(map);
    let code = reader.byte().ok()?;
    let (count, mut entries) = reader.compound(code).ok()?;
    let room = room.checked_sub(HEAD)?;
    let mut taken = Vec::new();
    let mut pairs = 0;
    for _ in 0..count / 2 {
        let (key, value) = (entries.skip().ok()?, entries.skip().ok()?);
        if taken.len() + key.len() + value.len() > room {
            break;
        }
        taken.extend_from_slice(key);
        taken.extend_from_slice(value);
        pairs += 1;
    }
    if pairs == 0 {
        return None;
    }
    let mut out = Vec::with_capacity(taken.len() + HEAD);
    Writer::new(&mut out).map(pairs, |map| map.raw(&taken));
    Some(out)
}

// ---- any value ---------------------------------------------------------------------------------------------------

/// Appends `count` fields; each leaves at least the byte of a null to those behind it. `false`: one was lost without
/// which the others mean nothing.
fn fields(mut reader: Reader<'_>, count: u32, room: usize, out: &mut Vec<u8>) -> bool {
    let end = out.len().saturating_add(room);
    let mut keeps_meaning = true;
    for behind in (0..count).rev() {
        // Fields are whole: they were checked when they were read. Their number stays, whatever they are.
        let field = reader.skip().unwrap_or(&[format::NULL]);
        let reserved = usize::try_from(behind).unwrap_or(usize::MAX);
        let left = end.saturating_sub(out.len()).saturating_sub(reserved);
        // An error's condition, a terminus' expiry-policy.
        keeps_meaning &=
            field.len() <= left || !matches!(field.first(), Some(&(format::SYM8 | format::SYM32)));
        write(field, left, out);
    }
    keeps_meaning
}

fn write(encoded: &[u8], room: usize, out: &mut Vec<u8>) {
    if encoded.len() <= room {
        out.extend_from_slice(encoded);
        return;
    }
    let shortened = match encoded.first() {
        Some(&format::DESCRIBED) => composite(encoded, room),
        Some(&(format::STR8 | format::STR32)) => text(encoded, room),
        _ => None,
    };
    match shortened {
        Some(shortened) => out.extend_from_slice(&shortened),
        None => out.push(format::NULL),
    }
}

/// A described list with less inside; `None` when not even its head fits, when a symbol inside does not, or when it is
/// something else.
fn composite(encoded: &[u8], room: usize) -> Option<Vec<u8>> {
    let mut reader = Reader::new(encoded.get(1..)?);
    let descriptor = reader.skip().ok()?;
    let (count, body) = match reader.byte().ok()? {
        list @ (format::LIST8 | format::LIST32) => reader.compound(list).ok()?,
        _ => return None,
    };
    let room = room.checked_sub(1 + descriptor.len() + HEAD)?;
    if usize::try_from(count).ok()? > room {
        return None;
    }
    let mut inside = Vec::new();
    if !fields(body, count, room, &mut inside) {
        return None;
    }
    let size = u32::try_from(inside.len() + 4).ok()?;
    let mut out = vec![format::DESCRIBED];
    out.extend_from_slice(descriptor);
    out.push(format::LIST32);
    out.extend_from_slice(&size.to_be_bytes());
    out.extend_from_slice(&count.to_be_bytes());
    out.extend_from_slice(&inside);
    Some(out)
}

/// The beginning of a text. Hubs write their descriptions in JSON: an escape sequence is not cut in two.
fn text(encoded: &[u8], room: usize) -> Option<Vec<u8>> {
    let text = Reader::new(encoded).string().ok()?;
    let start = json_safe(text, room.checked_sub(HEAD)?);
    let mut out = Vec::with_capacity(start.len() + HEAD);
    Writer::new(&mut out).string(start);
    Some(out)
}

/// As much of the start of `text` as `limit` bytes hold, up to the end of a character or of a whole escape sequence.
fn json_safe(text: &str, limit: usize) -> &str {
    let mut end = 0;
    let mut characters = text.char_indices();
    while let Some((start, character)) = characters.next() {
        let mut next = start + character.len_utf8();
        if character == '\\'
            && let Some((start, escaped)) = characters.next()
        {
            next = start + escaped.len_utf8();
            let digits = if escaped == 'u' { 4 } else { 0 };
            for (start, digit) in characters.by_ref().take(digits) {
                next = start + digit.len_utf8();
            }
        }
        if next > limit {
            break;
        }
        end = next;
    }
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::condition::{AmqpError, ErrorView};
    use crate::amqp::value::Value;
    use proptest::prelude::*;

    #[test]
    fn an_error_keeps_its_condition_and_the_start_of_its_text() {
        let error = AmqpError {
            qd_condition: Some("qd:routed-link-lost"),
            ..AmqpError::new("amqp:link:detach-forced", "ä".repeat(1000))
        }
        .encode();
        let short = value(&error, 400);
        assert!(short.len() <= 400);
        let view = ErrorView::parse(&short).unwrap();
        assert_eq!(view.condition, "amqp:link:detach-forced");
        assert!(view.description.unwrap().starts_with("ää"));
        assert_eq!(value(&error, error.len()), error);
    }

    #[test]
    fn a_rejected_outcome_stays_one() {
        let error = AmqpError::new("amqp:not-allowed", "x".repeat(2000)).encode();
        let mut outcome = vec![format::TRUE];
        Writer::new(&mut outcome).composite(0x25, 1, |f| f.raw(&error));
        outcome.push(format::NULL);
        let whole = Tail {
            count: 3,
            bytes: &outcome,
        };
        let short = tail(whole, 300);
        assert!(short.len() <= 300);
        let mut reader = Reader::new(&short);
        assert!(reader.boolean().unwrap());
        let (code, mut fields) = reader.composite().unwrap();
        assert_eq!(code, 0x25);
        let error = fields.raw(Kind::Described).unwrap().unwrap();
        assert_eq!(ErrorView::parse(error).unwrap().condition, "amqp:not-allowed");
    }

    proptest! {
        /// Whatever the value, the result is one well-formed value that fits.
        #[test]
        fn the_result_is_well_formed_and_fits(texts in prop::collection::vec(".{0,60}", 0..8), room in 1usize..300) {
            let inner = Value::List(texts.iter().cloned().map(Value::String).collect());
            let nested = Value::Described(Box::new(Value::Ulong(0x1d)), Box::new(inner));
            let outer = Value::List(vec![Value::Boolean(true), nested.clone(), Value::Symbol("s".into()), nested]);
            let mut encoded = Vec::new();
            Value::Described(Box::new(Value::Ulong(0x25)), Box::new(outer)).encode(&mut encoded);
            let short = value(&encoded, room);
            prop_assert!(short.len() <= room, "{} in {room}", short.len());
            prop_assert!(Value::decode(&short).is_ok());
        }
    }
}
