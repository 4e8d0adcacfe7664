//! The commands' end of the administrator's socket.

use std::fs::File;
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
    /// What came could not be kept.
    #[error("failed to write the copy")]
    Write(#[source] std::io::Error),
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
    exchange(socket, request).map(|(answer, _)| answer)
}

/// Asks for a copy of the store and writes it to `file`, as it comes; its length.
///
/// # Errors
/// Any of [`AdminClientError`]; what `file` has then is no copy.
pub fn backup(socket: &Path, file: &mut File) -> Result<u64, AdminClientError> {
    let (size, rest) = exchange::<u64>(socket, &Request::Backup)?;
    let broken = |error| AdminClientError::Broken(socket.to_owned(), error);
    let mut rest = rest.take(size);
    loop {
        let part = rest.fill_buf().map_err(broken)?;
        if part.is_empty() {
            break;
        }
        file.write_all(part).map_err(AdminClientError::Write)?;
        let length = part.len();
        rest.consume(length);
    }
    match rest.limit() {
        0 => Ok(size),
        _ => Err(broken(std::io::ErrorKind::UnexpectedEof.into())),
    }
}

/// The answer to `request`, and what follows its line.
fn exchange<T: DeserializeOwned>(
    socket: &Path,
    request: &Request,
) -> Result<(T, BufReader<UnixStream>), AdminClientError> {
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
    let mut stream = BufReader::new(stream);
    (&mut stream)
        .take(ANSWER_LIMIT as u64)
        .read_until(b'\n', &mut line)
        .map_err(broken)?;
    if !line.ends_with(b"\n") {
        return Err(broken(std::io::ErrorKind::UnexpectedEof.into()));
    }
    match serde_json::from_slice(&line).map_err(AdminClientError::Answer)? {
        Answer::Done(value) => match serde_json::from_value(value) {
            Ok(answer) => Ok((answer, stream)),
            Err(error) => Err(AdminClientError::Answer(error)),
        },
        Answer::Refused(why) => Err(AdminClientError::Refused(why)),
        Answer::Failed(why) => Err(AdminClientError::Failed(why)),
    }
}
