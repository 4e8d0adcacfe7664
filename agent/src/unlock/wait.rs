//! `latchkey wait`: the gate before the native unlockers. It ends when the agent has, or hands back when the agent
//! has nothing to do but wait for devices.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use latchkey_secret::process;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

use super::runtime::Runtime;
use crate::files::Files;

/// How often to look whether devices have appeared.
const PAUSE_MS: u8 = 50;

/// How the waiting ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// There is no agent (any more): the native unlockers may go on.
    AgentGone,
    /// The agent waits for devices, and has for as long as allowed.
    DevicesMissing,
}

/// Waits for the agent, `agent` or the one that left its id; for its devices at most `device_limit`, for the rest
/// without a limit, because the prompt has none.
///
/// # Errors
/// pidfd_open(2)'s or poll(2)'s.
pub fn run(files: &Files, agent: Option<Pid>, device_limit: Duration) -> std::io::Result<Waited> {
    let runtime = Runtime::of(files);
    let Some(agent) = agent.or_else(|| runtime.agent()) else {
        return Ok(Waited::AgentGone);
    };
    let Some(agent) = process::pidfd(agent.as_raw())? else {
        return Ok(Waited::AgentGone);
    };
    let started = Instant::now();
    loop {
        let mut waited_for = [PollFd::new(agent.as_fd(), PollFlags::POLLIN)];
        if poll(&mut waited_for, PollTimeout::from(PAUSE_MS))? > 0 {
            return Ok(Waited::AgentGone);
        }
        if started.elapsed() >= device_limit && runtime.is_waiting_for_devices() {
            return Ok(Waited::DevicesMissing);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_end_of_the_agent_ends_the_waiting() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::under(root.path());
        assert_eq!(
            run(&files, None, Duration::ZERO).unwrap(),
            Waited::AgentGone
        );
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_raw(child.id().try_into().unwrap());
        let runtime = Runtime::of(&files);
        runtime.begin().unwrap();
        runtime.set_waiting_for_devices(true).unwrap();
        assert_eq!(
            run(&files, Some(pid), Duration::ZERO).unwrap(),
            Waited::DevicesMissing
        );
        child.kill().unwrap();
        // Ended, but not yet waited for by its parent, as in the boot script.
        assert_eq!(
            run(&files, Some(pid), Duration::ZERO).unwrap(),
            Waited::AgentGone
        );
        child.wait().unwrap();
        assert_eq!(
            run(&files, Some(pid), Duration::ZERO).unwrap(),
            Waited::AgentGone
        );
    }
}
