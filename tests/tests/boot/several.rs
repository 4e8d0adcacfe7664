//! Eight volumes in one boot, with one request; and what one of them cannot do to the others.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use latchkey_tests::guest::PASSPHRASE;
use latchkey_tests::machine::{Machine, Spec};
use latchkey_tests::stage::{Failure, Outcome, Scenario, Stage, ensure};
use latchkey_tests::tool;
use serde_json::Value;

use crate::data_disks::{BY_PASSPHRASE, Bound, DataDisk, LUKS2, holds, with_disks};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "D4 eight volumes open in one boot with one request; D3, D6, D7 one that is broken, read-only or there twice holds up no other",
    play: eight,
}];

const LIMIT: Duration = Duration::from_secs(300);
/// What the seven may take beyond root, as a multiple of what cryptsetup takes for them one after the other. How many seconds
/// that is tells only a machine that is not emulated.
const MORE_THAN_NATIVE: f64 = 1.5;
const ROOT: &str = "vda2_crypt";

const BROKEN: usize = 1;
const TWICE: usize = 2;
const READ_ONLY: usize = 3;

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
    // The answers come in one, so there are as many as there were requests.
    let answers = machine.check("dmesg | grep -c 'latchkey: the key server answered'")?;
    ensure(answers.trim() == "1", || {
        format!("the key server answered {} times", answers.trim())
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
    troubled(stage, &bound, &disks)
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

fn troubled(stage: &Stage, bound: &Bound, disks: &[DataDisk]) -> Outcome {
    break_keyslot(&bound.data[BROKEN - 1])?;
    let copy = stage.folder().join("copy.raw");
    fs::copy(&bound.data[TWICE - 1], &copy)?;
    let mut machine = Machine::start(&with_trouble(stage, bound, &copy))?;
    for name in [ROOT, "data3", "data4", "data5", "data6", "data7"] {
        opened(&mut machine, name)?;
    }
    machine.expect_beside("'data1' is not opened automatically", LIMIT)?;
    machine.expect_beside("is on more than one device: /dev/vd", LIMIT)?;
    // Both are left to people, as they were before latchkey.
    for name in ["data1", "data2"] {
        machine.answer(&format!("Please unlock disk {name}"), PASSPHRASE)?;
    }
    machine.up()?;
    for disk in disks {
        holds(&mut machine, &disk.name)?;
    }
    let read_only = machine.check("blockdev --getro /dev/mapper/data3 /dev/mapper/data4")?;
    ensure(read_only.trim() == "1\n0", || {
        format!("of a read-only and a writable disk the mappings are: {read_only}")
    })
}

/// The machine with one disk more, a copy, and with another one that cannot be written to.
fn with_trouble(stage: &Stage, bound: &Bound, copy: &Path) -> Spec {
    let mut disks: Vec<_> = bound.data.iter().collect();
    let read_only = disks.remove(READ_ONLY - 1);
    let spec = with_disks(stage.machine(&bound.root, "troubled"), disks);
    let drive = |id: &str, file: &Path, more: &str| {
        format!("file={},format=raw,if=none,id={id}{more}", file.display())
    };
    spec.qemu(&[
        "-drive",
        &drive("copy", copy, ""),
        "-device",
        "virtio-blk-pci,drive=copy",
        "-drive",
        &drive("fixed", read_only, ",readonly=on"),
        "-device",
        "virtio-blk-pci,drive=fixed",
    ])
}

/// Overwrites the beginning of the bound keyslot's area. The header is as it was.
fn break_keyslot(disk: &Path) -> Outcome {
    let mut dump = Command::new("cryptsetup");
    let json = tool::run(dump.args(["luksDump", "--dump-json-metadata"]).arg(disk))?;
    let json: Value = serde_json::from_slice(&json)?;
    let slot = json["tokens"]["0"]["keyslots"][0]
        .as_str()
        .ok_or("the volume is not bound")?;
    let offset = json["keyslots"][slot]["area"]["offset"]
        .as_str()
        .ok_or("the keyslot has no area")?;
    let file = File::options().write(true).open(disk)?;
    Ok(file.write_all_at(&[0; 4096], offset.parse()?)?)
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
        make: LUKS2,
        bind: match number {
            BROKEN | TWICE => format!("--options luks,initramfs,nofail {BY_PASSPHRASE}"),
            READ_ONLY => format!("--options luks,initramfs,readonly {BY_PASSPHRASE}"),
            _ => format!("--options luks,initramfs {BY_PASSPHRASE}"),
        },
        bare: false,
    }
}
