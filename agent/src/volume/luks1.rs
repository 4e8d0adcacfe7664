//! LUKS1: a copy of the header, and whether it is still the one that was bound.
//!
//! LUKS1 (on-disk format 1.2.3) has no room for tokens, so its envelope lies in a file. The header is small: all of
//! it, keyslots too, is read once into memory, and what was checked is what libcryptsetup opens.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use latchkey_protocol::encoding::{Bytes, hex};
use latchkey_protocol::envelope::BoundLuks1;
use libcryptsetup_rs::CryptDevice;
use libcryptsetup_rs::consts::vals::EncryptionFormat;

use super::context::{self, CryptError};
use super::gate::{self, GateError};
use super::header::{self, HeaderError};

/// `LUKS_NUMKEYS`.
pub(crate) const KEYSLOTS: u32 = 8;
/// Bytes of `luks_phdr`.
const HEADER: usize = 592;
/// Byte of the first `luks_phdr` keyslot, and bytes of each.
const FIRST_SLOT: usize = 208;
const SLOT: usize = 48;
const ACTIVE: u32 = 0x00ac_71f3;
const SECTOR: u64 = 512;
const STRIPES: u32 = 4000;
/// Most bytes of a header with its keyslots: cryptsetup makes 2 MiB.
const LIMIT: u64 = 32 << 20;
/// As for LUKS2: seconds anywhere.
const DIGEST_ITERATIONS_LIMIT: u32 = 10_000_000;
/// Most bytes of a volume key.
const KEY_SIZES: std::ops::RangeInclusive<u32> = 1..=512;

/// A LUKS1 header in memory.
#[derive(Debug)]
pub struct Luks1Copy {
    copy: File,
    data: PathBuf,
    facts: Luks1Facts,
}

/// What a LUKS1 header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Luks1Facts {
    /// In dm-crypt's spelling.
    pub cipher: String,
    /// Of every key derivation and splitting.
    pub hash: String,
    /// Byte at which the data begins.
    pub offset: u64,
    /// Bytes of the volume key.
    pub key_size: u32,
    /// What the volume key's digest costs.
    pub digest_iterations: u32,
    /// Lower case.
    pub uuid: String,
    /// All eight.
    pub keyslots: Vec<Luks1Keyslot>,
}

/// A keyslot of a LUKS1 header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Luks1Keyslot {
    /// Whether it holds a key.
    pub active: bool,
    /// PBKDF2's.
    pub iterations: u32,
    /// PBKDF2's, in hexadecimal: no two keyslots have the same.
    pub salt: String,
    /// Byte of the header at which its area begins.
    pub offset: u64,
    /// Of the anti-forensic splitting.
    pub stripes: u32,
}

impl Luks1Copy {
    /// Copies the header on `device`; the data lies on `data`, which may be the same.
    ///
    /// # Errors
    /// `NotLuks1`, `Read`, `Memory`.
    pub fn read(device: &Path, data: &Path) -> Result<Self, HeaderError> {
        let unreadable = |source| HeaderError::Read {
            device: device.to_owned(),
            source,
        };
        let none = || HeaderError::NotLuks1(device.to_owned());
        let source = File::open(device).map_err(unreadable)?;
        let mut bytes = vec![0; HEADER];
        match source.read_exact_at(&mut bytes, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(none()),
            read => read.map_err(unreadable)?,
        }
        let facts = Luks1Facts::parse(&bytes).ok_or_else(none)?;
        let length = facts.length().filter(|length| *length <= LIMIT);
        let length = length.and_then(|length| usize::try_from(length).ok());
        bytes.resize(length.ok_or_else(none)?, 0);
        source
            .read_exact_at(&mut bytes[HEADER..], HEADER as u64)
            .map_err(unreadable)?;
        let copy = header::anonymous_file(&bytes).map_err(HeaderError::Memory)?;
        header::seal(&copy)?;
        Ok(Self {
            copy,
            data: data.to_owned(),
            facts,
        })
    }

    /// What it says.
    pub fn facts(&self) -> &Luks1Facts {
        &self.facts
    }

    /// The device with the data.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// A context with this copy loaded and the device for the data.
    ///
    /// # Errors
    /// What libcryptsetup says.
    pub(crate) fn context(&self) -> Result<CryptDevice, CryptError> {
        let mut context = context::detached(&header::path_of(&self.copy), &self.data)?;
        context::load(&mut context, EncryptionFormat::Luks1)?;
        Ok(context)
    }
}

