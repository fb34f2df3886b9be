//! The article's device, the real router and an IoT Hub stand-in on one machine, told step by step.
//!
//! `cargo run --release --example demo` needs no network and no account. It ends with 0 only if every step was seen to
//! be right at both ends: what the device sent is what the hub has, and the other way round.

#[path = "../support/mod.rs"]
mod support;

use std::process::ExitCode;

use support::article::{self, Secrets, Story};
use support::certificates::{Authority, Validity};
use support::daemon::{self, ARTICLE_ROUTES, Daemon};
use support::device::Reach;
use support::iot_hub::IotHub;
use support::{Failure, ensure};

/// Where the frames are in the router's log.
const FRAME: &str = "PROTOCOL (trace)";

/// Prints the steps, numbered.
#[derive(Default)]
struct Numbered(usize);

impl Story for Numbered {
    fn step(&mut self, text: &str) {
        self.0 += 1;
        println!("{:2}. {text}", self.0);
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    match tell().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("FAILED: {failure}");
            ExitCode::FAILURE
        }
    }
}

async fn tell() -> Result<(), Failure> {
    let mut story = Numbered::default();
    let program = daemon::built_beside(&std::env::current_exe()?).await?;

    let authority = Authority::new("Demo Root", Validity::Current)?;
    let identity = authority.issue(&["*.azure-devices.net", "localhost"], Validity::Current)?;
    let hub = IotHub::start(article::hub_settings(), Some(authority.server_config(&identity)?)).await?;
    story.step(&format!(
        "An IoT Hub stand-in listens with TLS on {}, its certificate fresh from a CA of our own.",
        hub.address()
    ));

    let config = daemon::config(hub.address().port(), &ARTICLE_ROUTES);
    let router = Daemon::start_program(&program, &config, &authority.pem()).await?;
    story.step(&format!(
        "linkrouterd, configured in the style of the article, listens for plain AMQP on {}.",
        router.address()
    ));

    let reach = Reach::Plain(router.address());
    let device = reach.open("netduino").await?;
    let service = reach.open("service").await?;
    story.step("The device opened a connection to the router: the bare AMQP header, no TLS, no SASL.");

    let Secrets(secrets) = article::run(device, service, &hub, &mut story).await?;
    let log = router.stop().await?;
    story.step("The router obeyed SIGTERM: it closed everything properly and ended with 0.");
    daemon::ensure_none_of(&secrets, &log)?;
    story.step("Neither token, key, telemetry nor command is anywhere in the router's trace, which follows.");

    let frames: Vec<&String> = log.iter().filter(|line| line.contains(FRAME)).collect();
    ensure(!frames.is_empty(), || "the router's log has no frames".to_owned())?;
    println!(
        "\nThe frames, as the router saw them. C1 is the device and C2 the service, both in clear text; C3 is the hub, by"
    );
    println!(
        "TLS. What came in is marked <-, what went out ->; payloads and secrets are shown as lengths.\n"
    );
    for frame in frames {
        println!("{frame}");
    }
    println!("\nEverything was verified at both ends.");
    Ok(())
}
