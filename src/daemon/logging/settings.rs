//! What the log is told, and the table it works from.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::level::{Level, LevelSet};
use super::module::Module;
use super::sink::Sink;
use super::timestamp::Clock;

/// Everything the log is told. The default is that of a file without any `log` section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogSettings {
    /// `log` sections; of several for one module the last wins.
    pub modules: Vec<ModuleSettings>,
    /// UTC instead of local time.
    pub timestamps_in_utc: bool,
    /// A `strftime` format in which `%%06lu` stands for the microseconds; `None` is qdrouterd's format.
    pub timestamp_format: Option<String>,
    /// Print the frame trace to stderr even where no `log` section asks for it (`PN_TRACE_FRM`).
    pub trace_frames: bool,
    /// The frames of some devices are asked for: module `PROTOCOL` has its trace, whatever its section says.
    pub trace_devices: bool,
}

/// One `log` section. What it leaves out is taken from module `DEFAULT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleSettings {
    /// Whose lines.
    pub module: Module,
    /// Which levels; `DEFAULT` itself has `info+` unless told otherwise.
    pub levels: Option<LevelSet>,
    /// Whether a line starts with the time.
    pub include_timestamp: Option<bool>,
    /// Whether a line ends with the place in our source.
    pub include_source: Option<bool>,
    /// Where lines go; `DEFAULT` itself has stderr unless told otherwise.
    pub output: Option<Output>,
}

/// Where lines go (qdrouterd: `outputFile`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    /// Appended to this file.
    File(PathBuf),
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// The local syslog daemon, facility `daemon`.
    Syslog,
}

impl Output {
    /// The meaning of an `outputFile`.
    pub fn from_text(text: &str) -> Self {
        match text {
            "stderr" => Output::Stderr,
            "stdout" => Output::Stdout,
            "syslog" => Output::Syslog,
            path => Output::File(PathBuf::from(path)),
        }
    }
}

/// Why a log cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A log file cannot be opened for appending.
    #[error("Failed to open log file '{}': {reason}", path.display())]
    OpenFile {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        reason: std::io::Error,
    },
    /// There is no socket for the syslog daemon.
    #[error("Failed to open the syslog socket: {0}")]
    Syslog(std::io::Error),
}

/// One module's rule, everything resolved.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) levels: LevelSet,
    pub(super) timestamp: bool,
    pub(super) source: bool,
    pub(super) sink: Arc<Sink>,
}

/// The resolved settings: one rule per module, by [`Module::index`].
#[derive(Debug)]
pub(super) struct Table {
    default: Rule,
    rules: Vec<Rule>,
    pub(super) clock: Clock,
    /// Where frames are traced to besides, because the environment says so.
    pub(super) frame_trace: Option<Sink>,
}

impl Table {
    /// The table before any configuration is read.
    pub(super) fn start() -> Self {
        let default = Rule::start();
        Table {
            rules: vec![default.clone(); Module::COUNT],
            default,
            clock: Clock::new(&LogSettings::default()),
            frame_trace: None,
        }
    }

    /// Opens every output and resolves every module's rule.
    ///
    /// # Errors
    /// [`LogError`] when an output cannot be opened.
    pub(super) fn new(settings: &LogSettings) -> Result<Self, LogError> {
        let mut outputs = Outputs::default();
        let mut default = Rule::start();
        let (defaults, others): (Vec<_>, Vec<_>) = settings
            .modules
            .iter()
            .partition(|section| section.module == Module::DEFAULT);
        for section in defaults {
            default = Rule::start().changed_by(section, &mut outputs)?;
        }
        let mut rules = vec![default.clone(); Module::COUNT];
        for section in others {
            if let Some(rule) = rules.get_mut(section.module.index()) {
                *rule = default.changed_by(section, &mut outputs)?;
            }
        }
        if settings.trace_devices
            && let Some(rule) = rules.get_mut(Module::PROTOCOL.index())
        {
            rule.levels = rule.levels.union(LevelSet::only(Level::Trace));
        }
        Ok(Table {
            default,
            rules,
            clock: Clock::new(settings),
            frame_trace: settings.trace_frames.then(Sink::stderr),
        })
    }

    /// The rule for one module.
    pub(super) fn rule(&self, module: Module) -> &Rule {
        self.rules.get(module.index()).unwrap_or(&self.default)
    }

    /// The levels that an event of this module may have to be of use to anyone.
    pub(super) fn wanted(&self, module: Module) -> LevelSet {
        let levels = self.rule(module).levels;
        if self.frame_trace.is_some() && module == Module::PROTOCOL {
            levels.union(LevelSet::only(Level::Trace))
        } else {
            levels
        }
    }
}

