//! Seals records before they reach the store.

use std::sync::Mutex;

use latchkey_secret::{SecretBytes, SecretError};

use crate::master_key::MasterKey;
use crate::store::{Store, StoreError};

/// A store whose records are sealed under a master key.
pub struct SealedStore {
    store: Box<dyn Store>,
    master: MasterKey,
    writer: Mutex<()>,
}

/// A record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// The master key is not the one that this store was made with.
    #[error(
        "the master key is not the one of this store\ngive the master key that 'latchkeyd init' made together with this store"
    )]
    WrongMasterKey,
    /// The store has been set up already.
    #[error("the store is set up already\nnothing was changed")]
    Exists,
    /// The store has never been set up.
    #[error("the store is empty\nset it up with 'latchkeyd init'")]
    Empty,
    /// A record was changed, swapped or damaged.
    #[error("record '{0}' is damaged or was tampered with\nrestore the store from a backup")]
    Damaged(String),
    /// A record that must be there is not.
    #[error("record '{0}' is missing\nrestore the store from a backup")]
    Missing(String),
    /// Others changed the same records again and again.
    #[error("too many changes at once")]
    Contention,
    /// No memory or no randomness.
    #[error("no memory for a secret")]
    Secret(#[from] SecretError),
}

impl SealedStore {
    /// Sets an empty store up for `master`.
    ///
    /// # Errors
    /// `Exists`, `Store`.
    pub fn create(store: Box<dyn Store>, master: MasterKey) -> Result<Self, RecordError> {
        let _ = (store, master);
        unimplemented!()
    }

    /// Opens a store that was set up with `master`.
    ///
    /// # Errors
    /// `Empty`, `WrongMasterKey`, `Damaged`, `Store`.
    pub fn open(store: Box<dyn Store>, master: MasterKey) -> Result<Self, RecordError> {
        let _ = (store, master);
        unimplemented!()
    }

    /// Keeps `bytes` under `name`, such as the CA's private key; replaces what was there.
    ///
    /// # Errors
    /// `Store`.
    pub fn put_secret(&self, name: &str, bytes: &[u8]) -> Result<(), RecordError> {
        let _ = (name, bytes, &self.store, &self.master, &self.writer);
        unimplemented!()
    }

    /// What was kept under `name`.
    ///
    /// # Errors
    /// `Damaged`, `Store`.
    pub fn secret(&self, name: &str) -> Result<Option<SecretBytes>, RecordError> {
        let _ = name;
        unimplemented!()
    }
}
