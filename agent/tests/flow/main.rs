//! The unlock flow under any order of events, with its invariants checked after every step.

mod asking;
mod invariants;
mod limits;
mod opening;
mod rig;
mod several;
