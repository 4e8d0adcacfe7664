//! What a running machine does with its host key to show that it lives, and what its next boot rests on.

use std::net::IpAddr;
use std::time::Duration;

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::ids::{ClientName, RequestId, VolumeId};
use latchkey_protocol::wire::{
    ConfirmAnswer, ConfirmRequest, HeartbeatAnswer, HeartbeatRequest, LifeAnswer, ReleaseRequest,
    TicketsAnswer, TicketsRequest, Version, VolumeTicket,
};

use super::life::{Copied, LifeStream};
use super::refusals::Refused;
use super::witness::{Judgement, PutBack, Witness};
use super::{Identity, Refusal, Service, ServiceError};
use crate::audit::{Event, Kind};
use crate::ca::HOST_LIFE;
use crate::clock::{UnixMillis, Uptime};
use crate::ledger::Work;
use crate::policy::Life;
use crate::records::{Announced, Client, Heard, Machine, Role, Trace, Volume, key};
use crate::sealed::RecordError;

/// After this time of running a machine without a clock of its own has heard the time, if it ever does.
const CLOCK_SET: Duration = Duration::from_secs(600);

/// Seconds between two heartbeats.
pub const HEARTBEAT: u32 = 300;
/// Shortest and longest time for which a reboot is announced.
pub const ARMED: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(86_400));

impl Service {
    /// Draws the next ticket of each volume, or gives the one that was drawn and not confirmed.
    ///
    /// # Errors
    /// `Refused` for a volume that is not this client's, `Destroyed`, `TooMany`, `Record`.
    pub fn next_tickets(
        &self,
        identity: &Identity,
        peer: IpAddr,
        request: &TicketsRequest,
    ) -> Result<TicketsAnswer, ServiceError> {
        let tickets = self.as_running(identity, peer, |work, client, _| {
            let mut tickets = Vec::with_capacity(request.volumes.len());
            for shown in &request.volumes {
                let mut trace = owned_trace(work, client, shown.volume)?;
                let ticket = match trace.next {
                    Some(ticket) => ticket,
                    None => {
                        let ticket = random_ticket()?;
                        trace.next = Some(ticket);
                        work.write(&trace)?;
                        ticket
                    }
                };
                tickets.push(VolumeTicket {
                    volume: shown.volume,
                    ticket,
                });
            }
            Ok(tickets)
        })?;
        Ok(TicketsAnswer {
            version: Version::default(),
            tickets,
        })
    }

    /// Takes the tickets as those that the headers hold, and announces a reboot in the same step if that is asked for.
    ///
    /// # Errors
    /// `Invalid` for a ticket that was not given, `Refused`, `Destroyed`, `TooMany`, `Record`.
    pub fn confirm_tickets(
        &self,
        identity: &Identity,
        peer: IpAddr,
        request: &ConfirmRequest,
    ) -> Result<ConfirmAnswer, ServiceError> {
        let lifetime = match request.arm {
            Some(arm) => Some(armed_lifetime(Duration::from_secs(arm.seconds.into()))?),
            None => None,
        };
        let now = self.clock.now();
        let until = self.as_running(identity, peer, |work, client, machine| {
            for shown in &request.tickets {
                let mut trace = owned_trace(work, client, shown.volume)?;
                let before = trace.clone();
                if !trace.confirm(&shown.ticket) {
                    return Err(ServiceError::Invalid(
                        "not a ticket that this key server gave: ask for the next one",
                    ));
                }
                if before != trace {
                    work.write(&trace)?;
                    work.audit(
                        Event::new(Kind::Ticket, "the header's ticket moved on")
                            .client(&client.name)
                            .volume(shown.volume)
                            .peer(peer),
                    );
                }
            }
            let Some(lifetime) = lifetime else {
                return Ok(None);
            };
            let earlier = self.released_boots(work, &client.name)?;
            let until = machine.arm(now, lifetime, None, earlier);
            let text = format!("the machine announced a reboot until {}", until.text());
            work.audit(
                Event::new(Kind::Armed, text)
                    .client(&client.name)
                    .peer(peer),
            );
            Ok(Some(until))
        })?;
        Ok(ConfirmAnswer {
            version: Version::default(),
            armed_until: until.map(|until| until.0 / 1000),
        })
    }

