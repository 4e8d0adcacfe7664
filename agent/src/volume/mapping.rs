//! Mappings that stand now, as sysfs shows them, and how to take one down.
//!
//! A LUKS2 volume with integrity protection is two devices: libcryptsetup makes `NAME_dif` of dm-integrity, and `NAME` of
//! dm-crypt on it. Here they count as one mapping, on the disk.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use libcryptsetup_rs::consts::flags::CryptDeactivate;
use libcryptsetup_rs::{CryptInit, LibcryptErr};
use nix::sys::stat::{major, minor};

use super::context::{self, CryptError};

/// What libcryptsetup calls the dm-integrity device below a mapping: the mapping's name and this.
const LAYER: &str = "_dif";
/// libcryptsetup's types of devices that encrypt nothing. Versions differ in which of the last two a layer has.
const NOT_CRYPT: [&str; 3] = ["VERITY", "INTEGRITY", "SUBDEV"];
const LAYER_TYPES: [&str; 2] = ["INTEGRITY", "SUBDEV"];

/// A mapping that dm-crypt made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Under `/dev/mapper`.
    pub name: String,
    /// The kernel's name, such as `dm-0`.
    pub kernel_name: String,
    /// `LUKS1`, `LUKS2`, `PLAIN` or another of libcryptsetup's types.
    pub format: String,
    /// The UUID in the header, with hyphens, if there is one.
    pub uuid: Option<String>,
    /// The device below.
    pub device: PathBuf,
}

/// Who has a mapping's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// Nobody: it can be made.
    Nobody,
    /// The volume that it is for: somebody opened that already.
    Volume,
    /// Something else: what, for people.
    Other(String),
}

/// Who has the name `name`, which is for the volume on `device`.
pub fn holder(name: &str, device: &Path) -> Holder {
    let number = fs::metadata(device).map(|device| device.rdev());
    let number = number.map(|number| format!("{}:{}", major(number), minor(number)));
    holder_below(Path::new("/"), name, number.ok().as_deref())
}

/// `number` is the device's, as the kernel writes it (`8:3`): its names differ from place to place.
fn holder_below(root: &Path, name: &str, number: Option<&str>) -> Holder {
    let name = mangled(name);
    let taken = devices(root)
        .into_iter()
        .find(|path| read(&path.join("dm/name")) == Some(name.clone()));
    let Some(path) = taken else {
        return Holder::Nobody;
    };
    let Some(mapping) = read_mapping(&path) else {
        return Holder::Other("a mapping that encrypts nothing".to_owned());
    };
    let class = root.join("sys/class/block");
    let is_on = |kernel_name: &OsString| read(&class.join(kernel_name).join("dev"));
    let on = below(&path).first().and_then(is_on);
    if on.is_some() && on.as_deref() == number {
        Holder::Volume
    } else {
        Holder::Other(format!("the volume on '{}'", mapping.device.display()))
    }
}

