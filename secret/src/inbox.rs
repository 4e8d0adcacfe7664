//! A file in memory that another program writes a secret to.
//!
//! A pipe would leave what went through it on a page that the kernel frees as it is. This file's pages are mapped, so
//! they are wiped in place, by the guardian too if this process is killed.

use std::fmt;
use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::OwnedFd;
use std::ptr;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::memory::{Mapping, SecretBytes, SecretError};

/// The file, of a fixed size. Dropping it wipes what was written.
pub struct Inbox {
    file: File,
    mapping: Option<Mapping>,
}

impl Inbox {
    /// An empty one with room for `capacity` bytes; a write that goes beyond them fails (EPERM).
    ///
    /// # Errors
    /// What memfd_create(2), ftruncate(2), fcntl(2) or mmap(2) fail with.
    pub fn new(capacity: usize) -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(c"latchkey", flags)?);
        file.set_len(u64::try_from(capacity).map_err(io::Error::other)?)?;
        let fixed = SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(fixed))?;
        let mapping = Mapping::of_file(&file, capacity).ok_or_else(io::Error::last_os_error)?;
        Ok(Self {
            file,
            mapping: Some(mapping),
        })
    }

    /// What the writer gets, as its standard output say. All copies have one position.
    ///
    /// # Errors
    /// What fcntl(2) fails with.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    /// All that was written so far, by a program that has ended; the file's copy is wiped.
    ///
    /// # Errors
    /// `Memory`, `Read`.
    pub fn take(mut self) -> Result<SecretBytes, SecretError> {
        let written = self.file.stream_position().map_err(SecretError::Read)?;
        let bytes = self.bytes();
        let length = usize::try_from(written).map_or(bytes.len(), |length| length.min(bytes.len()));
        let mut secret = SecretBytes::with_capacity(length)?;
        secret.push(&bytes[..length])?;
        Ok(secret)
    }

    fn bytes(&mut self) -> &mut [u8] {
        let Some(mapping) = &self.mapping else {
            return &mut [];
        };
        let (start, size) = mapping.range();
        // SAFETY: the mapping has `size` bytes, which the seals keep in the file, until it is taken out in drop. Whoever
        // else has the file open writes to it with write(2) only, and has ended when the bytes are read.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), size) }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        if !crate::CONTROL {
            for byte in self.bytes() {
                // SAFETY: a byte of ours; volatile, since nobody reads it through this mapping again.
                unsafe { ptr::write_volatile(byte, 0) };
            }
        }
        if let Some(mapping) = self.mapping.take() {
            mapping.unmap();
        }
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Inbox(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;
    use std::process::{Command, Stdio};

    use super::*;

    fn written_by(script: &str, capacity: usize) -> (SecretBytes, Vec<u8>) {
        let inbox = Inbox::new(capacity).unwrap();
        let copy = File::from(inbox.descriptor().unwrap());
        let output = Stdio::from(inbox.descriptor().unwrap());
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", script]).stdout(output).status().unwrap();
        let secret = inbox.take().unwrap();
        let mut left = vec![1; capacity];
        copy.read_exact_at(&mut left, 0).unwrap();
        (secret, left)
    }

    #[test]
    fn what_a_program_wrote_is_taken_and_nothing_stays() {
        let (secret, left) = written_by("printf 'one '; printf two", 5000);
        assert_eq!(secret.expose_secret(), b"one two");
        assert_eq!(left, [0; 5000]);
        assert!(written_by("true", 100).0.is_empty());
    }

    #[test]
    fn there_is_no_more_room_than_was_said() {
        let (secret, _) = written_by("printf 12345678", 8);
        assert_eq!(secret.expose_secret(), b"12345678");
        let inbox = Inbox::new(8).unwrap();
        let mut file = File::from(inbox.descriptor().unwrap());
        assert!(file.write_all(b"123456789").is_err());
        assert!(file.set_len(9).is_err());
        assert!(inbox.take().unwrap().len() <= 8);
    }
}
