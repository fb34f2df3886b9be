//! The codec against frames of other stacks, and against everything that can be made up.

#[path = "codec/golden.rs"]
mod golden;
