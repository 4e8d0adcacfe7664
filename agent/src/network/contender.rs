//! Whether another program is about to configure the network. Two on one card would get into each other's way, so
//! ours lets the other go first; what it sets up is then used as it is.
//!
//! klibc's `ipconfig`, which initramfs-tools' own scripts (dropbear's, for instance) run in the background, is waited for
//! only for a while. dracut that was told to bring the network up is waited for without end: its scripts take an
//! address that they did not set themselves for a failure, and a root on the network goes with what ours takes away.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

/// ipconfig gives up its first attempts after about this time; a card without an address then is ours.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often to look while it is awaited: a process that ends makes no event.
pub const AGAIN: Duration = Duration::from_millis(250);

/// Watches for the other program, from its making on.
#[derive(Debug)]
pub struct Contender {
    root: PathBuf,
    until: Instant,
}

impl Contender {
    /// Begins to be patient.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.into(),
            until: Instant::now() + PATIENCE,
        }
    }

    /// Whether to wait for it now.
    pub fn is_expected(&self) -> bool {
        Instant::now() < self.until && (self.runs() || self.will_run())
    }

    fn runs(&self) -> bool {
        let Ok(processes) = std::fs::read_dir(self.root.join("proc")) else {
            return false;
        };
        let mut names = processes
            .flatten()
            .filter_map(|process| std::fs::read(process.path().join("comm")).ok());
        names.any(|name| name == b"ipconfig\n")
    }

    /// dropbear's boot script starts it, and it leaves a file for each card that it configured.
    fn will_run(&self) -> bool {
        let is_result = |name: &str| name.starts_with("net-") && name.ends_with(".conf");
        let results = std::fs::read_dir(self.root.join("run"))
            .into_iter()
            .flatten()
            .flatten();
        self.root.join("scripts/init-premount/dropbear").exists()
            && !results
                .map(|entry| entry.file_name())
                .any(|name| is_result(&name.to_string_lossy()))
    }
}

/// Whether dracut brings the network up in this boot, as its words in `cmdline` say (dracut.cmdline(7)), and the image below
/// `root` has what does it.
pub fn dracut_will(root: &Path, cmdline: &str) -> bool {
    let has = |path: &str| root.join(path).exists();
    let words = || {
        cmdline
            .split_ascii_whitespace()
            .take_while(|word| *word != "--")
    };
    // Its module "network" has this file, whichever program it uses.
    if has("lib/net-lib.sh") && words().any(is_network_disk) {
        return true;
    }
    let is_on = |word: &str| !matches!(word, "rd.neednet=0" | "rd.neednet=no" | "rd.neednet=off");
    let is_needed = words()
        .filter(|word| *word == "rd.neednet" || word.starts_with("rd.neednet="))
        .last()
        .is_some_and(is_on);
    let by_networkd =
        || has("usr/lib/systemd/systemd-networkd") && words().any(|word| word.starts_with("ip="));
    has("lib/dracut-lib.sh") && (has("lib/net-lib.sh") && is_needed || by_networkd())
}

/// A word by which dracut needs the network, or builds an interface, without being told so by `rd.neednet`.
fn is_network_disk(word: &str) -> bool {
    const BEGINS: [&str; 17] = [
        "netroot=",
        "root=iscsi:",
        "root=nbd:",
        "root=nfs:",
        "root=nfs4:",
        "root=/dev/nfs",
        "root=cifs:",
        "root=dhcp",
        "ip=ibft",
        "rd.iscsi.",
        "iscsi_",
        "rd.nvmf.",
        "nbdroot=",
        "nfsroot=",
        "bond=",
        "bridge=",
        "vlan=",
    ];
    BEGINS.iter().any(|begin| word.starts_with(begin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dracut_is_left_alone_where_it_was_told_and_can() {
        let legacy = &["lib/dracut-lib.sh", "lib/net-lib.sh"][..];
        let networkd = &["lib/dracut-lib.sh", "usr/lib/systemd/systemd-networkd"][..];
        for (files, cmdline, expected) in [
            (legacy, "root=/dev/vda1 rd.neednet=1 ip=dhcp", true),
            (legacy, "rd.neednet", true),
            (legacy, "rd.neednet=1 rd.neednet=0", false),
            (legacy, "root=/dev/vda1 -- rd.neednet=1", false),
            (legacy, "ip=dhcp", false),
            (legacy, "netroot=iscsi:192.0.2.1::::iqn.x", true),
            (legacy, "bond=bond0:eth0,eth1 ip=bond0:dhcp", true),
            (networkd, "ip=dhcp", true),
            (networkd, "quiet", false),
            (&[], "rd.neednet=1 ip=dhcp bond=bond0", false),
            (&["lib/dracut-lib.sh"], "rd.neednet=1 ip=dhcp", false),
        ] {
            let root = tempfile::tempdir().unwrap();
            for path in files {
                let path = root.path().join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, "").unwrap();
            }
            assert_eq!(
                dracut_will(root.path(), cmdline),
                expected,
                "{files:?}: {cmdline}"
            );
        }
    }

    #[test]
    fn it_is_expected_while_it_runs_or_will_run() {
        for (case, files, expected) in [
            ("nothing", &[][..], false),
            ("other programs", &[("proc/7/comm", "dropbear\n")], false),
            ("it runs", &[("proc/7/comm", "ipconfig\n")], true),
            (
                "dropbear is there",
                &[("scripts/init-premount/dropbear", "")],
                true,
            ),
            (
                "it has finished",
                &[
                    ("scripts/init-premount/dropbear", ""),
                    ("run/net-eth0.conf", ""),
                ],
                false,
            ),
        ] {
            let root = tempfile::tempdir().unwrap();
            for (path, text) in files {
                let path = root.path().join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            let mut contender = Contender::new(root.path());
            assert_eq!(contender.is_expected(), expected, "{case}");
            contender.until = Instant::now();
            assert!(!contender.is_expected(), "{case}: not for ever");
        }
    }
}
