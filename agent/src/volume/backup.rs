//! A backup of a header before anything in it is changed.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::context::CryptError;
use super::header::{HeaderCopy, HeaderError};
use super::keyslots::AnyHeader;
use super::luks1::Luks1Copy;
use crate::failure::chain;
use crate::files::{self, FilesError};

/// There is no backup that could be relied on.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file exists already.
    #[error("'{0}' exists already; left as it is")]
    Exists(PathBuf),
    /// libcryptsetup did not make the backup.
    #[error("failed to back up the header of '{device}' to '{file}'")]
    Crypt {
        /// The device.
        device: PathBuf,
        /// The backup.
        file: PathBuf,
        /// What libcryptsetup said.
        #[source]
        source: CryptError,
    },
    /// The file could not be written through to the disk, or not be read again.
    #[error("failed to write the header backup '{file}'")]
    Write {
        /// The backup.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file could not get its name, or what an earlier run left under it not be removed.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The header in the file or on the device cannot be read.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// What was written is not what is on the device.
    #[error("the header backup '{file}' differs from the header of '{device}'")]
    Differs {
        /// The device.
        device: PathBuf,
        /// The backup.
        file: PathBuf,
    },
}

/// Writes the LUKS header of `device` with all keyslots into the new file `file` (mode 0600), through to the disk,
/// and compares it with the device. No file is left after a failure.
///
/// # Errors
/// Every variant of [`BackupError`].
pub fn backup_header(device: &Path, file: &Path) -> Result<(), BackupError> {
    if fs::symlink_metadata(file).is_ok() {
        return Err(BackupError::Exists(file.to_owned()));
    }
    let header = AnyHeader::read_whole(device)?;
    // It gets its name when it is whole: nobody is to rely on what an interrupted run left.
    let new = files::unfinished(file);
    files::remove(&new)?;
    let result = write(&header, device, &new)
        .and_then(|()| sync(&new))
        .and_then(|()| compare(device, &new))
        .and_then(|()| Ok(files::rename(&new, file)?));
    if result.is_err()
        && let Err(error) = files::remove(&new)
    {
        log::warn!("{}", chain(&error));
    }
    result
}

/// libcryptsetup makes the file, with O_EXCL and readable by the owner only.
fn write(header: &AnyHeader, device: &Path, file: &Path) -> Result<(), BackupError> {
    let failed = |source| BackupError::Crypt {
        device: device.to_owned(),
        file: file.to_owned(),
        source,
    };
    let mut context = header.writer(device).map_err(failed)?;
    context
        .backup_handle()
        .header_backup(None, file)
        .map_err(|error| failed(error.into()))
}

fn sync(file: &Path) -> Result<(), BackupError> {
    let failed = |source| BackupError::Write {
        file: file.to_owned(),
        source,
    };
    fs::set_permissions(file, Permissions::from_mode(0o600)).map_err(failed)?;
    File::open(file)
        .and_then(|file| file.sync_all())
        .map_err(failed)
}

/// The backup loads as a header of its own and is, byte by byte, the beginning of the device.
fn compare(device: &Path, file: &Path) -> Result<(), BackupError> {
    let (same, from) = match HeaderCopy::read(device) {
        Err(HeaderError::NotLuks2(_)) => {
            let (original, copy) = (
                Luks1Copy::read(device, device)?,
                Luks1Copy::read(file, file)?,
            );
            // libcryptsetup clears the bytes between the header and the first keyslot in the backup.
            (original.facts() == copy.facts(), LUKS1_FIRST_AREA)
        }
        original => {
            let (original, copy) = (original?, HeaderCopy::read(file)?);
            let same = original.uuid() == copy.uuid() && original.json() == copy.json();
            (same, 0)
        }
    };
    if same && is_alike(device, file, from)? {
        Ok(())
    } else {
        Err(BackupError::Differs {
            device: device.to_owned(),
            file: file.to_owned(),
        })
    }
}

/// Where LUKS1 has its first keyslot's area (`LUKS_ALIGN_KEYSLOTS`).
const LUKS1_FIRST_AREA: u64 = 4096;

/// Whether the file is what the device begins with, but for what stands before byte `from`.
fn is_alike(device: &Path, file: &Path, from: u64) -> Result<bool, BackupError> {
    let alike = || -> io::Result<bool> {
        let mut copy = File::open(file)?;
        let mut original = File::open(device)?.take(copy.metadata()?.len());
        copy.seek(SeekFrom::Start(from))?;
        original.get_mut().seek(SeekFrom::Start(from))?;
        original.set_limit(original.limit().saturating_sub(from));
        let (mut ours, mut theirs) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        loop {
            let read = copy.read(&mut ours)?;
            if read == 0 {
                return Ok(original.read(&mut theirs)? == 0);
            }
            original.read_exact(&mut theirs[..read])?;
            if ours[..read] != theirs[..read] {
                return Ok(false);
            }
        }
    };
    alike().map_err(|source| BackupError::Write {
        file: file.to_owned(),
        source,
    })
}
