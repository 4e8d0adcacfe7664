//! The main story: the key server is up, nobody types anything.

use latchkey_tests::bound::PORT;
use latchkey_tests::machine::Machine;
use latchkey_tests::stage::{Outcome, Scenario, Stage, ensure};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "two boots in a row through the machine's own boot loader are unattended",
    play: two_boots,
}];

pub fn two_boots(stage: &Stage) -> Outcome {
    let mut server = stage.key_server()?;
    server.start(PORT)?;
    let mut machine = Machine::start(&stage.machine(&stage.bound_disk()?, "boots"))?;
    for boot in 1..=2 {
        let up = machine.up()?;
        let line = machine.check("cat /proc/cmdline")?;
        ensure(line.starts_with("BOOT_IMAGE="), || {
            format!("boot {boot} did not go through GRUB: {line}")
        })?;
        if boot == 1 {
            stage.note(up);
            machine.reboot()?;
        }
    }
    machine.power_off()?;
    Ok(())
}
