//! Roots that btrfs or md RAID1 puts together from two LUKS volumes, both of them bound.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use latchkey_tests::bound::{self, PORT};
use latchkey_tests::guest::{MAPPING, PASSPHRASE};
use latchkey_tests::keyserver::KeyServer;
use latchkey_tests::machine::{Disk, Machine, Spec};
use latchkey_tests::stage::{Failure, Outcome, Scenario, Stage, ensure};

use crate::data_disks::{LUKS2, with_disks};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a root on btrfs over two volumes opens by itself, by one passphrase, and when a person opens one of them",
        play: btrfs,
    },
    Scenario {
        name: "a root on md RAID1 over two volumes opens by itself, and by one passphrase",
        play: mirror,
    },
];

const LIMIT: Duration = Duration::from_secs(300);
/// An emulated processor encrypts the whole root twice.
const MOVES: Duration = Duration::from_secs(1200);
const PAIR: [&str; 2] = ["first", "second"];
/// The first and the second.
const DISKS: [&str; 2] = [
    "/dev/disk/by-id/virtio-data0",
    "/dev/disk/by-id/virtio-data1",
];
/// UUID of the file system on both.
const ROOT: &str = "5f0c6c1e-9a51-4f67-9c0b-1a7c8e000012";

/// Shell lines that put a file system of the UUID `$ROOT` over the two mappings and mount it at /mnt.
const BTRFS: &str = "\
    modprobe btrfs
    mkfs.btrfs -q -U $ROOT /dev/mapper/first /dev/mapper/second
    mount /dev/mapper/first /mnt";
const MIRROR: &str = "\
    modprobe raid1
    mdadm --create /dev/md0 --run --quiet --level 1 --metadata 1.2 --bitmap none --assume-clean \\
        --raid-devices 2 /dev/mapper/first /dev/mapper/second
    mkfs.ext4 -q -U $ROOT /dev/md0
    mount /dev/md0 /mnt
    mdadm --detail --scan >> /etc/mdadm/mdadm.conf";

/// The running system moves there, as one does by hand who moves a server to a pair of disks.
const MOVE: &str = "\
    cp -ax /. /mnt
    for place in boot dev proc sys; do mount --rbind /$place /mnt/$place; done
    echo \"UUID=$ROOT / auto defaults 0 0\" > /mnt/etc/fstab
    grep ' /boot ' /etc/fstab >> /mnt/etc/fstab
    uuid() { cryptsetup luksUUID /dev/disk/by-id/virtio-data$1; }
    echo \"first UUID=$(uuid 0) none luks\" > /mnt/etc/crypttab
    echo \"second UUID=$(uuid 1) none luks\" >> /mnt/etc/crypttab
    chroot /mnt update-initramfs -u
    sync";

fn btrfs(stage: &Stage) -> Outcome {
    let mut pair = Pair::bound(stage, BTRFS)?;
    pair.opens_by_itself("btrfs")?;
    let mut machine = pair.opens_by_a_passphrase("btrfs")?;
    machine.check(&format!(
        "cryptsetup token remove --token-id 0 {}",
        DISKS[1]
    ))?;
    machine.power_off()?;

    pair.server.start(PORT)?;
    let mut machine = Machine::start(&pair.spec("one by a person"))?;
    machine.expect_beside("'first' was opened automatically", LIMIT)?;
    machine.answer(&stage.prompt().replace(MAPPING, "second"), PASSPHRASE)?;
    machine.up()?;
    lies_on_both(&mut machine, "btrfs")?;
    machine.power_off()?;
    Ok(())
}

fn mirror(stage: &Stage) -> Outcome {
    let mut pair = Pair::bound(stage, MIRROR)?;
    pair.opens_by_itself("ext4")?;
    pair.opens_by_a_passphrase("ext4")?.power_off()?;
    Ok(())
}

/// A machine with its root over two volumes, and the key server that both are bound to.
struct Pair<'a> {
    stage: &'a Stage,
    guest: Stage,
    disk: Disk,
    halves: Vec<PathBuf>,
    server: KeyServer,
}

