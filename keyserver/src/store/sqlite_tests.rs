//! What the SQLite store does beyond the conformance suite: durability, locking, damage, full and read-only disks.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::store::conformance::{self, put, transaction};

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    folder
}

fn contains(folder: &Path, needle: &[u8]) -> bool {
    fs::read_dir(folder).unwrap().any(|file| {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        bytes.windows(needle.len()).any(|window| window == needle)
    })
}

#[test]
fn the_sqlite_store_conforms() {
    let folders = folder();
    let count = std::cell::Cell::new(0);
    conformance::run(|| {
        count.set(count.get() + 1);
        let directory = folders.path().join(count.get().to_string());
        Box::new(SqliteStore::create(&directory).unwrap())
    });
}

#[test]
fn what_was_committed_is_there_after_reopening() {
    let folder = folder();
    let store = SqliteStore::create(folder.path()).unwrap();
    store.commit(&put("a", b"1")).unwrap();
    let Outcome::Committed(revision) = store.commit(&put("b", b"2")).unwrap() else {
        panic!("conflict");
    };
    drop(store);
    let store = SqliteStore::open(folder.path()).unwrap();
    assert_eq!(store.get("a").unwrap().unwrap().value, b"1");
    assert_eq!(store.get("b").unwrap().unwrap().revision, revision);
    let Outcome::Committed(next) = store.commit(&put("c", b"3")).unwrap() else {
        panic!("conflict");
    };
    assert!(next > revision);
}

/// A copy of the files taken while the store is open is what a power cut would leave.
#[test]
fn what_was_committed_survives_a_power_cut() {
    let (folder, after) = (folder(), folder());
    let store = SqliteStore::create(folder.path()).unwrap();
    for n in 0..20 {
        store.commit(&put(&format!("k{n}"), b"v")).unwrap();
        for file in fs::read_dir(folder.path()).unwrap() {
            let path = file.unwrap().path();
            fs::copy(&path, after.path().join(path.file_name().unwrap())).unwrap();
        }
        let copy = SqliteStore::open(after.path()).unwrap();
        assert_eq!(copy.range("k", None, 100).unwrap().len(), n + 1);
        drop(copy);
        for file in fs::read_dir(after.path()).unwrap() {
            fs::remove_file(file.unwrap().path()).unwrap();
        }
    }
}

#[test]
fn a_second_server_on_one_store_is_refused_and_told_who_has_it() {
    let folder = folder();
    let store = SqliteStore::create(folder.path()).unwrap();
    for second in [
        SqliteStore::open(folder.path()),
        SqliteStore::create(folder.path()),
    ] {
        let error = second.err().unwrap().to_string();
        let number = format!("process {}", std::process::id());
        assert!(error.contains(&number), "{error}");
    }
    drop(store);
    SqliteStore::open(folder.path()).unwrap();
}

#[test]
fn no_other_program_reads_or_writes_an_open_store() {
    let folder = folder();
    let store = SqliteStore::create(folder.path()).unwrap();
    store.commit(&put("a", b"1")).unwrap();
    assert!(store.get("a").unwrap().is_some());
    let file = File::open(folder.path().join(FILE)).unwrap();
    // What another program's SQLite asks for before it reads anything: bytes of PENDING_BYTE and after (os.h).
    let mut lock = nix::libc::flock {
        l_type: nix::libc::F_RDLCK as i16,
        l_whence: nix::libc::SEEK_SET as i16,
        l_start: 0x4000_0002,
        l_len: 510,
        l_pid: 0,
    };
    // The lock of an open file description is refused by our own process as by others.
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_OFD_GETLK(&mut lock)).unwrap();
    assert_eq!(i32::from(lock.l_type), nix::libc::F_WRLCK);
    assert!(!folder.path().join("store.sqlite3-shm").exists());
}

#[test]
fn making_a_store_overwrites_none() {
    let folder = folder();
    drop(SqliteStore::create(folder.path()).unwrap());
    // Still empty: an interrupted set-up goes on.
    let store = SqliteStore::create(folder.path()).unwrap();
    store.commit(&put("a", b"1")).unwrap();
    drop(store);
    assert!(matches!(
        SqliteStore::create(folder.path()),
        Err(StoreError::Exists(_))
    ));
    let store = SqliteStore::open(folder.path()).unwrap();
    assert!(store.get("a").unwrap().is_some());
}

