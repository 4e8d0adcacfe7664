//! What the second partition of a guest's disk holds, and what of the guest depends on it.

/// What the partition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// A LUKS2 volume with the root file system.
    Root,
    /// What Debian's installer calls "encrypted LVM": a LUKS2 volume with a volume group, in which are the root and a swap
    /// that the machine can be hibernated to.
    Lvm,
    /// The root file system in plain dm-crypt by passphrase: `twofish-xts-plain64`, hashed by SHA-512.
    Plain,
    /// The root file system, which is not encrypted.
    Clear,
}

/// The volume group of [`Layout::Lvm`].
pub const GROUP: &str = "vg";
/// The root's logical volume.
pub const ROOT: &str = "root";
/// The swap's.
pub const SWAP: &str = "swap";

impl Layout {
    /// What a cached machine of this kind is called, where those of [`Layout::Root`] are called `name`.
    pub fn kind(self, name: &str) -> String {
        match self {
            Self::Root => name.to_owned(),
            Self::Lvm => format!("{name}-lvm"),
            Self::Plain => format!("{name}-plain"),
            Self::Clear => format!("{name}-clear"),
        }
    }

    /// Packages of Debian that it needs.
    pub fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Lvm => &["lvm2"],
            Self::Root | Self::Plain | Self::Clear => &[],
        }
    }

    /// The words about devices on the kernel's command line, as the boot loader has them.
    pub fn kernel_words(self) -> &'static str {
        match self {
            Self::Root | Self::Plain => "root=/dev/mapper/vda2_crypt",
            Self::Lvm => "root=/dev/mapper/vg-root resume=/dev/mapper/vg-swap",
            Self::Clear => "root=UUID=5f0c6c1e-9a51-4f67-9c0b-1a7c8e000003",
        }
    }

    /// What makes a machine of this layout of one of [`Layout::Root`]: the name of a file of the recipe, and its content.
    pub(crate) fn script(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Root => None,
            Self::Lvm => Some(("lvm.sh", include_str!("../guest/lvm.sh"))),
            Self::Plain => Some(("plain.sh", include_str!("../guest/plain.sh"))),
            Self::Clear => Some(("clear.sh", include_str!("../guest/clear.sh"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::{MAPPING, ROOT_UUID};

    #[test]
    fn the_kernel_is_told_the_devices_that_there_are() {
        assert!(Layout::Root.kernel_words().ends_with(MAPPING));
        let words = format!("root=/dev/mapper/{GROUP}-{ROOT} resume=/dev/mapper/{GROUP}-{SWAP}");
        assert_eq!(Layout::Lvm.kernel_words(), words);
        assert!(Layout::Clear.kernel_words().ends_with(ROOT_UUID));
    }
}
