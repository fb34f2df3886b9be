//! The daemon as the kernel sees it: memory, open files, storage and wake-ups, from `/proc`.

use std::fs;

use super::Failure;
use super::daemon::Daemon;
use super::process::number_behind;

/// Memory in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// All that is resident, the pages of the program's file included.
    pub(crate) resident: u64,
    /// What is the process' own: heap, stacks, and data that was written.
    pub(crate) anonymous: u64,
    /// Resident, with pages that other processes have mapped as well counted in part.
    pub(crate) proportional: u64,
}

/// What a process has done so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Activity {
    /// Bytes that it made the kernel write to storage.
    pub(crate) stored: u64,
    /// Times that a thread of it went to sleep.
    pub(crate) waits: u64,
}

pub(crate) fn memory(daemon: &Daemon) -> Result<Memory, Failure> {
    let rollup = fs::read_to_string(daemon.proc("smaps_rollup"))?;
    Ok(Memory {
        resident: daemon.memory("VmRSS")?,
        anonymous: number_behind(&rollup, "Anonymous")?,
        proportional: number_behind(&rollup, "Pss")?,
    })
}

/// How many files and sockets are open.
pub(crate) fn open_files(daemon: &Daemon) -> Result<usize, Failure> {
    Ok(fs::read_dir(daemon.proc("fd"))?.count())
}

/// Regular files that are open for writing.
pub(crate) fn writable_files(daemon: &Daemon) -> Result<Vec<String>, Failure> {
    const ACCESS_MODE: u32 = 0o3;
    let mut found = Vec::new();
    for entry in fs::read_dir(daemon.proc("fd"))? {
        let entry = entry?;
        let info = daemon.proc("fdinfo").join(entry.file_name());
        // A socket may be closed meanwhile.
        let (Ok(status), Ok(info)) = (fs::metadata(entry.path()), fs::read_to_string(info)) else {
            continue;
        };
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
        let flags = flags.ok_or_else(|| Failure::new("no flags in /proc"))?;
        if status.is_file() && flags & ACCESS_MODE != 0 {
            found.push(fs::read_link(entry.path())?.display().to_string());
        }
    }
    Ok(found)
}

pub(crate) fn activity(daemon: &Daemon) -> Result<Activity, Failure> {
    let stored = number_behind(&fs::read_to_string(daemon.proc("io"))?, "write_bytes")?;
    let mut waits = 0;
    for task in fs::read_dir(daemon.proc("task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        waits += number_behind(&status, "voluntary_ctxt_switches")?;
    }
    Ok(Activity { stored, waits })
}
