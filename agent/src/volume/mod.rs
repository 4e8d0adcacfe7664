//! Everything that touches LUKS headers, keyslots, tokens and mappings.
//!
//! libcryptsetup does the cryptography and the device-mapper work; this module decides what it may be given.
//! Opening without a person goes through [`open::open_automatically`] only: a copy of the header is checked
//! against what was bound, and that very copy is opened. A typed passphrase goes through
//! [`typed::check_passphrase`]. libcryptsetup must be called from one thread at a time.

pub mod backup;
mod context;
pub mod crypttab;
pub mod device;
pub mod gate;
pub mod header;
pub mod keyslots;
pub mod mapping;
pub mod open;
pub mod source;
pub mod stack;
pub mod tickets;
pub mod tokens;
pub mod typed;

#[cfg(test)]
mod algorithm_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use context::CryptError;