impl<'a> Pair<'a> {
    /// `join` is how the two volumes become one file system.
    fn bound(stage: &'a Stage, join: &str) -> Result<Self, Failure> {
        stage.needs_initramfs_tools("The volumes are made in a guest of initramfs-tools.")?;
        let guest = stage.with_packages("pairs", &["btrfs-progs", "mdadm"])?;
        let (mut server, archive) = guest.own_installation()?;
        server.start(PORT)?;
        let disk = guest.plain_disk()?;
        let halves = PAIR.map(|name| guest.folder().join(format!("{name}.raw")));
        for half in &halves {
            File::create(half)?.set_len(2 << 30)?;
        }
        let pair = Self {
            stage,
            guest,
            disk,
            halves: halves.to_vec(),
            server,
        };

        let usual = pair.guest.machine(&pair.disk, "move").systemd();
        let mut machine = Machine::start(&with_disks(usual, &pair.halves))?;
        pair.guest.first_boot(&mut machine)?;
        machine.check_within(
            &format!(
                "set -e
                 exec 2>&1
                 ROOT={ROOT} PASSPHRASE='{PASSPHRASE}'
                 DISK={} NAME=first
                 {LUKS2}
                 DISK={} NAME=second
                 {LUKS2}
                 {join}
                 {MOVE}",
                DISKS[0], DISKS[1]
            ),
            MOVES,
        )?;
        machine.power_off()?;

        let mut machine = Machine::start(&pair.spec("bind").systemd().payload(&archive))?;
        for name in PAIR {
            let prompt = stage.native_prompt().replace(MAPPING, name);
            machine.answer(&prompt, PASSPHRASE)?;
        }
        machine.up()?;
        bound::install_and_join(&mut machine, &pair.server, stage.flavour())?;
        let said = machine.check(&format!(
            "set -e
             exec 2>&1
             printf %s '{PASSPHRASE}' | latchkey bind {} --key-file - --no-initramfs
             printf %s '{PASSPHRASE}' | latchkey bind {} --key-file -",
            DISKS[0], DISKS[1]
        ))?;
        ensure(!said.contains("root does not lie on"), || said.clone())?;
        machine.power_off()?;
        Ok(pair)
    }

    /// The machine with its new root; `boot` names its logs.
    fn spec(&self, boot: &str) -> Spec {
        let spec = self.guest.machine(&self.disk, boot);
        with_disks(spec, &self.halves).kernel_line(&format!("root=UUID={ROOT}"))
    }

    fn opens_by_itself(&self, file_system: &str) -> Outcome {
        let mut machine = Machine::start(&self.spec("key server"))?;
        for name in PAIR {
            machine.expect_beside(&format!("'{name}' was opened automatically"), LIMIT)?;
        }
        self.stage.note(machine.up()?);
        lies_on_both(&mut machine, file_system)?;
        machine.power_off()?;
        Ok(())
    }

    /// Without the key server, what is typed once opens both. Returns the machine, which is up.
    fn opens_by_a_passphrase(&mut self, file_system: &str) -> Result<Machine, Failure> {
        self.server.stop()?;
        let mut machine = Machine::start(&self.spec("passphrase"))?;
        let prompt = self.stage.prompt();
        let (prompt, _) = prompt.split_once(MAPPING).unwrap_or((prompt, ""));
        machine.answer(prompt, PASSPHRASE)?;
        for name in PAIR {
            machine.expect_beside(&format!("'{name}' was opened by a typed passphrase"), LIMIT)?;
        }
        machine.up()?;
        lies_on_both(&mut machine, file_system)?;
        Ok(machine)
    }
}

fn lies_on_both(machine: &mut Machine, file_system: &str) -> Outcome {
    let root = machine.check(
        "findmnt -no FSTYPE /
         for device in /sys/fs/btrfs/*-*/devices/* /sys/block/md*/slaves/*; do
             cat \"$device/dm/name\" 2>/dev/null
         done; true",
    )?;
    let found: Vec<&str> = root.split_whitespace().collect();
    ensure(found == [file_system, "first", "second"], || root.clone())
}
