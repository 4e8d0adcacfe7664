//! Whether a mounted file system lies on one of our mappings, through LVM and md.
//!
//! `latchkey finish` asks: a plain file system with root's UUID or label must not profit from a volume that latchkey
//! opened beside it. A file system lies on mappings if every path downwards meets one of them, so half a mirror in the
//! clear counts as no. A btrfs lies on all of its devices, as sysfs names them.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use super::mapping;

/// The devices below a file system cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// Nothing is mounted there.
    #[error("nothing is mounted at '{0}'")]
    NotMounted(PathBuf),
    /// A file system without a block device: tmpfs, overlay, NFS.
    #[error("'{path}' is a {kind} file system and lies on no block device")]
    NoDevice {
        /// The mount point.
        path: PathBuf,
        /// The type of the file system.
        kind: String,
    },
    /// Reading /proc or /sys failed.
    #[error("failed to read '{path}'")]
    Read {
        /// What was read.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The block devices of the file system mounted at `mount_point`, by their folders in sysfs: several only of a btrfs.
///
/// # Errors
/// `NotMounted`, `NoDevice`, `Read`.
pub(crate) fn mounted_devices(root: &Path, mount_point: &Path) -> Result<Vec<PathBuf>, StackError> {
    let table = root.join("proc/self/mountinfo");
    let text = fs::read(&table).map_err(|source| StackError::Read {
        path: table,
        source,
    })?;
    // The kernel escapes white space only: any other byte may be in a mount point.
    let text = String::from_utf8_lossy(&text);
    // The last line wins: it was mounted over the others.
    let mount = text
        .lines()
        .filter_map(Mount::parse)
        .rfind(|mount| mount.point == mount_point)
        .ok_or_else(|| StackError::NotMounted(mount_point.to_owned()))?;
    if !mount.number.starts_with("0:") {
        return Ok(vec![root.join("sys/dev/block").join(mount.number)]);
    }
    // btrfs has an anonymous device number; its source names one of its devices.
    let named = kernel_name(root, &mount.source).ok_or_else(|| StackError::NoDevice {
        path: mount_point.to_owned(),
        kind: mount.kind.clone(),
    })?;
    let in_sysfs = |name: &OsString| root.join("sys/class/block").join(name);
    match btrfs_with(root, &named) {
        Some(all) => Ok(all.iter().map(in_sysfs).collect()),
        None => Err(StackError::NoDevice {
            path: mount_point.to_owned(),
            kind: mount.kind,
        }),
    }
}

/// Kernel names of all devices of the btrfs to which `device` belongs.
fn btrfs_with(root: &Path, device: &OsStr) -> Option<Vec<OsString>> {
    let names = |folder: &Path| -> Vec<OsString> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name()).collect()
    };
    let systems = root.join("sys/fs/btrfs");
    let mut all = names(&systems)
        .into_iter()
        .map(|uuid| names(&systems.join(uuid).join("devices")));
    all.find(|devices| devices.iter().any(|name| name == device))
}

/// Whether the file system mounted at `mount_point` (as /proc/self/mountinfo writes it, seen from the directory `root`) lies
/// wholly on mappings of dm-crypt with one of the `names`.
///
/// # Errors
/// `NotMounted`, `NoDevice`, `Read`.
pub(crate) fn lies_on(root: &Path, mount_point: &Path, names: &[&str]) -> Result<bool, StackError> {
    is_wholly_on(root, mount_point, &|name| is_among(name, names))
}

/// Whether the file system mounted at `mount_point` lies wholly on mappings of dm-crypt, whatever they are called.
///
/// # Errors
/// As [`lies_on`].
pub(crate) fn is_encrypted(root: &Path, mount_point: &Path) -> Result<bool, StackError> {
    is_wholly_on(root, mount_point, &|_| true)
}

fn is_wholly_on(
    root: &Path,
    mount_point: &Path,
    meant: &dyn Fn(&str) -> bool,
) -> Result<bool, StackError> {
    let devices = mounted_devices(root, mount_point)?;
    Ok(devices
        .iter()
        .all(|device| is_covered(device, meant, DEPTH_LIMIT)))
}

