//! Which lines of fstab(5) lie on a data volume.

use std::fs;
use std::path::Path;

use crate::files::Files;
use crate::unit_name;
use crate::volume::crypttab::unescape;
use crate::volume::source::{Source, SourceError};
use crate::volume::stack;

/// What units of systemd require before they call the system initialised (`RequiresMountsFor=` of those before basic.target):
/// no mount that one of these lies in may come late.
const NEEDED_EARLY: [&str; 5] = [
    "/usr",
    "/var/lib/systemd",
    "/var/log/journal",
    "/var/log/wtmp",
    "/var/tmp",
];

/// The units of the mounts that lie on the mapping `name`, in the order of the file. What is not there yet may be a volume
/// of LVM on it, which comes a moment later: with `_netdev` and `nofail` systemd is to wait for it too.
pub fn mounts(files: &Files, name: &str) -> Vec<String> {
    let lines = lines(files).into_iter();
    lines
        .filter(|line| match line.lies_on(files.root(), name) {
            Some(lies_on) => lies_on,
            None => line.waits_for_network,
        })
        .filter_map(|line| Some(unit_name::mount(line.mount_point.as_deref()?)))
        .collect()
}

/// What on the mapping `name` the boot does not go on without, or what is mounted before the running system opens volumes: the
/// two would wait for each other.
pub fn held_up(files: &Files, name: &str) -> Vec<String> {
    let lines = lines(files).into_iter();
    lines
        .filter(|line| line.is_needed && line.lies_on(files.root(), name) == Some(true))
        .map(|line| line.to_string())
        .collect()
}

/// Those lines that name the mapping `name` itself: what can be told before any device is there.
pub fn held_up_by_name(files: &Files, name: &str) -> Vec<String> {
    let lines = lines(files).into_iter();
    lines
        .filter(|line| line.is_needed && line.names(name))
        .map(|line| line.to_string())
        .collect()
}

/// What the boot does not go on without and whose device is not there now, so that nobody can tell what it lies on.
pub fn unclear(files: &Files, name: &str) -> Vec<String> {
    let lines = lines(files).into_iter();
    lines
        .filter(|line| line.is_needed && line.lies_on(files.root(), name).is_none())
        .map(|line| line.to_string())
        .collect()
}

fn lines(files: &Files) -> Vec<Line> {
    let text = fs::read_to_string(files.path("/etc/fstab")).unwrap_or_default();
    text.lines().filter_map(Line::parse).collect()
}

/// A line about a device that is mounted, or swapped to, when the system starts.
struct Line {
    source: Source,
    /// A swap area has none.
    mount_point: Option<String>,
    /// With `_netdev` and `nofail`.
    waits_for_network: bool,
    /// The boot does not go on without it.
    is_needed: bool,
}

impl Line {
    /// `None` for anything else: comments, network and other file systems without a device, `noauto`.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace().map(unescape);
        let source = fields.next().filter(|field| !field.starts_with('#'))?;
        let mount_point = fields.next()?;
        let kind = fields.next()?;
        let options = fields.next().unwrap_or_default();
        let has = |option: &str| options.split(',').any(|one| one == option);
        let source = Source::parse(&source);
        if let Source::Path(path) = &source
            && !path.starts_with("/dev")
        {
            return None;
        }
        let mount_point = match kind.as_str() {
            "swap" => None,
            _ => Some(mount_point)
                .filter(|path| path.starts_with('/'))
                .map(Some)?,
        };
        // Swap areas always come early: swap.target is a part of sysinit.target.
        let comes_early = mount_point.as_deref().is_none_or(comes_early);
        let may_fail = ["nofail", "_netdev", "x-systemd.automount"]
            .into_iter()
            .any(has);
        (!has("noauto")).then(|| Self {
            source,
            mount_point,
            waits_for_network: has("_netdev") && has("nofail"),
            is_needed: comes_early || !may_fail,
        })
    }

    fn names(&self, name: &str) -> bool {
        self.source == Source::Path(Path::new("/dev/mapper").join(name))
    }

    /// Whether it lies on the mapping `name`; `None` if its device is not there.
    fn lies_on(&self, root: &Path, name: &str) -> Option<bool> {
        if self.names(name) {
            return Some(true);
        }
        let lies_on = |device: &Path| stack::device_lies_on(root, device, &[name]);
        match self.source.resolve_below(root) {
            Ok(device) => device.map(|device| lies_on(&device)),
            // The devices of one btrfs have one UUID.
            Err(SourceError::Ambiguous { devices, .. }) => {
                Some(devices.iter().any(|device| lies_on(device)))
            }
        }
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.mount_point {
            Some(mount_point) => write!(f, "'{mount_point}'"),
            None => write!(f, "the swap area '{}'", self.source),
        }
    }
}

