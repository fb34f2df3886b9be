//! The frame trace: what went over the wire, in the notation of qdrouterd 1.19's protocol trace.
//!
//! ```text
//!   -> AMQP
//! 0 -> @open(16) [container-id="Router.A", max-frame-size=0x4000]
//! 0 <- @transfer(20) [handle=0x0, delivery-id=0x0, delivery-tag=b"\x01"] (54)
//! 0 -> (EMPTY FRAME)
//!   <- EOS
//! ```
//!
//! Fields have the names that the specification gives them, absent ones are left out; unsigned integers are
//! hexadecimal, text is ASCII with everything else escaped, so that a peer cannot forge a log line.
//!
//! Unlike qdrouterd, the trace shows no secrets: SASL responses and challenges, messages, annotations of messages, and
//! any text that holds a shared access signature appear as a length.
//!
//! The trace is total: whatever the bytes, it ends after [`LIMIT`] bytes of text at most, it allocates nothing, and at
//! the first byte that makes no sense it says `(malformed at byte N)`.

use std::fmt::{self, Write as _};

use super::codes::{descriptor, format};
use super::composite::{self, Composite};
use super::frame::{Frame, FrameType};
use super::header::ProtocolHeader;
use super::reader::Reader;

/// The longest text of one trace; qdrouterd cuts a whole line at 2047 bytes.
pub const LIMIT: usize = 2000;

/// Values nested deeper than this are not shown.
const MAX_SHOWN_DEPTH: u8 = 16;

const TRUNCATED: &str = " ... (truncated)";

/// Which way it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// `<-`
    Received,
    /// `->`
    Sent,
}

/// What went over the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit<'a> {
    /// A protocol header.
    Header([u8; super::header::LENGTH]),
    /// A frame.
    Frame(Frame<'a>),
    /// The end of the stream.
    EndOfStream,
}

/// One line of trace; the caller puts the connection's name in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace<'a> {
    /// Which way it went.
    pub direction: Direction,
    /// What went.
    pub unit: Unit<'a>,
}

impl<'a> Trace<'a> {
    /// A frame.
    pub const fn frame(direction: Direction, frame: Frame<'a>) -> Self {
        Trace {
            direction,
            unit: Unit::Frame(frame),
        }
    }

    /// A protocol header, known or not.
    pub const fn header(direction: Direction, header: [u8; super::header::LENGTH]) -> Self {
        Trace {
            direction,
            unit: Unit::Header(header),
        }
    }

    /// The end of the stream.
    pub const fn end_of_stream(direction: Direction) -> Self {
        Trace {
            direction,
            unit: Unit::EndOfStream,
        }
    }
}

impl fmt::Display for Trace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bounded(f, |out| write_trace(out, self))
    }
}

/// One encoded value by itself, in the notation and within the bounds of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoded<'a>(pub &'a [u8]);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bounded(f, |out| {
            let mut cursor = Cursor::new(self.0);
            let result = write_value(out, &mut cursor, MAX_SHOWN_DEPTH);
            end(out, result)
        })
    }
}

fn bounded(
    f: &mut fmt::Formatter<'_>,
    write: impl FnOnce(&mut Limited<'_, '_>) -> fmt::Result,
) -> fmt::Result {
    let mut out = Limited {
        out: f,
        left: LIMIT - TRUNCATED.len(),
        is_full: false,
    };
    match write(&mut out) {
        Err(_) if out.is_full => f.write_str(TRUNCATED),
        result => result,
    }
}

/// Passes text on until the limit is reached, and then fails, which ends the walk through the frame.
struct Limited<'a, 'f> {
    out: &'a mut fmt::Formatter<'f>,
    left: usize,
    is_full: bool,
}

impl fmt::Write for Limited<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        match self.left.checked_sub(text.len()) {
            Some(left) => {
                self.left = left;
                self.out.write_str(text)
            }
            None => {
                self.is_full = true;
                // All text of a trace is ASCII, so any cut is between characters.
                self.out.write_str(text.get(..self.left).unwrap_or_default())?;
                Err(fmt::Error)
            }
        }
    }
}

