//! A new LUKS2 volume on a device that is empty.
//!
//! What is on a device is destroyed by nothing else in latchkey. The header is made in memory and written in an order in which
//! an interrupted run leaves what the next one takes for empty, or a volume that opens: libcryptsetup would begin with noise where
//! the keyslots will lie, which nobody can tell from plain dm-crypt.

mod empty;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use latchkey_secret::{SecretBytes, process};
use libcryptsetup_rs::consts::flags::CryptVolumeKey;
use libcryptsetup_rs::consts::vals::EncryptionFormat;
use libcryptsetup_rs::{CryptDevice, CryptParamsLuks2, CryptParamsLuks2Ref, Either};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{major, minor};

use super::context::{self, CryptError};
use super::header::{HeaderCopy, HeaderError};
pub use empty::check_empty;

/// cipher and mode of a new volume, as `cryptsetup luksFormat` chooses them.
const CIPHER: (&str, &str) = ("aes", "xts-plain64");
/// Bytes of its volume key: two keys of AES-256.
const KEY_SIZE: usize = 64;
const SECTOR: u64 = 512;
/// Both copies of a header as libcryptsetup makes it (LUKS2 on-disk format, 2.1).
const METADATA: u64 = 2 * COPY as u64;
const COPY: usize = 0x4000;
/// Where its keyslots end, and the data begin.
const DATA: u64 = 16 << 20;
/// What is looked at: the header's place and the first MiB of the data. Smaller devices have no room for both.
const SMALLEST: u64 = DATA + (1 << 20);

