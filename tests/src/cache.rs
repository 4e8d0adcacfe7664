//! Where finished images live: one folder per kind and key, where the key is a hash of everything that made it.
//! A folder appears whole by a rename or not at all, and one process builds it while others wait.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Names the cache folder in the environment; without it the user's cache folder is taken.
pub const CACHE_VARIABLE: &str = "LATCHKEY_TEST_CACHE";

/// The cache could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("failed to use the cache folder '{}'\nset {CACHE_VARIABLE} to a folder with 5 GB of space", path.display())]
pub struct CacheError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The folder of all cached images: `$LATCHKEY_TEST_CACHE`, else `$XDG_CACHE_HOME/latchkey-tests`, else
/// `~/.cache/latchkey-tests`.
pub fn folder() -> PathBuf {
    if let Some(chosen) = std::env::var_os(CACHE_VARIABLE).filter(|chosen| !chosen.is_empty()) {
        return PathBuf::from(chosen);
    }
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|base| !base.is_empty()) {
        Some(base) => PathBuf::from(base),
        None => std::env::home_dir()
            .unwrap_or_else(|| PathBuf::from("/var/tmp"))
            .join(".cache"),
    };
    base.join("latchkey-tests")
}

/// What a cached folder depends on.
#[derive(Default)]
pub struct Key(Sha256);

impl Key {
    /// Adds one ingredient; its name and length are hashed too, so that two never run into each other.
    #[must_use]
    pub fn with(mut self, name: &str, content: impl AsRef<[u8]>) -> Self {
        for part in [name.as_bytes(), content.as_ref()] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// Sixteen hexadecimal digits.
    pub fn digits(self) -> String {
        self.0
            .finalize()
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// The folder `KIND-DIGITS`; `build` fills it first if it is not there yet.
///
/// # Errors
/// What `build` says, or that the cache folder cannot be used.
pub fn folder_for<E: From<CacheError>>(
    kind: &str,
    key: Key,
    build: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<PathBuf, E> {
    let root = folder();
    let at = |path: &Path, source| CacheError {
        path: path.to_owned(),
        source,
    };
    fs::create_dir_all(&root).map_err(|source| at(&root, source))?;
    let done = root.join(format!("{kind}-{}", key.digits()));
    // It appears whole or not at all, so nobody who finds it waits for one of another key.
    if done.is_dir() {
        return Ok(done);
    }
    let lock_path = root.join(format!("{kind}.lock"));
    let lock = File::create(&lock_path).map_err(|source| at(&lock_path, source))?;
    lock.lock().map_err(|source| at(&lock_path, source))?;
    if done.is_dir() {
        return Ok(done);
    }
    prune(&root, kind).map_err(|source| at(&root, source))?;
    let unfinished = done.with_extension(UNFINISHED);
    fs::create_dir(&unfinished).map_err(|source| at(&unfinished, source))?;
    build(&unfinished)?;
    fs::rename(&unfinished, &done).map_err(|source| at(&done, source))?;
    Ok(done)
}

/// How many finished folders of a kind stay when another one is made; an older one may be in use somewhere.
const KEPT: usize = 2;
const UNFINISHED: &str = "unfinished";

/// Removes what interrupted runs left and the oldest finished folders of a kind. The caller holds the kind's lock,
/// so nobody is filling one of them.
fn prune(root: &Path, kind: &str) -> io::Result<()> {
    let mut finished = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let path = entry.path();
        if !is_of(&entry.file_name().to_string_lossy(), kind) || !entry.file_type()?.is_dir() {
            continue;
        }
        if path
            .extension()
            .is_some_and(|extension| extension == UNFINISHED)
        {
            fs::remove_dir_all(&path)?;
        } else {
            finished.push((entry.metadata()?.modified()?, path));
        }
    }
    finished.sort();
    let old = finished.len().saturating_sub(KEPT);
    finished
        .iter()
        .take(old)
        .try_for_each(|(_, path)| fs::remove_dir_all(path))
}

/// Whether a folder of this name is of this kind and not of one whose name begins with it.
fn is_of(name: &str, kind: &str) -> bool {
    let digits = name
        .strip_prefix(kind)
        .and_then(|rest| rest.strip_prefix('-'));
    digits.is_some_and(|digits| !digits.contains('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_youngest_finished_folders_stay() {
        let root = tempfile::tempdir().unwrap();
        let make = |name: &str, age: u64| {
            let path = root.path().join(name);
            fs::create_dir(&path).unwrap();
            let time = std::time::SystemTime::now() - std::time::Duration::from_secs(age);
            File::open(&path).unwrap().set_modified(time).unwrap();
        };
        for (name, age) in [
            ("a-1", 30),
            ("a-2", 10),
            ("a-3", 20),
            ("a-4.unfinished", 0),
            ("b-1", 40),
            ("a-b-1", 50),
        ] {
            make(name, age);
        }
        prune(root.path(), "a").unwrap();
        let mut left: Vec<_> = fs::read_dir(root.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["a-2", "a-3", "a-b-1", "b-1"]);
    }

    #[test]
    fn ingredients_do_not_run_into_each_other() {
        let one = Key::default().with("a", "bc").digits();
        let other = Key::default().with("ab", "c").digits();
        assert_ne!(one, other);
    }

    #[test]
    fn the_same_ingredients_give_the_same_key() {
        let key = || {
            Key::default()
                .with("packages", "udev")
                .with("script", "exit 0")
                .digits()
        };
        assert_eq!(key(), key());
        assert_eq!(key().len(), 16);
    }
}
