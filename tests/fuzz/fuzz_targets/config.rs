//! Any text is a configuration, or a list of findings that name lines of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use linkrouterd::config::{self, Severity};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for name in ["fuzz.conf", "fuzz.json"] {
        let report = config::parse(name, text, &|_| None);
        let lines = text.lines().count().max(1);
        for finding in &report.findings {
            assert!(
                usize::try_from(finding.line).is_ok_and(|line| line <= lines + 1),
                "{finding}"
            );
        }
        let has_error = report
            .findings
            .iter()
            .any(|finding| finding.severity == Severity::Error);
        assert_eq!(report.config.is_none(), has_error, "{:?}", report.findings);
    }
});
