//! The audit: a chain of hashed entries that every change and every release stands in.
//!
//! Each entry holds the hash of the one before; the last one's place and hash lie in a record of their own. So an
//! entry that is changed, moved or cut out is found, by whoever has the master key. What is not found here is a
//! store that was put back to an earlier state as a whole.

use std::net::IpAddr;

use latchkey_protocol::encoding::{Bytes, length_prefixed};
use latchkey_protocol::ids::{ClientName, RequestId, VolumeId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::clock::UnixMillis;
use crate::sealed::{RecordError, SealedStore};

const DOMAIN: &[u8] = b"latchkeyd audit v1";
/// Most bytes of an entry's text.
pub const TEXT_LIMIT: usize = 8 * 1024;
/// Where the entries are stored.
pub(crate) const ENTRIES: &str = "audit/entry/";
/// Where the end of the chain is stored.
pub(crate) const HEAD: &str = "audit/head";
/// How many entries are read at once.
const PAGE: usize = 256;

/// One entry of the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// A share left the server for a data volume that the running system opens.
    Opened,
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
    /// A new share took the place of the one before, or was given up.
    Rotated,
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
    /// A header's ticket moved on: the earlier one is stale from here on.
    Ticket,
    /// A reboot was announced.
    Armed,
    /// A host certificate was renewed.
    Renewed,
    /// A client was locked out.
    Locked,
    /// A client that was locked out may boot again.
    Readmitted,
    /// An administrator accepted that the store was put back.
    Accepted,
    /// A copy of the store was handed out.
    BackedUp,
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

/// The end of the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Head {
    /// The last entry's place; 0 if there is none.
    pub sequence: u64,
    /// Its hash.
    pub hash: Bytes<32>,
}

impl Default for Head {
    fn default() -> Self {
        Self {
            sequence: 0,
            hash: Bytes([0; 32]),
        }
    }
}

impl Head {
    /// The entry that records `event` after this end.
    pub fn next(&self, time: UnixMillis, event: Event) -> AuditEntry {
        let mut entry = AuditEntry {
            sequence: self.sequence + 1,
            time,
            previous: self.hash,
            event,
            hash: Bytes([0; 32]),
        };
        entry.hash = entry.compute_hash();
        entry
    }
}

impl Event {
    /// An event of which only the text is known yet. Control characters become blanks, a text beyond
    /// [`TEXT_LIMIT`] is cut.
    pub fn new(kind: Kind, text: impl AsRef<str>) -> Self {
        Self {
            kind,
            client: None,
            volume: None,
            request: None,
            peer: None,
            who: None,
            text: printable(text.as_ref(), TEXT_LIMIT),
        }
    }

    /// Concerning `client`.
    #[must_use]
    pub fn client(mut self, client: &ClientName) -> Self {
        self.client = Some(client.clone());
        self
    }

    /// Concerning `volume`.
    #[must_use]
    pub fn volume(mut self, volume: VolumeId) -> Self {
        self.volume = Some(volume);
        self
    }

    /// In the boot session `request`.
    #[must_use]
    pub fn request(mut self, request: RequestId) -> Self {
        self.request = Some(request);
        self
    }

    /// From `peer`.
    #[must_use]
    pub fn peer(mut self, peer: IpAddr) -> Self {
        self.peer = Some(peer.to_canonical());
        self
    }

    /// Done by the person `who`.
    #[must_use]
    pub fn who(mut self, who: &str) -> Self {
        self.who = Some(printable(who, 128));
        self
    }
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 26] = [
        Self::Initialised,
        Self::Invited,
        Self::Joined,
        Self::Registered,
        Self::Released,
        Self::Proved,
        Self::Opened,
        Self::Refused,
        Self::Asked,
        Self::Approved,
        Self::Denied,
        Self::WrongCode,
        Self::Rotated,
        Self::Retired,
        Self::Revoked,
        Self::Destroyed,
        Self::Changed,
        Self::BootReport,
        Self::Ticket,
        Self::Armed,
        Self::Renewed,
        Self::Locked,
        Self::Readmitted,
        Self::Accepted,
        Self::BackedUp,
        Self::Alarm,
    ];

    /// The kind of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The kind's name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Initialised => "initialised",
            Self::Invited => "invited",
            Self::Joined => "joined",
            Self::Registered => "registered",
            Self::Released => "released",
            Self::Proved => "proved",
            Self::Opened => "opened",
            Self::Refused => "refused",
            Self::Asked => "asked",
            Self::Approved => "approved",
            Self::Denied => "denied",
            Self::WrongCode => "wrong-code",
            Self::Rotated => "rotated",
            Self::Retired => "retired",
            Self::Revoked => "revoked",
            Self::Destroyed => "destroyed",
            Self::Changed => "changed",
            Self::BootReport => "boot-report",
            Self::Ticket => "ticket",
            Self::Armed => "armed",
            Self::Renewed => "renewed",
            Self::Locked => "locked",
            Self::Readmitted => "readmitted",
            Self::Accepted => "accepted",
            Self::BackedUp => "backed-up",
            Self::Alarm => "alarm",
        }
    }
}

