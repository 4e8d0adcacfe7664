//! The prompt: as early as the native one, and whatever is typed at it.

use std::time::Duration;

use latchkey_tests::bound::PORT;
use latchkey_tests::guest::PASSPHRASE;
use latchkey_tests::machine::{Disk, Machine, Spec};
use latchkey_tests::stage::{Failure, Outcome, Scenario, Stage, ensure};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "without the key server the prompt comes no later than the native one + 1 s",
        play: prompt_in_time,
    },
    Scenario {
        name: "three wrong passphrases and then the right one open",
        play: wrong_then_right,
    },
    Scenario {
        name: "a wrong passphrase does not stop the key server from opening",
        play: wrong_then_server,
    },
];

const LIMIT: Duration = Duration::from_secs(180);
const WRONG: &str = "no keyslot opens with this passphrase";

fn prompt_in_time(stage: &Stage) -> Outcome {
    stage.needs_initramfs_tools(
        "Measured from where the scripts of initramfs-tools come to the root.",
    )?;
    let disk = stage.bound_disk()?;
    let control = |number| {
        stage
            .bound_machine(&disk, &format!("native-{number}"))
            .kernel_line("latchkey=off")
    };
    let agent = |number| stage.bound_machine(&disk, &format!("latchkey-{number}"));
    // The better of two each: a busy host delays single boots.
    let best = |first: Spec, second: Spec, prompt: &str| -> Result<Duration, Failure> {
        Ok(prompt_time(&first, prompt)?.min(prompt_time(&second, prompt)?))
    };
    let native = best(control(1), control(2), stage.native_prompt())?;
    let ours = best(agent(1), agent(2), stage.prompt())?;
    println!("       native prompt after {native:?}, latchkey's after {ours:?}");
    ensure(ours <= native + Duration::from_secs(1), || {
        format!("the prompt came after {ours:?}, the native one after {native:?}")
    })
}

/// How long the prompt took from the moment when the boot scripts came to the encrypted root: what goes before is the
/// same in both and varies by seconds. Then the passphrase opens, whatever the network does meanwhile.
fn prompt_time(spec: &Spec, prompt: &str) -> Result<Duration, Failure> {
    let mut machine = Machine::start(spec)?;
    let begin = machine.expect("Running /scripts/local-top", LIMIT)?;
    let prompt = machine.answer(prompt, PASSPHRASE)?;
    machine.up()?;
    machine.power_off()?;
    Ok(prompt.host - begin.host)
}

fn wrong_then_right(stage: &Stage) -> Outcome {
    let mut machine = Machine::start(&stage.bound_machine(&stage.bound_disk()?, "boot"))?;
    wrong_three_times(stage, &mut machine)?;
    machine.console.type_line(PASSPHRASE)?;
    machine.expect("'vda2_crypt' was opened by a typed passphrase", LIMIT)?;
    machine.up()?;
    machine.power_off()?;
    Ok(())
}

fn wrong_then_server(stage: &Stage) -> Outcome {
    let mut server = stage.key_server()?;
    let disk: Disk = stage.bound_disk()?;
    let mut machine = Machine::start(&stage.bound_machine(&disk, "boot"))?;
    wrong_three_times(stage, &mut machine)?;
    server.start(PORT)?;
    machine.expect("'vda2_crypt' was opened automatically", LIMIT)?;
    machine.up()?;
    machine.power_off()?;
    Ok(())
}

fn wrong_three_times(stage: &Stage, machine: &mut Machine) -> Outcome {
    machine.expect(stage.prompt(), LIMIT)?;
    for _ in 0..3 {
        machine.console.type_line("not the passphrase")?;
        machine.expect(WRONG, LIMIT)?;
        machine.expect(stage.prompt(), LIMIT)?;
    }
    Ok(())
}
