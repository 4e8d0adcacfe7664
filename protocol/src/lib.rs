//! What agent and key server must agree on: identifiers, the envelope, the release, the wire types, the join
//! token. No I/O. Everything that a peer or a disk supplies is parsed strictly and has a size limit here.
#![forbid(unsafe_code)]

pub mod encoding;
pub mod envelope;
mod hpke;
pub mod ids;
pub mod release;
pub mod tickets;
pub mod token;
pub mod wire;

pub use envelope::{Envelope, Kek, MachineSecret};
pub use ids::{ClientName, Generation, RequestId, ServerId, VolumeId};
pub use release::{BootKeyPair, SealedShare, Share};
