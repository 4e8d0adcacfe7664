//! A volume group in the LUKS2 volume, as Debian's installer makes it: the root is one of its logical volumes, and the
//! swap that the machine is hibernated to is another.

use std::time::Duration;

use latchkey_tests::bound::PORT;
use latchkey_tests::flavour::Framework;
use latchkey_tests::guest::{LUKS_UUID, MAPPING, PASSPHRASE};
use latchkey_tests::keyserver::KeyServer;
use latchkey_tests::layout::Layout;
use latchkey_tests::machine::Machine;
use latchkey_tests::memory::{self, Search};
use latchkey_tests::stage::{Failure, Outcome, Scenario, Stage, ensure};
use serde_json::Value;

use crate::secrets::{self, BOOT_KEY, VOLUME_KEY};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "root on LVM over LUKS opens by itself, and by passphrase without the key server",
        play: root,
    },
    Scenario {
        name: "a hibernated system comes back from encrypted swap by itself, and by passphrase without the key server",
        play: hibernated,
    },
    Scenario {
        name: "RAM of a hibernated system that comes back while the agent waits for another disk",
        play: hibernated_waiting,
    },
];

const LIMIT: Duration = Duration::from_secs(240);
const OPENED: &str = "'vda2_crypt' was opened automatically";
/// What is used of it is encrypted and decrypted by an emulated processor.
const MEMORY_MIB: u32 = 512;

pub fn root(stage: &Stage) -> Outcome {
    let lvm = stage.with_layout(Layout::Lvm)?;
    let disk = lvm.bound_disk()?;
    let mut server = lvm.key_server()?;
    server.start(PORT)?;
    let mut machine = Machine::start(&lvm.bound_machine(&disk, "key server"))?;
    machine.expect(OPENED, LIMIT)?;
    stage.note(machine.up()?);
    lies_on_the_group(&mut machine)?;
    machine.power_off()?;

    server.stop()?;
    let mut machine = Machine::start(&lvm.bound_machine(&disk, "passphrase"))?;
    machine.answer(stage.prompt(), PASSPHRASE)?;
    machine.up()?;
    lies_on_the_group(&mut machine)?;
    machine.power_off()?;
    Ok(())
}

fn lies_on_the_group(machine: &mut Machine) -> Outcome {
    let devices = machine.check("findmnt -no SOURCE /; lvm lvs --noheadings -o lv_active")?;
    let words: Vec<&str> = devices.split_whitespace().collect();
    ensure(words == ["/dev/mapper/vg-root", "active", "active"], || {
        format!("the root, and the state of both logical volumes: {devices}")
    })
}

pub fn hibernated(stage: &Stage) -> Outcome {
    let lvm = stage.with_layout(Layout::Lvm)?;
    let disk = lvm.bound_disk()?;
    let mut server = lvm.key_server()?;
    server.start(PORT)?;
    let spec = |boot| lvm.bound_machine(&disk, boot).memory_mib(MEMORY_MIB);

    let mut machine = Machine::start(&spec("hibernate"))?;
    machine.expect(OPENED, LIMIT)?;
    machine.up()?;
    machine.check(LEAVE_TRACES)?;
    let traces = machine.check(TRACES)?;
    let releases = released(&server)?;
    machine.hibernate()?;

    let mut machine = Machine::start(&spec("resume"))?;
    machine.expect(OPENED, LIMIT)?;
    stage.note(machine.resumed()?);
    holds(&mut machine, &traces)?;
    let again = released(&server)?;
    ensure(again == releases + 1, || {
        format!("the audit had {releases} releases before the resume and has {again} after it")
    })?;
    let search = Search::of(&secrets::of_bound_machine(&lvm)?);
    clean(&lvm, &mut machine, &search, "of the resumed system")?;
    machine.hibernate()?;

    server.stop()?;
    let mut machine = Machine::start(&spec("passphrase"))?;
    machine.answer(stage.prompt(), PASSPHRASE)?;
    machine.resumed()?;
    holds(&mut machine, &traces)?;
    clean(&lvm, &mut machine, &search, "of the resumed system")?;
    machine.power_off()?;
    Ok(())
}

