//! The fourth field of crypttab: one table of the options of both dialects.
//!
//! Each option is honoured, changes nothing about how a volume is opened, or is named by [`Options::unsupported`]:
//! nothing is opened in another way than the administrator wrote. What concerns the framework alone (order, mounting,
//! how often to ask) is left to it.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Options of a volume. What is not listed has its default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// What the options say about the kind of encryption.
    pub format: Format,
    /// `header=`: where the LUKS header lies, if not in front of the data.
    pub header: Option<PathBuf>,
    /// `keyslot=` or `key-slot=`: the only keyslot that a passphrase is tried on.
    pub keyslot: Option<u32>,
    /// What counts for plain dm-crypt only.
    pub plain: PlainOptions,
    /// `swap` and `tmp`, as written: the volume is formatted anew whenever it was opened.
    pub formatted_by: Vec<String>,
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
    /// `force`: dracut's own, for a line that goes into every image.
    pub force: bool,
    /// `nofail`: the boot does not need it.
    pub nofail: bool,
    /// `_netdev`: opened when the network is up, so in the running system.
    pub netdev: bool,
    /// `noauto`: not opened unless something needs it.
    pub noauto: bool,
    /// `tries=`: attempts at the prompt; 0 is no limit.
    pub tries: Option<u32>,
    /// `timeout=`: how long to prompt; zero is no limit.
    pub timeout: Option<Duration>,
    /// Everything else, as written.
    pub other: Vec<String>,
    /// The whole field, as written.
    pub text: String,
}

/// What kind of encryption the options ask for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// Neither `luks` nor `plain`: LUKS is recognised by its header.
    #[default]
    Unsaid,
    /// `luks`: refuse anything else.
    Luks,
    /// `plain`: no header, whatever the device begins with.
    Plain,
}

/// Options of plain dm-crypt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlainOptions {
    /// `cipher=`.
    pub cipher: Option<String>,
    /// `hash=`.
    pub hash: Option<String>,
    /// `size=`: bits of the volume key.
    pub key_bits: Option<u32>,
    /// `offset=`: sectors of 512 bytes before the data.
    pub offset: Option<u64>,
    /// `skip=`: what is added to a 512-byte sector's number for its initialization vector.
    pub skip: Option<u64>,
    /// `sector-size=`: bytes of an encryption sector.
    pub sector_size: Option<u32>,
}

/// How an option is read.
#[derive(Debug, Clone, Copy)]
enum Reading {
    /// It has no value.
    Flag(fn(&mut Options)),
    /// It has one; `None` if that is not understood.
    Value(fn(&mut Options, &str) -> Option<()>),
    /// With or without a value, it changes nothing about how a volume is opened.
    WithoutEffect,
}

use Reading::{Flag, Value, WithoutEffect};

/// Every option that is known, by name.
const TABLE: &[(&str, Reading)] = &[
    ("luks", Flag(|o| o.format = Format::Luks)),
    ("plain", Flag(|o| o.format = Format::Plain)),
    ("header", Value(header)),
    ("keyslot", Value(keyslot)),
    ("key-slot", Value(keyslot)),
    ("cipher", Value(|o, v| word(&mut o.plain.cipher, v))),
    ("hash", Value(|o, v| word(&mut o.plain.hash, v))),
    ("size", Value(key_bits)),
    ("offset", Value(|o, v| number(&mut o.plain.offset, v))),
    ("skip", Value(|o, v| number(&mut o.plain.skip, v))),
    ("sector-size", Value(sector_size)),
    ("swap", Flag(|o| o.formatted_by.push("swap".to_owned()))),
    ("tmp", Flag(|o| o.formatted_by.push("tmp".to_owned()))),
    ("tmp", Value(tmp)),
    ("discard", Flag(|o| o.discard = true)),
    ("allow-discards", Flag(|o| o.discard = true)),
    ("readonly", Flag(|o| o.read_only = true)),
    ("read-only", Flag(|o| o.read_only = true)),
    ("no-read-workqueue", Flag(|o| o.no_read_workqueue = true)),
    ("no-write-workqueue", Flag(|o| o.no_write_workqueue = true)),
    ("same-cpu-crypt", Flag(|o| o.same_cpu_crypt = true)),
    (
        "submit-from-crypt-cpus",
        Flag(|o| o.submit_from_crypt_cpus = true),
    ),
    ("initramfs", Flag(|o| o.initramfs = true)),
    ("x-initrd.attach", Flag(|o| o.initrd_attach = true)),
    ("nofail", Flag(|o| o.nofail = true)),
    ("noauto", Flag(|o| o.noauto = true)),
    ("tries", Value(|o, v| number(&mut o.tries, v))),
    ("timeout", Value(timeout)),
    // In the initramfs both frameworks open such a volume as any other.
    ("_netdev", Flag(|o| o.netdev = true)),
    // Messages, order at boot, how the native prompt behaves.
    ("loud", WithoutEffect),
    ("quiet", WithoutEffect),
    ("noearly", WithoutEffect),
    ("verify", WithoutEffect),
    ("password-echo", WithoutEffect),
    ("password-cache", WithoutEffect),
    ("token-timeout", WithoutEffect),
    ("headless", WithoutEffect),
    // dracut's word for a line that goes into every image.
    ("force", Flag(|o| o.force = true)),
];

