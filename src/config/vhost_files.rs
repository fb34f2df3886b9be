//! The files of `policyDir`: vhosts in the JSON notation, in the order of their names.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::json;
use super::report::Findings;
use super::source::Section;

/// Sections that such a file may hold; the second is what 0.6 had there, and is not run.
const KNOWN: [&str; 2] = ["vhost", "policyRuleset"];

/// One file, with findings of its own.
pub(super) struct VhostFile {
    pub(super) sections: Vec<Section>,
    pub(super) findings: Findings,
}

/// Reads every `*.json` of a directory. `Err` if the directory itself cannot be read.
pub(super) fn read(directory: &Path) -> io::Result<Vec<VhostFile>> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths.iter().map(|path| file(path)).collect())
}

fn file(path: &Path) -> VhostFile {
    let mut findings = Findings::new(&path.display().to_string());
    let text = super::read(path).and_then(|bytes| match bytes.len() as u64 > super::MAX_FILE_BYTES {
        true => Err(io::Error::other("it is too large")),
        false => String::from_utf8(bytes).map_err(io::Error::other),
    });
    let mut sections = match text {
        Ok(text) => json::read(text.strip_prefix('\u{feff}').unwrap_or(&text), &mut findings),
        Err(error) => {
            findings.error(0, format!("the vhosts cannot be read: {error}"));
            Vec::new()
        }
    };
    sections.retain(|section| {
        let is_known = KNOWN.contains(&super::names::normalise(&section.name).as_str());
        if !is_known {
            findings.error(section.line, "in a file of `policyDir` there can be vhosts only");
        }
        is_known
    });
    VhostFile { sections, findings }
}
