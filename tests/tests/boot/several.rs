//! Eight volumes in one boot, with one request.

use std::time::Duration;

use latchkey_tests::machine::Machine;
use latchkey_tests::stage::{Failure, Outcome, Scenario, Stage, ensure};

use crate::data_disks::{Bound, DataDisk, holds};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "eight volumes open in one boot with one request",
    play: eight,
}];

const LIMIT: Duration = Duration::from_secs(300);
/// What the seven may cost beyond root, which a boot with root alone waits for too; by the guest's clock.
const SEVEN_MORE: Duration = Duration::from_secs(2);
const ROOT: &str = "vda2_crypt";
const ASKING: &str = "latchkey: asking the key server";

fn eight(stage: &Stage) -> Outcome {
    stage.needs_initramfs_tools("The volumes are made in a guest of initramfs-tools.")?;
    let disks: Vec<_> = (1..8).map(data_disk).collect();
    let bound = Bound::all(stage, stage.plain_disk()?, &disks)?;
    let mut machine = Machine::start(&bound.machine(stage, "eight"))?;
    let root = opened(&mut machine, ROOT)?;
    let mut last = root;
    for disk in &disks {
        last = last.max(opened(&mut machine, &disk.name)?);
    }
    machine.up()?;
    for disk in &disks {
        holds(&mut machine, &disk.name)?;
    }
    ensure(machine.console.count(ASKING) <= 1, || {
        "there was more than one request".to_owned()
    })?;
    println!("       seven more were open {:?} after root", last - root);
    ensure(last - root <= SEVEN_MORE, || {
        format!("seven more were open {:?} after root", last - root)
    })
}

/// When a volume was open, by the guest's clock.
fn opened(machine: &mut Machine, name: &str) -> Result<Duration, Failure> {
    let text = format!("'{name}' was opened automatically");
    let sighting = machine.expect_beside(&text, LIMIT)?;
    Ok(sighting.guest.ok_or("the guest told no time")?)
}

fn data_disk(number: usize) -> DataDisk {
    DataDisk {
        name: format!("data{number}"),
        make: "printf %s \"$PASSPHRASE\" | cryptsetup luksFormat --batch-mode --type luks2 --pbkdf pbkdf2 \\\n\
               --pbkdf-force-iterations 1000 --key-file - $DISK\n\
               printf %s \"$PASSPHRASE\" | cryptsetup open --key-file - $DISK $NAME",
        bind: "--options luks,initramfs --key-file /run/rig/passphrase",
        bare: false,
    }
}
