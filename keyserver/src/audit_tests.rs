//! The chain: what is found, and that people can read it.

use latchkey_secret::{Secret, SecretError};

use super::*;
use crate::ledger::Work;
use crate::master_key::MasterKey;
use crate::store::{MemoryStore, Operation, Store, Transaction};

fn records(store: &MemoryStore) -> SealedStore {
    let secret = Secret::filled(|out| {
        *out = [1; 32];
        Ok::<_, SecretError>(())
    });
    let key = MasterKey::from_secret(secret.unwrap());
    SealedStore::create(Box::new(store.clone()), key).unwrap()
}

fn event(text: &str) -> Event {
    Event::new(Kind::Released, text)
        .client(&"web-1".parse().unwrap())
        .peer("::ffff:192.0.2.7".parse().unwrap())
}

fn append(records: &SealedStore, count: u64) {
    for n in 0..count {
        let text = format!("event {n}");
        let work = |work: &mut Work<'_>| {
            work.audit(event(&text));
            Ok::<_, RecordError>(())
        };
        records.transact(UnixMillis(1000 + n), work).unwrap();
    }
}

fn rewrite(records: &SealedStore, store: &MemoryStore, at: u64, change: impl Fn(&mut AuditEntry)) {
    let key = entry_key(at);
    let mut entry: AuditEntry = records.read(&key).unwrap().unwrap();
    change(&mut entry);
    let sealed = records.sealer.seal(&key, entry.json().as_bytes()).unwrap();
    store.tamper(&key, |value| *value = sealed);
}

#[test]
fn an_untouched_chain_verifies() {
    let store = MemoryStore::default();
    let records = records(&store);
    assert_eq!(verify(&records).unwrap().unwrap().entries, 0);
    append(&records, 600);
    let verified = verify(&records).unwrap().unwrap();
    assert_eq!(verified.entries, 600);
    let last = entries(&records, 599, 10).unwrap();
    assert_eq!((last.len(), last[0].hash), (1, verified.head));
    assert_eq!(entries(&records, 10, 5).unwrap()[0].sequence, 11);
}

/// Even by someone who has the master key.
#[test]
fn the_first_bad_entry_is_named() {
    type Change = fn(&SealedStore, &MemoryStore);
    let cases: [(&str, u64, Change); 7] = [
        ("flipped bit", 3, |_, store| {
            store.tamper(&entry_key(3), |value| value[60] ^= 1);
        }),
        ("changed text", 4, |records, store| {
            rewrite(records, store, 4, |entry| entry.event.text.push('x'));
        }),
        ("changed time and hash", 6, |records, store| {
            rewrite(records, store, 5, |entry| {
                entry.time = UnixMillis(1);
                entry.hash = entry.compute_hash();
            });
        }),
        ("removed in the middle", 7, |_, store| remove(store, 7)),
        ("removed at the end", 10, |_, store| remove(store, 10)),
        ("last one rewritten with its hash", 10, |records, store| {
            rewrite(records, store, 10, |entry| {
                entry.event.text.clear();
                entry.hash = entry.compute_hash();
            });
        }),
        ("two swapped", 2, |records, store| {
            let (a, b) = (records.read(&entry_key(2)), records.read(&entry_key(3)));
            let (a, b): (AuditEntry, AuditEntry) = (a.unwrap().unwrap(), b.unwrap().unwrap());
            rewrite(records, store, 2, |entry| *entry = b.clone());
            rewrite(records, store, 3, |entry| *entry = a.clone());
        }),
    ];
    for (name, bad, change) in cases {
        let store = MemoryStore::default();
        let records = records(&store);
        append(&records, 10);
        change(&records, &store);
        let error = verify(&records).unwrap().unwrap_err();
        assert_eq!(error.sequence, bad, "{name}: {error}");
    }
}

#[test]
fn nothing_overwrites_an_entry_when_the_head_is_put_back() {
    let store = MemoryStore::default();
    let records = records(&store);
    append(&records, 3);
    let old = store.get(HEAD).unwrap().unwrap().value;
    append(&records, 2);
    store.tamper(HEAD, |value| *value = old);
    let result = records.transact(UnixMillis(1), |work| {
        work.audit(event("overwrites"));
        Ok::<_, RecordError>(())
    });
    assert!(matches!(result, Err(RecordError::Contention)));
}

#[test]
fn entries_read_as_one_line_and_as_json() {
    let mut shown = event("generation 1\n\x1b[31mred\u{202e}");
    shown.who = Some("root".to_owned());
    let entry = Head::default().next(UnixMillis(1_763_683_199_000), Event::who(shown, "uid 0"));
    let line = entry.line();
    assert_eq!(
        line,
        "     1  2025-11-20 23:59:59  released  client=web-1  from=192.0.2.7  by=uid 0  generation 1  [31mred "
    );
    let back: AuditEntry = serde_json::from_str(&entry.json()).unwrap();
    assert_eq!(back, entry);
    assert!(!entry.json().contains('\n'));
}

#[test]
fn every_field_is_in_the_hash() {
    let entry = Head::default().next(UnixMillis(5), event("text"));
    let changes: [fn(&mut AuditEntry); 10] = [
        |entry| entry.sequence += 1,
        |entry| entry.time.0 += 1,
        |entry| entry.previous.0[31] ^= 1,
        |entry| entry.event.kind = Kind::Proved,
        |entry| entry.event.client = None,
        |entry| entry.event.volume = Some(VolumeId::random().unwrap()),
        |entry| entry.event.request = Some(RequestId::random().unwrap()),
        |entry| entry.event.peer = None,
        |entry| entry.event.who = Some("x".to_owned()),
        |entry| entry.event.text.push(' '),
    ];
    for (n, change) in changes.into_iter().enumerate() {
        let mut changed = entry.clone();
        change(&mut changed);
        assert_ne!(changed.compute_hash(), entry.hash, "change {n}");
    }
}

#[test]
fn texts_are_cut_at_a_character() {
    let event = Event::new(Kind::BootReport, "ä".repeat(TEXT_LIMIT));
    assert_eq!(event.text.len(), TEXT_LIMIT);
    assert_eq!(printable("aä", 2), "a");
}

fn remove(store: &MemoryStore, at: u64) {
    let delete = Operation::Delete { key: entry_key(at) };
    let transaction = Transaction {
        compares: Vec::new(),
        operations: vec![delete],
    };
    store.commit(&transaction).unwrap();
}
