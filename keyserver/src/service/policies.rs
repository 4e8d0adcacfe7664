//! Policies as the administrator sets them, for a volume, a client or a group, and groups themselves.

use latchkey_protocol::ids::{ClientName, VolumeId};

use super::listing::{
    GroupListing, Membership, NamedGroup, PolicyListing, PolicyTarget, Unreached, VolumeListing,
};
use super::{AdminError, Service};
use crate::audit::{Event, Kind};
use crate::clock::UnixMillis;
use crate::ledger::Work;
use crate::policy::{self, Policy, Rule, Scope, Source};
use crate::records::{
    Client, Group, GroupName, Origin, SetPolicy, Settings, Trace, Volume, VolumeState, key,
};
use crate::sealed::RecordError;

/// Groups in all.
const GROUPS_LIMIT: usize = 1000;

impl Service {
    /// The policy that is set for `target`, or in force for it if it is a volume.
    ///
    /// # Errors
    /// `NoVolume`, `NoClient`, `NoGroup`, `Record`.
    pub fn policy_of(&self, target: &PolicyTarget) -> Result<PolicyListing, AdminError> {
        self.records
            .transact(self.clock.now(), |work| match target {
                PolicyTarget::Volume(id) => {
                    let volume = volume_record(work, id)?;
                    let (client, group) = owner(work, &volume)?;
                    let found = policy::in_force(&volume, &client, group.as_ref());
                    Ok(PolicyListing::new(
                        target,
                        Some(found.policy),
                        found.scope.to_string(),
                    ))
                }
                PolicyTarget::Client(name) => {
                    let client = client_record(work, name)?;
                    let found = client.policy.as_ref().map(|found| &found.policy);
                    let scope = "set for the client".to_owned();
                    let mut listing = PolicyListing::new(target, found, scope);
                    if found.is_some() {
                        let passed = self.unreached(work, &client, None)?;
                        listing.unreached = passed;
                    }
                    Ok(listing)
                }
                PolicyTarget::Group(name) => {
                    let group = group_record(work, name)?;
                    let found = group.policy.as_ref().map(|found| &found.policy);
                    let scope = format!("set for the group '{name}'");
                    let mut listing = PolicyListing::new(target, found, scope);
                    if found.is_some() {
                        for client in &self.members(name)? {
                            let passed = self.unreached(work, client, Some(&group))?;
                            listing.unreached.extend(passed);
                        }
                    }
                    listing.group = Some(self.named_group(name, false)?);
                    Ok(listing)
                }
            })
    }

    /// The clients in a group.
    fn members(&self, group: &GroupName) -> Result<Vec<Client>, RecordError> {
        let mut clients: Vec<Client> = self.records.all(key::CLIENTS)?;
        clients.retain(|client| client.group.as_ref() == Some(group));
        Ok(clients)
    }

    /// The group `name`, which a command made if it is `new`.
    pub(super) fn named_group(
        &self,
        name: &GroupName,
        new: bool,
    ) -> Result<NamedGroup, RecordError> {
        Ok(NamedGroup {
            name: name.clone(),
            new,
            clients: self.members(name)?.len(),
        })
    }

    /// The live volumes of `client` that its own policy, or that of `group`, does not reach.
    fn unreached(
        &self,
        work: &mut Work<'_>,
        client: &Client,
        group: Option<&Group>,
    ) -> Result<Vec<Unreached>, RecordError> {
        let ids: Vec<VolumeId> = self.records.all(&key::owned(&client.name))?;
        let mut unreached = Vec::new();
        for id in ids {
            let at = key::volume(&id);
            let volume: Volume = work.read(&at)?.ok_or(RecordError::Missing(at))?;
            let scope = policy::in_force(&volume, client, group).scope;
            let reached = match scope {
                Scope::Client => group.is_none(),
                Scope::Group(_) => true,
                Scope::Volume | Scope::Before | Scope::Bound => false,
            };
            if volume.state == VolumeState::Live && !reached {
                unreached.push(Unreached::new(&volume, scope));
            }
        }
        Ok(unreached)
    }

