//! The log as its users see it: lines, levels, modules, files, and what is switched off.

use std::fs;
use std::path::{Path, PathBuf};

use linkrouterd::daemon::logging::{Level, LevelSet, LogSettings, Logging, Module, ModuleSettings, Output};
use tempfile::TempDir;
use tracing::{debug, error, info, trace, warn};

/// A log into a file of its own.
struct Log {
    directory: TempDir,
}

impl Log {
    fn new() -> Self {
        Log {
            directory: tempfile::tempdir().expect("a directory"),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// A section for `module` into this log, without time.
    fn section(&self, module: &str, levels: LevelSet) -> ModuleSettings {
        ModuleSettings {
            module: Module::from_name(module).expect("a module"),
            levels: Some(levels),
            include_timestamp: Some(false),
            include_source: None,
            output: Some(Output::File(self.path())),
        }
    }

    /// What `events` prints under these settings.
    fn lines(&self, settings: &LogSettings, events: impl FnOnce(&Logging)) -> Vec<String> {
        let (logging, subscriber) = Logging::new(settings).expect("the file opens");
        tracing::subscriber::with_default(subscriber, || events(&logging));
        read(&self.path())
    }
}

fn read(path: &Path) -> Vec<String> {
    fs::read_to_string(path)
        .expect("the log")
        .lines()
        .map(str::to_owned)
        .collect()
}

fn settings(modules: Vec<ModuleSettings>) -> LogSettings {
    LogSettings {
        modules,
        timestamps_in_utc: true,
        ..LogSettings::default()
    }
}

fn every_level() {
    trace!(target: "SERVER", "t");
    debug!(target: "SERVER", "d");
    info!(target: "SERVER", "i");
    info!(target: "SERVER", severity = "notice", "n");
    warn!(target: "SERVER", "w");
    error!(target: "SERVER", "e");
    error!(target: "SERVER", severity = "critical", "c");
}

#[test]
fn a_line_reads_like_qdrouterds() {
    let log = Log::new();
    let mut section = log.section("DEFAULT", LevelSet::from(Level::Info));
    section.include_timestamp = None;
    let lines = log.lines(&settings(vec![section]), |_| {
        info!(target: "SERVER", severity = "notice", "Listening on {}", "127.0.0.1:5672");
    });
    let [line] = lines.as_slice() else {
        panic!("{lines:?}")
    };
    let (time, rest) = line.split_at("2026-11-22 12:07:12.899143 +0000 ".len());
    assert_eq!(rest, "SERVER (notice) Listening on 127.0.0.1:5672");
    let shape: String = time
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    assert_eq!(shape, "0000-00-00 00:00:00.000000 +0000 ");
}

#[test]
fn timestamp_format_and_source() {
    let log = Log::new();
    let mut section = log.section("DEFAULT", LevelSet::from(Level::Info));
    section.include_timestamp = Some(true);
    section.include_source = Some(true);
    let settings = LogSettings {
        timestamp_format: Some("<%z> %%06lu".to_owned()),
        ..settings(vec![section])
    };
    let lines = log.lines(&settings, |_| info!(target: "AGENT", "here"));
    let [line] = lines.as_slice() else {
        panic!("{lines:?}")
    };
    let rest = line.strip_prefix("<+0000> ").expect("the zone");
    let (microseconds, rest) = rest.split_at(6);
    assert!(microseconds.chars().all(|c| c.is_ascii_digit()), "{line}");
    let source = rest
        .strip_prefix(" AGENT (info) here (")
        .expect("module, level and text");
    assert!(
        source.starts_with("tests/logging.rs:") && source.ends_with(')'),
        "{line}"
    );
}

#[test]
fn levels_are_sets() {
    let cases: [(LevelSet, &str); 8] = [
        (LevelSet::from(Level::Trace), "tdinwec"),
        (LevelSet::from(Level::Info), "inwec"),
        (LevelSet::from(Level::Notice), "nwec"),
        (LevelSet::only(Level::Info), "i"),
        (LevelSet::only(Level::Notice), "n"),
        (LevelSet::from(Level::Critical), "c"),
        (
            LevelSet::only(Level::Debug).union(LevelSet::from(Level::Error)),
            "dec",
        ),
        (LevelSet::NONE, ""),
    ];
    for (levels, expected) in cases {
        let log = Log::new();
        let lines = log.lines(&settings(vec![log.section("SERVER", levels)]), |_| every_level());
        let texts: String = lines.iter().filter_map(|line| line.chars().last()).collect();
        assert_eq!(texts, expected, "{levels:?}: {lines:?}");
    }
    let log = Log::new();
    let all = settings(vec![log.section("SERVER", LevelSet::from(Level::Trace))]);
    let names = ["trace", "debug", "info", "notice", "warning", "error", "critical"];
    for (line, name) in log.lines(&all, |_| every_level()).iter().zip(names) {
        assert!(line.starts_with(&format!("SERVER ({name}) ")), "{line}");
    }
}

#[test]
fn modules_have_their_own_levels_and_unknown_targets_are_default() {
    let log = Log::new();
    let settings = settings(vec![
        log.section("DEFAULT", LevelSet::from(Level::Warning)),
        log.section("ROUTER_CORE", LevelSet::from(Level::Debug)),
        log.section("AGENT", LevelSet::NONE),
    ]);
    let lines = log.lines(&settings, |_| {
        info!(target: "SERVER", "hidden");
        debug!(target: "ROUTER_CORE", "shown");
        error!(target: "AGENT", "hidden");
        warn!(target: "rustls::client", "foreign");
        warn!("of this test");
        error!(target: "MAIN", severity = "critical", "main");
    });
    let expected = [
        "ROUTER_CORE (debug) shown",
        "DEFAULT (warning) foreign",
        "DEFAULT (warning) of this test",
        "MAIN (critical) main",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn fields_follow_the_message_and_nothing_forges_a_line() {
    let log = Log::new();
    let lines = log.lines(&settings(vec![log.section("SERVER", LevelSet::from(Level::Info))]), |_| {
        let container = "x\nSERVER (notice) forged";
        info!(target: "SERVER", conn = "C12", container, count = 3, peer = %"127.0.0.1:1", "Opened {container}");
    });
    let expected = "SERVER (info) Opened x\\nSERVER (notice) forged conn=C12 \
                    container=\"x\\nSERVER (notice) forged\" count=3 peer=127.0.0.1:1";
    assert_eq!(lines, [expected]);
}

#[test]
fn a_giant_text_is_cut_and_says_so() {
    let log = Log::new();
    let lines = log.lines(
        &settings(vec![log.section("PROTOCOL", LevelSet::from(Level::Trace))]),
        |_| {
            trace!(target: "PROTOCOL", "{}", "y".repeat(100_000));
        },
    );
    let [line] = lines.as_slice() else {
        panic!("{} lines", lines.len())
    };
    let text = line.strip_prefix("PROTOCOL (trace) ").expect("module and level");
    assert_eq!(text.len(), 2047);
    assert!(text.ends_with("y..."));
}

/// Its evaluation is the proof that somebody wanted the event.
struct Bomb;

impl std::fmt::Display for Bomb {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("formatted an event that nobody wants");
    }
}

#[test]
fn what_is_off_is_neither_formatted_nor_reported_as_enabled() {
    let log = Log::new();
    log.lines(
        &settings(vec![log.section("DEFAULT", LevelSet::from(Level::Info))]),
        |_| {
            assert!(!tracing::enabled!(target: "PROTOCOL", tracing::Level::TRACE));
            assert!(tracing::enabled!(target: "SERVER", tracing::Level::INFO));
            trace!(target: "PROTOCOL", "{Bomb}");
            debug!(target: "SERVER", value = %Bomb, "text");
            assert!(tracing::info_span!(target: "SERVER", "span", value = %"x").is_disabled());
        },
    );
}

#[test]
fn the_configuration_is_replaceable_while_in_use() {
    let (log, other) = (Log::new(), Log::new());
    let quiet = settings(vec![log.section("DEFAULT", LevelSet::from(Level::Warning))]);
    let loud = settings(vec![
        log.section("DEFAULT", LevelSet::from(Level::Warning)),
        other.section("PROTOCOL", LevelSet::only(Level::Trace)),
    ]);
    let frame = |text: &str| trace!(target: "PROTOCOL", "{text}");
    let enabled = || tracing::enabled!(target: "PROTOCOL", tracing::Level::TRACE);
    let lines = log.lines(&quiet, |logging| {
        frame("one");
        assert!(!enabled());
        logging.apply(&loud).expect("the files open");
        frame("two");
        assert!(enabled());
        let broken = settings(vec![ModuleSettings {
            output: Some(Output::File(log.path().join("not a directory"))),
            ..log.section("DEFAULT", LevelSet::NONE)
        }]);
        assert!(logging.apply(&broken).is_err());
        warn!(target: "SERVER", "still here");
        frame("three");
        logging.apply(&quiet).expect("the files open");
        frame("four");
        assert!(!enabled());
    });
    assert_eq!(lines, ["SERVER (warning) still here"]);
    assert_eq!(
        read(&other.path()),
        ["PROTOCOL (trace) two", "PROTOCOL (trace) three"]
    );
}

#[test]
fn a_rotated_file_is_opened_again() {
    let log = Log::new();
    let settings = settings(vec![log.section("DEFAULT", LevelSet::from(Level::Info))]);
    let rotated = log.directory.path().join("log.1");
    let lines = log.lines(&settings, |logging| {
        info!(target: "SERVER", "old");
        fs::rename(log.path(), &rotated).expect("rotation");
        info!(target: "SERVER", "still old");
        logging.apply(&settings).expect("the file opens");
        info!(target: "SERVER", "new");
    });
    assert_eq!(lines, ["SERVER (info) new"]);
    assert_eq!(read(&rotated), ["SERVER (info) old", "SERVER (info) still old"]);
}
