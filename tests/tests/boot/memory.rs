//! What a boot leaves in the machine's RAM: nothing that opens the volume but the kernel's volume key. Each boot is
//! dumped when the agent has gone, before anything else of the boot ran, and a second after the switch to the real
//! root.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use latchkey_tests::bound::{CLIENT, PORT, SECOND_PORT};
use latchkey_tests::guest::PASSPHRASE;
use latchkey_tests::initramfs::{script_after_agent, script_at_start};
use latchkey_tests::keyserver::KeyServer;
use latchkey_tests::machine::{Machine, Spec};
use latchkey_tests::memory::{self, Search};
use latchkey_tests::network::silent_server;
use latchkey_tests::product;
use latchkey_tests::stage::{Failure, Outcome, Scenario, Stage, ensure};

use crate::secrets::{self, Secrets, VOLUME_KEY};
use crate::verdicts::asked_by;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "RAM after an unattended boot",
        play: unattended,
    },
    Scenario {
        name: "RAM after an unattended boot through the boot loader, and of the whole running system",
        play: through_boot_loader,
    },
    Scenario {
        name: "RAM after a boot by typed passphrase",
        play: typed,
    },
    Scenario {
        name: "RAM while a typed passphrase is tried holds it once, in the agent's memory",
        play: tried,
    },
    Scenario {
        name: "RAM after a refused boot",
        play: refused,
    },
    Scenario {
        name: "RAM after a boot that waited for approval",
        play: approved,
    },
    Scenario {
        name: "RAM after the agent was killed while it waited for the network",
        play: killed_without_network,
    },
    Scenario {
        name: "RAM after the agent was killed while it asked",
        play: killed_asking,
    },
    Scenario {
        name: "RAM after the agent was killed while only the prompt was left",
        play: killed_at_the_prompt,
    },
    Scenario {
        name: "RAM after the agent was killed while it waited for approval",
        play: killed_pending,
    },
    Scenario {
        name: "RAM after the agent was killed while it opened the volume",
        play: killed_opening,
    },
    Scenario {
        name: "RAM after boots of the control build, which wipes nothing, holds what the others do not",
        play: control_build,
    },
];

const LIMIT: Duration = Duration::from_secs(180);
const OPENED: &str = "'vda2_crypt' was opened automatically";
const TYPED: &str = "'vda2_crypt' was opened by a typed passphrase";
const GONE: &str = "RIG: the agent has gone";
const LIVES: &str = "RIG: the agent lives";
/// Little memory: a search takes seconds, and what is freed is used again soon.
const MEMORY_MIB: u32 = 512;

/// Run when the agent has gone; the pause leaves time to stop the machine.
const AFTER_AGENT: &str = "echo 'RIG: the agent has gone' >/dev/console; sleep 3\n";

pub fn unattended(stage: &Stage) -> Outcome {
    let _server = running(stage)?;
    let mut machine = Machine::start(&spec(stage, "")?)?;
    machine.expect(OPENED, LIMIT)?;
    finish(stage, &mut machine, &secrets::of_bound_machine(stage)?)
}

fn through_boot_loader(stage: &Stage) -> Outcome {
    let _server = running(stage)?;
    let spec = stage.machine(&stage.bound_disk()?, "boot");
    let mut machine = Machine::start(&spec.memory_mib(MEMORY_MIB).systemd())?;
    machine.up()?;
    thread::sleep(Duration::from_secs(1));
    let search = Search::of(&secrets::of_bound_machine(stage)?);
    clean(stage, &mut machine, &search, "after the switch to the root")?;
    // The journal has taken over the kernel log and the services have read what the boot left in /run.
    machine.check(
        "systemctl is-system-running --wait; journalctl --sync; journalctl --boot | wc -l",
    )?;
    clean(stage, &mut machine, &search, "in the running system")?;
    unreadable(&mut machine)
}

/// What a user without rights can read of the image, the settings and the report.
fn unreadable(machine: &mut Machine) -> Outcome {
    let read = machine.check(
        "setpriv --reuid nobody --regid nogroup --clear-groups \
         sh -c 'cat /boot/initrd.img* /run/latchkey/* /etc/latchkey/servers/*/*' 2>/dev/null | wc -c
         setpriv --reuid nobody --regid nogroup --clear-groups sh -c 'cat /etc/os-release | wc -l'",
    )?;
    ensure(read.starts_with("0\n") && !read.ends_with("\n0"), || {
        format!("bytes that any user can read, and lines that he should: {read}")
    })
}

