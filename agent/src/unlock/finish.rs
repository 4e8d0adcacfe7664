//! `latchkey finish`: root is mounted, the real system comes next.
//!
//! A volume that was opened automatically may only be handed to the system that lies on it: whoever can write the
//! disk could have put another root in its place.

use std::path::Path;
use std::time::{Duration, Instant};

use latchkey_secret::process;

use super::cleanup;
use super::ending;
use super::optional;
use super::runtime::Runtime;
use crate::failure::chain;
use crate::files::Files;
use crate::flow::OPTIONAL_LIMIT;
use crate::volume::above;
use crate::volume::mapping;
use crate::volume::stack::{self, StackError};

/// Between two looks at what is open by now.
const WAIT_PAUSE: Duration = Duration::from_millis(100);

/// The boot must not go on.
#[derive(Debug, thiserror::Error)]
#[error("root does not lie on the volumes that were opened alone, and '{0}' could not be closed")]
pub struct RootError(String);

/// Lets the agent do its part for the volumes that the boot does not need, and cleans up; then closes what was opened
/// automatically and may not be handed to the root at `mount_point`.
///
/// # Errors
/// A mapping that should be closed is in use.
pub fn run(files: &Files, mount_point: &Path) -> Result<(), RootError> {
    let runtime = Runtime::of(files);
    wait_for_others(files, &runtime, mount_point);
    cleanup::run(files);
    let begun = mapping::standing(runtime.begun_automatically());
    if begun.is_empty() {
        return Ok(());
    }
    let opened = runtime.opened_automatically();
    let foreign = foreign(Path::new("/"), mount_point, &begun, &opened).unwrap_or_else(|error| {
        log::error!("failed to see where root lies: {}", chain(&error));
        begun.iter().map(String::as_str).collect()
    });
    if !foreign.is_empty() {
        let names = foreign.join("', '");
        log::error!("root is not to have '{names}', which was opened automatically: closing");
    }
    let foreign = foreign.into_iter().map(str::to_owned).collect();
    for name in mapping::close_all(foreign) {
        let is_below_root = stack::lies_partly_on(Path::new("/"), mount_point, &name);
        if is_below_root.unwrap_or(true) || !take_away(&name) {
            return Err(RootError(name));
        }
    }
    Ok(())
}

/// Gives the agent ten seconds for what it still has: systemd and dracut's scripts go on as soon as root is there, without what
/// has `nofail` or `_netdev`. Only for a root that keeps what opens meanwhile.
/// A disk that is missing is waited for only where the image says that the boot does without the volume: the boot framework has
/// given the others up.
fn wait_for_others(files: &Files, runtime: &Runtime, mount_point: &Path) {
    let optional = optional::names(files);
    let left = || {
        let mut names = runtime.held();
        let only_optional = runtime.is_waiting_for_devices();
        names.retain(|name| {
            !mapping::name_is_taken(name) && (!only_optional || optional.contains(name))
        });
        names
    };
    let names = left();
    let opened = runtime.opened_automatically();
    let opened: Vec<_> = opened.iter().map(String::as_str).collect();
    let has_them = || stack::lies_on(Path::new("/"), mount_point, &opened).unwrap_or(false);
    if names.is_empty() || !has_them() {
        return;
    }
    if let Some(agent) = runtime.agent()
        && let Ok(Some(handle)) = process::pidfd(agent.as_raw())
    {
        log::info!("root is there: giving '{}' ten seconds", names.join("', '"));
        let begin = Instant::now();
        while !ending::is_gone(&handle, WAIT_PAUSE)
            && begin.elapsed() < OPTIONAL_LIMIT
            && !left().is_empty()
        {}
    }
}

