//! Eight volumes in one boot, with one request; and what one of them cannot do to the others.

use std::time::Duration;

use latchkey_tests::bound::PORT;
use latchkey_tests::guest::{DEVICE, PASSPHRASE};
use latchkey_tests::machine::Machine;
use latchkey_tests::stage::{Failure, Outcome, Scenario, Stage, ensure};

use crate::data_disks::{
    BY_PASSPHRASE, Bound, DataDisk, LUKS2, filling, holds, images, with_disks,
};
use crate::trouble::{self, BROKEN, READ_ONLY, TWICE};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "D4 eight volumes open in one boot with one request; D3, D5-D8, M1 one that is broken, failing, slow, read-only, \
               there twice or pulled out, or that needs too much memory, holds up no other",
        play: eight,
    },
    Scenario {
        name: "D2 a data volume with nofail opens in the initramfs, also when its disk comes after root; it holds up no boot when it is gone",
        play: gone,
    },
];

pub const LIMIT: Duration = Duration::from_secs(300);
/// What the seven may take beyond root, as a multiple of what cryptsetup takes for them one after the other. How many seconds
/// that is tells only a machine that is not emulated.
const MORE_THAN_NATIVE: f64 = 1.5;
pub const ROOT: &str = "vda2_crypt";

fn eight(stage: &Stage) -> Outcome {
    stage.needs_initramfs_tools("The volumes are made in a guest of initramfs-tools.")?;
    let disks: Vec<_> = (1..8).map(data_disk).collect();
    let mut bound = Bound::all(stage, stage.plain_disk()?, &disks, &[])?;

    // cryptsetup, by which it is measured, waits for a udev that runs.
    let mut machine = Machine::start(
        &bound
            .machine(stage, "eight")
            .systemd()
            .kernel_line("latchkey.debug"),
    )?;
    let root = opened(&mut machine, ROOT)?;
    let mut last = root;
    for disk in &disks {
        last = last.max(opened(&mut machine, &disk.name)?);
    }
    machine.up()?;
    for disk in &disks {
        holds(&mut machine, &disk.name)?;
    }
    // The answers come in one, so there are as many as there were requests.
    let answers = machine.check("dmesg | grep -c 'latchkey: the key server answered'")?;
    ensure(answers.trim() == "1", || {
        format!("the key server answered {} times", answers.trim())
    })?;
    let steps = machine.check("dmesg | grep 'latchkey:'")?;
    print!("{steps}");
    ensure(steps.matches("is mapped").count() == 8, || {
        "latchkey.debug does not tell of the mappings".to_owned()
    })?;
    let native = by_cryptsetup(&mut machine)?;
    machine.power_off()?;
    let ours = last - root;
    println!(
        "       seven more were open {ours:?} after root; cryptsetup takes {native:?} for them"
    );
    ensure(ours <= native.mul_f64(MORE_THAN_NATIVE), || {
        format!("seven more were open {ours:?} after root, cryptsetup takes {native:?}")
    })?;
    trouble::broken(stage, &bound, &disks)?;
    trouble::faulty(stage, &bound)?;
    trouble::removed(stage, &mut bound)
}

/// crypttab names the disk by its path: for that dracut has systemd wait.
fn gone(stage: &Stage) -> Outcome {
    let (mut server, archive) = stage.own_installation()?;
    server.start(PORT)?;
    let disk = stage.plain_disk()?;
    let data = images(stage, ["data"].into_iter())?;
    let spec = |boot: &str| with_disks(stage.machine(&disk, boot), &data);
    let word = stage.flavour().framework.crypttab_word();
    let mut machine = stage.joined(&spec("bind").payload(&archive), &server)?;
    machine.check(&format!(
        "exec 2>&1
         {}
         echo \"data $DISK none luks,{word},nofail\" >> /etc/crypttab
         printf %s \"$PASSPHRASE\" | latchkey bind $DISK --key-file - --no-initramfs
         printf %s \"$PASSPHRASE\" | latchkey bind {DEVICE} --key-file -",
        filling(0, "data", LUKS2)
    ))?;
    machine.power_off()?;

    let mut machine = Machine::start(&spec("both"))?;
    opened(&mut machine, ROOT)?;
    opened(&mut machine, "data")?;
    machine.up()?;
    holds(&mut machine, "data")?;
    machine.power_off()?;

    let mut machine = Machine::start(&stage.machine(&disk, "gone"))?;
    opened(&mut machine, ROOT)?;
    stage.note(machine.up()?);
    machine.power_off()?;

    // Root is there, and may wait ten seconds for the other.
    let late = stage.machine(&disk, "late").late_data_disk(&data[0]);
    let mut machine = Machine::start(&late)?;
    opened(&mut machine, ROOT)?;
    machine.plug_data_disk()?;
    opened(&mut machine, "data")?;
    machine.up()?;
    holds(&mut machine, "data")?;
    machine.power_off()?;
    Ok(())
}

/// How long cryptsetup takes to open the seven with their passphrase, by the guest's clock.
fn by_cryptsetup(machine: &mut Machine) -> Result<Duration, Failure> {
    let took = machine.check(&format!(
        "set -e\n\
         for number in 1 2 3 4 5 6 7; do cryptsetup close data$number; done\n\
         udevadm settle\n\
         read begin _ < /proc/uptime\n\
         for number in 1 2 3 4 5 6 7; do\n\
             printf %s '{PASSPHRASE}' | cryptsetup open --key-file - /dev/disk/by-id/virtio-data$((number - 1)) data$number\n\
         done\n\
         read end _ < /proc/uptime\n\
         echo $begin $end"
    ))?;
    let times: Vec<f64> = took
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    match times[..] {
        [begin, end] => Ok(Duration::from_secs_f64(end - begin)),
        _ => Err(took.into()),
    }
}

/// When a volume was open, by the guest's clock.
pub fn opened(machine: &mut Machine, name: &str) -> Result<Duration, Failure> {
    let text = format!("'{name}' was opened automatically");
    let sighting = machine.expect_beside(&text, LIMIT)?;
    Ok(sighting.guest.ok_or("the guest told no time")?)
}

fn data_disk(number: usize) -> DataDisk {
    DataDisk {
        name: format!("data{number}"),
        make: LUKS2,
        bind: match number {
            BROKEN | TWICE => format!("--options luks,initramfs,nofail {BY_PASSPHRASE}"),
            READ_ONLY => format!("--options luks,initramfs,readonly {BY_PASSPHRASE}"),
            _ => format!("--options luks,initramfs {BY_PASSPHRASE}"),
        },
        bare: false,
    }
}
