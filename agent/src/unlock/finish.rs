//! `latchkey finish`: root is mounted, the real system comes next.
//!
//! A volume that was opened automatically may only be handed to the system that lies on it: whoever can write the
//! disk could have put a plain file system in root's place.

use std::path::Path;

use super::cleanup;
use super::runtime::Runtime;
use crate::failure::chain;
use crate::files::Files;
use crate::volume::mapping;
use crate::volume::stack::{self, StackError};

/// The boot must not go on.
#[derive(Debug, thiserror::Error)]
#[error("root does not lie on a volume that was opened, and '{0}' could not be closed")]
pub struct RootError(String);

/// Cleans up; then closes what was opened automatically and may not be handed to the root at `mount_point`.
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
    let foreign = foreign(Path::new("/"), mount_point, &names).unwrap_or_else(|error| {
        log::error!("failed to see where root lies: {}", chain(&error));
        names
    });
    if !foreign.is_empty() {
        log::error!("root does not lie on '{}': closing", foreign.join("', '"));
    }
    for name in foreign {
        if let Err(error) = mapping::close(name) {
            log::error!("failed to close '{name}': {}", chain(&error));
            return Err(RootError(name.to_owned()));
        }
    }
    Ok(())
}

/// Which of the mappings that were opened automatically may not be handed to this root: none if it lies wholly on them.
/// Where a person opened the rest of it, those that it lies on stay: nobody can put a part of a root into a volume without
/// its key. Half of a root in the clear gets none.
fn foreign<'a>(
    root: &Path,
    mount_point: &Path,
    automatic: &[&'a str],
) -> Result<Vec<&'a str>, StackError> {
    if stack::lies_on(root, mount_point, automatic)? {
        return Ok(Vec::new());
    }
    if !stack::is_encrypted(root, mount_point)? {
        return Ok(automatic.to_vec());
    }
    let mut foreign = Vec::new();
    for name in automatic {
        if !stack::lies_partly_on(root, mount_point, name)? {
            foreign.push(*name);
        }
    }
    Ok(foreign)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::stack::tests::{LUKS, machine, mount};

    #[test]
    fn a_root_gets_what_it_lies_on() {
        let root = machine(
            &[
                ("254:3", "vda3", "", "", &[]),
                ("254:4", "vda4", "", "", &[]),
                ("254:5", "vda5", "", "", &[]),
                ("253:0", "dm-0", "a", LUKS, &["vda3"]),
                ("253:1", "dm-1", "b", LUKS, &["vda4"]),
                ("253:2", "dm-2", "data", LUKS, &["vda5"]),
                ("9:0", "md0", "", "", &["dm-0", "dm-1"]),
                ("9:1", "md1", "", "", &["dm-0", "vda4"]),
            ],
            &(mount("9:0", "ext4", "/dev/md0")
                + "40 22 9:1 / /half rw - ext4 /dev/md1 rw\n\
                   41 22 253:1 / /alone rw - ext4 /dev/dm-1 rw\n\
                   42 22 254:4 / /clear rw - ext4 /dev/vda4 rw\n"),
        );
        for (at, automatic, expected) in [
            ("/root", &["a", "b", "data"][..], &[][..]),
            // A passphrase opened the other half, and nothing shows that it was the owner's volume.
            ("/root", &["a", "data"], &["data"]),
            ("/root", &["data"], &["data"]),
            ("/half", &["a", "data"], &["a", "data"]),
            ("/alone", &["a", "data"], &["a", "data"]),
            ("/alone", &["b", "data"], &[]),
            ("/clear", &["a"], &["a"]),
        ] {
            let found = foreign(root.path(), Path::new(at), automatic).unwrap();
            assert_eq!(found, expected, "{at}: {automatic:?}");
        }
        assert!(foreign(root.path(), Path::new("/absent"), &["a"]).is_err());
    }
}
