//! LUKS volumes in files, for tests: they need neither root nor device-mapper.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use latchkey_protocol::envelope::{Bound, BoundLuks2, MachineSecret, Released, Token, TokenKind};
use latchkey_protocol::ids::{Generation, ServerId, VolumeId};
use latchkey_protocol::release::Share;
use latchkey_protocol::wire::Version;
use latchkey_secret::{Secret, SecretBytes};
use libcryptsetup_rs::consts::flags::{CryptPbkdf, CryptVolumeKey};
use libcryptsetup_rs::consts::vals::{CryptKdf, EncryptionFormat};
use libcryptsetup_rs::{CryptPbkdfType, Either};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::gate::Position;
use super::place::Place;
use super::{context, keyslots, tokens};

/// What a person types at the volumes below.
pub(crate) const PASSPHRASE: &str = "correct horse";

/// Bytes of each of the two metadata areas that libcryptsetup makes, of the binary header in front of the JSON, and
/// where in it the checksum stands (LUKS2 on-disk format, 2.1).
const METADATA: usize = 0x4000;
const BINARY: usize = 4096;
const CHECKSUM: std::ops::Range<usize> = 448..512;

/// A file with a LUKS header; keyslot 0 opens with [`PASSPHRASE`].
pub(crate) struct Volume {
    path: PathBuf,
    _file: Option<tempfile::NamedTempFile>,
}

/// A volume that was bound, and all that opens it.
pub(crate) struct BoundVolume {
    pub(crate) volume: Volume,
    pub(crate) secret: MachineSecret,
    pub(crate) share: Share,
    pub(crate) token: Token,
    pub(crate) token_id: u32,
}

impl Volume {
    pub(crate) fn luks2() -> Self {
        Self::in_file(EncryptionFormat::Luks2)
    }

    /// Overwrites the block device at `path`.
    pub(crate) fn luks2_on(path: &Path) -> Self {
        Self::format(EncryptionFormat::Luks2, path);
        Self {
            path: path.to_owned(),
            _file: None,
        }
    }

    pub(crate) fn luks1() -> Self {
        Self::in_file(EncryptionFormat::Luks1)
    }

    /// A header in a file of its own for the data on `data`.
    pub(crate) fn detached_luks2(data: &Path) -> Self {
        let volume = Self::empty();
        let header = volume.path().to_str().unwrap();
        let cheap = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
        let arguments = [&["--type", "luks2", "--header", header][..], &cheap].concat();
        Self::run_luks_format(&arguments, data).unwrap();
        volume
    }

    /// With another cipher and another length of the volume key, in bytes.
    pub(crate) fn luks2_encrypted_by(cipher: (&str, &str), key: usize) -> Self {
        let volume = Self::empty();
        Self::format_with(EncryptionFormat::Luks2, volume.path(), cipher, key);
        volume
    }

    /// As the host's `cryptsetup luksFormat` makes it; else what that said.
    pub(crate) fn by_cryptsetup(arguments: &[&str]) -> Result<Self, String> {
        let volume = Self::empty();
        Self::run_luks_format(arguments, volume.path())?;
        Ok(volume)
    }

    /// As [`Volume::by_cryptsetup`], on the block device at `path`, with a cheap key derivation.
    pub(crate) fn by_cryptsetup_on(path: &Path, arguments: &[&str]) -> Result<Self, String> {
        let cheap = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
        Self::run_luks_format(&[arguments, &cheap].concat(), path)?;
        Ok(Self {
            path: path.to_owned(),
            _file: None,
        })
    }

