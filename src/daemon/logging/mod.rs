//! The log: qdrouterd's lines, modules, levels and outputs, on top of `tracing`.
//!
//! ```text
//! 2026-11-22 12:07:12.899143 +0000 SERVER (notice) Listening on 127.0.0.1:5672
//! TIMESTAMP                        MODULE (level)  TEXT[ (file:line)]
//! ```
//!
//! # Convention for the layers below
//!
//! They know `tracing` only. An event's *target* is the module (`target: "ROUTER_CORE"`); a target that is no module
//! of qdrouterd's counts as `DEFAULT`. Two levels that `tracing` lacks are written as a field: `severity = "notice"`
//! on an `info!`, `severity = "critical"` on an `error!`. TEXT is the event's message; other fields follow it as
//! ` key=value`. Spans are never printed and therefore never enabled.
//!
//! # Guarantees
//!
//! - One event is one line, whatever a peer managed to put into it: control characters are escaped.
//! - A line is complete when the macro returns (it is written by one call and nothing is buffered).
//! - A text longer than 2047 bytes is cut and ends in `...`.
//! - An output that cannot be written to loses lines; it never stops the daemon.
//! - What is not enabled costs one cached check per call site, and `tracing::enabled!` says the truth about it.
//! - The whole configuration can be replaced while events are being logged ([`Logging::apply`]).

mod level;
mod line;
mod module;
mod settings;
mod sink;
mod subscriber;
mod timestamp;

pub use level::{Level, LevelSet};
pub(super) use line::one_line;
pub use module::Module;
pub use settings::{LogError, LogSettings, ModuleSettings, Output};
pub use timestamp::check_format;

use settings::Table;
use sink::Sink;
use subscriber::LineSubscriber;

/// Writes a text to stderr that is no event, because there is no log yet or it may be set to silence.
pub(super) fn complain(text: &str) {
    let stderr = Sink::stderr();
    for line in text.split_inclusive('\n') {
        stderr.write(Level::Error, line);
    }
}

/// The handle to a log that is in use.
#[derive(Clone, Debug)]
pub struct Logging {
    subscriber: LineSubscriber,
}

impl Logging {
    /// The first of two stages: logs level `info` and above to stderr, for the whole process, until a
    /// configuration is [applied](Logging::apply). A process-wide subscriber that is already there stays.
    pub fn install() -> Self {
        let (logging, subscriber) = Self::with_table(Table::start());
        // The only failure is that another subscriber was first, which only a test harness can do.
        let _ = tracing::subscriber::set_global_default(subscriber);
        logging
    }

    /// A log that is not installed: the caller decides where the subscriber is used.
    ///
    /// # Errors
    /// [`LogError::OpenFile`] as in [`Logging::apply`].
    pub fn new(
        settings: &LogSettings,
    ) -> Result<(Self, impl tracing::Subscriber + Send + Sync + use<>), LogError> {
        Ok(Self::with_table(Table::new(settings)?))
    }

    fn with_table(table: Table) -> (Self, impl tracing::Subscriber + Send + Sync + use<>) {
        let subscriber = LineSubscriber::new(table);
        let logging = Logging {
            subscriber: subscriber.clone(),
        };
        (logging, subscriber)
    }

    /// Replaces the whole configuration, now and for every thread. Log files are opened again, which is what a log
    /// rotation waits for.
    ///
    /// # Errors
    /// [`LogError::OpenFile`] when a log file cannot be opened; the configuration in use stays.
    pub fn apply(&self, settings: &LogSettings) -> Result<(), LogError> {
        self.subscriber.replace(Table::new(settings)?);
        tracing::callsite::rebuild_interest_cache();
        Ok(())
    }
}
