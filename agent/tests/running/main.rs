//! `latchkey run` and `latchkey arm-reboot`: the real program, against a key server that misbehaves and the real one.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../common/mod.rs"]
mod common;
mod faults;
mod keyserver;
mod several;
mod world;

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::machine::Machine;

/// `latchkey run` of a machine, until it is dropped.
pub struct Service {
    child: Child,
    log: std::path::PathBuf,
}

impl Service {
    pub fn of(machine: &Machine) -> Self {
        let log = machine.path("service.log");
        let child = machine
            .command(&["run"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, log }
    }

    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Until it says `text`.
    #[track_caller]
    pub fn says(&mut self, text: &str) {
        let log = self.log.clone();
        self.until(text, || {
            std::fs::read_to_string(&log).unwrap().contains(text)
        });
    }

    /// Until `what` holds, while the service lives.
    #[track_caller]
    pub fn until(&mut self, what: &str, holds: impl Fn() -> bool) {
        let begin = Instant::now();
        while !holds() {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "it ended ({ended:?}): {}", self.said());
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "not '{what}': {}",
                self.said()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// As the service manager ends it.
    #[track_caller]
    pub fn ends(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.said());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
