//! What the key server remembers, one type per kind of record, and under which key each is stored.
//!
//! Names of clients have no `/`, so every prefix that ends in `/` is one client's, volume's or kind's.

mod code;
mod machine;
mod rejoin;
mod trace;

use std::net::IpAddr;

use latchkey_protocol::encoding::{Bytes, hex};
use latchkey_protocol::ids::{ClientName, Generation, RequestId, VolumeId};
use latchkey_protocol::wire::{OpenedBy, WantedVolume};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::policy::{Otherwise, Policy, Range};

pub use code::{Code, ShortId};
pub use machine::{
    Announced, Armed, BootSession, FETCH, Group, GroupName, Heard, Machine, SetPolicy,
};
pub use rejoin::{BEGUN_LIMIT, Rejoin, recent};
pub use trace::{LastBoot, Note, TicketState, Trace, kernel};

/// SHA-256 of a public key's SubjectPublicKeyInfo in DER: how the server knows a client's key.
pub type SpkiHash = Bytes<32>;

/// A kind of record.
pub trait Record: Serialize + DeserializeOwned {
    /// Where this one is stored.
    fn key(&self) -> String;
}

/// A client, from its first invitation on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// Its name.
    pub name: ClientName,
    /// When it was invited first.
    pub created: UnixMillis,
    /// The invitation that it may join with; no other one counts.
    pub invitation: Option<Bytes<32>>,
    /// Its keys, once it has joined.
    pub joined: Option<Joined>,
    /// When it was revoked.
    pub revoked: Option<UnixMillis>,
    /// When it was locked out, until an administrator lets it boot again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked: Option<UnixMillis>,
    /// The group that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
    /// The policy for all its volumes that have none of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<SetPolicy>,
}

/// The keys of a client that joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Joined {
    /// The boot key.
    pub boot: SpkiHash,
    /// The host key.
    pub host: SpkiHash,
    /// When.
    pub at: UnixMillis,
    /// From which address.
    pub from: IpAddr,
}

/// Whose key this is, in which role. Never removed, so that no key comes back for someone else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownKey {
    /// The key.
    pub spki: SpkiHash,
    /// Its client.
    pub client: ClientName,
    /// What it may do.
    pub role: Role,
}

/// Which of a client's two keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Lies in the initramfs and can only ask for a release.
    Boot,
    /// Lies on the encrypted disk and signs all else.
    Host,
}

/// An invitation, kept after its end so that its holder can be told what happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invite {
    /// Hash of the one-time secret.
    pub hash: Bytes<32>,
    /// Who is invited.
    pub client: ClientName,
    /// When it was made.
    pub created: UnixMillis,
    /// When it ends.
    pub expires: UnixMillis,
    /// The keys that used it.
    pub used: Option<UsedBy>,
}

/// The two keys that an invitation was used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsedBy {
    /// The boot key.
    pub boot: SpkiHash,
    /// The host key.
    pub host: SpkiHash,
}

/// A volume; its record outlives its share as a tombstone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Whose it is.
    pub client: ClientName,
    /// What people call it, printable.
    pub label: String,
    /// The current share's generation.
    pub generation: Generation,
    /// Its policy.
    pub policy: Policy,
    /// Whether it is its own, or only what it got when it was bound.
    #[serde(default)]
    pub origin: Origin,
    /// The address that its machine had when it was bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<Range>,
    /// When it was registered.
    pub created: UnixMillis,
    /// Whether its share still exists.
    pub state: VolumeState,
    /// Which of its machine's keys asks for it.
    #[serde(default, skip_serializing_if = "OpenedBy::is_boot_key")]
    pub opened_by: OpenedBy,
    /// The share that is to take the current one's place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<NextShare>,
}

/// A share beside the current one, while its machine makes use of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NextShare {
    /// Its generation.
    pub generation: Generation,
    /// When it was made.
    pub made: UnixMillis,
}

