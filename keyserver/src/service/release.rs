//! Releases and proofs: a verdict for each volume, and a share only with an authorised one.

use std::net::IpAddr;
use std::time::Duration;

use latchkey_protocol::encoding::hex;
use latchkey_protocol::release::{Purpose, ReleaseContext, ReleaseError, SealedShare};
use latchkey_protocol::wire::{
    ReleaseAnswer, ReleaseRequest, Text, VOLUMES_LIMIT, Verdict, Version, VolumeVerdict,
    WantedVolume,
};

use super::refusals::Refused;
use super::{Identity, Refusal, Service, ServiceError, client_of};
use crate::audit::{Event, Kind};
use crate::clock::UnixMillis;
use crate::ledger::Work;
use crate::policy::{
    self, Authorised, Authority, Decision, PolicyRequest, Reason, Standing, StoredState,
};
use crate::records::{Code, OpenNumber, Role, Session, SessionState, ShortId, Volume, key};
use crate::sealed::RecordError;
use crate::wait::wait;

/// How long a session waits for a person.
pub const WAITING: Duration = Duration::from_secs(3600);
/// How long an approved session may fetch its shares.
pub const APPROVED: Duration = Duration::from_secs(600);
/// Sessions of one client that wait or are approved at the same time.
pub const SESSIONS_LIMIT: usize = 8;
/// Seconds after which a machine whose request waits asks again.
const RETRY_PENDING: u32 = 5;
/// Seconds after which a machine that was denied asks again.
const RETRY_DENIED: u32 = 300;

impl Service {
    /// Decides on each volume of a boot session and releases what is authorised. `identity` is a boot key, which
    /// may be revoked.
    ///
    /// # Errors
    /// `Refused` for any other key, `Invalid`, `TooMany`, `Record`.
    pub async fn release_awaited(
        &self,
        identity: &Identity,
        peer: IpAddr,
        request: &ReleaseRequest,
    ) -> Result<ReleaseAnswer, ServiceError> {
        self.answer(Purpose::Release, identity, peer, request).await
    }

    /// Lets a running system fetch its shares back, to prove that the next boot can. `identity` is a host key.
    ///
    /// # Errors
    /// `Refused`, `Invalid`, `TooMany`, `Record`.
    pub async fn proof_awaited(
        &self,
        identity: &Identity,
        peer: IpAddr,
        request: &ReleaseRequest,
    ) -> Result<ReleaseAnswer, ServiceError> {
        self.answer(Purpose::Proof, identity, peer, request).await
    }

    /// As [`Service::release_awaited`], on a thread that may wait.
    ///
    /// # Errors
    /// The same.
    pub fn release(
        &self,
        identity: &Identity,
        peer: IpAddr,
        request: &ReleaseRequest,
    ) -> Result<ReleaseAnswer, ServiceError> {
        wait(self.release_awaited(identity, peer, request))
    }

    /// As [`Service::proof_awaited`], on a thread that may wait.
    ///
    /// # Errors
    /// The same.
    pub fn proof(
        &self,
        identity: &Identity,
        peer: IpAddr,
        request: &ReleaseRequest,
    ) -> Result<ReleaseAnswer, ServiceError> {
        wait(self.proof_awaited(identity, peer, request))
    }

    async fn answer(
        &self,
        purpose: Purpose,
        identity: &Identity,
        peer: IpAddr,
        request: &ReleaseRequest,
    ) -> Result<ReleaseAnswer, ServiceError> {
        check_volumes(request)?;
        let now = self.clock.now();
        self.admit(identity.client(), now)?;
        let asked = Asked {
            purpose,
            identity,
            peer: peer.to_canonical(),
            request,
            now,
        };
        // The shares of a piece of work that is not committed never leave this call.
        let result = self
            .records
            .transact_awaited(now, |work| self.decide(work, &asked))
            .await;
        let (verdicts, refusals) = self.noted_awaited(identity, peer, result).await?;
        self.note_awaited(refusals).await?;
        Ok(ReleaseAnswer {
            version: Version::default(),
            verdicts,
        })
    }

