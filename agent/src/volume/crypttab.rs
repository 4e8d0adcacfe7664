//! `/etc/crypttab`, in the dialects of Debian's cryptsetup and of systemd (crypttab(5) of each).
//!
//! One line per volume: name, source device, key file, options, and perhaps a comment; octal escapes in every field. [`Options`] says what
//! of the fourth field is honoured, and names what is not.

mod options;

use std::path::PathBuf;

pub use options::{Format, Options, PlainOptions};

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
    /// More than four fields, and the fifth is no comment.
    #[error("line {line} of crypttab: more than four fields for '{name}'")]
    TooManyFields {
        /// Counted from 1.
        line: usize,
        /// The first field.
        name: String,
    },
}

impl LineError {
    /// The first field.
    pub fn name(&self) -> &str {
        match self {
            Self::NoSource { name, .. }
            | Self::Name { name, .. }
            | Self::TooManyFields { name, .. } => name,
        }
    }
}

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
    // Both frameworks pass over what follows.
    if fields.next().is_some_and(|more| !more.starts_with('#')) {
        return Err(LineError::TooManyFields { line, name });
    }
    Ok(Entry {
        name,
        source: Source::parse(&source).in_lower_case(),
        key,
        options: Options::parse(&options),
    })
}

/// Replaces `\` and one to three octal digits by the byte they stand for, as Debian's scripts do; bytes that are
/// not UTF-8 then become U+FFFD and match no device.
pub(crate) fn unescape(field: &str) -> String {
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

/// A field as crypttab has it: white space, backslashes and a leading `#` as octal escapes.
pub fn escape(field: &str) -> String {
    let mut escaped = String::with_capacity(field.len());
    for (position, c) in field.char_indices() {
        if c.is_ascii_whitespace()
            || c == '\\'
            || c.is_ascii_control()
            || (c == '#' && position == 0)
        {
            escaped.push_str(&format!("\\{:03o}", u32::from(c)));
        } else {
            escaped.push(c);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_usual_debian_file_reads() {
        let entries = parse(
            "# <target> <source> <key> <options>\n\
             \n\
             vda3_crypt UUID=8a3d7d0e-0d5b-4f3c-9d52-1e1fa2a1c0de none luks,discard,initramfs\n\
             \t data\\040one  /dev/disk/by-id/a\\054b\t/etc/keys/data.key  read-only,tries=5,timeout=90s,_netdev,nofail and more\n\
             swap LABEL=my\\134swap - swap,cipher=aes-xts-plain64,x-systemd.device-timeout=5\n\
             short /dev/sdb1\n\
             told /dev/sdc1 none luks,discard # a comment\n",
        );
        assert_eq!(entries.len(), 5);
        let told = &entries[4].as_ref().unwrap().options;
        assert!(told.discard && told.unsupported().is_empty());
        let root = entries[0].as_ref().unwrap();
        assert_eq!(root.name, "vda3_crypt");
        assert_eq!(
            root.source,
            Source::Uuid("8a3d7d0e-0d5b-4f3c-9d52-1e1fa2a1c0de".into())
        );
        assert_eq!(root.key, Key::None);
        assert_eq!(root.options.format, Format::Luks);
        assert!(root.options.discard && root.options.initramfs);
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
        assert_eq!(swap.options.formatted_by, ["swap"]);
        assert_eq!(
            swap.options.plain.cipher.as_deref(),
            Some("aes-xts-plain64")
        );
        let short = entries[3].as_ref().unwrap();
        assert_eq!(
            (&short.key, &short.options),
            (&Key::None, &Options::default())
        );
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

    #[test]
    fn the_uuid_of_a_header_is_in_lower_case() {
        let entry = parse("data UUID=8A3D-AB none luks").remove(0).unwrap();
        assert_eq!(entry.source, Source::Uuid("8a3d-ab".into()));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic_and_each_line_has_one_answer(
            lines in proptest::collection::vec("[^\n\r\u{85}\u{2028}]{0,60}", 0..6),
        ) {
            let text = lines.join("\n");
            let expected = text
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .count();
            prop_assert_eq!(parse(&text).len(), expected);
        }

        #[test]
        fn what_was_escaped_reads_back(name in "[ -.0-~ä]{1,20}", source in "/[ -~ä]{1,30}") {
            prop_assume!(!name.starts_with('.'));
            let line = format!("{} {} none luks", escape(&name), escape(&source));
            let entry = parse(&line).remove(0).unwrap();
            prop_assert_eq!(entry.name, name);
            prop_assert_eq!(entry.source, Source::parse(&source));
        }
    }
}
