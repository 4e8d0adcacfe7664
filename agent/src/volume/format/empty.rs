//! Which device is empty.
//!
//! One that nobody uses, on which nothing is known, and where all that the new header takes holds zeros, and the first of the
//! data behind it: plain dm-crypt without a header looks like noise, and is not taken for free space.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;

use super::{DATA, FormatError, METADATA, SMALLEST};
use crate::volume::header::{HeaderCopy, MAGIC_SECONDARY};
use crate::volume::signature;

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
    let known = match signature::of(&begin) {
        // The second copy of a header whose first one a power cut has left out.
        None if read(&file, METADATA / 2, 8).map_err(failed)? == *MAGIC_SECONDARY => Some("LUKS"),
        known => known,
    };
    match known {
        Some("LUKS") => {
            let left = is_left_over(&file, device).map_err(failed)?;
            return match left && is_zero(&file, DATA..SMALLEST).map_err(failed)? {
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

/// What an interrupted run leaves: a LUKS2 header without keyslots and tokens, or a part of one without anything behind it.
fn is_left_over(file: &File, device: &Path) -> io::Result<bool> {
    let Ok(header) = HeaderCopy::read(device) else {
        return is_zero(file, METADATA..DATA);
    };
    let is_empty = |part: &str| {
        header.json()[part]
            .as_object()
            .is_some_and(|part| part.is_empty())
    };
    Ok(is_empty("keyslots") && is_empty("tokens"))
}

/// Whether `range` of a file holds nothing but zeros.
fn is_zero(file: &File, range: Range<u64>) -> io::Result<bool> {
    const PIECE: u64 = 1 << 20;
    let mut piece = vec![0; 1 << 20];
    let mut at = range.start;
    while at < range.end {
        let end = range.end.min((at / PIECE + 1) * PIECE);
        let part = &mut piece[..usize::try_from(end - at).unwrap_or(0)];
        file.read_exact_at(part, at)?;
        if part.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        at = end;
    }
    Ok(true)
}

fn read(file: &File, at: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}
