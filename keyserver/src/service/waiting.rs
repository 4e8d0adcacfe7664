//! Boot sessions in which a person is asked.

use std::time::Duration;

use latchkey_protocol::wire::{VOLUMES_LIMIT, WantedVolume};

use super::asked::Asked;
use super::{Service, ServiceError};
use crate::audit::{Event, Kind};
use crate::ledger::Work;
use crate::policy::{Decision, Range};
use crate::records::{Code, OpenNumber, Session, SessionState, ShortId, key};
use crate::sealed::RecordError;

/// How long a session waits for a person.
pub const WAITING: Duration = Duration::from_secs(3600);
/// Sessions of one client that wait or are approved at the same time, of those that ask from one network: whoever has a copy of the
/// disk elsewhere does not keep the machine from asking.
pub const SESSIONS_LIMIT: usize = 8;
/// The same from everywhere.
pub const ALL_SESSIONS_LIMIT: usize = 32;

impl Service {
    /// The session in which a person is asked for what was decided so; `None` if there is no need, or if too many
    /// others of this client wait.
    pub(super) fn waiting(
        &self,
        work: &mut Work<'_>,
        asked: &Asked<'_>,
        session: Option<Session>,
        decisions: &[(WantedVolume, &Decision, String)],
    ) -> Result<Option<Session>, ServiceError> {
        let asks = decisions
            .iter()
            .filter(|(_, decision, _)| matches!(decision, Decision::Ask));
        let new: Vec<WantedVolume> = asks.clone().map(|(wanted, ..)| *wanted).collect();
        let open = session.filter(|session| session.is_open(asked.now));
        if new.is_empty() {
            return Ok(open);
        }
        let session = match open {
            // Still waiting, or the decision would not be to ask: nobody has approved it without these.
            Some(mut session) => {
                session.volumes.extend(&new);
                // Who has approved it so far has not approved these.
                session.approvals.clear();
                session
            }
            None => match self.begin_session(work, asked, new.clone())? {
                Some(session) => session,
                None => return Ok(None),
            },
        };
        if session.volumes.len() > VOLUMES_LIMIT {
            return Err(ServiceError::Invalid(
                "too many volumes in one boot session",
            ));
        }
        work.write(&session)?;
        for (wanted, _, because) in asks {
            work.audit(
                Event::new(
                    Kind::Asked,
                    format!("waits for a person as request {}{because}", session.number),
                )
                .client(&session.client)
                .volume(wanted.volume)
                .request(session.request)
                .peer(asked.peer),
            );
        }
        Ok(Some(session))
    }

    fn begin_session(
        &self,
        work: &mut Work<'_>,
        asked: &Asked<'_>,
        volumes: Vec<WantedVolume>,
    ) -> Result<Option<Session>, ServiceError> {
        let client = asked.identity.client();
        work.touch(&key::client(client))?;
        let others: Vec<Session> = self.records.all(&key::sessions(client))?;
        let (open, ended): (Vec<_>, Vec<_>) = others
            .into_iter()
            .partition(|session| session.is_open(asked.now));
        let is_busy = |session: &&Session| {
            matches!(
                session.state,
                SessionState::Pending | SessionState::Approved
            )
        };
        let here = Range::around(asked.peer);
        let busy: Vec<_> = open.iter().filter(is_busy).collect();
        let from_here = busy.iter().filter(|session| here.contains(session.peer));
        if busy.len() >= ALL_SESSIONS_LIMIT || from_here.count() >= SESSIONS_LIMIT {
            return Ok(None);
        }
        for session in ended {
            work.remove(key::session(client, &session.request));
            work.remove(key::number(&session.number));
        }
        let number = free_number(work)?;
        work.write(&OpenNumber {
            number: number.clone(),
            client: client.clone(),
            request: asked.request.request,
        })?;
        Ok(Some(Session {
            request: asked.request.request,
            client: client.clone(),
            ephemeral_key: asked.request.ephemeral_key,
            volumes,
            number,
            code: Code::random().map_err(random_failed)?,
            state: SessionState::Pending,
            attempts: 0,
            created: asked.now,
            expires: asked.now.plus(WAITING),
            peer: asked.peer,
            approvals: Vec::new(),
        }))
    }
}

/// A short id that no session has, nor a machine that asks to be taken back.
pub(super) fn free_number(work: &mut Work<'_>) -> Result<ShortId, RecordError> {
    loop {
        let number = ShortId::random().map_err(random_failed)?;
        if work.read::<OpenNumber>(&key::number(&number))?.is_none() {
            return Ok(number);
        }
    }
}

pub(super) fn random_failed(error: getrandom::Error) -> RecordError {
    latchkey_secret::SecretError::Random(error).into()
}
