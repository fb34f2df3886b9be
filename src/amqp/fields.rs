//! The fields of a composite, read in order; trailing fields may be absent (AMQP 1.0 part 1, §1.4).

use super::DecodeError;
use super::codes::format;
use super::reader::Reader;

/// What a field holds, for those that are checked and carried but not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any value.
    Any,
    /// `binary`
    Binary,
    /// `boolean`
    Boolean,
    /// A described value: terminus, delivery state, error.
    Described,
    /// `map` (also `fields` and `filter-set`).
    Map,
    /// `string`
    String,
    /// A symbol or an array; also a list, which the specification does not allow (Proton Python 0.37 writes the
    /// capabilities of a connection so when it is given a Python list).
    Symbols,
    /// `ubyte`
    Ubyte,
    /// `uint`
    Uint,
    /// `ulong`
    Ulong,
}

impl Kind {
    fn admits(self, code: u8) -> Result<(), DecodeError> {
        let (fits, expected) = match self {
            Kind::Any => (true, "a value"),
            Kind::Binary => (matches!(code, format::VBIN8 | format::VBIN32), "a binary"),
            Kind::Boolean => (
                matches!(code, format::TRUE | format::FALSE | format::BOOLEAN),
                "a boolean",
            ),
            Kind::Described => (code == format::DESCRIBED, "a described value"),
            Kind::Map => (matches!(code, format::MAP8 | format::MAP32), "a map"),
            Kind::String => (matches!(code, format::STR8 | format::STR32), "a string"),
            Kind::Symbols => (
                matches!(
                    code,
                    format::SYM8
                        | format::SYM32
                        | format::ARRAY8
                        | format::ARRAY32
                        | format::LIST0
                        | format::LIST8
                        | format::LIST32
                ),
                "symbols",
            ),
            Kind::Ubyte => (code == format::UBYTE, "a ubyte"),
            Kind::Uint => (
                matches!(code, format::UINT0 | format::SMALLUINT | format::UINT),
                "a uint",
            ),
            Kind::Ulong => (
                matches!(code, format::ULONG0 | format::SMALLULONG | format::ULONG),
                "a ulong",
            ),
        };
        if fits {
            Ok(())
        } else {
            Err(DecodeError::WrongType {
                expected,
                found: code,
            })
        }
    }

    /// Whether bytes of a fitting size may still be no value of this kind, so that they need a check before they are
    /// carried: what holds other values, text, and an octet that is neither false nor true (AMQP 1.0 part 1, §1.6.2).
    const fn can_be_wrong_inside(self) -> bool {
        matches!(
            self,
            Kind::Any | Kind::Boolean | Kind::Described | Kind::Map | Kind::Symbols | Kind::String
        )
    }
}

/// Most fields behind the last one known of a composite that is carried: a [`Tail`] counts in a byte.
pub const MAX_UNKNOWN: u32 = 64;

/// A run of encoded fields, carried as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tail<'a> {
    /// How many fields.
    pub count: u8,
    /// Their encoding.
    pub bytes: &'a [u8],
}

impl<'a> Tail<'a> {
    /// One of the fields, encoded; `None` when it is null or absent.
    pub fn field(self, index: usize) -> Option<&'a [u8]> {
        if index >= usize::from(self.count) {
            return None;
        }
        let mut reader = Reader::new(self.bytes);
        for _ in 0..index {
            reader.skip().ok()?;
        }
        reader.skip().ok().filter(|field| *field != [format::NULL])
    }

    /// The fields before `later`, which is a tail of the same composite.
    pub fn until(self, later: Tail<'a>) -> Tail<'a> {
        let length = self.bytes.len().saturating_sub(later.bytes.len());
        Tail {
            count: self.count.saturating_sub(later.count),
            bytes: self.bytes.get(..length).unwrap_or_default(),
        }
    }
}

/// A cursor over the fields of one composite.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    remaining: u32,
    reader: Reader<'a>,
}

