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

Configuration and master key must be in place, and there must be no store: nothing is overwritten.
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
        if std::fs::symlink_metadata(&place).is_ok() {
            return Err(Failure::refused(format!(
                "there is a store already: '{}' exists\nnothing was changed; stop the server and move 'store.*' out of this folder first",
                place.display()
            )));
        }
        let trial = Config {
            data_dir: config.data_dir.join(TRIAL),
            ..config.clone()
        };
        copy(&self.file, &trial.data_dir).map_err(failed)?;
        let entries = verify(&trial).inspect_err(|_| {
            drop(std::fs::remove_dir_all(&trial.data_dir));
        })?;
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
