//! A copy of a LUKS2 header, so that what was checked is what is opened.
//!
//! Somebody who controls the storage may answer each read differently. So every byte of the header that is used is read
//! once, into an anonymous file in memory; libcryptsetup gets that file as a detached header and the device for the data
//! only. The data segment is never read, and keyslot areas only when they are asked for.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use libcryptsetup_rs::CryptDevice;
use libcryptsetup_rs::consts::vals::EncryptionFormat;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::context::{self, CryptError};

/// Sizes that a LUKS2 metadata area may have (LUKS2 on-disk format, 2.1): the secondary header begins there.
const METADATA_SIZES: [u64; 9] = [
    0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000,
];
/// Bytes of the binary header in front of each JSON area.
const BINARY: usize = 4096;
/// Where the name of the checksum's hash, the UUID and the checksum stand in a binary header.
const CHECKSUM_NAME: Range<usize> = 72..104;
const UUID: Range<usize> = 168..208;
const CHECKSUM: Range<usize> = 448..512;
/// The largest header that libcryptsetup makes: two metadata areas of 4 MiB and 128 MiB of keyslots. The copy
/// has that length and is sparse.
const HEADER_LIMIT: u64 = 136 << 20;
/// Most bytes of one keyslot's area: 128 bytes of key, with integrity's, in 4000 stripes, with room.
const AREA_LIMIT: u64 = 1 << 20;

pub(super) const MAGIC_PRIMARY: &[u8; 8] = b"LUKS\xba\xbe\x00\x02";
pub(super) const MAGIC_LUKS1: &[u8; 8] = b"LUKS\xba\xbe\x00\x01";
const MAGIC_SECONDARY: &[u8; 8] = b"SKUL\xba\xbe\x00\x02";

/// A LUKS2 header in memory, and the device that it was read from.
#[derive(Debug)]
pub struct HeaderCopy {
    copy: File,
    source: File,
    device: PathBuf,
    data: PathBuf,
    json: Value,
    uuid: String,
    /// What the copy says since it was written to.
    rewritten: Option<Value>,
}

/// The header could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// Opening or reading the device failed.
    #[error("failed to read the header of '{device}'")]
    Read {
        /// The device.
        device: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no LUKS2 header.
    #[error("'{0}' has no LUKS2 header")]
    NotLuks2(PathBuf),
    /// There is no LUKS1 header.
    #[error("'{0}' has no LUKS1 header")]
    NotLuks1(PathBuf),
    /// Only the second copy of a LUKS2 header is left.
    #[error(
        "something else was written over the beginning of the LUKS2 header of '{0}', so nothing is written to it\n\
         if the disk was not formatted anew, 'cryptsetup repair' brings the header back from its second copy"
    )]
    NoPrimary(PathBuf),
    /// There is no memory for the copy.
    #[error("failed to copy the header into memory")]
    Memory(#[source] io::Error),
    /// libcryptsetup refuses the header.
    #[error("the LUKS header of '{device}' is damaged")]
    Damaged {
        /// The device.
        device: PathBuf,
        /// What libcryptsetup said.
        #[source]
        source: CryptError,
    },
    /// The keyslot does not exist, or its area is not where a keyslot's area may lie.
    #[error("keyslot {slot} of '{device}' has no usable area")]
    Area {
        /// The device.
        device: PathBuf,
        /// The keyslot.
        slot: u32,
    },
}

impl HeaderCopy {
    /// Copies both metadata areas of `device`, and no keyslot yet.
    ///
    /// # Errors
    /// `Read`, `NotLuks2`, `Memory`, `Damaged`.
    pub fn read(device: &Path) -> Result<Self, HeaderError> {
        Self::read_detached(device, device)
    }

    /// As [`HeaderCopy::read`], where the data lies on another device than the header.
    ///
    /// # Errors
    /// As [`HeaderCopy::read`].
    pub fn read_detached(device: &Path, data: &Path) -> Result<Self, HeaderError> {
        let unreadable = |source| HeaderError::Read {
            device: device.to_owned(),
            source,
        };
        let source = File::open(device).map_err(unreadable)?;
        let metadata = read_metadata(|area, at| source.read_exact_at(area, at))
            .map_err(unreadable)?
            .ok_or_else(|| HeaderError::NotLuks2(device.to_owned()))?;
        let copy = anonymous_file(&metadata).map_err(HeaderError::Memory)?;
        let mut header = Self {
            copy,
            source,
            device: device.to_owned(),
            data: data.to_owned(),
            json: Value::Null,
            uuid: String::new(),
            rewritten: None,
        };
        let damaged = |source| HeaderError::Damaged {
            device: device.to_owned(),
            source,
        };
        let mut context = header.context().map_err(damaged)?;
        // What libcryptsetup made of the JSON, not the bytes: two parsers could understand them differently.
        header.json = context
            .status_handle()
            .dump_json()
            .map_err(|error| damaged(error.into()))?;
        header.uuid = context::uuid(&mut context).map_err(damaged)?;
        Ok(header)
    }

