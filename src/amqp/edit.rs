//! Edits of an attach: another address in a terminus, another max-message-size; every other byte stays as it was.
//!
//! For what link routing must change on the way (external prefixes, virtual hosts, limits of a policy). Widths of lists
//! are kept while they hold, descriptors are copied in whichever form they came, and fields that are not there are
//! added only as far as the edited one.

use super::codes::{descriptor, format};
use super::fields::Tail;
use super::reader::Reader;
use super::writer::Writer;

/// Where the edited fields are, counted from `snd-settle-mode` (AMQP 1.0 part 2, §2.7.3).
const SOURCE: usize = 2;
const TARGET: usize = 3;
const MAX_MESSAGE_SIZE: usize = 7;

/// What to change in an attach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Edits<'a> {
    /// `address` of the source.
    pub source_address: Option<&'a str>,
    /// `address` of the target.
    pub target_address: Option<&'a str>,
    /// `max-message-size` in bytes.
    pub max_message_size: Option<u64>,
}

/// The fields of an attach behind `role`, edited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EditedTail {
    count: u8,
    bytes: Vec<u8>,
}

impl EditedTail {
    /// The fields, to be written or read.
    pub fn tail(&self) -> Tail<'_> {
        Tail {
            count: self.count,
            bytes: &self.bytes,
        }
    }
}

/// The fields of an attach behind `role` with `edits` applied.
///
/// `None` when a terminus whose address is to be set is null, absent, no described list, or a coordinator, which has no
/// address (AMQP 1.0 part 4, §4.5.1); and when the fields are not what an attach has.
pub fn attach_tail(tail: Tail<'_>, edits: &Edits<'_>) -> Option<EditedTail> {
    let edited = [
        edits.source_address.map(|_| SOURCE),
        edits.target_address.map(|_| TARGET),
        edits.max_message_size.map(|_| MAX_MESSAGE_SIZE),
    ];
    let present = usize::from(tail.count);
    let count = edited
        .into_iter()
        .flatten()
        .fold(present, |count, index| count.max(index + 1));
    let mut reader = Reader::new(tail.bytes);
    let mut out = Vec::with_capacity(tail.bytes.len() + 64);
    for index in 0..count {
        let field = match index < present {
            true => reader.skip().ok()?,
            false => &[format::NULL],
        };
        let address = match index {
            SOURCE => edits.source_address,
            TARGET => edits.target_address,
            _ => None,
        };
        let size = edits.max_message_size.filter(|_| index == MAX_MESSAGE_SIZE);
        match (address, size) {
            (Some(address), _) => write_terminus(&mut out, field, address)?,
            (None, Some(size)) => Writer::new(&mut out).ulong(size),
            (None, None) => out.extend_from_slice(field),
        }
    }
    Some(EditedTail {
        count: u8::try_from(count).ok()?,
        bytes: out,
    })
}

/// The `max-message-size` among the fields of an attach behind `role`; `None` when it is null or absent.
pub fn max_message_size(tail: Tail<'_>) -> Option<u64> {
    if usize::from(tail.count) <= MAX_MESSAGE_SIZE {
        return None;
    }
    let mut reader = Reader::new(tail.bytes);
    for _ in 0..MAX_MESSAGE_SIZE {
        reader.skip().ok()?;
    }
    match reader.null() {
        true => None,
        false => reader.ulong().ok(),
    }
}

/// A source or target with another address, which is the first field of both (AMQP 1.0 part 3, §3.5.3 and §3.5.4).
fn write_terminus(out: &mut Vec<u8>, encoded: &[u8], address: &str) -> Option<()> {
    let (code, _) = Reader::new(encoded).composite().ok()?;
    if !matches!(code, descriptor::SOURCE | descriptor::TARGET) {
        return None;
    }
    let mut reader = Reader::new(encoded.get(1..)?);
    let name = reader.skip().ok()?;
    let width = reader.byte().ok()?;
    let (count, mut fields) = reader.compound(width).ok()?;
    if count > 0 {
        fields.skip().ok()?;
    }
    let mut content = Vec::with_capacity(address.len() + 5 + fields.rest().len());
    Writer::new(&mut content).string(address);
    content.extend_from_slice(fields.rest());
    out.push(format::DESCRIBED);
    out.extend_from_slice(name);
    Writer::new(out).list(count.max(1), &content, width == format::LIST32);
    Some(())
}
