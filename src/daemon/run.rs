//! The life of the process: what each [`Invocation`] does, from the first line of the log to the exit code.

use std::fmt::Write as _;
use std::io::{self, BufRead, Read, Write};
use std::path::Path;
use std::pin::pin;
use std::process::ExitCode;

use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use super::build::{Loaded, Plan};
use super::detach::{self, DetachError, PidFile, Report};
use super::findings::{self, Count};
use super::logging::{self, LogError, Logging};
use super::probe;
use super::reload::{Reload, load};
use super::service::Service;
use super::signal::{Request, Signals};
use crate::cli::{Invocation, RunOptions, Stage};
use crate::config::Finding;
use crate::router::settings::ListenerRole;
use crate::shard::passwords::hash_line;
use crate::shard::{Command, Shard, ShardError, ShardSettings};

/// Bytes of standard input that are looked at for a password.
const PASSWORD_INPUT_MAX: u64 = 4096;
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All is well; also after a stop signal.
    Success,
    /// A usage error, or a daemon that cannot start (qdrouterd: the same).
    Failure,
    /// `--check` found errors (sysexits: `EX_CONFIG`).
    BadConfiguration,
    /// `--probe` found a connector that does not work (sysexits: `EX_UNAVAILABLE`).
    Unavailable,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(match exit {
            Exit::Success => 0,
            Exit::Failure => 1,
            Exit::BadConfiguration => 78,
            Exit::Unavailable => 69,
        })
    }
}

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("{file}: {}", Count(findings))]
    Configuration { file: String, findings: Vec<Finding> },
    #[error(transparent)]
    Detach(#[from] DetachError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("Cannot set up the process: {0}")]
    Runtime(#[from] io::Error),
    #[error(transparent)]
    Shard(#[from] ShardError),
}

impl StartError {
    /// Everything there is to say on stderr, whatever the log is set to: findings as compilers print them, and the
    /// reason in the form of every Unix program.
    fn full_text(&self) -> String {
        let mut text = String::new();
        if let StartError::Configuration { findings, .. } = self {
            for finding in findings {
                let _ = writeln!(text, "{finding}");
            }
        }
        let _ = writeln!(text, "linkrouterd: {self}");
        text
    }
}

/// Does what the command line asks for. Returns when the process is to end.
pub fn run(invocation: Invocation) -> Exit {
    match invocation {
        Invocation::Check { config } => check(&config),
        Invocation::HashPassword { user } => hash_password(&user),
        Invocation::Help(text) => print(&text),
        Invocation::Probe { config } => probe(&config),
        Invocation::Run(options) => match (options.stage, options.background) {
            (Some(Stage::Session), _) => session(&options),
            (Some(Stage::Daemon), _) => background(&options),
            (None, true) => launch(&options),
            (None, false) => foreground(&options),
        },
        Invocation::Version => print(&format!("{VERSION}\n")),
    }
}

fn print(text: &str) -> Exit {
    // A reader who has left wants to know no more.
    let _ = io::stdout().write_all(text.as_bytes());
    Exit::Success
}

/// Makes a line of a password file; the password is the first line of the standard input.
fn hash_password(user: &str) -> Exit {
    let mut password = String::new();
    // No password is longer; whoever pipes in more is told so.
    let read = io::stdin()
        .lock()
        .take(PASSWORD_INPUT_MAX)
        .read_line(&mut password);
    if let Err(error) = read {
        return complain(&format!(
            "linkrouterd: cannot read a password from standard input: {error}\n"
        ));
    }
    match hash_line(user, password.trim_end_matches(['\n', '\r'])) {
        Ok(line) => print(&format!("{line}\n")),
        Err(error) => complain(&format!("linkrouterd: {error}\n")),
    }
}

fn check(path: &Path) -> Exit {
    match print_findings(path) {
        Some(_) => Exit::Success,
        None => Exit::BadConfiguration,
    }
}

fn probe(path: &Path) -> Exit {
    let Some(plan) = print_findings(path) else {
        return Exit::BadConfiguration;
    };
    let print = |line: &str| {
        print(line);
    };
    match probe::run(&plan.shard, print) {
        Ok(true) => Exit::Success,
        Ok(false) => Exit::Unavailable,
        Err(error) => complain(&StartError::from(error).full_text()),
    }
}

/// Prints all that is to be said of a configuration file. `None`: there is an error in it.
fn print_findings(path: &Path) -> Option<Plan> {
    let Loaded { plan, findings } = load(path, &[]);
    let mut text = String::new();
    for finding in &findings {
        let _ = writeln!(text, "{finding}");
    }
    let _ = writeln!(text, "{}: {}", path.display(), Count(&findings));
    print(&text);
    plan
}

fn launch(options: &RunOptions) -> Exit {
    match detach::launch(options) {
        Ok(()) => Exit::Success,
        Err(DetachError::Reported(text)) => complain(&text),
        Err(error) => complain(&StartError::from(error).full_text()),
    }
}

fn session(options: &RunOptions) -> Exit {
    match detach::lead_session(options) {
        Ok(()) => Exit::Success,
        Err(error) => {
            // Standard output is the way back to the operator.
            print(&StartError::from(error).full_text());
            Exit::Failure
        }
    }
}

fn background(options: &RunOptions) -> Exit {
    // First of all, before anything is written anywhere.
    let report = match Report::take() {
        Ok(report) => report,
        Err(_) => return Exit::Failure,
    };
    let start = || -> Result<(Option<PidFile>, Server), StartError> {
        let mut pidfile = detach::settle(options)?;
        let server = Server::start(options)?;
        if let Some(pidfile) = &mut pidfile {
            pidfile.write()?;
        }
        Ok((pidfile, server))
    };
    match start() {
        Ok((_pidfile, server)) => {
            report.ready();
            // A service manager, if there is one, waits for the process that it has started itself.
            server.serve(Service::unmanaged())
        }
        Err(error) => {
            report.failed(&error.full_text());
            log_failure(&error);
            Exit::Failure
        }
    }
}

fn foreground(options: &RunOptions) -> Exit {
    match Server::start(options) {
        Ok(server) => server.serve(Service::of_environment()),
        Err(error) => {
            Service::of_environment().failed(&error.to_string());
            let exit = complain(&error.full_text());
            log_failure(&error);
            exit
        }
    }
}

/// Says on stderr, line by line, why the process does not do what it was asked for.
pub fn complain(text: &str) -> Exit {
    // Without a stderr there is nobody to tell.
    logging::complain(text);
    Exit::Failure
}

fn log_failure(error: &StartError) {
    error!(target: "MAIN", severity = "critical", "Router start-up failed: {error}");
}

/// A daemon that listens.
struct Server {
    runtime: LocalRuntime,
    shard: Shard,
    signals: Signals,
    reload: Reload,
}

impl Server {
    /// From the first line of the log to open listeners.
    fn start(options: &RunOptions) -> Result<Self, StartError> {
        let logging = Logging::install();
        let file = std::path::absolute(&options.config)?;
        log_panics();
        let Loaded { plan, findings } = load(&options.config, &options.trace_devices);
        let Some(plan) = plan else {
            return Err(StartError::Configuration {
                file: options.config.display().to_string(),
                findings,
            });
        };
        logging.apply(&plan.log)?;
        announce(options, &plan, &findings);

        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())?;
        // Before the listeners, so that whoever sees them may send a signal.
        let signals = runtime.block_on(async { Signals::new() })?;
        let reload = Reload::new(file, options.trace_devices.clone(), logging, plan.shard.clone());
        let shard = Shard::bind(plan.shard)?;
        info!(
            target: "SERVER",
            severity = "notice",
            "Operational, 1 Thread Running (process ID {})",
            std::process::id()
        );
        for (_, address) in shard.bound_addresses() {
            info!(target: "SERVER", severity = "notice", "Listening on {address}");
        }
        Ok(Server {
            runtime,
            shard,
            signals,
            reload,
        })
    }

    /// Serves until a signal says stop.
    fn serve(self, mut service: Service) -> Exit {
        let Server {
            runtime,
            mut shard,
            signals,
            reload,
        } = self;
        service.observe(&mut shard);
        let result = runtime.block_on(Box::pin(serve(shard, signals, reload, service)));
        // A name server that never answers keeps a thread, which is not waited for.
        runtime.shutdown_background();
        match &result {
            Ok(()) => info!(target: "SERVER", severity = "notice", "Shut Down"),
            Err(error) => error!(target: "MAIN", severity = "critical", "Router stopped: {error}"),
        }
        if result.is_ok() {
            Exit::Success
        } else {
            Exit::Failure
        }
    }
}

async fn serve(
    shard: Shard,
    mut signals: Signals,
    mut reload: Reload,
    mut service: Service,
) -> Result<(), ShardError> {
    // One reload and one stop: the shard has taken a reload before the next is read.
    let (commands, receiver) = mpsc::channel(2);
    let mut commands = Some(commands);
    let mut running = pin!(shard.run(receiver));
    service.ready().await;
    loop {
        let request = tokio::select! {
            result = &mut running => return result,
            request = signals.next() => request,
            read = reload.finished() => {
                if let Some(commands) = &commands {
                    let taken_over = take_over(read, commands);
                    tokio::select! {
                        result = &mut running => return result,
                        outcome = taken_over => if !reload.is_under_way() {
                            service.reloaded(outcome).await;
                        },
                    }
                }
                continue;
            }
            () = service.beat() => {
                service.pass_on().await;
                continue;
            }
        };
        match (request, commands.take()) {
            (Request::Reload, Some(still)) => {
                commands = Some(still);
                service.reloading().await;
                reload.start();
            }
            (Request::Reload, None) => info!(target: "MAIN", "SIGHUP: too late, the router is shutting down"),
            (Request::Stop(name), Some(commands)) => {
                info!(target: "MAIN", "{name}: closing all connections");
                service.stopping().await;
                // Fails when the shard is on its way out already.
                let _ = commands.try_send(Command::Shutdown);
            }
            (Request::Stop(name), None) => {
                warn!(target: "MAIN", "{name} again: not waiting for connections to close");
                return Ok(());
            }
        }
    }
}

/// Has the shard go on with what was read, and waits until it does.
async fn take_over(
    read: Result<ShardSettings, String>,
    commands: &mpsc::Sender<Command>,
) -> Result<(), String> {
    let (done, answer) = oneshot::channel();
    // What fails here fails because the shard is on its way out.
    let gone = || "the router is shutting down".to_owned();
    let reload = Command::Reload(Box::new(read?), done);
    commands.try_send(reload).map_err(|_| gone())?;
    answer.await.unwrap_or_else(|_| Err(gone()))
}

/// qdrouterd's start-up lines, as far as there is something behind them.
fn announce(options: &RunOptions, plan: &Plan, findings: &[Finding]) {
    if !options.background && (options.pidfile.is_some() || options.user.is_some()) {
        warn!(target: "MAIN", "--pidfile and --user take effect with --daemon only");
    }
    findings::log(findings);
    let router = &plan.shard.router;
    info!(target: "SERVER", "Container Name: {}", router.container_id);
    info!(target: "ROUTER", "Router started in Standalone mode");
    info!(target: "ROUTER", "Version: {VERSION}");
    for profile in &plan.profiles {
        info!(target: "CONN_MGR", "Created SSL Profile with name {profile}");
    }
    for (connector, dial) in router.connectors.iter().zip(&plan.shard.connectors) {
        let profile = dial
            .tls
            .as_ref()
            .map_or_else(String::new, |tls| format!(", sslProfile={}", tls.profile));
        info!(
            target: "CONN_MGR",
            "Configured Connector: {} proto=any, role={}{profile}", connector.host, connector.role_name
        );
    }
    for (listener, listen) in router.listeners.iter().zip(&plan.shard.listeners) {
        let profile = listen
            .tls
            .as_ref()
            .map_or_else(String::new, |tls| format!(", sslProfile={}", tls.profile()));
        let role = match listener.role {
            ListenerRole::Normal => "normal",
            ListenerRole::RouteContainer => "route-container",
        };
        info!(target: "CONN_MGR", "Configured Listener: {} proto=any, role={role}{profile}", listener.address);
    }
    if router.routes.is_empty() {
        warn!(
            target: "ROUTER",
            "There is no linkRoute in {}, so every link is refused: add a connector and routes to it, then reload",
            options.config.display()
        );
    }
}

/// A panic is a bug; in the background nobody would see it anywhere but in the log.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        error!(target: "MAIN", severity = "critical", "Internal error: {panic}");
    }));
}