    /// Copies the area of keyslot `slot`, once, from where the JSON says it lies.
    ///
    /// # Errors
    /// `Area` if there is no such keyslot or its area leaves the keyslots' region; `Read`, `Memory`.
    pub fn copy_keyslot(&self, slot: u32) -> Result<(), HeaderError> {
        let (offset, size) = self.area(slot).ok_or_else(|| HeaderError::Area {
            device: self.device.clone(),
            slot,
        })?;
        let length = usize::try_from(size).map_err(|_| HeaderError::Area {
            device: self.device.clone(),
            slot,
        })?;
        let mut area = vec![0; length];
        self.source
            .read_exact_at(&mut area, offset)
            .map_err(|source| HeaderError::Read {
                device: self.device.clone(),
                source,
            })?;
        self.copy
            .write_all_at(&area, offset)
            .map_err(HeaderError::Memory)
    }

    /// Puts `digest` in the place of the one that keyslot `slot` has in the copy, for the contexts that are made from here on.
    ///
    /// # Errors
    /// `Memory`.
    pub fn replace_digest(&mut self, slot: u32, digest: &Value) -> Result<(), HeaderError> {
        let mut json = self.json.clone();
        let slot = Value::from(slot.to_string());
        let of_slot = |digest: &&mut Value| {
            let slots = digest["keyslots"].as_array();
            slots.is_some_and(|slots| slots.contains(&slot))
        };
        let digests = json["digests"].as_object_mut();
        let mut digests = digests.into_iter().flat_map(|all| all.values_mut());
        if let (Some(old), Some(new)) = (digests.find(of_slot), digest.as_object()) {
            for (field, value) in new {
                old[field] = value.clone();
            }
        }
        self.write(&json).map_err(HeaderError::Memory)?;
        self.rewritten = Some(json);
        Ok(())
    }

    /// Writes both copies of the header anew, with `json`. libcryptsetup has made them alike when it read them.
    fn write(&self, json: &Value) -> io::Result<()> {
        // There is a NUL behind it.
        let text = [&serde_json::to_vec(json)?[..], &[0]].concat();
        let mut binary = vec![0; BINARY];
        self.copy.read_exact_at(&mut binary, 0)?;
        let size = primary_size(&binary).ok_or(io::ErrorKind::InvalidData)?;
        for start in [0, size] {
            let mut copy = vec![0; usize::try_from(size).map_err(io::Error::other)?];
            self.copy.read_exact_at(&mut copy[..BINARY], start)?;
            let room = copy[BINARY..].get_mut(..text.len());
            room.ok_or(io::ErrorKind::StorageFull)?
                .copy_from_slice(&text);
            let checksum = checksum(&copy);
            copy[CHECKSUM.start..][..checksum.len()].copy_from_slice(&checksum);
            self.copy.write_all_at(&copy, start)?;
        }
        Ok(())
    }

    /// Makes the copy unchangeable, for this process too (memfd_create(2), F_ADD_SEALS).
    ///
    /// # Errors
    /// `Memory`.
    pub fn seal(&self) -> Result<(), HeaderError> {
        seal(&self.copy)
    }

    /// The header's JSON as libcryptsetup understood it.
    pub fn json(&self) -> &Value {
        &self.json
    }

    /// The UUID in the binary header, lower case with hyphens.
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// The device that the header was read from.
    pub fn device(&self) -> &Path {
        &self.device
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
        let mut context = context::detached(&path_of(&self.copy), &self.data)?;
        context::load(&mut context, EncryptionFormat::Luks2)?;
        if let Some(written) = &self.rewritten {
            let read = context.status_handle().dump_json()?;
            if read != *written || context::uuid(&mut context)? != self.uuid {
                return Err(CryptError::of_two_headers());
            }
        }
        Ok(context)
    }

    /// Offset and size of a keyslot's area, if it lies within the region for keyslots.
    fn area(&self, slot: u32) -> Option<(u64, u64)> {
        let area = &self.json["keyslots"][slot.to_string()]["area"];
        let number = |value: &Value| value.as_str()?.parse::<u64>().ok();
        let (offset, size) = (number(&area["offset"])?, number(&area["size"])?);
        let metadata = number(&self.json["config"]["json_size"])?.checked_add(BINARY as u64)?;
        let start = metadata.checked_mul(2)?;
        let end = start
            .checked_add(number(&self.json["config"]["keyslots_size"])?)?
            .min(HEADER_LIMIT);
        let inside = offset >= start && offset.checked_add(size)? <= end;
        (inside && (1..=AREA_LIMIT).contains(&size)).then_some((offset, size))
    }
}

