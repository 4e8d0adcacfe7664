//! The embedded store: one SQLite file in a folder of its own, for one process at a time.
//!
//! WAL with synchronous=FULL: a commit is on disk before it returns. Reading has a connection of its own and never waits
//! for that. secure_delete overwrites what is deleted, and [`Store::erase_traces`] empties the write-ahead log, so that a
//! destroyed share is gone from both files. Copies that the file system or the disk made below them are out of reach.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::statvfs::{FsFlags, statvfs};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior};

use super::lock::StoreLock;
use super::{
    Backup, Compare, Entry, Expected, Operation, Outcome, Revision, Store, StoreError, Transaction,
    Versioned,
};

/// The database's name in its folder.
pub const FILE: &str = "store.sqlite3";
/// A copy while it is made.
const COPY: &str = "store.copy";
/// SQLite's way to files that are one process's alone: the first connection locks the database against all other
/// programs until the last one is closed, the index of the log lies on the heap and in no file that another program could
/// cut, and the connections agree on their locks without asking the kernel each time.
const VFS: &str = "unix-excl";
/// Of the tables below.
const SCHEMA: i64 = 1;
/// `LKey` in SQLite's file header.
const APPLICATION: i64 = 0x4c4b_6579;

const TABLES: &str = "
    CREATE TABLE kv (
        key TEXT NOT NULL PRIMARY KEY,
        value BLOB NOT NULL,
        revision INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE revision (
        only INTEGER NOT NULL PRIMARY KEY CHECK (only = 1),
        current INTEGER NOT NULL
    ) STRICT;
    INSERT INTO revision VALUES (1, 0);
";

/// An open store.
pub struct SqliteStore {
    directory: PathBuf,
    writer: Mutex<Connection>,
    reader: Mutex<Connection>,
    /// Set by the first write whose fate is unknown. fsync(2) reports an error once and then forgets it, so a
    /// second try would say "done" of data that never reached the disk.
    stopped: AtomicBool,
    /// Held while a copy is made: whoever makes it reads from the log, which is not emptied meanwhile.
    copying: Mutex<()>,
    // After the connections, so that it is let go last.
    _lock: StoreLock,
}

impl SqliteStore {
    /// Makes a new store in `directory` (made 0700 if it is missing). What an interrupted `create` left is
    /// finished.
    ///
    /// # Errors
    /// `Exists` if it has any content, `InUse`, `Permissions`, `ReadOnly`, `Full`, `Schema`, `Damaged`, `File`,
    /// `Database`.
    pub fn create(directory: &Path) -> Result<Self, StoreError> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| file_error(action, &path, source)
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed("make the folder", directory))?;
        check_guarded(directory)?;
        let lock = StoreLock::take(directory)?;
        let path = directory.join(FILE);
        if !path.exists() {
            // SQLite would make it with the process's umask; its other files take the mode of this one.
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .map_err(failed("create", &path))?;
        }
        check_guarded(&path)?;
        let connection = connect(directory)?;
        if schema(&connection, directory)? == (0, 0) {
            make_tables(&connection).map_err(|source| database_error(directory, source))?;
        }
        let store = Self::with(directory, connection, lock)?;
        File::open(directory)
            .and_then(|folder| folder.sync_all())
            .map_err(failed("sync", directory))?;
        match store.range("", None, 1)?.is_empty() {
            true => Ok(store),
            false => Err(StoreError::Exists(directory.to_owned())),
        }
    }

    /// Opens the store in `directory`, for this process alone.
    ///
    /// # Errors
    /// `Missing`, `InUse`, `Permissions`, `ReadOnly`, `Damaged`, `Schema`, `Full`, `File`, `Database`.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        if !directory.join(FILE).exists() {
            return Err(StoreError::Missing(directory.to_owned()));
        }
        check_guarded(directory)?;
        check_guarded(&directory.join(FILE))?;
        let lock = StoreLock::take(directory)?;
        let connection = connect(directory)?;
        if schema(&connection, directory)? == (0, 0) {
            return Err(StoreError::Missing(directory.to_owned()));
        }
        Self::with(directory, connection, lock)
    }

    fn with(directory: &Path, connection: Connection, lock: StoreLock) -> Result<Self, StoreError> {
        let damaged = |problem| StoreError::Damaged {
            directory: directory.to_owned(),
            problem,
        };
        match schema(&connection, directory)? {
            (APPLICATION, SCHEMA) => {}
            (APPLICATION, found) => {
                return Err(StoreError::Schema {
                    directory: directory.to_owned(),
                    found,
                    expected: SCHEMA,
                });
            }
            _ => return Err(damaged("the file is another program's database".to_owned())),
        }
        let check: String = connection
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(|source| database_error(directory, source))?;
        if check != "ok" {
            return Err(damaged(check));
        }
        let reader = connect(directory)?;
        reader
            .pragma_update(None, "query_only", true)
            .map_err(|source| database_error(directory, source))?;
        let store = Self {
            directory: directory.to_owned(),
            writer: Mutex::new(connection),
            reader: Mutex::new(reader),
            stopped: AtomicBool::new(false),
            copying: Mutex::new(()),
            _lock: lock,
        };
        // What was deleted just before a crash is still in the log, and in a copy that was being made.
        store.erase_traces()?;
        store.remove_copy()?;
        Ok(store)
    }

    // A panic while one of them was held rolled its transaction back.

    fn writer(&self) -> MutexGuard<'_, Connection> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reader(&self) -> MutexGuard<'_, Connection> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `source` as our error; after one that leaves a write's fate unknown, no write is tried again.
    fn write_error(&self, source: rusqlite::Error) -> StoreError {
        let error = database_error(&self.directory, source);
        if matches!(error, StoreError::Database { .. }) {
            self.stopped.store(true, Ordering::SeqCst);
            // What a file system becomes after a disk error, and SQLite calls a disk error as well.
            if self.is_on_read_only() {
                return StoreError::ReadOnly(self.directory.clone());
            }
        }
        error
    }

    fn is_on_read_only(&self) -> bool {
        let file_system = statvfs(&self.directory);
        file_system.is_ok_and(|now| now.flags().contains(FsFlags::ST_RDONLY))
    }

    fn remove_copy(&self) -> Result<(), StoreError> {
        for name in [COPY.to_owned(), format!("{COPY}-journal")] {
            let path = self.directory.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(file_error("remove", &path, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn copying(&self) -> MutexGuard<'_, ()> {
        self.copying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_writing(&self) -> Result<(), StoreError> {
        match self.stopped.load(Ordering::SeqCst) {
            true => Err(StoreError::Stopped),
            false => Ok(()),
        }
    }
}

impl Store for SqliteStore {
    fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        value(&self.reader(), key).map_err(|source| database_error(&self.directory, source))
    }

    fn get_all(&self, keys: &[String]) -> Result<Vec<Option<Versioned>>, StoreError> {
        let connection = self.reader();
        let run = |sql| connection.prepare_cached(sql)?.execute([]);
        let read = || -> rusqlite::Result<_> {
            // In one transaction the pages that lead to the keys are read once.
            run("BEGIN")?;
            let found = keys.iter().map(|key| value(&connection, key)).collect();
            // After an error too: a transaction that stays open would keep the log from being emptied.
            run("ROLLBACK").and(found)
        };
        read().map_err(|source| database_error(&self.directory, source))
    }

    fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        // Every key that begins with the prefix sorts before the prefix with the last of all characters.
        let end = format!("{prefix}{}", char::MAX);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let connection = self.reader();
        let read = || {
            let mut statement = connection.prepare_cached(
                "SELECT key, value, revision FROM kv
                 WHERE key >= ?1 AND key < ?2 AND (?3 IS NULL OR key > ?3) ORDER BY key LIMIT ?4",
            )?;
            let rows = statement.query_map((prefix, end, after, limit), |row| {
                Ok(Entry {
                    key: row.get(0)?,
                    stored: Versioned {
                        value: row.get(1)?,
                        revision: Revision(row.get::<_, i64>(2)?.unsigned_abs()),
                    },
                })
            })?;
            rows.collect::<rusqlite::Result<Vec<Entry>>>()
        };
        read().map_err(|source| database_error(&self.directory, source))
    }

    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        transaction.check()?;
        let mut connection = self.writer();
        self.check_writing()?;
        commit(&mut connection, transaction).map_err(|source| self.write_error(source))
    }

    fn erase_traces(&self) -> Result<(), StoreError> {
        let _copying = self.copying();
        let connection = self.writer();
        self.check_writing()?;
        let busy: i64 = connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
            .map_err(|source| self.write_error(source))?;
        // Whoever reads from the log is waited for, and that is one who reads a few records. What is read from then on
        // comes from the database.
        match busy {
            0 => Ok(()),
            _ => Err(other_reader(&self.directory)),
        }
    }

    fn has_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst) && !self.is_on_read_only()
    }

    fn backup(&self) -> Result<Backup, StoreError> {
        let _copying = self.copying();
        self.remove_copy()?;
        // A connection of its own, so that nobody who reads or writes waits meanwhile.
        let connection = connect(&self.directory)?;
        let path = self.directory.join(COPY);
        let failed = |source| file_error("copy the store to", &path, source);
        // SQLite would make it with the process's umask.
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        let name = path
            .to_str()
            .ok_or_else(|| failed(std::io::ErrorKind::InvalidFilename.into()))?;
        let copied = connection
            .execute("VACUUM INTO ?1", [name])
            .map_err(|source| database_error(&self.directory, source))
            .and_then(|_| File::open(&path).map_err(failed));
        // Whatever is destroyed from now on is in no file of this folder, however the process ends.
        self.remove_copy()?;
        let file = copied?;
        let size = file.metadata().map_err(failed)?.len();
        Ok(Backup { file, size })
    }
}

