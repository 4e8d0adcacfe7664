//! A person's word on a machine that asks to be taken back. It gives the machine all that its client may do, so it needs
//! every approval that any of the client's volumes wants.

use std::time::Duration;

use latchkey_protocol::ids::VolumeId;

use super::approval::{
    ATTEMPTS, AfterDeny, count_wrong, decided, left, may_approve, no_request, open_number,
};
use super::listing::{RejoinListing, RequestedVolume};
use super::locking::lock_in;
use super::policies::{client_record, owner};
use super::rejoin::{never_taken_back, shown_ticket, ticket_words};
use super::{AdminError, Service};
use crate::audit::Kind;
use crate::clock::UnixMillis;
use crate::ledger::Work;
use crate::policy::{self, Approval, Range};
use crate::records::{
    Approved, Client, Joined, KnownKey, Machine, Rejoin, Role, SessionState, Trace, Volume,
    VolumeState, key,
};
use crate::sealed::RecordError;

impl Service {
    /// Machines that ask to be taken back, the oldest first.
    ///
    /// # Errors
    /// The store's.
    pub fn rejoins(&self) -> Result<Vec<RejoinListing>, AdminError> {
        let now = self.clock.now();
        let mut rejoins: Vec<Rejoin> = self.records.all(key::REJOINS)?;
        rejoins.retain(|rejoin| rejoin.is_open(now) && rejoin.state != SessionState::Approved);
        rejoins.sort_by_key(|rejoin| rejoin.created);
        rejoins.iter().map(|one| self.rejoin_listing(one)).collect()
    }

    /// Approves the request that goes by `id`, if `code` is the one on its machine's screen. With the last approval that is
    /// wanted, its keys take the place of the client's in the same step.
    ///
    /// # Errors
    /// `NoRequest`, `Decided`, `WrongCode`, `StillRuns`, `NotKnownYet`, `NeverTakenBack`, `NotApprover`, `ApprovedAlready`, `Record`.
    pub fn approve_rejoin(
        &self,
        id: &str,
        code: &str,
        who: &str,
    ) -> Result<RejoinListing, AdminError> {
        let now = self.clock.now();
        let result = self.records.transact(now, |work| {
            let mut rejoin = open_rejoin(work, id, now)?;
            if rejoin.state != SessionState::Pending {
                return Err(decided(&rejoin.number, rejoin.state));
            }
            if !rejoin.code.matches(code) {
                let left = wrong_code(work, &mut rejoin, who)?;
                return Ok(Err(AdminError::WrongCode { left }));
            }
            let client = client_record(work, &rejoin.client)?;
            if let Some(why) = never_taken_back(work, &client)? {
                return Err(AdminError::NeverTakenBack(why));
            }
            // Looked at last, and again by nobody: a machine that connects now is cut off below.
            if self.lives.is_open(&client.name) {
                return Err(AdminError::StillRuns(client.name));
            }
            if let Some(left) = self.may_return(work, &client)? {
                return Err(AdminError::NotKnownYet {
                    client: client.name,
                    left: left.as_secs() + 1,
                });
            }
            let wanted = self.approvals_of(work, &client)?;
            may_approve(&wanted, &rejoin.approvals, who, now)?;
            rejoin.approvals.retain(|one| one.who != who);
            rejoin.approvals.push(Approved {
                who: who.to_owned(),
                at: now,
            });
            // Before the keys change: it tells which ones go.
            let listing = self.listing_in(work, &rejoin, &client)?;
            match left(&wanted, &rejoin.approvals, now) {
                0 => {
                    rejoin.state = SessionState::Approved;
                    work.audit(
                        rejoin
                            .event(Kind::Approved, &approved_text(&rejoin))
                            .who(who),
                    );
                    self.take_back(work, client, &rejoin, now)?;
                }
                left => {
                    let text = format!("{}, and {left} more must", approved_text(&rejoin));
                    work.audit(rejoin.event(Kind::Approved, &text).who(who));
                }
            }
            work.write(&rejoin)?;
            Ok(Ok(RejoinListing {
                state: rejoin.state,
                ..listing
            }))
        })?;
        let listing = result?;
        if listing.state == SessionState::Approved {
            self.lives.end(&listing.client, self.clock.passed());
        }
        Ok(listing)
    }

