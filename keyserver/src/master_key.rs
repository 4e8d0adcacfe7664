//! The master key that all records are sealed under.

use std::path::{Path, PathBuf};

use latchkey_secret::{Secret, SecretError};

/// Name of the systemd credential.
pub const CREDENTIAL: &str = "latchkeyd.master-key";

/// 32 random bytes.
#[derive(Debug)]
pub struct MasterKey(Secret<32>);

/// The master key could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum MasterKeyError {
    /// There is none.
    #[error(
        "there is no master key in '{0}'\nmake a key server with 'latchkeyd init', or give the file that it made"
    )]
    Missing(PathBuf),
    /// There is one already.
    #[error(
        "'{0}' exists already\na master key is never overwritten; remove the file if it belongs to no store"
    )]
    Exists(PathBuf),
    /// Others may read it, or it belongs to someone else.
    #[error(
        "the master key '{path}' {problem}\nmake it readable for latchkeyd's user alone: chmod 600 '{path}'"
    )]
    Permissions {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Not 32 bytes.
    #[error("the master key '{0}' is not 32 bytes long")]
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
    /// Makes a key and writes it to the new file `path`, mode 0600.
    ///
    /// # Errors
    /// `Exists`, `File`, `Secret`.
    pub fn create(path: &Path) -> Result<Self, MasterKeyError> {
        let _ = path;
        unimplemented!()
    }

    /// Reads the key from the systemd credential [`CREDENTIAL`] if `credentials` (the value of
    /// `$CREDENTIALS_DIRECTORY`) has it, else from the file `path`, which must belong to us alone.
    ///
    /// # Errors
    /// `Missing`, `Permissions`, `Length`, `File`, `Secret`.
    pub fn load(path: &Path, credentials: Option<&Path>) -> Result<Self, MasterKeyError> {
        let _ = (path, credentials);
        unimplemented!()
    }

    /// A key from memory.
    pub fn from_secret(secret: Secret<32>) -> Self {
        Self(secret)
    }

    pub(crate) fn secret(&self) -> &Secret<32> {
        &self.0
    }
}
