//! The command line: qdrouterd's options, and few of our own.
//!
//! Compatible with GNU `getopt_long` as qdrouterd uses it: long options may be abbreviated as long as they stay
//! unambiguous (`--conf FILE`), the last of several equal options wins, and every usage error is exit code 1.
//! This module decides nothing about the process; it turns words into an [`Invocation`].

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser};

/// Where the configuration is looked for when no `--config` is given, in this order; the other way round for whoever
/// calls the program by its other name.
const DEFAULT_CONFIG_PATHS: [&str; 2] = [
    "/etc/linkrouterd/linkrouterd.conf",
    "/etc/qpid-dispatch/qdrouterd.conf",
];

/// The name under which scripts for qdrouterd start the program, by a link to it.
const OTHER_NAME: &str = "qdrouterd";

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invocation {
    /// Validate the configuration file, print every finding, and exit.
    Check {
        /// The file to read.
        config: PathBuf,
    },
    /// Validate the configuration file, print every finding, dial every connector, tell what comes of it, and exit.
    Probe {
        /// The file to read.
        config: PathBuf,
    },
    /// Print a line for the password file, with the password from standard input, and exit.
    HashPassword {
        /// Whose password it is.
        user: String,
    },
    /// Print this help text and exit.
    Help(String),
    /// Run the daemon.
    Run(RunOptions),
    /// Print the plain version and exit.
    Version,
}

/// How to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOptions {
    /// The file to read.
    pub config: PathBuf,
    /// Go to the background.
    pub background: bool,
    /// Where to write the process id (background only).
    pub pidfile: Option<PathBuf>,
    /// The account to run as (background only).
    pub user: Option<String>,
    /// Devices whose frames are traced.
    pub trace_devices: Vec<String>,
    /// Which step of going to the background this process is; `None` for the process the operator started.
    pub stage: Option<Stage>,
}

/// The steps of going to the background: each is a fresh start of this program by the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Stage {
    /// Leads a session of its own, starts the daemon proper and ends.
    Session,
    /// The daemon proper: no session leader, so that it can never acquire a controlling terminal.
    Daemon,
}

/// A command line that makes no sense; the text is for stderr and includes the usage.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(String);

#[derive(Debug, Parser)]
#[command(
    name = "linkrouterd",
    about = "A link-routing AMQP 1.0 daemon, compatible with qdrouterd",
    infer_long_args = true,
    args_override_self = true,
    disable_help_flag = true,
    disable_version_flag = true,
    max_term_width = 100
)]
struct Arguments {
    /// Configuration file [default: /etc/linkrouterd/linkrouterd.conf; if there is none,
    /// /etc/qpid-dispatch/qdrouterd.conf; the latter first if the program is started as qdrouterd]
    // `--c` meant `--config` before `--check` existed.
    #[arg(short, long, value_name = "PATH", alias = "c")]
    config: Option<PathBuf>,

    /// Validate the configuration, print every finding, and exit: 0 if it can run, 78 if not. The file may
    /// follow without --config
    #[arg(long)]
    check: bool,

    /// As --check; then dial every connector, tell step by step what comes of it, and exit: 0 if all are well,
    /// 69 if not
    #[arg(long)]
    probe: bool,

    /// Print the line of USER for saslPasswordFile, with the password from standard input, and exit
    #[arg(long, value_name = "USER")]
    hash_password: Option<String>,

    /// Print help
    // `--h` is `--help` still.
    #[arg(short, long, alias = "h", action = clap::ArgAction::Help)]
    help: Option<bool>,

    /// Accepted for compatibility and ignored (qdrouterd: directory of its Python library)
    #[arg(short = 'I', long, value_name = "PATH")]
    include: Option<PathBuf>,

    /// Run in the background
    #[arg(short, long)]
    daemon: bool,

    /// With --daemon: file to write the process id to
    // `--p` meant `--pidfile` before `--probe` existed.
    #[arg(short = 'P', long, value_name = "PATH", alias = "p")]
    pidfile: Option<PathBuf>,

    /// With --daemon: account to run as
    #[arg(short = 'U', long, value_name = "NAME", value_hint = clap::ValueHint::Username)]
    user: Option<String>,

    /// Accepted for compatibility and ignored
    // `--t` is `--test_hooks` still.
    #[arg(short = 'T', long, alias = "t")]
    test_hooks: bool,

    /// Trace the frames of one device only, by its IP address, network, or container-id (`*` for any text); may be given
    /// several times
    #[arg(long, value_name = "HOST|CONTAINER")]
    trace_device: Vec<String>,

