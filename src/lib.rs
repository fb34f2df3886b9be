//! `linkrouterd`: a link-routing AMQP 1.0 daemon, compatible with `qdrouterd`.
#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod daemon;
pub mod router;
pub mod shard;
