//! The eight bytes that open each layer of a connection (AMQP 1.0 part 2, §2.2).

/// Length of a protocol header.
pub const LENGTH: usize = 8;

/// What a peer wants to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolHeader {
    /// AMQP 1.0.
    Amqp,
    /// TLS inside the AMQP port (part 5, §5.2).
    Tls,
    /// SASL, then AMQP (part 5, §5.3).
    Sasl,
}

impl ProtocolHeader {
    /// The header's bytes.
    pub const fn bytes(self) -> [u8; LENGTH] {
        let id = match self {
            ProtocolHeader::Amqp => 0,
            ProtocolHeader::Tls => 2,
            ProtocolHeader::Sasl => 3,
        };
        [b'A', b'M', b'Q', b'P', id, 1, 0, 0]
    }

    /// The header that these bytes are; `None` for anything but version 1.0.0.
    pub fn parse(bytes: [u8; LENGTH]) -> Option<Self> {
        [ProtocolHeader::Amqp, ProtocolHeader::Tls, ProtocolHeader::Sasl]
            .into_iter()
            .find(|header| header.bytes() == bytes)
    }
}