fn value(connection: &Connection, key: &str) -> rusqlite::Result<Option<Versioned>> {
    connection
        .prepare_cached("SELECT value, revision FROM kv WHERE key = ?1")?
        .query_row([key], |row| {
            Ok(Versioned {
                value: row.get(0)?,
                revision: Revision(row.get::<_, i64>(1)?.unsigned_abs()),
            })
        })
        .optional()
}

fn commit(connection: &mut Connection, transaction: &Transaction) -> rusqlite::Result<Outcome> {
    // Dropping it without a commit rolls it back.
    let sql = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for compare in &transaction.compares {
        if !holds(&sql, compare)? {
            return Ok(Outcome::Conflict);
        }
    }
    let revision: i64 = sql
        .prepare_cached("UPDATE revision SET current = current + 1 RETURNING current")?
        .query_row([], |row| row.get(0))?;
    for operation in &transaction.operations {
        match operation {
            Operation::Put { key, value } => sql
                .prepare_cached(
                    "INSERT INTO kv (key, value, revision) VALUES (?1, ?2, ?3)
                     ON CONFLICT (key) DO UPDATE SET value = ?2, revision = ?3",
                )?
                .execute((key, value, revision))?,
            Operation::Delete { key } => sql
                .prepare_cached("DELETE FROM kv WHERE key = ?1")?
                .execute([key])?,
        };
    }
    sql.commit()?;
    Ok(Outcome::Committed(Revision(revision.unsigned_abs())))
}

