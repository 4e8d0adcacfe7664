//! What a binding that is being made or taken away has touched, so that whoever runs the command next can take it
//! back after an interruption at any point. No secrets.
//!
//! The journal of a volume is written before each step and removed at the end. Undoing is one code path, for
//! failures and for interruptions, and can be repeated. It touches only what the journal names and what still
//! looks as this program makes it.

use std::path::{Path, PathBuf};

use latchkey_protocol::{ServerId, VolumeId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::bind::enrol::Notes;
use super::target::Target;
use super::{crypttab_line, shares};
use crate::failure::chain;
use crate::files::{self, Files, FilesError};
use crate::server::KeyServer;
use crate::volume::keyslots::{self, KeyslotError, Traces};
use crate::volume::tickets;
use crate::volume::tokens::{self, TokenError};

/// One unfinished change of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Journal {
    /// The UUID in the volume's header, or what stands for it.
    pub uuid: String,
    /// The volume's name at the key servers; none for a token that cannot be read.
    pub volume: Option<VolumeId>,
    /// The key servers that may hold a share of it.
    pub servers: Vec<ServerId>,
    /// Tokens to remove, beside those that carry the volume's name.
    pub tokens: Vec<u32>,
    /// Keyslots that were made, or were about to be.
    pub keyslots: Vec<JournalledKeyslot>,
    /// The backup of the header from before.
    pub backup: Option<PathBuf>,
    /// The envelope file, where the volume has one.
    #[serde(default)]
    pub envelope: Option<PathBuf>,
    /// The line that was added to crypttab, or was about to be.
    #[serde(default)]
    pub crypttab_line: Option<String>,
}

/// A keyslot in a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct JournalledKeyslot {
    /// Its number.
    pub slot: u32,
    /// The salt of its key derivation as it stands in the header, once it exists: no other keyslot has it.
    pub salt: Option<String>,
}

