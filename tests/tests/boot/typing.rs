//! The prompt: as early as the native one, and whatever is typed at it.

use std::thread;
use std::time::Duration;

use latchkey_tests::bound::{PORT, SECOND_PORT};
use latchkey_tests::guest::PASSPHRASE;
use latchkey_tests::machine::{Disk, Machine, Spec};
use latchkey_tests::network::silent_server;
use latchkey_tests::stage::{Failure, Outcome, Scenario, Stage, ensure};
use serde_json::json;

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
        name: "P2 a wrong passphrase does not stop the key server from opening",
        play: wrong_then_server,
    },
    Scenario {
        name: "P1 a passphrase typed while a request is on its way opens and leaves no prompt",
        play: beside_a_request,
    },
    Scenario {
        name: "P3 empty lines, control characters, a serial break and a megabyte are harmless",
        play: harmless,
    },
    Scenario {
        name: "P4 a machine with two consoles takes the passphrase at the serial one",
        play: two_consoles,
    },
    Scenario {
        name: "P4 a machine whose console goes nowhere opens by itself",
        play: headless,
    },
];

const LIMIT: Duration = Duration::from_secs(180);
const TYPED: &str = "'vda2_crypt' was opened by a typed passphrase";
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
    machine.answer_now(PASSPHRASE)?;
    machine.expect(TYPED, LIMIT)?;
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

pub fn beside_a_request(stage: &Stage) -> Outcome {
    silent_server(PORT)?;
    silent_server(SECOND_PORT)?;
    let mut machine = Machine::start(&stage.bound_machine(&stage.bound_disk()?, "boot"))?;
    machine.expect_beside(stage.prompt(), LIMIT)?;
    machine.expect("asking the key server", LIMIT)?;
    machine.answer_now(PASSPHRASE)?;
    machine.expect(TYPED, LIMIT)?;
    let prompts = machine.console.count(stage.prompt());
    machine.up()?;
    let after = machine.console.count(stage.prompt());
    ensure(after == prompts, || {
        "a prompt was shown after the volume had been opened".to_owned()
    })?;
    machine.power_off()?;
    Ok(())
}

pub fn harmless(stage: &Stage) -> Outcome {
    let mut machine = Machine::start(&stage.bound_machine(&stage.bound_disk()?, "boot"))?;
    machine.expect(stage.prompt(), LIMIT)?;
    machine.answer_now("not the passphrase")?;
    machine.expect(WRONG, LIMIT)?;
    for _ in 0..500 {
        machine.console.send(b"\n")?;
    }
    // Ctrl-C, Ctrl-D, Ctrl-Z, Ctrl-\\.
    for control in [0x03, 0x04, 0x1a, 0x1c] {
        machine.console.send(&[control])?;
        thread::sleep(Duration::from_secs(1));
    }
    machine
        .qmp
        .execute("chardev-send-break", json!({ "id": "console" }))?;
    for _ in 0..256 {
        machine.console.send(&[b'x'; 4096])?;
    }
    machine.console.send(b"\n")?;
    until_it_opens(&mut machine, 40)?;
    for shell in ["(initramfs)", "sh-5", "~#", ":/#"] {
        ensure(machine.console.first(shell).is_none(), || {
            format!("the console shows '{shell}'")
        })?;
    }
    machine.up()?;
    machine.power_off()?;
    Ok(())
}

/// Types the passphrase again and again: what is typed between two prompts may be lost.
fn until_it_opens(machine: &mut Machine, tries: usize) -> Outcome {
    for _ in 0..tries {
        machine.answer_now(PASSPHRASE)?;
        match machine.expect(TYPED, Duration::from_secs(10)) {
            Ok(_) => return Ok(()),
            Err(error) if machine.console.first(TYPED).is_none() => drop(error),
            Err(error) => return Err(error.into()),
        }
    }
    Err(format!("the passphrase did not open in {tries} tries").into())
}

pub fn two_consoles(stage: &Stage) -> Outcome {
    let spec = stage
        .bound_machine(&stage.bound_disk()?, "boot")
        .kernel_line("console=tty0 console=ttyS0");
    let mut machine = Machine::start(&spec)?;
    stage.note(machine.answer(stage.prompt(), PASSPHRASE)?);
    machine.expect(TYPED, LIMIT)?;
    machine.up()?;
    machine.power_off()?;
    Ok(())
}

/// The kernel's messages still go to the serial line; `/dev/console` leads to a terminal that nobody sees.
pub fn headless(stage: &Stage) -> Outcome {
    let mut server = stage.key_server()?;
    server.start(PORT)?;
    let spec = stage
        .bound_machine(&stage.bound_disk()?, "boot")
        .kernel_line("console=tty0");
    let mut machine = Machine::start(&spec)?;
    machine.up()?;
    let report = machine.check("cat /run/latchkey/report.json")?;
    ensure(report.contains("was opened automatically"), || {
        format!("it did not open by itself: {report}")
    })?;
    machine.power_off()?;
    Ok(())
}
