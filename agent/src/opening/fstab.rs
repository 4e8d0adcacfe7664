//! Which mounts of fstab(5) lie on a volume that was opened.

use std::fs;
use std::path::Path;

use crate::files::Files;
use crate::unit_name;
use crate::volume::crypttab::unescape;
use crate::volume::source::Source;
use crate::volume::stack;

/// The units of the mounts that lie on the mapping `name`, in the order of the file. What is not there yet may be a volume
/// of LVM on it, which comes a moment later: with `_netdev` and `nofail` systemd is to wait for it too.
pub fn mounts(files: &Files, name: &str) -> Vec<String> {
    let lines = lines_on(files, name);
    lines
        .map(|line| unit_name::mount(&line.mount_point))
        .collect()
}

/// The mount points on the mapping `name` that the boot does not go on without, as it would have to while a key server is away.
pub fn held_up(files: &Files, name: &str) -> Vec<String> {
    let lines = lines_on(files, name).filter(|line| !line.is_waited_for);
    lines.map(|line| line.mount_point).collect()
}

fn lines_on(files: &Files, name: &str) -> impl Iterator<Item = Line> {
    let text = fs::read_to_string(files.path("/etc/fstab")).unwrap_or_default();
    let lines: Vec<Line> = text.lines().filter_map(Line::parse).collect();
    lines
        .into_iter()
        .filter(move |line| line.lies_on(files.root(), name))
}

/// A line that mounts a device when the system starts.
struct Line {
    source: Source,
    mount_point: String,
    is_waited_for: bool,
}

impl Line {
    /// `None` for anything else: comments, swap, network and other file systems without a device, `noauto`.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace().map(unescape);
        let source = fields.next().filter(|field| !field.starts_with('#'))?;
        let mount_point = fields.next().filter(|field| field.starts_with('/'))?;
        let _kind = fields.next()?;
        let options = fields.next().unwrap_or_default();
        let has = |option: &str| options.split(',').any(|one| one == option);
        let source = Source::parse(&source);
        if let Source::Path(path) = &source
            && !path.starts_with("/dev")
        {
            return None;
        }
        (!has("noauto")).then(|| Self {
            source,
            mount_point,
            is_waited_for: has("_netdev") && has("nofail"),
        })
    }

    fn lies_on(&self, root: &Path, name: &str) -> bool {
        match self.source.resolve_below(root) {
            Ok(Some(device)) => stack::device_lies_on(root, &device, &[name]),
            Ok(None) => self.is_waited_for,
            Err(_) => false,
        }
    }
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
/dev/mapper/data /by-hand ext4 noauto
/dev/mapper/vg-later /later ext4 _netdev,nofail
/dev/mapper/gone /gone ext4 nofail
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
            [r"srv-my\x20data.mount", "also.mount", "later.mount"]
        );
        let other = mounts(&Files::under(root.path()), "other");
        assert_eq!(other, ["later.mount"]);
        assert_eq!(held_up(&Files::under(root.path()), "data"), ["/also"]);
    }
}
