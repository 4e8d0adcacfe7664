//! A person's word on an open boot session.

use std::time::Duration;

use super::barred::{Barred, barred};
use super::listing::{RequestListing, RequestedVolume};
use super::locking::lock_in;
use super::policies::{client_record, owner};
use super::taking_back::open_rejoin;
use super::{AdminError, Service};
use crate::audit::{Event, Kind, printable};
use crate::clock::UnixMillis;
use crate::ledger::Work;
use crate::policy::{self, Approval};
use crate::records::{Approved, OpenNumber, Session, SessionState, ShortId, Volume, key};
use crate::sealed::RecordError;

/// How long an approved session may fetch its shares, unless its policies say otherwise.
pub const APPROVED: Duration = Duration::from_secs(600);
/// Wrong codes after which a session is denied.
pub const ATTEMPTS: u32 = 5;

impl Service {
    /// Boot sessions that have not ended, the oldest first.
    ///
    /// # Errors
    /// The store's.
    pub fn requests(&self) -> Result<Vec<RequestListing>, AdminError> {
        let now = self.clock.now();
        let mut sessions: Vec<Session> = self.records.all(key::SESSIONS)?;
        sessions.retain(|session| session.is_open(now));
        sessions.sort_by_key(|session| session.created);
        let listings = sessions.iter().map(|session| {
            let rival = |other: &&Session| {
                other.client == session.client && other.request != session.request && counts(other)
            };
            let conflict = counts(session) && sessions.iter().find(rival).is_some();
            self.request_listing(session, conflict)
        });
        Ok(listings.collect::<Result<_, RecordError>>()?)
    }

    /// Approves the session that goes by `id`, if `code` is the one on its machine's console. Where the policy wants
    /// several people, the session waits on until enough of them have, and again when too few of their approvals count.
    ///
    /// # Errors
    /// `NoRequest`, `Decided`, `WrongCode`, `NeverReleased`, `NotApprover`, `ApprovedAlready`, `Record`.
    pub fn approve(&self, id: &str, code: &str, who: &str) -> Result<RequestListing, AdminError> {
        let now = self.clock.now();
        let result = self.records.transact(now, |work| {
            let mut session = open_session(work, id, now)?;
            let wanted = wanted_approvals(work, &session)?;
            let standing = standing(&session, &wanted, now);
            if standing != SessionState::Pending {
                return Err(decided(&session.number, standing));
            }
            if !session.code.matches(code) {
                let left = wrong_code(work, &mut session, who)?;
                return Ok(Err(AdminError::WrongCode { left }));
            }
            session.state = standing;
            if let Some(why) = never_released(work, &session)? {
                return Err(AdminError::NeverReleased(why));
            }
            may_approve(&wanted, &session.approvals, who, now)?;
            // An approval that counts no more makes room for a new one of the same person.
            session.approvals.retain(|one| one.who != who);
            session.approvals.push(Approved {
                who: who.to_owned(),
                at: now,
            });
            let text = match left(&wanted, &session.approvals, now) {
                0 => {
                    let counts = wanted.iter().map(|approval| approval.good_for.0).min();
                    session.state = SessionState::Approved;
                    session.expires = now.plus(counts.unwrap_or(APPROVED));
                    "approved".to_owned()
                }
                left => format!("approved, and {left} more must"),
            };
            work.write(&session)?;
            audit(work, &session, Kind::Approved, &text, who);
            Ok(Ok(session))
        })?;
        Ok(self.request_listing(&result?, false)?)
    }

