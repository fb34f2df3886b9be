//! One router under seeded random schedules: scripted devices and hubs on a clock of their own, which do what peers may
//! do, and what they may not, in any order and cut anywhere, and are lost at any moment. Behind every step all that the
//! router promises is checked.
//!
//! Every `cargo test` runs some; `LINKROUTERD_SCHEDULES=n` runs so many, `LINKROUTERD_SEED=n` replays one, with the trace
//! of its frames. `mutations/run` shows that breaches of each promise are caught: see `docs/reliability.md`.

mod cbs;
mod links;
mod mutations;
mod schedules;
mod seeds;
#[path = "../world/mod.rs"]
mod world;

use world::{cbs_hub, peer, wire};
