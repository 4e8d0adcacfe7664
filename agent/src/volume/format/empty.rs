//! Which device is empty.
//!
//! One that nobody uses, on which nothing is known, and where all that the new header takes holds zeros, and the first of the
//! data behind it: plain dm-crypt without a header looks like noise, and is not taken for free space. An interrupted run of
//! ours has left its mark in the first sector.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::topology::data_offset;
use super::{DATA, FormatError};
use crate::volume::header::MAGIC_PRIMARY;
use crate::volume::signature;

/// In the subsystem label of a header that is not finished (LUKS2 on-disk format, 2.1).
pub(super) const MARK: &str = "latchkey: unfinished";
const SUBSYSTEM: usize = 208;
/// How much of the data is looked at.
const LOOKED_AT: u64 = 1 << 20;
/// udev holds the lock while it looks at a device.
const LOCK_LIMIT: Duration = Duration::from_secs(3);
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// A device that was found empty. As long as this lives nobody else mounts it or makes a mapping of it, and udev leaves it
/// alone (systemd.io/BLOCK_DEVICE_LOCKING).
#[derive(Debug)]
pub struct Empty {
    /// The device.
    pub path: PathBuf,
    /// Where the data of the new volume begin.
    pub(super) data: u64,
    file: Flock<File>,
}

impl Empty {
    /// Takes hold of `device`.
    ///
    /// # Errors
    /// `InUse`, `Known`, `Luks`, `Unknown`, `Small`, `Read`.
    pub fn find(device: &Path) -> Result<Self, FormatError> {
        Self::find_with(device, data_offset(device))
    }

    pub(super) fn find_with(device: &Path, data: u64) -> Result<Self, FormatError> {
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
                Some(errno) if errno == Errno::EBUSY as i32 => {
                    FormatError::InUse(device.to_owned())
                }
                _ => failed(error),
            })?;
        let file = lock(file).ok_or_else(|| FormatError::InUse(device.to_owned()))?;
        let empty = Self {
            path: device.to_owned(),
            data,
            file,
        };
        let size = io::Seek::seek(&mut &*empty.file, io::SeekFrom::End(0)).map_err(failed)?;
        if size < data + LOOKED_AT {
            return Err(FormatError::Small {
                device: device.to_owned(),
                least: (data + LOOKED_AT).div_ceil(1 << 20),
            });
        }
        empty.look(size).map_err(failed)??;
        Ok(empty)
    }

    /// The device, to be written to.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    fn look(&self, size: u64) -> io::Result<Result<(), FormatError>> {
        let known = |content| {
            Ok(Err(FormatError::Known {
                device: self.path.clone(),
                content,
            }))
        };
        for (content, at, magic) in signature::AT_END {
            let Some(at) = at(size) else { continue };
            if self.read(at, magic.len())? == *magic {
                return known(content);
            }
        }
        let begin = self.read(0, signature::LENGTH)?;
        let unused = self.is_zero(self.data..self.data + LOOKED_AT)?;
        Ok(match signature::of(&begin) {
            Some("LUKS") if is_unfinished(&begin) && unused => Ok(()),
            Some("LUKS") => Err(FormatError::Luks {
                device: self.path.clone(),
            }),
            Some(content) => return known(content),
            None if unused && self.is_zero(0..DATA)? => Ok(()),
            None => Err(FormatError::Unknown {
                device: self.path.clone(),
            }),
        })
    }

    /// Whether `range` holds nothing but zeros.
    fn is_zero(&self, range: Range<u64>) -> io::Result<bool> {
        const PIECE: usize = 1 << 20;
        let mut piece = vec![0; PIECE];
        let mut at = range.start;
        while at < range.end {
            let left = usize::try_from(range.end - at).unwrap_or(PIECE);
            let part = &mut piece[..left.min(PIECE)];
            self.file.read_exact_at(part, at)?;
            if part.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            at += part.len() as u64;
        }
        Ok(true)
    }

    fn read(&self, at: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }
}

/// Whether a header is one that an interrupted run began.
fn is_unfinished(begin: &[u8]) -> bool {
    begin.starts_with(MAGIC_PRIMARY) && begin[SUBSYSTEM..].starts_with(MARK.as_bytes())
}

/// `None` if somebody else keeps it locked.
fn lock(mut file: File) -> Option<Flock<File>> {
    let until = Instant::now() + LOCK_LIMIT;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Some(locked),
            Err((unlocked, Errno::EWOULDBLOCK)) if Instant::now() < until => {
                file = unlocked;
                thread::sleep(LOCK_PAUSE);
            }
            Err(_) => return None,
        }
    }
}
