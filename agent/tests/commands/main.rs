//! `join`, `bind`, `unbind`, `list`, `status`, `recovery-key`, `rotate`: the real programs, the real key server, LUKS in plain files.
#![allow(clippy::unwrap_used, missing_docs)]

mod binding;
#[path = "../common/mod.rs"]
mod common;
mod faults;
mod finishing;
mod joining;
mod kinds;
mod rebuilding;
mod recovery;
mod rotating;
mod terminal;
mod usage;
