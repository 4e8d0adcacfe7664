//! The commands' end of the administrator's socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::protocol::{ANSWER_LIMIT, Answer, Request};

/// Until the server has answered; a large audit takes its time.
const ANSWER_DEADLINE: Duration = Duration::from_secs(300);

/// A command was not done.
#[derive(Debug, thiserror::Error)]
pub enum AdminClientError {
    /// Nobody answers.
    #[error(
        "latchkeyd does not run: nobody answers at '{0}'\nstart it with 'systemctl start latchkeyd', or name its socket with --socket, --data-dir or --config"
    )]
    NotRunning(PathBuf, #[source] std::io::Error),
    /// Another user's socket.
    #[error(
        "no permission for '{0}'\nrun this command as root; approving needs to be listed in 'approvers' of latchkeyd.toml(5)"
    )]
    Permission(PathBuf),
    /// The connection broke.
    #[error(
        "the server ended the connection at '{0}' before it answered\nlook at its log: journalctl -u latchkeyd"
    )]
    Broken(PathBuf, #[source] std::io::Error),
    /// Not what we know.
    #[error("failed to understand the server's answer\nuse the 'latchkeyd' of the same version")]
    Answer(#[source] serde_json::Error),
    /// The state of the server does not allow it.
    #[error("{0}")]
    Refused(String),
    /// The server failed.
    #[error("{0}")]
    Failed(String),
}

/// Asks the server behind `socket`; the answer is what [`Request`] says.
///
/// # Errors
/// Any of [`AdminClientError`].
pub fn ask<T: DeserializeOwned>(socket: &Path, request: &Request) -> Result<T, AdminClientError> {
    let mut stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => AdminClientError::Permission(socket.to_owned()),
        _ => AdminClientError::NotRunning(socket.to_owned(), error),
    })?;
    let broken = |error| AdminClientError::Broken(socket.to_owned(), error);
    stream
        .set_read_timeout(Some(ANSWER_DEADLINE))
        .map_err(broken)?;
    let mut line = serde_json::to_vec(request).map_err(AdminClientError::Answer)?;
    line.push(b'\n');
    stream.write_all(&line).map_err(broken)?;
    let mut line = Vec::new();
    BufReader::new(stream)
        .take(ANSWER_LIMIT as u64)
        .read_until(b'\n', &mut line)
        .map_err(broken)?;
    if !line.ends_with(b"\n") {
        return Err(broken(std::io::ErrorKind::UnexpectedEof.into()));
    }
    match serde_json::from_slice(&line).map_err(AdminClientError::Answer)? {
        Answer::Done(value) => serde_json::from_value(value).map_err(AdminClientError::Answer),
        Answer::Refused(why) => Err(AdminClientError::Refused(why)),
        Answer::Failed(why) => Err(AdminClientError::Failed(why)),
    }
}
