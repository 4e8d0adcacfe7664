//! The report of this boot, which the initramfs left in `/run`, for the audit of each key server: once.

use latchkey_protocol::wire::BootReport;

use crate::files::{self, Files, FilesError};
use crate::server::{KeyServer, Unreachable};

/// The report stays for another try.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The report or the mark that it was sent.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The key server did not take it.
    #[error("failed to send the report of this boot")]
    NotSent(#[from] Unreachable),
}

/// Sends the report to `server`, unless there is none or it was sent before.
///
/// # Errors
/// A variant of [`ReportError`].
pub async fn send_once(files: &Files, server: &KeyServer) -> Result<(), ReportError> {
    let path = files.report();
    let mark = files
        .runtime()
        .join(format!("reported-{}", server.settings.id.short()));
    if mark.exists() || !path.exists() {
        return Ok(());
    }
    let report: BootReport =
        serde_json::from_slice(&files::read(&path)?).map_err(|error| FilesError::Format {
            path: path.clone(),
            reason: error.to_string(),
        })?;
    server
        .ask(async |client, address| client.report(address, &report).await)
        .await?;
    let id = server.settings.id.short();
    log::info!("key server {id} has the report of this boot");
    Ok(files::replace(&mark, b"")?)
}
