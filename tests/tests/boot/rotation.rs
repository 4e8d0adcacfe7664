//! A root whose secrets were replaced: it opens by itself, and to a copy of the disk from before no share is given.

use latchkey_tests::guest::PASSPHRASE;
use latchkey_tests::machine::Machine;
use latchkey_tests::stage::{Outcome, Scenario, Stage, ensure};

use crate::arming::{LIMIT, in_touch, snapshot};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "a root that was rotated opens by itself, a copy from before by passphrase alone",
    play: rotated,
}];

fn rotated(stage: &Stage) -> Outcome {
    let (_server, disk, mut machine) = in_touch(stage)?;
    let copy = snapshot(stage, &disk, &mut machine)?;
    let said = machine.check("latchkey rotate / 2>&1")?;
    ensure(said.contains("the old keyslot is gone"), || said.clone())?;
    machine.reboot()?;
    machine.expect("'vda2_crypt' was opened automatically", LIMIT)?;
    machine.up()?;
    machine.power_off()?;

    let mut before = Machine::start(&stage.bound_machine(&copy, "before").systemd())?;
    before.expect("the current one is 2", LIMIT)?;
    before.answer_first(stage.prompt(), PASSPHRASE)?;
    before.expect("was opened by a typed passphrase", LIMIT)?;
    before.up()?;
    Ok(())
}
