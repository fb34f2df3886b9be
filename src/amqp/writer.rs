//! Appends encoded values to a byte vector, each in its shortest encoding (AMQP 1.0 part 1, §1.6).

use super::codes::format;
use super::fields::Tail;

/// Appends values to the end of a vector.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Writer<'a> {
    /// A writer at the end of `out`.
    pub const fn new(out: &'a mut Vec<u8>) -> Self {
        Writer { out }
    }

    /// Bytes that are already encoded.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// `null`
    pub fn null(&mut self) {
        self.out.push(format::NULL);
    }

    /// `boolean`
    pub fn boolean(&mut self, value: bool) {
        self.out.push(if value { format::TRUE } else { format::FALSE });
    }

    /// `ubyte`
    pub fn ubyte(&mut self, value: u8) {
        self.out.extend_from_slice(&[format::UBYTE, value]);
    }

    /// `ushort`
    pub fn ushort(&mut self, value: u16) {
        self.out.push(format::USHORT);
        self.out.extend_from_slice(&value.to_be_bytes());
    }

    /// `uint`
    pub fn uint(&mut self, value: u32) {
        match u8::try_from(value) {
            Ok(0) => self.out.push(format::UINT0),
            Ok(small) => self.out.extend_from_slice(&[format::SMALLUINT, small]),
            Err(_) => {
                self.out.push(format::UINT);
                self.out.extend_from_slice(&value.to_be_bytes());
            }
        }
    }

    /// `ulong`
    pub fn ulong(&mut self, value: u64) {
        match u8::try_from(value) {
            Ok(0) => self.out.push(format::ULONG0),
            Ok(small) => self.out.extend_from_slice(&[format::SMALLULONG, small]),
            Err(_) => {
                self.out.push(format::ULONG);
                self.out.extend_from_slice(&value.to_be_bytes());
            }
        }
    }

    /// `int`
    pub fn int(&mut self, value: i32) {
        match i8::try_from(value) {
            Ok(small) => self
                .out
                .extend_from_slice(&[format::SMALLINT, small.cast_unsigned()]),
            Err(_) => {
                self.out.push(format::INT);
                self.out.extend_from_slice(&value.to_be_bytes());
            }
        }
    }

    /// `binary`
    pub fn binary(&mut self, value: &[u8]) {
        self.variable(format::VBIN8, format::VBIN32, value);
    }

    /// `string`
    pub fn string(&mut self, value: &str) {
        self.variable(format::STR8, format::STR32, value.as_bytes());
    }

    /// `symbol`
    pub fn symbol(&mut self, value: &str) {
        self.variable(format::SYM8, format::SYM32, value.as_bytes());
    }

    fn variable(&mut self, short: u8, long: u8, value: &[u8]) {
        match u8::try_from(value.len()) {
            Ok(length) => self.out.extend_from_slice(&[short, length]),
            Err(_) => {
                self.out.push(long);
                // Everything we write comes out of a frame or the configuration: far below 4 GiB.
                let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
                self.out.extend_from_slice(&length.to_be_bytes());
            }
        }
        self.out.extend_from_slice(value);
    }

    /// An array of symbols (AMQP 1.0 part 1, §1.6.24); the 32-bit form, as it is rare.
    pub fn symbols<S: AsRef<str>>(&mut self, symbols: &[S]) {
        let mut body = vec![format::SYM32];
        for symbol in symbols {
            let bytes = symbol.as_ref().as_bytes();
            body.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
            body.extend_from_slice(bytes);
        }
        self.compound32(format::ARRAY32, symbols.len(), &body);
    }

    /// A map whose `pairs` keys and values are written by `body`.
    pub fn map(&mut self, pairs: usize, body: impl FnOnce(&mut Writer<'_>)) {
        let mut bytes = Vec::new();
        body(&mut Writer::new(&mut bytes));
        self.compound(format::MAP8, format::MAP32, pairs * 2, &bytes);
    }

    /// A composite: the descriptor, then a list of `count` fields written by `body`.
    pub fn composite(&mut self, descriptor: u8, count: usize, body: impl FnOnce(&mut Writer<'_>)) {
        let mut bytes = Vec::new();
        body(&mut Writer::new(&mut bytes));
        self.descriptor(descriptor);
        if count == 0 {
            self.out.push(format::LIST0);
        } else {
            self.compound(format::LIST8, format::LIST32, count, &bytes);
        }
    }

    /// A `smallulong` descriptor; every descriptor of the specification's performatives is below 256.
    pub fn descriptor(&mut self, code: u8) {
        self.out
            .extend_from_slice(&[format::DESCRIBED, format::SMALLULONG, code]);
    }

    /// Descriptor and header of a list whose content, `size` bytes in `count` fields, the caller writes next.
    pub fn list_head(&mut self, descriptor: u8, count: u8, size: usize) {
        self.descriptor(descriptor);
        match u8::try_from(size + 1) {
            Ok(size) => self.out.extend_from_slice(&[format::LIST8, size, count]),
            Err(_) => {
                self.out.push(format::LIST32);
                self.out
                    .extend_from_slice(&u32::try_from(size + 4).unwrap_or(u32::MAX).to_be_bytes());
                self.out.extend_from_slice(&u32::from(count).to_be_bytes());
            }
        }
    }

    /// A list of `count` encoded values, in its short form if it fits that and need not be `wide`.
    pub fn list(&mut self, count: u32, body: &[u8], wide: bool) {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if wide {
            self.compound32(format::LIST32, count, body);
        } else {
            self.compound(format::LIST8, format::LIST32, count, body);
        }
    }

    /// Fields carried from elsewhere.
    pub fn tail(&mut self, tail: Tail<'_>) {
        self.out.extend_from_slice(tail.bytes);
    }

    /// `value` if there is one, else null.
    pub fn optional<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        match value {
            Some(value) => write(self, value),
            None => self.null(),
        }
    }

    fn compound(&mut self, short: u8, long: u8, count: usize, body: &[u8]) {
        match (u8::try_from(body.len() + 1), u8::try_from(count)) {
            (Ok(size), Ok(count)) => {
                self.out.extend_from_slice(&[short, size, count]);
                self.out.extend_from_slice(body);
            }
            _ => self.compound32(long, count, body),
        }
    }

    fn compound32(&mut self, code: u8, count: usize, body: &[u8]) {
        self.out.push(code);
        self.out
            .extend_from_slice(&u32::try_from(body.len() + 4).unwrap_or(u32::MAX).to_be_bytes());
        self.out
            .extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes());
        self.out.extend_from_slice(body);
    }
}

/// How many bytes [`Writer::uint`] appends.
pub const fn uint_size(value: u32) -> usize {
    match value {
        0 => 1,
        1..=0xff => 2,
        _ => 5,
    }
}