    /// Hears a running machine, and looks at the end of the audit that it has seen.
    ///
    /// # Errors
    /// `Refused`, `TooMany`, `Record`.
    pub fn heartbeat(
        &self,
        identity: &Identity,
        peer: IpAddr,
        request: &HeartbeatRequest,
    ) -> Result<HeartbeatAnswer, ServiceError> {
        let witness = self.witness()?;
        let (judged, ours) = match &request.head {
            None => (None, 0),
            Some(shown) => match self.judge_head(&witness, shown)? {
                Some((judged, ours)) => (Some(judged), ours),
                None => {
                    self.note(vec![Refused {
                        kind: Kind::Alarm,
                        client: identity.client().clone(),
                        volume: None,
                        request: None,
                        peer,
                        name: "alarm: foreign head",
                        text: "the machine showed an end of the audit that this key server never signed".to_owned(),
                    }])?;
                    (None, 0)
                }
            },
        };
        let now = self.clock.now();
        let mut renew = false;
        let witness = self.as_running(identity, peer, |work, client, machine| {
            if machine.beat(request.boot, &request.images) == Announced::Unused {
                let text = "the machine came up without its announced reboot, which ended";
                work.audit(Event::new(Kind::Armed, text).client(&client.name).peer(peer));
            }
            renew = wants_renewal(machine, client, now);
            let found: Option<Witness> = work.read(key::WITNESS)?;
            let mut witness = found.unwrap_or_else(|| witness.clone());
            if let (Some(Judgement::PutBack), Some(shown), None) =
                (judged, &request.head, &witness.put_back)
                // An acceptance that came in between was an answer to this too.
                && !witness.given_up.contains(&shown.epoch)
            {
                witness.put_back = Some(PutBack {
                    at: now,
                    client: client.name.clone(),
                    shown: shown.sequence,
                    ours,
                    epoch: shown.epoch,
                });
                work.write(&witness)?;
                let text = format!(
                    "the store was put back: the machine has seen entry {} of the audit, the store ends at {ours} or has another one there; nothing is released until 'latchkeyd accept-rollback'",
                    shown.sequence
                );
                work.audit(
                    Event::new(Kind::Alarm, text)
                        .client(&client.name)
                        .peer(peer),
                );
            }
            Ok(witness)
        })?;
        let (head, head_key) = self.signed_head(&witness.epoch)?;
        Ok(HeartbeatAnswer {
            version: Version::default(),
            head: witness.put_back.is_none().then_some(head),
            head_key,
            heartbeat_every: HEARTBEAT,
            life_every: u32::try_from(self.lives.beat().as_secs())
                .unwrap_or(u32::MAX)
                .max(1),
            renew,
        })
    }

    /// Notes that the host certificate was made anew. `same` says whether it is for the key that asks.
    ///
    /// # Errors
    /// `Refused` if it is for another key (with an alarm), `TooMany`, `Record`.
    pub fn renew(
        &self,
        identity: &Identity,
        peer: IpAddr,
        wanted: &Bytes<32>,
    ) -> Result<(), ServiceError> {
        if wanted != identity.spki() {
            self.note(vec![Refused {
                kind: Kind::Alarm,
                client: identity.client().clone(),
                volume: None,
                request: None,
                peer,
                name: "alarm: renewal for another key",
                text: "a certificate for another key was asked for with the host key".to_owned(),
            }])?;
            return Err(ServiceError::Refused(Refusal::OtherKey));
        }
        let now = self.clock.now();
        self.as_running(identity, peer, |work, client, machine| {
            machine.certified = Some(now);
            work.audit(
                Event::new(Kind::Renewed, "host certificate renewed")
                    .client(&client.name)
                    .peer(peer),
            );
            Ok(())
        })
    }

