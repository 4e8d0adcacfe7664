//! `latchkeyd backup`: copies the store of the running server into a new file.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;

use super::target::{Target, absolute};
use super::{FAILED, Failure, output};
use crate::admin::client;

/// Copy the store of the running server into a new file
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  latchkeyd backup /root/latchkeyd-$(date +%F).store

The copy is of one moment, and the server goes on meanwhile. It is as secret as the store: with the
master key it holds every share, also those that are destroyed later. The master key is not in it,
nor is latchkeyd.toml: keep copies of both, the master key apart from this one.
To put a copy in place: latchkeyd restore.")]
pub struct Backup {
    /// The file to make; it must not exist
    file: PathBuf,
    #[command(flatten)]
    target: Target,
}

impl Backup {
    pub fn run(self) -> Result<(), Failure> {
        let path = absolute(&self.file)?;
        let socket = self.target.socket()?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::AlreadyExists => Failure::refused(format!(
                    "'{}' exists already\nnothing was changed",
                    path.display()
                )),
                _ => failed(&path, &error),
            })?;
        let written = client::backup(&socket, &mut file)
            .map_err(Failure::from)
            .and_then(|size| {
                let folder = path.parent().unwrap_or(Path::new("/"));
                file.sync_all()
                    .and_then(|()| File::open(folder)?.sync_all())
                    .map_err(|error| failed(&path, &error))?;
                Ok(size)
            });
        match written {
            Ok(size) => {
                output::data(&format!("wrote '{}', {size} bytes", path.display()))?;
                output::hint(
                    "it is worthless without the master key: keep a copy of that too, apart from this one",
                );
                Ok(())
            }
            Err(failure) => {
                // Half a copy is none.
                drop(std::fs::remove_file(&path));
                Err(failure)
            }
        }
    }
}

fn failed(path: &Path, error: &std::io::Error) -> Failure {
    Failure {
        code: FAILED,
        text: format!("failed to write '{}': {error}", path.display()),
    }
}
