//! Decides releases: a pure function of the request, the stored state and the time.
//!
//! Whatever hands out a share takes an [`Authorised`], which only this module can make. The order of the checks is
//! the order in which a requester learns things: nothing about a volume that is not his, then whether he is
//! revoked, whether there is anything left to release, whether he asks for the right thing, and only then the
//! policy. (A destroyed volume says so even where the policy would deny: the prompt is final then.)

mod range;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::ids::{ClientName, Generation, RequestId, VolumeId};
use latchkey_protocol::release::Purpose;
use latchkey_protocol::wire::WantedVolume;
use serde::{Deserialize, Serialize};

pub use range::{Range, RangeError};

use crate::clock::UnixMillis;
use crate::records::{Session, SessionState, Volume, VolumeState};

/// Most address ranges in one policy.
pub const RANGES_LIMIT: usize = 32;

/// On which conditions a volume's share is released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Policy {
    /// What holds for requests from the ranges in `from`.
    pub rule: Rule,
    /// Source addresses; none means any address.
    #[serde(default)]
    pub from: Vec<Range>,
    /// What holds for requests from anywhere else.
    #[serde(default)]
    pub elsewhere: Elsewhere,
}

/// What a policy says of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Release without a person.
    Allow,
    /// Ask a person.
    Ask,
    /// Never release.
    Deny,
}

/// What a policy says of requests from addresses that it does not list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Elsewhere {
    /// Ask a person.
    Ask,
    /// Never release.
    #[default]
    Deny,
}

/// A request for one volume, by a key that is known to be the client's.
#[derive(Debug, Clone, Copy)]
pub struct PolicyRequest<'a> {
    /// Which endpoint was asked, and so with which key.
    pub purpose: Purpose,
    /// Whose key it is.
    pub client: &'a ClientName,
    /// Whether the key is still the client's, and the client not revoked.
    pub standing: Standing,
    /// The boot session, proof or registration.
    pub request: RequestId,
    /// The key that a release would be sealed to.
    pub ephemeral_key: &'a Bytes<32>,
    /// Where it comes from.
    pub peer: IpAddr,
    /// The volume, and the generation of the share that its envelope needs.
    pub wanted: WantedVolume,
}

/// Whether a key still counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    Good,
    /// The client was revoked, or has other keys by now.
    Revoked,
}

/// What is stored of the volume and the boot session.
#[derive(Debug, Clone, Copy)]
pub struct StoredState<'a> {
    /// The volume, if there is one of this id.
    pub volume: Option<&'a Volume>,
    /// The session of this client with this request id, if there is one.
    pub session: Option<&'a Session>,
}

/// What is done with a request for one volume.
#[derive(Debug)]
pub enum Decision {
    /// Its share may leave.
    Release(Authorised),
    /// A person must be asked: begin a session, or add the volume to the one that waits.
    Ask,
    /// A person is being asked.
    Pending,
    /// Nothing is released.
    Deny(Reason),
    /// There is nothing to release any more.
    Destroyed,
}

/// Stands for the right to one share: of one client's volume in one generation, for one request, sealed to one
/// key. Only [`decide`] makes one.
#[derive(Debug)]
pub struct Authorised {
    purpose: Purpose,
    client: ClientName,
    volume: VolumeId,
    generation: Generation,
    request: RequestId,
    ephemeral_key: Bytes<32>,
    by: Authority,
}

/// What a release rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authority {
    /// The policy allows it without a person.
    Policy,
    /// A person approved the boot session.
    Approval,
    /// It is the running system's own volume.
    Owner,
}

/// Why nothing is released. `Display` is for the server's own log and audit, [`Reason::public`] for the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// There is no such volume.
    Unknown,
    /// It is another client's.
    NotOwned,
    /// The key does not count any more.
    Revoked,
    /// The envelope needs a share that is not the current one.
    Generation {
        /// What was asked for.
        wanted: Generation,
        /// What there is.
        current: Generation,
    },
    /// The request id belongs to a session with another key.
    OtherSession,
    /// The policy never releases.
    Rule,
    /// The policy does not list the address.
    Address,
    /// A person denied the session.
    Denied,
    /// Too many wrong codes were typed for the session.
    Exhausted,
    /// The session was approved without this volume.
    NotApproved,
}

/// Decides on one volume of a request at the time `now`.
pub fn decide(request: &PolicyRequest<'_>, state: StoredState<'_>, now: UnixMillis) -> Decision {
    let Some(volume) = state.volume else {
        return Decision::Deny(Reason::Unknown);
    };
    if volume.client != *request.client || volume.id != request.wanted.volume {
        return Decision::Deny(Reason::NotOwned);
    }
    if request.standing == Standing::Revoked {
        return Decision::Deny(Reason::Revoked);
    }
    if volume.state != VolumeState::Live {
        return Decision::Destroyed;
    }
    if volume.generation != request.wanted.generation {
        return Decision::Deny(Reason::Generation {
            wanted: request.wanted.generation,
            current: volume.generation,
        });
    }
    let authorise = |by| Decision::Release(Authorised::new(request, volume, by));
    if request.purpose != Purpose::Release {
        // The host key signs; the volume is open on the machine that asks.
        return authorise(Authority::Owner);
    }
    let session = state
        .session
        .filter(|session| session.is_open(now))
        .filter(|session| session.client == *request.client && session.request == request.request);
    if session.is_some_and(|session| session.ephemeral_key != *request.ephemeral_key) {
        return Decision::Deny(Reason::OtherSession);
    }
    match volume.policy.effective(request.peer) {
        Effective::Allow => authorise(Authority::Policy),
        Effective::Deny(reason) => Decision::Deny(reason),
        Effective::Ask => match session {
            None => Decision::Ask,
            Some(session) => match (session.state, session.volumes.contains(&request.wanted)) {
                (SessionState::Approved, true) => authorise(Authority::Approval),
                (SessionState::Approved, false) => Decision::Deny(Reason::NotApproved),
                (SessionState::Pending, true) => Decision::Pending,
                (SessionState::Pending, false) => Decision::Ask,
                (SessionState::Denied, _) => Decision::Deny(Reason::Denied),
                (SessionState::Exhausted, _) => Decision::Deny(Reason::Exhausted),
            },
        },
    }
}

