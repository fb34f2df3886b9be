//! The configuration in the words of the log.

use std::path::PathBuf;

use super::Surroundings;
use crate::config::{self, Config};
use crate::daemon::logging::{Level, LevelSet, LogSettings, Module, ModuleSettings, Output};

/// The settings of the log.
pub(super) fn log_settings(config: &Config, surroundings: &Surroundings<'_>) -> LogSettings {
    LogSettings {
        modules: config.logs.iter().filter_map(module_settings).collect(),
        timestamps_in_utc: config.router.timestamps_in_utc,
        timestamp_format: config.router.timestamp_format.clone(),
        trace_frames: (surroundings.environment)("PN_TRACE_FRM").is_some_and(|value| is_on(&value)),
        trace_devices: traced_devices(config, surroundings).next().is_some(),
    }
}

/// The devices whose frames are asked for, by the command line and by the file.
pub(super) fn traced_devices<'c>(
    config: &'c Config,
    surroundings: &'c Surroundings<'_>,
) -> impl Iterator<Item = &'c str> {
    let in_file = config.logs.iter().flat_map(|log| &log.trace_device);
    surroundings
        .trace_devices
        .iter()
        .chain(in_file)
        .map(String::as_str)
}

/// How Proton reads its switches.
fn is_on(value: &str) -> bool {
    ["1", "on", "true", "yes"]
        .iter()
        .any(|word| word.eq_ignore_ascii_case(value))
}

/// `None` for a module that is in no release's list; the reader has refused it already.
fn module_settings(log: &config::Log) -> Option<ModuleSettings> {
    Some(ModuleSettings {
        module: Module::from_name(&log.module)?,
        levels: log.levels.map(level_set),
        include_timestamp: log.include_timestamp,
        include_source: log.include_source,
        output: log.output.as_ref().map(|output| match output {
            config::LogOutput::File(path) => Output::File(PathBuf::from(path)),
            config::LogOutput::Stderr => Output::Stderr,
            config::LogOutput::Stdout => Output::Stdout,
            config::LogOutput::Syslog => Output::Syslog,
        }),
    })
}

fn level_set(levels: config::LevelSet) -> LevelSet {
    config::LogLevel::ALL
        .into_iter()
        .filter(|level| levels.contains(*level))
        .map(level)
        .collect()
}

fn level(level: config::LogLevel) -> Level {
    match level {
        config::LogLevel::Trace => Level::Trace,
        config::LogLevel::Debug => Level::Debug,
        config::LogLevel::Info => Level::Info,
        config::LogLevel::Notice => Level::Notice,
        config::LogLevel::Warning => Level::Warning,
        config::LogLevel::Error => Level::Error,
        config::LogLevel::Critical => Level::Critical,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::build::site::Site;
    use crate::endpoint::trace::TraceFilter;

    #[test]
    fn log_sections() {
        let text = "router {\n    timestampsInUTC: yes\n    timestampFormat: %H:%M\n}\n\
                    log {\n    module: DEFAULT\n    enable: err\n    outputFile: DIR/log\n}\n\
                    log {\n    module: PROTOCOL\n    enable: trace+\n    includeSource: yes\n    outputFile: syslog\n}\n";
        let site = Site::new();
        let log = site.plan(text, &[]).log;
        assert!(log.timestamps_in_utc);
        assert_eq!(log.timestamp_format.as_deref(), Some("%H:%M"));
        assert!(!log.trace_frames);
        let expected = [
            ModuleSettings {
                module: Module::DEFAULT,
                levels: Some(LevelSet::only(Level::Error)),
                include_timestamp: None,
                include_source: None,
                output: Some(Output::File(site.0.path().join("log"))),
            },
            ModuleSettings {
                module: Module::PROTOCOL,
                levels: Some(LevelSet::from(Level::Trace)),
                include_timestamp: None,
                include_source: Some(true),
                output: Some(Output::Syslog),
            },
        ];
        assert_eq!(log.modules, expected);
    }

    #[test]
    fn devices_whose_frames_are_traced() {
        let text = "log {\n    module: PROTOCOL\n    traceDevice: 10.0.0.7, Netduino-*\n}\n";
        let plan = Site::new().plan(text, &[]);
        assert!(plan.log.trace_devices);
        assert_eq!(
            *plan.shard.router.trace,
            TraceFilter::new(["10.0.0.7", "Netduino-*"])
        );
        let plan = Site::new().plan("# nothing\n", &[]);
        assert!(!plan.log.trace_devices && plan.shard.router.trace.is_empty());
    }

    #[test]
    fn frame_trace_from_the_environment() {
        for (value, on) in [
            ("1", true),
            ("TRUE", true),
            ("yes", true),
            ("on", true),
            ("0", false),
            ("", false),
        ] {
            let plan = Site::new().plan("# nothing\n", &[("PN_TRACE_FRM", value)]);
            assert_eq!(plan.log.trace_frames, on, "{value}");
        }
    }
}
