//! A server that this program started, and ends.

use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Failure;

/// Until a server answers, or has ended.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server. Dropping it ends it (SIGTERM) and waits.
pub struct Started {
    name: &'static str,
    child: Child,
}

impl Started {
    /// Starts `command`, which goes by `name` in messages.
    pub fn new(name: &'static str, mut command: Command) -> Result<Self, Failure> {
        let child = command.spawn().map_err(|error| not_started(name, &error))?;
        Ok(Self { name, child })
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the process writes to a pipe.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Asks `ready` until it has an answer; fails when the server has ended.
    pub fn wait<T>(&mut self, ready: impl Fn() -> Option<T>) -> Result<T, Failure> {
        let begun = Instant::now();
        loop {
            if let Some(answer) = ready() {
                return Ok(answer);
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("{} ended: {status}", self.name).into());
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("{} was not ready in time", self.name).into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until `address` takes connections.
    pub fn wait_for(&mut self, address: SocketAddr) -> Result<(), Failure> {
        self.wait(|| TcpStream::connect(address).ok().map(drop))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = self.child.wait();
    }
}

/// Runs a command to its end.
pub fn run(name: &'static str, mut command: Command) -> Result<(), Failure> {
    let output = command
        .output()
        .map_err(|error| not_started(name, &error))?;
    if output.status.success() {
        return Ok(());
    }
    let error = String::from_utf8_lossy(&output.stderr);
    Err(format!("{name} failed ({}): {}", output.status, error.trim()).into())
}

fn not_started(name: &str, error: &std::io::Error) -> Failure {
    let hint = match error.kind() {
        std::io::ErrorKind::NotFound => {
            "\ninstall it with 'native/deps --bench', or leave it out with --servers"
        }
        _ => "",
    };
    format!("failed to start {name}: {error}{hint}").into()
}
