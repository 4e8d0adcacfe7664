//! Processes that end, or are made to.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use latchkey_secret::process;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Ends a process that is not our child: asks it to, and kills it if it has not gone after `limit`.
pub fn end(id: Pid, limit: Duration) {
    let Ok(Some(handle)) = process::pidfd(id.as_raw()) else {
        return;
    };
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        if kill(id, signal).is_err() || is_gone(&handle, limit) {
            return;
        }
    }
}

/// Whether the process of a pidfd_open(2) has ended, or does within `limit`.
pub fn is_gone(handle: &OwnedFd, limit: Duration) -> bool {
    let mut gone = [PollFd::new(handle.as_fd(), PollFlags::POLLIN)];
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    poll(&mut gone, limit).is_ok_and(|ready| ready > 0)
}