impl Luks1Facts {
    /// Reads `luks_phdr`; `None` if it is none.
    fn parse(bytes: &[u8]) -> Option<Self> {
        if !bytes.starts_with(header::MAGIC_LUKS1) {
            return None;
        }
        let number = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let text = |from: usize, length: usize| {
            let field = bytes.get(from..from + length)?;
            let end = field.iter().position(|byte| *byte == 0)?;
            let text = std::str::from_utf8(&field[..end]).ok()?;
            text.bytes().all(|c| c.is_ascii_graphic()).then_some(text)
        };
        let keyslot = |slot: u32| {
            let at = FIRST_SLOT + SLOT * usize::try_from(slot).ok()?;
            Some(Luks1Keyslot {
                active: number(at)? == ACTIVE,
                iterations: number(at + 4)?,
                salt: hex(bytes.get(at + 8..at + 40)?),
                offset: u64::from(number(at + 40)?) * SECTOR,
                stripes: number(at + 44)?,
            })
        };
        let key_size = number(108).filter(|size| KEY_SIZES.contains(size))?;
        Some(Self {
            cipher: format!("{}-{}", text(8, 32)?, text(40, 32)?),
            hash: text(72, 32)?.to_owned(),
            offset: u64::from(number(104)?) * SECTOR,
            key_size,
            digest_iterations: number(164)?,
            uuid: text(168, 40)?.to_lowercase(),
            keyslots: (0..KEYSLOTS).map(keyslot).collect::<Option<_>>()?,
        })
    }

    /// The numbers of the keyslots that hold a key.
    pub fn active(&self) -> impl Iterator<Item = u32> {
        (0..KEYSLOTS)
            .zip(&self.keyslots)
            .filter(|(_, keyslot)| keyslot.active)
            .map(|(slot, _)| slot)
    }

    /// Keyslot `slot`, if it holds a key.
    pub fn keyslot(&self, slot: u32) -> Option<&Luks1Keyslot> {
        let index = usize::try_from(slot).ok()?;
        self.keyslots.get(index).filter(|keyslot| keyslot.active)
    }

    /// Bytes up to the end of the last keyslot's area.
    fn length(&self) -> Option<u64> {
        let ends = self.keyslots.iter().map(|keyslot| self.end(keyslot));
        ends.collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    fn end(&self, keyslot: &Luks1Keyslot) -> Option<u64> {
        let area = u64::from(self.key_size) * u64::from(keyslot.stripes);
        keyslot
            .offset
            .checked_add(area.next_multiple_of(SECTOR))
            .map(|end| end.max(HEADER as u64))
    }
}

/// Checks a header against what was bound.
///
/// # Errors
/// The first check that failed.
pub fn check(facts: &Luks1Facts, uuid: &str, bound: &BoundLuks1) -> Result<(), GateError> {
    if facts.uuid != uuid {
        return Err(GateError::Uuid {
            found: facts.uuid.clone(),
            bound: uuid.to_owned(),
        });
    }
    check_fit(facts)?;
    if facts.cipher != bound.cipher {
        return Err(GateError::Cipher {
            found: facts.cipher.clone(),
            bound: bound.cipher.clone(),
        });
    }
    if facts.hash != bound.hash {
        return Err(GateError::Hash {
            place: "header",
            hash: facts.hash.clone(),
        });
    }
    if facts.key_size != bound.key_size {
        return Err(GateError::KeySize {
            found: facts.key_size.into(),
            bound: bound.key_size,
        });
    }
    if facts.offset != bound.offset {
        return Err(GateError::Offset {
            found: facts.offset,
            bound: bound.offset,
        });
    }
    if facts.digest_iterations != bound.digest_iterations {
        return Err(GateError::DigestIterations(facts.digest_iterations.into()));
    }
    let keyslot = facts
        .keyslot(bound.keyslot)
        .ok_or(GateError::NoKeyslot(bound.keyslot))?;
    if keyslot.iterations > bound.iterations {
        return Err(GateError::Iterations {
            found: keyslot.iterations.into(),
            bound: bound.iterations,
        });
    }
    if keyslot.stripes != STRIPES {
        return Err(GateError::AntiForensic);
    }
    let inside = facts
        .end(keyslot)
        .is_some_and(|end| keyslot.offset >= HEADER as u64 && end <= facts.offset);
    if inside { Ok(()) } else { Err(GateError::Area) }
}

/// Whether a volume with this header could be bound.
///
/// # Errors
/// The first check that would refuse automatic opening.
pub fn check_fit(facts: &Luks1Facts) -> Result<(), GateError> {
    if gate::is_null(&facts.cipher) {
        return Err(GateError::NullCipher);
    }
    if facts.digest_iterations > DIGEST_ITERATIONS_LIMIT {
        return Err(GateError::DigestIterations(facts.digest_iterations.into()));
    }
    Ok(())
}

/// What is to be bound of a header whose keyslot `slot` holds the machine secret.
///
/// # Errors
/// `NoKeyslot`; whether the facts pass, [`check`] says.
pub fn bound_facts(
    facts: &Luks1Facts,
    slot: u32,
    volume_key_id: Bytes<32>,
) -> Result<BoundLuks1, GateError> {
    let keyslot = facts.keyslot(slot).ok_or(GateError::NoKeyslot(slot))?;
    Ok(BoundLuks1 {
        keyslot: slot,
        iterations: keyslot.iterations,
        cipher: facts.cipher.clone(),
        hash: facts.hash.clone(),
        key_size: facts.key_size,
        offset: facts.offset,
        digest_iterations: facts.digest_iterations,
        volume_key_id,
    })
}
