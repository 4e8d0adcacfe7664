//! What a running system does with its host key: register a volume, give it up, report a boot, ask how it stands.

use std::net::IpAddr;

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::ids::{Generation, RequestId, VolumeId};
use latchkey_protocol::release::{Purpose, Share};
use latchkey_protocol::wire::{
    BootFacts, BootReport, OpenedBy, StatusAnswer, Text, Version, VolumeAnswer, VolumeRequest,
    VolumeStatus, WantedVolume,
};
use latchkey_secret::Secret;

use super::policies::owner;
use super::witness::store_state;
use super::{Identity, Refusal, Service, ServiceError};
use crate::audit::{Event, Kind, printable};
use crate::clock::UnixMillis;
use crate::ledger::Work;
use crate::policy::{self, Decision, Policy, PolicyRequest, Range, Reason, Standing, StoredState};
use crate::records::{Client, Origin, Settings, Volume, VolumeState, key};
use crate::sealed::RecordError;

/// Volumes that one client may have registered, ended ones included.
pub const OWNED_LIMIT: usize = 256;
/// Most bytes of a label.
const LABEL_LIMIT: usize = 200;

/// A share that goes to the running machine whose volume it is.
pub(super) struct HandOver<'a> {
    /// The machine.
    pub client: &'a Client,
    /// Where it asks from.
    pub peer: IpAddr,
    /// Binds the sealed share.
    pub request: RequestId,
    /// What it is sealed to.
    pub ephemeral_key: &'a Bytes<32>,
    /// Of which volume it is.
    pub volume: &'a Volume,
    /// And of which generation.
    pub generation: Generation,
}

impl Service {
    /// Registers a volume and returns its sealed share. The same client may do it again for the same id: same
    /// generation, same share, sealed to the new ephemeral key.
    ///
    /// # Errors
    /// `Refused` (also if the id is another client's), `Destroyed`, `PutBack`, `Invalid`, `TooMany`, `Record`.
    pub fn register(
        &self,
        identity: &Identity,
        peer: IpAddr,
        request: &VolumeRequest,
    ) -> Result<VolumeAnswer, ServiceError> {
        let now = self.clock.now();
        self.admit(identity, peer, now)?;
        let result = self.records.transact(now, |work| {
            let client = self.host(work, identity)?;
            self.register_volume(work, &client, peer.to_canonical(), request, now)
        });
        self.noted(identity, peer, result)
    }

    fn register_volume(
        &self,
        work: &mut Work<'_>,
        client: &Client,
        peer: IpAddr,
        request: &VolumeRequest,
        now: UnixMillis,
    ) -> Result<VolumeAnswer, ServiceError> {
        let (volume, text) = match work.read::<Volume>(&key::volume(&request.volume))? {
            Some(volume) => (volume, "registered again, the same share"),
            None => (new_volume(work, client, peer, request, now)?, "registered"),
        };
        let handed = HandOver {
            client,
            peer,
            request: request.request,
            ephemeral_key: &request.ephemeral_key,
            volume: &volume,
            generation: volume.generation,
        };
        self.hand_over(work, &handed, now, |policy| {
            format!(
                "{text}: '{}', generation {}, opened {}, {policy}",
                volume.label,
                volume.generation,
                whereabouts(volume.opened_by)
            )
        })
    }

    /// Seals a share for the running machine whose volume it is, on record as `text` says when it is told the policy in force.
    pub(super) fn hand_over(
        &self,
        work: &mut Work<'_>,
        handed: &HandOver<'_>,
        now: UnixMillis,
        text: impl FnOnce(&str) -> String,
    ) -> Result<VolumeAnswer, ServiceError> {
        let HandOver { client, volume, .. } = *handed;
        let asked = PolicyRequest {
            purpose: Purpose::Registration,
            client: &client.name,
            standing: Standing::Good,
            request: handed.request,
            ephemeral_key: handed.ephemeral_key,
            peer: handed.peer,
            wanted: WantedVolume {
                volume: volume.id,
                generation: handed.generation,
            },
            ticket: None,
            facts: &no_facts(),
        };
        let state = StoredState::of_owner(volume, store_state(work)?);
        let authorised = match policy::decide(&asked, state, now) {
            Decision::Release(authorised) => authorised,
            Decision::Destroyed => return Err(ServiceError::Destroyed),
            Decision::Deny(Reason::NotOwned) => {
                return Err(ServiceError::Refused(Refusal::NotOwned));
            }
            Decision::Deny(Reason::PutBack) => return Err(ServiceError::PutBack),
            Decision::Deny(Reason::Bound) => return Err(ServiceError::Refused(Refusal::Bound)),
            Decision::Deny(_) | Decision::Ask | Decision::Pending | Decision::Wait => {
                return Err(ServiceError::Refused(Refusal::Unknown));
            }
        };
        let sealed = self.seal_share(work, &authorised)?;
        let (owned_by, group) = owner(work, volume)?;
        let policy = policy::in_force(volume, &owned_by, group.as_ref())
            .policy
            .sentence();
        work.audit(
            Event::new(Kind::Registered, text(&policy))
                .client(&client.name)
                .volume(volume.id)
                .request(handed.request)
                .peer(handed.peer),
        );
        Ok(VolumeAnswer {
            version: Version::default(),
            generation: handed.generation,
            sealed,
            policy: Text::cut(&policy),
        })
    }

