//! `linkrouterd`: a link-routing AMQP 1.0 daemon, compatible with `qdrouterd`.
#![forbid(unsafe_code)]

pub mod amqp;
pub mod router;
