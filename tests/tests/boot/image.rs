//! The image file itself: whoever can read it has the boot key.

use latchkey_tests::machine::Machine;
use latchkey_tests::stage::{Outcome, Scenario, Stage, ensure};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "E7 under a permissive umask the image is for root alone, or is not built",
    play: permissive_umask,
}];

pub fn permissive_umask(stage: &Stage) -> Outcome {
    let mut machine = Machine::start(&stage.bound_machine(&stage.bound_disk()?, "boot").systemd())?;
    machine.answer(stage.prompt(), latchkey_tests::guest::PASSPHRASE)?;
    machine.up()?;
    // `bind` built it under the umask that commands have here.
    let modes = machine.check("umask; stat -c %a /boot/initrd.img-$(uname -r)")?;
    ensure(modes == "0022\n600", || {
        format!("the umask, and the mode of the image that 'bind' built: {modes}")
    })?;
    if !stage.flavour().is_dracut() {
        refused(&mut machine)?;
    }
    machine.power_off()?;
    Ok(())
}

/// Settings that are read after latchkey's own ask for an image that everybody may read. Few modules save time.
fn refused(machine: &mut Machine) -> Outcome {
    let output = machine.run(
        "set -e
         cp -r /etc/initramfs-tools /run/rig/settings
         echo MODULES=list > /run/rig/settings/conf.d/zz
         echo UMASK=0022 > /usr/share/initramfs-tools/conf-hooks.d/zz
         mkinitramfs -d /run/rig/settings -o /boot/open.img",
    )?;
    ensure(
        output.status != 0 && output.text.contains("the umask is 0022"),
        || format!("the build under UMASK=0022: {output:?}"),
    )?;
    // mkinitramfs leaves the empty file that it began with.
    let left = machine.check("find /boot -name open.img -size +0 -ls")?;
    ensure(left.is_empty(), || format!("an image was left: {left}"))
}
