//! Which lines of fstab(5) lie on a data volume.

use std::path::{Path, PathBuf};

use crate::files::{self, Files, FilesError};
use crate::unit_name;
use crate::volume::crypttab::unescape;
use crate::volume::source::{Source, SourceError};
use crate::volume::stack;

/// What units of systemd require before they call the system initialised, and basic.target (`RequiresMountsFor=`, `PrivateTmp=`):
/// no mount that one of these lies in may come late.
const NEEDED_EARLY: [&str; 6] = [
    "/tmp",
    "/usr",
    "/var/lib/systemd",
    "/var/log/journal",
    "/var/log/wtmp",
    "/var/tmp",
];
/// File systems that systemd mounts with the network without `_netdev`.
const NETWORK_KINDS: [&str; 9] = [
    "afs",
    "ceph",
    "cifs",
    "davfs",
    "glusterfs",
    "nfs",
    "nfs4",
    "smb3",
    "sshfs",
];

/// The units of the mounts that lie on the mapping `name`, in the order of the file. What is not there yet may be a volume
/// of LVM on it, which comes a moment later: with `_netdev` and `nofail` systemd is to wait for it too.
///
/// # Errors
/// `Read`.
pub fn mounts(files: &Files, name: &str) -> Result<Vec<String>, FilesError> {
    let automatic = lines(files)?.into_iter().filter(|line| !line.is_by_hand);
    let mounts = automatic
        .filter(|line| match line.lies_on(files.root(), name) {
            Some(lies_on) => lies_on,
            None => line.waits_for_network,
        })
        .filter_map(|line| Some(unit_name::mount(line.mount_point.as_deref()?)));
    Ok(mounts.collect())
}

/// What keeps a volume from being opened in the running system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The lines, for people.
    pub lines: String,
    /// Whether some of them come early whatever their options say.
    pub come_early: bool,
}

/// What on the mapping `name` the boot does not go on without, or what is mounted before the running system opens volumes: the
/// two would wait for each other.
///
/// # Errors
/// `Read`: then nobody can tell.
pub fn held_up(files: &Files, name: &str) -> Result<Option<Held>, FilesError> {
    held(files, |line| line.lies_on(files.root(), name) == Some(true))
}

/// That of the lines that name the mapping `name` itself: what can be told before any device is there.
///
/// # Errors
/// As [`held_up`].
pub fn held_up_by_name(files: &Files, name: &str) -> Result<Option<Held>, FilesError> {
    held(files, |line| line.names(name))
}

fn held(files: &Files, lies_on: impl Fn(&Line) -> bool) -> Result<Option<Held>, FilesError> {
    let mut lines = with_those_below(lines(files)?, lies_on);
    lines.retain(|line| line.is_needed);
    let names: Vec<_> = lines.iter().map(ToString::to_string).collect();
    Ok((!lines.is_empty()).then(|| Held {
        lines: names.join(", "),
        come_early: lines.iter().any(|line| line.comes_early),
    }))
}

/// What the boot does not go on without and whose device is not there now, so that nobody can tell what it lies on.
///
/// # Errors
/// `Read`.
pub fn unclear(files: &Files, name: &str) -> Result<Vec<String>, FilesError> {
    let lines = lines(files)?.into_iter();
    let unclear = lines
        .filter(|line| line.is_needed && line.lies_on(files.root(), name).is_none())
        .map(|line| line.to_string());
    Ok(unclear.collect())
}

fn lines(files: &Files) -> Result<Vec<Line>, FilesError> {
    let text = files::if_any(files::read_lossy(&files.path("/etc/fstab")))?;
    let text = text.unwrap_or_default();
    Ok(text.lines().filter_map(Line::parse).collect())
}

/// Those of `lines` for which `lies_on` holds, and those that need their mounts: mounts inside them, bind mounts and swap files
/// from there.
fn with_those_below(lines: Vec<Line>, lies_on: impl Fn(&Line) -> bool) -> Vec<Line> {
    let (mut found, mut others): (Vec<Line>, Vec<Line>) = lines.into_iter().partition(lies_on);
    loop {
        let tops: Vec<&Path> = found
            .iter()
            .filter_map(|line| Some(line.mount_point.as_deref()?.as_ref()))
            .collect();
        let next = others
            .iter()
            .position(|line| tops.iter().any(|top| line.is_below(top)));
        match next {
            Some(next) => found.push(others.remove(next)),
            None => return found,
        }
    }
}

/// A line about something that is mounted, or swapped to.
struct Line {
    source: Source,
    /// A swap area has none.
    mount_point: Option<String>,
    /// `noauto`.
    is_by_hand: bool,
    /// With `_netdev` and `nofail`.
    waits_for_network: bool,
    /// Whatever its options say.
    comes_early: bool,
    /// The boot does not go on without it.
    is_needed: bool,
}

