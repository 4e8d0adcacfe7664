//! latchkey, the agent: opens encrypted volumes with shares that a key server releases.
//!
//! `files` knows where things lie, `server` speaks to key servers, `commands` is what a person types, `flow`
//! decides what happens at boot, `network` brings the network up there, and `unlock` does it all. `running` is what a machine
//! does while it runs, `opening` opens its data volumes.
#![forbid(unsafe_code)]

pub mod cli;
pub mod commands;
pub mod date;
pub mod failure;
pub mod files;
pub mod flow;
pub mod logging;
pub mod network;
pub mod opening;
pub mod running;
pub mod server;
pub mod unit_name;
pub mod unlock;
pub mod volume;
