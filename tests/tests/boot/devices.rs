//! Disks and network cards that come late or never.

use std::thread;
use std::time::{Duration, Instant};

use latchkey_tests::bound::PORT;
use latchkey_tests::guest::PASSPHRASE;
use latchkey_tests::machine::{Machine, Network, Spec};
use latchkey_tests::stage::{Failure, Outcome, Scenario, Stage, ensure};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "D1 a root disk that appears 30 s late opens by itself",
        play: late_disk,
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

fn no_card(stage: &Stage) -> Outcome {
    let disk = stage.bound_disk()?;
    let without_card = |name| stage.bound_machine(&disk, name).network(Network::None);
    let native = without_card("native").kernel_line("latchkey=off");
    let native = prompt_time(&native, stage.native_prompt())?;
    let ours = prompt_time(&without_card("latchkey"), stage.prompt())?;
    println!("       native prompt at {native:?}, latchkey's at {ours:?}");
    // The exact bound is the prompt's own scenario; here a wait for the network would show.
    ensure(ours <= native + Duration::from_secs(5), || {
        format!("the prompt came at {ours:?}, the native one at {native:?}")
    })
}

/// When the prompt appeared, by the guest's clock; then the passphrase opens.
fn prompt_time(spec: &Spec, prompt: &str) -> Result<Duration, Failure> {
    let mut machine = Machine::start(spec)?;
    let prompt = machine.answer(prompt, PASSPHRASE)?;
    machine.up()?;
    machine.power_off()?;
    Ok(prompt.guest.ok_or("the guest's clock is not known")?)
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
