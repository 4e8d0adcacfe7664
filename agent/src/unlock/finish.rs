//! `latchkey finish`: root is mounted, the real system comes next.
//!
//! A volume that was opened automatically may only be handed to the system that lies on it: whoever can write the
//! disk could have put a plain file system in root's place.

use std::path::Path;

use super::cleanup;
use super::runtime::Runtime;
use crate::failure::chain;
use crate::files::Files;
use crate::volume::{mapping, stack};

/// The boot must not go on.
#[derive(Debug, thiserror::Error)]
#[error("root does not lie on a volume that was opened, and '{0}' could not be closed")]
pub struct RootError(String);

/// Cleans up; then, if root at `mount_point` does not lie on the mappings that were opened automatically, closes
/// them again.
///
/// # Errors
/// A mapping that should be closed is in use.
pub fn run(files: &Files, mount_point: &Path) -> Result<(), RootError> {
    cleanup::run(files);
    let names = Runtime::of(files).automatic();
    let names: Vec<_> = names
        .iter()
        .map(String::as_str)
        .filter(|name| mapping::name_is_taken(name))
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    match stack::root_lies_on(mount_point, &names) {
        Ok(true) => return Ok(()),
        Ok(false) => log::error!("root does not lie on '{}': closing", names.join("', '")),
        Err(error) => log::error!(
            "failed to see where root lies: {}: closing '{}'",
            chain(&error),
            names.join("', '")
        ),
    }
    for name in names {
        if let Err(error) = mapping::close(name) {
            log::error!("failed to close '{name}': {}", chain(&error));
            return Err(RootError(name.to_owned()));
        }
    }
    Ok(())
}
