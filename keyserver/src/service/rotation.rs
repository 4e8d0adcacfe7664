//! A new share for a volume: made beside the current one, and one of the two taken away when its machine says which.

use std::net::IpAddr;

use latchkey_protocol::ids::{Generation, VolumeId};
use latchkey_protocol::release::Share;
use latchkey_protocol::wire::{RotationEnd, RotationRequest, VolumeAnswer};
use latchkey_secret::Secret;

use super::registration::HandOver;
use super::witness::store_state;
use super::{Identity, Refusal, Service, ServiceError};
use crate::audit::{Event, Kind};
use crate::clock::UnixMillis;
use crate::ledger::Work;
use crate::policy::StoreState;
use crate::records::{Client, NextShare, Volume, VolumeState, key};
use crate::sealed::RecordError;

impl Service {
    /// Gives the share of the next generation, which is made if there is none. The current one stays what it is.
    ///
    /// # Errors
    /// `Refused` if the volume is not this client's, `Destroyed`, `PutBack`, `Invalid`, `TooMany`, `Record`.
    pub fn rotate(
        &self,
        identity: &Identity,
        peer: IpAddr,
        request: &RotationRequest,
    ) -> Result<VolumeAnswer, ServiceError> {
        let now = self.clock.now();
        self.admit(identity, peer, now)?;
        let result = self.records.transact(now, |work| {
            let client = self.host(work, identity)?;
            self.next_share(work, &client, peer.to_canonical(), request, now)
        });
        self.noted(identity, peer, result)
    }

    fn next_share(
        &self,
        work: &mut Work<'_>,
        client: &Client,
        peer: IpAddr,
        request: &RotationRequest,
        now: UnixMillis,
    ) -> Result<VolumeAnswer, ServiceError> {
        let mut volume = owned(work, client, request.volume)?;
        let (next, text) = match volume.next {
            Some(next) => (next, "asked for again"),
            None => (make_next(work, &mut volume, now)?, "made"),
        };
        let handed = HandOver {
            client,
            peer,
            request: request.request,
            ephemeral_key: &request.ephemeral_key,
            volume: &volume,
            generation: next.generation,
        };
        self.hand_over(work, &handed, now, |_| {
            format!(
                "the next share was {text}: '{}', generation {} beside {}",
                volume.label, next.generation, volume.generation
            )
        })
    }

    /// Keeps one of the two generations and deletes the share of the other. Idempotent.
    ///
    /// # Errors
    /// `Refused` if the volume is not this client's, `Invalid` if it has no such generation, `Destroyed`, `PutBack`, `TooMany`,
    /// `Record`.
    pub fn end_rotation(
        &self,
        identity: &Identity,
        peer: IpAddr,
        end: &RotationEnd,
    ) -> Result<(), ServiceError> {
        let now = self.clock.now();
        self.admit(identity, peer, now)?;
        let result = self.records.transact(now, |work| {
            let client = self.host(work, identity)?;
            keep(work, &client, peer.to_canonical(), end)
        });
        self.noted(identity, peer, result)
    }
}

/// A live volume of this client, in a store that may be relied on.
fn owned(work: &mut Work<'_>, client: &Client, id: VolumeId) -> Result<Volume, ServiceError> {
    let Some(volume) = work.read::<Volume>(&key::volume(&id))? else {
        return Err(ServiceError::Refused(Refusal::Unknown));
    };
    if volume.client != client.name {
        return Err(ServiceError::Refused(Refusal::NotOwned));
    }
    if volume.state != VolumeState::Live {
        return Err(ServiceError::Destroyed);
    }
    if store_state(work)? == StoreState::PutBack {
        return Err(ServiceError::PutBack);
    }
    Ok(volume)
}

fn make_next(
    work: &mut Work<'_>,
    volume: &mut Volume,
    now: UnixMillis,
) -> Result<NextShare, ServiceError> {
    let number = volume.generation.0.checked_add(1);
    let next = NextShare {
        generation: Generation(number.ok_or(ServiceError::Invalid("no more generations"))?),
        made: now,
    };
    let share = Share(Secret::random().map_err(RecordError::from)?);
    work.make_share(&volume.id, next.generation, &share)?;
    volume.next = Some(next);
    work.write(volume)?;
    Ok(next)
}

fn keep(
    work: &mut Work<'_>,
    client: &Client,
    peer: IpAddr,
    end: &RotationEnd,
) -> Result<(), ServiceError> {
    let mut volume = owned(work, client, end.volume)?;
    let text = match volume.next.take() {
        Some(next) if next.generation == end.keep => {
            work.remove_share(&volume.id, volume.generation);
            let before = std::mem::replace(&mut volume.generation, next.generation);
            format!("generation {} takes the place of {before}", end.keep)
        }
        Some(next) if volume.generation == end.keep => {
            work.remove_share(&volume.id, next.generation);
            format!(
                "generation {} stays, {} is given up",
                end.keep, next.generation
            )
        }
        None if volume.generation == end.keep => return Ok(()),
        _ => return Err(ServiceError::Invalid("the volume has no such generation")),
    };
    work.write(&volume)?;
    work.audit(
        Event::new(
            Kind::Rotated,
            format!("{text}: '{}', share deleted", volume.label),
        )
        .client(&client.name)
        .volume(volume.id)
        .peer(peer),
    );
    Ok(())
}
