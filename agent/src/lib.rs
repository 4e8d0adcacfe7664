//! latchkey, the agent: opens encrypted volumes with shares that a key server releases.
//!
//! `files` knows where things lie, `server` speaks to key servers, `commands` is what a person types.
#![deny(unsafe_code)]

pub mod failure;
pub mod files;
pub mod server;
