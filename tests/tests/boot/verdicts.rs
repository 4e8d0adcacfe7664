//! What the key server decides, and what the console makes of it.

use std::time::Duration;

use latchkey_tests::bound::{CLIENT, PORT};
use latchkey_tests::guest::{MAPPING, PASSPHRASE};
use latchkey_tests::keyserver::KeyServer;
use latchkey_tests::machine::{Machine, Spec};
use latchkey_tests::stage::{Failure, Outcome, Scenario, Stage, ensure};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a revoked client gets the reason and the prompt",
        play: revoked,
    },
    Scenario {
        name: "a destroyed share leaves the reason and the prompt",
        play: destroyed,
    },
    Scenario {
        name: "ask shows a code; a wrong one is refused, the right one opens",
        play: approved,
    },
    Scenario {
        name: "a denied request leaves the reason and the prompt",
        play: denied,
    },
];

const LIMIT: Duration = Duration::from_secs(180);
const TYPED: &str = "was opened by a typed passphrase";

pub fn revoked(stage: &Stage) -> Outcome {
    let mut server = stage.key_server()?;
    server.start(PORT)?;
    server.admin(&["revoke", CLIENT])?;
    let mut machine = Machine::start(&stage.bound_machine(&stage.bound_disk()?, "boot"))?;
    machine.expect("the key server denied: ", LIMIT)?;
    machine.expect("revoked", LIMIT)?;
    by_passphrase(stage, machine)
}

fn destroyed(stage: &Stage) -> Outcome {
    let mut server = stage.key_server()?;
    server.start(PORT)?;
    server.admin(&["destroy", MAPPING, "--yes"])?;
    let mut machine = Machine::start(&stage.bound_machine(&stage.bound_disk()?, "boot"))?;
    machine.expect("destroyed", LIMIT)?;
    by_passphrase(stage, machine)
}

fn approved(stage: &Stage) -> Outcome {
    let (server, mut machine, id, code) = asked(stage)?;
    let wrong = if code.starts_with('A') {
        "BBB-BBB"
    } else {
        "AAA-AAA"
    };
    ensure(server.admin(&["approve", &id, wrong]).is_err(), || {
        "a wrong code was taken".to_owned()
    })?;
    let requests = server.admin(&["requests", "--json"])?;
    ensure(!requests.contains(&code), || {
        format!("the code can be read where it should be typed: {requests}")
    })?;
    server.admin(&["approve", &id, &code])?;
    machine.expect("'vda2_crypt' was opened automatically", LIMIT)?;
    machine.up()?;
    machine.power_off()?;
    Ok(())
}

fn denied(stage: &Stage) -> Outcome {
    let (server, mut machine, id, _) = asked(stage)?;
    server.admin(&["deny", &id])?;
    machine.expect("the key server denied: ", LIMIT)?;
    by_passphrase(stage, machine)
}

fn asked(stage: &Stage) -> Result<(KeyServer, Machine, String, String), Failure> {
    let spec = stage.bound_machine(&stage.bound_disk()?, "boot");
    asked_by(stage, &spec)
}

/// A machine whose volume needs approval, at the point where its console shows the code.
pub fn asked_by(
    stage: &Stage,
    spec: &Spec,
) -> Result<(KeyServer, Machine, String, String), Failure> {
    let mut server = stage.key_server()?;
    server.start(PORT)?;
    server.admin(&["policy", MAPPING, "ask"])?;
    let mut machine = Machine::start(spec)?;
    machine.expect_beside(stage.prompt(), LIMIT)?;
    machine.expect("waiting for approval of request ", LIMIT)?;
    let id = machine.console.take_until(", code ", LIMIT)?;
    let code = machine.console.take_line(LIMIT)?;
    Ok((server, machine, id, code.trim().to_owned()))
}

fn by_passphrase(stage: &Stage, mut machine: Machine) -> Outcome {
    machine.answer_first(stage.prompt(), PASSPHRASE)?;
    machine.expect(TYPED, LIMIT)?;
    machine.up()?;
    machine.power_off()?;
    Ok(())
}
