//! A new LUKS2 volume on a device that is empty.
//!
//! What is on a device is destroyed by nothing else in latchkey. The header is made in memory and written in an order in which
//! an interrupted run leaves what the next one takes for empty, or a volume that opens: libcryptsetup would begin with noise where
//! the keyslots will lie, which nobody can tell from plain dm-crypt.

mod empty;
mod topology;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use latchkey_secret::{SecretBytes, process};
use libcryptsetup_rs::consts::flags::CryptVolumeKey;
use libcryptsetup_rs::consts::vals::{EncryptionFormat, KeyslotsSize, MetadataSize};
use libcryptsetup_rs::{CryptDevice, CryptParamsLuks2, CryptParamsLuks2Ref, Either};

use super::context::{self, CryptError};
use super::header::{HeaderCopy, HeaderError, anonymous_file, path_of};
pub use empty::Empty;
use empty::MARK;

/// cipher and mode of a new volume, as `cryptsetup luksFormat` chooses them.
const CIPHER: (&str, &str) = ("aes", "xts-plain64");
/// Bytes of its volume key: two keys of AES-256.
const KEY_SIZE: usize = 64;
const SECTOR: usize = 512;
/// One copy of the header, as `luksFormat` makes it (LUKS2 on-disk format, 2.1).
const COPY: usize = 0x4000;
const KEYSLOTS: u64 = 2 * COPY as u64;
/// Where the keyslots end. The data begin there, or at the next place that suits the device.
const DATA: u64 = 16 << 20;

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
        device = .device.display()
    )]
    Small {
        /// The device.
        device: PathBuf,
        /// MiB that are needed.
        least: u64,
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
    device: Empty,
    /// The header and its keyslots, as they will lie on the device.
    copy: File,
    context: CryptDevice,
    /// The UUID in its header.
    pub uuid: String,
}

/// A volume that a passphrase opens as soon as it is written to its device.
pub struct Openable {
    device: Empty,
    copy: File,
    /// Its header while it is not finished, and then.
    marked: Vec<u8>,
    finished: Vec<u8>,
}

impl New {
    /// Makes a LUKS2 header with a new volume key for `device`.
    ///
    /// # Errors
    /// `Crypt`, `Memory`.
    pub fn on(device: Empty) -> Result<Self, FormatError> {
        let copy = anonymous_file(&[]).map_err(FormatError::Memory)?;
        let path = path_of(&copy);
        let make = || -> Result<CryptDevice, CryptError> {
            let mut context = context::detached(&path, &device.path)?;
            context.set_data_offset(device.data / SECTOR as u64)?;
            let sizes = (
                MetadataSize::try_from(COPY as u64)?,
                KeyslotsSize::try_from(DATA - KEYSLOTS)?,
            );
            context
                .settings_handle()
                .set_metadata_size(sizes.0, sizes.1)?;
            let parameters = CryptParamsLuks2 {
                pbkdf: None,
                integrity: None,
                integrity_params: None,
                data_alignment: 0,
                data_device: None,
                sector_size: 0, // what suits the device best
                label: None,
                subsystem: Some(MARK.to_owned()),
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
            device: device.path.clone(),
            source,
        })?;
        let uuid = HeaderCopy::read(&path)?.uuid().to_owned();
        Ok(Self {
            device,
            copy,
            context,
            uuid,
        })
    }

    /// Gives it its first keyslot, 0, with the key derivation that libcryptsetup thinks right for this machine, which takes
    /// seconds. The device is still as it was.
    ///
    /// # Errors
    /// `Crypt`, `Write`.
    pub fn add_passphrase(mut self, passphrase: &SecretBytes) -> Result<Openable, FormatError> {
        let device = self.device.path.clone();
        let failed = |source| FormatError::Write {
            device: device.clone(),
            source,
        };
        let marked = self.header().map_err(failed)?;
        let context = &mut self.context;
        let added = context
            .keyslot_handle()
            .add_by_key(
                Some(0),
                None,
                passphrase.expose_secret(),
                CryptVolumeKey::empty(),
            )
            .and_then(|_| context.context_handle().set_label(None, None));
        process::wipe_stack();
        added.map_err(|error| FormatError::Crypt {
            device: device.clone(),
            source: error.into(),
        })?;
        let finished = self.header().map_err(failed)?;
        Ok(Openable {
            device: self.device,
            copy: self.copy,
            marked,
            finished,
        })
    }

    /// Both copies of it.
    fn header(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; 2 * COPY];
        self.copy.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}

impl Openable {
    /// Writes it to the device and lets go of it. Wherever that is interrupted, the keyslot opens or [`Empty::find`] finds the
    /// device empty.
    ///
    /// # Errors
    /// `Write`.
    pub fn write(self) -> Result<(), FormatError> {
        self.write_in_steps().map_err(|source| FormatError::Write {
            device: self.device.path.clone(),
            source,
        })
    }

    /// Step by step, each on the disk before the next: the sector with the mark, which a disk writes whole or not at all; the
    /// rest of the header without keyslots; what the keyslots need; the header that names the keyslot, whose second copy counts
    /// as soon as it is there.
    fn write_in_steps(&self) -> io::Result<()> {
        let device = self.device.file();
        let (mark, rest) = self.marked.split_at(SECTOR);
        device.write_all_at(mark, 0)?;
        device.sync_data()?;
        device.write_all_at(rest, SECTOR as u64)?;
        device.sync_data()?;
        self.write_keyslots(device)?;
        device.sync_data()?;
        let (primary, secondary) = self.finished.split_at(COPY);
        device.write_all_at(secondary, COPY as u64)?;
        device.sync_data()?;
        device.write_all_at(primary, 0)?;
        device.sync_all()
    }

