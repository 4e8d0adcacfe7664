//! Rounds of load, and what they come to.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::task::JoinSet;

use crate::{Failure, Server, Target};

/// Before the first round, for each server.
const WARM_UP: Duration = Duration::from_millis(500);
/// At once meanwhile.
const WARM_UP_CONNECTIONS: usize = 16;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Connections at once, each in its turn.
    pub connections: Vec<usize>,
    /// Length of a round.
    pub time: Duration,
    /// Rounds of each.
    pub rounds: usize,
}

/// Medians over the rounds of one server at one number of connections.
#[derive(Debug, Clone, Serialize)]
pub struct Rate {
    /// The server.
    pub server: Server,
    /// Connections at once.
    pub connections: usize,
    /// Whole exchanges in a second.
    pub per_second: f64,
    /// Half of the exchanges took no longer, in ms.
    pub p50_ms: f64,
    /// All but a hundredth took no longer, in ms.
    pub p99_ms: f64,
    /// Exchanges that failed, in all rounds.
    pub failed: usize,
    /// The rate in each round.
    pub rounds: Vec<f64>,
}

/// What one round came to.
pub struct Round {
    /// Whole exchanges in a second.
    pub per_second: f64,
    /// As of [`Rate`].
    pub p50_ms: f64,
    /// As of [`Rate`].
    pub p99_ms: f64,
    /// Exchanges that failed.
    pub failed: usize,
}

/// Loads all targets in turn, round by round.
pub async fn measure(targets: &[(Server, Arc<Target>)], plan: &Plan) -> Result<Vec<Rate>, Failure> {
    for (_, target) in targets {
        round(target, WARM_UP_CONNECTIONS, WARM_UP).await?;
    }
    let mut cells: Vec<(Server, usize, Vec<Round>)> = Vec::new();
    for connections in &plan.connections {
        for (server, _) in targets {
            cells.push((*server, *connections, Vec::new()));
        }
    }
    for number in 1..=plan.rounds {
        eprintln!("latchkey-load: round {number} of {}", plan.rounds);
        for (server, connections, rounds) in &mut cells {
            for (name, target) in targets {
                if name == server {
                    rounds.push(round(target, *connections, plan.time).await?);
                }
            }
        }
    }
    Ok(cells
        .into_iter()
        .map(|(server, connections, rounds)| {
            let figures =
                |figure: fn(&Round) -> f64| rounds.iter().map(figure).collect::<Vec<f64>>();
            Rate {
                server,
                connections,
                per_second: median(figures(|round| round.per_second)),
                p50_ms: median(figures(|round| round.p50_ms)),
                p99_ms: median(figures(|round| round.p99_ms)),
                failed: rounds.iter().map(|round| round.failed).sum(),
                rounds: figures(|round| round.per_second),
            }
        })
        .collect())
}

/// Makes `count` exchanges, all of which must succeed.
pub async fn count(target: &Arc<Target>, connections: usize, count: usize) -> Result<(), Failure> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let (target, next) = (Arc::clone(target), Arc::clone(&next));
        tasks.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok::<(), Failure>(());
                }
                target.exchange(number).await?;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

/// One round: each connection makes one exchange after the other until the time is up; those that run then are
/// finished and counted, in the time that they took.
pub async fn round(
    target: &Arc<Target>,
    connections: usize,
    time: Duration,
) -> Result<Round, Failure> {
    let begun = Instant::now();
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let (target, next) = (Arc::clone(target), Arc::clone(&next));
        tasks.spawn(async move {
            let (mut times, mut failures) = (Vec::new(), Vec::new());
            while begun.elapsed() < time {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let started = Instant::now();
                match target.exchange(number).await {
                    Ok(()) => times.push(started.elapsed()),
                    Err(failure) => failures.push(failure),
                }
            }
            (times, failures)
        });
    }
    let (mut times, mut failures) = (Vec::new(), Vec::new());
    while let Some(ended) = tasks.join_next().await {
        let (some, failed) = ended?;
        times.extend(some);
        failures.extend(failed);
    }
    let elapsed = begun.elapsed();
    if let Some(failure) = failures.first() {
        if times.is_empty() {
            return Err(format!("no exchange succeeded: {failure}").into());
        }
        eprintln!(
            "latchkey-load: {} exchanges failed, the first one: {failure}",
            failures.len()
        );
    }
    times.sort_unstable();
    Ok(Round {
        per_second: times.len() as f64 / elapsed.as_secs_f64(),
        p50_ms: quantile(&times, 50),
        p99_ms: quantile(&times, 99),
        failed: failures.len(),
    })
}

/// The smallest of the ascending `times` that `percent` of them do not exceed, in ms.
pub fn quantile(times: &[Duration], percent: usize) -> f64 {
    let place = (times.len() * percent).div_ceil(100).max(1) - 1;
    times
        .get(place)
        .map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
}

/// The middle one of `figures`.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    match figures.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => figures[odd / 2],
        even => f64::midpoint(figures[even / 2 - 1], figures[even / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_medians_are_what_they_are_called() {
        let times: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(quantile(&times, 50), 100.0);
        assert_eq!(quantile(&times, 99), 198.0);
        assert_eq!(quantile(&times[..1], 99), 1.0);
        assert!(quantile(&[], 50).is_nan());
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
