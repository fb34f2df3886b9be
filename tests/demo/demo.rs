//! The article's device, then ten devices at once, the real router and an IoT Hub stand-in on one machine, told step by
//! step.
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
use support::fleet;
use support::iot_hub::IotHub;
use support::{Failure, ensure};

/// Where the frames are in the router's log.
const FRAME: &str = "PROTOCOL (trace)";
/// What it warns of.
const WARNING: &str = "(warning)";

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
    let settings = fleet::register(article::hub_settings());
    let hub = IotHub::start(settings, Some(authority.server_config(&identity)?)).await?;
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

    let Secrets(mut secrets) = article::run(device, service, &hub, &mut story).await?;
    let of_the_article = router
        .log()
        .select(|line| line.contains(FRAME).then(|| line.clone()));
    let Secrets(more) = fleet::run(&reach, &hub, &mut story).await?;
    secrets.extend(more);
    let log = router.stop().await?;
    story.step("The router obeyed SIGTERM: it closed everything properly and ended with 0.");
    daemon::ensure_none_of(&secrets, &log)?;
    story.step("Neither token, key, telemetry nor command is anywhere in the router's log.");

    let victim = fleet::victim();
    let told = |line: &&String| line.contains(WARNING) && line.contains(&victim);
    let warnings: Vec<&String> = log.iter().filter(told).collect();
    ensure(!warnings.is_empty(), || {
        format!("the router's log says nothing of who was refused {victim}")
    })?;
    println!("\nWhat the router's log tells the operator of the attempt:\n");
    for warning in warnings {
        println!("{warning}");
    }
    ensure(!of_the_article.is_empty(), || {
        "the router's log has no frames".to_owned()
    })?;
    println!(
        "\nThe frames of the first device, as the router saw them. C1 is the device and C2 the service, both in clear text;"
    );
    println!(
        "C3 is the hub, by TLS. What came in is marked <-, what went out ->; payloads and secrets are shown as lengths.\n"
    );
    for frame in of_the_article {
        println!("{frame}");
    }
    println!("\nEverything was verified at both ends.");
    Ok(())
}