/// Refuses a device that does not begin with its LUKS2 header.
///
/// A context of libcryptsetup on the device itself writes the first copy anew from the second as soon as it is loaded.
/// That is right after a power cut in the middle of a write, but the second copy may be all that is left of a volume that
/// something else was written over.
///
/// # Errors
/// `Read`, `NoPrimary`.
pub fn require_primary(device: &Path) -> Result<(), HeaderError> {
    let unreadable = |source| HeaderError::Read {
        device: device.to_owned(),
        source,
    };
    let none = || HeaderError::NoPrimary(device.to_owned());
    let source = File::open(device).map_err(unreadable)?;
    let mut copies = vec![0; BINARY];
    source.read_exact_at(&mut copies, 0).map_err(unreadable)?;
    let size = primary_size(&copies).ok_or_else(none)?;
    read_rest(&source, &mut copies, 2 * size).map_err(unreadable)?;
    let (primary, secondary) = copies.split_at(copies.len() / 2);
    if is_whole(primary) || is_torn(primary, secondary) {
        Ok(())
    } else {
        Err(none())
    }
}

/// Whether a copy has the checksum that is written in it. libcryptsetup makes no other than SHA-256.
fn is_whole(copy: &[u8]) -> bool {
    copy[CHECKSUM_NAME].starts_with(b"sha256\0") && copy[CHECKSUM].starts_with(&checksum(copy))
}

fn checksum(copy: &[u8]) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update(&copy[..CHECKSUM.start]);
    digest.update([0; CHECKSUM.end - CHECKSUM.start]);
    digest.update(&copy[CHECKSUM.end..]);
    digest.finalize().into()
}

/// Whether a first copy is a mixture of two writes of the header that the second copy is of, with nothing foreign in it:
/// the same UUID, zeros where the binary header has them, and text or zeros where the JSON stands.
fn is_torn(primary: &[u8], secondary: &[u8]) -> bool {
    let is_text = |byte: &u8| matches!(*byte, 0 | b' '..=b'~');
    secondary.starts_with(MAGIC_SECONDARY)
        && primary[UUID] == secondary[UUID]
        && primary[CHECKSUM.end..BINARY].iter().all(|byte| *byte == 0)
        && primary[BINARY..].iter().all(is_text)
}

/// The size of one metadata area, if the primary header is one of LUKS2.
fn primary_size(binary: &[u8]) -> Option<u64> {
    let size = u64::from_be_bytes(binary.get(8..16)?.try_into().ok()?);
    (binary.starts_with(MAGIC_PRIMARY) && METADATA_SIZES.contains(&size)).then_some(size)
}

/// Both metadata areas; `None` if there is no LUKS2 header. One area that the disk cannot read is zeros, as if something had
/// been written over it: libcryptsetup takes the other.
fn read_metadata(read: impl Fn(&mut [u8], u64) -> io::Result<()>) -> io::Result<Option<Vec<u8>>> {
    let mut binary = vec![0; BINARY];
    let broken = unless_broken(read(&mut binary, 0))?;
    // A reformatted device may still hold the second copy of the LUKS2 header that it had before.
    if binary.starts_with(MAGIC_LUKS1) {
        return Ok(None);
    }
    let size = match primary_size(&binary) {
        Some(size) => Some(size),
        None => size_by_secondary(&read)?,
    };
    let Some(size) = size else {
        return broken.map_or(Ok(None), Err);
    };
    let half = usize::try_from(size).map_err(io::Error::other)?;
    let mut metadata = vec![0; 2 * half];
    let (primary, secondary) = metadata.split_at_mut(half);
    let (start, rest) = primary.split_at_mut(BINARY);
    start.copy_from_slice(&binary);
    let first = match broken {
        None => unless_broken(read(rest, BINARY as u64))?,
        broken => broken,
    };
    let second = unless_broken(read(secondary, size))?;
    match (first, second) {
        // What lies second alone may be left of another time, with LUKS1 in front of it that cannot be read.
        (Some(_), None) if is_whole(secondary) => primary.fill(0),
        (Some(error), _) => return Err(error),
        (None, Some(_)) => secondary.fill(0),
        (None, None) => {}
    }
    Ok(Some(metadata))
}

/// The size of one area, of which only the second begins as it should: it lies at one of the known places.
fn size_by_secondary(read: impl Fn(&mut [u8], u64) -> io::Result<()>) -> io::Result<Option<u64>> {
    let mut binary = vec![0; BINARY];
    for size in METADATA_SIZES {
        match unless_broken(read(&mut binary, size)) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            result => match result? {
                None if binary.starts_with(MAGIC_SECONDARY) => return Ok(Some(size)),
                _ => {}
            },
        }
    }
    Ok(None)
}