    /// Denies the session that goes by `id`, also after it was approved, and locks its client out if that is wanted.
    ///
    /// # Errors
    /// `NoRequest`, `Decided`, `Record`.
    pub fn deny(&self, id: &str, then: AfterDeny, who: &str) -> Result<RequestListing, AdminError> {
        let now = self.clock.now();
        let session = self.records.transact(now, |work| {
            let mut session = open_session(work, id, now)?;
            if !counts(&session) && then == AfterDeny::Nothing {
                return Err(decided(&session.number, session.state));
            }
            if counts(&session) {
                session.state = SessionState::Denied;
                work.write(&session)?;
                audit(work, &session, Kind::Denied, "denied", who);
            }
            if then == AfterDeny::Lock {
                lock_in(work, &session.client, now, who)?;
            }
            Ok(session)
        })?;
        Ok(self.request_listing(&session, false)?)
    }

    fn request_listing(
        &self,
        session: &Session,
        conflict: bool,
    ) -> Result<RequestListing, RecordError> {
        let now = self.clock.now();
        let mut volumes = Vec::with_capacity(session.volumes.len());
        for wanted in &session.volumes {
            let volume: Option<Volume> = self.records.read(&key::volume(&wanted.volume))?;
            volumes.push(RequestedVolume {
                id: wanted.volume,
                label: volume.map(|volume| volume.label).unwrap_or_default(),
            });
        }
        let wanted = self
            .records
            .transact(now, |work| wanted_approvals(work, session))?;
        let mut approved_by: Vec<String> = session
            .approvals
            .iter()
            .map(|one| one.who.clone())
            .collect();
        approved_by.sort();
        Ok(RequestListing {
            id: session.number.to_string(),
            request: session.request,
            client: session.client.clone(),
            volumes,
            peer: session.peer,
            state: standing(session, &wanted, now),
            created: session.created,
            expires: session.expires,
            attempts_left: ATTEMPTS.saturating_sub(session.attempts),
            approvals_left: left(&wanted, &session.approvals, now),
            approved_by,
            conflict,
        })
    }
}

/// What happens with the client of a denied session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterDeny {
    /// It may ask anew.
    Nothing,
    /// It is locked out.
    Lock,
}

impl SessionState {
    /// The state as people are told.
    pub fn text(self) -> &'static str {
        match self {
            Self::Pending => "waiting",
            Self::Approved => "approved",
            Self::Denied => "denied",
            Self::Exhausted => "denied after too many wrong codes",
        }
    }
}

/// Whether a release may still come of it.
fn counts(session: &Session) -> bool {
    matches!(
        session.state,
        SessionState::Pending | SessionState::Approved
    )
}

/// How the session stands at `now`: one that was approved waits again once too few of its approvals count, or the
/// policies have come to want more.
fn standing(session: &Session, wanted: &[Approval], now: UnixMillis) -> SessionState {
    match session.state {
        SessionState::Approved if left(wanted, &session.approvals, now) > 0 => {
            SessionState::Pending
        }
        state => state,
    }
}

/// Why nothing is released to the session whoever approves it.
fn never_released(
    work: &mut Work<'_>,
    session: &Session,
) -> Result<Option<&'static str>, AdminError> {
    let client = client_record(work, &session.client)?;
    Ok(barred(work, &client)?.map(|why| match why {
        Barred::Revoked => {
            "the client was revoked\n'latchkeyd invite' lets its machine join with new keys"
        }
        Barred::LockedOut => "the client is locked out\nto let it boot again: latchkeyd readmit",
        Barred::PutBack => {
            "the key server's store was put back to an earlier state\nto accept that: latchkeyd accept-rollback"
        }
    }))
}

/// What the policies of a session's volumes want.
fn wanted_approvals(work: &mut Work<'_>, session: &Session) -> Result<Vec<Approval>, RecordError> {
    let mut wanted = Vec::with_capacity(session.volumes.len());
    for one in &session.volumes {
        // A volume that is gone is not released whoever approves.
        if let Some(volume) = work.read::<Volume>(&key::volume(&one.volume))? {
            let (client, group) = owner(work, &volume)?;
            let found = policy::in_force(&volume, &client, group.as_ref());
            wanted.push(found.policy.approval.clone());
        }
    }
    Ok(wanted)
}

