//! What `latchkey bind --json` prints: one document, for programs that set machines up.
//!
//! From when the volume is bound until the boot knows of it, the document lies beside the journals too: a run that finds it
//! does what is left to do, and prints it.

use std::io::{self, Write};
use std::path::PathBuf;

use latchkey_protocol::envelope::Token;
use latchkey_protocol::wire::OpenedBy;
use latchkey_protocol::{ClientName, ServerId, VolumeId};
use serde::{Deserialize, Serialize};

use crate::commands::journal;
use crate::commands::target::Target;
use crate::files::{self, Files, FilesError};

/// A volume that was bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// The mapping.
    pub name: String,
    pub device: PathBuf,
    /// Such as `LUKS2`.
    pub kind: String,
    /// In the header; of a plain volume that of its binding.
    pub uuid: String,
    /// Its name at the key servers.
    pub volume: VolumeId,
    /// The keyslot that holds the machine secret; a plain volume has none.
    pub keyslot: Option<u32>,
    /// Which key asks for it.
    pub opened_by: OpenedBy,
    pub servers: Vec<Server>,
    /// The header from before.
    pub header_backup: Option<PathBuf>,
    /// What was written into crypttab, if it was.
    pub crypttab_line: Option<String>,
}

/// What a key server knows of the binding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    pub id: ServerId,
    pub client: ClientName,
    pub policy: String,
}

impl Report {
    /// Of the binding `token` of `target`, which has neither backup nor a new line of crypttab so far.
    pub fn of(target: &Target, token: &Token, opened_by: OpenedBy, servers: Vec<Server>) -> Self {
        Self {
            name: target.name.clone(),
            device: target.device.clone(),
            kind: target.kind.name().to_owned(),
            uuid: token.uuid.clone(),
            volume: token.volume,
            keyslot: token.bound.keyslot(),
            opened_by,
            servers,
            header_backup: None,
            crypttab_line: None,
        }
    }

    /// The one that an unfinished run left for `target`; the volume may have been unbound since.
    ///
    /// # Errors
    /// `Read`, `Format`.
    pub fn read(files: &Files, target: &Target) -> Result<Option<Self>, FilesError> {
        journal::load(&path(files, target))
    }

    /// Writes it down, durably.
    ///
    /// # Errors
    /// `Write`.
    pub fn save(&self, files: &Files, target: &Target) -> Result<(), FilesError> {
        journal::save(files, &path(files, target), self)
    }

    /// Prints it to stdout.
    pub fn print(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        serde_json::to_writer_pretty(&mut out, self)?;
        writeln!(out)
    }
}

/// Where the report of an unfinished binding lies.
pub fn path(files: &Files, target: &Target) -> PathBuf {
    journal::path_of(files, "bound", &target.key())
}

/// Forgets it: all is done, or undone. There need not be any.
///
/// # Errors
/// `Write`.
pub fn remove(files: &Files, target: &Target) -> Result<(), FilesError> {
    files::remove(&path(files, target))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use latchkey_protocol::encoding::Bytes;
    use latchkey_protocol::envelope::{Bound, PlainSecret, TokenKind};
    use latchkey_protocol::wire::Version;

    use super::*;
    use crate::volume::crypttab::Options;
    use crate::volume::place::{Kind, Place};
    use crate::volume::plain::Settings;

    #[test]
    fn a_plain_volume_is_reported_with_the_uuid_of_its_binding() {
        let options = "plain,cipher=aes-xts-plain64,hash=sha512,size=512";
        let options = Options::parse(options);
        let target = Target {
            place: Place::of(&options, "/dev/vdb", Path::new("/")),
            device: "/dev/vdb".into(),
            kind: Kind::Plain,
            uuid: String::new(),
            name: "data".to_owned(),
            entries: Vec::new(),
        };
        let settings = Settings::of(&options.plain).unwrap();
        let bound = settings.bound(PlainSecret::Passphrase, Bytes([7; 32]));
        let token = Token {
            kind: TokenKind::Latchkey,
            keyslots: Vec::new(),
            version: Version::default(),
            volume: VolumeId::random().unwrap(),
            uuid: VolumeId::random().unwrap().to_string(),
            bound: Bound::Plain(bound),
            envelopes: Vec::new(),
        };
        let report = Report::of(&target, &token, OpenedBy::BootKey, Vec::new());
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["uuid"], token.uuid.as_str());
        assert_eq!(json["kind"], "plain dm-crypt");
        assert_eq!(json["keyslot"], serde_json::Value::Null);
        let read: Report = serde_json::from_value(json).unwrap();
        assert_eq!(read, report);
    }
}