impl Options {
    /// Reads the fourth field; the last of two contradicting options holds.
    pub fn parse(text: &str) -> Self {
        let mut options = Self {
            text: text.to_owned(),
            ..Self::default()
        };
        for option in text.split(',').map(str::trim) {
            if !matches!(option, "" | "none" | "-") && options.add(option).is_none() {
                options.other.push(option.to_owned());
            }
        }
        options
    }

    /// Where the header lies, if it is on a device, which may appear later than the data. A file is in the image or is not.
    pub fn header_device(&self) -> Option<&Path> {
        let header = self.header.as_deref()?;
        (self.format != Format::Plain && header.starts_with("/dev")).then_some(header)
    }

    /// Options that change how the volume is opened and that latchkey cannot honour, as written.
    pub fn unsupported(&self) -> Vec<&str> {
        self.other.iter().map(String::as_str).collect()
    }

    /// `None` if it is unknown, or its value is not understood.
    fn add(&mut self, option: &str) -> Option<()> {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        };
        let rows = TABLE.iter().filter(|(known, _)| *known == name);
        for (_, reading) in rows {
            match (reading, value) {
                (Flag(set), None) => {
                    set(self);
                    return Some(());
                }
                (Value(set), Some(value)) => return set(self, value),
                (WithoutEffect, _) => return Some(()),
                _ => {}
            }
        }
        // Words for other programs, by the convention of fstab(5).
        name.starts_with("x-").then_some(())
    }
}

/// An absolute path. systemd's `PATH:DEVICE`, a file on another device, is not read.
fn header(options: &mut Options, value: &str) -> Option<()> {
    let path = Path::new(value);
    let is_read = path.is_absolute() && (path.starts_with("/dev") || !value.contains(':'));
    is_read.then(|| options.header = Some(path.to_owned()))
}

/// LUKS has at most 32 keyslots.
fn keyslot(options: &mut Options, value: &str) -> Option<()> {
    let slot = plain_number::<u32>(value).filter(|slot| *slot < 32)?;
    options.keyslot = Some(slot);
    Some(())
}

/// Whole bytes, no more than libcryptsetup takes.
fn key_bits(options: &mut Options, value: &str) -> Option<()> {
    let fits = |bits: &u32| *bits > 0 && bits.is_multiple_of(8) && *bits <= 4096;
    options.plain.key_bits = Some(plain_number::<u32>(value).filter(fits)?);
    Some(())
}

/// What dm-crypt has.
fn sector_size(options: &mut Options, value: &str) -> Option<()> {
    let exists = |size: &u32| [512, 1024, 2048, 4096].contains(size);
    options.plain.sector_size = Some(plain_number(value).filter(exists)?);
    Some(())
}

fn tmp(options: &mut Options, value: &str) -> Option<()> {
    options.formatted_by.push(format!("tmp={value}"));
    Some(())
}

fn timeout(options: &mut Options, value: &str) -> Option<()> {
    options.timeout = Some(time_span(value)?);
    Some(())
}

/// Names of ciphers and hashes, such as `capi:xts(aes)-plain64`.
fn word(place: &mut Option<String>, value: &str) -> Option<()> {
    let is_word = !value.is_empty()
        && value
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b"-_:()".contains(&c));
    is_word.then(|| *place = Some(value.to_owned()))
}

fn number<N: std::str::FromStr>(place: &mut Option<N>, value: &str) -> Option<()> {
    *place = Some(plain_number(value)?);
    Some(())
}

/// Digits and nothing else.
fn plain_number<N: std::str::FromStr>(value: &str) -> Option<N> {
    let is_number = value.bytes().all(|digit| digit.is_ascii_digit());
    is_number.then(|| value.parse().ok()).flatten()
}

