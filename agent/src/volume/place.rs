//! Where a volume's header and data lie, and of which kind it is.
//!
//! crypttab decides: `plain` is plain dm-crypt whatever the device begins with, `header=` is a header elsewhere, and
//! otherwise the device's first bytes tell. Nothing here is trusted: automatic opening insists on what was bound.

use std::path::{Path, PathBuf};

use super::crypttab::{Entry, Format, Options, PlainOptions};
use super::header::{HeaderCopy, HeaderError};
use super::luks1::Luks1Copy;
use super::source::SourceError;
use crate::files::Files;

/// Where a volume lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The device with the encrypted data.
    pub device: PathBuf,
    /// Where its header lies.
    pub header: HeaderPlace,
}

/// Where a header lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderPlace {
    /// In front of the data.
    Attached,
    /// In this file, or on this device.
    Detached(PathBuf),
    /// There is none: plain dm-crypt, with what crypttab says of it.
    None(PlainOptions),
}

/// A kind of volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// LUKS2, its header in front of the data.
    Luks2,
    /// LUKS2, its header elsewhere.
    DetachedLuks2,
    /// LUKS1, its header in front of the data.
    Luks1,
    /// LUKS1 with its header elsewhere, which latchkey does not bind.
    DetachedLuks1,
    /// Plain dm-crypt.
    Plain,
}

impl Place {
    /// A volume whose header stands in front of its data.
    pub fn attached(device: impl Into<PathBuf>) -> Self {
        Self {
            device: device.into(),
            header: HeaderPlace::Attached,
        }
    }

    /// What the options of crypttab say about `device`; a header in a file is looked for below `root`.
    pub fn of(options: &Options, device: impl Into<PathBuf>, root: &Path) -> Self {
        let header = match (&options.format, &options.header) {
            (Format::Plain, _) => HeaderPlace::None(options.plain.clone()),
            (_, Some(header)) => {
                HeaderPlace::Detached(root.join(header.strip_prefix("/").unwrap_or(header)))
            }
            (_, None) => HeaderPlace::Attached,
        };
        Self {
            device: device.into(),
            header,
        }
    }

    /// Where the volume of a line of crypttab lies on the machine of `files`; `None` if its device is not there.
    ///
    /// # Errors
    /// The line's source means two devices.
    pub fn of_entry(entry: &Entry, files: &Files) -> Result<Option<Self>, SourceError> {
        let device = entry.source.resolve_below(files.root())?;
        let device = device.map(|device| files.path(&device.to_string_lossy()));
        Ok(device.map(|device| Self::of(&entry.options, device, files.root())))
    }

    /// The device or file with the LUKS header, if there is to be one.
    pub fn luks_header(&self) -> Option<&Path> {
        match &self.header {
            HeaderPlace::Attached => Some(&self.device),
            HeaderPlace::Detached(header) => Some(header),
            HeaderPlace::None(_) => None,
        }
    }

    /// Which kind it is now, and the UUID in its header.
    ///
    /// # Errors
    /// `NotLuks1` if there is neither kind of header; `Read`, `Damaged`, `Memory`.
    pub fn identify(&self) -> Result<(Kind, Option<String>), HeaderError> {
        let Some(header) = self.luks_header() else {
            return Ok((Kind::Plain, None));
        };
        let detached = matches!(self.header, HeaderPlace::Detached(_));
        match HeaderCopy::read(header) {
            Ok(copy) => {
                let kind = if detached {
                    Kind::DetachedLuks2
                } else {
                    Kind::Luks2
                };
                Ok((kind, Some(copy.uuid().to_owned())))
            }
            Err(HeaderError::NotLuks2(_)) => {
                let copy = Luks1Copy::read(header, &self.device)?;
                let kind = if detached {
                    Kind::DetachedLuks1
                } else {
                    Kind::Luks1
                };
                Ok((kind, Some(copy.facts().uuid.clone())))
            }
            Err(error) => Err(error),
        }
    }
}

impl Kind {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Luks2 => "LUKS2",
            Self::DetachedLuks2 => "LUKS2 with a detached header",
            Self::Luks1 => "LUKS1",
            Self::DetachedLuks1 => "LUKS1 with a detached header",
            Self::Plain => "plain dm-crypt",
        }
    }

    /// Of a binding.
    pub fn of_bound(bound: &latchkey_protocol::envelope::Bound) -> Self {
        use latchkey_protocol::envelope::Bound;
        match bound {
            Bound::Luks2(_) => Self::Luks2,
            Bound::DetachedLuks2(_) => Self::DetachedLuks2,
            Bound::Luks1(_) => Self::Luks1,
            Bound::Plain(_) => Self::Plain,
        }
    }
}