    fn decide(
        &self,
        work: &mut Work<'_>,
        asked: &Asked<'_>,
    ) -> Result<(Vec<VolumeVerdict>, Vec<Refused>), ServiceError> {
        work.fetch(&asked.keys())?;
        let standing = self.standing(work, asked)?;
        let session: Option<Session> = match asked.purpose {
            Purpose::Release => work.read(&key::session(
                asked.identity.client(),
                &asked.request.request,
            ))?,
            Purpose::Proof | Purpose::Registration => None,
        };
        let mut decisions = Vec::with_capacity(asked.request.volumes.len());
        for wanted in &asked.request.volumes {
            let volume: Option<Volume> = work.read(&key::volume(&wanted.volume))?;
            let state = StoredState {
                volume: volume.as_ref(),
                session: session.as_ref(),
            };
            let decision =
                policy::decide(&asked.policy_request(standing, *wanted), state, asked.now);
            decisions.push((*wanted, decision));
        }
        let waiting = self.waiting(work, asked, session, &decisions)?;

        let mut verdicts = Vec::with_capacity(decisions.len());
        let mut refusals = Vec::new();
        for (wanted, decision) in decisions {
            let verdict = match (decision, &waiting) {
                (Decision::Release(authorised), _) => {
                    self.release_share(work, asked, &authorised)?
                }
                (Decision::Ask | Decision::Pending, Some(session)) => Verdict::Pending {
                    id: Text::cut(session.number.as_str()),
                    code: Text::cut(&session.code.shown()),
                    retry_after: RETRY_PENDING,
                },
                (Decision::Ask | Decision::Pending, None) => {
                    refusals.push(asked.refused(
                        Some(&wanted),
                        "too many open requests",
                        "too many open requests of this client",
                    ));
                    denied("too many requests of this client wait for a person")
                }
                (Decision::Deny(reason), _) => {
                    let volume = match reason {
                        Reason::Unknown | Reason::NotOwned => None,
                        _ => Some(&wanted),
                    };
                    let text = format!("volume {} {}: {reason}", wanted.volume, asked.verb());
                    refusals.push(asked.refused(volume, reason.name(), &text));
                    denied(&reason.public())
                }
                (Decision::Destroyed, _) => {
                    refusals.push(asked.refused(
                        Some(&wanted),
                        "share gone",
                        "the share is gone for good",
                    ));
                    Verdict::Destroyed
                }
            };
            verdicts.push(VolumeVerdict {
                volume: wanted.volume,
                verdict,
            });
        }
        Ok((verdicts, refusals))
    }

    fn standing(&self, work: &mut Work<'_>, asked: &Asked<'_>) -> Result<Standing, ServiceError> {
        let identity = asked.identity;
        match asked.purpose {
            Purpose::Release if identity.role() == Role::Boot => {
                Ok(client_of(work, identity)?.standing(Role::Boot, identity.spki()))
            }
            Purpose::Release => Err(ServiceError::Refused(Refusal::Role)),
            Purpose::Proof | Purpose::Registration => {
                self.host(work, identity).map(|_| Standing::Good)
            }
        }
    }

    fn release_share(
        &self,
        work: &mut Work<'_>,
        asked: &Asked<'_>,
        authorised: &Authorised,
    ) -> Result<Verdict, ServiceError> {
        let sealed = self.seal_share(work, authorised)?;
        let by = match authorised.by() {
            Authority::Policy => "as the policy allows",
            Authority::Approval => "as a person approved",
            Authority::Owner => "to the running system",
        };
        let kind = match authorised.purpose() {
            Purpose::Release => Kind::Released,
            Purpose::Proof => Kind::Proved,
            Purpose::Registration => Kind::Registered,
        };
        let text = format!(
            "generation {} {by}; {}",
            authorised.generation(),
            asked.facts()
        );
        work.audit(
            Event::new(kind, text)
                .client(authorised.client())
                .volume(authorised.volume())
                .request(authorised.request())
                .peer(asked.peer),
        );
        Ok(Verdict::Released {
            generation: authorised.generation(),
            sealed,
        })
    }

    /// The share that `authorised` stands for, sealed for what it stands for.
    pub(super) fn seal_share(
        &self,
        work: &mut Work<'_>,
        authorised: &Authorised,
    ) -> Result<SealedShare, ServiceError> {
        let share = work.share(authorised)?;
        let context = ReleaseContext {
            purpose: authorised.purpose(),
            server: &self.server,
            client: authorised.client(),
            request: &authorised.request(),
            volume: &authorised.volume(),
            generation: authorised.generation(),
        };
        share
            .seal(authorised.ephemeral_key(), context)
            .map_err(|error| match error {
                ReleaseError::Secret(error) => ServiceError::Record(error.into()),
                ReleaseError::EphemeralKey | ReleaseError::NotForUs => {
                    ServiceError::Invalid("the ephemeral key is not a usable X25519 key")
                }
            })
    }

