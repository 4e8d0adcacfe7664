//! QEMU's control socket (QMP): pull the network cable, plug a device in, dump the memory.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

/// QEMU did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket broke or QEMU did not answer.
    #[error("failed to reach QEMU's control socket")]
    Socket(#[from] io::Error),
    /// An answer that is not JSON.
    #[error("QEMU answered something unreadable")]
    Unreadable(#[from] serde_json::Error),
    /// QEMU refused.
    #[error("QEMU refused '{command}': {reason}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's description.
        reason: String,
    },
}

/// One control connection.
pub struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Takes over the connection that QEMU opened and leaves its negotiation mode.
    ///
    /// # Errors
    /// `Socket` or `Unreadable` if QEMU does not greet.
    pub fn attach(socket: UnixStream) -> Result<Self, QmpError> {
        const ANSWER: Duration = Duration::from_secs(120);
        socket.set_read_timeout(Some(ANSWER))?;
        let mut qmp = Self {
            reader: BufReader::new(socket),
        };
        qmp.message()?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs one command and returns what QEMU returned; events are skipped.
    ///
    /// # Errors
    /// `Refused` with QEMU's own words, else that the socket broke.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.reader
            .get_mut()
            .write_all(format!("{request}\n").as_bytes())?;
        loop {
            let mut answer = self.message()?;
            if let Some(reason) = answer.pointer("/error/desc") {
                let reason = reason.as_str().unwrap_or_default().to_owned();
                return Err(QmpError::Refused {
                    command: command.to_owned(),
                    reason,
                });
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    fn message(&mut self) -> Result<Value, QmpError> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}