impl Rule {
    fn start() -> Self {
        Rule {
            levels: LevelSet::from(Level::Info),
            timestamp: true,
            source: false,
            sink: Arc::new(Sink::stderr()),
        }
    }

    /// This rule with a section's settings on top.
    fn changed_by(&self, section: &ModuleSettings, outputs: &mut Outputs) -> Result<Rule, LogError> {
        let sink = match &section.output {
            Some(output) => outputs.open(output)?,
            None => Arc::clone(&self.sink),
        };
        Ok(Rule {
            levels: section.levels.unwrap_or(self.levels),
            timestamp: section.include_timestamp.unwrap_or(self.timestamp),
            source: section.include_source.unwrap_or(self.source),
            sink,
        })
    }
}

/// The outputs of one table: modules that name the same one share it.
#[derive(Default)]
struct Outputs(HashMap<Output, Arc<Sink>>);

impl Outputs {
    fn open(&mut self, output: &Output) -> Result<Arc<Sink>, LogError> {
        if let Some(sink) = self.0.get(output) {
            return Ok(Arc::clone(sink));
        }
        let sink = Arc::new(Sink::open(output)?);
        self.0.insert(output.clone(), Arc::clone(&sink));
        Ok(sink)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(module: &str) -> ModuleSettings {
        ModuleSettings {
            module: Module::from_name(module).expect("a module"),
            levels: None,
            include_timestamp: None,
            include_source: None,
            output: None,
        }
    }

    #[test]
    fn modules_follow_default_in_what_they_leave_out() {
        let settings = LogSettings {
            modules: vec![
                ModuleSettings {
                    levels: Some(LevelSet::only(Level::Debug)),
                    ..section("SERVER")
                },
                ModuleSettings {
                    levels: Some(LevelSet::from(Level::Error)),
                    include_timestamp: Some(false),
                    output: Some(Output::Stdout),
                    ..section("DEFAULT")
                },
                section("AGENT"),
            ],
            ..LogSettings::default()
        };
        let table = Table::new(&settings).expect("no file to open");
        let server = table.rule(Module::of_target("SERVER"));
        assert_eq!(server.levels, LevelSet::only(Level::Debug));
        assert!(!server.timestamp && matches!(*server.sink, Sink::Stdout(_)));
        for name in ["DEFAULT", "AGENT", "ROUTER"] {
            let rule = table.rule(Module::of_target(name));
            assert_eq!(rule.levels, LevelSet::from(Level::Error), "{name}");
            assert!(matches!(*rule.sink, Sink::Stdout(_)), "{name}");
        }
    }

    #[test]
    fn one_open_file_per_path() {
        let directory = tempfile::tempdir().expect("a directory");
        let output = Some(Output::File(directory.path().join("log")));
        let settings = LogSettings {
            modules: vec![
                ModuleSettings {
                    output: output.clone(),
                    ..section("SERVER")
                },
                ModuleSettings {
                    output,
                    ..section("AGENT")
                },
            ],
            ..LogSettings::default()
        };
        let table = Table::new(&settings).expect("a writable directory");
        let sinks = ["SERVER", "AGENT"].map(|name| Arc::as_ptr(&table.rule(Module::of_target(name)).sink));
        assert_eq!(sinks[0], sinks[1]);
        let missing = ModuleSettings {
            output: Some(Output::File(directory.path().join("no/such/log"))),
            ..section("SERVER")
        };
        let error = Table::new(&LogSettings {
            modules: vec![missing],
            ..LogSettings::default()
        });
        let text = error.expect_err("no such directory").to_string();
        assert!(
            text.starts_with("Failed to open log file '") && text.contains("no/such/log"),
            "{text}"
        );
    }

    #[test]
    fn frame_trace_from_the_environment_adds_to_protocol_only() {
        let settings = LogSettings {
            trace_frames: true,
            ..LogSettings::default()
        };
        let table = Table::new(&settings).expect("nothing to open");
        assert!(table.wanted(Module::PROTOCOL).contains(Level::Trace));
        assert!(!table.wanted(Module::PROTOCOL).contains(Level::Debug));
        assert!(!table.wanted(Module::DEFAULT).contains(Level::Trace));
    }

    #[test]
    fn traced_devices_add_their_frames_to_what_protocol_logs() {
        let settings = LogSettings {
            modules: vec![ModuleSettings {
                levels: Some(LevelSet::from(Level::Error)),
                ..section("PROTOCOL")
            }],
            trace_devices: true,
            ..LogSettings::default()
        };
        let rule = Table::new(&settings)
            .expect("nothing to open")
            .rule(Module::PROTOCOL)
            .clone();
        assert!(rule.levels.contains(Level::Trace) && rule.levels.contains(Level::Error));
        assert!(!rule.levels.contains(Level::Debug));
    }
}
