//! The rows of `docs/compatibility.md`, and row E1 of the faults: facts that are tried on every flavour. A row is a scenario under the name that
//! users read; [`NotHere`](latchkey_tests::stage::NotHere) is what it says where it means nothing.

use latchkey_tests::guest::PASSPHRASE;
use latchkey_tests::machine::Machine;
use latchkey_tests::stage::{Outcome, Scenario, Stage};

use crate::{
    devices, fallbacks, gate, generic, image, journal, memory, network, off, oom, plymouth,
    questions, servers, typing, unattended, verdicts,
};

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
    Scenario {
        name: "a passphrase typed while a request is on its way opens",
        play: typing::beside_a_request,
    },
    Scenario {
        name: "500 empty lines, Ctrl-C, a serial break, a megabyte typed: harmless",
        play: typing::harmless,
    },
    Scenario {
        name: "two consoles: the passphrase at the serial one opens (prompt after)",
        play: typing::two_consoles,
    },
    Scenario {
        name: "a console that nobody sees: opens by itself",
        play: typing::headless,
    },
    Scenario {
        name: "a splash screen (Plymouth): opens by itself, and by the passphrase typed at it (prompt after)",
        play: plymouth::splash,
    },
    Scenario {
        name: "the splash screen is killed: a prompt (after)",
        play: plymouth::killed,
    },
    Scenario {
        name: "others ask systemd's password agents: each question gets its own answer (prompt after)",
        play: questions::asked_once,
    },
    Scenario {
        name: "the root disk comes 120 s late: opens by itself",
        play: devices::very_late_disk,
    },
    Scenario {
        name: "the root disk never comes: no key is fetched, the emergency shell has no credentials (shell after)",
        play: devices::missing_disk,
    },
    Scenario {
        name: "an image for any machine, its volume named by rd.luks.name=: opens by itself",
        play: generic::named_by_kernel,
    },
    Scenario {
        name: "journal and `systemd-analyze blame` tell what latchkey did",
        play: journal::tells,
    },
    Scenario {
        name: "latchkey=off on the kernel command line: the native prompt, the passphrase opens",
        play: off::switched_off,
    },
    Scenario {
        name: "latchkey's files deleted from the image: the native prompt (after)",
        play: fallbacks::deleted,
    },
    Scenario {
        name: "the agent is /bin/false: the native prompt (after)",
        play: fallbacks::fails,
    },
    Scenario {
        name: "the agent hangs at its start: the native prompt (after)",
        play: fallbacks::hangs,
    },
    Scenario {
        name: "latchkey's settings in the image are empty: a prompt (after)",
        play: fallbacks::empty_settings,
    },
    Scenario {
        name: "the agent is killed at its prompt: the native prompt (after)",
        play: fallbacks::killed,
    },
    Scenario {
        name: "the kernel's OOM killer ends the agent: the native prompt (after), and no key is fetched",
        play: oom::killed,
    },
    Scenario {
        name: "an image built under a permissive umask is for root alone",
        play: image::permissive_umask,
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
