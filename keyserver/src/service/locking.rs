//! Locking a machine out, letting it boot again, and announcing a reboot on its behalf.

use std::time::Duration;

use latchkey_protocol::ids::ClientName;

use super::listing::ClientListing;
use super::policies::client_record;
use super::running::armed_lifetime;
use super::{AdminError, Service};
use crate::audit::{Event, Kind};
use crate::clock::UnixMillis;
use crate::ledger::Work;
use crate::records::{Client, Machine, key};

impl Service {
    /// Locks a client out: none of its boots is released anything until [`Service::readmit`]. Idempotent.
    ///
    /// # Errors
    /// `NoClient`, `Record`.
    pub fn lock(&self, client: &ClientName, who: &str) -> Result<ClientListing, AdminError> {
        let now = self.clock.now();
        let record = self
            .records
            .transact(now, |work| lock_in(work, client, now, who))?;
        Ok(self.client_listing(record)?)
    }

    /// Lets a client boot again that was locked out.
    ///
    /// # Errors
    /// `NoClient`, `NotLocked`, `Record`.
    pub fn readmit(&self, client: &ClientName, who: &str) -> Result<ClientListing, AdminError> {
        let now = self.clock.now();
        let record = self.records.transact(now, |work| {
            let mut record = client_record(work, client)?;
            if record.locked.take().is_none() {
                return Err(AdminError::NotLocked(client.clone()));
            }
            work.write(&record)?;
            work.audit(
                Event::new(Kind::Readmitted, "may boot again")
                    .client(client)
                    .who(who),
            );
            Ok(record)
        })?;
        Ok(self.client_listing(record)?)
    }

    /// Announces a reboot of a client; until when.
    ///
    /// # Errors
    /// `NoClient`, `ArmedLifetime`, `Record`.
    pub fn arm(
        &self,
        client: &ClientName,
        lifetime: Duration,
        who: &str,
    ) -> Result<UnixMillis, AdminError> {
        let lifetime = armed_lifetime(lifetime).map_err(|_| AdminError::ArmedLifetime)?;
        let now = self.clock.now();
        self.records.transact(now, |work| {
            client_record(work, client)?;
            let found: Option<Machine> = work.read(&key::machine(client))?;
            let mut machine = found.unwrap_or_else(|| Machine::new(client.clone()));
            // Also where the machine has come up since it was heard of last: this is for the boot after that one.
            let earlier = self.released_boots(work, client)?;
            let until = machine.arm(now, lifetime, Some(who.to_owned()), earlier);
            work.write(&machine)?;
            let text = format!("a reboot was announced for it until {}", until.text());
            work.audit(Event::new(Kind::Armed, text).client(client).who(who));
            Ok(until)
        })
    }
}

/// Locks `client` out as a part of `work`.
pub(super) fn lock_in(
    work: &mut Work<'_>,
    client: &ClientName,
    now: UnixMillis,
    who: &str,
) -> Result<Client, AdminError> {
    let mut record = client_record(work, client)?;
    if record.locked.is_none() {
        record.locked = Some(now);
        work.write(&record)?;
        work.audit(
            Event::new(Kind::Locked, "locked out until it is readmitted")
                .client(client)
                .who(who),
        );
    }
    Ok(record)
}
