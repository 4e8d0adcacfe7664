//! Whether another program is about to configure the network. Two on one card would get into each other's way, so
//! ours lets the other go first; what it sets up is then used as it is.
//!
//! klibc's `ipconfig`, which initramfs-tools' own scripts (dropbear's, for instance) run in the background, is waited for
//! only for a while, and so is dracut that was told to bring the network up: its scripts take an address that they did
//! not set themselves for a failure. Where root lies on the network dracut is waited for without end: root would go with
//! what ours takes away.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::ip_parameter::words;

/// ipconfig gives up its first attempts after about this time; a card without an address then is ours.
const PATIENCE: Duration = Duration::from_secs(10);
/// dracut's scripts configure a card as soon as it is there, and give DHCP up after this time; counted in ticks.
const PATIENCE_WITH_DRACUT: Duration = Duration::from_secs(55);
/// How often to look while it is awaited: a process that ends makes no event.
pub const AGAIN: Duration = Duration::from_millis(250);

/// Watches for the other program, from its making on.
#[derive(Debug)]
pub struct Contender {
    root: PathBuf,
    dracut: Dracut,
    began: Instant,
}

/// What dracut does with the network in this boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dracut {
    /// Nothing, or there is no dracut.
    Nothing,
    /// It was told to bring it up.
    BringsItUp,
    /// It brings it up for a root that lies on it.
    NeedsIt,
}

impl Contender {
    /// Begins to be patient.
    pub fn new(root: &Path, dracut: Dracut) -> Self {
        Self {
            root: root.into(),
            dracut,
            began: Instant::now(),
        }
    }

    /// Whether to wait for `ipconfig` now.
    pub fn is_expected(&self) -> bool {
        self.began.elapsed() < PATIENCE && (self.runs() || self.will_run())
    }

    /// Whether cards without an address are dracut's now.
    pub fn is_left_to_dracut(&self) -> bool {
        match self.dracut {
            Dracut::Nothing => false,
            Dracut::BringsItUp => self.began.elapsed() < PATIENCE_WITH_DRACUT,
            Dracut::NeedsIt => true,
        }
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

impl Dracut {
    /// As its words in `cmdline` say (dracut.cmdline(7)), if the image below `root` has what does it.
    pub fn of(root: &Path, cmdline: &str) -> Self {
        let has = |path: &str| root.join(path).exists();
        let begins = |with: &[&str]| {
            words(cmdline).any(|word| with.iter().any(|begin| word.starts_with(begin)))
        };
        // Its module "network" has this file, whichever program it uses.
        let has_network = has("lib/net-lib.sh");
        if has_network && begins(&ROOT_ON_NETWORK) {
            return Self::NeedsIt;
        }
        let is_needed = || {
            let neednet = |word: &&str| *word == "rd.neednet" || word.starts_with("rd.neednet=");
            let last = words(cmdline).filter(neednet).last();
            last.is_some_and(|word| {
                !matches!(word, "rd.neednet=0" | "rd.neednet=no" | "rd.neednet=off")
            })
        };
        let by_networkd = || {
            has("lib/dracut-lib.sh") && has("usr/lib/systemd/systemd-networkd") && begins(&["ip="])
        };
        if has_network && (is_needed() || begins(&["bond=", "bridge=", "vlan="])) || by_networkd() {
            Self::BringsItUp
        } else {
            Self::Nothing
        }
    }
}

/// How words begin by which dracut needs the network for root, without being told so by `rd.neednet`.
const ROOT_ON_NETWORK: [&str; 14] = [
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
];

#[cfg(test)]
mod tests {
    use super::Dracut::{BringsItUp, NeedsIt, Nothing};
    use super::*;

    #[test]
    fn dracut_is_left_alone_where_it_was_told_and_can() {
        let legacy = &["lib/dracut-lib.sh", "lib/net-lib.sh"][..];
        let networkd = &["lib/dracut-lib.sh", "usr/lib/systemd/systemd-networkd"][..];
        for (files, cmdline, expected) in [
            (legacy, "root=/dev/vda1 rd.neednet=1 ip=dhcp", BringsItUp),
            (legacy, "rd.neednet", BringsItUp),
            (legacy, "rd.neednet=1 rd.neednet=0", Nothing),
            (legacy, "root=/dev/vda1 -- rd.neednet=1", Nothing),
            (legacy, "ip=dhcp", Nothing),
            (legacy, "netroot=iscsi:192.0.2.1::::iqn.x", NeedsIt),
            (legacy, "bond=bond0:eth0,eth1 ip=bond0:dhcp", BringsItUp),
            (networkd, "ip=dhcp", BringsItUp),
            (networkd, "quiet", Nothing),
            (&[], "rd.neednet=1 ip=dhcp bond=bond0", Nothing),
            (&["lib/dracut-lib.sh"], "rd.neednet=1 ip=dhcp", Nothing),
        ] {
            let root = tempfile::tempdir().unwrap();
            for path in files {
                let path = root.path().join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, "").unwrap();
            }
            assert_eq!(
                Dracut::of(root.path(), cmdline),
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
            let mut contender = Contender::new(root.path(), Nothing);
            assert_eq!(contender.is_expected(), expected, "{case}");
            contender.began -= PATIENCE;
            assert!(!contender.is_expected(), "{case}: not for ever");
        }
    }
}