    /// Print the version
    #[arg(short, long)]
    version: bool,

    /// Which step of --daemon this process is; set by the program itself
    #[arg(long, hide = true, value_enum)]
    stage: Option<Stage>,

    #[arg(hide = true)]
    extra: Vec<OsString>,
}

/// The definition of the command line, for those who generate text from it.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Reads a command line, the program's name included.
///
/// # Errors
/// [`UsageError`] for anything that is not understood, with the usage text to print.
pub fn parse<I>(arguments: I) -> Result<Invocation, UsageError>
where
    I: IntoIterator<Item = OsString>,
{
    let mut arguments = arguments.into_iter().peekable();
    let paths = default_paths(arguments.peek());
    let parsed = command()
        .try_get_matches_from(arguments)
        .and_then(|matches| Arguments::from_arg_matches(&matches));
    let mut arguments = match parsed {
        Ok(arguments) => arguments,
        Err(error) if error.kind() == ErrorKind::DisplayHelp => {
            return Ok(Invocation::Help(error.render().to_string()));
        }
        Err(error) => return Err(usage_error(&error.render().to_string())),
    };
    arguments.take_file();
    if let Some(extra) = arguments.extra.first() {
        return Err(usage_error(&format!(
            "error: Unexpected arguments: {}",
            extra.to_string_lossy()
        )));
    }
    Ok(arguments.into_invocation(paths))
}

/// The first paragraph of what is wrong, with the usage below it, as `getopt_long` users expect.
fn usage_error(text: &str) -> UsageError {
    let reason = text.split("\n\n").next().unwrap_or(text).trim_end();
    let usage = command().render_usage();
    UsageError(format!(
        "{reason}\n\n{usage}\n\nFor more information, try '--help'.\n"
    ))
}

impl Arguments {
    /// `--check FILE`
    fn take_file(&mut self) {
        if (self.check || self.probe) && self.config.is_none() && !self.extra.is_empty() {
            self.config = Some(self.extra.remove(0).into());
        }
    }

    fn into_invocation(self, default_paths: [&str; 2]) -> Invocation {
        if self.version {
            return Invocation::Version;
        }
        if let Some(user) = self.hash_password {
            return Invocation::HashPassword { user };
        }
        let config = self
            .config
            .unwrap_or_else(|| default_config(default_paths, |path| path.exists()));
        if self.probe {
            return Invocation::Probe { config };
        }
        if self.check {
            return Invocation::Check { config };
        }
        Invocation::Run(RunOptions {
            config,
            background: self.daemon,
            pidfile: self.pidfile,
            user: self.user,
            trace_devices: self.trace_device,
            stage: self.stage,
        })
    }
}

/// The default paths in their order for whoever calls the program by this name.
fn default_paths(program: Option<&OsString>) -> [&'static str; 2] {
    let [ours, theirs] = DEFAULT_CONFIG_PATHS;
    match program.and_then(|program| Path::new(program).file_name()) {
        Some(name) if name == OTHER_NAME => [theirs, ours],
        _ => [ours, theirs],
    }
}