impl<'a> Fields<'a> {
    pub(crate) const fn new(count: u32, reader: Reader<'a>) -> Self {
        Fields {
            remaining: count,
            reader,
        }
    }

    /// Steps to the next field; `false` when it is absent or null.
    #[inline]
    fn present(&mut self) -> bool {
        if self.remaining == 0 {
            return false;
        }
        self.remaining -= 1;
        !self.reader.null()
    }

    /// A `boolean` field.
    #[inline]
    pub fn boolean(&mut self) -> Result<Option<bool>, DecodeError> {
        if self.present() {
            self.reader.boolean().map(Some)
        } else {
            Ok(None)
        }
    }

    /// A `ubyte` field.
    pub fn ubyte(&mut self) -> Result<Option<u8>, DecodeError> {
        if self.present() {
            self.reader.ubyte().map(Some)
        } else {
            Ok(None)
        }
    }

    /// A `ushort` field.
    pub fn ushort(&mut self) -> Result<Option<u16>, DecodeError> {
        if self.present() {
            self.reader.ushort().map(Some)
        } else {
            Ok(None)
        }
    }

    /// A `uint` field.
    #[inline]
    pub fn uint(&mut self) -> Result<Option<u32>, DecodeError> {
        if self.present() {
            self.reader.uint().map(Some)
        } else {
            Ok(None)
        }
    }

    /// A `string` field.
    pub fn string(&mut self) -> Result<Option<&'a str>, DecodeError> {
        if self.present() {
            self.reader.string().map(Some)
        } else {
            Ok(None)
        }
    }

    /// A `symbol` field.
    pub fn symbol(&mut self) -> Result<Option<&'a str>, DecodeError> {
        if self.present() {
            self.reader.symbol().map(Some)
        } else {
            Ok(None)
        }
    }

    /// A field of one or more symbols.
    pub fn symbols(&mut self) -> Result<Vec<&'a str>, DecodeError> {
        if self.present() {
            self.reader.symbols()
        } else {
            Ok(Vec::new())
        }
    }

    /// A `binary` field.
    pub fn binary(&mut self) -> Result<Option<&'a [u8]>, DecodeError> {
        if self.present() {
            self.reader.binary().map(Some)
        } else {
            Ok(None)
        }
    }

    /// A field that is carried: its encoding, after a check of its type and, where need be, of its inside.
    #[inline]
    pub fn raw(&mut self, kind: Kind) -> Result<Option<&'a [u8]>, DecodeError> {
        if !self.present() {
            return Ok(None);
        }
        kind.admits(self.reader.peek_code()?)?;
        if kind.can_be_wrong_inside() {
            self.reader.skip_checked()
        } else {
            self.reader.skip()
        }
        .map(Some)
    }

    /// All fields from here on, as they are encoded. They are not checked: read them too.
    pub fn tail(&self) -> Tail<'a> {
        Tail {
            count: u8::try_from(self.remaining).unwrap_or(u8::MAX),
            bytes: self.reader.rest(),
        }
    }

    /// Passes over fields behind the last one known here, so that they can be carried: a peer that knows more than AMQP
    /// 1.0 defines may speak to one that does, too. There are at most [`MAX_UNKNOWN`].
    #[inline]
    pub fn unknown(&mut self) -> Result<(), DecodeError> {
        if self.remaining > MAX_UNKNOWN {
            return Err(DecodeError::TooManyFields);
        }
        while self.remaining > 0 {
            self.remaining -= 1;
            self.reader.skip_checked()?;
        }
        Ok(())
    }

    /// Ends the reading: every field has been read, and nothing follows them.
    #[inline]
    pub fn end(self) -> Result<(), DecodeError> {
        match (self.remaining, self.reader.is_empty()) {
            (0, true) => Ok(()),
            (0, false) => Err(DecodeError::BadCompound),
            _ => Err(DecodeError::TooManyFields),
        }
    }
}
