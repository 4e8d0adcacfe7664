//! Reading and writing files that hold after a power cut and that only root reads.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use latchkey_secret::{SecretBytes, SecretError};

use super::FilesError;

/// Most bytes of any file that we read as a whole.
const FILE_LIMIT: u64 = 256 * 1024;
/// Most bytes of a private key file.
const KEY_LIMIT: usize = 4096;
/// Mode of every file we write.
pub(super) const FILE_MODE: u32 = 0o600;
/// Mode of every folder we make.
const DIR_MODE: u32 = 0o700;

/// The content of a file of at most 256 KiB.
///
/// # Errors
/// `Read`.
pub fn read(path: &Path) -> Result<Vec<u8>, FilesError> {
    let error = |source| FilesError::Read {
        path: path.to_owned(),
        source,
    };
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_LIMIT + 1).read_to_end(&mut content))
        .map_err(error)?;
    if content.len() as u64 > FILE_LIMIT {
        return Err(error(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("the file is larger than {FILE_LIMIT} bytes"),
        )));
    }
    Ok(content)
}

/// As [`read`], for UTF-8 text.
///
/// # Errors
/// `Read`, `Format`.
pub fn read_text(path: &Path) -> Result<String, FilesError> {
    String::from_utf8(read(path)?).map_err(|_| FilesError::Format {
        path: path.to_owned(),
        reason: "it is not UTF-8 text".to_owned(),
    })
}

/// As [`read`], for a text that others write and of which a comment may be in any encoding: bytes that are not UTF-8 become
/// U+FFFD.
///
/// # Errors
/// `Read`.
pub fn read_lossy(path: &Path) -> Result<String, FilesError> {
    Ok(String::from_utf8_lossy(&read(path)?).into_owned())
}

/// A private key's file, read onto locked pages.
///
/// # Errors
/// `ReadKey`.
pub fn read_key(path: &Path) -> Result<SecretBytes, FilesError> {
    let error = |source| FilesError::ReadKey {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(|source| error(SecretError::Read(source)))?;
    SecretBytes::read_from(&mut file, KEY_LIMIT).map_err(error)
}

/// Makes the folder `path` and those above it, 0700 each where they did not exist.
///
/// # Errors
/// `Write`.
pub fn make_dir(path: &Path) -> Result<(), FilesError> {
    DirBuilder::new()
        .recursive(true)
        .mode(DIR_MODE)
        .create(path)
        .map_err(|source| FilesError::Write {
            path: path.to_owned(),
            source,
        })
}

/// Writes a file that must not exist yet, 0600, and syncs it. A failure leaves none.
///
/// # Errors
/// `Write`.
pub fn write_new(path: &Path, content: &[u8]) -> Result<(), FilesError> {
    create(path, content).map_err(|source| FilesError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Writes or replaces a file, 0600: after a power cut it holds the old or the new content, nothing between.
///
/// # Errors
/// `Write`.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), FilesError> {
    let new = unfinished(path);
    let write = || {
        // What an interrupted run left is worth nothing.
        remove_if_there(&new)?;
        create(&new, content)?;
        fs::rename(&new, path)?;
        sync_dir_of(path)
    };
    write().map_err(|source| FilesError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Renames a file or folder within one folder, durably.
///
/// # Errors
/// `Write`.
pub fn rename(from: &Path, to: &Path) -> Result<(), FilesError> {
    fs::rename(from, to)
        .and_then(|()| sync_dir_of(to))
        .map_err(|source| FilesError::Write {
            path: to.to_owned(),
            source,
        })
}

/// What was `read` of a file that need not exist.
///
/// # Errors
/// Those of `read`, but for the file's absence.
pub fn if_any<T>(read: Result<T, FilesError>) -> Result<Option<T>, FilesError> {
    match read {
        Err(error) if error.is_missing() => Ok(None),
        read => read.map(Some),
    }
}

/// Makes durable what another program wrote into a file.
///
/// # Errors
/// `Write`.
pub fn sync(path: &Path) -> Result<(), FilesError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|source| FilesError::Write {
            path: path.to_owned(),
            source,
        })
}

/// Removes a file, durably, and what an interrupted [`replace`] of it left; it need not exist.
///
/// # Errors
/// `Write`.
pub fn remove(path: &Path) -> Result<(), FilesError> {
    let remove = || {
        let unfinished = remove_if_there(&unfinished(path))?;
        if remove_if_there(path)? || unfinished {
            sync_dir_of(path)?;
        }
        Ok(())
    };
    remove().map_err(|source| FilesError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Removes a folder with all that is in it, durably; it need not exist.
///
/// # Errors
/// `Write`.
pub fn remove_dir(path: &Path) -> Result<(), FilesError> {
    let removed = match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result.and_then(|()| sync_dir_of(path)),
    };
    removed.map_err(|source| FilesError::Write {
        path: path.to_owned(),
        source,
    })
}

/// What [`replace`] writes before it gives it the name `path`, and [`remove`] removes too.
pub fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

/// Whether it was there.
fn remove_if_there(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        result => result.map(|()| true),
    }
}

fn create(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(path)?;
    let written = file
        .write_all(content)
        .and_then(|()| file.sync_all())
        .and_then(|()| sync_dir_of(path));
    // Nobody is to take it for what it was to be.
    if written.is_err()
        && let Err(error) = fs::remove_file(path)
    {
        log::warn!("failed to remove '{}': {error}", path.display());
    }
    written
}

fn sync_dir_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => File::open(".")?.sync_all(),
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use nix::unistd::{Uid, setfsuid};

    use super::*;

    #[test]
    fn what_we_write_is_for_root_alone_and_replaced_whole() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        make_dir(path.parent().unwrap()).unwrap();
        replace(&path, b"one").unwrap();
        write_new(&path.with_file_name("b.new"), b"left by a crash").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(read(&path).unwrap(), b"two");
        assert!(write_new(&path, b"three").is_err());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        write_new(&path.with_file_name("b.new"), b"left by a crash").unwrap();
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_cannot_be_made_durable_is_not_left() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("sheet");
        // It can be written to, but not be opened to be synced, by anybody but root.
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o333)).unwrap();
        std::thread::scope(|threads| {
            threads.spawn(|| {
                setfsuid(Uid::from_raw(65534)); // of this thread alone
                assert!(write_new(&path, b"a key").is_err());
            });
        });
        assert!(!path.exists());
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o700)).unwrap();
        write_new(&path, b"somebody's").unwrap();
        assert!(write_new(&path, b"a key").is_err());
        assert_eq!(read(&path).unwrap(), b"somebody's");
    }

    #[test]
    fn oversized_files_and_keys_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a");
        write_new(&path, &vec![b'x'; FILE_LIMIT as usize + 1]).unwrap();
        assert!(read(&path).is_err());
        assert!(read_key(&path).is_err());
    }
}