    /// Sets the policy of `target`, or takes it away (`None`): then the less specific one holds, for a volume at last what a
    /// volume gets when it is bound.
    ///
    /// # Errors
    /// `NoVolume`, `NoClient`, `NoGroup`, `Policy`, `NoTickets`, `Record`.
    pub fn set_policy_of(
        &self,
        target: &PolicyTarget,
        policy: Option<&Policy>,
        who: &str,
    ) -> Result<PolicyListing, AdminError> {
        if let Some(policy) = policy {
            policy.check().map_err(AdminError::Policy)?;
        }
        let now = self.clock.now();
        let new_group = self.records.transact(now, |work| {
            let mut new_group = false;
            let event = match target {
                PolicyTarget::Volume(id) => self.set_for_volume(work, id, policy, now)?,
                PolicyTarget::Client(name) => self.set_for_client(work, name, policy, now)?,
                PolicyTarget::Group(name) => {
                    new_group = is_new(work, name)?;
                    set_for_group(work, name, policy, now)?
                }
            };
            work.audit(event.who(who));
            Ok::<_, AdminError>(new_group)
        })?;
        let mut listing = self.policy_of(target)?;
        if let Some(group) = &mut listing.group {
            group.new = new_group;
        }
        Ok(listing)
    }

    /// Sets a volume's policy.
    ///
    /// # Errors
    /// `NoVolume`, `Policy`, `NoTickets`, `Record`.
    pub fn set_policy(
        &self,
        volume: &VolumeId,
        policy: &Policy,
        who: &str,
    ) -> Result<VolumeListing, AdminError> {
        self.set_policy_of(&PolicyTarget::Volume(*volume), Some(policy), who)?;
        let found: Option<Volume> = self.records.read(&key::volume(volume))?;
        let found = found.ok_or(AdminError::NoVolume(*volume))?;
        Ok(self.volume_listing(found)?)
    }

    fn set_for_volume(
        &self,
        work: &mut Work<'_>,
        id: &VolumeId,
        policy: Option<&Policy>,
        now: UnixMillis,
    ) -> Result<Event, AdminError> {
        let mut volume = volume_record(work, id)?;
        if volume.state != VolumeState::Live {
            return Err(AdminError::Policy("the volume's share is gone".to_owned()));
        }
        let before = volume.policy.sentence();
        let text = match policy {
            Some(policy) => {
                check_tickets(work, policy, std::slice::from_ref(&volume))?;
                volume.policy = policy.clone();
                let earlier = match volume.origin {
                    Origin::Set(at) => at,
                    Origin::Before | Origin::Bound => volume.created,
                };
                let used = used_last(work, &[*id])?;
                volume.origin = Origin::Set(set_after(now, earlier.max(used)));
                format!("policy: {}; before: {before}", policy.sentence())
            }
            None => {
                let settings: Settings = work.read(key::SETTINGS)?.unwrap_or_default();
                volume.origin = Origin::Bound;
                volume.policy = Policy {
                    from: vec![Source::Home],
                    elsewhere: settings.elsewhere,
                    ..Policy::plain(Rule::Allow)
                };
                format!("no policy of its own any more; before: {before}")
            }
        };
        work.write(&volume)?;
        Ok(Event::new(Kind::Changed, text)
            .client(&volume.client)
            .volume(*id))
    }

