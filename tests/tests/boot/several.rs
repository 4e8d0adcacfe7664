//! Eight volumes in one boot, with one request.

use std::time::Duration;

use latchkey_tests::bound::PORT;
use latchkey_tests::machine::Machine;
use latchkey_tests::stage::{Failure, Outcome, Scenario, Stage, ensure};

use crate::data_disks::{Bound, DataDisk, holds};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "eight volumes open in one boot with one request",
    play: eight,
}];

const LIMIT: Duration = Duration::from_secs(300);
/// What the seven beside root may cost, by the guest's clock.
const SEVEN_MORE: Duration = Duration::from_secs(2);
const ROOT: &str = "vda2_crypt";
const ASKING: &str = "latchkey: asking the key server";

fn eight(stage: &Stage) -> Outcome {
    stage.needs_initramfs_tools("The volumes are made in a guest of initramfs-tools.")?;
    let disks: Vec<_> = (1..8).map(data_disk).collect();
    let bound = Bound::all(stage, stage.plain_disk()?, &disks)?;

    let mut machine = Machine::start(&bound.machine(stage, "eight"))?;
    let mut last = Duration::ZERO;
    for name in disks.iter().map(|disk| &*disk.name).chain([ROOT]) {
        last = last.max(opened(&mut machine, name)?);
    }
    let asked = asking(&mut machine)?;
    machine.up()?;
    for disk in &disks {
        holds(&mut machine, &disk.name)?;
    }
    ensure(machine.console.count(ASKING) == 1, || {
        format!("asked {} times", machine.console.count(ASKING))
    })?;
    machine.power_off()?;
    drop(bound);

    let mut server = stage.key_server()?;
    server.start(PORT)?;
    let mut machine = Machine::start(&stage.machine(&stage.bound_disk()?, "one"))?;
    let alone = opened(&mut machine, ROOT)? - asking(&mut machine)?;
    let together = last - asked;
    println!("       from the request: eight after {together:?}, one after {alone:?}");
    ensure(together <= alone + SEVEN_MORE, || {
        format!("eight were open after {together:?}, one alone after {alone:?}")
    })
}

/// When a volume was open, by the guest's clock.
fn opened(machine: &mut Machine, name: &str) -> Result<Duration, Failure> {
    let text = format!("'{name}' was opened automatically");
    let sighting = machine.expect_beside(&text, LIMIT)?;
    Ok(sighting.guest.ok_or("the guest told no time")?)
}

fn asking(machine: &mut Machine) -> Result<Duration, Failure> {
    let sighting = machine.console.first(ASKING);
    Ok(sighting
        .and_then(|sighting| sighting.guest)
        .ok_or("the guest told no time")?)
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