impl Volume {
    /// From when on the share of this generation may be fetched back to be proved: the first one since the volume was bound, a
    /// next one since it was made, and one that has taken another's place no more. `None` if there is no such share.
    pub fn share_made(&self, generation: Generation) -> Option<UnixMillis> {
        if generation == self.generation {
            return Some(self.created);
        }
        let next = self.next.filter(|next| next.generation == generation)?;
        Some(next.made)
    }
}

/// Where a volume's policy comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// Written before this was known: it counts as set for the volume.
    #[default]
    Before,
    /// Given at binding: the client's or the group's goes before it.
    Bound,
    /// Set for the volume.
    Set(UnixMillis),
}

/// Whether a volume's share still exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// It does.
    Live,
    /// The client gave it up.
    Retired(UnixMillis),
    /// The administrator destroyed it.
    Destroyed(UnixMillis),
}

/// A boot session that waits for a person, or was decided by one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// The request id that the agent chose.
    pub request: RequestId,
    /// The client.
    pub client: ClientName,
    /// The public key that a release would be sealed to.
    pub ephemeral_key: Bytes<32>,
    /// The volumes that wait for a person.
    pub volumes: Vec<WantedVolume>,
    /// What the administrator calls the session.
    pub number: ShortId,
    /// What only the machine's console shows.
    pub code: Code,
    /// How it stands.
    pub state: SessionState,
    /// Wrong codes so far.
    pub attempts: u32,
    /// When it began.
    pub created: UnixMillis,
    /// When it ends, whatever its state.
    pub expires: UnixMillis,
    /// Where it came from.
    pub peer: IpAddr,
    /// Who approved it so far.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<Approved>,
}

/// A person's approval of a boot session, or of a machine that is to be taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approved {
    /// The name of the person's user.
    pub who: String,
    /// When.
    pub at: UnixMillis,
}

impl Session {
    /// Whether it has not ended.
    pub fn is_open(&self, now: UnixMillis) -> bool {
        now.is_within(self.created, self.expires)
    }
}

/// How a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionState {
    /// Waiting for a person.
    Pending,
    /// A person approved it; the share may be fetched until the session ends.
    Approved,
    /// A person denied it.
    Denied,
    /// Too many wrong codes.
    Exhausted,
}

/// Leads from a session's short id to the session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenNumber {
    /// The short id.
    pub number: ShortId,
    /// The session's client.
    pub client: ClientName,
    /// The session's request id.
    pub request: RequestId,
}

/// What the administrator set for the whole server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// What a new volume's policy says of addresses other than the registering machine's.
    pub elsewhere: Otherwise,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            elsewhere: Otherwise::Deny,
        }
    }
}

/// Keys of the records.
pub mod key {
    use super::{ClientName, Generation, GroupName, RequestId, ShortId, SpkiHash, VolumeId, hex};

    /// All clients.
    pub const CLIENTS: &str = "client/";
    /// All volumes.
    pub const VOLUMES: &str = "volume/";
    /// All sessions.
    pub const SESSIONS: &str = "session/";
    /// All invitations.
    pub const INVITES: &str = "invite/";
    /// All requests to be taken back.
    pub const REJOINS: &str = "rejoin/";
    /// All groups.
    pub const GROUPS: &str = "group/";
    /// The settings.
    pub const SETTINGS: &str = "settings";
    /// How long the key server has run.
    pub const UPTIME: &str = "uptime";
    /// What tells a store that was put back.
    pub const WITNESS: &str = "witness";

    /// A group.
    pub fn group(name: &GroupName) -> String {
        format!("{GROUPS}{name}")
    }

    /// The request of a client's machine to be taken back.
    pub fn rejoin(client: &ClientName) -> String {
        format!("{REJOINS}{client}")
    }

    /// What is remembered of a machine.
    pub fn machine(client: &ClientName) -> String {
        format!("machine/{client}")
    }

    /// What is remembered of a volume's boots.
    pub fn trace(volume: &VolumeId) -> String {
        format!("trace/{volume}")
    }

