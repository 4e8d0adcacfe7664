//! The one place where changes are made, each together with its audit entries.
//!
//! A piece of work reads records, changes some and names what happened. All that it read is compared when it is
//! committed ([`crate::group`]); if others were faster it is done anew. Nothing waits for the disk but one thread, so a
//! commit is awaited; whoever has a thread that may sleep need not know.

use std::collections::BTreeMap;

use latchkey_protocol::ids::{Generation, VolumeId};
use latchkey_protocol::release::Share;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::audit::Event;
use crate::clock::UnixMillis;
use crate::group::{self, Ready};
use crate::policy::Authorised;
use crate::records::{Record, key};
use crate::sealed::{RecordError, SealedStore};
use crate::store::{Expected, Versioned};
use crate::wait::wait;

/// How often a piece of work is done anew when others were faster.
const ATTEMPTS: usize = 32;

/// A piece of work that has read and changed records, and is not committed.
pub(crate) struct Work<'a> {
    records: &'a SealedStore,
    /// What was read, in part in advance; it counts as seen once it is used.
    fetched: BTreeMap<String, Option<Versioned>>,
    seen: BTreeMap<String, Expected>,
    /// Sealed already; `None` deletes.
    changes: BTreeMap<String, Option<Vec<u8>>>,
    events: Vec<Event>,
    erases: bool,
}

