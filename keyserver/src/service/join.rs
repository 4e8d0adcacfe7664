//! Joining: trading the secret of an invitation for a registered pair of keys.

use std::net::IpAddr;

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::ids::ClientName;

use super::Service;
use crate::records::SpkiHash;
use crate::sealed::RecordError;

/// What a new client shows.
#[derive(Clone, Copy)]
pub struct JoinKeys<'a> {
    /// The one-time secret.
    pub secret: &'a Bytes<32>,
    /// The boot key.
    pub boot: SpkiHash,
    /// The host key.
    pub host: SpkiHash,
}

/// Joining was refused. Only the holder of an invitation's secret gets a reason.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No such secret: a stranger, who gets the stranger's answer (403).
    #[error("refused")]
    Unknown,
    /// The invitation has ended (403).
    #[error(
        "the join token has expired\nask the administrator for a new one: latchkeyd invite {0}"
    )]
    Expired(ClientName),
    /// A newer invitation or a revocation took its place (403).
    #[error(
        "the join token is no longer valid\nask the administrator for a new one: latchkeyd invite {0}"
    )]
    Withdrawn(ClientName),
    /// Used with other keys (403); the audit has an alarm.
    #[error(
        "the join token was used already, by a machine with other keys\nif that was not you, tell the administrator: latchkeyd revoke {0}"
    )]
    Used(ClientName),
    /// Boot key and host key are the same (400).
    #[error("boot key and host key must differ")]
    SameKey,
    /// One of the keys was registered before (409).
    #[error("one of the keys is registered already\nmake new keys and join again")]
    KeyTaken,
    /// The store failed (503).
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl Service {
    /// Registers the keys for the client that was invited; the name is for the certificates. The same keys may
    /// do it again until the invitation ends.
    ///
    /// # Errors
    /// `JoinError`.
    pub fn join(&self, keys: JoinKeys<'_>, peer: IpAddr) -> Result<ClientName, JoinError> {
        let _ = (keys.secret, keys.boot, keys.host, peer);
        unimplemented!()
    }
}