impl AuditEntry {
    /// One line for people.
    pub fn line(&self) -> String {
        let event = &self.event;
        let mut line = format!(
            "{:>6}  {}  {}",
            self.sequence,
            self.time.text(),
            event.kind.name()
        );
        let mut field = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                line.push_str(&format!("  {name}={value}"));
            }
        };
        field("client", event.client.as_ref().map(ToString::to_string));
        field("volume", event.volume.map(|volume| volume.to_string()));
        field("request", event.request.map(|request| request.to_string()));
        field("from", event.peer.map(|peer| peer.to_string()));
        field("by", event.who.clone());
        if !event.text.is_empty() {
            line.push_str("  ");
            line.push_str(&event.text);
        }
        line
    }

    /// The entry as one line of JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("an entry has only strings and numbers")
    }

    /// SHA-256 over the length-prefixed fields in the order of the struct; an absent field is the empty string,
    /// which no present one is (an absent administrator and one without a name are the same).
    fn compute_hash(&self) -> Bytes<32> {
        let event = &self.event;
        let text = |value: Option<String>| value.unwrap_or_default();
        let encoded = length_prefixed(&[
            DOMAIN,
            &self.sequence.to_be_bytes(),
            &self.time.0.to_be_bytes(),
            &self.previous.0,
            event.kind.name().as_bytes(),
            text(event.client.as_ref().map(ToString::to_string)).as_bytes(),
            text(event.volume.map(|volume| volume.to_string())).as_bytes(),
            text(event.request.map(|request| request.to_string())).as_bytes(),
            text(event.peer.map(|peer| peer.to_string())).as_bytes(),
            text(event.who.clone()).as_bytes(),
            event.text.as_bytes(),
        ]);
        Bytes(Sha256::digest(encoded).into())
    }
}

/// Where the entry at `sequence` is stored.
pub(crate) fn entry_key(sequence: u64) -> String {
    format!("{ENTRIES}{sequence:016x}")
}

/// Up to `limit` entries that come after the entry `after`.
pub(crate) fn entries(
    records: &SealedStore,
    after: u64,
    limit: usize,
) -> Result<Vec<AuditEntry>, RecordError> {
    records.range(ENTRIES, Some(&entry_key(after)), limit)
}

/// Walks the chain from its first entry to its head.
pub(crate) fn verify(records: &SealedStore) -> Result<Result<Verified, ChainError>, RecordError> {
    let broken = |sequence, problem: &str| {
        Ok(Err(ChainError {
            sequence,
            problem: problem.to_owned(),
        }))
    };
    // The head first: entries that are appended while we walk come after it.
    let head: Head = match records.read(HEAD) {
        Err(RecordError::Damaged(_)) => return broken(0, "the end of the chain is damaged"),
        head => head?.unwrap_or_default(),
    };
    let mut last = Head::default();
    while last.sequence < head.sequence {
        let sequence = last.sequence + 1;
        let after = entry_key(last.sequence);
        let page = match records.range::<AuditEntry>(ENTRIES, Some(&after), PAGE) {
            // One bad record fails its page: find which.
            Err(RecordError::Damaged(_)) => match records.read(&entry_key(sequence)) {
                Err(RecordError::Damaged(_)) => return broken(sequence, "is damaged"),
                entry => entry?.into_iter().collect(),
            },
            page => page?,
        };
        if page.is_empty() {
            return broken(sequence, "is missing");
        }
        for entry in page {
            let sequence = last.sequence + 1;
            if sequence > head.sequence {
                break;
            }
            if entry.sequence != sequence {
                return broken(sequence, "is missing");
            }
            if entry.previous != last.hash {
                return broken(sequence, "does not follow the one before");
            }
            if entry.hash != entry.compute_hash() {
                return broken(sequence, "was changed");
            }
            last = Head {
                sequence,
                hash: entry.hash,
            };
        }
    }
    if last.hash != head.hash {
        return broken(last.sequence, "is not the end of the chain");
    }
    Ok(Ok(Verified {
        entries: last.sequence,
        head: last.hash,
    }))
}

/// `text` with every control character as a blank, cut to `limit` bytes: what machines send is shown on terminals.
pub(crate) fn printable(text: &str, limit: usize) -> String {
    let mut out = String::with_capacity(text.len().min(limit));
    for c in text.chars() {
        // Besides controls, what reorders the text of a terminal (Unicode TR 9).
        let odd = c.is_control()
            || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        let c = if odd { ' ' } else { c };
        if out.len() + c.len_utf8() > limit {
            break;
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
