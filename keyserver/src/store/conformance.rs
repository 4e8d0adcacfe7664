//! What every backend must do. Each check gets a fresh, empty store.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::{
    Compare, Expected, KEY_LIMIT, OPERATIONS_LIMIT, Operation, Outcome, Revision, Store,
    StoreError, Transaction, VALUE_LIMIT, Versioned,
};

/// Runs all checks.
pub fn run(fresh: impl Fn() -> Box<dyn Store>) {
    for (name, check) in [
        (
            "values read back with their revision",
            values as fn(&dyn Store),
        ),
        ("comparisons guard a transaction", comparisons),
        ("a transaction is all or nothing", all_or_nothing),
        ("many values are read at once", many),
        ("ranges are ordered and paged", ranges),
        ("limits are enforced", limits),
        ("revisions survive deletion", revisions),
        ("one of many writers wins", race),
    ] {
        println!("conformance: {name}");
        check(fresh().as_ref());
    }
}

/// A transaction that writes one value.
pub fn put(key: &str, value: &[u8]) -> Transaction {
    transaction(&[], &[(key, Some(value))])
}

/// A transaction from tuples; `None` deletes.
pub fn transaction(
    compares: &[(&str, Expected)],
    operations: &[(&str, Option<&[u8]>)],
) -> Transaction {
    Transaction {
        compares: compares
            .iter()
            .map(|(key, expected)| Compare {
                key: (*key).to_owned(),
                expected: *expected,
            })
            .collect(),
        operations: operations
            .iter()
            .map(|(key, value)| match value {
                Some(value) => Operation::Put {
                    key: (*key).to_owned(),
                    value: value.to_vec(),
                },
                None => Operation::Delete {
                    key: (*key).to_owned(),
                },
            })
            .collect(),
    }
}

#[track_caller]
fn commit(store: &dyn Store, transaction: &Transaction) -> Revision {
    match store.commit(transaction).unwrap() {
        Outcome::Committed(revision) => revision,
        Outcome::Conflict => panic!("unexpected conflict"),
    }
}

fn values(store: &dyn Store) {
    assert_eq!(store.get("a").unwrap(), None);
    let first = commit(store, &put("a", b"1"));
    let stored = store.get("a").unwrap().unwrap();
    assert_eq!((stored.value, stored.revision), (b"1".to_vec(), first));
    let binary: Vec<u8> = (0..=255).collect();
    let second = commit(
        store,
        &transaction(&[], &[("a", Some(&binary)), ("b", Some(b""))]),
    );
    assert!(second > first);
    assert_eq!(store.get("a").unwrap().unwrap().value, binary);
    let empty = store.get("b").unwrap().unwrap();
    assert_eq!((empty.value, empty.revision), (vec![], second));
    commit(store, &transaction(&[], &[("a", None), ("never", None)]));
    assert_eq!(store.get("a").unwrap(), None);
    store.erase_traces().unwrap();
    assert!(store.get("b").unwrap().is_some());
}

fn many(store: &dyn Store) {
    let first = commit(store, &put("b", b"1"));
    let second = commit(store, &put("a", b"2"));
    let keys = ["a", "none", "b", "a"].map(str::to_owned);
    let found = store.get_all(&keys).unwrap();
    let expected = |value: &[u8], revision| {
        let value = value.to_vec();
        Some(Versioned { value, revision })
    };
    let (a, b) = (expected(b"2", second), expected(b"1", first));
    assert_eq!(found, [a.clone(), None, b, a]);
    assert!(store.get_all(&[]).unwrap().is_empty());
    commit(store, &put("none", b"3"));
    assert!(store.get_all(&keys).unwrap()[1].is_some());
}

fn comparisons(store: &dyn Store) {
    let write = |expected| transaction(&[("a", expected)], &[("a", Some(b"x"))]);
    let first = commit(store, &write(Expected::Absent));
    let conflict = |transaction: Transaction| {
        assert_eq!(store.commit(&transaction).unwrap(), Outcome::Conflict);
    };
    conflict(write(Expected::Absent));
    conflict(write(Expected::Revision(Revision(first.0 + 1))));
    let second = commit(store, &write(Expected::Revision(first)));
    conflict(write(Expected::Revision(first)));
    commit(
        store,
        &transaction(&[("a", Expected::Revision(second))], &[("b", Some(b"y"))]),
    );
    conflict(transaction(
        &[("none", Expected::Revision(second))],
        &[("b", None)],
    ));
    assert!(store.get("b").unwrap().is_some());
}