fn typed(stage: &Stage) -> Outcome {
    let mut machine = Machine::start(&spec(stage, "")?)?;
    machine.answer(stage.prompt(), PASSPHRASE)?;
    machine.expect(TYPED, LIMIT)?;
    finish(stage, &mut machine, &secrets::of_bound_machine(stage)?)
}

/// What the prompt's programs and the kernel kept of it would be there for a moment only, until others get their pages, so
/// that the dumps after the boot find it once in many boots.
fn tried(stage: &Stage) -> Outcome {
    let mut machine = Machine::start(&spec(stage, CATCH_TRYING)?)?;
    machine.expect(stage.prompt(), LIMIT)?;
    machine.limit_disk(Some(KEYSLOT_IN_SECONDS))?;
    machine.answer_now(PASSPHRASE)?;
    machine.expect(TRIES, LIMIT)?;
    let ram = memory::dump(&mut machine, stage.folder())?;
    ensure(machine.console.first(TYPED).is_none(), || {
        "the volume was open before the RAM was dumped".to_owned()
    })?;
    let search = Search::of(&secrets::of_bound_machine(stage)?);
    let copies: Vec<_> = search
        .places(&ram)
        .filter(|(name, _)| *name == secrets::TYPED)
        .collect();
    for (name, at) in &copies {
        keep_page(stage, &ram, name, *at)?;
    }
    // The agent's secrets begin on pages of their own.
    ensure(
        matches!(copies[..], [(_, at)] if at % PAGE == 0 && is_alone(&ram, at)),
        || format!("the passphrase is at {copies:x?}"),
    )?;
    machine.limit_disk(None)?;
    machine.expect(TYPED, LIMIT)?;
    Ok(())
}

/// Whether nothing else is on the page at `at`.
fn is_alone(ram: &[u8], at: usize) -> bool {
    ram[at + PASSPHRASE.len()..at + PAGE]
        .iter()
        .all(|byte| *byte == 0)
}

const PAGE: usize = 4096;
const TRIES: &str = "RIG: a passphrase is tried";
const CATCH_TRYING: &str = r#"(
    grep -m 1 'latchkey: trying a typed passphrase' /dev/kmsg
    echo 'RIG: a passphrase is tried' >/dev/console
) </dev/null >/dev/null 2>&1 &
"#;

fn refused(stage: &Stage) -> Outcome {
    let server = running(stage)?;
    server.admin(&["revoke", CLIENT])?;
    let mut machine = Machine::start(&spec(stage, "")?)?;
    machine.expect("the key server denied: ", LIMIT)?;
    machine.answer_first(stage.prompt(), PASSPHRASE)?;
    machine.expect(TYPED, LIMIT)?;
    finish(stage, &mut machine, &secrets::of_bound_machine(stage)?)
}

fn approved(stage: &Stage) -> Outcome {
    let (server, mut machine, id, code) = asked_by(stage, &spec(stage, "")?)?;
    let mut looked_for = secrets::of_bound_machine(stage)?;
    looked_for.extend(of_live_agent(stage, &mut machine)?);
    server.admin(&["approve", &id, &code])?;
    machine.expect(OPENED, LIMIT)?;
    finish(stage, &mut machine, &looked_for)
}

fn killed_without_network(stage: &Stage) -> Outcome {
    let mut machine = Machine::start(&spec(stage, &killer("pidof askpass"))?)?;
    machine.set_link(false)?;
    killed(stage, &mut machine)
}

fn killed_asking(stage: &Stage) -> Outcome {
    silent_server(PORT)?;
    silent_server(SECOND_PORT)?;
    let asks = "dmesg | grep -q 'latchkey: asking'";
    killed(stage, &mut Machine::start(&spec(stage, &killer(asks))?)?)
}

fn killed_at_the_prompt(stage: &Stage) -> Outcome {
    let mut server = running(stage)?;
    server.admin(&["revoke", CLIENT])?;
    let refused = "dmesg | grep -q 'latchkey: the key server denied' && pidof askpass";
    killed(stage, &mut Machine::start(&spec(stage, &killer(refused))?)?)?;
    Ok(server.stop()?)
}

fn killed_pending(stage: &Stage) -> Outcome {
    let spec = spec(
        stage,
        &killer("dmesg | grep -q 'latchkey: waiting for approval'"),
    )?;
    let (_server, mut machine, ..) = asked_by(stage, &spec)?;
    killed(stage, &mut machine)
}

