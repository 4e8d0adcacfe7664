//! Roots of other kinds than one LUKS volume: in plain dm-crypt, with the header elsewhere, and over two volumes.

use std::time::Duration;

use latchkey_tests::bound::PORT;
use latchkey_tests::flavour::Framework;
use latchkey_tests::guest::{DEVICE, MAPPING, PASSPHRASE};
use latchkey_tests::layout::Layout;
use latchkey_tests::machine::{Machine, Spec};
use latchkey_tests::stage::{Outcome, Scenario, Stage, ensure};

use crate::data_disks::{LUKS2, images, with_disks};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a plain root (twofish-xts-plain64, sha512) opens by itself, and by the passphrase",
        play: plain,
    },
    Scenario {
        name: "a root whose header is a file in the image opens by itself, and by the passphrase",
        play: header_in_a_file,
    },
    Scenario {
        name: "a root whose header is on a disk of its own opens by itself, and by the passphrase",
        play: header_on_a_disk,
    },
    Scenario {
        name: "a root on LVM over two volumes opens by itself, and when a person opens one of them",
        play: over_two,
    },
    Scenario {
        name: "a root that is not bound boots by its passphrase: a data volume with LVM that opened by itself is closed, one that is not there holds up nothing",
        play: beside_lvm,
    },
];

const LIMIT: Duration = Duration::from_secs(300);
const OPENED: &str = "'vda2_crypt' was opened automatically";
const TYPED: &str = "'vda2_crypt' was opened by a typed passphrase";

/// How a machine tells what its root is.
const WHAT: &str = "cryptsetup status vda2_crypt; cryptsetup isLuks /dev/vda2 && echo 'a header on the disk'; true";

pub fn plain(stage: &Stage) -> Outcome {
    needs_crypttab(stage)?;
    let plain = stage.with_layout(Layout::Plain)?;
    let disk = plain.bound_disk()?;
    let mut server = plain.key_server()?;
    server.start(PORT)?;
    let mut machine = Machine::start(&plain.bound_machine(&disk, "key server"))?;
    machine.expect(OPENED, LIMIT)?;
    stage.note(machine.up()?);
    let what = machine.check(WHAT)?;
    ensure(
        what.contains("PLAIN") && what.contains("twofish-xts-plain64"),
        || what.clone(),
    )?;
    machine.power_off()?;

    server.stop()?;
    by_passphrase(stage, &plain.bound_machine(&disk, "passphrase"))
}

fn header_in_a_file(stage: &Stage) -> Outcome {
    header_at(stage, "/etc/root.header")
}

fn header_on_a_disk(stage: &Stage) -> Outcome {
    header_at(stage, "/dev/disk/by-id/virtio-data0")
}

/// The header of a usual guest is moved to `place`; then the machine is bound.
fn header_at(stage: &Stage, place: &str) -> Outcome {
    needs_crypttab(stage)?;
    let (mut server, archive) = stage.own_installation()?;
    server.start(PORT)?;
    let disk = stage.plain_disk()?;
    let apart = images(stage, ["header"].into_iter())?;
    let spec = |boot: &str| with_disks(stage.machine(&disk, boot), &apart);
    let early = match stage.flavour().is_dracut() {
        true => ",x-initrd.attach",
        false => "",
    };

    let mut machine = stage.joined(&spec("bind").payload(&archive), &server)?;
    machine.check(&format!(
        "set -e
         exec 2>&1
         cryptsetup luksHeaderBackup {DEVICE} --header-backup-file /run/rig/header
         cat /run/rig/header > {place}
         echo '{MAPPING} PARTUUID=59454b4c-02 none luks,header={place}{early}' > /etc/crypttab
         printf %s '{PASSPHRASE}' | latchkey bind {DEVICE} --key-file -
         dd if=/dev/zero of={DEVICE} bs=1M count=16 conv=fsync status=none"
    ))?;
    machine.power_off()?;

    let mut machine = Machine::start(&spec("key server"))?;
    machine.expect(OPENED, LIMIT)?;
    stage.note(machine.up()?);
    let what = machine.check(WHAT)?;
    ensure(!what.contains("a header on the disk"), || what.clone())?;
    machine.power_off()?;

    server.stop()?;
    by_passphrase(stage, &spec("passphrase"))
}

