//! A splash screen: Plymouth has the console, and asks where somebody must type.

use std::thread;
use std::time::Duration;

use latchkey_tests::bound::PORT;
use latchkey_tests::guest::PASSPHRASE;
use latchkey_tests::initramfs::script_at_start;
use latchkey_tests::machine::{Machine, Spec};
use latchkey_tests::memory::{self, Search};
use latchkey_tests::stage::{Failure, Outcome, Scenario, Stage, ensure};

use crate::secrets::{self, TYPED, VOLUME_KEY};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "P4 with a splash screen it opens by itself, and by passphrase without the key server",
        play: splash,
    },
    Scenario {
        name: "P4 a splash screen that is killed while it asks leaves a prompt",
        play: killed,
    },
    Scenario {
        name: "P4 RAM after a passphrase was typed into a splash screen",
        play: remembered,
    },
];

const LIMIT: Duration = Duration::from_secs(240);
/// Not `quiet`: the rig listens to the kernel log.
const WORDS: &str = "splash";
const KILLING: &str = "RIG: killing the splash screen";
const ASKS: &str = "RIG: the splash screen asks";

pub fn splash(stage: &Stage) -> Outcome {
    let stage_with = stage.with_packages("plymouth", PACKAGES)?;
    let disk = stage_with.bound_disk()?;
    let mut server = stage_with.key_server()?;
    server.start(PORT)?;
    let mut machine = Machine::start(&spec(&stage_with, &disk, "key server", WATCH)?)?;
    machine.up()?;
    opened(&mut machine, "was opened automatically")?;
    machine.power_off()?;

    server.stop()?;
    let mut machine = Machine::start(&spec(&stage_with, &disk, "passphrase", WATCH)?)?;
    machine.expect_beside(ASKS, LIMIT)?;
    stage.note(machine.answer(stage.prompt(), PASSPHRASE)?);
    machine.up()?;
    opened(&mut machine, "was opened by a typed passphrase")?;
    machine.power_off()?;
    Ok(())
}

pub fn killed(stage: &Stage) -> Outcome {
    let stage_with = stage.with_packages("plymouth", PACKAGES)?;
    let disk = stage_with.bound_disk()?;
    // One that crashes takes its pid file away.
    for signal in ["SEGV", "KILL"] {
        let script = format!("{WATCH}signal={signal}{KILL}");
        let mut machine = Machine::start(&spec(&stage_with, &disk, signal, &script)?)?;
        machine.expect(KILLING, LIMIT)?;
        stage.note(machine.answer(stage.prompt(), PASSPHRASE)?);
        machine.up()?;
        opened(&mut machine, "was opened by a typed passphrase")?;
        machine.power_off()?;
    }
    Ok(())
}

/// What is typed goes through the memory of `plymouthd`, which lives on: that is its own affair, but all else must be gone.
fn remembered(stage: &Stage) -> Outcome {
    let stage_with = stage.with_packages("plymouth", PACKAGES)?;
    let disk = stage_with.bound_disk()?;
    let spec = spec(&stage_with, &disk, "boot", WATCH)?;
    let mut machine = Machine::start(&spec.memory_mib(MEMORY_MIB))?;
    machine.expect_beside(ASKS, LIMIT)?;
    machine.answer(stage.prompt(), PASSPHRASE)?;
    machine.up()?;
    thread::sleep(Duration::from_secs(1));
    let search = Search::of(&secrets::of_bound_machine(&stage_with)?);
    let mut finds = search.finds(&memory::dump(&mut machine, stage.folder())?);
    let copies = finds.remove(TYPED).unwrap_or(0);
    println!("after the switch to the root the passphrase was in {copies} places of the RAM");
    ensure(finds.keys().eq([VOLUME_KEY]), || {
        format!("in the RAM beside the passphrase, where only the volume key should be: {finds:?}")
    })
}

/// Little memory: a search takes seconds.
const MEMORY_MIB: u32 = 512;

/// The daemon with the themes that come with it; on a serial line it shows the details of the boot whatever the theme.
const PACKAGES: &[&str] = &["plymouth"];

/// A console that has a splash screen need not show the agent's words.
fn opened(machine: &mut Machine, how: &str) -> Outcome {
    let report = machine.check("cat /run/latchkey/report.json")?;
    ensure(report.contains(how), || {
        format!("the report of the boot has no '{how}': {report}")
    })
}

fn spec(
    stage: &Stage,
    disk: &latchkey_tests::machine::Disk,
    boot: &str,
    start: &str,
) -> Result<Spec, Failure> {
    let path = script_at_start(stage.flavour().framework);
    let files = [(path, start.as_bytes())];
    let image = stage.bound()?.boot.with_files(stage.folder(), &files)?;
    Ok(stage.machine(disk, boot).direct(&image).kernel_line(WORDS))
}

/// Says when a client of Plymouth waits for an answer: `plymouth ask-for-password`, or systemd's agent for it.
const WATCH: &str = r#"(
    asks() {
        for one in /proc/[0-9]*; do
            case "$(tr '\\0' ' ' <$one/cmdline)" in
                *plymouth*ask-for-password* | *ask-password-agent*--plymouth*) return 0 ;;
            esac
        done 2>/dev/null
        return 1
    }
    until asks; do sleep 1; done
    sleep 2
    echo 'RIG: the splash screen asks' >/dev/console
) </dev/null >/dev/null 2>&1 &
"#;

/// Behind `signal=NAME`.
const KILL: &str = r#"
(
    until [ -s /run/plymouth/pid ] && [ -s /run/latchkey/agent.pid ]; do sleep 1; done
    sleep 20
    echo 'RIG: killing the splash screen' >/dev/console
    kill -$signal "$(cat /run/plymouth/pid)"
) </dev/null >/dev/null 2>&1 &
"#;
