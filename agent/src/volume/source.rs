//! The device that a crypttab entry means.
//!
//! udev's links under `/dev/disk` name it; when two devices carry the same UUID the link points to one of them by
//! chance, so udev's own records are searched for a second one. Without udev (`/run/udev/data`) only the link speaks.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use super::stack;

/// The second field of crypttab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A device node, or a link to one.
    Path(PathBuf),
    /// `UUID=`, as written: that of a FAT or an NTFS is in upper case.
    Uuid(String),
    /// `LABEL=`.
    Label(String),
    /// `PARTUUID=`.
    PartUuid(String),
    /// `PARTLABEL=`.
    PartLabel(String),
}

/// A source could not be told.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Two or more devices carry what should be unique.
    #[error(
        "'{wanted}' is on more than one device: {}\nname the device in crypttab by a path under /dev/disk/by-id, or take the copy away",
        list(devices)
    )]
    Ambiguous {
        /// As in crypttab.
        wanted: String,
        /// Device paths.
        devices: Vec<PathBuf>,
    },
}

impl Source {
    /// Reads the field, already unescaped. A tag's value may stand in double quotes.
    pub fn parse(field: &str) -> Self {
        // dracut writes udev's links for these two into the image.
        if let Some(uuid) = field.strip_prefix("/dev/disk/by-uuid/") {
            return Self::Uuid(uuid.to_owned());
        }
        if let Some(uuid) = field.strip_prefix("/dev/disk/by-partuuid/") {
            return Self::PartUuid(uuid.to_lowercase());
        }
        let Some((tag, value)) = field.split_once('=') else {
            return Self::Path(PathBuf::from(field));
        };
        let value = value
            .strip_prefix('"')
            .and_then(|value| value.strip_suffix('"'))
            .unwrap_or(value)
            .to_owned();
        match tag {
            "UUID" => Self::Uuid(value),
            "LABEL" => Self::Label(value),
            "PARTUUID" => Self::PartUuid(value.to_lowercase()),
            "PARTLABEL" => Self::PartLabel(value),
            _ => Self::Path(PathBuf::from(field)),
        }
    }

    /// With a UUID in lower case, as that of a LUKS header always is.
    pub fn in_lower_case(self) -> Self {
        match self {
            Self::Uuid(uuid) => Self::Uuid(uuid.to_lowercase()),
            other => other,
        }
    }

    /// The device's path as the system names it now, or `None` while it is missing.
    ///
    /// # Errors
    /// `Ambiguous` names every device that carries the same UUID or label.
    pub fn resolve(&self) -> Result<Option<PathBuf>, SourceError> {
        self.resolve_below(Path::new("/"))
    }

    /// As [`Source::resolve`], with another root directory.
    ///
    /// # Errors
    /// As [`Source::resolve`].
    pub fn resolve_below(&self, root: &Path) -> Result<Option<PathBuf>, SourceError> {
        let link = self.link();
        if !below(root, &link).exists() {
            let lower = self.clone().in_lower_case();
            return if lower == *self {
                Ok(None)
            } else {
                lower.resolve_below(root)
            };
        }
        let carriers = self.carriers(root);
        if carriers.len() > 1 {
            return Err(SourceError::Ambiguous {
                wanted: self.to_string(),
                devices: carriers.into_iter().collect(),
            });
        }
        Ok(Some(link))
    }

    /// A name for `device` that does not depend on the order in which devices are found, where udev has one.
    pub fn lasting(device: &Path, root: &Path) -> Self {
        let link_in = |directory: &str| {
            let directory = below(root, &Path::new("/dev/disk").join(directory));
            let mut names: Vec<_> = std::fs::read_dir(directory)
                .into_iter()
                .flatten()
                .flatten()
                .filter(|link| link.path().canonicalize().is_ok_and(|real| real == device))
                .filter_map(|link| link.file_name().into_string().ok())
                .collect();
            names.sort();
            names.into_iter().next()
        };
        if let Some(uuid) = link_in("by-partuuid") {
            return Self::PartUuid(uuid);
        }
        match link_in("by-id") {
            Some(name) => Self::Path(Path::new("/dev/disk/by-id").join(name)),
            None => Self::Path(device.to_owned()),
        }
    }

