//! What the administrator does. `who` is the person, for the audit.

use std::fmt;
use std::time::Duration;

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::ids::{ClientName, VolumeId};

use super::join::secret_hash;
use super::listing::{ClientListing, ClientState, Destruction, NamedGroup, VolumeListing};
use super::policies::{is_new, make_group, volume_record};
use super::{AdminError, Service};
use crate::audit::{self, AuditEntry, Event, Kind, Verified};
use crate::clock::UnixMillis;
use crate::ledger::Work;
use crate::policy::{Otherwise, Policy};
use crate::records::{
    Client, Group, GroupName, Invite, Machine, Settings, Volume, VolumeState, key,
};
use crate::sealed::RecordError;
use crate::store::Backup;

/// Shortest and longest life of an invitation.
pub const LIFETIMES: (Duration, Duration) =
    (Duration::from_secs(60), Duration::from_secs(30 * 86_400));
/// Most entries of the audit in one answer.
pub const AUDIT_LIMIT: usize = 10_000;

/// An invitation that was just made. Its secret is stored nowhere. `Debug` does not show it.
pub struct Invitation {
    /// The one-time secret, for the join token.
    pub secret: Bytes<32>,
    /// Who is invited.
    pub client: ClientName,
    /// When it ends.
    pub expires: UnixMillis,
}

/// Invitations that were just made together.
#[derive(Debug)]
pub struct Invited {
    /// One for each client, in order.
    pub invitations: Vec<Invitation>,
    /// The group that they were put into.
    pub group: Option<NamedGroup>,
}

impl fmt::Debug for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Invitation({})", self.client)
    }
}

impl Service {
    /// Invites a client; an earlier invitation of it ends. One that has joined must be revoked first.
    ///
    /// # Errors
    /// `Joined`, `Lifetime`, `Record`.
    pub fn invite(
        &self,
        client: &ClientName,
        lifetime: Duration,
        who: &str,
    ) -> Result<Invitation, AdminError> {
        let mut invited = self.invite_all(std::slice::from_ref(client), None, lifetime, who)?;
        invited.invitations.pop().ok_or(AdminError::Lifetime)
    }

    /// Invites several clients and puts them into a group: all or none of them.
    ///
    /// # Errors
    /// `Joined`, `Lifetime`, `Policy`, `Record`.
    pub fn invite_all(
        &self,
        clients: &[ClientName],
        group: Option<&GroupName>,
        lifetime: Duration,
        who: &str,
    ) -> Result<Invited, AdminError> {
        let (shortest, longest) = LIFETIMES;
        if !(shortest..=longest).contains(&lifetime) {
            return Err(AdminError::Lifetime);
        }
        let now = self.clock.now();
        let expires = now.plus(lifetime);
        let mut invitations = Vec::with_capacity(clients.len());
        let mut new_group = false;
        // First, so that a name that cannot be invited leaves the others as they are.
        for client in clients {
            let found: Option<Client> = self.records.read(&key::client(client))?;
            if found.is_some_and(|found| found.joined.is_some() && found.revoked.is_none()) {
                return Err(AdminError::Joined(client.clone()));
            }
        }
        for client in clients {
            let mut secret = Bytes([0; 32]);
            getrandom::fill(&mut secret.0)
                .map_err(|error| RecordError::from(latchkey_secret::SecretError::Random(error)))?;
            let hash = secret_hash(&secret);
            new_group |= self.records.transact(now, |work| {
                let new = match group {
                    Some(name) => is_new(work, name)?,
                    None => false,
                };
                invite(work, client, group, hash, expires, now, who)?;
                Ok::<_, AdminError>(new)
            })?;
            invitations.push(Invitation {
                secret,
                client: client.clone(),
                expires,
            });
        }
        let group = group.map(|name| self.named_group(name, new_group));
        Ok(Invited {
            invitations,
            group: group.transpose()?,
        })
    }