fn write_trace(out: &mut Limited<'_, '_>, trace: &Trace<'_>) -> fmt::Result {
    let arrow = match trace.direction {
        Direction::Received => "<-",
        Direction::Sent => "->",
    };
    match trace.unit {
        Unit::Header(bytes) => {
            write!(out, "  {arrow} ")?;
            match ProtocolHeader::parse(bytes) {
                Some(ProtocolHeader::Amqp) => out.write_str("AMQP"),
                Some(ProtocolHeader::Sasl) => out.write_str("SASL"),
                Some(ProtocolHeader::Tls) => out.write_str("TLS"),
                None => {
                    out.write_str("(unknown protocol header ")?;
                    write_binary(out, &bytes)?;
                    out.write_char(')')
                }
            }
        }
        Unit::Frame(frame) => {
            write!(out, "{} {arrow} ", frame.channel)?;
            write_body(out, &frame)
        }
        Unit::EndOfStream => write!(out, "  {arrow} EOS"),
    }
}

fn write_body(out: &mut Limited<'_, '_>, frame: &Frame<'_>) -> fmt::Result {
    if frame.body.is_empty() {
        return out.write_str("(EMPTY FRAME)");
    }
    let mut cursor = Cursor::new(frame.body);
    let result = write_performative(out, &mut cursor, frame.frame_type);
    let is_whole = result.is_ok();
    end(out, result)?;
    match cursor.reader.rest().len() {
        // Behind a performative lies a message: never shown.
        length if is_whole && length > 0 => write!(out, " ({length})"),
        _ => Ok(()),
    }
}

/// Says where a walk came to its end before its time.
fn end(out: &mut Limited<'_, '_>, result: Result<(), Stop>) -> fmt::Result {
    match result {
        Err(Stop::Malformed(position)) => write!(out, "(malformed at byte {position})"),
        Err(Stop::Full) => Err(fmt::Error),
        Ok(()) => Ok(()),
    }
}

/// Why the walk through a frame ends early.
enum Stop {
    /// No more room; the formatter knows.
    Full,
    /// The value at this offset of the frame's body is malformed.
    Malformed(usize),
}

impl From<fmt::Error> for Stop {
    fn from(_: fmt::Error) -> Self {
        Stop::Full
    }
}

/// A reader that knows where in the frame's body it stands.
struct Cursor<'a> {
    reader: Reader<'a>,
    /// Offset of the end of the reader's bytes.
    end: usize,
}

impl<'a> Cursor<'a> {
    const fn new(bytes: &'a [u8]) -> Self {
        Cursor {
            reader: Reader::new(bytes),
            end: bytes.len(),
        }
    }

    fn position(&self) -> usize {
        self.end.saturating_sub(self.reader.rest().len())
    }

    /// Reads with `read`; a failure is reported at the value's first byte.
    fn read<T, E>(&mut self, read: impl FnOnce(&mut Reader<'a>) -> Result<T, E>) -> Result<T, Stop> {
        let position = self.position();
        read(&mut self.reader).map_err(|_| Stop::Malformed(position))
    }

    /// The content of a binary, string or symbol whose format code has been read.
    fn variable(&mut self, code: u8) -> Result<&'a [u8], Stop> {
        let length = match code >> 4 {
            0xa => u32::from(self.read(Reader::byte)?),
            _ => u32::from_be_bytes(self.read(Reader::array)?),
        };
        self.read(|reader| reader.take(usize::try_from(length).unwrap_or(usize::MAX)))
    }

    /// The content of a compound value whose format code has been read.
    fn compound(&mut self, code: u8) -> Result<(u32, Cursor<'a>), Stop> {
        let (count, reader) = self.read(|reader| reader.compound(code))?;
        Ok((
            count,
            Cursor {
                reader,
                end: self.position(),
            },
        ))
    }
}

