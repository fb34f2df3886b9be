//! `linkrouterd`: a link-routing AMQP 1.0 daemon, compatible with `qdrouterd`.
//!
//! Devices connect in plaintext AMQP; each of their links is matched against the link routes and tunnelled, field by
//! field, over one TLS connection per connector.
//!
//! # Layers
//!
//! Imports go one way, each layer may use those before it:
//! [`amqp`] (bytes and types) ← [`endpoint`] (state machines of one peer) ← [`router`] (the link router) ←
//! [`shard`] (sockets, TLS, time) ← [`daemon`] (process). [`config`] reads files and imports nobody. The first three
//! are free of I/O: they never see a socket or a clock. `tests/architecture/` keeps it so.
//!
//! The modules are public for tests and benchmarks; there is no promise of stability.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

pub mod amqp;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod endpoint;
pub mod router;
pub mod shard;
