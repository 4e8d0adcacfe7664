//! Groups are made on purpose: the store holds one commit until everybody else waits.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Waker};

use super::*;
use crate::audit::Kind;
use crate::master_key::MasterKey;
use crate::sealed::SealedStore;
use crate::store::memory::Fault;
use crate::store::{Entry, MemoryStore, SqliteStore, Versioned};
use crate::wait::wait;

/// A store whose commits wait while it is shut.
#[derive(Clone, Default)]
struct Gate {
    store: MemoryStore,
    /// (shut, commits that wait)
    state: Arc<(Mutex<(bool, usize)>, Condvar)>,
    /// Commits that panic before the others.
    panics: Arc<AtomicUsize>,
    /// How often traces were erased, and whether that fails.
    erased: Arc<AtomicUsize>,
    stains: bool,
    /// Held while a copy is made, for which erasing waits.
    copying: Arc<Mutex<()>>,
}

impl Gate {
    fn shut(&self, shut: bool) {
        self.state.0.lock().unwrap().0 = shut;
        self.state.1.notify_all();
    }

    fn waiting(&self) -> usize {
        self.state.0.lock().unwrap().1
    }
}

impl Store for Gate {
    fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        self.store.get(key)
    }

    fn get_all(&self, keys: &[String]) -> Result<Vec<Option<Versioned>>, StoreError> {
        self.store.get_all(keys)
    }

    fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        self.store.range(prefix, after, limit)
    }

    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        let (state, changed) = &*self.state;
        let mut state = state.lock().unwrap();
        state.1 += 1;
        state = changed.wait_while(state, |(shut, _)| *shut).unwrap();
        state.1 -= 1;
        drop(state);
        let less = |count: usize| count.checked_sub(1);
        let (set, fetch) = (Ordering::SeqCst, Ordering::SeqCst);
        assert!(
            self.panics.fetch_update(set, fetch, less).is_err(),
            "asked for"
        );
        self.store.commit(transaction)
    }

    fn erase_traces(&self) -> Result<(), StoreError> {
        let _copying = self.copying.lock().unwrap();
        self.erased.fetch_add(1, Ordering::SeqCst);
        match self.stains {
            true => Err(StoreError::Injected("traces stay")),
            false => Ok(()),
        }
    }
}

fn sealed(store: Box<dyn Store>) -> SealedStore {
    let master = MasterKey::from_secret(latchkey_secret::Secret::random().unwrap());
    SealedStore::create(store, master).unwrap()
}

fn work(seen: &[(&str, Expected)], changes: &[&str]) -> Ready {
    Ready {
        seen: seen
            .iter()
            .map(|(key, expected)| ((*key).to_owned(), *expected))
            .collect(),
        changes: changes
            .iter()
            .map(|key| ((*key).to_owned(), Some(key.as_bytes().to_vec())))
            .collect(),
        events: vec![Event::new(Kind::Changed, changes.join(" "))],
        now: UnixMillis(1),
        erases: false,
    }
}

fn write(records: &SealedStore, ready: Ready) -> Written {
    wait(records.writer.write(ready))
}

/// What becomes of `group` when it waits for one commit, in which `fault` strikes; and how many commits it took.
fn written(
    gate: &Gate,
    records: &SealedStore,
    group: Vec<Ready>,
    fault: Option<Fault>,
) -> (Vec<Written>, u64) {
    let until = |reached: &dyn Fn() -> bool| {
        while !reached() {
            std::thread::yield_now();
        }
    };
    gate.shut(true);
    let before = gate.store.commits();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| write(records, work(&[], &["first"])));
        until(&|| gate.waiting() == 1);
        let mut others = Vec::new();
        for ready in group {
            others.push(scope.spawn(|| write(records, ready)));
            until(&|| records.writer.waiting() == others.len());
        }
        if let Some(fault) = fault {
            gate.store.inject(2, fault);
        }
        gate.shut(false);
        assert!(first.join().unwrap().unwrap());
        let answers = others.into_iter().map(|thread| thread.join().unwrap());
        (answers.collect(), gate.store.commits() - before - 1)
    })
}

/// The texts of the audit, which is whole.
fn audited(records: &SealedStore) -> Vec<String> {
    audit::verify(records).unwrap().unwrap();
    let entries = audit::entries(records, 0, 1000).unwrap();
    entries.into_iter().map(|entry| entry.event.text).collect()
}

fn rig() -> (Gate, SealedStore) {
    let gate = Gate::default();
    let records = sealed(Box::new(gate.clone()));
    (gate, records)
}

