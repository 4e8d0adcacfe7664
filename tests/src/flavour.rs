//! The machines that the scenarios are played on: a release of Debian and what its initramfs is built and run by.

use std::fmt;

/// A release of Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// Debian 12.
    Bookworm,
    /// Debian 13.
    Trixie,
}

impl Suite {
    /// Its name in the archive.
    pub fn codename(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }
}

/// What opens the root in the initramfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framework {
    /// Debian's default: its scripts, and `cryptroot` of cryptsetup-initramfs.
    InitramfsTools,
    /// dracut as Debian configures it: systemd, and systemd-cryptsetup.
    DracutSystemd,
    /// dracut without its systemd modules: its scripts, and `cryptroot-ask`.
    DracutScript,
}

impl Framework {
    /// The option of crypttab(5) that takes a line into the image.
    pub fn crypttab_word(self) -> &'static str {
        match self {
            Self::InitramfsTools => "initramfs",
            Self::DracutSystemd | Self::DracutScript => "x-initrd.attach",
        }
    }
}

/// One kind of machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flavour {
    /// The release.
    pub suite: Suite,
    /// The initramfs.
    pub framework: Framework,
}

impl Flavour {
    /// What Debian 12's installer leaves: the machine that every scenario is played on.
    pub const DEBIAN12: Self = Self {
        suite: Suite::Bookworm,
        framework: Framework::InitramfsTools,
    };

    /// All of them, in the order of the tables.
    pub const ALL: [Self; 6] = {
        let mut all = [Self::DEBIAN12; 6];
        let frameworks = [
            Framework::InitramfsTools,
            Framework::DracutSystemd,
            Framework::DracutScript,
        ];
        let mut number = 0;
        while number < all.len() {
            all[number].framework = frameworks[number % 3];
            if number >= 3 {
                all[number].suite = Suite::Trixie;
            }
            number += 1;
        }
        all
    };

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|flavour| flavour.name() == name)
    }

    /// What it is called on command lines and in the cache.
    pub fn name(self) -> &'static str {
        use Framework::{DracutScript, DracutSystemd, InitramfsTools};
        match (self.suite, self.framework) {
            (Suite::Bookworm, InitramfsTools) => "debian12",
            (Suite::Bookworm, DracutSystemd) => "debian12-dracut",
            (Suite::Bookworm, DracutScript) => "debian12-dracut-script",
            (Suite::Trixie, InitramfsTools) => "debian13",
            (Suite::Trixie, DracutSystemd) => "debian13-dracut",
            (Suite::Trixie, DracutScript) => "debian13-dracut-script",
        }
    }

    /// What it is called in a table for users.
    pub fn title(self) -> &'static str {
        use Framework::{DracutScript, DracutSystemd, InitramfsTools};
        match (self.suite, self.framework) {
            (Suite::Bookworm, InitramfsTools) => "Debian 12, initramfs-tools 0.142",
            (Suite::Bookworm, DracutSystemd) => "Debian 12, dracut 059",
            (Suite::Bookworm, DracutScript) => "Debian 12, dracut 059 without systemd",
            (Suite::Trixie, InitramfsTools) => "Debian 13, initramfs-tools 0.148",
            (Suite::Trixie, DracutSystemd) => "Debian 13, dracut 106",
            (Suite::Trixie, DracutScript) => "Debian 13, dracut 106 without systemd",
        }
    }

    /// The flavour whose guest this one is made from: both kinds of dracut have the same packages.
    pub fn image(self) -> Self {
        let framework = match self.framework {
            Framework::DracutScript => Framework::DracutSystemd,
            other => other,
        };
        Self { framework, ..self }
    }

    /// Whether its initramfs comes from dracut.
    pub fn is_dracut(self) -> bool {
        self.framework != Framework::InitramfsTools
    }

    /// What the console shows where a machine without latchkey asks for the passphrase.
    pub const fn native_prompt(self) -> &'static str {
        match self.framework {
            Framework::InitramfsTools => ASKPASS_PROMPT,
            Framework::DracutSystemd => SYSTEMD_PROMPT,
            Framework::DracutScript => CRYPTSETUP_PROMPT,
        }
    }

    /// What the console shows while the agent asks for the passphrase.
    pub const fn prompt(self) -> &'static str {
        match self.framework {
            Framework::InitramfsTools | Framework::DracutScript => ASKPASS_PROMPT,
            Framework::DracutSystemd => SYSTEMD_PROMPT,
        }
    }

    /// What the console shows when the initramfs begins to look for the root, or the last thing before.
    pub fn looks_for_root(self) -> &'static str {
        match self.framework {
            Framework::InitramfsTools => "Begin: Running /scripts/local-top",
            Framework::DracutSystemd => "dracut initqueue hook",
            Framework::DracutScript => "dracut: ",
        }
    }

    /// What the console shows where the initramfs has given up on the root and leaves the machine to people.
    pub fn emergency(self) -> &'static str {
        match self.framework {
            Framework::InitramfsTools => "(initramfs)",
            Framework::DracutSystemd => "Entering emergency mode",
            Framework::DracutScript => "Dropping to debug shell",
        }
    }

    /// Shell lines that make a running guest, as it comes from the cache, a machine of this flavour; none of them
    /// builds its initramfs.
    pub fn settle(self) -> &'static str {
        match self.framework {
            // An emulated processor takes a minute more for Debian's compression level.
            Framework::InitramfsTools => "echo COMPRESSLEVEL=1 > /etc/initramfs-tools/conf.d/rig",
            // The guest has its settings already.
            Framework::DracutSystemd => ":",
            Framework::DracutScript => WITHOUT_SYSTEMD,
        }
    }

    /// The command that builds the initramfs of the running kernel.
    pub fn rebuild(self) -> &'static str {
        match self.framework {
            Framework::InitramfsTools => "update-initramfs -u",
            Framework::DracutSystemd | Framework::DracutScript => {
                "dracut --force /boot/initrd.img-$(uname -r) $(uname -r)"
            }
        }
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

const ASKPASS_PROMPT: &str = "Please unlock disk vda2_crypt:";
const SYSTEMD_PROMPT: &str = "Please enter passphrase for disk vda2_crypt";
const CRYPTSETUP_PROMPT: &str = "Enter passphrase for /dev/vda2: ";

/// Every module of either version that needs systemd as the initramfs' first program, or that brings it in.
const WITHOUT_SYSTEMD: &str = r#"cat > /etc/dracut.conf.d/script.conf <<'CONF'
omit_dracutmodules+=" systemd systemd-initrd dracut-systemd systemd-cryptsetup systemd-ask-password "
omit_dracutmodules+=" systemd-udevd systemd-journald systemd-tmpfiles systemd-sysusers "
CONF"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::MAPPING;

    #[test]
    fn every_flavour_is_found_by_its_name() {
        for flavour in Flavour::ALL {
            assert_eq!(Flavour::named(flavour.name()), Some(flavour));
        }
        assert_eq!(Flavour::named("debian11"), None);
    }

    #[test]
    fn prompts_name_the_mapping() {
        assert!(ASKPASS_PROMPT.contains(MAPPING) && SYSTEMD_PROMPT.contains(MAPPING));
    }
}
