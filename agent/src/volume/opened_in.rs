//! Where a volume is opened: in the initramfs, or in the running system by `latchkey@.service`.
//!
//! crypttab says it. A line with `_netdev` and `nofail` is of a volume that needs the network and that the boot can do
//! without: the running system's. `initramfs` and `x-initrd.attach` ask for the initramfs, and what root or `/usr` lies on
//! is opened there whatever its line says.

use std::path::Path;

use latchkey_protocol::wire::OpenedBy;
use serde::Serialize;

use super::crypttab::{Entry, Options};
use super::stack;

/// Where a volume is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OpenedIn {
    /// The initramfs, with the boot key.
    Initramfs,
    /// The running system, with the host key.
    RunningSystem,
}

impl OpenedIn {
    /// Of a line of crypttab, on the machine below `root`.
    pub fn of(entry: &Entry, root: &Path) -> Self {
        let is_early = || {
            ["/", "/usr"].into_iter().any(|mount_point| {
                stack::lies_partly_on(root, Path::new(mount_point), &entry.name).unwrap_or(false)
            })
        };
        if is_for_running_system(&entry.options) && !is_early() {
            Self::RunningSystem
        } else {
            Self::Initramfs
        }
    }

    /// Which key will ask, on the machine below `root`. Where it cannot be told whether root is encrypted, it is not.
    pub fn key(self, root: &Path) -> OpenedBy {
        let is_encrypted = stack::is_encrypted(root, Path::new("/")).unwrap_or(false);
        match (self, is_encrypted) {
            (Self::Initramfs, true) => OpenedBy::BootKey,
            (Self::Initramfs, false) => OpenedBy::ExposedBootKey,
            (Self::RunningSystem, true) => OpenedBy::HostKey,
            (Self::RunningSystem, false) => OpenedBy::ExposedHostKey,
        }
    }
}

/// Whether the options ask for the running system.
fn is_for_running_system(options: &Options) -> bool {
    options.netdev && options.nofail && !options.initramfs && !options.initrd_attach
}

#[cfg(test)]
mod tests {
    use super::super::crypttab;
    use super::super::stack::tests::{LUKS, machine};
    use super::*;

    /// Number, kernel name, dm name, dm uuid, slaves.
    type Device = (
        &'static str,
        &'static str,
        &'static str,
        &'static str,
        &'static [&'static str],
    );

    #[test]
    fn the_options_say_where() {
        let root = tempfile::tempdir().unwrap();
        for (options, expected) in [
            ("luks,_netdev,nofail", OpenedIn::RunningSystem),
            ("_netdev,nofail,noauto", OpenedIn::RunningSystem),
            ("luks", OpenedIn::Initramfs),
            ("luks,nofail", OpenedIn::Initramfs),
            ("luks,_netdev", OpenedIn::Initramfs),
            ("luks,_netdev,nofail,initramfs", OpenedIn::Initramfs),
            ("luks,_netdev,nofail,x-initrd.attach", OpenedIn::Initramfs),
        ] {
            let line = format!("data /dev/vdb none {options}");
            let entry = crypttab::parse(&line).remove(0).unwrap();
            assert_eq!(OpenedIn::of(&entry, root.path()), expected, "{options}");
        }
    }

    #[test]
    fn a_host_key_on_a_root_that_is_not_known_to_be_encrypted_is_exposed() {
        use OpenedBy::{BootKey, ExposedBootKey, ExposedHostKey, HostKey};
        let on = |number| {
            let devices: [Device; 2] = [
                ("254:3", "vda3", "", "", &[]),
                ("253:0", "dm-0", "root_crypt", LUKS, &["vda3"]),
            ];
            let table = format!("31 1 {number} / / rw - ext4 /dev/root rw\n");
            machine(&devices, &table)
        };
        for (root, early, late) in [
            (on("253:0"), BootKey, HostKey),
            (on("254:3"), ExposedBootKey, ExposedHostKey),
            (tempfile::tempdir().unwrap(), ExposedBootKey, ExposedHostKey),
        ] {
            assert_eq!(OpenedIn::Initramfs.key(root.path()), early);
            assert_eq!(OpenedIn::RunningSystem.key(root.path()), late);
        }
    }
}