/// Nothing was made. Unless the text says so, nothing was changed either.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// It is mounted, mapped, swapped to, or part of an array.
    #[error("'{0}' is in use; nothing was changed")]
    InUse(PathBuf),
    /// It holds something.
    #[error(
        "'{device}' holds {content}; nothing was changed\n\
         if that can go, 'wipefs --all {device}' removes it",
        device = .device.display()
    )]
    Known {
        /// The device.
        device: PathBuf,
        /// What was found.
        content: &'static str,
    },
    /// It is a LUKS volume that somebody can open, or could.
    #[error(
        "'{device}' is a LUKS volume already; nothing was changed\n\
         without --format it is bound as it is",
        device = .device.display()
    )]
    Luks {
        /// The device.
        device: PathBuf,
    },
    /// It may be plain dm-crypt.
    #[error(
        "'{device}' does not look empty: it may be plain dm-crypt, which looks like noise; nothing was changed\n\
         if what it holds can go: dd if=/dev/zero of={device} bs=1M count=17",
        device = .device.display()
    )]
    Unknown {
        /// The device.
        device: PathBuf,
    },
    /// There is no room for a header.
    #[error(
        "'{device}' is smaller than {least} MiB, which a LUKS2 header and its data need",
        device = .device.display(),
        least = SMALLEST >> 20
    )]
    Small {
        /// The device.
        device: PathBuf,
    },
    /// Reading failed.
    #[error("failed to read '{path}'")]
    Read {
        /// What was read.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no memory for the header.
    #[error("no memory for a LUKS2 header; nothing was changed")]
    Memory(#[source] io::Error),
    /// The header that is there.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// Writing failed, with some of it on the device.
    #[error("failed to write the LUKS2 header of '{device}'; run this again")]
    Write {
        /// The device.
        device: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// libcryptsetup refused.
    #[error("failed to make a LUKS2 volume on '{device}'; run this again")]
    Crypt {
        /// The device.
        device: PathBuf,
        /// What libcryptsetup said.
        #[source]
        source: CryptError,
    },
}

/// A volume that was made in memory; its device is as it was.
pub struct New {
    device: PathBuf,
    /// The header and its keyslots, as they will lie on the device.
    copy: File,
    context: CryptDevice,
    /// The UUID in its header.
    pub uuid: String,
}

impl New {
    /// Makes a LUKS2 header with a new volume key for `device`.
    ///
    /// # Errors
    /// As [`check_empty`]; `Crypt`, `Memory`.
    pub fn on(device: &Path) -> Result<Self, FormatError> {
        check_empty(device)?;
        let copy = memory().map_err(FormatError::Memory)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", copy.as_raw_fd()));
        let make = || -> Result<CryptDevice, CryptError> {
            let mut context = context::detached(&path, device)?;
            context.set_data_offset(data_offset(device) / SECTOR)?;
            let parameters = CryptParamsLuks2 {
                pbkdf: None,
                integrity: None,
                integrity_params: None,
                data_alignment: 0,
                data_device: None,
                sector_size: 0, // what suits the device best
                label: None,
                subsystem: None,
            };
            let mut parameters: CryptParamsLuks2Ref<'_> = (&parameters).try_into()?;
            context.context_handle().format(
                EncryptionFormat::Luks2,
                CIPHER,
                None,
                Either::Right(KEY_SIZE),
                Some(&mut parameters),
            )?;
            Ok(context)
        };
        let made = make();
        process::wipe_stack();
        let context = made.map_err(|source| FormatError::Crypt {
            device: device.to_owned(),
            source,
        })?;
        let uuid = HeaderCopy::read(&path)?.uuid().to_owned();
        Ok(Self {
            device: device.to_owned(),
            copy,
            context,
            uuid,
        })
    }

    /// Gives it its first keyslot, 0, with the key derivation that libcryptsetup thinks right for this machine, and writes it
    /// to the device. Wherever that is interrupted, the keyslot opens or [`check_empty`] finds the device empty.
    ///
    /// # Errors
    /// As [`check_empty`], `Crypt`, `Write`.
    pub fn add_passphrase(mut self, passphrase: &SecretBytes) -> Result<(), FormatError> {
        let failed = |source| FormatError::Write {
            device: self.device.clone(),
            source,
        };
        let without = self.metadata().map_err(failed)?;
        let added = self.context.keyslot_handle().add_by_key(
            Some(0),
            None,
            passphrase.expose_secret(),
            CryptVolumeKey::empty(),
        );
        process::wipe_stack();
        added.map_err(|error| FormatError::Crypt {
            device: self.device.clone(),
            source: error.into(),
        })?;
        let with = self.metadata().map_err(failed)?;
        check_empty(&self.device)?;
        self.write(&without, &with).map_err(failed)
    }

    /// Both copies of the header.
    fn metadata(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; 2 * COPY];
        self.copy.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// First a header without keyslots, which says whose the rest is; then what the keyslots need; at last the header that
    /// names the keyslot, one copy after the other.
    fn write(&self, without: &[u8], with: &[u8]) -> io::Result<()> {
        let device = OpenOptions::new()
            .write(true)
            .custom_flags(nix::libc::O_EXCL)
            .open(&self.device)?;
        device.write_all_at(without, 0)?;
        device.sync_data()?;
        let mut piece = vec![0; 1 << 20];
        let mut at = METADATA;
        while at < DATA {
            let part = &mut piece[..];
            let read = self.copy.read_at(part, at)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            device.write_all_at(&part[..read], at)?;
            at += read as u64;
        }
        device.sync_data()?;
        let (primary, secondary) = with.split_at(COPY);
        device.write_all_at(secondary, METADATA / 2)?;
        device.sync_data()?;
        device.write_all_at(primary, 0)?;
        device.sync_all()
    }
}

/// A file in memory with room for a header and its keyslots.
fn memory() -> io::Result<File> {
    let file = File::from(memfd_create(c"header", MFdFlags::MFD_CLOEXEC)?);
    file.set_len(DATA)?;
    Ok(file)
}

/// Where the data begin: behind the keyslots, at a multiple of what the device likes to be written at once.
fn data_offset(device: &Path) -> u64 {
    let optimal = optimal_io_size(device).filter(|size| *size > 0 && size.is_multiple_of(SECTOR));
    optimal.map_or(DATA, |size| DATA.next_multiple_of(size))
}

/// Bytes; `None` for what is no block device. sysfs-block(5): `queue/optimal_io_size`, which a partition's disk has.
fn optimal_io_size(device: &Path) -> Option<u64> {
    let number = std::fs::metadata(device).ok()?.rdev();
    let place = format!("/sys/dev/block/{}:{}", major(number), minor(number));
    [format!("{place}/queue"), format!("{place}/../queue")]
        .iter()
        .find_map(|queue| std::fs::read_to_string(format!("{queue}/optimal_io_size")).ok())?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::keyslots;

    fn device(size: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        file
    }

    fn passphrase() -> SecretBytes {
        let mut text = SecretBytes::with_capacity(16).unwrap();
        text.push(b"correct horse").unwrap();
        text
    }

    #[test]
    fn an_empty_device_becomes_a_volume_that_the_passphrase_opens() {
        let file = device(SMALLEST);
        let new = New::on(file.path()).unwrap();
        let uuid = new.uuid.clone();
        new.add_passphrase(&passphrase()).unwrap();
        let opened = keyslots::prove_other_keyslot(file.path(), &passphrase(), None).unwrap();
        assert_eq!(opened, Some(0));
        assert_eq!(HeaderCopy::read(file.path()).unwrap().uuid(), uuid);
        keyslots::check_fit(file.path()).unwrap();
        let error = check_empty(file.path()).unwrap_err();
        assert!(matches!(error, FormatError::Luks { .. }), "{error}");
    }

    #[test]
    fn a_header_that_nothing_opens_is_what_an_interrupted_run_left() {
        let file = device(SMALLEST);
        let new = New::on(file.path()).unwrap();
        let without = new.metadata().unwrap();
        drop(new);
        assert!(
            std::fs::read(file.path())
                .unwrap()
                .iter()
                .all(|byte| *byte == 0)
        );
        // Its second copy, half of the first, all of it, and with some of the keyslots' noise.
        let second = &without[COPY..];
        file.as_file().write_all_at(second, METADATA / 2).unwrap();
        check_empty(file.path()).unwrap();
        let nothing = vec![0; 2 * COPY];
        file.as_file().write_all_at(&nothing, 0).unwrap();
        file.as_file().write_all_at(&without[..5000], 0).unwrap();
        check_empty(file.path()).unwrap();
        file.as_file().write_all_at(&without, 0).unwrap();
        check_empty(file.path()).unwrap();
        file.as_file().write_all_at(b"noise", METADATA).unwrap();
        check_empty(file.path()).unwrap();
        assert!(keyslots::list(file.path()).unwrap().is_empty());
        file.as_file().write_all_at(&nothing, 0).unwrap();
        let error = check_empty(file.path()).unwrap_err();
        assert!(matches!(error, FormatError::Unknown { .. }), "{error}");
        file.as_file().write_all_at(&without, 0).unwrap();
        file.as_file().write_all_at(b"erased", DATA).unwrap();
        let error = check_empty(file.path()).unwrap_err();
        assert!(matches!(error, FormatError::Luks { .. }), "{error}");
        file.as_file().write_all_at(&[0; 6], DATA).unwrap();
        let again = New::on(file.path()).unwrap();
        again.add_passphrase(&passphrase()).unwrap();
    }

    #[test]
    fn whatever_may_be_somebodys_is_left_alone() {
        let cases: [(&str, u64, &[u8]); 8] = [
            ("ext2, ext3 or ext4", 0x438, b"\x53\xef"),
            ("btrfs", 0x10040, b"_BHRfS_M"),
            ("GPT", SMALLEST - 512, b"EFI PART"),
            ("md array", SMALLEST - 0x10000, b"\xfc\x4e\x2b\xa9"),
            ("md array", SMALLEST - 0x2000, b"\xfc\x4e\x2b\xa9"),
            ("may be plain dm-crypt", 0x4000, b"noise"),
            (
                "may be plain dm-crypt",
                1 << 20,
                b"behind an offset of one MiB",
            ),
            ("may be plain dm-crypt", 0x8001, b"CD001"),
        ];
        for (said, at, bytes) in cases {
            let file = device(SMALLEST);
            file.as_file().write_all_at(bytes, at).unwrap();
            let before = std::fs::read(file.path()).unwrap();
            let error = New::on(file.path()).err().unwrap().to_string();
            assert!(
                error.contains(said) && error.contains("nothing was changed"),
                "{said}: {error}"
            );
            assert_eq!(std::fs::read(file.path()).unwrap(), before, "{said}");
        }
        let small = device(SMALLEST - 1);
        assert!(matches!(
            New::on(small.path()),
            Err(FormatError::Small { .. })
        ));
    }
}
