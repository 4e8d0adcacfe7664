//! Every kind of volume beside each other: a LUKS1 root, plain dm-crypt by passphrase and by key, headers that are detached, in
//! a file and on a disk, and one with integrity protection.

use std::time::Duration;

use latchkey_tests::attack::StolenDisk;
use latchkey_tests::guest::PASSPHRASE;
use latchkey_tests::layout::Layout;
use latchkey_tests::machine::Machine;
use latchkey_tests::stage::{Failure, Outcome, Scenario, Stage, ensure};

use crate::data_disks::{
    APART, APART_OPTIONS, BY_PASSPHRASE, Bound, DataDisk, KEYED, KEYED_OPTIONS, OLD, TAGGED, WORDS,
    WORDS_OPTIONS, holds,
};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "a LUKS1 root, LUKS1, two plain volumes, two detached headers and integrity open by themselves; K6 of exchanged disks \
           none is mapped",
    play: all_kinds,
}];

pub const LONGER: &[Scenario] = &[Scenario {
    name: "LUKS1, two plain volumes, two detached headers and integrity open in the running system; root is not encrypted",
    play: in_the_running_system,
}];

const LIMIT: Duration = Duration::from_secs(300);

/// `options` of crypttab say where they open.
fn data_disks(options: &str) -> [DataDisk; 6] {
    // Nobody can type a raw key.
    let no_hurry = if options.contains("nofail") {
        ""
    } else {
        ",nofail"
    };
    [
        DataDisk {
            name: "words".to_owned(),
            make: WORDS,
            bind: format!("--options {WORDS_OPTIONS},{options} {BY_PASSPHRASE}"),
            bare: true,
        },
        DataDisk {
            name: "keyed".to_owned(),
            make: KEYED,
            bind: format!(
                "--options {KEYED_OPTIONS},{options}{no_hurry} --volume-key-file /root/volume.key"
            ),
            bare: true,
        },
        DataDisk {
            name: "headless".to_owned(),
            make: "\
                printf %s \"$PASSPHRASE\" | cryptsetup luksFormat --batch-mode --type luks2 --pbkdf pbkdf2 \\\n\
                --pbkdf-force-iterations 1000 --key-file - --header /etc/headless.header $DISK\n\
                printf %s \"$PASSPHRASE\" | cryptsetup open --key-file - --header /etc/headless.header $DISK $NAME",
            bind: format!("--options luks,header=/etc/headless.header,{options} {BY_PASSPHRASE}"),
            bare: true,
        },
        DataDisk {
            name: "tagged".to_owned(),
            make: TAGGED,
            bind: format!("--options luks,{options} {BY_PASSPHRASE}"),
            bare: false,
        },
        DataDisk {
            name: "old".to_owned(),
            make: OLD,
            bind: format!("--options luks,{options} {BY_PASSPHRASE}"),
            bare: false,
        },
        DataDisk {
            name: "apart".to_owned(),
            make: APART,
            bind: format!("--options {APART_OPTIONS},{options} {BY_PASSPHRASE}"),
            bare: true,
        },
    ]
}

pub fn all_kinds(stage: &Stage) -> Outcome {
    let disks = data_disks(stage.flavour().framework.crypttab_word());
    let root = StolenDisk::copy_of(&stage.plain_disk()?, stage.folder())?;
    root.put_luks1_header()?;
    let mut kinds = Bound::all(stage, root.put_back(), &disks, &["header"])?;
    ensure(kinds.said.contains("LUKS1"), || kinds.said.clone())?;

    let mut machine = Machine::start(&kinds.machine(stage, "by themselves"))?;
    for name in [
        "vda2_crypt",
        "words",
        "keyed",
        "headless",
        "tagged",
        "old",
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
    for name in ["vda2_crypt", "headless", "tagged", "old", "apart"] {
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
    // The prompt names whichever volume was looked at first; what is typed is tried on all.
    let prompt = stage.prompt().split("vda2_crypt").next();
    machine.answer(prompt.unwrap_or_default(), PASSPHRASE)?;
    for name in ["vda2_crypt", "words", "headless", "tagged", "old", "apart"] {
        machine.expect_beside(&format!("'{name}' was opened by a typed passphrase"), LIMIT)?;
    }
    ensure(machine.console.count("'keyed' was opened") == 0, || {
        "a volume of a raw key was opened by a passphrase".to_owned()
    })
}

/// A machine of which nothing but data is encrypted, with an initramfs that has the agent: it has nothing to do there.
fn in_the_running_system(stage: &Stage) -> Outcome {
    let stage = stage.with_layout(Layout::Clear)?;
    let disks = data_disks("_netdev,nofail");
    let kinds = Bound::all(&stage, stage.plain_disk()?, &disks, &["header"])?;
    let mut machine = Machine::start(&kinds.machine(&stage, "by themselves").systemd())?;
    stage.note(machine.up()?);
    for disk in &disks {
        opens(&mut machine, &disk.name)?;
        holds(&mut machine, &disk.name)?;
    }
    machine.power_off()?;
    let audit = kinds.server.admin(&["audit", "--kind", "opened"])?;
    ensure(audit.contains("as the policy allows"), || audit.clone())
}

/// The volume's unit says that it was opened by the key server.
fn opens(machine: &mut Machine, name: &str) -> Outcome {
    let said = machine.check_within(
        &format!(
            "for second in $(seq 240); do
                 said=$(systemctl show --value --property StatusText latchkey@{name}.service)
                 case $said in open*) break ;; esac
                 sleep 1
             done
             echo \"$said\""
        ),
        LIMIT,
    )?;
    ensure(said.contains("open: key server"), || {
        format!("systemctl status of '{name}' says '{said}'")
    })
}

/// The exchanged disks, byte by byte.
fn contents(kinds: &Bound) -> Result<[Vec<u8>; 2], Failure> {
    Ok([
        std::fs::read(&kinds.data[0])?,
        std::fs::read(&kinds.data[1])?,
    ])
}
