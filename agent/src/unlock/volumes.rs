//! Which volumes the initramfs opens, and under which names: what its native unlockers would do.
//!
//! initramfs-tools puts the lines of crypttab(5) that it needs into `/cryptroot/crypttab`, dracut into `/etc/crypttab`.
//! With dracut the kernel command line can name volumes too (`rd.luks.uuid=`, `rd.luks.name=`; with systemd without `rd.` as
//! well), and then crypttab's other lines wait for the running system: systemd-cryptsetup-generator(8), dracut.cmdline(7).

use std::fs;

use super::kernel_command_line::{self, KernelCommandLine};
use crate::failure::chain;
use crate::files::{self, Files, FilesError};
use crate::volume::crypttab::{self, Entry, Format, Key, Options};
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
        let mut entries = words.volumes(read(&text, &mut tell), &Names::read(files));
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
struct Names(Vec<(String, String)>);

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
    fn are_of_one(&self, line: &Entry, word: &Entry) -> bool {
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

/// What the command lines say of dracut's volumes.
struct Words<'a> {
    kernel: &'a KernelCommandLine,
    image: &'a KernelCommandLine,
    /// Its generator reads the kernel's alone, and dracut leaves to it what crypttab has.
    with_systemd: bool,
}

impl Words<'_> {
    /// The lines of `crypttab` that count in this boot, and what words name beside it. A volume is opened under the name that
    /// crypttab gives it.
    fn volumes(&self, crypttab: Vec<Entry>, names: &Option<Names>) -> Vec<Entry> {
        if !(self.kernel.is_on("rd.luks") && self.kernel.is_on("luks")) {
            return Vec::new();
        }
        let mut crypttab = match self.reads_crypttab() {
            true => crypttab,
            false => Vec::new(),
        };
        let is_of = |line: &Entry, word: &Entry| {
            let names = names.as_ref();
            is_written_as(line, word) || names.is_some_and(|names| names.are_of_one(line, word))
        };
        // systemd does not look at the device: to it a line is of such a word by what is written.
        let is_of_kernels = |line: &Entry, word: &Entry| match self.with_systemd {
            true => is_written_as(line, word),
            false => is_of(line, word),
        };
        let of_kernel = named(self.kernel, self.prefixes());
        if self.with_systemd {
            for line in &mut crypttab {
                if let Some(options) = options_of_line(self.kernel, line) {
                    line.options = options;
                }
            }
        }
        let mut entries = crypttab.clone();
        if !of_kernel.is_empty() {
            // To systemd a volume of which the kernel's words name the options is named.
            let has_options =
                |line: &Entry| self.with_systemd && options_of_line(self.kernel, line).is_some();
            entries.retain(|line| {
                has_options(line) || of_kernel.iter().any(|word| is_of_kernels(line, word))
            });
        }
        for word in of_kernel {
            if !crypttab.iter().any(|line| is_of_kernels(line, &word)) {
                entries.push(word);
            }
        }
        for word in named(self.image, DRACUT) {
            if entries.iter().any(|entry| is_of(entry, &word)) {
                continue;
            }
            match crypttab.iter().find(|line| is_of(line, &word)) {
                Some(line) if !self.with_systemd => entries.push(line.clone()),
                Some(_) => {} // the kernel's words leave it to the running system
                None => entries.push(word),
            }
        }
        if !self.with_systemd {
            for entry in &mut entries {
                entry.options.discard |= self.allow_discards(entry);
            }
        }
        entries
    }

    /// `rd.luks.allow-discards`, for all LUKS volumes or by UUID, which dracut's scripts know and systemd does not. Of what is said
    /// for all the last counts.
    fn allow_discards(&self, entry: &Entry) -> bool {
        let (mut for_all, mut for_it) = (false, false);
        for line in [self.image, self.kernel] {
            for value in line.values("rd.luks.allow_discards") {
                match value {
                    None | Some("1" | "yes" | "on" | "true") => for_all = true,
                    Some(value) if kernel_command_line::is_no(value) => for_all = false,
                    Some(value) => {
                        for_it |= matches!(&entry.source, Source::Uuid(uuid)
                            if without_prefix(value).eq_ignore_ascii_case(uuid));
                    }
                }
            }
        }
        entry.options.format != Format::Plain && (for_all || for_it)
    }

    fn prefixes(&self) -> &'static [&'static str] {
        if self.with_systemd { SYSTEMD } else { DRACUT }
    }

    fn reads_crypttab(&self) -> bool {
        let last = values(self.kernel, self.prefixes(), "crypttab").last();
        !last.is_some_and(kernel_command_line::is_no)
    }
}

/// How the words begin that dracut's scripts read.
const DRACUT: &[&str] = &["rd.luks."];
/// And those that systemd reads in the initramfs.
const SYSTEMD: &[&str] = &["rd.luks.", "luks."];

