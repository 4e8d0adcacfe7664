//! The volume that a command is about: a LUKS2 device and its line in crypttab.

use std::path::{Path, PathBuf};

use crate::files::{self, Files, FilesError};
use crate::volume::crypttab::{self, Entry, Key};
use crate::volume::device::{self, DeviceError, Probe};
use crate::volume::mapping;
use crate::volume::source::Source;

/// A LUKS2 device.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its path.
    pub device: PathBuf,
    /// The UUID in its header.
    pub uuid: String,
}

/// A command's argument means no volume that latchkey can bind.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// No LUKS device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// LUKS of the first version.
    #[error(
        "'{0}' is LUKS1; latchkey binds LUKS2\n\
         'cryptsetup convert --type luks2' converts the header while the volume is closed"
    )]
    Luks1(PathBuf),
    /// Reading the device failed.
    #[error("failed to read '{path}'")]
    Read {
        /// The device.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// crypttab cannot be read.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// crypttab has no line for the device.
    #[error(
        "'{device}' has no line in '{crypttab}', so nothing opens it at boot\n\
         add this line, then run this again:\n{line}"
    )]
    NoEntry {
        /// The device.
        device: PathBuf,
        /// The file.
        crypttab: PathBuf,
        /// What to add.
        line: String,
    },
    /// `--name` and crypttab disagree.
    #[error("'{crypttab}' has no line '{name}' for '{device}', but: {others}")]
    OtherName {
        /// The file.
        crypttab: PathBuf,
        /// As asked for.
        name: String,
        /// The device.
        device: PathBuf,
        /// The names that are there.
        others: String,
    },
    /// Several lines for one device.
    #[error("'{crypttab}' has several lines for '{device}': {names}\nchoose one with --name")]
    Several {
        /// The file.
        crypttab: PathBuf,
        /// The device.
        device: PathBuf,
        /// Their names.
        names: String,
    },
    /// The third field is not `none`.
    #[error(
        "'{name}' has the key file '{key}' in crypttab; the boot would use that and not latchkey\n\
         set the third field to 'none'; the passphrase prompt then remains beside latchkey"
    )]
    KeyFile {
        /// The mapping.
        name: String,
        /// The third field.
        key: PathBuf,
    },
    /// `keyscript=`.
    #[error(
        "'{0}' has a 'keyscript=' in crypttab, which would replace the passphrase prompt\n\
         remove that option"
    )]
    KeyScript(String),
}

impl Target {
    /// The LUKS2 device that `argument` means: a device, an image file, a mapping or a mount point.
    ///
    /// # Errors
    /// `Device`, `Luks1`, `Read`.
    pub fn find(argument: &Path) -> Result<Self, TargetError> {
        let device = device::find(argument)?;
        let probe = device::probe(&device).map_err(|source| TargetError::Read {
            path: device.clone(),
            source,
        })?;
        match probe {
            Probe::Luks2 { uuid } => Ok(Self { device, uuid }),
            Probe::Luks1 { .. } => Err(TargetError::Luks1(device)),
            Probe::NotLuks => Err(DeviceError::NotLuks(device).into()),
            Probe::Missing => Err(DeviceError::Missing(device).into()),
            Probe::NotADevice => Err(DeviceError::NotADevice(device).into()),
        }
    }

    /// Whether a crypttab entry means this device.
    pub fn is_meant_by(&self, entry: &Entry, files: &Files) -> bool {
        if let Source::Uuid(uuid) = &entry.source {
            return *uuid == self.uuid;
        }
        let Ok(Some(link)) = entry.source.resolve_below(files.root()) else {
            return false;
        };
        let same = |path: &Path| path.canonicalize().is_ok_and(|path| path == self.device);
        same(&link) || same(&files.root().join(link.strip_prefix("/").unwrap_or(&link)))
    }

    /// The crypttab entry by which the boot opens this device; `name` chooses among several.
    ///
    /// Options that latchkey does not honour are warned of: the boot then leaves the volume to the prompt.
    ///
    /// # Errors
    /// `Files`, `NoEntry`, `OtherName`, `Several`, `KeyFile`, `KeyScript`.
    pub fn entry(&self, files: &Files, name: Option<&str>) -> Result<Entry, TargetError> {
        let crypttab = files.crypttab();
        let mut entries = self.entries(files)?;
        let names = |entries: &[Entry]| {
            let names: Vec<String> = entries.iter().map(|e| format!("'{}'", e.name)).collect();
            names.join(", ")
        };
        if let Some(name) = name
            && !entries.is_empty()
        {
            let others = names(&entries);
            entries.retain(|entry| entry.name == name);
            if entries.is_empty() {
                return Err(TargetError::OtherName {
                    crypttab,
                    name: name.to_owned(),
                    device: self.device.clone(),
                    others,
                });
            }
        }
        if entries.len() > 1 {
            return Err(TargetError::Several {
                crypttab,
                device: self.device.clone(),
                names: names(&entries),
            });
        }
        let Some(entry) = entries.pop() else {
            return Err(TargetError::NoEntry {
                line: self.missing_line(name),
                device: self.device.clone(),
                crypttab,
            });
        };
        check_key(&entry)?;
        for option in entry.options.unsupported() {
            log::warn!(
                "'{}' has the option '{option}' in crypttab, which latchkey does not honour: \
                 while it is there, the boot leaves this volume to the passphrase",
                entry.name
            );
        }
        Ok(entry)
    }

    fn entries(&self, files: &Files) -> Result<Vec<Entry>, TargetError> {
        let mut entries = read_crypttab(files)?;
        entries.retain(|entry| self.is_meant_by(entry, files));
        Ok(entries)
    }

    fn missing_line(&self, name: Option<&str>) -> String {
        let open = mapping::mapping_on(&self.device).map(|mapping| mapping.name);
        let name = name.map(str::to_owned).or(open);
        let name = name.unwrap_or_else(|| format!("luks-{}", self.uuid));
        format!("{name} UUID={} none luks,initramfs", self.uuid)
    }
}

/// The entries of crypttab; lines that are none are warned of. Empty if there is no such file.
///
/// # Errors
/// `Read`, `Format`.
pub fn read_crypttab(files: &Files) -> Result<Vec<Entry>, FilesError> {
    let path = files.crypttab();
    if !path.exists() {
        return Ok(Vec::new());
    }
    let mut entries = Vec::new();
    for line in crypttab::parse(&files::read_text(&path)?) {
        match line {
            Ok(entry) => entries.push(entry),
            Err(error) => log::warn!("{error}; the line is passed over"),
        }
    }
    Ok(entries)
}

fn check_key(entry: &Entry) -> Result<(), TargetError> {
    let keyscript = |option: &String| option.starts_with("keyscript=");
    if entry.options.other.iter().any(keyscript) {
        return Err(TargetError::KeyScript(entry.name.clone()));
    }
    match &entry.key {
        Key::None => Ok(()),
        Key::File(key) => Err(TargetError::KeyFile {
            name: entry.name.clone(),
            key: key.clone(),
        }),
    }
}
