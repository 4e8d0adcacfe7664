//! Without the key server, or with latchkey switched off, the machine is what it was before: it asks.

use latchkey_tests::bound::PORT;
use latchkey_tests::guest::PASSPHRASE;
use latchkey_tests::machine::Machine;
use latchkey_tests::stage::{Outcome, Scenario, Stage, ensure};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "without the key server the passphrase opens",
        play: server_down,
    },
    Scenario {
        name: "latchkey=off leaves the native prompt",
        play: switched_off,
    },
];

pub fn server_down(stage: &Stage) -> Outcome {
    let mut machine = Machine::start(&stage.bound_machine(&stage.bound_disk()?, "boot"))?;
    stage.note(machine.answer(stage.prompt(), PASSPHRASE)?);
    machine.up()?;
    machine.power_off()?;
    Ok(())
}

pub fn switched_off(stage: &Stage) -> Outcome {
    let mut server = stage.key_server()?;
    server.start(PORT)?;
    let spec = stage
        .bound_machine(&stage.bound_disk()?, "boot")
        .kernel_line("latchkey=off");
    let mut machine = Machine::start(&spec)?;
    machine.answer(stage.native_prompt(), PASSPHRASE)?;
    machine.up()?;
    let agent = machine.check("ls /run/latchkey 2>/dev/null; dmesg | grep -i latchkey: ; true")?;
    ensure(agent.is_empty(), || {
        format!("the agent ran although it was switched off:\n{agent}")
    })?;
    machine.power_off()?;
    Ok(())
}
