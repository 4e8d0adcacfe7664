//! A new LUKS2 volume on a device that is empty.
//!
//! What is on a device is destroyed by nothing else in latchkey. A device counts as empty if nobody uses it, nothing on it is
//! known, and all that the new header takes holds zeros, and the first of the data behind it: plain dm-crypt without a header
//! looks like noise, and is not taken for free space. A header without keyslots, which nothing opens, with zeros behind it is what an
//! interrupted run leaves.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use latchkey_secret::{SecretBytes, process};
use libcryptsetup_rs::consts::flags::CryptVolumeKey;
use libcryptsetup_rs::consts::vals::EncryptionFormat;
use libcryptsetup_rs::{CryptDevice, CryptParamsLuks2, CryptParamsLuks2Ref, Either};
use nix::errno::Errno;

use super::context::{self, CryptError};
use super::header::{HeaderCopy, HeaderError};
use super::signature;

/// cipher and mode of a new volume, as `cryptsetup luksFormat` chooses them.
const CIPHER: (&str, &str) = ("aes", "xts-plain64");
/// Bytes of its volume key: two keys of AES-256.
const KEY_SIZE: usize = 64;
/// Where the data begins behind a header as libcryptsetup makes it; keyslots and all else before are overwritten.
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
    /// The header that is there.
    #[error(transparent)]
    Header(#[from] HeaderError),
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

/// Refuses every device that is not empty.
///
/// # Errors
/// `InUse`, `Known`, `Luks`, `Unknown`, `Small`, `Read`, `Header`.
pub fn check_empty(device: &Path) -> Result<(), FormatError> {
    let failed = |source| FormatError::Read {
        path: device.to_owned(),
        source,
    };
    // The kernel grants a block device for itself to one user: to a mount, a mapping, swap, an array, or to us.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_EXCL)
        .open(device)
        .map_err(|error| match error.raw_os_error() {
            Some(errno) if errno == Errno::EBUSY as i32 => FormatError::InUse(device.to_owned()),
            _ => failed(error),
        })?;
    let size = io::Seek::seek(&mut &file, io::SeekFrom::End(0)).map_err(failed)?;
    if size < SMALLEST {
        return Err(FormatError::Small {
            device: device.to_owned(),
        });
    }
    let begin = read(&file, 0, signature::LENGTH).map_err(failed)?;
    match signature::of(&begin) {
        Some("LUKS") => {
            check_interrupted(device)?;
            return match is_zero(&file, DATA..SMALLEST).map_err(failed)? {
                true => Ok(()),
                false => Err(FormatError::Luks {
                    device: device.to_owned(),
                }),
            };
        }
        Some(content) => {
            return Err(FormatError::Known {
                device: device.to_owned(),
                content,
            });
        }
        None => {}
    }
    for (content, at, magic) in signature::AT_END {
        let Some(at) = at(size) else { continue };
        if read(&file, at, magic.len()).map_err(failed)? == *magic {
            return Err(FormatError::Known {
                device: device.to_owned(),
                content,
            });
        }
    }
    match is_zero(&file, 0..SMALLEST).map_err(failed)? {
        true => Ok(()),
        false => Err(FormatError::Unknown {
            device: device.to_owned(),
        }),
    }
}

/// A LUKS2 header without keyslots and tokens, which nothing opens.
fn check_interrupted(device: &Path) -> Result<(), FormatError> {
    let luks = || FormatError::Luks {
        device: device.to_owned(),
    };
    let header = match HeaderCopy::read(device) {
        Err(HeaderError::NotLuks2(_)) => return Err(luks()),
        header => header?,
    };
    let is_empty = |part: &str| {
        header.json()[part]
            .as_object()
            .is_some_and(|part| part.is_empty())
    };
    match is_empty("keyslots") && is_empty("tokens") {
        true => Ok(()),
        false => Err(luks()),
    }
}

/// Whether `range` of a file holds nothing but zeros.
fn is_zero(file: &File, range: std::ops::Range<u64>) -> io::Result<bool> {
    const PIECE: usize = 1 << 20; // which divides both ends of every range above
    for at in range.step_by(PIECE) {
        if read(file, at, PIECE)?.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn read(file: &File, at: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

/// A volume that was made and that nothing opens yet.
pub struct New {
    device: PathBuf,
    context: CryptDevice,
    /// The UUID in its header.
    pub uuid: String,
}

impl New {
    /// Makes a LUKS2 header with a new volume key on `device`.
    ///
    /// # Errors
    /// As [`check_empty`]; `Crypt`.
    pub fn on(device: &Path) -> Result<Self, FormatError> {
        check_empty(device)?;
        let make = || -> Result<CryptDevice, CryptError> {
            let mut context = context::attached(device)?;
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
        let uuid = HeaderCopy::read(device)?.uuid().to_owned();
        Ok(Self {
            device: device.to_owned(),
            context,
            uuid,
        })
    }

    /// Gives it its first keyslot, 0, with the key derivation that libcryptsetup thinks right for this machine.
    ///
    /// # Errors
    /// `Crypt`.
    pub fn add_passphrase(mut self, passphrase: &SecretBytes) -> Result<(), FormatError> {
        let added = self.context.keyslot_handle().add_by_key(
            Some(0),
            None,
            passphrase.expose_secret(),
            CryptVolumeKey::empty(),
        );
        process::wipe_stack();
        added.map(drop).map_err(|error| FormatError::Crypt {
            device: self.device,
            source: error.into(),
        })
    }
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
        drop(New::on(file.path()).unwrap());
        assert!(keyslots::list(file.path()).unwrap().is_empty());
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
