//! `latchkey run` of a machine, as the service manager starts and ends it.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::machine::Machine;

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

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Whether it has ended, however.
    pub fn is_over(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// As the service manager ends it.
    #[track_caller]
    pub fn ends(mut self) {
        self.signal(Signal::SIGTERM);
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
