//! A machine that lost its keys asks to be taken back as the client that it was.
//!
//! Whoever names a live volume of the client may ask: its id is 122 random bits, which only the volume's envelope, the
//! machine and this server hold. So a stranger cannot ask at all, and a thief with a copy of the disk can. Nothing comes of
//! asking but a question to a person ([`super::taking_back`]); none of the client's keys, shares or boots is touched by it.

use std::net::IpAddr;

use latchkey_protocol::ids::{ClientName, RequestId};
use latchkey_protocol::wire::{RejoinRequest, VolumeTicket};

use super::Service;
use super::barred::{Barred, barred};
use super::rates::Counted;
use super::refusals::Refused;
use super::waiting::{WAITING, free_number, random_failed};
use crate::audit::{Event, Kind};
use crate::clock::UnixMillis;
use crate::ledger::Work;
use crate::records::{
    BEGUN_LIMIT, Client, Code, KnownKey, OpenNumber, Rejoin, SessionState, ShortId, TicketState,
    Trace, UsedBy, Volume, VolumeState, key, recent,
};
use crate::sealed::RecordError;

/// Seconds after which one that began too often may begin anew, at most.
const RETRY_BEGUN: u32 = 3600;

/// How a request to be taken back stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejoining {
    /// A person must approve it.
    Pending {
        /// What the administrator calls it.
        number: ShortId,
        /// What the machine's screen shows.
        code: Code,
    },
    /// The keys are this client's.
    Joined(ClientName),
    /// A person denied it, or too many codes were wrong.
    Denied(SessionState),
}

/// The machine was not heard.
#[derive(Debug, thiserror::Error)]
pub enum RejoinError {
    /// A stranger, who gets the stranger's answer (403); why, for the log.
    #[error("refused: {0}")]
    Stranger(&'static str),
    /// Boot key and host key are the same (400).
    #[error("boot key and host key must differ")]
    SameKey,
    /// One of the keys was registered before (409).
    #[error("one of the keys is registered already\nmake new keys and ask again")]
    KeyTaken,
    /// Another request of this client waits (409).
    #[error(
        "another machine asks already to be taken back as this one, and a person has not decided\nif that is not yours, have it denied: latchkeyd requests, latchkeyd deny ID"
    )]
    Rival,
    /// More than one client may do in an hour (429).
    #[error("too many requests of this client to be taken back, try again in {retry_after} s")]
    TooMany {
        /// Seconds until the machine should try again.
        retry_after: u32,
    },
    /// The store failed (503).
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// What came of one request, and what the audit hears of it beside its own entries.
struct Heard {
    answer: Result<Rejoining, RejoinError>,
    notes: Vec<(Kind, &'static str)>,
}

impl Service {
    /// Hears a machine that asks to be taken back with `keys`.
    ///
    /// # Errors
    /// `RejoinError`.
    pub fn rejoin(
        &self,
        keys: UsedBy,
        request: &RejoinRequest,
        peer: IpAddr,
    ) -> Result<Rejoining, RejoinError> {
        let now = self.clock.now();
        let peer = peer.to_canonical();
        let client = self.claimed(request)?;
        if keys.boot == keys.host {
            return Err(RejoinError::SameKey);
        }
        self.count(&client, Counted::Rejoin, None, now)
            .map_err(|retry_after| RejoinError::TooMany { retry_after })?;
        let runs = self.lives.is_open(&client);
        let asks = Asks {
            client: &client,
            keys,
            request,
            peer,
            now,
        };
        let mut heard = self.records.transact(now, |work| asks.hear(work))?;
        if runs && matches!(heard.answer, Ok(Rejoining::Pending { .. })) {
            let name =
                "alarm: the running machine is connected while another asks to be taken back as it";
            heard.notes.push((Kind::Alarm, name));
        }
        let refused = |(kind, name): (Kind, &'static str)| Refused {
            kind,
            client: client.clone(),
            volume: None,
            request: None,
            peer,
            name,
            text: name.to_owned(),
        };
        self.note(heard.notes.into_iter().map(refused).collect())?;
        heard.answer
    }

    /// The client whose volumes the machine names: all of one client, and one of them live.
    fn claimed(&self, request: &RejoinRequest) -> Result<ClientName, RejoinError> {
        let stranger = RejoinError::Stranger;
        let mut owner = None;
        let mut live = false;
        for id in &request.volumes {
            let found: Option<Volume> = self.records.read(&key::volume(id))?;
            let volume = found.ok_or(stranger("asks to be taken back, names no volume of ours"))?;
            live |= volume.state == VolumeState::Live;
            if owner.get_or_insert_with(|| volume.client.clone()) != &volume.client {
                return Err(stranger(
                    "asks to be taken back, names two clients' volumes",
                ));
            }
        }
        owner
            .filter(|_| live)
            .ok_or(stranger("asks to be taken back, names no live volume"))
    }
}

struct Asks<'a> {
    client: &'a ClientName,
    keys: UsedBy,
    request: &'a RejoinRequest,
    peer: IpAddr,
    now: UnixMillis,
}