/// The one composite that a frame starts with. Anything else than a performative may be, or hold, a message.
fn write_performative(
    out: &mut Limited<'_, '_>,
    cursor: &mut Cursor<'_>,
    frame_type: FrameType,
) -> Result<(), Stop> {
    if cursor.read(Reader::byte)? != format::DESCRIBED {
        return Err(Stop::Malformed(0));
    }
    let code = cursor.read(Reader::descriptor)?;
    let is_performative = match frame_type {
        FrameType::Amqp => (descriptor::OPEN..=descriptor::CLOSE).contains(&code),
        FrameType::Sasl => (descriptor::SASL_MECHANISMS..=descriptor::SASL_OUTCOME).contains(&code),
    };
    match composite::of_code(code) {
        Some(composite) if is_performative => {
            write!(out, "@{}({code}) ", composite.name)?;
            let list = cursor.read(Reader::byte)?;
            write_fields(out, cursor, list, composite, MAX_SHOWN_DEPTH)
        }
        _ => Ok(write!(out, "@{code:#x}")?),
    }
}

/// The list of a composite whose format code has been read.
fn write_fields(
    out: &mut Limited<'_, '_>,
    cursor: &mut Cursor<'_>,
    list: u8,
    composite: &Composite,
    depth: u8,
) -> Result<(), Stop> {
    let (count, mut fields) = cursor.compound(list)?;
    out.write_char('[')?;
    let mut separator = "";
    for index in 0..usize::try_from(count).unwrap_or(usize::MAX) {
        let field = fields.read(|reader| reader.peek_code())?;
        if field == format::NULL {
            fields.read(Reader::skip)?;
            continue;
        }
        out.write_str(separator)?;
        separator = ", ";
        if let Some(name) = composite.fields.get(index) {
            write!(out, "{name}=")?;
        }
        if composite.is_secret(index) {
            write_length(out, &mut fields)?;
        } else {
            write_value(out, &mut fields, depth)?;
        }
    }
    Ok(out.write_char(']')?)
}

/// What must not be shown: its size. For text and binary this is the length of the content.
fn write_length(out: &mut Limited<'_, '_>, cursor: &mut Cursor<'_>) -> Result<(), Stop> {
    let value = cursor.read(Reader::skip)?;
    let length = match value.split_first() {
        Some((code, rest)) if code >> 4 == 0xa => rest.len().saturating_sub(1),
        Some((code, rest)) if code >> 4 == 0xb => rest.len().saturating_sub(4),
        _ => value.len(),
    };
    Ok(write!(out, "({length} bytes)")?)
}

fn write_value(out: &mut Limited<'_, '_>, cursor: &mut Cursor<'_>, depth: u8) -> Result<(), Stop> {
    let Some(depth) = depth.checked_sub(1) else {
        cursor.read(Reader::skip)?;
        return Ok(out.write_str("...")?);
    };
    match cursor.read(Reader::byte)? {
        format::DESCRIBED => write_described(out, cursor, depth),
        code => write_plain(out, cursor, code, depth),
    }
}

fn write_described(out: &mut Limited<'_, '_>, cursor: &mut Cursor<'_>, depth: u8) -> Result<(), Stop> {
    out.write_char('@')?;
    let mut lookahead = cursor.reader;
    let Some(composite) = lookahead.descriptor().ok().and_then(composite::of_code) else {
        write_value(out, cursor, depth)?;
        out.write_char(' ')?;
        return write_value(out, cursor, depth);
    };
    cursor.reader = lookahead;
    write!(out, "{}({}) ", composite.name, composite.code)?;
    match cursor.read(|reader| reader.peek_code())? {
        list @ (format::LIST0 | format::LIST8 | format::LIST32) => {
            cursor.read(Reader::byte)?;
            write_fields(out, cursor, list, composite, depth)
        }
        // A message section or a SASL value in a place where none belongs.
        _ if composite.is_opaque() => write_length(out, cursor),
        _ => write_value(out, cursor, depth),
    }
}

