//! Key servers that are late, dead, silent or not ours.

use std::thread;
use std::time::Duration;

use latchkey_tests::bound::{PORT, SECOND_PORT};
use latchkey_tests::guest::PASSPHRASE;
use latchkey_tests::machine::Machine;
use latchkey_tests::network::silent_server;
use latchkey_tests::stage::{Outcome, Scenario, Stage, ensure};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a key server that comes 60 s late opens while the prompt stands",
        play: late,
    },
    Scenario {
        name: "the second address opens when the first is dead",
        play: first_dead,
    },
    Scenario {
        name: "the second address opens when the first accepts and is silent",
        play: first_silent,
    },
    Scenario {
        name: "a key server of another CA gets nothing and the prompt stays",
        play: other_ca,
    },
];

const LIMIT: Duration = Duration::from_secs(180);

pub fn late(stage: &Stage) -> Outcome {
    let mut server = stage.key_server()?;
    let mut machine = Machine::start(&stage.bound_machine(&stage.bound_disk()?, "boot"))?;
    machine.expect_beside(stage.prompt(), LIMIT)?;
    machine.expect("no key server answers", LIMIT)?;
    thread::sleep(Duration::from_secs(60));
    server.start(PORT)?;
    machine.expect("'vda2_crypt' was opened automatically", LIMIT)?;
    machine.up()?;
    machine.power_off()?;
    Ok(())
}

fn first_dead(stage: &Stage) -> Outcome {
    let mut server = stage.key_server()?;
    server.start(SECOND_PORT)?;
    let mut machine = Machine::start(&stage.bound_machine(&stage.bound_disk()?, "boot"))?;
    machine.expect("'vda2_crypt' was opened automatically", LIMIT)?;
    machine.up()?;
    machine.power_off()?;
    Ok(())
}

fn first_silent(stage: &Stage) -> Outcome {
    silent_server(PORT)?;
    first_dead(stage)
}

fn other_ca(stage: &Stage) -> Outcome {
    let mut foreign = stage.foreign_key_server()?;
    foreign.start(PORT)?;
    let mut machine = Machine::start(&stage.bound_machine(&stage.bound_disk()?, "boot"))?;
    machine.expect("another CA", LIMIT)?;
    machine.answer_first(stage.prompt(), PASSPHRASE)?;
    machine.expect("'vda2_crypt' was opened by a typed passphrase", LIMIT)?;
    machine.up()?;
    machine.power_off()?;
    let requests = foreign.admin(&["requests", "--json"])?;
    ensure(!requests.contains("web1"), || {
        format!("the foreign key server heard of the machine: {requests}")
    })
}
