//! Honest boots while others keep thousands of idle and slow connections: how long they take, and what that costs the
//! key server in memory.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::runtime::Runtime;

use crate::attack::{Addresses, Attack, Orders, Outcome};
use crate::keyserver::Home;
use crate::machine::Machines;
use crate::{Failure, Target, rounds};

/// Honest connections at once.
const CONNECTIONS: usize = 16;
/// Machines that boot.
const MACHINES: usize = 256;
/// Until an attack has as many connections as it gets.
const FILL: Duration = Duration::from_secs(8);
/// Between two looks at the memory.
const LOOK: Duration = Duration::from_millis(100);
/// p99 under attack, as a multiple of the one without.
const AT_MOST: f64 = 2.0;

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Connections of the attacker.
    pub connections: usize,
    /// Of them, new ones in a second.
    pub rate: usize,
    /// Length of a round.
    pub time: Duration,
}

/// Everything of it.
#[derive(Debug, Serialize)]
pub struct Slow {
    /// Connections that the attacker keeps.
    pub connections: usize,
    /// Of them, new ones in a second, at most.
    pub rate: usize,
    /// Honest connections at once.
    pub honest: usize,
    /// Without attack, then from each kind of addresses.
    pub rows: Vec<Row>,
    /// p99 from many addresses, as a multiple of the one without attack.
    pub ratio: f64,
    /// The goal.
    pub at_most: f64,
    /// Whether it is reached, and no honest boot failed.
    pub holds: bool,
}

/// One round.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Where the attack comes from.
    pub addresses: Option<Addresses>,
    /// Honest boots in a second.
    pub per_second: f64,
    /// As of [`rounds::Rate`].
    pub p50_ms: f64,
    /// As of [`rounds::Rate`].
    pub p99_ms: f64,
    /// Honest boots that failed.
    pub failed: usize,
    /// The attacker's connections.
    pub attack: Outcome,
    /// The key server's peak meanwhile, VmRSS in KiB.
    pub resident_kib: u64,
}

/// Measures, in a folder of its own.
pub fn measure(
    runtime: &Runtime,
    program: &Path,
    folder: &Path,
    plan: Plan,
) -> Result<Slow, Failure> {
    let home = Home::create(program, &folder.join("slow"))?;
    let machines = Machines::join(&home, MACHINES)?;
    let authority = home.registrar()?.authority().certificate().to_vec();
    let target = Arc::new(Target::Latchkeyd(machines.start(&home)?));
    let mut rows = Vec::new();
    for addresses in [None, Some(Addresses::Many), Some(Addresses::One)] {
        let Target::Latchkeyd(fleet) = &*target else {
            return Err("not a key server".into());
        };
        let attack = match addresses {
            None => None,
            Some(addresses) => Some(Attack::start(&Orders {
                server: fleet.server().address(),
                authority: authority.clone(),
                connections: plan.connections,
                rate: plan.rate,
                addresses,
            })?),
        };
        let fill = attack.as_ref().map_or(Duration::ZERO, |_| FILL);
        let (round, resident_kib) = runtime.block_on(async {
            let looked = peak(fleet, fill).await?;
            let round = rounds::round(&target, CONNECTIONS, plan.time);
            let (round, peak) = tokio::join!(round, peak(fleet, plan.time));
            Ok::<_, Failure>((round?, peak?.max(looked)))
        })?;
        rows.push(Row {
            addresses,
            per_second: round.per_second,
            p50_ms: round.p50_ms,
            p99_ms: round.p99_ms,
            failed: round.failed,
            attack: attack.map_or(Ok(Outcome::default()), Attack::end)?,
            resident_kib,
        });
    }
    let ratio = rows[1].p99_ms / rows[0].p99_ms;
    Ok(Slow {
        connections: plan.connections,
        rate: plan.rate,
        honest: CONNECTIONS,
        holds: ratio <= AT_MOST && rows.iter().all(|row| row.failed == 0),
        rows,
        ratio,
        at_most: AT_MOST,
    })
}

/// The most resident memory within `time`.
async fn peak(fleet: &crate::machine::Fleet, time: Duration) -> Result<u64, Failure> {
    let begun = Instant::now();
    let mut most = fleet.server().resident()?;
    while begun.elapsed() < time {
        tokio::time::sleep(LOOK).await;
        most = most.max(fleet.server().resident()?);
    }
    Ok(most)
}

impl Slow {
    /// For people.
    pub fn table(&self) -> String {
        let mut text = format!(
            "\n{} idle and slow connections, at most {} new ones in a second, beside {} honest ones at once\n\n\
             {:<15} {:>8} {:>9} {:>9} {:>7} {:>8} {:>8} {:>8} {:>9}\n",
            self.connections,
            self.rate,
            self.honest,
            "attack from",
            "1/s",
            "p50 ms",
            "p99 ms",
            "failed",
            "opened",
            "closed",
            "at once",
            "peak MiB"
        );
        for row in &self.rows {
            text += &format!(
                "{:<15} {:>8.0} {:>9.2} {:>9.2} {:>7} {:>8} {:>8} {:>8} {:>9.1}\n",
                row.from(),
                row.per_second,
                row.p50_ms,
                row.p99_ms,
                row.failed,
                row.attack.opened,
                row.attack.closed,
                row.attack.most,
                row.resident_kib as f64 / 1024.0
            );
        }
        text += &format!(
            "\n{}: the honest p99 is {:.2} of the one without attack, the goal is at most {:.1}\n",
            if self.holds { "reached" } else { "MISSED" },
            self.ratio,
            self.at_most
        );
        text
    }
}

impl Row {
    fn from(&self) -> &'static str {
        match self.addresses {
            None => "nobody",
            Some(Addresses::Many) => "many addresses",
            Some(Addresses::One) => "one address",
        }
    }
}