    /// The path that udev makes for it.
    fn link(&self) -> PathBuf {
        let (directory, value) = match self {
            Self::Path(path) => return path.clone(),
            Self::Uuid(value) => ("by-uuid", value),
            Self::Label(value) => ("by-label", value),
            Self::PartUuid(value) => ("by-partuuid", value),
            Self::PartLabel(value) => ("by-partlabel", value),
        };
        Path::new("/dev/disk").join(directory).join(escape(value))
    }

    /// The block devices that udev recorded with this UUID or label, without those that another of them was made of: a
    /// multipath map and its paths carry the same signature, and so do the map's partition and the paths' own.
    fn carriers(&self, root: &Path) -> BTreeSet<PathBuf> {
        let (property, value) = match self {
            Self::Path(_) => return BTreeSet::new(),
            Self::Uuid(value) => ("ID_FS_UUID_ENC", value),
            Self::Label(value) => ("ID_FS_LABEL_ENC", value),
            Self::PartUuid(value) => ("ID_PART_ENTRY_UUID", value),
            Self::PartLabel(value) => ("ID_PART_ENTRY_NAME", value),
        };
        let wanted = format!("E:{property}={}", escape(value));
        let records = std::fs::read_dir(below(root, Path::new("/run/udev/data")));
        let numbers: Vec<String> = records
            .into_iter()
            .flatten()
            .flatten()
            .filter(|record| {
                std::fs::read_to_string(record.path())
                    .is_ok_and(|text| text.lines().any(|line| line == wanted))
            })
            .filter_map(|record| Some(record.file_name().to_str()?.strip_prefix('b')?.to_owned()))
            .collect();
        let sys = below(root, Path::new("/sys/dev/block"));
        let carriers: BTreeSet<PathBuf> = numbers
            .iter()
            .filter_map(|number| sys.join(number).canonicalize().ok())
            .collect();
        let lower = made_of(&carriers);
        let is_lower = |device: &PathBuf| {
            let whole = stack::whole_device(device);
            lower.contains(device) || whole.is_some_and(|whole| lower.contains(&whole))
        };
        let uppermost = carriers.iter().filter(|device| !is_lower(device));
        let names = uppermost.filter_map(|device| device.file_name());
        names.map(|name| Path::new("/dev").join(name)).collect()
    }
}

/// All that the kernel made these sysfs devices of, partitions of what they were made of apart.
fn made_of(devices: &BTreeSet<PathBuf>) -> BTreeSet<PathBuf> {
    let whole = |device: &PathBuf| stack::whole_device(device).unwrap_or_else(|| device.clone());
    let mut lower = BTreeSet::new();
    let mut next: Vec<PathBuf> = devices.iter().map(whole).collect();
    while let Some(device) = next.pop() {
        let slaves = stack::slaves(&device).into_iter();
        for slave in slaves.filter_map(|slave| slave.canonicalize().ok()) {
            if lower.insert(slave.clone()) {
                next.push(slave);
            }
        }
    }
    lower
}

fn list(devices: &[PathBuf]) -> String {
    let names: Vec<_> = devices
        .iter()
        .map(|device| device.to_string_lossy())
        .collect();
    names.join(", ")
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Uuid(value) => write!(f, "UUID={value}"),
            Self::Label(value) => write!(f, "LABEL={value}"),
            Self::PartUuid(value) => write!(f, "PARTUUID={value}"),
            Self::PartLabel(value) => write!(f, "PARTLABEL={value}"),
        }
    }
}

/// udev's encoding of a link's name: `\x` and two hexadecimal digits for every byte but letters, digits,
/// `#+-.:=@_` and UTF-8 sequences (udev_util_encode_string in libudev).
fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for c in value.chars() {
        if c.is_ascii_alphanumeric() || "#+-.:=@_".contains(c) || !c.is_ascii() {
            escaped.push(c);
        } else {
            let mut byte = [0u8; 4];
            for byte in c.encode_utf8(&mut byte).bytes() {
                escaped.push_str(&format!("\\x{byte:02x}"));
            }
        }
    }
    escaped
}

