//! Which volumes the initramfs opens, and under which names: what its native unlockers would do.
//!
//! initramfs-tools puts the lines of crypttab(5) that it needs into `/cryptroot/crypttab`, dracut into `/etc/crypttab`.
//! With dracut the kernel command line can name volumes too (`rd.luks.uuid=`, `rd.luks.name=`; with systemd without `rd.` as
//! well), and then crypttab's other lines wait for the running system: systemd-cryptsetup-generator(8), dracut.cmdline(7).

use std::fs;

use super::kernel_command_line::KernelCommandLine;
use super::volume_words::Words;
use crate::failure::chain;
use crate::files::{self, Files, FilesError};
use crate::volume::crypttab::{self, Entry, Format, Key};
use crate::volume::source::Source;

/// Where initramfs-tools puts the lines of crypttab(5) that it needs.
pub(super) const INITRAMFS_TOOLS_CRYPTTAB: &str = "/cryptroot/crypttab";

/// The volumes of this boot that are ours to look at: those for which the native unlocker would prompt and whose options
/// we honour. Why the others are left to it goes to `tell`.
///
/// # Errors
/// `Read` if crypttab is there but cannot be read.
pub fn of_this_boot(
    files: &Files,
    command_line: &KernelCommandLine,
    mut tell: impl FnMut(&str),
) -> Result<Vec<Entry>, FilesError> {
    let of_initramfs_tools = files.path(INITRAMFS_TOOLS_CRYPTTAB);
    let is_initramfs_tools = of_initramfs_tools.exists();
    let mut entries = if is_initramfs_tools {
        read(&files::read_lossy(&of_initramfs_tools)?, &mut tell)
    } else {
        let text = files::if_any(files::read_lossy(&files.crypttab()))?.unwrap_or_default();
        let of_image = KernelCommandLine::parse(&command_line_of_image(files));
        let has_key = |line: &KernelCommandLine| {
            ["rd.luks.key", "luks.key", "rd.luks.data", "luks.data"]
                .iter()
                .any(|name| line.values(name).next().is_some())
        };
        if has_key(command_line) || has_key(&of_image) {
            tell(
                "rd.luks.key= or rd.luks.data= on the kernel command line: the volumes are left to the boot framework",
            );
            return Ok(Vec::new());
        }
        let words = Words {
            kernel: command_line,
            image: &of_image,
            with_systemd: files.path("/run/systemd/system").is_dir(),
        };
        let mut entries = words.volumes(read(&text, &mut tell), Names::read(files).as_ref());
        // systemd opens such a volume when something asks for it; Debian's scripts open it all the same.
        entries.retain(|entry| {
            if entry.options.noauto {
                tell(&format!("'{}' is left alone: option 'noauto'", entry.name));
            }
            !entry.options.noauto
        });
        entries
    };
    entries.retain(|entry| {
        let mut unsupported = entry.options.unsupported();
        // Debian's scripts pass over `swap` and `tmp` in the initramfs, where there is a header.
        if !is_initramfs_tools || entry.options.format == Format::Plain {
            unsupported.extend(entry.options.formatted_by.iter().map(String::as_str));
        }
        if !unsupported.is_empty() {
            tell(&format!(
                "'{}' is left alone: option '{}'",
                entry.name,
                unsupported.join("', '")
            ));
        }
        entry.key == Key::None && unsupported.is_empty()
    });
    Ok(entries)
}

fn read(text: &str, tell: &mut impl FnMut(&str)) -> Vec<Entry> {
    let entry = |line: Result<Entry, crypttab::LineError>| match line {
        Ok(entry) => Some(entry),
        Err(error) => {
            tell(&chain(&error));
            None
        }
    };
    crypttab::parse(text)
        .into_iter()
        .filter_map(entry)
        .collect()
}

/// Keeps the volumes that have a gate where systemd runs the initramfs: those whose UUID is among the bound ones that the
/// image was built with, or whose name where crypttab names the device otherwise. Where the image does not say, the header will
/// tell.
pub fn retain_gated(files: &Files, entries: &mut Vec<Entry>) {
    let Some(Names(bound)) = Names::read(files) else {
        return;
    };
    entries.retain(|entry| match &entry.source {
        Source::Uuid(uuid) => bound.iter().any(|(bound, _)| bound == uuid),
        _ => bound.iter().any(|(_, bound)| *bound == entry.name),
    });
}

/// UUIDs and names in crypttab of the volumes that were bound when the image was built.
pub(super) struct Names(Vec<(String, String)>);

impl Names {
    /// `None` if the image does not say.
    fn read(files: &Files) -> Option<Self> {
        let text = fs::read_to_string(files.path("/etc/latchkey/bound")).ok()?;
        let pair = |line: &str| {
            let (uuid, name) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
            let uuid = uuid.trim_start_matches('?'); // nobody could look: it may be bound
            (uuid.to_owned(), name.to_owned())
        };
        Some(Self(text.lines().map(pair).collect()))
    }

