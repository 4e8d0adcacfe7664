//! What device-mapper has put onto a mapping, such as the volumes of an LVM on it, and taking that down.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::mapping::mangled;

/// LVM on md on dm-crypt is 3; sysfs has no loops, but a limit costs nothing.
const DEPTH_LIMIT: usize = 8;

/// Takes down what lies on the mapping called `name` and nobody uses, the upper ones first (dmsetup(8), which is in the images of
/// both frameworks). What is in use stays.
pub fn close(name: &str) {
    for name in mappings(Path::new("/"), name) {
        let ended = Command::new("dmsetup")
            .args(["remove", "--"])
            .arg(&name)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !ended.is_ok_and(|status| status.success()) {
            log::debug!("'{name}' could not be taken down");
        }
    }
}

/// The kernel's names of the mappings on the one called `name`, the upper ones first, seen from another root directory.
fn mappings(root: &Path, name: &str) -> Vec<String> {
    let block = root.join("sys/class/block");
    let name = mangled(name);
    let devices = fs::read_dir(&block).into_iter().flatten().flatten();
    let device = devices
        .map(|entry| entry.path())
        .find(|device| name_of(device).as_ref() == Some(&name));
    let mut found: Vec<String> = Vec::new();
    let mut level: Vec<PathBuf> = device.into_iter().collect();
    for _ in 0..DEPTH_LIMIT {
        level = level
            .iter()
            .flat_map(|device| holders(&block, device))
            .collect();
        for name in level.iter().filter_map(|device| name_of(device)) {
            // What lies on several goes before all of them.
            found.retain(|other| *other != name);
            found.push(name);
        }
    }
    found.reverse();
    found
}

fn name_of(device: &Path) -> Option<String> {
    let name = fs::read_to_string(device.join("dm/name")).ok()?;
    Some(name.trim_end_matches('\n').to_owned())
}

fn holders(block: &Path, device: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(device.join("holders")).into_iter().flatten();
    entries
        .flatten()
        .map(|entry| block.join(entry.file_name()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_on_several_goes_before_them() {
        let root = tempfile::tempdir().unwrap();
        for (kernel_name, name, held_by) in [
            ("dm-0", "my\\x20data", &["dm-1", "dm-2"][..]),
            ("dm-1", "vg-pool", &["dm-3"]),
            ("dm-2", "vg-home", &["dm-3", "md0"]),
            ("dm-3", "vg-snapshot", &[]),
            ("dm-4", "root", &["dm-5"]),
            ("dm-5", "vg2-root", &[]),
        ] {
            let device = root.path().join("sys/class/block").join(kernel_name);
            fs::create_dir_all(device.join("dm")).unwrap();
            fs::write(device.join("dm/name"), format!("{name}\n")).unwrap();
            for holder in held_by {
                fs::create_dir_all(device.join("holders").join(holder)).unwrap();
            }
        }
        let mut found = mappings(root.path(), "my data");
        assert_eq!(found.remove(0), "vg-snapshot");
        found.sort();
        assert_eq!(found, ["vg-home", "vg-pool"]);
        assert_eq!(mappings(root.path(), "absent"), Vec::<String>::new());
    }
}
