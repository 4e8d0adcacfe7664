//! Machines with data disks beside root: made, bound in the guest, and looked at.

use std::fs::File;
use std::path::PathBuf;

use latchkey_tests::bound::PORT;
use latchkey_tests::guest::{DEVICE, PASSPHRASE};
use latchkey_tests::keyserver::KeyServer;
use latchkey_tests::layout::Layout;
use latchkey_tests::machine::{Disk, Machine, Spec};
use latchkey_tests::stage::{Failure, Outcome, Stage, ensure};

/// Shell lines that make a volume and leave it open; `$DISK`, `$NAME` and `$PASSPHRASE` are set.
pub const LUKS2: &str = "\
    printf %s \"$PASSPHRASE\" | cryptsetup luksFormat --batch-mode --type luks2 --pbkdf pbkdf2 \\\n\
    --pbkdf-force-iterations 1000 --key-file - $DISK\n\
    printf %s \"$PASSPHRASE\" | cryptsetup open --key-file - $DISK $NAME";
/// LUKS1.
pub const OLD: &str = "\
    printf %s \"$PASSPHRASE\" | cryptsetup luksFormat --batch-mode --type luks1 \\\n\
    --pbkdf-force-iterations 1000 --key-file - $DISK\n\
    printf %s \"$PASSPHRASE\" | cryptsetup open --key-file - $DISK $NAME";
/// LUKS2 with integrity protection.
pub const TAGGED: &str = "\
    printf %s \"$PASSPHRASE\" | cryptsetup luksFormat --batch-mode --type luks2 --integrity hmac-sha256 \\\n\
    --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file - $DISK\n\
    printf %s \"$PASSPHRASE\" | cryptsetup open --key-file - $DISK $NAME";
/// Plain dm-crypt by a passphrase.
pub const WORDS: &str = "\
    printf '%s\\n' \"$PASSPHRASE\" | cryptsetup open --type plain --cipher twofish-xts-plain64 \\\n\
    --hash sha512 --key-size 512 --offset 2048 --skip 16 $DISK $NAME";
/// What crypttab says of [`WORDS`].
pub const WORDS_OPTIONS: &str =
    "plain,cipher=twofish-xts-plain64,hash=sha512,size=512,offset=2048,skip=16";
/// Plain dm-crypt by a raw key, which is in `/root/volume.key`.
pub const KEYED: &str = "\
    head -c 64 /dev/urandom > /root/volume.key\n\
    cryptsetup open --type plain --cipher aes-xts-plain64 --hash plain --key-size 512 \\\n\
    --key-file /root/volume.key $DISK $NAME";
/// What crypttab says of [`KEYED`].
pub const KEYED_OPTIONS: &str = "plain,cipher=aes-xts-plain64,hash=plain,size=512";

/// LUKS2 with its header on a disk of its own, which comes after six others.
pub const APART: &str = "\
    printf %s \"$PASSPHRASE\" | cryptsetup luksFormat --batch-mode --type luks2 --pbkdf pbkdf2 \\\n\
    --pbkdf-force-iterations 1000 --key-file - --header /dev/disk/by-id/virtio-data6 $DISK\n\
    printf %s \"$PASSPHRASE\" | cryptsetup open --key-file - --header /dev/disk/by-id/virtio-data6 $DISK $NAME";
/// What crypttab says of [`APART`].
pub const APART_OPTIONS: &str = "luks,header=/dev/disk/by-id/virtio-data6";

/// How `bind` and `recovery-key` get the passphrase.
pub const BY_PASSPHRASE: &str = "--key-file /run/rig/passphrase";

/// A volume that is made on a disk of its own.
pub struct DataDisk {
    /// The mapping's.
    pub name: String,
    /// As [`LUKS2`].
    pub make: &'static str,
    /// How it is bound.
    pub bind: String,
    /// Whether `bind` must not change the beginning of the disk: there is no header that it could write to.
    pub bare: bool,
}

