//! `latchkey record-network`: records the running system's network for the next boot, once it is online.

use std::io;

use crate::files::Files;
use crate::network::record::{self, RecordError};
use crate::server::block_on;

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
    block_on(record::record(files.root(), &[])).map_err(RecordNetworkError::Start)??;
    log::info!("recorded the network in '{}'", files.network().display());
    Ok(())
}
