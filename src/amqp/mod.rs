//! Layer 1: bytes to types and back. Pure; no state across frames except the [`Deframer`](deframer::Deframer).
//!
//! # Panic contract
//!
//! Every function here is total: whatever the bytes, it returns a value or a [`DecodeError`]; it never panics, never
//! loops without consuming input, and never allocates more than a small multiple of what it was given. Nothing here
//! knows what a frame means for a connection, and nothing here logs.
//!
//! Performatives are read as borrowed views: the few fields that a router needs are decoded, all others are checked
//! to be well formed and of the type that the specification gives them, and stay encoded bytes.
#![deny(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::todo,
    clippy::unimplemented,
    clippy::unreachable,
    clippy::unwrap_used
)]
#![cfg_attr(
    test,
    allow(
        clippy::cast_possible_truncation,
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

pub mod codes;
pub mod composite;
pub mod condition;
pub mod deframer;
pub mod delivery;
pub mod display;
pub mod edit;
pub mod failover;
pub mod fields;
pub mod frame;
pub mod header;
pub mod message;
pub mod originate;
pub mod performative;
pub mod plain;
pub mod reader;
pub mod relay;
pub mod sasl;
pub mod serial;
pub mod shrink;
pub mod terminus;
pub mod value;
pub mod writer;

/// Why bytes are not the AMQP value that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The value reaches beyond the bytes that hold it.
    #[error("value is cut short")]
    Truncated,
    /// AMQP 1.0 part 1, §1.3 assigns no type to this format code.
    #[error("unknown format code {0:#04x}")]
    FormatCode(u8),
    /// A well-formed value of another type than the field has.
    #[error("format code {found:#04x} where {expected} is expected")]
    WrongType {
        /// The type that the specification gives the field.
        expected: &'static str,
        /// The format code that is there.
        found: u8,
    },
    /// A mandatory field is null or absent.
    #[error("mandatory field {0} is missing")]
    Missing(&'static str),
    /// A composite has more fields than its type defines.
    #[error("too many fields")]
    TooManyFields,
    /// Values nested deeper than [`reader::MAX_DEPTH`].
    #[error("values nested too deeply")]
    TooDeep,
    /// The size or count of a compound value disagrees with its content.
    #[error("size or count of a compound value is wrong")]
    BadCompound,
    /// A string is not UTF-8, or a symbol not ASCII.
    #[error("text is not validly encoded")]
    BadText,
    /// The descriptor of a performative or composite is not one we know here.
    #[error("unexpected descriptor")]
    Descriptor,
    /// A number is outside the range that its field allows.
    #[error("value out of range")]
    Range,
}
