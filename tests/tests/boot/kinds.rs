//! Every kind of volume beside each other: a LUKS1 root, plain dm-crypt by passphrase and by key, headers that are detached, in
//! a file and on a disk, and one with integrity protection.

use std::time::Duration;

use latchkey_tests::attack::StolenDisk;
use latchkey_tests::guest::PASSPHRASE;
use latchkey_tests::machine::Machine;
use latchkey_tests::stage::{Failure, Outcome, Scenario, Stage, ensure};

use crate::data_disks::{
    BY_PASSPHRASE, Bound, DataDisk, KEYED, KEYED_OPTIONS, WORDS, WORDS_OPTIONS, holds,
};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "a LUKS1 root, two plain volumes, two detached headers and integrity open by themselves; K6 of exchanged disks none is \
           mapped",
    play: all_kinds,
}];

const LIMIT: Duration = Duration::from_secs(300);

fn data_disks() -> [DataDisk; 5] {
    [
        DataDisk {
            name: "words".to_owned(),
            make: WORDS,
            bind: format!("--options {WORDS_OPTIONS},initramfs {BY_PASSPHRASE}"),
            bare: true,
        },
        DataDisk {
            name: "keyed".to_owned(),
            make: KEYED,
            bind: format!(
                "--options {KEYED_OPTIONS},initramfs,nofail --volume-key-file /root/volume.key"
            ),
            bare: true,
        },
        DataDisk {
            name: "headless".to_owned(),
            make: "\
                printf %s \"$PASSPHRASE\" | cryptsetup luksFormat --batch-mode --type luks2 --pbkdf pbkdf2 \\\n\
                --pbkdf-force-iterations 1000 --key-file - --header /etc/headless.header $DISK\n\
                printf %s \"$PASSPHRASE\" | cryptsetup open --key-file - --header /etc/headless.header $DISK $NAME",
            bind: format!("--options luks,header=/etc/headless.header,initramfs {BY_PASSPHRASE}"),
            bare: true,
        },
        DataDisk {
            name: "tagged".to_owned(),
            make: "\
                printf %s \"$PASSPHRASE\" | cryptsetup luksFormat --batch-mode --type luks2 --integrity hmac-sha256 \\\n\
                --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file - $DISK\n\
                printf %s \"$PASSPHRASE\" | cryptsetup open --key-file - $DISK $NAME",
            bind: format!("--options luks,initramfs {BY_PASSPHRASE}"),
            bare: false,
        },
        DataDisk {
            name: "apart".to_owned(),
            make: "\
                printf %s \"$PASSPHRASE\" | cryptsetup luksFormat --batch-mode --type luks2 --pbkdf pbkdf2 \\\n\
                --pbkdf-force-iterations 1000 --key-file - --header /dev/disk/by-id/virtio-data5 $DISK\n\
                printf %s \"$PASSPHRASE\" | cryptsetup open --key-file - --header /dev/disk/by-id/virtio-data5 $DISK $NAME",
            bind: format!(
                "--options luks,header=/dev/disk/by-id/virtio-data5,initramfs {BY_PASSPHRASE}"
            ),
            bare: true,
        },
    ]
}

pub fn all_kinds(stage: &Stage) -> Outcome {
    stage.needs_initramfs_tools("The volumes are made in a guest of initramfs-tools.")?;
    let disks = data_disks();
    let root = StolenDisk::copy_of(&stage.plain_disk()?, stage.folder())?;
    root.put_luks1_header()?;
    let mut kinds = Bound::all(stage, root.put_back()?, &disks, &["header"])?;
    ensure(kinds.said.contains("LUKS1"), || kinds.said.clone())?;

    let mut machine = Machine::start(&kinds.machine(stage, "by themselves"))?;
    for name in [
        "vda2_crypt",
        "words",
        "keyed",
        "headless",
        "tagged",
        "apart",
    ] {
        machine.expect_beside(&format!("'{name}' was opened automatically"), LIMIT)?;
    }
    stage.note(machine.up()?);
    for disk in &disks {
        holds(&mut machine, &disk.name)?;
    }
    machine.power_off()?;

    // The right key on the wrong disk is noise, and noise must not be written to.
    kinds.data.swap(0, 1);
    let before = contents(&kinds)?;
    let mut machine = Machine::start(&kinds.machine(stage, "exchanged"))?;
    for name in ["words", "keyed"] {
        machine.expect_beside(&format!("'{name}' is not opened automatically"), LIMIT)?;
    }
    machine.expect_beside("what it holds is no file system", LIMIT)?;
    for name in ["vda2_crypt", "headless", "tagged", "apart"] {
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
    let mut machine = Machine::start(&kinds.machine(stage, "by passphrase"))?;
    machine.answer(stage.prompt(), PASSPHRASE)?;
    for name in ["vda2_crypt", "words", "headless", "tagged", "apart"] {
        machine.expect_beside(&format!("'{name}' was opened by a typed passphrase"), LIMIT)?;
    }
    ensure(machine.console.count("'keyed' was opened") == 0, || {
        "a volume of a raw key was opened by a passphrase".to_owned()
    })
}

/// The exchanged disks, byte by byte.
fn contents(kinds: &Bound) -> Result<[Vec<u8>; 2], Failure> {
    Ok([
        std::fs::read(&kinds.data[0])?,
        std::fs::read(&kinds.data[1])?,
    ])
}
