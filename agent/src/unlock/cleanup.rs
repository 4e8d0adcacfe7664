//! `latchkey cleanup`: whatever became of the agent, nothing of it stays. Safe to run again, and on a machine where
//! there never was one.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use latchkey_secret::process;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::credentials;
use super::prompt;
use super::runtime::Runtime;
use crate::failure::chain;
use crate::files::Files;
use crate::network;

/// How long an agent may take to leave in order.
const LEAVE_MS: u16 = 5000;
/// How long wiping the agent's memory may take.
const WIPE_MS: u16 = 5000;
/// How long a prompt may take to restore the console.
const RESTORE_MS: u16 = 500;
/// How long the network's configuration may take to go.
const NETWORK_LIMIT: Duration = Duration::from_secs(5);

/// Ends an agent that lives, sees its memory wiped, ends prompts whose agent was killed, takes back the network,
/// wipes the boot keys.
pub fn run(files: &Files) {
    if let Some(agent) = Runtime::of(files).agent() {
        log::warn!("ending an agent that is still there ({agent})");
        end(agent, LEAVE_MS);
    }
    if let Some(guardian) = Runtime::of(files).guardian() {
        wait_for(guardian);
    }
    credentials::wipe_files(files);
    end_left_over_prompts();
    take_network_back(files);
}

fn wait_for(guardian: Pid) {
    if let Ok(Some(handle)) = process::pidfd(guardian.as_raw())
        && !is_gone(&handle, WIPE_MS)
    {
        log::warn!("the memory of the agent is still being wiped ({guardian})");
    }
}

fn end_left_over_prompts() {
    let prompts = prompt::left_over();
    if prompts.is_empty() {
        return;
    }
    prompt::send_empty_line();
    for prompt in prompts {
        let Ok(Some(handle)) = process::pidfd(prompt.as_raw()) else {
            continue;
        };
        if !is_gone(&handle, RESTORE_MS) {
            end(prompt, RESTORE_MS);
        }
    }
}

fn end(process: Pid, limit_ms: u16) {
    let Ok(Some(handle)) = process::pidfd(process.as_raw()) else {
        return;
    };
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        if kill(process, signal).is_err() || is_gone(&handle, limit_ms) {
            return;
        }
    }
}

fn is_gone(process: &OwnedFd, limit_ms: u16) -> bool {
    let mut gone = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    poll(&mut gone, PollTimeout::from(limit_ms)).is_ok_and(|ready| ready > 0)
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
