//! What the administrator is shown, as serde types and as lines of text.

use std::net::IpAddr;

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::ids::{ClientName, Generation, RequestId, VolumeId};
use latchkey_protocol::wire::OpenedBy;
use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::policy::{self, Policy};
use crate::records::{Client, Group, GroupName, SessionState, Volume, VolumeState};

/// A client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ClientListing {
    /// Its name.
    pub name: ClientName,
    /// How it stands.
    pub state: ClientState,
    /// When it was invited first.
    pub created: UnixMillis,
    /// When it joined.
    pub joined: Option<UnixMillis>,
    /// From where it joined.
    pub joined_from: Option<IpAddr>,
    /// Its boot key.
    pub boot_key: Option<Bytes<32>>,
    /// Its host key.
    pub host_key: Option<Bytes<32>>,
    /// When it was revoked.
    pub revoked: Option<UnixMillis>,
    /// How many volumes it has.
    pub volumes: usize,
    /// When it was locked out.
    pub locked: Option<UnixMillis>,
    /// When it was heard of last, to the minute.
    pub heard: Option<UnixMillis>,
    /// Its group.
    pub group: Option<GroupName>,
}

/// A group of clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct GroupListing {
    /// Its name.
    pub name: GroupName,
    /// The clients in it.
    pub clients: Vec<ClientName>,
    /// Its policy.
    pub policy: Option<Policy>,
    /// Its policy in one sentence.
    pub policy_text: String,
}

impl GroupListing {
    pub(super) fn new(group: Group, clients: Vec<ClientName>) -> Self {
        let policy = group.policy.map(|found| found.policy);
        Self {
            name: group.name,
            clients,
            policy_text: policy
                .as_ref()
                .map_or_else(|| "none".to_owned(), Policy::sentence),
            policy,
        }
    }
}

/// What a policy is set for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyTarget {
    /// One volume.
    Volume(VolumeId),
    /// All volumes of a client that have none of their own.
    Client(ClientName),
    /// All clients of a group that have none of their own.
    Group(GroupName),
}

/// A policy and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PolicyListing {
    /// What was asked about.
    pub target: PolicyTarget,
    /// The policy; none if none is set.
    pub policy: Option<Policy>,
    /// Whose it is: `set for the volume`, `given when it was bound`, and so on.
    pub scope: String,
    /// In one sentence.
    pub text: String,
    /// What it does not stop.
    pub limits: String,
}

impl PolicyListing {
    pub(super) fn new(target: &PolicyTarget, policy: Option<&Policy>, scope: String) -> Self {
        Self {
            target: target.clone(),
            text: policy.map_or_else(|| "none".to_owned(), Policy::sentence),
            limits: policy.map_or("", Policy::limits).to_owned(),
            scope: if policy.is_some() {
                scope
            } else {
                String::new()
            },
            policy: policy.cloned(),
        }
    }
}

/// How a client stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientState {
    /// Invited, and has not joined.
    Invited,
    /// Was invited, has not joined, and the invitation has ended.
    Expired,
    /// Joined.
    Joined,
    /// Revoked.
    Revoked,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VolumeListing {
    /// Its id.
    pub id: VolumeId,
    /// Whose it is.
    pub client: ClientName,
    /// What people call it.
    pub label: String,
    /// The current share's generation.
    pub generation: Generation,
    /// The policy in force.
    pub policy: Policy,
    /// The same in one sentence.
    pub policy_text: String,
    /// Whose policy it is.
    #[serde(default)]
    pub policy_scope: String,
    /// When it was registered.
    pub created: UnixMillis,
    /// When the client gave it up.
    pub retired: Option<UnixMillis>,
    /// When its share was destroyed.
    pub destroyed: Option<UnixMillis>,
    /// Which of its machine's keys asks for it.
    #[serde(default)]
    pub opened_by: OpenedBy,
}

/// An open boot session. Its code is not here: that is what the machine's console is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RequestListing {
    /// What `approve` and `deny` take.
    pub id: String,
    /// The agent's own id of the session.
    pub request: RequestId,
    /// The client.
    pub client: ClientName,
    /// The volumes.
    pub volumes: Vec<RequestedVolume>,
    /// Where it came from.
    pub peer: IpAddr,
    /// How it stands.
    pub state: SessionState,
    /// When it began.
    pub created: UnixMillis,
    /// When it ends.
    pub expires: UnixMillis,
    /// Wrong codes that are still allowed.
    pub attempts_left: u32,
    /// Who has approved it.
    #[serde(default)]
    pub approved_by: Vec<String>,
    /// How many more people must.
    #[serde(default)]
    pub approvals_left: usize,
    /// Whether the same client has another open session: one of them may be a copy of the machine.
    pub conflict: bool,
}

/// One volume of a boot session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RequestedVolume {
    /// Its id.
    pub id: VolumeId,
    /// What people call it.
    pub label: String,
}

/// What destroying a share reached, and what it did not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Destruction {
    /// The volume.
    pub volume: VolumeId,
    /// Whose it was.
    pub client: ClientName,
    /// What people call it.
    pub label: String,
    /// When.
    pub destroyed: UnixMillis,
    /// What was done.
    pub done: Vec<String>,
    /// Copies that may exist and were not reached.
    pub not_reached: Vec<String>,
}

impl VolumeListing {
    pub(super) fn of(volume: Volume, client: &Client, group: Option<&Group>) -> Self {
        let found = policy::in_force(&volume, client, group);
        let (policy, policy_scope) = (found.policy.clone(), found.scope.to_string());
        let (retired, destroyed) = match volume.state {
            VolumeState::Live => (None, None),
            VolumeState::Retired(at) => (Some(at), None),
            VolumeState::Destroyed(at) => (None, Some(at)),
        };
        Self {
            id: volume.id,
            client: volume.client,
            label: volume.label,
            generation: volume.generation,
            policy_text: policy.sentence(),
            policy,
            policy_scope,
            created: volume.created,
            retired,
            destroyed,
            opened_by: volume.opened_by,
        }
    }
}

impl Destruction {
    /// What destroying the share of `volume` at `at` comes to.
    pub(super) fn of(volume: Volume, at: UnixMillis) -> Self {
        let date = at.text();
        Self {
            volume: volume.id,
            client: volume.client,
            label: volume.label,
            destroyed: at,
            done: vec![
                "the share was deleted and overwritten in the store's files".to_owned(),
                "the volume's id is kept as a tombstone and is never given a share again".to_owned(),
            ],
            not_reached: vec![
                format!("backups of the store from before {date}: with the master key they still hold the share"),
                "copies below the store's files: snapshots of the file system or the virtual disk, spare blocks of an SSD".to_owned(),
                "the volume's other keyslots: every passphrase still opens it".to_owned(),
                "a machine that has the volume open now".to_owned(),
            ],
        }
    }
}
