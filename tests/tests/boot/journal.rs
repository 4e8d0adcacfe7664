//! Where systemd runs the initramfs, its own tools tell what latchkey did.

use latchkey_tests::bound::PORT;
use latchkey_tests::flavour::Framework;
use latchkey_tests::machine::Machine;
use latchkey_tests::stage::{Outcome, Stage, ensure};

pub fn tells(stage: &Stage) -> Outcome {
    stage.needs(
        &[Framework::DracutSystemd],
        "There is no systemd in this initramfs.",
    )?;
    let mut server = stage.key_server()?;
    server.start(PORT)?;
    let spec = stage.bound_machine(&stage.bound_disk()?, "boot").systemd();
    let mut machine = Machine::start(&spec)?;
    machine.up()?;
    machine.check(
        "while systemctl is-system-running | grep -qE 'initializing|starting'; do sleep 1; done",
    )?;
    let journal = machine.check("journalctl --boot --unit latchkey-unlock --output cat")?;
    for line in [
        "started",
        "network up",
        "was opened automatically",
        "credentials wiped",
    ] {
        ensure(journal.contains(line), || {
            format!("no '{line}' in the journal of the unit:\n{journal}")
        })?;
    }
    let blame = machine.check("systemd-analyze blame --no-pager")?;
    ensure(blame.contains("latchkey-gate@vda2_crypt.service"), || {
        format!("what waiting cost is not in `systemd-analyze blame`:\n{blame}")
    })?;
    let failed = machine.check("systemctl list-units --failed --plain --no-legend 'latchkey*'")?;
    ensure(failed.is_empty(), || format!("failed units: {failed}"))?;
    machine.power_off()?;
    Ok(())
}
