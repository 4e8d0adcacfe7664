//! The one place where changes are made, each together with its audit entries.
//!
//! A piece of work reads records, changes some and names what happened. All that it read is compared when it is
//! committed ([`crate::group`]); if others were faster it is done anew.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use latchkey_protocol::ids::{Generation, VolumeId};
use latchkey_protocol::release::Share;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::audit::Event;
use crate::clock::UnixMillis;
use crate::group::Ready;
use crate::policy::Authorised;
use crate::records::{Record, key};
use crate::sealed::{RecordError, SealedStore};
use crate::store::Expected;

/// How often a piece of work is done anew when others were faster.
const ATTEMPTS: usize = 32;

/// A piece of work that has read and changed records, and is not committed.
pub(crate) struct Work<'a> {
    records: &'a SealedStore,
    seen: BTreeMap<String, Expected>,
    /// Sealed already; `None` deletes.
    changes: BTreeMap<String, Option<Vec<u8>>>,
    events: Vec<Event>,
    erases: bool,
}

impl SealedStore {
    /// Does a piece of work and commits it at `now`; its result is returned only when it is durable, audit entries
    /// included. `work` may run several times. If it returns an error nothing is written.
    ///
    /// # Errors
    /// What `work` returns; the store's; `Contention`.
    pub(crate) fn transact<T, E: From<RecordError>>(
        &self,
        now: UnixMillis,
        mut work: impl FnMut(&mut Work<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut overtaken = None;
        for _ in 0..ATTEMPTS {
            let mut open = Work {
                records: self,
                seen: BTreeMap::new(),
                changes: BTreeMap::new(),
                events: Vec::new(),
                erases: false,
            };
            match work(&mut open) {
                Ok(result) => {
                    if open.commit(now)? {
                        return Ok(result);
                    }
                }
                // Else it was read half before another's commit and half after it.
                Err(error) if self.still_holds(&open.seen)? => return Err(error),
                Err(_) => {}
            }
            // The lock guards no data: a panic of its holder left nothing half done.
            overtaken.get_or_insert_with(|| {
                self.overtaken
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
            });
        }
        Err(RecordError::Contention.into())
    }

    /// One record, outside of any transaction.
    pub(crate) fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, RecordError> {
        match self.store.get(key)? {
            Some(stored) => self.decode(key, &stored.value).map(Some),
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
            .map(|entry| self.decode(&entry.key, &entry.stored.value))
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
                records.push(self.decode(&entry.key, &entry.stored.value)?);
            }
        }
    }

    /// The record `record`, sealed for its place `key`.
    pub(crate) fn encode(
        &self,
        key: &str,
        record: &impl Serialize,
    ) -> Result<Vec<u8>, RecordError> {
        let plain = serde_json::to_vec(record).expect("records have only strings and numbers");
        self.seal(key, &plain)
    }

    /// What was sealed as the record `key`.
    pub(crate) fn decode<T: DeserializeOwned>(
        &self,
        key: &str,
        sealed: &[u8],
    ) -> Result<T, RecordError> {
        let plain = self.unseal(key, sealed)?;
        serde_json::from_slice(&plain).map_err(|_| RecordError::Damaged(key.to_owned()))
    }
}

impl Work<'_> {
    /// The record at `key`.
    pub fn read<R: Record>(&mut self, key: &str) -> Result<Option<R>, RecordError> {
        match self.sealed(key)? {
            Some(sealed) => self.records.decode(key, &sealed).map(Some),
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
        let sealed = self.records.seal(&key, share.0.expose_secret())?;
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
        self.records.unseal_secret(&key, &sealed).map(Share)
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
        let sealed = self.records.encode(&key, record)?;
        self.changes.insert(key, Some(sealed));
        Ok(())
    }

    /// What is sealed at `key`, own changes included; remembered so that the commit compares it.
    fn sealed(&mut self, key: &str) -> Result<Option<Vec<u8>>, RecordError> {
        if let Some(change) = self.changes.get(key) {
            return Ok(change.clone());
        }
        let stored = self.records.store.get(key)?;
        self.seen
            .insert(key.to_owned(), Expected::of(stored.as_ref()));
        Ok(stored.map(|stored| stored.value))
    }

    /// Whether it was committed; if not, others were faster.
    fn commit(mut self, now: UnixMillis) -> Result<bool, RecordError> {
        let ready = Ready {
            seen: std::mem::take(&mut self.seen),
            changes: std::mem::take(&mut self.changes),
            events: std::mem::take(&mut self.events),
            now,
        };
        let committed = match ready.changes.is_empty() && ready.events.is_empty() {
            true => self.records.still_holds(&ready.seen)?,
            false => self.records.write(ready)?,
        };
        if committed && self.erases {
            self.records.store.erase_traces()?;
        }
        Ok(committed)
    }
}
