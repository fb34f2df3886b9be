//! SIGHUP: the configuration is read again. A file with an error changes nothing; a good one changes the log at once, and
//! the shard, as far as that can be changed while it runs. What cannot is named, with its line.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tokio::task::JoinHandle;
use tracing::{error, info};

use super::build::{self, Loaded, Plan, Surroundings};
use super::findings::{self, Count};
use super::logging::Logging;
use crate::config::{Finding, Severity};
use crate::shard::ShardSettings;

/// Reads a configuration file, with the environment and the clock of this process.
pub(super) fn load(path: &Path, trace_devices: &[String]) -> Loaded {
    let environment = |name: &str| std::env::var(name).ok();
    build::load(
        path,
        &Surroundings {
            environment: &environment,
            now: SystemTime::now(),
            trace_devices,
        },
    )
}

/// Reloads one file, as often as asked.
pub(super) struct Reload {
    /// Absolute: the working directory may not be that of the start.
    file: PathBuf,
    /// What the command line says.
    trace_devices: Vec<String>,
    logging: Logging,
    /// What the shard runs with.
    running: ShardSettings,
    loading: Option<JoinHandle<Loaded>>,
    /// Asked for again while the file was being read, so that it may have changed since.
    again: bool,
}

impl Reload {
    pub(super) fn new(
        file: PathBuf,
        trace_devices: Vec<String>,
        logging: Logging,
        running: ShardSettings,
    ) -> Self {
        Reload {
            file,
            trace_devices,
            logging,
            running,
            loading: None,
            again: false,
        }
    }

    /// Starts reading, away from the shard's thread: certificates on a memory card take their time.
    pub(super) fn start(&mut self) {
        self.again = self.loading.is_some();
        if !self.again {
            info!(target: "MAIN", severity = "notice", "SIGHUP: reading {} again", self.file.display());
            let (file, devices) = (self.file.clone(), self.trace_devices.clone());
            self.loading = Some(tokio::task::spawn_blocking(move || load(&file, &devices)));
        }
    }

    /// What is left to tell the shard once the file is read, or why nothing is. For ever pending if none is being read;
    /// cancel-safe.
    pub(super) async fn finished(&mut self) -> Result<ShardSettings, String> {
        let Some(loading) = &mut self.loading else {
            return std::future::pending().await;
        };
        let loaded = loading.await;
        self.loading = None;
        if std::mem::take(&mut self.again) {
            self.start();
        }
        match loaded {
            Ok(loaded) => self.take_over(loaded),
            // Only when the runtime is being shut down, or no thread can be made.
            Err(error) => Err(nothing_changed(error.to_string())),
        }
    }

    /// Whether a file is being read.
    pub(super) const fn is_under_way(&self) -> bool {
        self.loading.is_some()
    }

    fn take_over(&mut self, loaded: Loaded) -> Result<ShardSettings, String> {
        let Loaded { plan, findings } = loaded;
        let file = self.file.display().to_string();
        let Some(plan) = plan else {
            findings::log(&findings);
            return Err(nothing_changed(format!("{file}: {}", Count(&findings))));
        };
        self.logging
            .apply(&plan.log)
            .map_err(|error| nothing_changed(error.to_string()))?;
        findings::log(&findings);
        let (settings, left) = fit(&self.running, plan, &file);
        findings::log(&left);
        self.running = settings.clone();
        Ok(settings)
    }
}

fn nothing_changed(why: String) -> String {
    error!(target: "MAIN", "SIGHUP: nothing changed: {why}");
    why
}

/// The new settings, for the router and the listeners that are there; and what of them needs a restart.
fn fit(running: &ShardSettings, plan: Plan, file: &str) -> (ShardSettings, Vec<Finding>) {
    let mut left = Vec::new();
    let mut needs_restart = |line, what: String| {
        left.push(Finding {
            severity: Severity::Warning,
            file: file.to_owned(),
            line,
            message: format!("{what}: restart the daemon for that"),
        });
    };
    let mut settings = plan.shard;
    let id = &running.router.container_id;
    if let Some(line) = plan.id_line
        && settings.router.container_id != *id
    {
        needs_restart(line, format!("the router's id is still '{id}'"));
    }
    settings.router.container_id.clone_from(id);

    let mut new: Vec<_> = settings
        .router
        .listeners
        .drain(..)
        .zip(settings.listeners.drain(..))
        .zip(plan.listener_lines)
        .collect();
    for (listener, listen) in running.router.listeners.iter().zip(&running.listeners) {
        let same = new
            .iter()
            .position(|((_, other), _)| other.is_same_socket(listen));
        let (listener, listen) = match same {
            Some(position) => new.remove(position).0,
            None => {
                let (name, address) = (&listener.name, &listener.address);
                needs_restart(0, format!("listener {name} is gone, but {address} is still open"));
                (listener.clone(), listen.clone())
            }
        };
        settings.router.listeners.push(listener);
        settings.listeners.push(listen);
    }
    for ((listener, _), line) in new {
        needs_restart(line, format!("listener {} is not opened", listener.address));
    }
    (settings, left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::build::site::Site;

    const FIRST: &str = "router {\n    id: A\n}\nlistener {\n    host: ::1\n    port: 0\n}\n\
                         listener {\n    host: 127.0.0.1\n    port: 5672\n}\n";

    #[test]
    fn what_belongs_to_an_open_listener_is_replaced_and_the_rest_is_named() {
        let site = Site::new();
        let running = site.plan(FIRST, &[]).shard;
        let text = "router {\n    id: B\n}\nlistener {\n    host: 127.0.0.1\n    port: 5672\n    maxFrameSize: 1024\n}\n\
                    listener {\n    host: 127.0.0.1\n    port: 5673\n}\n";
        let (settings, left) = fit(&running, site.plan(text, &[]), "f");
        assert_eq!(settings.router.container_id, "A");
        let addresses: Vec<_> = settings
            .router
            .listeners
            .iter()
            .map(|listener| (listener.address.as_str(), listener.limits.max_frame_size))
            .collect();
        assert_eq!(addresses, [("[::1]:0", 16384), ("127.0.0.1:5672", 1024)]);
        assert_eq!(settings.listeners.len(), 2);
        let left: Vec<_> = left.iter().map(ToString::to_string).collect();
        let expected = [
            "f:2: warning: the router's id is still 'A': restart the daemon for that",
            "f: warning: listener listener/::1:0 is gone, but [::1]:0 is still open: restart the daemon for that",
            "f:9: warning: listener 127.0.0.1:5673 is not opened: restart the daemon for that",
        ];
        assert_eq!(left, expected);
    }

    #[test]
    fn an_id_that_is_made_up_stays() {
        let site = Site::new();
        let text = "listener {\n    host: 127.0.0.1\n    port: 0\n}\n";
        let running = site.plan(text, &[]).shard;
        let (settings, left) = fit(&running, site.plan(text, &[]), "f");
        assert_eq!(settings.router.container_id, running.router.container_id);
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(settings.router.listeners, running.router.listeners);
    }
}
