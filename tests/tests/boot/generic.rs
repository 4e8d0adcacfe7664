//! An image that was built for any machine knows no crypttab: the kernel command line names its volume.

use latchkey_tests::bound::PORT;
use latchkey_tests::guest::{LUKS_UUID, MAPPING};
use latchkey_tests::machine::Machine;
use latchkey_tests::stage::{Outcome, Stage};

pub fn named_by_kernel(stage: &Stage) -> Outcome {
    stage.needs_dracut("initramfs-tools always takes the volumes from crypttab.")?;
    let mut server = stage.key_server()?;
    server.start(PORT)?;
    let disk = stage.bound_disk()?;
    let mut machine = Machine::start(&stage.bound_machine(&disk, "build").systemd())?;
    machine.up()?;
    machine.check(
        "dracut --force --no-hostonly --no-hostonly-cmdline /boot/initrd.img-$(uname -r) $(uname -r) 2>&1",
    )?;
    machine.power_off()?;

    let generic = disk.boot_files(stage.folder())?;
    let spec = stage
        .machine(&disk, "boot")
        .direct(&generic)
        .kernel_line(&format!("rd.luks.name={LUKS_UUID}={MAPPING}"));
    let mut machine = Machine::start(&spec)?;
    // Under systemd what the agent says of it goes to the journal.
    machine.up()?;
    machine.check(&format!(
        "grep -qx {MAPPING} /run/latchkey/opened-automatically"
    ))?;
    machine.power_off()?;
    Ok(())
}
