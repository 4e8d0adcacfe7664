//! The store: keys and values with the semantics of etcd.
//!
//! A write is one transaction over several keys that first compares what it relies on. Every commit has a
//! revision, larger than all before it; a value carries the revision that wrote it. A committed transaction
//! survives a power cut. Values are sealed before they get here ([`crate::sealed`]).

mod lock;
pub mod memory;
pub mod sqlite;

#[cfg(test)]
mod conformance;

use std::path::PathBuf;
use std::sync::Arc;

pub use memory::MemoryStore;
pub use sqlite::SqliteStore;

/// Most bytes of a key.
pub const KEY_LIMIT: usize = 512;
/// Most bytes of a value.
pub const VALUE_LIMIT: usize = 256 * 1024;
/// Most operations in one transaction.
pub const OPERATIONS_LIMIT: usize = 1024;

/// Counts commits, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// A value and the revision that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The value.
    pub value: Vec<u8>,
    /// When it was written.
    pub revision: Revision,
}

/// One key of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Its value.
    pub stored: Versioned,
}

/// What a transaction relies on: the state of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: String,
    /// Its state.
    pub expected: Expected,
}

/// The state that a key must be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// There is no such key.
    Absent,
    /// Its value was written at this revision.
    Revision(Revision),
}

/// A change to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Writes a value.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Vec<u8>,
    },
    /// Removes a key; nothing happens if it is absent.
    Delete {
        /// The key.
        key: String,
    },
}

/// Comparisons and, if all of them hold, changes: all or none. No key is changed twice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// What must hold.
    pub compares: Vec<Compare>,
    /// What is changed then.
    pub operations: Vec<Operation>,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All changes are durable.
    Committed(Revision),
    /// A comparison did not hold; nothing was changed.
    Conflict,
}

/// Where sealed records are kept.
pub trait Store: Send + Sync {
    /// The value of `key`.
    ///
    /// # Errors
    /// As the backend has them; absence is none.
    fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError>;

    /// The values of `keys`, in their order: of one moment, and with one question instead of many.
    ///
    /// # Errors
    /// As the backend has them; absence is none.
    fn get_all(&self, keys: &[String]) -> Result<Vec<Option<Versioned>>, StoreError>;

    /// Up to `limit` keys that begin with `prefix` and come after `after`, in byte order.
    ///
    /// # Errors
    /// As the backend has them.
    fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError>;

    /// Commits a transaction. After an error it is unknown whether it was committed, unless the error says so.
    ///
    /// # Errors
    /// `Limit` (nothing was done), or as the backend has them.
    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError>;

    /// Overwrites what deleted values left behind, as far as the backend reaches.
    ///
    /// # Errors
    /// As the backend has them: traces may remain then.
    fn erase_traces(&self) -> Result<(), StoreError>;

    /// Whether it writes no more until it is opened anew, and could then: the fate of a write is unknown, and where it lies
    /// is not read-only.
    fn has_stopped(&self) -> bool {
        false
    }

    /// Copies everything as it is at one moment, without what was deleted.
    ///
    /// # Errors
    /// `NoBackup`, or as the backend has them.
    fn backup(&self) -> Result<Backup, StoreError> {
        Err(StoreError::NoBackup)
    }
}

/// A copy of a store, in a file that is in no folder.
#[derive(Debug)]
pub struct Backup {
    /// The file, at its beginning.
    pub file: std::fs::File,
    /// Its length in bytes.
    pub size: u64,
}

/// The store failed. One failure can concern several writers, so it can be cloned.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error(
        "the store in '{directory}' is in use by {holder}\nonly one latchkeyd may serve a store: stop the other one, or give this one another --data-dir"
    )]
    InUse {
        /// The store's folder.
        directory: PathBuf,
        /// Who has it, as far as can be told.
        holder: String,
    },
    /// There is none.
    #[error("there is no store in '{0}'\nmake one with 'latchkeyd init'")]
    Missing(PathBuf),
    /// There is one already.
    #[error("there is a store in '{0}' already\nnothing was changed")]
    Exists(PathBuf),
    /// Files or folder are open to others, or belong to someone else.
    #[error("'{path}' {problem}\nthe store must belong to the user of latchkeyd alone")]
    Permissions {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The file system or the file is read-only.
    #[error(
        "the store in '{0}' is read-only\nremount its file system for writing, or look for disk errors in the kernel log"
    )]
    ReadOnly(PathBuf),
    /// No space; nothing of the transaction was written.
    #[error(
        "no space left for the store in '{0}'\nnothing was changed; free some space on its file system"
    )]
    Full(PathBuf),
    /// Not a store of ours, or damaged.
    #[error(
        "the store in '{directory}' is damaged or not one of latchkeyd: {problem}\nrestore it from a backup"
    )]
    Damaged {
        /// The store's folder.
        directory: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Written by another version.
    #[error(
        "the store in '{directory}' has schema version {found}, this latchkeyd reads {expected}"
    )]
    Schema {
        /// The store's folder.
        directory: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        expected: i64,
    },
    /// A write failed earlier; whether it is on disk is unknown, so nothing more is written.
    #[error(
        "the store stopped writing after a disk error\nlook for disk errors in the kernel log, then restart latchkeyd"
    )]
    Stopped,
    /// A key, value or transaction is larger than allowed.
    #[error("{0} is larger than the store allows")]
    Limit(&'static str),
    /// A file could not be handled.
    #[error("failed to {action} '{path}'")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The database failed otherwise.
    #[error("the database in '{directory}' failed")]
    Database {
        /// The store's folder.
        directory: PathBuf,
        /// Why.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// The backend has tools of its own for that.
    #[error("this kind of store makes no copies of itself")]
    NoBackup,
    /// A fault that a test asked for.
    #[error("an injected fault: {0}")]
    Injected(&'static str),
}

impl Transaction {
    /// Refuses what no backend has to take.
    ///
    /// # Errors
    /// `Limit`.
    pub fn check(&self) -> Result<(), StoreError> {
        if self.operations.len() + self.compares.len() > OPERATIONS_LIMIT {
            return Err(StoreError::Limit("a transaction"));
        }
        let mut keys = std::collections::BTreeSet::new();
        for operation in &self.operations {
            if let Operation::Put { value, .. } = operation
                && value.len() > VALUE_LIMIT
            {
                return Err(StoreError::Limit("a value"));
            }
            let key = operation.key();
            if key.is_empty() || key.len() > KEY_LIMIT {
                return Err(StoreError::Limit("a key"));
            }
            if !keys.insert(key) {
                return Err(StoreError::Limit("the number of changes to one key"));
            }
        }
        Ok(())
    }
}

impl Expected {
    /// The state of a key at which `stored` was found.
    pub fn of(stored: Option<&Versioned>) -> Self {
        stored.map_or(Self::Absent, |stored| Self::Revision(stored.revision))
    }

    /// The revision that the key's value must have; `None` if there must be none.
    pub fn revision(self) -> Option<Revision> {
        match self {
            Self::Absent => None,
            Self::Revision(revision) => Some(revision),
        }
    }
}

impl Operation {
    /// The key that is changed.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}
