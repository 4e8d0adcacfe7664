//! Group commit: work that is ready at the same time is written by one commit of the store.
//!
//! Every commit waits for the disk, and every entry of the audit follows the one before it. Written one by one,
//! releases would wait for each other's disk. So whoever finds nobody writing takes all work that is ready, puts its
//! entries on the end of the audit, moves the end once, and commits the whole as one transaction; the others wait for
//! the answer. Whoever comes meanwhile is in the next group. A single writer waits for nobody.
//!
//! What one piece of work relied on is compared for that piece alone: if it no longer holds, only this piece is done
//! anew. An error of the store is everybody's, because nobody's changes are known to be durable then.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::audit::{self, Event, Head};
use crate::clock::UnixMillis;
use crate::sealed::{RecordError, SealedStore};
use crate::store::{
    Compare, Expected, OPERATIONS_LIMIT, Operation, Outcome, StoreError, Transaction,
};

/// How often a group is tried again when another server moved the end of the audit.
const ATTEMPTS: usize = 32;

/// A piece of work that is ready to be written.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    /// What it relies on.
    pub seen: BTreeMap<String, Expected>,
    /// What it changes, sealed; `None` deletes.
    pub changes: BTreeMap<String, Option<Vec<u8>>>,
    /// What goes into the audit.
    pub events: Vec<Event>,
    /// When it was done.
    pub now: UnixMillis,
}

/// Whether the work is durable; if not, what it relied on has changed, and nothing of it was written.
type Written = Result<bool, RecordError>;

/// Work that waits to be written.
#[derive(Default)]
pub(crate) struct Queue(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    work: VecDeque<(Ready, SyncSender<Answer>)>,
    /// Whether a thread is writing, or was told to.
    writing: bool,
}

enum Answer {
    /// Somebody else wrote the work.
    Written(Written),
    /// The work is the first in the queue, and its thread writes the next group.
    YourTurn,
}

/// The right to write. The next thread in the queue gets it when it is dropped, also by a panic.
struct Turn<'a>(&'a Queue);

impl SealedStore {
    /// Writes `ready` together with what others have ready, and returns when it is durable.
    pub(crate) fn write(&self, ready: Ready) -> Written {
        // Two places: a thread may be told to write, and then leaves its own answer here.
        let (sender, answers) = mpsc::sync_channel(2);
        let lost = |_| RecordError::Store(StoreError::Stopped);
        let first = self.queue.enter(ready, sender);
        if !first && let Answer::Written(written) = answers.recv().map_err(lost)? {
            return written;
        }
        let turn = Turn(&self.queue);
        let (group, waiting): (Vec<Ready>, Vec<SyncSender<Answer>>) =
            self.queue.take().into_iter().unzip();
        let written = self.write_group(&group);
        // Before the answers: the disk need not wait for them.
        drop(turn);
        for (sender, written) in waiting.iter().zip(written) {
            // There is room, and each of them waits.
            let _ = sender.try_send(Answer::Written(written));
        }
        match answers.recv().map_err(lost)? {
            Answer::Written(written) => written,
            Answer::YourTurn => Err(RecordError::Contention),
        }
    }