    /// Denies the request that goes by `id`, and locks its client out if that is wanted.
    ///
    /// # Errors
    /// `NoRequest`, `Decided`, `Record`.
    pub fn deny_rejoin(
        &self,
        id: &str,
        then: AfterDeny,
        who: &str,
    ) -> Result<RejoinListing, AdminError> {
        let now = self.clock.now();
        let rejoin = self.records.transact(now, |work| {
            let mut rejoin = open_rejoin(work, id, now)?;
            if rejoin.state != SessionState::Pending && then == AfterDeny::Nothing {
                return Err(decided(&rejoin.number, rejoin.state));
            }
            if rejoin.state == SessionState::Pending {
                rejoin.state = SessionState::Denied;
                work.write(&rejoin)?;
                let text = format!("not taken back, denied: request {}", rejoin.number);
                work.audit(rejoin.event(Kind::Denied, &text).who(who));
            }
            if then == AfterDeny::Lock {
                lock_in(work, &rejoin.client, now, who)?;
            }
            Ok(rejoin)
        })?;
        self.rejoin_listing(&rejoin)
    }

    /// How long it is not known yet whether the running machine comes back. One that was never heard of does not.
    fn may_return(
        &self,
        work: &mut Work<'_>,
        client: &Client,
    ) -> Result<Option<Duration>, RecordError> {
        let machine: Option<Machine> = work.read(&key::machine(&client.name))?;
        let heard = machine.is_some_and(|machine| machine.heard.is_some());
        let returns = self.lives.may_return(&client.name, self.clock.passed());
        Ok(returns.filter(|_| heard))
    }

    /// Puts the new keys in the place of the old ones. Volumes, shares and policies stay.
    fn take_back(
        &self,
        work: &mut Work<'_>,
        mut client: Client,
        rejoin: &Rejoin,
        now: UnixMillis,
    ) -> Result<(), AdminError> {
        let keys = rejoin.keys;
        for (spki, role) in [(keys.boot, Role::Boot), (keys.host, Role::Host)] {
            if work.read::<KnownKey>(&key::known_key(&spki))?.is_some() {
                return Err(AdminError::NeverTakenBack(
                    "asks to be taken back, but one of its keys was registered meanwhile",
                ));
            }
            work.write(&KnownKey {
                spki,
                client: client.name.clone(),
                role,
            })?;
        }
        let old = client.joined.replace(Joined {
            boot: keys.boot,
            host: keys.host,
            at: now,
            from: rejoin.peer,
        });
        // An invitation that was used for the old keys would still answer to them.
        client.invitation = None;
        let owned: Vec<VolumeId> = self.records.all(&key::owned(&client.name))?;
        for id in owned {
            if let Some(mut trace) = work.read::<Trace>(&key::trace(&id))? {
                (trace.current, trace.next) = (None, None);
                work.write(&trace)?;
            }
            // One that an earlier version registered is at home where its machine had joined, not where it asks from now.
            if let Some(mut volume) = work.read::<Volume>(&key::volume(&id))?
                && volume.home.is_none()
            {
                volume.home = old.as_ref().map(|old| Range::around(old.from));
                work.write(&volume)?;
            }
        }
        work.remove(key::machine(&client.name));
        work.write(&client)?;
        let short = |spki: &latchkey_protocol::encoding::Bytes<32>| {
            latchkey_protocol::encoding::hex(&spki.0[..8])
        };
        let went = old.map_or_else(String::new, |old| {
            format!(
                "; boot key {} and host key {} no longer count",
                short(&old.boot),
                short(&old.host)
            )
        });
        let text = format!(
            "taken back with boot key {} and host key {}{went}; its tickets begin anew",
            short(&keys.boot),
            short(&keys.host)
        );
        work.audit(rejoin.event(Kind::Joined, &text));
        Ok(())
    }

