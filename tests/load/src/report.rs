//! The figures as a table and as JSON, and the goals.

use std::fmt::Write;

use serde::Serialize;

use crate::memory::Resident;
use crate::rounds::{Plan, Rate, median};
use crate::slow::Slow;
use crate::strangers::Strangers;
use crate::{Server, wire};

/// Releases of this share of the raw handshake rate at least.
const OF_HANDSHAKES: f64 = 0.6;
/// Releases for each recovery of tangd at least.
const OF_TANGD: f64 = 3.0;
/// The goals are about loaded servers.
const LOADED: usize = 16;

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Processors, which client and server share.
    cores: usize,
    clients: usize,
    seconds: f64,
    rounds: usize,
    rates: Vec<Rate>,
    memory: Vec<Resident>,
    slow: Option<Slow>,
    strangers: Option<Strangers>,
    goals: Vec<Goal>,
}

/// What the parts measured.
pub struct Measured {
    /// Releases and what they are compared with.
    pub rates: Vec<Rate>,
    /// The server's memory.
    pub memory: Vec<Resident>,
    /// Boots beside idle and slow connections.
    pub slow: Option<Slow>,
    /// How long strangers wait for their answers.
    pub strangers: Option<Strangers>,
}

/// Releases compared with something else, at the same number of connections.
#[derive(Debug, PartialEq, Serialize)]
struct Goal {
    compared_with: Server,
    connections: usize,
    ratio: f64,
    at_least: f64,
    holds: bool,
}

impl Report {
    /// The report of one run.
    pub fn new(plan: &Plan, clients: usize, measured: Measured) -> Self {
        Self {
            cores: wire::threads(),
            clients,
            seconds: plan.time.as_secs_f64(),
            rounds: plan.rounds,
            goals: goals(&measured.rates),
            rates: measured.rates,
            memory: measured.memory,
            slow: measured.slow,
            strangers: measured.strangers,
        }
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut text = format!(
            "Whole exchanges on loopback, each on a new connection; client and server share {} processors.\n\
             Medians of {} rounds of {} s; {} machines take turns.\n\n\
             {:<12} {:>8} {:>8} {:>9} {:>9} {:>7}\n",
            self.cores,
            self.rounds,
            self.seconds,
            self.clients,
            "server",
            "at once",
            "1/s",
            "p50 ms",
            "p99 ms",
            "failed"
        );
        // Writing to a string does not fail.
        for rate in &self.rates {
            let _ = writeln!(
                text,
                "{:<12} {:>8} {:>8.0} {:>9.2} {:>9.2} {:>7}",
                rate.server.to_string(),
                rate.connections,
                rate.per_second,
                rate.p50_ms,
                rate.p99_ms,
                rate.failed
            );
        }
        if !self.memory.is_empty() {
            let _ = writeln!(text, "\n{:>9} {:>13}", "clients", "resident MiB");
        }
        for resident in &self.memory {
            let mib = resident.resident_kib as f64 / 1024.0;
            let _ = writeln!(text, "{:>9} {mib:>13.1}", resident.clients);
        }
        if !self.goals.is_empty() {
            text.push('\n');
        }
        for goal in &self.goals {
            let _ = writeln!(
                text,
                "{}: releases are {:.2} of {} at {} at once, the goal is {:.1}",
                if goal.holds { "reached" } else { "MISSED" },
                goal.ratio,
                goal.compared_with,
                goal.connections,
                goal.at_least
            );
        }
        text += &self.slow.as_ref().map(Slow::table).unwrap_or_default();
        text += &self
            .strangers
            .as_ref()
            .map(Strangers::table)
            .unwrap_or_default();
        text
    }
}

fn goals(rates: &[Rate]) -> Vec<Goal> {
    let loaded = rates.iter().filter(|rate| rate.connections >= LOADED);
    let mut goals = Vec::new();
    for release in loaded.filter(|rate| rate.server == Server::Latchkeyd) {
        for (compared_with, at_least) in [
            (Server::Handshakes, OF_HANDSHAKES),
            (Server::Tangd, OF_TANGD),
        ] {
            let other = rates.iter().find(|rate| {
                rate.server == compared_with && rate.connections == release.connections
            });
            let Some(other) = other else { continue };
            // Round by round: the two stand side by side in time, and share what disturbed them.
            let rounds = release.rounds.iter().zip(&other.rounds);
            let ratio = median(rounds.map(|(ours, theirs)| ours / theirs).collect());
            goals.push(Goal {
                compared_with,
                connections: release.connections,
                ratio,
                at_least,
                holds: ratio >= at_least,
            });
        }
    }
    goals
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(server: Server, connections: usize, per_second: f64) -> Rate {
        Rate {
            server,
            connections,
            per_second,
            p50_ms: 1.0,
            p99_ms: 2.0,
            failed: 0,
            rounds: vec![per_second],
        }
    }

    #[test]
    fn goals_compare_at_the_same_number_of_connections() {
        let rates = [
            rate(Server::Latchkeyd, 1, 1.0),
            rate(Server::Latchkeyd, 16, 600.0),
            rate(Server::Handshakes, 16, 1000.0),
            rate(Server::Tangd, 16, 201.0),
            rate(Server::Handshakes, 64, 1.0),
        ];
        let goals = goals(&rates);
        let found: Vec<_> = goals
            .iter()
            .map(|goal| (goal.compared_with, goal.connections, goal.holds))
            .collect();
        assert_eq!(
            found,
            [(Server::Handshakes, 16, true), (Server::Tangd, 16, false)]
        );
    }
}