/// The first of these paths that exists; if none does, the first, so that the error message names it.
fn default_config(paths: [&str; 2], exists: impl Fn(&Path) -> bool) -> PathBuf {
    let [first, _] = paths;
    paths
        .iter()
        .map(Path::new)
        .find(|path| exists(path))
        .unwrap_or(Path::new(first))
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &[&str]) -> Result<Invocation, UsageError> {
        parse(
            std::iter::once("linkrouterd")
                .chain(words.iter().copied())
                .map(OsString::from),
        )
    }

    fn run_options(words: &[&str]) -> RunOptions {
        match parse_words(words) {
            Ok(Invocation::Run(options)) => options,
            other => panic!("{words:?} gave {other:?}"),
        }
    }

    #[test]
    fn definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn config_in_every_spelling() {
        for words in [
            &["-c", "a.conf"][..],
            &["-ca.conf"],
            &["--config", "a.conf"],
            &["--config=a.conf"],
            &["--conf", "a.conf"],
            &["--conf=a.conf"],
            &["--co", "a.conf"],
            &["--c", "a.conf"],
            &["-c", "first.conf", "--conf", "a.conf"],
        ] {
            assert_eq!(run_options(words).config, Path::new("a.conf"), "{words:?}");
        }
    }

    #[test]
    fn options_of_the_background() {
        let options = run_options(&["-dP", "/run/x.pid", "-U", "nobody", "-I", "/lib", "-T", "-c", "x"]);
        assert!(options.background);
        assert_eq!(options.pidfile.as_deref(), Some(Path::new("/run/x.pid")));
        assert_eq!(options.user.as_deref(), Some("nobody"));
        assert_eq!(options.stage, None);
        let options = run_options(&[
            "--daem", "--p=/x", "--us", "nobody", "--inc", "/lib", "--test", "--conf=x",
        ]);
        assert!(options.background);
        assert_eq!(options.pidfile.as_deref(), Some(Path::new("/x")));
        assert_eq!(options.user.as_deref(), Some("nobody"));
    }

    #[test]
    fn devices_to_trace() {
        let options = run_options(&["--trace-device", "10.0.0.7", "--trace-device=Netduino-*"]);
        assert_eq!(options.trace_devices, ["10.0.0.7", "Netduino-*"]);
        assert!(run_options(&["--t"]).trace_devices.is_empty());
    }

    #[test]
    fn check_and_version_and_help() {
        let check = parse_words(&["--check", "-c", "x"]);
        assert_eq!(
            check,
            Ok(Invocation::Check {
                config: PathBuf::from("x")
            })
        );
        for words in [
            &["--che", "-c", "x"][..],
            &["--check", "x"],
            &["x", "--check"],
            &["--check", "--c", "x"],
        ] {
            assert_eq!(parse_words(words), check, "{words:?}");
        }
        let probe = Ok(Invocation::Probe {
            config: PathBuf::from("x"),
        });
        for words in [
            &["--check", "x", "--probe"][..],
            &["--check", "--probe", "x"],
            &["--probe", "--check", "-c", "x"],
            &["--probe", "x"],
            &["--pr", "-c", "x"],
        ] {
            assert_eq!(parse_words(words), probe, "{words:?}");
        }
        for words in [["-v"], ["--version"], ["--vers"]] {
            assert_eq!(parse_words(&words), Ok(Invocation::Version));
        }
        let hash = parse_words(&["--hash-password", "dev1"]);
        assert_eq!(
            hash,
            Ok(Invocation::HashPassword {
                user: "dev1".to_owned()
            })
        );
        for words in [["-h"], ["--help"], ["--he"], ["--h"]] {
            let Ok(Invocation::Help(text)) = parse_words(&words) else {
                panic!("no help for {words:?}")
            };
            assert!(
                text.contains("--pidfile <PATH>") && text.contains("--check"),
                "{text}"
            );
            assert!(!text.contains("--stage"), "{text}");
        }
    }

    #[test]
    fn usage_errors_carry_the_usage() {
        for words in [
            &["--bogus"][..],
            &["-x"],
            &["-c"],
            &["--pidfile"],
            &["extra"],
            &["-d", "extra", "more"],
            &["--check", "-c", "x", "extra"],
            &["--check", "x", "extra"],
            &["--check=x"],
        ] {
            let Err(UsageError(text)) = parse_words(words) else {
                panic!("{words:?} was accepted")
            };
            assert!(
                text.starts_with("error: ") && text.contains("Usage: linkrouterd [OPTIONS]"),
                "{text}"
            );
        }
        let Err(UsageError(text)) = parse_words(&["extra"]) else {
            panic!("accepted")
        };
        assert!(text.contains("Unexpected arguments: extra\n"), "{text}");
    }

    #[test]
    fn default_config_prefers_ours_then_qdrouterds() {
        let [ours, theirs] = DEFAULT_CONFIG_PATHS;
        assert_eq!(default_config(DEFAULT_CONFIG_PATHS, |_| true), Path::new(ours));
        assert_eq!(
            default_config(DEFAULT_CONFIG_PATHS, |path| path == Path::new(theirs)),
            Path::new(theirs)
        );
        assert_eq!(default_config(DEFAULT_CONFIG_PATHS, |_| false), Path::new(ours));
    }

    #[test]
    fn called_qdrouterd_it_prefers_the_configuration_of_qdrouterd() {
        let [ours, theirs] = DEFAULT_CONFIG_PATHS;
        for (program, wanted) in [
            (Some("qdrouterd"), [theirs, ours]),
            (Some("/usr/local/sbin/qdrouterd"), [theirs, ours]),
            (Some("/usr/sbin/linkrouterd"), [ours, theirs]),
            (Some("/opt/qdrouterd/linkrouterd"), [ours, theirs]),
            (Some(""), [ours, theirs]),
            (None, [ours, theirs]),
        ] {
            let program = program.map(OsString::from);
            assert_eq!(default_paths(program.as_ref()), wanted, "{program:?}");
        }
    }
}
