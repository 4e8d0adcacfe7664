//! `latchkey image-optional`: which bound volumes a boot by initramfs-tools goes on without.

use std::path::Path;

use super::image_list::{self, ImageListError};
use super::target::read_crypttab;
use crate::files::Files;
use crate::volume::binding;
use crate::volume::crypttab::{Entry, Key};
use crate::volume::place::Place;
use crate::volume::stack;

/// Prints their names, one for each line.
///
/// # Errors
/// A variant of [`ImageListError`].
pub fn run(files: &Files) -> Result<(), ImageListError> {
    let mut entries = read_crypttab(files)?;
    entries.retain(|entry| {
        let fits = entry.key == Key::None && entry.options.nofail && !entry.name.contains('\n');
        fits && is_bound(files, entry) && !is_needed(files, &entry.name)
    });
    image_list::print(entries.iter().map(|entry| &entry.name))
}

/// What is not bound is none of our business, and what cannot be read now may not be.
fn is_bound(files: &Files, entry: &Entry) -> bool {
    let Ok(Some(place)) = Place::of_entry(entry, files) else {
        return false;
    };
    binding::find(files, &entry.name, &place).is_ok_and(|found| !found.is_empty())
}

/// Whether root or `/usr` lies on it, whatever crypttab says; in doubt it does.
fn is_needed(files: &Files, name: &str) -> bool {
    let lies_on = |mount_point| stack::lies_partly_on(files.root(), Path::new(mount_point), name);
    lies_on("/").unwrap_or(true) || lies_on("/usr").unwrap_or(false)
}