    /// Whether everything in `seen` is still so.
    pub(crate) fn still_holds(
        &self,
        seen: &BTreeMap<String, Expected>,
    ) -> Result<bool, RecordError> {
        for (key, expected) in seen {
            if self.store.get(key)?.map(|stored| stored.revision) != expected.revision() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The answer for each piece of work of the group, in order.
    fn write_group(&self, group: &[Ready]) -> Vec<Written> {
        let mut answers: Vec<Written> = group.iter().map(|_| Ok(false)).collect();
        let mut members = independent(group);
        for _ in 0..ATTEMPTS {
            match self.write_members(group, &members) {
                Ok(Outcome::Committed(_)) => {
                    members.iter().for_each(|at| answers[*at] = Ok(true));
                    break;
                }
                // Nothing to find out: it is done anew.
                Ok(Outcome::Conflict) if members.len() == 1 => break,
                Ok(Outcome::Conflict) => {
                    members.retain(|at| match self.still_holds(&group[*at].seen) {
                        Ok(holds) => holds,
                        Err(error) => {
                            answers[*at] = Err(error);
                            false
                        }
                    });
                }
                Err(error) => {
                    let failed = |at: &usize| answers[*at] = Err(error.clone());
                    members.iter().for_each(failed);
                    break;
                }
            }
            if members.is_empty() {
                break;
            }
        }
        answers
    }

    /// One transaction for all `members` of the group, their audit entries included.
    fn write_members(&self, group: &[Ready], members: &[usize]) -> Result<Outcome, RecordError> {
        let members = || members.iter().map(|at| &group[*at]);
        let mut seen: BTreeMap<String, Expected> =
            members().flat_map(|work| work.seen.clone()).collect();
        let mut changes: BTreeMap<String, Option<Vec<u8>>> =
            members().flat_map(|work| work.changes.clone()).collect();
        let events = members().flat_map(|work| work.events.iter().map(|event| (work.now, event)));
        self.append(events, &mut seen, &mut changes)?;
        let compare = |(key, expected)| Compare { key, expected };
        let operation = |(key, value)| match value {
            Some(value) => Operation::Put { key, value },
            None => Operation::Delete { key },
        };
        let transaction = Transaction {
            compares: seen.into_iter().map(compare).collect(),
            operations: changes.into_iter().map(operation).collect(),
        };
        Ok(self.store.commit(&transaction)?)
    }

    /// Puts `events` on the end of the audit and moves the end, once for all of them.
    fn append<'a>(
        &self,
        events: impl Iterator<Item = (UnixMillis, &'a Event)>,
        seen: &mut BTreeMap<String, Expected>,
        changes: &mut BTreeMap<String, Option<Vec<u8>>>,
    ) -> Result<(), RecordError> {
        let mut events = events.peekable();
        if events.peek().is_none() {
            return Ok(());
        }
        let stored = self.store.get(audit::HEAD)?;
        seen.insert(audit::HEAD.to_owned(), Expected::of(stored.as_ref()));
        let mut head: Head = match stored {
            Some(stored) => self.decode(audit::HEAD, &stored.value)?,
            None => Head::default(),
        };
        for (now, event) in events {
            let entry = head.next(now, event.clone());
            head = Head {
                sequence: entry.sequence,
                hash: entry.hash,
            };
            let key = audit::entry_key(entry.sequence);
            // An entry is written once: a head that was put back may not overwrite what stands there.
            seen.insert(key.clone(), Expected::Absent);
            let sealed = self.encode(&key, &entry)?;
            changes.insert(key, Some(sealed));
        }
        let sealed = self.encode(audit::HEAD, &head)?;
        changes.insert(audit::HEAD.to_owned(), Some(sealed));
        Ok(())
    }
}

/// The members of a group that no earlier member disturbs: one transaction compares everything before it changes
/// anything, so whoever relies on what another one changes must come after it.
fn independent(group: &[Ready]) -> Vec<usize> {
    let mut seen: BTreeMap<&str, Expected> = BTreeMap::new();
    let mut changed: BTreeSet<&str> = BTreeSet::new();
    let mut members = Vec::with_capacity(group.len());
    for (at, work) in group.iter().enumerate() {
        let touched = |key: &String| changed.contains(key.as_str());
        let differs = |(key, expected): (&String, &Expected)| {
            touched(key) || seen.get(key.as_str()).is_some_and(|seen| seen != expected)
        };
        if work.seen.iter().any(differs) || work.changes.keys().any(touched) {
            continue;
        }
        seen.extend(
            work.seen
                .iter()
                .map(|(key, expected)| (key.as_str(), *expected)),
        );
        changed.extend(work.changes.keys().map(String::as_str));
        members.push(at);
    }
    members
}

impl Ready {
    /// Its part of a transaction's limit; an event is an entry that is compared and written.
    fn weight(&self) -> usize {
        self.seen.len() + self.changes.len() + 2 * self.events.len()
    }
}

impl Queue {
    /// Whether the thread that brings `ready` has to write, because nobody does.
    fn enter(&self, ready: Ready, sender: SyncSender<Answer>) -> bool {
        let mut waiting = self.lock();
        waiting.work.push_back((ready, sender));
        !std::mem::replace(&mut waiting.writing, true)
    }

    /// The next group: as much as one transaction may hold, and at least one piece.
    fn take(&self) -> Vec<(Ready, SyncSender<Answer>)> {
        let mut waiting = self.lock();
        // The end of the audit is compared and moved.
        let mut weight = 2;
        let fits = |(ready, _): &&(Ready, _)| {
            weight += ready.weight();
            weight <= OPERATIONS_LIMIT
        };
        let count = waiting.work.iter().take_while(fits).count().max(1);
        waiting.work.drain(..count).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // No code that holds the lock leaves the queue half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut waiting = self.0.lock();
        let next = waiting.work.front();
        let told = next.map(|(_, sender)| sender.try_send(Answer::YourTurn));
        waiting.writing = told.is_some();
    }
}

#[cfg(test)]
#[path = "group_tests.rs"]
mod tests;