/// Whether a part of the file system mounted at `mount_point` lies on the mapping of dm-crypt called `name`.
///
/// # Errors
/// As [`lies_on`].
pub(crate) fn lies_partly_on(
    root: &Path,
    mount_point: &Path,
    name: &str,
) -> Result<bool, StackError> {
    let devices = mounted_devices(root, mount_point)?;
    Ok(below(&devices, Depth::Disks).iter().any(|device| {
        is_crypt(device) && is_among(attribute(device, "dm/name").trim_end_matches('\n'), &[name])
    }))
}

/// Whether md joins mappings to what the file system mounted at `mount_point` lies on.
///
/// # Errors
/// As [`lies_on`].
pub(crate) fn is_joined_by_md(root: &Path, mount_point: &Path) -> Result<bool, StackError> {
    let devices = mounted_devices(root, mount_point)?;
    Ok(below(&devices, Depth::Mappings)
        .iter()
        .any(|device| device.join("md").exists()))
}

/// Whether a device node, seen from another root directory, lies wholly on mappings with one of the `names`, or is one.
pub(crate) fn device_lies_on(root: &Path, device: &Path, names: &[&str]) -> bool {
    let node = root.join(device.strip_prefix("/").unwrap_or(device));
    let Some(kernel) = fs::canonicalize(node).ok() else {
        return false;
    };
    let Some(kernel) = kernel.file_name() else {
        return false;
    };
    let device = root.join("sys/class/block").join(kernel);
    is_covered(&device, &|name| is_among(name, names), DEPTH_LIMIT)
}

/// Whether sysfs' name of a mapping is one of `names`.
fn is_among(name: &str, names: &[&str]) -> bool {
    names.iter().any(|wanted| mapping::mangled(wanted) == name)
}

/// LVM on md on partitions is 4 levels; sysfs has no loops, but a limit costs nothing.
const DEPTH_LIMIT: u32 = 16;

/// Whether every path from this sysfs device downwards meets a mapping of dm-crypt whose name is `meant`.
fn is_covered(device: &Path, meant: &dyn Fn(&str) -> bool, depth: u32) -> bool {
    if depth == 0 {
        return false;
    }
    if is_crypt(device) && meant(attribute(device, "dm/name").trim_end_matches('\n')) {
        return true;
    }
    let under = under(device);
    !under.is_empty() && under.iter().all(|one| is_covered(one, meant, depth - 1))
}

/// Kernel names of the devices that the uppermost dm-crypt mappings at and below these sysfs devices lie on, each once.
pub(crate) fn encrypted_below(devices: &[PathBuf]) -> Vec<String> {
    let all = below(devices, Depth::Mappings);
    let mappings = all.iter().filter(|device| is_crypt(device));
    let names: BTreeSet<_> = mappings
        .flat_map(|device| mapping::below(device))
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    names.into_iter().collect()
}

/// How far down to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// As far as the uppermost mappings of dm-crypt.
    Mappings,
    /// As far as there is anything.
    Disks,
}

/// All devices at and below these, by their real paths in sysfs.
fn below(devices: &[PathBuf], depth: Depth) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut next = devices.to_vec();
    while let Some(device) = next.pop() {
        let Ok(device) = fs::canonicalize(device) else {
            continue;
        };
        if depth == Depth::Disks || !is_crypt(&device) {
            next.extend(under(&device));
        }
        found.insert(device);
    }
    found
}

/// What a sysfs device lies on.
fn under(device: &Path) -> Vec<PathBuf> {
    // A partition has no slaves of its own: they are the whole device's.
    match whole_device(device) {
        Some(whole) => vec![whole],
        None => slaves(device),
    }
}

/// The device that a sysfs device is a partition of.
pub(super) fn whole_device(device: &Path) -> Option<PathBuf> {
    let real = fs::canonicalize(device).ok()?;
    let whole = real.parent()?.to_owned();
    real.join("partition").exists().then_some(whole)
}