/// The values of the words `name` with one of these beginnings, in their order.
fn values<'a>(
    line: &'a KernelCommandLine,
    prefixes: &'a [&str],
    name: &'a str,
) -> impl Iterator<Item = &'a str> {
    let is_wanted = move |word: &str| {
        let mut prefixes = prefixes.iter();
        prefixes.any(|prefix| word.strip_prefix(prefix) == Some(name))
    };
    line.values_where(is_wanted).flatten()
}

/// Whether systemd-cryptsetup-generator(8) takes the line of crypttab for that of the volume which a word names by UUID.
fn is_written_as(line: &Entry, word: &Entry) -> bool {
    matches!(&word.source, Source::Uuid(uuid) if written_uuid(line) == Some(uuid))
}

/// The UUID by which systemd-cryptsetup-generator(8) knows a line of crypttab.
fn written_uuid(line: &Entry) -> Option<&str> {
    match &line.source {
        Source::Uuid(uuid) => Some(uuid),
        _ => line.name.strip_prefix("luks-"),
    }
}

/// What `rd.luks.name=UUID=NAME` and `rd.luks.uuid=UUID` name. dracut takes the beginning of a UUID too; such a volume is
/// left to it.
fn named(line: &KernelCommandLine, prefixes: &[&str]) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut add = |uuid: &str, name: &str| {
        let source = Source::Uuid(uuid.to_lowercase());
        let is_whole = uuid.len() == 36;
        if is_whole && !name.is_empty() && entries.iter().all(|entry| entry.source != source) {
            let (of_volume, for_all) = options_for(line, prefixes, uuid);
            entries.push(Entry {
                name: name.to_owned(),
                source,
                key: Key::None,
                options: Options::parse(of_volume.or(for_all).unwrap_or_default()),
            });
        }
    };
    for value in values(line, prefixes, "name") {
        if let Some((uuid, name)) = value.split_once('=') {
            add(without_prefix(uuid), name);
        }
    }
    for value in values(line, prefixes, "uuid") {
        let uuid = without_prefix(value);
        add(uuid, &format!("luks-{uuid}"));
    }
    entries
}

fn without_prefix(uuid: &str) -> &str {
    uuid.strip_prefix("luks-").unwrap_or(uuid)
}

/// `rd.luks.options=UUID=OPTIONS` for this volume, and `rd.luks.options=OPTIONS` for all; of several the last counts. What is
/// no UUID, such as `luks-UUID`, makes them options for all.
fn options_for<'a>(
    line: &'a KernelCommandLine,
    prefixes: &'a [&str],
    uuid: &str,
) -> (Option<&'a str>, Option<&'a str>) {
    let (mut of_volume, mut for_all) = (None, None);
    for value in values(line, prefixes, "options") {
        match value.split_once('=') {
            Some((of, options)) if of.eq_ignore_ascii_case(uuid) => of_volume = Some(options),
            Some((of, _)) if of.chars().all(|c| c.is_ascii_hexdigit() || c == '-') => {}
            _ => for_all = Some(value),
        }
    }
    (of_volume, for_all)
}

/// The options that a word gives a line of crypttab in the place of its own, as systemd-cryptsetup-generator(8) has it: only one
/// that names the volume.
fn options_of_line(kernel: &KernelCommandLine, line: &Entry) -> Option<Options> {
    let uuid = written_uuid(line)?;
    let (of_volume, _) = options_for(kernel, SYSTEMD, uuid);
    of_volume.map(Options::parse)
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
    fn options_come_from_the_kernel_command_line_too() {
        let line = |text: &str| {
            named(&KernelCommandLine::parse(text), DRACUT)
                .remove(0)
                .options
        };
        let both = format!("rd.luks.options=discard rd.luks.options={A}=readonly rd.luks.uuid={A}");
        assert!(line(&both).read_only && !line(&both).discard);
        let all = format!("rd.luks.options=discard rd.luks.options={B}=readonly rd.luks.uuid={A}");
        assert!(line(&all).discard && !line(&all).read_only);
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
    fn under_systemd_a_word_that_names_the_volume_replaces_the_options_of_its_line() {
        let other = format!("luks-{B} /dev/vdb none luks,discard");
        let lines = crypttab::parse(&format!("a UUID={A} none luks,discard\n{other}\n"));
        let kernel = format!(
            "rd.luks.options=no-read-workqueue rd.luks.options={A}=discard luks.options={A}=readonly \
             luks.options={B}=tries=1 luks.options=luks-{B}=discard"
        );
        let kernel = KernelCommandLine::parse(&kernel);
        let image = KernelCommandLine::parse("");
        let options = |with_systemd: bool| -> Vec<(bool, bool)> {
            let words = Words {
                kernel: &kernel,
                image: &image,
                with_systemd,
            };
            let lines = lines.iter().flatten().cloned().collect();
            let lines = words.volumes(lines, &None).into_iter();
            lines
                .map(|line| (line.options.discard, line.options.read_only))
                .collect()
        };
        assert_eq!(options(false), [(true, false), (true, false)]);
        assert_eq!(options(true), [(false, true), (false, false)]);
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
