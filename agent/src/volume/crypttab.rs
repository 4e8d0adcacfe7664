//! `/etc/crypttab`, in the dialect of Debian's cryptsetup (crypttab(5)).
//!
//! One line per volume: name, source device, key file, options; octal escapes in every field. It leaves out what
//! this version cannot honour (plain dm-crypt, detached headers, key scripts): such options are kept as text and
//! named by [`Options::unsupported`], so that nothing is opened in another way than the administrator wrote.

use std::path::PathBuf;
use std::time::Duration;

use super::source::Source;

/// One volume of crypttab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The mapping's name under `/dev/mapper`.
    pub name: String,
    /// Where the encrypted data lies.
    pub source: Source,
    /// The third field.
    pub key: Key,
    /// The fourth field.
    pub options: Options,
}

/// Where the native unlockers take the key from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// `none`, `-` or nothing: they ask.
    None,
    /// A file, or whatever the key script makes of the text.
    File(PathBuf),
}

/// Options of a volume. What is not listed has its default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// `luks`: refuse anything else. Without it both kinds of LUKS are recognised all the same.
    pub luks: bool,
    /// `discard`.
    pub discard: bool,
    /// `readonly` or `read-only`.
    pub read_only: bool,
    /// `no-read-workqueue`.
    pub no_read_workqueue: bool,
    /// `no-write-workqueue`.
    pub no_write_workqueue: bool,
    /// `same-cpu-crypt`.
    pub same_cpu_crypt: bool,
    /// `submit-from-crypt-cpus`.
    pub submit_from_crypt_cpus: bool,
    /// `initramfs`: Debian opens it in the initramfs whatever its content.
    pub initramfs: bool,
    /// `x-initrd.attach`: systemd's and dracut's word for the same.
    pub initrd_attach: bool,
    /// `nofail`.
    pub nofail: bool,
    /// `noauto`.
    pub noauto: bool,
    /// `_netdev`.
    pub netdev: bool,
    /// `tries=`: attempts at the prompt; 0 is no limit.
    pub tries: Option<u32>,
    /// `timeout=`: how long to prompt; zero is no limit.
    pub timeout: Option<Duration>,
    /// Everything else, as written.
    pub other: Vec<String>,
    /// The whole field, as written.
    pub text: String,
}

/// A line of crypttab that is no entry.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// There is a name but no source.
    #[error("line {line} of crypttab: '{name}' has no source device")]
    NoSource {
        /// Counted from 1.
        line: usize,
        /// The first field.
        name: String,
    },
    /// device-mapper cannot have a mapping of that name.
    #[error("line {line} of crypttab: '{name}' cannot be the name of a mapping")]
    Name {
        /// Counted from 1.
        line: usize,
        /// The first field.
        name: String,
    },
    /// More than four fields.
    #[error("line {line} of crypttab: more than four fields for '{name}'")]
    TooManyFields {
        /// Counted from 1.
        line: usize,
        /// The first field.
        name: String,
    },
}

/// Options that change nothing about how a volume is opened: messages, order at boot, checks after opening.
const WITHOUT_EFFECT: [&str; 6] = [
    "loud",
    "quiet",
    "noearly",
    "password-echo",
    "headless",
    "luks",
];

/// Reads a whole crypttab. A bad line spoils no other one.
pub fn parse(text: &str) -> Vec<Result<Entry, LineError>> {
    text.lines()
        .enumerate()
        .filter_map(|(index, line)| {
            let line = line.trim();
            (!line.is_empty() && !line.starts_with('#')).then(|| entry(index + 1, line))
        })
        .collect()
}

