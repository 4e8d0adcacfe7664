//! `latchkey image-files`: which files of the bound volumes belong into the initramfs, beside those of the key servers.
//!
//! The builders of images call it. The devices need not be there: an image may be built in a chroot.

use std::path::{Path, PathBuf};

use super::image_list::{self, ImageListError};
use super::list;
use super::target::read_crypttab;
use crate::files::{Files, FilesError};
use crate::volume::crypttab::{Entry, Format, Key};
use crate::volume::envelopes;
use crate::volume::tokens;

/// Prints them, a path for each line.
///
/// # Errors
/// A variant of [`ImageListError`].
pub fn run(files: &Files) -> Result<(), ImageListError> {
    for (name, header) in absent_headers(files)? {
        log::warn!(
            "the header of '{name}', '{}', is not there and does not get into the image: \
             no boot from it opens '{name}' by itself",
            header.display()
        );
    }
    list::warn_of_others(files, &read_crypttab(files)?);
    image_list::print(paths(files)?.iter().map(|path| path.display()))
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
        let Some(header) = header_file(&entry) else {
            continue;
        };
        let real = files.path(&header.to_string_lossy());
        let is_bound = || tokens::find(&real).is_ok_and(|found| !found.is_empty());
        if real.is_file() && is_bound() {
            paths.push(header.to_owned());
        }
    }
    // One line each, whatever crypttab says.
    paths.retain(|path| !path.to_string_lossy().contains('\n'));
    Ok(paths)
}

/// The mappings whose detached header is to be a file that does not exist, and which.
fn absent_headers(files: &Files) -> Result<Vec<(String, PathBuf)>, FilesError> {
    let absent = |entry: &Entry| {
        let header = header_file(entry).filter(|_| entry.key == Key::None)?;
        let is_there = files.path(&header.to_string_lossy()).exists();
        (!is_there).then(|| (entry.name.clone(), header.to_owned()))
    };
    Ok(read_crypttab(files)?.iter().filter_map(absent).collect())
}

/// The detached header, if it is a file; one on a device needs no place in the image.
fn header_file(entry: &Entry) -> Option<&Path> {
    let header = entry.options.header.as_deref()?;
    let is_file = entry.options.format != Format::Plain && !header.starts_with("/dev");
    is_file.then_some(header)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_header_that_is_not_there_is_told_and_one_on_a_device_is_not_looked_for() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::under(root.path());
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/here"), "header").unwrap();
        fs::write(
            files.crypttab(),
            "a /dev/a none luks,header=/etc/here\n\
             b /dev/b none luks,header=/etc/gone\n\
             c /dev/c none luks,header=/dev/disk/by-id/gone\n\
             d /dev/d none plain,header=/etc/gone\n\
             e /dev/e /etc/key luks,header=/etc/gone\n",
        )
        .unwrap();
        assert_eq!(
            absent_headers(&files).unwrap(),
            [("b".to_owned(), PathBuf::from("/etc/gone"))]
        );
    }
}