/// Numbers with an optional unit each (systemd.time(7)), such as `1min30s`: seconds if there is none.
fn time_span(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut millis = 0_u64;
    loop {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let unit = match &rest[..letters] {
            "" | "s" | "sec" | "second" | "seconds" => 1_000,
            "ms" | "msec" => 1,
            "m" | "min" | "minute" | "minutes" => 60_000,
            "h" | "hr" | "hour" | "hours" => 3_600_000,
            _ => return None,
        };
        millis = millis.checked_add(number.checked_mul(unit)?)?;
        rest = &rest[letters..];
        if rest.is_empty() {
            return Some(Duration::from_millis(millis));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_option_is_read() {
        let text = "luks,discard,readonly,no-read-workqueue,no-write-workqueue,same-cpu-crypt,\
                    submit-from-crypt-cpus,initramfs,x-initrd.attach,nofail,noauto,_netdev,tries=0,timeout=2min,\
                    keyslot=3,header=/boot/header,cipher=twofish-xts-plain64,hash=sha512,size=512,offset=8,skip=9,force,\
                    sector-size=4096,swap,tmp,tmp=ext4,quiet,x-a=b";
        let options = Options::parse(text);
        assert_eq!(
            options,
            Options {
                format: Format::Luks,
                header: Some("/boot/header".into()),
                keyslot: Some(3),
                plain: PlainOptions {
                    cipher: Some("twofish-xts-plain64".into()),
                    hash: Some("sha512".into()),
                    key_bits: Some(512),
                    offset: Some(8),
                    skip: Some(9),
                    sector_size: Some(4096),
                },
                formatted_by: vec!["swap".into(), "tmp".into(), "tmp=ext4".into()],
                discard: true,
                read_only: true,
                no_read_workqueue: true,
                no_write_workqueue: true,
                same_cpu_crypt: true,
                submit_from_crypt_cpus: true,
                initramfs: true,
                initrd_attach: true,
                force: true,
                nofail: true,
                netdev: true,
                noauto: true,
                tries: Some(0),
                timeout: Some(Duration::from_secs(120)),
                other: vec![],
                text: text.into(),
            }
        );
    }

    #[test]
    fn both_dialects_have_their_own_words_for_one_thing() {
        for (debian, systemd) in [
            ("readonly", "read-only"),
            ("keyslot=2", "key-slot=2"),
            ("discard", "allow-discards"),
            ("timeout=90", "timeout=1min30s"),
            ("luks,plain", "plain"),
            ("tries=1,tries=5", "tries=5"),
            ("", "none"),
        ] {
            let read = |text: &str| Options {
                text: String::new(),
                ..Options::parse(text)
            };
            assert_eq!(read(debian), read(systemd), "{debian} and {systemd}");
        }
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        for option in [
            "keyscript=decrypt_derived",
            "check",
            "check=ext4",
            "tcrypt",
            "bitlk",
            "keyfile-offset=4",
            "tpm2-device=auto",
            "tries=many",
            "tries=+1",
            "tries=",
            "tries",
            "timeout=1fortnight",
            "timeout=",
            "discards",
            "discard=yes",
            "header=relative",
            "header=/keys/header:LABEL=usb",
            "header",
            "keyslot=32",
            "size=7",
            "size=0",
            "size=8192",
            "offset=-1",
            "offset=18446744073709551616",
            "sector-size=1000",
            "cipher=",
            "cipher=aes;xts",
            "LUKS",
        ] {
            let options = Options::parse(&format!("luks,{option},nofail"));
            assert_eq!(options.unsupported(), [option]);
            assert!(options.nofail, "{option}");
        }
    }

    #[test]
    fn a_header_on_a_device_may_have_colons_in_its_path() {
        let path = "/dev/disk/by-path/pci-0000:00:04.0-part1";
        let options = Options::parse(&format!("header={path}"));
        assert_eq!(options.header.as_deref(), Some(Path::new(path)));
    }

    #[test]
    fn only_a_header_on_a_device_is_waited_for() {
        for (options, device) in [
            ("header=/dev/disk/by-id/usb", Some("/dev/disk/by-id/usb")),
            ("header=/etc/header", None),
            ("header=/device/header", None),
            ("plain,header=/dev/sdb", None),
            ("luks", None),
        ] {
            let options = Options::parse(options);
            assert_eq!(
                options.header_device(),
                device.map(Path::new),
                "{options:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_option_is_dropped_in_silence(
            known in proptest::sample::subsequence(TABLE, 0..6),
            strange in proptest::collection::vec("[a-z=:/,0-9 -]{0,20}", 0..4),
        ) {
            let names = known.iter().map(|(name, _)| (*name).to_owned());
            let text = names.chain(strange).collect::<Vec<_>>().join(",");
            let options = Options::parse(&text);
            let left_out = text.split(',').map(str::trim).filter(|option| {
                !matches!(*option, "" | "none" | "-")
                    && !options.unsupported().contains(option)
                    && Options::default().add(option).is_none()
            });
            prop_assert_eq!(left_out.count(), 0);
            prop_assert_eq!(&Options::parse(&text), &options);
        }
    }
}