    /// A client.
    pub fn client(name: &ClientName) -> String {
        format!("{CLIENTS}{name}")
    }

    /// A known public key.
    pub fn known_key(spki: &SpkiHash) -> String {
        format!("key/{}", hex(&spki.0))
    }

    /// An invitation.
    pub fn invite(hash: &[u8; 32]) -> String {
        format!("{INVITES}{}", hex(hash))
    }

    /// A volume.
    pub fn volume(id: &VolumeId) -> String {
        format!("{VOLUMES}{id}")
    }

    /// The ids of a client's volumes.
    pub fn owned(client: &ClientName) -> String {
        format!("owned/{client}/")
    }

    /// All shares of a volume.
    pub fn shares(volume: &VolumeId) -> String {
        format!("share/{volume}/")
    }

    /// One share.
    pub fn share(volume: &VolumeId, generation: Generation) -> String {
        format!("share/{volume}/{:010}", generation.0)
    }

    /// A client's sessions.
    pub fn sessions(client: &ClientName) -> String {
        format!("{SESSIONS}{client}/")
    }

    /// One session.
    pub fn session(client: &ClientName, request: &RequestId) -> String {
        format!("{SESSIONS}{client}/{request}")
    }

    /// The session that goes by this short id.
    pub fn number(number: &ShortId) -> String {
        format!("number/{number}")
    }

    /// A sealed file of the network side, such as the CA's key.
    pub fn secret(name: &str) -> String {
        format!("secret/{name}")
    }
}

impl Record for Client {
    fn key(&self) -> String {
        key::client(&self.name)
    }
}

impl Record for KnownKey {
    fn key(&self) -> String {
        key::known_key(&self.spki)
    }
}

impl Record for Invite {
    fn key(&self) -> String {
        key::invite(&self.hash.0)
    }
}

impl Record for Volume {
    fn key(&self) -> String {
        key::volume(&self.id)
    }
}

impl Record for Session {
    fn key(&self) -> String {
        key::session(&self.client, &self.request)
    }
}

impl Record for OpenNumber {
    fn key(&self) -> String {
        key::number(&self.number)
    }
}

impl Record for crate::clock::Uptime {
    fn key(&self) -> String {
        key::UPTIME.to_owned()
    }
}

impl Record for Settings {
    fn key(&self) -> String {
        key::SETTINGS.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads<R: Record>(json: &str) -> R {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn records_of_the_first_version_are_read_and_mean_what_they_meant() {
        let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        let id = "0b5c2a58-8f5b-4f0e-9d7c-3a51d2f0c9aa";
        let volume: Volume = reads(&format!(
            r#"{{"id":"{id}","client":"web-1","label":"root","generation":1,
                "policy":{{"rule":"allow","from":["192.0.2.7/32"],"elsewhere":"ask"}},
                "created":7,"state":"live"}}"#
        ));
        let client: Client = reads(&format!(
            r#"{{"name":"web-1","created":1,"invitation":null,"joined":{{"boot":"{key}","host":"{key}",
                "at":1,"from":"192.0.2.7"}},"revoked":null}}"#
        ));
        let session: Session = reads(&format!(
            r#"{{"request":"000102030405060708090a0b0c0d0e0f","client":"web-1","ephemeral_key":"{key}",
                "volumes":[{{"volume":"{id}","generation":1}}],"number":"AAAAA","code":"AAAAAA",
                "state":"pending","attempts":0,"created":1,"expires":2,"peer":"192.0.2.7"}}"#
        ));
        assert!(session.approvals.is_empty() && client.locked.is_none());
        // A policy that somebody may have set goes before what is set for the client since.
        let others = Client {
            policy: Some(SetPolicy {
                policy: Policy::plain(crate::policy::Rule::Deny),
                set: UnixMillis(9),
            }),
            ..client
        };
        let found = crate::policy::in_force(&volume, &others, None);
        assert_eq!(found.scope, crate::policy::Scope::Before);
        assert_eq!(found.policy, &volume.policy);
    }
}
