//! The `linkrouterd` binary.

use std::process::ExitCode;

use linkrouterd::cli;
use linkrouterd::daemon;

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Ok(invocation) => daemon::run(invocation).into(),
        Err(error) => daemon::complain(&error.to_string()).into(),
    }
}
