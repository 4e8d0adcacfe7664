//! The line of crypttab that `bind` writes where there is none.

use super::super::initramfs::Framework;
use crate::volume::crypttab::Options;
use crate::volume::stack::StackError;

/// The options of a line that `bind` writes where root is not encrypted, unless it is told others: the initramfs opens nothing
/// then.
const NEW_DATA_OPTIONS: &str = "luks,_netdev,nofail";

/// A line of crypttab that `bind` is to write where there is none.
#[derive(Debug, Clone, Default)]
pub struct NewLine {
    /// The mapping's name, if it is chosen.
    pub name: Option<String>,
    /// The fourth field, if it is chosen.
    pub options: Option<String>,
    /// What opens the volume.
    pub opened_with: OpenedWith,
    /// Whether root is encrypted, as far as that can be told.
    pub root_is_encrypted: Option<bool>,
    /// Whose word takes the line into the initramfs.
    pub framework: Framework,
}

/// What opens a volume without a key server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OpenedWith {
    /// A passphrase, at a prompt.
    #[default]
    Passphrase,
    /// A volume key, which nobody can type: the boot must be able to go on without the volume.
    VolumeKey,
}

/// What was found of root, as far as that can be told. A root without a block device (ZFS, an overlay) is no reason to open
/// anything in the initramfs: such a boot closes what was opened automatically, so the line is as of a volume that root does
/// not lie on.
pub fn known_of_root(found: Result<bool, StackError>) -> Option<bool> {
    match found {
        Err(StackError::NoDevice { .. }) => Some(false),
        found => found.ok(),
    }
}

impl NewLine {
    /// The fourth field of the line; `root` is whether root lies on the volume, as far as that can be told. Where it does not,
    /// there is `nofail` too, unless the options are chosen.
    pub(super) fn text(&self, root: Option<bool>) -> String {
        let default = match self.root_is_encrypted {
            Some(false) => NEW_DATA_OPTIONS.to_owned(),
            _ => format!("luks,{}", self.framework.word()),
        };
        let chosen = self.options.as_deref().unwrap_or(&default);
        // Who chose the options chose that too. A boot that nobody told must not wait for a data disk.
        let is_data = self.options.is_none() && root == Some(false);
        if self.opened_with == OpenedWith::VolumeKey || is_data {
            with_nofail(chosen)
        } else {
            chosen.to_owned()
        }
    }

    /// Whether `text` is the fourth field that was chosen.
    pub(super) fn is_chosen(&self, text: &str) -> bool {
        let chosen = self.options.as_deref();
        chosen.is_none_or(|chosen| text == chosen || text == self.text(None))
    }
}

fn with_nofail(options: &str) -> String {
    if Options::parse(options).nofail {
        options.to_owned()
    } else {
        format!("{options},nofail")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_line_has_nofail_where_the_boot_can_do_without_the_volume() {
        let new = |options: Option<&str>, opened_with| NewLine {
            name: None,
            options: options.map(str::to_owned),
            opened_with,
            root_is_encrypted: Some(true),
            framework: Framework::InitramfsTools,
        };
        use OpenedWith::{Passphrase, VolumeKey};
        for (options, opened_with, root, text) in [
            (Some("plain"), VolumeKey, None, "plain,nofail"),
            (Some("plain,nofail"), VolumeKey, None, "plain,nofail"),
            (Some("plain"), Passphrase, Some(false), "plain"),
            (None, Passphrase, Some(true), "luks,initramfs"),
            (None, Passphrase, None, "luks,initramfs"),
            (None, Passphrase, Some(false), "luks,initramfs,nofail"),
        ] {
            let new = new(options, opened_with);
            assert_eq!(new.text(root), text);
            assert!(new.is_chosen(text) && new.is_chosen(options.unwrap_or("luks")));
            assert_eq!(new.is_chosen("luks,discard"), options.is_none());
        }
    }

    #[test]
    fn each_framework_has_its_word_for_the_initramfs() {
        let new = NewLine {
            root_is_encrypted: Some(true),
            framework: Framework::Dracut,
            ..NewLine::default()
        };
        assert_eq!(new.text(Some(true)), "luks,x-initrd.attach");
        assert_eq!(new.text(Some(false)), "luks,x-initrd.attach,nofail");
        assert!(new.is_chosen("luks,initramfs"));
    }

    #[test]
    fn only_what_cannot_be_read_of_root_is_unknown() {
        let path = std::path::PathBuf::from("/");
        let kind = "zfs".to_owned();
        for (found, known) in [
            (Ok(true), Some(true)),
            (Ok(false), Some(false)),
            (
                Err(StackError::NoDevice {
                    path: path.clone(),
                    kind,
                }),
                Some(false),
            ),
            (Err(StackError::NotMounted(path)), None),
        ] {
            let told = format!("{found:?}");
            assert_eq!(known_of_root(found), known, "{told}");
        }
    }

    #[test]
    fn where_root_is_not_encrypted_the_running_system_opens_it() {
        let new = NewLine {
            root_is_encrypted: Some(false),
            ..NewLine::default()
        };
        assert_eq!(new.text(Some(false)), "luks,_netdev,nofail");
        let chosen = NewLine {
            options: Some("luks,initramfs".to_owned()),
            ..new
        };
        assert_eq!(chosen.text(Some(false)), "luks,initramfs");
    }
}
