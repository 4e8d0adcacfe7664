//! `latchkey image-files`: which files of the bound volumes belong into the initramfs, beside those of the key servers.
//!
//! The builders of images call it. The devices need not be there: an image may be built in a chroot.

use std::io::{self, Write};
use std::path::PathBuf;

use super::target::read_crypttab;
use crate::files::{Files, FilesError};
use crate::volume::crypttab::{Format, Key};
use crate::volume::envelopes;
use crate::volume::tokens;

/// No list.
#[derive(Debug, thiserror::Error)]
pub enum ImageFilesError {
    /// crypttab.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// stdout.
    #[error("failed to write the list")]
    Write(#[source] io::Error),
}

/// Prints them, a path for each line.
///
/// # Errors
/// A variant of [`ImageFilesError`].
pub fn run(files: &Files) -> Result<(), ImageFilesError> {
    let mut out = io::stdout().lock();
    for path in paths(files)? {
        writeln!(out, "{}", path.display()).map_err(ImageFilesError::Write)?;
    }
    Ok(())
}

/// The envelope files of the volumes in crypttab, and detached headers in files that carry a token of ours.
fn paths(files: &Files) -> Result<Vec<PathBuf>, FilesError> {
    let mut paths = Vec::new();
    for entry in read_crypttab(files)? {
        if entry.key != Key::None {
            continue; // it is never prompted for, and so not opened by latchkey
        }
        let envelope = PathBuf::from(format!("/etc/latchkey/envelopes/{}.json", entry.name));
        if envelopes::path(files, &entry.name).is_file() {
            paths.push(envelope);
        }
        let Some(header) = entry
            .options
            .header
            .filter(|_| entry.options.format != Format::Plain)
        else {
            continue;
        };
        let real = files.path(&header.to_string_lossy());
        let is_bound = || tokens::find(&real).is_ok_and(|found| !found.is_empty());
        if real.is_file() && is_bound() {
            paths.push(header);
        }
    }
    // One line each, whatever crypttab says.
    paths.retain(|path| !path.to_string_lossy().contains('\n'));
    Ok(paths)
}