/// The root's logical volume reaches into a second volume, on another disk.
fn over_two(stage: &Stage) -> Outcome {
    let lvm = stage.with_layout(Layout::Lvm)?;
    let (mut server, archive) = lvm.own_installation()?;
    server.start(PORT)?;
    let disk = lvm.plain_disk()?;
    let second = images(&lvm, ["second"].into_iter())?;
    let spec = |boot: &str| with_disks(lvm.machine(&disk, boot), &second);

    let mut machine = lvm.joined(&spec("bind").payload(&archive), &server)?;
    let said = machine.check(&format!(
        "set -e
         exec 2>&1
         PASSPHRASE='{PASSPHRASE}' DISK=/dev/disk/by-id/virtio-data0 NAME=second
         {LUKS2}
         lvm pvcreate -q /dev/mapper/second
         lvm vgextend -q vg /dev/mapper/second
         lvm lvextend -q -l +100%FREE vg/root /dev/mapper/second
         echo \"second UUID=$(cryptsetup luksUUID $DISK) none luks\" >> /etc/crypttab
         printf %s \"$PASSPHRASE\" | latchkey bind $DISK --key-file - --no-initramfs
         printf %s \"$PASSPHRASE\" | latchkey bind {DEVICE} --key-file -"
    ))?;
    ensure(!said.contains("root does not lie on"), || said.clone())?;
    machine.power_off()?;

    let mut machine = Machine::start(&spec("key server"))?;
    machine.expect_beside(OPENED, LIMIT)?;
    machine.expect_beside("'second' was opened automatically", LIMIT)?;
    stage.note(machine.up()?);
    let below = machine.check("dmsetup deps -o devname vg-root")?;
    ensure(
        below.contains("vda2_crypt") && below.contains("second"),
        || below.clone(),
    )?;
    machine.check("cryptsetup token remove --token-id 0 /dev/disk/by-id/virtio-data0")?;
    machine.power_off()?;

    let mut machine = Machine::start(&spec("one by a person"))?;
    machine.expect_beside(OPENED, LIMIT)?;
    machine.answer(&stage.prompt().replace("vda2_crypt", "second"), PASSPHRASE)?;
    machine.up()?;
    machine.power_off()?;
    Ok(())
}

/// udev activates what is on the data volume as soon as that is open; a person opens root. Then the boot needs a data volume
/// whose disk is gone.
fn beside_lvm(stage: &Stage) -> Outcome {
    stage.needs_initramfs_tools("systemd mounts a root that the agent does not know beside it.")?;
    let lvm = stage.with_layout(Layout::Lvm)?;
    let (mut server, archive) = lvm.own_installation()?;
    server.start(PORT)?;
    let disk = lvm.plain_disk()?;
    let data = images(&lvm, ["data"].into_iter())?;
    let spec = |boot: &str| with_disks(lvm.machine(&disk, boot), &data);

    let mut machine = lvm.joined(&spec("bind").payload(&archive), &server)?;
    let said = machine.check(&format!(
        "set -e
         exec 2>&1
         PASSPHRASE='{PASSPHRASE}' DISK=/dev/disk/by-id/virtio-data0 NAME=data
         {LUKS2}
         lvm vgcreate -q more /dev/mapper/data
         lvm lvcreate -q -l 100%FREE -n files more
         printf %s \"$PASSPHRASE\" | latchkey bind $DISK --name data --key-file - --no-initramfs
         sed -i '/^data /s/,nofail//' /etc/crypttab
         update-initramfs -u"
    ))?;
    ensure(said.contains("luks,initramfs,nofail"), || said.clone())?;
    machine.power_off()?;

    let mut machine = Machine::start(&spec("root by a person"))?;
    machine.expect_beside("'data' was opened automatically", LIMIT)?;
    machine.answer(stage.native_prompt(), PASSPHRASE)?;
    machine.expect_beside("root is not to have 'data'", LIMIT)?;
    stage.note(machine.up()?);
    ensure(machine.console.count("cut off") == 0, || {
        "'data' was still in use".to_owned()
    })?;
    let left = machine.check("ls /dev/mapper")?;
    let names: Vec<&str> = left.split_whitespace().collect();
    ensure(
        names == ["control", "vda2_crypt", "vg-root", "vg-swap"],
        || left.clone(),
    )?;
    machine.power_off()?;

    // The agent waits for the disk for longer than initramfs-tools does.
    let without = lvm.machine(&disk, "without the data volume");
    let mut machine = Machine::start(&without.kernel_line("rootdelay=10"))?;
    stage.note(machine.answer(stage.native_prompt(), PASSPHRASE)?);
    machine.up()?;
    machine.power_off()?;
    Ok(())
}

fn by_passphrase(stage: &Stage, spec: &Spec) -> Outcome {
    let mut machine = Machine::start(spec)?;
    machine.answer(stage.prompt(), PASSPHRASE)?;
    machine.expect(TYPED, LIMIT)?;
    machine.up()?;
    machine.power_off()?;
    Ok(())
}

fn needs_crypttab(stage: &Stage) -> Outcome {
    stage.needs(
        &[Framework::InitramfsTools, Framework::DracutSystemd],
        "dracut's scripts open what has a LUKS header on it: such a machine does not boot without latchkey.",
    )
}