    fn run_luks_format(arguments: &[&str], device: &Path) -> Result<(), String> {
        let mut key = tempfile::NamedTempFile::new().unwrap();
        key.write_all(PASSPHRASE.as_bytes()).unwrap();
        let output = Command::new("cryptsetup")
            .args(["luksFormat", "--batch-mode", "--key-file"])
            .arg(key.path())
            .args(arguments)
            .arg(device)
            .output()
            .unwrap();
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn place(&self) -> Place {
        Place::attached(self.path())
    }

    /// Adds a keyslot as a person would.
    pub(crate) fn add_passphrase(&self, new: &str) -> u32 {
        let mut context = context::luks2(self.path()).unwrap();
        context.settings_handle().set_pbkdf_type(&cheap()).unwrap();
        context
            .keyslot_handle()
            .add_by_passphrase(None, PASSPHRASE.as_bytes(), new.as_bytes())
            .unwrap()
    }

    pub(crate) fn bind(self) -> BoundVolume {
        let secret = MachineSecret::random().unwrap();
        let slot = keyslots::free_keyslot(self.path()).unwrap();
        keyslots::add_keyslot(self.path(), slot, &passphrase(PASSPHRASE), &secret).unwrap();
        let facts = keyslots::bound_facts(self.path(), Position::Attached, slot, &secret).unwrap();
        let (token, share) = sealed(facts.uuid, facts.bound, &secret);
        let token_id = tokens::add(self.path(), &token).unwrap();
        BoundVolume {
            volume: self,
            secret,
            share,
            token,
            token_id,
        }
    }

    /// Writes a header as an attacker would: with `edit` applied to its JSON, checksums made anew.
    pub(crate) fn forge(&self, edit: impl FnOnce(&mut Value)) {
        let mut json: Value = serde_json::from_str(&self.json()).unwrap();
        edit(&mut json);
        self.forge_copies(&json.to_string(), |_, _| {});
    }

    /// The JSON of the primary header, as it is written.
    pub(crate) fn json(&self) -> String {
        let header = self.header(0);
        let json = header[BINARY..].split(|byte| *byte == 0).next().unwrap();
        String::from_utf8(json.to_vec()).unwrap()
    }

    /// Writes both copies of the header with another JSON; `edit` gets each copy's number and binary header before
    /// its checksum is made.
    pub(crate) fn forge_copies(&self, json: &str, edit: impl Fn(usize, &mut [u8])) {
        let file = File::options().write(true).open(self.path()).unwrap();
        for copy in [0, 1] {
            let mut header = self.header(copy);
            header[BINARY..].fill(0);
            header[BINARY..BINARY + json.len()].copy_from_slice(json.as_bytes());
            header[CHECKSUM].fill(0);
            edit(copy, &mut header);
            let checksum = Sha256::digest(&header);
            header[CHECKSUM.start..CHECKSUM.start + 32].copy_from_slice(&checksum);
            file.write_all_at(&header, (copy * METADATA) as u64)
                .unwrap();
        }
    }

    /// Both metadata areas.
    pub(crate) fn metadata(&self) -> Vec<u8> {
        [self.header(0), self.header(1)].concat()
    }

    /// Writes back what [`Volume::metadata`] gave.
    pub(crate) fn restore(&self, metadata: &[u8]) {
        let file = File::options().write(true).open(self.path()).unwrap();
        file.write_all_at(metadata, 0).unwrap();
    }

    fn header(&self, copy: usize) -> Vec<u8> {
        let mut header = vec![0; METADATA];
        let file = File::open(self.path()).unwrap();
        file.read_exact_at(&mut header, (copy * METADATA) as u64)
            .unwrap();
        header
    }

    /// Overwrites bytes of the device.
    pub(crate) fn wipe(&self, offset: u64, length: usize) {
        let file = File::options().write(true).open(self.path()).unwrap();
        file.write_all_at(&vec![0; length], offset).unwrap();
    }

    fn in_file(format: EncryptionFormat) -> Self {
        let volume = Self::empty();
        Self::format(format, volume.path());
        volume
    }

    fn empty() -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(20 << 20).unwrap();
        Self {
            path: file.path().to_owned(),
            _file: Some(file),
        }
    }

    fn format(format: EncryptionFormat, path: &Path) {
        Self::format_with(format, path, ("aes", "xts-plain64"), 64);
    }

    fn format_with(format: EncryptionFormat, path: &Path, cipher: (&str, &str), key: usize) {
        let mut context = context::attached(path).unwrap();
        context.settings_handle().set_pbkdf_type(&cheap()).unwrap();
        context
            .context_handle()
            .format::<()>(format, cipher, None, Either::Right(key), None)
            .unwrap();
        context
            .keyslot_handle()
            .add_by_key(None, None, PASSPHRASE.as_bytes(), CryptVolumeKey::empty())
            .unwrap();
    }
}

impl BoundVolume {
    pub(crate) fn luks2_facts(&self) -> &BoundLuks2 {
        match &self.token.bound {
            Bound::Luks2(facts) => facts,
            other => panic!("{other:?}"),
        }
    }
}

/// A token with one envelope for `secret`, and the share that opens it.
pub(crate) fn sealed(uuid: String, bound: Bound, secret: &MachineSecret) -> (Token, Share) {
    let mut token = Token {
        kind: TokenKind::Latchkey,
        keyslots: bound.keyslot().iter().map(u32::to_string).collect(),
        version: Version::default(),
        volume: VolumeId::random().unwrap(),
        uuid,
        bound,
        envelopes: vec![],
    };
    let share = Share(Secret::random().unwrap());
    let released = Released {
        share: &share,
        volume: token.volume,
        generation: Generation(1),
    };
    let server = ServerId::of_ca(b"a key server");
    let envelope = token.seal(server, released, secret).unwrap();
    token.envelopes.push(envelope);
    (token, share)
}

pub(crate) fn passphrase(text: &str) -> SecretBytes {
    let mut secret = SecretBytes::with_capacity(text.len()).unwrap();
    secret.push(text.as_bytes()).unwrap();
    secret
}

pub(crate) fn cheap() -> CryptPbkdfType {
    CryptPbkdfType {
        type_: CryptKdf::Pbkdf2,
        hash: Some("sha256".to_owned()),
        time_ms: 0,
        iterations: 1000,
        max_memory_kb: 0,
        parallel_threads: 0,
        flags: CryptPbkdf::NO_BENCHMARK,
    }
}