/// A value that is not described and whose format code has been read.
fn write_plain(out: &mut Limited<'_, '_>, cursor: &mut Cursor<'_>, code: u8, depth: u8) -> Result<(), Stop> {
    match code {
        format::VBIN8 | format::VBIN32 => {
            let bytes = cursor.variable(code)?;
            Ok(if holds_signature(bytes) {
                write_hidden(out, bytes)
            } else {
                write_binary(out, bytes)
            }?)
        }
        format::STR8 | format::STR32 => {
            let bytes = cursor.variable(code)?;
            Ok(if holds_signature(bytes) {
                write_hidden(out, bytes)
            } else {
                write_quoted(out, bytes)
            }?)
        }
        format::SYM8 | format::SYM32 => {
            let bytes = cursor.variable(code)?;
            Ok(if holds_signature(bytes) {
                write_hidden(out, bytes)
            } else {
                write_symbol(out, bytes)
            }?)
        }
        format::LIST0 | format::LIST8 | format::LIST32 => {
            let (count, mut elements) = cursor.compound(code)?;
            out.write_char('[')?;
            for index in 0..count {
                out.write_str(if index == 0 { "" } else { ", " })?;
                write_value(out, &mut elements, depth)?;
            }
            Ok(out.write_char(']')?)
        }
        format::MAP8 | format::MAP32 => {
            let (count, mut entries) = cursor.compound(code)?;
            out.write_char('{')?;
            for index in 0..count {
                out.write_str(match index {
                    0 => "",
                    _ if index % 2 == 1 => "=",
                    _ => ", ",
                })?;
                write_value(out, &mut entries, depth)?;
            }
            Ok(out.write_char('}')?)
        }
        format::ARRAY8 | format::ARRAY32 => {
            let (count, mut elements) = cursor.compound(code)?;
            write_array(out, &mut elements, count, depth)
        }
        _ => write_fixed(out, cursor, code),
    }
}

/// An array behind its count: one constructor, then the elements (AMQP 1.0 part 1, §1.6.24).
fn write_array(
    out: &mut Limited<'_, '_>,
    elements: &mut Cursor<'_>,
    count: u32,
    depth: u8,
) -> Result<(), Stop> {
    out.write_str("@<")?;
    let mut code = elements.read(Reader::byte)?;
    if code == format::DESCRIBED {
        out.write_char('@')?;
        write_value(out, elements, depth)?;
        out.write_char(' ')?;
        code = elements.read(Reader::byte)?;
    }
    write!(out, "{}>[", type_name(code))?;
    let Some(depth) = depth.checked_sub(1) else {
        return Ok(out.write_str("...]")?);
    };
    for index in 0..count {
        out.write_str(if index == 0 { "" } else { ", " })?;
        write_plain(out, elements, code, depth)?;
    }
    Ok(out.write_char(']')?)
}

/// A value of fixed width.
fn write_fixed(out: &mut Limited<'_, '_>, cursor: &mut Cursor<'_>, code: u8) -> Result<(), Stop> {
    let start = cursor.position().saturating_sub(1);
    match code {
        format::NULL => out.write_str("null")?,
        format::TRUE => out.write_str("true")?,
        format::FALSE => out.write_str("false")?,
        format::BOOLEAN => match cursor.read(Reader::byte)? {
            0 => out.write_str("false")?,
            1 => out.write_str("true")?,
            _ => return Err(Stop::Malformed(start)),
        },
        format::UINT0 | format::ULONG0 => out.write_str("0x0")?,
        format::UBYTE | format::SMALLUINT | format::SMALLULONG => {
            write!(out, "{:#x}", cursor.read(Reader::byte)?)?;
        }
        format::USHORT => write!(out, "{:#x}", u16::from_be_bytes(cursor.read(Reader::array)?))?,
        format::UINT => write!(out, "{:#x}", u32::from_be_bytes(cursor.read(Reader::array)?))?,
        format::ULONG => write!(out, "{:#x}", u64::from_be_bytes(cursor.read(Reader::array)?))?,
        format::BYTE | format::SMALLINT | format::SMALLLONG => {
            write!(out, "{}", i8::from_be_bytes(cursor.read(Reader::array)?))?;
        }
        format::SHORT => write!(out, "{}", i16::from_be_bytes(cursor.read(Reader::array)?))?,
        format::INT => write!(out, "{}", i32::from_be_bytes(cursor.read(Reader::array)?))?,
        format::LONG | format::TIMESTAMP => {
            write!(out, "{}", i64::from_be_bytes(cursor.read(Reader::array)?))?;
        }
        format::FLOAT => write!(out, "{:?}", f32::from_be_bytes(cursor.read(Reader::array)?))?,
        format::DOUBLE => write!(out, "{:?}", f64::from_be_bytes(cursor.read(Reader::array)?))?,
        format::CHAR => write!(out, "U+{:04X}", u32::from_be_bytes(cursor.read(Reader::array)?))?,
        format::DECIMAL32 => write!(
            out,
            "D32({:08x})",
            u32::from_be_bytes(cursor.read(Reader::array)?)
        )?,
        format::DECIMAL64 => write!(
            out,
            "D64({:016x})",
            u64::from_be_bytes(cursor.read(Reader::array)?)
        )?,
        format::DECIMAL128 => write!(
            out,
            "D128({:032x})",
            u128::from_be_bytes(cursor.read(Reader::array)?)
        )?,
        format::UUID => write_uuid(out, cursor.read(Reader::array)?)?,
        _ => return Err(Stop::Malformed(start)),
    }
    Ok(())
}

