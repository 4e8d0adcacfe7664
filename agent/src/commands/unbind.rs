//! `latchkey unbind`: takes a binding away. The keyslots that people use stay, and one must be there.

use std::path::PathBuf;

use latchkey_protocol::envelope::Bound;

use super::initramfs::{self, Rebuild, RebuildError};
use super::journal::{Journal, JournalledKeyslot, UndoError};
use super::target::{Target, TargetError};
use crate::failure::chain;
use crate::files::{Files, FilesError, Role};
use crate::server::KeyServer;
use crate::volume::header::{HeaderCopy, HeaderError};
use crate::volume::keyslots::{self, KeyslotError};
use crate::volume::tokens::{self, FoundToken, TokenError};

/// What `latchkey unbind` is told.
#[derive(Debug, Clone)]
pub struct Arguments {
    /// A device, an image file, a mapping or a mount point.
    pub device: PathBuf,
    /// Whether to rebuild the initramfs.
    pub rebuild: Rebuild,
}

/// The volume is still bound, in whole or in part; running the command again goes on.
#[derive(Debug, thiserror::Error)]
pub enum UnbindError {
    /// The argument.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Files of ours.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// No token of ours.
    #[error("'{}' is not bound", .0.display())]
    NotBound(PathBuf),
    /// Nobody could open the volume any more.
    #[error(
        "'{}' has no keyslot but latchkey's, so nobody could open it any more\n\
         add a passphrase with 'cryptsetup luksAddKey' first",
        .0.display()
    )]
    NoOther(PathBuf),
    /// The keyslots cannot be read.
    #[error(transparent)]
    Keyslot(#[from] KeyslotError),
    /// The tokens cannot be read.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The header cannot be read.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// A step failed.
    #[error("the binding could not be taken away; run this again to go on")]
    Undo(#[source] UndoError),
    /// Unbound, but the initramfs is old.
    #[error("'{}' is no longer bound, but the initramfs was not rebuilt", .device.display())]
    Rebuild {
        /// The device.
        device: PathBuf,
        /// Why.
        #[source]
        source: RebuildError,
    },
}

/// Removes latchkey's tokens and keyslots from a volume and tells the key servers.
///
/// # Errors
/// A variant of [`UnbindError`].
pub fn run(files: &Files, arguments: &Arguments) -> Result<(), UnbindError> {
    let _lock = files.lock()?;
    let target = Target::find(&arguments.device)?;
    let servers = reachable_or_not(files)?;
    let interrupted = Journal::load(files, &target)?;
    let found = tokens::find(&target.device)?;
    if interrupted.is_none() && found.is_empty() {
        return Err(UnbindError::NotBound(target.device));
    }
    check_others(&target)?;
    if let Some(journal) = interrupted {
        journal
            .undo(files, &target, &servers)
            .map_err(UnbindError::Undo)?;
    }
    for token in found {
        let journal = journal_of(&target, token)?;
        journal.save(files)?;
        journal
            .undo(files, &target, &servers)
            .map_err(UnbindError::Undo)?;
    }
    log::info!("'{}' is no longer bound", target.device.display());
    log::info!("the boot still asks the key servers for other volumes, if any are bound");
    initramfs::rebuild(files, arguments.rebuild).map_err(|source| UnbindError::Rebuild {
        device: target.device.clone(),
        source,
    })
}

/// The key servers whose files can be used: a broken folder must not keep a volume bound.
fn reachable_or_not(files: &Files) -> Result<Vec<KeyServer>, FilesError> {
    let mut servers = Vec::new();
    for files in files.servers()? {
        let opened = files
            .map_err(|error| chain(&error))
            .and_then(|files| KeyServer::open(&files, Role::Host).map_err(|error| chain(&error)));
        match opened {
            Ok(server) => servers.push(server),
            Err(error) => log::warn!("{error}"),
        }
    }
    Ok(servers)
}

/// At least one keyslot must be a person's.
fn check_others(target: &Target) -> Result<(), UnbindError> {
    if keyslots::list(&target.device)?.iter().any(|one| !one.ours) {
        Ok(())
    } else {
        Err(UnbindError::NoOther(target.device.clone()))
    }
}

/// What there is to take away for one token. Of a token that cannot be read, the keyslots that libcryptsetup keeps
/// with it.
fn journal_of(target: &Target, found: FoundToken) -> Result<Journal, UnbindError> {
    let header = HeaderCopy::read(&target.device)?;
    let json = header.json();
    let mut journal = Journal::new(target);
    journal.tokens = vec![found.id];
    let mut slots: Vec<u32> = json["tokens"][found.id.to_string()]["keyslots"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|slot| slot.as_str()?.parse().ok())
        .collect();
    match found.token {
        Ok(token) => {
            let Bound::Luks2(bound) = &token.bound;
            slots.retain(|slot| *slot == bound.keyslot);
            journal.volume = Some(token.volume);
            journal.servers = token.envelopes.iter().map(|e| e.server).collect();
        }
        Err(error) => log::warn!(
            "token {} cannot be read ({error}): the key servers cannot be told which volume it was",
            found.id
        ),
    }
    // A token is not authenticated: whatever it names, a keyslot that does not look like ours stays.
    journal.keyslots = slots
        .into_iter()
        .map(|slot| JournalledKeyslot::of(json, slot))
        .filter(|keyslot| keyslot.looks_like_ours(json))
        .collect();
    Ok(journal)
}
