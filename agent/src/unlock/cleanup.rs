//! `latchkey cleanup`: whatever became of the agent, nothing of it stays. Safe to run again, and on a machine where
//! there never was one.

use std::os::fd::AsFd;
use std::time::Duration;

use latchkey_secret::process;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::credentials;
use super::runtime::Runtime;
use crate::failure::chain;
use crate::files::Files;
use crate::network;

/// How long an agent may take to leave in order.
const LEAVE_MS: u16 = 5000;
/// How long the network's configuration may take to go.
const NETWORK_LIMIT: Duration = Duration::from_secs(5);

/// Ends an agent that lives, takes back the network, wipes the boot keys.
pub fn run(files: &Files) {
    if let Some(agent) = Runtime::of(files).agent() {
        end(agent);
    }
    credentials::wipe_files(files);
    take_network_back(files);
}

fn end(agent: Pid) {
    log::warn!("ending an agent that is still there ({agent})");
    let Ok(Some(handle)) = process::pidfd(agent.as_raw()) else {
        return;
    };
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        if kill(agent, signal).is_err() {
            return;
        }
        let mut gone = [PollFd::new(handle.as_fd(), PollFlags::POLLIN)];
        if poll(&mut gone, PollTimeout::from(LEAVE_MS)).is_ok_and(|ready| ready > 0) {
            return;
        }
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
