//! What the router logs while a test does something.

use std::io::{self, Write};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use tracing::Dispatch;
use tracing::subscriber::NoSubscriber;

/// While there is one subscriber only, `tracing` asks that of the thread which comes first to a place in the source about
/// the interest in it; a thread without one would answer for the test that listens.
static ANOTHER: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::new()));

/// The lines, with level and module.
#[derive(Debug)]
pub(crate) struct Said(Vec<String>);

#[derive(Clone, Default)]
struct Pen(Arc<Mutex<Vec<u8>>>);

impl Write for Pen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Said {
    /// What is logged while this runs, from level INFO on.
    pub(crate) fn of(what: impl FnOnce()) -> Self {
        Self::down_to(tracing::Level::INFO, what)
    }

    /// The frame trace of what happens while this runs.
    pub(crate) fn frames_of(what: impl FnOnce()) -> Self {
        let Said(mut lines) = Self::down_to(tracing::Level::TRACE, what);
        lines.retain(|line| line.contains("PROTOCOL: "));
        Said(lines)
    }

    fn down_to(level: tracing::Level, what: impl FnOnce()) -> Self {
        LazyLock::force(&ANOTHER);
        let pen = Pen::default();
        let writer = pen.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(level)
            .with_ansi(false)
            .without_time()
            .with_writer(move || writer.clone());
        tracing::subscriber::with_default(subscriber.finish(), what);
        let text = pen.0.lock().unwrap_or_else(PoisonError::into_inner);
        Said(
            String::from_utf8_lossy(&text)
                .lines()
                .map(str::to_owned)
                .collect(),
        )
    }

    pub(crate) fn count(&self, text: &str) -> usize {
        self.0.iter().filter(|line| line.contains(text)).count()
    }

    pub(crate) fn lines(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Whether one line has both.
    pub(crate) fn contains_both(&self, one: &str, other: &str) -> bool {
        self.lines()
            .any(|line| line.contains(one) && line.contains(other))
    }

    pub(crate) fn contains(&self, text: &str) -> bool {
        self.count(text) > 0
    }

    /// The first line with this text.
    #[track_caller]
    pub(crate) fn line(&self, text: &str) -> &str {
        let line = self.0.iter().find(|line| line.contains(text));
        line.unwrap_or_else(|| panic!("no line with '{text}' in {:#?}", self.0))
    }
}
