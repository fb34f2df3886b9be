//! The `linkrouterd` binary.

use std::io::Write;
use std::process::ExitCode;

use linkrouterd::cli;
use linkrouterd::daemon::{self, Exit};

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Ok(invocation) => daemon::run(invocation).into(),
        Err(error) => {
            // Without a stderr there is nobody to tell.
            let _ = write!(std::io::stderr(), "{error}");
            Exit::Failure.into()
        }
    }
}
