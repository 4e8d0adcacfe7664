//! The real `latchkeyd` on loopback, spoken to over real TLS, and its commands.

// Helpers that are no test functions of their own unwrap as well: a panic is how a test fails.
#![allow(clippy::unwrap_used)]

mod alive;
mod backups;
mod commands;
mod disks;
mod forgeries;
mod inside;
mod joining;
mod lifecycle;
mod machine;
mod malformed;
mod releases;
mod replays;
mod running;
mod server;
mod slow;
mod strangers;
mod transport;
mod volumes;
mod wire;
