//! What reading a file yields: a configuration, or the findings that prevent one; usually both.

use std::fmt;

use super::model::Config;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file can be used; the operator should know this.
    Warning,
}

/// One thing to tell the operator about one line. Never contains a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Error or warning.
    pub severity: Severity,
    /// The file's name as it was given.
    pub file: String,
    /// Line in that file, counted from 1; 0 when the finding is about the file as a whole.
    pub line: u32,
    /// One sentence or two, without a final full stop.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, ": {severity}: {}", self.message)
    }
}

/// The outcome of reading one file.
#[derive(Clone, Debug)]
pub struct Report {
    /// The configuration; `None` if any finding is an error.
    pub config: Option<Config>,
    /// Everything found, in line order.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The findings that prevent the start.
    pub fn errors(&self) -> impl Iterator<Item = &Finding> {
        self.findings
            .iter()
            .filter(|finding| finding.severity == Severity::Error)
    }

    /// The findings that do not.
    pub fn warnings(&self) -> impl Iterator<Item = &Finding> {
        self.findings
            .iter()
            .filter(|finding| finding.severity == Severity::Warning)
    }
}

/// Puts findings in line order: those of this file, then of the others by name. Those of one line keep their order.
pub fn sort(findings: &mut [Finding], file: &str) {
    findings.sort_by(|a, b| {
        let is_other = (a.file != file).cmp(&(b.file != file));
        is_other.then_with(|| (&a.file, a.line).cmp(&(&b.file, b.line)))
    });
}

/// Collects the findings of one file.
pub(super) struct Findings {
    file: String,
    list: Vec<Finding>,
}

impl Findings {
    pub(super) fn new(file: &str) -> Self {
        Findings {
            file: file.to_owned(),
            list: Vec::new(),
        }
    }

    pub(super) fn error(&mut self, line: u32, message: impl Into<String>) {
        self.push(Severity::Error, line, message.into());
    }

    pub(super) fn warning(&mut self, line: u32, message: impl Into<String>) {
        self.push(Severity::Warning, line, message.into());
    }

    /// The name of the file.
    pub(super) fn file(&self) -> &str {
        &self.file
    }

    /// A warning about a line of this file, or of one that belongs to it.
    pub(super) fn warning_in(&mut self, file: &str, line: u32, message: &str) {
        self.list.push(Finding {
            severity: Severity::Warning,
            file: file.to_owned(),
            line,
            message: message.to_owned(),
        });
    }

    /// Takes over the findings of a file that belongs to this one.
    pub(super) fn adopt(&mut self, other: Findings) {
        self.list.extend(other.list);
    }

    pub(super) fn has_errors(&self) -> bool {
        self.list
            .iter()
            .any(|finding| finding.severity == Severity::Error)
    }

    /// The findings in the order of [`sort`].
    pub(super) fn into_sorted(mut self) -> Vec<Finding> {
        sort(&mut self.list, &self.file);
        self.list
    }

    fn push(&mut self, severity: Severity, line: u32, message: String) {
        self.list.push(Finding {
            severity,
            file: self.file.clone(),
            line,
            message,
        });
    }
}