fn all_or_nothing(store: &dyn Store) {
    let first = commit(store, &put("a", b"1"));
    let half = transaction(
        &[
            ("a", Expected::Revision(first)),
            ("b", Expected::Revision(first)),
        ],
        &[("a", Some(b"2")), ("c", Some(b"3"))],
    );
    assert_eq!(store.commit(&half).unwrap(), Outcome::Conflict);
    assert_eq!(store.get("a").unwrap().unwrap().value, b"1");
    assert_eq!(store.get("c").unwrap(), None);
}

fn ranges(store: &dyn Store) {
    for key in ["p/b", "p/a", "p", "p/", "p0", "o/z", "p/a/1", "P/x"] {
        commit(store, &put(key, key.as_bytes()));
    }
    let keys = |prefix, after, limit| -> Vec<String> {
        let entries = store.range(prefix, after, limit).unwrap();
        for entry in &entries {
            assert_eq!(entry.stored, store.get(&entry.key).unwrap().unwrap());
        }
        entries.into_iter().map(|entry| entry.key).collect()
    };
    assert_eq!(keys("p/", None, 10), ["p/", "p/a", "p/a/1", "p/b"]);
    assert_eq!(keys("p/", None, 2), ["p/", "p/a"]);
    assert_eq!(keys("p/", Some("p/a"), 10), ["p/a/1", "p/b"]);
    assert_eq!(keys("p/", Some("p/b"), 10), [""; 0]);
    assert_eq!(keys("p/", Some("a"), 1), ["p/"]);
    assert_eq!(keys("p/", Some("z"), 1), [""; 0]);
    assert_eq!(keys("q", None, 10), [""; 0]);
    assert_eq!(keys("", None, 100).len(), 8);
    assert_eq!(keys("p", None, 0), [""; 0]);
}

fn limits(store: &dyn Store) {
    let refused = |transaction: &Transaction| {
        assert!(matches!(
            store.commit(transaction),
            Err(StoreError::Limit(_))
        ));
    };
    refused(&put("", b""));
    refused(&put(&"k".repeat(KEY_LIMIT + 1), b""));
    refused(&put("a", &vec![0; VALUE_LIMIT + 1]));
    refused(&transaction(&[], &[("a", Some(b"1")), ("a", None)]));
    let names: Vec<String> = (0..=OPERATIONS_LIMIT).map(|n| format!("n{n}")).collect();
    let many: Vec<(&str, Option<&[u8]>)> = names.iter().map(|name| (name.as_str(), None)).collect();
    refused(&transaction(&[], &many));
    commit(store, &transaction(&[], &many[1..]));
    commit(store, &put(&"k".repeat(KEY_LIMIT), &vec![1; VALUE_LIMIT]));
    assert_eq!(store.get("a").unwrap(), None);
}

fn revisions(store: &dyn Store) {
    let first = commit(store, &put("a", b"1"));
    let deleted = commit(store, &transaction(&[], &[("a", None)]));
    let again = commit(store, &put("a", b"1"));
    assert!(first < deleted && deleted < again);
    // The same value at the same key, but not the same writing of it.
    let stale = transaction(&[("a", Expected::Revision(first))], &[("a", Some(b"2"))]);
    assert_eq!(store.commit(&stale).unwrap(), Outcome::Conflict);
}

fn race(store: &dyn Store) {
    let won = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for writer in 0..8u8 {
            let won = &won;
            scope.spawn(move || {
                for round in 0..10 {
                    let key = format!("round/{round}");
                    let claim =
                        transaction(&[(&key, Expected::Absent)], &[(&key, Some(&[writer]))]);
                    if matches!(store.commit(&claim).unwrap(), Outcome::Committed(_)) {
                        won.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(won.into_inner(), 10);
    assert_eq!(store.range("round/", None, 100).unwrap().len(), 10);
}