    /// All clients, by name.
    ///
    /// # Errors
    /// The store's.
    pub fn clients(&self) -> Result<Vec<ClientListing>, AdminError> {
        let clients: Vec<Client> = self.records.all(key::CLIENTS)?;
        let listings = clients
            .into_iter()
            .map(|client| self.client_listing(client));
        Ok(listings.collect::<Result<_, RecordError>>()?)
    }

    /// All volumes, by client and label.
    ///
    /// # Errors
    /// The store's.
    pub fn volumes(&self) -> Result<Vec<VolumeListing>, AdminError> {
        let volumes: Vec<Volume> = self.records.all(key::VOLUMES)?;
        let mut listings = Vec::with_capacity(volumes.len());
        for volume in volumes {
            listings.push(self.volume_listing(volume)?);
        }
        listings.sort_by(|a, b| (&a.client, &a.label, a.id).cmp(&(&b.client, &b.label, b.id)));
        Ok(listings)
    }

    /// Revokes a client and its invitation. Idempotent.
    ///
    /// # Errors
    /// `NoClient`, `Record`.
    pub fn revoke(&self, client: &ClientName, who: &str) -> Result<ClientListing, AdminError> {
        let now = self.clock.now();
        let client = self.records.transact(now, |work| {
            let found: Option<Client> = work.read(&key::client(client))?;
            let mut record = found.ok_or_else(|| AdminError::NoClient(client.clone()))?;
            let invited = record.invitation.take().is_some();
            if record.revoked.is_none() {
                record.revoked = Some(now);
            } else if !invited {
                return Ok(record);
            }
            work.write(&record)?;
            work.audit(Event::new(Kind::Revoked, "revoked").client(client).who(who));
            Ok::<_, AdminError>(record)
        })?;
        self.lives.end(&client.name, self.clock.passed());
        Ok(self.client_listing(client)?)
    }

    /// Destroys a volume's share. Idempotent.
    ///
    /// # Errors
    /// `NoVolume`, `Record`.
    pub fn destroy(&self, volume: &VolumeId, who: &str) -> Result<Destruction, AdminError> {
        let now = self.clock.now();
        let (volume, at) = self.records.transact(now, |work| {
            let mut record = volume_record(work, volume)?;
            // Again even if it is gone: an earlier try may have failed before the traces were erased.
            work.remove_shares(volume)?;
            work.remove(key::trace(volume));
            let at = match record.state {
                VolumeState::Destroyed(at) => at,
                VolumeState::Live | VolumeState::Retired(_) => {
                    record.state = VolumeState::Destroyed(now);
                    work.write(&record)?;
                    let text = format!("share of '{}' destroyed", record.label);
                    work.audit(
                        Event::new(Kind::Destroyed, text)
                            .client(&record.client)
                            .volume(*volume)
                            .who(who),
                    );
                    now
                }
            };
            Ok::<_, AdminError>((record, at))
        })?;
        Ok(Destruction::of(volume, at))
    }

    /// A volume's policy.
    ///
    /// # Errors
    /// `NoVolume`, `Record`.
    pub fn policy(&self, volume: &VolumeId) -> Result<Policy, AdminError> {
        let found: Option<Volume> = self.records.read(&key::volume(volume))?;
        found
            .map(|volume| volume.policy)
            .ok_or(AdminError::NoVolume(*volume))
    }

    /// The settings of the server.
    ///
    /// # Errors
    /// The store's.
    pub fn settings(&self) -> Result<Settings, AdminError> {
        Ok(self.records.read(key::SETTINGS)?.unwrap_or_default())
    }

    /// Changes the settings of the server.
    ///
    /// # Errors
    /// The store's.
    pub fn set_settings(&self, settings: &Settings, who: &str) -> Result<(), AdminError> {
        self.records.transact(self.clock.now(), |work| {
            work.write(settings)?;
            let text = match settings.elsewhere {
                Otherwise::Ask => "new volumes ask a person when asked from elsewhere",
                Otherwise::Deny => "new volumes are denied to other addresses",
            };
            work.audit(Event::new(Kind::Changed, text).who(who));
            Ok(())
        })
    }

