//! Decides releases: a pure function of the request, the stored state and the time.
//!
//! Whatever hands out a share takes an [`Authorised`], which only this module can make. The order of the checks is
//! the order in which a requester learns things: nothing about a volume that is not his, then whether he is
//! revoked, whether there is anything left to release, whether he asks for the right thing, whether he is locked out or
//! the store was put back, and only then the policy. (A destroyed volume says so even where the policy would deny: the
//! prompt is final then.)
//!
//! [`model`] is a policy's text, [`condition`] what each condition says of a request.

pub mod condition;
#[cfg(test)]
mod condition_tests;
pub mod model;
pub mod preset;
mod range;
pub mod scope;
mod sentence;
mod span;
#[cfg(test)]
mod tests;
mod window;

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::ids::{ClientName, Generation, RequestId, VolumeId};
use latchkey_protocol::release::Purpose;
use latchkey_protocol::wire::{BootFacts, OpenedBy, WantedVolume};

pub use condition::{Condition, Finding, Outcome, Sum, findings, sum};
pub use model::{Approval, Change, Otherwise, Policy, PolicyError, Rule, Source};
pub use preset::{PRESETS, Preset};
pub use range::{Range, RangeError};
pub use scope::{InForce, Scope, in_force};
pub use sentence::SENTENCE_LIMIT;
pub use span::Span;
pub use window::Window;

/// What a client hears of a volume that is not its own, whether there is one or not.
pub const UNKNOWN_VOLUME: &str = "unknown volume";

use crate::clock::{UnixMillis, Uptime};
use crate::records::{Approved, Machine, Note, Session, SessionState, Trace, Volume, VolumeState};

/// How long after its registration a volume may be proved that a running system opens, or whose machine's host key is in every
/// copy of its disk: as long as a `bind` may take. Later a proof would be a way past its policy.
pub const BINDING: Duration = Duration::from_secs(3600);

/// Whether the policy has a say: a boot asks, or a running system that opens a data volume.
pub fn is_asked(purpose: Purpose) -> bool {
    match purpose {
        Purpose::Release | Purpose::Opening => true,
        Purpose::Proof | Purpose::Registration => false,
    }
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
    /// The boot session, opening, proof or registration.
    pub request: RequestId,
    /// The key that a release would be sealed to.
    pub ephemeral_key: &'a Bytes<32>,
    /// Where it comes from.
    pub peer: IpAddr,
    /// The volume, and the generation of the share that its envelope needs.
    pub wanted: WantedVolume,
    /// The ticket that the volume's header shows.
    pub ticket: Option<&'a Bytes<32>>,
    /// What the machine says of its boot.
    pub facts: &'a BootFacts,
}

/// Whether a key still counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    Good,
    /// The client was revoked, or has other keys by now.
    Revoked,
    /// The client is locked out until an administrator lets it boot again.
    Locked,
}

/// What is known of the volume, its machine and the boot session.
#[derive(Debug, Clone, Copy)]
pub struct StoredState<'a> {
    /// The volume, if there is one of this id.
    pub volume: Option<&'a Volume>,
    /// The policy in force for it.
    pub policy: &'a Policy,
    /// When that was set.
    pub policy_set: UnixMillis,
    /// The address that the machine had when the volume was bound.
    pub home: Option<Range>,
    /// The session of this client with this request id, if there is one.
    pub session: Option<&'a Session>,
    /// What is remembered of the machine.
    pub machine: Option<&'a Machine>,
    /// What is remembered of the volume's boots.
    pub trace: Option<&'a Trace>,
    /// Whether the running machine answered when it was asked because of this boot session.
    pub life: Life,
    /// Whether the store is the newest one.
    pub store: StoreState,
    /// How long the key server has run.
    pub uptime: Uptime,
}

impl<'a> StoredState<'a> {
    /// What is known where only the owner can ask: the policy has no say.
    pub fn of_owner(volume: &'a Volume, store: StoreState) -> Self {
        Self {
            volume: Some(volume),
            policy: &volume.policy,
            policy_set: volume.created,
            home: volume.home,
            session: None,
            machine: None,
            trace: None,
            life: Life::Gone,
            store,
            uptime: Uptime::default(),
        }
    }
}

/// Whether a running machine is heard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Life {
    /// It has no connection open, and whether it comes back is not known yet.
    Gone,
    /// It has a connection open, and was not asked or has not answered yet.
    #[default]
    Waiting,
    /// It answered.
    Alive,
    /// It did not answer in time.
    Silent,
}

