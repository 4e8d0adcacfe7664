//! Envelope files, `/etc/latchkey/envelopes/NAME.json`: the token of volumes whose header has no room for one.
//!
//! NAME is the mapping's, which crypttab has checked to be a file's name. What is in such a file is as little secret
//! as a token: only a key server's share opens it.

use std::path::PathBuf;

use latchkey_protocol::envelope::{EnvelopeError, Token};

use crate::files::{self, Files, FilesError};

/// An envelope file was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeFileError {
    /// The file.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The token itself is not fit to be written.
    #[error("refused to write an envelope file")]
    Token(#[from] EnvelopeError),
    /// What is on the disk is not what was written.
    #[error("'{}' reads back differently from what was written", .0.display())]
    ReadBack(PathBuf),
}

/// The envelope file of the mapping `name`.
pub fn path(files: &Files, name: &str) -> PathBuf {
    files.envelopes().join(format!("{name}.json"))
}

/// What the envelope file of `name` says, or that it is broken; `None` if there is none.
///
/// # Errors
/// `Read`.
pub fn read(files: &Files, name: &str) -> Result<Option<Result<Token, EnvelopeError>>, FilesError> {
    let text = files::if_any(files::read(&path(files, name)))?;
    Ok(text.map(|text| Token::parse(&text)))
}

/// Writes the envelope file of `name`, readable by root alone: after a power cut there is the old or the new one.
///
/// # Errors
/// Every variant of [`EnvelopeFileError`].
pub fn write(files: &Files, name: &str, token: &Token) -> Result<(), EnvelopeFileError> {
    files::make_dir(&files.envelopes())?;
    let path = path(files, name);
    files::replace(&path, token.to_json()?.as_bytes())?;
    match read(files, name)? {
        Some(Ok(written)) if written == *token => Ok(()),
        _ => Err(EnvelopeFileError::ReadBack(path)),
    }
}

/// Removes the envelope file of `name`; it need not exist.
///
/// # Errors
/// `Write`.
pub fn remove(files: &Files, name: &str) -> Result<(), FilesError> {
    if !files.envelopes().exists() {
        return Ok(());
    }
    files::remove(&path(files, name))
}

/// The name whose envelope file is of the volume with this UUID.
pub fn name_of(files: &Files, uuid: &str) -> Option<String> {
    of_volume(files, uuid).next().map(|(name, _)| name)
}

/// The keyslots that envelope files name for the volume with this UUID, whether its header has them or not.
pub fn keyslots_of(files: &Files, uuid: &str) -> Vec<u32> {
    let keyslot = |(_, token): (String, Token)| token.bound.keyslot();
    of_volume(files, uuid).filter_map(keyslot).collect()
}

fn of_volume(files: &Files, uuid: &str) -> impl Iterator<Item = (String, Token)> {
    names(files).into_iter().filter_map(move |name| {
        let token = read(files, &name).ok()??.ok()?;
        (token.uuid == uuid).then_some((name, token))
    })
}

/// The names for which there is an envelope file.
pub fn names(files: &Files) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(files.envelopes())
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            Some(
                entry
                    .file_name()
                    .to_str()?
                    .strip_suffix(".json")?
                    .to_owned(),
            )
        })
        .collect();
    names.sort();
    names
}