/// The disk is made slow before there is a release, so that the agent is killed while it reads the keyslot.
fn killed_opening(stage: &Stage) -> Outcome {
    let kill = "sleep 2; kill -KILL \"$(cat /run/latchkey/agent.pid)\"";
    let looked_for = secrets::of_bound_machine(stage)?;
    let search = Search::of(&looked_for);
    let (mut server, mut machine, finds) = opening(stage, kill, &[], &search)?;
    let left = USED_UP.iter().any(|name| finds.contains_key(*name));
    ensure(!left, || {
        format!("in the RAM while the volume is opened: {finds:?}")
    })?;
    machine.expect(GONE, LIMIT)?;
    server.stop()?;
    machine.limit_disk(None)?;
    after_kill(stage, &mut machine, &looked_for)
}

/// A machine whose agent is at the keyslot, `then` before it, and what is in its RAM at that moment.
fn opening(
    stage: &Stage,
    then: &str,
    files: &[(&str, &[u8])],
    search: &Search,
) -> Result<(KeyServer, Machine, BTreeMap<String, usize>), Failure> {
    let catch = format!(
        "(
    grep -m 1 'latchkey: opening' /dev/kmsg
    echo 'RIG: the agent lives' >/dev/console
    {then}
) </dev/null >/dev/null 2>&1 &\n"
    );
    let mut server = stage.key_server()?;
    let mut machine = Machine::start(&spec_with(stage, &catch, files)?)?;
    machine.expect("no key server answers", LIMIT)?;
    machine.limit_disk(Some(KEYSLOT_IN_SECONDS))?;
    server.start(PORT)?;
    machine.expect(LIVES, LIMIT)?;
    let finds = finds(stage, &mut machine, search)?;
    ensure(finds.contains_key("machine secret"), || {
        format!("the agent was not caught while it opened the volume: {finds:?}")
    })?;
    Ok((server, machine, finds))
}

/// What the agent has no more use for when it has the machine secret.
const USED_UP: [&str; 2] = ["share", "KEK"];

/// Bytes per second: a keyslot's area of 258,048 bytes takes some eight seconds.
const KEYSLOT_IN_SECONDS: u64 = 32_000;

/// The detector's own proof: the same search, the same boots, a build without the wiping.
fn control_build(stage: &Stage) -> Outcome {
    let control = product::control_build(stage.folder())?;
    ensure(product::measure(&control).is_err(), || {
        "`make dist` would take the control build".to_owned()
    })?;
    let control = std::fs::read(control)?;
    let files: &[(&str, &[u8])] = &[("usr/bin/latchkey", &control)];
    let search = Search::of(&secrets::of_bound_machine(stage)?);

    let (server, mut machine, finds) = opening(stage, "", files, &search)?;
    let all = USED_UP.iter().all(|name| finds.contains_key(*name));
    ensure(all, || {
        format!("the search does not find {USED_UP:?} in an agent that wipes nothing: {finds:?}")
    })?;
    machine.limit_disk(None)?;
    machine.expect(OPENED, LIMIT)?;
    dirty(stage, machine, &search)?;
    drop(server);

    let mut machine = Machine::start(&spec_with(stage, "", files)?)?;
    machine.answer(stage.prompt(), PASSPHRASE)?;
    machine.expect(TYPED, LIMIT)?;
    dirty(stage, machine, &search)
}

/// What `clean` would refuse. Which of them the kernel has given to others by then differs from boot to boot.
fn dirty(stage: &Stage, mut machine: Machine, search: &Search) -> Outcome {
    machine.expect(GONE, LIMIT)?;
    let finds = finds(stage, &mut machine, search)?;
    ensure(finds.keys().any(|name| name != VOLUME_KEY), || {
        format!("the search finds nothing of a build that wipes nothing: {finds:?}")
    })?;
    machine.up()?;
    // Off before the next one starts from the same disk.
    machine.power_off()?;
    Ok(())
}

/// Kills the agent in a state of the flow, three seconds after `reached` first succeeded.
fn killer(reached: &str) -> String {
    format!(
        r#"(
    until [ -s /run/latchkey/agent.pid ] && {reached}; do sleep 1; done
    sleep 2
    echo 'RIG: the agent lives' >/dev/console
    sleep 3
    kill -KILL "$(cat /run/latchkey/agent.pid)"
) </dev/null >/dev/null 2>&1 &
"#
    )
}

