//! `--check --probe`: dials every connector as the daemon would, step by step, and says what each step came to.
//!
//! The steps are the daemon's own: `shard::dial` and `shard::tls` reach the peer, `endpoint` speaks AMQP, and what we say
//! of ourselves is `router`'s [`introduction`](crate::router::introduction). This room only looks on and finds the words.
//! It shows no secret: passwords and tokens have no way to a [`Sheet`].

mod clock;
mod examination;
mod exchange;
mod sheet;

use std::io;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;

use crate::shard::ShardSettings;
use examination::{Examination, STEP_LIMIT};
use sheet::Sheet;

/// Probes all connectors at once, and gives what there is to read to `print` in the order of the file, line by line as it
/// is found. `true`: each of them has a host that is well.
///
/// # Errors
///
/// There is no runtime to be had.
pub(super) fn run(settings: &ShardSettings, mut print: impl FnMut(&str)) -> io::Result<bool> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())?;
    let total = settings.connectors.len();
    let well = runtime.block_on(probe_all(settings, &mut print));
    // A name server that never answers keeps a thread, which is not waited for.
    runtime.shutdown_background();
    let plural = if total == 1 { "" } else { "s" };
    print(&match total.saturating_sub(well) {
        _ if total == 0 => "There is no connector to probe.\n".to_owned(),
        0 => format!("{total} connector{plural}: all well\n"),
        ill => format!("{total} connector{plural}: {well} well, {ill} NOT WELL\n"),
    });
    Ok(well == total)
}

async fn probe_all(settings: &ShardSettings, print: &mut impl FnMut(&str)) -> usize {
    if !settings.connectors.is_empty() {
        print(&format!(
            "Probing; each step may take {} s.\n",
            STEP_LIMIT.as_secs()
        ));
    }
    let mut examinations = Vec::new();
    for (connector, way) in settings.router.connectors.iter().zip(&settings.connectors) {
        let examination = Examination {
            container_id: settings.router.container_id.clone(),
            connector: connector.clone(),
            way: way.clone(),
        };
        let (lines, read) = mpsc::unbounded_channel();
        let task = async move { examination.of_all_hosts(&Sheet::new(lines)).await };
        examinations.push((read, tokio::task::spawn_local(Box::pin(task))));
    }
    let mut well = 0;
    for (mut read, task) in examinations {
        while let Some(line) = read.recv().await {
            print(&line);
        }
        // One that panicked has no good news.
        well += usize::from(task.await.unwrap_or(false));
    }
    well
}
