//! `latchkey cleanup`: whatever became of the agent, nothing of it stays. Safe to run again, and on a machine where
//! there never was one.

use std::time::Duration;

use latchkey_secret::process;
use nix::unistd::Pid;

use super::credentials;
use super::ending;
use super::prompt;
use super::runtime::Runtime;
use crate::failure::chain;
use crate::files::Files;
use crate::network;
use crate::volume::{mapping, plain};

/// How long an agent may take to leave in order.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);
/// How long wiping the agent's memory may take.
const WIPE_LIMIT: Duration = Duration::from_secs(5);
/// How long the network's configuration may take to go.
const NETWORK_LIMIT: Duration = Duration::from_secs(5);

/// Ends an agent that lives, sees its memory wiped, ends prompts whose agent was killed, takes back the network,
/// wipes the boot keys, closes the mapping through which a killed agent looked into a plain volume, and what it left half
/// made.
pub fn run(files: &Files) {
    if let Some(agent) = Runtime::of(files).agent() {
        log::warn!("ending an agent that is still there ({agent})");
        ending::end(agent, LEAVE_LIMIT);
    }
    if let Some(guardian) = Runtime::of(files).guardian() {
        wait_for(guardian);
    }
    credentials::wipe_files(files);
    plain::close_left_over();
    close_half_made(&Runtime::of(files));
    prompt::end_left_over();
    take_network_back(files);
}

/// Only of volumes that no other unlocker has begun with: each is left to those afterwards.
fn close_half_made(runtime: &Runtime) {
    for name in runtime.held() {
        mapping::close_left_over(&name);
        if let Err(error) = runtime.hand_over(&name) {
            log::warn!("{}", chain(&error));
        }
    }
}

fn wait_for(guardian: Pid) {
    if let Ok(Some(handle)) = process::pidfd(guardian.as_raw())
        && !ending::is_gone(&handle, WIPE_LIMIT)
    {
        log::warn!("the memory of the agent is still being wiped ({guardian})");
    }
}

fn take_network_back(files: &Files) {
    let path = network::undo_path(&files.path("/"));
    if !path.exists() {
        return;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            log::error!("failed to take the network back: {error}");
            return;
        }
    };
    let undone = async { tokio::time::timeout(NETWORK_LIMIT, network::undo_from(&path)).await };
    match runtime.block_on(undone) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => log::error!("failed to take the network back: {}", chain(&error)),
        Err(_) => log::error!("failed to take the network back in time"),
    }
}
