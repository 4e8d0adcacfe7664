//! Moving the tickets on: the key server draws the next ones, the headers take them, the key server forgets the old ones.
//!
//! The key server takes the current and the next ticket from the moment that it gives the next one, so whichever the
//! header holds when the power goes is good at the next boot. Only one process at a time moves the tickets of a key
//! server on: two that take turns in the middle could leave a ticket in the header that is stale already.
//!
//! The key server answers for all volumes at once or for none. One whose share was destroyed, or that it does not know, must
//! not hold up the others: which one that is, each says alone. Nor must one whose header takes no ticket: that is not
//! confirmed, and what the header holds stays good.

use futures_util::{StreamExt as _, stream};
use latchkey_protocol::ServerId;
use latchkey_protocol::wire::{
    Arm, ConfirmRequest, Shown, TicketsRequest, VOLUMES_LIMIT, Version, VolumeTicket,
};

use super::volumes::{self, Bound};
use crate::failure::chain;
use crate::files::{BUSY_LIMIT, BUSY_PAUSE, Files, FilesError, Lock};
use crate::server::{KeyServer, Unreachable};
use crate::volume::header::{HeaderCopy, HeaderError};
use crate::volume::tickets;
use crate::volume::tokens::{self, TokenError};

/// How many volumes are asked for at once when each is asked for alone.
const AT_ONCE: usize = 8;

/// What was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// How many volumes have a new ticket.
    pub volumes: usize,
    /// Until when a reboot is announced, Unix seconds.
    pub armed_until: Option<u64>,
}