/// A machine whose killer was set on its agent: dumped before, after, and after the boot by the native prompt.
fn killed(stage: &Stage, machine: &mut Machine) -> Outcome {
    machine.expect(LIVES, LIMIT)?;
    let mut looked_for = secrets::of_bound_machine(stage)?;
    looked_for.extend(of_live_agent(stage, machine)?);
    machine.expect(GONE, LIMIT)?;
    after_kill(stage, machine, &looked_for)
}

fn after_kill(stage: &Stage, machine: &mut Machine, looked_for: &Secrets) -> Outcome {
    let search = Search::of(looked_for);
    let finds = finds(stage, machine, &search)?;
    ensure(finds.is_empty(), || {
        format!("in the RAM when the killed agent has gone: {finds:?}")
    })?;
    machine.expect(stage.prompt(), LIMIT)?;
    machine.console.type_line(PASSPHRASE)?;
    machine.up()?;
    thread::sleep(Duration::from_secs(1));
    clean(stage, machine, &search, "after the switch to the root")
}

/// The keys of a session whose agent runs at this moment. That the boot key is found proves the search.
fn of_live_agent(stage: &Stage, machine: &mut Machine) -> Result<Secrets, Failure> {
    let ram = memory::dump(machine, stage.folder())?;
    let boot_key = secrets::of_boot_key(&stage.bound()?.boot_key)?;
    let finds = Search::of(&boot_key).finds(&ram);
    ensure(!finds.is_empty(), || {
        "the running agent's boot key is not in its RAM: the search is no good".to_owned()
    })?;
    secrets::of_boot_session(&ram)
}

/// Both dumps of a boot that goes on by itself.
fn finish(stage: &Stage, machine: &mut Machine, looked_for: &Secrets) -> Outcome {
    let search = Search::of(looked_for);
    machine.expect(GONE, LIMIT)?;
    clean(stage, machine, &search, "when the agent has gone")?;
    machine.up()?;
    thread::sleep(Duration::from_secs(1));
    clean(stage, machine, &search, "after the switch to the root")
}

/// Nothing but the kernel's volume key, which must be there: else the search finds nothing at all.
fn clean(stage: &Stage, machine: &mut Machine, search: &Search, when: &str) -> Outcome {
    let ram = memory::dump(machine, stage.folder())?;
    let finds = search.finds(&ram);
    for (name, at) in search.places(&ram).filter(|(name, _)| *name != VOLUME_KEY) {
        keep_page(stage, &ram, name, at)?;
    }
    ensure(finds.keys().eq([VOLUME_KEY]), || {
        format!("in the RAM {when}, where only the volume key should be: {finds:?}")
    })
}

/// Leaves the page around a find in the scenario's folder, for whoever has to find out whose it was.
fn keep_page(stage: &Stage, ram: &[u8], name: &str, at: usize) -> Outcome {
    let begin = at / PAGE * PAGE;
    let page = &ram[begin..ram.len().min(begin + PAGE)];
    let path = stage.folder().join(format!("{name} at {at:#x}"));
    Ok(std::fs::write(path, page)?)
}

fn finds(
    stage: &Stage,
    machine: &mut Machine,
    search: &Search,
) -> Result<BTreeMap<String, usize>, Failure> {
    let ram = memory::dump(machine, stage.folder())?;
    Ok(search.finds(&ram))
}

fn spec(stage: &Stage, start: &str) -> Result<Spec, Failure> {
    spec_with(stage, start, &[])
}

fn spec_with(stage: &Stage, start: &str, files: &[(&str, &[u8])]) -> Result<Spec, Failure> {
    if !start.is_empty() {
        stage.needs_initramfs_tools("Its killer is written for the shell of initramfs-tools.")?;
    }
    let framework = stage.flavour().framework;
    let ((path, after), enlist) = script_after_agent(framework, AFTER_AGENT);
    let start = format!("{enlist}{start}");
    let mut all = vec![
        (script_at_start(framework), start.as_bytes()),
        (path, after.as_bytes()),
    ];
    all.extend(files);
    let boot = stage.bound()?.boot.with_files(stage.folder(), &all)?;
    let machine = stage.machine(&stage.bound_disk()?, "boot");
    Ok(machine.direct(&boot).memory_mib(MEMORY_MIB))
}

fn running(stage: &Stage) -> Result<KeyServer, Failure> {
    let mut server = stage.key_server()?;
    server.start(PORT)?;
    Ok(server)
}
