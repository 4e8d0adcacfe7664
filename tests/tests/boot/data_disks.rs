//! Machines with data disks beside root: made, bound in the guest, and looked at.

use std::fs::File;
use std::path::PathBuf;

use latchkey_tests::bound::{self, PORT};
use latchkey_tests::guest::{DEVICE, PASSPHRASE};
use latchkey_tests::keyserver::KeyServer;
use latchkey_tests::machine::{Disk, Machine, Spec};
use latchkey_tests::stage::{Failure, Outcome, Stage, ensure};

/// A volume that is made on a disk of its own.
pub struct DataDisk {
    /// The mapping's.
    pub name: String,
    /// Shell lines that make it and leave it open; `$DISK`, `$NAME` and `$PASSPHRASE` are set.
    pub make: &'static str,
    /// How it is bound.
    pub bind: &'static str,
    /// Whether `bind` must not change the beginning of the disk: there is no header that it could write to.
    pub bare: bool,
}

/// A machine whose root and data disks are bound.
pub struct Bound {
    pub root: Disk,
    pub data: Vec<PathBuf>,
    pub server: KeyServer,
    /// What `bind` said of root.
    pub said: String,
}

impl Bound {
    /// Makes the volumes in a guest with `root`, and binds them all.
    pub fn all(stage: &Stage, root: Disk, disks: &[DataDisk]) -> Result<Self, Failure> {
        let data: Vec<PathBuf> = disks
            .iter()
            .map(|disk| stage.folder().join(format!("{}.raw", disk.name)))
            .collect();
        for path in &data {
            File::create(path)?.set_len(32 << 20)?;
        }
        let (mut server, archive) = stage.own_installation()?;
        server.start(PORT)?;
        let mut bound = Self {
            root,
            data,
            server,
            said: String::new(),
        };
        let mut machine =
            Machine::start(&bound.machine(stage, "bind").systemd().payload(&archive))?;
        machine.answer(stage.native_prompt(), PASSPHRASE)?;
        machine.up()?;
        bound::install_and_join(&mut machine, &bound.server, stage.flavour())?;
        machine.check(&format!("printf %s '{PASSPHRASE}' > /run/rig/passphrase"))?;
        for (number, disk) in disks.iter().enumerate() {
            let said = machine.check(&making(number, disk))?;
            ensure(
                said.contains("this line was added to /etc/crypttab"),
                || said.clone(),
            )?;
        }
        bound.said = machine.check(&format!(
            "exec 2>&1; latchkey bind {DEVICE} --key-file /run/rig/passphrase; status=$?\n\
             rm /run/rig/passphrase; exit $status"
        ))?;
        let listed = machine.check("latchkey list; cat /etc/crypttab")?;
        ensure(
            listed.matches("bound to").count() == disks.len() + 1 && !listed.contains('!'),
            || listed.clone(),
        )?;
        machine.power_off()?;
        Ok(bound)
    }

    /// The machine with all of its disks; `boot` names its logs.
    pub fn machine(&self, stage: &Stage, boot: &str) -> Spec {
        let spec = stage.machine(&self.root, boot);
        self.data
            .iter()
            .fold(spec, |spec, disk| spec.data_disk(disk))
    }
}

/// Makes the volume, writes to it, and binds it.
fn making(number: usize, disk: &DataDisk) -> String {
    let DataDisk {
        name, make, bind, ..
    } = disk;
    let untouched = if disk.bare { 4 } else { 0 };
    format!(
        "set -e\n\
         exec 2>&1\n\
         PASSPHRASE='{PASSPHRASE}' DISK=/dev/disk/by-id/virtio-data{number} NAME={name}\n\
         {make}\n\
         mkfs.ext4 -q /dev/mapper/{name}\n\
         mount /dev/mapper/{name} /mnt\n\
         echo 'this is {name}' > /mnt/file\n\
         umount /mnt\n\
         dd if=$DISK bs=1M count={untouched} status=none | sha256sum > /run/rig/before\n\
         latchkey bind $DISK --name {name} {bind} --no-initramfs\n\
         dd if=$DISK bs=1M count={untouched} status=none | sha256sum | cmp - /run/rig/before"
    )
}

/// What was written before the volume was bound is there.
pub fn holds(machine: &mut Machine, name: &str) -> Outcome {
    let found = machine.check(&format!(
        "mount -r /dev/mapper/{name} /mnt && cat /mnt/file; umount /mnt"
    ))?;
    ensure(found.contains(&format!("this is {name}")), || {
        format!("'{name}' holds: {found}")
    })
}
