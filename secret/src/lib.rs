//! Secret memory and the few system calls that need unsafe code.
//!
//! The lowest layer of latchkey: [`Secret`] and [`SecretBytes`] hold key material on pages of their own that are
//! locked, left out of core dumps, never move and are wiped when they go; [`process`] hardens the process that
//! holds them. This is the only crate with unsafe code.
#![allow(unsafe_code)]

pub mod child;
pub mod close_on_exec;
pub mod crypt_log;
pub mod guardian;
mod inbox;
mod maps;
mod memory;
mod packet;
pub mod process;
pub mod terminal;
pub mod udev;
pub mod udev_wait;
pub mod wiping_free;
pub mod x25519;

/// Whether this is the control build, which wipes nothing, so that a search of the memory has something to find.
pub const CONTROL: bool = cfg!(feature = "without-wiping");

/// What the control build says; `native/measure` looks for it in the binary.
pub const CONTROL_WARNING: &str = "this control build wipes nothing: never install it";

pub use inbox::Inbox;
pub use memory::{Secret, SecretBytes, SecretError};
pub use packet::packet_socket;
