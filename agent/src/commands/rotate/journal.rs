//! What a rotation has touched, so that an interruption at any point loses nothing. No secrets.
//!
//! Which way an interrupted one goes, the binding itself says: while it needs the old shares, all that is new is taken away
//! again; once it needs the new ones, what is old is.

use std::path::PathBuf;

use latchkey_protocol::envelope::Token;
use latchkey_protocol::{Generation, ServerId, VolumeId};
use serde::{Deserialize, Serialize};

use super::error::RotateError;
use crate::commands::bind::enrol::Notes;
use crate::commands::journal::{self, JournalledKeyslot};
use crate::commands::shares::{self, Registered};
use crate::commands::target::Target;
use crate::failure::chain;
use crate::files::{self, Files, FilesError};
use crate::server::KeyServer;
use crate::volume::keyslots;

/// An unfinished rotation of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Rotation {
    /// As in the name of its file.
    pub uuid: String,
    /// The volume's name at the key servers.
    pub volume: VolumeId,
    /// The shares of its key servers.
    pub servers: Vec<Rotated>,
    /// The keyslot that the binding had.
    pub old_keyslot: Option<JournalledKeyslot>,
    /// The keyslot that was made, or was about to be.
    pub new_keyslot: Option<JournalledKeyslot>,
    /// The backup of the header from before.
    pub backup: Option<PathBuf>,
}

/// The shares at one key server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Rotated {
    /// Which.
    pub server: ServerId,
    /// The generation that the binding needed.
    pub before: Generation,
    /// The one that takes its place, once there is one.
    pub after: Option<Generation>,
}

/// How far a rotation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The binding needs the old shares.
    Unfinished,
    /// It needs the new ones.
    Replaced,
}

impl Rotation {
    /// Of a volume that nothing has happened to. The keyslot that `token` names is an old one of ours if it is such as we make
    /// it, or, where the header does not tell, if its machine secret was `proved`: a token may name any.
    ///
    /// # Errors
    /// The header cannot be read.
    pub fn new(target: &Target, token: &Token, proved: bool) -> Result<Self, RotateError> {
        let old_keyslot = match (token.bound.keyslot(), target.place.luks_header()) {
            (Some(slot), Some(header)) => {
                let traces = keyslots::traces(header, slot)?;
                let is_ours = match target.luks2_header() {
                    Some(header) => keyslots::list(header)?
                        .iter()
                        .any(|keyslot| keyslot.slot == slot && keyslot.ours),
                    None => proved,
                };
                if traces.is_some() && !is_ours {
                    log::warn!(
                        "keyslot {slot}, which the binding names, is not known to be one of latchkey: it will stay"
                    );
                }
                traces
                    .filter(|_| is_ours)
                    .map(|traces| JournalledKeyslot::of(Some(&traces), slot))
            }
            _ => None,
        };
        let servers = token.envelopes.iter().map(|envelope| Rotated {
            server: envelope.server,
            before: envelope.generation,
            after: None,
        });
        Ok(Self {
            uuid: target.key(),
            volume: token.volume,
            servers: servers.collect(),
            old_keyslot,
            new_keyslot: None,
            backup: None,
        })
    }

    /// The one that an earlier run left for `target`.
    ///
    /// # Errors
    /// `Read`, `Format`.
    pub fn load(files: &Files, target: &Target) -> Result<Option<Self>, FilesError> {
        journal::load(&path(files, &target.key()))
    }

    /// Writes it durably.
    ///
    /// # Errors
    /// `Write`.
    pub fn save(&self, files: &Files) -> Result<(), FilesError> {
        journal::save(files, &path(files, &self.uuid), self)
    }

    /// Keeps which generation a key server has made.
    pub fn note(&mut self, share: &Registered) {
        for one in &mut self.servers {
            if one.server == share.server {
                one.after = Some(share.generation);
            }
        }
    }

    /// How far it has come, as the binding tells.
    pub fn stage(&self, token: &Token) -> Stage {
        let is_new = |one: &Rotated| {
            let envelope = token.envelope_of(one.server);
            envelope.is_some_and(|envelope| Some(envelope.generation) == one.after)
        };
        match !self.servers.is_empty() && self.servers.iter().all(is_new) {
            true => Stage::Replaced,
            false => Stage::Unfinished,
        }
    }

