//! The audit: a chain of hashed entries that every change and every release stands in.

use std::net::IpAddr;

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::ids::{ClientName, RequestId, VolumeId};
use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;

/// One entry of the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditEntry {
    /// Its place in the chain, from 1.
    pub sequence: u64,
    /// When it was written.
    pub time: UnixMillis,
    /// Hash of the entry before; zeros in the first.
    pub previous: Bytes<32>,
    /// What it records.
    #[serde(flatten)]
    pub event: Event,
    /// SHA-256 over all of the above.
    pub hash: Bytes<32>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The kind.
    pub kind: Kind,
    /// The client that it concerns.
    pub client: Option<ClientName>,
    /// The volume.
    pub volume: Option<VolumeId>,
    /// The boot session.
    pub request: Option<RequestId>,
    /// Where the request came from.
    pub peer: Option<IpAddr>,
    /// The administrator who did it.
    pub who: Option<String>,
    /// The rest, for people.
    pub text: String,
}

/// Kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The server was set up.
    Initialised,
    /// An invitation was made.
    Invited,
    /// A client joined.
    Joined,
    /// A volume was registered, or its share fetched again by registering it again.
    Registered,
    /// A share left the server for a boot.
    Released,
    /// A share left the server for a proof.
    Proved,
    /// A request was refused.
    Refused,
    /// A request waits for a person.
    Asked,
    /// A person approved a request.
    Approved,
    /// A person denied a request, or too many codes were wrong.
    Denied,
    /// A wrong code was typed.
    WrongCode,
    /// A client gave up a volume.
    Retired,
    /// A client was revoked.
    Revoked,
    /// A share was destroyed.
    Destroyed,
    /// A policy or a setting was changed.
    Changed,
    /// A machine reported how its boot went.
    BootReport,
    /// Something that only an attack or a grave mistake explains.
    Alarm,
}

/// What `audit --verify` found right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// How many entries.
    pub entries: u64,
    /// Hash of the last one; zeros if there is none.
    pub head: Bytes<32>,
}

/// The first entry that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("audit entry {sequence} {problem}")]
pub struct ChainError {
    /// Its place.
    pub sequence: u64,
    /// What is wrong with it.
    pub problem: String,
}

impl AuditEntry {
    /// One line for people.
    pub fn line(&self) -> String {
        unimplemented!()
    }
}
