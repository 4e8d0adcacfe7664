//! Who may boot, told to the end: power cuts, old copies of the disk, a machine that is locked out, a store that was put back.

use latchkey_tests::bound::{CLIENT, PORT};
use latchkey_tests::guest::{MAPPING, PASSPHRASE};
use latchkey_tests::keyserver::KeyServer;
use latchkey_tests::machine::Machine;
use latchkey_tests::stage::{Outcome, Scenario, Stage, ensure};

use crate::arming::{IN_TOUCH, LIMIT, in_touch, snapshot};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a power cut: home-server opens at the machine's address by itself, fleet asks",
        play: power_cut,
    },
    Scenario {
        name: "an old copy of the disk asks though the original is off, and the alarm says why",
        play: old_copy,
    },
    Scenario {
        name: "a machine that was denied and locked stays out until it is readmitted",
        play: locked_out,
    },
    Scenario {
        name: "a store that was put back is noticed by the next machine and releases nothing until accepted",
        play: put_back,
    },
];

fn power_cut(stage: &Stage) -> Outcome {
    let (server, disk, machine) = in_touch(stage)?;
    server.admin(&["policy", "set", MAPPING, "home-server"])?;
    drop(machine);

    let mut machine = Machine::start(&stage.bound_machine(&disk, "home-server").systemd())?;
    machine.expect(OPENED, LIMIT)?;
    machine.up()?;
    machine.check_within(IN_TOUCH, LIMIT)?;
    server.admin(&["policy", "set", MAPPING, "fleet"])?;
    drop(machine);

    let mut machine = Machine::start(&stage.bound_machine(&disk, "fleet").systemd())?;
    approve(&server, &mut machine)?;
    machine.expect(OPENED, LIMIT)?;
    machine.up()?;
    machine.power_off()?;
    Ok(())
}

fn old_copy(stage: &Stage) -> Outcome {
    let (server, disk, mut original) = in_touch(stage)?;
    server.admin(&["policy", "set", MAPPING, "home-server"])?;
    let copy = snapshot(stage, &disk, &mut original)?;
    original.reboot()?;
    original.up()?;
    original.check_within(IN_TOUCH, LIMIT)?;
    original.power_off()?;

    let mut thief = Machine::start(&stage.bound_machine(&copy, "copy").systemd())?;
    thief.expect("waiting for approval of request ", LIMIT)?;
    let audit = server.admin(&["audit"])?;
    ensure(audit.contains("alarm") && audit.contains("ticket"), || {
        format!("no alarm about a ticket in the audit:\n{audit}")
    })?;
    let released = audit.matches("released").count();
    drop(thief);
    let audit = server.admin(&["audit"])?;
    ensure(audit.matches("released").count() == released, || {
        format!("the copy got a share:\n{audit}")
    })
}

fn locked_out(stage: &Stage) -> Outcome {
    // The policy wants a ticket, which the service has written by now.
    let (server, disk, machine) = in_touch(stage)?;
    machine.power_off()?;
    server.admin(&["policy", "set", MAPPING, "fleet"])?;
    let mut machine = Machine::start(&stage.bound_machine(&disk, "asks").systemd())?;
    machine.expect("waiting for approval of request ", LIMIT)?;
    let id = machine.console.take_until(", code ", LIMIT)?;
    server.admin(&["deny", &id, "--lock"])?;
    machine.expect("the key server denied: ", LIMIT)?;
    drop(machine);

    let mut machine = Machine::start(&stage.bound_machine(&disk, "locked").systemd())?;
    machine.expect("this client is locked out by the administrator", LIMIT)?;
    // It is the automatic way that is locked, not the owner.
    machine.answer_first(stage.prompt(), PASSPHRASE)?;
    machine.expect("was opened by a typed passphrase", LIMIT)?;
    machine.up()?;
    machine.power_off()?;

    server.admin(&["readmit", CLIENT])?;
    let mut machine = Machine::start(&stage.bound_machine(&disk, "readmitted").systemd())?;
    approve(&server, &mut machine)?;
    machine.expect(OPENED, LIMIT)?;
    machine.up()?;
    machine.power_off()?;
    Ok(())
}

fn put_back(stage: &Stage) -> Outcome {
    let (mut server, disk, mut machine) = in_touch(stage)?;
    server.stop()?;
    let mut yesterday = server.copy(&stage.folder().join("yesterday"))?;
    server.start(PORT)?;
    machine.reboot()?;
    machine.up()?;
    machine.check_within(IN_TOUCH, LIMIT)?;

    server.stop()?;
    yesterday.start(PORT)?;
    machine.check_within(NOTICED, LIMIT)?;
    machine.reboot()?;
    machine.expect("store was put back to an earlier state", LIMIT)?;
    let audit = yesterday.admin(&["audit"])?;
    yesterday.admin(&["accept-rollback", "--reason", "a disk was restored"])?;
    machine.console.type_line(PASSPHRASE)?;
    machine.expect("was opened by a typed passphrase", LIMIT)?;
    machine.up()?;
    // Its ticket was newer than what this store knows of; now there is one that both know.
    machine.check_within(IN_TOUCH, LIMIT)?;
    machine.power_off()?;

    let after = yesterday.admin(&["audit"])?;
    ensure(after.contains("a disk was restored"), || {
        format!("the acceptance is not on record:\n{after}")
    })?;
    ensure(
        audit.matches("released").count() == after.matches("released").count(),
        || format!("something was released before it was accepted:\n{after}"),
    )?;
    let mut machine = Machine::start(&stage.bound_machine(&disk, "accepted").systemd())?;
    machine.up()?;
    machine.power_off()?;
    Ok(())
}

const OPENED: &str = "was opened automatically";
/// The running machine has shown what it knows, and was told that the key server had forgotten it.
const NOTICED: &str = "\
    for second in $(seq 180); do
        case \"$(journalctl --boot --unit latchkey --output cat)\" in *'put back'*) exit 0 ;; esac
        sleep 1
    done
    journalctl --boot --unit latchkey --output cat
    exit 1";

/// Approves the boot that waits, by the code that its console shows.
fn approve(server: &KeyServer, machine: &mut Machine) -> Outcome {
    machine.expect("waiting for approval of request ", LIMIT)?;
    let id = machine.console.take_until(", code ", LIMIT)?;
    let code = machine.console.take_line(LIMIT)?;
    server.admin(&["approve", &id, code.trim()])?;
    Ok(())
}
