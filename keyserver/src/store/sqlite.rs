//! The embedded store: one SQLite file.

use std::path::Path;

use super::{Entry, Outcome, Store, StoreError, Transaction, Versioned};

/// The file `store.sqlite3` in a folder of its own.
pub struct SqliteStore {}

impl SqliteStore {
    /// Makes a new store in `directory` (made 0700 if it is missing).
    ///
    /// # Errors
    /// `Exists`, `InUse`, `Permissions`, `ReadOnly`, `Full`, `File`, `Database`.
    pub fn create(directory: &Path) -> Result<Self, StoreError> {
        let _ = directory;
        unimplemented!()
    }

    /// Opens the store in `directory`, for this process alone.
    ///
    /// # Errors
    /// `Missing`, `InUse`, `Permissions`, `ReadOnly`, `Damaged`, `Schema`, `Full`, `File`, `Database`.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let _ = directory;
        unimplemented!()
    }
}

impl Store for SqliteStore {
    fn get(&self, _: &str) -> Result<Option<Versioned>, StoreError> {
        unimplemented!()
    }
    fn range(&self, _: &str, _: Option<&str>, _: usize) -> Result<Vec<Entry>, StoreError> {
        unimplemented!()
    }
    fn commit(&self, _: &Transaction) -> Result<Outcome, StoreError> {
        unimplemented!()
    }
    fn erase_traces(&self) -> Result<(), StoreError> {
        unimplemented!()
    }
}