    /// Gives a volume up: its share is deleted. Idempotent.
    ///
    /// # Errors
    /// `Refused` if it is not this client's, `TooMany`, `Record`.
    pub fn retire(
        &self,
        identity: &Identity,
        peer: IpAddr,
        volume: VolumeId,
    ) -> Result<(), ServiceError> {
        let now = self.clock.now();
        self.admit(identity, peer, now)?;
        let result = self.records.transact(now, |work| {
            let client = self.host(work, identity)?;
            let Some(mut found) = work.read::<Volume>(&key::volume(&volume))? else {
                return Err(ServiceError::Refused(Refusal::Unknown));
            };
            if found.client != client.name {
                return Err(ServiceError::Refused(Refusal::NotOwned));
            }
            work.remove_shares(&volume)?;
            work.remove(key::trace(&volume));
            if found.state == VolumeState::Live {
                found.state = VolumeState::Retired(now);
                work.write(&found)?;
                let text = format!("given up by its machine: '{}', share deleted", found.label);
                work.audit(
                    Event::new(Kind::Retired, text)
                        .client(&client.name)
                        .volume(volume)
                        .peer(peer),
                );
            }
            Ok(())
        });
        self.noted(identity, peer, result)
    }

    /// Takes the report of a boot into the audit.
    ///
    /// # Errors
    /// `Refused`, `TooMany`, `Record`.
    pub fn report(
        &self,
        identity: &Identity,
        peer: IpAddr,
        report: &BootReport,
    ) -> Result<(), ServiceError> {
        let now = self.clock.now();
        self.admit(identity, peer, now)?;
        let lines: Vec<&str> = report.lines.iter().map(Text::as_str).collect();
        let text = lines.join("; ");
        let result = self.records.transact(now, |work| {
            let client = self.host(work, identity)?;
            let mut event = Event::new(Kind::BootReport, &text)
                .client(&client.name)
                .peer(peer);
            event.request = report.request;
            work.audit(event);
            Ok(())
        });
        self.noted(identity, peer, result)
    }

    /// What the server holds of this client.
    ///
    /// # Errors
    /// `Refused`, `Record`.
    pub fn status(&self, identity: &Identity) -> Result<StatusAnswer, ServiceError> {
        let volumes = self.records.transact(self.clock.now(), |work| {
            let client = self.host(work, identity)?;
            let owned: Vec<VolumeId> = self.records.all(&key::owned(&client.name))?;
            let mut volumes = Vec::with_capacity(owned.len());
            for id in owned {
                let at = key::volume(&id);
                let volume: Volume = work.read(&at)?.ok_or(RecordError::Missing(at))?;
                let (client, group) = owner(work, &volume)?;
                let policy = policy::in_force(&volume, &client, group.as_ref()).policy;
                volumes.push(VolumeStatus {
                    volume: id,
                    generation: volume.generation,
                    policy: Text::cut(&format!("{}; {}", policy.sentence(), policy.limits())),
                    destroyed: volume.state != VolumeState::Live,
                });
            }
            Ok::<_, ServiceError>(volumes)
        })?;
        Ok(StatusAnswer {
            version: Version::default(),
            volumes,
        })
    }
}

/// Where a volume is opened, for people.
pub fn whereabouts(opened_by: OpenedBy) -> &'static str {
    match opened_by {
        OpenedBy::BootKey => "in the initramfs",
        OpenedBy::ExposedBootKey => "in the initramfs, of a machine whose root is not encrypted",
        OpenedBy::HostKey => "in the running system",
        OpenedBy::ExposedHostKey => "in the running system, whose root is not encrypted",
    }
}

/// A registration is no boot.
fn no_facts() -> BootFacts {
    BootFacts {
        kernel: Text::cut(""),
        command_line: Bytes([0; 32]),
        image_built: 0,
        image: None,
        header: None,
    }
}

fn new_volume(
    work: &mut Work<'_>,
    client: &Client,
    peer: IpAddr,
    request: &VolumeRequest,
    now: UnixMillis,
) -> Result<Volume, ServiceError> {
    work.touch(&key::client(&client.name))?;
    let owned = key::owned(&client.name);
    if work.keys(&owned, OWNED_LIMIT)?.len() >= OWNED_LIMIT {
        return Err(ServiceError::Invalid(
            "this client has registered too many volumes",
        ));
    }
    let settings: Settings = work.read(key::SETTINGS)?.unwrap_or_default();
    let volume = Volume {
        id: request.volume,
        client: client.name.clone(),
        label: printable(request.label.as_str(), LABEL_LIMIT),
        generation: Generation::FIRST,
        policy: Policy::default_for(peer, settings.elsewhere),
        origin: Origin::Bound,
        home: Some(Range::around(peer)),
        created: now,
        state: VolumeState::Live,
        opened_by: request.opened_by,
        next: None,
    };
    let share = Share(Secret::random().map_err(RecordError::from)?);
    work.make_share(&volume.id, volume.generation, &share)?;
    work.write(&volume)?;
    work.write_owned(format!("{owned}{}", volume.id), volume.id)?;
    Ok(volume)
}