impl Line {
    /// `None` for what is neither.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace().map(unescape);
        let source = fields.next().filter(|field| !field.starts_with('#'))?;
        let mount_point = fields.next()?;
        let kind = fields.next()?;
        let options = fields.next().unwrap_or_default();
        let has = |option: &str| options.split(',').any(|one| one == option);
        let is_by_hand = has("noauto");
        let mount_point = match kind.as_str() {
            "swap" => None,
            _ => Some(mount_point)
                .filter(|path| path.starts_with('/'))
                .map(Some)?,
        };
        // swap.target is a part of sysinit.target. A mount that somebody requires is mounted for him also with `noauto`.
        let comes_early = match &mount_point {
            None => !is_by_hand,
            Some(mount_point) => comes_early(mount_point),
        };
        let may_fail = is_by_hand
            || NETWORK_KINDS.contains(&kind.as_str())
            || ["nofail", "_netdev", "x-systemd.automount"]
                .into_iter()
                .any(has);
        Some(Self {
            source: Source::parse(&source),
            mount_point,
            is_by_hand,
            waits_for_network: has("_netdev") && has("nofail"),
            comes_early,
            is_needed: comes_early || !may_fail,
        })
    }

    fn names(&self, name: &str) -> bool {
        self.source == Source::Path(Path::new("/dev/mapper").join(name))
    }

    /// Whether its device lies on the mapping `name`; `None` if it is not there.
    fn lies_on(&self, root: &Path, name: &str) -> Option<bool> {
        if self.names(name) {
            return Some(true);
        }
        if let Source::Path(path) = &self.source
            && !path.starts_with("/dev")
        {
            return Some(false);
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

    /// Whether it needs what is mounted at `top`.
    fn is_below(&self, top: &Path) -> bool {
        let mut paths: Vec<PathBuf> = self.mount_point.iter().map(PathBuf::from).collect();
        if let Source::Path(path) = &self.source {
            paths.push(path.clone());
        }
        top != Path::new("/") && paths.iter().any(|path| path.starts_with(top))
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
    mount_point != "/" && NEEDED_EARLY.iter().any(holds)
}

#[cfg(test)]
mod tests {
    use std::fs;
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
        let found = mounts(&Files::under(root.path()), "data").unwrap();
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
        let other = mounts(&Files::under(root.path()), "other").unwrap();
        assert_eq!(other, ["later.mount"]);
        let files = Files::under(root.path());
        let early = "'/var/log', the swap area '/dev/mapper/data'";
        let held_up = |files, name| held_up(files, name).unwrap();
        let held_up_by_name = |files, name| held_up_by_name(files, name).unwrap();
        let unclear = |files, name| unclear(files, name).unwrap();
        let held = |lines: &str, come_early| {
            Some(Held {
                lines: lines.to_owned(),
                come_early,
            })
        };
        assert_eq!(
            held_up(&files, "data"),
            held(&format!("'/also', {early}"), true)
        );
        assert_eq!(held_up_by_name(&files, "data"), held(early, true));
        // The mapping need not be there.
        assert_eq!(held_up(&files, "gone"), held("'/gone'", false));
        assert_eq!(held_up(&files, "vg-later"), None);
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
        assert!(
            mounts(&files, "data")
                .unwrap()
                .contains(&"also.mount".to_owned())
        );
    }

    #[test]
    fn what_the_boot_needs_holds_it_up_and_so_does_what_needs_its_mount() {
        let line = |options: &str| format!("/dev/mapper/data /srv ext4 {options}");
        let late = line("_netdev,nofail");
        let below = |more: &str| format!("{late}\n{more}");
        for (fstab, held) in [
            (late.clone(), None),
            (line("nofail"), None),
            (line("_netdev"), None),
            (line("noauto"), None),
            (line("defaults,x-systemd.automount"), None),
            (line("defaults"), Some("'/srv'")),
            (
                "/dev/mapper/data /var ext4 noauto".to_owned(),
                Some("'/var'"),
            ),
            (
                "/dev/mapper/data /tmp ext4 nofail".to_owned(),
                Some("'/tmp'"),
            ),
            ("/dev/mapper/data none swap noauto".to_owned(), None),
            (
                "/dev/mapper/data none swap nofail".to_owned(),
                Some("the swap area '/dev/mapper/data'"),
            ),
            (below("/srv/home /home none bind"), Some("'/home'")),
            (below("/srv/home /home none bind,nofail"), None),
            (
                below("/srv/a /b none bind,nofail\n/dev/vda9 /b/c ext4 defaults"),
                Some("'/b/c'"),
            ),
            (
                below("/srv/swapfile none swap sw"),
                Some("the swap area '/srv/swapfile'"),
            ),
            (below("nas:/x /srv/nas nfs defaults"), None),
            (below("/dev/vda9 /srvice ext4 defaults"), None),
        ] {
            let root = tempfile::tempdir().unwrap();
            let files = Files::under(root.path());
            fs::create_dir_all(root.path().join("etc")).unwrap();
            fs::write(
                files.path("/etc/fstab"),
                format!("/dev/vda1 / ext4 defaults\n{fstab}\n"),
            )
            .unwrap();
            let found = held_up_by_name(&files, "data").unwrap();
            let found = found.map(|held| held.lines);
            assert_eq!(found.as_deref(), held, "{fstab}");
        }
    }

    #[test]
    fn a_byte_that_is_not_utf_8_hides_no_line_and_what_cannot_be_read_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::under(root.path());
        assert_eq!(held_up_by_name(&files, "data").unwrap(), None);
        fs::create_dir_all(root.path().join("etc")).unwrap();
        let fstab = b"# f\xfcr die Daten\n/dev/mapper/data /srv ext4 defaults\n";
        fs::write(files.path("/etc/fstab"), fstab).unwrap();
        let held = held_up_by_name(&files, "data").unwrap().unwrap();
        assert_eq!(held.lines, "'/srv'");
        fs::remove_file(files.path("/etc/fstab")).unwrap();
        fs::create_dir(files.path("/etc/fstab")).unwrap();
        held_up(&files, "data").unwrap_err();
        mounts(&files, "data").unwrap_err();
        unclear(&files, "data").unwrap_err();
    }
}
