//! `kill -9` of the real programs in each of their steps: what was acknowledged stays, what people had still works,
//! and the next run repairs.
//!
//! LATCHKEY_KILLS is the number of kills of each program, LATCHKEY_SEED chooses the points.
#![allow(clippy::unwrap_used)] // the helpers of a test may fail like the test itself

#[path = "../common/mod.rs"]
mod common;
mod format;
mod header;
mod keyserver;
mod points;
mod rotation;
mod tally;
mod tickets;
mod tracer;
mod volume;

/// Only root sees which files a program that protects itself is about to change.
fn may_trace() -> bool {
    let root = nix::unistd::Uid::effective().is_root();
    if !root {
        eprintln!("skipped: this test needs root");
    }
    root
}