/// A machine whose data disks are bound, and its root if it is encrypted.
pub struct Bound {
    pub root: Disk,
    pub data: Vec<PathBuf>,
    pub server: KeyServer,
    /// What `bind` said of root, or the rebuilding of the initramfs if root is not encrypted.
    pub said: String,
}

impl Bound {
    /// Makes the volumes in a guest with `root`, and binds them all; `spare` names empty disks that come after theirs.
    /// The initramfs is built anew at the end.
    pub fn all(
        stage: &Stage,
        root: Disk,
        disks: &[DataDisk],
        spare: &[&str],
    ) -> Result<Self, Failure> {
        let names = disks.iter().map(|disk| &*disk.name);
        let data = images(stage, names.chain(spare.iter().copied()))?;
        let (mut server, archive) = stage.own_installation()?;
        server.start(PORT)?;
        let mut bound = Self {
            root,
            data,
            server,
            said: String::new(),
        };
        let mut machine = stage.joined(
            &bound.machine(stage, "bind").payload(&archive),
            &bound.server,
        )?;
        machine.check(&format!("printf %s '{PASSPHRASE}' > /run/rig/passphrase"))?;
        for (number, disk) in disks.iter().enumerate() {
            let said = machine.check(&making(number, disk))?;
            ensure(
                said.contains("this line was added to /etc/crypttab"),
                || said.clone(),
            )?;
        }
        let (last, volumes) = match stage.layout() {
            Layout::Clear => (stage.flavour().rebuild().to_owned(), disks.len()),
            _ => (
                format!("latchkey bind {DEVICE} --key-file /run/rig/passphrase"),
                disks.len() + 1,
            ),
        };
        bound.said = machine.check(&format!(
            "exec 2>&1; {last}; status=$?\n\
             rm /run/rig/passphrase; exit $status"
        ))?;
        let listed = machine.check("latchkey list; cat /etc/crypttab")?;
        ensure(
            listed.matches("bound to").count() == volumes && !listed.contains('!'),
            || listed.clone(),
        )?;
        machine.power_off()?;
        Ok(bound)
    }

    /// The machine with all of its disks; `boot` names its logs.
    pub fn machine(&self, stage: &Stage, boot: &str) -> Spec {
        with_disks(stage.machine(&self.root, boot), &self.data)
    }
}

/// Empty disks, in the scenario's folder.
pub fn images<'a>(
    stage: &Stage,
    names: impl Iterator<Item = &'a str>,
) -> Result<Vec<PathBuf>, Failure> {
    let image = |name| {
        let path = stage.folder().join(format!("{name}.raw"));
        File::create(&path)?.set_len(32 << 20)?;
        Ok(path)
    };
    names.map(image).collect()
}

/// The machine with `disks`, in this order.
pub fn with_disks<'a>(spec: Spec, disks: impl IntoIterator<Item = &'a PathBuf>) -> Spec {
    disks
        .into_iter()
        .fold(spec, |spec, disk| spec.data_disk(disk))
}

/// Shell lines that make a volume on disk `number`, leave it open, and write what [`holds`] looks for.
pub fn filling(number: usize, name: &str, make: &str) -> String {
    format!(
        "set -e\n\
         PASSPHRASE='{PASSPHRASE}' DISK=/dev/disk/by-id/virtio-data{number} NAME={name}\n\
         {make}\n\
         mkfs.ext4 -q /dev/mapper/{name}\n\
         mount /dev/mapper/{name} /mnt\n\
         echo 'this is {name}' > /mnt/file\n\
         umount /mnt\n"
    )
}

/// Makes the volume, writes to it, and binds it.
fn making(number: usize, disk: &DataDisk) -> String {
    let DataDisk {
        name, make, bind, ..
    } = disk;
    let untouched = if disk.bare { 4 } else { 0 };
    format!(
        "exec 2>&1\n\
         {}\
         dd if=$DISK bs=1M count={untouched} status=none | sha256sum > /run/rig/before\n\
         latchkey bind $DISK --name {name} {bind} --no-initramfs\n\
         dd if=$DISK bs=1M count={untouched} status=none | sha256sum | cmp - /run/rig/before",
        filling(number, name, make)
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
