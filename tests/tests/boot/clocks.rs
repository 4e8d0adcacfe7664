//! At boot the clock is no evidence: C1 of the catalogue of faults.

use latchkey_tests::bound::PORT;
use latchkey_tests::machine::Machine;
use latchkey_tests::stage::{Outcome, Scenario, Stage};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "C1 a clock at 1970 and a server certificate younger than the image open",
        play: at_1970,
    },
    Scenario {
        name: "C1 a clock at 2106 opens",
        play: at_2106,
    },
];

fn at_1970(stage: &Stage) -> Outcome {
    // Its names changed, so it has a certificate of today; the image is older.
    let server = stage.key_server()?;
    server.add_name("another.example.org:7443")?;
    boots_at(stage, server, "1970-01-01T00:00:10")
}

fn at_2106(stage: &Stage) -> Outcome {
    boots_at(stage, stage.key_server()?, "2106-01-01T00:00:00")
}

fn boots_at(
    stage: &Stage,
    mut server: latchkey_tests::keyserver::KeyServer,
    clock: &str,
) -> Outcome {
    server.start(PORT)?;
    let spec = stage
        .bound_machine(&stage.bound_disk()?, "boot")
        .clock(clock);
    let mut machine = Machine::start(&spec)?;
    machine.expect(
        "'vda2_crypt' was opened automatically",
        std::time::Duration::from_secs(180),
    )?;
    machine.up()?;
    machine.power_off()?;
    Ok(())
}
