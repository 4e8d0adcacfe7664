//! `latchkey unbind`: takes a binding away. The keyslots that people use stay, and one must be there. The line of
//! crypttab stays too: the volume is still opened at boot, by its passphrase.

use std::path::PathBuf;

use latchkey_protocol::envelope::Token;

use super::bind::{enrol, report};
use super::initramfs::{self, Rebuild, RebuildError};
use super::journal::{Journal, JournalledKeyslot, UndoError};
use super::rotate::RotateError;
use super::rotate::journal::Rotation;
use super::service;
use super::target::{Target, TargetError};
use crate::failure::chain;
use crate::files::{Files, FilesError, Role};
use crate::server::KeyServer;
use crate::volume::backup::BackupError;
use crate::volume::binding::{self, At, BindingError, Found};
use crate::volume::header::{HeaderCopy, HeaderError};
use crate::volume::keyslots::{self, KeyslotError};
use crate::volume::place::Kind;

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
    /// Neither a token of ours nor an envelope file.
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
    /// The tokens or the envelope file cannot be read.
    #[error(transparent)]
    Binding(#[from] BindingError),
    /// The header cannot be read.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// No keyslot goes without one.
    #[error("without a backup of the header nothing is taken away; run this again to go on")]
    Backup(#[from] BackupError),
    /// What an unfinished rotation left cannot be cleared up.
    #[error("a rotation was not finished, and what it left cannot be cleared up")]
    Rotation(#[source] Box<RotateError>),
    /// A step failed.
    #[error("the binding could not be taken away; run this again to go on")]
    Undo(#[source] UndoError),
    /// Unbound, but the initramfs is old.
    #[error(
        "'{}' is no longer bound, but the initramfs was not rebuilt; run this again to go on",
        .device.display()
    )]
    Rebuild {
        /// The device.
        device: PathBuf,
        /// Why.
        #[source]
        source: RebuildError,
    },
}

/// Removes latchkey's tokens, envelope file and keyslots from a volume and tells the key servers.
///
/// # Errors
/// A variant of [`UnbindError`].
pub fn run(files: &Files, arguments: &Arguments) -> Result<(), UnbindError> {
    let _lock = files.lock()?;
    let target = Target::find(files, &arguments.device, None)?;
    target.check_only(files)?;
    let servers = reachable_or_not(files)?;
    let interrupted = Journal::load(files, &target)?;
    let found = binding::find(files, &target.name, &target.place)?;
    if let Some(rotation) = Rotation::load(files, &target)? {
        let token = found.iter().find_map(|found| found.token.as_ref().ok());
        rotation
            .settle(files, &target, token)
            .map_err(|error| UnbindError::Rotation(Box::new(error)))?;
    }
    if interrupted.is_none() && found.is_empty() {
        target.check_renamed(files)?;
        return Err(UnbindError::NotBound(target.device));
    }
    check_others(&target, &found)?;
    let backup = back_up(files, &target)?;
    if let Some(journal) = interrupted {
        journal
            .take_back(files, &target, &servers)
            .map_err(UnbindError::Undo)?;
    }
    for one in found {
        let journal = journal_of(&target, one)?;
        journal.save(files)?;
        journal
            .take_back(files, &target, &servers)
            .map_err(UnbindError::Undo)?;
    }
    report::remove(files, &target)?;
    log::info!("'{}' is no longer bound", target.device.display());
    if let Some(backup) = backup {
        log::info!("the header from before is in '{}'", backup.display());
    }
    log::info!("the boot still asks the key servers for other volumes, if any are bound");
    if !target.entries.is_empty() {
        log::info!("its line in crypttab stays: what opened it before opens it");
    }
    let is_for_running_system = target.is_for_running_system(files);
    // Its line may have been changed since.
    if is_for_running_system || service::is_enabled(files, &target.name) {
        service::disable(files, &target.name);
    }
    if !is_for_running_system {
        initramfs::rebuild(files, arguments.rebuild).map_err(|source| UnbindError::Rebuild {
            device: target.device.clone(),
            source,
        })?;
    }
    // Not before: by the journal the next run knows that there is something left to do.
    Ok(Journal::new(&target).remove(files)?)
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

/// At least one keyslot must be a person's. Of a plain volume nothing is taken away but the envelope.
fn check_others(target: &Target, found: &[Found]) -> Result<(), UnbindError> {
    let Some(header) = target.place.luks_header() else {
        return Ok(());
    };
    // A LUKS1 header does not say which keyslot is ours, and somebody may have given ours in a LUKS2 header another priority.
    let bound = |slot: u32| {
        let mut tokens = found.iter().filter_map(|found| found.token.as_ref().ok());
        tokens.any(|token| keyslot_of_file(target, token) == Some(slot))
    };
    let keyslots = keyslots::list(header)?;
    if keyslots
        .iter()
        .any(|one| one.opens && !one.ours && !bound(one.slot))
    {
        Ok(())
    } else {
        Err(UnbindError::NoOther(target.device.clone()))
    }
}

/// Of a LUKS header, before its keyslot and token go. In no journal: this backup stays.
fn back_up(files: &Files, target: &Target) -> Result<Option<PathBuf>, UnbindError> {
    let header = target.place.luks_header();
    header
        .map(|header| enrol::keep_backup(files, target, header))
        .transpose()
}

/// The keyslot that an envelope file names, if the file is of this very volume: another disk may have got its name since.
fn keyslot_of_file(target: &Target, token: &Token) -> Option<u32> {
    token.bound.keyslot().filter(|_| token.uuid == target.uuid)
}

/// What there is to take away for one token or envelope file. Of a token that cannot be read, the keyslots that
/// libcryptsetup keeps with it.
fn journal_of(target: &Target, found: Found) -> Result<Journal, UnbindError> {
    let mut journal = Journal::new(target);
    let mut slots = Vec::new();
    match &found.at {
        At::Token(id) => {
            journal.tokens = vec![*id];
            if let Some(header) = target.luks2_header() {
                let header = HeaderCopy::read(header)?;
                let kept = header.json()["tokens"][id.to_string()]["keyslots"].as_array();
                let number = |slot: &serde_json::Value| slot.as_str()?.parse::<u32>().ok();
                slots.extend(kept.into_iter().flatten().filter_map(number));
            }
        }
        At::File(path) => journal.envelope = Some(path.clone()),
    }
    match found.token {
        Ok(token) => {
            match found.at {
                At::Token(_) => slots.retain(|slot| Some(*slot) == token.bound.keyslot()),
                At::File(_) => slots.extend(keyslot_of_file(target, &token)),
            }
            journal.volume = Some(token.volume);
            journal.servers = token.envelopes.iter().map(|e| e.server).collect();
        }
        Err(error) => {
            log::warn!(
                "{} cannot be read ({error}): the key servers cannot be told which volume it was",
                found.at
            );
            if target.kind == Kind::Luks1 {
                log::warn!(
                    "which keyslot was latchkey's cannot be told either, and it stays: 'cryptsetup luksDump' shows one of \
                     1000 iterations, which 'cryptsetup luksKillSlot' removes"
                );
            }
        }
    }
    // Neither is authenticated: whatever it names, a keyslot that does not look like ours stays. A recovery key's is as cheap.
    if let Some(header) = target.place.luks_header() {
        let known = keyslots::list(header)?;
        let is_typed = |slot| {
            let mut known = known.iter();
            target.kind != Kind::Luks1 && known.any(|one| one.slot == slot && one.typed)
        };
        slots.retain(|slot| {
            if is_typed(*slot) {
                log::warn!("keyslot {slot} is not known to be one of latchkey, and stays");
            }
            !is_typed(*slot)
        });
        for slot in slots {
            let traces = keyslots::traces(header, slot)?;
            if traces.as_ref().is_some_and(|traces| traces.cheapest) {
                journal
                    .keyslots
                    .push(JournalledKeyslot::of(traces.as_ref(), slot));
            }
        }
    }
    Ok(journal)
}
