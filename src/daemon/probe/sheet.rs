//! What is printed of one connector: a title for each host, a line for each step, and details below it.

use std::fmt;

use tokio::sync::mpsc::UnboundedSender;

use crate::daemon::logging::one_line;

/// Where details begin: below the text of a step.
const INDENT: usize = 18;

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Dns,
    Tcp,
    Tls,
    Clock,
    Sasl,
    Open,
    Session,
    Close,
}

impl Step {
    const fn name(self) -> &'static str {
        match self {
            Step::Dns => "DNS",
            Step::Tcp => "TCP",
            Step::Tls => "TLS",
            Step::Clock => "clock",
            Step::Sasl => "SASL",
            Step::Open => "open",
            Step::Session => "session",
            Step::Close => "close",
        }
    }
}

/// What it came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Ok,
    /// It works, and deserves a look.
    Note,
    Failed,
}

impl Mark {
    const fn word(self) -> &'static str {
        match self {
            Mark::Ok => "ok",
            Mark::Note => "note",
            Mark::Failed => "FAILED",
        }
    }
}

/// Takes lines, and passes them on to be read. Whatever a peer has put into one, it stays one line of bounded length.
pub(super) struct Sheet {
    lines: UnboundedSender<String>,
}

impl Sheet {
    pub(super) const fn new(lines: UnboundedSender<String>) -> Self {
        Sheet { lines }
    }

    pub(super) fn title(&self, text: &str) {
        self.write("", text);
    }

    pub(super) fn step(&self, step: Step, mark: Mark, text: &str) {
        self.write(&format!("  {:<8}{:<8}", step.name(), mark.word()), text);
    }

    /// More about the step above.
    pub(super) fn detail(&self, text: &str) {
        self.write(&" ".repeat(INDENT), text);
    }

    /// The good of a step that has come to an end; a failed one is written down.
    pub(super) fn good<T, E: fmt::Display>(&self, step: Step, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(good) => Some(good),
            Err(error) => {
                self.step(step, Mark::Failed, &error.to_string());
                None
            }
        }
    }

    fn write(&self, head: &str, text: &str) {
        // Nobody reads any more only when the program ends.
        let _ = self.lines.send(format!("{head}{}\n", one_line(text)));
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn a_peer_cannot_forge_a_line() {
        let (lines, mut read) = mpsc::unbounded_channel();
        let sheet = Sheet::new(lines);
        sheet.step(Step::Open, Mark::Ok, "container-id x\n  SASL    ok\u{1b}[2J");
        sheet.detail(&"x".repeat(100_000));
        assert_eq!(
            read.try_recv().unwrap(),
            "  open    ok      container-id x\\n  SASL    ok\\x1b[2J\n"
        );
        assert!(read.try_recv().unwrap().len() < 2100);
    }

    #[test]
    fn details_stand_below_the_text_of_their_step() {
        let (lines, mut read) = mpsc::unbounded_channel();
        let sheet = Sheet::new(lines);
        sheet.step(Step::Session, Mark::Failed, "x");
        sheet.detail("x");
        let columns: Vec<_> = [read.try_recv(), read.try_recv()]
            .map(|line| line.unwrap().find('x'))
            .to_vec();
        assert_eq!(columns, [Some(INDENT), Some(INDENT)]);
    }
}
