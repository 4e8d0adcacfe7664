//! What lies on a device, and which LUKS device an argument of the command line means.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use super::mapping;
use super::stack;

/// What a device holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// A LUKS2 header.
    Luks2 {
        /// Lower case with hyphens.
        uuid: String,
    },
    /// A LUKS1 header.
    Luks1 {
        /// As in the header.
        uuid: String,
    },
    /// No LUKS header.
    NotLuks,
    /// There is no such file.
    Missing,
    /// A directory, or another file that is neither a block device nor an image.
    NotADevice,
}

/// An argument that means no LUKS device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No such device, mapping or mount point.
    #[error("'{0}' is no device, mapping or mount point")]
    Missing(PathBuf),
    /// A directory without a file system of its own, or something else.
    #[error("'{0}' is neither a block device nor a mount point")]
    NotADevice(PathBuf),
    /// There is no LUKS below the argument, and nothing says that it is encrypted otherwise.
    #[error(
        "'{0}' is not encrypted with LUKS, and no line of crypttab says otherwise\n\
         for plain dm-crypt or a detached header: --name NAME --options plain,cipher=…,hash=…,size=… or header=…\n\
         'latchkey bind --format' makes a new volume on a device that is empty"
    )]
    NotLuks(PathBuf),
    /// The file system lies on several LUKS devices.
    #[error("'{path}' lies on several encrypted devices: {devices}\nname one of them")]
    Several {
        /// The argument.
        path: PathBuf,
        /// Device paths.
        devices: String,
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
}

/// Bytes of a LUKS header up to the end of its UUID; LUKS1 and LUKS2 have magic, version and UUID at the same places.
const LUKS_PREFIX: usize = 208;
const LUKS_MAGIC: &[u8; 6] = b"LUKS\xba\xbe";
const UUID_AT: std::ops::Range<usize> = 168..208;

/// Tells what `device` holds by its first bytes. A LUKS2 header of which only the second copy is left is found when
/// it is opened, not here.
///
/// # Errors
/// The error of reading.
pub fn probe(device: &Path) -> io::Result<Probe> {
    let metadata = match fs::metadata(device) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Probe::Missing),
        Err(error) => return Err(error),
    };
    if !metadata.file_type().is_block_device() && !metadata.is_file() {
        return Ok(Probe::NotADevice);
    }
    let mut start = [0; LUKS_PREFIX];
    match fs::File::open(device)?.read_exact_at(&mut start, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Probe::NotLuks),
        result => result?,
    }
    if !start.starts_with(LUKS_MAGIC) {
        return Ok(Probe::NotLuks);
    }
    let uuid = String::from_utf8_lossy(&start[UUID_AT])
        .trim_end_matches('\0')
        .to_lowercase();
    Ok(match start[6..8] {
        [0, 2] => Probe::Luks2 { uuid },
        [0, 1] => Probe::Luks1 { uuid },
        _ => Probe::NotLuks,
    })
}

/// The encrypted device that `argument` means: a device, a mapping's name or path, or a mount point of a file system
/// that lies on one. A device that has no LUKS header and is no mapping is taken as it is: it may be plain, or its
/// header may lie elsewhere.
///
/// # Errors
/// Every variant of [`DeviceError`] but `NotLuks`.
pub fn find(argument: &Path) -> Result<PathBuf, DeviceError> {
    let named = argument
        .to_str()
        .filter(|name| !name.contains('/'))
        .and_then(mapping::mapping);
    if let Some(mapping) = named {
        return Ok(mapping.device);
    }
    let path = fs::canonicalize(argument).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => DeviceError::Missing(argument.to_owned()),
        _ => unreadable(argument, error),
    })?;
    match probe(&path).map_err(|error| unreadable(argument, error))? {
        Probe::Luks2 { .. } | Probe::Luks1 { .. } => Ok(path),
        Probe::Missing => Err(DeviceError::Missing(argument.to_owned())),
        Probe::NotLuks => {
            let name = path.file_name().unwrap_or_default();
            match below(argument, &[Path::new("/sys/class/block").join(name)]) {
                Err(DeviceError::NotLuks(_)) => Ok(path),
                found => found,
            }
        }
        Probe::NotADevice => mounted(argument, &path),
    }
}

/// The LUKS device below a mounted file system.
fn mounted(argument: &Path, path: &Path) -> Result<PathBuf, DeviceError> {
    let devices = stack::mounted_devices(Path::new("/"), path)
        .map_err(|_| DeviceError::NotADevice(argument.to_owned()))?;
    below(argument, &devices)
}

/// The LUKS device below block devices, by their folders in sysfs, that are none themselves.
fn below(argument: &Path, devices: &[PathBuf]) -> Result<PathBuf, DeviceError> {
    let found = stack::encrypted_below(devices);
    match found.as_slice() {
        [] => Err(DeviceError::NotLuks(argument.to_owned())),
        [one] => Ok(Path::new("/dev").join(one)),
        several => Err(DeviceError::Several {
            path: argument.to_owned(),
            devices: several
                .iter()
                .map(|name| format!("/dev/{name}"))
                .collect::<Vec<_>>()
                .join(", "),
        }),
    }
}

fn unreadable(path: &Path, source: io::Error) -> DeviceError {
    DeviceError::Read {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(magic: &[u8], version: u8) -> tempfile::NamedTempFile {
        let mut bytes = vec![0; 4096];
        bytes[..magic.len()].copy_from_slice(magic);
        bytes[7] = version;
        bytes[168..172].copy_from_slice(b"AB-1");
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        file
    }

    #[test]
    fn a_device_is_told_by_its_first_bytes() {
        let uuid = || "ab-1".to_owned();
        let cases = [
            (image(LUKS_MAGIC, 2), Probe::Luks2 { uuid: uuid() }),
            (image(LUKS_MAGIC, 1), Probe::Luks1 { uuid: uuid() }),
            (image(LUKS_MAGIC, 3), Probe::NotLuks),
            (image(b"-FVE-FS-", 2), Probe::NotLuks),
            (tempfile::NamedTempFile::new().unwrap(), Probe::NotLuks),
        ];
        for (file, expected) in cases {
            assert_eq!(probe(file.path()).unwrap(), expected);
        }
        assert_eq!(probe(Path::new("/absent/device")).unwrap(), Probe::Missing);
        assert_eq!(probe(Path::new("/proc")).unwrap(), Probe::NotADevice);
    }

    #[test]
    fn an_argument_that_means_no_device_is_refused_by_what_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let cases = [
            (
                Path::new("/absent"),
                "'/absent' is no device, mapping or mount point".to_owned(),
            ),
            (
                directory.path(),
                format!(
                    "'{}' is neither a block device nor a mount point",
                    directory.path().display()
                ),
            ),
        ];
        for (argument, message) in cases {
            let error = find(argument).unwrap_err().to_string();
            assert_eq!(error.lines().next(), Some(message.as_str()));
        }
    }

    #[test]
    fn a_device_without_luks_header_is_taken_as_it_is() {
        let plain = image(b"", 0);
        assert_eq!(
            find(plain.path()).unwrap(),
            plain.path().canonicalize().unwrap()
        );
    }
}
