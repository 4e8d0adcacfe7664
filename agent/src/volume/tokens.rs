//! latchkey's tokens in a LUKS2 header.
//!
//! libcryptsetup writes a header's two copies one after the other with rising sequence numbers, so a token is
//! either the old or the new one after a power cut. Everything written is read back from the device and compared.

use std::path::{Path, PathBuf};

use latchkey_protocol::envelope::{EnvelopeError, TOKEN_TYPE, Token};
use libcryptsetup_rs::TokenInput;
use nix::errno::Errno;
use serde_json::Value;

use super::context::{self, CryptError};
use super::header::{self, HeaderCopy, HeaderError};

/// LUKS2 on-disk format: the most tokens that a header has.
const TOKENS_LIMIT: u32 = 32;

/// A token of type `latchkey` in a header.
#[derive(Debug)]
pub struct FoundToken {
    /// Its number.
    pub id: u32,
    /// What it says; a broken one is reported here and hinders nothing else.
    pub token: Result<Token, EnvelopeError>,
}

/// A token was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The header could not be read.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The token itself is not fit to be written.
    #[error("refused to write a token")]
    Token(#[from] EnvelopeError),
    /// All numbers are taken.
    #[error(
        "'{0}' has {TOKENS_LIMIT} tokens, the most that LUKS2 has\nremove one with 'cryptsetup token remove'"
    )]
    NoFreeToken(PathBuf),
    /// The JSON area of the header is full.
    #[error(
        "the header of '{0}' has no room for the token\nremove unused tokens or keyslots with cryptsetup"
    )]
    NoRoom(PathBuf),
    /// There is no latchkey token of that number.
    #[error("token {id} of '{device}' is not one of latchkey")]
    NotOurs {
        /// The device.
        device: PathBuf,
        /// The number.
        id: u32,
    },
    /// What is on the device is not what was written.
    #[error("token {id} of '{device}' reads back differently from what was written")]
    ReadBack {
        /// The device.
        device: PathBuf,
        /// The number.
        id: u32,
    },
    /// libcryptsetup refused.
    #[error("failed to write token {id} of '{device}'")]
    Crypt {
        /// The device.
        device: PathBuf,
        /// The number.
        id: u32,
        /// What libcryptsetup said.
        #[source]
        source: CryptError,
    },
}

/// The latchkey tokens in the header of `device`, in the order of their numbers. The header is only read.
///
/// # Errors
/// `Header`.
pub fn find(device: &Path) -> Result<Vec<FoundToken>, TokenError> {
    Ok(find_in(HeaderCopy::read(device)?.json()))
}

/// The latchkey tokens in a header's JSON.
pub fn find_in(json: &Value) -> Vec<FoundToken> {
    let mut found: Vec<FoundToken> = json["tokens"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, token)| token["type"] == TOKEN_TYPE)
        .filter_map(|(id, token)| {
            Some(FoundToken {
                id: id.parse().ok()?,
                token: Token::parse(token.to_string().as_bytes()),
            })
        })
        .collect();
    found.sort_by_key(|found| found.id);
    found
}

/// The lowest number that no token of any kind has.
///
/// # Errors
/// `NoFreeToken`, `Header`.
pub fn free_id(device: &Path) -> Result<u32, TokenError> {
    let header = HeaderCopy::read(device)?;
    let taken = &header.json()["tokens"];
    (0..TOKENS_LIMIT)
        .find(|id| taken[id.to_string()].is_null())
        .ok_or_else(|| TokenError::NoFreeToken(device.to_owned()))
}

/// Writes `token` as a new one; returns its number.
///
/// # Errors
/// Every variant but `NotOurs`.
pub fn add(device: &Path, token: &Token) -> Result<u32, TokenError> {
    let id = free_id(device)?;
    write(device, id, token)?;
    Ok(id)
}

/// Replaces latchkey's token number `id` by `token` in one step.
///
/// # Errors
/// `NotOurs` if there is no latchkey token of that number, otherwise as [`add`].
pub fn replace(device: &Path, id: u32, token: &Token) -> Result<(), TokenError> {
    check_ours(device, id)?;
    write(device, id, token)
}

/// Removes latchkey's token number `id`. Its keyslot stays.
///
/// # Errors
/// `NotOurs`, `Header`, `Crypt`.
pub fn remove(device: &Path, id: u32) -> Result<(), TokenError> {
    check_ours(device, id)?;
    set(device, id, TokenInput::RemoveToken(id))?;
    match check_ours(device, id) {
        Err(TokenError::NotOurs { .. }) => Ok(()),
        Err(error) => Err(error),
        Ok(()) => Err(TokenError::ReadBack {
            device: device.to_owned(),
            id,
        }),
    }
}

fn write(device: &Path, id: u32, token: &Token) -> Result<(), TokenError> {
    let json: Value = serde_json::from_str(&token.to_json()?)
        .map_err(|error| EnvelopeError::Format(error.to_string()))?;
    set(device, id, TokenInput::ReplaceToken(id, &json))?;
    let written = find(device)?
        .into_iter()
        .find(|found| found.id == id)
        .and_then(|found| found.token.ok());
    if written.as_ref() == Some(token) {
        Ok(())
    } else {
        Err(TokenError::ReadBack {
            device: device.to_owned(),
            id,
        })
    }
}

/// Sets or removes a token of ours, if the device begins with a whole LUKS2 header.
pub(super) fn set(device: &Path, id: u32, input: TokenInput<'_>) -> Result<(), TokenError> {
    let failed = |source: CryptError| {
        if source.is(Errno::ENOSPC) {
            TokenError::NoRoom(device.to_owned())
        } else {
            TokenError::Crypt {
                device: device.to_owned(),
                id,
                source,
            }
        }
    };
    header::require_primary(device)?;
    let mut context = context::luks2(device).map_err(failed)?;
    context
        .token_handle()
        .json_set(input)
        .map_err(|error| failed(error.into()))?;
    Ok(())
}

fn check_ours(device: &Path, id: u32) -> Result<(), TokenError> {
    let found = find(device)?.iter().any(|found| found.id == id);
    if found {
        Ok(())
    } else {
        Err(TokenError::NotOurs {
            device: device.to_owned(),
            id,
        })
    }
}
