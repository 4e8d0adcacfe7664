//! What the administrator is shown, as serde types and as lines of text.

use std::net::IpAddr;

use latchkey_protocol::encoding::{Bytes, hex};
use latchkey_protocol::ids::{ClientName, Generation, RequestId, VolumeId};
use latchkey_protocol::wire::OpenedBy;
use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::policy::{self, Policy, Scope};
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

/// A group that a command named: a name that was mistyped makes a new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NamedGroup {
    /// Its name.
    pub name: GroupName,
    /// Whether the command made it.
    pub new: bool,
    /// How many clients are in it.
    pub clients: usize,
}

impl NamedGroup {
    /// One line for people.
    pub fn line(&self) -> String {
        let kind = if self.new { "new group" } else { "group" };
        match self.clients {
            1 => format!("{kind} '{}': 1 client is in it", self.name),
            count => format!("{kind} '{}': {count} clients are in it", self.name),
        }
    }
}

/// What became of a client that was put into a group, or taken out of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Membership {
    /// The group that it is in now.
    pub group: Option<NamedGroup>,
    /// Its live volumes, with the policy that is in force for each now.
    pub volumes: Vec<VolumeListing>,
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
    /// The volumes that it does not reach, because a more specific policy goes before it.
    #[serde(default)]
    pub unreached: Vec<Unreached>,
    /// The group, if it is one's.
    #[serde(default)]
    pub group: Option<NamedGroup>,
    /// Why nobody can approve what it asks for, as long as it is so.
    #[serde(default)]
    pub doubt: Option<String>,
}

/// A volume of a client or a group whose policy does not reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Unreached {
    /// The volume.
    pub volume: VolumeId,
    /// Its client.
    pub client: ClientName,
    /// What people call it.
    pub label: String,
    /// Whose policy holds for it instead: `set for the volume`, and so on.
    pub scope: String,
    /// What takes that one away, so that this one reaches it.
    pub command: String,
}

impl Unreached {
    pub(super) fn new(volume: &Volume, scope: Scope<'_>) -> Self {
        Self {
            command: match scope {
                Scope::Client => format!("latchkeyd policy clear --client {}", volume.client),
                _ => format!("latchkeyd policy clear {}", volume.id),
            },
            volume: volume.id,
            client: volume.client.clone(),
            label: volume.label.clone(),
            scope: scope.to_string(),
        }
    }
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
            unreached: Vec::new(),
            group: None,
            doubt: None,
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

/// A machine that asks to be taken back: what a person must know who approves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RejoinListing {
    /// `rejoin`: what tells it from a boot in one list with them.
    pub kind: String,
    /// What `approve --rejoin` and `deny` take.
    pub id: String,
    /// What tells it apart in the audit.
    pub request: RequestId,
    /// As which client.
    pub client: ClientName,
    /// The volumes that it named.
    pub volumes: Vec<RequestedVolume>,
    /// How many live volumes the client has, all of which its new host key may fetch the shares of.
    pub live_volumes: usize,
    /// Where it asks from.
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
    pub approved_by: Vec<String>,
    /// How many more people must.
    pub approvals_left: usize,
    /// The boot key that is to count.
    pub boot_key: Bytes<32>,
    /// The host key that is to count.
    pub host_key: Bytes<32>,
    /// The boot key that counts so far.
    pub old_boot_key: Option<Bytes<32>>,
    /// The host key that counts so far.
    pub old_host_key: Option<Bytes<32>>,
    /// When the client joined with these.
    pub joined: Option<UnixMillis>,
    /// From where.
    pub joined_from: Option<IpAddr>,
    /// When the machine with these was heard of last.
    pub heard: Option<UnixMillis>,
    /// Whether it is connected now.
    pub connected: bool,
    /// What its header's tickets say, in words.
    pub ticket: String,
    /// Another machine asks for the same, from here.
    pub rival: Option<IpAddr>,
}

impl RejoinListing {
    /// What a person must know, a line for each fact.
    pub fn lines(&self) -> Vec<String> {
        let short = |spki: &Bytes<32>| hex(&spki.0[..8]);
        let old = |spki: &Option<Bytes<32>>| spki.as_ref().map_or_else(|| "none".to_owned(), short);
        let labels: Vec<_> = self.volumes.iter().map(|one| one.label.as_str()).collect();
        let mut lines = vec![
            format!(
                "request {}: this is NO BOOT. A machine at {} asks to be taken back as client '{}' with new keys",
                self.id, self.peer, self.client
            ),
            format!("it names {}; {}", labels.join(", "), self.ticket),
            format!(
                "boot key {} would be replaced by {}, host key {} by {}; the old ones would count no more",
                old(&self.old_boot_key),
                short(&self.boot_key),
                old(&self.old_host_key),
                short(&self.host_key)
            ),
            format!(
                "with them it could fetch the shares of all {} live volumes of '{}' at any time",
                self.live_volumes, self.client
            ),
        ];
        if let (Some(at), Some(from)) = (self.joined, self.joined_from) {
            let heard = self.heard.map_or_else(
                || "was not heard of since".to_owned(),
                |at| format!("was heard of last at {} UTC", at.text()),
            );
            lines.push(format!(
                "the machine with the old keys joined from {from} at {} UTC and {heard}",
                at.text()
            ));
        }
        if self.connected {
            lines.push(
                "a machine with the old keys is CONNECTED NOW: the one that asks may be a copy of its disk"
                    .to_owned(),
            );
        }
        if let Some(rival) = self.rival {
            lines.push(format!(
                "CONFLICT: another machine, at {rival}, asks for the same; one of the two is a copy"
            ));
        }
        lines
    }
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
