//! The master key that all records are sealed under: 32 bytes from a file or a systemd credential.
//!
//! It lies outside the store's folder, so that a copy of the store alone holds nothing that opens.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use latchkey_secret::{Secret, SecretBytes, SecretError};

/// Name of the systemd credential.
pub const CREDENTIAL: &str = "latchkeyd.master-key";

const LENGTH: usize = 32;

/// 32 random bytes. `Debug` shows none of them.
#[derive(Debug)]
pub struct MasterKey(Secret<LENGTH>);

/// The master key could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum MasterKeyError {
    /// There is none.
    #[error(
        "there is no master key in '{0}'\ngive the file that 'latchkeyd init' made, or restore it from a backup"
    )]
    Missing(PathBuf),
    /// There is one already.
    #[error(
        "'{0}' exists already\na master key is never overwritten; remove the file if it belongs to no store"
    )]
    Exists(PathBuf),
    /// Others may read it, or it belongs to someone else.
    #[error(
        "the master key '{path}' {problem}\nonly latchkeyd's user may read it: chown and chmod 600 '{path}'"
    )]
    Permissions {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Not 32 bytes.
    #[error(
        "the master key '{0}' is not 32 bytes long\ngive the file that 'latchkeyd init' made, or restore it from a backup"
    )]
    Length(PathBuf),
    /// It could not be read or written.
    #[error("failed to {action} the master key '{path}'")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// No memory or no randomness.
    #[error("no memory for the master key")]
    Secret(#[from] SecretError),
}

impl MasterKey {
    /// Makes a key and writes it to the new file `path`, mode 0600; a missing folder is made with mode 0700.
    ///
    /// # Errors
    /// `Exists`, `File`, `Secret`. No file is left behind then.
    pub fn create(path: &Path) -> Result<Self, MasterKeyError> {
        let failed = |action| move |source| file_error(action, path, source);
        if let Some(folder) = folder_of(path) {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(failed("make the folder of"))?;
        }
        // What a run left that ended between making the file and writing the key. No key is overwritten by that.
        if fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() == 0) {
            fs::remove_file(path).map_err(failed("make anew"))?;
        }
        let secret = Secret::random()?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(failed("create"))?;
        let written = file
            .write_all(secret.expose_secret())
            .and_then(|()| file.sync_all())
            .and_then(|()| File::open(folder_of(path).unwrap_or(Path::new(".")))?.sync_all());
        if let Err(source) = written {
            // A key that may not survive a power cut must not be used: take it back.
            drop(fs::remove_file(path));
            return Err(file_error("write", path, source));
        }
        Ok(Self(secret))
    }

    /// Reads the key from the systemd credential [`CREDENTIAL`] if `credentials` (the value of
    /// `$CREDENTIALS_DIRECTORY`) has it, else from the file `path`, which must belong to us alone.
    ///
    /// # Errors
    /// `Missing`, `Permissions`, `Length`, `File`, `Secret`.
    pub fn load(path: &Path, credentials: Option<&Path>) -> Result<Self, MasterKeyError> {
        if let Some(folder) = credentials {
            // systemd guards its credentials itself, partly by ACLs that a mode cannot show.
            match Self::read(&folder.join(CREDENTIAL), |_| None) {
                Err(MasterKeyError::Missing(_)) => {}
                result => return result,
            }
        }
        Self::read(path, |metadata| {
            let mode = metadata.mode() & 0o7777;
            if metadata.uid() != nix::unistd::geteuid().as_raw() {
                Some(format!("belongs to user {}", metadata.uid()))
            } else if mode & 0o077 != 0 {
                Some(format!("has mode {mode:04o}, so others may read it"))
            } else {
                None
            }
        })
    }

    /// A key from memory.
    pub fn from_secret(secret: Secret<LENGTH>) -> Self {
        Self(secret)
    }

    pub(crate) fn secret(&self) -> &Secret<LENGTH> {
        &self.0
    }

    fn read(
        path: &Path,
        problem: impl Fn(&fs::Metadata) -> Option<String>,
    ) -> Result<Self, MasterKeyError> {
        let failed = |source| file_error("read", path, source);
        let mut file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(MasterKeyError::Length(path.to_owned()));
        }
        if let Some(problem) = problem(&metadata) {
            return Err(MasterKeyError::Permissions {
                path: path.to_owned(),
                problem,
            });
        }
        let bytes = match SecretBytes::read_from(&mut file, LENGTH) {
            Err(SecretError::TooLong(_)) => return Err(MasterKeyError::Length(path.to_owned())),
            Err(SecretError::Read(source)) => return Err(failed(source)),
            result => result?,
        };
        if bytes.len() != LENGTH {
            return Err(MasterKeyError::Length(path.to_owned()));
        }
        let mut secret = Secret::zeroed()?;
        secret
            .expose_secret_mut()
            .copy_from_slice(bytes.expose_secret());
        Ok(Self(secret))
    }
}

fn folder_of(path: &Path) -> Option<&Path> {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
}

fn file_error(action: &'static str, path: &Path, source: std::io::Error) -> MasterKeyError {
    let path = path.to_owned();
    match source.kind() {
        ErrorKind::NotFound if action == "read" => MasterKeyError::Missing(path),
        ErrorKind::AlreadyExists => MasterKeyError::Exists(path),
        _ => MasterKeyError::File {
            action,
            path,
            source,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_reads_back_from_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/master.key");
        let made = MasterKey::create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        let read = MasterKey::load(&path, None).unwrap();
        assert!(made.0.matches(&read.0));
        assert_eq!(format!("{read:?}"), "MasterKey(Secret<32>(..))");
    }

    #[test]
    fn a_key_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        MasterKey::create(&path).unwrap();
        let before = fs::read(&path).unwrap();
        assert!(matches!(
            MasterKey::create(&path),
            Err(MasterKeyError::Exists(_))
        ));
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn an_empty_file_is_no_key_and_stands_in_no_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        fs::write(&path, []).unwrap();
        let made = MasterKey::create(&path).unwrap();
        assert!(made.0.matches(&MasterKey::load(&path, None).unwrap().0));
    }

    #[test]
    fn a_credential_comes_before_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        MasterKey::create(&path).unwrap();
        fs::write(folder.path().join(CREDENTIAL), [7; 32]).unwrap();
        let read = MasterKey::load(&path, Some(folder.path())).unwrap();
        assert_eq!(read.0.expose_secret(), &[7; 32]);
        let elsewhere = tempfile::tempdir().unwrap();
        let read = MasterKey::load(&path, Some(elsewhere.path())).unwrap();
        assert_ne!(read.0.expose_secret(), &[7; 32]);
    }

    #[test]
    fn files_that_are_no_guarded_key_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        let load = || MasterKey::load(&path, None).unwrap_err();
        assert!(matches!(load(), MasterKeyError::Missing(_)));
        for length in [0, 31, 33, 4096] {
            fs::write(&path, vec![1; length]).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            assert!(matches!(load(), MasterKeyError::Length(_)), "{length}");
        }
        fs::write(&path, [1; 32]).unwrap();
        for mode in [0o640, 0o604, 0o644] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(
                matches!(load(), MasterKeyError::Permissions { .. }),
                "{mode:o}"
            );
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(matches!(load(), MasterKeyError::Length(_)));
    }
}