    /// Opens the stream over which a running machine is asked whether it lives.
    ///
    /// # Errors
    /// `Refused`, `TooMany`, `Record`.
    pub fn open_life(&self, identity: &Identity, peer: IpAddr) -> Result<LifeStream, ServiceError> {
        self.as_running(identity, peer, |_, _, _| Ok(()))?;
        self.lives
            .open(identity.client())
            .ok_or(ServiceError::TooMany { retry_after: 60 })
    }

    /// Notes that a stream ended.
    pub fn close_life(&self, stream: &LifeStream) {
        self.lives.close(stream, self.clock.passed());
    }

    /// Takes a running machine's answer to a challenge: somebody else boots as it.
    ///
    /// # Errors
    /// `Refused`, `TooMany`, `Record`; `Invalid` if nobody asked.
    pub fn answer_life(
        &self,
        identity: &Identity,
        peer: IpAddr,
        answer: &LifeAnswer,
    ) -> Result<(), ServiceError> {
        let client = identity.client();
        let nobody = ServiceError::Invalid("nobody asked for this answer");
        // Not counted: whoever has a copy of the boot key has the questions asked, and may not use up the host key's hour.
        if identity.role() != Role::Host || !self.lives.asks(client, &answer.challenge) {
            self.as_running(identity, peer, |_, _, _| Ok(()))?;
            return Err(nobody);
        }
        self.as_heard(identity, peer, |_, _, _| Ok(()))?;
        let passed = self.clock.passed();
        let copies = self.lives.answer(client, &answer.challenge, passed);
        let alarms = copies.ok_or(nobody)?.into_iter();
        self.note(alarms.map(|copy| copy_alarm(client, &copy)).collect())?;
        Ok(())
    }

    /// The boot sessions that something of this client was released to last, one for each volume at most.
    pub(super) fn released_boots(
        &self,
        work: &mut Work<'_>,
        client: &ClientName,
    ) -> Result<Vec<RequestId>, RecordError> {
        let owned: Vec<VolumeId> = self.records.all(&key::owned(client))?;
        let mut boots = std::collections::BTreeSet::new();
        for id in owned {
            let trace: Option<Trace> = work.read(&key::trace(&id))?;
            boots.extend(trace.and_then(|trace| Some(trace.last?.session.request)));
        }
        Ok(boots.into_iter().collect())
    }

    /// How long the key server has run in its life.
    pub(super) fn uptime(&self) -> Result<Uptime, RecordError> {
        let began = match self.began.get() {
            Some(began) => *began,
            None => {
                let stored: Option<Uptime> = self.records.read(key::UPTIME)?;
                *self.began.get_or_init(|| stored.unwrap_or_default())
            }
        };
        Ok(began.plus(self.clock.passed().saturating_sub(self.opened)))
    }

    /// Whether the clock is taken to be right: without one of its own a machine starts in the past, until it hears the time.
    pub(super) fn clock_counts(&self) -> bool {
        self.clock.passed().saturating_sub(self.opened) >= CLOCK_SET
    }

    /// What is known of the running machine because of `request`.
    pub(super) fn life_of(&self, client: &ClientName, request: &ReleaseRequest) -> Life {
        let (id, ephemeral_key) = (request.request, &request.ephemeral_key);
        self.lives
            .view(client, id, ephemeral_key, self.clock.passed())
    }

    /// Asks the running machine because of `request`.
    pub(super) async fn ask_life(
        &self,
        client: &ClientName,
        peer: IpAddr,
        request: &ReleaseRequest,
    ) -> Result<(), RecordError> {
        let (id, ephemeral_key) = (request.request, &request.ephemeral_key);
        let copy = self
            .lives
            .ask(client, id, ephemeral_key, peer, self.clock.passed())
            .map_err(super::waiting::random_failed)?;
        match copy {
            Some(copy) => self.note_awaited(vec![copy_alarm(client, &copy)]).await,
            None => Ok(()),
        }
    }

