//! The kernel's OOM killer ends the agent and, with it, the guardian that would wipe its memory.

use std::thread;
use std::time::Duration;

use latchkey_tests::bound::PORT;
use latchkey_tests::flavour::Framework;
use latchkey_tests::guest::PASSPHRASE;
use latchkey_tests::initramfs::{script_after_agent, script_at_prompt, script_at_start};
use latchkey_tests::keyserver::KeyServer;
use latchkey_tests::machine::{Machine, PATIENCE, Spec};
use latchkey_tests::memory::{self, Search};
use latchkey_tests::stage::{Failure, NotHere, Outcome, Scenario, Stage, ensure};

use crate::secrets::{self, BOOT_KEY, VOLUME_KEY};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "M3 the OOM killer ends the agent: the native prompt, no key is fetched, and what stays in the RAM",
        play: killed,
    },
    Scenario {
        name: "M3 the OOM killer ends the agent: with init_on_free=1 nothing stays in the RAM",
        play: killed_with_wiping_kernel,
    },
    Scenario {
        name: "M3 an agent that is started again only prompts and says why",
        play: started_again,
    },
];

const LIVES: &str = "RIG: the agent lives";
const CALLED: &str = "RIG: calling the OOM killer";
const KILLED: &str = "RIG: the kernel killed the agent";
/// Little memory: a search takes seconds.
const MEMORY_MIB: u32 = 512;

pub fn killed(stage: &Stage) -> Outcome {
    let left = after_the_killer(stage, "")?;
    // No share was released, so there is no machine secret; what may stay is what the agent asks with.
    ensure(
        left.iter()
            .all(|name| [BOOT_KEY, EPHEMERAL_KEY].contains(&name.as_str())),
        || format!("in the RAM after the OOM killer: {left:?}"),
    )
}

pub fn killed_with_wiping_kernel(stage: &Stage) -> Outcome {
    let left = after_the_killer(stage, "init_on_free=1")?;
    ensure(left.is_empty(), || {
        format!("in the RAM after the OOM killer, with a kernel that wipes what is freed: {left:?}")
    })
}

const EPHEMERAL_KEY: &str = "ephemeral key";

/// A boot whose agent the OOM killer ends at the prompt, and which the passphrase opens; returns what is in the RAM when
/// the agent has gone.
fn after_the_killer(stage: &Stage, words: &str) -> Result<Vec<String>, Failure> {
    let mut server = stage.key_server()?;
    let spec = spec(stage, &killer(stage, ""), &[])?.kernel_line(words);
    let mut machine = Machine::start(&spec)?;
    machine.expect(LIVES, PATIENCE)?;
    let mut looked_for = secrets::of_bound_machine(stage)?;
    let ram = memory::dump(&mut machine, stage.folder())?;
    ensure(
        Search::of(&looked_for).finds(&ram).contains_key(BOOT_KEY),
        || "the running agent's boot key is not in its RAM: the search is no good".to_owned(),
    )?;
    looked_for.extend(secrets::of_boot_session(&ram)?);
    drop(ram);
    let search = Search::of(&looked_for);
    by_the_killer(&mut machine)?;
    let asked = starts(&mut server)?;
    stage.note(machine.expect(stage.native_prompt(), PATIENCE)?);
    let left = search.finds(&memory::dump(&mut machine, stage.folder())?);
    println!("       in the RAM at the native prompt: {left:?}");
    machine.answer_now(PASSPHRASE)?;
    machine.up()?;
    thread::sleep(Duration::from_secs(1));
    let later = search.finds(&memory::dump(&mut machine, stage.folder())?);
    println!("       in the RAM after the switch to the root: {later:?}");
    ensure(later.contains_key(VOLUME_KEY), || {
        "the volume key is not in the RAM: the search is no good".to_owned()
    })?;
    machine.power_off()?;
    not_asked(&server, &asked)?;
    Ok(left.into_keys().collect())
}

/// By hand, as a restarted unit would: latchkey itself never does it.
fn started_again(stage: &Stage) -> Outcome {
    const AGAIN: &str = "/usr/bin/latchkey unlock </dev/console >/dev/console 2>&1";
    let mut server = stage.key_server()?;
    let spec = match stage.flavour().framework {
        // In the place of the native prompt, which otherwise stands on the same console.
        Framework::InitramfsTools => {
            let (file, enlist) = script_after_agent(Framework::InitramfsTools, AGAIN);
            let start = format!("{enlist}{}", killer(stage, ""));
            spec(stage, &start, &[(file.0, file.1.as_bytes())])?
        }
        Framework::DracutSystemd => spec(stage, &killer(stage, AGAIN), &[])?,
        Framework::DracutScript => {
            return Err(NotHere("Its prompt and the native one would share a console.").into());
        }
    };
    let mut machine = Machine::start(&spec)?;
    by_the_killer(&mut machine)?;
    let asked = starts(&mut server)?;
    machine.expect_beside(stage.prompt(), PATIENCE)?;
    machine.expect("it was used in this boot already", PATIENCE)?;
    machine.answer_now(PASSPHRASE)?;
    machine.up()?;
    machine.power_off()?;
    not_asked(&server, &asked)
}

/// The kernel log says whom it killed; by then the next prompt may stand.
fn by_the_killer(machine: &mut Machine) -> Outcome {
    machine.expect(CALLED, PATIENCE)?;
    machine.expect_beside(KILLED, PATIENCE)?;
    Ok(())
}

fn starts(server: &mut KeyServer) -> Result<String, Failure> {
    server.start(PORT)?;
    Ok(server.admin(&["audit", "--json"])?)
}

fn not_asked(server: &KeyServer, before: &str) -> Outcome {
    let after = server.admin(&["audit", "--json"])?;
    ensure(before == after, || {
        format!("the key server was asked after the agent's end:\n{after}")
    })
}

/// Makes the agent the one that the OOM killer takes, and calls it; then runs `after`.
fn killer(stage: &Stage, after: &str) -> String {
    let script = format!(
        r#"    sleep 2
    echo '{LIVES}' >/dev/console
    sleep 3
    echo 1000 >/proc/$agent/oom_score_adj
    echo '{CALLED}' >/dev/console
    echo f >/proc/sysrq-trigger
    while [ -e /proc/$agent/exe ]; do sleep 1; done
    dmesg | while read -r line; do
        case "$line" in
            *"Out of memory: Killed process $agent (latchkey)"*) echo '{KILLED}' >/dev/console ;;
        esac
    done
    {after}"#
    );
    script_at_prompt(stage.flavour().framework, &script)
}

fn spec(stage: &Stage, start: &str, more: &[(&str, &[u8])]) -> Result<Spec, Failure> {
    let start = [(script_at_start(stage.flavour().framework), start.as_bytes())];
    let files = [&start[..], more].concat();
    let boot = stage.bound()?.boot.with_files(stage.folder(), &files)?;
    let machine = stage.machine(&stage.bound_disk()?, "boot");
    Ok(machine.direct(&boot).memory_mib(MEMORY_MIB))
}
