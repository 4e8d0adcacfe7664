//! The service on SQLite: what is in the files, and several threads.

use std::path::Path;

use super::*;
use crate::store::{SqliteStore, StoreError};

fn contains(folder: &Path, needle: &[u8]) -> bool {
    std::fs::read_dir(folder).unwrap().any(|file| {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        bytes.windows(needle.len()).any(|window| window == needle)
    })
}

/// A rig whose service lies on disk; its memory store is unused.
fn on_disk(folder: &Path) -> Rig {
    let directory = folder.join("data");
    let mut rig = Rig::new();
    let store = SqliteStore::create(&directory).unwrap();
    drop(SealedStore::create(Box::new(store), master_key()).unwrap());
    rig.service = service(Box::new(SqliteStore::open(&directory).unwrap()), &rig.clock);
    rig
}

#[test]
fn nothing_of_a_destroyed_share_is_left_in_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let rig = on_disk(folder.path());
    let (machine, volume, share) = rig.bound("web-1", 1);
    let (_, kept, _) = rig.bound("web-2", 2);
    released(&rig.verdict(&machine, HOME, &Boot::new(), volume));
    let sealed = |volume| {
        let store = &rig.service.records.store;
        store
            .get(&key::share(&volume, Generation::FIRST))
            .unwrap()
            .unwrap()
            .value
    };
    let (gone, stays) = (sealed(volume), sealed(kept));
    assert!(contains(&data, &gone) && contains(&data, &stays));
    assert!(!contains(&data, &share));

    rig.service.destroy(&volume, "root").unwrap();
    // No part of it: not the ciphertext, not the nonce that its key is made with.
    for part in [&gone[1..25], &gone[25..57], &gone[57..]] {
        assert!(!contains(&data, part));
    }
    assert!(contains(&data, &stays));
    assert!(!contains(&data, &share));
    drop(rig);
    assert!(!contains(&data, &gone[1..25]));
}

#[test]
fn nothing_is_readable_in_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let rig = on_disk(folder.path());
    let (machine, volume, _) = rig.bound("web-1", 1);
    rig.set_policy(volume, r#"{"rule":"ask"}"#);
    let (_, code) = pending(&rig.verdict(&machine, HOME, &Boot::new(), volume));
    rig.service
        .records
        .put_secret("ca", b"a private key")
        .unwrap();
    let data = folder.path().join("data");
    let code = code.replace('-', "");
    for text in [
        "vda5_crypt",
        "a private key",
        "6.1.0-40-amd64",
        code.as_str(),
        HOME,
    ] {
        assert!(!contains(&data, text.as_bytes()), "{text}");
    }
}

#[test]
fn threads_do_not_disturb_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let rig = on_disk(folder.path());
    let bound: Vec<_> = (1..5).map(|n| rig.bound(&format!("web-{n}"), n)).collect();
    std::thread::scope(|scope| {
        for (machine, volume, share) in &bound {
            let rig = &rig;
            scope.spawn(move || {
                for _ in 0..5 {
                    let boot = Boot::new();
                    let verdict = rig.verdict(machine, HOME, &boot, *volume);
                    let opened = boot.open(machine, *volume, Purpose::Release, released(&verdict));
                    assert_eq!(opened, *share);
                }
            });
        }
    });
    assert_eq!(rig.count(Kind::Released), 20);
}

#[test]
fn a_right_code_typed_by_two_people_approves_once() {
    let folder = tempfile::tempdir().unwrap();
    let rig = on_disk(folder.path());
    let (machine, volume, _) = rig.bound("web-1", 1);
    rig.set_policy(volume, r#"{"rule":"ask"}"#);
    let (id, code) = pending(&rig.verdict(&machine, HOME, &Boot::new(), volume));
    let won = std::thread::scope(|scope| {
        let approve = || rig.service.approve(&id, &code, "root").is_ok();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(approve)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .filter(|won| *won)
            .count()
    });
    assert_eq!(won, 1);
    assert_eq!(rig.count(Kind::Approved), 1);
}

#[test]
fn boots_that_ask_at_the_same_time_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let rig = on_disk(folder.path());
    let (machine, volume, _) = rig.bound("web-1", 1);
    rig.set_policy(volume, r#"{"rule":"ask"}"#);
    let waiting = std::thread::scope(|scope| {
        let ask = || rig.verdict(&machine, HOME, &Boot::new(), volume);
        let threads: Vec<_> = (0..2 * waiting::SESSIONS_LIMIT)
            .map(|_| scope.spawn(ask))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .filter(|verdict| matches!(verdict, Verdict::Pending { .. }))
            .count()
    });
    assert_eq!(waiting, waiting::SESSIONS_LIMIT);
    assert_eq!(
        rig.service.requests().unwrap().len(),
        waiting::SESSIONS_LIMIT
    );
}

#[test]
fn a_store_in_use_names_its_server() {
    let folder = tempfile::tempdir().unwrap();
    let rig = on_disk(folder.path());
    let second = SqliteStore::open(&folder.path().join("data"));
    assert!(matches!(second, Err(StoreError::InUse { .. })));
    drop(rig);
}
