//! `latchkeyd restore`: puts a copy that `backup` made in the place of a store, once it is known to be good.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, lchown};
use std::path::{Path, PathBuf};

use clap::Args;
use nix::unistd::Uid;

use super::target::ConfigSource;
use super::{FAILED, Failure, output};
use crate::config::Config;
use crate::keyring;
use crate::store::sqlite::FILE;

/// Where a copy is looked at, in the store's folder.
const TRIAL: &str = "restore";

/// Put a copy of the store in place, while the server is stopped
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  systemctl stop latchkeyd
  mkdir -m 700 /root/lost && mv /var/lib/latchkeyd/store.* /root/lost/
  latchkeyd restore /root/latchkeyd-2026-11-28.store
  systemctl start latchkeyd

Configuration and master key must be in place, and there must be no store, nor a file that is left of
one (store.sqlite3-wal): nothing is overwritten.
The copy is put there only if the master key opens it and its audit is as it was written.
Machines that have seen a newer store say so; then nothing is released until
'latchkeyd accept-rollback'. What was done since the copy was made is forgotten: see latchkeyd(8).")]
pub struct Restore {
    /// What 'latchkeyd backup' made
    file: PathBuf,
    #[command(flatten)]
    source: ConfigSource,
}

impl Restore {
    pub fn run(self) -> Result<(), Failure> {
        let (config, _) = self.source.load()?;
        let place = config.data_dir.join(FILE);
        let failed = |error: std::io::Error| failed(&self.file, &config.data_dir, &error);
        refuse_remains(&config.data_dir)?;
        let trial = Config {
            data_dir: config.data_dir.join(TRIAL),
            ..config.clone()
        };
        copy(&self.file, &trial.data_dir).map_err(failed)?;
        let discard = |_: &Failure| drop(std::fs::remove_dir_all(&trial.data_dir));
        let entries = verify(&trial).inspect_err(discard)?;
        // The copy took a while: a server that was started meanwhile, or 'init', may have made a store.
        refuse_remains(&config.data_dir).inspect_err(discard)?;
        give_away(&trial.data_dir.join(FILE), &config.data_dir)
            .and_then(|()| std::fs::rename(trial.data_dir.join(FILE), &place))
            .and_then(|()| std::fs::remove_dir_all(&trial.data_dir))
            .and_then(|()| File::open(&config.data_dir)?.sync_all())
            .map_err(failed)?;
        output::data(&format!(
            "'{}' is the store again; its audit has {entries} entries",
            place.display()
        ))
    }
}

/// How the names of SQLite's files end.
const OF_SQLITE: [&[u8]; 4] = [b"", b"-wal", b"-shm", b"-journal"];

/// Refuses a folder with a store in it, or with what is left of one: SQLite would take a log or journal that lies beside the
/// copy for the copy's own, and mix the two.
fn refuse_remains(folder: &Path) -> Result<(), Failure> {
    let failed = |error: &std::io::Error| Failure {
        code: FAILED,
        text: format!("failed to look into '{}': {error}", folder.display()),
    };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(&error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| failed(&error))?;
        let name = entry.file_name();
        let ending = name.as_encoded_bytes().strip_prefix(FILE.as_bytes());
        if ending.is_some_and(|ending| OF_SQLITE.contains(&ending)) {
            return Err(Failure::refused(format!(
                "there is a store already: '{}' exists\nnothing was changed; stop the server and move 'store.*' out of this folder first",
                entry.path().display()
            )));
        }
    }
    Ok(())
}

/// Copies `file` into the new folder `folder`, as the store that it will be.
fn copy(file: &Path, folder: &Path) -> std::io::Result<()> {
    let mut from = File::open(file)?;
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let mut to = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(folder.join(FILE))?;
    std::io::copy(&mut from, &mut to)?;
    to.sync_all()
}

/// Makes the owner of the store's folder, which is the server's user, the owner of `file`.
fn give_away(file: &Path, folder: &Path) -> std::io::Result<()> {
    if !Uid::effective().is_root() {
        return Ok(());
    }
    let owner = std::fs::metadata(folder)?;
    lchown(file, Some(owner.uid()), Some(owner.gid()))
}

/// How many entries its audit has, if it is a store of this master key and nothing in it was changed.
fn verify(config: &Config) -> Result<u64, Failure> {
    let opened = keyring::open(config).map_err(|error| Failure::of(&error))?;
    let verified = opened.service.verify_audit();
    Ok(verified.map_err(|error| Failure::of(&error))?.entries)
}

fn failed(file: &Path, folder: &Path, error: &std::io::Error) -> Failure {
    Failure {
        code: FAILED,
        text: format!(
            "failed to put '{}' into '{}': {error}",
            file.display(),
            folder.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_store_is_as_much_in_the_way_as_a_store() {
        for side in ["", "-wal", "-shm", "-journal"] {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("latchkeyd.toml"), "").unwrap();
            std::fs::write(folder.path().join("store.lock"), "").unwrap();
            refuse_remains(folder.path()).unwrap();
            let name = format!("{FILE}{side}");
            std::fs::write(folder.path().join(&name), "").unwrap();
            let failure = refuse_remains(folder.path()).unwrap_err();
            assert!(failure.text.contains(&format!("{name}' exists")), "{side}");
        }
        refuse_remains(Path::new("/nonexistent/latchkeyd")).unwrap();
    }
}
