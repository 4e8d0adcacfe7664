//! Group commit: work that is ready at the same time is written by one commit of the store.
//!
//! Every commit waits for the disk, and every entry of the audit follows the one before it. Written one by one,
//! releases would wait for each other's disk. So one thread writes, and nobody else waits for a disk: it takes all work
//! that is ready, puts its entries on the end of the audit, moves the end once, and commits the whole as one
//! transaction. Whoever handed the work in awaits the answer, and needs no thread for that. Whoever comes meanwhile is
//! in the next group.
//!
//! What is deleted for good is also overwritten before the answer, by a second thread: that waits for a copy of the store that
//! is being made, and only whoever erases may have to.
//!
//! What one piece of work relied on is compared for that piece alone: if it no longer holds, only this piece is done
//! anew. An error of the store is everybody's, because nobody's changes are known to be durable then.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::audit::{self, Event, Head};
use crate::clock::UnixMillis;
use crate::sealed::RecordError;
use crate::sealer::Sealer;
use crate::store::{
    Compare, Expected, OPERATIONS_LIMIT, Operation, Outcome, Store, StoreError, Transaction,
};

/// How often a group is tried again when another server moved the end of the audit.
const ATTEMPTS: usize = 32;
/// From the beginning of one commit to the next, at least, while work comes from several sides: a commit costs the
/// processor more than what is written by it, so it had better serve many. Work that comes alone waits for nobody.
const PACE: Duration = Duration::from_millis(2);
/// Of the threads that write and erase. It is locked memory, so no more than is needed.
const STACK: usize = 512 * 1024;

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
    /// Whether what it deletes is also overwritten before the answer.
    pub erases: bool,
}

/// Whether the work is durable; if not, what it relied on has changed, and nothing of it was written.
pub(crate) type Written = Result<bool, RecordError>;

/// Who waits for what is written and to be overwritten as well.
type Erasing = Vec<oneshot::Sender<Written>>;

/// The threads that write and erase. When this is dropped they end, after all that was handed in has its answer.
pub(crate) struct Writer {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
}

/// Work that waits to be written.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    work: VecDeque<(Ready, oneshot::Sender<Written>)>,
    /// Nothing more will come.
    ended: bool,
}

/// What the thread works with.
struct Scribe {
    store: Arc<dyn Store>,
    sealer: Arc<Sealer>,
    queue: Arc<Queue>,
    erasing: Sender<Erasing>,
}

impl Writer {
    /// Starts the threads that write to `store` and erase there.
    ///
    /// # Errors
    /// The system's, if it has no thread to give.
    pub fn start(store: Arc<dyn Store>, sealer: Arc<Sealer>) -> std::io::Result<Self> {
        let (erasing, to_erase) = channel();
        let erased = Arc::clone(&store);
        let mut writer = Self {
            queue: Arc::default(),
            threads: Vec::with_capacity(2),
        };
        let scribe = Scribe {
            store,
            sealer,
            queue: Arc::clone(&writer.queue),
            erasing,
        };
        writer.spawn("writer", move || scribe.run())?;
        // It ends with the writer, which hands the work to it.
        writer.spawn("eraser", move || erase(&*erased, &to_erase))?;
        Ok(writer)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(STACK)
            .spawn(work)?;
        self.threads.push(thread);
        Ok(())
    }

    /// Writes `ready` together with what others have ready; the answer comes when it is durable. Whether somebody still
    /// awaits the answer or not, what was handed in (by the first poll) is written.
    pub async fn write(&self, ready: Ready) -> Written {
        let (sender, answer) = oneshot::channel();
        self.queue.enter(ready, sender);
        // No answer: a panic over the group, so nobody knows what was written.
        let lost = |_| Err(RecordError::Store(StoreError::Stopped));
        answer.await.unwrap_or_else(lost)
    }

    #[cfg(test)]
    fn waiting(&self) -> usize {
        self.queue.lock().work.len()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue.end();
        for thread in self.threads.drain(..) {
            // They catch their panics.
            let _ = thread.join();
        }
    }
}