#[test]
fn files_are_for_the_owner_alone() {
    let folders = folder();
    let directory = folders.path().join("new");
    let store = SqliteStore::create(&directory).unwrap();
    store.commit(&put("a", b"1")).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&directory), 0o700);
    for file in fs::read_dir(&directory).unwrap() {
        let path = file.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    drop(store);
    for (path, open) in [(directory.join(FILE), 0o640), (directory.clone(), 0o750)] {
        let before = mode(&path);
        fs::set_permissions(&path, fs::Permissions::from_mode(open)).unwrap();
        assert!(matches!(
            SqliteStore::open(&directory),
            Err(StoreError::Permissions { .. })
        ));
        fs::set_permissions(&path, fs::Permissions::from_mode(before)).unwrap();
    }
    SqliteStore::open(&directory).unwrap();
}

#[test]
fn missing_foreign_and_damaged_stores_are_told_apart() {
    let folder = folder();
    let open = || SqliteStore::open(folder.path()).err().unwrap();
    assert!(matches!(open(), StoreError::Missing(_)));
    let path = folder.path().join(FILE);
    let write = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    };
    write(b"");
    assert!(matches!(open(), StoreError::Missing(_)));
    write(&[b'x'; 8192]);
    assert!(matches!(open(), StoreError::Damaged { .. }));
    fs::remove_file(&path).unwrap();

    let store = SqliteStore::create(folder.path()).unwrap();
    for n in 0..50 {
        store.commit(&put(&format!("k{n}"), &[7; 2000])).unwrap();
    }
    store.erase_traces().unwrap();
    drop(store);
    let whole = fs::read(&path).unwrap();
    write(&whole[..whole.len() / 2]);
    assert!(matches!(open(), StoreError::Damaged { .. }));
    write(&whole);

    let version = |pragma: &str| {
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch(pragma).unwrap();
    };
    version("PRAGMA user_version = 2");
    assert!(matches!(open(), StoreError::Schema { found: 2, .. }));
    version("PRAGMA user_version = 1; PRAGMA application_id = 1");
    assert!(matches!(open(), StoreError::Damaged { .. }));
    version(&format!("PRAGMA application_id = {APPLICATION}"));
    SqliteStore::open(folder.path()).unwrap();
}

#[test]
fn no_flipped_byte_makes_it_panic() {
    let folder = folder();
    let store = SqliteStore::create(folder.path()).unwrap();
    for n in 0..20 {
        store.commit(&put(&format!("k{n}"), &[7; 100])).unwrap();
    }
    drop(store);
    let path = folder.path().join(FILE);
    let whole = fs::read(&path).unwrap();
    let mut refused = 0;
    for at in (0..whole.len()).step_by(97) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0xff;
        fs::write(&path, &bytes).unwrap();
        match SqliteStore::open(folder.path()) {
            // A flip inside a value is found by its seal, not by SQLite.
            Ok(store) => drop(store.range("", None, 100)),
            Err(_) => refused += 1,
        }
        for side in ["store.sqlite3-wal", "store.sqlite3-shm"] {
            drop(fs::remove_file(folder.path().join(side)));
        }
    }
    assert!(refused > 0);
}

#[test]
fn a_full_disk_changes_nothing_and_heals() {
    let folder = folder();
    let store = SqliteStore::create(folder.path()).unwrap();
    store.commit(&put("a", b"1")).unwrap();
    store.erase_traces().unwrap();
    let limit = |pages: i64| {
        let connection = store.writer();
        let _: i64 = connection
            .query_row(&format!("PRAGMA max_page_count = {pages}"), [], |row| {
                row.get(0)
            })
            .unwrap();
    };
    limit(1);
    let big = transaction(&[], &[("a", Some(b"2")), ("b", Some(&[1; 100_000]))]);
    assert!(matches!(store.commit(&big), Err(StoreError::Full(_))));
    assert!(!store.has_stopped());
    assert_eq!(store.get("a").unwrap().unwrap().value, b"1");
    assert_eq!(store.get("b").unwrap(), None);
    limit(1 << 20);
    assert!(matches!(store.commit(&big).unwrap(), Outcome::Committed(_)));
    drop(store);
    let store = SqliteStore::open(folder.path()).unwrap();
    assert_eq!(store.get("a").unwrap().unwrap().value, b"2");
}

#[test]
fn a_read_only_store_says_so_and_still_reads() {
    let folder = folder();
    let store = SqliteStore::create(folder.path()).unwrap();
    store.commit(&put("a", b"1")).unwrap();
    store
        .writer()
        .pragma_update(None, "query_only", true)
        .unwrap();
    assert!(matches!(
        store.commit(&put("a", b"2")),
        Err(StoreError::ReadOnly(_))
    ));
    assert_eq!(store.get("a").unwrap().unwrap().value, b"1");
    store
        .writer()
        .pragma_update(None, "query_only", false)
        .unwrap();
    store.commit(&put("a", b"2")).unwrap();
}