/// Refuses a person whom none of the policies names, or whose approval counts already.
pub(super) fn may_approve(
    wanted: &[Approval],
    approvals: &[Approved],
    who: &str,
    now: UnixMillis,
) -> Result<(), AdminError> {
    let names =
        |approval: &Approval| approval.by.is_empty() || approval.by.iter().any(|name| name == who);
    if !wanted.iter().any(names) && !wanted.is_empty() {
        let by: std::collections::BTreeSet<&str> = wanted
            .iter()
            .flat_map(|approval| approval.by.iter().map(String::as_str))
            .collect();
        return Err(AdminError::NotApprover {
            who: who.to_owned(),
            by: by.into_iter().collect::<Vec<_>>().join(", "),
        });
    }
    let counts = |approval: &Approval| approval.given(approvals, now).contains(who);
    if !wanted.is_empty() && wanted.iter().filter(|one| names(one)).all(counts) {
        return Err(AdminError::ApprovedAlready(who.to_owned()));
    }
    Ok(())
}

/// How many more people must approve: the most that any of the policies lacks.
pub(super) fn left(wanted: &[Approval], approvals: &[Approved], now: UnixMillis) -> usize {
    let lacks = |approval: &Approval| {
        approval
            .count
            .saturating_sub(approval.given(approvals, now).len())
    };
    wanted.iter().map(lacks).max().unwrap_or(0)
}

fn open_session(work: &mut Work<'_>, id: &str, now: UnixMillis) -> Result<Session, AdminError> {
    let open = open_number(work, id)?;
    let at = key::session(&open.client, &open.request);
    let Some(session) = work.read::<Session>(&at)? else {
        // Nobody approves a machine's return for a boot.
        return Err(match open_rejoin(work, id, now) {
            Ok(rejoin) => AdminError::IsRejoin(rejoin.number.to_string()),
            Err(_) => no_request(id),
        });
    };
    // The request may have begun anew under another number.
    if session.number == open.number && session.is_open(now) {
        Ok(session)
    } else {
        Err(no_request(id))
    }
}

/// What goes by the number that somebody typed.
pub(super) fn open_number(work: &mut Work<'_>, id: &str) -> Result<OpenNumber, AdminError> {
    let found = work.read(&key::number(&ShortId::typed(id)))?;
    found.ok_or_else(|| no_request(id))
}

pub(super) fn no_request(id: &str) -> AdminError {
    AdminError::NoRequest(printable(id, 32))
}

pub(super) fn decided(number: &ShortId, state: SessionState) -> AdminError {
    AdminError::Decided {
        id: number.to_string(),
        state: state.text(),
    }
}

/// Counts a wrong code, the last of which denies the request; the result is how many more may be wrong.
pub(super) fn count_wrong(attempts: &mut u32, state: &mut SessionState) -> u32 {
    *attempts = attempts.saturating_add(1);
    let left = ATTEMPTS.saturating_sub(*attempts);
    if left == 0 {
        *state = SessionState::Exhausted;
    }
    left
}

/// As [`count_wrong`], on record.
fn wrong_code(work: &mut Work<'_>, session: &mut Session, who: &str) -> Result<u32, RecordError> {
    let left = count_wrong(&mut session.attempts, &mut session.state);
    work.write(session)?;
    audit(work, session, Kind::WrongCode, "wrong code", who);
    if left == 0 {
        audit(
            work,
            session,
            Kind::Denied,
            "denied after too many wrong codes",
            who,
        );
    }
    Ok(left)
}

/// One entry for each volume, so that a volume's history is complete.
fn audit(work: &mut Work<'_>, session: &Session, kind: Kind, text: &str, who: &str) {
    for wanted in &session.volumes {
        work.audit(
            Event::new(kind, format!("{text}: request {}", session.number))
                .client(&session.client)
                .volume(wanted.volume)
                .request(session.request)
                .peer(session.peer)
                .who(who),
        );
    }
}