#[test]
fn work_that_waits_together_is_one_commit() {
    let (gate, records) = rig();
    let names: Vec<String> = (0..20).map(|n| format!("k{n:02}")).collect();
    let group = names
        .iter()
        .map(|name| work(&[(name, Expected::Absent)], &[name]));
    let (answers, commits) = written(&gate, &records, group.collect(), None);
    assert!(answers.into_iter().all(|written| written.unwrap()));
    assert_eq!(commits, 1);
    assert_eq!(audited(&records)[1..], names);
    let revisions: BTreeSet<_> = names
        .iter()
        .map(|name| gate.get(name).unwrap().unwrap().revision)
        .collect();
    assert_eq!(revisions.len(), 1);
}

#[test]
fn what_was_overtaken_harms_nobody_else() {
    let (gate, records) = rig();
    write(&records, work(&[], &["old"])).unwrap();
    let old = Expected::of(gate.get("old").unwrap().as_ref());
    let stale = Expected::Revision(crate::store::Revision(0));
    for (case, group, expected, commits) in [
        (
            "it relies on what has changed since",
            vec![
                work(&[("old", old)], &["a"]),
                work(&[("old", stale)], &["b"]),
                work(&[], &["c"]),
            ],
            [true, false, true],
            1,
        ),
        (
            "the same, and the others do not show it",
            vec![
                work(&[], &["d"]),
                work(&[("none", stale)], &["e"]),
                work(&[], &["f"]),
            ],
            [true, false, true],
            2,
        ),
        (
            "both make the same record",
            vec![
                work(&[("g", Expected::Absent)], &["g"]),
                work(&[("g", Expected::Absent)], &["g"]),
                work(&[], &["h"]),
            ],
            [true, false, true],
            1,
        ),
        (
            "it relies on what an earlier one changes",
            vec![
                work(&[("old", old)], &["old"]),
                work(&[("old", old)], &["i"]),
                work(&[], &["j"]),
            ],
            [true, false, true],
            1,
        ),
    ] {
        let (answers, took) = written(&gate, &records, group, None);
        let answers: Vec<bool> = answers.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers, expected, "{case}");
        assert_eq!(took, commits, "{case}");
    }
    for (key, there) in [
        ("b", false),
        ("e", false),
        ("i", false),
        ("c", true),
        ("j", true),
    ] {
        assert_eq!(gate.get(key).unwrap().is_some(), there, "{key}");
    }
    audited(&records);
}

#[test]
fn another_server_that_moved_the_end_of_the_audit_is_no_matter() {
    let (gate, records) = rig();
    let group = vec![work(&[], &["a"]), work(&[], &["b"])];
    let (answers, commits) = written(&gate, &records, group, Some(Fault::Conflict));
    assert!(answers.into_iter().all(|written| written.unwrap()));
    assert_eq!(commits, 2);
    assert_eq!(audited(&records), ["first", "a", "b"]);
}

#[test]
fn a_fault_of_the_store_is_everybodys() {
    for (fault, there) in [(Fault::Before, false), (Fault::After, true)] {
        let (gate, records) = rig();
        let group = vec![work(&[], &["a"]), work(&[], &["b"])];
        let (answers, commits) = written(&gate, &records, group, Some(fault));
        for answer in answers {
            assert!(
                matches!(answer, Err(RecordError::Store(StoreError::Injected(_)))),
                "{fault:?}"
            );
        }
        // Not tried again: nobody knows what was written.
        assert_eq!(commits, 1, "{fault:?}");
        for key in ["a", "b"] {
            assert_eq!(gate.get(key).unwrap().is_some(), there, "{fault:?} {key}");
        }
        audited(&records);
        // And the next one goes on.
        assert!(write(&records, work(&[], &["c"])).unwrap());
    }
}

#[test]
fn a_panic_is_its_groups_alone() {
    let (gate, records) = rig();
    gate.panics.store(1, Ordering::SeqCst);
    // Nobody knows what was written, so it is an error and not done anew.
    assert!(matches!(
        write(&records, work(&[], &["a"])),
        Err(RecordError::Store(StoreError::Stopped))
    ));
    assert!(write(&records, work(&[], &["b"])).unwrap());
    let panicked = std::panic::catch_unwind(AssertUnwindSafe(|| {
        records.transact(UnixMillis(1), |_| -> Result<(), RecordError> {
            panic!("asked for")
        })
    }));
    assert!(panicked.is_err());
    assert!(write(&records, work(&[], &["c"])).unwrap());
    assert_eq!(audited(&records), ["b", "c"]);
}