    fn set_for_client(
        &self,
        work: &mut Work<'_>,
        name: &ClientName,
        policy: Option<&Policy>,
        now: UnixMillis,
    ) -> Result<Event, AdminError> {
        let mut client = client_record(work, name)?;
        let mut used = UnixMillis::default();
        if let Some(policy) = policy {
            let ids: Vec<VolumeId> = self.records.all(&key::owned(name))?;
            let mut volumes = Vec::with_capacity(ids.len());
            for id in &ids {
                let volume = volume_record(work, id)?;
                if volume.state == VolumeState::Live && volume.origin == Origin::Bound {
                    volumes.push(volume);
                }
            }
            check_tickets(work, policy, &volumes)?;
            used = used_last(work, &ids)?;
        }
        let before = replaced(&mut client.policy, policy, set_after(now, used));
        work.write(&client)?;
        let text = format!(
            "policy of the client: {}; before: {before}",
            sentence(policy)
        );
        Ok(Event::new(Kind::Changed, text).client(name))
    }

    /// All groups, by name.
    ///
    /// # Errors
    /// The store's.
    pub fn groups(&self) -> Result<Vec<GroupListing>, AdminError> {
        let clients: Vec<Client> = self.records.all(key::CLIENTS)?;
        let groups: Vec<Group> = self.records.all(key::GROUPS)?;
        let listing = |group: Group| {
            let members = clients
                .iter()
                .filter(|client| client.group.as_ref() == Some(&group.name))
                .map(|client| client.name.clone())
                .collect();
            GroupListing::new(group, members)
        };
        Ok(groups.into_iter().map(listing).collect())
    }

    /// Puts a client into a group, which is made if it is new, or takes it out of its group (`None`).
    ///
    /// # Errors
    /// `NoClient`, `Policy`, `Record`.
    pub fn set_group(
        &self,
        name: &ClientName,
        group: Option<&GroupName>,
        who: &str,
    ) -> Result<Membership, AdminError> {
        let now = self.clock.now();
        let new = self.records.transact(now, |work| {
            let mut client = client_record(work, name)?;
            if client.group.as_ref() == group {
                return Ok(false);
            }
            let (new, text) = match group {
                Some(group) => {
                    let new = is_new(work, group)?;
                    make_group(work, group, now)?;
                    let kind = if new { "new group" } else { "group" };
                    (new, format!("put into the {kind} '{group}'"))
                }
                None => (false, "taken out of its group".to_owned()),
            };
            client.group = group.cloned();
            work.write(&client)?;
            work.audit(Event::new(Kind::Changed, text).client(name).who(who));
            Ok::<_, AdminError>(new)
        })?;
        Ok(Membership {
            group: group.map(|name| self.named_group(name, new)).transpose()?,
            volumes: self.live_volumes(name)?,
        })
    }

    /// The live volumes of `client`, with the policy that is in force for each.
    fn live_volumes(&self, client: &ClientName) -> Result<Vec<VolumeListing>, RecordError> {
        let ids: Vec<VolumeId> = self.records.all(&key::owned(client))?;
        let mut listings = Vec::with_capacity(ids.len());
        for id in ids {
            let at = key::volume(&id);
            let volume: Volume = self.records.read(&at)?.ok_or(RecordError::Missing(at))?;
            if volume.state == VolumeState::Live {
                listings.push(self.volume_listing(volume)?);
            }
        }
        listings.sort_by(|a, b| (&a.label, a.id).cmp(&(&b.label, b.id)));
        Ok(listings)
    }
}

/// The client of a volume, and its group.
pub(super) fn owner(
    work: &mut Work<'_>,
    volume: &Volume,
) -> Result<(Client, Option<Group>), RecordError> {
    let at = key::client(&volume.client);
    let client: Client = work.read(&at)?.ok_or(RecordError::Missing(at))?;
    let group = match &client.group {
        Some(name) => work.read(&key::group(name))?,
        None => None,
    };
    Ok((client, group))
}

pub(super) fn client_record(work: &mut Work<'_>, name: &ClientName) -> Result<Client, AdminError> {
    work.read(&key::client(name))?
        .ok_or_else(|| AdminError::NoClient(name.clone()))
}

