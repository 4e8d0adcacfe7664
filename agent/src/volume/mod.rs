//! Everything that touches headers, keyslots, envelopes on disk and mappings.
//!
//! libcryptsetup does the cryptography and the device-mapper work; this module decides what it may be given.
//! Opening without a person goes through [`open::open_automatically`] only: a copy of the header is checked
//! against what was bound, and that very copy is opened. A typed passphrase goes through [`typed`]. Each kind of
//! volume ([`place::Kind`]) has a file: LUKS2 `header` and `gate`, LUKS1 `luks1`, plain dm-crypt `plain`.
//! libcryptsetup must be called from one thread at a time.

pub mod above;
pub mod backup;
pub mod binding;
mod context;
pub mod crypttab;
pub mod device;
pub mod envelopes;
pub mod format;
pub mod gate;
pub mod header;
pub mod identity;
pub mod keyslots;
pub mod luks1;
pub mod mapping;
pub mod modules;
pub mod open;
pub mod opened_in;
pub mod place;
pub mod plain;
pub mod signature;
pub mod source;
pub mod stack;
pub mod tickets;
pub mod tokens;
pub mod typed;

#[cfg(test)]
mod algorithm_tests;
#[cfg(test)]
mod integrity_tests;
#[cfg(test)]
mod kinds_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use context::CryptError;
