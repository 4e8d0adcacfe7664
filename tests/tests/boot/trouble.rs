//! Disks that are broken, fail, are slow, were copied or go away, beside others that are well.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use latchkey_tests::bound::PORT;
use latchkey_tests::guest::PASSPHRASE;
use latchkey_tests::machine::{Machine, Spec};
use latchkey_tests::stage::{Failure, Outcome, Stage, ensure};
use latchkey_tests::tool;
use serde_json::Value;
use tempfile::NamedTempFile;

use crate::data_disks::{Bound, DataDisk, holds, with_disks};
use crate::several::{LIMIT, ROOT, opened};

/// Which of the data disks; the first is 1.
pub const BROKEN: usize = 1;
pub const TWICE: usize = 2;
pub const READ_ONLY: usize = 3;
const BAD_HEADER: usize = 4;
const BAD_KEYSLOT: usize = 5;
const BAD_DATA: usize = 6;
const SLOW: usize = 7;

const SECTOR: u64 = 512;
/// A sector of the second copy of the header, where udev looks for no file system: without reading it would not know the UUID.
const SECOND_COPY: u64 = 40;
/// The byte at which cryptsetup lets the data begin.
const DATA: u64 = 16 << 20;

/// Rows D3, D6 and D7: a keyslot that was overwritten, a disk that cannot be written to, one that is there twice.
pub fn broken(stage: &Stage, bound: &Bound, disks: &[DataDisk]) -> Outcome {
    break_keyslot(&bound.data[BROKEN - 1])?;
    let copy = stage.folder().join("copy.raw");
    fs::copy(&bound.data[TWICE - 1], &copy)?;
    let mut machine = Machine::start(&with_trouble(stage, bound, &copy))?;
    for name in [ROOT, "data3", "data4", "data5", "data6", "data7"] {
        opened(&mut machine, name)?;
    }
    machine.expect_beside("'data1' is not opened automatically", LIMIT)?;
    machine.expect_beside("is on more than one device: /dev/vd", LIMIT)?;
    // Both have 'nofail': the boot goes on without them, and nobody is asked.
    machine.up()?;
    for (number, name) in [(BROKEN, "data1"), (TWICE, "data2")] {
        machine.check(&format!(
            "set -e
             [ ! -e /dev/mapper/{name} ]
             printf %s '{PASSPHRASE}' | # no udev runs here
                 DM_DISABLE_UDEV=1 cryptsetup open --key-file - /dev/disk/by-id/virtio-data{} {name}",
            number - 1
        ))?;
    }
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

/// Rows D5 and M1: disks that cannot read a part of a header, a keyslot or the data, one that takes half a second for each read,
/// and a keyslot that needs more memory than there is beside the one that opens.
pub fn faulty(stage: &Stage, bound: &Bound) -> Outcome {
    let disk = |number: usize| &bound.data[number - 1];
    add_keyslot_of(disk(SLOW), 1 << 20)?;
    let mut spec = stage.machine(&bound.root, "faulty").memory_mib(512);
    for number in 1..=bound.data.len() {
        let sector = match number {
            BAD_HEADER => Some(SECOND_COPY),
            BAD_KEYSLOT => Some(bound_keyslot(disk(number))? / SECTOR),
            BAD_DATA => Some(DATA / SECTOR),
            _ => None,
        };
        let mut options = match sector {
            Some(sector) => failing_at(disk(number), sector),
            None => plain(disk(number)),
        };
        if number == SLOW {
            options += ",throttling.iops-total=2";
        }
        spec = with_drive(spec, number, &options);
    }
    let mut machine = Machine::start(&spec)?;
    for name in [ROOT, "data2", "data3", "data4", "data6", "data7"] {
        opened(&mut machine, name)?;
    }
    machine.expect_beside("'data5' is not opened automatically: failed to read", LIMIT)?;
    machine.answer("Please unlock disk data1", PASSPHRASE)?;
    machine.up()?;
    for name in ["data1", "data2", "data3", "data4", "data5", "data7"] {
        holds(&mut machine, name)?;
    }
    machine.power_off()?;
    Ok(())
}

/// Row D8: a disk that is pulled out when its header was read and nobody has answered yet. And what is told of a keyslot that
/// needs too much memory (M1), while nothing is open: afterwards nobody is told any more.
pub fn removed(stage: &Stage, bound: &mut Bound) -> Outcome {
    bound.server.stop()?;
    let mut spec = stage.machine(&bound.root, "removed").memory_mib(512);
    for (number, disk) in (1..).zip(&bound.data) {
        spec = with_drive(spec, number, &plain(disk));
    }
    let mut machine = Machine::start(&spec)?;
    machine.expect(stage.prompt(), LIMIT)?;
    machine.expect_beside("no key server answers", LIMIT)?;
    machine.expect_beside("needs 1024 MiB of memory, this machine has 4", LIMIT)?;
    machine.unplug(&device(TWICE))?;
    bound.server.start(PORT)?;
    for name in [ROOT, "data3", "data4", "data5", "data6", "data7"] {
        opened(&mut machine, name)?;
    }
    machine.expect_beside("'data2' is not opened automatically: failed to", LIMIT)?;
    // One is broken and the other not there, and neither is needed.
    machine.up()?;
    ensure(machine.console.count("'data2' was opened") == 0, || {
        "a disk was opened that is not there".to_owned()
    })
}

/// As data disk `number`, given by what `-drive` says of its content.
fn with_drive(spec: Spec, number: usize, options: &str) -> Spec {
    let id = device(number);
    spec.qemu(&[
        "-drive",
        &format!("if=none,id=drive-{id},cache=unsafe,{options}"),
        "-device",
        &format!("virtio-blk-pci,id={id},drive=drive-{id},serial={id}"),
    ])
}

fn device(number: usize) -> String {
    format!("data{}", number - 1)
}

fn plain(disk: &Path) -> String {
    format!(
        "driver=raw,file.driver=file,file.filename={}",
        disk.display()
    )
}

/// A disk that reports an error for each read of `sector` (QEMU's blkdebug).
fn failing_at(disk: &Path, sector: u64) -> String {
    let image = disk.display();
    format!(
        "driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename={image},\
         file.inject-error.0.event=none,file.inject-error.0.iotype=read,file.inject-error.0.errno=5,\
         file.inject-error.0.once=off,file.inject-error.0.sector={sector}"
    )
}

/// Adds a keyslot of another passphrase whose key derivation takes so many KiB of memory.
fn add_keyslot_of(disk: &Path, memory: u32) -> Outcome {
    let old = passphrase_file(PASSPHRASE)?;
    let new = passphrase_file("another one")?;
    let mut add = Command::new("cryptsetup");
    add.args(["luksAddKey", "--batch-mode", "--pbkdf", "argon2id"]);
    add.args(["--pbkdf-memory", &memory.to_string()]);
    add.args(["--pbkdf-force-iterations", "4", "--pbkdf-parallel", "1"]);
    add.arg("--key-file").arg(old.path()).arg(disk);
    tool::run(add.arg(new.path()))?;
    Ok(())
}

fn passphrase_file(passphrase: &str) -> Result<NamedTempFile, Failure> {
    let mut file = NamedTempFile::new()?;
    file.write_all(passphrase.as_bytes())?;
    Ok(file)
}

/// Overwrites the beginning of the bound keyslot's area. The header is as it was.
fn break_keyslot(disk: &Path) -> Outcome {
    let offset = bound_keyslot(disk)?;
    let file = File::options().write(true).open(disk)?;
    Ok(file.write_all_at(&[0; 4096], offset)?)
}

/// The byte at which the area of the bound keyslot begins.
fn bound_keyslot(disk: &Path) -> Result<u64, Failure> {
    let mut dump = Command::new("cryptsetup");
    let json = tool::run(dump.args(["luksDump", "--dump-json-metadata"]).arg(disk))?;
    let json: Value = serde_json::from_slice(&json)?;
    let slot = json["tokens"]["0"]["keyslots"][0]
        .as_str()
        .ok_or("the volume is not bound")?;
    let offset = json["keyslots"][slot]["area"]["offset"]
        .as_str()
        .ok_or("the keyslot has no area")?;
    Ok(offset.parse()?)
}
