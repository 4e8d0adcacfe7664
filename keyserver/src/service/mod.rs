//! Everything that agents and the administrator can ask of the key server, without network.
//!
//! All methods may be called from several threads. Those whose names end in `awaited` never wait for a sync of the
//! disk, so that a great many can run at once; all others do. Each change is one transaction together with its audit
//! entry.

pub mod administration;
pub mod approval;
mod asked;
mod barred;
pub mod explain;
pub mod join;
pub mod life;
pub mod listing;
pub mod locking;
pub mod policies;
mod rates;
mod refusals;
pub mod registration;
pub mod rejoin;
pub mod release;
pub mod rotation;
pub mod running;
pub mod taking_back;
#[cfg(test)]
mod tests;
mod waiting;
pub mod witness;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use latchkey_protocol::ids::{ClientName, ServerId, VolumeId};

use crate::audit::{ChainError, Event, Kind};
use crate::clock::{Clock, Uptime};
use crate::ledger::Work;
use crate::policy::Standing;
use crate::records::{Client, GroupName, Invite, KnownKey, Rejoin, Role, Session, SpkiHash, key};
use crate::sealed::{RecordError, SealedStore};

pub use administration::Invitation;
pub use join::{JoinError, JoinKeys};
pub use rates::ENTRIES_PER_HOUR;

/// How long an ended invitation is kept, so that its holder can be told what happened.
const INVITE_KEPT: Duration = Duration::from_secs(30 * 86_400);

/// The key server without its network.
pub struct Service {
    records: SealedStore,
    server: ServerId,
    clock: Arc<dyn Clock>,
    refusals: refusals::Refusals,
    rates: rates::Rates,
    entries_per_hour: u32,
    lives: life::Lives,
    heads: witness::Heads,
    /// How long the server had run in its life when this service was made; read when it is needed first.
    began: OnceLock<Uptime>,
    /// When this service was made, by [`Clock::passed`].
    opened: Duration,
}

/// Who is at the other end of a connection. Only [`Service::identify`] makes one; every method looks again at
/// what the store says of the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    client: ClientName,
    role: Role,
    spki: SpkiHash,
    revoked: bool,
}

