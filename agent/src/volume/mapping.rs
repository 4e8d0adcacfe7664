//! Mappings that stand now, as sysfs shows them, and how to take one down.

use std::fs;
use std::path::{Path, PathBuf};

use libcryptsetup_rs::consts::flags::CryptDeactivate;
use libcryptsetup_rs::{CryptInit, LibcryptErr};

use super::context::{self, CryptError};

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

/// The mapping called `name`, if dm-crypt made it.
pub fn mapping(name: &str) -> Option<Mapping> {
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
        .any(|device| read(&device.join("dm/name")).as_deref() == Some(name))
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

/// Takes the mapping called `name` down.
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
    let slave = fs::read_dir(path.join("slaves")).ok()?.flatten().next()?;
    Some(Mapping {
        name,
        kernel_name: path.file_name()?.to_str()?.to_owned(),
        format,
        uuid,
        device: Path::new("/dev").join(slave.file_name()),
    })
}

/// device-mapper's UUID as libcryptsetup makes it: `CRYPT-LUKS2-<32 digits>-<name>`, or `CRYPT-PLAIN-<name>`.
fn parse_uuid(text: &str) -> Option<(String, Option<String>)> {
    let (format, rest) = text.strip_prefix("CRYPT-")?.split_once('-')?;
    let digits = rest.split('-').next().unwrap_or_default();
    let is_uuid = digits.len() == 32
        && rest.len() > 32
        && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let uuid = (is_uuid && format.starts_with("LUKS")).then(|| {
        let parts = [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)];
        parts.map(|(from, to)| &digits[from..to]).join("-")
    });
    Some((format.to_owned(), uuid))
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
}
