//! `latchkey run` and `latchkey arm-reboot`: the real program, against a key server that misbehaves and the real one.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../common/mod.rs"]
mod common;
mod faults;
mod keyserver;
mod several;
mod world;

use common::service::Service;