fn entry(line: usize, text: &str) -> Result<Entry, LineError> {
    let mut fields = text.split_ascii_whitespace().map(unescape);
    let name = fields.next().unwrap_or_default();
    // device-mapper's limit is 127 bytes; a slash would leave /dev/mapper.
    if name.is_empty() || name.len() > 127 || name.contains(['/', '\0']) || name.starts_with('.') {
        return Err(LineError::Name { line, name });
    }
    let Some(source) = fields.next() else {
        return Err(LineError::NoSource { line, name });
    };
    let key = match fields.next().as_deref() {
        None | Some("none" | "-" | "") => Key::None,
        Some(file) => Key::File(PathBuf::from(file)),
    };
    let options = fields.next().unwrap_or_default();
    if fields.next().is_some() {
        return Err(LineError::TooManyFields { line, name });
    }
    Ok(Entry {
        name,
        source: Source::parse(&source),
        key,
        options: Options::parse(&options),
    })
}

/// Replaces `\` and one to three octal digits by the byte they stand for, as Debian's scripts do; bytes that are
/// not UTF-8 then become U+FFFD and match no device.
pub(super) fn unescape(field: &str) -> String {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = after
            .iter()
            .take(3)
            .take_while(|digit| (b'0'..=b'7').contains(*digit))
            .count();
        if *first == b'\\' && digits > 0 {
            let value = after[..digits]
                .iter()
                .fold(0u32, |value, digit| value * 8 + u32::from(digit - b'0'));
            bytes.push(u8::try_from(value & 0xff).unwrap_or_default());
            rest = &after[digits..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Options {
    /// Reads the fourth field; the last of two contradicting options holds.
    pub fn parse(text: &str) -> Self {
        let mut options = Self {
            text: text.to_owned(),
            ..Self::default()
        };
        for option in text.split(',').map(str::trim) {
            options.add(option);
        }
        options
    }

    /// Options that change how the volume is opened and that this version cannot honour, as written.
    pub fn unsupported(&self) -> Vec<&str> {
        self.other
            .iter()
            .map(String::as_str)
            .filter(|option| {
                let name = option.split('=').next().unwrap_or_default();
                !WITHOUT_EFFECT.contains(&name) && !name.starts_with("x-")
            })
            .collect()
    }

    fn add(&mut self, option: &str) {
        let flag = match option {
            "" | "none" | "-" => return,
            "luks" => &mut self.luks,
            "discard" | "allow-discards" => &mut self.discard,
            "readonly" | "read-only" => &mut self.read_only,
            "no-read-workqueue" => &mut self.no_read_workqueue,
            "no-write-workqueue" => &mut self.no_write_workqueue,
            "same-cpu-crypt" => &mut self.same_cpu_crypt,
            "submit-from-crypt-cpus" => &mut self.submit_from_crypt_cpus,
            "initramfs" => &mut self.initramfs,
            "x-initrd.attach" => &mut self.initrd_attach,
            "nofail" => &mut self.nofail,
            "noauto" => &mut self.noauto,
            "_netdev" => &mut self.netdev,
            _ => return self.add_value(option),
        };
        *flag = true;
    }

    fn add_value(&mut self, option: &str) {
        if let Some(tries) = option.strip_prefix("tries=").and_then(|n| n.parse().ok()) {
            self.tries = Some(tries);
        } else if let Some(timeout) = option.strip_prefix("timeout=").and_then(time_span) {
            self.timeout = Some(timeout);
        } else {
            self.other.push(option.to_owned());
        }
    }
}

/// A number with an optional unit (systemd.time(7)): seconds if there is none. Sums such as `1min 30s` are not read.
fn time_span(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let millis = match &text[digits..] {
        "" | "s" | "sec" => 1_000,
        "ms" => 1,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &str) -> Entry {
        let mut entries = parse(line);
        assert_eq!(entries.len(), 1, "{line:?}");
        entries.remove(0).unwrap()
    }

    #[test]
    fn a_usual_debian_file_reads() {
        let entries = parse(
            "# <target> <source> <key> <options>\n\
             \n\
             vda3_crypt UUID=8a3d7d0e-0d5b-4f3c-9d52-1e1fa2a1c0de none luks,discard,initramfs\n\
             \t data\\040one  /dev/disk/by-id/a\\054b\t/etc/keys/data.key  read-only,tries=5,timeout=90s,_netdev,nofail # ?\n\
             swap LABEL=my\\134swap - swap,cipher=aes-xts-plain64,x-systemd.device-timeout=5\n\
             short /dev/sdb1\n",
        );
        assert_eq!(entries.len(), 4);
        let root = entries[0].as_ref().unwrap();
        assert_eq!(root.name, "vda3_crypt");
        assert_eq!(
            root.source,
            Source::Uuid("8a3d7d0e-0d5b-4f3c-9d52-1e1fa2a1c0de".into())
        );
        assert_eq!(root.key, Key::None);
        assert!(root.options.luks && root.options.discard && root.options.initramfs);
        assert!(root.options.unsupported().is_empty());
        assert_eq!(
            entries[1],
            Err(LineError::TooManyFields {
                line: 4,
                name: "data one".into()
            })
        );
        let swap = entries[2].as_ref().unwrap();
        assert_eq!(swap.source, Source::Label("my\\swap".into()));
        assert_eq!(
            swap.options.unsupported(),
            ["swap", "cipher=aes-xts-plain64"]
        );
        let short = entries[3].as_ref().unwrap();
        assert_eq!(
            (&short.key, &short.options),
            (&Key::None, &Options::default())
        );
    }

    #[test]
    fn every_option_of_this_version_is_recognised() {
        let options = one(
            "a /dev/b none luks,discard,readonly,no-read-workqueue,no-write-workqueue,same-cpu-crypt,\
             submit-from-crypt-cpus,initramfs,x-initrd.attach,nofail,noauto,_netdev,tries=0,timeout=2min,quiet,x-a=b",
        )
        .options;
        assert_eq!(
            options,
            Options {
                luks: true,
                discard: true,
                read_only: true,
                no_read_workqueue: true,
                no_write_workqueue: true,
                same_cpu_crypt: true,
                submit_from_crypt_cpus: true,
                initramfs: true,
                initrd_attach: true,
                nofail: true,
                noauto: true,
                netdev: true,
                tries: Some(0),
                timeout: Some(Duration::from_secs(120)),
                other: vec!["quiet".into(), "x-a=b".into()],
                text: options.text.clone(),
            }
        );
        assert!(options.unsupported().is_empty());
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        for option in [
            "plain",
            "keyscript=decrypt_derived",
            "header=/boot/header",
            "size=256",
            "hash=sha256",
            "tcrypt",
            "bitlk",
            "keyfile-offset=4",
            "key-slot=1",
            "tpm2-device=auto",
            "tries=many",
            "timeout=1fortnight",
            "discards",
        ] {
            let entry = one(&format!("a /dev/b none luks,{option}"));
            assert_eq!(entry.options.unsupported(), [option]);
        }
    }

    #[test]
    fn impossible_names_and_missing_sources_are_refused_with_their_line() {
        let cases = [
            (
                "../x /dev/b",
                "line 1 of crypttab: '../x' cannot be the name of a mapping",
            ),
            (
                "a\\057b /dev/b",
                "line 1 of crypttab: 'a/b' cannot be the name of a mapping",
            ),
            (
                "a\\000b /dev/b",
                "line 1 of crypttab: 'a\0b' cannot be the name of a mapping",
            ),
            (
                ". /dev/b",
                "line 1 of crypttab: '.' cannot be the name of a mapping",
            ),
            (
                "\nalone",
                "line 2 of crypttab: 'alone' has no source device",
            ),
        ];
        for (text, message) in cases {
            let error = parse(text).remove(0).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
        assert!(parse(&format!("{} /dev/b", "n".repeat(128)))[0].is_err());
    }

    #[test]
    fn octal_escapes_are_replaced_and_nothing_else() {
        for (from, to) in [
            ("a\\040b", "a b"),
            ("a\\0401", "a 1"),
            ("a\\", "a\\"),
            ("a\\8", "a\\8"),
            ("a\\n", "a\\n"),
            ("\\303\\244", "ä"),
            ("\\7", "\u{7}"),
        ] {
            assert_eq!(unescape(from), to, "{from:?}");
        }
    }
}
