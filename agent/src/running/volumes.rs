//! The bound volumes of this machine, as their headers have them.

use std::path::PathBuf;

use latchkey_protocol::ServerId;
use latchkey_protocol::envelope::Token;
use latchkey_protocol::tickets::Tickets;

use crate::commands::target::read_crypttab;
use crate::failure::chain;
use crate::files::{Files, FilesError};
use crate::volume::crypttab::{Entry, Key};
use crate::volume::header::{HeaderCopy, HeaderError};
use crate::volume::{tickets, tokens};

/// A bound volume.
#[derive(Debug)]
pub struct Bound {
    /// As crypttab calls it.
    pub name: String,
    /// The encrypted device.
    pub device: PathBuf,
    /// What its token says.
    pub token: Token,
    /// Its tickets.
    pub tickets: Tickets,
}

impl Bound {
    /// Whether it has an envelope of `server`.
    pub fn is_of(&self, server: ServerId) -> bool {
        let servers = &self.token.envelopes;
        servers.iter().any(|envelope| envelope.server == server)
    }

    /// The key servers that it has an envelope of.
    pub fn servers(&self) -> Vec<ServerId> {
        let servers = self.token.envelopes.iter();
        servers.map(|envelope| envelope.server).collect()
    }
}

/// The bound volumes of crypttab that boot opens without a key file, each once. What cannot be read is left out.
///
/// # Errors
/// crypttab cannot be read.
pub fn bound(files: &Files) -> Result<Vec<Bound>, FilesError> {
    let mut found: Vec<Bound> = Vec::new();
    for entry in read_crypttab(files)? {
        if entry.key != Key::None {
            continue; // latchkey does not open it
        }
        if let Some(bound) = read(files, &entry)
            && !found
                .iter()
                .any(|one| one.token.volume == bound.token.volume)
        {
            found.push(bound);
        }
    }
    Ok(found)
}

fn read(files: &Files, entry: &Entry) -> Option<Bound> {
    let name = &entry.name;
    let device = match entry.source.resolve_below(files.root()) {
        Ok(device) => files.path(&device?.to_string_lossy()),
        Err(error) => {
            log::warn!("'{name}': {error}");
            return None;
        }
    };
    // The link, so that the message names what the administrator knows, but the device itself is written to.
    let device = device.canonicalize().unwrap_or(device);
    let header = match HeaderCopy::read(&device) {
        Ok(header) => header,
        Err(HeaderError::NotLuks2(_)) => return None,
        Err(error) => {
            log::warn!("'{name}': {}", chain(&error));
            return None;
        }
    };
    let tokens = tokens::find_in(header.json());
    let token = tokens.into_iter().find_map(|found| found.token.ok())?;
    Some(Bound {
        name: name.clone(),
        tickets: tickets::find_in(header.json(), token.volume),
        device,
        token,
    })
}
