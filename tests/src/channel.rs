//! The command channel: scripts run as root in the guest over its second serial port (`tests/guest/channel`).

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::console::{Console, ConsoleError};

/// A command in the guest did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The port broke or stayed silent.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// The guest answered something else than the protocol.
    #[error("the guest's command channel answered '{answer}'")]
    Garbled {
        /// What it said.
        answer: String,
    },
    /// The script failed where it had to succeed.
    #[error("'{script}' ended with status {status} in the guest\n{text}")]
    Failed {
        /// The script.
        script: String,
        /// Its exit status.
        status: i32,
        /// What it printed.
        text: String,
    },
}

/// How a script in the guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The exit status.
    pub status: i32,
    /// stdout and stderr together.
    pub text: String,
}

/// Runs scripts in one guest.
pub struct Channel {
    port: Console,
    next: u32,
}

impl Channel {
    /// Speaks over `port`.
    pub fn new(port: Console) -> Self {
        Self { port, next: 1 }
    }

    /// Waits until the guest takes commands; again after each boot.
    ///
    /// # Errors
    /// `Console` if it does not come up within `limit`.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<(), ChannelError> {
        self.port.expect("RIG-READY\n", limit)?;
        Ok(())
    }

    /// Runs a shell script and returns how it ended.
    ///
    /// # Errors
    /// `Console` if it takes longer than `limit`, `Garbled` for nonsense.
    pub fn run(&mut self, script: &str, limit: Duration) -> Result<Output, ChannelError> {
        let id = self.next;
        self.next += 1;
        self.port
            .type_line(&format!("{id} {}", STANDARD.encode(script)))?;
        self.port.expect(&format!("RIG-BEGIN {id}\n"), limit)?;
        let printed = self.port.take_until(&format!("RIG-END {id} "), limit)?;
        let status = self.port.take_until("\n", limit)?;
        let digits: String = printed.split_whitespace().collect();
        let text = STANDARD
            .decode(&digits)
            .map_err(|_| ChannelError::Garbled { answer: printed })?;
        let status = status
            .parse()
            .map_err(|_| ChannelError::Garbled { answer: status })?;
        Ok(Output {
            status,
            text: String::from_utf8_lossy(&text).into_owned(),
        })
    }

    /// Runs a shell script that has to succeed; returns what it printed, without the last line break.
    ///
    /// # Errors
    /// As [`Channel::run`], and `Failed` for a status other than 0.
    pub fn check(&mut self, script: &str, limit: Duration) -> Result<String, ChannelError> {
        let output = self.run(script, limit)?;
        if output.status != 0 {
            return Err(ChannelError::Failed {
                script: script.to_owned(),
                status: output.status,
                text: output.text,
            });
        }
        Ok(output.text.trim_end_matches('\n').to_owned())
    }

    /// Runs a script that ends the machine, so that no answer can be awaited.
    ///
    /// # Errors
    /// `Console` if the port is broken.
    pub fn send_last(&mut self, script: &str) -> Result<(), ChannelError> {
        let id = self.next;
        self.next += 1;
        self.port
            .type_line(&format!("{id} {}", STANDARD.encode(script)))?;
        Ok(())
    }
}
