//! `latchkey image-modules`: which modules of the kernel the bound volumes need that no other builder of the image brings.

use std::collections::BTreeSet;

use super::image_list::{self, ImageListError};
use super::target::read_crypttab;
use crate::files::Files;
use crate::volume::binding;
use crate::volume::crypttab::{Entry, Key};
use crate::volume::modules;
use crate::volume::place::Place;

/// Prints their names, one for each line, as modprobe(8) takes them.
///
/// # Errors
/// A variant of [`ImageListError`].
pub fn run(files: &Files) -> Result<(), ImageListError> {
    let entries = read_crypttab(files)?;
    let names: BTreeSet<String> = entries
        .iter()
        // Others are never prompted for, and so not opened by latchkey.
        .filter(|entry| entry.key == Key::None)
        .flat_map(|entry| of_entry(files, entry))
        .collect();
    image_list::print(names)
}

/// None where the device is not there or cannot be read, as in a chroot: that is no reason for an image to fail.
fn of_entry(files: &Files, entry: &Entry) -> Vec<String> {
    let Ok(Some(place)) = Place::of_entry(entry, files) else {
        return Vec::new();
    };
    binding::find(files, &entry.name, &place)
        .into_iter()
        .flatten()
        .filter_map(|found| found.token.ok())
        .flat_map(|token| modules::needed_by(&token.bound))
        .collect()
}
