//! Whether strangers are told apart by how long they wait for the one answer that all of them get.
//!
//! Two groups, each with one answer of its own: keys that may not ask for what they ask (403), and registered boot keys
//! that ask for a volume that is not theirs. Within a group the kinds take turns at random. What is measured begins when
//! the request is sent, after the handshake, which is the same for all.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use latchkey_protocol::VolumeId;
use latchkey_protocol::wire::{PROOF, RELEASE};
use rustls::ClientConfig;
use serde::Serialize;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::keyserver::Home;
use crate::machine::Machines;
use crate::{Failure, wire};

/// Requests at once: few, so that what is measured is the server and not the queue for the processors.
const AT_ONCE: usize = 8;
/// Machines that the requests are spread over: each may ask so often in an hour.
const MACHINES: usize = 64;
/// Of them, the first ones are revoked.
const REVOKED: usize = 16;
/// How far from one half the chance may be that an answer of one kind takes longer than one of the other.
const TOLD_APART: f64 = 0.05;

/// What a stranger is, and what he asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A key that nobody registered, for a volume that there is.
    UnknownKey,
    /// The same, for a volume that there is not.
    UnknownKeyNoVolume,
    /// A registered boot key at an endpoint that is not for it.
    WrongEndpoint,
    /// A revoked client's at the same.
    RevokedWrongEndpoint,
    /// A registered boot key, for another client's volume.
    AnothersVolume,
    /// The same, for a volume that there is not.
    NoVolume,
    /// A revoked client's, for another client's volume.
    RevokedAnothersVolume,
    /// The same, for a volume that there is not.
    RevokedNoVolume,
}

const KINDS: [Kind; 8] = [
    Kind::UnknownKey,
    Kind::UnknownKeyNoVolume,
    Kind::WrongEndpoint,
    Kind::RevokedWrongEndpoint,
    Kind::AnothersVolume,
    Kind::NoVolume,
    Kind::RevokedAnothersVolume,
    Kind::RevokedNoVolume,
];

impl Kind {
    /// The status that all of its group get.
    fn status(self) -> u16 {
        match self {
            Self::UnknownKey
            | Self::UnknownKeyNoVolume
            | Self::WrongEndpoint
            | Self::RevokedWrongEndpoint => 403,
            _ => 200,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::UnknownKey => "unknown key, a volume",
            Self::UnknownKeyNoVolume => "unknown key, no such volume",
            Self::WrongEndpoint => "boot key, host's endpoint",
            Self::RevokedWrongEndpoint => "revoked boot key, the same",
            Self::AnothersVolume => "boot key, another's volume",
            Self::NoVolume => "boot key, no such volume",
            Self::RevokedAnothersVolume => "revoked, another's volume",
            Self::RevokedNoVolume => "revoked, no such volume",
        }
    }
}

/// Everything of it.
#[derive(Debug, Serialize)]
pub struct Strangers {
    /// Requests in all.
    pub requests: usize,
    /// One for each kind.
    pub rows: Vec<Row>,
    /// Of all pairs within a group the chance, farthest from one half, that an answer of one kind takes longer than one of
    /// the other (Mann and Whitney's U, as a part of all pairs of answers).
    pub chance: f64,
    /// Of which two kinds.
    pub between: (Kind, Kind),
    /// How far from one half it may be.
    pub at_most: f64,
    /// Whether it is not farther.
    pub holds: bool,
}

/// The times of one kind.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Which.
    pub kind: Kind,
    /// How many answers.
    pub count: usize,
    /// Quarters of the answers took no longer than these, in ms.
    pub quartiles_ms: [f64; 3],
}

/// Makes `count` requests.
pub fn measure(
    runtime: &Runtime,
    program: &Path,
    folder: &Path,
    count: usize,
) -> Result<Strangers, Failure> {
    let home = Home::create(program, &folder.join("strangers"))?;
    let machines = Machines::join(&home, MACHINES)?;
    let registrar = home.registrar()?;
    for name in machines.names().take(REVOKED) {
        registrar.revoke(name)?;
    }
    let unknown = wire::unknown(registrar.authority().certificate())?;
    drop(registrar);
    let order = shuffled(count)?;
    let fleet = Arc::new(machines.start(&home)?);
    let next = Arc::new(AtomicUsize::new(0));
    let order = Arc::new(order);
    let mut times = runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for _ in 0..AT_ONCE {
            let (fleet, next, order) = (Arc::clone(&fleet), Arc::clone(&next), Arc::clone(&order));
            let unknown = Arc::clone(&unknown);
            tasks.spawn(async move {
                let mut times = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(kind) = order.get(number) else {
                        return Ok::<_, Failure>(times);
                    };
                    times.push((*kind, ask(&fleet, *kind, number, &unknown).await?));
                }
            });
        }
        let mut all = Vec::new();
        while let Some(ended) = tasks.join_next().await {
            all.extend(ended??);
        }
        Ok::<_, Failure>(all)
    })?;
    times.sort_unstable_by_key(|(_, time)| *time);
    Ok(compare(&times))
}

