//! The limit on what one client may have answered, and so written, in an hour.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Mutex;

use latchkey_protocol::ids::ClientName;

use super::refusals::{WINDOW, in_window, lock};
use super::{Identity, Service, ServiceError};
use crate::clock::UnixMillis;
use crate::policy::Range;
use crate::records::Role;

/// Requests that one key of a client may have answered in an hour from one network, by default.
pub const ENTRIES_PER_HOUR: u32 = 3600;
/// Networks from which the requests of one key are counted apart; those from all others are counted together.
const NETWORKS_LIMIT: usize = 64;
/// What is counted at once before counts that have passed are forgotten.
const REMEMBERED: usize = 4096;

/// How much was answered in the last hour.
#[derive(Default)]
pub(super) struct Rates {
    entries: Mutex<HashMap<(ClientName, Counted), Networks>>,
}

/// When the count of each network began, and the count; of no network in particular: of all others.
type Networks = BTreeMap<Option<Range>, (UnixMillis, u32)>;

/// What a client's requests are counted by, each apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Counted {
    /// Those of one of its keys.
    Key(Role),
    /// Those for data volumes to open: many that wait for a person keep no running machine from saying that it lives.
    Openings(Role),
    /// Those of machines without a key of its that ask to be taken back as it.
    Rejoin,
}

impl Service {
    /// Counts one request of a key against its limit. Each key has its own: whoever has a copy of the boot key may not keep
    /// the running machine from saying that it lives. And so has each network: nor may he keep it from booting.
    pub(super) fn admit(
        &self,
        identity: &Identity,
        peer: IpAddr,
        now: UnixMillis,
    ) -> Result<(), ServiceError> {
        self.admit_by(Counted::Key(identity.role()), identity, peer, now)
    }

    /// As [`Service::admit`], counted by `by`.
    pub(super) fn admit_by(
        &self,
        by: Counted,
        identity: &Identity,
        peer: IpAddr,
        now: UnixMillis,
    ) -> Result<(), ServiceError> {
        let network = Range::around(peer);
        self.count(identity.client(), by, Some(network), now)
            .map_err(|retry_after| ServiceError::TooMany { retry_after })
    }

    /// Counts one request against the limit of what it is counted by; else after how many seconds there is room again.
    pub(super) fn count(
        &self,
        client: &ClientName,
        by: Counted,
        network: Option<Range>,
        now: UnixMillis,
    ) -> Result<(), u32> {
        let lasts = |(began, _): &(UnixMillis, u32)| in_window(*began, now);
        let mut entries = lock(&self.rates.entries);
        if entries.len() > REMEMBERED {
            entries.retain(|_, networks| networks.values().any(lasts));
        }
        let networks = entries.entry((client.clone(), by)).or_default();
        if networks.len() >= NETWORKS_LIMIT {
            networks.retain(|_, count| lasts(count));
        }
        let is_apart = networks.len() < NETWORKS_LIMIT || networks.contains_key(&network);
        let network = network.filter(|_| is_apart);
        let (began, count) = networks.entry(network).or_insert((now, 0));
        if !in_window(*began, now) {
            (*began, *count) = (now, 0);
        }
        if *count >= self.entries_per_hour {
            let left = WINDOW.saturating_sub(now.since(*began)).as_secs();
            return Err(u32::try_from(left).unwrap_or(u32::MAX).max(1));
        }
        *count += 1;
        Ok(())
    }
}
