//! What the kernel counts of a process, and of all processes of a group.

use std::fs;
use std::time::Duration;

use super::Failure;

/// Linux counts process times in hundredths of a second in `/proc`, whatever the kernel's own tick.
const TICK: Duration = Duration::from_millis(10);

/// User and system time of all threads of a process so far, those that have ended included.
pub(crate) fn cpu(pid: u32) -> Result<Duration, Failure> {
    // utime and stime are the fields 14 and 15.
    stat(pid)
        .and_then(|stat| Some(TICK * (field(&stat, 14)? + field(&stat, 15)?)))
        .ok_or_else(|| Failure::new(format!("no times of the process {pid} in /proc")))
}

/// Resident memory of a process in KiB: now (`VmRSS`) or at its highest (`VmHWM`).
pub(crate) fn memory(pid: u32, name: &str) -> Result<u64, Failure> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    number_behind(&status, name)
}

/// The number behind `name:` in a file of `/proc`.
pub(crate) fn number_behind(text: &str, name: &str) -> Result<u64, Failure> {
    text.lines()
        .find_map(|line| {
            line.strip_prefix(name)?
                .strip_prefix(':')?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .ok_or_else(|| Failure::new(format!("no {name} in /proc")))
}

/// The processes of a group.
pub(crate) fn group(id: u32) -> Result<Vec<u32>, Failure> {
    let mut members = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may end meanwhile.
        if stat(pid).and_then(|stat| field(&stat, 5)) == Some(id) {
            members.push(pid);
        }
    }
    Ok(members)
}

/// The fields of `/proc/PID/stat` behind the name of the program, which may have blanks.
fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

/// A field by its number in `proc(5)`; the state, number 3, is the first behind the name.
fn field(stat: &[String], number: usize) -> Option<u32> {
    stat.get(number - 3)?.parse().ok()
}
