//! What goes over the administrator's socket: one line of JSON each way.

use std::time::Duration;

use latchkey_protocol::encoding::hex;
use latchkey_protocol::{ClientName, VolumeId};
use serde::{Deserialize, Serialize};

use crate::audit::Verified;
use crate::policy::Policy;

/// Most bytes of a request's line.
pub const REQUEST_LIMIT: usize = 64 * 1024;
/// Most bytes of an answer's line.
pub const ANSWER_LIMIT: usize = 64 * 1024 * 1024;
/// Most audit entries in one answer.
pub const AUDIT_PAGE: usize = 500;
/// Until a request must be complete.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// What the administrator wants.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Invite a client; answered by a [`JoinInvitation`].
    Invite {
        /// Its name.
        client: ClientName,
        /// How long the invitation lives.
        seconds: u64,
    },
    /// All clients.
    Clients,
    /// All volumes.
    Volumes,
    /// Open boot sessions.
    Requests,
    /// Approve a boot session.
    Approve {
        /// Which.
        id: String,
        /// What its machine's console shows.
        code: String,
    },
    /// Deny a boot session.
    Deny {
        /// Which.
        id: String,
    },
    /// Revoke a client.
    Revoke {
        /// Which.
        client: ClientName,
    },
    /// Destroy a volume's share.
    Destroy {
        /// Which.
        volume: VolumeId,
    },
    /// Set a volume's policy.
    SetPolicy {
        /// Which.
        volume: VolumeId,
        /// To what.
        policy: Policy,
    },
    /// Entries of the audit.
    Audit {
        /// After which one; 0: from the first.
        after: u64,
        /// How many, at most [`AUDIT_PAGE`].
        limit: usize,
    },
    /// Check the audit's chain; answered by an [`AuditState`].
    VerifyAudit,
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Answer {
    /// It was done; the value is what the request says.
    Done(serde_json::Value),
    /// The state of the server does not allow it: exit code 3.
    Refused(String),
    /// It failed: exit code 1.
    Failed(String),
}

/// A join token and what to say with it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct JoinInvitation {
    /// The line for the client.
    pub token: String,
    /// When it ends, in UTC.
    pub expires: String,
}

/// What walking the audit's chain found, when all of it is as it was written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct AuditState {
    /// How many entries there are.
    pub entries: u64,
    /// Hash of the newest, in hexadecimal.
    pub head: String,
}

impl From<Verified> for AuditState {
    fn from(verified: Verified) -> Self {
        Self {
            entries: verified.entries,
            head: hex(&verified.head.0),
        }
    }
}