/// The tickets were not moved on. What the headers hold is good at the next boot.
#[derive(Debug, thiserror::Error)]
pub enum TicketsError {
    /// crypttab, or another latchkey command that does not end.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The key server gave no next tickets.
    #[error("the key server gave no tickets")]
    Next(#[source] Unreachable),
    /// A header cannot be read.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// No header took its ticket.
    #[error(transparent)]
    Write(#[from] TokenError),
    /// The tickets are in the headers, but the key server was not told.
    #[error("the key server did not hear of the tickets that the headers have now")]
    Confirm(#[source] Unreachable),
}

/// A volume that the key server holds nothing for.
struct Gone {
    volume: Bound,
    why: Loss,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    Destroyed,
    Unknown,
}

/// Moves the tickets for `server` on in all volumes that are bound to it; with `arm`, announces a reboot in the same step.
/// Volumes that it holds nothing for are left as they are, and named in the log.
///
/// # Errors
/// A variant of [`TicketsError`]; `Next` also if the key server knows none of the volumes: then it may mean the machine.
pub async fn move_on(
    files: &Files,
    server: &KeyServer,
    arm: Option<Arm>,
) -> Result<Moved, TicketsError> {
    let id = server.settings.id;
    let _turn = free(|| files.lock_tickets(&id)).await?;
    let mut volumes = volumes::bound(files)?;
    volumes.retain(|bound| bound.is_of(id));
    volumes.truncate(VOLUMES_LIMIT);
    let mut gone = Vec::new();
    let moved = match attempt(files, server, arm, &mut volumes, &mut gone).await {
        // One went between the two steps; what was not confirmed is given again.
        Err(TicketsError::Confirm(why)) if loss(&why).is_some() => {
            attempt(files, server, arm, &mut volumes, &mut gone).await?
        }
        moved => moved?,
    };
    for Gone { volume, why } in gone {
        let lost = match why {
            Loss::Destroyed => "destroyed the share of",
            Loss::Unknown => "does not know",
        };
        log::warn!(
            "key server {} {lost} '{}', whose ticket stays as it is; the others move on\n\
             to have it opened at boot again: 'latchkey unbind {device}', then 'latchkey bind {device}'",
            id.short(),
            volume.name,
            device = volume.device.display()
        );
    }
    Ok(moved)
}

/// Next, written, confirmed for `volumes`; those that turn out to be gone move to `gone`.
async fn attempt(
    files: &Files,
    server: &KeyServer,
    arm: Option<Arm>,
    volumes: &mut Vec<Bound>,
    gone: &mut Vec<Gone>,
) -> Result<Moved, TicketsError> {
    let tickets = next(server, volumes, gone).await?;
    let (mut taken, mut first_failure) = (Vec::new(), None);
    for (bound, ticket) in volumes.iter().zip(tickets) {
        let _lock = free(|| files.try_lock()).await?;
        match write(bound, server.settings.id, &ticket) {
            Ok(()) => taken.push(ticket),
            Err(why) => {
                log::warn!(
                    "the header of '{}' takes no ticket of key server {}, the one that it holds stays good: {}",
                    bound.name,
                    server.settings.id.short(),
                    chain(&why)
                );
                first_failure.get_or_insert(why);
            }
        }
    }
    let request = ConfirmRequest {
        version: Version::default(),
        tickets: taken,
        arm,
    };
    if request.tickets.is_empty() && arm.is_none() {
        return match first_failure {
            Some(why) => Err(why),
            None => Ok(Moved {
                volumes: 0,
                armed_until: None,
            }),
        };
    }
    let answer = server
        .ask(async |client, address| client.confirm_tickets(address, &request).await)
        .await
        .map_err(TicketsError::Confirm)?;
    Ok(Moved {
        volumes: request.tickets.len(),
        armed_until: answer.armed_until,
    })
}

/// Whether a volume that is bound to `server` has no ticket for it.
///
/// # Errors
/// crypttab cannot be read.
pub fn is_missing(files: &Files, server: ServerId) -> Result<bool, FilesError> {
    let lacks = |bound: &Bound| bound.is_of(server) && bound.tickets.of(server).is_none();
    Ok(volumes::bound(files)?.iter().any(lacks))
}

/// The next tickets of `volumes`, in their order; afterwards there are none in it that are gone.
async fn next(
    server: &KeyServer,
    volumes: &mut Vec<Bound>,
    gone: &mut Vec<Gone>,
) -> Result<Vec<VolumeTicket>, TicketsError> {
    if volumes.is_empty() {
        return Ok(Vec::new());
    }
    let refusal = match ask_next(server, volumes).await {
        Err(why) if loss(&why).is_some() => why,
        answered => return answered.map_err(TicketsError::Next),
    };
    let (mut left, mut tickets, mut lost) = (Vec::new(), Vec::new(), Vec::new());
    // A few at once: a machine that is going down does not wait for long.
    let answers: Vec<_> = stream::iter(volumes.iter().map(std::slice::from_ref))
        .map(|alone| ask_next(server, alone))
        .buffered(AT_ONCE)
        .collect()
        .await;
    for (volume, answer) in std::mem::take(volumes).into_iter().zip(answers) {
        match answer {
            Ok(given) => {
                left.push(volume);
                tickets.extend(given);
            }
            Err(why) => match loss(&why) {
                Some(why) => lost.push(Gone { volume, why }),
                None => return Err(TicketsError::Next(why)),
            },
        }
    }
    // A machine that is not known is told the same as one that asks for a volume that is not known.
    if left.is_empty() && lost.iter().all(|gone| gone.why == Loss::Unknown) {
        return Err(TicketsError::Next(refusal));
    }
    gone.extend(lost);
    *volumes = left;
    Ok(tickets)
}

/// As many tickets as `volumes`, and in their order.
async fn ask_next(server: &KeyServer, volumes: &[Bound]) -> Result<Vec<VolumeTicket>, Unreachable> {
    let shown = |bound: &Bound| Shown {
        volume: bound.token.volume,
        shown: bound.tickets.of(server.settings.id),
    };
    let request = TicketsRequest {
        version: Version::default(),
        volumes: volumes.iter().map(shown).collect(),
    };
    let answer = server
        .ask(async |client, address| client.next_tickets(address, &request).await)
        .await?;
    Ok(answer.tickets)
}

/// What the key server may have refused one volume for.
fn loss(why: &Unreachable) -> Option<Loss> {
    let Unreachable::Final(error) = why else {
        return None;
    };
    match &error.fault {
        fault if fault.is_destroyed() => Some(Loss::Destroyed),
        fault if fault.is_for_strangers() => Some(Loss::Unknown),
        _ => None,
    }
}

/// Puts `ticket` into the header as it is now, through to the disk: another key server's may have moved on meanwhile.
fn write(bound: &Bound, server: ServerId, ticket: &VolumeTicket) -> Result<(), TicketsError> {
    let header = HeaderCopy::read(&bound.device)?;
    let still_bound = tokens::find_in(header.json())
        .into_iter()
        .any(|found| found.token.is_ok_and(|token| token.volume == ticket.volume));
    if !still_bound {
        return Ok(()); // unbound a moment ago
    }
    let before = tickets::find_in(header.json(), ticket.volume);
    let mut after = before.clone();
    after.set(server, ticket.ticket);
    after.retain(&bound.servers());
    if after != before {
        tickets::write(&bound.device, &after)?;
    }
    Ok(())
}

/// Waits until no other command holds the lock that `take` takes.
async fn free(take: impl Fn() -> Result<Lock, FilesError>) -> Result<Lock, FilesError> {
    let begin = tokio::time::Instant::now();
    loop {
        match take() {
            Err(FilesError::Busy) if begin.elapsed() < BUSY_LIMIT => {
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            taken => return taken,
        }
    }
}
