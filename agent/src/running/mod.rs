//! `latchkey run`: what a machine does for its next boots while it runs, in one small process (`latchkey.service`).
//!
//! For each key server it keeps a stream open and answers challenges beside it (`keeper`, `answers`), says from time to
//! time that it runs and keeps the newest end of the audit (`heartbeat`, `head`), moves the tickets on after each boot
//! (`tickets`), renews the host certificate (`renewal`) and sends the report of this boot (`report`). If it is dead or a key
//! server away, nothing on the machine suffers: the next boot is decided by what the key server knows then.

mod answers;
mod board;
mod head;
mod heartbeat;
mod images;
mod keeper;
pub mod renewal;
mod report;
mod rest;
pub mod tickets;
pub(crate) mod volumes;

pub use heartbeat::beat;
pub(crate) use rest::Rest;

use std::io;
use std::rc::Rc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

use crate::failure::chain;
use crate::files::{Files, FilesError, Role};
use crate::server::{KeyServer, block_on};
use crate::unlock::service_manager;
use board::Board;
use keeper::Keeper;

/// The service cannot run at all.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The folder of the key servers.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// No event queue, or no signals.
    #[error("failed to start")]
    Start(#[source] io::Error),
    /// Nobody to keep in touch with.
    #[error(
        "no key server that was joined can be used\n\
         'latchkey status' says why; 'latchkey join' joins one, and then this service is started again"
    )]
    NoServer,
}

/// Runs until SIGTERM.
///
/// # Errors
/// A variant of [`RunError`].
pub fn run(files: &Files) -> Result<(), RunError> {
    let board = Rc::new(Board::default());
    let mut keepers = Vec::new();
    for server in files.servers()? {
        let opened = server.map_err(|error| chain(&error)).and_then(|joined| {
            let server = KeyServer::open(&joined, Role::Host).map_err(|error| chain(&error))?;
            Ok(Keeper::new(files, joined, server, board.clone()))
        });
        match opened {
            Ok(keeper) => keepers.push(Rc::new(keeper)),
            Err(error) => log::warn!("{error}"),
        }
    }
    if keepers.is_empty() {
        return Err(RunError::NoServer);
    }
    block_on(follow(keepers))
        .and_then(|ended| ended)
        .map_err(RunError::Start)
}

async fn follow(keepers: Vec<Rc<Keeper>>) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    service_manager::ready();
    let tasks = LocalSet::new();
    for keeper in keepers {
        tasks.spawn_local(keeper.clone().listen());
        tasks.spawn_local(keeper.beat());
    }
    tasks
        .run_until(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await;
    Ok(())
}
