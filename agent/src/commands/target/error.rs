//! Why a command's argument means no volume that it can be about.

use std::path::PathBuf;

use crate::files::FilesError;
use crate::volume::crypttab::LineError;
use crate::volume::device::DeviceError;
use crate::volume::header::HeaderError;
use crate::volume::source::SourceError;

/// A command's argument means no volume that latchkey can bind.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// No LUKS device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No LUKS device, and only a line of crypttab could say what it is.
    #[error(
        "'{0}' is not encrypted with LUKS, and no line of crypttab says otherwise\n\
         if it is plain dm-crypt or has its header elsewhere, put its line back into crypttab and run this again"
    )]
    NoLine(PathBuf),
    /// LUKS1 with its header elsewhere.
    #[error(
        "'{0}' is LUKS1 with a detached header, which latchkey does not bind\n\
         'cryptsetup convert --type luks2' on the header converts it while the volume is closed"
    )]
    DetachedLuks1(PathBuf),
    /// crypttab names it, without a word on what it is if there is no header.
    #[error(
        "'{device}' has no LUKS header, and its line '{name}' in crypttab does not say 'plain'\n\
         if it is plain dm-crypt, write 'plain' among the options of that line"
    )]
    NotPlain {
        /// The device.
        device: PathBuf,
        /// The mapping of the line.
        name: String,
    },
    /// `header=` names something else.
    #[error("'{0}', which 'header=' names, has no LUKS header")]
    NoHeader(PathBuf),
    /// The header cannot be read.
    #[error(transparent)]
    Header(HeaderError),
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
    #[error("'{device}' has no line in '{crypttab}', so nothing opens it at boot")]
    NoEntry {
        /// The device.
        device: PathBuf,
        /// The file.
        crypttab: PathBuf,
    },
    /// `--options`, but there is a line.
    #[error(
        "'{device}' has the line '{name}' in '{crypttab}' already\n\
         change its options there; --options is for a volume without a line"
    )]
    Present {
        /// The device.
        device: PathBuf,
        /// The mapping of the line.
        name: String,
        /// The file.
        crypttab: PathBuf,
    },
    /// Its line in crypttab was renamed, its envelope file not.
    #[error(
        "'{device}' was bound under another name, which its envelope file still has\n\
         rename '{}' to '{}', and rebuild the initramfs if that opens it",
        .from.display(), .to.display()
    )]
    Renamed {
        /// The device.
        device: PathBuf,
        /// The file.
        from: PathBuf,
        /// What it is to be called.
        to: PathBuf,
    },
    /// Nothing tells what the mapping is to be called.
    #[error("'{0}' has no line in crypttab\nchoose the name of its mapping with --name")]
    NoName(PathBuf),
    /// `--name` and device-mapper disagree. What names the mapping, such as `root=`, would not find it in the next boot, and
    /// whether root lies on the volume is told by the name that it has.
    #[error(
        "'{device}' is open as '{open}'; with the name '{chosen}' in crypttab nothing would find it where it is expected now\n\
         leave --name out, close it first, or write its line into crypttab yourself"
    )]
    OpenAs {
        /// The device.
        device: PathBuf,
        /// The mapping that is there.
        open: String,
        /// As asked for.
        chosen: String,
    },
    /// A line of that name means nothing.
    #[error("{0}\ncorrect that line, or choose another name with --name")]
    Line(LineError),
    /// Another device's line has that name.
    #[error("'{crypttab}' has a line '{name}' for another device\nchoose another name with --name")]
    NameTaken {
        /// The name.
        name: String,
        /// The file.
        crypttab: PathBuf,
    },
    /// No mapping can be called so.
    #[error("'{0}' cannot be the name of a mapping\nchoose another one with --name")]
    NewName(String),
    /// No fourth field of a line can be so.
    #[error(
        "'{0}' cannot be the options of a line in crypttab\nwrite them with commas and without white space"
    )]
    NewOptions(String),
    /// Options that change how the volume is opened.
    #[error(
        "'{name}' has the option '{options}' in crypttab, which latchkey does not know how to honour; \
         the boot would leave this volume to the passphrase\n\
         remove it, or leave this volume unbound"
    )]
    Unsupported {
        /// The mapping.
        name: String,
        /// As written.
        options: String,
    },
    /// crypttab's source is on two devices.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// `swap` or `tmp`.
    #[error(
        "'{name}' has the option '{option}' in crypttab: it is formatted anew whenever it is opened, so there is nothing to bind\n\
         remove the option if what it holds is to stay, as for a swap area to resume from"
    )]
    Formatted {
        /// The mapping.
        name: String,
        /// As written.
        option: String,
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
    /// `--format`, but crypttab says that there is no header on the device, or would.
    #[error(
        "the options of '{0}' say that this device is plain dm-crypt or has its header elsewhere; nothing was changed"
    )]
    NoPlaceForHeader(String),
    /// `keyscript=`.
    #[error(
        "'{0}' has a 'keyscript=' in crypttab, which would replace the passphrase prompt\n\
         remove that option"
    )]
    KeyScript(String),
}
