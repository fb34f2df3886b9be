//! The router without a socket: scripted devices and a scripted hub that speak raw frames, on a clock of their own.
//!
//! `scenarios_*` are named cases; `back_pressure` measures what is held. What chance comes upon is in `tests/sim`, in the
//! same world.

mod back_pressure;
mod cbs_again;
mod cbs_clients;
mod cbs_ends;
mod cbs_identities;
mod cbs_relay;
mod conformance_attach;
mod conformance_detach;
mod conformance_disposition;
mod conformance_flow;
mod conformance_recovery;
mod conformance_small_frames;
mod conformance_transfer;
mod hostile;
mod limits;
mod limits_bytes;
mod limits_cbs;
mod plain_runs;
mod regressions_transfer;
mod said;
mod said_in_log;
mod scenarios_addresses;
mod scenarios_attach;
mod scenarios_balance;
mod scenarios_brokers;
mod scenarios_connection;
mod scenarios_connector;
mod scenarios_detach;
mod scenarios_drain;
mod scenarios_eviction;
mod scenarios_loss;
mod scenarios_outage;
mod scenarios_plain;
mod scenarios_policy;
mod scenarios_pool;
mod scenarios_prefixes;
mod scenarios_reload;
mod scenarios_routes;
mod scenarios_security;
mod scenarios_trace;
mod scenarios_transfer;
mod scenarios_two_hubs;
mod tap;
mod transparency;
mod tunnel;
#[path = "../codec/values.rs"]
mod values;
mod vectors;
mod visits;
#[path = "../world/mod.rs"]
mod world;

use world::{cbs_hub, peer, wire};
