//! `latchkey wait`: the gate before the native unlockers. It ends when the agent has, when the volume it waits for is
//! open or left to them, or when the agent has nothing to do but wait for devices.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use latchkey_secret::process;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

use super::runtime::Runtime;
use super::service_manager;
use crate::files::Files;

/// How often to look at what the agent left.
const PAUSE_MS: u8 = 50;
/// How often systemd hears that the gate lives, and how long it may then be silent.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(15);

/// What to wait for.
#[derive(Debug, Clone, Default)]
pub struct Wait {
    /// The agent's process id; else the one that it left.
    pub agent: Option<i32>,
    /// Only until this volume is open, or left to the native unlocker.
    pub volume: Option<String>,
    /// How long devices may be missing; `None`: as long as the agent lives.
    pub device_limit: Option<Duration>,
}

/// How the waiting ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// There is no agent (any more): the native unlockers may go on.
    AgentGone,
    /// The volume is open, or the agent leaves it to the native unlocker.
    HandedOver,
    /// The agent waits for devices, and has for as long as allowed.
    DevicesMissing,
}

/// Waits; without a limit but those of `wait`, because the prompt has none.
///
/// # Errors
/// pidfd_open(2)'s or poll(2)'s.
pub fn run(files: &Files, wait: &Wait) -> std::io::Result<Waited> {
    let runtime = Runtime::of(files);
    let agent = wait.agent.map(Pid::from_raw).or_else(|| runtime.agent());
    let Some(agent) = agent else {
        return Ok(Waited::AgentGone);
    };
    let Some(agent) = process::pidfd(agent.as_raw())? else {
        return Ok(Waited::AgentGone);
    };
    let started = Instant::now();
    let mut next_sign = Duration::ZERO;
    loop {
        let mut waited_for = [PollFd::new(agent.as_fd(), PollFlags::POLLIN)];
        if poll(&mut waited_for, PollTimeout::from(PAUSE_MS))? > 0 {
            return Ok(Waited::AgentGone);
        }
        if wait
            .volume
            .as_ref()
            .is_some_and(|name| !runtime.holds(name))
        {
            return Ok(Waited::HandedOver);
        }
        let waited = started.elapsed();
        let devices_are_late = wait.device_limit.is_some_and(|limit| waited >= limit);
        if devices_are_late && runtime.is_waiting_for_devices() {
            return Ok(Waited::DevicesMissing);
        }
        if waited >= next_sign {
            service_manager::still_starting(SILENCE);
            next_sign = waited + SIGN_OF_LIFE;
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
        let at_once = Wait {
            device_limit: Some(Duration::ZERO),
            ..Wait::default()
        };
        assert_eq!(run(&files, &at_once).unwrap(), Waited::AgentGone);
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let at_once = Wait {
            agent: Some(child.id().try_into().unwrap()),
            ..at_once
        };
        let runtime = Runtime::of(&files);
        runtime.begin(["vda2_crypt", "data"]).unwrap();
        runtime.set_waiting_for_devices(true).unwrap();
        assert_eq!(run(&files, &at_once).unwrap(), Waited::DevicesMissing);
        runtime.hand_over("data").unwrap();
        let for_data = Wait {
            volume: Some("data".to_owned()),
            device_limit: None,
            ..at_once.clone()
        };
        assert_eq!(run(&files, &for_data).unwrap(), Waited::HandedOver);
        child.kill().unwrap();
        // Ended, but not yet waited for by its parent, as in the boot script.
        assert_eq!(run(&files, &at_once).unwrap(), Waited::AgentGone);
        child.wait().unwrap();
        assert_eq!(run(&files, &at_once).unwrap(), Waited::AgentGone);
    }
}