/// crypttab names a volume that is not there: the agent waits for it, and has its credentials until it is ended.
fn hibernated_waiting(stage: &Stage) -> Outcome {
    let lvm = stage.with_layout(Layout::Lvm)?;
    let disk = lvm.bound_disk()?;
    let mut server = lvm.key_server()?;
    server.start(PORT)?;
    let spec = |boot| lvm.bound_machine(&disk, boot).memory_mib(MEMORY_MIB);

    let mut machine = Machine::start(&spec("hibernate"))?;
    machine.up()?;
    machine.check(LEAVE_TRACES)?;
    let traces = machine.check(TRACES)?;
    machine.hibernate()?;

    let table = format!("{MAPPING} UUID={LUKS_UUID} none luks,discard\n{ABSENT}\n");
    let files = [(crypttab(stage), table.as_bytes())];
    let boot = lvm.bound()?.boot.with_files(lvm.folder(), &files)?;
    let spec = spec("resume").direct(&boot);
    let mut machine = Machine::start(&match stage.flavour().framework {
        // systemd reads the word from the kernel's command line alone.
        Framework::DracutSystemd => spec,
        Framework::InitramfsTools | Framework::DracutScript => spec.resume_from_image(),
    })?;
    machine.expect(OPENED, LIMIT)?;
    let search = Search::of(&secrets::of_bound_machine(&lvm)?);
    let finds = search.finds(&memory::dump(&mut machine, lvm.folder())?);
    ensure(finds.contains_key(BOOT_KEY), || {
        format!("the agent does not wait: in the RAM when it has opened the volume: {finds:?}")
    })?;
    machine.expect(LOADING, LIMIT)?;
    clean(
        &lvm,
        &mut machine,
        &search,
        "when the system is read from swap",
    )?;
    machine.resumed()?;
    holds(&mut machine, &traces)?;
    clean(&lvm, &mut machine, &search, "of the resumed system")?;
    machine.power_off()?;
    Ok(())
}

/// What the kernel says at the begin of an image.
const LOADING: &str = "PM: Image loading progress:   0%";

/// A line of crypttab.
const ABSENT: &str = "late UUID=5f0c6c1e-9a51-4f67-9c0b-1a7c8e0000ff none luks,nofail";

fn crypttab(stage: &Stage) -> &'static str {
    match stage.flavour().framework {
        Framework::InitramfsTools => "cryptroot/crypttab",
        Framework::DracutSystemd | Framework::DracutScript => "etc/crypttab",
    }
}

/// The system is the one that was hibernated.
fn holds(machine: &mut Machine, traces: &str) -> Outcome {
    let found = machine.check(TRACES)?;
    ensure(found == traces, || {
        format!("what the hibernated system had in memory:\n{traces}\nwhat is there now:\n{found}")
    })
}

/// Neither the boot before nor the one that brings the system back has left a secret.
fn clean(lvm: &Stage, machine: &mut Machine, search: &Search, when: &str) -> Outcome {
    let finds = search.finds(&memory::dump(machine, lvm.folder())?);
    ensure(finds.keys().eq([VOLUME_KEY]), || {
        format!("in the RAM {when}, where only the volume key should be: {finds:?}")
    })
}

/// A file and a process that no disk holds.
const LEAVE_TRACES: &str = "set -e
    head -c 16 /dev/urandom | od -An -tx1 > /run/trace
    sleep 1000000 > /dev/null 2>&1 &
    echo $! > /run/process
    swapon /dev/mapper/vg-swap";
const TRACES: &str = "set -e
    cat /proc/sys/kernel/random/boot_id /run/trace /run/process
    tr '\\0' ' ' < /proc/$(cat /run/process)/cmdline";

/// How many releases the audit has.
fn released(server: &KeyServer) -> Result<usize, Failure> {
    let audit = server.admin(&["audit", "--json"])?;
    let entries: Result<Vec<Value>, _> = audit.lines().map(serde_json::from_str).collect();
    let is_release = |entry: &&Value| entry["kind"] == "released";
    Ok(entries?.iter().filter(is_release).count())
}