async fn ask(
    fleet: &crate::machine::Fleet,
    kind: Kind,
    number: usize,
    unknown: &Arc<ClientConfig>,
) -> Result<Duration, Failure> {
    let (good, revoked) = (REVOKED + number % (MACHINES - REVOKED), number % REVOKED);
    let other = fleet.volume(REVOKED + (number + 1) % (MACHINES - REVOKED));
    let none = VolumeId::random()?;
    let (asker, path, volume) = match kind {
        Kind::UnknownKey => (None, RELEASE, other),
        Kind::UnknownKeyNoVolume => (None, RELEASE, none),
        Kind::WrongEndpoint => (Some(good), PROOF, other),
        Kind::RevokedWrongEndpoint => (Some(revoked), PROOF, other),
        Kind::AnothersVolume => (Some(good), RELEASE, other),
        Kind::NoVolume => (Some(good), RELEASE, none),
        Kind::RevokedAnothersVolume => (Some(revoked), RELEASE, other),
        Kind::RevokedNoVolume => (Some(revoked), RELEASE, none),
    };
    let (from, tls) = match asker {
        Some(asker) => (asker, fleet.tls(asker)),
        None => (good, unknown),
    };
    let request = wire::post(path, &crate::machine::wants(volume)?);
    let mut stream = wire::connect_tls(from, fleet.server().address(), tls).await?;
    let begun = Instant::now();
    let (status, body) = wire::http(&mut stream, &request).await?;
    let time = begun.elapsed();
    if status != kind.status() {
        let body = String::from_utf8_lossy(&body);
        return Err(format!("{kind:?} got {status} {body}").into());
    }
    Ok(time)
}

/// As many of each kind, in a random order.
fn shuffled(count: usize) -> Result<Vec<Kind>, Failure> {
    let mut order: Vec<Kind> = KINDS.iter().copied().cycle().take(count).collect();
    for at in (1..order.len()).rev() {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes)?;
        let other = u64::from_le_bytes(bytes) % (at as u64 + 1);
        order.swap(at, usize::try_from(other)?);
    }
    Ok(order)
}

/// `times` ascend.
fn compare(times: &[(Kind, Duration)]) -> Strangers {
    let of = |kind: Kind| -> Vec<Duration> {
        let of_kind = times.iter().filter(|(other, _)| *other == kind);
        of_kind.map(|(_, time)| *time).collect()
    };
    let rows = KINDS.map(|kind| {
        let times = of(kind);
        let quartile = |percent| crate::rounds::quantile(&times, percent);
        Row {
            kind,
            count: times.len(),
            quartiles_ms: [quartile(25), quartile(50), quartile(75)],
        }
    });
    let mut farthest = (0.5, (KINDS[0], KINDS[0]));
    for (at, one) in KINDS.iter().enumerate() {
        let rest = KINDS[at + 1..].iter();
        for other in rest.filter(|other| other.status() == one.status()) {
            let chance = chance_of_longer(&of(*one), &of(*other));
            if (chance - 0.5).abs() > f64::abs(farthest.0 - 0.5) {
                farthest = (chance, (*one, *other));
            }
        }
    }
    let (chance, between) = farthest;
    Strangers {
        requests: times.len(),
        rows: rows.into(),
        chance,
        between,
        at_most: TOLD_APART,
        holds: (chance - 0.5).abs() <= TOLD_APART,
    }
}

/// Of all pairs, the part in which the one of `these` is longer than the one of `those`; equal ones count half. Both
/// ascend.
fn chance_of_longer(these: &[Duration], those: &[Duration]) -> f64 {
    let longer: f64 = these
        .iter()
        .map(|time| {
            let less = those.partition_point(|other| other < time);
            let not_more = those.partition_point(|other| other <= time);
            f64::midpoint(less as f64, not_more as f64)
        })
        .sum();
    longer / (these.len() * those.len()) as f64
}

impl Strangers {
    /// For people.
    pub fn table(&self) -> String {
        let mut text = format!(
            "\n{} requests of strangers in a random order\n\n{:<28} {:>6} {:>9} {:>9} {:>9}\n",
            self.requests, "", "count", "25 % ms", "50 % ms", "75 % ms"
        );
        for row in &self.rows {
            let [first, second, third] = row.quartiles_ms;
            text += &format!(
                "{:<28} {:>6} {first:>9.3} {second:>9.3} {third:>9.3}\n",
                row.kind.text(),
                row.count
            );
        }
        text += &format!(
            "\n{}: the chance that '{}' waits longer than '{}' is {:.3}, the goal is 0.5 to within {:.2}\n",
            if self.holds { "reached" } else { "MISSED" },
            self.between.0.text(),
            self.between.1.text(),
            self.chance,
            self.at_most
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chance_is_a_half_for_alike_and_far_from_it_for_others() {
        let millis = |from: u64, to: u64| -> Vec<Duration> {
            (from..to).map(Duration::from_millis).collect()
        };
        assert_eq!(chance_of_longer(&millis(0, 9), &millis(0, 9)), 0.5);
        assert_eq!(chance_of_longer(&millis(9, 18), &millis(0, 9)), 1.0);
        assert_eq!(chance_of_longer(&millis(0, 9), &millis(9, 18)), 0.0);
    }

    #[test]
    fn a_kind_that_waits_a_little_longer_misses_the_goal() {
        let mut times = Vec::new();
        for number in 0..800_u64 {
            for kind in KINDS {
                let slower = u64::from(kind == Kind::RevokedNoVolume) * 100;
                times.push((kind, Duration::from_micros(50_000 + number + slower)));
            }
        }
        times.sort_unstable_by_key(|(_, time)| *time);
        let found = compare(&times);
        assert!(!found.holds, "{found:?}");
        assert_eq!(found.between.1, Kind::RevokedNoVolume);
        times.retain(|(kind, _)| *kind != Kind::RevokedNoVolume);
        let same = times.iter().filter(|(kind, _)| *kind == Kind::NoVolume);
        let same: Vec<_> = same
            .map(|(_, time)| (Kind::RevokedNoVolume, *time))
            .collect();
        times.extend(same);
        times.sort_unstable_by_key(|(_, time)| *time);
        assert!(compare(&times).holds);
    }
}
