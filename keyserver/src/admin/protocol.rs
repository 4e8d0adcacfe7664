//! What goes over the administrator's socket: one line of JSON each way, and a copy of the store after the answer's.

use std::time::Duration;

use latchkey_protocol::encoding::hex;
use latchkey_protocol::{ClientName, RequestId, VolumeId};
use serde::{Deserialize, Serialize};

use crate::audit::Verified;
use crate::policy::Policy;
use crate::records::GroupName;
use crate::service::explain::Supposed;
use crate::service::listing::{NamedGroup, PolicyTarget};

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
    /// Invite clients, all or none; answered by [`JoinInvitations`].
    Invite {
        /// Their names.
        clients: Vec<ClientName>,
        /// The group that they are put into.
        group: Option<GroupName>,
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
        /// Whether its client is locked out.
        #[serde(default)]
        lock: bool,
    },
    /// Machines that ask to be taken back.
    Rejoins,
    /// Approve that a machine is taken back: its keys take the place of its client's.
    ApproveRejoin {
        /// Which request.
        id: String,
        /// What the machine's screen shows.
        code: String,
    },
    /// Deny it.
    DenyRejoin {
        /// Which request.
        id: String,
        /// Whether its client is locked out.
        lock: bool,
    },
    /// Lock a client out.
    Lock {
        /// Which.
        client: ClientName,
    },
    /// Let a client boot again that was locked out.
    Readmit {
        /// Which.
        client: ClientName,
    },
    /// Announce a reboot of a client; answered by the time until when, as text.
    Arm {
        /// Which.
        client: ClientName,
        /// For how long.
        seconds: u64,
    },
    /// All groups.
    Groups,
    /// Put a client into a group; answered by a [`Membership`](crate::service::listing::Membership).
    SetGroup {
        /// Which.
        client: ClientName,
        /// Into which; none: into no group.
        group: Option<GroupName>,
    },
    /// The policy of a volume, a client or a group.
    Policy {
        /// Whose.
        target: PolicyTarget,
    },
    /// Set a policy.
    SetPolicyOf {
        /// Whose.
        target: PolicyTarget,
        /// To what; none: take it away.
        policy: Option<Policy>,
    },
    /// What a policy would say of a request.
    Explain(Supposed),
    /// Whether the store was put back.
    PutBack,
    /// Accept that it was.
    AcceptRollback {
        /// Why.
        reason: String,
    },
    /// The place of the audit's last entry.
    AuditEnd,
    /// What the audit has of one boot session.
    History {
        /// Which.
        request: RequestId,
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
    /// Entries of the audit.
    Audit {
        /// After which one; 0: from the first.
        after: u64,
        /// How many, at most [`AUDIT_PAGE`].
        limit: usize,
    },
    /// Check the audit's chain; answered by an [`AuditState`].
    VerifyAudit,
    /// Copy the store; answered by the copy's length in bytes, and the copy follows the answer's line.
    Backup,
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

/// What an invitation of several clients is answered by.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct JoinInvitations {
    /// One for each client, in order.
    pub invitations: Vec<JoinInvitation>,
    /// The group that they were put into.
    pub group: Option<NamedGroup>,
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
