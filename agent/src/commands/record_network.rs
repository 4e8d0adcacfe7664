//! `latchkey record-network`: records the running system's network for the next boot, once it is online.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::initramfs::Builder;
use crate::files::Files;
use crate::network::record::Record;
use crate::network::recording::{self, RecordError};
use crate::server::block_on;

/// How long to wait for a default route, and for the addresses of the cards that are recorded: a network card with `allow-hotplug` in interfaces(5) is configured beside
/// network-online.target, not before it.
const ROUTE_LIMIT: Duration = Duration::from_secs(30);
/// How often to look.
const ROUTE_PAUSE: Duration = Duration::from_secs(1);

/// Nothing was recorded; an earlier record is still there.
#[derive(Debug, thiserror::Error)]
pub enum RecordNetworkError {
    /// The network cannot be read or not be recorded.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// No event queue.
    #[error("failed to start")]
    Start(#[source] io::Error),
}

/// Records the network.
///
/// # Errors
/// A variant of [`RecordNetworkError`].
pub fn run(files: &Files) -> Result<(), RecordNetworkError> {
    let path = files.network();
    let before = fs::read(&path).ok();
    block_on(record_when_online(files)).map_err(RecordNetworkError::Start)??;
    let (changed, shown) = (before != fs::read(&path).ok(), path.display());
    match (before, changed) {
        (_, false) => log::info!("the network is as recorded in '{shown}'"),
        (None, true) => log::info!("recorded the network in '{shown}'"),
        (Some(_), true) => log::warn!(
            "the network is not as it was recorded; the new record is in '{shown}'\n\
             run '{}', else the next boot uses the old one",
            Builder::of_system(files)
        ),
    }
    Ok(())
}

async fn record_when_online(files: &Files) -> Result<Record, RecordError> {
    let begin = Instant::now();
    while !recording::is_settled(files.root()).await? && begin.elapsed() < ROUTE_LIMIT {
        sleep(ROUTE_PAUSE).await;
    }
    recording::record(files.root(), &[]).await
}
