//! Findings about a configuration, as the log shows them.

use std::fmt;

use crate::config::{Finding, Severity};

/// `2 errors, 1 warning`.
pub(super) struct Count<'a>(pub(super) &'a [Finding]);

impl fmt::Display for Count<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (severity, noun, separator) in [
            (Severity::Error, "error", ""),
            (Severity::Warning, "warning", ", "),
        ] {
            let count = self
                .0
                .iter()
                .filter(|finding| finding.severity == severity)
                .count();
            let plural = if count == 1 { "" } else { "s" };
            write!(f, "{separator}{count} {noun}{plural}")?;
        }
        Ok(())
    }
}

/// A finding without its severity, which is the log line's own: `FILE:LINE: MESSAGE`.
struct Place<'a>(&'a Finding);

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding {
            file, line, message, ..
        } = self.0;
        match line {
            0 => write!(f, "{file}: {message}"),
            line => write!(f, "{file}:{line}: {message}"),
        }
    }
}

/// Logs each finding.
pub(super) fn log(findings: &[Finding]) {
    for finding in findings {
        match finding.severity {
            Severity::Error => tracing::error!(target: "AGENT", "{}", Place(finding)),
            Severity::Warning => tracing::warn!(target: "AGENT", "{}", Place(finding)),
        }
    }
}