pub(super) fn volume_record(work: &mut Work<'_>, id: &VolumeId) -> Result<Volume, AdminError> {
    work.read(&key::volume(id))?
        .ok_or(AdminError::NoVolume(*id))
}

/// Whether there is no group of this name yet.
pub(super) fn is_new(work: &mut Work<'_>, name: &GroupName) -> Result<bool, RecordError> {
    Ok(work.read::<Group>(&key::group(name))?.is_none())
}

/// A new group, or the one of this name.
pub(super) fn make_group(
    work: &mut Work<'_>,
    name: &GroupName,
    now: UnixMillis,
) -> Result<Group, AdminError> {
    if let Some(group) = work.read(&key::group(name))? {
        return Ok(group);
    }
    if work.keys(key::GROUPS, GROUPS_LIMIT)?.len() >= GROUPS_LIMIT {
        return Err(AdminError::Policy(format!(
            "more than {GROUPS_LIMIT} groups"
        )));
    }
    let group = Group {
        name: name.clone(),
        created: now,
        policy: None,
    };
    work.write(&group)?;
    Ok(group)
}

fn group_record(work: &mut Work<'_>, name: &GroupName) -> Result<Group, AdminError> {
    work.read(&key::group(name))?
        .ok_or_else(|| AdminError::NoGroup(name.clone()))
}

fn set_for_group(
    work: &mut Work<'_>,
    name: &GroupName,
    policy: Option<&Policy>,
    now: UnixMillis,
) -> Result<Event, AdminError> {
    // A group's machines come and go: one without tickets is asked about, not refused here.
    let mut group = match policy {
        Some(_) => make_group(work, name, now)?,
        None => group_record(work, name)?,
    };
    let before = replaced(&mut group.policy, policy, now);
    work.write(&group)?;
    let text = format!(
        "policy of the group '{name}': {}; before: {before}",
        sentence(policy)
    );
    Ok(Event::new(Kind::Changed, text))
}

/// Refuses a policy that wants tickets for a volume that has never had one: its header cannot carry any, or its machine
/// does not run `latchkey.service`.
fn check_tickets(
    work: &mut Work<'_>,
    policy: &Policy,
    volumes: &[Volume],
) -> Result<(), AdminError> {
    if !policy.ticket {
        return Ok(());
    }
    for volume in volumes {
        let trace: Option<Trace> = work.read(&key::trace(&volume.id))?;
        if trace.is_none_or(|trace| trace.current.is_none()) {
            return Err(AdminError::NoTickets(volume.label.clone()));
        }
    }
    Ok(())
}

/// The time of a policy that is set after one of `before`. Where the clock ran ahead then, it is no earlier than that: what
/// was used up under the old one would be so under the new one.
fn set_after(now: UnixMillis, before: UnixMillis) -> UnixMillis {
    now.max(UnixMillis(before.0.saturating_add(1)))
}

/// When the newest of the one-time policies was set that any of `volumes` used up.
fn used_last(work: &mut Work<'_>, volumes: &[VolumeId]) -> Result<UnixMillis, RecordError> {
    let mut last = UnixMillis::default();
    for id in volumes {
        let trace: Option<Trace> = work.read(&key::trace(id))?;
        let used = trace.and_then(|trace| trace.used);
        last = used.map_or(last, |(_, set)| last.max(set));
    }
    Ok(last)
}

/// What was set before, in a sentence.
fn replaced(place: &mut Option<SetPolicy>, policy: Option<&Policy>, now: UnixMillis) -> String {
    let before = place.as_ref().map_or(UnixMillis::default(), |old| old.set);
    let new = policy.map(|policy| SetPolicy {
        policy: policy.clone(),
        set: set_after(now, before),
    });
    let before = std::mem::replace(place, new);
    sentence(before.as_ref().map(|found| &found.policy))
}

fn sentence(policy: Option<&Policy>) -> String {
    policy.map_or_else(|| "none".to_owned(), Policy::sentence)
}