    fn write_keyslots(&self, device: &File) -> io::Result<()> {
        let mut piece = vec![0; 1 << 20];
        let mut at = KEYSLOTS;
        while at < DATA {
            let left = usize::try_from(DATA - at).unwrap_or(piece.len());
            let part = &mut piece[..left.min(1 << 20)];
            self.copy.read_exact_at(part, at)?;
            device.write_all_at(part, at)?;
            at += part.len() as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::keyslots;

    const SIZE: u64 = DATA + (1 << 20);

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
        // Where the data begin is the device's choice; what is between stays empty.
        for data in [DATA, DATA + (512 << 10)] {
            let file = device(data + (1 << 20));
            let new = New::on(Empty::find_with(file.path(), data).unwrap()).unwrap();
            let uuid = new.uuid.clone();
            let new = new.add_passphrase(&passphrase()).unwrap();
            let bytes = std::fs::read(file.path()).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 0), "it was written to");
            new.write().unwrap();
            let opened = keyslots::prove_other_keyslot(file.path(), &passphrase(), None).unwrap();
            assert_eq!(opened, Some(0));
            let header = HeaderCopy::read(file.path()).unwrap();
            assert_eq!(header.uuid(), uuid);
            assert_eq!(header.json()["segments"]["0"]["offset"], data.to_string());
            keyslots::check_fit(file.path()).unwrap();
            let bytes = std::fs::read(file.path()).unwrap();
            let text = |at: usize| bytes[at..at + 48].iter().all(|byte| *byte == 0);
            assert!(text(24) && text(208), "a label was left");
            let behind = usize::try_from(DATA).unwrap();
            assert!(bytes[behind..].iter().all(|byte| *byte == 0));
            let error = Empty::find(file.path()).unwrap_err();
            assert!(matches!(error, FormatError::Luks { .. }), "{error}");
        }
    }

    #[test]
    fn what_an_interrupted_run_left_is_empty() {
        let file = device(SIZE);
        let new = New::on(Empty::find(file.path()).unwrap()).unwrap();
        let marked = new.header().unwrap();
        drop(new);
        let bytes = std::fs::read(file.path()).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0), "it was written to");
        let write = |bytes: &[u8], at| file.as_file().write_all_at(bytes, at).unwrap();
        // A sector of it; all of it, with some of the keyslots' noise; the second copy torn.
        write(&marked[..SECTOR], 0);
        drop(Empty::find(file.path()).unwrap());
        write(&marked, 0);
        write(b"noise", KEYSLOTS);
        drop(Empty::find(file.path()).unwrap());
        assert!(keyslots::list(file.path()).unwrap().is_empty());
        write(b"torn", KEYSLOTS - 5000);
        let again = New::on(Empty::find(file.path()).unwrap()).unwrap();
        let again = again.add_passphrase(&passphrase()).unwrap();
        again.write().unwrap();
    }

    #[test]
    fn a_volume_that_nothing_opens_is_not_empty_unless_we_left_it() {
        let file = device(SIZE);
        let new = New::on(Empty::find(file.path()).unwrap()).unwrap();
        let marked = new.header().unwrap();
        drop(new);
        let write = |bytes: &[u8], at| file.as_file().write_all_at(bytes, at).unwrap();
        write(&marked, 0);
        write(b"written since", DATA);
        let refused = || Empty::find(file.path()).unwrap_err();
        assert!(matches!(refused(), FormatError::Luks { .. }));
        write(&[0; 13], DATA);
        // As luksErase leaves it: its owner may have a copy of the header.
        write(&[0; 48], 208);
        assert!(matches!(refused(), FormatError::Luks { .. }));
    }

    #[test]
    fn whatever_may_be_somebodys_is_left_alone() {
        let cases: [(&str, u64, &[u8]); 9] = [
            ("ext2, ext3 or ext4", 0x438, b"\x53\xef"),
            ("btrfs", 0x10040, b"_BHRfS_M"),
            ("GPT", SIZE - 512, b"EFI PART"),
            ("md array", SIZE - 0x10000, b"\xfc\x4e\x2b\xa9"),
            ("md array", SIZE - 0x2000, b"\xfc\x4e\x2b\xa9"),
            ("may be plain dm-crypt", 0x4000, b"noise"),
            (
                "may be plain dm-crypt",
                1 << 20,
                b"behind an offset of one MiB",
            ),
            ("may be plain dm-crypt", DATA, b"noise"),
            ("may be plain dm-crypt", 0x8001, b"CD001"),
        ];
        for (said, at, bytes) in cases {
            let file = device(SIZE);
            file.as_file().write_all_at(bytes, at).unwrap();
            let before = std::fs::read(file.path()).unwrap();
            let error = Empty::find(file.path()).unwrap_err().to_string();
            assert!(
                error.contains(said) && error.contains("nothing was changed"),
                "{said}: {error}"
            );
            assert_eq!(std::fs::read(file.path()).unwrap(), before, "{said}");
        }
        let small = Empty::find(device(SIZE - 1).path()).unwrap_err();
        assert!(matches!(small, FormatError::Small { least: 17, .. }));
        let small = Empty::find_with(device(SIZE).path(), 2 * DATA).unwrap_err();
        assert!(matches!(small, FormatError::Small { least: 33, .. }));
    }

    #[test]
    fn one_that_is_being_formatted_is_in_use() {
        let file = device(SIZE);
        let held = Empty::find(file.path()).unwrap();
        let error = Empty::find(file.path()).unwrap_err();
        assert!(matches!(error, FormatError::InUse(_)), "{error}");
        drop(held);
        Empty::find(file.path()).unwrap();
    }
}