/// Tells what the disk could not read from a file that ends.
fn unless_broken(read: io::Result<()>) -> io::Result<Option<io::Error>> {
    match read {
        Ok(()) => Ok(None),
        Err(error) if error.raw_os_error().is_some() => Ok(Some(error)),
        Err(error) => Err(error),
    }
}

/// Reads from where `metadata` ends to `length`.
fn read_rest(source: &File, metadata: &mut Vec<u8>, length: u64) -> io::Result<()> {
    let start = metadata.len();
    let length = usize::try_from(length).map_err(io::Error::other)?;
    metadata.resize(length.max(start), 0);
    source.read_exact_at(&mut metadata[start..], start as u64)
}

pub(super) fn seal(copy: &File) -> Result<(), HeaderError> {
    let seals = SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_SEAL;
    fcntl(copy, FcntlArg::F_ADD_SEALS(seals))
        .map(drop)
        .map_err(|errno| HeaderError::Memory(errno.into()))
}

/// By which libcryptsetup opens a file that has no name, as long as it is open here.
pub(super) fn path_of(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// A sparse file in memory, of [`HEADER_LIMIT`] bytes, that begins with `content`.
pub(super) fn anonymous_file(content: &[u8]) -> io::Result<File> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create("luks-header", flags)?);
    file.set_len(HEADER_LIMIT)?;
    file.write_all_at(content, 0)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::identity;
    use crate::volume::testing::Volume;

    const AREA: usize = 0x4000;

    /// What is read of two whole areas where the sectors at `broken` cannot be.
    fn read_with(broken: &[usize]) -> io::Result<Option<Vec<u8>>> {
        let disk = disk();
        read_metadata(|area, at| {
            let from = usize::try_from(at).unwrap();
            let range = from..from + area.len();
            if broken.iter().any(|sector| range.contains(sector)) {
                area.fill(0xff);
                return Err(io::Error::from_raw_os_error(nix::libc::EIO));
            }
            let bytes = disk.get(range).ok_or(io::ErrorKind::UnexpectedEof)?;
            area.copy_from_slice(bytes);
            Ok(())
        })
    }

    fn disk() -> Vec<u8> {
        let mut disk = vec![0x7b; 2 * AREA];
        for (at, magic) in [(0, MAGIC_PRIMARY), (AREA, MAGIC_SECONDARY)] {
            disk[at..at + 8].copy_from_slice(magic);
            disk[at + 8..at + 16].copy_from_slice(&(AREA as u64).to_be_bytes());
            let copy = &mut disk[at..at + AREA];
            copy[CHECKSUM_NAME][..7].copy_from_slice(b"sha256\0");
            let checksum = checksum(copy);
            copy[CHECKSUM][..32].copy_from_slice(&checksum);
        }
        disk
    }

    #[test]
    fn the_copy_that_is_opened_is_the_one_that_was_checked() {
        let bound = Volume::luks2().bind();
        let facts = bound.luks2_facts();
        let mut header = HeaderCopy::read(bound.volume.path()).unwrap();
        let digest = identity::luks2_digest(header.uuid(), &facts.volume_key_id);
        header.replace_digest(facts.keyslot, &digest).unwrap();
        header.context().unwrap();
        // The first copy loses its checksum, the second gets another UUID and a right checksum.
        let mut second = vec![0; AREA];
        header.copy.write_all_at(&[0; 64], 448).unwrap();
        header.copy.read_exact_at(&mut second, AREA as u64).unwrap();
        let first_digit = &mut second[UUID][0];
        *first_digit = if *first_digit == b'0' { b'1' } else { b'0' };
        let checksum = checksum(&second);
        second[CHECKSUM][..32].copy_from_slice(&checksum);
        header.copy.write_all_at(&second, AREA as u64).unwrap();
        let error = header.context().map(drop).unwrap_err();
        assert!(error.to_string().contains("two headers"), "{error}");
    }

    #[test]
    fn of_two_copies_one_that_can_be_read_is_enough() {
        // D5.
        let whole = disk();
        assert_eq!(read_with(&[]).unwrap().unwrap(), whole);
        for (broken, lost) in [
            (0, 0..AREA),
            (512, 0..AREA),
            (AREA - 512, 0..AREA),
            (AREA, AREA..2 * AREA),
            (2 * AREA - 512, AREA..2 * AREA),
        ] {
            let mut expected = whole.clone();
            expected[lost].fill(0);
            assert!(
                read_with(&[broken]).unwrap().unwrap() == expected,
                "{broken}"
            );
        }
        for broken in [[0, AREA], [512, AREA + 4096], [4096, 2 * AREA - 512]] {
            let error = read_with(&broken).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(nix::libc::EIO), "{broken:?}");
        }
    }
}