    /// What the policies of all live volumes of a client want.
    fn approvals_of(
        &self,
        work: &mut Work<'_>,
        client: &Client,
    ) -> Result<Vec<Approval>, RecordError> {
        let owned: Vec<VolumeId> = self.records.all(&key::owned(&client.name))?;
        let mut wanted = Vec::with_capacity(owned.len());
        for id in owned {
            let Some(volume) = work.read::<Volume>(&key::volume(&id))? else {
                continue;
            };
            if volume.state == VolumeState::Live {
                let (client, group) = owner(work, &volume)?;
                let found = policy::in_force(&volume, &client, group.as_ref());
                wanted.push(found.policy.approval.clone());
            }
        }
        Ok(wanted)
    }

    fn rejoin_listing(&self, rejoin: &Rejoin) -> Result<RejoinListing, AdminError> {
        self.records.transact(self.clock.now(), |work| {
            let client = client_record(work, &rejoin.client)?;
            self.listing_in(work, rejoin, &client)
        })
    }

    fn listing_in(
        &self,
        work: &mut Work<'_>,
        rejoin: &Rejoin,
        client: &Client,
    ) -> Result<RejoinListing, AdminError> {
        let mut volumes = Vec::with_capacity(rejoin.volumes.len());
        for id in &rejoin.volumes {
            let volume: Option<Volume> = work.read(&key::volume(id))?;
            volumes.push(RequestedVolume {
                id: *id,
                label: volume.map(|volume| volume.label).unwrap_or_default(),
            });
        }
        let wanted = self.approvals_of(work, client)?;
        let machine: Option<Machine> = work.read(&key::machine(&client.name))?;
        let ticket = shown_ticket(work, &rejoin.tickets, &rejoin.volumes)?;
        let mut approved_by: Vec<String> =
            rejoin.approvals.iter().map(|one| one.who.clone()).collect();
        approved_by.sort();
        Ok(RejoinListing {
            kind: "rejoin".to_owned(),
            id: rejoin.number.to_string(),
            request: rejoin.request,
            client: client.name.clone(),
            volumes,
            live_volumes: wanted.len(),
            peer: rejoin.peer,
            state: rejoin.state,
            created: rejoin.created,
            expires: rejoin.expires,
            attempts_left: ATTEMPTS.saturating_sub(rejoin.attempts),
            approvals_left: left(&wanted, &rejoin.approvals, self.clock.now()),
            approved_by,
            boot_key: rejoin.keys.boot,
            host_key: rejoin.keys.host,
            old_boot_key: client.joined.as_ref().map(|joined| joined.boot),
            old_host_key: client.joined.as_ref().map(|joined| joined.host),
            joined: client.joined.as_ref().map(|joined| joined.at),
            joined_from: client.joined.as_ref().map(|joined| joined.from),
            heard: machine
                .and_then(|machine| machine.heard)
                .map(|heard| heard.at),
            connected: self.lives.is_open(&client.name),
            ticket: ticket_words(ticket).to_owned(),
            rival: rejoin.rival,
        })
    }
}

/// The open request to be taken back that goes by `id`.
pub(super) fn open_rejoin(
    work: &mut Work<'_>,
    id: &str,
    now: UnixMillis,
) -> Result<Rejoin, AdminError> {
    let open = open_number(work, id)?;
    let found: Option<Rejoin> = work.read(&key::rejoin(&open.client))?;
    found
        .filter(|rejoin| rejoin.number == open.number && rejoin.is_open(now))
        .ok_or_else(|| no_request(id))
}

fn approved_text(rejoin: &Rejoin) -> String {
    format!("approved that it is taken back: request {}", rejoin.number)
}

/// As [`count_wrong`], on record.
fn wrong_code(work: &mut Work<'_>, rejoin: &mut Rejoin, who: &str) -> Result<u32, RecordError> {
    let left = count_wrong(&mut rejoin.attempts, &mut rejoin.state);
    work.write(rejoin)?;
    let text = format!("wrong code: request {}", rejoin.number);
    work.audit(rejoin.event(Kind::WrongCode, &text).who(who));
    if left == 0 {
        let text = format!(
            "denied after too many wrong codes: request {}",
            rejoin.number
        );
        work.audit(rejoin.event(Kind::Denied, &text).who(who));
    }
    Ok(left)
}
