//! qdrouterd's seven levels and sets of them (`enable: debug, warning+`).

use std::fmt;

/// How much a line matters, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Frames and other floods.
    Trace,
    /// Link lifecycle and decisions.
    Debug,
    /// Connection lifecycle, configuration.
    Info,
    /// Milestones of the process.
    Notice,
    /// Degraded, but we cope.
    Warning,
    /// The operator must act.
    Error,
    /// The daemon cannot go on.
    Critical,
}

impl Level {
    /// Every level, the least first.
    pub const ALL: [Level; 7] = [
        Level::Trace,
        Level::Debug,
        Level::Info,
        Level::Notice,
        Level::Warning,
        Level::Error,
        Level::Critical,
    ];

    /// The name in lines and in `enable`.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Trace => "trace",
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Notice => "notice",
            Level::Warning => "warning",
            Level::Error => "error",
            Level::Critical => "critical",
        }
    }

    /// The level that a `severity` field means; none when it is no such word.
    pub(super) fn from_severity(text: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.name() == text)
    }

    /// The `tracing` level whose macros emit this level.
    pub(super) const fn carrier(self) -> tracing::Level {
        match self {
            Level::Trace => tracing::Level::TRACE,
            Level::Debug => tracing::Level::DEBUG,
            Level::Info | Level::Notice => tracing::Level::INFO,
            Level::Warning => tracing::Level::WARN,
            Level::Error | Level::Critical => tracing::Level::ERROR,
        }
    }
}

impl From<tracing::Level> for Level {
    fn from(level: tracing::Level) -> Self {
        match level {
            tracing::Level::TRACE => Level::Trace,
            tracing::Level::DEBUG => Level::Debug,
            tracing::Level::INFO => Level::Info,
            tracing::Level::WARN => Level::Warning,
            tracing::Level::ERROR => Level::Error,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of levels. They need not be adjacent: `enable: trace, error` is a set of two.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct LevelSet(u8);

impl LevelSet {
    /// No level at all (`enable: none`).
    pub const NONE: LevelSet = LevelSet(0);

    /// This level alone (`enable: debug`).
    pub const fn only(level: Level) -> Self {
        LevelSet(1 << level as u8)
    }

    /// This level and everything above (`enable: info+`).
    pub fn from(level: Level) -> Self {
        Level::ALL.into_iter().filter(|other| *other >= level).collect()
    }

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        LevelSet(self.0 | other.0)
    }

    /// Whether the level is in the set.
    pub const fn contains(self, level: Level) -> bool {
        self.intersects(LevelSet::only(level))
    }

    /// Whether the sets have a level in common.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl FromIterator<Level> for LevelSet {
    fn from_iter<I: IntoIterator<Item = Level>>(levels: I) -> Self {
        levels
            .into_iter()
            .fold(LevelSet::NONE, |set, level| set.union(LevelSet::only(level)))
    }
}

impl fmt::Debug for LevelSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(Level::ALL.iter().filter(|level| self.contains(**level)))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets() {
        let warning = LevelSet::from(Level::Warning);
        assert!(warning.contains(Level::Warning) && warning.contains(Level::Critical));
        assert!(!warning.contains(Level::Notice));
        let only = LevelSet::only(Level::Debug);
        assert!(only.contains(Level::Debug) && !only.contains(Level::Info) && !only.contains(Level::Trace));
        let both = warning.union(only);
        assert!(both.contains(Level::Debug) && both.contains(Level::Error) && !both.contains(Level::Info));
        assert!(!Level::ALL.into_iter().any(|level| LevelSet::NONE.contains(level)));
        assert_eq!(LevelSet::from(Level::Trace), Level::ALL.into_iter().collect());
        assert_eq!(format!("{both:?}"), "{Debug, Warning, Error, Critical}");
    }

    #[test]
    fn severities_are_level_names() {
        assert_eq!(Level::from_severity("notice"), Some(Level::Notice));
        assert_eq!(Level::from_severity("critical"), Some(Level::Critical));
        assert_eq!(Level::from_severity("NOTICE"), None);
    }
}
