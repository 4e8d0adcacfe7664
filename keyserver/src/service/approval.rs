//! A person's word on an open boot session.

use super::listing::{RequestListing, RequestedVolume};
use super::release::APPROVED;
use super::{AdminError, Service};
use crate::audit::{Event, Kind, printable};
use crate::clock::UnixMillis;
use crate::ledger::Work;
use crate::records::{OpenNumber, Session, SessionState, ShortId, Volume, key};
use crate::sealed::RecordError;

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

    /// Approves the session that goes by `id`, if `code` is the one on its machine's console.
    ///
    /// # Errors
    /// `NoRequest`, `Decided`, `WrongCode`, `Record`.
    pub fn approve(&self, id: &str, code: &str, who: &str) -> Result<RequestListing, AdminError> {
        let now = self.clock.now();
        let result = self.records.transact(now, |work| {
            let mut session = open_session(work, id, now)?;
            if session.state != SessionState::Pending {
                return Err(decided(&session));
            }
            if !session.code.matches(code) {
                let left = wrong_code(work, &mut session, who)?;
                return Ok(Err(AdminError::WrongCode { left }));
            }
            session.state = SessionState::Approved;
            session.expires = now.plus(APPROVED);
            work.write(&session)?;
            audit(work, &session, Kind::Approved, "approved", who);
            Ok(Ok(session))
        })?;
        Ok(self.request_listing(&result?, false)?)
    }

    /// Denies the session that goes by `id`, also after it was approved.
    ///
    /// # Errors
    /// `NoRequest`, `Decided`, `Record`.
    pub fn deny(&self, id: &str, who: &str) -> Result<RequestListing, AdminError> {
        let now = self.clock.now();
        let session = self.records.transact(now, |work| {
            let mut session = open_session(work, id, now)?;
            if !counts(&session) {
                return Err(decided(&session));
            }
            session.state = SessionState::Denied;
            work.write(&session)?;
            audit(work, &session, Kind::Denied, "denied", who);
            Ok(session)
        })?;
        Ok(self.request_listing(&session, false)?)
    }

    fn request_listing(
        &self,
        session: &Session,
        conflict: bool,
    ) -> Result<RequestListing, RecordError> {
        let mut volumes = Vec::with_capacity(session.volumes.len());
        for wanted in &session.volumes {
            let volume: Option<Volume> = self.records.read(&key::volume(&wanted.volume))?;
            volumes.push(RequestedVolume {
                id: wanted.volume,
                label: volume.map(|volume| volume.label).unwrap_or_default(),
            });
        }
        Ok(RequestListing {
            id: session.number.to_string(),
            request: session.request,
            client: session.client.clone(),
            volumes,
            peer: session.peer,
            state: session.state,
            created: session.created,
            expires: session.expires,
            attempts_left: ATTEMPTS.saturating_sub(session.attempts),
            conflict,
        })
    }
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

fn open_session(work: &mut Work<'_>, id: &str, now: UnixMillis) -> Result<Session, AdminError> {
    let missing = || AdminError::NoRequest(printable(id, 32));
    let number = ShortId::typed(id);
    let open: OpenNumber = work.read(&key::number(&number))?.ok_or_else(missing)?;
    let at = key::session(&open.client, &open.request);
    let session: Session = work.read(&at)?.ok_or_else(missing)?;
    // The request may have begun anew under another number.
    if session.number == number && session.is_open(now) {
        Ok(session)
    } else {
        Err(missing())
    }
}

fn decided(session: &Session) -> AdminError {
    AdminError::Decided {
        id: session.number.to_string(),
        state: session.state.text(),
    }
}

/// Counts a wrong code; the result is how many more may be wrong.
fn wrong_code(work: &mut Work<'_>, session: &mut Session, who: &str) -> Result<u32, RecordError> {
    session.attempts = session.attempts.saturating_add(1);
    let left = ATTEMPTS.saturating_sub(session.attempts);
    if left == 0 {
        session.state = SessionState::Exhausted;
    }
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
