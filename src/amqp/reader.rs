//! A bounds-checked cursor over encoded AMQP values (AMQP 1.0 part 1, §1.2 and §1.6).

use super::DecodeError;
use super::codes::{descriptor, format};
use super::fields::Fields;

/// Values nested deeper than this are refused: no performative needs a tenth of it.
pub const MAX_DEPTH: u8 = 32;

/// A cursor: each read consumes one encoded value and leaves the cursor behind it.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A cursor at the start of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    /// What has not been read yet.
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether everything has been read.
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next format code, not consumed.
    pub fn peek_code(&self) -> Result<u8, DecodeError> {
        self.rest.first().copied().ok_or(DecodeError::Truncated)
    }

    /// Consumes one byte.
    pub fn byte(&mut self) -> Result<u8, DecodeError> {
        let (&first, rest) = self.rest.split_first().ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(first)
    }

    /// Consumes `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    /// Consumes `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// Consumes one value and returns its encoding. The size of a compound is checked, not what is inside.
    #[inline]
    pub fn skip(&mut self) -> Result<&'a [u8], DecodeError> {
        let start = self.rest;
        // A described value is two values: its descriptor, which may itself be described, and what it describes.
        let mut values = 1usize;
        while values > 0 {
            match self.byte()? {
                format::DESCRIBED => values += 1,
                code => {
                    self.skip_body(code)?;
                    values -= 1;
                }
            }
        }
        let length = start.len() - self.rest.len();
        start.get(..length).ok_or(DecodeError::Truncated)
    }

    /// The bytes behind a format code; the code's upper half gives their width (AMQP 1.0 part 1, §1.2).
    #[inline]
    fn skip_body(&mut self, code: u8) -> Result<(), DecodeError> {
        let width = match code >> 4 {
            0x4 => 0,
            0x5 => 1,
            0x6 => 2,
            0x7 => 4,
            0x8 => 8,
            0x9 => 16,
            0xa | 0xc | 0xe => usize::from(self.byte()?),
            0xb | 0xd | 0xf => self.size32()?,
            _ => return Err(DecodeError::FormatCode(code)),
        };
        self.take(width).map(|_| ())
    }

    fn size32(&mut self) -> Result<usize, DecodeError> {
        usize::try_from(u32::from_be_bytes(self.array()?)).map_err(|_| DecodeError::Truncated)
    }

    /// Consumes one value and checks it whole: known format codes, sizes and counts that agree, valid text, bounded
    /// depth. For what we carry to another peer, which must not fail over a device's garbage.
    pub fn skip_checked(&mut self) -> Result<&'a [u8], DecodeError> {
        let start = self.rest;
        self.check_value(MAX_DEPTH)?;
        let length = start.len() - self.rest.len();
        start.get(..length).ok_or(DecodeError::Truncated)
    }

    fn check_value(&mut self, depth: u8) -> Result<(), DecodeError> {
        let depth = depth.checked_sub(1).ok_or(DecodeError::TooDeep)?;
        let code = self.byte()?;
        if code == format::DESCRIBED {
            self.check_value(depth)?;
            return self.check_value(depth);
        }
        self.check_body(code, depth)
    }

    fn check_body(&mut self, code: u8, depth: u8) -> Result<(), DecodeError> {
        match code {
            format::BOOLEAN => match self.byte()? {
                0 | 1 => Ok(()),
                _ => Err(DecodeError::Range),
            },
            format::NULL
            | format::TRUE
            | format::FALSE
            | format::UINT0
            | format::ULONG0
            | format::LIST0
            | format::UBYTE
            | format::BYTE
            | format::SMALLUINT
            | format::SMALLULONG
            | format::SMALLINT
            | format::SMALLLONG
            | format::USHORT
            | format::SHORT
            | format::UINT
            | format::INT
            | format::FLOAT
            | format::DECIMAL32
            | format::ULONG
            | format::LONG
            | format::DOUBLE
            | format::TIMESTAMP
            | format::DECIMAL64
            | format::DECIMAL128
            | format::UUID
            | format::VBIN8
            | format::VBIN32 => self.skip_body(code),
            format::CHAR => char::from_u32(u32::from_be_bytes(self.array()?))
                .map(|_| ())
                .ok_or(DecodeError::BadText),
            format::STR8 | format::STR32 => {
                let bytes = self.variable(code)?;
                std::str::from_utf8(bytes)
                    .map(|_| ())
                    .map_err(|_| DecodeError::BadText)
            }
            format::SYM8 | format::SYM32 => match self.variable(code)?.is_ascii() {
                true => Ok(()),
                false => Err(DecodeError::BadText),
            },
            format::LIST8 | format::LIST32 | format::MAP8 | format::MAP32 => {
                let (count, mut body) = self.compound(code)?;
                if matches!(code, format::MAP8 | format::MAP32) && count % 2 == 1 {
                    return Err(DecodeError::BadCompound);
                }
                for _ in 0..count {
                    body.check_value(depth)?;
                }
                body.expect_end()
            }
            format::ARRAY8 | format::ARRAY32 => {
                let (count, mut body) = self.compound(code)?;
                body.check_array(count, depth)
            }
            _ => Err(DecodeError::FormatCode(code)),
        }
    }

    /// The elements of an array share one constructor, which may be described (AMQP 1.0 part 1, §1.6.24).
    fn check_array(&mut self, count: u32, depth: u8) -> Result<(), DecodeError> {
        let depth = depth.checked_sub(1).ok_or(DecodeError::TooDeep)?;
        let mut code = self.byte()?;
        if code == format::DESCRIBED {
            self.check_value(depth)?;
            code = self.byte()?;
        }
        if self.rest.is_empty() {
            // No elements, or elements without any bytes (null, true, list0…): nothing to check but their type.
            if let Err(error @ DecodeError::FormatCode(_)) = Reader::new(&[0; 16]).check_body(code, depth) {
                return Err(error);
            }
            return match code >> 4 {
                0x4 => Ok(()),
                _ if count == 0 => Ok(()),
                _ => Err(DecodeError::Truncated),
            };
        }
        if code >> 4 == 0x4 {
            return Err(DecodeError::BadCompound);
        }
        for _ in 0..count {
            self.check_body(code, depth)?;
        }
        self.expect_end()
    }

    fn expect_end(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::BadCompound)
        }
    }

    /// The content of a binary, string or symbol whose format code has been consumed.
    fn variable(&mut self, code: u8) -> Result<&'a [u8], DecodeError> {
        let size = if code >> 4 == 0xa {
            usize::from(self.byte()?)
        } else {
            self.size32()?
        };
        self.take(size)
    }

    /// Count and content of a list, map or array whose format code has been consumed.
    pub(crate) fn compound(&mut self, code: u8) -> Result<(u32, Reader<'a>), DecodeError> {
        let (count, body) = match code {
            format::LIST0 => (0, Reader::new(&[])),
            format::LIST8 | format::MAP8 | format::ARRAY8 => {
                let size = usize::from(self.byte()?);
                let mut body = Reader::new(self.take(size)?);
                (
                    u32::from(body.byte().map_err(|_| DecodeError::BadCompound)?),
                    body,
                )
            }
            format::LIST32 | format::MAP32 | format::ARRAY32 => {
                let size = self.size32()?;
                let mut body = Reader::new(self.take(size)?);
                (
                    u32::from_be_bytes(body.array().map_err(|_| DecodeError::BadCompound)?),
                    body,
                )
            }
            found => {
                return Err(DecodeError::WrongType {
                    expected: "a list, map or array",
                    found,
                });
            }
        };
        Ok((count, body))
    }

    /// Descriptor code and fields of a composite. A symbolic descriptor is translated.
    #[inline]
    pub fn composite(&mut self) -> Result<(u64, Fields<'a>), DecodeError> {
        match self.byte()? {
            format::DESCRIBED => {}
            found => {
                return Err(DecodeError::WrongType {
                    expected: "a described list",
                    found,
                });
            }
        }
        let code = self.descriptor()?;
        let (count, body) = match self.byte()? {
            list @ (format::LIST0 | format::LIST8 | format::LIST32) => self.compound(list)?,
            found => {
                return Err(DecodeError::WrongType {
                    expected: "a list",
                    found,
                });
            }
        };
        Ok((code, Fields::new(count, body)))
    }

    /// A descriptor as its numeric code.
    pub(crate) fn descriptor(&mut self) -> Result<u64, DecodeError> {
        match self.byte()? {
            format::SMALLULONG => Ok(u64::from(self.byte()?)),
            format::ULONG => Ok(u64::from_be_bytes(self.array()?)),
            format::ULONG0 => Ok(0),
            code @ (format::SYM8 | format::SYM32) => {
                descriptor::of_symbol(self.variable(code)?).ok_or(DecodeError::Descriptor)
            }
            found => Err(DecodeError::WrongType {
                expected: "a descriptor",
                found,
            }),
        }
    }

    /// Consumes a null, if one is next.
    #[inline]
    pub fn null(&mut self) -> bool {
        match self.rest.split_first() {
            Some((&format::NULL, rest)) => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    /// A `boolean`.
    #[inline]
    pub fn boolean(&mut self) -> Result<bool, DecodeError> {
        match self.byte()? {
            format::TRUE => Ok(true),
            format::FALSE => Ok(false),
            format::BOOLEAN => match self.byte()? {
                0 => Ok(false),
                1 => Ok(true),
                _ => Err(DecodeError::Range),
            },
            found => Err(DecodeError::WrongType {
                expected: "a boolean",
                found,
            }),
        }
    }

    /// A `ubyte`.
    pub fn ubyte(&mut self) -> Result<u8, DecodeError> {
        match self.byte()? {
            format::UBYTE => self.byte(),
            found => Err(DecodeError::WrongType {
                expected: "a ubyte",
                found,
            }),
        }
    }

    /// A `ushort`.
    pub fn ushort(&mut self) -> Result<u16, DecodeError> {
        match self.byte()? {
            format::USHORT => Ok(u16::from_be_bytes(self.array()?)),
            found => Err(DecodeError::WrongType {
                expected: "a ushort",
                found,
            }),
        }
    }

    /// A `uint`.
    #[inline]
    pub fn uint(&mut self) -> Result<u32, DecodeError> {
        match self.byte()? {
            format::SMALLUINT => Ok(u32::from(self.byte()?)),
            format::UINT0 => Ok(0),
            format::UINT => Ok(u32::from_be_bytes(self.array()?)),
            found => Err(DecodeError::WrongType {
                expected: "a uint",
                found,
            }),
        }
    }

    /// A `ulong`.
    pub fn ulong(&mut self) -> Result<u64, DecodeError> {
        match self.byte()? {
            format::SMALLULONG => Ok(u64::from(self.byte()?)),
            format::ULONG0 => Ok(0),
            format::ULONG => Ok(u64::from_be_bytes(self.array()?)),
            found => Err(DecodeError::WrongType {
                expected: "a ulong",
                found,
            }),
        }
    }

    /// A `binary`.
    pub fn binary(&mut self) -> Result<&'a [u8], DecodeError> {
        match self.byte()? {
            code @ (format::VBIN8 | format::VBIN32) => self.variable(code),
            found => Err(DecodeError::WrongType {
                expected: "a binary",
                found,
            }),
        }
    }

    /// A `string`.
    pub fn string(&mut self) -> Result<&'a str, DecodeError> {
        match self.byte()? {
            code @ (format::STR8 | format::STR32) => {
                std::str::from_utf8(self.variable(code)?).map_err(|_| DecodeError::BadText)
            }
            found => Err(DecodeError::WrongType {
                expected: "a string",
                found,
            }),
        }
    }

    /// A `symbol`, which is ASCII.
    pub fn symbol(&mut self) -> Result<&'a str, DecodeError> {
        match self.byte()? {
            code @ (format::SYM8 | format::SYM32) => {
                let bytes = self.variable(code)?;
                match bytes.is_ascii() {
                    true => std::str::from_utf8(bytes).map_err(|_| DecodeError::BadText),
                    false => Err(DecodeError::BadText),
                }
            }
            found => Err(DecodeError::WrongType {
                expected: "a symbol",
                found,
            }),
        }
    }

    /// A field of multiple symbols: one symbol, or an array of them (AMQP 1.0 part 1, §1.4).
    pub fn symbols(&mut self) -> Result<Vec<&'a str>, DecodeError> {
        match self.peek_code()? {
            code @ (format::ARRAY8 | format::ARRAY32) => {
                self.byte()?;
                let (count, mut body) = self.compound(code)?;
                let element = body.byte()?;
                if !matches!(element, format::SYM8 | format::SYM32) {
                    return Err(DecodeError::WrongType {
                        expected: "a symbol",
                        found: element,
                    });
                }
                let mut symbols = Vec::new();
                for _ in 0..count {
                    let bytes = body.variable(element)?;
                    symbols.push(std::str::from_utf8(bytes).map_err(|_| DecodeError::BadText)?);
                }
                Ok(symbols)
            }
            _ => Ok(vec![self.symbol()?]),
        }
    }
}
