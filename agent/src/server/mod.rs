//! The key-server client: one request to one address over TLS 1.3, pinned to the CA that the join token named.
//!
//! It defends against everybody between us and the key server, and against a key server that answers garbage:
//! every step has a limit in time and bytes. It leaves the order of addresses, retries and waiting to its callers:
//! the unlock flow at boot, [`KeyServer`] on the running system.

pub mod certificate;
mod client;
mod error;
mod identity;
mod keyserver;
mod life;
pub mod pem;
pub mod request;
mod running;
mod verify;

pub use client::{Client, Join, SetupError};
pub use error::{ClientError, Fault};
pub use identity::{Identity, IdentityError};
pub use keyserver::{KeyServer, KeyServerError, Unreachable, block_on};
pub use life::Life;
pub use verify::CertificateTime;

use std::time::Duration;

/// Longest wait for a name to be looked up.
pub const LOOKUP_LIMIT: Duration = Duration::from_secs(3);
/// Longest wait for a connection with its TLS handshake; a host with several addresses shares it among them.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Longest wait for a whole request with its answer, the lookup not counted.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// Longest pause that a key server may ask for by `Retry-After`.
pub const RETRY_AFTER_LIMIT: Duration = Duration::from_secs(300);
