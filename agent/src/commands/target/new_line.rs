//! The line of crypttab that `bind` writes where there is none.

use crate::volume::crypttab::Options;

/// The options of a line that `bind` writes, unless it is told others; `nofail` too where root does not lie on it.
const NEW_OPTIONS: &str = "luks,initramfs";

/// A line of crypttab that `bind` is to write where there is none.
#[derive(Debug, Clone, Default)]
pub struct NewLine {
    /// The mapping's name, if it is chosen.
    pub name: Option<String>,
    /// The fourth field, if it is chosen.
    pub options: Option<String>,
    /// What opens the volume.
    pub opened_by: OpenedBy,
}

/// What opens a volume without a key server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OpenedBy {
    /// A passphrase, at a prompt.
    #[default]
    Passphrase,
    /// A volume key, which nobody can type: the boot must be able to go on without the volume.
    VolumeKey,
}

impl NewLine {
    /// The fourth field of the line; `root` is whether root lies on the volume, as far as that can be told.
    pub(super) fn text(&self, root: Option<bool>) -> String {
        let chosen = self.options.as_deref().unwrap_or(NEW_OPTIONS);
        // Who chose the options chose that too. A boot that nobody told must not wait for a data disk.
        let is_data = self.options.is_none() && root == Some(false);
        if self.opened_by == OpenedBy::VolumeKey || is_data {
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
        let new = |options: Option<&str>, opened_by| NewLine {
            name: None,
            options: options.map(str::to_owned),
            opened_by,
        };
        use OpenedBy::{Passphrase, VolumeKey};
        for (options, opened_by, root, text) in [
            (Some("plain"), VolumeKey, None, "plain,nofail"),
            (Some("plain,nofail"), VolumeKey, None, "plain,nofail"),
            (Some("plain"), Passphrase, Some(false), "plain"),
            (None, Passphrase, Some(true), "luks,initramfs"),
            (None, Passphrase, None, "luks,initramfs"),
            (None, Passphrase, Some(false), "luks,initramfs,nofail"),
        ] {
            let new = new(options, opened_by);
            assert_eq!(new.text(root), text);
            assert!(new.is_chosen(text) && new.is_chosen(options.unwrap_or("luks")));
            assert_eq!(new.is_chosen("luks,discard"), options.is_none());
        }
    }
}