impl SealedStore {
    /// Does a piece of work and commits it at `now`; its result comes only when it is durable, audit entries included.
    /// `work` may run several times, on the thread that polls. If it returns an error nothing is written.
    ///
    /// # Errors
    /// What `work` returns; the store's; `Contention`.
    pub(crate) async fn transact_awaited<T, E: From<RecordError>>(
        &self,
        now: UnixMillis,
        mut work: impl FnMut(&mut Work<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut overtaken = None;
        for _ in 0..ATTEMPTS {
            let mut open = Work::new(self);
            match work(&mut open) {
                Ok(result) => {
                    if open.commit(now).await? {
                        return Ok(result);
                    }
                }
                // Else it was read half before another's commit and half after it.
                Err(error) if group::still_holds(&*self.store, &open.seen)? => return Err(error),
                Err(_) => {}
            }
            if overtaken.is_none() {
                overtaken = Some(self.overtaken.lock().await);
            }
        }
        Err(RecordError::Contention.into())
    }

    /// As [`SealedStore::transact_awaited`], on a thread that may wait.
    ///
    /// # Errors
    /// The same.
    pub(crate) fn transact<T, E: From<RecordError>>(
        &self,
        now: UnixMillis,
        work: impl FnMut(&mut Work<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        wait(self.transact_awaited(now, work))
    }

    /// One record, outside of any transaction.
    pub(crate) fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, RecordError> {
        match self.store.get(key)? {
            Some(stored) => self.sealer.decode(key, &stored.value).map(Some),
            None => Ok(None),
        }
    }

    /// Up to `limit` records whose keys begin with `prefix` and come after `after`.
    pub(crate) fn range<T: DeserializeOwned>(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<T>, RecordError> {
        self.store
            .range(prefix, after, limit)?
            .iter()
            .map(|entry| self.sealer.decode(&entry.key, &entry.stored.value))
            .collect()
    }

    /// All records whose keys begin with `prefix`, page by page.
    pub(crate) fn all<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<T>, RecordError> {
        let mut records = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.store.range(prefix, after.as_deref(), 256)?;
            let Some(last) = page.last() else {
                return Ok(records);
            };
            after = Some(last.key.clone());
            for entry in &page {
                records.push(self.sealer.decode(&entry.key, &entry.stored.value)?);
            }
        }
    }
}

impl<'a> Work<'a> {
    fn new(records: &'a SealedStore) -> Self {
        Self {
            records,
            fetched: BTreeMap::new(),
            seen: BTreeMap::new(),
            changes: BTreeMap::new(),
            events: Vec::new(),
            erases: false,
        }
    }

    /// Reads what is stored at `keys` all at once, because it will be needed.
    pub fn fetch(&mut self, keys: &[String]) -> Result<(), RecordError> {
        let found = self.records.store.get_all(keys)?;
        self.fetched.extend(keys.iter().cloned().zip(found));
        Ok(())
    }

    /// The record at `key`.
    pub fn read<R: Record>(&mut self, key: &str) -> Result<Option<R>, RecordError> {
        match self.sealed(key)? {
            Some(sealed) => self.records.sealer.decode(key, &sealed).map(Some),
            None => Ok(None),
        }
    }

    /// Keys that begin with `prefix`, at most `limit`. What others add to them meanwhile is no conflict.
    pub fn keys(&self, prefix: &str, limit: usize) -> Result<Vec<String>, RecordError> {
        let entries = self.records.store.range(prefix, None, limit)?;
        Ok(entries.into_iter().map(|entry| entry.key).collect())
    }

    /// Writes a record.
    pub fn write<R: Record>(&mut self, record: &R) -> Result<(), RecordError> {
        self.put(record.key(), record)
    }

    /// Notes that `volume` belongs to a client, so that its volumes can be listed without reading all.
    pub fn write_owned(&mut self, key: String, volume: VolumeId) -> Result<(), RecordError> {
        self.put(key, &volume)
    }

    /// Writes the record at `key` again as it is: of two pieces of work that do so at once, one is done anew. For
    /// work that counts records, which no comparison of single records guards.
    pub fn touch(&mut self, key: &str) -> Result<(), RecordError> {
        if let Some(sealed) = self.sealed(key)? {
            self.changes.insert(key.to_owned(), Some(sealed));
        }
        Ok(())
    }

    /// Removes the record at `key`.
    pub fn remove(&mut self, key: String) {
        self.changes.insert(key, None);
    }

    /// Makes a new share.
    pub fn make_share(
        &mut self,
        volume: &VolumeId,
        generation: Generation,
        share: &Share,
    ) -> Result<(), RecordError> {
        let key = key::share(volume, generation);
        let sealed = self.records.sealer.seal(&key, share.0.expose_secret())?;
        self.seen.insert(key.clone(), Expected::Absent);
        self.changes.insert(key, Some(sealed));
        Ok(())
    }

    /// The share that `authorised` stands for. There is no other way to one.
    pub fn share(&mut self, authorised: &Authorised) -> Result<Share, RecordError> {
        let key = key::share(&authorised.volume(), authorised.generation());
        let sealed = self
            .sealed(&key)?
            .ok_or_else(|| RecordError::Missing(key.clone()))?;
        self.records.sealer.unseal_secret(&key, &sealed).map(Share)
    }

    /// Deletes the share of one generation of a volume, traces included once it is committed.
    pub fn remove_share(&mut self, volume: &VolumeId, generation: Generation) {
        self.remove(key::share(volume, generation));
        self.erases = true;
    }

    /// Deletes all shares of a volume, traces included once it is committed.
    pub fn remove_shares(&mut self, volume: &VolumeId) -> Result<(), RecordError> {
        for key in self.keys(&key::shares(volume), 1000)? {
            self.remove(key);
        }
        self.erases = true;
        Ok(())
    }

    /// Names what happened, for the audit.
    pub fn audit(&mut self, event: Event) {
        self.events.push(event);
    }

    fn put(&mut self, key: String, record: &impl Serialize) -> Result<(), RecordError> {
        let sealed = self.records.sealer.encode(&key, record)?;
        self.changes.insert(key, Some(sealed));
        Ok(())
    }

    /// What is sealed at `key`, own changes included; remembered so that the commit compares it.
    fn sealed(&mut self, key: &str) -> Result<Option<Vec<u8>>, RecordError> {
        if let Some(change) = self.changes.get(key) {
            return Ok(change.clone());
        }
        if !self.fetched.contains_key(key) {
            let stored = self.records.store.get(key)?;
            self.fetched.insert(key.to_owned(), stored);
        }
        // What is read twice is the same twice: else it would be compared with another state than was decided on.
        let stored = self.fetched.get(key).and_then(Option::as_ref);
        self.seen.insert(key.to_owned(), Expected::of(stored));
        Ok(stored.map(|stored| stored.value.clone()))
    }

    /// Whether it was committed; if not, others were faster.
    async fn commit(self, now: UnixMillis) -> Result<bool, RecordError> {
        let ready = Ready {
            seen: self.seen,
            changes: self.changes,
            events: self.events,
            now,
            erases: self.erases,
        };
        match ready.changes.is_empty() && ready.events.is_empty() {
            true => group::still_holds(&*self.records.store, &ready.seen),
            false => self.records.writer.write(ready).await,
        }
    }
}