/// Closes what something else than root uses, most likely LVM: whoever has root need not stay out for that. Whether it is
/// closed, or at least cut off from its key.
fn take_away(name: &str) -> bool {
    above::close(name);
    if mapping::close_all(vec![name.to_owned()]).is_empty() {
        return true;
    }
    match mapping::cut_off(name) {
        Ok(()) => {
            log::warn!(
                "'{name}' is in use: it is cut off from its key, and whoever uses it gets errors"
            );
            true
        }
        Err(error) => {
            log::error!("failed to close '{name}': {}", chain(&error));
            false
        }
    }
}

/// Which of the mappings that were begun automatically may not be handed to this root. None, if it lies wholly on what was
/// opened. Where a person opened the rest of it, it keeps what it lies on: to put a part of his own root into LVM or btrfs on
/// a volume, somebody would have to know what is written there. md tells less apart, so it joins nothing that was opened
/// automatically to something else; and half of a root in the clear gets none.
fn foreign<'a>(
    root: &Path,
    mount_point: &Path,
    begun: &'a [String],
    opened: &[String],
) -> Result<Vec<&'a str>, StackError> {
    let opened: Vec<_> = opened.iter().map(String::as_str).collect();
    if stack::lies_on(root, mount_point, &opened)? {
        return Ok(Vec::new());
    }
    let (mut kept, mut foreign) = (Vec::new(), Vec::new());
    for name in begun {
        match stack::lies_partly_on(root, mount_point, name)? {
            true => kept.push(name.as_str()),
            false => foreign.push(name.as_str()),
        }
    }
    let has_opened = kept.iter().any(|name| opened.contains(name));
    if !stack::is_encrypted(root, mount_point)?
        || (has_opened && stack::is_joined_by_md(root, mount_point)?)
    {
        foreign.append(&mut kept);
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
                ("253:3", "dm-3", "vg-root", "LVM-x", &["dm-0", "dm-1"]),
                ("253:4", "dm-4", "vg-half", "LVM-y", &["dm-0", "vda4"]),
                ("9:0", "md0", "", "", &["dm-0", "dm-1"]),
            ],
            &(mount("253:3", "ext4", "/dev/dm-3")
                + "40 22 253:4 / /half rw - ext4 /dev/dm-4 rw\n\
                   41 22 253:1 / /alone rw - ext4 /dev/dm-1 rw\n\
                   42 22 254:4 / /clear rw - ext4 /dev/vda4 rw\n\
                   43 22 9:0 / /mirror rw - ext4 /dev/md0 rw\n"),
        );
        std::fs::create_dir(root.path().join("sys/devices/md0/md")).unwrap();
        for (at, begun, opened, expected) in [
            (
                "/root",
                &["a", "b", "data"][..],
                &["a", "b", "data"][..],
                &[][..],
            ),
            // A person opened the other half, or the agent died when it had begun with it.
            ("/root", &["a", "data"], &["a", "data"], &["data"]),
            ("/root", &["a", "b", "data"], &["a", "data"], &["data"]),
            ("/root", &["a", "b"], &[], &[]),
            ("/root", &["data"], &["data"], &["data"]),
            ("/half", &["a", "data"], &["a", "data"], &["data", "a"]),
            ("/alone", &["a", "data"], &["a", "data"], &["a", "data"]),
            ("/alone", &["b", "data"], &["b", "data"], &[]),
            ("/clear", &["a"], &["a"], &["a"]),
            // What is written on one half of a mirror says what the other is to be.
            ("/mirror", &["a", "b"], &["a", "b"], &[]),
            ("/mirror", &["a"], &["a"], &["a"]),
            ("/mirror", &["a"], &[], &[]),
        ] {
            let [begun, opened] = [begun, opened].map(|names| {
                let names = names.iter();
                names.map(|name| (*name).to_owned()).collect::<Vec<_>>()
            });
            let found = foreign(root.path(), Path::new(at), &begun, &opened).unwrap();
            assert_eq!(found, expected, "{at}: {begun:?} {opened:?}");
        }
        let absent = Path::new("/absent");
        assert!(foreign(root.path(), absent, &["a".to_owned()], &[]).is_err());
    }
}