/// What could not be taken back; the journal stays, and running the command again tries again.
#[derive(Debug, thiserror::Error)]
pub enum UndoError {
    /// A token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// A keyslot.
    #[error(transparent)]
    Keyslot(#[from] KeyslotError),
    /// The journal.
    #[error(transparent)]
    Files(#[from] FilesError),
}

impl Journal {
    /// The journal of a volume that nothing has happened to.
    pub fn new(target: &Target) -> Self {
        Self {
            uuid: target.key(),
            volume: None,
            servers: Vec::new(),
            tokens: Vec::new(),
            keyslots: Vec::new(),
            backup: None,
            envelope: None,
            crypttab_line: None,
        }
    }

    /// The journal that an interrupted run left for `target`.
    ///
    /// # Errors
    /// `Read`, `Format`.
    pub fn load(files: &Files, target: &Target) -> Result<Option<Self>, FilesError> {
        load(&path(files, &target.key()))
    }

    /// Writes the journal durably.
    ///
    /// # Errors
    /// `Write`.
    pub fn save(&self, files: &Files) -> Result<(), FilesError> {
        save(files, &path(files, &self.uuid), self)
    }

    /// Forgets the journal: what it names is finished.
    ///
    /// # Errors
    /// `Write`.
    pub fn remove(&self, files: &Files) -> Result<(), FilesError> {
        files::remove(&path(files, &self.uuid))
    }

    /// Takes back what the journal names, and forgets it.
    ///
    /// # Errors
    /// A variant of [`UndoError`]; the journal is still there.
    pub fn undo(
        &self,
        files: &Files,
        target: &Target,
        servers: &[KeyServer],
    ) -> Result<(), UndoError> {
        self.take_back(files, target, servers)?;
        Ok(self.remove(files)?)
    }

    /// Takes back what the journal names: first tokens and envelope file, then the keyslots; then, the header being as
    /// before, its backup and the line of crypttab go, and the key servers are told as far as they can be reached. The journal
    /// stays. Can be repeated.
    ///
    /// # Errors
    /// A variant of [`UndoError`].
    pub fn take_back(
        &self,
        files: &Files,
        target: &Target,
        servers: &[KeyServer],
    ) -> Result<(), UndoError> {
        self.remove_tokens(target)?;
        if let Some(envelope) = self.envelope.as_ref().filter(|path| path.exists()) {
            files::remove(envelope)?;
        }
        self.destroy_keyslots(target)?;
        if let Some(backup) = &self.backup {
            files::remove(backup)?;
        }
        if let Some(line) = &self.crypttab_line {
            crypttab_line::remove(files, line)?;
        }
        if let Some(volume) = self.volume {
            self.retire(volume, servers);
        }
        Ok(())
    }

    fn remove_tokens(&self, target: &Target) -> Result<(), TokenError> {
        let Some(header) = target.luks2_header() else {
            return Ok(());
        };
        for found in tokens::find(header)? {
            let same_volume = found
                .token
                .as_ref()
                .is_ok_and(|token| Some(token.volume) == self.volume);
            if same_volume || self.tokens.contains(&found.id) {
                tokens::remove(header, found.id)?;
            }
        }
        tickets::remove(header, self.volume)
    }

    fn destroy_keyslots(&self, target: &Target) -> Result<(), UndoError> {
        let Some(header) = target.place.luks_header() else {
            return Ok(());
        };
        for journalled in &self.keyslots {
            journalled.destroy(header)?;
        }
        Ok(())
    }

    fn retire(&self, volume: VolumeId, servers: &[KeyServer]) {
        for id in &self.servers {
            let server = servers.iter().find(|server| server.settings.id == *id);
            let told = server.map(|server| shares::retire(server, volume));
            let why = match told {
                Some(Ok(())) => continue,
                Some(Err(error)) => chain(&error),
                None => "this machine has not joined it any more".to_owned(),
            };
            log::warn!(
                "key server {} could not be told that the volume is no longer bound: {why}\n\
                 there, the administrator can run: latchkeyd destroy {volume}",
                id.short()
            );
        }
    }
}

impl Notes for Journal {
    fn backup(&mut self, files: &Files, backup: PathBuf) -> Result<(), FilesError> {
        self.backup = Some(backup);
        self.save(files)
    }

    fn keyslot(&mut self, files: &Files, keyslot: JournalledKeyslot) -> Result<(), FilesError> {
        self.keyslots = vec![keyslot];
        self.save(files)
    }
}

impl JournalledKeyslot {
    /// Keyslot `slot` as it is in the header now.
    pub fn of(traces: Option<&Traces>, slot: u32) -> Self {
        Self {
            slot,
            salt: traces.and_then(|traces| traces.salt.clone()),
        }
    }

    /// Destroys it, if it is in the header that `header` begins with and still the one that was meant.
    ///
    /// # Errors
    /// As [`keyslots::destroy_keyslot`].
    pub fn destroy(&self, header: &Path) -> Result<(), KeyslotError> {
        if self.is(keyslots::traces(header, self.slot)?.as_ref()) {
            keyslots::destroy_keyslot(header, self.slot, Some(self.slot))?;
        }
        Ok(())
    }

    /// Whether the keyslot is in the header and still the one that was meant. Where its salt was not written down
    /// (interrupted in between), it must look as we make them, and no token of anybody may name it.
    fn is(&self, now: Option<&Traces>) -> bool {
        match (now, &self.salt) {
            (None, _) => false,
            (Some(now), Some(_)) => now.salt == self.salt,
            (Some(now), None) => now.cheapest && !now.named,
        }
    }
}

fn path(files: &Files, uuid: &str) -> PathBuf {
    path_of(files, "bind", uuid)
}

/// A command's journal, if it left one.
pub(super) fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FilesError> {
    if !path.exists() {
        return Ok(None);
    }
    let journal =
        serde_json::from_slice(&files::read(path)?).map_err(|error| FilesError::Format {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
    Ok(Some(journal))
}

/// Writes a command's journal durably.
pub(super) fn save(files: &Files, path: &Path, journal: &impl Serialize) -> Result<(), FilesError> {
    files::make_dir(&files.state())?;
    let json = serde_json::to_vec_pretty(journal).expect("a journal is plain text and numbers");
    files::replace(path, &json)
}

/// Where the journal of a command lies.
pub(super) fn path_of(files: &Files, command: &str, uuid: &str) -> PathBuf {
    // The UUID comes from a header that anybody may have written.
    let name: String = uuid
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .collect();
    files.state().join(format!("{command}-{name}.json"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::volume::place::{Kind, Place};

    fn header(kdf: &Value, token: &Value) -> Value {
        json!({ "keyslots": { "1": { "type": "luks2", "kdf": kdf } }, "tokens": { "0": token } })
    }

    #[test]
    fn only_the_keyslot_that_was_meant_is_destroyed() {
        let ours = json!({ "type": "pbkdf2", "iterations": 1000, "salt": "aa" });
        let slow = json!({ "type": "pbkdf2", "iterations": 900_000, "salt": "bb" });
        let argon = json!({ "type": "argon2id", "salt": "cc" });
        let (none, foreign) = (json!(null), json!({ "type": "clevis", "keyslots": ["1"] }));
        let about = |slot, salt: Option<&str>| JournalledKeyslot {
            slot,
            salt: salt.map(str::to_owned),
        };
        for (keyslot, header, expected) in [
            (about(1, Some("aa")), header(&ours, &none), true),
            (about(1, Some("zz")), header(&ours, &none), false),
            (about(1, None), header(&ours, &none), true),
            (about(1, None), header(&slow, &none), false),
            (about(1, None), header(&argon, &none), false),
            (about(1, None), header(&ours, &foreign), false),
            (about(2, None), header(&ours, &none), false),
            (about(2, Some("aa")), header(&ours, &none), false),
        ] {
            let now = Traces::of_luks2(&header, keyslot.slot);
            assert_eq!(
                keyslot.is(now.as_ref()),
                expected,
                "{keyslot:?} in {header}"
            );
        }
    }

    #[test]
    fn a_journal_reads_back_and_stays_in_its_folder() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::under(root.path());
        let target = Target {
            place: Place::attached("/dev/null"),
            device: "/dev/null".into(),
            kind: Kind::Luks2,
            uuid: "../../etc/passwd".to_owned(),
            name: "a".to_owned(),
            entries: Vec::new(),
        };
        let mut journal = Journal::new(&target);
        journal.keyslots.push(JournalledKeyslot {
            slot: 3,
            salt: None,
        });
        journal.save(&files).unwrap();
        assert_eq!(
            Journal::load(&files, &target).unwrap(),
            Some(journal.clone())
        );
        assert!(files.state().join("bind-etcpasswd.json").exists());
        journal.remove(&files).unwrap();
        assert_eq!(Journal::load(&files, &target).unwrap(), None);
    }
}