    /// Takes all that is new away again. Can be repeated. A key server that does not answer keeps a share that opens
    /// nothing, and gives it for the next rotation.
    ///
    /// # Errors
    /// `Keyslot`, `Files`; the journal is still there.
    pub fn undo(
        &self,
        files: &Files,
        target: &Target,
        servers: &[KeyServer],
    ) -> Result<(), RotateError> {
        destroy(target, self.new_keyslot.as_ref())?;
        if let Some(backup) = &self.backup {
            files::remove(backup)?;
        }
        for one in &self.servers {
            if let Err(error) = self.keep(one, one.before, servers) {
                log::warn!("{}", chain(&error));
            }
        }
        Ok(files::remove(&path(files, &self.uuid))?)
    }

    /// Whether a keyslot was about to be made that nothing tells from another one yet.
    pub fn is_making_a_keyslot(&self) -> bool {
        let keyslot = self.new_keyslot.as_ref();
        keyslot.is_some_and(|keyslot| keyslot.salt.is_none())
    }

    /// Takes all that is old away, the keyslot once every key server has agreed; last the header from before, which nobody
    /// needs then: where a machine rotates each night, they would fill its disk. Can be repeated.
    ///
    /// # Errors
    /// `Keyslot`, `End`, `Files`; the journal is still there.
    pub fn finish(
        &self,
        files: &Files,
        target: &Target,
        servers: &[KeyServer],
    ) -> Result<(), RotateError> {
        let mut agreed = Ok(());
        for one in &self.servers {
            if let Some(after) = one.after {
                agreed = agreed.and(self.keep(one, after, servers));
            }
        }
        agreed?;
        self.drop_old_keyslot(target)?;
        if let Some(backup) = &self.backup {
            files::remove(backup)?;
        }
        Ok(files::remove(&path(files, &self.uuid))?)
    }

    /// What `unbind` does before it looks at the volume: one keyslot of ours is left, which its token names.
    ///
    /// # Errors
    /// `Keyslot`, `Files`; the journal is still there.
    pub fn settle(
        &self,
        files: &Files,
        target: &Target,
        token: Option<&Token>,
    ) -> Result<(), RotateError> {
        match token.map(|token| self.stage(token)) {
            Some(Stage::Unfinished) => destroy(target, self.new_keyslot.as_ref())?,
            Some(Stage::Replaced) => self.drop_old_keyslot(target)?,
            None => {
                destroy(target, self.new_keyslot.as_ref())?;
                self.drop_old_keyslot(target)?;
            }
        }
        Ok(files::remove(&path(files, &self.uuid))?)
    }

    fn drop_old_keyslot(&self, target: &Target) -> Result<(), RotateError> {
        destroy(target, self.old_keyslot.as_ref())
    }

    fn keep(
        &self,
        one: &Rotated,
        generation: Generation,
        servers: &[KeyServer],
    ) -> Result<(), RotateError> {
        let server = servers
            .iter()
            .find(|server| server.settings.id == one.server);
        let Some(server) = server else {
            return Ok(()); // not joined any more
        };
        shares::end_rotation(server, self.volume, generation).map_err(|source| RotateError::End {
            server: one.server.short(),
            source: Box::new(source),
        })
    }
}

impl Notes for Rotation {
    fn backup(&mut self, files: &Files, backup: PathBuf) -> Result<(), FilesError> {
        self.backup = Some(backup);
        self.save(files)
    }

    fn keyslot(&mut self, files: &Files, keyslot: JournalledKeyslot) -> Result<(), FilesError> {
        self.new_keyslot = Some(keyslot);
        self.save(files)
    }
}

fn destroy(target: &Target, keyslot: Option<&JournalledKeyslot>) -> Result<(), RotateError> {
    if let (Some(keyslot), Some(header)) = (keyslot, target.place.luks_header()) {
        keyslot.destroy(header)?;
    }
    Ok(())
}

fn path(files: &Files, uuid: &str) -> PathBuf {
    journal::path_of(files, "rotate", uuid)
}
