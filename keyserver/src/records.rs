//! What the key server remembers, one type per kind of record, and under which key each is stored.
//!
//! Names of clients have no `/`, so every prefix that ends in `/` is one client's, volume's or kind's.

use std::fmt;
use std::net::IpAddr;

use latchkey_protocol::encoding::{Bytes, hex};
use latchkey_protocol::ids::{ClientName, Generation, RequestId, VolumeId};
use latchkey_protocol::wire::WantedVolume;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::policy::{Elsewhere, Policy};

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
    /// When it was registered.
    pub created: UnixMillis,
    /// Whether its share still exists.
    pub state: VolumeState,
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
    pub elsewhere: Elsewhere,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            elsewhere: Elsewhere::Deny,
        }
    }
}

/// 32 characters that nobody confuses (Crockford's base 32: no I, L, O, U).
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Six characters, 30 random bits, that the machine's console shows as `ABC-DEF`. `Debug` shows none of it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Code(String);

/// Five characters that name an open session for the administrator.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShortId(String);

impl Code {
    /// A fresh code.
    ///
    /// # Errors
    /// getrandom(2)'s.
    pub fn random() -> Result<Self, getrandom::Error> {
        random_text(6).map(Self)
    }

    /// Whether `typed` is this code; case, hyphens and spaces do not count, and look-alikes are taken for what
    /// they look like. Constant time over codes of the right length.
    pub fn matches(&self, typed: &str) -> bool {
        use subtle::ConstantTimeEq;
        normal_text(typed)
            .as_bytes()
            .ct_eq(self.0.as_bytes())
            .into()
    }

    /// `ABC-DEF`, for the machine's console.
    pub fn shown(&self) -> String {
        let (first, last) = self.0.split_at(self.0.len() / 2);
        format!("{first}-{last}")
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Code(..)")
    }
}

impl ShortId {
    /// A fresh id.
    ///
    /// # Errors
    /// getrandom(2)'s.
    pub fn random() -> Result<Self, getrandom::Error> {
        random_text(5).map(Self)
    }

    /// The id that a person typed.
    pub fn typed(text: &str) -> Self {
        Self(normal_text(text))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ShortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

fn random_text(length: usize) -> Result<String, getrandom::Error> {
    let mut bytes = vec![0u8; length];
    getrandom::fill(&mut bytes)?;
    Ok(bytes
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(byte % 32)]))
        .collect())
}

/// What a person typed, in the spelling of the alphabet; cut to 16 characters.
fn normal_text(typed: &str) -> String {
    typed
        .chars()
        .filter(|c| !matches!(c, '-' | ' ' | '\t' | '\r' | '\n'))
        .take(16)
        .map(|c| match c.to_ascii_uppercase() {
            'O' => '0',
            'I' | 'L' => '1',
            other => other,
        })
        .filter(|c| c.is_ascii_alphanumeric())
        .collect()
}

/// Keys of the records.
pub mod key {
    use super::{ClientName, Generation, RequestId, ShortId, SpkiHash, VolumeId, hex};

    /// All clients.
    pub const CLIENTS: &str = "client/";
    /// All volumes.
    pub const VOLUMES: &str = "volume/";
    /// All sessions.
    pub const SESSIONS: &str = "session/";
    /// All invitations.
    pub const INVITES: &str = "invite/";
    /// The settings.
    pub const SETTINGS: &str = "settings";

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

impl Record for Settings {
    fn key(&self) -> String {
        key::SETTINGS.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_read_as_people_type_them() {
        let code = Code("01ABZX".to_owned());
        for good in ["01ABZX", "01a-bzx", " oI A-bzx\n", "Ol-AB-ZX"] {
            assert!(code.matches(good), "{good:?}");
        }
        for bad in ["", "01ABZ", "01ABZXX", "01ABZY", "É1ABZX"] {
            assert!(!code.matches(bad), "{bad:?}");
        }
        assert_eq!(code.shown(), "01A-BZX");
        assert_eq!(format!("{code:?}"), "Code(..)");
    }

    #[test]
    fn random_codes_use_the_whole_alphabet() {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..400 {
            seen.extend(Code::random().unwrap().0.into_bytes());
        }
        assert_eq!(seen.len(), ALPHABET.len());
    }
}