/// An absolute path, seen from another root directory.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const UUID: &str = "8a3d7d0e-0d5b-4f3c-9d52-1e1fa2a1c0de";

    /// A root directory in which udev knows `devices`: number, name (a partition's after its disk's), record, devices that it
    /// is made of.
    fn root(devices: &[(&str, &str, &str, &[&str])]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for directory in [
            "dev/disk/by-uuid",
            "run/udev/data",
            "sys/dev/block",
            "sys/devices",
        ] {
            fs::create_dir_all(at(directory)).unwrap();
        }
        for (number, name, record, slaves) in devices {
            let device = at("sys/devices").join(name);
            fs::create_dir_all(device.join("slaves")).unwrap();
            fs::write(at("dev").join(device.file_name().unwrap()), "").unwrap();
            fs::write(at("run/udev/data").join(format!("b{number}")), record).unwrap();
            if name.contains('/') {
                fs::write(device.join("partition"), "1\n").unwrap();
            }
            for slave in *slaves {
                let target = at("sys/devices").join(slave);
                let name = target.file_name().unwrap();
                symlink(&target, device.join("slaves").join(name)).unwrap();
            }
            symlink(
                Path::new("../../devices").join(name),
                at("sys/dev/block").join(number),
            )
            .unwrap();
        }
        root
    }

    #[test]
    fn links_are_escaped_as_udev_does() {
        for (source, link) in [
            (Source::parse("/dev/vda3"), "/dev/vda3".to_owned()),
            (
                Source::parse("/dev/disk/by-uuid/AB-C").in_lower_case(),
                "/dev/disk/by-uuid/ab-c".to_owned(),
            ),
            (
                Source::parse("UUID=\"AB-c\"").in_lower_case(),
                "/dev/disk/by-uuid/ab-c".to_owned(),
            ),
            (
                Source::parse("UUID=9C5E-3F2B"),
                "/dev/disk/by-uuid/9C5E-3F2B".to_owned(),
            ),
            (
                Source::parse("LABEL=my disk/ä\\"),
                "/dev/disk/by-label/my\\x20disk\\x2fä\\x5c".to_owned(),
            ),
            (
                Source::parse("PARTLABEL=a=b"),
                "/dev/disk/by-partlabel/a=b".to_owned(),
            ),
            (
                Source::parse("PARTUUID=0A"),
                "/dev/disk/by-partuuid/0a".to_owned(),
            ),
            (Source::parse("ID=x"), "ID=x".to_owned()),
        ] {
            assert_eq!(source.link(), Path::new(&link));
        }
    }

    #[test]
    fn a_lasting_name_is_the_partition_s_or_the_disk_s_own() {
        let root = root(&[("254:3", "vda3", "", &[]), ("254:16", "vdb", "", &[])]);
        let at = |path: &str| root.path().join(path);
        for (link, device) in [
            ("dev/disk/by-partuuid/0a-03", "vda3"),
            ("dev/disk/by-id/virtio-z-part3", "vda3"),
            ("dev/disk/by-id/virtio-b", "vdb"),
            ("dev/disk/by-id/virtio-c", "vdb"),
        ] {
            fs::create_dir_all(at(link).parent().unwrap()).unwrap();
            symlink(Path::new("../..").join(device), at(link)).unwrap();
        }
        let lasting = |device: &str| {
            let device = at("dev").join(device).canonicalize().unwrap();
            Source::lasting(&device, root.path()).to_string()
        };
        assert_eq!(lasting("vda3"), "PARTUUID=0a-03");
        assert_eq!(lasting("vdb"), "/dev/disk/by-id/virtio-b");
        fs::write(at("dev/vdc"), "").unwrap();
        assert_eq!(
            lasting("vdc"),
            at("dev/vdc").canonicalize().unwrap().to_str().unwrap()
        );
    }

    #[test]
    fn a_uuid_is_looked_up_as_written_and_then_in_lower_case() {
        let record = "E:ID_FS_UUID_ENC=9C5E-3F2B\n";
        let root = root(&[("254:1", "vda1", record, &[])]);
        let links = root.path().join("dev/disk/by-uuid");
        for name in ["9C5E-3F2B", UUID] {
            symlink("../../vda1", links.join(name)).unwrap();
        }
        let upper = UUID.to_uppercase();
        for (written, link) in [
            ("9C5E-3F2B", Some("9C5E-3F2B")),
            ("9c5e-3f2b", None),
            (UUID, Some(UUID)),
            (&upper, Some(UUID)),
        ] {
            let source = Source::parse(&format!("UUID={written}"));
            let link = link.map(|link| Path::new("/dev/disk/by-uuid").join(link));
            assert_eq!(
                source.resolve_below(root.path()).unwrap(),
                link,
                "{written}"
            );
        }
    }

    #[test]
    fn a_device_that_is_missing_is_none() {
        let root = root(&[]);
        let source = Source::Uuid(UUID.into());
        assert_eq!(source.resolve_below(root.path()).unwrap(), None);
    }

    #[test]
    fn two_devices_with_one_uuid_are_an_error_that_names_both() {
        let record = format!("E:ID_FS_TYPE=crypto_LUKS\nE:ID_FS_UUID_ENC={UUID}\n");
        let root = root(&[
            ("254:3", "vda3", &record, &[]),
            ("254:4", "vdb", &record, &[]),
            ("254:5", "vdc", "E:ID_FS_UUID_ENC=other\n", &[]),
        ]);
        symlink(
            "../../vda3",
            root.path().join("dev/disk/by-uuid").join(UUID),
        )
        .unwrap();
        let error = Source::Uuid(UUID.into())
            .resolve_below(root.path())
            .unwrap_err();
        assert!(
            error.to_string().starts_with(&format!(
                "'UUID={UUID}' is on more than one device: /dev/vda3, /dev/vdb"
            )),
            "{error}"
        );
    }

    #[test]
    fn a_multipath_map_and_its_paths_are_one_device() {
        let record = format!("E:ID_FS_UUID_ENC={UUID}\n");
        let root = root(&[
            ("8:0", "sda", &record, &[]),
            ("8:16", "sdb", &record, &[]),
            ("253:0", "dm-0", &record, &["sda", "sdb"]),
        ]);
        symlink(
            "../../dm-0",
            root.path().join("dev/disk/by-uuid").join(UUID),
        )
        .unwrap();
        let link = Source::Uuid(UUID.into())
            .resolve_below(root.path())
            .unwrap();
        assert_eq!(link, Some(format!("/dev/disk/by-uuid/{UUID}").into()));
    }

    #[test]
    fn a_partition_of_a_multipath_map_and_those_of_its_paths_are_one_device() {
        let record = format!("E:ID_FS_UUID_ENC={UUID}\n");
        let mut devices = vec![
            ("8:0", "sda", "", &[][..]),
            ("8:1", "sda/sda1", &record, &[]),
            ("8:16", "sdb", "", &[]),
            ("8:17", "sdb/sdb1", &record, &[]),
            ("253:0", "dm-0", "", &["sda", "sdb"]),
            ("253:1", "dm-1", &record, &["dm-0"]),
        ];
        let carriers = |devices: &[(&str, &str, &str, &[&str])]| {
            let root = root(devices);
            let found = Source::Uuid(UUID.into()).carriers(root.path());
            list(&found.into_iter().collect::<Vec<_>>())
        };
        assert_eq!(carriers(&devices), "/dev/dm-1");
        // A copy beside the physical volume of a logical volume is a second one.
        devices[5] = ("253:1", "dm-1", &record, &["sda/sda2"]);
        devices.push(("8:2", "sda/sda2", "", &[]));
        devices.remove(4);
        assert_eq!(carriers(&devices), "/dev/dm-1, /dev/sda1, /dev/sdb1");
        // Partitions of an array, and of its members, where the array's data begin with the disk.
        devices[4] = ("259:1", "md0/md0p1", &record, &[]);
        devices[5] = ("9:0", "md0", "", &["sda", "sdb"]);
        assert_eq!(carriers(&devices), "/dev/md0p1");
    }
}