/// An operation that an agent asked for was not done.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The same answer for every stranger (403 `refused`); the reason is for the server's log only.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The request breaks a rule that the agent may be told (400).
    #[error("{0}")]
    Invalid(&'static str),
    /// The volume's share was destroyed or given up, and its id with it (410).
    #[error("the volume's share is gone for good\nbind the volume anew, which gives it a new id")]
    Destroyed,
    /// The store was put back to an earlier state: no share is made or leaves before that is accepted (409).
    #[error(
        "the key server's store was put back to an earlier state, and its administrator has not accepted that\ntell the administrator: latchkeyd accept-rollback"
    )]
    PutBack,
    /// More than one client may do in an hour (429).
    #[error("too many requests of this client, try again in {retry_after} s")]
    TooMany {
        /// Seconds until the agent should try again.
        retry_after: u32,
    },
    /// The store failed (503).
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// An operation of the administrator was not done.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// No such client.
    #[error("there is no client '{0}'\nsee 'latchkeyd clients'")]
    NoClient(ClientName),
    /// No such volume.
    #[error("there is no volume '{0}'\nsee 'latchkeyd volumes'")]
    NoVolume(VolumeId),
    /// No open session goes by this id.
    #[error(
        "there is no open request '{0}'\nsee 'latchkeyd requests'; a request ends after an hour"
    )]
    NoRequest(String),
    /// The client has joined and is not revoked.
    #[error(
        "client '{0}' has joined already\nto replace its keys, revoke it first: latchkeyd revoke {0}"
    )]
    Joined(ClientName),
    /// The invitation's lifetime is out of bounds.
    #[error("an invitation lives for 1 minute to 30 days")]
    Lifetime,
    /// The session was decided before.
    #[error("request '{id}' was decided already: {state}")]
    Decided {
        /// The session.
        id: String,
        /// How it stands.
        state: &'static str,
    },
    /// Not the code on the machine's console.
    #[error(
        "wrong code, {left} more may be wrong before the request is denied\nthe code is on the machine's console"
    )]
    WrongCode {
        /// Wrong codes that are still allowed; 0: the session is denied now.
        left: u32,
    },
    /// The policy cannot be set.
    #[error("the policy is refused: {0}")]
    Policy(String),
    /// A policy wants tickets where there is none.
    #[error(
        "volume '{0}' has never shown a ticket, so this policy would never let it boot by itself\nonly LUKS2 headers carry tickets; latchkey.service on the machine writes the first one: see 'latchkey status' there, or leave 'ticket' out"
    )]
    NoTickets(String),
    /// No such group.
    #[error(
        "there is no group '{0}'\nsee 'latchkeyd groups'; 'latchkeyd group CLIENT GROUP' makes one"
    )]
    NoGroup(GroupName),
    /// The policy does not name this person.
    #[error("'{who}' is not among the people who may approve this request: {by}")]
    NotApprover {
        /// The person.
        who: String,
        /// The people.
        by: String,
    },
    /// The person has approved the session before.
    #[error("'{0}' has approved this request already; another person must")]
    ApprovedAlready(String),
    /// How long a reboot is announced for is out of bounds.
    #[error("a reboot is announced for 1 minute to 24 hours")]
    ArmedLifetime,
    /// The request is no boot.
    #[error(
        "request '{0}' is no boot: a machine asks to be taken back with new keys\nsee what would be replaced: latchkeyd requests; to approve that: latchkeyd approve --rejoin {0} CODE"
    )]
    IsRejoin(String),
    /// The machine with the keys that would be replaced is connected.
    #[error(
        "a running machine is connected with the keys of client '{0}': the one that asks to be taken back may be a copy of it\nif it is the same machine, stop latchkey.service there and approve again; if not: latchkeyd deny --lock"
    )]
    StillRuns(ClientName),
    /// Whether a machine with the keys that would be replaced runs is not known yet.
    #[error(
        "whether a machine with the keys of client '{client}' still runs is not known yet: its connection has just ended, or the key server has just begun\ntry again in {left} s"
    )]
    NotKnownYet {
        /// Whose keys they are.
        client: ClientName,
        /// Seconds until it is known.
        left: u64,
    },
    /// No machine is taken back as this client.
    #[error(
        "the machine {0}\nit is not taken back as long as that is so; 'latchkeyd invite' lets a revoked one join"
    )]
    NeverTakenBack(&'static str),
    /// Nothing is released to the session, whoever approves it.
    #[error("not approved: nothing is released to this boot, as {0}")]
    NeverReleased(&'static str),
    /// The client is not locked out.
    #[error("client '{0}' is not locked out")]
    NotLocked(ClientName),
    /// The store was not put back.
    #[error("the store is the newest one that any machine has shown; there is nothing to accept")]
    NotPutBack,
    /// No reason was given.
    #[error("a reason is needed, for the audit: --reason TEXT")]
    Reason,
    /// The audit was changed.
    #[error("the audit is not as it was written")]
    Chain(#[from] ChainError),
    /// The store failed.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Why a stranger was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The key may not do this.
    #[error("this key is not for this endpoint")]
    Role,
    /// The client was revoked, or has other keys by now.
    #[error("the client was revoked")]
    Revoked,
    /// The volume belongs to another client.
    #[error("the volume belongs to another client")]
    NotOwned,
    /// There is no such volume.
    #[error("no such volume")]
    Unknown,
    /// A share was asked for again with a host key that the volume's policy has to decide on, after it was bound.
    #[error("the volume is bound already, and its share is given by its policy alone")]
    Bound,
    /// A certificate was asked for with another key than it is for.
    #[error("the certificate is for another key")]
    OtherKey,
}

impl Service {
    /// The service over an open store; `server` is the id that shares are bound to.
    pub fn new(records: SealedStore, server: ServerId, clock: Arc<dyn Clock>) -> Self {
        Self {
            records,
            server,
            opened: clock.passed(),
            lives: life::Lives::new(clock.passed()),
            clock,
            refusals: refusals::Refusals::default(),
            rates: rates::Rates::default(),
            entries_per_hour: ENTRIES_PER_HOUR,
            heads: witness::Heads::default(),
            began: OnceLock::new(),
        }
    }

    /// Limits the requests that one key of a client may have answered in an hour from one network.
    #[must_use]
    pub fn with_entries_per_hour(mut self, limit: u32) -> Self {
        self.entries_per_hour = limit;
        self
    }

    /// Sets the time between two beats of the running machines' streams; two of them without an answer are silence.
    #[must_use]
    pub fn with_life_beat(mut self, beat: Duration) -> Self {
        self.lives.set_beat(beat);
        self
    }

    /// Sets how many streams of running machines there may be.
    pub fn set_streams_limit(&self, limit: usize) {
        self.lives.set_limit(limit);
    }

    /// The sealed store, for the network side's own secrets.
    pub fn records(&self) -> &SealedStore {
        &self.records
    }

    /// The server's id.
    pub fn server(&self) -> &ServerId {
        &self.server
    }

    /// Whose key this is.
    ///
    /// # Errors
    /// The store's.
    pub fn identify(&self, spki: &SpkiHash) -> Result<Option<Identity>, RecordError> {
        let Some(known) = self.records.read::<KnownKey>(&key::known_key(spki))? else {
            return Ok(None);
        };
        let at = key::client(&known.client);
        let client: Client = self.records.read(&at)?.ok_or(RecordError::Missing(at))?;
        Ok(Some(Identity {
            revoked: client.standing(known.role, spki) == Standing::Revoked,
            client: known.client,
            role: known.role,
            spki: *spki,
        }))
    }

    /// Writes into the audit that the server was set up.
    ///
    /// # Errors
    /// The store's.
    pub fn record_setup(&self, who: &str, text: &str) -> Result<(), RecordError> {
        self.records.transact(self.clock.now(), |work| {
            work.audit(Event::new(Kind::Initialised, text).who(who));
            Ok(())
        })
    }

    /// Housekeeping, to be called about once a minute and before the end: writes the counts of refusals that
    /// were held back for an hour, removes ended sessions and old invitations.
    ///
    /// # Errors
    /// The store's.
    pub fn maintain(&self) -> Result<(), RecordError> {
        self.write_held()?;
        let now = self.clock.now();
        self.lives.maintain(self.clock.passed());
        let uptime = self.uptime()?;
        self.records.transact(now, |work| work.write(&uptime))?;
        let sessions: Vec<Session> = self.records.all(key::SESSIONS)?;
        for ended in sessions.iter().filter(|session| !session.is_open(now)) {
            self.records.transact(now, |work| {
                let at = key::session(&ended.client, &ended.request);
                // Unless the same boot has begun to ask anew since.
                if work.read::<Session>(&at)?.as_ref() == Some(ended) {
                    work.remove(at);
                    work.remove(key::number(&ended.number));
                }
                Ok::<_, RecordError>(())
            })?;
        }
        let rejoins: Vec<Rejoin> = self.records.all(key::REJOINS)?;
        let counts = self.clock_counts();
        for ahead in rejoins
            .iter()
            .filter(|one| counts && (*one).clone().settle(now))
        {
            self.records.transact(now, |work| {
                let found: Option<Rejoin> = work.read(&key::rejoin(&ahead.client))?;
                if let Some(mut rejoin) = found
                    && rejoin.settle(now)
                {
                    work.write(&rejoin)?;
                }
                Ok::<_, RecordError>(())
            })?;
        }
        for over in rejoins.iter().filter(|rejoin| rejoin.is_over(now)) {
            self.records.transact(now, |work| {
                let at = key::rejoin(&over.client);
                // Unless the client's machine has begun to ask anew since.
                if work.read::<Rejoin>(&at)?.as_ref() == Some(over) {
                    work.remove(at);
                    work.remove(key::number(&over.number));
                }
                Ok::<_, RecordError>(())
            })?;
        }
        let invites: Vec<Invite> = self.records.all(key::INVITES)?;
        for old in invites
            .iter()
            .filter(|i| i.expires.plus(INVITE_KEPT) <= now)
        {
            self.records.transact(now, |work| {
                work.remove(key::invite(&old.hash.0));
                Ok::<_, RecordError>(())
            })?;
        }
        Ok(())
    }

    /// The client behind a host key that still counts.
    fn host(&self, work: &mut Work<'_>, identity: &Identity) -> Result<Client, ServiceError> {
        let client = client_of(work, identity)?;
        if identity.role != Role::Host {
            return Err(ServiceError::Refused(Refusal::Role));
        }
        match client.standing(Role::Host, &identity.spki) {
            Standing::Good | Standing::Locked => Ok(client),
            Standing::Revoked => Err(ServiceError::Refused(Refusal::Revoked)),
        }
    }
}

/// The client as it stands now, not as it stood when the connection began.
fn client_of(work: &mut Work<'_>, identity: &Identity) -> Result<Client, RecordError> {
    let at = key::client(&identity.client);
    work.read(&at)?.ok_or(RecordError::Missing(at))
}

impl Client {
    /// Whether `spki` is this client's key in `role` today.
    fn standing(&self, role: Role, spki: &SpkiHash) -> Standing {
        let current = self.joined.as_ref().map(|joined| match role {
            Role::Boot => joined.boot,
            Role::Host => joined.host,
        });
        match (self.revoked, current) {
            (None, Some(current)) if current == *spki => match self.locked {
                None => Standing::Good,
                Some(_) => Standing::Locked,
            },
            _ => Standing::Revoked,
        }
    }
}

impl Identity {
    /// The client.
    pub fn client(&self) -> &ClientName {
        &self.client
    }

    /// Which of its keys.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether the client was revoked or has other keys by now.
    pub fn is_revoked(&self) -> bool {
        self.revoked
    }

    /// The key.
    pub fn spki(&self) -> &SpkiHash {
        &self.spki
    }
}
