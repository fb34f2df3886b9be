//! Random 16-byte identifiers: lock tokens (which are the delivery tags of commands), tracking ids, container ids.

use std::fmt::Write;

use ring::rand::{SecureRandom, SystemRandom};

/// Sixteen random bytes.
pub(crate) fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    // Randomness that fails leaves zeros: two equal tags, which the tests would notice.
    let _ = SystemRandom::new().fill(&mut bytes);
    bytes
}

/// Sixteen random bytes that are a GUID of version 4, for libraries that look at its form.
pub(crate) fn random_v4() -> [u8; 16] {
    let mut bytes = random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

/// In hexadecimal, without dashes.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
