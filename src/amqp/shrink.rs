//! Makes what cannot be split into frames fit a peer with small ones (AMQP 1.0 part 2, §2.7.1: at least 512 bytes).
//!
//! Errors and delivery states come from other peers and may be as large as those peers' frames. What does not fit is
//! left out, not cut to pieces: a text is shortened, a composite loses what is inside from the end, any other value
//! becomes null. The condition of an error and the kind of an outcome come first and so survive.

use super::codes::format;
use super::fields::Tail;
use super::reader::Reader;
use super::writer::Writer;

/// Head of a list32, of a string32: the most that a value has before its content.
const HEAD: usize = 9;

/// The fields of `tail` in at most `room` bytes; `None` when they fit as they are.
pub fn tail(tail: Tail<'_>, room: usize) -> Option<Vec<u8>> {
    if tail.bytes.len() <= room {
        return None;
    }
    let mut out = Vec::with_capacity(room);
    fields(Reader::new(tail.bytes), u32::from(tail.count), room, &mut out);
    Some(out)
}

/// A value in at most `room` bytes; `None` when it fits as it is.
pub fn value(encoded: &[u8], room: usize) -> Option<Vec<u8>> {
    if encoded.len() <= room {
        return None;
    }
    let mut out = Vec::with_capacity(room);
    write(encoded, room, &mut out);
    Some(out)
}

/// Appends `count` fields; each leaves at least the byte of a null to those behind it.
fn fields(mut reader: Reader<'_>, count: u32, room: usize, out: &mut Vec<u8>) {
    let end = out.len().saturating_add(room);
    for behind in (0..count).rev() {
        // Fields are whole: they were checked when they were read. Their number stays, whatever they are.
        let field = reader.skip().unwrap_or(&[format::NULL]);
        let reserved = usize::try_from(behind).unwrap_or(usize::MAX);
        let left = end.saturating_sub(out.len()).saturating_sub(reserved);
        write(field, left, out);
    }
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

/// A described list with less inside; `None` when not even its head fits, or when it is something else.
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
    fields(body, count, room, &mut inside);
    let size = u32::try_from(inside.len() + 4).ok()?;
    let mut out = vec![format::DESCRIBED];
    out.extend_from_slice(descriptor);
    out.push(format::LIST32);
    out.extend_from_slice(&size.to_be_bytes());
    out.extend_from_slice(&count.to_be_bytes());
    out.extend_from_slice(&inside);
    Some(out)
}

/// The beginning of a text.
fn text(encoded: &[u8], room: usize) -> Option<Vec<u8>> {
    let text = Reader::new(encoded).string().ok()?;
    let limit = room.checked_sub(HEAD)?;
    let end = (0..=limit.min(text.len()))
        .rev()
        .find(|&end| text.is_char_boundary(end))?;
    let mut out = Vec::with_capacity(end + HEAD);
    Writer::new(&mut out).string(text.get(..end)?);
    Some(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
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
        let short = value(&error, 400).unwrap();
        assert!(short.len() <= 400);
        let view = ErrorView::parse(&short).unwrap();
        assert_eq!(view.condition, "amqp:link:detach-forced");
        assert!(view.description.unwrap().starts_with("ää"));
        assert!(value(&error, error.len()).is_none());
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
        let short = tail(whole, 300).unwrap();
        assert!(short.len() <= 300);
        let mut reader = Reader::new(&short);
        assert!(reader.boolean().unwrap());
        let (code, mut fields) = reader.composite().unwrap();
        assert_eq!(code, 0x25);
        let error = fields.raw(crate::amqp::fields::Kind::Described).unwrap().unwrap();
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
            let short = value(&encoded, room).unwrap_or_else(|| encoded.clone());
            prop_assert!(short.len() <= room, "{} in {room}", short.len());
            prop_assert!(Value::decode(&short).is_ok());
        }
    }
}