/// A mapping's name as the kernel has it: libdevmapper writes what udev could not take as `\xNN`, and leaves a name as it is
/// that is written so already.
pub(crate) fn mangled(name: &str) -> String {
    let is_taken = |byte: u8| byte.is_ascii_alphanumeric() || b"#+-.:=@_".contains(&byte);
    let mut rest = name.as_bytes();
    while let [first, after @ ..] = rest {
        rest = match rest {
            [b'\\', b'x', a, b, after @ ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => {
                after
            }
            _ if is_taken(*first) => after,
            _ => break,
        };
    }
    if rest.is_empty() {
        return name.to_owned();
    }
    let mangle = |byte: u8| match is_taken(byte) {
        true => char::from(byte).to_string(),
        false => format!("\\x{byte:02x}"),
    };
    name.bytes().map(mangle).collect()
}

/// The mapping called `name`, if dm-crypt made it.
pub fn mapping(name: &str) -> Option<Mapping> {
    let name = mangled(name);
    all_below(Path::new("/"))
        .into_iter()
        .find(|mapping| mapping.name == name)
}

/// The mapping on `device`, a canonical path.
pub fn mapping_on(device: &Path) -> Option<Mapping> {
    all_below(Path::new("/"))
        .into_iter()
        .find(|mapping| mapping.device == device)
}

/// Whether device-mapper has any mapping called `name`, of dm-crypt or not.
pub fn name_is_taken(name: &str) -> bool {
    devices(Path::new("/"))
        .iter()
        .any(|device| read(&device.join("dm/name")) == Some(mangled(name)))
}

/// Those of the names that a mapping has.
pub fn standing(mut names: Vec<String>) -> Vec<String> {
    names.retain(|name| name_is_taken(name));
    names
}

/// The plain mappings whose name begins with `prefix`, seen from another root directory. device-mapper's UUID must say
/// the same: a name alone can be given to anything.
pub(crate) fn named_by_us(root: &Path, prefix: &str) -> Vec<String> {
    let is_ours = |device: &PathBuf| {
        let name = read(&device.join("dm/name")).filter(|name| name.starts_with(prefix))?;
        let uuid = read(&device.join("dm/uuid"))?;
        (uuid.strip_prefix("CRYPT-PLAIN-") == Some(&name)).then_some(name)
    };
    devices(root).iter().filter_map(is_ours).collect()
}

/// Takes the mapping called `name` down, with its dm-integrity device if it has one.
///
/// # Errors
/// What libcryptsetup says; EBUSY while it is in use, ENODEV if there is none.
pub fn close(name: &str) -> Result<(), CryptError> {
    context::start();
    let result = CryptInit::init_by_name_and_header(name, None).and_then(|mut context| {
        context
            .activate_handle()
            .deactivate(name, CryptDeactivate::empty())
    });
    result.map_err(|error: LibcryptErr| error.into())
}

/// Takes these mappings down, those that lie on others first, whatever their order; returns those that are still in use.
pub fn close_all(mut names: Vec<String>) -> Vec<String> {
    loop {
        let before = names.len();
        names.retain(|name| close(name).is_err() && name_is_taken(name));
        if names.len() == before {
            return names;
        }
    }
}

/// Takes the volume key of the mapping called `name` from the kernel: whoever uses the mapping gets errors from now on. It
/// goes when nobody does (cryptsetup-close(8), `--force` of libcryptsetup).
///
/// # Errors
/// What libcryptsetup says, if the mapping still encrypts.
pub fn cut_off(name: &str) -> Result<(), CryptError> {
    context::start();
    let forced = CryptInit::init_by_name_and_header(name, None).and_then(|mut context| {
        context
            .activate_handle()
            .deactivate(name, CryptDeactivate::FORCE)
    });
    match forced {
        // Where somebody has it open it stays, without what it was; libcryptsetup then knows it no more.
        Err(error) if CryptInit::init_by_name_and_header(name, None).is_ok() => Err(error.into()),
        _ => Ok(()),
    }
}

/// Takes away the dm-integrity device of a mapping that does not stand: whoever made it was killed in between, or could
/// not take it down to the end. While it is there libcryptsetup, ours and the native unlocker's, makes no other.
pub(crate) fn close_left_over(name: &str) {
    if let Some(layer) = left_over(Path::new("/"), name)
        && let Err(error) = close(&layer)
    {
        log::warn!("failed to close '{layer}', which is left of an earlier '{name}': {error}");
    }
}

/// The name of such a device, seen from another root directory.
fn left_over(root: &Path, name: &str) -> Option<String> {
    let layer = format!("{name}{LAYER}");
    let devices = devices(root);
    let named = |wanted: &str| {
        let is_it = |device: &&PathBuf| read(&device.join("dm/name")).as_deref() == Some(wanted);
        devices.iter().find(is_it)
    };
    if named(name).is_some() {
        return None;
    }
    let device = named(&layer)?;
    let (kind, digits) = layer_identity(&read(&device.join("dm/uuid"))?)?;
    let is_layer = LAYER_TYPES.contains(&kind.as_str()) && !digits.is_empty();
    (is_layer && entries(&device.join("holders")).is_empty()).then_some(layer)
}

/// Whether device-mapper's UUID is that of a device that encrypts.
pub(super) fn is_crypt(uuid: &str) -> bool {
    uuid.strip_prefix("CRYPT-").is_some_and(|rest| {
        let kind = rest.split('-').next().unwrap_or_default();
        !NOT_CRYPT.contains(&kind)
    })
}

/// What the mapping at this place in sysfs lies on, by the kernel's names: through its own dm-integrity device, and
/// through nothing else.
pub(super) fn below(path: &Path) -> Vec<OsString> {
    let slaves = path.join("slaves");
    let through = |slave: OsString| {
        let at = slaves.join(&slave);
        if is_layer_of(path, &at).unwrap_or(false) {
            entries(&at.join("slaves"))
        } else {
            vec![slave]
        }
    };
    entries(&slaves).into_iter().flat_map(through).collect()
}

/// Whether `lower` is the dm-integrity device that was made for `upper`: by its name, and by the UUID of the volume.
fn is_layer_of(upper: &Path, lower: &Path) -> Option<bool> {
    let name = read(&upper.join("dm/name"))?;
    let (_, volume) = layer_identity(&read(&upper.join("dm/uuid"))?)?;
    let (kind, of_volume) = layer_identity(&read(&lower.join("dm/uuid"))?)?;
    Some(
        read(&lower.join("dm/name"))? == format!("{name}{LAYER}")
            && LAYER_TYPES.contains(&kind.as_str())
            && of_volume == volume,
    )
}

/// Type and UUID of the volume in device-mapper's UUID; none where it belongs to no LUKS volume.
fn layer_identity(uuid: &str) -> Option<(String, String)> {
    let (kind, rest) = uuid.strip_prefix("CRYPT-")?.split_once('-')?;
    let digits = rest.split('-').next().unwrap_or_default();
    is_luks_uuid(digits, rest).then(|| (kind.to_owned(), digits.to_owned()))
}

/// All mappings of dm-crypt, seen from another root directory.
pub(crate) fn all_below(root: &Path) -> Vec<Mapping> {
    devices(root)
        .iter()
        .filter_map(|path| read_mapping(path))
        .collect()
}

fn devices(root: &Path) -> Vec<PathBuf> {
    let blocks = fs::read_dir(root.join("sys/class/block"));
    blocks
        .into_iter()
        .flatten()
        .flatten()
        .filter(|block| block.file_name().to_string_lossy().starts_with("dm-"))
        .map(|block| block.path())
        .collect()
}

fn read_mapping(path: &Path) -> Option<Mapping> {
    let name = read(&path.join("dm/name"))?;
    let uuid = read(&path.join("dm/uuid"))?;
    let (format, uuid) = parse_uuid(&uuid)?;
    let device = below(path).into_iter().next()?;
    Some(Mapping {
        name,
        kernel_name: path.file_name()?.to_str()?.to_owned(),
        format,
        uuid,
        device: Path::new("/dev").join(device),
    })
}

/// device-mapper's UUID as libcryptsetup makes it: `CRYPT-LUKS2-<32 digits>-<name>`, or `CRYPT-PLAIN-<name>`.
fn parse_uuid(text: &str) -> Option<(String, Option<String>)> {
    if !is_crypt(text) {
        return None;
    }
    let (format, rest) = text.strip_prefix("CRYPT-")?.split_once('-')?;
    let digits = rest.split('-').next().unwrap_or_default();
    let uuid = (is_luks_uuid(digits, rest) && format.starts_with("LUKS")).then(|| {
        let parts = [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)];
        parts.map(|(from, to)| &digits[from..to]).join("-")
    });
    Some((format.to_owned(), uuid))
}