fn comes_early(mount_point: &str) -> bool {
    let holds = |path: &&str| Path::new(path).starts_with(mount_point);
    NEEDED_EARLY.iter().any(holds)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const FSTAB: &str = "\
# <file system> <mount point>
/dev/vda1 / ext4 errors=remount-ro 0 1
/dev/mapper/data /srv/my\\040data ext4 _netdev,nofail 0 2
UUID=0a-0b /also ext4 defaults
/dev/mapper/data /var/log ext4 _netdev,nofail
/dev/mapper/data /by-hand ext4 noauto
/dev/mapper/vg-later /later ext4 _netdev,nofail
/dev/mapper/gone /gone ext4 defaults
/dev/mapper/data /may-fail ext4 nofail
nas:/export /nas nfs _netdev,nofail
tmpfs /tmp tmpfs _netdev,nofail
/dev/mapper/data none swap sw
";

    #[test]
    fn what_lies_on_the_mapping_is_mounted_and_what_may_still_come() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for folder in [
            "etc",
            "dev/mapper",
            "dev/disk/by-uuid",
            "sys/class/block/dm-0/dm",
            "sys/class/block/vda1",
        ] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        fs::write(at("etc/fstab"), FSTAB).unwrap();
        fs::write(at("sys/class/block/dm-0/dm/name"), "data\n").unwrap();
        fs::write(at("sys/class/block/dm-0/dm/uuid"), "CRYPT-LUKS2-x-data\n").unwrap();
        for device in ["dev/dm-0", "dev/vda1"] {
            fs::write(at(device), "").unwrap();
        }
        symlink("../dm-0", at("dev/mapper/data")).unwrap();
        symlink("../../dm-0", at("dev/disk/by-uuid/0a-0b")).unwrap();
        let found = mounts(&Files::under(root.path()), "data");
        assert_eq!(
            found,
            [
                r"srv-my\x20data.mount",
                "also.mount",
                "var-log.mount",
                "later.mount",
                r"may\x2dfail.mount"
            ]
        );
        let other = mounts(&Files::under(root.path()), "other");
        assert_eq!(other, ["later.mount"]);
        let files = Files::under(root.path());
        let held = ["'/also'", "'/var/log'", "the swap area '/dev/mapper/data'"];
        assert_eq!(held_up(&files, "data"), held);
        assert_eq!(held_up_by_name(&files, "data"), held[1..]);
        // The mapping need not be there.
        assert_eq!(held_up(&files, "gone"), ["'/gone'"]);
        assert_eq!(unclear(&files, "data"), ["'/gone'"]);
        assert_eq!(unclear(&files, "gone"), [""; 0]);
        // One file system over two volumes: udev knows the UUID of both.
        fs::create_dir_all(at("run/udev/data")).unwrap();
        fs::create_dir_all(at("sys/dev/block")).unwrap();
        for (number, device) in [("253:0", "dm-0"), ("254:1", "vda1")] {
            fs::write(
                at("run/udev/data").join(format!("b{number}")),
                "E:ID_FS_UUID_ENC=0a-0b\n",
            )
            .unwrap();
            symlink(
                at("sys/class/block").join(device),
                at("sys/dev/block").join(number),
            )
            .unwrap();
        }
        assert!(mounts(&files, "data").contains(&"also.mount".to_owned()));
    }
}