#[test]
fn what_was_handed_in_is_written_though_nobody_awaits_it() {
    let (gate, records) = rig();
    for key in ["a", "b", "c"] {
        let mut answer = Box::pin(records.writer.write(work(&[], &[key])));
        // To be polled once is to be handed in.
        let _ = answer
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
    }
    drop(records);
    for key in ["a", "b", "c"] {
        assert!(gate.get(key).unwrap().is_some(), "{key}");
    }
}

#[test]
fn traces_are_gone_before_the_answer_and_are_no_others_matter() {
    for stains in [false, true] {
        let gate = Gate {
            stains,
            ..Gate::default()
        };
        let records = sealed(Box::new(gate.clone()));
        let erasing = || Ready {
            erases: true,
            ..work(&[], &["a"])
        };
        let stale = Expected::Revision(crate::store::Revision(0));
        let overtaken = Ready {
            erases: true,
            ..work(&[("none", stale)], &["c"])
        };
        let group = vec![erasing(), work(&[], &["b"]), overtaken];
        let (answers, _) = written(&gate, &records, group, None);
        let [erased, other, overtaken] = <[Written; 3]>::try_from(answers).unwrap();
        assert_eq!(erased.is_err(), stains);
        assert!(other.unwrap() && !overtaken.unwrap());
        assert_eq!(gate.erased.load(Ordering::SeqCst), 1, "once for the group");
    }
}

#[test]
fn only_who_erases_waits_for_a_copy_that_is_being_made() {
    let (gate, records) = rig();
    let copying = gate.copying.lock().unwrap();
    std::thread::scope(|scope| {
        let erasing = scope.spawn(|| {
            let ready = Ready {
                erases: true,
                ..work(&[], &["a"])
            };
            write(&records, ready)
        });
        while gate.get("a").unwrap().is_none() {
            std::thread::yield_now();
        }
        // It is written; its traces are still there.
        let other = scope.spawn(|| write(&records, work(&[], &["b"])));
        let deadline = Instant::now() + Duration::from_secs(20);
        while !other.is_finished() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let (waits, erased) = (!other.is_finished(), erasing.is_finished());
        drop(copying);
        assert!(!waits && !erased);
        assert!(other.join().unwrap().unwrap());
        assert!(erasing.join().unwrap().unwrap());
    });
    assert_eq!(gate.erased.load(Ordering::SeqCst), 1);
}

#[test]
fn a_group_is_no_larger_than_a_transaction_may_be() {
    let (gate, records) = rig();
    let many: Vec<String> = (0..OPERATIONS_LIMIT / 4).map(|n| format!("k{n}")).collect();
    let group = (0..9).map(|n| {
        let mine: Vec<String> = many.iter().map(|key| format!("{n}/{key}")).collect();
        let mine: Vec<&str> = mine.iter().map(String::as_str).collect();
        work(&[], &mine)
    });
    let (answers, commits) = written(&gate, &records, group.collect(), None);
    assert!(answers.into_iter().all(|written| written.unwrap()));
    assert_eq!(commits, 3);
    assert_eq!(audited(&records).len(), 10);
}

#[test]
fn no_count_is_lost_between_threads() {
    const THREADS: u64 = 8;
    const ROUNDS: u64 = 20;
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("store");
    let records = sealed(Box::new(SqliteStore::create(&directory).unwrap()));
    let add = |key: &str| {
        records.transact(UnixMillis(1), |work| {
            let Count(count, _) = work.read(key)?.unwrap_or_default();
            work.write(&Count(count + 1, key.to_owned()))?;
            work.audit(Event::new(Kind::Changed, key));
            Ok::<_, RecordError>(())
        })
    };
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let add = &add;
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    add("all").unwrap();
                    add(&format!("thread/{thread}")).unwrap();
                }
            });
        }
    });
    let count = |key: &str| records.read::<Count>(key).unwrap().unwrap().0;
    assert_eq!(count("all"), THREADS * ROUNDS);
    for thread in 0..THREADS {
        assert_eq!(count(&format!("thread/{thread}")), ROUNDS);
    }
    let entries = audit::verify(&records).unwrap().unwrap().entries;
    assert_eq!(entries, 2 * THREADS * ROUNDS);
}

/// A number and where it is stored.
#[derive(Default, serde::Serialize, serde::Deserialize)]
struct Count(u64, String);

impl crate::records::Record for Count {
    fn key(&self) -> String {
        self.1.clone()
    }
}
