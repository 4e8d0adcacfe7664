//! The store as the server sees it: records that are sealed ([`crate::sealer`]) before they reach the backend.
//!
//! It also keeps a few secrets of the network side. All other changes go through [`crate::ledger`].

use std::sync::Arc;

use latchkey_secret::{SecretBytes, SecretError};
use tokio::sync::Mutex;

use crate::group::Writer;
use crate::master_key::MasterKey;
use crate::records::key;
use crate::sealer::Sealer;
use crate::store::{Operation, Outcome, Store, StoreError, Transaction};

/// The record that tells whether a master key is the store's, and that the store was set up.
const CHECK: &str = "check";

/// A store whose records are sealed under a master key.
pub struct SealedStore {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) sealer: Arc<Sealer>,
    /// Writes what is ready.
    pub(crate) writer: Writer,
    /// Held by whoever was overtaken, until its work is done: two of them never overtake each other.
    pub(crate) overtaken: Mutex<()>,
}

/// A record could not be read or written. One failure can concern several writers, so it can be cloned.
#[derive(Debug, Clone, thiserror::Error)]
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
    /// There is no thread to write with.
    #[error("failed to start the thread that writes")]
    Start(#[source] Arc<std::io::Error>),
    /// No memory or no randomness.
    #[error("no memory for a secret")]
    Secret(#[source] Arc<SecretError>),
}

impl From<SecretError> for RecordError {
    fn from(error: SecretError) -> Self {
        Self::Secret(Arc::new(error))
    }
}

impl SealedStore {
    /// Sets an empty store up for `master`.
    ///
    /// # Errors
    /// `Exists`, `Store`, `Secret`, `Start`.
    pub fn create(store: Box<dyn Store>, master: MasterKey) -> Result<Self, RecordError> {
        if !store.range("", None, 1)?.is_empty() {
            return Err(RecordError::Exists);
        }
        let sealed = Self::with(store, master)?;
        sealed.put(CHECK, sealed.sealer.seal_check(CHECK)?)?;
        Ok(sealed)
    }

    /// Opens a store that was set up with `master`.
    ///
    /// # Errors
    /// `Empty`, `WrongMasterKey`, `Damaged`, `Store`, `Secret`, `Start`.
    pub fn open(store: Box<dyn Store>, master: MasterKey) -> Result<Self, RecordError> {
        let sealed = Self::with(store, master)?;
        let stored = sealed.store.get(CHECK)?.ok_or(RecordError::Empty)?;
        sealed.sealer.check(CHECK, &stored.value)?;
        Ok(sealed)
    }

    /// Keeps `bytes` under `name`, such as the CA's private key; replaces what was there.
    ///
    /// # Errors
    /// `Store`, `Secret`.
    pub fn put_secret(&self, name: &str, bytes: &[u8]) -> Result<(), RecordError> {
        let key = key::secret(name);
        self.put(&key, self.sealer.seal(&key, bytes)?)
    }

    /// What was kept under `name`.
    ///
    /// # Errors
    /// `Damaged`, `Store`, `Secret`.
    pub fn secret(&self, name: &str) -> Result<Option<SecretBytes>, RecordError> {
        let key = key::secret(name);
        match self.store.get(&key)? {
            Some(stored) => self.sealer.unseal_bytes(&key, &stored.value).map(Some),
            None => Ok(None),
        }
    }

    /// Whether nothing is written any more until the store is opened anew.
    pub fn has_stopped(&self) -> bool {
        self.store.has_stopped()
    }

    fn with(store: Box<dyn Store>, master: MasterKey) -> Result<Self, RecordError> {
        let store: Arc<dyn Store> = Arc::from(store);
        let sealer = Arc::new(Sealer::new(master));
        let writer = Writer::start(Arc::clone(&store), Arc::clone(&sealer))
            .map_err(|error| RecordError::Start(error.into()))?;
        Ok(Self {
            store,
            sealer,
            writer,
            overtaken: Mutex::new(()),
        })
    }

    fn put(&self, key: &str, sealed: Vec<u8>) -> Result<(), RecordError> {
        let put = Operation::Put {
            key: key.to_owned(),
            value: sealed,
        };
        let transaction = Transaction {
            compares: Vec::new(),
            operations: vec![put],
        };
        match self.store.commit(&transaction)? {
            Outcome::Committed(_) => Ok(()),
            Outcome::Conflict => Err(RecordError::Contention),
        }
    }
}

#[cfg(test)]
mod tests {
    use latchkey_secret::Secret;

    use super::*;
    use crate::store::MemoryStore;

    fn key(byte: u8) -> MasterKey {
        MasterKey::from_secret(
            Secret::filled(|out| {
                *out = [byte; 32];
                Ok::<_, SecretError>(())
            })
            .unwrap(),
        )
    }

    #[test]
    fn only_its_master_key_opens_a_store() {
        let store = MemoryStore::default();
        let open = |byte| SealedStore::open(Box::new(store.clone()), key(byte));
        let create = |byte| SealedStore::create(Box::new(store.clone()), key(byte));
        assert!(matches!(open(1), Err(RecordError::Empty)));
        let sealed = create(1).unwrap();
        sealed.put_secret("ca", b"private").unwrap();
        assert!(matches!(create(1), Err(RecordError::Exists)));
        assert!(matches!(open(2), Err(RecordError::WrongMasterKey)));
        let secret = open(1).unwrap().secret("ca").unwrap().unwrap();
        assert_eq!(secret.expose_secret(), b"private");
        assert!(open(1).unwrap().secret("other").unwrap().is_none());
    }
}