/// Whether the key server's store is the newest one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreState {
    /// As far as any machine has shown.
    Newest,
    /// A machine has seen a newer one.
    PutBack,
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
    /// The running machine is being asked.
    Wait,
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
    announced: bool,
    note: Note,
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
    /// The envelope needs a share that is neither the current nor the next one.
    Generation {
        /// What was asked for.
        wanted: Generation,
        /// What there is.
        current: Generation,
    },
    /// The volume was bound to be asked for with the machine's other key.
    OtherKey,
    /// The running system opens the volume, or every copy of the disk has its host key, so its share is given by the policy
    /// alone once it is bound.
    Bound,
    /// The policy wants what a host key cannot show that is in every copy of the disk.
    Exposed,
    /// The request id belongs to a session with another key.
    OtherSession,
    /// The store was put back to an earlier state.
    PutBack,
    /// The client is locked out.
    Locked,
    /// A condition of the policy refuses.
    Condition(Condition),
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
    let Some(made) = volume.share_made(request.wanted.generation) else {
        return Decision::Deny(Reason::Generation {
            wanted: request.wanted.generation,
            current: volume.generation,
        });
    };
    let authorise = |by| Decision::Release(Authorised::new(request, volume, by, state, now));
    match (request.purpose, volume.opened_by) {
        (Purpose::Release, OpenedBy::BootKey | OpenedBy::ExposedBootKey)
        | (Purpose::Opening, OpenedBy::HostKey | OpenedBy::ExposedHostKey) => {}
        (Purpose::Release | Purpose::Opening, _) => return Decision::Deny(Reason::OtherKey),
        (
            Purpose::Proof | Purpose::Registration,
            OpenedBy::ExposedBootKey | OpenedBy::HostKey | OpenedBy::ExposedHostKey,
        ) if !now.is_within(made, made.plus(BINDING)) => {
            return Decision::Deny(Reason::Bound);
        }
        (Purpose::Proof | Purpose::Registration, _) => {
            // The host key signs; the volume is open on the machine that asks, or is being bound. But whose key it is, is as
            // old as the store.
            return match state.store {
                StoreState::Newest => authorise(Authority::Owner),
                StoreState::PutBack => Decision::Deny(Reason::PutBack),
            };
        }
    }
    let session = state
        .session
        .filter(|session| session.is_open(now))
        .filter(|session| session.client == *request.client && session.request == request.request);
    if session.is_some_and(|session| session.ephemeral_key != *request.ephemeral_key) {
        return Decision::Deny(Reason::OtherSession);
    }
    if state.store == StoreState::PutBack {
        return Decision::Deny(Reason::PutBack);
    }
    if request.standing == Standing::Locked {
        return Decision::Deny(Reason::Locked);
    }
    let policy = state.policy;
    let findings = findings(policy, request, state, now);
    match sum(policy, &findings) {
        Sum::Release => authorise(Authority::Policy),
        Sum::Wait => Decision::Wait,
        Sum::Deny(Condition::Life) if !condition::answered(&findings) => {
            Decision::Deny(Reason::Exposed)
        }
        Sum::Deny(condition) => Decision::Deny(Reason::Condition(condition)),
        Sum::Ask => match session {
            None => Decision::Ask,
            Some(session) => match (session.state, session.volumes.contains(&request.wanted)) {
                (SessionState::Approved, true)
                    if policy.approval.is_given(&session.approvals, now) =>
                {
                    authorise(Authority::Approval)
                }
                // Since it was approved, the policy has come to want more.
                (SessionState::Approved, true) => Decision::Pending,
                (SessionState::Approved, false) => Decision::Deny(Reason::NotApproved),
                (SessionState::Pending, true) => Decision::Pending,
                (SessionState::Pending, false) => Decision::Ask,
                (SessionState::Denied, _) => Decision::Deny(Reason::Denied),
                (SessionState::Exhausted, _) => Decision::Deny(Reason::Exhausted),
            },
        },
    }
}

impl Approval {
    /// Whether enough of the right people, each counted once, gave one of `approvals` whose word still counts.
    pub fn is_given(&self, approvals: &[Approved], now: UnixMillis) -> bool {
        self.given(approvals, now).len() >= self.count
    }

    /// Whose approval counts.
    pub fn given<'a>(
        &self,
        approvals: &'a [Approved],
        now: UnixMillis,
    ) -> std::collections::BTreeSet<&'a str> {
        let counts = |who: &str| self.by.is_empty() || self.by.iter().any(|name| name == who);
        approvals
            .iter()
            .filter(|one| now.is_within(one.at, one.at.plus(self.good_for.0)))
            .map(|one| one.who.as_str())
            .filter(|who| counts(who))
            .collect()
    }
}

impl Authorised {
    fn new(
        request: &PolicyRequest<'_>,
        volume: &Volume,
        by: Authority,
        state: StoredState<'_>,
        now: UnixMillis,
    ) -> Self {
        Self {
            // Also where the policy asks for no announcement, or a person let it boot: the boot that was announced has come.
            announced: by != Authority::Owner && condition::announced(request, state, now),
            note: Note {
                once: state.policy.once.then_some(state.policy_set),
                counted: state.policy.per_hour.is_some() || state.policy.per_day.is_some(),
            },
            purpose: request.purpose,
            client: volume.client.clone(),
            volume: volume.id,
            generation: request.wanted.generation,
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

    /// Whether it uses an announced reboot up.
    pub fn is_announced(&self) -> bool {
        self.announced
    }

    /// What the policy wants to have noted of the release.
    pub fn note(&self) -> Note {
        self.note
    }
}

impl Reason {
    /// Whether the policy, or a person whom it asks for, said so.
    pub fn is_of_policy(self) -> bool {
        matches!(
            self,
            Self::Condition(_) | Self::Exposed | Self::Denied | Self::Exhausted | Self::NotApproved
        )
    }

    /// What the machine that asks is told: no more than the holder of its boot key may know.
    pub fn public(self) -> String {
        match self {
            Self::Unknown | Self::NotOwned => UNKNOWN_VOLUME.to_owned(),
            Self::Revoked => "this client was revoked".to_owned(),
            Self::Generation { wanted, current } => format!(
                "the envelope needs the share of generation {wanted}, the current one is {current}"
            ),
            Self::OtherKey => "the volume was bound to be opened elsewhere, in the initramfs or in the running system: unbind it and bind it again".to_owned(),
            Self::Bound => "a volume that the running system opens, or whose machine's root is not encrypted, is proved only while it is being bound".to_owned(),
            Self::Exposed => "the volume's policy wants proof of life, and root of this machine is not encrypted: its host key proves none".to_owned(),
            Self::OtherSession => "this request id belongs to another boot".to_owned(),
            Self::PutBack => "the key server's store was put back to an earlier state, and its administrator has not accepted that".to_owned(),
            Self::Locked => "this client is locked out by the administrator".to_owned(),
            Self::Condition(condition) => condition.refusal().to_owned(),
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
