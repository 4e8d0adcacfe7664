//! What the LUKS2 volume of a guest holds, and what of the guest depends on it.

/// What the volume holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// The root file system.
    Root,
    /// What Debian's installer calls "encrypted LVM": a volume group with the root and a swap that the machine can be
    /// hibernated to.
    Lvm,
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
        }
    }

    /// Packages of Debian that it needs.
    pub fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Root => &[],
            Self::Lvm => &["lvm2"],
        }
    }

    /// The words about devices on the kernel's command line, as the boot loader has them.
    pub fn kernel_words(self) -> &'static str {
        match self {
            Self::Root => "root=/dev/mapper/vda2_crypt",
            Self::Lvm => "root=/dev/mapper/vg-root resume=/dev/mapper/vg-swap",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::MAPPING;

    #[test]
    fn the_kernel_is_told_the_devices_that_there_are() {
        assert!(Layout::Root.kernel_words().ends_with(MAPPING));
        let words = format!("root=/dev/mapper/{GROUP}-{ROOT} resume=/dev/mapper/{GROUP}-{SWAP}");
        assert_eq!(Layout::Lvm.kernel_words(), words);
    }
}
