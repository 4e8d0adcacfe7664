//! The lock beside a store: two servers on one store would each believe in their own audit.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::StoreError;

/// Held for as long as the store is open; the kernel lets go when the process ends, however it ends.
#[derive(Debug)]
pub struct StoreLock {
    _file: File,
}

impl StoreLock {
    /// Takes the lock file `store.lock` in `directory` (flock(2)) and leaves our process number in it.
    ///
    /// # Errors
    /// `InUse`, `ReadOnly`, `Full`, `File`.
    pub fn take(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join("store.lock");
        let failed = |action| {
            let path = path.clone();
            move |source: io::Error| match source.kind() {
                io::ErrorKind::ReadOnlyFilesystem => StoreError::ReadOnly(directory.to_owned()),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    StoreError::Full(directory.to_owned())
                }
                _ => StoreError::File {
                    action,
                    path,
                    source: source.into(),
                },
            }
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::InUse {
                    directory: directory.to_owned(),
                    holder: holder(&mut file),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed("lock")(source)),
        }
        // Only for the message above; a full disk is no reason to refuse to serve what can be read.
        let noted = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        match noted {
            Err(error) if error.kind() != io::ErrorKind::StorageFull => Err(failed("write")(error)),
            _ => Ok(Self { _file: file }),
        }
    }
}

/// Who wrote its number into the lock file.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.take(20).read_to_string(&mut text);
    match (read, text.trim().parse::<u32>()) {
        (Ok(_), Ok(number)) => match fs::read_to_string(format!("/proc/{number}/comm")) {
            Ok(name) => format!("process {number} ('{}')", name.trim().escape_default()),
            Err(_) => format!("process {number}"),
        },
        _ => "another process".to_owned(),
    }
}