impl Asks<'_> {
    fn hear(&self, work: &mut Work<'_>) -> Result<Heard, RecordError> {
        let at = key::client(self.client);
        let client: Client = work.read(&at)?.ok_or(RecordError::Missing(at))?;
        if let Some(why) = never_taken_back(work, &client)? {
            return Ok(Heard {
                answer: Err(RejoinError::Stranger(why)),
                notes: vec![(Kind::Refused, why)],
            });
        }
        let UsedBy { boot, host } = self.keys;
        let joined = client.joined.as_ref();
        if joined.is_some_and(|joined| (joined.boot, joined.host) == (boot, host)) {
            return Ok(Heard::quiet(Ok(Rejoining::Joined(client.name))));
        }
        for spki in [boot, host] {
            if work.read::<KnownKey>(&key::known_key(&spki))?.is_some() {
                return Ok(Heard::quiet(Err(RejoinError::KeyTaken)));
            }
        }
        let before: Option<Rejoin> = work.read(&key::rejoin(self.client))?;
        if let Some(open) = before.as_ref().filter(|one| one.is_open(self.now)) {
            if open.keys == self.keys {
                return Ok(Heard::quiet(Ok(open.standing())));
            }
            if open.state == SessionState::Pending {
                let mut open = open.clone();
                if open.rival.replace(self.peer) != Some(self.peer) {
                    work.write(&open)?;
                }
                return Ok(Heard {
                    answer: Err(RejoinError::Rival),
                    notes: vec![(
                        Kind::Alarm,
                        "alarm: two machines ask to be taken back as this client",
                    )],
                });
            }
        }
        let mut begun = recent(before.as_ref().map_or(&[][..], |one| &one.begun), self.now);
        if begun.len() >= BEGUN_LIMIT {
            return Ok(Heard::quiet(Err(RejoinError::TooMany {
                retry_after: RETRY_BEGUN,
            })));
        }
        begun.push(self.now);
        if let Some(before) = before {
            work.remove(key::number(&before.number));
        }
        self.begin(work, begun)
    }

    fn begin(&self, work: &mut Work<'_>, begun: Vec<UnixMillis>) -> Result<Heard, RecordError> {
        let request = RequestId::random().map_err(random_failed)?;
        let number = free_number(work)?;
        work.write(&OpenNumber {
            number: number.clone(),
            client: self.client.clone(),
            request,
        })?;
        let rejoin = Rejoin {
            client: self.client.clone(),
            request,
            number,
            code: Code::random().map_err(random_failed)?,
            keys: self.keys,
            volumes: self.request.volumes.clone(),
            tickets: self.request.tickets.clone(),
            state: SessionState::Pending,
            attempts: 0,
            created: self.now,
            expires: self.now.plus(WAITING),
            peer: self.peer,
            approvals: Vec::new(),
            rival: None,
            begun,
        };
        work.write(&rejoin)?;
        let ticket = shown_ticket(work, &rejoin.tickets, &rejoin.volumes)?;
        let text = format!(
            "asks to be taken back with new keys, as request {}; {}",
            rejoin.number,
            ticket_words(ticket)
        );
        work.audit(rejoin.event(Kind::Asked, &text));
        let notes = match ticket {
            TicketState::Stale => vec![(
                Kind::Alarm,
                "alarm: asks to be taken back with a ticket of an earlier time",
            )],
            _ => Vec::new(),
        };
        let answer = Ok(rejoin.standing());
        Ok(Heard { answer, notes })
    }
}

impl Heard {
    fn quiet(answer: Result<Rejoining, RejoinError>) -> Self {
        Self {
            answer,
            notes: Vec::new(),
        }
    }
}

impl Rejoin {
    fn standing(&self) -> Rejoining {
        match self.state {
            SessionState::Pending | SessionState::Approved => Rejoining::Pending {
                number: self.number.clone(),
                code: self.code.clone(),
            },
            denied => Rejoining::Denied(denied),
        }
    }

    /// An entry about this request.
    pub(super) fn event(&self, kind: Kind, text: &str) -> Event {
        Event::new(kind, text)
            .client(&self.client)
            .request(self.request)
            .peer(self.peer)
    }
}

/// Why no machine is taken back as `client` at all; the same when it asks and when a person approves.
pub(super) fn never_taken_back(
    work: &mut Work<'_>,
    client: &Client,
) -> Result<Option<&'static str>, RecordError> {
    Ok(barred(work, client)?.map(|why| match why {
        Barred::Revoked => "asks to be taken back, but its client was revoked",
        Barred::LockedOut => "asks to be taken back, but its client is locked out",
        Barred::PutBack => "asks to be taken back, but the key server's store was put back",
    }))
}

/// What the tickets say that the machine shows: the worst of them.
pub(super) fn shown_ticket(
    work: &mut Work<'_>,
    tickets: &[VolumeTicket],
    volumes: &[latchkey_protocol::VolumeId],
) -> Result<TicketState, RecordError> {
    let mut worst = TicketState::None;
    for id in volumes {
        let shown = tickets.iter().find(|one| one.volume == *id);
        let trace: Option<Trace> = work.read(&key::trace(id))?;
        let state = trace.map_or(TicketState::None, |trace| {
            trace.ticket(shown.map(|one| &one.ticket))
        });
        let rank = |state| match state {
            TicketState::None => 0,
            TicketState::Good => 1,
            TicketState::Missing => 2,
            TicketState::Stale => 3,
        };
        if rank(state) > rank(worst) {
            worst = state;
        }
    }
    Ok(worst)
}

/// The same in words.
pub(super) fn ticket_words(ticket: TicketState) -> &'static str {
    match ticket {
        TicketState::None => "its volumes never had a ticket",
        TicketState::Good => "its header shows the ticket of the last boot",
        TicketState::Missing => "its header shows no ticket, but the machine's own has one",
        TicketState::Stale => {
            "its header shows a ticket of an EARLIER time: a copy of the disk, or one that was put back from a backup"
        }
    }
}
