//! Outputs of the log: standard streams, files, the local syslog daemon, the systemd journal.

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use jiff::Zoned;

use super::level::Level;
use super::settings::{LogError, Output};

/// Where the local syslog daemon listens.
const SYSLOG_PATH: &str = "/dev/log";
/// RFC 3164, §4.1.1: the facility `daemon` as it stands in a priority value.
const FACILITY_DAEMON: u8 = 3 << 3;

/// An open output. Writing needs no lock: a line goes out in one call, and files are opened for appending.
#[derive(Debug)]
pub(super) enum Sink {
    File(File),
    Stderr(Reader),
    Stdout(Reader),
    Syslog(Syslog),
}

/// Who reads a standard stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// A person, a pipe, a file.
    Any,
    /// The systemd journal, which adds the time and understands levels.
    Journal,
}

impl Sink {
    /// Opens an output; a file is created when it is missing, a directory is not.
    pub(super) fn open(output: &Output) -> Result<Self, LogError> {
        match output {
            Output::File(path) => OpenOptions::new()
                .append(true)
                .create(true)
                .open(path)
                .map(Sink::File)
                .map_err(|reason| LogError::OpenFile {
                    path: path.clone(),
                    reason,
                }),
            Output::Stderr => Ok(Sink::stderr()),
            Output::Stdout => Ok(Sink::Stdout(Reader::of(io::stdout()))),
            Output::Syslog => Syslog::new(Path::new(SYSLOG_PATH))
                .map(Sink::Syslog)
                .map_err(LogError::Syslog),
        }
    }

    /// Standard error, whoever reads it.
    pub(super) fn stderr() -> Self {
        Sink::Stderr(Reader::of(io::stderr()))
    }

    /// Whether this is standard error.
    pub(super) const fn is_stderr(&self) -> bool {
        matches!(self, Sink::Stderr(_))
    }

    /// Whether lines carry no time of ours, because the output adds its own.
    pub(super) const fn adds_timestamp(&self) -> bool {
        matches!(
            self,
            Sink::Stderr(Reader::Journal) | Sink::Stdout(Reader::Journal) | Sink::Syslog(_)
        )
    }

    /// Writes one line, which ends in a newline. A failure loses the line: there is nobody to tell, and a full disk
    /// or a closed terminal is no reason to stop routing.
    pub(super) fn write(&self, level: Level, line: &str) {
        let _ = self.try_write(level, line);
    }

    fn try_write(&self, level: Level, line: &str) -> io::Result<()> {
        match self {
            Sink::File(file) => {
                let mut file: &File = file;
                file.write_all(line.as_bytes())
            }
            Sink::Stderr(reader) => io::stderr()
                .lock()
                .write_all(reader.marked(level, line).as_bytes()),
            Sink::Stdout(reader) => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(reader.marked(level, line).as_bytes())?;
                stdout.flush()
            }
            Sink::Syslog(syslog) => syslog.send(level, line.trim_end_matches('\n')),
        }
    }
}

impl Reader {
    /// systemd names the journal's stream in `JOURNAL_STREAM`; what another process was given may have been inherited.
    fn of(stream: impl AsFd) -> Self {
        let journal = std::env::var("JOURNAL_STREAM");
        match (journal, identity(stream)) {
            (Ok(journal), Ok(own)) if journal == own => Reader::Journal,
            _ => Reader::Any,
        }
    }

    /// The line with its level in front, where the reader takes that off again (sd-daemon(3)).
    fn marked(self, level: Level, line: &str) -> Cow<'_, str> {
        match self {
            Reader::Any => line.into(),
            Reader::Journal => format!("<{}>{line}", severity(level)).into(),
        }
    }
}

/// `DEVICE:INODE`.
fn identity(stream: impl AsFd) -> io::Result<String> {
    let stream = File::from(stream.as_fd().try_clone_to_owned()?);
    let metadata = stream.metadata()?;
    Ok(format!("{}:{}", metadata.dev(), metadata.ino()))
}

/// The local syslog daemon. Each line is a datagram of its own to a path, so a restarted syslog daemon needs no
/// reconnect; one that does not read loses lines instead of holding up the router.
#[derive(Debug)]
pub(super) struct Syslog {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Syslog {
    fn new(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Syslog {
            socket,
            path: path.to_owned(),
        })
    }

    fn send(&self, level: Level, text: &str) -> io::Result<()> {
        let packet = format!(
            "<{}>{} linkrouterd[{}]: {text}",
            FACILITY_DAEMON | severity(level),
            // The clock of the syslog daemon's host is ours, and RFC 3164, §4.1.2 wants local time.
            Zoned::now().strftime("%b %e %H:%M:%S"),
            std::process::id(),
        );
        self.socket.send_to(packet.as_bytes(), &self.path).map(drop)
    }
}

/// RFC 3164, §4.1.1; syslog has no `trace`.
const fn severity(level: Level) -> u8 {
    match level {
        Level::Trace | Level::Debug => 7,
        Level::Info => 6,
        Level::Notice => 5,
        Level::Warning => 4,
        Level::Error => 3,
        Level::Critical => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syslog_datagram() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        let daemon = UnixDatagram::bind(&path).expect("a socket");
        let sink = Sink::Syslog(Syslog::new(&path).expect("a socket"));
        assert!(sink.adds_timestamp());
        for (level, priority) in [
            (Level::Trace, 31),
            (Level::Notice, 29),
            (Level::Warning, 28),
            (Level::Critical, 26),
        ] {
            sink.write(level, "SERVER (x) hello\n");
            let mut buffer = [0; 256];
            let length = daemon.recv(&mut buffer).expect("a datagram");
            let text = str::from_utf8(&buffer[..length]).expect("text");
            let (head, tail) = text.split_once("linkrouterd[").expect("our name");
            let date = head.strip_prefix(&format!("<{priority}>")).expect("the priority");
            assert_eq!(date.len(), "Nov 22 12:07:12 ".len(), "{text}");
            assert_eq!(tail, format!("{}]: SERVER (x) hello", std::process::id()));
        }
    }

    #[test]
    fn a_missing_syslog_daemon_loses_the_line_only() {
        let directory = tempfile::tempdir().expect("a directory");
        let sink = Sink::Syslog(Syslog::new(&directory.path().join("none")).expect("a socket"));
        sink.write(Level::Error, "SERVER (error) nobody hears this\n");
    }

    #[test]
    fn files_are_appended_to() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        std::fs::write(&path, "before\n").expect("a file");
        let sink = Sink::open(&Output::File(path.clone())).expect("a sink");
        sink.write(Level::Info, "one\n");
        sink.write(Level::Info, "two\n");
        assert_eq!(
            std::fs::read_to_string(&path).expect("text"),
            "before\none\ntwo\n"
        );
    }

    #[test]
    fn a_full_disk_loses_the_line_only() {
        let sink = Sink::open(&Output::File(PathBuf::from("/dev/full"))).expect("a device of every Linux");
        assert!(sink.try_write(Level::Info, "one\n").is_err());
        sink.write(Level::Info, "one\n");
    }
}