    /// Whether the line of crypttab is that of the volume which a word names by UUID.
    pub fn are_of_one(&self, line: &Entry, word: &Entry) -> bool {
        let Source::Uuid(wanted) = &word.source else {
            return false;
        };
        let mut known = self.0.iter();
        known.any(|(uuid, name)| uuid == wanted && *name == line.name)
    }
}

/// dracut's own words, which the image carries (dracut.cmdline(7)).
pub fn command_line_of_image(files: &Files) -> String {
    let mut paths: Vec<_> = fs::read_dir(files.path("/etc/cmdline.d"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "conf")
        })
        .collect();
    paths.sort();
    paths.push(files.path("/etc/cmdline"));
    let texts = paths
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok());
    texts.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "8a3d7d0e-0d5b-4f3c-9d52-1e1fa2a1c0de";
    const B: &str = "9b3d7d0e-0d5b-4f3c-9d52-1e1fa2a1c0df";

    fn boot(files: &[(&str, &str)], kernel: &str) -> Vec<(String, String)> {
        entries(files, kernel)
            .into_iter()
            .map(|entry| (entry.name, entry.source.to_string()))
            .collect()
    }

    fn entries(files: &[(&str, &str)], kernel: &str) -> Vec<Entry> {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let kernel = KernelCommandLine::parse(kernel);
        of_this_boot(&Files::under(root.path()), &kernel, |_| {}).unwrap()
    }

    fn volumes(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected
            .iter()
            .map(|(name, uuid)| ((*name).to_owned(), format!("UUID={uuid}")))
            .collect()
    }

    #[test]
    fn initramfs_tools_has_its_own_crypttab() {
        let files = [
            ("cryptroot/crypttab", &*format!("root UUID={A} none luks\n")),
            ("etc/crypttab", &format!("other UUID={B} none luks\n")),
        ];
        let found = boot(&files, &format!("rd.luks.uuid={B}"));
        assert_eq!(found, volumes(&[("root", A)]));
    }

    #[test]
    fn an_image_without_crypttab_has_what_the_kernel_command_line_names() {
        assert_eq!(boot(&[], "quiet"), []);
        assert_eq!(
            boot(&[], &format!("rd.luks.uuid=luks-{A} rd.luks.name={B}=data")),
            volumes(&[("data", B), (&format!("luks-{A}"), A)])
        );
        assert_eq!(boot(&[], "rd.luks.uuid=8a3d7d0e"), [], "a part of a UUID");
    }

    #[test]
    fn the_kernel_command_line_chooses_among_the_lines_of_crypttab() {
        let crypttab = format!("a UUID={A} none luks\nb UUID={B} none luks\n");
        let files = [("etc/crypttab", crypttab.as_str())];
        assert_eq!(boot(&files, ""), volumes(&[("a", A), ("b", B)]));
        let one = format!("rd.luks.uuid=luks-{B}");
        assert_eq!(boot(&files, &one), volumes(&[("b", B)]));
        assert_eq!(boot(&files, "rd.luks=0"), []);
        assert_eq!(boot(&files, "rd.luks.key=/key:LABEL=usb"), []);
        assert_eq!(boot(&files, &format!("rd.luks.data={A}=/dev/vdb")), []);
        assert_eq!(boot(&files, "luks=no"), []);
        let named = format!("rd.luks.crypttab=no rd.luks.name={A}=c");
        assert_eq!(boot(&files, &named), volumes(&[("c", A)]));
    }

    #[test]
    fn what_dracut_wrote_into_the_image_only_adds() {
        let crypttab = format!("a UUID={A} none luks,x-initrd.attach\n");
        let words = format!(" rd.luks.uuid=luks-{B}\n");
        let files = [
            ("etc/crypttab", crypttab.as_str()),
            ("etc/cmdline.d/90crypt.conf", &words),
        ];
        assert_eq!(
            boot(&files, ""),
            volumes(&[("a", A), (&format!("luks-{B}"), B)])
        );
    }

    /// dracut names by UUID what crypttab may name by partition.
    #[test]
    fn a_volume_has_the_name_that_crypttab_gives_it() {
        let crypttab = "a PARTUUID=1-1 none luks\nb PARTUUID=1-2 none luks\n";
        let words = format!("rd.luks.uuid=luks-{A} rd.luks.uuid=luks-{B}\n");
        let bound = format!("{A} a\n{B} b\n");
        let mut files = vec![
            ("etc/crypttab", crypttab),
            ("etc/cmdline.d/90crypt.conf", &words),
            ("etc/latchkey/bound", &bound),
        ];
        let names = |files: &[_], kernel: &str| -> Vec<String> {
            let found = boot(files, kernel).into_iter();
            found.map(|(name, _)| name).collect()
        };
        assert_eq!(names(&files, ""), ["a", "b"]);
        let one = format!("rd.luks.uuid={B}");
        // The native unlocker of the scripts asks dracut's words too, systemd's does not.
        assert_eq!(names(&files, &one), ["b", "a"]);
        let named = crypttab.replace("b PARTUUID", &format!("luks-{B} PARTUUID"));
        files.push(("run/systemd/system/any", ""));
        assert_eq!(names(&files, ""), ["a", "b"]);
        assert_eq!(names(&files, &one), [format!("luks-{B}")], "a is left");
        files[0].1 = &named;
        assert_eq!(names(&files, &one), [format!("luks-{B}")]);
        files[0].1 = crypttab;
        files.retain(|(path, _)| !path.ends_with("bound"));
        let luks = [format!("luks-{B}"), format!("luks-{A}")];
        assert_eq!(names(&files, &one), luks, "nobody knows");
    }

    #[test]
    fn discards_are_allowed_by_the_word_of_dracuts_scripts() {
        let crypttab = format!("a UUID={A} none luks\nb UUID={B} none luks\n");
        let mut files = vec![("etc/crypttab", crypttab.as_str())];
        let discards = |files: &[(&str, &str)], word: &str| -> Vec<bool> {
            let entries = entries(files, word).into_iter();
            entries.map(|entry| entry.options.discard).collect()
        };
        assert_eq!(discards(&files, ""), [false, false]);
        assert_eq!(discards(&files, "rd.luks.allow-discards"), [true, true]);
        let taken_back = "rd.luks.allow-discards rd.luks.allow-discards=0";
        assert_eq!(discards(&files, taken_back), [false, false]);
        let one = format!("rd.luks.allow-discards=luks-{B}");
        assert_eq!(discards(&files, &one), [false, true]);
        files.push(("run/systemd/system/any", ""));
        assert_eq!(discards(&files, &one), [false, false]);
    }

    #[test]
    fn under_systemd_the_words_of_both_systems_count() {
        let crypttab = format!("a UUID={A} none luks,discard\nb UUID={B} none luks,discard\n");
        let mut files = vec![("etc/crypttab", crypttab.as_str())];
        let word = format!("luks.uuid={B}");
        let none = format!("luks.crypttab=no luks.name={A}=c");
        assert_eq!(boot(&files, &word), volumes(&[("a", A), ("b", B)]));
        assert_eq!(boot(&files, &none), volumes(&[("a", A), ("b", B)]));
        files.push(("run/systemd/system/any", ""));
        assert_eq!(boot(&files, &word), volumes(&[("b", B)]));
        assert_eq!(boot(&files, &none), volumes(&[("c", A)]));
        let again = format!("{none} rd.luks.crypttab=yes");
        assert_eq!(
            boot(&files, &again),
            volumes(&[("a", A)]),
            "the last counts"
        );
        let options = format!("{word} luks.options={A}=readonly");
        assert_eq!(boot(&files, &options), volumes(&[("a", A), ("b", B)]));
        let both = format!("{word} rd.luks.uuid=luks-{A}");
        assert_eq!(boot(&files, &both), volumes(&[("a", A), ("b", B)]));
    }

    #[test]
    fn noauto_counts_where_it_counts_for_the_framework() {
        let line = format!("a UUID={A} none luks,noauto\nb UUID={B} none luks\n");
        assert_eq!(
            boot(&[("etc/crypttab", line.as_str())], ""),
            volumes(&[("b", B)])
        );
        let files = [("cryptroot/crypttab", line.as_str())];
        assert_eq!(boot(&files, ""), volumes(&[("a", A), ("b", B)]));
    }

    #[test]
    fn netdev_changes_nothing_in_the_initramfs_as_in_those_of_the_frameworks() {
        let line = format!("a UUID={A} none luks,_netdev\n");
        for crypttab in ["cryptroot/crypttab", "etc/crypttab"] {
            assert_eq!(boot(&[(crypttab, line.as_str())], ""), volumes(&[("a", A)]));
        }
    }

    #[test]
    fn what_is_formatted_whenever_it_is_opened_is_left_alone() {
        let line = format!("a UUID={A} none luks,swap\nb UUID={B} none plain,tmp=ext4\n");
        assert_eq!(boot(&[("etc/crypttab", line.as_str())], ""), []);
        let luks = volumes(&[("a", A)]);
        assert_eq!(
            boot(&[("cryptroot/crypttab", line.as_str())], ""),
            luks,
            "not by Debian's scripts"
        );
    }

    #[test]
    fn what_has_a_key_file_or_an_unknown_option_is_left_alone() {
        let crypttab = format!("a UUID={A} /etc/key luks\nb UUID={B} none luks,tpm2-device=auto\n");
        let files = [("etc/crypttab", crypttab.as_str())];
        assert_eq!(boot(&files, ""), []);
    }
}
