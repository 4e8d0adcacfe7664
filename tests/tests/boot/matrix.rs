//! The rows of `docs/compatibility.md`: facts that are tried on every flavour. A row is a scenario under the name that
//! users read; [`NotHere`](latchkey_tests::stage::NotHere) is what it says where it means nothing.

use latchkey_tests::guest::PASSPHRASE;
use latchkey_tests::machine::Machine;
use latchkey_tests::stage::{Outcome, Scenario, Stage};

use crate::{gate, memory, network, off, servers, unattended, verdicts};

pub const ROWS: &[Scenario] = &[
    Scenario {
        name: "without latchkey the passphrase opens (prompt after)",
        play: native,
    },
    Scenario {
        name: "two boots in a row are unattended (root runs after)",
        play: unattended::two_boots,
    },
    Scenario {
        name: "key server down: the passphrase opens (prompt after)",
        play: off::server_down,
    },
    Scenario {
        name: "key server 60 s late: opens while the prompt stands",
        play: servers::late,
    },
    Scenario {
        name: "machine revoked: the console says so, the passphrase opens",
        play: verdicts::revoked,
    },
    Scenario {
        name: "a stranger's disk of the same UUID gets no key",
        play: gate::own_volume,
    },
    Scenario {
        name: "the running system's network is that of a boot without latchkey",
        play: network::unattended,
    },
    Scenario {
        name: "no secret in the RAM when the root takes over",
        play: memory::unattended,
    },
];

fn native(stage: &Stage) -> Outcome {
    let disk = stage.plain_disk()?;
    let mut machine = Machine::start(&stage.native_machine(&disk, "boot")?)?;
    stage.note(machine.answer(stage.native_prompt(), PASSPHRASE)?);
    machine.up()?;
    machine.power_off()?;
    Ok(())
}