    /// Up to `limit` entries of the audit that come after the entry `after` (0: from the first).
    ///
    /// # Errors
    /// The store's.
    pub fn audit(&self, after: u64, limit: usize) -> Result<Vec<AuditEntry>, AdminError> {
        let limit = limit.min(AUDIT_LIMIT);
        Ok(audit::entries(&self.records, after, limit)?)
    }

    /// Copies the store as it is at one moment. The master key, which opens the copy as it opens the store, is not in it.
    ///
    /// # Errors
    /// `Record`.
    pub fn backup(&self, who: &str) -> Result<Backup, AdminError> {
        // Before it leaves, as with a share; so it is in the copy as well.
        self.records.transact(self.clock.now(), |work| {
            work.audit(Event::new(Kind::BackedUp, "copy of the store").who(who));
            Ok::<_, RecordError>(())
        })?;
        Ok(self.records.store.backup().map_err(RecordError::from)?)
    }

    /// Walks the whole chain.
    ///
    /// # Errors
    /// `Chain` with the first bad entry, `Record`.
    pub fn verify_audit(&self) -> Result<Verified, AdminError> {
        Ok(audit::verify(&self.records)??)
    }

    /// A volume as it is listed, with the policy that is in force for it.
    pub(super) fn volume_listing(&self, volume: Volume) -> Result<VolumeListing, RecordError> {
        let at = key::client(&volume.client);
        let client: Client = self.records.read(&at)?.ok_or(RecordError::Missing(at))?;
        let group: Option<Group> = match &client.group {
            Some(name) => self.records.read(&key::group(name))?,
            None => None,
        };
        Ok(VolumeListing::of(volume, &client, group.as_ref()))
    }

    pub(super) fn client_listing(&self, client: Client) -> Result<ClientListing, RecordError> {
        let now = self.clock.now();
        let volumes: Vec<VolumeId> = self.records.all(&key::owned(&client.name))?;
        let invited = match client.invitation {
            None => false,
            Some(hash) => self
                .records
                .read::<Invite>(&key::invite(&hash.0))?
                .is_some_and(|invite| {
                    invite.used.is_none() && now.is_within(invite.created, invite.expires)
                }),
        };
        let joined = client.joined.as_ref();
        Ok(ClientListing {
            state: match (client.revoked, joined, invited) {
                (_, _, true) => ClientState::Invited,
                (Some(_), _, false) => ClientState::Revoked,
                (None, Some(_), false) => ClientState::Joined,
                (None, None, false) => ClientState::Expired,
            },
            created: client.created,
            joined: joined.map(|joined| joined.at),
            joined_from: joined.map(|joined| joined.from),
            boot_key: joined.map(|joined| joined.boot),
            host_key: joined.map(|joined| joined.host),
            revoked: client.revoked,
            volumes: volumes.len(),
            locked: client.locked,
            heard: self
                .records
                .read::<Machine>(&key::machine(&client.name))?
                .and_then(|machine| machine.heard)
                .map(|heard| heard.at),
            group: client.group,
            name: client.name,
        })
    }
}

fn invite(
    work: &mut Work<'_>,
    client: &ClientName,
    group: Option<&GroupName>,
    hash: Bytes<32>,
    expires: UnixMillis,
    now: UnixMillis,
    who: &str,
) -> Result<(), AdminError> {
    let found: Option<Client> = work.read(&key::client(client))?;
    let mut record = found.unwrap_or_else(|| Client {
        name: client.clone(),
        created: now,
        invitation: None,
        joined: None,
        revoked: None,
        locked: None,
        group: None,
        policy: None,
    });
    if record.joined.is_some() && record.revoked.is_none() {
        return Err(AdminError::Joined(client.clone()));
    }
    let mut text = format!("invited until {}", expires.text());
    if let Some(group) = group {
        make_group(work, group, now)?;
        record.group = Some(group.clone());
        text.push_str(&format!(", into the group '{group}'"));
    }
    record.invitation = Some(hash);
    work.write(&record)?;
    work.write(&Invite {
        hash,
        client: client.clone(),
        created: now,
        expires,
        used: None,
    })?;
    work.audit(Event::new(Kind::Invited, text).client(client).who(who));
    Ok(())
}
