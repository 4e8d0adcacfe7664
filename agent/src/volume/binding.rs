//! Where the envelopes of a volume lie, whatever its kind: in tokens of its LUKS2 header, else in its envelope file.

use std::fmt;
use std::path::PathBuf;

use latchkey_protocol::envelope::{Bound, EnvelopeError, Token};

use super::envelopes::{self, EnvelopeFileError};
use super::header::HeaderError;
use super::place::Place;
use super::tokens::{self, TokenError};
use crate::files::{Files, FilesError};

/// What was found of a binding.
#[derive(Debug)]
pub struct Found {
    /// Where.
    pub at: At,
    /// What it says; a broken one hinders nothing else.
    pub token: Result<Token, EnvelopeError>,
}

/// Where envelopes lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    /// In this token of the header.
    Token(u32),
    /// In this file.
    File(PathBuf),
}

/// A binding was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum BindingError {
    /// A token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// An envelope file.
    #[error(transparent)]
    EnvelopeFile(#[from] EnvelopeFileError),
    /// A file.
    #[error(transparent)]
    Files(#[from] FilesError),
}

/// Everything of latchkey's about the volume that is mapped as `name`: all tokens of a LUKS2 header, or the envelope
/// file. An envelope file beside a LUKS2 header counts for nothing.
///
/// # Errors
/// `Token` if the header could not be read, `Files`.
pub fn find(files: &Files, name: &str, place: &Place) -> Result<Vec<Found>, BindingError> {
    if let Some(header) = place.luks_header() {
        match tokens::find(header) {
            Ok(found) => return Ok(found.into_iter().map(Found::from).collect()),
            Err(TokenError::Header(HeaderError::NotLuks2(_))) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let found = envelopes::read(files, name)?;
    let at = || At::File(envelopes::path(files, name));
    Ok(found
        .map(|token| Found { at: at(), token })
        .into_iter()
        .collect())
}

/// Writes a new binding and reads it back.
///
/// # Errors
/// `Token`, `EnvelopeFile`.
pub fn add(files: &Files, name: &str, place: &Place, token: &Token) -> Result<(), BindingError> {
    match (&token.bound, place.luks_header()) {
        (Bound::Luks2(_) | Bound::DetachedLuks2(_), Some(header)) => {
            tokens::add(header, token)?;
        }
        _ => envelopes::write(files, name, token)?,
    }
    Ok(())
}

/// Puts `token` in the place of the binding at `at` in one step, and reads it back.
///
/// # Errors
/// `Token`, `EnvelopeFile`.
pub fn replace(
    files: &Files,
    name: &str,
    place: &Place,
    at: &At,
    token: &Token,
) -> Result<(), BindingError> {
    match (at, place.luks_header()) {
        (At::Token(id), Some(header)) => tokens::replace(header, *id, token)?,
        _ => envelopes::write(files, name, token)?,
    }
    Ok(())
}

/// Takes one away.
///
/// # Errors
/// `Token`, `Files`.
pub fn remove(files: &Files, name: &str, place: &Place, at: &At) -> Result<(), BindingError> {
    match (at, place.luks_header()) {
        (At::Token(id), Some(header)) => tokens::remove(header, *id)?,
        (At::Token(_), None) => {}
        (At::File(_), _) => envelopes::remove(files, name)?,
    }
    Ok(())
}

impl From<tokens::FoundToken> for Found {
    fn from(found: tokens::FoundToken) -> Self {
        Self {
            at: At::Token(found.id),
            token: found.token,
        }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(id) => write!(f, "token {id}"),
            Self::File(path) => write!(f, "'{}'", path.display()),
        }
    }
}
