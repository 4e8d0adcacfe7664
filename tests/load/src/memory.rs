//! The key server's resident memory, by number of clients.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use tokio::runtime::Runtime;

use crate::keyserver::Home;
use crate::machine::Machines;
use crate::{Failure, Target, rounds};

/// Releases before the memory is looked at, so that what is made on demand is there.
const RELEASES: usize = 500;
/// At once.
const CONNECTIONS: usize = 16;
/// Of the clients, those that boot.
const MACHINES: usize = 16;

/// One figure.
#[derive(Debug, Serialize)]
pub struct Resident {
    /// Clients, each with one volume.
    pub clients: usize,
    /// VmRSS in KiB after start and [`RELEASES`] releases (with no client: right after start).
    pub resident_kib: u64,
}

/// Fills one store step by step to each of `counts` (ascending) by the server's own library, and starts the server
/// at each.
pub fn measure(
    runtime: &Runtime,
    program: &Path,
    folder: &Path,
    counts: &[usize],
) -> Result<Vec<Resident>, Failure> {
    let mut figures = Vec::new();
    if counts.is_empty() {
        return Ok(figures);
    }
    let home = Home::create(program, &folder.join("memory"))?;
    let mut filled = MACHINES;
    let mut machines = None;
    for clients in counts {
        if *clients == 0 {
            figures.push(Resident {
                clients: 0,
                resident_kib: home.serve()?.resident()?,
            });
            continue;
        }
        let joined = match machines.take() {
            Some(joined) => joined,
            None => Machines::join(&home, MACHINES)?,
        };
        home.registrar()?.fill(filled, *clients)?;
        filled = filled.max(*clients);
        let running = Arc::new(Target::Latchkeyd(joined.start(&home)?));
        runtime.block_on(rounds::count(&running, CONNECTIONS, RELEASES))?;
        let Ok(Target::Latchkeyd(running)) = Arc::try_unwrap(running) else {
            return Err("a release still runs".into());
        };
        figures.push(Resident {
            clients: *clients,
            resident_kib: running.server().resident()?,
        });
        machines = Some(running.stop());
    }
    Ok(figures)
}
