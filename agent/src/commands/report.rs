//! `latchkey report`: sends what the boot left in `/run/latchkey/report.json` to the key servers' audit, once.

use std::io;

use latchkey_protocol::wire::BootReport;

use crate::failure::chain;
use crate::files::{self, Files, FilesError, Role};
use crate::server::{KeyServer, block_on};

/// The report stays for another try.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The report or a key server's files.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// No event queue.
    #[error("failed to start")]
    Start(#[source] io::Error),
    /// Nobody took it.
    #[error("no key server took the report of this boot; run this again later")]
    NotSent,
}

/// Sends the report of this boot to every key server that was joined. That there is none, or that it was sent
/// before, is no error.
///
/// # Errors
/// A variant of [`ReportError`].
pub fn run(files: &Files) -> Result<(), ReportError> {
    let path = files.runtime().join("report.json");
    if !path.exists() {
        log::info!("there is no report of this boot to send");
        return Ok(());
    }
    let report: BootReport =
        serde_json::from_slice(&files::read(&path)?).map_err(|error| FilesError::Format {
            path: path.clone(),
            reason: error.to_string(),
        })?;
    let servers = files.servers()?;
    let mut sent = servers.is_empty();
    for server in servers {
        match server
            .map_err(|error| chain(&error))
            .and_then(|server| send(&server, &report))
        {
            Ok(()) => sent = true,
            Err(error) => log::warn!("the report was not sent: {error}"),
        }
    }
    if !sent {
        return Err(ReportError::NotSent);
    }
    Ok(files::rename(
        &path,
        &path.with_file_name("report.sent.json"),
    )?)
}

fn send(files: &files::ServerFiles, report: &BootReport) -> Result<(), String> {
    let server = KeyServer::open(files, Role::Host).map_err(|error| chain(&error))?;
    let asked = server.ask(async |client, address| client.report(address, report).await);
    block_on(asked)
        .map_err(|error| error.to_string())?
        .map_err(|error| chain(&error))?;
    log::info!(
        "key server {} has the report of this boot",
        server.settings.id.short()
    );
    Ok(())
}