#[test]
fn after_a_disk_error_nothing_more_is_written() {
    let folder = folder();
    let store = SqliteStore::create(folder.path()).unwrap();
    store.commit(&put("a", b"1")).unwrap();
    let failure = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR);
    assert!(!store.has_stopped());
    store.write_error(rusqlite::Error::SqliteFailure(failure, None));
    assert!(store.has_stopped());
    assert!(matches!(
        store.commit(&put("a", b"2")),
        Err(StoreError::Stopped)
    ));
    assert!(matches!(store.erase_traces(), Err(StoreError::Stopped)));
    assert_eq!(store.get("a").unwrap().unwrap().value, b"1");
}

#[test]
fn deleted_and_replaced_values_are_gone_from_the_files() {
    let folder = folder();
    let store = SqliteStore::create(folder.path()).unwrap();
    let (first, second) = ([0xa5; 48], [0x5a; 48]);
    store.commit(&put("a", &first)).unwrap();
    store.commit(&put("b", &second)).unwrap();
    store.erase_traces().unwrap();
    assert!(contains(folder.path(), &first) && contains(folder.path(), &second));
    store
        .commit(&transaction(&[], &[("a", None), ("b", Some(b"new"))]))
        .unwrap();
    store.erase_traces().unwrap();
    assert!(!contains(folder.path(), &first) && !contains(folder.path(), &second));
}

#[test]
fn a_copy_has_everything_of_its_moment_and_nothing_that_was_deleted() {
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for folder in [&folder, &elsewhere] {
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    }
    // As a server left them that was killed.
    for name in [COPY.to_owned(), format!("{COPY}-journal")] {
        fs::write(folder.path().join(name), "half").unwrap();
    }
    let store = SqliteStore::create(folder.path()).unwrap();
    let names = || -> Vec<_> {
        let entries = fs::read_dir(folder.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    };
    let of_copies = |name: &std::ffi::OsString| name.to_string_lossy().contains("copy");
    assert!(!names().iter().any(of_copies), "{:?}", names());
    store
        .commit(&conformance::put("gone", b"a deleted value"))
        .unwrap();
    store.commit(&conformance::put("kept", b"1")).unwrap();
    let delete = Operation::Delete {
        key: "gone".to_owned(),
    };
    let deletion = Transaction {
        operations: vec![delete],
        ..Transaction::default()
    };
    store.commit(&deletion).unwrap();
    let mut backup = store.backup().unwrap();
    assert!(!names().iter().any(of_copies), "{:?}", names());
    store.commit(&conformance::put("later", b"2")).unwrap();
    store.erase_traces().unwrap();
    let place = elsewhere.path().join(FILE);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&place)
        .unwrap();
    assert_eq!(
        std::io::copy(&mut backup.file, &mut file).unwrap(),
        backup.size
    );
    let bytes = fs::read(&place).unwrap();
    let deleted = b"a deleted value";
    assert!(!bytes.windows(deleted.len()).any(|part| part == deleted));
    let copy = SqliteStore::open(elsewhere.path()).unwrap();
    assert_eq!(copy.get("kept").unwrap(), store.get("kept").unwrap());
    for key in ["gone", "later"] {
        assert_eq!(copy.get(key).unwrap(), None, "{key}");
    }
    assert!(store.get("later").unwrap().is_some());
}

#[test]
fn copies_are_made_while_others_write_and_erase() {
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for folder in [&folder, &elsewhere] {
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    }
    let store = SqliteStore::create(folder.path()).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0;
            while !done.load(Ordering::SeqCst) {
                // Two that belong together.
                let both = Transaction {
                    operations: ["one", "other"]
                        .map(|key| Operation::Put {
                            key: key.to_owned(),
                            value: format!("{number}").into_bytes(),
                        })
                        .to_vec(),
                    ..Transaction::default()
                };
                store.commit(&both).unwrap();
                store.erase_traces().unwrap();
                number += 1;
            }
        });
        for _ in 0..8 {
            let mut backup = store.backup().unwrap();
            let place = elsewhere.path().join(FILE);
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(place)
                .unwrap();
            std::io::copy(&mut backup.file, &mut file).unwrap();
            let copy = SqliteStore::open(elsewhere.path()).unwrap();
            assert_eq!(copy.get("one").unwrap(), copy.get("other").unwrap());
        }
        done.store(true, Ordering::SeqCst);
    });
}
