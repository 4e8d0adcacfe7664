//! A store in memory that fails on demand: what the service does when its store fails can be tested for every
//! single commit.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{
    Compare, Entry, Expected, Operation, Outcome, Revision, Store, StoreError, Transaction,
    Versioned,
};

/// A store in memory. Clones share one content, so a dropped service can be opened again on it.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
}

/// What goes wrong at a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An error, and nothing was written.
    Before,
    /// An error, although all was written: as when the answer of a remote store is lost.
    After,
    /// A conflict, as if another server had been faster.
    Conflict,
}

#[derive(Debug, Default)]
struct State {
    values: BTreeMap<String, Versioned>,
    revision: u64,
    commits: u64,
    faults: BTreeMap<u64, Fault>,
}

impl MemoryStore {
    /// Makes the `nth` commit from now fail (1: the next one).
    pub fn inject(&self, nth: u64, fault: Fault) {
        let mut state = self.state();
        let at = state.commits + nth;
        state.faults.insert(at, fault);
    }

    /// Commits so far, failed ones included.
    pub fn commits(&self) -> u64 {
        self.state().commits
    }

    /// Changes a value behind everybody's back, as a damaged disk or an attacker would.
    pub fn tamper(&self, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some(stored) = self.state().values.get_mut(key) {
            change(&mut stored.value);
        }
    }

    /// A copy of all values as they are now, with a life of its own.
    pub fn copy(&self) -> Self {
        let state = self.state();
        let copied = State {
            values: state.values.clone(),
            revision: state.revision,
            ..State::default()
        };
        Self {
            state: Arc::new(Mutex::new(copied)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        Ok(self.state().values.get(key).cloned())
    }

    fn get_all(&self, keys: &[String]) -> Result<Vec<Option<Versioned>>, StoreError> {
        let state = self.state();
        Ok(keys
            .iter()
            .map(|key| state.values.get(key).cloned())
            .collect())
    }

    fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let state = self.state();
        let from = state.values.range(prefix.to_owned()..);
        Ok(from
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter(|(key, _)| after.is_none_or(|after| key.as_str() > after))
            .take(limit)
            .map(|(key, stored)| Entry {
                key: key.clone(),
                stored: stored.clone(),
            })
            .collect())
    }

    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        transaction.check()?;
        let mut state = self.state();
        state.commits += 1;
        let commit = state.commits;
        let fault = state.faults.remove(&commit);
        match fault {
            Some(Fault::Before) => return Err(StoreError::Injected("before a commit")),
            Some(Fault::Conflict) => return Ok(Outcome::Conflict),
            Some(Fault::After) | None => {}
        }
        if !transaction
            .compares
            .iter()
            .all(|compare| state.holds(compare))
        {
            return Ok(Outcome::Conflict);
        }
        let revision = state.apply(&transaction.operations);
        match fault {
            Some(_) => Err(StoreError::Injected("after a commit")),
            None => Ok(Outcome::Committed(revision)),
        }
    }

    fn erase_traces(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

impl State {
    fn holds(&self, compare: &Compare) -> bool {
        let found = self.values.get(&compare.key).map(|stored| stored.revision);
        match compare.expected {
            Expected::Absent => found.is_none(),
            Expected::Revision(revision) => found == Some(revision),
        }
    }

    fn apply(&mut self, operations: &[Operation]) -> Revision {
        self.revision += 1;
        let revision = Revision(self.revision);
        for operation in operations {
            match operation {
                Operation::Put { key, value } => {
                    let value = value.clone();
                    self.values
                        .insert(key.clone(), Versioned { value, revision });
                }
                Operation::Delete { key } => {
                    self.values.remove(key);
                }
            }
        }
        revision
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance;

    #[test]
    fn the_memory_store_conforms() {
        conformance::run(|| Box::new(MemoryStore::default()));
    }

    #[test]
    fn faults_strike_once_where_they_were_put() {
        let store = MemoryStore::default();
        store.inject(1, Fault::Before);
        store.inject(2, Fault::After);
        store.inject(3, Fault::Conflict);
        let put = conformance::put("a", b"1");
        assert!(store.commit(&put).is_err());
        assert_eq!(store.get("a").unwrap(), None);
        assert!(store.commit(&put).is_err());
        assert!(store.get("a").unwrap().is_some());
        assert_eq!(store.commit(&put).unwrap(), Outcome::Conflict);
        assert!(matches!(store.commit(&put).unwrap(), Outcome::Committed(_)));
        assert_eq!(store.commits(), 4);
    }
}
