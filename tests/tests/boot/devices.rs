//! Disks and network cards that come late or never.

use std::thread;
use std::time::{Duration, Instant};

use latchkey_tests::bound::PORT;
use latchkey_tests::guest::PASSPHRASE;
use latchkey_tests::machine::{Machine, Network, Spec};
use latchkey_tests::memory::{self, Search};
use latchkey_tests::stage::{Failure, Outcome, Scenario, Stage, ensure};

use crate::secrets;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "D1 a root disk that appears 30 s late opens by itself",
        play: late_disk,
    },
    Scenario {
        name: "D2 a root disk that never comes: no key is fetched, no prompt, the emergency shell without credentials",
        play: missing_disk,
    },
    Scenario {
        name: "N1 a machine without a network card prompts at once",
        play: no_card,
    },
    Scenario {
        name: "N3 a cable that is plugged in after 60 s opens while the prompt stands",
        play: late_cable,
    },
];

const LIMIT: Duration = Duration::from_secs(180);
const OPENED: &str = "'vda2_crypt' was opened automatically";

fn late_disk(stage: &Stage) -> Outcome {
    disk_after(stage, Duration::from_secs(30))
}

/// Later than the 90 s that systemd gives a device.
pub fn very_late_disk(stage: &Stage) -> Outcome {
    stage.needs_dracut("initramfs-tools gives up on a root disk after half a minute.")?;
    disk_after(stage, Duration::from_secs(120))
}

fn disk_after(stage: &Stage, late: Duration) -> Outcome {
    let mut server = stage.key_server()?;
    server.start(PORT)?;
    let spec = stage
        .bound_machine(&stage.bound_disk()?, "boot")
        .late_disk();
    let start = Instant::now();
    let mut machine = Machine::start(&spec)?;
    machine.expect(stage.flavour().looks_for_root(), LIMIT)?;
    thread::sleep(late.saturating_sub(start.elapsed()));
    ensure(machine.console.first(stage.prompt()).is_none(), || {
        "the prompt was offered for a disk that was not there".to_owned()
    })?;
    machine.plug_disk()?;
    machine.expect(OPENED, LIMIT)?;
    machine.up()?;
    machine.power_off()?;
    Ok(())
}

/// The framework gives up as it would without latchkey. That the boot key was in the RAM before proves the search.
pub fn missing_disk(stage: &Stage) -> Outcome {
    let mut server = stage.key_server()?;
    server.start(PORT)?;
    let asked = server.admin(&["audit", "--json"])?;
    let spec = stage
        .bound_machine(&stage.bound_disk()?, "boot")
        .late_disk()
        .memory_mib(MEMORY_MIB)
        // dracut's limit, which is three minutes.
        .kernel_line("rd.retry=30");
    let mut machine = Machine::start(&spec)?;
    machine.expect(stage.flavour().looks_for_root(), LIMIT)?;
    let search = Search::of(&secrets::of_boot_key(&stage.bound()?.boot_key)?);
    let begin = Instant::now();
    while search
        .finds(&memory::dump(&mut machine, stage.folder())?)
        .is_empty()
    {
        ensure(begin.elapsed() < LIMIT, || {
            "no agent with a boot key in its RAM waits for the disk".to_owned()
        })?;
    }
    stage.note(machine.expect(stage.flavour().emergency(), GIVES_UP)?);
    let finds = search.finds(&memory::dump(&mut machine, stage.folder())?);
    ensure(finds.is_empty(), || {
        format!("in the RAM when the emergency shell is there: {finds:?}")
    })?;
    for prompt in [stage.prompt(), stage.native_prompt()] {
        ensure(machine.console.first(prompt).is_none(), || {
            "a prompt was offered for a disk that is not there".to_owned()
        })?;
    }
    let later = server.admin(&["audit", "--json"])?;
    ensure(asked == later, || {
        format!("the key server was asked:\n{later}")
    })
}

/// How long a framework may take to give up on a busy host.
const GIVES_UP: Duration = Duration::from_secs(600);
/// Little memory is searched sooner.
const MEMORY_MIB: u32 = 512;

fn no_card(stage: &Stage) -> Outcome {
    let disk = stage.bound_disk()?;
    let without_card = |name| stage.bound_machine(&disk, name).network(Network::None);
    let native = without_card("native").kernel_line("latchkey=off");
    let native = prompt_time(stage, &native, stage.native_prompt())?;
    let ours = prompt_time(stage, &without_card("latchkey"), stage.prompt())?;
    println!("       native prompt after {native:?}, latchkey's after {ours:?}");
    // The exact bound is the prompt's own scenario; here a wait for the network would show.
    ensure(ours <= native + Duration::from_secs(5), || {
        format!("the prompt came after {ours:?}, the native one after {native:?}")
    })
}

/// How long the prompt took from where the initramfs looks for the root: what goes before is the same in both, and varies by
/// seconds on a busy host. Then the passphrase opens.
fn prompt_time(stage: &Stage, spec: &Spec, prompt: &str) -> Result<Duration, Failure> {
    let mut machine = Machine::start(spec)?;
    let begin = machine.expect(stage.flavour().looks_for_root(), LIMIT)?;
    let prompt = machine.answer(prompt, PASSPHRASE)?;
    machine.up()?;
    machine.power_off()?;
    Ok(prompt.host - begin.host)
}

fn late_cable(stage: &Stage) -> Outcome {
    let mut server = stage.key_server()?;
    server.start(PORT)?;
    let mut machine = Machine::start(&stage.bound_machine(&stage.bound_disk()?, "boot"))?;
    machine.set_link(false)?;
    machine.expect(stage.prompt(), LIMIT)?;
    thread::sleep(Duration::from_secs(60));
    let asked = server.logged();
    ensure(machine.console.first(OPENED).is_none(), || {
        format!("it opened without a cable\n{asked}")
    })?;
    machine.set_link(true)?;
    let plugged = Instant::now();
    machine.expect(OPENED, LIMIT)?;
    let took = plugged.elapsed();
    println!("       opened {took:?} after the cable was plugged in");
    machine.up()?;
    machine.power_off()?;
    // Two seconds are usual; a pause that had grown for a minute would show.
    ensure(took <= Duration::from_secs(20), || {
        format!("it took {took:?} from the cable to the opening")
    })
}