fn holds(sql: &rusqlite::Transaction<'_>, compare: &Compare) -> rusqlite::Result<bool> {
    let found: Option<i64> = sql
        .prepare_cached("SELECT revision FROM kv WHERE key = ?1")?
        .query_row([&compare.key], |row| row.get(0))
        .optional()?;
    Ok(match compare.expected {
        Expected::Absent => found.is_none(),
        Expected::Revision(revision) => {
            found.is_some_and(|found| found.unsigned_abs() == revision.0)
        }
    })
}

fn connect(directory: &Path) -> Result<Connection, StoreError> {
    let open = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags_and_vfs(directory.join(FILE), flags, VFS)?;
        connection.pragma_update(None, "trusted_schema", false)?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "cell_size_check", true)?;
        connection.pragma_update(None, "mmap_size", 0)?;
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        connection.pragma_update(None, "secure_delete", true)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        Ok(connection)
    };
    open().map_err(|source| database_error(directory, source))
}

/// (application id, schema version); both 0 in a database that nobody has set up.
fn schema(connection: &Connection, directory: &Path) -> Result<(i64, i64), StoreError> {
    let read = |pragma| connection.pragma_query_value(None, pragma, |row| row.get(0));
    read("application_id")
        .and_then(|application| Ok((application, read("user_version")?)))
        .map_err(|source| database_error(directory, source))
}

fn make_tables(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(&format!(
        "BEGIN IMMEDIATE; {TABLES}
         PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {SCHEMA}; COMMIT;"
    ))
}

/// A folder or file that others can open is refused: they could put records back that were deleted.
fn check_guarded(path: &Path) -> Result<(), StoreError> {
    let metadata = fs::metadata(path).map_err(|source| file_error("read", path, source))?;
    let mode = metadata.mode() & 0o7777;
    let problem = if metadata.uid() != nix::unistd::geteuid().as_raw() {
        format!("belongs to user {}", metadata.uid())
    } else if mode & 0o077 != 0 {
        format!("has mode {mode:04o}, which lets others in")
    } else {
        return Ok(());
    };
    Err(StoreError::Permissions {
        path: path.to_owned(),
        problem,
    })
}

fn file_error(action: &'static str, path: &Path, source: std::io::Error) -> StoreError {
    StoreError::File {
        action,
        path: path.to_owned(),
        source: source.into(),
    }
}

fn database_error(directory: &Path, source: rusqlite::Error) -> StoreError {
    let directory = directory.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full(directory),
        Some(ErrorCode::ReadOnly) => StoreError::ReadOnly(directory),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Damaged {
            directory,
            problem: source.to_string(),
        },
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => other_reader(&directory),
        _ => StoreError::Database {
            directory,
            source: source.into(),
        },
    }
}

fn other_reader(directory: &Path) -> StoreError {
    StoreError::InUse {
        directory: directory.to_owned(),
        holder: "another program that reads the database".to_owned(),
    }
}

#[cfg(test)]
#[path = "sqlite_tests.rs"]
mod tests;