    /// The session in which a person is asked for what was decided so; `None` if there is no need, or if too many
    /// others of this client wait.
    fn waiting(
        &self,
        work: &mut Work<'_>,
        asked: &Asked<'_>,
        session: Option<Session>,
        decisions: &[(WantedVolume, Decision)],
    ) -> Result<Option<Session>, ServiceError> {
        let new = |(wanted, decision): &(WantedVolume, Decision)| {
            matches!(decision, Decision::Ask).then_some(*wanted)
        };
        let new: Vec<WantedVolume> = decisions.iter().filter_map(new).collect();
        let open = session.filter(|session| session.is_open(asked.now));
        if new.is_empty() {
            return Ok(open);
        }
        let session = match open {
            // Still waiting, or the decision would not be to ask: nobody has approved it without these.
            Some(mut session) => {
                session.volumes.extend(&new);
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
        for wanted in new {
            work.audit(
                Event::new(
                    Kind::Asked,
                    format!("waits for a person as request {}", session.number),
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
        let busy = open.iter().filter(|session| {
            matches!(
                session.state,
                SessionState::Pending | SessionState::Approved
            )
        });
        if busy.count() >= SESSIONS_LIMIT {
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
        }))
    }
}

/// A request with all that is known of it.
struct Asked<'a> {
    purpose: Purpose,
    identity: &'a Identity,
    peer: IpAddr,
    request: &'a ReleaseRequest,
    now: UnixMillis,
}

impl Asked<'_> {
    /// Where all lies that a decision and a release take.
    fn keys(&self) -> Vec<String> {
        let client = self.identity.client();
        let mut keys = vec![key::client(client)];
        if let Purpose::Release = self.purpose {
            keys.push(key::session(client, &self.request.request));
        }
        for wanted in &self.request.volumes {
            keys.push(key::volume(&wanted.volume));
            keys.push(key::share(&wanted.volume, wanted.generation));
        }
        keys
    }

    fn policy_request(&self, standing: Standing, wanted: WantedVolume) -> PolicyRequest<'_> {
        PolicyRequest {
            purpose: self.purpose,
            client: self.identity.client(),
            standing,
            request: self.request.request,
            ephemeral_key: &self.request.ephemeral_key,
            peer: self.peer,
            wanted,
        }
    }

    fn refused(&self, wanted: Option<&WantedVolume>, name: &'static str, text: &str) -> Refused {
        Refused {
            kind: Kind::Refused,
            client: self.identity.client().clone(),
            volume: wanted.map(|wanted| wanted.volume),
            request: Some(self.request.request),
            peer: self.peer,
            name,
            text: text.to_owned(),
        }
    }

    fn verb(&self) -> &'static str {
        match self.purpose {
            Purpose::Release => "not released",
            Purpose::Proof | Purpose::Registration => "not proved",
        }
    }

    /// What the machine says of itself, shortened.
    fn facts(&self) -> String {
        let facts = &self.request.facts;
        let kernel: String = facts.kernel.as_str().chars().take(64).collect();
        let mut text = format!(
            "kernel '{kernel}', command line {}",
            hex(&facts.command_line.0[..8])
        );
        if facts.image_built != 0 {
            let built = UnixMillis(facts.image_built.saturating_mul(1000));
            // A date beyond the year 9999 is no date.
            if built.0 < 253_402_300_800_000 {
                text.push_str(&format!(", image of {}", built.text()));
            }
        }
        text
    }
}

fn denied(reason: &str) -> Verdict {
    Verdict::Denied {
        reason: Text::cut(reason),
        retry_after: RETRY_DENIED,
    }
}

fn check_volumes(request: &ReleaseRequest) -> Result<(), ServiceError> {
    let mut seen = std::collections::BTreeSet::new();
    let volumes = &request.volumes;
    let good = (1..=VOLUMES_LIMIT).contains(&volumes.len())
        && volumes.iter().all(|wanted| seen.insert(wanted.volume));
    match good {
        true => Ok(()),
        false => Err(ServiceError::Invalid("1 to 64 volumes, each named once")),
    }
}

/// A short id that no session has.
fn free_number(work: &mut Work<'_>) -> Result<ShortId, RecordError> {
    loop {
        let number = ShortId::random().map_err(random_failed)?;
        if work.read::<OpenNumber>(&key::number(&number))?.is_none() {
            return Ok(number);
        }
    }
}

fn random_failed(error: getrandom::Error) -> RecordError {
    latchkey_secret::SecretError::Random(error).into()
}
