//! Which points: seeded, so that a failure can be repeated.

use std::cell::Cell;
use std::collections::BTreeMap;

use crate::tracer::{Call, Change, End, Fate};

/// How many kills each of the two tests does, unless LATCHKEY_KILLS says otherwise.
const KILLS: usize = 24;
/// Unless LATCHKEY_SEED says otherwise.
const SEED: u64 = 1;
/// Parts of a write reach the disk in multiples of this.
const SECTOR: u64 = 512;

pub fn kills() -> usize {
    kills_or(KILLS)
}

/// As [`kills`], with another number where none is asked for.
pub fn kills_or(usual: usize) -> usize {
    parameter("LATCHKEY_KILLS").map_or(usual, |number| usize::try_from(number).unwrap())
}

fn parameter(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is no number: '{text}'")),
    )
}

/// Chooses points; if the test fails it says how to choose the same again.
pub struct Points {
    seed: u64,
    state: Cell<u64>,
    kills: Cell<usize>,
}

/// The changes of one run that was not killed: how many in each step, in the order of the steps.
pub type Tape<S> = BTreeMap<S, usize>;

/// One kill.
#[derive(Debug, Clone)]
pub struct Point<S> {
    /// In this step,
    pub step: S,
    /// at this of its changes,
    pub change: usize,
    /// which happens in part if it can.
    pub tears: Option<u64>,
}

impl Points {
    pub fn new() -> Self {
        let seed = parameter("LATCHKEY_SEED").unwrap_or(SEED);
        Self {
            seed,
            state: Cell::new(seed),
            kills: Cell::new(0),
        }
    }

    /// SplitMix64: the same numbers everywhere and for ever.
    fn next(&self) -> u64 {
        self.state
            .set(self.state.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        let mut z = self.state.get();
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    /// A random change of the step that is next in turn. Evenly over the steps and not over the changes: nearly all
    /// changes are in a few long steps, such as the copying of a header, and the short ones would hardly be hit.
    pub fn choose<S: Clone + Ord>(&self, turn: usize, tape: &Tape<S>) -> Point<S> {
        let (step, changes) = tape.iter().nth(turn % tape.len()).unwrap();
        self.kills.set(self.kills.get() + 1);
        Point {
            step: step.clone(),
            change: self.below(*changes),
            tears: self.next().is_multiple_of(2).then(|| self.next()),
        }
    }
}

impl Drop for Points {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (seed, kills) = (self.seed, self.kills.get());
            eprintln!(
                "at kill {kills}; to repeat it: LATCHKEY_SEED={seed} LATCHKEY_KILLS={}",
                self::kills()
            );
        }
    }
}

/// Lets a run live up to a point.
pub struct Killer<'a, S> {
    point: &'a Point<S>,
    passed: Tape<S>,
    /// The change that it was killed at.
    met: Option<(S, Fate, String)>,
}

impl<'a, S: Clone + Ord> Killer<'a, S> {
    pub fn at(point: &'a Point<S>) -> Self {
        Self {
            point,
            passed: Tape::new(),
            met: None,
        }
    }

    /// The fate of the next change, which belongs to `step`.
    pub fn fate(&mut self, step: S, change: &Change) -> Fate {
        let number = self.passed.entry(step.clone()).or_default();
        let fate = self.point.fate(&step, *number, change);
        *number += 1;
        if fate != Fate::Live {
            self.met
                .get_or_insert_with(|| (step, fate, format!("{change:?}")));
        }
        fate
    }

    /// The step, the fate and the change, if the run ended by it.
    pub fn met(self, end: End) -> Option<(S, Fate, String)> {
        self.met.filter(|_| end == End::Killed)
    }
}

impl<S: Clone + Ord> Point<S> {
    /// The fate of `change`, which is number `number` in `step`.
    pub fn fate(&self, step: &S, number: usize, change: &Change) -> Fate {
        // A run that differs a little from the one on the tape may pass the point without meeting it.
        if *step < self.step || (*step == self.step && number < self.change) {
            return Fate::Live;
        }
        match self.tears {
            Some(random) if change.call == Call::Write && change.length > SECTOR => {
                Fate::Tear(SECTOR * (1 + random % ((change.length - 1) / SECTOR)))
            }
            _ => Fate::Kill,
        }
    }
}
