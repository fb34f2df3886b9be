//! Going to the background, pidfile, changing the account.
//!
//! A Unix daemon forks twice. A safe Rust program cannot fork itself, so each step is a fresh start of the program,
//! told by a hidden option which [`Stage`] it is:
//!
//! ```text
//! operator's process ──starts──▶ Session: setsid ──starts──▶ Daemon: no session leader, parent gone
//!        ▲                                                     │
//!        └───────────── one report, over a pipe ───────────────┘
//! ```
//!
//! The operator's process ends when the daemon has reported: with success only after the configuration is loaded and
//! the listeners are bound, else with the daemon's own error text. The pipe is the stages' standard output; the
//! daemon moves it away first of all, so that nothing else ever writes into it.

use std::ffi::{CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::stat::{Mode, umask};
use nix::unistd::{User, dup2_stdout, geteuid, initgroups, setgid, setsid, setuid};

use crate::cli::{RunOptions, Stage};

/// First byte of the report of a daemon that is ready; any other report is an error text.
const READY: u8 = b'+';
/// Longest report that is read.
const REPORT_MAX: u64 = 64 * 1024;
/// What the daemon's files can be at most: nobody but the owner writes.
const UMASK: Mode = Mode::S_IWGRP.union(Mode::S_IWOTH);
const PIDFILE_MODE: u32 = 0o644;

/// Why the daemon did not get to the background.
#[derive(Debug, thiserror::Error)]
pub(super) enum DetachError {
    /// Everything of a container ends with its first process, so that one has no background.
    #[error("Cannot go to the background as process 1, with which a container ends: leave out --daemon")]
    FirstProcess,
    /// A path of the command line cannot be made absolute.
    #[error("Cannot find the current directory: {0}")]
    CurrentDirectory(io::Error),
    /// The account does not exist or cannot be taken.
    #[error("Cannot run as user '{name}': {reason}")]
    User {
        /// As given on the command line.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The pidfile cannot be written.
    #[error("Cannot write the pidfile '{}': {reason}", path.display())]
    PidFile {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        reason: io::Error,
    },
    /// The daemon gave up before it was ready; its own report, ready to be printed.
    #[error("{0}")]
    Reported(String),
    /// The session could not be made or left.
    #[error("Cannot leave the terminal: {0}")]
    Session(io::Error),
    /// The daemon was gone before it was ready.
    #[error("The background process ended without a word")]
    Silent,
    /// The next stage could not be started.
    #[error("Cannot start the background process: {0}")]
    Spawn(io::Error),
}

/// The operator's process: starts the daemon in the background and waits for its report.
///
/// # Errors
/// [`DetachError::Reported`], [`DetachError::Silent`] when the daemon started and failed; others when it could not be
/// started.
pub(super) fn launch(options: &RunOptions) -> Result<(), DetachError> {
    if std::process::id() == 1 {
        return Err(DetachError::FirstProcess);
    }
    let mut session = stage_command(options, Stage::Session)?
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(DetachError::Spawn)?;
    let mut report = Vec::new();
    if let Some(pipe) = session.stdout.take() {
        pipe.take(REPORT_MAX)
            .read_to_end(&mut report)
            .map_err(DetachError::Spawn)?;
    }
    // Ended long ago; waited for so that it leaves no zombie to whoever started us in a container.
    let _ = session.wait();
    match report.split_first() {
        Some((&READY, _)) => Ok(()),
        Some(_) => Err(DetachError::Reported(
            String::from_utf8_lossy(&report).into_owned(),
        )),
        None => Err(DetachError::Silent),
    }
}

/// The session stage: leads a new session, away from the operator's terminal, and starts the daemon in it.
///
/// # Errors
/// As [`launch`]; the caller reports them on standard output.
pub(super) fn lead_session(options: &RunOptions) -> Result<(), DetachError> {
    setsid().map_err(|errno| DetachError::Session(errno.into()))?;
    // The child is not waited for: it outlives us, and its new parent takes care of it.
    stage_command(options, Stage::Daemon)?
        .spawn()
        .map(drop)
        .map_err(DetachError::Spawn)
}

fn stage_command(options: &RunOptions, stage: Stage) -> Result<Command, DetachError> {
    let program = std::env::current_exe().map_err(DetachError::Spawn)?;
    let absolute = |path: &Path| std::path::absolute(path).map_err(DetachError::CurrentDirectory);
    let mut command = Command::new(&program);
    command.arg0(
        std::env::args_os()
            .next()
            .unwrap_or_else(|| program.into_os_string()),
    );
    command.arg("--daemon").arg("--stage").arg(match stage {
        Stage::Session => "session",
        Stage::Daemon => "daemon",
    });
    command.arg(joined("--config=", absolute(&options.config)?.as_os_str()));
    if let Some(path) = &options.pidfile {
        command.arg(joined("--pidfile=", absolute(path)?.as_os_str()));
    }
    for device in &options.trace_devices {
        command.arg(joined("--trace-device=", OsStr::new(device)));
    }
    if let Some(name) = &options.user {
        command.arg(joined("--user=", OsStr::new(name)));
    }
    Ok(command)
}

fn joined(option: &str, value: &OsStr) -> std::ffi::OsString {
    let mut joined = std::ffi::OsString::from(option);
    joined.push(value);
    joined
}

/// The way back to the operator's process. Dropped without a word it tells them that we are gone.
#[derive(Debug)]
pub(super) struct Report {
    pipe: File,
}

impl Report {
    /// Takes the pipe from standard output, which is `/dev/null` from here on.
    ///
    /// # Errors
    /// [`DetachError::Session`] when a descriptor cannot be moved.
    pub(super) fn take() -> Result<Self, DetachError> {
        let pipe = io::stdout()
            .as_fd()
            .try_clone_to_owned()
            .map_err(DetachError::Session)?;
        let null = OpenOptions::new()
            .write(true)
            .open("/dev/null")
            .map_err(DetachError::Session)?;
        dup2_stdout(&null).map_err(|errno| DetachError::Session(errno.into()))?;
        Ok(Report {
            pipe: File::from(pipe),
        })
    }

    /// The daemon serves.
    pub(super) fn ready(mut self) {
        // An operator who did not wait is no reason to stop.
        let _ = self.pipe.write_all(&[READY]);
    }

    /// The daemon gives up.
    pub(super) fn failed(mut self, text: &str) {
        let _ = self.pipe.write_all(text.as_bytes());
    }
}

/// The daemon stage: takes on a daemon's attributes, opens the pidfile while it still may, and then becomes the
/// configured user.
///
/// # Errors
/// [`DetachError::PidFile`], [`DetachError::User`], [`DetachError::Session`].
pub(super) fn settle(options: &RunOptions) -> Result<Option<PidFile>, DetachError> {
    umask(UMASK);
    std::env::set_current_dir("/").map_err(DetachError::Session)?;
    let account = options.user.as_deref().map(find_user).transpose()?;
    let pidfile = options.pidfile.as_deref().map(PidFile::open).transpose()?;
    if let Some(user) = account {
        become_user(&user)?;
    }
    Ok(pidfile)
}

fn find_user(name: &str) -> Result<User, DetachError> {
    let error = |reason: String| DetachError::User {
        name: name.to_owned(),
        reason,
    };
    User::from_name(name)
        .map_err(|errno| error(errno.desc().to_owned()))?
        .ok_or_else(|| error("no such user".to_owned()))
}

/// Takes the user's groups as well: a key file is often readable by a group only, and root's must not remain.
fn become_user(user: &User) -> Result<(), DetachError> {
    if geteuid() == user.uid {
        return Ok(());
    }
    let error = |reason: String| DetachError::User {
        name: user.name.clone(),
        reason,
    };
    let name = CString::new(user.name.as_str()).map_err(|nul| error(nul.to_string()))?;
    initgroups(&name, user.gid)
        .and_then(|()| setgid(user.gid))
        .and_then(|()| setuid(user.uid))
        .map_err(|errno| error(errno.desc().to_owned()))
}

/// The pidfile; removed when this is dropped, unless it is somebody else's.
#[derive(Debug)]
pub(super) struct PidFile {
    path: PathBuf,
    file: File,
}

impl PidFile {
    /// Opens it as it is: until this daemon serves, it may be that of another one, which goes on if this one fails.
    fn open(path: &Path) -> Result<Self, DetachError> {
        let mut options = OpenOptions::new();
        options
            .write(true)
            .create(true)
            .truncate(false)
            .mode(PIDFILE_MODE);
        match options.open(path) {
            Ok(file) => Ok(PidFile {
                path: path.to_owned(),
                file,
            }),
            Err(reason) => Err(DetachError::PidFile {
                path: path.to_owned(),
                reason,
            }),
        }
    }

    /// Makes it ours.
    ///
    /// # Errors
    /// [`DetachError::PidFile`].
    pub(super) fn write(&mut self) -> Result<(), DetachError> {
        self.file
            .set_len(0)
            .and_then(|()| writeln!(self.file, "{}", std::process::id()))
            .map_err(|reason| DetachError::PidFile {
                path: self.path.clone(),
                reason,
            })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Empty: made by us, and never written.
        let ours = fs::read_to_string(&self.path)
            .is_ok_and(|text| text.is_empty() || text.trim_end() == std::process::id().to_string());
        if ours && let Err(reason) = fs::remove_file(&self.path) {
            // The usual case: its directory belongs to root, and we no longer are.
            tracing::info!(target: "MAIN", "The pidfile '{}' stays: {reason}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_pidfile_lives_as_long_as_its_owner() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("pid");
        let mut pidfile = PidFile::open(&path).expect("opened");
        pidfile.write().expect("written");
        assert_eq!(
            fs::read_to_string(&path).expect("text"),
            format!("{}\n", std::process::id())
        );
        let mode = fs::metadata(&path).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777 & !0o644, 0, "{mode:o}");
        drop(pidfile);
        assert!(!path.exists());

        drop(PidFile::open(&path).expect("opened"));
        assert!(!path.exists(), "of a daemon that never was");

        fs::write(&path, "4194305\n").expect("another daemon's");
        drop(PidFile::open(&path).expect("opened"));
        assert_eq!(fs::read_to_string(&path).expect("text"), "4194305\n");

        let mut pidfile = PidFile::open(&path).expect("opened");
        pidfile.write().expect("written");
        assert_eq!(
            fs::read_to_string(&path).expect("text"),
            format!("{}\n", std::process::id())
        );
        fs::write(&path, "4194305\n").expect("another daemon's");
        drop(pidfile);
        assert_eq!(fs::read_to_string(&path).expect("text"), "4194305\n");
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let error = PidFile::open(Path::new("/nonexistent/pid")).expect_err("no such directory");
        assert!(
            error
                .to_string()
                .starts_with("Cannot write the pidfile '/nonexistent/pid': No such file")
        );
        let error = find_user("no such user here").expect_err("no such user");
        assert_eq!(
            error.to_string(),
            "Cannot run as user 'no such user here': no such user"
        );
    }
}