/// Whether the first part of `rest` is a volume's UUID, with a mapping's name after it.
fn is_luks_uuid(digits: &str, rest: &str) -> bool {
    digits.len() == 32 && rest.len() > 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
}

/// The names in a directory, in order; none if there is no such directory.
fn entries(path: &Path) -> Vec<OsString> {
    let mut names: Vec<_> = fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    names.sort();
    names
}

fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim_end_matches('\n').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uuid_of_a_mapping_tells_format_and_header() {
        let cases = [
            (
                "CRYPT-LUKS2-8a3d7d0e0d5b4f3c9d521e1fa2a1c0de-a-b",
                Some(("LUKS2", Some("8a3d7d0e-0d5b-4f3c-9d52-1e1fa2a1c0de"))),
            ),
            ("CRYPT-PLAIN-swap", Some(("PLAIN", None))),
            (
                "CRYPT-PLAIN-8a3d7d0e0d5b4f3c9d521e1fa2a1c0de-x",
                Some(("PLAIN", None)),
            ),
            ("CRYPT-LUKS2-short-a", Some(("LUKS2", None))),
            (
                "CRYPT-INTEGRITY-8a3d7d0e0d5b4f3c9d521e1fa2a1c0de-a_dif",
                None,
            ),
            ("CRYPT-INTEGRITY-alone", None),
            ("CRYPT-SUBDEV-8a3d7d0e0d5b4f3c9d521e1fa2a1c0de-a", None),
            ("CRYPT-VERITY-a", None),
            ("LVM-abc", None),
            ("", None),
        ];
        for (text, expected) in cases {
            let parsed = parse_uuid(text);
            let parsed = parsed
                .as_ref()
                .map(|(format, uuid)| (format.as_str(), uuid.as_deref()));
            assert_eq!(parsed, expected, "{text}");
        }
    }

    #[test]
    fn a_name_is_the_volumes_or_somebody_elses() {
        // K7, K8.
        let uuid = format!("CRYPT-LUKS2-{VOLUME}-root");
        let root = sysfs(&[
            ("dm-0", "root", &uuid, "vda3"),
            ("dm-1", "data", "LVM-x", "vdb"),
            ("dm-2", "my\\x20data", &uuid, "vda3"),
        ]);
        let class = root.path().join("sys/class/block");
        fs::create_dir_all(class.join("vda3")).unwrap();
        fs::write(class.join("vda3/dev"), "254:3\n").unwrap();
        let holder = |name: &str, number: &str| holder_below(root.path(), name, Some(number));
        assert_eq!(holder("other", "254:3"), Holder::Nobody);
        assert_eq!(holder("root", "254:3"), Holder::Volume);
        assert_eq!(holder("my data", "254:3"), Holder::Volume);
        let other = Holder::Other("the volume on '/dev/vda3'".to_owned());
        assert_eq!(holder("root", "254:16"), other);
        assert_eq!(holder_below(root.path(), "root", None), other);
        let other = Holder::Other("a mapping that encrypts nothing".to_owned());
        assert_eq!(holder("data", "254:16"), other);
    }

    #[test]
    fn what_is_ours_is_told_by_name_and_uuid() {
        let root = tempfile::tempdir().unwrap();
        for (kernel, name, uuid) in [
            ("dm-0", "latchkey-look-01", "CRYPT-PLAIN-latchkey-look-01"),
            ("dm-1", "latchkey-look-02", "LVM-x"),
            ("dm-2", "latchkey-look-03", "CRYPT-PLAIN-other"),
            ("dm-3", "root", "CRYPT-PLAIN-root"),
        ] {
            let at = root.path().join("sys/class/block").join(kernel).join("dm");
            fs::create_dir_all(&at).unwrap();
            fs::write(at.join("name"), format!("{name}\n")).unwrap();
            fs::write(at.join("uuid"), format!("{uuid}\n")).unwrap();
        }
        assert_eq!(
            named_by_us(root.path(), "latchkey-look-"),
            ["latchkey-look-01"]
        );
    }

    #[test]
    fn only_mappings_of_dm_crypt_are_listed() {
        let root = tempfile::tempdir().unwrap();
        for (kernel, name, uuid, slave) in [
            (
                "dm-0",
                "root",
                "CRYPT-LUKS2-8a3d7d0e0d5b4f3c9d521e1fa2a1c0de-root",
                "vda3",
            ),
            ("dm-1", "vg-lv", "LVM-x", "dm-0"),
        ] {
            let at = root.path().join("sys/class/block").join(kernel);
            fs::create_dir_all(at.join("dm")).unwrap();
            fs::create_dir_all(at.join("slaves")).unwrap();
            fs::write(at.join("dm/name"), format!("{name}\n")).unwrap();
            fs::write(at.join("dm/uuid"), format!("{uuid}\n")).unwrap();
            fs::write(at.join("slaves").join(slave), "").unwrap();
        }
        assert_eq!(
            all_below(root.path()),
            [Mapping {
                name: "root".into(),
                kernel_name: "dm-0".into(),
                format: "LUKS2".into(),
                uuid: Some("8a3d7d0e-0d5b-4f3c-9d52-1e1fa2a1c0de".into()),
                device: "/dev/vda3".into(),
            }]
        );
    }

    const VOLUME: &str = "8a3d7d0e0d5b4f3c9d521e1fa2a1c0de";

    /// sysfs with devices: kernel name, name, UUID and the kernel name of the one below.
    fn sysfs(devices: &[(&str, &str, &str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let class = root.path().join("sys/class/block");
        for (kernel, name, uuid, slave) in devices {
            let at = class.join(kernel);
            for part in ["dm", "slaves", "holders"] {
                fs::create_dir_all(at.join(part)).unwrap();
            }
            fs::write(at.join("dm/name"), format!("{name}\n")).unwrap();
            fs::write(at.join("dm/uuid"), format!("{uuid}\n")).unwrap();
            std::os::unix::fs::symlink(class.join(slave), at.join("slaves").join(slave)).unwrap();
            if slave.starts_with("dm-") {
                fs::write(class.join(slave).join("holders").join(kernel), "").unwrap();
            }
        }
        root
    }

    #[test]
    fn a_mapping_with_integrity_is_one_and_lies_on_the_disk() {
        for kind in LAYER_TYPES {
            let layer = format!("CRYPT-{kind}-{VOLUME}-data_dif");
            let upper = format!("CRYPT-LUKS2-{VOLUME}-data");
            let root = sysfs(&[
                ("dm-0", "data_dif", &layer, "vdb"),
                ("dm-1", "data", &upper, "dm-0"),
            ]);
            let found = all_below(root.path());
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].name, "data");
            assert_eq!(found[0].device, Path::new("/dev/vdb"));
            assert_eq!(left_over(root.path(), "data"), None, "it is in use");
        }
    }

    #[test]
    fn a_mapping_on_another_device_of_dm_integrity_lies_on_that() {
        for (name, uuid) in [
            ("other", "CRYPT-INTEGRITY-other".to_owned()),
            ("data_dif", "CRYPT-INTEGRITY-data_dif".to_owned()),
            ("other_dif", format!("CRYPT-INTEGRITY-{VOLUME}-other_dif")),
            ("data_dif", format!("CRYPT-LUKS2-{VOLUME}-data_dif")),
            (
                "data_dif",
                "CRYPT-INTEGRITY-00000000000000000000000000000000-data_dif".to_owned(),
            ),
        ] {
            let upper = format!("CRYPT-LUKS2-{VOLUME}-data");
            let root = sysfs(&[
                ("dm-0", name, &uuid, "vdb"),
                ("dm-1", "data", &upper, "dm-0"),
            ]);
            let data = all_below(root.path())
                .into_iter()
                .find(|mapping| mapping.name == "data");
            assert_eq!(data.unwrap().device, Path::new("/dev/dm-0"), "{uuid}");
        }
    }

    #[test]
    fn what_is_left_of_a_mapping_is_its_own_layer_that_nothing_uses() {
        let layer = format!("CRYPT-INTEGRITY-{VOLUME}-data_dif");
        let root = sysfs(&[("dm-0", "data_dif", &layer, "vdb")]);
        assert_eq!(left_over(root.path(), "data"), Some("data_dif".to_owned()));
        assert_eq!(left_over(root.path(), "dat"), None);
        assert_eq!(left_over(root.path(), "data_dif"), None);
        for other in [
            "CRYPT-INTEGRITY-data_dif".to_owned(),
            format!("CRYPT-LUKS2-{VOLUME}-data_dif"),
            "LVM-x".to_owned(),
        ] {
            let root = sysfs(&[("dm-0", "data_dif", &other, "vdb")]);
            assert_eq!(left_over(root.path(), "data"), None, "{other}");
        }
        let root = sysfs(&[
            ("dm-0", "data_dif", &layer, "vdb"),
            ("dm-1", "vg-lv", "LVM-x", "dm-0"),
        ]);
        assert_eq!(left_over(root.path(), "data"), None, "somebody uses it");
    }
}
