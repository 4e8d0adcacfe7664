//! What goes wrong around one honest boot.

use crate::power::{Moment, Side};

#[derive(Debug, Clone, Copy)]
pub struct Trouble {
    pub down: Down,
    /// The key server's power goes at a commit of the boot.
    pub server: Option<Moment>,
    /// It starts anew before the boot.
    pub restarts: bool,
    /// For so many attempts of the agent it is away.
    pub away: u32,
    /// The machine's power goes after the release, before it is up: another boot session follows.
    pub cut: bool,
}

/// How the machine goes down.
#[derive(Debug, Clone, Copy)]
pub enum Down {
    Announced,
    CutWhileItAnnounces(Moment),
    Cut,
    FallsSilent,
    CutWhileItComesUp(Moment),
}

impl Trouble {
    /// The trouble of the boot `number`, drawn by the boots before it; every other one is announced.
    pub fn of(number: usize, state: &mut u64) -> Self {
        let announced = number.is_multiple_of(2);
        Self {
            down: match below(state, 4) {
                0 if announced => Down::CutWhileItAnnounces(moment(state, 2)),
                _ if announced => Down::Announced,
                0 => Down::Cut,
                1 => Down::FallsSilent,
                _ => Down::CutWhileItComesUp(moment(state, 5)),
            },
            server: (below(state, 4) == 0).then(|| moment(state, 1)),
            restarts: below(state, 5) == 0,
            away: match below(state, 6) {
                0 => 1 + u32::try_from(below(state, 5)).unwrap(),
                _ => 0,
            },
            cut: below(state, 8) == 0,
        }
    }
}

/// One of the next `commits`.
fn moment(state: &mut u64, commits: u64) -> Moment {
    Moment {
        commit: 1 + u32::try_from(below(state, commits)).unwrap(),
        side: match below(state, 2) {
            0 => Side::Before,
            _ => Side::After,
        },
    }
}

/// Knuth's MMIX generator; its upper bits.
fn below(state: &mut u64, limit: u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % limit
}
