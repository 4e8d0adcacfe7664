//! The key server: keeps one half of what opens a volume and releases it as the policy says.
//!
//! [`store`] keeps sealed [`records`]; [`policy`] decides; [`service`] is everything that agents and the
//! administrator can ask for, without network; [`audit`] is the chain that every change and release stands in.
#![forbid(unsafe_code)]

// What panics is one connection, one command or one group of writes, and the others go on.
#[cfg(not(panic = "unwind"))]
compile_error!("latchkeyd needs panic = \"unwind\"");

pub mod admin;
pub mod admission;
pub mod audit;
pub mod ca;
pub mod clock;
pub mod commands;
pub mod config;
pub mod daemon;
mod group;
pub mod http;
pub mod keyring;
mod ledger;
pub mod listener;
pub mod logging;
pub mod master_key;
pub mod notify;
pub mod policy;
pub mod records;
pub mod sealed;
mod sealer;
pub mod service;
pub mod store;
pub mod tls;
pub mod users;
mod wait;
