//! Who may boot: an announced reboot needs nobody, a power-off is none, and a copy of the running machine's disk is refused.

use std::time::Duration;

use latchkey_tests::bound::PORT;
use latchkey_tests::guest::MAPPING;
use latchkey_tests::keyserver::KeyServer;
use latchkey_tests::machine::{Disk, Machine};
use latchkey_tests::stage::{Failure, Outcome, Scenario, Stage, ensure};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "an announced reboot needs nobody, and the boot after a power-off asks",
        play: announced,
    },
    Scenario {
        name: "a copy of the disk that boots while the original runs is refused with an alarm",
        play: copied,
    },
];

pub const LIMIT: Duration = Duration::from_secs(240);
/// A machine whose tickets have moved on in this boot, and whose stream stands.
pub const IN_TOUCH: &str = "\
    for second in $(seq 180); do
        said=$(journalctl --boot --unit latchkey --output cat)
        case \"$said\" in *'hears that this machine lives'*'tickets moved on'* | \
            *'tickets moved on'*'hears that this machine lives'*) exit 0 ;; esac
        sleep 1
    done
    systemctl status latchkey latchkey-arm --no-pager
    echo \"$said\"
    exit 1";

fn announced(stage: &Stage) -> Outcome {
    let (server, disk, mut machine) = in_touch(stage)?;
    let status = machine.check("systemctl show --value --property StatusText latchkey")?;
    ensure(status.contains(": connected"), || {
        format!("systemctl status says '{status}'")
    })?;
    server.admin(&["policy", "set", MAPPING, "fleet"])?;
    machine.reboot()?;
    machine.up()?;
    let audit = server.admin(&["audit"])?;
    ensure(audit.contains("the machine announced a reboot"), || {
        format!("the reboot was not announced:\n{audit}")
    })?;
    machine.check_within(IN_TOUCH, LIMIT)?;
    let failed = machine.check("systemctl list-units --failed --plain --no-legend 'latchkey*'")?;
    ensure(failed.is_empty(), || format!("failed units: {failed}"))?;
    machine.power_off()?;
    let announcements = |audit: &str| audit.matches("the machine announced a reboot").count();
    let before = announcements(&audit);
    let audit = server.admin(&["audit"])?;
    ensure(announcements(&audit) == before, || {
        format!("a power-off was announced:\n{audit}")
    })?;

    let mut machine = Machine::start(&stage.bound_machine(&disk, "after-power-off").systemd())?;
    machine.expect("waiting for approval of request ", LIMIT)?;
    let id = machine.console.take_until(", code ", LIMIT)?;
    let code = machine.console.take_line(LIMIT)?;
    server.admin(&["approve", &id, code.trim()])?;
    machine.up()?;
    machine.power_off()?;
    Ok(())
}

fn copied(stage: &Stage) -> Outcome {
    let (server, disk, mut original) = in_touch(stage)?;
    server.admin(&["policy", "set", MAPPING, "home-server"])?;
    let copy = snapshot(stage, &disk, &mut original)?;
    let mut administrator = server.follow()?;
    let mut thief = Machine::start(&stage.bound_machine(&copy, "copy").systemd())?;
    thief.expect("the key server denied: ", LIMIT)?;
    let alarm = administrator.expect("that one is a copy", LIMIT)?;
    ensure(alarm.after()? < Duration::from_secs(1), || {
        format!("the alarm came late to the administrator: {alarm:?}")
    })?;
    let audit = server.admin(&["audit"])?;
    ensure(audit.contains("that one is a copy"), || {
        format!("no alarm in the audit:\n{audit}")
    })?;
    let said = original.check("journalctl --boot --unit latchkey --output cat")?;
    ensure(said.contains("another one boots with its boot key"), || {
        format!("the original does not say so:\n{said}")
    })?;
    original.check("systemctl is-active latchkey")?;
    drop(thief);
    original.power_off()?;
    Ok(())
}

/// A copy of a running machine's disk, as a snapshot of the provider's: as it is at one moment.
pub fn snapshot(stage: &Stage, disk: &Disk, machine: &mut Machine) -> Result<Disk, Failure> {
    machine.check("sync")?;
    let copy = stage.folder().join("copy.qcow2");
    machine.while_paused(|| std::fs::copy(disk.path(), &copy))??;
    Ok(Disk::existing(&copy))
}

/// A machine that has come up by the policy of its binding, and that the key server knows to run.
pub fn in_touch(stage: &Stage) -> Result<(KeyServer, Disk, Machine), Failure> {
    let mut server = stage.key_server()?;
    server.start(PORT)?;
    let disk = stage.bound_disk()?;
    let mut machine = Machine::start(&stage.bound_machine(&disk, "boot").systemd())?;
    machine.up()?;
    machine.check_within(IN_TOUCH, LIMIT)?;
    Ok((server, disk, machine))
}