fn write_uuid(out: &mut Limited<'_, '_>, bytes: [u8; 16]) -> fmt::Result {
    out.write_str("UUID(")?;
    for (index, byte) in bytes.iter().enumerate() {
        let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
        write!(out, "{dash}{byte:02x}")?;
    }
    out.write_char(')')
}

/// IoT Hub: a token that someone put into a field of a performative by mistake, or an error that quotes one.
fn holds_signature(bytes: &[u8]) -> bool {
    const MARKS: [&[u8]; 2] = [b"sharedaccesssignature", b"sig="];
    MARKS.iter().any(|mark| {
        bytes
            .windows(mark.len())
            .any(|window| window.eq_ignore_ascii_case(mark))
    })
}

fn write_hidden(out: &mut Limited<'_, '_>, bytes: &[u8]) -> fmt::Result {
    write!(out, "({} bytes)", bytes.len())
}

fn write_binary(out: &mut Limited<'_, '_>, bytes: &[u8]) -> fmt::Result {
    out.write_char('b')?;
    write_quoted(out, bytes)
}

fn write_symbol(out: &mut Limited<'_, '_>, bytes: &[u8]) -> fmt::Result {
    out.write_char(':')?;
    let is_plain = bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-');
    if is_plain {
        write_escaped(out, bytes)
    } else {
        write_quoted(out, bytes)
    }
}

fn write_quoted(out: &mut Limited<'_, '_>, bytes: &[u8]) -> fmt::Result {
    out.write_char('"')?;
    write_escaped(out, bytes)?;
    out.write_char('"')
}

/// Printable ASCII as it is, all else as `\xNN`.
fn write_escaped(out: &mut Limited<'_, '_>, bytes: &[u8]) -> fmt::Result {
    for &byte in bytes {
        match byte {
            b'"' | b'\'' | b'\\' => write!(out, "\\x{byte:02x}")?,
            b' '..=b'~' => out.write_char(char::from(byte))?,
            _ => write!(out, "\\x{byte:02x}")?,
        }
    }
    Ok(())
}

/// The type that a format code encodes.
const fn type_name(code: u8) -> &'static str {
    match code {
        format::NULL => "null",
        format::TRUE | format::FALSE | format::BOOLEAN => "boolean",
        format::UBYTE => "ubyte",
        format::USHORT => "ushort",
        format::UINT0 | format::SMALLUINT | format::UINT => "uint",
        format::ULONG0 | format::SMALLULONG | format::ULONG => "ulong",
        format::BYTE => "byte",
        format::SHORT => "short",
        format::SMALLINT | format::INT => "int",
        format::SMALLLONG | format::LONG => "long",
        format::FLOAT => "float",
        format::DOUBLE => "double",
        format::DECIMAL32 => "decimal32",
        format::DECIMAL64 => "decimal64",
        format::DECIMAL128 => "decimal128",
        format::CHAR => "char",
        format::TIMESTAMP => "timestamp",
        format::UUID => "uuid",
        format::VBIN8 | format::VBIN32 => "binary",
        format::STR8 | format::STR32 => "string",
        format::SYM8 | format::SYM32 => "symbol",
        format::LIST0 | format::LIST8 | format::LIST32 => "list",
        format::MAP8 | format::MAP32 => "map",
        format::ARRAY8 | format::ARRAY32 => "array",
        _ => "unknown",
    }
}
