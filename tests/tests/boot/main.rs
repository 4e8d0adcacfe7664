//! The boot scenarios. `make boot` plays them all; `cargo test --test boot -- --ignored NAME` plays some.

mod arming;
mod clocks;
mod data;
mod data_disks;
mod devices;
mod dropbear;
mod fallbacks;
mod gate;
mod generic;
mod image;
mod journal;
mod keyserver;
mod kinds;
mod lvm;
mod matrix;
mod memory;
mod network;
mod off;
mod oom;
mod pairs;
mod plymouth;
mod questions;
mod recovery;
mod roots;
mod rotation;
mod secrets;
mod servers;
mod several;
mod thieves;
mod trouble;
mod typing;
mod unattended;
mod verdicts;

use std::path::Path;
use std::process::ExitCode;

use latchkey_tests::runner::Program;
use latchkey_tests::stage::Scenario;

/// The longest comes first: its machine is its own, and the one that all others start from is made beside it.
const SCENARIOS: &[&[Scenario]] = &[
    kinds::SCENARIOS,
    unattended::SCENARIOS,
    off::SCENARIOS,
    typing::SCENARIOS,
    servers::SCENARIOS,
    verdicts::SCENARIOS,
    arming::SCENARIOS,
    clocks::SCENARIOS,
    gate::SCENARIOS,
    devices::SCENARIOS,
    network::SCENARIOS,
    fallbacks::SCENARIOS,
    keyserver::SCENARIOS,
    memory::SCENARIOS,
];

/// Stories of many boots, or of machines that would have to be made for them alone, too long for `make test`; and scenarios
/// that wait for their first pass (docs/status.md).
const LONGER: &[&[Scenario]] = &[
    thieves::SCENARIOS,
    dropbear::SCENARIOS,
    lvm::SCENARIOS,
    kinds::LONGER,
    roots::SCENARIOS,
    pairs::SCENARIOS,
    data::SCENARIOS,
    rotation::SCENARIOS,
    several::SCENARIOS,
    recovery::SCENARIOS,
    oom::SCENARIOS,
    questions::SCENARIOS,
    plymouth::SCENARIOS,
    image::SCENARIOS,
];

fn main() -> ExitCode {
    let program = Program {
        scenarios: &SCENARIOS.concat(),
        longer: &LONGER.concat(),
        rows: matrix::ROWS,
        folder: &Path::new(env!("CARGO_TARGET_TMPDIR")).join("boot"),
        results: &Path::new(env!("CARGO_MANIFEST_DIR")).join("matrix.json"),
        page: &Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("docs/compatibility.md"),
    };
    program.run()
}
