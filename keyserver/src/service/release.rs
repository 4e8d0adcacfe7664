//! Releases, openings and proofs: a verdict for each volume, and a share only with an authorised one.

use std::net::IpAddr;

use latchkey_protocol::release::{Purpose, ReleaseContext, ReleaseError, SealedShare};
use latchkey_protocol::wire::{
    ReleaseAnswer, ReleaseRequest, Text, VOLUMES_LIMIT, Verdict, Version, VolumeVerdict,
    WantedVolume,
};

use super::asked::{AskLife, Asked, Known, Look};
use super::rates::Counted;
use super::refusals::Refused;
use super::{Identity, Refusal, Service, ServiceError, client_of};
use crate::audit::{Event, Kind};
use crate::ledger::Work;
use crate::policy::{self, Authorised, Authority, Decision, Reason, Standing};
use crate::records::{BootSession, LastBoot, Machine, Role, Trace, key};
use crate::sealed::RecordError;
use crate::wait::wait;

/// Seconds after which a machine whose request waits for a person asks again.
const RETRY_PENDING: u32 = 5;
/// Seconds after which a machine asks again whose running self is being asked.
const RETRY_WAIT: u32 = 3;
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

    /// Decides on each data volume that a running system wants to open, and releases what is authorised. `identity` is a
    /// host key, which may be revoked.
    ///
    /// # Errors
    /// `Refused` for any other key, `Invalid`, `TooMany`, `Record`.
    pub async fn open_awaited(
        &self,
        identity: &Identity,
        peer: IpAddr,
        request: &ReleaseRequest,
    ) -> Result<ReleaseAnswer, ServiceError> {
        self.answer(Purpose::Opening, identity, peer, request).await
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

    /// As [`Service::open_awaited`], on a thread that may wait.
    ///
    /// # Errors
    /// The same.
    pub fn open(
        &self,
        identity: &Identity,
        peer: IpAddr,
        request: &ReleaseRequest,
    ) -> Result<ReleaseAnswer, ServiceError> {
        wait(self.open_awaited(identity, peer, request))
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
        let by = match purpose {
            Purpose::Opening => Counted::Openings(identity.role()),
            Purpose::Release | Purpose::Proof | Purpose::Registration => {
                Counted::Key(identity.role())
            }
        };
        self.admit_by(by, identity, peer, now)?;
        let asked = Asked {
            purpose,
            identity,
            peer: peer.to_canonical(),
            request,
            now,
            uptime: self.uptime()?,
            clock_counts: self.clock_counts(),
            life: self.life_of(identity.client(), request),
        };
        // The shares of a piece of work that is not committed never leave this call.
        let result = self
            .records
            .transact_awaited(now, |work| self.decide(work, &asked))
            .await;
        let decided = self.noted_awaited(identity, peer, result).await?;
        let is_alarm = decided
            .refusals
            .iter()
            .any(|refused| refused.kind == Kind::Alarm);
        match self.note_awaited(decided.refusals).await {
            // A refusal needs no entry to stand, and the machine is to hear its reason.
            Err(error) if !is_alarm => log::error!("a refusal is not in the audit: {error}"),
            noted => noted?,
        }
        match decided.life {
            AskLife::No => {}
            AskLife::Ask => {
                self.ask_life(identity.client(), peer.to_canonical(), request)
                    .await?;
            }
            AskLife::Forget => self.forget_life(identity.client(), request),
        }
        Ok(ReleaseAnswer {
            version: Version::default(),
            verdicts: decided.verdicts,
        })
    }

    fn decide(&self, work: &mut Work<'_>, asked: &Asked<'_>) -> Result<Decided, ServiceError> {
        work.fetch(&asked.keys())?;
        let standing = self.standing(work, asked)?;
        let known = Known::read(work, asked)?;
        let mut looks = Vec::with_capacity(asked.request.volumes.len());
        for wanted in &asked.request.volumes {
            looks.push(known.look(work, asked, standing, *wanted)?);
        }
        let decisions: Vec<(WantedVolume, &Decision, String)> = looks
            .iter()
            .map(|look| (look.wanted, &look.decision, look.because()))
            .collect();
        let waiting = self.waiting(work, asked, known.session.clone(), &decisions)?;

        let mut decided = Decided {
            verdicts: Vec::with_capacity(looks.len()),
            refusals: Vec::new(),
            life: AskLife::No,
        };
        for look in looks {
            let wanted = look.wanted;
            if !matches!(look.decision, Decision::Release(_)) {
                decided.refusals.extend(look.alarms(asked));
            }
            decided.life = decided.life.and(look.asks_life(asked.purpose));
            let mut refuse = |volume, name, text: &str| {
                decided.refusals.push(asked.refused(volume, name, text));
            };
            let verdict = match (&look.decision, &waiting) {
                (Decision::Release(authorised), _) => {
                    self.release_share(work, asked, authorised, &look)?
                }
                (Decision::Ask | Decision::Pending, Some(session)) => Verdict::Pending {
                    id: Text::cut(session.number.as_str()),
                    code: Text::cut(&session.code.shown()),
                    retry_after: RETRY_PENDING,
                },
                (Decision::Ask | Decision::Pending, None) => {
                    refuse(
                        Some(&wanted),
                        "too many open requests",
                        "too many open requests of this client",
                    );
                    denied("too many requests of this client wait for a person")
                }
                (Decision::Wait, _) => Verdict::Wait {
                    reason: Text::cut(
                        "waiting for the key server to hear whether the running machine answers",
                    ),
                    retry_after: RETRY_WAIT,
                },
                (Decision::Deny(reason), _) => {
                    let volume = match reason {
                        Reason::Unknown | Reason::NotOwned => None,
                        _ => Some(&wanted),
                    };
                    let because = look.because();
                    let text = format!(
                        "volume {} {}: {reason}{because}",
                        wanted.volume,
                        asked.verb()
                    );
                    refuse(volume, reason.name(), &text);
                    denied(&reason.public())
                }
                (Decision::Destroyed, _) => {
                    refuse(Some(&wanted), "share gone", "the share is gone for good");
                    Verdict::Destroyed
                }
            };
            decided.verdicts.push(VolumeVerdict {
                volume: wanted.volume,
                verdict,
            });
        }
        Ok(decided)
    }

    fn standing(&self, work: &mut Work<'_>, asked: &Asked<'_>) -> Result<Standing, ServiceError> {
        let identity = asked.identity;
        match asked.purpose {
            Purpose::Release if identity.role() == Role::Boot => {
                Ok(client_of(work, identity)?.standing(Role::Boot, identity.spki()))
            }
            Purpose::Opening if identity.role() == Role::Host => {
                Ok(client_of(work, identity)?.standing(Role::Host, identity.spki()))
            }
            Purpose::Release | Purpose::Opening => Err(ServiceError::Refused(Refusal::Role)),
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
        look: &Look,
    ) -> Result<Verdict, ServiceError> {
        let sealed = self.seal_share(work, authorised)?;
        let by = match authorised.by() {
            Authority::Policy if authorised.is_announced() => {
                "as announced and as the policy allows"
            }
            Authority::Policy => "as the policy allows",
            Authority::Approval if authorised.is_announced() => {
                "as announced and as a person approved"
            }
            Authority::Approval => "as a person approved",
            Authority::Owner => "to the running system",
        };
        let kind = match authorised.purpose() {
            Purpose::Release => Kind::Released,
            Purpose::Opening => Kind::Opened,
            Purpose::Proof => Kind::Proved,
            Purpose::Registration => Kind::Registered,
        };
        if policy::is_asked(authorised.purpose()) {
            remember(work, asked, authorised)?;
        }
        let text = format!(
            "generation {} {by}{}; {}",
            authorised.generation(),
            look.because(),
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

/// What came of a request.
struct Decided {
    verdicts: Vec<VolumeVerdict>,
    refusals: Vec<Refused>,
    life: AskLife,
}

/// Notes the boot: what later decisions rest on. What was released to the same boot before changes nothing.
fn remember(
    work: &mut Work<'_>,
    asked: &Asked<'_>,
    authorised: &Authorised,
) -> Result<(), RecordError> {
    let session = BootSession {
        request: authorised.request(),
        ephemeral_key: *authorised.ephemeral_key(),
        at: asked.now,
    };
    let volume = authorised.volume();
    let before: Option<Trace> = work.read(&key::trace(&volume))?;
    let mut trace = before.clone().unwrap_or_else(|| Trace::new(volume));
    let ticket = asked.ticket(volume);
    let said = LastBoot::new(session, asked.peer, &asked.request.facts, ticket);
    trace.booted(said, authorised.note());
    if before.as_ref() != Some(&trace) {
        work.write(&trace)?;
    }
    if authorised.is_announced() {
        let before: Option<Machine> = work.read(&key::machine(authorised.client()))?;
        if let Some(mut machine) = before.clone() {
            machine.booted_as_announced(session);
            if before.as_ref() != Some(&machine) {
                work.write(&machine)?;
            }
        }
    }
    Ok(())
}
