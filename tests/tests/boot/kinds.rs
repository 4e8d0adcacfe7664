//! Every kind of volume beside each other: a LUKS1 root, plain dm-crypt by passphrase and by key, a detached header.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use latchkey_tests::attack::StolenDisk;
use latchkey_tests::bound::{self, PORT};
use latchkey_tests::guest::{DEVICE, PASSPHRASE};
use latchkey_tests::keyserver::KeyServer;
use latchkey_tests::machine::{Disk, Machine, Spec};
use latchkey_tests::stage::{Failure, Outcome, Scenario, Stage, ensure};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "a LUKS1 root, two plain volumes and a detached header open by themselves; of exchanged disks none is mapped",
    play: all_kinds,
}];

const LIMIT: Duration = Duration::from_secs(300);

/// The data disks: the mapping's name, shell lines that make it and leave it open, and how it is bound.
const DISKS: [(&str, &str, &str); 3] = [
    (
        "words",
        "printf '%s\\n' \"$PASSPHRASE\" | cryptsetup open --type plain --cipher twofish-xts-plain64 \\\n\
         --hash sha512 --key-size 512 --offset 2048 --skip 16 $DISK words",
        "--options plain,cipher=twofish-xts-plain64,hash=sha512,size=512,offset=2048,skip=16,initramfs \
         --key-file /run/rig/passphrase",
    ),
    (
        "keyed",
        "head -c 64 /dev/urandom > /root/volume.key\n\
         cryptsetup open --type plain --cipher aes-xts-plain64 --hash plain --key-size 512 \\\n\
         --key-file /root/volume.key $DISK keyed",
        "--options plain,cipher=aes-xts-plain64,hash=plain,size=512,initramfs,nofail \
         --volume-key-file /root/volume.key",
    ),
    (
        "headless",
        "printf %s \"$PASSPHRASE\" | cryptsetup luksFormat --batch-mode --type luks2 --pbkdf pbkdf2 \\\n\
         --pbkdf-force-iterations 1000 --key-file - --header /etc/headless.header $DISK\n\
         printf %s \"$PASSPHRASE\" | cryptsetup open --key-file - --header /etc/headless.header $DISK headless",
        "--options luks,header=/etc/headless.header,initramfs --key-file /run/rig/passphrase",
    ),
];

struct Kinds {
    disk: Disk,
    data: Vec<PathBuf>,
    server: KeyServer,
}

pub fn all_kinds(stage: &Stage) -> Outcome {
    stage.needs_initramfs_tools("The volumes are made in a guest of initramfs-tools.")?;
    let mut kinds = bind_all(stage)?;
    let spec = |boot: &str, kinds: &Kinds| {
        let spec = stage.machine(&kinds.disk, boot);
        kinds
            .data
            .iter()
            .fold(spec, |spec, disk| spec.data_disk(disk))
    };

    let mut machine = Machine::start(&spec("by themselves", &kinds))?;
    for name in ["vda2_crypt", "words", "keyed", "headless"] {
        machine.expect_beside(&format!("'{name}' was opened automatically"), LIMIT)?;
    }
    stage.note(machine.up()?);
    for (name, ..) in DISKS {
        holds(&mut machine, name)?;
    }
    machine.power_off()?;

    // The right key on the wrong disk is noise, and noise must not be written to.
    kinds.data.swap(0, 1);
    let before = contents(&kinds)?;
    let mut machine = Machine::start(&spec("exchanged", &kinds))?;
    for name in ["words", "keyed"] {
        machine.expect_beside(&format!("'{name}' is not opened automatically"), LIMIT)?;
    }
    machine.expect_beside("what it holds is no file system", LIMIT)?;
    for name in ["vda2_crypt", "headless"] {
        machine.expect_beside(&format!("'{name}' was opened automatically"), LIMIT)?;
    }
    for name in ["words", "keyed"] {
        ensure(
            machine.console.count(&format!("'{name}' was opened")) == 0,
            || format!("'{name}' was mapped on another one's disk"),
        )?;
    }
    drop(machine);
    ensure(contents(&kinds)? == before, || {
        "the exchanged disks were written to".to_owned()
    })?;
    kinds.data.swap(0, 1);

    kinds.server.stop()?;
    let mut machine = Machine::start(&spec("by passphrase", &kinds))?;
    machine.answer(stage.prompt(), PASSPHRASE)?;
    for name in ["vda2_crypt", "words", "headless"] {
        machine.expect_beside(&format!("'{name}' was opened by a typed passphrase"), LIMIT)?;
    }
    ensure(machine.console.count("'keyed' was opened") == 0, || {
        "a volume of a raw key was opened by a passphrase".to_owned()
    })
}