impl Scribe {
    /// Writes group after group until the writer is dropped.
    fn run(&self) {
        let mut next = Instant::now();
        while let Some(group) = self.queue.take(next) {
            next = Instant::now();
            if group.len() > 1 {
                next += PACE;
            }
            // A panic is this group's alone, whose senders it drops. The store rolls a transaction back that it left.
            let _ = catch_unwind(AssertUnwindSafe(|| self.serve(group)));
        }
    }

    fn serve(&self, group: Vec<(Ready, oneshot::Sender<Written>)>) {
        let (group, senders): (Vec<Ready>, Vec<_>) = group.into_iter().unzip();
        let written = self.write_group(&group);
        let mut erasing = Vec::new();
        for ((ready, sender), written) in group.iter().zip(senders).zip(written) {
            match written {
                Ok(true) if ready.erases => erasing.push(sender),
                // Who no longer waits needs no answer.
                written => drop(sender.send(written)),
            }
        }
        if !erasing.is_empty() {
            // The thread there outlives this one. Without it nobody knows what was overwritten, and no answer says so.
            let _ = self.erasing.send(erasing);
        }
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
                    members.retain(|at| match still_holds(&*self.store, &group[*at].seen) {
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
            Some(stored) => self.sealer.decode(audit::HEAD, &stored.value)?,
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
            let sealed = self.sealer.encode(&key, &entry)?;
            changes.insert(key, Some(sealed));
        }
        let sealed = self.sealer.encode(audit::HEAD, &head)?;
        changes.insert(audit::HEAD.to_owned(), Some(sealed));
        Ok(())
    }
}

/// Overwrites what deleted values left behind, once for all who wait for it at a time, until nobody can bring more.
fn erase(store: &dyn Store, to_erase: &Receiver<Erasing>) {
    while let Ok(mut waiting) = to_erase.recv() {
        waiting.extend(to_erase.try_iter().flatten());
        // A panic is no answer to those who wait.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            let erased = store.erase_traces();
            for sender in waiting {
                let erased = erased.clone().map(|()| true);
                drop(sender.send(erased.map_err(RecordError::from)));
            }
        }));
    }
}

/// Whether everything in `seen` is still so.
///
/// # Errors
/// The store's.
pub(crate) fn still_holds(
    store: &dyn Store,
    seen: &BTreeMap<String, Expected>,
) -> Result<bool, RecordError> {
    for (key, expected) in seen {
        if store.get(key)?.map(|stored| stored.revision) != expected.revision() {
            return Ok(false);
        }
    }
    Ok(true)
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
    fn enter(&self, ready: Ready, sender: oneshot::Sender<Written>) {
        let mut waiting = self.lock();
        waiting.work.push_back((ready, sender));
        // Where there was some, the thread knows.
        if waiting.work.len() == 1 {
            self.changed.notify_one();
        }
    }

    fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_one();
    }

    /// The next group, waited for, and no sooner than at `next`: as much as one transaction may hold, and at least one
    /// piece. `None` at the end.
    fn take(&self, next: Instant) -> Option<Vec<(Ready, oneshot::Sender<Written>)>> {
        let idle = |waiting: &mut Waiting| waiting.work.is_empty() && !waiting.ended;
        let waiting = self.changed.wait_while(self.lock(), idle);
        drop(waiting.unwrap_or_else(PoisonError::into_inner));
        // Asleep and not at the queue, so that whoever brings more need not wake anybody.
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        let mut waiting = self.lock();
        if waiting.work.is_empty() {
            return None;
        }
        // The end of the audit is compared and moved.
        let mut weight = 2;
        let fits = |(ready, _): &&(Ready, _)| {
            weight += ready.weight();
            weight <= OPERATIONS_LIMIT
        };
        let count = waiting.work.iter().take_while(fits).count().max(1);
        Some(waiting.work.drain(..count).collect())
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // No code that holds the lock leaves the queue half changed.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "group_tests.rs"]
mod tests;
