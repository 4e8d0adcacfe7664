//! A volume group in the LUKS2 volume, as Debian's installer makes it: the root is one of its logical volumes.

use std::time::Duration;

use latchkey_tests::bound::PORT;
use latchkey_tests::guest::PASSPHRASE;
use latchkey_tests::layout::Layout;
use latchkey_tests::machine::Machine;
use latchkey_tests::stage::{Outcome, Scenario, Stage, ensure};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "root on LVM over LUKS opens by itself, and by passphrase without the key server",
    play: root,
}];

const LIMIT: Duration = Duration::from_secs(240);
const OPENED: &str = "'vda2_crypt' was opened automatically";

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