/// What the kernel made a sysfs device of: the paths of a multipath map, the members of an array.
pub(super) fn slaves(device: &Path) -> Vec<PathBuf> {
    let slaves = fs::read_dir(device.join("slaves"));
    let slaves = slaves.into_iter().flatten().flatten();
    slaves.map(|slave| slave.path()).collect()
}

fn is_crypt(device: &Path) -> bool {
    mapping::is_crypt(&attribute(device, "dm/uuid"))
}

fn attribute(device: &Path, name: &str) -> String {
    fs::read_to_string(device.join(name)).unwrap_or_default()
}

/// The kernel's name of a device node.
fn kernel_name(root: &Path, source: &str) -> Option<OsString> {
    let path = source.strip_prefix("/dev/")?;
    let node = fs::canonicalize(root.join("dev").join(path)).ok()?;
    let name = node.file_name()?.to_owned();
    root.join("sys/class/block")
        .join(&name)
        .join("dev")
        .exists()
        .then_some(name)
}

/// A line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
struct Mount {
    number: String,
    point: PathBuf,
    kind: String,
    source: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(2);
        let mut back = back.split(' ');
        Some(Self {
            number: front.next()?.to_owned(),
            point: super::crypttab::unescape(front.nth(1)?).into(),
            kind: back.next()?.to_owned(),
            source: super::crypttab::unescape(back.next()?),
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A root directory with sysfs devices (number, kernel name, dm name, dm uuid, slaves) and a mount table.
    pub(crate) fn machine(
        devices: &[(&str, &str, &str, &str, &[&str])],
        mountinfo: &str,
    ) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for directory in ["proc/self", "sys/dev/block", "sys/class/block", "dev"] {
            fs::create_dir_all(at(directory)).unwrap();
        }
        fs::write(at("proc/self/mountinfo"), mountinfo).unwrap();
        for (number, kernel, name, uuid, slaves) in devices {
            let device = at("sys/devices").join(kernel);
            fs::create_dir_all(device.join("slaves")).unwrap();
            fs::write(device.join("dev"), format!("{number}\n")).unwrap();
            if !name.is_empty() {
                fs::create_dir_all(device.join("dm")).unwrap();
                fs::write(device.join("dm/name"), format!("{name}\n")).unwrap();
                fs::write(device.join("dm/uuid"), format!("{uuid}\n")).unwrap();
            }
            for slave in *slaves {
                symlink(
                    at("sys/devices").join(slave),
                    device.join("slaves").join(slave),
                )
                .unwrap();
            }
            symlink(&device, at("sys/dev/block").join(number)).unwrap();
            symlink(&device, at("sys/class/block").join(kernel)).unwrap();
            fs::write(at("dev").join(kernel), "").unwrap();
        }
        root
    }

    pub(crate) const LUKS: &str = "CRYPT-LUKS2-8a3d7d0e0d5b4f3c9d521e1fa2a1c0de-a";

    /// Of a root file system below `/root`.
    pub(crate) fn mount(number: &str, kind: &str, source: &str) -> String {
        format!(
            "22 1 0:2 / / rw - rootfs rootfs rw\n\
             30 22 0:20 / /root rw - tmpfs tmpfs rw\n\
             31 22 {number} / /root rw,relatime shared:1 - {kind} {source} rw\n"
        )
    }

    #[test]
    fn root_on_lvm_on_the_mapping_lies_on_it() {
        let root = machine(
            &[
                ("254:3", "vda3", "", "", &[]),
                ("253:0", "dm-0", "crypt", LUKS, &["vda3"]),
                ("253:1", "dm-1", "vg-root", "LVM-x", &["dm-0"]),
            ],
            &mount("253:1", "ext4", "/dev/mapper/vg-root"),
        );
        let lies = |names: &[&str]| lies_on(root.path(), Path::new("/root"), names).unwrap();
        assert!(lies(&["other", "crypt"]));
        assert!(!lies(&["other"]));
        assert!(!lies(&[]));
        assert!(is_encrypted(root.path(), Path::new("/root")).unwrap());
        let device = |names: &[&str]| device_lies_on(root.path(), Path::new("/dev/dm-1"), names);
        assert!(device(&["crypt"]) && !device(&["vg-root"]));
        assert!(
            !lies(&["vg-root"]),
            "a mapping of LVM is not one of dm-crypt"
        );
    }

    #[test]
    fn root_on_a_mapping_with_integrity_lies_on_it_and_on_the_disk() {
        let layer = "CRYPT-INTEGRITY-8a3d7d0e0d5b4f3c9d521e1fa2a1c0de-crypt_dif";
        let crypt = LUKS.replace("-a", "-crypt");
        let root = machine(
            &[
                ("254:3", "vda3", "", "", &[]),
                ("253:0", "dm-0", "crypt_dif", layer, &["vda3"]),
                ("253:1", "dm-1", "crypt", &crypt, &["dm-0"]),
                ("253:2", "dm-2", "vg-root", "LVM-x", &["dm-1"]),
            ],
            &(mount("253:2", "ext4", "/dev/mapper/vg-root")
                + "40 22 253:0 / /bare rw - ext4 /dev/dm-0 rw\n"),
        );
        let lies = |at: &str, names: &[&str]| lies_on(root.path(), Path::new(at), names).unwrap();
        assert!(lies("/root", &["crypt"]));
        assert!(!lies("/root", &["crypt_dif"]), "it encrypts nothing");
        assert!(!lies("/bare", &["crypt", "crypt_dif"]));
        assert!(!is_encrypted(root.path(), Path::new("/bare")).unwrap());
        let disk = encrypted_below(&[root.path().join("sys/class/block/dm-2")]);
        assert_eq!(disk, ["vda3"]);
    }

    #[test]
    fn a_mount_point_that_is_not_utf_8_hides_no_other() {
        let root = machine(
            &[("253:0", "dm-0", "crypt", LUKS, &[])],
            &mount("253:0", "ext4", "/dev/dm-0"),
        );
        let table = root.path().join("proc/self/mountinfo");
        let mut text = b"20 1 0:9 / /media/f\xfcr rw - tmpfs tmpfs rw\n".to_vec();
        text.extend(fs::read(&table).unwrap());
        fs::write(&table, text).unwrap();
        assert!(is_encrypted(root.path(), Path::new("/root")).unwrap());
    }

    #[test]
    fn a_plain_file_system_with_the_right_label_does_not() {
        let root = machine(
            &[
                ("254:3", "vda3", "", "", &[]),
                ("253:0", "dm-0", "crypt", LUKS, &["vda3"]),
                ("254:16", "vdb", "", "", &[]),
            ],
            &mount("254:16", "ext4", "/dev/vdb"),
        );
        assert!(!lies_on(root.path(), Path::new("/root"), &["crypt"]).unwrap());
        assert!(!is_encrypted(root.path(), Path::new("/root")).unwrap());
    }

    #[test]
    fn a_mirror_with_one_half_in_the_clear_does_not() {
        let root = machine(
            &[
                ("254:3", "vda3", "", "", &[]),
                ("254:4", "vda4", "", "", &[]),
                ("253:0", "dm-0", "a", LUKS, &["vda3"]),
                ("253:1", "dm-1", "b", LUKS, &["vda4"]),
                ("9:0", "md0", "", "", &["dm-0", "dm-1"]),
                ("9:1", "md1", "", "", &["dm-0", "vda4"]),
            ],
            &(mount("9:0", "ext4", "/dev/md0") + "40 22 9:1 / /half rw - ext4 /dev/md1 rw\n"),
        );
        let lies = |at: &str, names: &[&str]| lies_on(root.path(), Path::new(at), names).unwrap();
        assert!(lies("/root", &["a", "b"]));
        assert!(!lies("/root", &["a"]));
        assert!(!lies("/half", &["a", "b"]));
        let partly = |at: &str, name| lies_partly_on(root.path(), Path::new(at), name).unwrap();
        assert!(partly("/root", "a") && partly("/root", "b"));
        assert!(partly("/half", "a") && !partly("/half", "b"));
        let joined = |at: &str| is_joined_by_md(root.path(), Path::new(at)).unwrap();
        assert!(!joined("/root"));
        fs::create_dir(root.path().join("sys/devices/md0/md")).unwrap();
        assert!(joined("/root") && !joined("/half"));
    }

    #[test]
    fn a_mapping_on_a_mapping_on_md() {
        let root = machine(
            &[
                ("254:3", "vda3", "", "", &[]),
                ("9:0", "md0", "", "", &["vda3"]),
                ("253:0", "dm-0", "outer", LUKS, &["md0"]),
                ("253:1", "dm-1", "my\\x20inner", LUKS, &["dm-0"]),
            ],
            &mount("253:1", "ext4", "/dev/dm-1"),
        );
        fs::create_dir(root.path().join("sys/devices/md0/md")).unwrap();
        let at = Path::new("/root");
        assert!(lies_partly_on(root.path(), at, "outer").unwrap());
        assert!(lies_partly_on(root.path(), at, "my inner").unwrap());
        assert!(lies_on(root.path(), at, &["my\\x20inner"]).unwrap());
        assert!(lies_on(root.path(), at, &["outer"]).unwrap());
        assert!(!is_joined_by_md(root.path(), at).unwrap(), "it is below");
        let devices = mounted_devices(root.path(), at).unwrap();
        assert_eq!(encrypted_below(&devices), ["dm-0"]);
    }

    #[test]
    fn a_btrfs_lies_on_all_of_its_devices() {
        let root = machine(
            &[
                ("254:3", "vda3", "", "", &[]),
                ("254:4", "vda4", "", "", &[]),
                ("253:0", "dm-0", "a", LUKS, &["vda3"]),
                ("253:1", "dm-1", "b", LUKS, &["vda4"]),
            ],
            &mount("0:31", "btrfs", "/dev/dm-1"),
        );
        for (uuid, device) in [("other", "vda9"), ("this", "dm-0"), ("this", "dm-1")] {
            let devices = root.path().join("sys/fs/btrfs").join(uuid).join("devices");
            fs::create_dir_all(devices.join(device)).unwrap();
        }
        let lies = |names: &[&str]| lies_on(root.path(), Path::new("/root"), names).unwrap();
        assert!(lies(&["a", "b"]));
        assert!(!lies(&["b"]));
        assert!(lies_partly_on(root.path(), Path::new("/root"), "a").unwrap());
        assert!(is_encrypted(root.path(), Path::new("/root")).unwrap());
        let devices = mounted_devices(root.path(), Path::new("/root")).unwrap();
        assert_eq!(encrypted_below(&devices), ["vda3", "vda4"]);
        let clear = root.path().join("sys/fs/btrfs/this/devices/vda4");
        fs::create_dir_all(clear).unwrap();
        assert!(!lies(&["a", "b"]));
        assert!(!is_encrypted(root.path(), Path::new("/root")).unwrap());
    }

    #[test]
    fn btrfs_is_found_by_its_source_and_tmpfs_has_no_device() {
        let root = machine(
            &[("253:0", "dm-0", "a", LUKS, &[])],
            &(mount("0:31", "btrfs", "/dev/dm-0")
                + "41 22 0:9 / /run/a\\040b rw - tmpfs tmpfs rw\n"),
        );
        let error = lies_on(root.path(), Path::new("/root"), &["a"]).unwrap_err();
        assert!(error.to_string().contains("btrfs"), "{error}");
        fs::create_dir_all(root.path().join("sys/fs/btrfs/1-2/devices/dm-0")).unwrap();
        assert!(lies_on(root.path(), Path::new("/root"), &["a"]).unwrap());
        let error = lies_on(root.path(), Path::new("/run/a b"), &["a"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "'/run/a b' is a tmpfs file system and lies on no block device"
        );
        assert!(matches!(
            lies_on(root.path(), Path::new("/absent"), &["a"]),
            Err(StackError::NotMounted(_))
        ));
    }
}
