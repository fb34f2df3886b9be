//! From a configuration file to everything that the process is made from.
//!
//! The only place that knows both the configuration's words and the settings of log, router and shard. What can be
//! found out about a configuration without opening a socket is found here, so that `--check` and a start say the same.

mod encryption;
mod inspect;
mod log;
mod passwords;
mod policy;
mod shard;
#[cfg(test)]
pub(in crate::daemon) mod site;

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::logging::LogSettings;
use crate::config::{self, Finding, Severity};
use crate::endpoint::trace::TraceFilter;
use crate::shard::ShardSettings;
use crate::shard::passwords::Passwords;
use inspect::Inspection;
use log::{log_settings, traced_devices};
use shard::shard_settings;

/// Everything that the process is made from.
#[derive(Clone, Debug)]
pub struct Plan {
    /// For the log.
    pub log: LogSettings,
    /// For the shard, and the router in it.
    pub shard: ShardSettings,
    /// The names of the TLS profiles, for the start-up lines.
    pub profiles: Vec<String>,
    /// Line of the router's id, if the file gives one.
    pub id_line: Option<u32>,
    /// Lines of the listeners, in order.
    pub listener_lines: Vec<u32>,
}

/// A file, read and looked into.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What to run; `None` if any finding is an error.
    pub plan: Option<Plan>,
    /// What to tell the operator, in line order.
    pub findings: Vec<Finding>,
}

/// What of the surroundings decides about a configuration, besides its file.
pub struct Surroundings<'a> {
    /// Looks up an environment variable.
    pub environment: &'a dyn Fn(&str) -> Option<String>,
    /// Today, for certificates.
    pub now: SystemTime,
    /// Devices whose frames are traced, besides those of the file.
    pub trace_devices: &'a [String],
}

/// Reads a configuration file, and what it refers to.
pub fn load(path: &Path, surroundings: &Surroundings<'_>) -> Loaded {
    let report = config::load(path, surroundings.environment);
    let mut findings = report.findings;
    let Some(config) = report.config else {
        return Loaded { plan: None, findings };
    };
    let passwords = match &config.router.sasl_password_file {
        None => Passwords::default(),
        Some(file) => passwords::load(file, &mut findings),
    };
    let encryption = encryption::load(path, &config, &mut findings);
    findings.extend(Inspection::findings(path, &config, surroundings.now));
    config::sort(&mut findings, &path.display().to_string());
    let usable = findings.iter().all(|finding| finding.severity != Severity::Error);
    let plan = usable.then(|| Plan {
        log: log_settings(&config, surroundings),
        shard: shard_settings(
            &config,
            Arc::new(passwords),
            encryption,
            TraceFilter::new(traced_devices(&config, surroundings)),
        ),
        id_line: config.router.id_line,
        listener_lines: config.listeners.iter().map(|listener| listener.line).collect(),
        profiles: config
            .ssl_profiles
            .iter()
            .map(|profile| profile.name.clone())
            .collect(),
    });
    Loaded { plan, findings }
}
