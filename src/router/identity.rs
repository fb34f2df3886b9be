//! Who a device may be at the hub: SAS tokens, the resources that they open, and the plain words for a refusal.
//!
//! A shared connection holds the tokens of many devices, and the hub lets every link on it use any of them (IoT Hub:
//! tokens bind to the connection). Which of them a device may use is decided here, and whatever can be read in two ways
//! is decided against the device. Nothing here verifies a signature: only a token that the hub accepted opens anything.

mod diagnosis;
mod percent;
mod resource;
mod token;

pub use diagnosis::diagnose;
pub(super) use diagnosis::says_no_room;
pub(super) use percent::decoded;
pub(super) use resource::climbs;
pub use resource::{Resource, identity_of, in_one_spelling, may_be_of_a_device};
pub(super) use token::counted_as;
pub use token::{Field, SasToken, TokenFault};
