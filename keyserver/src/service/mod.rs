//! Everything that agents and the administrator can ask of the key server, without network.
//!
//! All methods block, on the store's disk at most, and may be called from several threads. Each change is one
//! transaction together with its audit entry.

pub mod administration;
pub mod approval;
pub mod join;
pub mod listing;
pub mod registration;
pub mod release;

use std::net::IpAddr;
use std::sync::Arc;

use latchkey_protocol::ids::{ClientName, ServerId, VolumeId};

use crate::audit::ChainError;
use crate::clock::Clock;
use crate::records::{Role, SpkiHash};
use crate::sealed::{RecordError, SealedStore};

/// The key server without its network.
pub struct Service {
    records: SealedStore,
    server: ServerId,
    clock: Arc<dyn Clock>,
}

/// Who is at the other end of a connection. Only [`Service::identify`] makes one; every method looks again at
/// what the store says of the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    client: ClientName,
    role: Role,
    spki: SpkiHash,
    revoked: bool,
}

/// An operation that an agent asked for was not done.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The same answer for every stranger (403 `refused`); the reason is for the server's log only.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The request breaks a rule that the agent may be told (400).
    #[error("{0}")]
    Invalid(&'static str),
    /// The volume's share was destroyed or given up, and its id with it (410).
    #[error("the volume's share is gone for good\nbind the volume anew, which gives it a new id")]
    Destroyed,
    /// More than one client may do in an hour (429).
    #[error("too many requests of this client, try again in {retry_after} s")]
    TooMany {
        /// Seconds until the agent should try again.
        retry_after: u32,
    },
    /// The store failed (503).
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// An operation of the administrator was not done.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// No such client.
    #[error("there is no client '{0}'\nsee 'latchkeyd clients'")]
    NoClient(ClientName),
    /// No such volume.
    #[error("there is no volume '{0}'\nsee 'latchkeyd volumes'")]
    NoVolume(VolumeId),
    /// No open session goes by this id.
    #[error(
        "there is no open request '{0}'\nsee 'latchkeyd requests'; a request ends after an hour"
    )]
    NoRequest(String),
    /// The client has joined and is not revoked.
    #[error(
        "client '{0}' has joined already\nto replace its keys, revoke it first: latchkeyd revoke {0}"
    )]
    Joined(ClientName),
    /// The invitation's lifetime is out of bounds.
    #[error("an invitation lives for 1 minute to 30 days")]
    Lifetime,
    /// The session was decided before.
    #[error("request '{id}' was decided already: {state}")]
    Decided {
        /// The session.
        id: String,
        /// How it stands.
        state: &'static str,
    },
    /// Not the code on the machine's console.
    #[error(
        "wrong code, {left} more may be wrong before the request is denied\nthe code is on the machine's console"
    )]
    WrongCode {
        /// Wrong codes that are still allowed; 0: the session is denied now.
        left: u32,
    },
    /// The policy cannot be set.
    #[error("the policy is refused: {0}")]
    Policy(String),
    /// The audit was changed.
    #[error("the audit is not as it was written")]
    Chain(#[from] ChainError),
    /// The store failed.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Why a stranger was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The key may not do this.
    #[error("this key is not for this endpoint")]
    Role,
    /// The client was revoked, or has other keys by now.
    #[error("the client was revoked")]
    Revoked,
    /// The volume belongs to another client.
    #[error("the volume belongs to another client")]
    NotOwned,
    /// There is no such volume.
    #[error("no such volume")]
    Unknown,
}

impl Service {
    /// The service over an open store; `server` is the id that shares are bound to.
    pub fn new(records: SealedStore, server: ServerId, clock: Arc<dyn Clock>) -> Self {
        Self {
            records,
            server,
            clock,
        }
    }

    /// The sealed store, for the network side's own secrets.
    pub fn records(&self) -> &SealedStore {
        &self.records
    }

    /// The server's id.
    pub fn server(&self) -> &ServerId {
        &self.server
    }

    /// Whose key this is.
    ///
    /// # Errors
    /// The store's.
    pub fn identify(&self, spki: &SpkiHash) -> Result<Option<Identity>, RecordError> {
        let _ = (spki, self.clock.now());
        unimplemented!()
    }

    /// Housekeeping, to be called about once a minute and before the end: writes the counts of refusals that
    /// were held back, removes ended sessions and old invitations.
    ///
    /// # Errors
    /// The store's.
    pub fn maintain(&self) -> Result<(), RecordError> {
        unimplemented!()
    }
}

impl Identity {
    /// The client.
    pub fn client(&self) -> &ClientName {
        &self.client
    }

    /// Which of its keys.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether the client was revoked or has other keys by now.
    pub fn is_revoked(&self) -> bool {
        self.revoked
    }

    /// The key.
    pub fn spki(&self) -> &SpkiHash {
        &self.spki
    }
}

/// The address of a peer, an IPv4-mapped one as IPv4.
pub fn normal(address: IpAddr) -> IpAddr {
    address.to_canonical()
}