impl Policy {
    /// What a volume gets when it is registered from `peer`: released to that machine's address.
    pub fn default_for(peer: IpAddr, elsewhere: Elsewhere) -> Self {
        Self {
            rule: Rule::Allow,
            from: vec![Range::around(peer)],
            elsewhere,
        }
    }

    /// Refuses what cannot be meant.
    ///
    /// # Errors
    /// The problem as text.
    pub fn check(&self) -> Result<(), String> {
        let mut seen = std::collections::BTreeSet::new();
        if self.from.len() > RANGES_LIMIT {
            return Err(format!("more than {RANGES_LIMIT} address ranges"));
        }
        if let Some(twice) = self.from.iter().find(|range| !seen.insert(**range)) {
            return Err(format!("'{twice}' is listed twice"));
        }
        if self.rule == Rule::Deny && !self.from.is_empty() {
            return Err("'deny' holds for all addresses; leave the ranges out".to_owned());
        }
        if self.elsewhere == Elsewhere::Ask && self.from.is_empty() {
            return Err("'elsewhere' needs address ranges to be elsewhere from".to_owned());
        }
        Ok(())
    }

    /// The policy in one sentence, of at most 400 bytes.
    pub fn sentence(&self) -> String {
        let from =
            match self.from.as_slice() {
                [] => return match self.rule {
                    Rule::Allow => {
                        "released without a person to whoever holds the boot key, from any address"
                    }
                    Rule::Ask => "released after a person's approval, from any address",
                    Rule::Deny => "never released",
                }
                .to_owned(),
                ranges => {
                    let mut shown: Vec<String> =
                        ranges.iter().take(4).map(ToString::to_string).collect();
                    if ranges.len() > shown.len() {
                        shown.push(format!("{} more ranges", ranges.len() - shown.len()));
                    }
                    shown.join(", ")
                }
            };
        let here = match self.rule {
            Rule::Allow => format!("released without a person to {from}"),
            Rule::Ask => format!("released after a person's approval to {from}"),
            Rule::Deny => return "never released".to_owned(),
        };
        match self.elsewhere {
            Elsewhere::Ask => format!("{here}; to other addresses after a person's approval"),
            Elsewhere::Deny => format!("{here}; to other addresses never"),
        }
    }

    fn effective(&self, peer: IpAddr) -> Effective {
        let listed = self.from.is_empty() || self.from.iter().any(|range| range.contains(peer));
        match (self.rule, listed, self.elsewhere) {
            (Rule::Deny, _, _) => Effective::Deny(Reason::Rule),
            (Rule::Allow, true, _) => Effective::Allow,
            (Rule::Ask, true, _) | (_, false, Elsewhere::Ask) => Effective::Ask,
            (_, false, Elsewhere::Deny) => Effective::Deny(Reason::Address),
        }
    }
}

/// What a policy comes to for one address.
enum Effective {
    Allow,
    Ask,
    Deny(Reason),
}

impl Authorised {
    fn new(request: &PolicyRequest<'_>, volume: &Volume, by: Authority) -> Self {
        Self {
            purpose: request.purpose,
            client: volume.client.clone(),
            volume: volume.id,
            generation: volume.generation,
            request: request.request,
            ephemeral_key: *request.ephemeral_key,
            by,
        }
    }

    /// Which endpoint may answer with it.
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// The client.
    pub fn client(&self) -> &ClientName {
        &self.client
    }

    /// The volume.
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// The share's generation.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The request.
    pub fn request(&self) -> RequestId {
        self.request
    }

    /// The key to seal to.
    pub fn ephemeral_key(&self) -> &Bytes<32> {
        &self.ephemeral_key
    }

    /// What it rests on.
    pub fn by(&self) -> Authority {
        self.by
    }
}

impl Reason {
    /// What the machine that asks is told: no more than the holder of its boot key may know.
    pub fn public(self) -> String {
        match self {
            Self::Unknown | Self::NotOwned => "unknown volume".to_owned(),
            Self::Revoked => "this client was revoked".to_owned(),
            Self::Generation { wanted, current } => format!(
                "the envelope needs the share of generation {wanted}, the current one is {current}"
            ),
            Self::OtherSession => "this request id belongs to another boot".to_owned(),
            Self::Rule => "the volume's policy denies every release".to_owned(),
            Self::Address => "this address is not allowed by the volume's policy".to_owned(),
            Self::Denied => "the request was denied by the administrator".to_owned(),
            Self::Exhausted => "too many wrong codes were typed for this request".to_owned(),
            Self::NotApproved => "the approval does not cover this volume".to_owned(),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("no such volume"),
            Self::NotOwned => f.write_str("the volume belongs to another client"),
            reason => f.write_str(&reason.public()),
        }
    }
}
