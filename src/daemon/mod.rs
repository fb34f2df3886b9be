//! The process: logging, signals, going to the background, and joining the configuration to the shard.

pub mod logging;
