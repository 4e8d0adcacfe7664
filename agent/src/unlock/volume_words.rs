//! The volumes that words on a kernel command line name where dracut builds the image: `rd.luks.uuid=`, `rd.luks.name=`,
//! `rd.luks.options=` and their kin (dracut.cmdline(7), systemd-cryptsetup-generator(8)).

use super::kernel_command_line::{self, KernelCommandLine};
use super::volumes::Names;
use crate::volume::crypttab::{Entry, Format, Key, Options};
use crate::volume::source::Source;

/// What the command lines say of the volumes.
pub(super) struct Words<'a> {
    pub kernel: &'a KernelCommandLine,
    /// dracut's own, which the image carries.
    pub image: &'a KernelCommandLine,
    /// Its generator reads the kernel's alone, and dracut leaves to it what crypttab has.
    pub with_systemd: bool,
}

impl Words<'_> {
    /// The lines of `crypttab` that count in this boot, and what words name beside it. A volume is opened under the name that
    /// crypttab gives it.
    pub fn volumes(&self, crypttab: Vec<Entry>, names: Option<&Names>) -> Vec<Entry> {
        if !(self.kernel.is_on("rd.luks") && self.kernel.is_on("luks")) {
            return Vec::new();
        }
        let mut crypttab = match self.reads_crypttab() {
            true => crypttab,
            false => Vec::new(),
        };
        let is_of = |line: &Entry, word: &Entry| {
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
    use crate::volume::crypttab;

    const A: &str = "8a3d7d0e-0d5b-4f3c-9d52-1e1fa2a1c0de";
    const B: &str = "9b3d7d0e-0d5b-4f3c-9d52-1e1fa2a1c0df";

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
            let lines = words.volumes(lines, None).into_iter();
            lines
                .map(|line| (line.options.discard, line.options.read_only))
                .collect()
        };
        assert_eq!(options(false), [(true, false), (true, false)]);
        assert_eq!(options(true), [(false, true), (false, false)]);
    }
}
