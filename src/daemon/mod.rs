//! The process: logging, signals, the service manager, going to the background, and joining the configuration to the shard.
//!
//! The top layer. It may know everything below; nothing knows it but `main`.

pub mod build;
mod detach;
mod findings;
pub mod logging;
mod probe;
mod reload;
mod run;
mod service;
mod signal;
mod systemd;

pub use run::{Exit, complain, run};