    /// Something was released to `request`: the machine that comes up is no copy.
    pub(super) fn forget_life(&self, client: &ClientName, request: &ReleaseRequest) {
        self.lives
            .forget(client, request.request, &request.ephemeral_key);
    }

    /// Does `work` for a host key that still counts, and notes that its machine was heard of. Counts against the key's hour.
    fn as_running<T>(
        &self,
        identity: &Identity,
        peer: IpAddr,
        work: impl FnMut(&mut Work<'_>, &Client, &mut Machine) -> Result<T, ServiceError>,
    ) -> Result<T, ServiceError> {
        self.admit(identity, peer, self.clock.now())?;
        self.as_heard(identity, peer, work)
    }

    /// As [`Service::as_running`], uncounted.
    fn as_heard<T>(
        &self,
        identity: &Identity,
        peer: IpAddr,
        mut work: impl FnMut(&mut Work<'_>, &Client, &mut Machine) -> Result<T, ServiceError>,
    ) -> Result<T, ServiceError> {
        let now = self.clock.now();
        let heard = Heard {
            at: now,
            uptime: self.uptime()?,
        };
        let result = self.records.transact(now, |open| {
            let client = self.host(open, identity)?;
            let before: Option<Machine> = open.read(&key::machine(&client.name))?;
            let mut machine = before
                .clone()
                .unwrap_or_else(|| Machine::new(client.name.clone()));
            machine.hear(heard);
            let result = work(open, &client, &mut machine)?;
            if before.as_ref() != Some(&machine) {
                open.write(&machine)?;
            }
            Ok(result)
        });
        self.noted(identity, peer, result)
    }
}

/// The lifetime of an announcement, if it is one.
///
/// # Errors
/// `Invalid`.
pub(super) fn armed_lifetime(lifetime: Duration) -> Result<Duration, ServiceError> {
    let (shortest, longest) = ARMED;
    match (shortest..=longest).contains(&lifetime) {
        true => Ok(lifetime),
        false => Err(ServiceError::Invalid(
            "a reboot is announced for 1 minute to 24 hours",
        )),
    }
}

/// The alarm that a boot session is a copy's. A flood of them is counted: see [`super::refusals`].
fn copy_alarm(client: &ClientName, copy: &Copied) -> Refused {
    let Copied { request, peer } = copy;
    log::warn!("client '{client}' runs, and somebody boots as it from {peer}: request {request}");
    Refused {
        kind: Kind::Alarm,
        client: client.clone(),
        volume: None,
        request: Some(*request),
        peer: *peer,
        name: "alarm: copy of a running machine",
        text: format!(
            "the running machine answered while another one boots as it from {peer}: that one is a copy"
        ),
    }
}

/// Whether half of the host certificate's life is over.
fn wants_renewal(machine: &Machine, client: &Client, now: UnixMillis) -> bool {
    let joined = client.joined.as_ref().map(|joined| joined.at);
    machine
        .certified
        .max(joined)
        .is_none_or(|made| now.since(made) >= HOST_LIFE / 2)
}

/// What is remembered of a live volume of this client.
fn owned_trace(
    work: &mut Work<'_>,
    client: &Client,
    volume: VolumeId,
) -> Result<Trace, ServiceError> {
    let found: Option<Volume> = work.read(&key::volume(&volume))?;
    let found = found.ok_or(ServiceError::Refused(Refusal::Unknown))?;
    if found.client != client.name {
        return Err(ServiceError::Refused(Refusal::NotOwned));
    }
    if found.state != crate::records::VolumeState::Live {
        return Err(ServiceError::Destroyed);
    }
    let trace: Option<Trace> = work.read(&key::trace(&volume))?;
    Ok(trace.unwrap_or_else(|| Trace::new(volume)))
}

fn random_ticket() -> Result<Bytes<32>, RecordError> {
    let mut ticket = Bytes([0; 32]);
    getrandom::fill(&mut ticket.0).map_err(super::waiting::random_failed)?;
    Ok(ticket)
}
