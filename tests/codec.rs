//! The codec against frames of other stacks, and against everything that can be made up.

#[path = "codec/carry.rs"]
mod carry;
#[path = "codec/edits.rs"]
mod edits;
#[path = "codec/golden.rs"]
mod golden;
#[path = "codec/messages.rs"]
mod messages;
#[path = "codec/totality.rs"]
mod totality;
#[path = "codec/trace.rs"]
mod trace;
#[path = "codec/values.rs"]
mod values;
