//! Any AMQP value as a tree (AMQP 1.0 part 1, §1.6); for the few places that look into messages, never for the data
//! path, which carries values encoded.
//!
//! A tree that comes from a peer is at most [`MAX_DEPTH`] deep and has at most [`MAX_VALUES`] nodes.

use super::DecodeError;
use super::codes::format;
use super::reader::{MAX_DEPTH, Reader};
use super::writer::Writer;

/// Most nodes of a decoded tree: the elements of an array may take no bytes at all, so their count bounds nothing.
pub const MAX_VALUES: usize = 65_536;

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`
    Null,
    /// `boolean`
    Boolean(bool),
    /// `ubyte`
    Ubyte(u8),
    /// `ushort`
    Ushort(u16),
    /// `uint`
    Uint(u32),
    /// `ulong`
    Ulong(u64),
    /// `byte`
    Byte(i8),
    /// `short`
    Short(i16),
    /// `int`
    Int(i32),
    /// `long`
    Long(i64),
    /// `float`
    Float(f32),
    /// `double`
    Double(f64),
    /// `decimal32`, in its IEEE 754 interchange form.
    Decimal32([u8; 4]),
    /// `decimal64`, in its IEEE 754 interchange form.
    Decimal64([u8; 8]),
    /// `decimal128`, in its IEEE 754 interchange form.
    Decimal128([u8; 16]),
    /// `char`
    Char(char),
    /// `timestamp`: milliseconds since 1970.
    Timestamp(i64),
    /// `uuid`
    Uuid([u8; 16]),
    /// `binary`
    Binary(Vec<u8>),
    /// `string`
    String(String),
    /// `symbol`
    Symbol(String),
    /// `list`
    List(Vec<Value>),
    /// `map`, in the order of the wire.
    Map(Vec<(Value, Value)>),
    /// `array`
    Array(Array),
    /// A value with a descriptor.
    Described(Box<Value>, Box<Value>),
}

/// An array: elements of one type, which may share a descriptor (AMQP 1.0 part 1, §1.6.24).
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    descriptor: Option<Box<Value>>,
    /// The widest format code of the elements' type.
    element: u8,
    elements: Vec<Value>,
}

impl Array {
    /// An array of `elements`, with their common `descriptor` if there is one. `None` when they are not of one type,
    /// or there are none to tell the type from, or they are described themselves.
    pub fn new(descriptor: Option<Value>, elements: Vec<Value>) -> Option<Self> {
        let element = elements.first()?.array_code()?;
        let is_uniform = elements.iter().all(|value| value.array_code() == Some(element));
        is_uniform.then(|| Array {
            descriptor: descriptor.map(Box::new),
            element,
            elements,
        })
    }

    /// An array without elements, of the type of `example`. `None` when that is described.
    pub fn empty_like(example: &Value) -> Option<Self> {
        Some(Array {
            descriptor: None,
            element: example.array_code()?,
            elements: Vec::new(),
        })
    }

    /// What describes every element.
    pub fn descriptor(&self) -> Option<&Value> {
        self.descriptor.as_deref()
    }

    /// The elements.
    pub fn elements(&self) -> &[Value] {
        &self.elements
    }
}

impl Value {
    /// The value that `bytes` encode, all of them.
    ///
    /// # Errors
    /// The bytes are not one well-formed value, or one beyond the limits.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let value = Self::read(&mut reader)?;
        if reader.is_empty() {
            Ok(value)
        } else {
            Err(DecodeError::BadCompound)
        }
    }

    /// Reads one value.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Decoder {
            values_left: MAX_VALUES,
        }
        .value(reader, MAX_DEPTH)
    }

    /// Appends the value in its shortest encoding; the elements of an array in the widest of their type.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Value::Null => out.push(format::NULL),
            Value::Boolean(value) => Writer::new(out).boolean(*value),
            Value::Uint(value) => Writer::new(out).uint(*value),
            Value::Int(value) => Writer::new(out).int(*value),
            Value::Ulong(0) => out.push(format::ULONG0),
            Value::Ulong(value) => match u8::try_from(*value) {
                Ok(small) => out.extend_from_slice(&[format::SMALLULONG, small]),
                Err(_) => self.encode_wide(format::ULONG, out),
            },
            Value::Long(value) => match i8::try_from(*value) {
                Ok(small) => out.extend_from_slice(&[format::SMALLLONG, small.cast_unsigned()]),
                Err(_) => self.encode_wide(format::LONG, out),
            },
            Value::Binary(bytes) => Writer::new(out).binary(bytes),
            Value::String(text) => Writer::new(out).string(text),
            Value::Symbol(text) => Writer::new(out).symbol(text),
            Value::List(values) if values.is_empty() => out.push(format::LIST0),
            Value::List(values) => {
                encode_compound(
                    format::LIST8,
                    format::LIST32,
                    values.len(),
                    &list_body(values),
                    out,
                );
            }
            Value::Map(entries) => {
                encode_compound(
                    format::MAP8,
                    format::MAP32,
                    entries.len() * 2,
                    &map_body(entries),
                    out,
                );
            }
            Value::Array(array) => {
                encode_compound(
                    format::ARRAY8,
                    format::ARRAY32,
                    array.elements.len(),
                    &array.body(),
                    out,
                );
            }
            Value::Described(descriptor, value) => {
                out.push(format::DESCRIBED);
                descriptor.encode(out);
                value.encode(out);
            }
            _ => match self.array_code() {
                Some(code) => self.encode_wide(code, out),
                None => out.push(format::NULL),
            },
        }
    }

    fn encode_wide(&self, code: u8, out: &mut Vec<u8>) {
        out.push(code);
        self.encode_content(out);
    }

    /// What follows the widest format code of the value's type.
    fn encode_content(&self, out: &mut Vec<u8>) {
        match self {
            Value::Null | Value::Described(..) => {}
            Value::Boolean(value) => out.push(u8::from(*value)),
            Value::Ubyte(value) => out.push(*value),
            Value::Ushort(value) => out.extend_from_slice(&value.to_be_bytes()),
            Value::Uint(value) => out.extend_from_slice(&value.to_be_bytes()),
            Value::Ulong(value) => out.extend_from_slice(&value.to_be_bytes()),
            Value::Byte(value) => out.extend_from_slice(&value.to_be_bytes()),
            Value::Short(value) => out.extend_from_slice(&value.to_be_bytes()),
            Value::Int(value) => out.extend_from_slice(&value.to_be_bytes()),
            Value::Long(value) | Value::Timestamp(value) => out.extend_from_slice(&value.to_be_bytes()),
            Value::Float(value) => out.extend_from_slice(&value.to_be_bytes()),
            Value::Double(value) => out.extend_from_slice(&value.to_be_bytes()),
            Value::Decimal32(bytes) => out.extend_from_slice(bytes),
            Value::Decimal64(bytes) => out.extend_from_slice(bytes),
            Value::Decimal128(bytes) | Value::Uuid(bytes) => out.extend_from_slice(bytes),
            Value::Char(value) => out.extend_from_slice(&u32::from(*value).to_be_bytes()),
            Value::Binary(bytes) => encode_sized(bytes, out),
            Value::String(text) | Value::Symbol(text) => encode_sized(text.as_bytes(), out),
            Value::List(values) => encode_counted(values.len(), &list_body(values), out),
            Value::Map(entries) => encode_counted(entries.len() * 2, &map_body(entries), out),
            Value::Array(array) => encode_counted(array.elements.len(), &array.body(), out),
        }
    }

    /// The widest format code of the value's type, which holds for every element of an array.
    const fn array_code(&self) -> Option<u8> {
        Some(match self {
            Value::Null => format::NULL,
            Value::Boolean(_) => format::BOOLEAN,
            Value::Ubyte(_) => format::UBYTE,
            Value::Ushort(_) => format::USHORT,
            Value::Uint(_) => format::UINT,
            Value::Ulong(_) => format::ULONG,
            Value::Byte(_) => format::BYTE,
            Value::Short(_) => format::SHORT,
            Value::Int(_) => format::INT,
            Value::Long(_) => format::LONG,
            Value::Float(_) => format::FLOAT,
            Value::Double(_) => format::DOUBLE,
            Value::Decimal32(_) => format::DECIMAL32,
            Value::Decimal64(_) => format::DECIMAL64,
            Value::Decimal128(_) => format::DECIMAL128,
            Value::Char(_) => format::CHAR,
            Value::Timestamp(_) => format::TIMESTAMP,
            Value::Uuid(_) => format::UUID,
            Value::Binary(_) => format::VBIN32,
            Value::String(_) => format::STR32,
            Value::Symbol(_) => format::SYM32,
            Value::List(_) => format::LIST32,
            Value::Map(_) => format::MAP32,
            Value::Array(_) => format::ARRAY32,
            Value::Described(..) => return None,
        })
    }
}

/// What a caller may ask of a value without caring for its width.
impl Value {
    /// The text of a string or symbol.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Value::String(text) | Value::Symbol(text) => Some(text),
            _ => None,
        }
    }

    /// The number of any integer type that fits.
    pub fn as_integer(&self) -> Option<i64> {
        match self {
            Value::Ubyte(value) => Some(i64::from(*value)),
            Value::Ushort(value) => Some(i64::from(*value)),
            Value::Uint(value) => Some(i64::from(*value)),
            Value::Ulong(value) => i64::try_from(*value).ok(),
            Value::Byte(value) => Some(i64::from(*value)),
            Value::Short(value) => Some(i64::from(*value)),
            Value::Int(value) => Some(i64::from(*value)),
            Value::Long(value) | Value::Timestamp(value) => Some(*value),
            _ => None,
        }
    }

    /// The value under a string or symbol key of a map.
    pub fn entry(&self, key: &str) -> Option<&Value> {
        match self {
            Value::Map(entries) => entries
                .iter()
                .find(|(found, _)| found.as_text() == Some(key))
                .map(|(_, value)| value),
            _ => None,
        }
    }
}

impl Array {
    /// The constructor and the elements.
    fn body(&self) -> Vec<u8> {
        let mut body = Vec::new();
        if let Some(descriptor) = &self.descriptor {
            body.push(format::DESCRIBED);
            descriptor.encode(&mut body);
        }
        body.push(self.element);
        for element in &self.elements {
            element.encode_content(&mut body);
        }
        body
    }
}

fn list_body(values: &[Value]) -> Vec<u8> {
    let mut body = Vec::new();
    for value in values {
        value.encode(&mut body);
    }
    body
}

fn map_body(entries: &[(Value, Value)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in entries {
        key.encode(&mut body);
        value.encode(&mut body);
    }
    body
}

fn encode_compound(short: u8, long: u8, count: usize, body: &[u8], out: &mut Vec<u8>) {
    match (u8::try_from(body.len() + 1), u8::try_from(count)) {
        (Ok(size), Ok(count)) => {
            out.extend_from_slice(&[short, size, count]);
            out.extend_from_slice(body);
        }
        _ => {
            out.push(long);
            encode_counted(count, body, out);
        }
    }
}

fn encode_counted(count: usize, body: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&wire_size(body.len() + 4));
    out.extend_from_slice(&wire_size(count));
    out.extend_from_slice(body);
}

fn encode_sized(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&wire_size(bytes.len()));
    out.extend_from_slice(bytes);
}

/// What we encode fits a frame, which has a 32-bit size.
fn wire_size(size: usize) -> [u8; 4] {
    u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes()
}

/// Builds a tree within the limits.
struct Decoder {
    values_left: usize,
}

impl Decoder {
    fn value(&mut self, reader: &mut Reader<'_>, depth: u8) -> Result<Value, DecodeError> {
        let depth = depth.checked_sub(1).ok_or(DecodeError::TooDeep)?;
        let code = reader.byte()?;
        if code == format::DESCRIBED {
            self.count_value()?;
            let descriptor = self.value(reader, depth)?;
            let value = self.value(reader, depth)?;
            return Ok(Value::Described(Box::new(descriptor), Box::new(value)));
        }
        self.content(code, reader, depth)
    }

    fn count_value(&mut self) -> Result<(), DecodeError> {
        self.values_left = self.values_left.checked_sub(1).ok_or(DecodeError::Range)?;
        Ok(())
    }

    /// The value whose format code has been read.
    fn content(&mut self, code: u8, reader: &mut Reader<'_>, depth: u8) -> Result<Value, DecodeError> {
        self.count_value()?;
        Ok(match code {
            format::NULL => Value::Null,
            format::TRUE => Value::Boolean(true),
            format::FALSE => Value::Boolean(false),
            format::BOOLEAN => match reader.byte()? {
                0 => Value::Boolean(false),
                1 => Value::Boolean(true),
                _ => return Err(DecodeError::Range),
            },
            format::UBYTE => Value::Ubyte(reader.byte()?),
            format::USHORT => Value::Ushort(u16::from_be_bytes(reader.array()?)),
            format::UINT0 => Value::Uint(0),
            format::SMALLUINT => Value::Uint(u32::from(reader.byte()?)),
            format::UINT => Value::Uint(u32::from_be_bytes(reader.array()?)),
            format::ULONG0 => Value::Ulong(0),
            format::SMALLULONG => Value::Ulong(u64::from(reader.byte()?)),
            format::ULONG => Value::Ulong(u64::from_be_bytes(reader.array()?)),
            format::BYTE => Value::Byte(i8::from_be_bytes(reader.array()?)),
            format::SHORT => Value::Short(i16::from_be_bytes(reader.array()?)),
            format::SMALLINT => Value::Int(i32::from(i8::from_be_bytes(reader.array()?))),
            format::INT => Value::Int(i32::from_be_bytes(reader.array()?)),
            format::SMALLLONG => Value::Long(i64::from(i8::from_be_bytes(reader.array()?))),
            format::LONG => Value::Long(i64::from_be_bytes(reader.array()?)),
            format::FLOAT => Value::Float(f32::from_be_bytes(reader.array()?)),
            format::DOUBLE => Value::Double(f64::from_be_bytes(reader.array()?)),
            format::DECIMAL32 => Value::Decimal32(reader.array()?),
            format::DECIMAL64 => Value::Decimal64(reader.array()?),
            format::DECIMAL128 => Value::Decimal128(reader.array()?),
            format::CHAR => {
                let number = u32::from_be_bytes(reader.array()?);
                Value::Char(char::from_u32(number).ok_or(DecodeError::BadText)?)
            }
            format::TIMESTAMP => Value::Timestamp(i64::from_be_bytes(reader.array()?)),
            format::UUID => Value::Uuid(reader.array()?),
            format::VBIN8 | format::VBIN32 => Value::Binary(variable(code, reader)?.to_vec()),
            format::STR8 | format::STR32 => Value::String(text(variable(code, reader)?)?),
            format::SYM8 | format::SYM32 => {
                let bytes = variable(code, reader)?;
                if !bytes.is_ascii() {
                    return Err(DecodeError::BadText);
                }
                Value::Symbol(text(bytes)?)
            }
            format::LIST0 | format::LIST8 | format::LIST32 => self.list(code, reader, depth)?,
            format::MAP8 | format::MAP32 => self.map(code, reader, depth)?,
            format::ARRAY8 | format::ARRAY32 => self.array(code, reader, depth)?,
            _ => return Err(DecodeError::FormatCode(code)),
        })
    }

    fn list(&mut self, code: u8, reader: &mut Reader<'_>, depth: u8) -> Result<Value, DecodeError> {
        let (count, mut body) = reader.compound(code)?;
        let mut values = Vec::new();
        for _ in 0..count {
            values.push(self.value(&mut body, depth)?);
        }
        expect_end(&body)?;
        Ok(Value::List(values))
    }

    fn map(&mut self, code: u8, reader: &mut Reader<'_>, depth: u8) -> Result<Value, DecodeError> {
        let (count, mut body) = reader.compound(code)?;
        if count % 2 == 1 {
            return Err(DecodeError::BadCompound);
        }
        let mut entries = Vec::new();
        for _ in 0..count / 2 {
            let key = self.value(&mut body, depth)?;
            entries.push((key, self.value(&mut body, depth)?));
        }
        expect_end(&body)?;
        Ok(Value::Map(entries))
    }

    fn array(&mut self, code: u8, reader: &mut Reader<'_>, depth: u8) -> Result<Value, DecodeError> {
        let depth = depth.checked_sub(1).ok_or(DecodeError::TooDeep)?;
        let (count, mut body) = reader.compound(code)?;
        let mut code = body.byte()?;
        let mut descriptor = None;
        if code == format::DESCRIBED {
            descriptor = Some(Box::new(self.value(&mut body, depth)?));
            code = body.byte()?;
        }
        let mut elements = Vec::new();
        for _ in 0..count {
            elements.push(self.content(code, &mut body, depth)?);
        }
        expect_end(&body)?;
        Ok(Value::Array(Array {
            descriptor,
            element: widest(code)?,
            elements,
        }))
    }
}

fn expect_end(body: &Reader<'_>) -> Result<(), DecodeError> {
    if body.is_empty() {
        Ok(())
    } else {
        Err(DecodeError::BadCompound)
    }
}

/// The content of a binary, string or symbol whose format code has been read.
fn variable<'a>(code: u8, reader: &mut Reader<'a>) -> Result<&'a [u8], DecodeError> {
    let size = match code >> 4 {
        0xa => u32::from(reader.byte()?),
        _ => u32::from_be_bytes(reader.array()?),
    };
    reader.take(usize::try_from(size).map_err(|_| DecodeError::Truncated)?)
}

fn text(bytes: &[u8]) -> Result<String, DecodeError> {
    std::str::from_utf8(bytes)
        .map(str::to_owned)
        .map_err(|_| DecodeError::BadText)
}

/// The widest format code of the type that `code` encodes.
const fn widest(code: u8) -> Result<u8, DecodeError> {
    Ok(match code {
        format::TRUE | format::FALSE => format::BOOLEAN,
        format::UINT0 | format::SMALLUINT => format::UINT,
        format::ULONG0 | format::SMALLULONG => format::ULONG,
        format::SMALLINT => format::INT,
        format::SMALLLONG => format::LONG,
        format::VBIN8 => format::VBIN32,
        format::STR8 => format::STR32,
        format::SYM8 => format::SYM32,
        format::LIST0 | format::LIST8 => format::LIST32,
        format::MAP8 => format::MAP32,
        format::ARRAY8 => format::ARRAY32,
        format::NULL
        | format::BOOLEAN
        | format::UBYTE
        | format::USHORT
        | format::UINT
        | format::ULONG
        | format::BYTE
        | format::SHORT
        | format::INT
        | format::LONG
        | format::FLOAT
        | format::DOUBLE
        | format::DECIMAL32
        | format::DECIMAL64
        | format::DECIMAL128
        | format::CHAR
        | format::TIMESTAMP
        | format::UUID
        | format::VBIN32
        | format::STR32
        | format::SYM32
        | format::LIST32
        | format::MAP32
        | format::ARRAY32 => code,
        _ => return Err(DecodeError::FormatCode(code)),
    })
}