/// Makes the volumes in a guest whose root was given a LUKS1 header, and binds them all.
fn bind_all(stage: &Stage) -> Result<Kinds, Failure> {
    let root = StolenDisk::copy_of(&stage.plain_disk()?, stage.folder())?;
    root.put_luks1_header()?;
    let disk = root.put_back()?;
    let data: Vec<PathBuf> = DISKS
        .iter()
        .map(|(name, ..)| stage.folder().join(format!("{name}.raw")))
        .collect();
    for path in &data {
        File::create(path)?.set_len(32 << 20)?;
    }
    let (mut server, archive) = stage.own_installation()?;
    server.start(PORT)?;
    let spec: Spec = stage.machine(&disk, "bind").systemd().payload(&archive);
    let spec = data.iter().fold(spec, |spec, disk| spec.data_disk(disk));
    let mut machine = Machine::start(&spec)?;
    machine.answer(stage.native_prompt(), PASSPHRASE)?;
    machine.up()?;
    bound::install_and_join(&mut machine, &server, stage.flavour())?;
    machine.check(&format!("printf %s '{PASSPHRASE}' > /run/rig/passphrase"))?;
    for (number, (name, make, options)) in DISKS.iter().enumerate() {
        let said = machine.check(&format!(
            "set -e\n\
             exec 2>&1\n\
             PASSPHRASE='{PASSPHRASE}' DISK=/dev/disk/by-id/virtio-data{number}\n\
             {make}\n\
             mkfs.ext4 -q /dev/mapper/{name}\n\
             mount /dev/mapper/{name} /mnt\n\
             echo 'this is {name}' > /mnt/file\n\
             umount /mnt\n\
             dd if=$DISK bs=1M count=4 status=none | sha256sum > /run/rig/before\n\
             latchkey bind $DISK --name {name} {options} --no-initramfs\n\
             dd if=$DISK bs=1M count=4 status=none | sha256sum | cmp - /run/rig/before"
        ))?;
        ensure(
            said.contains("this line was added to /etc/crypttab"),
            || said.clone(),
        )?;
    }
    let said = machine.check(&format!(
        "exec 2>&1; latchkey bind {DEVICE} --key-file /run/rig/passphrase; status=$?\n\
         rm /run/rig/passphrase; exit $status"
    ))?;
    ensure(said.contains("LUKS1"), || said.clone())?;
    let listed =
        machine.check("latchkey list; cat /etc/crypttab; ls -l /etc/latchkey/envelopes")?;
    ensure(
        listed.matches("bound to").count() == 4 && !listed.contains('!'),
        || listed.clone(),
    )?;
    machine.power_off()?;
    Ok(Kinds { disk, data, server })
}

/// The exchanged disks, byte by byte.
fn contents(kinds: &Kinds) -> Result<[Vec<u8>; 2], Failure> {
    Ok([
        std::fs::read(&kinds.data[0])?,
        std::fs::read(&kinds.data[1])?,
    ])
}

/// What was written before the volume was bound is there.
fn holds(machine: &mut Machine, name: &str) -> Outcome {
    let found = machine.check(&format!(
        "mount -r /dev/mapper/{name} /mnt && cat /mnt/file; umount /mnt"
    ))?;
    ensure(found.contains(&format!("this is {name}")), || {
        format!("'{name}' holds: {found}")
    })
}
